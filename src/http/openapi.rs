//! `/openapi.json`, made from the table of routes.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::AppState;
use super::answers;
use super::auth::Access;
use super::routes::{self, Route};

pub async fn json(State(state): State<AppState>) -> Response {
    let made = || document(&routes::table(&state.services.config.limits)).to_string().into();
    ([(header::CONTENT_TYPE, "application/json")], state.openapi.get_or_init(made).clone()).into_response()
}

/// OpenAPI 3.1 of the table.
fn document(table: &[Route]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in table {
        let path = route.path.replace("{*", "{");
        let mut operation = json!({
            "summary": route.about,
            "operationId": operation_id(route),
            "tags": [route.access.as_str()],
            "responses": responses(route),
        });
        let parameters = parameters(route, &path);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = &route.body {
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": body}}});
        } else if route.path == "/admin/import" {
            // Lines of JSON, or a Parquet file.
            operation["requestBody"] = json!({"required": true, "content": {
                "application/x-ndjson": {"schema": {"type": "string"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            }});
        }
        operation["security"] = match route.access {
            Access::Public => json!([]),
            Access::Inference => json!([{}, {"key": []}]),
            Access::Feedback | Access::Review | Access::Admin => json!([{"key": []}, {"session": []}]),
        };
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "instructd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Serve, rank, train a reward model, PPO, serve the better model.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": super::auth::COOKIE},
            },
            "schemas": {"Error": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                }},
            }},
        },
    })
}

/// The good answer, and every refusal that the route can come to, all in the one error shape.
fn responses(route: &Route) -> Value {
    let answer = answers::of(route);
    let mut responses = Map::new();
    for status in answer.statuses {
        let mut response =
            json!({"description": route.answer.unwrap_or(if *status == 204 { "nothing to say" } else { "done" })});
        if *status != 204 {
            let schema = answer.schema.clone().unwrap_or_else(|| json!({}));
            response["content"] = json!({answer.content_type: {"schema": schema}});
            if streams(route) {
                response["content"]["text/event-stream"] = json!({"schema": {"type": "string"}});
            }
        }
        responses.insert(status.to_string(), response);
    }
    let mut refusal = |status: &str, why: &str| {
        let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
        responses.insert(status.to_owned(), json!({"description": why, "content": content}));
    };
    refusal("400", "a field, named in `param`, cannot be used");
    if route.access != Access::Public {
        refusal("401", "no key, or a wrong one");
        refusal("403", "a key without the right");
        refusal("429", "too many requests; `Retry-After` says when");
    }
    if route.body.is_some() {
        refusal("408", "the body did not come in time");
        refusal("413", "the body is too large");
    }
    refusal("4XX", "refused: 404 not there, 409 in conflict with what is, and the like");
    refusal("503", "loading, shutting down, or something it needs is away; `Retry-After` says when");
    refusal("5XX", "failed; the server's log says why");
    responses.into()
}

/// Routes that can also answer with server-sent events.
fn streams(route: &Route) -> bool {
    let streamed = route.body.as_ref().is_some_and(|b| b["properties"].get("stream_options").is_some());
    streamed || route.path == "/admin/jobs/{id}/events"
}

fn parameters(route: &Route, path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> =
        names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect();
    if let Some(query) = &route.query {
        let required: Vec<&str> =
            query["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, schema) in query["properties"].as_object().into_iter().flatten() {
            let about = schema["description"].as_str().unwrap_or_default();
            let required = required.contains(&name.as_str());
            let mut schema = schema.clone();
            // A query has no null: what is not given is left out.
            if let Some(kinds) = schema["type"].as_array() {
                let one = kinds.iter().find(|k| *k != "null").cloned().unwrap_or_default();
                schema["type"] = one;
            }
            all.push(
                json!({"name": name, "in": "query", "required": required, "description": about, "schema": schema}),
            );
        }
    }
    all
}

pub fn operation_id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    let name: Vec<_> = words.collect();
    format!(
        "{}_{}",
        route.method.as_str().to_ascii_lowercase(),
        if name.is_empty() { "root".into() } else { name.join("_") }
    )
}
