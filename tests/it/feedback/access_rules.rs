//! One door for judgments: leases, quotas, overlap and blindness hold on every way in; figures are one's own.

use serde_json::{Value, json};

use crate::api::client::{Answer, Server};

/// A plain labeler with a key.
pub struct Person<'s> {
    server: &'s Server,
    bearer: String,
}

impl<'s> Person<'s> {
    pub async fn new(server: &'s Server, name: &str) -> Self {
        let made = server.post("/admin/keys", json!({"name": name, "scopes": ["feedback"]})).await.expect(201).json();
        Self { server, bearer: format!("Bearer {}", made["key"].as_str().unwrap()) }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.server.call("GET", path, &[("authorization", &self.bearer)], None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.server.call("POST", path, &[("authorization", &self.bearer)], Some(body)).await
    }

    pub async fn next(&self, query: &str) -> Answer {
        self.get(&format!("/v1/label/next{query}")).await
    }

    pub async fn judge(&self, turn: &Value, order: &[&str]) -> Answer {
        let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(turn, order),
                          "idempotency_key": format!("{}{}", self.bearer, turn["set_id"])});
        self.post(&judge_path(turn), body).await
    }

    pub async fn skip(&self, turn: &Value) -> Answer {
        let body = json!({"lease_token": turn["lease_token"], "outcome": "skip",
                          "idempotency_key": format!("skip {}{}", self.bearer, turn["set_id"])});
        self.post(&judge_path(turn), body).await
    }

    async fn open(&self) -> Value {
        self.get("/v1/label/me").await.expect(200).json()["queue_open"].clone()
    }
}

pub fn judge_path(turn: &Value) -> String {
    format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap())
}

