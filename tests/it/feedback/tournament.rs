//! Tournaments: versions meet until people's rankings make their order certain.

use instructd::domain::*;
use serde_json::{Value, json};

use super::queue::{draw, prompts};
use crate::api::client::{Server, version};
use crate::support::eventually::{LONG, eventually};

/// Registers versions beside `base`.
async fn versions(server: &Server, names: &[&str]) {
    for name in names {
        server.services.store.models().put(version(name, ModelKind::Policy, None)).await.unwrap();
    }
}

/// Ranks the next set by the place of each answer's author in `taste`; false when there is none.
async fn rank_one(server: &Server, taste: &[&str], key: usize) -> bool {
    let answer = server.get("/v1/label/next").await;
    if answer.status == 204 {
        return false;
    }
    let turn = answer.expect(200).json();
    let mut items = Vec::new();
    for completion in turn["completions"].as_array().unwrap() {
        let id = CompletionId::from(completion["id"].as_str().unwrap().to_owned());
        let author = server.services.store.completions().get(&id).await.unwrap().model_version_id.unwrap();
        let author = server.services.store.models().get(&author).await.unwrap().name;
        items.push(json!({"completion_id": id, "tier": taste.iter().position(|name| *name == author).unwrap()}));
    }
    let best = items.iter().map(|item| item["tier"].as_i64().unwrap()).min().unwrap();
    for item in &mut items {
        item["tier"] = json!(i64::from(item["tier"].as_i64().unwrap() > best));
    }
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 900,
        "wall_ms": 900, "idempotency_key": format!("t{key}")});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.post(&path, body).await.expect(200);
    true
}

#[tokio::test]
async fn a_tournament_draws_until_the_order_is_certain() {
    let server = Server::start().await;
    versions(&server, &["good", "bad"]).await;
    prompts(&server, 120, "a").await;
    let body = json!({"policy": "tournament", "count": 100, "n": 2, "versions": ["bad", "base", "good"],
        "certainty": 0.9, "max_tokens": 20, "seed": 3, "overlap": 1});
    let started = server.post("/admin/sets/draw", body.clone()).await.expect(202).json();
    server.post("/admin/sets/draw", body.clone()).await.expect(409);
    // Other draws may run beside it.
    assert_eq!(draw(&server, json!({"policy": "disagreement", "count": 1})).await["state"], "done");
    let path = format!("/admin/sets/draws/{}", started["id"].as_str().unwrap());
    let mut ranked = 0;
    let ended = eventually(LONG, "the end of the tournament", async || {
        while rank_one(&server, &["good", "base", "bad"], ranked).await {
            ranked += 1;
        }
        let draw = server.get(&path).await.expect(200).json();
        (draw["state"] != "running").then_some(draw)
    })
    .await;
    assert_eq!((&ended["state"], &ended["report"]["certain"]), (&json!("done"), &json!(true)), "{ended}");
    let order = ended["report"]["order"].as_array().unwrap();
    assert_eq!(order.iter().map(|p| p["name"].as_str().unwrap()).collect::<Vec<_>>(), ["good", "base", "bad"]);
    assert!(order[0]["better_than_next"].as_f64().unwrap() > 0.9 && order[2]["better_than_next"].is_null());
    assert!(order[0]["elo"].as_f64().unwrap() > order[2]["elo"].as_f64().unwrap() + 100.0);
    // Sixteen comparisons of neighbours are the least; the pair that is clear meets less.
    let made = ended["made"].as_i64().unwrap();
    assert!((16..60).contains(&made), "{made}");
    // Started again, it knows the order from the stored judgments, and draws nothing.
    let again = draw(&server, body).await;
    assert_eq!((&again["made"], &again["report"]["certain"]), (&json!(0), &json!(true)));
}

#[tokio::test]
async fn a_tournament_ends_without_certainty_when_its_sets_are_ranked_and_can_be_cancelled() {
    let server = Server::start().await;
    versions(&server, &["other"]).await;
    prompts(&server, 20, "a").await;
    let body = |count: usize| {
        json!({"policy": "tournament", "count": count, "n": 2, "versions": ["base", "other"], "max_tokens": 20,
               "overlap": 1})
    };
    let started = server.post("/admin/sets/draw", body(2)).await.expect(202).json();
    let path = format!("/admin/sets/draws/{}", started["id"].as_str().unwrap());
    let mut ranked = 0;
    let ended = eventually(LONG, "the end of the tournament", async || {
        ranked += usize::from(rank_one(&server, &["base", "other"], ranked).await);
        let draw = server.get(&path).await.expect(200).json();
        (draw["state"] != "running").then_some(draw)
    })
    .await;
    assert_eq!((&ended["state"], &ended["made"], ranked), (&json!("done"), &json!(2), 2));
    assert_eq!(ended["report"].get("certain"), None);

    let started = server.post("/admin/sets/draw", body(9)).await.expect(202).json();
    let path = format!("/admin/sets/draws/{}", started["id"].as_str().unwrap());
    server.post(&format!("{path}/cancel"), json!({})).await.expect(200);
    assert_eq!(server.get(&path).await.expect(200).json()["state"], "cancelled");
}

#[tokio::test]
async fn invalid_tournaments_are_refused_at_their_field() {
    let server = Server::start().await;
    versions(&server, &["other"]).await;
    let with = |more: Value| {
        let mut body = json!({"policy": "tournament", "count": 4, "n": 2, "versions": ["base", "other"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let many: Vec<String> = (0..9).map(|i| format!("v{i}")).collect();
    for (more, param) in [
        (json!({"versions": ["base"]}), "versions"),
        (json!({"versions": many}), "versions"),
        (json!({"versions": ["base", "other", "base"]}), "versions[2]"),
        (json!({"certainty": 1.0}), "certainty"),
        (json!({"n": 3}), "n"),
        (json!({"policy": "versus", "certainty": 0.9}), "certainty"),
        (json!({"policy": "random"}), "versions"),
    ] {
        let answer = server.post("/admin/sets/draw", with(more.clone())).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{more}");
    }
}
