//! Evidence before a promotion, the next step that looks at it, and jobs that people name and find.

use instructd::domain::*;
use instructd::service::evidence;
use instructd::store::Meeting;
use serde_json::{Value, json};

use super::client::{Server, version};
use crate::store::fixture;

/// A version that a (bare) job made.
async fn trained(server: &Server, name: &str, kind: ModelKind, parent: &ModelVersion, metrics: Value) -> ModelVersion {
    let recipe = if kind == ModelKind::Reward { "reward" } else { "sft" };
    let job = server.services.store.jobs().enqueue(fixture::job(recipe, None, 0)).await.unwrap();
    let id = job.id.to_string();
    server.post(&format!("/admin/jobs/{id}/cancel"), json!({})).await.expect(200);
    let made = ModelVersion {
        job_id: Some(id.as_str().into()),
        metrics,
        created: server.services.now(),
        ..version(name, kind, Some(parent))
    };
    server.services.store.models().put(made.clone()).await.unwrap();
    made
}

fn accuracy(value: f64, pairs: u64) -> Value {
    json!({"heldout": {"pairs": pairs, "accuracy": value}, "heldout_accuracy": value, "sets": {"heldout": pairs}})
}

async fn rank(server: &Server, from: usize, to: usize) {
    for i in from..to {
        let ranking = json!({"messages": [{"role": "user", "content": format!("q{i}")}],
            "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
        server.post("/v1/comparisons", ranking).await.expect(201);
    }
}

async fn next(server: &Server) -> (String, String) {
    let next = server.get("/admin/api/overview").await.expect(200).json()["next_action"].clone();
    (next["action"].as_str().unwrap().to_owned(), next["reason"].as_str().unwrap().to_owned())
}

fn says(found: &(String, String), action: &str, reason: &str) {
    assert_eq!((found.0.as_str(), found.1.as_str()), (action, reason));
}

#[tokio::test]
async fn a_reward_model_at_chance_is_not_offered() {
    let server = Server::start().await;
    let base = server.services.store.models().find("base").await.unwrap().unwrap();
    rank(&server, 0, 20).await;
    server
        .post("/v1/comparison-sets", json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]}))
        .await
        .expect(201);
    trained(&server, "coin", ModelKind::Reward, &base, accuracy(16.0 / 30.0, 30)).await;
    let found = server.get("/admin/models/coin/evidence").await.expect(200).json();
    assert_eq!(found["finding"], json!({"code": "chance", "worth_promoting": false}));
    assert_eq!((found["accuracy"]["n"].as_u64(), found["accuracy"]["chance"].as_f64()), (Some(30), Some(0.5)));
    assert!(found["accuracy"]["low"].as_f64().unwrap() < 0.5 && found["accuracy"]["high"].as_f64().unwrap() > 0.5);
    says(&next(&server).await, "rank", "chance");
    // Fresh rankings are a reason to train again; the coin itself is never offered.
    rank(&server, 20, 40).await;
    says(&next(&server).await, "train_reward", "retrain");
    trained(&server, "judge", ModelKind::Reward, &base, accuracy(0.8, 40)).await;
    says(&next(&server).await, "promote", "promote_reward");
    server.post("/admin/models/judge/promote", json!({})).await.expect(200);
    says(&next(&server).await, "train_ppo", "reward_ready");
    // One that is better than chance and not shown to be better than preferring the longer answer says so.
    let baseline = |low: f64| json!({"name": "longer", "accuracy": 0.7, "gain": 0.1, "low": low, "high": 0.3});
    for (name, low, code) in [("long", -0.1, "not_above_baseline"), ("real", 0.02, "better_than_chance")] {
        let mut metrics = accuracy(0.8, 40);
        metrics["baselines"] = json!([baseline(low)]);
        trained(&server, name, ModelKind::Reward, &base, metrics).await;
        let found = server.get(&format!("/admin/models/{name}/evidence")).await.expect(200).json();
        assert_eq!(found["finding"], json!({"code": code, "worth_promoting": true}));
        assert_eq!(found["baselines"], json!([baseline(low)]));
    }
    // One without held-out pairs has nothing to show.
    trained(&server, "blind", ModelKind::Reward, &base, json!({"heldout": null})).await;
    says(&next(&server).await, "rank", "unmeasured");
}

