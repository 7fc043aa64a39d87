//! The one table of routes: method, path, who may call it, what it is for, what it takes and what it answers. The
//! router, the guards, documentation and the access and contract tests are made from it, so that no route can be
//! forgotten.

mod accounts;
mod projects;

use axum::extract::DefaultBodyLimit;

use super::access::Access::{Admin, Feedback, Inference, Keyed, Public, Review};
use super::contract::{List, Paged, Searched};
pub use super::route::Route;
use super::route::{delete, get, post};
use super::{
    admin, anthropic, ask, attention, batches, choices, conversations, docs, encoders, feedback, key_map, label, oidc,
    openai, openapi, pages, rerank, responses, rubrics, session, sets, status,
};
use crate::config::LimitsConfig;
use crate::domain::{
    Conversation, DatasetVersion, Demonstration, FeedbackEvent, Job, Judgment, ModelVersion, Project, Prompt, SetDraw,
};
use crate::eval::quality::Report;
use crate::jobs::estimate::Estimate;
use crate::service::catalogue::Catalogue;
use crate::service::draw::DrawRequest;
use crate::service::evidence::Evidence;
use crate::service::imports::Imported;
use crate::service::jobs::{JobView, PlaceLog};
use crate::service::judges::JudgesReport;
use crate::service::learned::LearnedRun;
use crate::service::live::{Canary, Described, Usage};
use crate::service::overview::{Flow, Overview};
use crate::service::own_page::OwnPage;
use crate::service::quality::{RatingsReport, VersionTable};
use crate::service::retention::{Progress, Retention};
use crate::service::sample::Sample;

/// Keys, invites and names are short; anybody may send them.
const LOGIN_BYTES: usize = 4096;

/// The fields of a form in addition to the file.
const FORM_BYTES: usize = 16 << 10;

/// Every route there is.
pub fn table(limits: &LimitsConfig) -> Vec<Route> {
    let mut all = pages_and_status();
    all.extend(inference());
    all.extend(batched(limits));
    all.extend(people());
    all.extend(administration(limits));
    all.extend(review());
    all.extend(accounts::webhooks());
    all
}

fn pages_and_status() -> Vec<Route> {
    vec![
        get("/", Public, "Where the pages are", pages::index).page().html(),
        get("/label", Public, "The labeler's page", pages::label).page().html(),
        get("/admin", Public, "The administrator's page", pages::admin).page().html(),
        get("/chat", Public, "The chat page", pages::chat).page().html(),
        get("/explore", Public, "Attention maps and model sizes", pages::explore).page().html(),
        get("/docs", Public, "This API, readable", docs::page).page().html(),
        get("/openapi.json", Public, "This API, OpenAPI 3.1", openapi::json).returns::<openapi::Document>(200),
        get("/static/{*path}", Public, "Files of the pages", pages::file).page().returns_other("*/*").unchanged(),
        get("/favicon.ico", Public, "The icon", pages::favicon).page().returns_other("image/svg+xml").unchanged(),
        get("/robots.txt", Public, "For crawlers", pages::robots).page().returns_other("text/plain"),
        get("/health", Public, "Liveness check", status::health).returns::<status::Health>(200),
        get("/ready", Public, "200 when requests are served, 503 while the model loads", status::ready)
            .returns::<status::Ready>(200),
        get("/metrics", Public, "Prometheus metrics", status::metrics).returns_other("text/plain"),
    ]
}

