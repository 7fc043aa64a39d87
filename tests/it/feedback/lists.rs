//! The lists of the pages over HTTP: prompts in them, search, filters, paging, names for ids.

use std::time::Duration;

use instructd::domain::*;
use instructd::service::searches::SearchLimits;
use serde_json::{Value, json};

use super::queue::{labeler, set_of, submit};
use crate::api::client::Server;
use crate::store::fixture;

async fn judge(server: &Server, bearer: &str, set: &Value, order: &[&str]) {
    let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
    let turn = server.call("GET", &path, &[("authorization", bearer)], None).await.expect(200).json();
    submit(server, bearer, &turn, order).await;
}

async fn ids(server: &Server, query: &str) -> Vec<String> {
    let page = server.get(&format!("/admin/sets?{query}")).await.expect(200).json();
    page["data"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn sets_are_searched_filtered_and_paged_with_their_prompts() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for question in ["How to keep basil?", "100 % of what?", "为什么天是蓝的？"] {
        made.push(set_of(&server, question, &["x", "y"], 2).await);
    }
    let id = |i: usize| made[i]["id"].as_str().unwrap().to_owned();
    let (ada, bob) = (labeler(&server, "ada").await, labeler(&server, "bob").await);
    judge(&server, &ada, &made[0], &["x", "y"]).await;
    judge(&server, &bob, &made[0], &["y", "x"]).await;
    judge(&server, &ada, &made[1], &["x", "y"]).await;

    let page = server.get("/admin/sets?limit=2").await.expect(200).json();
    assert_eq!((&page["total"], page["data"].as_array().unwrap().len()), (&json!(3), 2));
    assert_eq!(page["data"][0]["prompt"], "为什么天是蓝的？");
    assert_eq!((&page["data"][1]["judged"], &page["data"][1]["target_overlap"]), (&json!(1), &json!(2)));
    let rest = ids(&server, &format!("limit=2&after={}", page["after"].as_str().unwrap())).await;
    assert_eq!(rest, [id(0)]);

    assert_eq!(ids(&server, "q=BASIL").await, [id(0)]);
    assert_eq!(ids(&server, "q=%E5%A4%A9%E6%98%AF").await, [id(2)]);
    assert_eq!(ids(&server, "q=%25").await, [id(1)], "a % is a character, not a wildcard");
    assert!(ids(&server, "q=user").await.is_empty(), "roles are not searched");
    assert_eq!(ids(&server, "status=done").await, [id(0)]);
    assert_eq!(ids(&server, "disputed=true").await, [id(0)]);
    assert!(ids(&server, "kind=gold").await.is_empty());
    assert!(ids(&server, "policy=random&q=basil").await.is_empty());
    let people = server.get("/admin/labelers").await.expect(200).json();
    let people = people.as_array().or(people["data"].as_array()).unwrap();
    let bob_id = people.iter().find(|l| l["name"] == "bob").unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&server, &format!("labeler={bob_id}")).await, [id(0)]);
    server.get("/admin/sets?status=lost").await.expect(400);

    let judgments = server.get("/admin/api/judgments?limit=2").await.expect(200).json();
    assert_eq!((&judgments["total"], judgments["data"].as_array().unwrap().len()), (&json!(3), 2));
    let newest = &judgments["data"][0];
    assert_eq!((&newest["prompt"], &newest["labeler"]["name"]), (&json!("100 % of what?"), &json!("ada")));
    assert_eq!((&newest["set_id"], newest["items"].as_array().unwrap().len()), (&json!(id(1)), 2));
    let of = server.get(&format!("/admin/api/judgments?labeler={bob_id}&q=basil")).await.expect(200).json();
    assert_eq!(of["total"], 1);
    assert_eq!(server.get("/admin/api/judgments?outcome=skip").await.expect(200).json()["total"], 0);
    let disputed = server.get("/admin/api/quality/consensus").await.expect(200).json();
    assert_eq!(disputed["data"][0]["prompt"], "How to keep basil?");
}

#[tokio::test]
async fn sets_are_removed_together_or_not_at_all() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for i in 0..3 {
        made.push(set_of(&server, &format!("q{i}"), &["x", "y"], 1).await["id"].clone());
    }
    let gone = json!({"ids": [&made[0], "01HZZZZZZZZZZZZZZZZZZZZZZZ"]});
    server.post("/admin/sets/retire", gone).await.expect(404);
    assert_eq!(ids(&server, "status=open").await.len(), 3, "none where one is unknown");
    server.post("/admin/sets/retire", json!({"ids": [&made[0], &made[2]]})).await.expect(204);
    assert_eq!(ids(&server, "status=open").await, [made[1].as_str().unwrap()]);
    for ids in [json!([]), json!(vec!["x"; 501])] {
        let refused = server.post("/admin/sets/retire", json!({"ids": ids})).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("ids"));
    }
}