#[tokio::test]
async fn a_rolled_back_policy_is_not_offered_again_and_a_promoted_one_is_ranked_first() {
    let server = Server::start().await;
    let store = &server.services.store;
    let base = store.models().find("base").await.unwrap().unwrap();
    rank(&server, 0, 20).await;
    trained(&server, "judge", ModelKind::Reward, &base, accuracy(0.8, 40)).await;
    server.post("/admin/models/judge/promote", json!({})).await.expect(200);
    let rate = json!({"share": 0.7, "low": 0.5, "high": 0.84, "prompts": 32});
    let rose = json!({"first": {"reward": 0.1, "kl": 0.0}, "last": {"reward": 0.6, "kl": 2.5},
                      "win_rates": {"reward": rate, "gold": null}});
    let better = trained(&server, "better", ModelKind::Policy, &base, rose).await;
    says(&next(&server).await, "promote", "promote_policy");
    let found = server.get("/admin/models/better/evidence").await.expect(200).json();
    assert_eq!(found["reward"]["before"]["value"], 0.1);
    assert_eq!(found["reward"]["after"]["value"], 0.6);
    assert_eq!(found["kl"]["value"], 2.5);
    assert_eq!(found["reward_win_rate"], json!({"value": 0.7, "low": 0.5, "high": 0.84, "n": 32}));
    assert_eq!(found["gold_win_rate"], Value::Null);
    assert_eq!(found["against"]["name"], "base");

    server.post("/admin/models/better/promote", json!({})).await.expect(200);
    let models = server.get("/admin/models").await.expect(200).json();
    assert_eq!(models["previous"]["policy"], base.id.as_str());
    says(&next(&server).await, "draw", "draw_new");
    server.post("/admin/models/rollback", json!({})).await.expect(200);
    let models = server.get("/admin/models").await.expect(200).json();
    assert_eq!(models["rolled_back"], json!([better.id.as_str()]));
    assert_eq!(models["previous"]["policy"], Value::Null);
    says(&next(&server).await, "draw", "rolled_back");
    let found = server.get("/admin/models/better/evidence").await.expect(200).json();
    assert_eq!(found["finding"]["code"], "rolled_back");
    assert!(found["rolled_back"].as_i64().is_some());
    // Promoted again by a person's own will, it is no longer a rolled-back one.
    server.post("/admin/models/better/promote", json!({})).await.expect(200);
    assert_eq!(server.get("/admin/models").await.json()["rolled_back"], json!([]));
}

