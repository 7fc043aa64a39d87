//! The one table of routes: method, path, who may call it, what it is for. Documentation and the access
//! tests are made from it, so that no route can be forgotten.

use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::JsonSchema;
use serde_json::Value;

use super::auth::Access::{self, Admin, Feedback, Inference, Public, Review};
use super::{
    AppState, admin, answers, ask, attention, choices, docs, encoders, feedback, label, openai, openapi, pages,
    session, sets, status,
};
use crate::config::LimitsConfig;

/// Keys, invites and names are short; anybody may send them.
const LOGIN_BYTES: usize = 4096;

/// One method of one path.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub about: &'static str,
    /// JSON Schema of the request body.
    pub body: Option<Value>,
    /// JSON Schema of the query: parameters that it does not name are refused.
    pub query: Option<Value>,
    /// A page or its file: what stands in the query is for the page's own script.
    pub page: bool,
    /// Takes compressed bodies.
    pub decodes: bool,
    /// What the answer holds, where its shape does not speak for itself.
    pub answer: Option<&'static str>,
    /// A model runs for it: tokens are charged to the caller's key, and a key without tokens left is refused.
    pub computes: bool,
    pub handler: MethodRouter<AppState>,
}

impl Route {
    fn computing(self) -> Self {
        Self { computes: true, ..self }
    }

    fn answering(self, answer: &'static str) -> Self {
        Self { answer: Some(answer), ..self }
    }

    fn taking<T: JsonSchema>(mut self) -> Self {
        self.body = Some(answers::schema::<T>());
        self
    }

    /// Declares the query; a handler reads the same type.
    fn asking<T: JsonSchema>(mut self) -> Self {
        self.query = Some(answers::schema::<T>());
        self
    }

    /// Fields that must be there although their type has a default.
    fn requiring(mut self, fields: &[&str]) -> Self {
        if let Some(body) = &mut self.body {
            body["required"] = fields.iter().copied().map(Value::from).collect();
        }
        self
    }

    fn page(self) -> Self {
        Self { page: true, ..self }
    }

    /// The names that the query may hold; `None` = any.
    pub fn query_names(&self) -> Option<Vec<String>> {
        let fields = self.query.as_ref().and_then(|q| q["properties"].as_object());
        (!self.page).then(|| fields.map(|f| f.keys().cloned().collect()).unwrap_or_default())
    }
}

fn route<H, T>(method: Method, path: &'static str, access: Access, about: &'static str, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Route {
        method,
        path,
        access,
        about,
        body: None,
        query: None,
        page: false,
        decodes: false,
        answer: None,
        computes: false,
        handler: on(filter, handler),
    }
}

fn get<H: Handler<T, AppState>, T: 'static>(path: &'static str, access: Access, about: &'static str, h: H) -> Route {
    route(Method::GET, path, access, about, h)
}

fn post<H: Handler<T, AppState>, T: 'static>(path: &'static str, access: Access, about: &'static str, h: H) -> Route {
    route(Method::POST, path, access, about, h)
}

fn delete<H: Handler<T, AppState>, T: 'static>(path: &'static str, access: Access, about: &'static str, h: H) -> Route {
    route(Method::DELETE, path, access, about, h)
}

/// Every route there is.
pub fn table(limits: &LimitsConfig) -> Vec<Route> {
    let mut all = pages_and_status();
    all.extend(inference());
    all.extend(people());
    all.extend(administration(limits));
    all.extend(review());
    all
}

fn pages_and_status() -> Vec<Route> {
    vec![
        get("/", Public, "Where the pages are", pages::index).page(),
        get("/label", Public, "The labeler's page", pages::label).page(),
        get("/admin", Public, "The administrator's page", pages::admin).page(),
        get("/chat", Public, "The chat page", pages::chat).page(),
        get("/explore", Public, "Attention maps and model sizes", pages::explore).page(),
        get("/docs", Public, "This API, readable", docs::page).page(),
        get("/openapi.json", Public, "This API, OpenAPI 3.1", openapi::json),
        get("/static/{*path}", Public, "Files of the pages", pages::file).page(),
        get("/favicon.ico", Public, "The icon", pages::favicon).page(),
        get("/robots.txt", Public, "For crawlers", pages::robots).page(),
        get("/health", Public, "Liveness check", status::health),
        get("/ready", Public, "200 when requests are served, 503 while the model loads", status::ready),
        get("/metrics", Public, "Prometheus metrics", status::metrics),
    ]
}