fn inference() -> Vec<Route> {
    vec![
        post("/v1/completions", Inference, "Complete a prompt", openai::completions::create)
            .body::<openai::completions::CompletionRequest>()
            .requiring(&["prompt"])
            .returns::<openai::completions::TextCompletion>(200)
            .streams::<openai::stream::Streamed<openai::completions::TextCompletion>>()
            .computing(),
        post("/v1/chat/completions", Inference, "Answer a conversation", openai::chat::create)
            .body::<openai::chat_request::ChatRequest>()
            .requiring(&["messages"])
            .returns::<openai::chat::ChatCompletion>(200)
            .streams::<openai::stream::Streamed<openai::chat::ChatChunk>>()
            .computing(),
        post("/v1/responses", Inference, "Answer a conversation, OpenAI's newer form", responses::create)
            .body::<responses::ResponsesRequest>()
            .requiring(&["input"])
            .returns::<responses::ResponseObject>(200)
            .streams::<responses::ResponseEvent>()
            .computing(),
        get("/v1/responses/{id}", Inference, "A response that is kept", responses::get)
            .returns::<responses::ResponseObject>(200),
        delete("/v1/responses/{id}", Inference, "Forget a response", responses::delete)
            .returns::<responses::Forgotten>(200),
        post("/v1/messages", Inference, "Answer a conversation, Anthropic's form", anthropic::create)
            .body::<anthropic::MessagesRequest>()
            .requiring(&["messages", "max_tokens"])
            .returns::<anthropic::AnthropicMessage>(200)
            .streams::<anthropic::AnthropicEvent>()
            .computing(),
        post(
            "/v1/messages/count_tokens",
            Inference,
            "Tokens of a conversation, Anthropic's form",
            anthropic::count_tokens,
        )
        .body::<anthropic::MessagesRequest>()
        .requiring(&["messages"])
        .returns::<anthropic::CountedTokens>(200),
        post("/v1/rerank", Inference, "Order texts by how well they fit a query", rerank::rerank)
            .body::<rerank::RerankRequest>()
            .returns::<rerank::Reranked>(200)
            .computing(),
        post("/v1/score", Inference, "Score pairs of texts", rerank::score)
            .body::<rerank::ScoreRequest>()
            .returns::<rerank::Scored>(200)
            .computing(),
        post("/v1/choices", Inference, "Score given answers to a prompt, ranked", choices::create)
            .body::<choices::ChoicesRequest>()
            .returns::<choices::RankedChoices>(200)
            .computing(),
        post("/v1/embeddings", Inference, "Embed texts by an encoder", encoders::embeddings)
            .body::<encoders::EmbeddingsRequest>()
            .returns::<encoders::EmbeddingList>(200)
            .computing(),
        post("/v1/fill-mask", Inference, "Fill masked gaps by an encoder", encoders::fill_mask)
            .body::<encoders::FillMaskRequest>()
            .returns::<encoders::FilledGaps>(200)
            .computing(),
        post("/v1/attention", Inference, "Which tokens attend to which, by layer and head", attention::create)
            .body::<attention::AttentionRequest>()
            .returns::<attention::AttentionMaps>(200)
            .computing(),
        get("/v1/plan", Inference, "Memory, speed bounds and devices of a model size", attention::plan)
            .query::<attention::PlanQuery>()
            .returns::<attention::PlanAnswer>(200),
        get("/v1/models", Inference, "Policies, the active one first", openai::models::list)
            .returns::<openai::models::ModelList>(200),
        get("/v1/models/{id}", Inference, "One policy by name or id", openai::models::get)
            .returns::<openai::models::ModelEntry>(200),
        post("/tokenize", Inference, "Text to token ids", openai::tokenize::tokenize)
            .body::<openai::tokenize::TokenizeRequest>()
            .returns::<openai::tokenize::Tokenized>(200),
        post("/detokenize", Inference, "Token ids to text", openai::tokenize::detokenize)
            .body::<openai::tokenize::DetokenizeRequest>()
            .returns::<openai::tokenize::Detokenized>(200),
        post("/v1/rewards", Inference, "Score completions by a reward model", feedback::rewards)
            .body::<feedback::RewardsRequest>()
            .returns::<feedback::Rewards>(200)
            .computing(),
    ]
}

