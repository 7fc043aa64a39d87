//! The contract of the API: every live answer of the tests is held against the document of `/openapi.json`, field by
//! field. A field that the document does not have is an error here, although clients must bear it: so schemas cannot
//! fall behind what is sent.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use instructd::config::LimitsConfig;
use instructd::http::contract::COMPONENTS;
use instructd::http::{openapi, routes};
use serde_json::{Value, json};

use super::client::Server;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let table = routes::table(&LimitsConfig::default());
    serde_json::to_value(openapi::document(&table)).unwrap()
});

/// The path of the document that this path is an instance of; one without parameters wins.
fn template(path: &str) -> Option<&'static str> {
    let fits = |template: &str| {
        let (mut wanted, mut given) = (template.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (Some("{path}"), Some(_)) => return true,
                (Some(w), Some(g)) if w == g || (w.starts_with('{') && !g.is_empty()) => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    };
    let paths = DOCUMENT["paths"].as_object().unwrap().keys();
    paths.map(String::as_str).filter(|t| fits(t)).min_by_key(|t| t.matches('{').count())
}

/// Holds an answer against the document.
///
/// # Panics
/// When the document does not have the status, the content type or a field of it, or says otherwise.
pub fn check(method: &str, path: &str, status: u16, content_type: &str, text: &str) {
    if method == "OPTIONS" {
        // A browser's question before a request from another site: answered by a layer around the routes.
        return;
    }
    let path = path.split('?').next().unwrap();
    let complain =
        |why: String| -> ! { panic!("{method} {path} answers {status} against its contract: {why}\n{text}") };
    let refused = status >= 400;
    let kind = content_type.split(';').next().unwrap().trim();
    let operation = template(path).map(|t| &DOCUMENT["paths"][t][method.to_lowercase().replace("head", "get")]);
    let Some(operation) = operation.filter(|o| o.is_object()) else {
        // No route, or not with this method: there is no contract but that of errors.
        if !refused {
            complain("the document does not have this route".into());
        }
        if kind == "application/json" && method != "HEAD" {
            let error = json!({"$ref": format!("#{COMPONENTS}/Error")});
            conforms(&serde_json::from_str(text).unwrap(), &error, "").unwrap_or_else(|why| complain(why));
        }
        return;
    };
    let responses = &operation["responses"];
    let class = format!("{}XX", status / 100);
    let Some(response) = responses.get(status.to_string()).or(responses.get(class)) else {
        complain("the status is not declared".into())
    };
    if method == "HEAD" {
        return;
    }
    let Some(content) = response.get("content") else {
        if !text.is_empty() {
            complain("the document declares no body".into());
        }
        return;
    };
    let Some(declared) = content.get(kind).or(content.get("*/*")) else {
        complain(format!("the content type {kind} is not declared: {content}"))
    };
    match kind {
        "application/json" if declared["schema"] != json!({}) => {
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| complain(format!("not JSON: {e}")));
            conforms(&value, &declared["schema"], "").unwrap_or_else(|why| complain(why));
        }
        "text/event-stream" => {
            for event in events(text) {
                let outcome = conforms(&event, &declared["x-event-schema"], "");
                outcome.unwrap_or_else(|why| complain(format!("event {event}: {why}")));
            }
        }
        _ => {}
    }
}

/// Server-sent events as objects, `data` parsed where it is JSON. Comments keep a connection open and say nothing.
fn events(text: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for block in text.split("\n\n") {
        let mut event = json!({});
        for (name, value) in block.lines().filter_map(|l| l.split_once(": ")).filter(|(name, _)| !name.is_empty()) {
            event[name] = match name {
                "data" => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
                _ => value.into(),
            };
        }
        if event != json!({}) {
            all.push(event);
        }
    }
    all
}

fn resolved(reference: &str) -> &'static Value {
    let found = DOCUMENT.pointer(reference.strip_prefix('#').unwrap());
    found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Words of JSON Schema that describe and do not demand.
const SILENT: &[&str] = &["description", "title", "default", "format", "examples"];

