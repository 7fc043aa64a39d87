//! Draws in bulk, known answers with their verdict, quotas, the own page, settling.

use instructd::domain::*;
use serde_json::{Value, json};

use crate::api::client::{Answer, Server, version};
use crate::support::eventually::{LONG, eventually};

pub(super) async fn prompts(server: &Server, n: usize, tag: &str) {
    for i in 0..n {
        let body = json!({"messages": [{"role": "user", "content": format!("{tag} {i}")}], "tags": [tag]});
        server.post("/v1/prompts", body).await.expect(201);
    }
}

/// Starts a draw and follows it to its end.
pub async fn draw(server: &Server, body: Value) -> Value {
    let started = server.post("/admin/sets/draw", body).await.expect(202).json();
    let path = format!("/admin/sets/draws/{}", started["id"].as_str().unwrap());
    eventually(LONG, "the end of the draw", async || {
        let draw = server.get(&path).await.expect(200).json();
        (draw["state"] != "running").then_some(draw)
    })
    .await
}

async fn sets(server: &Server) -> Vec<ComparisonSet> {
    let page = server.get("/admin/sets?limit=500").await.expect(200).json();
    serde_json::from_value(page["data"].clone()).unwrap()
}

#[tokio::test]
async fn sets_are_drawn_for_the_prompts_that_have_none() {
    let server = Server::start().await;
    prompts(&server, 5, "a").await;
    prompts(&server, 2, "b").await;
    let body = json!({"policy": "random", "count": 3, "n": 3, "overlap": 2, "max_tokens": 30, "seed": 5,
                      "prompts": {"tag": "a"}});
    let done = draw(&server, body.clone()).await;
    assert_eq!((&done["state"], &done["made"], &done["error"]), (&json!("done"), &json!(3), &Value::Null));
    let made = sets(&server).await;
    assert_eq!(made.len(), 3);
    for set in &made {
        assert_eq!((set.selection_policy.as_str(), set.target_overlap, set.completion_ids.len()), ("random", 2, 3));
        let prompt = server.services.store.prompts().get(&set.prompt_id).await.unwrap();
        assert_eq!(prompt.tags, ["a"]);
        for id in &set.completion_ids {
            assert!(server.services.store.completions().get(id).await.unwrap().model_version_id.is_some());
        }
    }
    // The other two prompts are left, and then none.
    assert_eq!(draw(&server, body.clone()).await["made"], 2);
    assert_eq!(draw(&server, body).await["made"], 0);
    let mut prompts: Vec<_> = sets(&server).await.into_iter().map(|s| s.prompt_id).collect();
    prompts.sort();
    prompts.dedup();
    assert_eq!(prompts.len(), 5, "one set a prompt");
}

#[tokio::test]
async fn versions_meet_each_other() {
    let server = Server::start().await;
    let other = version("other", ModelKind::Policy, None);
    server.services.store.models().put(other.clone()).await.unwrap();
    prompts(&server, 2, "a").await;
    let body = json!({"policy": "versus", "count": 2, "n": 2, "versions": ["base", "other"], "max_tokens": 40});
    assert_eq!(draw(&server, body).await["made"], 2);
    for set in sets(&server).await {
        let mut authors = Vec::new();
        for id in &set.completion_ids {
            let version = server.services.store.completions().get(id).await.unwrap().model_version_id.unwrap();
            authors.push(server.services.store.models().get(&version).await.unwrap().name);
        }
        assert_eq!((authors, set.selection_policy.as_str()), (vec!["base".to_owned(), "other".to_owned()], "versus"));
    }
    for (body, param) in [
        (json!({"policy": "versus", "count": 1}), "versions"),
        (json!({"policy": "versus", "count": 1, "versions": ["base", "base"]}), "versions[1]"),
        (json!({"policy": "versus", "count": 1, "versions": ["base", "other"], "n": 3}), "n"),
        (json!({"policy": "random", "count": 0}), "count"),
        (json!({"policy": "random", "count": 1, "n": 10}), "n"),
        (json!({"policy": "random", "count": 1, "colour": "red"}), "colour"),
        (json!({"policy": "best", "count": 1}), "policy"),
    ] {
        assert_eq!(
            server.post("/admin/sets/draw", body.clone()).await.expect(400).param().as_deref(),
            Some(param),
            "{body}"
        );
    }
    let unknown = json!({"policy": "versus", "count": 1, "versions": ["base", "nobody"]});
    assert_eq!(server.post("/admin/sets/draw", unknown).await.expect(404).param().as_deref(), Some("versions[1]"));
}