fn batched(limits: &LimitsConfig) -> Vec<Route> {
    let mut upload =
        post("/v1/files", Keyed, "Upload a file of requests (a form with file and purpose)", batches::upload)
            .returns::<batches::FileObject>(200);
    upload.handler = upload.handler.layer(DefaultBodyLimit::max(limits.file_bytes + FORM_BYTES));
    vec![
        upload,
        get("/v1/files", Keyed, "Own files, newest first", batches::list_files)
            .query::<batches::FilesQuery>()
            .returns::<batches::Listing<batches::FileObject>>(200),
        get("/v1/files/{id}", Keyed, "One file, without its text", batches::get_file)
            .returns::<batches::FileObject>(200),
        get("/v1/files/{id}/content", Keyed, "The text of a file", batches::content).returns_other("application/jsonl"),
        delete("/v1/files/{id}", Keyed, "Remove a file", batches::delete_file).returns::<batches::DeletedFile>(200),
        post("/v1/batches", Keyed, "Answer the requests of a file when nobody else waits", batches::create)
            .body::<batches::BatchRequest>()
            .returns::<batches::BatchObject>(200),
        get("/v1/batches", Keyed, "Own batches, newest first", batches::list)
            .query::<batches::BatchesQuery>()
            .returns::<batches::Listing<batches::BatchObject>>(200),
        get("/v1/batches/{id}", Keyed, "One batch", batches::get).returns::<batches::BatchObject>(200),
        post("/v1/batches/{id}/cancel", Keyed, "End a batch early", batches::cancel)
            .returns::<batches::BatchObject>(200),
    ]
}

fn people() -> Vec<Route> {
    let mut log_in = post("/session", Public, "Sign in with a key, a personal link or an invite", session::log_in)
        .body::<session::LogIn>()
        .returns::<session::SignedIn>(200);
    log_in.handler = log_in.handler.layer(DefaultBodyLimit::max(LOGIN_BYTES));
    let mut look = post("/session/invite", Public, "Show whom an invite is for", session::look_at_invite)
        .body::<session::InviteLook>()
        .returns::<session::InviteGreeting>(200);
    look.handler = look.handler.layer(DefaultBodyLimit::max(LOGIN_BYTES));
    vec![
        log_in,
        look,
        get("/session", Public, "Who is signed in", session::who).returns::<session::SignedIn>(200),
        delete("/session", Public, "Sign out", session::log_out).returns_nothing(),
        get("/session/options", Public, "Ways to sign in beside links and keys", oidc::options)
            .returns::<oidc::SignInOptions>(200),
        get("/session/oidc", Public, "Sign in at the OpenID Connect provider", oidc::begin)
            .query::<oidc::BeginQuery>()
            .redirects("to the provider, or to a page of this server with `#problem=` and a code"),
        get("/session/oidc/callback", Public, "Take the OpenID Connect provider's answer", oidc::callback)
            .page()
            .redirects("to a page of this server; after a failure with `#problem=` and a code"),
        get("/v1/prompts", Feedback, "Stored prompts, newest first", sets::list_prompts)
            .query::<label::PageQuery>()
            .returns::<Paged<Prompt>>(200),
        post("/v1/prompts", Feedback, "Store a prompt", sets::add_prompt)
            .body::<sets::PromptRequest>()
            .returns::<Prompt>(201),
        get("/v1/comparison-sets", Feedback, "Comparison sets, newest first", sets::list_sets)
            .query::<sets::SetsQuery>()
            .returns::<Paged<sets::SetSummary>>(200),
        post(
            "/v1/comparison-sets",
            Feedback,
            "Create a set to rank; missing completions are drawn from the policy",
            sets::create,
        )
        .body::<sets::SetRequest>()
        .returns::<sets::ShownSet>(201)
        .computing(),
        get("/v1/comparison-sets/{id}", Feedback, "One comparison set", sets::get_set).returns::<sets::ShownSet>(200),
        post("/v1/comparisons", Feedback, "Submit a ranking", sets::rank)
            .body::<sets::RankingRequest>()
            .returns::<sets::StoredRanking>(201)
            .returns::<sets::StoredRanking>(200),
        post("/v1/demonstrations", Feedback, "Store a prompt with its ideal answer", sets::demonstrate)
            .body::<sets::DemonstrationRequest>()
            .returns::<Demonstration>(201),
        post("/v1/feedback", Feedback, "A thumb, score, edit or comment on a completion", feedback::give)
            .body::<feedback::FeedbackRequest>()
            .returns::<FeedbackEvent>(201),
        get("/v1/judgments", Feedback, "Judgments, newest first (labelers see their own)", label::judgments)
            .query::<label::PageQuery>()
            .returns::<Paged<Judgment>>(200),
        get("/v1/guidelines", Public, "How to rank", label::guidelines)
            .query::<label::GuidelinesQuery>()
            .returns::<label::ShownGuidelines>(200),
        get("/v1/rubric", Feedback, "The active rubric", rubrics::active)
            .query::<label::ProjectQuery>()
            .returns::<rubrics::ActiveRubric>(200),
        get("/v1/projects", Feedback, "The projects in which the caller labels", label::projects)
            .returns::<List<Project>>(200),
        get("/v1/label/next", Feedback, "Lease the next set to rank; 204 when none is open", label::next)
            .query::<label::NextQuery>()
            .returns::<label::LeasedSet>(200)
            .returns_nothing_because(
                "the header `x-queue` says why: `empty`; `held` when there is nothing but sets that the caller holds, \
                 which `resume=true` hands out again; `quota` when the day's quota is used; for a named set also \
                 `judged`, `taken` or `closed`",
            ),
        post(
            "/v1/label/ask",
            Feedback,
            "Ask a question and follow its answers (SSE); they become a leased set",
            ask::ask,
        )
        .body::<ask::AskRequest>()
        .streams::<ask::AskEvent>()
        .computing(),
        post(
            "/v1/label/continue",
            Feedback,
            "Go on with one of the answers to a question and follow the next ones (SSE)",
            ask::go_on,
        )
        .body::<ask::ContinueRequest>()
        .streams::<ask::AskEvent>()
        .computing(),
        get("/v1/label/conversations", Feedback, "Own conversations, newest first", conversations::list)
            .query::<conversations::ConversationsQuery>()
            .returns::<Paged<conversations::ListedConversation>>(200),
        get("/v1/label/conversations/{id}", Feedback, "The sets of a conversation", conversations::get)
            .returns::<Conversation>(200),
        post("/v1/label/{id}/renew", Feedback, "Extend a lease", label::renew)
            .body::<label::Lease>()
            .returns::<label::Renewed>(200),
        post("/v1/label/{id}/release", Feedback, "Release a lease", label::release)
            .body::<label::Lease>()
            .returns_nothing(),
        post("/v1/label/{id}/judgment", Feedback, "Judge a leased set", label::submit)
            .body::<label::JudgmentRequest>()
            .returns::<label::StoredJudgment>(200),
        get("/v1/label/me", Feedback, "Own progress, pace and agreement", label::me)
            .query::<label::ProjectQuery>()
            .returns::<OwnPage>(200),
        get("/v1/label/history", Feedback, "Own judgments, newest first", label::history)
            .query::<label::PageQuery>()
            .returns::<Paged<label::PastJudgment>>(200),
        get("/v1/label/keys", Feedback, "Own keys of the labeling page", key_map::get)
            .returns::<key_map::ChangedKeys>(200),
        post("/v1/label/keys", Feedback, "Replace own keys of the labeling page", key_map::put)
            .body::<key_map::KeysChange>()
            .returns::<key_map::ChangedKeys>(200),
        get("/v1/label/judgments/{id}", Feedback, "A judgment with its set as shown", label::reopen)
            .returns::<label::ReopenedJudgment>(200),
    ]
}