fn inference() -> Vec<Route> {
    vec![
        post("/v1/completions", Inference, "Complete a prompt", openai::completions::create)
            .taking::<openai::completions::CompletionRequest>()
            .requiring(&["prompt"])
            .computing(),
        post("/v1/chat/completions", Inference, "Answer a conversation", openai::chat::create)
            .taking::<openai::chat::ChatRequest>()
            .requiring(&["messages"])
            .computing(),
        post("/v1/choices", Inference, "Score given answers to a prompt, ranked", choices::create)
            .taking::<choices::ChoicesRequest>()
            .computing(),
        post("/v1/embeddings", Inference, "Embed texts by an encoder", encoders::embeddings)
            .taking::<encoders::EmbeddingsRequest>()
            .computing(),
        post("/v1/fill-mask", Inference, "Fill masked gaps by an encoder", encoders::fill_mask)
            .taking::<encoders::FillMaskRequest>()
            .computing(),
        post("/v1/attention", Inference, "Which tokens attend to which, by layer and head", attention::create)
            .taking::<attention::AttentionRequest>()
            .computing(),
        get("/v1/plan", Inference, "Memory, speed bounds and devices of a model size", attention::plan)
            .asking::<attention::PlanQuery>(),
        get("/v1/models", Inference, "Policies, the active one first", openai::models::list),
        get("/v1/models/{id}", Inference, "One policy by name or id", openai::models::get),
        post("/tokenize", Inference, "Text to token ids", openai::tokenize::tokenize)
            .taking::<openai::tokenize::TokenizeRequest>(),
        post("/detokenize", Inference, "Token ids to text", openai::tokenize::detokenize)
            .taking::<openai::tokenize::DetokenizeRequest>(),
        post("/v1/rewards", Inference, "Score completions by a reward model", feedback::rewards)
            .taking::<feedback::RewardsRequest>()
            .computing(),
    ]
}