#[tokio::test]
async fn the_most_uncertain_sets_are_kept_and_handed_out_first() {
    let server = Server::start().await;
    let body = json!({"policy": "uncertainty", "count": 2, "candidates": 3, "max_tokens": 60, "seed": 1});
    server.post("/admin/sets/draw", body.clone()).await.expect(409); // no reward model
    let reward = version("judge", ModelKind::Reward, None);
    server.services.store.models().put(reward.clone()).await.unwrap();
    server.services.store.models().activate(&reward.id, 1).await.unwrap();
    prompts(&server, 9, "a").await;
    let done = draw(&server, body).await;
    assert_eq!((&done["made"], &done["looked_at"]), (&json!(2), &json!(6)));
    let made = sets(&server).await;
    // What was looked at and left scored no higher than what was kept.
    let kept: Vec<f64> = made.iter().map(|s| s.selection_score.unwrap()).collect();
    let mut scored = 0;
    for set in &made {
        for id in &set.completion_ids {
            scored += usize::from(server.services.store.completions().get(id).await.unwrap().reward.is_some());
        }
    }
    assert_eq!(scored, 4);
    assert!(kept.iter().all(|k| (0.0..=1.0).contains(k)));
    let first = server.get("/v1/label/next").await.expect(200).json();
    let best = made.iter().max_by(|a, b| a.selection_score.unwrap().total_cmp(&b.selection_score.unwrap())).unwrap();
    assert_eq!(first["set_id"], json!(best.id));
}

#[tokio::test]
async fn stored_completions_become_sets_and_draws_can_be_cancelled() {
    let server = Server::with(|c| c.privacy.learn_from_requests = true, Default::default()).await;
    for i in 0..3 {
        // A chat with two answers stores two completions and makes no set.
        let body = json!({"model": "base", "n": 2, "max_tokens": 30, "seed": i,
                          "messages": [{"role": "user", "content": format!("question {i}")}]});
        server.post("/v1/chat/completions", body).await.expect(200);
    }
    assert_eq!(draw(&server, json!({"policy": "stored", "count": 10})).await["made"], 3);
    assert!(sets(&server).await.iter().all(|s| s.selection_policy == "stored" && s.completion_ids.len() == 2));

    let slow = crate::support::mock::MockOptions {
        delay_per_token: std::time::Duration::from_millis(20),
        ..Default::default()
    };
    let server = Server::with(|_| {}, slow).await;
    prompts(&server, 20, "a").await;
    let body = json!({"policy": "random", "count": 20, "max_tokens": 60});
    let started = server.post("/admin/sets/draw", body.clone()).await.expect(202).json();
    server.post("/admin/sets/draw", body).await.expect(409); // one at a time
    let path = format!("/admin/sets/draws/{}", started["id"].as_str().unwrap());
    let cancelled = server.post(&format!("{path}/cancel"), json!({})).await.expect(200).json();
    assert_eq!(cancelled["state"], "cancelled");
    server.post(&format!("{path}/cancel"), json!({})).await.expect(409);
    assert!(cancelled["made"].as_i64().unwrap() < 20);
}

