//! What routes answer with, for the API document: status, content type and schema of the good answer, and the
//! query they take. Schemas are derived from the types where answers are types; the client tests hold the
//! rest against what the server really says.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::Route;
use crate::domain::{Demonstration, FeedbackEvent, Job, JobEvent, Judgment, Labeler, Metric, ModelVersion, Prompt};
use crate::service::jobs::JobView;

/// The good answer of a route.
pub struct Answer {
    pub statuses: &'static [u16],
    pub content_type: &'static str,
    pub schema: Option<Value>,
}

/// Schema of a type, without references.
pub fn schema<T: JsonSchema>() -> Value {
    // Inlined: a `$ref` inside one schema would point into the whole document.
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut value = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(object) = value.as_object_mut() {
        object.remove("$schema");
    }
    in_terms_of_json(&mut value);
    value
}

/// Descriptions come from Rust's documentation: its `None` is null to those who read them here.
fn in_terms_of_json(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if name == "description" => *text = text.replace("`None`", "`null`"),
                    other => in_terms_of_json(other),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(in_terms_of_json),
        _ => {}
    }
}

/// An object with these fields, all of them there.
fn object(fields: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|(n, s)| ((*n).to_owned(), s.clone())).collect();
    let required: Vec<&str> = fields.iter().map(|(n, _)| *n).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn data(items: Value) -> Value {
    object(&[("data", list(items))])
}

/// A page; `after` asks for the next one.
fn page(items: Value) -> Value {
    object(&[("data", list(items)), ("after", optional("string"))])
}

fn text() -> Value {
    json!({"type": "string"})
}

fn one_of(names: &[&str]) -> Value {
    json!({"type": "string", "enum": names})
}

fn integer() -> Value {
    json!({"type": "integer"})
}