fn people() -> Vec<Route> {
    let mut log_in = post("/session", Public, "Sign in with a key, a personal link or an invite", session::log_in)
        .taking::<session::LogIn>();
    log_in.handler = log_in.handler.layer(DefaultBodyLimit::max(LOGIN_BYTES));
    let mut look = post("/session/invite", Public, "Show whom an invite is for", session::look_at_invite)
        .taking::<session::InviteLook>();
    look.handler = look.handler.layer(DefaultBodyLimit::max(LOGIN_BYTES));
    vec![
        log_in.answering("labeler: {id, name, role}; link: after an invite, {token, url}: the person's own way back, shown once. 403 says by its code why: key_unknown, key_opens_no_session, invite_ or link_ unknown, used, replaced, revoked, expired; person_locked_out"),
        look.answering("{name: for whom it is, or null, role, expires}; 403 as for POST /session"),
        get("/session", Public, "Who is signed in", session::who),
        delete("/session", Public, "Sign out", session::log_out),
        get("/v1/prompts", Feedback, "Stored prompts, newest first", sets::list_prompts).asking::<label::PageQuery>(),
        post("/v1/prompts", Feedback, "Store a prompt", sets::add_prompt).taking::<sets::PromptRequest>(),
        get("/v1/comparison-sets", Feedback, "Comparison sets, newest first", sets::list_sets)
            .asking::<sets::SetsQuery>(),
        post(
            "/v1/comparison-sets",
            Feedback,
            "Create a set to rank; missing completions are drawn from the policy",
            sets::create,
        )
        .taking::<sets::SetRequest>()
            .computing(),
        get("/v1/comparison-sets/{id}", Feedback, "One comparison set", sets::get_set),
        post("/v1/comparisons", Feedback, "Submit a ranking", sets::rank).taking::<sets::RankingRequest>(),
        post("/v1/demonstrations", Feedback, "Store a prompt with its ideal answer", sets::demonstrate)
            .taking::<sets::DemonstrationRequest>(),
        post("/v1/feedback", Feedback, "A thumb, score, edit or comment on a completion", feedback::give)
            .taking::<feedback::FeedbackRequest>(),
        get("/v1/judgments", Feedback, "Judgments, newest first (labelers see their own)", label::judgments)
            .asking::<label::PageQuery>(),
        get("/v1/guidelines", Public, "How to rank", label::guidelines).asking::<label::GuidelinesQuery>(),
        get("/v1/label/next", Feedback, "Lease the next set to rank; 204 when none is open", label::next)
            .asking::<label::NextQuery>()
            .answering(
                "200: assignment_id, lease_token, expires_at, set_id, kind (normal, or calibration: its answer is \
                 shown after the vote), prompt, completions in shown order, guideline_version, me, queue, \
                 onboarding: {done, held, needed} while calibration sets come first, else null. 204: the header \
                 x-queue is empty, or quota when the day's quota is used; for a named set also judged, taken or closed",
        ),
        post(
            "/v1/label/ask",
            Feedback,
            "Ask a question and follow its answers (SSE); they become a leased set",
            ask::ask,
        )
        .taking::<ask::AskRequest>()
            .computing(),
        post("/v1/label/{id}/renew", Feedback, "Extend a lease", label::renew).taking::<label::Lease>(),
        post("/v1/label/{id}/release", Feedback, "Release a lease", label::release).taking::<label::Lease>(),
        post("/v1/label/{id}/judgment", Feedback, "Judge a leased set", label::submit)
            .taking::<label::JudgmentRequest>()
            .answering(
                "judgment, replayed, reveal: who wrote what (empty unless labeling.reveal is on), verdict: for calibration sets {met (0 to 1, null when \
                 nothing was ranked), expected: [{completion_id, tier}], explanation}, else null",
            ),
        get("/v1/label/me", Feedback, "Own progress, pace and agreement", label::me).answering(
            "{labeler_id, name, role, done_today, done_total, skipped_today, skipped_total, quota (null = none), quota_left, onboarding: {done, \
             needed} or null, days: [{start, judgments}] of the last 14, median_active_ms, median_active_ms_today, \
             tie_rate, skip_rate, agreement_with_others, calibration_accuracy: figures {value, low, high, n} or \
             null, queue_open}",
        ),
        get("/v1/label/history", Feedback, "Own judgments, newest first", label::history)
            .asking::<label::PageQuery>()
            .answering("{data: [judgment, prompt (a preview)], after}"),
        get("/v1/label/judgments/{id}", Feedback, "A judgment with its set as shown", label::reopen),
    ]
}