fn administration(limits: &LimitsConfig) -> Vec<Route> {
    let mut all = queue();
    all.extend(training());
    all.extend(files(limits));
    all.extend(accounts::table());
    all.extend(projects::table());
    all
}

fn queue() -> Vec<Route> {
    use admin::{browse, sets};
    vec![
        get("/admin/api/overview", Admin, "Counts of the loop and the suggested next step", admin::overview)
            .query::<admin::OverviewQuery>()
            .returns::<Overview>(200),
        get("/admin/api/throughput", Review, "Judgments per day, median time, the queue", admin::throughput)
            .query::<admin::FlowQuery>()
            .returns::<Flow>(200),
        get("/admin/sets", Admin, "Sets with their prompt and progress, newest first", browse::sets)
            .query::<browse::SetsQuery>()
            .returns::<Searched<browse::ListedSet>>(200),
        post("/admin/sets/draw", Admin, "Draw sets in bulk from stored prompts, in the background", sets::draw)
            .body::<DrawRequest>()
            .returns::<SetDraw>(202)
            .computing(),
        get("/admin/sets/draws", Admin, "Draws, newest first", sets::draws)
            .query::<label::PageQuery>()
            .returns::<Paged<SetDraw>>(200),
        get("/admin/sets/draws/{id}", Admin, "One draw: running, done, failed or cancelled", sets::get_draw)
            .returns::<SetDraw>(200),
        post("/admin/sets/draws/{id}/cancel", Admin, "Stop a running draw", sets::cancel_draw).returns::<SetDraw>(200),
        post("/admin/sets/retire", Admin, "Remove several sets from the queue", browse::retire)
            .body::<browse::RetireRequest>()
            .returns_nothing(),
        post("/admin/sets/{id}/known-answer", Admin, "Make a set gold or calibration", sets::known_answer)
            .body::<sets::KnownAnswerRequest>()
            .returns_nothing(),
        post("/admin/sets/{id}/retire", Admin, "Remove a set from the queue", sets::retire).returns_nothing(),
    ]
}