#[tokio::test]
async fn a_policy_whose_reward_fell_or_that_people_do_not_like_is_not_offered() {
    let server = Server::start().await;
    let store = &server.services.store;
    let base = store.models().find("base").await.unwrap().unwrap();
    rank(&server, 0, 20).await;
    trained(&server, "judge", ModelKind::Reward, &base, accuracy(0.8, 40)).await;
    server.post("/admin/models/judge/promote", json!({})).await.expect(200);
    let fell = json!({"first": {"reward": 0.4, "kl": 0.0}, "last": {"reward": 0.1, "kl": 2.5}});
    trained(&server, "fallen", ModelKind::Policy, &base, fell).await;
    says(&next(&server).await, "draw", "not_better");
    let rose = json!({"first": {"reward": 0.1, "kl": 0.0}, "last": {"reward": 0.6, "kl": 2.5}});
    let loser = trained(&server, "loser", ModelKind::Policy, &base, rose).await;
    says(&next(&server).await, "promote", "promote_policy");
    // Ten prompts that both answered; people take the base every time.
    for i in 0..10 {
        let prompt = json!({"messages": [{"role": "user", "content": format!("versus {i}")}]});
        let set = json!({"messages": prompt["messages"], "completions": [{"text": "x"}, {"text": "y"}]});
        let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
        let id: SetId = set["id"].as_str().unwrap().into();
        let set = store.sets().get(&id).await.unwrap();
        let mut ids = Vec::new();
        for (version, text) in [(&loser.id, "worse"), (&base.id, "good")] {
            let id = CompletionId::new();
            let of = store.completions().get(&set.completion_ids[0]).await.unwrap();
            store
                .completions()
                .put(vec![Completion {
                    id: id.clone(),
                    model_version_id: Some(version.clone()),
                    origin: CompletionOrigin::Model,
                    text: text.into(),
                    request_id: None,
                    ..of
                }])
                .await
                .unwrap();
            ids.push(id);
        }
        let both = ComparisonSet { id: SetId::new(), completion_ids: ids.clone(), ..set };
        store.sets().put(both.clone()).await.unwrap();
        let ranking = json!({"set_id": both.id, "completions": [
            {"completion_id": ids[0], "tier": 1}, {"completion_id": ids[1], "tier": 0}]});
        server.post("/v1/comparisons", ranking).await.expect(201);
    }
    let found = server.get("/admin/models/loser/evidence").await.expect(200).json();
    assert_eq!(found["win_rate"]["value"], 0.0);
    assert_eq!(found["win_rate"]["n"], 10);
    assert_eq!(found["finding"]["code"], "not_preferred");
    let samples = found["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 10);
    assert_eq!((&samples[0]["ours"]["text"], &samples[0]["theirs"]["text"]), (&json!("worse"), &json!("good")));
    says(&next(&server).await, "rank", "not_better");
}

#[test]
fn intervals_count_what_is_independent() {
    // 10 rankings of 4 have 60 pairs, which say 30 things.
    let wide =
        evidence::accuracy(&json!({"heldout": {"pairs": 60, "accuracy": 0.7}, "sets": {"heldout": 10}})).unwrap();
    let pairs =
        evidence::accuracy(&json!({"heldout": {"pairs": 60, "accuracy": 0.7}, "sets": {"heldout": 60}})).unwrap();
    assert_eq!((wide.figure.n, pairs.figure.n), (60, 60));
    assert!(wide.figure.low < pairs.figure.low && wide.figure.high > pairs.figure.high);
    assert!(evidence::accuracy(&json!({"heldout": {"pairs": 0, "accuracy": 0.0}})).is_none());
    assert!(evidence::accuracy(&json!({})).is_none());
    // A prompt that was ranked five times is one prompt.
    let meeting =
        |prompt: &str, a, b| Meeting { prompt_id: prompt.into(), judgment_id: JudgmentId::new(), tier_a: a, tier_b: b };
    let mut all = vec![meeting("q", 1, 0), meeting("r", 0, 0)];
    all.extend((0..5).map(|_| meeting("p", 0, 1)));
    let rate = evidence::win_rate(&all).unwrap();
    assert_eq!((rate.value, rate.n), (0.5, 3));
    assert!(evidence::win_rate(&[]).is_none());
}

#[tokio::test]
async fn jobs_have_names_and_are_found_by_them() {
    let server = Server::start().await;
    server.demonstrate().await;
    rank(&server, 0, 1).await;
    let body = json!({"kind": "sft", "args": {"epochs": 2}, "name": " Short answers ", "tags": ["a_b", "a_b", "50%"]});
    let job = server.post("/admin/jobs", body).await.expect(201).json();
    assert_eq!(
        (&job["name"], &job["tags"], &job["note"]),
        (&json!("Short answers"), &json!(["a_b", "50%"]), &Value::Null)
    );
    assert_eq!(job["author"], job["author"].as_str().unwrap());
    let path = format!("/admin/jobs/{}", job["id"].as_str().unwrap());
    let other = server.post("/admin/jobs", json!({"kind": "dpo", "args": {}})).await.expect(201).json();

    let note = "Does a second epoch help?";
    let changed = server.post(&path, json!({"note": note})).await.expect(200).json();
    assert_eq!((&changed["name"], &changed["note"]), (&json!("Short answers"), &json!(note)));
    assert_eq!(server.get(&path).await.json()["note"], note);
    for (query, found) in [
        ("q=SHORT", vec![&job]),
        ("q=second%20epoch", vec![&job]),
        ("q=a_b", vec![&job]),
        ("q=a%25b", vec![]),
        ("q=aub", vec![]), // ids hold no "u", so that none fits by chance
        ("q=50%25", vec![&job]),
        ("kind=dpo", vec![&other]),
        ("kind=dpo&q=short", vec![]),
        ("q=", vec![&other, &job]),
        ("limit=1", vec![&other]),
    ] {
        let answer = server.get(&format!("/admin/jobs?{query}")).await.expect(200).json();
        let ids: Vec<&Value> = answer["data"].as_array().unwrap().iter().map(|j| &j["id"]).collect();
        assert_eq!(ids, found.iter().map(|j| &j["id"]).collect::<Vec<_>>(), "{query}");
    }
    let cleared = server.post(&path, json!({"name": "", "tags": []})).await.expect(200).json();
    assert_eq!((&cleared["name"], &cleared["tags"], &cleared["note"]), (&Value::Null, &json!([]), &json!(note)));
    for (body, param) in [
        (json!({"name": "n".repeat(121)}), "name"),
        (json!({"note": "n".repeat(4001)}), "note"),
        (json!({"tags": ["ok", " "]}), "tags[1]"),
        (json!({"tags": (0..21).map(|i| i.to_string()).collect::<Vec<_>>()}), "tags"),
        (json!({"author": "me"}), "author"),
    ] {
        assert_eq!(server.post(&path, body).await.expect(400).param().as_deref(), Some(param));
    }
    server.post("/admin/jobs/nope", json!({"name": "x"})).await.expect(404);
    assert_eq!(server.get(&path).await.json()["note"], note, "a refused change changes nothing");
}
