//! Figures over HTTP, from judgments that were really submitted.

use instructd::domain::*;
use serde_json::{Value, json};

use crate::api::client::Server;

/// A labeler with a key; (id, bearer header).
pub(super) async fn labeler(server: &Server, name: &str) -> (String, String) {
    let made = server.post("/admin/keys", json!({"name": name, "scopes": ["feedback"]})).await.expect(201).json();
    let id = made["labeler_id"].as_str().unwrap().to_owned();
    (id, format!("Bearer {}", made["key"].as_str().unwrap()))
}

/// Leases the set for the labeler and ranks it by `better`, which gets two texts.
pub(super) async fn judge(server: &Server, bearer: &str, set: &str, better: impl Fn(&str, &str) -> std::cmp::Ordering) {
    let headers = [("authorization", bearer)];
    let turn = server.call("GET", &format!("/v1/label/next?set_id={set}"), &headers, None).await.expect(200).json();
    let shown = turn["completions"].as_array().unwrap();
    let text = |i: usize| shown[i]["text"].as_str().unwrap();
    let tiers = match better(text(0), text(1)) {
        std::cmp::Ordering::Less => [0, 1],
        std::cmp::Ordering::Equal => [0, 0],
        std::cmp::Ordering::Greater => [1, 0],
    };
    let items: Vec<Value> =
        shown.iter().zip(tiers).map(|(c, t)| json!({"completion_id": c["id"], "tier": t})).collect();
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 2000,
                      "idempotency_key": format!("{set} {bearer}")});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, &headers, Some(body)).await.expect(200);
}

fn row<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["labelers"].as_array().unwrap().iter().find(|l| l["labeler_id"] == id).unwrap()
}

#[tokio::test]
async fn the_report_tells_careful_from_careless() {
    let server = Server::start().await;
    let careful = [labeler(&server, "ann").await, labeler(&server, "ben").await];
    let careless = labeler(&server, "cas").await;
    for i in 0..12 {
        let body = json!({"messages": [{"role": "user", "content": format!("q{i}")}], "overlap": 3,
                          "completions": [format!("good answer {i}"), format!("bad {i}")]});
        let set = server.post("/v1/comparison-sets", body).await.expect(201).json();
        let id = set["id"].as_str().unwrap();
        for (_, bearer) in &careful {
            judge(&server, bearer, id, |a, b| b.starts_with("good").cmp(&a.starts_with("good"))).await;
        }
        judge(&server, &careless.1, id, |_, _| std::cmp::Ordering::Less).await; // whatever is shown first
    }
    let report = server.get("/admin/api/quality?replicates=200").await.expect(200).json();
    assert_eq!((&report["judgments"], &report["sets"]), (&json!(36), &json!(12)));
    let agreement = &report["agreement"];
    assert_eq!(
        (&agreement["units"], &agreement["labelers"], &agreement["fleiss_raters"]),
        (&json!(12), &json!(3), &json!(3))
    );
    let pairwise = &agreement["pairwise"];
    assert!(pairwise["low"].as_f64().unwrap() < pairwise["value"].as_f64().unwrap());
    let names: Vec<&Value> = report["cohen_pairs"].as_array().unwrap().iter().map(|p| &p[0][1]).collect();
    assert_eq!(names.len(), 3);
    let at =
        report["cohen_pairs"].as_array().unwrap().iter().position(|p| p[0][1] == "ann" && p[1][1] == "ben").unwrap();
    assert_eq!(agreement["cohen"][at]["kappa"]["value"], 1.0);
    let (ann, cas) = (row(&report, &careful[0].0), row(&report, &careless.0));
    assert_eq!(cas["left_bias"]["value"], 1.0);
    assert_eq!(ann["median_active_ms"], 2000.0);
    assert_eq!((&ann["tie_rate"]["value"], &ann["skip_rate"]["value"]), (&json!(0.0), &json!(0.0)));
    // Twelve sets are few: the prior still speaks, but the order is clear.
    let attention = |row: &Value| row["attention"].as_f64().unwrap();
    assert!(attention(ann) > attention(cas) && attention(ann) > 0.85, "{ann} {cas}");
    assert_eq!(ann["agreement_with_others"]["value"].as_f64().unwrap(), 1.0);
    assert_eq!(report["length"]["longer_wins"]["n"], 36);
    // The same seed, the same figures.
    let again = server.get("/admin/api/quality?replicates=200").await.expect(200).json();
    assert_eq!(report, again);
    assert_eq!(
        server.get("/admin/api/quality?replicates=999999").await.expect(400).param().as_deref(),
        Some("replicates")
    );

    // A number of days that reaches before any date means all.
    for route in ["", "/versions", "/consensus"] {
        let path = format!("/admin/api/quality{route}?replicates=50&days={}", u32::MAX);
        server.get(&path).await.expect(200);
    }
    let consensus = server.get("/admin/api/quality/consensus?limit=3").await.expect(200).json();
    assert_eq!((consensus["data"].as_array().unwrap().len(), &consensus["total"]), (3, &json!(12)));
    let first = &consensus["data"][0];
    let best = first["completions"][0]["completion_id"].as_str().unwrap();
    let best = server.services.store.completions().get(&best.into()).await.unwrap();
    assert!(best.text.starts_with("good"));
    let disagreement = first["disagreement"].as_f64().unwrap();
    assert!((disagreement - 2.0 / 3.0).abs() < 1e-9, "two of three pairs of labelers differ: {disagreement}");
}

