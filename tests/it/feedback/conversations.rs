//! Conversations, spans and corrections over HTTP: what follows what, what is refused, and what exports hold.

use serde_json::{Value, json};

use super::access_rules::{Person, judge_path, new_set, tiers};
use crate::api::client::{Answer, Server};
use crate::store::fixture;
use crate::support::mock::MockOptions;
use instructd::domain::{ComparisonSet, Prompt, SetId};
use instructd::service::conversations::MAX_TURNS;

/// Data of the last event of a stream of answers.
fn leased(answer: &Answer) -> Value {
    let set: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert!(set["set_id"].is_string(), "{set}");
    set
}

fn sampling() -> Value {
    json!({"max_tokens": 16})
}

async fn ask(person: &Person<'_>, question: &str) -> Value {
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"messages": messages, "n": 2, "sampling": sampling()});
    leased(&person.post("/v1/label/ask", body).await.expect(200))
}

/// The next message behind the completion at `place` of a set.
fn next(set: &Value, place: usize, content: &str) -> Value {
    json!({"set_id": set["set_id"], "completion_id": set["completions"][place]["id"], "content": content, "n": 2,
           "sampling": sampling()})
}

/// A judgment of a leased set: the tiers of its completions in shown order.
fn judgment(set: &Value, given: &[i64]) -> Value {
    let items: Vec<Value> = set["completions"]
        .as_array()
        .unwrap()
        .iter()
        .zip(given)
        .map(|(c, tier)| json!({"completion_id": c["id"], "tier": tier}))
        .collect();
    json!({"lease_token": set["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": set["set_id"]})
}

async fn judge(person: &Person<'_>, set: &Value, given: &[i64]) -> Value {
    person.post(&judge_path(set), judgment(set, given)).await.expect(200).json()
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn three_turns_are_three_comparisons_of_the_right_prefixes() {
    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    let first = ask(&ada, "Why is the sky blue?").await;
    judge(&ada, &first, &[1, 0]).await;
    let second = leased(&ada.post("/v1/label/continue", next(&first, 1, "And at night?")).await.expect(200));
    judge(&ada, &second, &[0, 1]).await;
    let third = leased(&ada.post("/v1/label/continue", next(&second, 0, "Why?")).await.expect(200));
    judge(&ada, &third, &[0, 0]).await;

    let user = |text: &str| json!({"role": "user", "content": text});
    let said = |set: &Value, place: usize| json!({"role": "assistant", "content": set["completions"][place]["text"]});
    let prompts = [
        json!([user("Why is the sky blue?")]),
        json!([user("Why is the sky blue?"), said(&first, 1), user("And at night?")]),
        json!([user("Why is the sky blue?"), said(&first, 1), user("And at night?"), said(&second, 0), user("Why?")]),
    ];
    let exported = lines(&server.get("/admin/export?format=comparisons").await.expect(200));
    assert_eq!(exported.len(), 3);
    for ((line, prompt), (set, best)) in exported.iter().zip(&prompts).zip([(&first, 1), (&second, 0), (&third, 0)]) {
        assert_eq!(line["prompt"], *prompt);
        let ranked = line["completions"].as_array().unwrap();
        let chosen = ranked.iter().find(|c| c["text"] == set["completions"][best]["text"]).unwrap();
        assert_eq!((ranked.len(), &chosen["tier"]), (2, &json!(0)));
        assert_eq!(line["split"], exported[0]["split"], "a conversation is on one side of the split");
        assert_eq!(line.get("knowledge"), None, "each turn is judged blind");
    }
    let ties: Vec<_> = exported[2]["completions"].as_array().unwrap().iter().map(|c| c["tier"].clone()).collect();
    assert_eq!(ties, [0, 0]);
    // Pairs of preferences are multi-turn too.
    let pairs = lines(&server.get("/admin/export?format=trl").await.expect(200));
    assert_eq!(pairs.iter().map(|p| p["prompt"].clone()).collect::<Vec<_>>(), prompts[..2]);

    // As Open-Assistant trees they come back with equal prompts, completions and rankings.
    let trees = server.get("/admin/export?format=oasst").await.expect(200).text;
    assert_eq!(trees.lines().count(), 1, "a conversation is one tree");
    let other = Server::start().await;
    let report =
        other.raw("POST", "/admin/import?format=oasst", "application/x-ndjson", trees).await.expect(200).json();
    assert_eq!((&report["imported"], &report["failed"]), (&json!(3), &json!(0)), "{report}");
    // Rankings that were imported in the same millisecond, and answers that tie, have no order.
    let content = |lines: &[Value]| {
        let mut all: Vec<(Value, Vec<String>)> = lines
            .iter()
            .map(|line| {
                let mut answers: Vec<String> =
                    line["completions"].as_array().unwrap().iter().map(Value::to_string).collect();
                answers.sort();
                (line["prompt"].clone(), answers)
            })
            .collect();
        all.sort_by_key(|(prompt, _)| prompt.as_array().unwrap().len());
        all
    };
    let back = lines(&other.get("/admin/export?format=comparisons").await.expect(200));
    assert_eq!(content(&back), content(&exported));

    let all = ada.get("/v1/label/conversations").await.expect(200).json();
    let mut conversation = all["data"][0].clone();
    assert_eq!(conversation.as_object_mut().unwrap().remove("prompt"), Some(json!("Why is the sky blue?")));
    let conversation = &conversation;
    let turns: Vec<_> = conversation["turns"].as_array().unwrap().iter().map(|t| t["set_id"].clone()).collect();
    assert_eq!(turns, [&first["set_id"], &second["set_id"], &third["set_id"]].map(Clone::clone));
    assert_eq!(conversation["turns"][2]["continued"], second["completions"][0]["id"]);
    let path = format!("/v1/label/conversations/{}", conversation["id"].as_str().unwrap());
    assert_eq!(ada.get(&path).await.expect(200).json(), *conversation);
    let of_set = format!("/v1/label/conversations?set_id={}", second["set_id"].as_str().unwrap());
    assert_eq!(ada.get(&of_set).await.expect(200).json()["data"][0]["id"], conversation["id"]);
    // It is hers alone, and reviewers see it.
    let bob = Person::new(&server, "bob").await;
    bob.get(&path).await.expect(403);
    assert_eq!(bob.get(&of_set).await.expect(200).json()["data"], json!([]));
    assert_eq!(server.get(&path).await.expect(200).json(), *conversation);
    ada.get("/v1/label/conversations/none").await.expect(404);
}

#[tokio::test]
async fn a_conversation_goes_on_with_a_best_answer_of_ones_own_question() {
    let server = Server::start().await;
    let (ada, bob) = (Person::new(&server, "ada").await, Person::new(&server, "bob").await);
    let set = ask(&ada, "q1").await;
    let unjudged = ada.post("/v1/label/continue", next(&set, 0, "more")).await.expect(409);
    assert!(unjudged.text.contains("not judged"), "{}", unjudged.text);
    judge(&ada, &set, &[0, 1]).await;
    bob.post("/v1/label/continue", next(&set, 0, "more")).await.expect(403);
    let refused = async |body: Value, param: &str| {
        let answer = ada.post("/v1/label/continue", body).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{}", answer.text);
        answer.text
    };
    let worse = refused(next(&set, 1, "more"), "completion_id").await;
    assert!(worse.contains(set["completions"][0]["id"].as_str().unwrap()), "it names the best: {worse}");
    refused(next(&set, 0, " \n"), "content").await;
    let mut body = next(&set, 0, "more");
    body["completion_id"] = json!("none");
    refused(body, "completion_id").await;
    let mut body = next(&set, 0, "more");
    body["models"] = json!(["base", "base"]);
    refused(body, "n").await;
    let mut body = next(&set, 0, "more");
    body["set_id"] = json!("none");
    assert_eq!(ada.post("/v1/label/continue", body).await.expect(404).param().as_deref(), Some("set_id"));
    // A set of the queue is no question of hers.
    new_set(&server, "queued", &["x", "y"], 1).await;
    let queued = ada.next("").await.expect(200).json();
    ada.judge(&queued, &["x", "y"]).await.expect(200);
    ada.post("/v1/label/continue", next(&queued, 0, "more")).await.expect(403);

    // After a tie and after "all bad" she chooses; a skipped set is not continued.
    let tied = ask(&ada, "q2").await;
    judge(&ada, &tied, &[0, 0]).await;
    leased(&ada.post("/v1/label/continue", next(&tied, 1, "more")).await.expect(200));
    let bad = ask(&ada, "q3").await;
    let mut body = judgment(&bad, &[]);
    body["outcome"] = json!("all_bad");
    ada.post(&judge_path(&bad), body).await.expect(200);
    leased(&ada.post("/v1/label/continue", next(&bad, 1, "more")).await.expect(200));
    let skipped = ask(&ada, "q4").await;
    ada.skip(&skipped).await.expect(200);
    ada.post("/v1/label/continue", next(&skipped, 0, "more")).await.expect(409);

    // It goes on after its last turn only; whoever lost the answers finds their set.
    let second = leased(&ada.post("/v1/label/continue", next(&set, 0, "more")).await.expect(200));
    let again = ada.post("/v1/label/continue", next(&set, 0, "more")).await.expect(409);
    assert!(again.text.contains(second["set_id"].as_str().unwrap()), "{}", again.text);
    let path = format!("?set_id={}", second["set_id"].as_str().unwrap());
    assert_eq!(ada.next(&path).await.expect(200).json()["assignment_id"], second["assignment_id"]);
}

#[tokio::test]
async fn a_conversation_ends_where_context_or_turns_end() {
    let options = MockOptions { max_context: 60, ..MockOptions::default() };
    let server = Server::with(|_| {}, options).await;
    let ada = Person::new(&server, "ada").await;
    let set = ask(&ada, "short").await;
    judge(&ada, &set, &[0, 1]).await;
    let long = "word ".repeat(80);
    let full = ada.post("/v1/label/continue", next(&set, 0, &long)).await.expect(400);
    assert_eq!(full.param().as_deref(), Some("messages"), "{}", full.text);
    assert!(full.text.contains("the model's context holds 60"), "{}", full.text);
    assert_eq!(ada.get("/v1/label/conversations").await.expect(200).json()["data"], json!([]), "nothing is begun");

    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    let mut set = ask(&ada, "q").await;
    for _ in 1..MAX_TURNS {
        judge(&ada, &set, &[0, 1]).await;
        set = leased(&ada.post("/v1/label/continue", next(&set, 0, "and?")).await.expect(200));
    }
    judge(&ada, &set, &[0, 1]).await;
    let over = ada.post("/v1/label/continue", next(&set, 0, "and?")).await.expect(409);
    assert!(over.text.contains(&format!("at most {MAX_TURNS}")), "{}", over.text);
}

/// The answer before the next message stands there as later turns of a chat have it: without its reasoning.
#[tokio::test]
async fn reasoning_is_no_part_of_the_next_prompt() {
    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    let me = ada.get("/v1/label/next").await.headers.contains_key("x-queue");
    assert!(me, "the queue is empty");
    let store = &server.services.store;
    let labeler = store.people().list().await.unwrap().into_iter().find(|l| l.name == "ada").unwrap().id;
    let texts = ["<think>\nmuch\n</think>\n\nBlue.", "Red."];
    let stored = fixture::stored_set(store, "colour?", &texts, 1).await;
    let set = ComparisonSet { id: SetId::new(), selection_policy: "ask".into(), ..stored };
    store.sets().put(set.clone()).await.unwrap();
    store.sets().note_maker(&set.id, &labeler).await.unwrap();
    let turn = ada.next(&format!("?set_id={}", set.id)).await.expect(200).json();
    ada.judge(&turn, &texts).await.expect(200);
    let body = json!({"set_id": set.id, "completion_id": set.completion_ids[0], "content": "Sure?", "n": 2,
                      "sampling": sampling()});
    let next = leased(&ada.post("/v1/label/continue", body).await.expect(200));
    let id = next["prompt"]["id"].as_str().unwrap();
    let prompt: Prompt = store.prompts().get(&id.into()).await.unwrap();
    assert_eq!(prompt.messages[prompt.messages.len() - 2].content, "Blue.");
}

#[tokio::test]
async fn spans_are_stored_with_the_judgment_and_exported() {
    let server = Server::start().await;
    let x = "Ein \u{1F600} Fehler.";
    new_set(&server, "q", &[x, "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let completions = turn["completions"].as_array().unwrap();
    let id = |text: &str| completions.iter().find(|c| c["text"] == text).unwrap()["id"].clone();
    assert!(completions.iter().all(|c| c["text_start"] == 0), "{turn}");
    let span = |text: &str, start: i64, end: i64| json!({"completion_id": id(text), "start": start, "end": end});
    let body = |spans: Value| {
        json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["y", x]),
               "idempotency_key": "k", "spans": spans})
    };
    let many: Vec<Value> = (0..65).map(|_| span(x, 0, 1)).collect();
    for (spans, param) in [
        (json!([{"completion_id": "none", "start": 0, "end": 1}]), "spans[0].completion_id"),
        (json!([span("y", 0, 1), span(x, 13, 14)]), "spans[1].start"),
        (json!([span(x, -1, 1)]), "spans[0].start"),
        (json!([span(x, 4, 4)]), "spans[0].end"),
        (json!([span(x, 0, 14)]), "spans[0].end"),
        (json!([span(x, 0, 4), span("y", 0, 1), span(x, 3, 5)]), "spans[2]"),
        (json!(many), "spans"),
    ] {
        let refused = ada.post(&judge_path(&turn), body(spans.clone())).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{spans}: {}", refused.text);
    }
    let mut skip = body(json!([span("y", 0, 1)]));
    (skip["outcome"], skip["items"]) = (json!("skip"), json!([]));
    assert_eq!(ada.post(&judge_path(&turn), skip).await.expect(400).param().as_deref(), Some("spans"));

    // Positions count characters, not bytes and not UTF-16; those next to each other do not overlap.
    let mut noted = span(x, 6, 12);
    noted["note"] = json!("falsch");
    let given = json!([noted, span(x, 12, 13), span(x, 4, 5)]);
    let stored = ada.post(&judge_path(&turn), body(given)).await.expect(200).json()["judgment"].clone();
    let found: Vec<_> =
        stored["spans"].as_array().unwrap().iter().map(|s| (s["start"].clone(), s["end"].clone())).collect();
    assert_eq!(found, [(json!(4), json!(5)), (json!(6), json!(12)), (json!(12), json!(13))]);
    assert_eq!(server.get("/v1/judgments").await.json()["data"][0]["spans"], stored["spans"]);
    let path = format!("/v1/label/judgments/{}", stored["id"].as_str().unwrap());
    assert_eq!(ada.get(&path).await.expect(200).json()["judgment"]["spans"], stored["spans"]);
    let review = format!("/v1/review/sets/{}", turn["set_id"].as_str().unwrap());
    assert_eq!(server.get(&review).await.expect(200).json()["judgments"][0]["judgment"]["spans"], stored["spans"]);

    let export = server.get("/admin/export?format=comparisons").await.expect(200);
    let line = &lines(&export)[0];
    let expected = json!([{"start": 4, "end": 5}, {"start": 6, "end": 12, "note": "falsch"}, {"start": 12, "end": 13}]);
    assert_eq!(line["completions"][1]["spans"], expected);
    assert_eq!(line["completions"][0].get("spans"), None);
    // Another server reads it back.
    let other = Server::start().await;
    let import =
        async |text: String| other.raw("POST", "/admin/import?format=comparisons", "application/x-ndjson", text).await;
    let report = import(export.text.clone()).await.expect(200).json();
    assert_eq!((&report["imported"], &report["ignored_fields"]), (&json!(1), &json!({})), "{report}");
    let back = lines(&other.get("/admin/export?format=comparisons").await.expect(200));
    assert_eq!(back[0]["completions"], line["completions"]);
    let outside = export.text.replace("\"end\":13", "\"end\":99");
    let report = import(outside).await.expect(400).json();
    assert!(report.to_string().contains("completions[1].spans"), "{report}");
    // Files of versions name nobody and have no words of theirs.
    server.post("/admin/datasets", json!({"name": "v1"})).await.expect(201);
    let version = server.get("/admin/export?format=comparisons&dataset=v1").await.expect(200);
    assert_eq!(lines(&version)[0]["completions"][1]["spans"][1], json!({"start": 6, "end": 12}));
}

#[tokio::test]
async fn a_hidden_thought_is_counted_in_positions() {
    let server = Server::start().await;
    let x = "<think>hm</think>\n\nBlue\u{E9}.";
    new_set(&server, "q", &[x, "y"], 1).await;
    server.post("/admin/settings", json!({"name": "labeling.show_reasoning", "value": false})).await.expect(204);
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let shown = turn["completions"].as_array().unwrap().iter().find(|c| c["text"] == "Blue\u{E9}.").unwrap();
    assert_eq!(shown["text_start"], 19);
}

#[tokio::test]
async fn corrections_become_demonstrations_that_name_the_corrected_text() {
    let server = Server::start().await;
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let completions = turn["completions"].as_array().unwrap();
    let id = |text: &str| completions.iter().find(|c| c["text"] == text).unwrap()["id"].clone();
    let body = |corrections: Value| {
        json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["y", "x"]),
               "idempotency_key": "k", "ideal_answer": "ideal", "corrections": corrections})
    };
    let fix = |text: &str, better: &str| json!({"completion_id": id(text), "text": better});
    for (corrections, param) in [
        (json!([{"completion_id": "none", "text": "z"}]), "corrections[0].completion_id"),
        (json!([fix("x", "z"), fix("x", "zz")]), "corrections[1].completion_id"),
        (json!([fix("x", " ")]), "corrections[0].text"),
        (json!([fix("x", "x")]), "corrections[0].text"),
        (json!([fix("x", &"z".repeat((64 << 10) + 1))]), "corrections[0].text"),
    ] {
        let refused = ada.post(&judge_path(&turn), body(corrections)).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{}", refused.text);
    }
    for _ in 0..2 {
        ada.post(&judge_path(&turn), body(json!([fix("x", "x, corrected")]))).await.expect(200);
    }
    let exported = lines(&server.get("/admin/export?format=demonstrations").await.expect(200));
    let mut texts: Vec<_> = exported.iter().map(|d| (d["completion"].clone(), d.get("corrects").cloned())).collect();
    texts.sort_by_key(|t| t.0.to_string());
    assert_eq!(texts, [(json!("ideal"), None), (json!("x, corrected"), Some(json!("x")))], "each once");
    let prompt = exported.iter().find(|d| d["corrects"] == "x").unwrap()["prompt_id"].clone();
    assert_eq!(prompt, turn["prompt"]["id"]);

    // Reviewers see the correction of a judgment, the latest one where it was revised.
    let path = format!("/v1/review/sets/{}", turn["set_id"].as_str().unwrap());
    let corrections = async || server.get(&path).await.expect(200).json()["judgments"][0]["corrections"].clone();
    assert_eq!(corrections().await, json!([fix("x", "x, corrected")]));
    let first = ada.get("/v1/label/history").await.expect(200).json()["data"][0]["id"].clone();
    let again = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["y", "x"]),
                       "idempotency_key": "again", "revises": first,
                       "corrections": [fix("y", "y, too"), fix("x", "x, anew")]});
    ada.post(&judge_path(&turn), again).await.expect(200);
    let mut found = corrections().await.as_array().unwrap().clone();
    found.sort_by_key(|c| c["text"].to_string());
    assert_eq!(found, [fix("x", "x, anew"), fix("y", "y, too")]);
}
