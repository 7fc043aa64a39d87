//! `/openapi.json` and the readable `/docs`, both made from the table of routes.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::AppState;
use super::answers;
use super::auth::Access;
use super::routes::{self, Route};

pub async fn json(State(state): State<AppState>) -> Response {
    axum::Json(document(&routes::table(&state.services.config.limits))).into_response()
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

fn operation_id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    let name: Vec<_> = words.collect();
    format!(
        "{}_{}",
        route.method.as_str().to_ascii_lowercase(),
        if name.is_empty() { "root".into() } else { name.join("_") }
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A plain page without script: every route, its access, its fields and its answers.
pub async fn docs(State(state): State<AppState>) -> Response {
    let (mut contents, mut body) = (String::new(), String::new());
    for route in routes::table(&state.services.config.limits) {
        let (id, path) = (operation_id(&route), escape(route.path));
        contents.push_str(&format!("<li><a href=\"#{id}\"><code>{} {path}</code></a></li>", route.method));
        body.push_str(&section(&route, &id, &path));
    }
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>instructd API</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"stylesheet\" href=\"/static/css/app.css\">\
         <link rel=\"stylesheet\" href=\"/static/css/docs.css\"></head>\
         <body class=\"docs\"><main><h1>instructd API</h1>\
         <p>Errors have one shape: <code>{{\"error\": {{\"message\", \"type\", \"param\", \"code\"}}}}</code>; \
         <code>param</code> names the field to blame. Keys go into <code>Authorization: Bearer KEY</code>. \
         The same for machines: <a href=\"/openapi.json\">openapi.json</a>. <code>user</code> is accepted without \
         effect; every other field is honoured or refused.</p>\
         <nav aria-label=\"Routes\"><ul>{contents}</ul></nav>{body}</main></body></html>"
    ))
    .into_response()
}

fn section(route: &Route, id: &str, path: &str) -> String {
    let mut out = format!(
        "<section id=\"{id}\"><h2><code>{} {path}</code></h2><p>{} <small>({})</small></p>",
        route.method,
        escape(route.about),
        route.access.as_str()
    );
    for (caption, schema) in [("Query", &route.query), ("Body", &route.body)] {
        if let Some(schema) = schema {
            out.push_str(&fields(caption, schema));
        }
    }
    if let Some(words) = route.answer {
        out.push_str(&format!("<p>{}</p>", escape(words)));
    }
    let answer = answers::of(route);
    let statuses = answer.statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
    out.push_str(&format!("<p>Answers {statuses} <small>{}</small></p>", escape(answer.content_type)));
    if let Some(schema) = answer.schema.filter(|s| s["properties"].is_object()) {
        out.push_str(&fields("Answer", &schema));
    }
    out + "</section>"
}

/// A table of an object's fields.
fn fields(caption: &str, schema: &Value) -> String {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut rows = String::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let must = if caption != "Answer" && required.contains(&name.as_str()) { " (required)" } else { "" };
        let about = field["description"].as_str().unwrap_or_default();
        rows.push_str(&format!(
            "<tr><td><code>{}</code>{must}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            escape(&kind(field)),
            escape(about)
        ));
    }
    format!("<table><caption>{caption}</caption><tbody>{rows}</tbody></table>")
}

/// A field's type in a few words.
fn kind(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        return values
            .iter()
            .filter(|v| !v.is_null())
            .map(|v| v.as_str().map_or(v.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(" | ");
    }
    if let Some(all) = field["anyOf"].as_array().or(field["oneOf"].as_array()) {
        return all.iter().map(kind).filter(|k| k != "null").collect::<Vec<_>>().join(" | ");
    }
    let named = match &field["type"] {
        Value::String(one) => one.clone(),
        Value::Array(several) => {
            several.iter().filter_map(Value::as_str).filter(|k| *k != "null").collect::<Vec<_>>().join(" | ")
        }
        _ if !field["const"].is_null() => return field["const"].to_string(),
        _ => return "any".to_owned(),
    };
    if named == "array" { format!("list of {}", kind(&field["items"])) } else { named }
}