pub(super) async fn set_of(server: &Server, question: &str, texts: &[&str], overlap: i64) -> Value {
    let body = json!({"messages": [{"role": "user", "content": question}], "completions": texts, "overlap": overlap});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

/// The completion ids of a set by text.
fn tiers(set: &Value, order: &[&str]) -> Value {
    let completions = set["completions"].as_array().unwrap();
    let tier = |text: &str| order.iter().position(|t| *t == text).unwrap();
    completions.iter().map(|c| json!({"completion_id": c["id"], "tier": tier(c["text"].as_str().unwrap())})).collect()
}

pub(super) async fn labeler(server: &Server, name: &str) -> String {
    let made = server.post("/admin/keys", json!({"name": name, "scopes": ["feedback"]})).await.expect(201).json();
    format!("Bearer {}", made["key"].as_str().unwrap())
}

async fn next(server: &Server, bearer: &str) -> Answer {
    server.call("GET", "/v1/label/next", &[("authorization", bearer)], None).await
}

pub(super) async fn submit(server: &Server, bearer: &str, turn: &Value, order: &[&str]) -> Value {
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(turn, order),
                      "active_ms": 900, "idempotency_key": format!("{bearer}{}", turn["set_id"])});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, &[("authorization", bearer)], Some(body)).await.expect(200).json()
}

#[tokio::test]
async fn new_labelers_get_calibration_sets_first_with_feedback() {
    let server = Server::with(|c| c.labeling.onboarding_sets = 2, Default::default()).await;
    let plain = set_of(&server, "plain", &["x", "y"], 1).await;
    for i in 0..2 {
        let set = set_of(&server, &format!("known {i}"), &["good", "fair", "bad"], 1).await;
        let path = format!("/admin/sets/{}/known-answer", set["id"].as_str().unwrap());
        let body = json!({"kind": "calibration", "tiers": tiers(&set, &["good", "fair", "bad"]),
                          "explanation": "Good beats *fair*."});
        server.post(&path, body).await.expect(204);
    }
    let ada = labeler(&server, "ada").await;
    for (done, order, met) in [(0, ["good", "fair", "bad"], 1.0), (1, ["good", "bad", "fair"], 2.0 / 3.0)] {
        let turn = next(&server, &ada).await.expect(200).json();
        assert_eq!((&turn["kind"], &turn["onboarding"]), (&json!("calibration"), &json!({"done": done, "needed": 2})));
        let stored = submit(&server, &ada, &turn, &order).await;
        let verdict = &stored["verdict"];
        assert!((verdict["met"].as_f64().unwrap() - met).abs() < 1e-12, "{verdict}");
        assert_eq!(verdict["explanation"], "Good beats *fair*.");
        assert_eq!(verdict["expected"].as_array().unwrap().len(), 3);
    }
    let turn = next(&server, &ada).await.expect(200).json();
    assert_eq!((&turn["kind"], &turn["onboarding"], &turn["set_id"]), (&json!("normal"), &Value::Null, &plain["id"]));
    assert_eq!(submit(&server, &ada, &turn, &["x", "y"]).await["verdict"], Value::Null);
    let me = server.call("GET", "/v1/label/me", &[("authorization", &ada)], None).await.expect(200).json();
    assert_eq!((&me["done_today"], &me["done_total"], &me["quota"]), (&json!(3), &json!(3), &Value::Null));
    assert!((me["calibration_accuracy"]["value"].as_f64().unwrap() - 5.0 / 6.0).abs() < 1e-9, "{me}");
    assert_eq!(me["days"].as_array().unwrap().last().unwrap()["judgments"], 3);
    assert_eq!((&me["median_active_ms"], &me["tie_rate"]["value"]), (&json!(900.0), &json!(0.0)));
}

