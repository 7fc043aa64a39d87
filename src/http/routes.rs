//! The one table of routes: method, path, who may call it, what it is for. Documentation and the access
//! tests are made from it, so that no route can be forgotten.

use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::auth::Access::{self, Admin, Feedback, Inference, Public};
use super::{AppState, admin, ask, feedback, label, openai, openapi, pages, session, sets, status};
use crate::config::LimitsConfig;

/// One method of one path.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub about: &'static str,
    /// JSON Schema of the request body.
    pub body: Option<Value>,
    pub handler: MethodRouter<AppState>,
}

impl Route {
    fn taking<T: JsonSchema>(mut self) -> Self {
        // Inlined: a `$ref` inside one body would point into the whole document.
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        self.body = Some(settings.into_generator().into_root_schema_for::<T>().to_value());
        self
    }
}

fn route<H, T>(method: Method, path: &'static str, access: Access, about: &'static str, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Route { method, path, access, about, body: None, handler: on(filter, handler) }
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
    all
}

fn pages_and_status() -> Vec<Route> {
    vec![
        get("/", Public, "Where the pages are", pages::index),
        get("/label", Public, "The labeler's page", pages::label),
        get("/admin", Public, "The administrator's page", pages::admin),
        get("/chat", Public, "The chat page", pages::chat),
        get("/docs", Public, "This API, readable", openapi::docs),
        get("/openapi.json", Public, "This API, OpenAPI 3.1", openapi::json),
        get("/static/{*path}", Public, "Files of the pages", pages::file),
        get("/favicon.ico", Public, "The icon", pages::favicon),
        get("/robots.txt", Public, "For crawlers", pages::robots),
        get("/health", Public, "Alive", status::health),
        get("/ready", Public, "200 when requests are served, 503 while the model loads", status::ready),
        get("/metrics", Public, "Prometheus metrics", status::metrics),
    ]
}

fn inference() -> Vec<Route> {
    vec![
        post("/v1/completions", Inference, "Complete a prompt", openai::completions::create)
            .taking::<openai::completions::CompletionRequest>(),
        post("/v1/chat/completions", Inference, "Answer a conversation", openai::chat::create)
            .taking::<openai::chat::ChatRequest>(),
        get("/v1/models", Inference, "Policies, the active one first", openai::models::list),
        get("/v1/models/{id}", Inference, "One policy by name or id", openai::models::get),
        post("/tokenize", Inference, "Text to token ids", openai::tokenize::tokenize)
            .taking::<openai::tokenize::TokenizeRequest>(),
        post("/detokenize", Inference, "Token ids to text", openai::tokenize::detokenize)
            .taking::<openai::tokenize::DetokenizeRequest>(),
        post("/v1/rewards", Inference, "Score completions by a reward model", feedback::rewards)
            .taking::<feedback::RewardsRequest>(),
    ]
}

fn people() -> Vec<Route> {
    vec![
        post("/session", Public, "Sign in with a key or an invite", session::log_in).taking::<session::LogIn>(),
        get("/session", Public, "Who is signed in", session::who),
        delete("/session", Public, "Sign out", session::log_out),
        get("/v1/prompts", Feedback, "Stored prompts, newest first", sets::list_prompts),
        post("/v1/prompts", Feedback, "Store a prompt", sets::add_prompt).taking::<sets::PromptRequest>(),
        get("/v1/comparison-sets", Feedback, "Comparison sets, newest first", sets::list_sets),
        post(
            "/v1/comparison-sets",
            Feedback,
            "Make a set to be ranked, drawn from the policy if need be",
            sets::create,
        )
        .taking::<sets::SetRequest>(),
        get("/v1/comparison-sets/{id}", Feedback, "One comparison set", sets::get_set),
        post("/v1/comparisons", Feedback, "Submit a ranking", sets::rank).taking::<sets::RankingRequest>(),
        post("/v1/demonstrations", Feedback, "Store a prompt with its ideal answer", sets::demonstrate)
            .taking::<sets::DemonstrationRequest>(),
        post("/v1/feedback", Feedback, "A thumb, score, edit or comment on a completion", feedback::give)
            .taking::<feedback::FeedbackRequest>(),
        get("/v1/judgments", Feedback, "Judgments, newest first (labelers see their own)", label::judgments),
        get("/v1/guidelines", Public, "How to rank", label::guidelines),
        get("/v1/label/next", Feedback, "Lease the next set to rank; 204 when none is open", label::next),
        post(
            "/v1/label/ask",
            Feedback,
            "Ask a question and follow its answers (SSE); they become a leased set",
            ask::ask,
        )
        .taking::<ask::AskRequest>(),
        post("/v1/label/{id}/renew", Feedback, "Extend a lease", label::renew).taking::<label::Lease>(),
        post("/v1/label/{id}/release", Feedback, "Give a lease back", label::release).taking::<label::Lease>(),
        post("/v1/label/{id}/judgment", Feedback, "Judge a leased set", label::submit)
            .taking::<label::JudgmentRequest>(),
        get("/v1/label/history", Feedback, "Own latest judgments", label::history),
        get("/v1/label/judgments/{id}", Feedback, "A judgment with its set as shown", label::reopen),
    ]
}