pub async fn new_set(server: &Server, question: &str, texts: &[&str], overlap: i64) -> Value {
    let body = json!({"messages": [{"role": "user", "content": question}], "completions": texts, "overlap": overlap});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

pub async fn known_answer(server: &Server, set: &Value, kind: &str, order: &[&str]) {
    let path = format!("/admin/sets/{}/known-answer", set["id"].as_str().unwrap());
    server.post(&path, json!({"kind": kind, "tiers": tiers(set, order)})).await.expect(204);
}

/// Items of a ranking of the set's (or turn's) completions, best text first.
pub fn tiers(set: &Value, order: &[&str]) -> Value {
    let tier = |text: &str| order.iter().position(|t| *t == text).unwrap();
    let completions = set["completions"].as_array().unwrap();
    completions.iter().map(|c| json!({"completion_id": c["id"], "tier": tier(c["text"].as_str().unwrap())})).collect()
}

#[tokio::test]
async fn open_sets_are_those_that_one_can_still_get() {
    let server = Server::start().await;
    let set = new_set(&server, "only", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    assert_eq!(ada.open().await, 1);
    let turn = ada.next("").await.expect(200).json();
    assert_eq!(turn["queue"]["open"], 1, "the one in hand");
    ada.skip(&turn).await.expect(200);
    assert_eq!(ada.open().await, 0);
    assert_eq!(ada.next("").await.expect(204).headers["x-queue"], "empty");
    let named = format!("?set_id={}", set["id"].as_str().unwrap());
    assert_eq!(ada.next(&named).await.expect(204).headers["x-queue"], "judged");
    // Nobody is left for it: the administrator sees it.
    let counts = server.get("/admin/api/overview").await.expect(200).json()["counts"].clone();
    assert_eq!((&counts["sets_open"], &counts["sets_stuck"]), (&json!(1), &json!(1)));
    assert_eq!(server.get("/admin/api/throughput").await.expect(200).json()["sets_stuck"], 1);
    let listed = async |query: &str| server.get(&format!("/admin/sets?{query}")).await.expect(200).json();
    assert_eq!(listed("stuck=true").await["data"][0]["id"], set["id"]);
    assert_eq!(listed("stuck=true&q=another").await["total"], 0, "with the other filters");
    assert_eq!(listed("stuck=true&status=open&limit=1").await["total"], 1);
    let bob = Person::new(&server, "bob").await;
    let counts = server.get("/admin/api/overview").await.expect(200).json()["counts"].clone();
    assert_eq!(counts["sets_stuck"], 0, "bob can");
    assert_eq!(listed("stuck=true").await["total"], 0);
    assert_eq!(listed("").await["total"], 1);
    assert_eq!(bob.open().await, 1);
    // In bob's hands it is taken for everybody else, and open for him.
    let cy = Person::new(&server, "cy").await;
    let held = bob.next("").await.expect(200).json();
    assert_eq!((cy.open().await, bob.open().await), (json!(0), json!(1)));
    assert_eq!(cy.next(&named).await.expect(204).headers["x-queue"], "taken");
    bob.judge(&held, &["x", "y"]).await.expect(200);
    assert_eq!(cy.next(&named).await.expect(204).headers["x-queue"], "closed");
    assert_eq!(bob.open().await, 0);
}

#[tokio::test]
async fn skips_count_in_no_quota_and_apart() {
    let server = Server::with(|c| c.labeling.daily_quota = 3, Default::default()).await;
    for i in 0..6 {
        new_set(&server, &format!("q{i}"), &["x", "y"], 1).await;
    }
    let ada = Person::new(&server, "ada").await;
    assert_eq!(ada.open().await, 3, "what the quota leaves");
    let turn = ada.next("").await.expect(200).json();
    ada.judge(&turn, &["x", "y"]).await.expect(200);
    for _ in 0..2 {
        let turn = ada.next("").await.expect(200).json();
        ada.skip(&turn).await.expect(200);
    }
    let me = ada.get("/v1/label/me").await.expect(200).json();
    assert_eq!((&me["done_today"], &me["skipped_today"], &me["quota_left"]), (&json!(1), &json!(2), &json!(2)));
    for left in [2, 1] {
        let turn = ada.next("").await.expect(200).json();
        assert_eq!(turn["queue"]["open"], left);
        assert_eq!((&turn["me"]["done_today"], &turn["me"]["skipped_today"]), (&json!(3 - left), &json!(2)));
        ada.judge(&turn, &["x", "y"]).await.expect(200);
    }
    assert_eq!(ada.next("").await.expect(204).headers["x-queue"], "quota");
    // Without a set left it is the queue that is empty, whatever was skipped.
    let bob = Person::new(&server, "bob").await;
    for _ in 0..3 {
        let turn = bob.next("").await.expect(200).json();
        bob.skip(&turn).await.expect(200);
    }
    assert_eq!(bob.next("").await.expect(204).headers["x-queue"], "empty");
}

#[tokio::test]
async fn rankings_by_api_are_no_way_around_leases_quotas_and_overlap() {
    let server = Server::with(|c| (c.labeling.daily_quota, c.labeling.reveal) = (1, true), Default::default()).await;
    let set = new_set(&server, "q", &["x", "y"], 1).await;
    let gold = new_set(&server, "gold", &["x", "y"], 1).await;
    known_answer(&server, &gold, "gold", &["x", "y"]).await;
    let (ada, bob) = (Person::new(&server, "ada").await, Person::new(&server, "bob").await);
    let by_id = |set: &Value| json!({"set_id": set["id"], "completions": tiers(set, &["x", "y"])});
    for set in [&set, &gold] {
        let refused = bob.post("/v1/comparisons", by_id(set)).await.expect(403);
        assert!(refused.text.contains("/v1/label/next?set_id="), "says what to do: {}", refused.text);
    }
    // Neither the ids nor the texts of sets that were not handed out are theirs to see.
    bob.get(&format!("/v1/comparison-sets/{}", set["id"].as_str().unwrap())).await.expect(403);
    assert_eq!(bob.get("/v1/comparison-sets").await.expect(200).json()["data"], json!([]));
    assert_eq!(bob.get("/v1/prompts").await.expect(200).json()["data"], json!([]));
    // Known completions as a set of one's own would reveal their authors before the vote.
    let own = json!({"prompt_id": set["prompt_id"], "completions": tiers(&set, &["x", "y"])});
    bob.post("/v1/comparisons", own).await.expect(403);
    let ids: Vec<Value> =
        set["completions"].as_array().unwrap().iter().map(|c| json!({"completion_id": c["id"]})).collect();
    bob.post("/v1/comparison-sets", json!({"prompt_id": set["prompt_id"], "completions": ids})).await.expect(403);
    // While ada holds it, and after she has judged it.
    let turn = ada.next("").await.expect(200).json();
    assert_eq!(turn["set_id"], set["id"]);
    bob.post("/v1/comparisons", by_id(&set)).await.expect(403);
    let stored = ada.post("/v1/comparisons", by_id(&set)).await.expect(201).json();
    assert_eq!(stored["judgment"]["assignment_id"], turn["assignment_id"], "her lease is used");
    assert_eq!(stored["reveal"].as_array().unwrap().len(), 2, "after her own word");
    bob.post("/v1/comparisons", by_id(&set)).await.expect(403);
    assert_eq!(ada.get("/v1/prompts").await.expect(200).json()["data"].as_array().unwrap().len(), 1);
    assert_eq!(ada.get("/v1/comparison-sets").await.expect(200).json()["data"].as_array().unwrap().len(), 1);
    // The quota counts rankings that bring their own texts too.
    let own = |key: &str| {
        json!({"messages": [{"role": "user", "content": key}], "idempotency_key": key,
               "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]})
    };
    ada.post("/v1/comparisons", own("ada 1")).await.expect(409);
    bob.post("/v1/comparisons", own("bob 1")).await.expect(201);
    bob.post("/v1/comparisons", own("bob 1")).await.expect(200);
    bob.post("/v1/comparisons", own("bob 2")).await.expect(409);
    assert_eq!(server.services.store.counts().await.unwrap().judgments, 2);
}

#[tokio::test]
async fn a_page_that_opens_again_gets_its_sets_back() {
    let server = Server::with(|c| c.labeling.onboarding_sets = 1, Default::default()).await;
    for i in 0..3 {
        new_set(&server, &format!("q{i}"), &["x", "y"], 1).await;
    }
    let ada = Person::new(&server, "ada").await;
    let first = ada.next("?resume=true").await.expect(200).json();
    let ahead =
        ada.next(&format!("?resume=true&except={}", first["set_id"].as_str().unwrap())).await.expect(200).json();
    assert_ne!(first["set_id"], ahead["set_id"]);
    // The browser is closed, and opened again.
    let again = ada.next("?resume=true").await.expect(200).json();
    assert_eq!((&again["set_id"], &again["lease_token"]), (&first["set_id"], &first["lease_token"]));
    assert_eq!(again["completions"], first["completions"], "in the same order");
    let except = format!("?resume=true&except={}", first["set_id"].as_str().unwrap());
    assert_eq!(ada.next(&except).await.expect(200).json()["set_id"], ahead["set_id"]);
    // Who does not ask for it gets new work.
    let third = ada.next("").await.expect(200).json();
    assert!(third["set_id"] != first["set_id"] && third["set_id"] != ahead["set_id"]);
    ada.next("?except=x").await.expect(400);
    // Practice comes first, though other work is in hand.
    let bob = Person::new(&server, "bob").await;
    let set = new_set(&server, "practice", &["x", "y"], 1).await;
    let plain = new_set(&server, "plain", &["x", "y"], 1).await;
    let held = bob.next(&format!("?set_id={}", plain["id"].as_str().unwrap())).await.expect(200).json();
    assert_eq!(held["kind"], "normal");
    known_answer(&server, &set, "calibration", &["x", "y"]).await;
    let practice = bob.next("?resume=true").await.expect(200).json();
    assert_eq!((&practice["kind"], &practice["practice_number"]), (&json!("calibration"), &json!(1)));
    let resumed = bob.next("?resume=true").await.expect(200).json();
    assert_eq!((&resumed["set_id"], &resumed["practice_number"]), (&practice["set_id"], &json!(1)));
    bob.judge(&resumed, &["x", "y"]).await.expect(200);
    assert_eq!(bob.next("?resume=true").await.expect(200).json()["set_id"], plain["id"]);
}

#[tokio::test]
async fn guidelines_change_while_the_server_runs() {
    let server = Server::start().await;
    let read = async |lang: &str| server.get(&format!("/v1/guidelines?lang={lang}")).await.expect(200).json();
    let (en, zh) = (read("en").await, read("zh-Hans").await);
    assert_eq!((&en["lang"], &zh["lang"]), (&json!("en"), &json!("zh")));
    assert!(zh["html"].as_str().unwrap().contains("平局") && !en["html"].as_str().unwrap().contains("平局"));
    assert!(!en["html"].as_str().unwrap().contains("tier"), "the page says place");
    let changed =
        server.post("/admin/guidelines", json!({"lang": "zh", "text": "只选**最短**的。"})).await.expect(200).json();
    assert_ne!(changed["version"], zh["version"]);
    assert_eq!(read("zh").await["html"], "<p>只选<strong>最短</strong>的。</p>\n");
    assert_eq!(read("en").await, en, "each language has its own");
    let all = server.get("/admin/guidelines").await.expect(200).json();
    assert_eq!(all["versions"][0]["version"], changed["version"]);
    server.post("/admin/guidelines", json!({"lang": "zh", "text": " "})).await.expect(200);
    assert_eq!(read("zh").await["version"], zh["version"], "back to the built-in text");
    assert_eq!(
        server.post("/admin/guidelines", json!({"lang": "xx", "text": "a"})).await.expect(400).param().as_deref(),
        Some("lang")
    );
    // The judgment records what was shown.
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    ada.post("/admin/guidelines", json!({"lang": "en", "text": "a"})).await.expect(403);
    let turn = ada.next("?lang=zh").await.expect(200).json();
    assert_eq!(turn["guideline_version"], zh["version"]);
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["x", "y"]),
                      "idempotency_key": "k", "guideline_version": turn["guideline_version"]});
    let stored = ada.post(&judge_path(&turn), body).await.expect(200).json();
    assert_eq!(stored["judgment"]["guideline_version"], zh["version"]);
}

#[tokio::test]
async fn own_history_goes_on_after_an_id() {
    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    for i in 0..3 {
        new_set(&server, &format!("q{i}"), &["x", "y"], 1).await;
        let turn = ada.next("").await.expect(200).json();
        ada.judge(&turn, &["x", "y"]).await.expect(200);
    }
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = ada.get(&format!("/v1/label/history?limit=1{after}")).await.expect(200).json();
        let Some(one) = page["data"].as_array().unwrap().first().cloned() else { break };
        assert_eq!(one["prompt"], format!("q{}", 2 - seen.len()), "the prompt that was judged");
        seen.push(one["id"].as_str().unwrap().to_owned());
        after = format!("&after={}", page["after"].as_str().unwrap());
    }
    let mut sorted = seen.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.dedup();
    assert_eq!((seen.len(), &seen), (3, &sorted), "each once, newest first");
}