#[tokio::test]
async fn gold_is_mixed_in_unseen_and_measured() {
    let server =
        Server::with(|c| (c.labeling.gold_share, c.labeling.calibration_share) = (1.0, 0.0), Default::default()).await;
    let gold = set_of(&server, "known", &["good", "bad"], 1).await;
    let path = format!("/admin/sets/{}/known-answer", gold["id"].as_str().unwrap());
    let bad = json!({"kind": "gold", "tiers": [{"completion_id": gold["completions"][0]["id"], "tier": 0}]});
    assert_eq!(server.post(&path, bad).await.expect(400).param().as_deref(), Some("tiers"));
    let ties: Value =
        gold["completions"].as_array().unwrap().iter().map(|c| json!({"completion_id": c["id"], "tier": 1})).collect();
    server.post(&path, json!({"kind": "gold", "tiers": ties})).await.expect(400);
    server.post(&path, json!({"kind": "normal", "tiers": tiers(&gold, &["good", "bad"])})).await.expect(400);
    server.post(&path, json!({"kind": "gold", "tiers": tiers(&gold, &["good", "bad"])})).await.expect(204);
    set_of(&server, "plain", &["good", "bad"], 5).await;
    for (name, order) in [("ada", ["good", "bad"]), ("bob", ["bad", "good"])] {
        let bearer = labeler(&server, name).await;
        let turn = next(&server, &bearer).await.expect(200).json();
        assert_eq!((&turn["set_id"], &turn["kind"]), (&gold["id"], &json!("normal")), "gold looks like any other");
        assert_eq!(submit(&server, &bearer, &turn, &order).await["verdict"], Value::Null);
    }
    let report = server.get("/admin/api/quality?kind=gold&replicates=10").await.expect(200).json();
    let accuracy = |name: &str| {
        let row = report["labelers"].as_array().unwrap().iter().find(|l| l["name"] == name).unwrap();
        row["gold_accuracy"]["value"].as_f64().unwrap()
    };
    assert_eq!((accuracy("ada"), accuracy("bob")), (1.0, 0.0));
    // Known answers are for measuring people, not for training.
    assert_eq!(server.get("/admin/export?format=comparisons").await.expect(200).text, "");
}

#[tokio::test]
async fn a_quota_is_distinguished_from_an_empty_queue() {
    let server = Server::with(|c| c.labeling.daily_quota = 1, Default::default()).await;
    let ada = labeler(&server, "ada").await;
    let empty = next(&server, &ada).await.expect(204);
    assert_eq!(empty.headers["x-queue"], "empty");
    for i in 0..3 {
        set_of(&server, &format!("q{i}"), &["x", "y"], 1).await;
    }
    let turn = next(&server, &ada).await.expect(200).json();
    submit(&server, &ada, &turn, &["x", "y"]).await;
    assert_eq!(next(&server, &ada).await.expect(204).headers["x-queue"], "quota");
    let me = server.call("GET", "/v1/label/me", &[("authorization", &ada)], None).await.expect(200).json();
    assert_eq!((&me["quota"], &me["quota_left"]), (&json!(1), &json!(0)));
    // A quota of one's own wins; null returns to the configured one.
    let path = format!("/admin/labelers/{}", me["labeler_id"].as_str().unwrap());
    assert_eq!(server.post(&path, json!({"daily_quota": 2})).await.expect(200).json()["daily_quota"], 2);
    let turn = next(&server, &ada).await.expect(200).json();
    submit(&server, &ada, &turn, &["x", "y"]).await;
    server.post(&path, json!({"daily_quota": null})).await.expect(200);
    assert_eq!(next(&server, &ada).await.expect(204).headers["x-queue"], "quota");
    assert_eq!(
        server.post(&path, json!({"daily_quota": -1})).await.expect(400).param().as_deref(),
        Some("daily_quota")
    );
}

