//! From a set to the runs that have learned from its judgments.

use instructd::domain::*;
use serde_json::{Value, json};

use super::api::labeler;
use crate::api::client::Server;
use crate::store::fixture::job;

/// A run that has succeeded, with the args and the result of one.
async fn ended(server: &Server, kind: &str, args: Value, result: Value) -> Job {
    let store = &server.services.store;
    let queued = store.jobs().enqueue(Job { args, ..job(kind, None, 0) }).await.unwrap();
    let (_, fence) = store.jobs().claim("me", 60, &[], 3).await.unwrap().unwrap();
    store.jobs().finish(&fence, JobState::Succeeded, Some(result), None).await.unwrap();
    queued
}

#[tokio::test]
async fn a_set_names_the_runs_that_learned_from_its_judgments() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "q"}], "overlap": 2, "completions": ["a", "b"]});
    let set = server.post("/v1/comparison-sets", body.clone()).await.expect(201).json();
    let other = server.post("/v1/comparison-sets", body).await.expect(201).json();
    let id = set["id"].as_str().unwrap();
    let path = format!("/v1/review/sets/{id}/runs");
    assert_eq!(server.get(&path).await.expect(200).json()["data"], json!([]));

    let (ann, bearer) = labeler(&server, "ann").await;
    rank(&server, &bearer, id).await;
    let early = dataset(&server, json!({})).await;
    let first = ended(&server, "reward", json!({}), result("rm", &early)).await;
    let (ben, bearer) = labeler(&server, "ben").await;
    rank(&server, &bearer, id).await;
    let late = dataset(&server, json!({})).await;
    let second = ended(&server, "dpo", json!({}), result("policy", &late)).await;
    let through = ended(&server, "ppo", json!({"reward_model": "rm"}), json!({"model": "better"})).await;
    // These have learned nothing from it: nobody's rankings, another reward model, and only Ben's.
    ended(&server, "ppo", json!({"reward_model": "another"}), json!({"model": "x"})).await;
    let of_ben = dataset(&server, json!({"labeler_id": ben})).await;
    let third = ended(&server, "reward", json!({}), result("rm-2", &of_ben)).await;

    let runs = server.get(&path).await.expect(200).json()["data"].clone();
    let of = |run: &Value| {
        let labelers =
            run["judgments"].as_array().unwrap().iter().map(|j| j["labeler_id"].as_str().unwrap().to_owned());
        (run["job_id"].as_str().unwrap().to_owned(), run["through"].clone(), labelers.collect::<Vec<_>>())
    };
    let found: Vec<_> = runs.as_array().unwrap().iter().map(of).collect();
    let wanted = [
        (third.id.to_string(), Value::Null, vec![ben.clone()]),
        (second.id.to_string(), Value::Null, vec![ann.clone(), ben.clone()]),
        (first.id.to_string(), Value::Null, vec![ann.clone()]),
        (through.id.to_string(), json!("rm"), vec![ann.clone()]),
    ];
    assert_eq!(found, wanted, "{runs:#}");
    assert_eq!((&runs[1]["kind"], &runs[1]["model"]), (&json!("dpo"), &json!("policy")));
    let path = format!("/v1/review/sets/{}/runs", other["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.expect(200).json()["data"], json!([]), "nobody has ranked it");
    server.get("/v1/review/sets/nope/runs").await.expect(404);
}

fn result(model: &str, dataset: &str) -> Value {
    json!({"model": model, "metrics": {}, "datasets": {"comparisons": {"id": dataset}}})
}

async fn dataset(server: &Server, filter: Value) -> String {
    let made = server.post("/admin/datasets", json!({"filter": filter})).await.expect(201).json();
    made["id"].as_str().unwrap().to_owned()
}

async fn rank(server: &Server, bearer: &str, set: &str) {
    let headers = [("authorization", bearer)];
    let turn = server.call("GET", &format!("/v1/label/next?set_id={set}"), &headers, None).await.expect(200).json();
    let items = [0, 1].map(|i| json!({"completion_id": turn["completions"][i]["id"], "tier": i}));
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 2000,
                      "idempotency_key": format!("{set} {bearer}")});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, &headers, Some(body)).await.expect(200);
}
