//! Language models as labelers over HTTP: their agreement with people, data sets that contain their rankings, and the
//! queue by their doubt.

use std::cmp::Ordering;

use instructd::domain::*;
use serde_json::{Value, json};

use super::api::{judge, labeler};
use crate::api::client::Server;
use crate::feedback::queue::draw;

const JUDGE: &str = "judge-1";

/// A set with a good and a bad answer, written by the active version and by a person.
async fn set(server: &Server, i: usize) -> Value {
    let body = json!({"messages": [{"role": "user", "content": format!("q{i}")}], "overlap": 1,
                      "completions": [format!("good answer {i}"), format!("bad {i}")]});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

/// Stores the judge's ranking of the set: the first answer is best if `first`.
async fn ranked(server: &Server, set: &Value, first: bool, doubt: f64) {
    let created = server.services.store.now().await.unwrap();
    let store = server.services.store.model_judgments();
    store.put_labeler(ModelLabeler { id: JUDGE.into(), name: "wise (m)".into(), created }).await.unwrap();
    let id = |i: usize| CompletionId::from(set["completions"][i]["id"].as_str().unwrap());
    let judgment = ModelJudgment {
        id: JudgmentId::new(),
        set_id: set["id"].as_str().unwrap().into(),
        labeler_id: JUDGE.into(),
        criteria: "Be good.".into(),
        doubt,
        items: vec![(id(0), i64::from(!first)), (id(1), i64::from(first))],
        created,
    };
    assert_eq!(store.append(vec![judgment]).await.unwrap(), 1);
}

fn good_first(a: &str, b: &str) -> Ordering {
    b.starts_with("good").cmp(&a.starts_with("good"))
}

#[tokio::test]
async fn agreement_with_people_is_a_figure() {
    let server = Server::start().await;
    let empty = server.get("/admin/api/quality/judges").await.expect(200).json();
    assert_eq!((&empty["judges"], &empty["versions"]), (&json!([]), &json!({})));
    let (_, bearer) = labeler(&server, "ann").await;
    for i in 0..12 {
        let set = set(&server, i).await;
        judge(&server, &bearer, set["id"].as_str().unwrap(), good_first).await;
        ranked(&server, &set, i % 4 != 0, 0.5).await;
    }
    // People have not ranked this one.
    ranked(&server, &set(&server, 12).await, true, 1.0).await;
    let before = server.get("/admin/api/quality?replicates=100").await.expect(200).json();
    let report = server.get("/admin/api/quality/judges?replicates=100").await.expect(200).json();
    let one = &report["judges"][0];
    assert_eq!((&one["name"], &one["criteria"], &one["sets"]), (&json!("wise (m)"), &json!("Be good."), &json!(13)));
    assert_eq!((&one["shared_sets"], &one["pairs"]), (&json!(12), &json!(12)));
    assert_eq!((&one["same"]["value"], &one["same"]["n"]), (&json!(0.75), &json!(12)));
    assert_eq!(one["same_without_ties"]["value"], 0.75);
    let kappa = &one["kappa"];
    assert!(kappa["low"].as_f64().unwrap() <= kappa["value"].as_f64().unwrap(), "{kappa}");
    assert!((one["doubt"].as_f64().unwrap() - 7.0 / 13.0).abs() < 1e-9);
    // The people's figures know nothing of it.
    assert_eq!((&before["judgments"], &before["agreement"]["labelers"]), (&json!(12), &json!(0)));
    assert!(before["labelers"].as_array().unwrap().iter().all(|l| l["labeler_id"] != JUDGE));
    let days = server.get("/admin/api/quality/judges?replicates=0&days=1").await.expect(200).json();
    assert_eq!(days["judges"][0]["pairs"], 12);
    let refused = server.get("/admin/api/quality/judges?replicates=99999").await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("replicates"));
}

