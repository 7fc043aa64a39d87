//! The page `/docs`, generated from the table of routes. It is complete without JavaScript; the page's script adds the
//! header, the language, a search and a form to try a route.

use std::fmt::Write;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;

use super::AppState;
use super::contract::{self, Content};
use super::examples;
use super::openapi::operation_id;
use super::routes::{self, Route};

/// Groups of routes in the order of the page: name (also of the translation), title, prefixes of paths.
const GROUPS: [(&str, &str, &[&str]); 8] = [
    (
        "write",
        "Text and chat",
        &["/v1/completions", "/v1/chat/", "/v1/responses", "/v1/messages", "/v1/models", "/tokenize", "/detokenize"],
    ),
    (
        "measure",
        "Classify, embed, score, look inside",
        &[
            "/v1/choices",
            "/v1/embeddings",
            "/v1/rerank",
            "/v1/score",
            "/v1/fill-mask",
            "/v1/rewards",
            "/v1/attention",
            "/v1/plan",
        ],
    ),
    ("label", "Labeling", &["/v1/label/", "/v1/guidelines", "/v1/rubric", "/v1/projects", "/v1/review/", "/session"]),
    (
        "feedback",
        "Prompts, sets and feedback",
        &["/v1/prompts", "/v1/comparison", "/v1/demonstrations", "/v1/feedback", "/v1/judgments"],
    ),
    (
        "train",
        "Training and models",
        &["/admin/recipes", "/admin/jobs", "/admin/models", "/admin/canary", "/admin/usage"],
    ),
    (
        "data",
        "Data and the queue",
        &["/admin/import", "/admin/export", "/admin/datasets", "/admin/sets", "/admin/api/"],
    ),
    ("people", "People, keys and settings", &["/admin/"]),
    ("server", "The server", &["/"]),
];

fn group(path: &str) -> usize {
    GROUPS
        .iter()
        .position(|(_, _, paths)| paths.iter().any(|start| path.starts_with(start)))
        .unwrap_or(GROUPS.len() - 1)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text with code between backticks.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for (i, piece) in text.split('`').enumerate() {
        let piece = escape(piece);
        // Odd pieces are code, unless the closing backtick is missing.
        match i % 2 == 1 && text.matches('`').count() > i {
            true => {
                let _ = write!(out, "<code>{piece}</code>");
            }
            false => out.push_str(&piece),
        }
    }
    out
}

/// A name with line breaks allowed after underscores only.
fn name(text: &str) -> String {
    escape(text).replace('_', "_<wbr>")
}

/// `<TAG data-words="KEY">English</TAG>`: the script inserts the page's language.
fn words(tag: &str, key: &str, english: &str) -> String {
    format!("<{tag} data-words=\"docs.{key}\">{}</{tag}>", prose(english))
}

pub async fn page(State(state): State<AppState>) -> Response {
    let config = &state.services.config;
    let made = || written(&routes::table(&config.limits), &format!("http://{}", config.listen)).into();
    Html(state.docs.get_or_init(made).clone()).into_response()
}

fn written(table: &[Route], origin: &str) -> String {
    let (mut contents, mut body) = (String::new(), String::new());
    for (i, (key, title, _)) in GROUPS.iter().enumerate() {
        let own: Vec<&Route> = table.iter().filter(|r| !r.page && group(r.path) == i).collect();
        let _ = write!(contents, "<li><a href=\"#group-{key}\" data-words=\"docs.group_{key}\">{title}</a></li>");
        let _ =
            write!(body, "<section class=\"group\" id=\"group-{key}\">{}", words("h2", &format!("group_{key}"), title));
        for route in own {
            body.push_str(&article(route, origin));
        }
        body.push_str("</section>");
    }
    let intro = format!(
        "{}{}{}{}",
        words("h1", "title", "API"),
        words(
            "p",
            "lead",
            "Every route of this server. Requests and answers are JSON; a field that is null counts as absent; unknown \
             fields and parameters are refused by name.",
        ),
        words("p", "auth", "Send a key as Authorization: Bearer KEY. On this page your session is used."),
        words(
            "p",
            "errors",
            "Errors have one shape: {\"error\": {\"message\", \"type\", \"param\", \"code\"}}. `param` names the offending field.",
        ),
    );
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>API · instructd</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <script src=\"/static/js/boot.js\"></script>\
         <link rel=\"icon\" href=\"/static/favicon.svg\" type=\"image/svg+xml\">\
         <link rel=\"stylesheet\" href=\"/static/css/app.css\">\
         <link rel=\"stylesheet\" href=\"/static/css/docs.css\">\
         <script type=\"module\" src=\"/static/js/docs/main.js\"></script></head>\
         <body><noscript><p><a href=\"/\">instructd</a></p></noscript><main class=\"docs\" id=\"docs\" \
         data-origin=\"{origin}\">{intro}<p><a class=\"machine\" href=\"/openapi.json\">openapi.json</a></p>\
         <nav class=\"groups\" aria-label=\"Groups\"><ul>{contents}</ul></nav>{body}</main></body></html>"
    )
}

