//! `/openapi.json` and the readable `/docs`, both made from the table of routes.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::AppState;
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
            "responses": {
                "2XX": {"description": route.answer.unwrap_or("done")},
                "4XX": {"description": "refused", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
                "5XX": {"description": "failed", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
            },
        });
        let names: Vec<_> = path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')).collect();
        if !names.is_empty() {
            let parameter = |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
            operation["parameters"] = names.into_iter().map(parameter).collect();
        }
        if let Some(body) = &route.body {
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": body}}});
        }
        if route.access != Access::Public {
            operation["security"] = json!([{"key": []}, {"session": []}]);
            if route.access == Access::Inference {
                operation["security"] = json!([{}, {"key": []}]);
            }
        }
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

/// A plain page without script: every route, its access and its fields.
pub async fn docs(State(state): State<AppState>) -> Response {
    let mut body = String::new();
    for route in routes::table(&state.services.config.limits) {
        body.push_str(&format!(
            "<section><h2><code>{} {}</code></h2><p>{} <small>({})</small></p>",
            route.method,
            escape(route.path),
            escape(route.about),
            route.access.as_str()
        ));
        if let Some(answer) = route.answer {
            body.push_str(&format!("<p>{}</p>", escape(answer)));
        }
        if let Some(properties) = route.body.as_ref().and_then(|b| b["properties"].as_object()) {
            body.push_str("<dl>");
            for (name, schema) in properties {
                let about = schema["description"].as_str().unwrap_or_default();
                body.push_str(&format!("<dt><code>{}</code></dt><dd>{}</dd>", escape(name), escape(about)));
            }
            body.push_str("</dl>");
        }
        body.push_str("</section>");
    }
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>instructd API</title>\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <link rel=\"stylesheet\" href=\"/static/css/app.css\"></head><body><main><h1>instructd API</h1>\
         <p>Errors have one shape: <code>{{\"error\": {{\"message\", \"type\", \"param\", \"code\"}}}}</code>. \
         Keys go into <code>Authorization: Bearer KEY</code>. Machine-readable: \
         <a href=\"/openapi.json\">openapi.json</a>. <code>user</code> is accepted without effect; every other field \
         is honoured or refused.</p>{body}</main></body></html>"
    ))
    .into_response()
}