fn administration(limits: &LimitsConfig) -> Vec<Route> {
    let mut import = post(
        "/admin/import",
        Admin,
        "Import a file: comparisons, trl, hh, demonstrations, prompts, oasst (lines), parquet; ?known_answer=gold",
        admin::transfer::import,
    )
    .asking::<admin::transfer::ImportQuery>();
    import.decodes = true;
    import.handler = import.handler.layer(DefaultBodyLimit::max(limits.import_bytes));
    vec![
        get("/admin/api/overview", Admin, "Counts of the loop and the suggested next step", admin::overview),
        get("/admin/api/throughput", Review, "Judgments per day, median time, the queue", admin::throughput).asking::<admin::FlowQuery>(),
        get("/admin/sets", Admin, "Sets with their prompt and progress, newest first", admin::browse::sets).asking::<admin::browse::SetsQuery>().answering(
            "Query: status, kind, policy, q (text of the prompt), labeler (who judged it), disputed (true: only sets \
             that people rank differently), stuck (true: only open sets that no active labeler can judge), after (id), limit. {data: [the set, prompt (a preview), judged, skipped, \
             held (current leases), cut_off (answers that end at the length limit)], after, total}",
        ),
        post("/admin/sets/draw", Admin, "Draw sets in bulk from stored prompts, in the background", admin::sets::draw)
            .taking::<crate::service::draw::DrawRequest>()
            .computing()
            .answering("202: the draw: {id, request, state, wanted, looked_at, made, report, error, created, updated}. report says \
                 why fewer sets than wanted were made: {found (prompts that fit), has_set, raw_text, few_answers, \
                 equal_answers, too_long, smaller (sets with fewer answers than asked for), answers, cut_off, redrawn, \
                 max_tokens, temperature, top_p}; for disagreement also agreed, single, waiting and settled sets"),
        get("/admin/sets/draws", Admin, "Draws, newest first", admin::sets::draws).asking::<label::PageQuery>(),
        get("/admin/sets/draws/{id}", Admin, "One draw: running, done, failed or cancelled", admin::sets::get_draw),
        post("/admin/sets/draws/{id}/cancel", Admin, "Stop a running draw", admin::sets::cancel_draw),
        post("/admin/sets/retire", Admin, "Remove several sets from the queue", admin::browse::retire)
            .taking::<admin::browse::RetireRequest>(),
        post("/admin/sets/{id}/known-answer", Admin, "Make a set gold or calibration", admin::sets::known_answer)
            .taking::<admin::sets::KnownAnswerRequest>(),
        post("/admin/sets/{id}/retire", Admin, "Remove a set from the queue", admin::sets::retire),
        get("/admin/recipes", Admin, "Recipes with the schemas of their arguments", admin::jobs::recipes),
        get("/admin/jobs", Admin, "Jobs, newest first", admin::jobs::list).asking::<admin::jobs::JobsQuery>(),
        post("/admin/jobs", Admin, "Queue a job", admin::jobs::create).taking::<admin::jobs::JobRequest>(),
        post("/admin/jobs/estimate", Admin, "Memory, steps and time that a job would need", admin::jobs::estimate)
            .taking::<admin::jobs::EstimateRequest>(),
        get("/admin/jobs/{id}", Admin, "One job", admin::jobs::get),
        post("/admin/jobs/{id}", Admin, "Change a job's name, note or tags", admin::jobs::describe)
            .taking::<admin::jobs::JobWords>(),
        post("/admin/jobs/{id}/cancel", Admin, "Stop a job at its next step", admin::jobs::cancel),
        post("/admin/jobs/{id}/resume", Admin, "Queue a failed or cancelled job again", admin::jobs::resume),
        get("/admin/jobs/{id}/events", Admin, "Follow a job (SSE, or ?format=json)", admin::jobs::events).asking::<admin::jobs::EventsQuery>(),
        get("/admin/jobs/{id}/log", Admin, "Where a job runs beside child processes, and its log there", admin::jobs::log)
            .answering("{place, id, text, message}; place null = a child process; text null where there is no log, and message says why"),
        get("/admin/jobs/{id}/metrics", Admin, "Curves of a job", admin::jobs::metrics).asking::<admin::jobs::MetricsQuery>(),
        get("/admin/models", Admin, "All model versions", admin::models::list).answering("{data: [model version], \
             previous: {kind: id of the version that was active before}, rolled_back: [ids whose last activation was \
             rolled back]}"),
        get("/admin/catalogue", Admin, "Models that can be pulled by name, and what they need", admin::models::catalogue)
            .answering(
                "{data: [{name, repo, license, gated, languages, millions: parameters, pulled, needs: {serve, lora, \
                 full: bytes by the number of parameters}}], available_memory_bytes: of this machine, or null}",
            ),
        get("/admin/models/{id}", Admin, "One model version", admin::models::get),
        get("/admin/models/{id}/evidence", Admin, "Evidence for and against a version", admin::models::evidence)
            .answering(
                "{model, active, parent: {id, name, kind, state} or null; finding: {code, worth_promoting}; accuracy \
                 on held-out pairs: {value, low, high, n, chance} or null; labeler_agreement, win_rate (a tie counts \
                 half; n = prompts), reward: {before, after}, gold: {before, after}, kl: figures {value, low, high, n} \
                 or null; against: the version that win rate and samples compare with; samples: [{prompt, ours, \
                 theirs: {text, reward, cut}}], at most ten; new_rankings since the version was made; rolled_back: \
                 when (µs) or null}",
            ),
        delete("/admin/models/{id}", Admin, "Retire a model version", admin::models::retire),
        post("/admin/models/{id}/promote", Admin, "Make a version the active one", admin::models::promote),
        post("/admin/models/rollback", Admin, "Return to the active policy's parent", admin::models::roll_back),
        get(
            "/admin/usage",
            Admin,
            "Usage and feedback of each version; the canary",
            admin::settings::usage,
        ),
        post("/admin/canary", Admin, "Send a share of the requests to a candidate", admin::settings::start_canary)
            .taking::<admin::settings::NewCanary>(),
        delete("/admin/canary", Admin, "End the canary", admin::settings::end_canary),
        get("/admin/guidelines", Admin, "Guidelines of every language and their earlier versions", label::all_guidelines),
        post("/admin/guidelines", Admin, "Change the guidelines of a language", label::change_guidelines)
            .taking::<label::GuidelinesChange>(),
        get("/admin/settings", Admin, "Every setting with its explanation", admin::settings::list),
        post("/admin/settings", Admin, "Change a setting while the server runs", admin::settings::change)
            .taking::<admin::settings::Change>(),
        get("/admin/retention", Admin, "What is kept how long, and what goes by the limits of now", admin::retention::show).answering(
            "{limits: [retention] as it is now, outlook: {stored, goes: {completions, prompts (of requests), feedback_events, \
             job_files (of ended jobs, on this server)}: {records, bytes}; kept_feedback_until, kept_prompts_until: \
             records up to then stay, because dataset versions rest on them}, progress: {running, removing, removed, \
             started, ended, error}}",
        ),
        post("/admin/retention", Admin, "Remove what is past its limits, in the background", admin::retention::run)
            .answering("202: progress, as GET /admin/retention has it; 409 while one runs"),
        import,
        get("/admin/export", Admin, "Export a file: comparisons, trl, hh, demonstrations, oasst (lines), parquet", admin::transfer::export).asking::<admin::transfer::ExportQuery>()
            .answering("Query: format, split (train, heldout), feedback (true: also preferences from applications' events), or dataset (id or name of a version: its exact rankings, or 409 when some were erased)"),
        post("/admin/sample-data", Admin, "Load sample rankings and pairs to rank", admin::transfer::sample).answering(
            "{imported, skipped, failed, errors} as /admin/import, draw: the draw that makes the pairs, null when the sample was loaded before",
        ),
        get("/admin/datasets", Admin, "Dataset versions, newest first", admin::transfer::list_datasets),
        post("/admin/datasets", Admin, "Freeze a dataset version", admin::transfer::create_dataset).taking::<admin::transfer::NewDataset>(),
        get("/admin/datasets/{id}", Admin, "One dataset version by id or name", admin::transfer::get_dataset),
        get("/admin/audit", Admin, "Audit trail, newest first", admin::people::audit).asking::<admin::people::AuditQuery>().answering("Query: actor, action, target, since, until (µs), before (id), limit. {data: [{id, actor, credential (a key's id, configured, link:… or invite), action, target, detail, created}], names: {id: {kind, name}} of actors and targets, before}"),
        get("/admin/labelers", Admin, "People who rank", admin::people::labelers),
        post("/admin/labelers", Admin, "Add a labeler", admin::people::add_labeler)
            .taking::<admin::people::NewLabeler>()
            .answering("The labeler, and link: {id, created, expires, token, url}: how they sign in, shown once"),
        post("/admin/labelers/{id}/link", Admin, "Create a sign-in link for a person; the former one stops working", admin::people::make_link)
            .taking::<admin::people::NewLink>()
            .answering("201: {id, created, expires, token, url}: shown once"),
        delete("/admin/labelers/{id}/link", Admin, "Revoke a person's sign-in link; its sessions end", admin::people::revoke_link),
        post("/admin/labelers/{id}/active", Admin, "Allow or refuse a labeler's sign-in", admin::people::set_active)
            .taking::<admin::people::SetActive>(),
        post("/admin/labelers/{id}", Admin, "Change role, quota or activity of a labeler", admin::people::change_labeler).taking::<admin::people::LabelerChange>(),
        get("/admin/labelers/{id}/data", Admin, "Everything stored about a person", admin::people::personal_data),
        post("/admin/labelers/{id}/erase", Admin, "Erase a person's data on request", admin::people::erase).taking::<admin::people::EraseRequest>().answering("{judgments, demonstrations, feedback_events, sessions, keys, invites, links, sets}: how many were removed or made anonymous; job_lines: lines taken out of the files of training jobs; backups: whose manifests now name the person, so that a restore erases them again; not_reached: where the words may still be"),
        delete("/admin/invites/{id}", Admin, "Revoke an unused invite", admin::people::revoke_invite),
        get("/admin/invites", Admin, "Invites", admin::people::invites),
        post("/admin/invites", Admin, "Create a one-use invite", admin::people::invite)
            .taking::<admin::people::NewInvite>(),
        get("/admin/keys", Admin, "API keys", admin::people::keys),
        post("/admin/keys", Admin, "Create an API key", admin::people::create_key).taking::<admin::people::NewKey>(),
        delete("/admin/keys/{id}", Admin, "Revoke an API key", admin::people::revoke_key),
    ]
}

