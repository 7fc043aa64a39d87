//! `/openapi.json`, generated from the table of routes.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::AppState;
use super::access::Access;
use super::contract::{self, COMPONENTS, Content};
use super::error::ErrorBody;
use super::routes::{self, Route};

/// An OpenAPI 3.1 document.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "OpenApiDocument")]
pub struct Document {
    pub openapi: &'static str,
    pub info: Info,
    /// By path and method.
    pub paths: Map<String, Value>,
    pub components: Components,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Info {
    pub title: &'static str,
    pub version: &'static str,
    pub description: &'static str,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    pub security_schemes: Map<String, Value>,
    pub schemas: Map<String, Value>,
}

pub async fn json(State(state): State<AppState>) -> Response {
    let made = || {
        let document = document(&routes::table(&state.services.config.limits));
        serde_json::to_vec(&document).unwrap_or_default().into()
    };
    ([(header::CONTENT_TYPE, "application/json")], state.openapi.get_or_init(made).clone()).into_response()
}

/// OpenAPI 3.1 of the table.
pub fn document(table: &[Route]) -> Document {
    let mut paths: Map<String, Value> = Map::new();
    let (mut read, mut written) = (contract::read(), contract::written());
    let mut bodies = Map::new();
    let error = written.subschema_for::<ErrorBody>().to_value();
    for route in table {
        let path = route.path.replace("{*", "{");
        let mut operation = json!({
            "summary": route.about,
            "operationId": operation_id(route),
            "tags": [route.access.as_str()],
            "responses": responses(route, &mut written, &error),
        });
        let parameters = parameters(route, &path);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = &route.body {
            bodies.insert(operation_id(route), request_schema(route, body, &mut read));
            operation["requestBody"] = json!({"required": !route.body_optional});
        } else if route.method == axum::http::Method::POST && route.path == "/v1/files" {
            let file = json!({"type": "string", "format": "binary"});
            let form = json!({"type": "object", "required": ["file", "purpose"],
                "properties": {"file": file, "purpose": {"type": "string", "enum": ["batch"]}}});
            operation["requestBody"] = json!({"required": true, "content": {"multipart/form-data": {"schema": form}}});
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
            Access::Keyed | Access::Feedback | Access::Review | Access::Admin => json!([{"key": []}, {"session": []}]),
        };
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let schemas = merged(written.take_definitions(true), read.take_definitions(true), &mut bodies);
    for operation in paths.values_mut().flat_map(|methods| methods.as_object_mut().into_iter().flatten()) {
        let id = operation.1["operationId"].as_str().unwrap_or_default();
        if let Some(schema) = bodies.remove(id) {
            operation.1["requestBody"]["content"] = json!({"application/json": {"schema": schema}});
        }
    }
    let security_schemes = Map::from_iter([
        ("key".to_owned(), json!({"type": "http", "scheme": "bearer"})),
        ("session".to_owned(), json!({"type": "apiKey", "in": "cookie", "name": super::auth::COOKIE})),
    ]);
    Document {
        openapi: "3.1.0",
        info: Info {
            title: "instructd",
            version: env!("CARGO_PKG_VERSION"),
            description: "Serve, rank, train a reward model, PPO, serve the better model.",
        },
        paths,
        components: Components { security_schemes, schemas },
    }
}

fn request_schema(route: &Route, body: &Value, read: &mut SchemaGenerator) -> Value {
    let Some(of) = route.body_type else { return body.clone() };
    let mut schema = of(read).to_value();
    if let (Some(schema), Some(required)) = (schema.as_object_mut(), body.get("required")) {
        schema.insert("required".to_owned(), required.clone());
    }
    contract::in_terms_of_json(schema)
}

/// Merges the schemas of responses and requests. A type that differs between the two is named `…Input` in requests.
fn merged(
    written: Map<String, Value>,
    mut read: Map<String, Value>,
    bodies: &mut Map<String, Value>,
) -> Map<String, Value> {
    let mut other: Vec<String> = Vec::new();
    // A type that refers to one with two shapes has two shapes too.
    loop {
        let differs = |name: &String, schema: &Value| match written.get(name) {
            None => false,
            Some(own) => own != schema || other.iter().any(|o| refers_to(schema, o)),
        };
        let found = read.iter().find(|(name, schema)| !other.contains(name) && differs(name, schema));
        match found.map(|(name, _)| name.clone()) {
            Some(name) => other.push(name),
            None => break,
        }
    }
    for name in &other {
        let (from, to) = (reference(name), reference(&format!("{name}Input")));
        for schema in read.values_mut().chain(bodies.values_mut()) {
            redirect(schema, &from, &to);
        }
    }
    let mut all = written;
    for (name, schema) in read {
        let name = if other.contains(&name) { format!("{name}Input") } else { name };
        all.insert(name, schema);
    }
    all.sort_keys();
    all.into_iter().map(|(name, schema)| (name, contract::in_terms_of_json(schema))).collect()
}

fn reference(name: &str) -> String {
    format!("#{COMPONENTS}/{name}")
}

fn refers_to(schema: &Value, name: &str) -> bool {
    match schema {
        Value::String(text) => *text == reference(name),
        Value::Array(list) => list.iter().any(|v| refers_to(v, name)),
        Value::Object(map) => map.values().any(|v| refers_to(v, name)),
        _ => false,
    }
}

fn redirect(schema: &mut Value, from: &str, to: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(text) if key == "$ref" && text == from => *text = to.to_owned(),
                    other => redirect(other, from, to),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| redirect(v, from, to)),
        _ => {}
    }
}

/// The successful responses, and every error response of the route.
fn responses(route: &Route, written: &mut SchemaGenerator, error: &Value) -> Value {
    let mut responses = Map::new();
    for answer in &route.answers {
        let response =
            responses.entry(answer.status.to_string()).or_insert_with(|| json!({"description": answer.about}));
        match answer.content {
            Content::Json(of) => response["content"]["application/json"] = json!({"schema": of(written)}),
            Content::Events(of) => {
                // OpenAPI 3.1 has no schema of one event.
                response["content"]["text/event-stream"] =
                    json!({"schema": {"type": "string"}, "x-event-schema": of(written)});
            }
            Content::Other(kind) => response["content"][kind] = json!({"schema": {}}),
            Content::Empty => {}
        }
    }
    let mut refusal = |status: &str, why: &str| {
        let own = responses.get(status).map(|r| r["content"]["application/json"]["schema"].clone());
        let schema = match own {
            Some(own) => json!({"anyOf": [own, error]}),
            None => error.clone(),
        };
        let content = json!({"application/json": {"schema": schema}});
        responses.insert(status.to_owned(), json!({"description": why, "content": content}));
    };
    refusal("400", "a field, named in `param`, is invalid");
    if route.access != Access::Public {
        refusal("401", "no key, or a wrong one");
        refusal("403", "a key without the right");
        refusal("429", "too many requests; `Retry-After` has the time to wait");
    }
    if route.body.is_some() {
        refusal("408", "the body did not arrive in time");
        refusal("413", "the body is too large");
    }
    refusal("4XX", "refused: 404 not found, 409 conflict, and others");
    refusal("503", "loading, shutting down, or a dependency is unavailable; `Retry-After` has the time to wait");
    refusal("5XX", "failed; the reason is in the server's log");
    responses.into()
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
            // A query has no null; absent parameters are left out.
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