fn article(route: &Route, origin: &str) -> String {
    let id = operation_id(route);
    let method = &route.method;
    let mut out = format!(
        "<details class=\"route\" id=\"{id}\" data-method=\"{method}\" data-path=\"{path}\">\
         <summary><code class=\"route-name\"><span class=\"method\">{method}</span> {broken}</code> \
         <span class=\"about\">{about}</span> <span class=\"tag\" data-words=\"docs.access_{access}\">{access}</span></summary>",
        path = escape(route.path),
        broken = escape(route.path).replace('/', "/<wbr>"),
        about = prose(route.about),
        access = route.access.as_str(),
    );
    if let Some(said) = route.body.as_ref().and_then(|b| b["description"].as_str()) {
        let _ = write!(out, "<p>{}</p>", prose(said));
    }
    for (key, caption, schema) in [("query", "Query", &route.query), ("body", "Body", &route.body)] {
        if let Some(schema) = schema {
            out.push_str(&fields(key, caption, schema));
        }
    }
    out.push_str(&answers(route));
    for (language, code) in [("curl", examples::curl(route, origin)), ("Python", examples::python(route, origin))] {
        let _ = write!(
            out,
            "<figure class=\"example\"><figcaption>{language}</figcaption><pre class=\"code-block\" tabindex=\"0\" \
             aria-label=\"{language}\"><code>{}</code></pre></figure>",
            escape(&code)
        );
    }
    if let Some(body) = examples::body(route) {
        let text = serde_json::to_string_pretty(&body).unwrap_or_default();
        let _ = write!(out, "<template class=\"body\">{}</template>", escape(&text));
    }
    out + "</details>"
}

/// The responses of a route: statuses and types, then the fields of each.
fn answers(route: &Route) -> String {
    let mut statuses: Vec<String> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    let (mut said, mut tables) = (String::new(), String::new());
    for answer in &route.answers {
        let kind = match answer.content {
            Content::Json(_) => "application/json",
            Content::Events(_) => "text/event-stream",
            Content::Other(kind) => kind,
            Content::Empty => "",
        };
        let (key, caption, of) = match answer.content {
            Content::Json(of) => ("answer", "Answer", Some(of)),
            Content::Events(of) => ("event", "Event", Some(of)),
            Content::Other(_) | Content::Empty => ("", "", None),
        };
        if answer.content_says_more() {
            let _ = write!(said, "<p>{}: {}</p>", answer.status, prose(answer.about));
        }
        if !statuses.contains(&answer.status.to_string()) {
            statuses.push(answer.status.to_string());
        }
        if !kind.is_empty() && !kinds.contains(&kind) {
            kinds.push(kind);
        }
        if let Some(of) = of.filter(|_| answer.status < 300) {
            let table = fields(key, caption, &contract::inlined(of));
            // Two statuses may have one type.
            if !tables.contains(&table) {
                tables.push_str(&table);
            }
        }
    }
    let answers = words("span", "answers", "Answers");
    let (statuses, kinds) = (statuses.join(", "), escape(&kinds.join(", ")));
    format!("<p>{answers} {statuses} <span class=\"muted\">{kinds}</span></p>{said}{tables}")
}

/// Depth of nested fields in a table.
const DEPTH: usize = 3;

/// A table of an object's fields, or one of each alternative.
fn fields(key: &str, caption: &str, schema: &Value) -> String {
    if let Some(several) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        return several.iter().map(|one| fields(key, caption, one)).collect();
    }
    let mut rows = String::new();
    add_rows(&mut rows, "", schema, if matches!(key, "answer" | "event") { DEPTH } else { 1 });
    if rows.is_empty() {
        return String::new();
    }
    format!("<table><caption data-words=\"docs.{key}\">{caption}</caption><tbody>{rows}</tbody></table>")
}

fn add_rows(rows: &mut String, before: &str, schema: &Value, depth: usize) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (field, about) in schema["properties"].as_object().into_iter().flatten() {
        // Only required fields of requests are marked, because responses have nearly all of their fields.
        let must = match depth == 1 && before.is_empty() && required.contains(&field.as_str()) {
            true => words("span", "required", "required"),
            false => String::new(),
        };
        let _ = write!(
            rows,
            "<tr><th scope=\"row\"><code>{before}{}</code> {must}</th><td>{}</td><td>{}</td></tr>",
            name(field),
            escape(&kind(about)),
            prose(about["description"].as_str().unwrap_or_default())
        );
        if depth > 1 {
            let (inner, lists) = inside(about);
            let before = format!("{before}{}{}.", name(field), "[]".repeat(lists));
            add_rows(rows, &before, inner, depth - 1);
        }
    }
}

/// The object in a field inside of lists and nullable types, and the number of lists.
fn inside(field: &Value) -> (&Value, usize) {
    let alternatives = field["anyOf"].as_array().or(field["oneOf"].as_array());
    if let Some([one]) =
        alternatives.map(|all| all.iter().filter(|s| s["type"] != "null").collect::<Vec<_>>()).as_deref()
    {
        return inside(one);
    }
    match field.get("items").filter(|items| items.is_object()) {
        Some(items) => {
            let (inner, lists) = inside(items);
            (inner, lists + 1)
        }
        None => (field, 0),
    }
}

/// A short name of a field's type.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_become_code() {
        assert_eq!(prose("as `n < 3`, or `a`"), "as <code>n &lt; 3</code>, or <code>a</code>");
        assert_eq!(prose("one ` alone"), "one  alone");
        assert_eq!(name("crash_count"), "crash_<wbr>count");
    }
}