fn training() -> Vec<Route> {
    use admin::{jobs, models, settings};
    vec![
        get("/admin/recipes", Admin, "Recipes with the schemas of their arguments", jobs::recipes)
            .returns::<List<jobs::RecipeView>>(200),
        get("/admin/jobs", Admin, "Jobs, newest first", jobs::list)
            .query::<jobs::JobsQuery>()
            .returns::<Searched<JobView>>(200),
        post("/admin/jobs", Admin, "Queue a job", jobs::create).body::<jobs::JobRequest>().returns::<JobView>(201),
        post("/admin/jobs/estimate", Admin, "Memory, steps and time that a job would need", jobs::estimate)
            .body::<jobs::EstimateRequest>()
            .returns::<Estimate>(200),
        get("/admin/jobs/{id}", Admin, "One job", jobs::get).returns::<JobView>(200),
        post("/admin/jobs/{id}", Admin, "Change a job's name, note or tags", jobs::describe)
            .body::<jobs::JobWords>()
            .returns::<JobView>(200),
        post("/admin/jobs/{id}/cancel", Admin, "Stop a job at its next step", jobs::cancel).returns::<Job>(200),
        post("/admin/jobs/{id}/resume", Admin, "Queue a failed or cancelled job again", jobs::resume)
            .returns::<Job>(200),
        get("/admin/jobs/{id}/events", Admin, "Follow a job (SSE, or ?format=json)", jobs::events)
            .query::<jobs::EventsQuery>()
            .returns::<jobs::JobEvents>(200)
            .streams::<jobs::StreamedJobEvent>(),
        get("/admin/jobs/{id}/log", Admin, "The remote place where a job runs, and its log there", jobs::log)
            .returns::<PlaceLog>(200),
        get("/admin/jobs/{id}/metrics", Admin, "Curves of a job", jobs::metrics)
            .query::<jobs::MetricsQuery>()
            .returns::<jobs::Curves>(200),
        get("/admin/models", Admin, "All model versions", models::list).returns::<models::ModelVersions>(200),
        get("/admin/catalogue", Admin, "Models that can be pulled by name, and what they need", models::catalogue)
            .returns::<Catalogue>(200),
        get("/admin/models/{id}", Admin, "One model version", models::get).returns::<ModelVersion>(200),
        get("/admin/models/{id}/evidence", Admin, "Evidence for and against a version", models::evidence)
            .returns::<Evidence>(200),
        delete("/admin/models/{id}", Admin, "Retire a model version", models::retire).returns_nothing(),
        post("/admin/models/{id}/promote", Admin, "Make a version the active one", models::promote)
            .returns::<ModelVersion>(200),
        post("/admin/models/rollback", Admin, "Return to the active policy's parent", models::roll_back)
            .optional_body::<models::RollBack>()
            .returns::<ModelVersion>(200),
        get("/admin/usage", Admin, "Usage and feedback of each version; the canary", settings::usage)
            .returns::<Usage>(200),
        post("/admin/canary", Admin, "Send a share of the requests to a candidate", settings::start_canary)
            .body::<settings::NewCanary>()
            .returns::<Canary>(200),
        delete("/admin/canary", Admin, "End the canary", settings::end_canary).returns_nothing(),
        get("/admin/settings", Admin, "Every setting with its explanation", settings::list)
            .returns::<List<Described>>(200),
        post("/admin/settings", Admin, "Change a setting while the server runs", settings::change)
            .body::<settings::Change>()
            .returns_nothing(),
    ]
}