fn optional(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn usage() -> Value {
    object(&[("prompt_tokens", integer()), ("completion_tokens", integer()), ("total_tokens", integer())])
}

fn finish() -> Value {
    one_of(&["stop", "length", "abort"])
}

/// What both completion routes share.
fn completion(kind: &str, choice: Value) -> Value {
    object(&[
        ("id", text()),
        ("object", json!({"const": kind})),
        ("created", integer()),
        ("model", text()),
        ("choices", list(choice)),
        (
            "instructd",
            object(&[("completion_ids", list(optional("string"))), ("model_version", text()), ("seed", integer())]),
        ),
        ("usage", usage()),
    ])
}

fn raw_completion() -> Value {
    let mut logprobs = object(&[
        ("tokens", list(text())),
        ("token_logprobs", list(optional("number"))),
        ("top_logprobs", list(json!({"type": ["object", "null"], "additionalProperties": {"type": "number"}}))),
        ("text_offset", list(integer())),
        ("token_ids", list(integer())),
    ]);
    logprobs["type"] = json!(["object", "null"]);
    let choice = object(&[("index", integer()), ("text", text()), ("logprobs", logprobs), ("finish_reason", finish())]);
    completion("text_completion", choice)
}

fn chat_completion() -> Value {
    let token =
        [("token", text()), ("logprob", optional("number")), ("bytes", list(integer())), ("token_id", integer())];
    let mut with_top = token.to_vec();
    with_top.push(("top_logprobs", list(object(&token))));
    let mut logprobs = object(&[("content", list(object(&with_top)))]);
    logprobs["type"] = json!(["object", "null"]);
    let message = object(&[("role", json!({"const": "assistant"})), ("content", text())]);
    let choice =
        object(&[("index", integer()), ("message", message), ("logprobs", logprobs), ("finish_reason", finish())]);
    completion("chat.completion", choice)
}

fn model_entry() -> Value {
    object(&[
        ("id", text()),
        ("object", json!({"const": "model"})),
        ("created", integer()),
        ("owned_by", text()),
        (
            "instructd",
            object(&[
                ("version", text()),
                ("stage", text()),
                ("state", text()),
                ("loaded", json!({"type": "boolean"})),
            ]),
        ),
    ])
}

fn shown_prompt() -> Value {
    let message = object(&[("role", text()), ("content", text()), ("html", text())]);
    object(&[("id", text()), ("messages", list(message))])
}

fn shown_completions() -> Value {
    list(object(&[("id", text()), ("text", text()), ("html", text()), ("cut_off", json!({"type": "boolean"}))]))
}

fn shown_set() -> Value {
    object(&[
        ("id", text()),
        ("prompt_id", text()),
        ("prompt", shown_prompt()),
        ("status", text()),
        ("overlap", integer()),
        ("completions", shown_completions()),
        ("created", integer()),
    ])
}

fn listed_set() -> Value {
    object(&[
        ("id", text()),
        ("prompt_id", text()),
        ("status", text()),
        ("overlap", integer()),
        ("completion_ids", list(text())),
        ("created", integer()),
    ])
}

fn submitted() -> Value {
    object(&[
        ("judgment", schema::<Judgment>()),
        ("replayed", json!({"type": "boolean"})),
        ("reveal", list(object(&[("completion_id", text()), ("model", text())]))),
    ])
}

fn turn() -> Value {
    object(&[
        ("assignment_id", text()),
        ("lease_token", text()),
        ("expires_at", integer()),
        ("set_id", text()),
        ("prompt", shown_prompt()),
        ("completions", shown_completions()),
        (
            "me",
            object(&[
                ("name", text()),
                ("done_today", integer()),
                ("done_total", integer()),
                ("skipped_today", integer()),
            ]),
        ),
        ("queue", object(&[("open", integer())])),
    ])
}

fn who() -> Value {
    object(&[("labeler", object(&[("id", text()), ("name", text()), ("role", text())]))])
}

fn invite() -> Value {
    object(&[
        ("id", text()),
        ("role", text()),
        ("note", optional("string")),
        ("expires", integer()),
        ("used_by", optional("string")),
        ("created", integer()),
    ])
}

fn key(shown: bool) -> Value {
    let mut fields = vec![
        ("id", text()),
        ("name", text()),
        ("scopes", list(one_of(crate::service::people::SCOPES))),
        ("labeler_id", optional("string")),
        ("daily_tokens", optional("integer")),
        ("revoked", json!({"type": "boolean"})),
        ("created", integer()),
    ];
    if shown {
        fields.push(("key", text()));
    }
    object(&fields)
}

/// What the route answers when all is well.
pub fn of(route: &Route) -> Answer {
    let json = |statuses, schema| Answer { statuses, content_type: "application/json", schema: Some(schema) };
    let plain = |content_type| Answer { statuses: &[200], content_type, schema: None };
    let nothing = || Answer { statuses: &[204], content_type: "", schema: None };
    const OK: &[u16] = &[200];
    const MADE: &[u16] = &[201];
    match (route.method.as_str(), route.path) {
        ("GET", "/" | "/label" | "/admin" | "/chat" | "/explore" | "/docs") => plain("text/html"),
        ("GET", "/robots.txt") => plain("text/plain"),
        ("GET", "/metrics") => plain("text/plain"),
        ("GET", "/favicon.ico") => plain("image/svg+xml"),
        ("GET", "/static/{*path}") => plain("*/*"),
        ("GET", "/openapi.json") => json(OK, object(&[("openapi", text()), ("paths", json!({"type": "object"}))])),
        ("GET", "/health") => json(OK, object(&[("status", json!({"const": "ok"}))])),
        ("GET", "/ready") => json(
            OK,
            object(&[("status", json!({"const": "ready"})), ("model", text()), ("encoder", optional("string"))]),
        ),
        ("POST", "/v1/completions") => json(OK, raw_completion()),
        ("POST", "/v1/chat/completions") => json(OK, chat_completion()),
        ("GET", "/v1/models") => {
            json(OK, object(&[("object", json!({"const": "list"})), ("data", list(model_entry()))]))
        }
        ("GET", "/v1/models/{id}") => json(OK, model_entry()),
        ("POST", "/tokenize") => {
            json(OK, object(&[("count", integer()), ("tokens", list(integer())), ("max_model_len", integer())]))
        }
        ("POST", "/detokenize") => json(OK, object(&[("prompt", text())])),
        ("POST", "/v1/rewards") => json(
            OK,
            object(&[("model", text()), ("model_version", text()), ("scores", list(json!({"type": "number"})))]),
        ),
        ("POST" | "GET", "/session") => json(OK, who()),
        ("DELETE", "/session") => nothing(),
        ("GET", "/v1/prompts") => json(OK, page(schema::<Prompt>())),
        ("POST", "/v1/prompts") => json(MADE, schema::<Prompt>()),
        ("GET", "/v1/comparison-sets") => json(OK, page(listed_set())),
        ("POST", "/v1/comparison-sets") => json(MADE, shown_set()),
        ("GET", "/v1/comparison-sets/{id}") => json(OK, shown_set()),
        ("POST", "/v1/comparisons") => json(&[201, 200], submitted()),
        ("POST", "/v1/demonstrations") => json(MADE, schema::<Demonstration>()),
        ("POST", "/v1/feedback") => json(MADE, schema::<FeedbackEvent>()),
        ("GET", "/v1/judgments") => json(OK, page(schema::<Judgment>())),
        ("GET", "/v1/guidelines") => json(OK, object(&[("version", text()), ("lang", text()), ("html", text())])),
        ("GET", "/v1/label/next") => json(&[200, 204], turn()),
        ("POST", "/v1/label/ask") => plain("text/event-stream"),
        ("POST", "/v1/label/{id}/renew") => json(OK, object(&[("expires_at", integer())])),
        ("POST", "/v1/label/{id}/release") => nothing(),
        ("POST", "/v1/label/{id}/judgment") => json(OK, submitted()),
        ("GET", "/v1/label/history") => json(OK, page(schema::<Judgment>())),
        ("GET", "/v1/label/judgments/{id}") => json(
            OK,
            object(&[
                ("judgment", schema::<Judgment>()),
                ("prompt", shown_prompt()),
                ("completions", shown_completions()),
            ]),
        ),
        ("GET", "/admin/recipes") => {
            json(OK, data(object(&[("name", text()), ("about", text()), ("schema", json!({"type": "object"}))])))
        }
        ("GET", "/admin/jobs") => json(OK, page(schema::<JobView>())),
        ("POST", "/admin/jobs") => json(MADE, schema::<JobView>()),
        ("POST", "/admin/jobs/estimate") => json(OK, schema::<crate::jobs::estimate::Estimate>()),
        ("GET" | "POST", "/admin/jobs/{id}") => json(OK, schema::<JobView>()),
        ("POST", "/admin/jobs/{id}/cancel" | "/admin/jobs/{id}/resume") => json(OK, schema::<Job>()),
        ("GET", "/admin/jobs/{id}/events") => {
            json(OK, object(&[("data", list(schema::<JobEvent>())), ("state", text())]))
        }
        ("GET", "/admin/jobs/{id}/metrics") => json(OK, object(&[("metrics", list(schema::<Metric>()))])),
        ("GET", "/admin/models") => json(OK, data(schema::<ModelVersion>())),
        ("GET", "/admin/models/{id}") => json(OK, schema::<ModelVersion>()),
        ("DELETE", "/admin/models/{id}" | "/admin/keys/{id}") => nothing(),
        ("POST", "/admin/models/{id}/promote" | "/admin/models/rollback") => json(OK, schema::<ModelVersion>()),
        ("GET", "/admin/export") => plain("application/x-ndjson"),
        ("GET", "/admin/labelers") => json(OK, data(schema::<Labeler>())),
        ("POST", "/admin/labelers") => json(MADE, schema::<Labeler>()),
        ("POST", "/admin/labelers/{id}/active") => nothing(),
        ("GET", "/admin/invites") => json(OK, data(invite())),
        ("POST", "/admin/invites") => json(MADE, object(&[("invite", invite()), ("token", text()), ("url", text())])),
        ("GET", "/admin/keys") => json(OK, data(key(false))),
        ("POST", "/admin/keys") => json(MADE, key(true)),
        ("GET", _) => json(OK, json!({"type": "object"})),
        _ => json(&[200, 201, 202, 204], json!({"type": "object"})),
    }
}