#[tokio::test]
async fn its_rankings_are_data_only_where_a_data_set_asks() {
    let server = Server::start().await;
    let (_, bearer) = labeler(&server, "ann").await;
    let set = set(&server, 0).await;
    judge(&server, &bearer, set["id"].as_str().unwrap(), good_first).await;
    ranked(&server, &set, false, 0.5).await;
    let made =
        async |name: &str, filter: Value| server.post("/admin/datasets", json!({"name": name, "filter": filter})).await;
    let first = |export: String| {
        let line: Value = serde_json::from_str(export.lines().last().unwrap()).unwrap();
        line["completions"][0]["text"].as_str().unwrap().to_owned()
    };
    for (name, filter, sets, best) in [
        ("people", json!({}), 1, "good answer 0"),
        ("humans", json!({"labelers": "human"}), 1, "good answer 0"),
        ("models", json!({"labelers": "model"}), 1, "bad 0"),
        ("one", json!({"labelers": "model", "labeler_id": JUDGE}), 1, "bad 0"),
        ("all", json!({"labelers": "all"}), 2, "bad 0"),
    ] {
        let dataset = made(name, filter.clone()).await.expect(201).json();
        assert_eq!(dataset["n_sets"], sets, "{filter}");
        let export = server.get(&format!("/admin/export?format=comparisons&dataset={name}")).await.expect(200).text;
        assert_eq!((export.lines().count(), first(export)), (sets, best.to_owned()), "{filter}");
    }
    for (filter, param) in [
        (json!({"labeler_id": JUDGE}), "filter.labeler_id"),
        (json!({"labelers": "all", "labeler_id": "nobody"}), "filter.labeler_id"),
        (json!({"labelers": "robots"}), "filter.labelers"),
    ] {
        let refused = made("x", filter.clone()).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{filter}: {}", refused.text);
    }
    // An export of everything is of people.
    let export = server.get("/admin/export?format=comparisons").await.expect(200).text;
    assert_eq!((export.lines().count(), export.contains(JUDGE)), (1, false));
    // Where an export asks for models, their lines say so, and a file cannot bring them as a person's.
    let marked = server.get("/admin/export?format=comparisons&labelers=all").await.expect(200).text;
    let kinds: Vec<Value> =
        marked.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["labeler_kind"].take()).collect();
    assert_eq!(kinds, [Value::Null, json!("model")]);
    let other = Server::start().await;
    let answer = other.raw("POST", "/admin/import?format=comparisons", "application/x-ndjson", marked).await;
    let report: Value = answer.json();
    assert_eq!((&report["imported"], &report["failed"]), (&json!(1), &json!(1)), "{report}");
    assert!(answer.text.contains("language model"), "{report}");
    server.get("/admin/export?format=comparisons&labelers=all&dataset=all").await.expect(400);
}

#[tokio::test]
async fn reviewers_see_the_judges_rankings_and_figures_say_by_dimension() {
    let server = Server::start().await;
    let rubric = json!({"name": "r", "dimensions": [
        {"key": "helpful", "label": {"en": "Helpful", "zh": "有用"}, "kind": "likert", "points": 5}]});
    let stored =
        server.post("/admin/rubrics", json!({"definition": rubric, "activate": true})).await.expect(201).json();
    let version = stored["version"].as_str().unwrap().to_owned();
    let (_, bearer) = labeler(&server, "ann").await;
    for i in 0..4 {
        let set = set(&server, i).await;
        let id = set["id"].as_str().unwrap();
        let answers = [0, 1].map(|k| set["completions"][k]["id"].clone());
        let turn =
            server.call("GET", &format!("/v1/label/next?set_id={id}"), &[("authorization", &bearer)], None).await;
        let turn = turn.expect(200).json();
        let body = json!({
            "lease_token": turn["lease_token"], "outcome": "ranked", "idempotency_key": format!("k{i}"),
            "items": [{"completion_id": answers[0], "tier": 0}, {"completion_id": answers[1], "tier": 1}],
            "rubric_version": version,
            "ratings": [{"completion_id": answers[0], "dimension": "helpful", "value": 2},
                        {"completion_id": answers[1], "dimension": "helpful", "value": 4}],
        });
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        server.call("POST", &path, &[("authorization", &bearer)], Some(body)).await.expect(200);
        ranked(&server, &set, i != 0, 0.25).await;
        let review = server.get(&format!("/v1/review/sets/{id}")).await.expect(200).json();
        let one = &review["judges"][0];
        assert_eq!((&one["labeler"]["name"], &one["criteria"]), (&json!("wise (m)"), &json!("Be good.")));
        assert_eq!((&one["doubt"], &one["items"][0]["completion_id"]), (&json!(0.25), &answers[usize::from(i == 0)]));
        assert_eq!(review["judges"].as_array().unwrap().len(), 1);
    }
    let report = server.get("/admin/api/quality/judges?replicates=50").await.expect(200).json();
    let of = &report["judges"][0]["dimensions"];
    assert_eq!(
        (&of[0]["dimension"], &of[0]["rubric"], &of[0]["label"]["zh"]),
        (&json!("helpful"), &json!(version), &json!("有用"))
    );
    // People rank the first answer best and find the second more helpful; the judge prefers the first in three of four.
    assert_eq!((&of[0]["pairs"], &of[0]["same"]["value"]), (&json!(4), &json!(0.25)));
    assert_eq!(report["judges"][0]["same"]["value"], 0.75);
}