#[tokio::test]
async fn the_audit_trail_names_its_ids() {
    let server = Server::start().await;
    let set = set_of(&server, "Which set?", &["x", "y"], 1).await["id"].as_str().unwrap().to_owned();
    server.post(&format!("/admin/sets/{set}/retire"), json!({})).await.expect(204);
    let key = server.post("/admin/keys", json!({"name": "ci", "scopes": ["inference"]})).await.expect(201).json();
    let trail = server.get("/admin/audit").await.expect(200).json();
    assert_eq!(trail["names"][&set], json!({"kind": "set", "name": "Which set?"}));
    assert_eq!(trail["names"][key["id"].as_str().unwrap()], json!({"kind": "key", "name": "ci"}));
    assert_eq!(trail["names"]["admin"]["kind"], "labeler");
}

#[tokio::test]
async fn the_review_of_a_practice_set_shows_and_changes_its_answer() {
    let server = Server::start().await;
    let set = set_of(&server, "practice", &["x", "y"], 1).await;
    let path = format!("/v1/review/sets/{}", set["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.expect(200).json()["known_answer"], Value::Null);
    let known = format!("/admin/sets/{}/known-answer", set["id"].as_str().unwrap());
    let [x, y] = [0, 1].map(|i| set["completions"][i]["id"].clone());
    for (best, other, why) in [(&x, &y, "x is true"), (&y, &x, "y is true, after all")] {
        let tiers = json!([{"completion_id": best, "tier": 0}, {"completion_id": other, "tier": 1}]);
        let body = json!({"kind": "calibration", "tiers": tiers, "explanation": why});
        server.post(&known, body).await.expect(204);
        let review = server.get(&path).await.expect(200).json();
        let answer = &review["known_answer"];
        assert_eq!((&answer["tiers"], &answer["explanation"]), (&tiers, &json!(why)));
        assert!(review.get("expected").is_none() && review.get("explanation").is_none(), "once is enough: {review}");
    }
}

/// Searches without any time look at two rows for a request. Following their cursor finds everything once.
#[tokio::test]
async fn searches_out_of_time_are_continued() {
    let server = Server::searching(SearchLimits { time: Duration::ZERO, rows: 2 }).await;
    let ada = labeler(&server, "ada").await;
    let mut made = Vec::new();
    for i in 0..9 {
        let question = if i % 4 == 0 { format!("where is basil {i}") } else { format!("question {i}") };
        let set = set_of(&server, &question, &["x", "y"], 2).await;
        judge(&server, &ada, &set, &["x", "y"]).await;
        made.push(set["id"].clone());
    }
    for i in 0..5 {
        let args = json!({"note": if i == 1 { "basil" } else { "none" }});
        server.services.store.jobs().enqueue(Job { args, ..fixture::job("sft", None, 0) }).await.unwrap();
    }
    let expected = [8, 4, 0].map(|i: usize| made[i].clone());
    for (path, field, expected) in [
        ("/admin/sets", "id", expected.to_vec()),
        ("/admin/api/judgments", "set_id", expected.to_vec()),
        ("/admin/jobs", "kind", vec![json!("sft")]),
    ] {
        for limit in [1, 100] {
            let (mut found, mut after, mut stops) = (Vec::new(), String::new(), 0);
            loop {
                let query = format!("{path}?q=BASIL&limit={limit}{after}");
                let page = server.get(&query).await.expect(200).json();
                let rows = page["data"].as_array().unwrap();
                found.extend(rows.iter().map(|row| row[field].clone()));
                assert_eq!(page["total"], Value::Null, "{query}: one request cannot count");
                stops += usize::from(!page["searched_to"].is_null());
                if page["searched_to"].is_null() && rows.len() < limit {
                    break;
                }
                after = format!("&after={}", page["after"].as_str().unwrap());
            }
            assert_eq!(found, expected, "{path}");
            assert!(stops > 0, "{path}: {stops}");
        }
    }
    // Other lists are counted, whatever the limits are.
    let page = server.get("/admin/sets?limit=1").await.expect(200).json();
    assert_eq!((&page["total"], &page["searched_to"]), (&json!(9), &Value::Null));
}
