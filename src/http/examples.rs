//! Example requests for each route on the page `/docs`: the body, curl, Python.

use serde_json::{Value, json};

use super::access::Access;
use super::routes::Route;

/// An example body; `None` if the route takes none.
pub fn body(route: &Route) -> Option<Value> {
    let schema = route.body.as_ref()?;
    let user = json!([{"role": "user", "content": "Name a colour."}]);
    Some(match route.path {
        "/v1/completions" => json!({"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.8}),
        "/v1/chat/completions" => json!({"messages": user, "max_tokens": 64}),
        "/v1/responses" => json!({"input": "Name a colour.", "max_output_tokens": 64}),
        "/v1/messages" => json!({"messages": user, "max_tokens": 64}),
        "/v1/messages/count_tokens" => json!({"messages": user}),
        "/v1/batches" => json!({
            "input_file_id": "file-ID", "endpoint": "/v1/chat/completions", "completion_window": "24h",
        }),
        "/v1/rerank" => json!({"query": "colours", "documents": ["red and blue", "a table"]}),
        "/v1/score" => json!({"text_1": "colours", "text_2": ["red and blue", "a table"]}),
        "/v1/choices" => json!({"prompt": "The sky is", "choices": [" blue", " green"]}),
        "/v1/embeddings" => json!({"input": ["a text", "another one"]}),
        "/v1/fill-mask" => json!({"text": "The sky is ____.", "top_k": 5}),
        "/v1/attention" => json!({"text": "The cat sat.", "layers": [0]}),
        "/v1/rewards" => json!({"prompt": user, "completions": ["Blue.", "I do not know."]}),
        "/tokenize" => json!({"prompt": "a text"}),
        "/detokenize" => json!({"tokens": [5, 6, 7]}),
        "/session" => json!({"key": "KEY"}),
        "/v1/prompts" => json!({"messages": user, "tags": ["colours"]}),
        "/v1/comparison-sets" => json!({"messages": user, "completions": ["Blue.", "Red, of course."]}),
        "/v1/comparisons" => json!({
            "messages": user,
            "completions": [{"text": "Blue.", "tier": 0}, {"text": "No.", "tier": 1}],
        }),
        "/v1/demonstrations" => json!({"messages": user, "completion": "Blue."}),
        "/v1/feedback" => json!({"completion_id": "ID", "kind": "thumb", "value": "up"}),
        "/v1/label/ask" => json!({"messages": user, "n": 2}),
        "/v1/label/continue" => json!({"set_id": "ID", "completion_id": "ID", "content": "And in winter?"}),
        "/v1/label/{id}/judgment" | "/v1/review/sets/{id}/settle" => json!({
            "lease_token": "TOKEN",
            "outcome": "ranked",
            "items": [{"completion_id": "ID-1", "tier": 0}, {"completion_id": "ID-2", "tier": 1}],
            "idempotency_key": "once",
        }),
        "/admin/guidelines" => json!({"lang": "en", "text": "Prefer the answer that helps."}),
        "/admin/rubrics" => json!({
            "definition": {
                "name": "Helpfulness",
                "dimensions": [
                    {"key": "helpful", "label": {"en": "Helpful"}, "kind": "likert", "points": 7, "required": true},
                    {"key": "untrue", "label": {"en": "Says something untrue"}, "kind": "flag"},
                ],
                "rationale": "optional",
            },
            "activate": true,
        }),
        "/admin/rubrics/active" => json!({"version": null}),
        "/admin/jobs" | "/admin/jobs/estimate" => json!({"kind": "sft", "args": {"epochs": 1}}),
        "/admin/sets/draw" => json!({"policy": "random", "count": 10}),
        "/admin/sets/{id}/known-answer" => json!({
            "kind": "gold",
            "tiers": [{"completion_id": "ID-1", "tier": 0}, {"completion_id": "ID-2", "tier": 1}],
        }),
        "/admin/settings" => json!({"name": "labeling.overlap", "value": 2}),
        "/admin/canary" => json!({"model": "NAME", "share": 0.1}),
        "/admin/webhooks" => json!({"url": "https://hooks.example.org/instructd", "events": ["job.failed"]}),
        "/admin/keys" => json!({"name": "my app", "scopes": ["inference"]}),
        "/admin/labelers" => json!({"name": "Ada"}),
        "/admin/labelers/{id}" => json!({"role": "reviewer"}),
        "/admin/labelers/{id}/active" => json!({"active": false}),
        "/admin/labelers/{id}/erase" => json!({"judgments": "anonymise"}),
        "/admin/datasets" => json!({"name": "first"}),
        "/admin/invites" => json!({"role": "labeler"}),
        _ => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required.map(|name| (name.to_owned(), sample(&schema["properties"][name]))).collect()
        }
    })
}

/// An example value of the schema's type.
fn sample(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("string") => json!("…"),
        Some("integer") => json!(1),
        Some("number") => json!(0.5),
        Some("boolean") => json!(true),
        Some("array") => json!([sample(&schema["items"])]),
        _ => json!({}),
    }
}

fn path(route: &Route) -> String {
    let query = match route.path {
        "/admin/import" | "/admin/export" => "?format=comparisons",
        _ => "",
    };
    format!("{}{query}", route.path.replace("{id}", "ID"))
}

/// The request with curl.
pub fn curl(route: &Route, origin: &str) -> String {
    let mut out = String::from("curl");
    if route.method != "GET" && (route.body.is_none() || route.method != "POST") && !uploads(route) {
        out.push_str(&format!(" -X {}", route.method));
    }
    out.push_str(&format!(" '{origin}{}'", path(route)));
    if route.access != Access::Public {
        out.push_str(" \\\n  -H 'Authorization: Bearer KEY'");
    }
    if route.path == "/admin/import" {
        out.push_str(" \\\n  --data-binary @comparisons.jsonl");
    }
    if uploads(route) {
        out.push_str(" \\\n  -F purpose=batch -F file=@requests.jsonl");
    }
    if let Some(body) = body(route) {
        let body = body.to_string().replace('\'', "'\\''");
        out.push_str(&format!(" \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'"));
    }
    out
}

/// The request with Python's `requests` package.
pub fn python(route: &Route, origin: &str) -> String {
    let mut out = format!("import requests\n\nr = requests.{}(\n", route.method.as_str().to_ascii_lowercase());
    out.push_str(&format!("    \"{origin}{}\",\n", path(route)));
    if route.access != Access::Public {
        out.push_str("    headers={\"Authorization\": \"Bearer KEY\"},\n");
    }
    if route.path == "/admin/import" {
        out.push_str("    data=open(\"comparisons.jsonl\", \"rb\"),\n");
    }
    if uploads(route) {
        out.push_str("    data={\"purpose\": \"batch\"},\n    files={\"file\": open(\"requests.jsonl\", \"rb\")},\n");
    }
    if let Some(body) = body(route) {
        out.push_str(&format!("    json={},\n", literal(&body)));
    }
    out.push_str(")\nr.raise_for_status()\nprint(r.text)");
    out
}

/// Whether the route takes a form with a file.
fn uploads(route: &Route) -> bool {
    route.method == "POST" && route.path == "/v1/files"
}

/// JSON in Python's syntax.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(list) => format!("[{}]", list.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let one = |(name, value): (&String, &Value)| format!("{}: {}", json!(name), literal(value));
            format!("{{{}}}", map.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