/// Whether a value is as the schema says. Objects hold no other fields than those that the schema names.
///
/// # Errors
/// Where the value differs, and how.
pub fn conforms(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    let Some(schema) = schema.as_object() else {
        return if schema == true { Ok(()) } else { Err(format!("{at}: nothing may be here")) };
    };
    let wrong = |what: String| Err(format!("{}: {what}", if at.is_empty() { "the answer" } else { at }));
    for (word, demand) in schema {
        match word.as_str() {
            "$ref" => conforms(value, resolved(demand.as_str().unwrap()), at)?,
            "anyOf" | "oneOf" => {
                let tried: Vec<_> = demand.as_array().unwrap().iter().map(|s| conforms(value, s, at)).collect();
                if !tried.iter().any(Result::is_ok) {
                    let why: Vec<_> = tried.into_iter().filter_map(Result::err).collect();
                    return wrong(format!("fits none of the alternatives: {}", why.join("; ")));
                }
            }
            "type" => {
                let one = demand.as_str().into_iter();
                let kinds: Vec<&str> =
                    one.chain(demand.as_array().into_iter().flatten().filter_map(Value::as_str)).collect();
                if !kinds.iter().any(|kind| is(value, kind)) {
                    return wrong(format!("is {value:.60}, not {}", kinds.join(" or ")));
                }
            }
            "const" if value != demand => return wrong(format!("is {value:.60}, not {demand}")),
            "enum" if !demand.as_array().unwrap().contains(value) => {
                return wrong(format!("is {value:.60}, none of {demand}"));
            }
            "minimum" if value.as_f64().is_some_and(|v| v < demand.as_f64().unwrap()) => {
                return wrong(format!("is {value}, below {demand}"));
            }
            "maximum" if value.as_f64().is_some_and(|v| v > demand.as_f64().unwrap()) => {
                return wrong(format!("is {value}, above {demand}"));
            }
            "minItems" if value.as_array().is_some_and(|l| l.len() < demand.as_u64().unwrap() as usize) => {
                return wrong(format!("has fewer than {demand} items"));
            }
            "maxItems" if value.as_array().is_some_and(|l| l.len() > demand.as_u64().unwrap() as usize) => {
                return wrong(format!("has more than {demand} items"));
            }
            "items" => {
                let first = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                for (i, item) in value.as_array().into_iter().flatten().enumerate().skip(first) {
                    conforms(item, demand, &format!("{at}[{i}]"))?;
                }
            }
            "prefixItems" => {
                let items = value.as_array().into_iter().flatten().zip(demand.as_array().unwrap());
                for (i, (item, schema)) in items.enumerate() {
                    conforms(item, schema, &format!("{at}[{i}]"))?;
                }
            }
            "required" if value.is_object() => {
                for name in demand.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if value.get(name).is_none() {
                        return wrong(format!("has no field {name}"));
                    }
                }
            }
            "properties"
            | "additionalProperties"
            | "const"
            | "enum"
            | "minimum"
            | "maximum"
            | "minItems"
            | "maxItems"
            | "required" => {}
            word if SILENT.contains(&word) => {}
            word => panic!("this test does not know the word {word} of JSON Schema"),
        }
    }
    if let Some(fields) = value.as_object()
        && (schema.contains_key("properties") || schema.get("type").is_some_and(|t| t == "object"))
    {
        for (name, inner) in fields {
            let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            let own = schema.get("properties").and_then(|p| p.get(name));
            match own.or(schema.get("additionalProperties")) {
                Some(schema) => conforms(inner, schema, &at)?,
                None => return Err(format!("{at}: the document does not have this field")),
            }
        }
    }
    Ok(())
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type of JSON Schema"),
    }
}

/// Every answer of the document: operation, status, content type, schema.
fn answers() -> Vec<(String, String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                for (kind, content) in response["content"].as_object().into_iter().flatten() {
                    let schema = content.get("x-event-schema").unwrap_or(&content["schema"]).clone();
                    all.push((format!("{} {path}", method.to_uppercase()), status.clone(), kind.clone(), schema));
                }
            }
        }
    }
    all
}

/// Fields that may hold any JSON: what people, recipes and clients put in comes out as it is.
const FREE: &[&str] = &[
    "AnthropicBlock.input",
    "AuditEntry.detail",
    "Batch.metadata",
    "DatasetVersion.filter",
    "FeedbackEvent.value",
    "Job.args",
    "Job.result",
    "JobEvent.data",
    "JobEventData.data",
    "JobView.args",
    "JobView.result",
    "ModelVersion.metrics",
    "NextAction.request",
    "NextAction.values",
    "OpenApiDocument.paths",
    "OutputText.annotations",
    "OutputText.logprobs",
    "Components.schemas",
    "Components.securitySchemes",
    "RecipeView.schema",
    "Response.metadata",
    "Response.tool_choice",
    "Response.tools",
    "Response.user",
    "ResponseItem.summary",
    "ResponseText.format",
    "ResponseEventBody.logprobs",
    "SetDraw.request",
    "SettingChange.value",
    "SettingView.configured",
    "SettingView.default",
    "SettingView.value",
    "SideBySide.prompt",
];