#[tokio::test]
async fn the_table_ranks_versions_by_what_people_preferred() {
    let server = Server::start().await;
    let store = &server.services.store;
    let mut versions = Vec::new();
    for name in ["weak", "strong"] {
        let version = crate::api::client::version(name, ModelKind::Policy, None);
        store.models().put(version.clone()).await.unwrap();
        versions.push(version.id);
    }
    for i in 0..10i64 {
        let messages = vec![Message { role: "user".into(), content: format!("q{i}") }];
        let by = "admin".into();
        let first = instructd::domain::ProjectId::first();
        let add = instructd::service::prompts::add(&server.services, &by, &first, messages, "api", None, vec![]);
        let prompt = add.await.unwrap();
        let completion = |version: usize, text: &str| Completion {
            id: CompletionId::new(),
            prompt_id: prompt.id.clone(),
            model_version_id: Some(versions[version].clone()),
            origin: CompletionOrigin::Model,
            parent_completion_id: None,
            text: text.into(),
            token_ids: vec![],
            logprobs: vec![],
            sampling: json!({}),
            seed: None,
            finish_reason: None,
            request_id: None,
            reward: None,
            created: i,
        };
        let (weak, strong) = (completion(0, "weak"), completion(1, "strong"));
        store.completions().put(vec![weak.clone(), strong.clone()]).await.unwrap();
        // Eight wins, one loss, one tie for the strong one.
        let tiers = match i {
            0 => (0, 1),
            1 => (0, 0),
            _ => (1, 0),
        };
        let body = json!({"prompt_id": prompt.id, "idempotency_key": format!("r{i}"), "completions": [
            {"completion_id": weak.id, "tier": tiers.0}, {"completion_id": strong.id, "tier": tiers.1}]});
        server.post("/v1/comparisons", body).await.expect(201);
    }
    let table = server.get("/admin/api/quality/versions").await.expect(200).json();
    assert_eq!((&table["comparisons"], &table["prompts"]), (&json!(10), &json!(10)));
    let names: Vec<&Value> = table["versions"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(names, ["strong", "weak"]);
    let first = &table["versions"][0];
    assert!(first["strength"]["low"].as_f64().unwrap() > 0.0 && first["elo"].as_f64().unwrap() > 50.0, "{first}");
    let cell = &table["wins"][0][1];
    assert_eq!(
        (&cell["wins"], &cell["losses"], &cell["ties"], &cell["win_rate"]),
        (&json!(8), &json!(1), &json!(1), &json!(0.85))
    );
    assert!((cell["expected"].as_f64().unwrap() - 0.85).abs() < 0.03, "{cell}");
    let controlled =
        server.get("/admin/api/quality/versions?length_controlled=true&replicates=20").await.expect(200).json();
    assert!(controlled["length_effect"]["value"].is_number() && table["length_effect"].is_null());
    // Nothing compared: an empty table, not an error.
    let empty = server.get("/admin/api/quality/versions?kind=gold").await.expect(200).json();
    assert_eq!((&empty["versions"], &empty["comparisons"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn sets_with_known_answers_measure_accuracy_and_nothing_else() {
    let server = Server::start().await;
    let people = [labeler(&server, "ann").await, labeler(&server, "ben").await];
    let good_first = |a: &str, b: &str| b.starts_with("good").cmp(&a.starts_with("good"));
    let bad_first = |a: &str, b: &str| a.starts_with("good").cmp(&b.starts_with("good"));
    for i in 0..4 {
        let body = json!({"messages": [{"role": "user", "content": format!("q{i}")}], "overlap": 2,
                          "completions": [format!("good answer {i}"), format!("bad {i}")]});
        let set = server.post("/v1/comparison-sets", body).await.expect(201).json();
        let id = set["id"].as_str().unwrap();
        // Two practice sets that both get right; two ordinary ones on which they differ.
        let practice = i < 2;
        if practice {
            let tiers: Vec<Value> =
                (0..2).map(|k| json!({"completion_id": set["completions"][k]["id"], "tier": k})).collect();
            let body = json!({"kind": "calibration", "tiers": tiers});
            server.post(&format!("/admin/sets/{id}/known-answer"), body).await.expect(204);
        }
        judge(&server, &people[0].1, id, good_first).await;
        if practice {
            judge(&server, &people[1].1, id, good_first).await;
        } else {
            judge(&server, &people[1].1, id, bad_first).await;
        }
    }
    let report = server.get("/admin/api/quality?replicates=50").await.expect(200).json();
    assert_eq!((&report["judgments"], &report["sets"]), (&json!(4), &json!(2)));
    let pairwise = &report["agreement"]["pairwise"];
    assert_eq!((&pairwise["value"], &pairwise["n"]), (&json!(0.0), &json!(2)), "{pairwise}");
    let ann = row(&report, &people[0].0);
    assert_eq!((&ann["agreement_with_others"]["value"], &ann["agreement_with_others"]["n"]), (&json!(0.0), &json!(2)));
    assert_eq!((&ann["gold_accuracy"]["value"], &ann["gold_accuracy"]["n"]), (&json!(1.0), &json!(2)));
    assert_eq!(report["length"]["preferences"], 4);
    let disputed = server.get("/admin/api/quality/consensus").await.expect(200).json();
    assert_eq!(disputed["total"], 2, "practice sets are not disputed");
    // They can be asked about on their own.
    let practice = server.get("/admin/api/quality?kind=calibration&replicates=50").await.expect(200).json();
    assert_eq!((&practice["sets"], &practice["agreement"]["pairwise"]["value"]), (&json!(2), &json!(1.0)));
}

#[tokio::test]
async fn an_unmeasured_time_is_unknown() {
    let server = Server::start().await;
    let (ann, bearer) = labeler(&server, "ann").await;
    let body = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["x", "y"]});
    let set = server.post("/v1/comparison-sets", body).await.expect(201).json();
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
    let turn = server.call("GET", &path, &headers, None).await.expect(200).json();
    let items: Vec<Value> = (0..2).map(|k| json!({"completion_id": turn["completions"][k]["id"], "tier": k})).collect();
    // As a duel in the chat does: no time at work is given.
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": "k"});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, &headers, Some(body)).await.expect(200);
    let report = server.get("/admin/api/quality?replicates=20").await.expect(200).json();
    assert_eq!(row(&report, &ann)["median_active_ms"], Value::Null);
    let me = server.call("GET", "/v1/label/me", &headers, None).await.expect(200).json();
    assert_eq!((&me["median_active_ms"], &me["median_active_ms_today"]), (&Value::Null, &Value::Null));
    let list = server.get("/admin/api/judgments").await.expect(200).json();
    assert_eq!(list["data"][0]["active_ms"], Value::Null);
}
