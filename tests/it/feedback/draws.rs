//! A draw says what it left out and why; its answers differ from each other and are drawn as configured.

use instructd::domain::*;
use serde_json::{Value, json};

use super::queue::{draw, labeler, prompts, set_of, submit};
use crate::api::client::{Server, version};

#[tokio::test]
async fn a_draw_that_makes_nothing_says_why() {
    let server = Server::with(|c| c.privacy.learn_from_requests = true, Default::default()).await;
    prompts(&server, 3, "a").await;
    prompts(&server, 2, "b").await;
    server.post("/v1/completions", json!({"prompt": "raw text", "max_tokens": 4})).await.expect(200);
    let body = json!({"policy": "random", "count": 9, "max_tokens": 30, "prompts": {"tag": "a"}});
    let done = draw(&server, body.clone()).await;
    let report = &done["report"];
    assert_eq!((&done["made"], &report["found"], &report["has_set"]), (&json!(3), &json!(3), &json!(0)), "{done}");
    assert_eq!((&report["answers"], &report["max_tokens"]), (&json!(6), &json!(30)));
    // Every prompt with the tag has its set now.
    let done = draw(&server, body).await;
    assert_eq!((&done["state"], &done["made"]), (&json!("done"), &json!(0)));
    assert_eq!((&done["report"]["found"], &done["report"]["has_set"]), (&json!(3), &json!(3)));
    // The cure.
    let again = json!({"policy": "random", "count": 9, "max_tokens": 30, "prompts": {"tag": "a", "with_sets": true}});
    let done = draw(&server, again).await;
    assert_eq!((&done["made"], &done["report"]["has_set"]), (&json!(3), &json!(0)));
    // A tag that nothing has, raw text, prompts without stored answers: each its own reason, each prompt counted once.
    let unknown = json!({"policy": "random", "count": 9, "prompts": {"tag": "none"}});
    let refused = server.post("/admin/sets/draw", unknown).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("prompts.tag"), "{}", refused.text);
    let report = draw(&server, json!({"policy": "stored", "count": 9})).await["report"].clone();
    let of = |name: &str| report[name].as_i64().unwrap();
    assert_eq!((of("found"), of("raw_text"), of("has_set"), of("few_answers")), (6, 1, 3, 2), "{report}");
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_counted() {
    let server = Server::start().await;
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(9000)}]});
    server.post("/v1/prompts", long).await.expect(201);
    let done = draw(&server, json!({"policy": "random", "count": 1})).await;
    assert_eq!((&done["made"], &done["report"]["too_long"]), (&json!(0), &json!(1)), "{done}");
}

#[tokio::test]
async fn equal_answers_are_drawn_again_and_never_make_a_set() {
    let server = Server::start().await;
    prompts(&server, 6, "a").await;
    // Greedy answers are all the same text: refused where it is asked for, told where it is configured.
    let greedy = json!({"policy": "random", "count": 6, "n": 2, "temperature": 0});
    let refused = server.post("/admin/sets/draw", greedy).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("temperature"));
    let setting = |value: f64| json!({"name": "labeling.temperature", "value": value});
    server.post("/admin/settings", setting(0.0)).await.expect(204);
    let done = draw(&server, json!({"policy": "random", "count": 6, "n": 2})).await;
    assert_eq!((&done["made"], &done["report"]["equal_answers"]), (&json!(0), &json!(6)), "{done}");
    assert_eq!(done["report"]["redrawn"], 0, "the most likely text would come out the same again");
    server.post("/admin/settings", setting(0.7)).await.expect(204);
    // Of one letter each: some are equal at first.
    let done = draw(&server, json!({"policy": "random", "count": 6, "n": 4, "max_tokens": 1, "seed": 3})).await;
    let report = &done["report"];
    assert!(report["redrawn"].as_i64().unwrap() > 0, "{done}");
    assert_eq!(report["cut_off"], report["answers"], "one token is never a whole answer");
    let sets = server.get("/admin/sets?limit=50").await.expect(200).json();
    let mut smaller = 0;
    for set in sets["data"].as_array().unwrap() {
        let ids = set["completion_ids"].as_array().unwrap();
        let mut texts = Vec::new();
        for id in ids {
            texts.push(server.services.store.completions().get(&id.as_str().unwrap().into()).await.unwrap().text);
        }
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), ids.len(), "equal answers in a set");
        assert_eq!(set["cut_off"], json!(ids.len()));
        smaller += i64::from(ids.len() < 4);
    }
    assert_eq!(report["smaller"], smaller, "sets with fewer answers than asked for are told");
    assert_eq!(done["made"], json!(sets["data"].as_array().unwrap().len()));
}

