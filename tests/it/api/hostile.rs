//! Hostile text in what is shown: nothing but text and https links may come out of the markdown.

use proptest::prelude::*;
use serde_json::json;

use super::client::Server;
use crate::support::rendered as render;

const PAYLOADS: &[&str] = &[
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/a.png)",
    "![x](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "[x](//evil.example)",
    "[x](http://evil.example)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "[x](https://a.example \"onmouseover=alert(1)\")",
    "[x](https://a.example/\"onmouseover=\"alert(1))",
    "<a href=\"javascript:alert(1)\">x</a>",
    "<svg/onload=alert(1)>",
    "<iframe src=https://evil.example></iframe>",
    "<style>@import 'https://evil.example'</style>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<form action=https://evil.example><input name=q></form>",
    "`<script>alert(1)</script>`",
    "```html\n<script>alert(1)</script>\n```",
    "```\"><img src=x onerror=alert(1)>\nx\n```",
    "| <img src=x onerror=alert(1)> |\n|---|\n| x |",
    "<!-- --><script>alert(1)</script>",
    "\u{202e}<script>\u{0}alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<base href=https://evil.example>",
    "<link rel=stylesheet href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
];

const TAGS: &[&str] = &[
    "p",
    "br",
    "hr",
    "strong",
    "em",
    "del",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "a",
    "span",
];

/// A fence's language, a plain word, for the page to colour by.
fn is_language(attributes: &str) -> bool {
    let name = attributes.strip_prefix("class=\"language-").and_then(|rest| rest.strip_suffix('"'));
    name.is_some_and(|n| {
        (1..=32).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"+#-_.".contains(&b))
    })
}

/// Every tag in the output is known and carries no attribute but a safe link's, a list's start, a fence's language and
/// the mark of mathematics.
fn assert_safe(html: &str) {
    for piece in html.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap_or_default();
        let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        assert!(TAGS.contains(&name.as_str()), "tag <{tag}> in {html}");
        let attributes = tag.trim_start_matches('/')[name.len()..].trim_end_matches('/').trim();
        let safe = attributes.is_empty()
            || (name == "ol" && attributes.starts_with("start=\""))
            || (name == "code" && is_language(attributes))
            || (name == "span" && matches!(attributes, "class=\"math math-inline\"" | "class=\"math math-display\""))
            || (name == "a"
                && (attributes == "rel=\"noopener noreferrer nofollow\""
                    || (attributes.starts_with("href=\"https:")
                        && attributes.ends_with("\" rel=\"noopener noreferrer nofollow\"")
                        && attributes.matches('"').count() == 4)));
        assert!(safe, "attributes {attributes:?} in {html}");
    }
}

#[test]
fn payloads_are_rendered_as_text() {
    for payload in PAYLOADS {
        assert_safe(&render(payload));
        assert_safe(&render(&format!("before {payload} after\n\n> {payload}\n\n- {payload}")));
    }
}

#[test]
fn good_markdown_survives() {
    let html = render("# T\n\n**b** `c` [l](https://a.example)\n\n- x\n\n| a |\n|---|\n| b |");
    for part in
        ["<h1>T</h1>", "<strong>b</strong>", "<code>c</code>", "href=\"https://a.example\"", "<li>x</li>", "<td>b</td>"]
    {
        assert!(html.contains(part), "{part} in {html}");
    }
    assert_eq!(render("1 < 2 <b>x</b>"), "<p>1 &lt; 2 &lt;b&gt;x&lt;/b&gt;</p>\n");
}

proptest! {
    #[test]
    fn only_known_tags_are_rendered(parts in prop::collection::vec(
        prop_oneof![prop::sample::select(PAYLOADS).prop_map(str::to_owned), "[ -~\\n]{0,12}"], 0..6)) {
        assert_safe(&render(&parts.concat()));
    }
}

#[tokio::test]
async fn stored_payloads_are_shown_safely() {
    let server = Server::start().await;
    for payload in PAYLOADS {
        let body = json!({"messages": [{"role": "user", "content": payload}], "completions": [payload, "b"]});
        server.post("/v1/comparison-sets", body).await.expect(201);
        let answer = server.get("/v1/label/next").await.expect(200);
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/json"));
        let turn = answer.json();
        assert_safe(turn["prompt"]["messages"][0]["html"].as_str().unwrap());
        for completion in turn["completions"].as_array().unwrap() {
            assert_safe(completion["html"].as_str().unwrap());
        }
        let release = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        let skip =
            json!({"lease_token": turn["lease_token"], "outcome": "unrankable", "idempotency_key": turn["set_id"]});
        server.post(&release, skip).await.expect(200);
    }
}