/// What reviewers may do beside ranking.
fn review() -> Vec<Route> {
    vec![
        get("/v1/review/sets/{id}", Review, "A set with everybody's latest judgments", admin::sets::review).answering(
            "{set, prompt, completions: [{id, text, html, author, finish_reason}], judgments: [{judgment, labeler: {id, \
             name}}], settled_by: labeler id or null, known_answer: {tiers: [{completion_id, tier}], explanation} of \
             gold and calibration sets, else null}",
        ),
        post(
            "/v1/review/sets/{id}/settle",
            Review,
            "Settle a set: datasets take this judgment instead of the others",
            admin::sets::settle,
        )
        .taking::<label::JudgmentRequest>(),
        get(
            "/admin/api/quality",
            Review,
            "Agreement, labelers and length bias of the judgments",
            admin::quality::report,
        )
        .asking::<admin::quality::ReportQuery>()
        .answering(
            "Query: kind (normal when absent; gold or calibration: sets with known answers), days (only the last N), replicates \
                 (bootstrap, 1000), seed (0). A figure is {value, low, high, n}: 95 % interval (null where none can \
                 be given) and how many independent things it rests on: sets for agreement, judgments for shares; null \
                 where nothing can be said. agreement: {units (pairs of completions rated by two or more), sets, \
                 labelers, pairwise, pairwise_without_ties, \
                 alpha_ordinal, alpha_nominal (Krippendorff), fleiss_kappa, fleiss_raters, cohen: [{kappa, \
                 weighted_kappa}]}; cohen_pairs: [[[id, name], [id, name]]] in cohen's order; labelers: [{labeler_id, \
                 name, role, active, judgments, skip_rate, unrankable_rate, all_bad_rate, tie_rate, \
                 median_active_ms, p90_active_ms, left_bias (share preferring the first shown; 0.5 = none), \
                 gold_accuracy, agreement_with_others, attention (weight in the consensus, 0 to 1)}]; length: \
                 {preferences, prompts, longer_wins, per_doubling (log-odds), mean_preferred, mean_other (characters)}",
        ),
        get(
            "/admin/api/judgments",
            Review,
            "Current judgments with their prompt, newest first",
            admin::browse::judgments,
        )
        .asking::<admin::browse::JudgmentsQuery>()
        .answering(
            "Query: labeler, set, kind, outcome, q (text of the prompt or of the reason), after (id), limit. {data: \
                 [{id, set_id, kind, prompt (a preview), labeler: {id, name}, revision, outcome, strength, rationale, \
                 active_ms (null where unknown), items: [{completion_id, tier, shown_position}], created}], after, \
                 total}",
        ),
        get(
            "/admin/api/quality/versions",
            Review,
            "Table of model versions by human preference",
            admin::quality::versions,
        )
        .asking::<admin::quality::VersionsQuery>()
        .answering(
            "Query: as /admin/api/quality, and length_controlled (false). Bradley–Terry with Davidson's ties: \
                 {versions: [{model_version_id (null for human answers), name, strength: figure (log-odds over the \
                 mean), elo, best (share of bootstrap replicates it led)}] best first, wins[i][j]: {wins, losses, \
                 ties, win_rate, expected} of i against j, tie_rate, length_effect, length_controlled, comparisons, \
                 prompts}",
        ),
        get(
            "/admin/api/quality/consensus",
            Review,
            "Consensus on ranked sets, the most disputed first",
            admin::quality::consensus,
        )
        .asking::<admin::quality::ConsensusQuery>()
        .answering(
            "Query: as /admin/api/quality, and limit (50). Only ordinary sets when no kind is given. {data: [{set_id, prompt (a preview), judgments, disagreement (0 to 1, null \
                 with one judgment), completions: [{completion_id, score}] best first}], total}",
        ),
    ]
}
