//! Lists whose rows are as large as rows may be: a page is rows × their size.

use serde_json::{Value, json};

use instructd::config::LimitsConfig;
use instructd::http::routes;

use super::{PROMISED, key, place, under, user};
use crate::crash::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_the_largest_rows_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&place(dir.path())).await;
    let (labeler, _) = key(&server, &["feedback"], json!({})).await;
    let long = "x".repeat(250_000);
    for i in 0..320 {
        let messages = user(&format!("{i} {long}"));
        server.call("POST", "/v1/prompts", Some(json!({"messages": messages}))).await.expect(201);
    }
    // Rankings by one labeler, each with all the words that a ranking may have.
    let mut ranked = 0;
    for i in 0..100 {
        let set = json!({"messages": user(&format!("set {i}")), "completions": ["a", "b"]});
        server.call("POST", "/v1/comparison-sets", Some(set)).await.expect(201);
        let turn = server.send("GET", "/v1/label/next", &labeler, None).await.unwrap().expect(200);
        let ids: Vec<&Value> = turn["completions"].as_array().unwrap().iter().map(|c| &c["id"]).collect();
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        let note = |n: usize| json!({"completion_id": ids[0], "code": "other", "note": "n".repeat(n)});
        let judgment = |notes: usize| {
            json!({"lease_token": turn["lease_token"], "outcome": "ranked", "idempotency_key": format!("k{i}"),
                "items": [{"completion_id": ids[0], "tier": 0}, {"completion_id": ids[1], "tier": 1}],
                "rationale": "r".repeat(64 << 10), "flags": vec![note(60_000); notes]})
        };
        // Limits on each note are no limit on all of them.
        if i == 0 {
            let refused = server.send("POST", &path, &labeler, Some(&judgment(20))).await.unwrap();
            assert_eq!((refused.status, &refused.json["error"]["param"]), (400, &json!("flags")), "{}", refused.json);
        }
        let stored = server.send("POST", &path, &labeler, Some(&judgment(1))).await.unwrap();
        ranked += usize::from(stored.status == 200);
    }
    assert_eq!(ranked, 100);
    let mut walked = 0;
    for route in routes::table(&LimitsConfig::default()) {
        let Some(names) = route.query_names() else { continue };
        if route.method != http::Method::GET || !names.iter().any(|n| n == "limit") || route.path.contains('{') {
            continue;
        }
        let most = if route.path.contains("quality") { 50 } else { 500 };
        let path = format!("{}?limit={most}", route.path);
        for caller in [crate::crash::server::ADMIN_KEY, labeler.as_str()] {
            let (answer, grown) = under(&server, &path, server.send("GET", &path, caller, None)).await;
            let answer = answer.unwrap();
            eprintln!("{path}: {} {:.1} MB", answer.status, grown as f64 / 1e6);
            assert!(answer.status < 500, "{path}: {}", answer.json);
            assert!(grown <= PROMISED, "{path}: {grown} bytes");
        }
        walked += 1;
    }
    assert!(walked >= 8, "{walked} lists");
    // A page that ends early goes on: every row is reached.
    let (mut seen, mut after) = (0, String::new());
    loop {
        let page = server.call("GET", &format!("/v1/prompts?limit=500{after}"), None).await.expect(200);
        let rows = page["data"].as_array().unwrap().len();
        if rows == 0 {
            break;
        }
        seen += rows;
        after = format!("&after={}", page["after"].as_str().unwrap());
    }
    assert_eq!(seen, 320 + 100);
}