/// Adds where a schema says nothing of what it holds; types by their name.
fn silent(schema: &Value, at: &str, seen: &mut BTreeSet<String>, found: &mut BTreeSet<String>) {
    let Some(words) = schema.as_object() else {
        // False: nothing may be there.
        if schema == true {
            found.insert(at.to_owned());
        }
        return;
    };
    if let Some(reference) = words.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap();
        if seen.insert(name.to_owned()) {
            silent(resolved(reference), name, seen, found);
        }
        return;
    }
    let demands: Vec<_> = words.keys().filter(|w| !SILENT.contains(&w.as_str())).collect();
    let bare = |kind: &str| words.get("type").is_some_and(|t| t == kind || t == &json!([kind, "null"]));
    if demands.is_empty()
        || bare("object") && !words.contains_key("properties") && !words.contains_key("additionalProperties")
        || bare("array") && !words.contains_key("items") && !words.contains_key("prefixItems")
    {
        found.insert(at.to_owned());
    }
    for (name, inner) in words.get("properties").and_then(Value::as_object).into_iter().flatten() {
        silent(inner, &format!("{at}.{name}"), seen, found);
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = words.get(word) {
            silent(inner, at, seen, found);
        }
    }
    for word in ["anyOf", "oneOf", "prefixItems"] {
        for inner in words.get(word).and_then(Value::as_array).into_iter().flatten() {
            silent(inner, at, seen, found);
        }
    }
}

#[test]
fn every_json_answer_has_a_schema() {
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    let mut typed = 0;
    for (operation, status, kind, schema) in answers() {
        if matches!(kind.as_str(), "application/json" | "text/event-stream") {
            silent(&schema, &format!("{operation} {status}"), &mut seen, &mut found);
            typed += 1;
        }
    }
    let free: BTreeSet<String> = FREE.iter().map(|f| (*f).to_owned()).collect();
    assert_eq!(found, free, "answers and fields that may hold anything");
    assert!(typed > 300, "{typed}");
    // Each route says what it answers when all is well.
    for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let good = operation["responses"].as_object().unwrap().keys().filter(|s| s.starts_with(['2', '3'])).count();
            assert!(good > 0, "{method} {path}");
        }
    }
}

#[test]
fn types_have_names_and_the_document_stays_small() {
    let schemas = DOCUMENT["components"]["schemas"].as_object().unwrap();
    // Two types of one name would be told apart by a number.
    let numbered: Vec<_> = schemas.keys().filter(|name| name.ends_with(|c: char| c.is_ascii_digit())).collect();
    assert!(numbered.is_empty(), "{numbered:?}");
    assert!(schemas.len() > 100, "{}", schemas.len());
    let size = DOCUMENT.to_string().len();
    assert!(size < 520_000, "{size} bytes");
}

/// Answers that no other test of the router asks for.
#[tokio::test]
async fn the_remaining_routes_answer_as_declared() {
    let server = Server::start().await;
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    server.get(&format!("/v1/comparison-sets/{}", set["id"].as_str().unwrap())).await.expect(200);
    server.get("/admin/models/base").await.expect(200);
    server.demonstrate().await;
    let job = server.post("/admin/jobs", json!({"kind": "sft", "args": {}})).await.expect(201).json();
    let path = format!("/admin/jobs/{}", job["id"].as_str().unwrap());
    server.post(&format!("{path}/cancel"), json!({})).await.expect(200);
    server.post(&format!("{path}/resume"), json!({})).await.expect(200);
}

/// The check itself: what is not as declared does not pass.
#[tokio::test]
async fn an_answer_that_drifts_is_found() {
    let server = Server::start().await;
    let good = server.get("/v1/models").await.expect(200).json();
    let schema = json!({"$ref": format!("#{COMPONENTS}/ModelList")});
    conforms(&good, &schema, "").unwrap();
    let changed = |change: fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value["data"][0]);
        conforms(&value, &schema, "").expect_err("it differs")
    };
    assert!(changed(|m| m["colour"] = "red".into()).contains("data[0].colour: the document does not have"));
    assert!(changed(|m| m["created"] = "now".into()).contains("data[0].created: is \"now\", not integer"));
    assert!(changed(|m| m["object"] = "thing".into()).contains("not \"model\""));
    assert!(changed(|m| m["instructd"]["state"] = "asleep".into()).contains("none of"));
    assert!(changed(|m| drop(m.as_object_mut().unwrap().remove("id"))).contains("has no field id"));
    for (path, status, kind, text) in [
        ("/v1/models", 201, "application/json", good.to_string()),
        ("/v1/models", 200, "text/plain", good.to_string()),
        ("/v1/models", 404, "application/json", json!({"error": "no"}).to_string()),
        ("/no/such/route", 200, "text/plain", String::new()),
    ] {
        let found = std::panic::catch_unwind(|| check("GET", path, status, kind, &text));
        assert!(found.is_err(), "{path} {status} {kind}");
    }
}