#[tokio::test]
async fn sets_smaller_than_requested_are_reported() {
    let server = Server::with(|c| c.privacy.learn_from_requests = true, Default::default()).await;
    for (i, n) in [2, 3, 4].into_iter().enumerate() {
        let body = json!({"model": "base", "n": n, "max_tokens": 60, "seed": i,
                          "messages": [{"role": "user", "content": format!("question {i}")}]});
        server.post("/v1/chat/completions", body).await.expect(200);
    }
    let done = draw(&server, json!({"policy": "stored", "count": 3, "n": 4})).await;
    assert_eq!((&done["made"], &done["report"]["smaller"]), (&json!(3), &json!(2)), "{done}");
}

#[tokio::test]
async fn answers_for_ranking_are_drawn_as_configured() {
    let server = Server::start().await;
    prompts(&server, 2, "a").await;
    let sampling_of = async |set: &Value| {
        let id = set["completion_ids"][0].as_str().or(set["completions"][0]["id"].as_str()).unwrap().to_owned();
        server.services.store.completions().get(&id.into()).await.unwrap().sampling
    };
    let near = |value: &Value, wanted: f64| assert!((value.as_f64().unwrap() - wanted).abs() < 1e-6, "{value}");
    draw(&server, json!({"policy": "random", "count": 1})).await;
    let made = server.get("/admin/sets").await.expect(200).json();
    let sampling = sampling_of(&made["data"][0]).await;
    near(&sampling["temperature"], 0.7);
    near(&sampling["top_p"], 0.95);
    // Also a set made by a request; a value in the request comes first.
    let body = json!({"messages": [{"role": "user", "content": "q"}], "n": 2, "sampling": {"top_p": 0.5}});
    let set = server.post("/v1/comparison-sets", body).await.expect(201).json();
    let sampling = sampling_of(&set).await;
    near(&sampling["temperature"], 0.7);
    near(&sampling["top_p"], 0.5);
    // And settable while the server runs.
    for (name, value) in [("labeling.temperature", json!(0.9)), ("labeling.max_tokens", json!(33))] {
        server.post("/admin/settings", json!({"name": name, "value": value})).await.expect(204);
    }
    let done = draw(&server, json!({"policy": "random", "count": 1})).await;
    assert_eq!((&done["report"]["temperature"], &done["report"]["max_tokens"]), (&json!(0.9), &json!(33)));
    let refused = server.post("/admin/settings", json!({"name": "labeling.top_p", "value": 0})).await;
    assert_eq!(refused.status.as_u16(), 400);
}

#[tokio::test]
async fn a_slow_draw_stores_its_progress() {
    let slow = crate::support::mock::MockOptions {
        delay_per_token: std::time::Duration::from_millis(30),
        ..Default::default()
    };
    let server = Server::with(|_| {}, slow).await;
    prompts(&server, 4, "a").await;
    let started = server.post("/admin/sets/draw", json!({"policy": "random", "count": 4, "max_tokens": 400})).await;
    let path = format!("/admin/sets/draws/{}", started.expect(202).json()["id"].as_str().unwrap());
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let draw = server.get(&path).await.expect(200).json();
    assert_eq!(draw["made"], 0, "no set is finished yet, or the test shows nothing");
    assert!(draw["report"]["pieces"].as_i64().unwrap() > 0, "{draw}");
    server.post(&format!("{path}/cancel"), json!({})).await.expect(200);
}

#[tokio::test]
async fn a_draw_of_disputed_sets_says_what_it_left_out() {
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
    let body = json!({"policy": "disagreement", "count": 5});
    let done = draw(&server, body.clone()).await;
    assert_eq!((&done["made"], &done["report"]["agreed"], &done["report"]["found"]), (&json!(1), &json!(1), &json!(2)));
    let done = draw(&server, body).await;
    assert_eq!((&done["made"], &done["report"]["waiting"]), (&json!(0), &json!(1)), "{done}");
}

#[tokio::test]
async fn a_draw_by_uncertainty_needs_a_reward_model_and_says_so() {
    let server = Server::start().await;
    prompts(&server, 1, "a").await;
    let body = json!({"policy": "uncertainty", "count": 1});
    let refused = server.post("/admin/sets/draw", body.clone()).await.expect(409);
    assert!(refused.text.contains("promote"), "{}", refused.text);
    let reward = version("judge", ModelKind::Reward, None);
    server.services.store.models().put(reward.clone()).await.unwrap();
    server.services.store.models().activate(&reward.id, 1).await.unwrap();
    assert_eq!(draw(&server, body).await["made"], 1);
}
