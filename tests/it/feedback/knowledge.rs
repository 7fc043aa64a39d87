//! What labelers knew when judging: blind votes count, revisions after a reveal are kept apart.

use serde_json::{Value, json};

use super::access_rules::{Person, known_answer, new_set, tiers};
use crate::api::client::Server;

async fn revise(ada: &Person<'_>, turn: &Value, stored: &Value, order: &[&str], key: &str) -> Value {
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(turn, order),
                      "idempotency_key": key, "revises": stored["judgment"]["id"]});
    ada.post(&super::access_rules::judge_path(turn), body).await.expect(200).json()
}

async fn exported(server: &Server, format: &str) -> Vec<Value> {
    let text = server.get(&format!("/admin/export?format={format}")).await.expect(200).text;
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[tokio::test]
async fn without_a_reveal_the_latest_revision_counts() {
    let server = Server::start().await;
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let first = ada.judge(&turn, &["x", "y"]).await.expect(200).json();
    assert_eq!((&first["reveal"], &first["judgment"]["knowledge"]), (&json!([]), &json!("blind")));
    let second = revise(&ada, &turn, &first, &["y", "x"], "again").await;
    assert_eq!(second["judgment"]["knowledge"], "blind");
    assert_eq!(exported(&server, "trl").await[0]["chosen"][0]["content"], "y");
}

#[tokio::test]
async fn revisions_after_the_names_were_shown_are_kept_apart() {
    let server = Server::with(|c| c.labeling.reveal = true, Default::default()).await;
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let first = ada.judge(&turn, &["x", "y"]).await.expect(200).json();
    assert_eq!(first["reveal"].as_array().unwrap().len(), 2, "the setting allows it");
    for key in ["second", "third"] {
        let revised = revise(&ada, &turn, &first_of(&ada, &first).await, &["y", "x"], key).await;
        assert_eq!(revised["judgment"]["knowledge"], "authors", "{key}");
    }
    // The figures, data sets and other formats take the blind word.
    assert_eq!(exported(&server, "trl").await.len(), 1);
    assert_eq!(exported(&server, "trl").await[0]["chosen"][0]["content"], "x");
    let frozen = server.post("/admin/datasets", json!({"name": "d", "filter": {}})).await.expect(201).json();
    assert_eq!(frozen["n_sets"], 1);
    // The export shows the later one, marked.
    let lines = exported(&server, "comparisons").await;
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["knowledge"], &lines[1]["knowledge"]), (&Value::Null, &json!("authors")));
    assert_eq!(lines[1]["completions"][0]["text"], "y");
    // Who asks for it gets the informed word.
    let asked = json!({"name": "informed", "filter": {"informed": true}});
    assert_eq!(server.post("/admin/datasets", asked).await.expect(201).json()["n_sets"], 1);
    let text = server.get("/admin/export?format=trl&dataset=informed").await.expect(200).text;
    assert_eq!(serde_json::from_str::<Value>(text.trim()).unwrap()["chosen"][0]["content"], "y");
}

/// The labeler's latest judgment in the shape of an answer to a judgment.
async fn first_of(ada: &Person<'_>, any: &Value) -> Value {
    let history = ada.get("/v1/label/history?limit=1").await.expect(200).json();
    assert_eq!(history["data"][0]["set_id"], any["judgment"]["set_id"]);
    json!({"judgment": history["data"][0]})
}

#[tokio::test]
async fn a_practice_set_is_measured_by_the_judgment_before_the_answer_was_shown() {
    let server = Server::with(|c| c.labeling.onboarding_sets = 1, Default::default()).await;
    let set = new_set(&server, "practice", &["good", "bad"], 1).await;
    known_answer(&server, &set, "calibration", &["good", "bad"]).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    assert_eq!((&turn["kind"], &turn["practice_number"]), (&json!("calibration"), &json!(1)));
    let stored = ada.judge(&turn, &["bad", "good"]).await.expect(200).json();
    assert_eq!(stored["verdict"]["met"], 0.0);
    let revised = revise(&ada, &turn, &stored, &["good", "bad"], "now right").await;
    assert_eq!(revised["judgment"]["knowledge"], "answer");
    let me = ada.get("/v1/label/me").await.expect(200).json();
    assert_eq!(me["calibration_accuracy"]["value"], 0.0, "what was said after the answer was shown measures nobody");
    // Practice is no dispute.
    let disputes = server.get("/admin/api/quality/consensus").await.expect(200).json();
    assert_eq!(disputes["total"], 0, "{disputes}");
    let asked = server.get("/admin/api/quality/consensus?kind=calibration").await.expect(200).json();
    assert_eq!(asked["total"], 1);
}

#[tokio::test]
async fn a_skip_shows_nothing_and_may_still_become_a_blind_judgment() {
    let server =
        Server::with(|c| (c.labeling.reveal, c.labeling.onboarding_sets) = (true, 1), Default::default()).await;
    let set = new_set(&server, "practice", &["good", "bad"], 1).await;
    known_answer(&server, &set, "calibration", &["good", "bad"]).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let skipped = ada.skip(&turn).await.expect(200).json();
    assert_eq!((&skipped["reveal"], &skipped["verdict"]), (&json!([]), &Value::Null));
    let me = ada.get("/v1/label/me").await.expect(200).json();
    assert_eq!(me["onboarding"], Value::Null, "no practice is left for her");
    let ranked = revise(&ada, &turn, &skipped, &["good", "bad"], "after all").await;
    assert_eq!((&ranked["judgment"]["knowledge"], &ranked["verdict"]["met"]), (&json!("blind"), &json!(1.0)));
}

#[tokio::test]
async fn a_reviewer_who_saw_the_authors_does_not_judge_blind() {
    let server = Server::start().await;
    let set = new_set(&server, "q", &["x", "y"], 1).await;
    server.get(&format!("/v1/review/sets/{}", set["id"].as_str().unwrap())).await.expect(200);
    let turn = server.get("/v1/label/next").await.expect(200).json();
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["x", "y"]),
                      "idempotency_key": "k"});
    let stored = server.post(&super::access_rules::judge_path(&turn), body).await.expect(200).json();
    assert_eq!(stored["judgment"]["knowledge"], "authors");
    // Its place is left to somebody who judges blind.
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    ada.judge(&turn, &["y", "x"]).await.expect(200);
    assert_eq!(exported(&server, "trl").await.len(), 1);
}