fn files(limits: &LimitsConfig) -> Vec<Route> {
    use admin::transfer;
    let mut import = post(
        "/admin/import",
        Admin,
        "Import a file: comparisons, trl, hh, demonstrations, prompts, oasst (lines), parquet; ?known_answer=gold",
        transfer::import,
    )
    .query::<transfer::ImportQuery>()
    .returns::<Imported>(200)
    .returns::<transfer::FailedImport>(400);
    import.decodes = true;
    import.handler = import.handler.layer(DefaultBodyLimit::max(limits.import_bytes));
    vec![
        get(
            "/admin/retention",
            Admin,
            "What is kept how long, and what goes by the limits of now",
            admin::retention::show,
        )
        .returns::<Retention>(200),
        post("/admin/retention", Admin, "Remove what is past its limits, in the background", admin::retention::run)
            .returns::<Progress>(202),
        import,
        get(
            "/admin/export",
            Admin,
            "Export a file: comparisons, trl, hh, demonstrations, oasst (lines), parquet",
            transfer::export,
        )
        .query::<transfer::ExportQuery>()
        .returns_other("application/x-ndjson")
        .returns_other("application/vnd.apache.parquet"),
        post("/admin/sample-data", Admin, "Load sample rankings and pairs to rank", transfer::sample)
            .returns::<Sample>(200),
        get("/admin/datasets", Admin, "Dataset versions, newest first", transfer::list_datasets)
            .returns::<List<DatasetVersion>>(200),
        post("/admin/datasets", Admin, "Freeze a dataset version", transfer::create_dataset)
            .body::<transfer::NewDataset>()
            .returns::<DatasetVersion>(201),
        get("/admin/datasets/{id}", Admin, "One dataset version by id or name", transfer::get_dataset)
            .returns::<DatasetVersion>(200),
    ]
}

/// What reviewers may do in addition to ranking.
fn review() -> Vec<Route> {
    use admin::{browse, quality};
    vec![
        get("/v1/review/sets/{id}", Review, "A set with everybody's latest judgments", admin::sets::review)
            .returns::<admin::sets::ReviewedSet>(200),
        get("/v1/review/sets/{id}/runs", Review, "Runs that have learned from judgments of a set", admin::sets::runs)
            .returns::<List<LearnedRun>>(200),
        post(
            "/v1/review/sets/{id}/settle",
            Review,
            "Settle a set: datasets take this judgment instead of the others",
            admin::sets::settle,
        )
        .body::<label::JudgmentRequest>()
        .returns::<admin::sets::Settled>(200),
        get("/admin/api/quality", Review, "Agreement, labelers and length bias of the judgments", quality::report)
            .query::<quality::ReportQuery>()
            .returns::<Report>(200),
        get("/admin/api/judgments", Review, "Current judgments with their prompt, newest first", browse::judgments)
            .query::<browse::JudgmentsQuery>()
            .returns::<Searched<browse::ListedJudgment>>(200),
        get("/admin/api/quality/ratings", Review, "Ratings by rubric and dimension, with agreement", quality::ratings)
            .query::<quality::ReportQuery>()
            .returns::<RatingsReport>(200),
        get(
            "/admin/api/quality/judges",
            Review,
            "Agreement of language models as labelers with people",
            quality::judges,
        )
        .query::<quality::ReportQuery>()
        .returns::<JudgesReport>(200),
        get("/admin/api/quality/versions", Review, "Table of model versions by human preference", quality::versions)
            .query::<quality::VersionsQuery>()
            .returns::<VersionTable>(200),
        get(
            "/admin/api/quality/consensus",
            Review,
            "Consensus on ranked sets, the most disputed first",
            quality::consensus,
        )
        .query::<quality::ConsensusQuery>()
        .returns::<quality::ConsensusList>(200),
    ]
}