fn administration(limits: &LimitsConfig) -> Vec<Route> {
    let mut import = post(
        "/admin/import",
        Admin,
        "JSON lines in: comparisons, trl, hh, demonstrations, prompts",
        admin::transfer::import,
    );
    import.handler = import.handler.layer(DefaultBodyLimit::max(limits.import_bytes));
    vec![
        get("/admin/api/overview", Admin, "The loop in figures and the next sensible action", admin::overview),
        get("/admin/api/throughput", Admin, "Judgments a day, time at work, the queue", admin::throughput),
        get("/admin/recipes", Admin, "What can be trained, with argument schemas", admin::jobs::recipes),
        get("/admin/jobs", Admin, "Jobs, newest first", admin::jobs::list),
        post("/admin/jobs", Admin, "Queue a job", admin::jobs::create).taking::<admin::jobs::JobRequest>(),
        get("/admin/jobs/{id}", Admin, "One job", admin::jobs::get),
        post("/admin/jobs/{id}/cancel", Admin, "Stop a job at its next step", admin::jobs::cancel),
        post("/admin/jobs/{id}/resume", Admin, "Queue a failed or cancelled job again", admin::jobs::resume),
        get("/admin/jobs/{id}/events", Admin, "Follow a job (SSE, or ?format=json)", admin::jobs::events),
        get("/admin/jobs/{id}/metrics", Admin, "Curves of a job", admin::jobs::metrics),
        get("/admin/models", Admin, "All model versions", admin::models::list),
        get("/admin/models/{id}", Admin, "One model version", admin::models::get),
        delete("/admin/models/{id}", Admin, "Retire a model version", admin::models::retire),
        post("/admin/models/{id}/promote", Admin, "Make a version the active one", admin::models::promote),
        post("/admin/models/rollback", Admin, "Return to the active policy's parent", admin::models::roll_back),
        get(
            "/admin/usage",
            Admin,
            "What each version wrote and how it was received; the canary",
            admin::settings::usage,
        ),
        post("/admin/canary", Admin, "Send a share of the requests to a candidate", admin::settings::start_canary)
            .taking::<admin::settings::NewCanary>(),
        delete("/admin/canary", Admin, "End the canary", admin::settings::end_canary),
        get("/admin/settings", Admin, "Every setting with its explanation", admin::settings::list),
        post("/admin/settings", Admin, "Change a setting while the server runs", admin::settings::change)
            .taking::<admin::settings::Change>(),
        import,
        get("/admin/export", Admin, "JSON lines out: comparisons, trl, hh, demonstrations", admin::transfer::export),
        get("/admin/labelers", Admin, "People who rank", admin::people::labelers),
        post("/admin/labelers", Admin, "Add a labeler", admin::people::add_labeler)
            .taking::<admin::people::NewLabeler>(),
        post("/admin/labelers/{id}/active", Admin, "Let a labeler in or keep them out", admin::people::set_active)
            .taking::<admin::people::SetActive>(),
        get("/admin/invites", Admin, "Invites", admin::people::invites),
        post("/admin/invites", Admin, "Make a one-use invite", admin::people::invite)
            .taking::<admin::people::NewInvite>(),
        get("/admin/keys", Admin, "API keys", admin::people::keys),
        post("/admin/keys", Admin, "Make an API key", admin::people::create_key).taking::<admin::people::NewKey>(),
        delete("/admin/keys/{id}", Admin, "Revoke an API key", admin::people::revoke_key),
    ]
}