#[tokio::test]
async fn reviewers_settle_what_labelers_disagree_about() {
    let server = Server::start().await;
    let set = set_of(&server, "q", &["x", "y"], 2).await;
    let id = set["id"].as_str().unwrap();
    for (name, order) in [("ada", ["x", "y"]), ("bob", ["y", "x"])] {
        let bearer = labeler(&server, name).await;
        let turn = next(&server, &bearer).await.expect(200).json();
        submit(&server, &bearer, &turn, &order).await;
    }
    let invite = server.post("/admin/invites", json!({"role": "reviewer"})).await.expect(201).json();
    let login = server.open_post("/session", json!({"invite": invite["token"], "name": "Rui"})).await.expect(200);
    let cookie = login.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let rui = [("cookie", cookie.as_str())];
    let consensus = server.call("GET", "/admin/api/quality/consensus", &rui, None).await.expect(200).json();
    assert_eq!((&consensus["data"][0]["set_id"], &consensus["data"][0]["disagreement"]), (&json!(id), &json!(1.0)));
    let seen = server.call("GET", &format!("/v1/review/sets/{id}"), &rui, None).await.expect(200).json();
    assert_eq!((seen["judgments"].as_array().unwrap().len(), &seen["settled_by"]), (2, &Value::Null));
    let mut names: Vec<_> =
        seen["judgments"].as_array().unwrap().iter().map(|j| j["labeler"]["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [Some("ada"), Some("bob")]);
    // Not theirs to administer.
    server.call("GET", "/admin/labelers", &rui, None).await.expect(403);

    let word =
        |order: &[&str], key: &str| json!({"outcome": "ranked", "items": tiers(&set, order), "idempotency_key": key});
    let path = format!("/v1/review/sets/{id}/settle");
    let settled = server.call("POST", &path, &rui, Some(word(&["y", "x"], "s1"))).await.expect(200).json();
    assert_eq!(settled["judgment"]["revision"], 1);
    let again = server.call("POST", &path, &rui, Some(word(&["y", "x"], "s1"))).await.expect(200).json();
    assert_eq!(again["replayed"], true);
    let export = server.get("/admin/export?format=trl").await.expect(200).text;
    let line: Value = serde_json::from_str(export.trim()).unwrap();
    assert_eq!(line["chosen"][0]["content"], "y", "only the settling word: {export}");
    // Settled anew by a revision.
    let revised = server.call("POST", &path, &rui, Some(word(&["x", "y"], "s2"))).await.expect(200).json();
    assert_eq!(revised["judgment"]["revision"], 2);
    let export = server.get("/admin/export?format=trl").await.expect(200).text;
    assert_eq!(serde_json::from_str::<Value>(export.trim()).unwrap()["chosen"][0]["content"], "x");
    let skip = json!({"outcome": "skip", "idempotency_key": "s3"});
    assert_eq!(server.call("POST", &path, &rui, Some(skip)).await.expect(400).param().as_deref(), Some("outcome"));
    // Settled sets are not asked about again.
    assert_eq!(draw(&server, json!({"policy": "disagreement", "count": 5})).await["made"], 0);
}

#[tokio::test]
async fn disputed_sets_are_asked_about_again() {
    let server = Server::start().await;
    for (question, second) in [("agreed", ["x", "y"]), ("disputed", ["y", "x"])] {
        let set = set_of(&server, question, &["x", "y"], 2).await;
        for (name, order) in [("ada", ["x", "y"]), ("bob", second)] {
            let bearer = labeler(&server, name).await;
            let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
            let turn = server.call("GET", &path, &[("authorization", &bearer)], None).await.expect(200).json();
            submit(&server, &bearer, &turn, &order).await;
        }
    }
    assert_eq!(draw(&server, json!({"policy": "disagreement", "count": 5})).await["made"], 1);
    let open: Vec<_> = sets(&server).await.into_iter().filter(|s| s.status == SetStatus::Open).collect();
    assert_eq!(open.len(), 1);
    assert_eq!(
        (open[0].target_overlap, open[0].selection_score, open[0].selection_policy.as_str()),
        (3, Some(1.0), "disagreement")
    );
    let cy = labeler(&server, "cy").await;
    let turn = next(&server, &cy).await.expect(200).json();
    assert_eq!(turn["prompt"]["messages"][0]["content"], "disputed");
    let path = format!("/admin/sets/{}/retire", open[0].id);
    server.post(&path, json!({})).await.expect(204);
    assert!(sets(&server).await.iter().any(|s| s.status == SetStatus::Retired));
}