#[tokio::test]
async fn a_model_cannot_sign_in() {
    let server = Server::start().await;
    ranked(&server, &set(&server, 0).await, true, 0.5).await;
    let people = server.get("/admin/labelers").await.expect(200).text;
    assert!(!people.contains(JUDGE), "{people}");
    server.post("/admin/keys", json!({"name": "k", "scopes": ["feedback"], "labeler_id": JUDGE})).await.expect(404);
    server.post(&format!("/admin/labelers/{JUDGE}/link"), json!({})).await.expect(404);
    server.post(&format!("/admin/labelers/{JUDGE}"), json!({"role": "admin"})).await.expect(404);
    server.post(&format!("/admin/labelers/{JUDGE}/active"), json!({"active": true})).await.expect(404);
    // A file cannot give it people's judgments.
    let line = json!({"prompt": "q", "labeler": JUDGE,
                      "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
    let answer = server.raw("POST", "/admin/import?format=comparisons", "application/x-ndjson", line.to_string()).await;
    assert!(answer.text.contains("language model"), "{}", answer.text);
    let judgments = server.get("/admin/api/judgments").await.expect(200).json();
    assert_eq!(judgments["total"], 0);
}

#[tokio::test]
async fn people_get_what_a_judge_doubts_or_ranks_otherwise() {
    let server = Server::start().await;
    let body = json!({"policy": "judge", "count": 9});
    let nothing = draw(&server, body.clone()).await;
    assert_eq!(
        (&nothing["state"], &nothing["made"], &nothing["report"]["found"]),
        (&json!("done"), &json!(0), &json!(0))
    );
    let (_, ann) = labeler(&server, "ann").await;
    let (_, ben) = labeler(&server, "ben").await;
    let mut sets = Vec::new();
    for i in 0..5 {
        sets.push(set(&server, i).await);
    }
    let id = |i: usize| sets[i]["id"].as_str().unwrap();
    // 0 open and sure, 1 open and doubted, 2 finished in agreement, 3 finished in disagreement, 4 not judged.
    for (i, first, doubt) in [(0, true, 0.0), (1, true, 0.8), (2, true, 0.9), (3, false, 0.1)] {
        ranked(&server, &sets[i], first, doubt).await;
    }
    for i in [2, 3] {
        judge(&server, &ann, id(i), good_first).await;
    }
    let done = draw(&server, body).await;
    let report = &done["report"];
    assert_eq!((&done["made"], &report["found"], &report["agreed"]), (&json!(2), &json!(4), &json!(2)), "{done}");
    let stored = async |i: usize| server.services.store.sets().get(&id(i).into()).await.unwrap();
    let (doubted, disputed) = (stored(1).await, stored(3).await);
    assert_eq!((doubted.target_overlap, doubted.selection_score), (1, Some(0.8)));
    assert_eq!((disputed.target_overlap, disputed.status, disputed.selection_score), (2, SetStatus::Open, Some(1.0)));
    assert_eq!((stored(0).await.selection_score, stored(2).await.status), (None, SetStatus::Done));
    // The disputed one comes first, then the doubted one.
    let next = async || {
        let answer = server.call("GET", "/v1/label/next", &[("authorization", &ben)], None).await.expect(200).json();
        answer["set_id"].as_str().unwrap().to_owned()
    };
    let first = next().await;
    assert_eq!(first, id(3));
    judge(&server, &ben, id(3), good_first).await;
    assert_eq!(next().await, id(1));
}
