//! Rubrics over HTTP: versions, what is required, ratings in every place that a judgment is read from, figures by
//! version, and files.

use serde_json::{Value, json};

use super::access_rules::{Person, judge_path, known_answer, new_set, tiers};
use crate::api::client::{Answer, Server};

fn likert(key: &str, points: i64, required: bool) -> Value {
    json!({"key": key, "label": {"en": key, "zh": "有用"}, "kind": "likert", "points": points, "required": required,
           "low": {"en": "worst"}, "high": {"en": "best"}})
}

/// A required scale, a required flag, a flag that may be left out, and tags.
fn rubric() -> Value {
    json!({
        "name": "Three kinds",
        "dimensions": [
            likert("helpful", 7, true),
            {"key": "follows", "label": {"en": "Follows the instruction"}, "kind": "flag", "required": true},
            {"key": "unsafe", "label": {"en": "Unsafe"}, "kind": "flag"},
            {"key": "notes", "label": {"en": "Notes"}, "kind": "tags", "suggestions": ["too long", "kind"]},
        ],
        "rationale": "off",
    })
}

async fn put(server: &Server, definition: Value) -> Value {
    server.post("/admin/rubrics", json!({"definition": definition, "activate": true})).await.expect(201).json()
}

/// Ratings of the completion with this text.
fn ratings(turn: &Value, text: &str, values: &[(&str, Value)]) -> Vec<Value> {
    let completions = turn["completions"].as_array().unwrap();
    let id = &completions.iter().find(|c| c["text"] == text).unwrap()["id"];
    let one = |(key, value): &(&str, Value)| json!({"completion_id": id, "dimension": key, "value": value});
    values.iter().map(one).collect()
}

/// What [`rubric`] requires, for the texts `x` and `y`.
fn full(turn: &Value, x: i64, y: i64) -> Vec<Value> {
    let mut all = ratings(turn, "x", &[("helpful", json!(x)), ("follows", json!(true))]);
    all.extend(ratings(turn, "y", &[("helpful", json!(y)), ("follows", json!(false)), ("unsafe", json!(true))]));
    all
}

fn word(turn: &Value, ratings: &[Value], key: &str) -> Value {
    json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(turn, &["x", "y"]),
           "idempotency_key": key, "rubric_version": turn["rubric"]["version"], "ratings": ratings})
}

async fn import(server: &Server, body: String) -> Answer {
    server.raw("POST", "/admin/import?format=comparisons", "application/x-ndjson", body).await
}

#[tokio::test]
async fn a_rubric_is_activated_and_followed_by_another() {
    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    assert_eq!(ada.get("/v1/rubric").await.expect(200).json(), json!({"rubric": null}));
    let all = server.get("/admin/rubrics").await.expect(200).json();
    assert_eq!((&all["active"], &all["versions"]), (&Value::Null, &json!([])));
    let presets: Vec<_> = all["presets"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    assert_eq!(presets, ["instructgpt", "hhh", "ultrafeedback"]);
    // Every preset is a rubric that can be stored.
    for preset in all["presets"].as_array().unwrap() {
        let stored =
            server.post("/admin/rubrics", json!({"definition": preset["definition"]})).await.expect(201).json();
        assert_eq!(stored["definition"], preset["definition"]);
    }
    assert_eq!(server.get("/admin/rubrics").await.json()["active"], Value::Null, "stored is not active");
    let first = put(&server, rubric()).await;
    assert_eq!(put(&server, rubric()).await["created"], first["created"], "the same definition is the same version");
    let mut other = rubric();
    other["dimensions"][0]["points"] = json!(5);
    let second = put(&server, other).await;
    assert_ne!(first["version"], second["version"]);
    let active = ada.get("/v1/rubric").await.expect(200).json();
    assert_eq!(active["rubric"]["version"], second["version"]);
    let back = server.post("/admin/rubrics/active", json!({"version": first["version"]})).await.expect(200).json();
    assert_eq!(back["rubric"]["definition"], first["definition"]);
    let unknown = server.post("/admin/rubrics/active", json!({"version": "nope"})).await.expect(404);
    assert_eq!(unknown.param().as_deref(), Some("version"));
    let none = server.post("/admin/rubrics/active", json!({"version": null})).await.expect(200).json();
    assert_eq!(none["rubric"], Value::Null);
    assert_eq!(server.get("/admin/rubrics").await.json()["versions"].as_array().unwrap().len(), 5);
    ada.post("/admin/rubrics", json!({"definition": rubric()})).await.expect(403);
    let audit = server.get("/admin/audit?action=activate_rubric").await.expect(200).json();
    assert_eq!(audit["data"][0]["target"], "none", "{audit}");
}

#[tokio::test]
async fn a_definition_that_cannot_be_used_is_refused_by_field() {
    let server = Server::start().await;
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut definition = rubric();
        edit(&mut definition);
        definition
    };
    let many: Vec<Value> = (0..33).map(|i| likert(&format!("d{i}"), 5, false)).collect();
    for (definition, param) in [
        (change(&|r| r["name"] = json!("")), "name"),
        (change(&|r| r["name"] = json!("two\nlines")), "name"),
        (change(&|r| r["dimensions"] = json!([])), "dimensions"),
        (change(&|r| r["dimensions"] = json!(many)), "dimensions"),
        (change(&|r| r["dimensions"][1]["key"] = json!("Has Blanks")), "dimensions[1].key"),
        (change(&|r| r["dimensions"][1]["key"] = json!("helpful")), "dimensions[1].key"),
        (change(&|r| r["dimensions"][0]["label"] = json!({})), "dimensions[0].label"),
        (change(&|r| r["dimensions"][0]["label"] = json!({"english please": "x"})), "dimensions[0].label"),
        (change(&|r| r["dimensions"][0]["label"]["en"] = json!("x".repeat(121))), "dimensions[0].label.en"),
        (change(&|r| r["dimensions"][0]["points"] = json!(1)), "dimensions[0].points"),
        (change(&|r| r["dimensions"][0]["points"] = json!(11)), "dimensions[0].points"),
        (change(&|r| r["dimensions"][0]["points"] = Value::Null), "dimensions[0].points"),
        (change(&|r| r["dimensions"][1]["points"] = json!(5)), "dimensions[1].points"),
        (change(&|r| r["dimensions"][1]["high"] = json!({"en": "x"})), "dimensions[1].low"),
        (change(&|r| r["dimensions"][1]["suggestions"] = json!(["a"])), "dimensions[1].suggestions"),
        (change(&|r| r["dimensions"][3]["suggestions"] = json!([" "])), "dimensions[3].suggestions[0]"),
    ] {
        let refused = server.post("/admin/rubrics", json!({"definition": definition})).await.expect(400);
        assert_eq!(refused.param(), Some(format!("definition.{param}")), "{}", refused.text);
    }
    let odd = change(&|r| r["dimensions"][0]["kind"] = json!("stars"));
    server.post("/admin/rubrics", json!({"definition": odd})).await.expect(400);
    assert_eq!(server.get("/admin/rubrics").await.json()["versions"], json!([]));
}

#[tokio::test]
async fn ratings_must_fit_and_be_complete() {
    let server = Server::start().await;
    let version = put(&server, rubric()).await["version"].clone();
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    assert_eq!(turn["rubric"]["version"], version);
    assert_eq!(turn["rubric"]["definition"], rubric_as_stored());
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut body = word(&turn, &full(&turn, 6, 2), "key");
        edit(&mut body);
        body
    };
    for (body, param) in [
        (change(&|b| b["ratings"][0]["completion_id"] = json!("nope")), "ratings[0].completion_id"),
        (change(&|b| b["ratings"][0]["dimension"] = json!("nope")), "ratings[0].dimension"),
        (change(&|b| b["ratings"][1] = b["ratings"][0].clone()), "ratings[1].dimension"),
        (change(&|b| b["ratings"][0]["value"] = json!(8)), "ratings[0].value"),
        (change(&|b| b["ratings"][0]["value"] = json!(0)), "ratings[0].value"),
        (change(&|b| b["ratings"][0]["value"] = json!(true)), "ratings[0].value"),
        (change(&|b| b["ratings"][1]["value"] = json!(1)), "ratings[1].value"),
        (change(&|b| b["ratings"][1]["dimension"] = json!("notes")), "ratings[1].value"),
        (change(&|b| drop(b["ratings"].as_array_mut().unwrap().remove(0))), "ratings"),
        (change(&|b| drop(b["ratings"].as_array_mut().unwrap().remove(3))), "ratings"),
        (change(&|b| b["ratings"] = json!([])), "ratings"),
        (change(&|b| b["rubric_version"] = json!("0123456789ab")), "rubric_version"),
        (change(&|b| (b["rubric_version"], b["ratings"]) = (Value::Null, json!([]))), "rubric_version"),
        (change(&|b| b["outcome"] = json!("skip")), "ratings"),
    ] {
        let refused = ada.post(&judge_path(&turn), body.clone()).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{body}: {}", refused.text);
    }
    for tags in [json!([]), json!(["a\nb"]), json!(["x".repeat(65)]), json!(vec!["t"; 17])] {
        let mut body = word(&turn, &full(&turn, 6, 2), "key");
        let given = ratings(&turn, "x", &[("notes", tags)]);
        body["ratings"].as_array_mut().unwrap().extend(given);
        let refused = ada.post(&judge_path(&turn), body).await.expect(400);
        assert!(refused.param().unwrap().starts_with("ratings[5].value"), "{}", refused.text);
    }
    assert_eq!(server.services.store.counts().await.unwrap().judgments, 0);
    // All that is required, and tags, one of them twice.
    let mut all = full(&turn, 6, 2);
    all.extend(ratings(&turn, "x", &[("notes", json!(["kind", "kind", "短"]))]));
    let stored = ada.post(&judge_path(&turn), word(&turn, &all, "key")).await.expect(200).json()["judgment"].clone();
    assert_eq!(stored["rubric_version"], version);
    let value = |text: &str, key: &str| {
        let id = ratings(&turn, text, &[("x", json!(0))])[0]["completion_id"].clone();
        let all = stored["ratings"].as_array().unwrap();
        all.iter().find(|r| r["completion_id"] == id && r["dimension"] == key).map(|r| r["value"].clone())
    };
    assert_eq!((value("x", "helpful"), value("y", "helpful")), (Some(json!(6)), Some(json!(2))));
    assert_eq!((value("x", "unsafe"), value("y", "unsafe")), (Some(json!(false)), Some(json!(true))));
    assert_eq!((value("x", "notes"), value("y", "notes")), (Some(json!(["kind", "短"])), None));
    let path = format!("/v1/label/judgments/{}", stored["id"].as_str().unwrap());
    let reopened = ada.get(&path).await.expect(200).json();
    assert_eq!((&reopened["judgment"]["ratings"], &reopened["rubric"]["version"]), (&stored["ratings"], &version));
    assert_eq!(server.get("/v1/judgments").await.json()["data"][0]["ratings"], stored["ratings"]);
}

/// [`rubric`] with what the server adds to it.
fn rubric_as_stored() -> Value {
    let mut definition = rubric();
    for i in [2, 3] {
        definition["dimensions"][i]["required"] = json!(false);
    }
    definition
}

#[tokio::test]
async fn only_what_is_ranked_on_the_page_must_be_rated() {
    let server = Server::start().await;
    new_set(&server, "before", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let before = ada.next("").await.expect(200).json();
    assert_eq!(before["rubric"], Value::Null);
    let early = ratings(&before, "x", &[("helpful", json!(3))]);
    let refused = ada.post(&judge_path(&before), word(&before, &early, "k")).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("ratings"), "there is nothing to rate by");
    put(&server, rubric()).await;
    // A page that was opened before learns what to send.
    let late = ada.judge(&before, &["x", "y"]).await.expect(400);
    assert_eq!(late.param().as_deref(), Some("rubric_version"));
    ada.skip(&before).await.expect(200);
    for (i, outcome) in ["all_bad", "unrankable"].into_iter().enumerate() {
        new_set(&server, outcome, &["x", "y"], 1).await;
        let turn = ada.next("").await.expect(200).json();
        let body = json!({"lease_token": turn["lease_token"], "outcome": outcome, "idempotency_key": format!("o{i}"),
                          "rubric_version": turn["rubric"]["version"]});
        ada.post(&judge_path(&turn), body).await.expect(200);
    }
    // A ranking by API, as a chat duel sends it, is one without a rubric.
    let body = json!({"messages": [{"role": "user", "content": "api"}],
                      "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
    let stored = server.post("/v1/comparisons", body).await.expect(201).json();
    assert_eq!((&stored["judgment"]["rubric_version"], &stored["judgment"]["ratings"]), (&Value::Null, &json!([])));
    // The rationale is required of rankings too.
    let with_reason = json!({"name": "why", "dimensions": [likert("q", 5, false)], "rationale": "required"});
    put(&server, with_reason).await;
    new_set(&server, "why", &["x", "y"], 1).await;
    let turn = ada.next("").await.expect(200).json();
    let mut body = word(&turn, &[], "why");
    body["rationale"] = json!("  ");
    let refused = ada.post(&judge_path(&turn), body.clone()).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("rationale"));
    body["rationale"] = json!("y is shorter");
    let stored = ada.post(&judge_path(&turn), body).await.expect(200).json();
    assert_eq!(
        (&stored["judgment"]["rationale"], &stored["judgment"]["ratings"]),
        (&json!("y is shorter"), &json!([]))
    );
}

#[tokio::test]
async fn a_revision_replaces_ratings_and_figures_are_by_version() {
    let server = Server::start().await;
    let first = put(&server, rubric()).await["version"].clone();
    let people = [Person::new(&server, "ada").await, Person::new(&server, "bob").await];
    let mut turns = Vec::new();
    for i in 0..6 {
        new_set(&server, &format!("q{i}"), &["x", "y"], 2).await;
        for (who, person) in people.iter().enumerate() {
            let turn = person.next("").await.expect(200).json();
            let (x, y) = (5 + (i % 3), 1 + (i % 2));
            let stored = person.post(&judge_path(&turn), word(&turn, &full(&turn, x, y), &format!("{i}{who}"))).await;
            turns.push((turn, stored.expect(200).json()["judgment"]["id"].clone()));
        }
    }
    let report = server.get("/admin/api/quality/ratings?seed=1").await.expect(200).json();
    let found = &report["rubrics"][0];
    assert_eq!((report["rubrics"].as_array().unwrap().len(), &found["version"]), (1, &first));
    assert_eq!(found["active"], true);
    let [helpful, follows, unsafe_, notes] = [0, 1, 2, 3].map(|i| found["dimensions"][i].clone());
    assert_eq!(
        (&helpful["ratings"], &helpful["completions"], &helpful["labelers"]),
        (&json!(24), &json!(12), &json!(2))
    );
    assert_eq!(helpful["counts"], json!([6, 6, 0, 0, 4, 4, 4]));
    assert_eq!(helpful["mean"]["value"], json!(90.0 / 24.0));
    assert_eq!((&helpful["alpha"]["value"], &helpful["same"]["value"]), (&json!(1.0), &json!(1.0)));
    assert_eq!((&follows["counts"], &unsafe_["counts"]), (&json!([12, 12]), &json!([12, 12])));
    assert_eq!((&notes["ratings"], &notes["mean"]), (&json!(0), &Value::Null));
    // One labeler changes their mind about one set: the whole of their ratings is replaced.
    let (turn, id) = &turns[0];
    let mut body = word(turn, &full(turn, 1, 7), "revised");
    body["revises"] = id.clone();
    people[0].post(&judge_path(turn), body).await.expect(200);
    let report = server.get("/admin/api/quality/ratings?seed=1").await.expect(200).json();
    let helpful = &report["rubrics"][0]["dimensions"][0];
    assert_eq!((&helpful["ratings"], &helpful["counts"]), (&json!(24), &json!([6, 6, 0, 0, 3, 4, 5])));
    assert!(helpful["alpha"]["value"].as_f64().unwrap() < 0.9, "{helpful}");
    // Another version has its own figures, and sets with known answers are not among them.
    let mut other = rubric();
    other["dimensions"][0]["points"] = json!(5);
    let second = put(&server, other).await["version"].clone();
    let report = server.get("/admin/api/quality/ratings").await.expect(200).json();
    let versions: Vec<_> = report["rubrics"].as_array().unwrap().iter().map(|r| &r["version"]).collect();
    assert_eq!(versions, [&second, &first], "the active one too, though nothing is rated by it");
    assert_eq!(report["rubrics"][0]["dimensions"][0]["ratings"], 0);
    let gold = new_set(&server, "gold", &["x", "y"], 1).await;
    known_answer(&server, &gold, "gold", &["x", "y"]).await;
    let turn = people[0].next(&format!("?set_id={}", gold["id"].as_str().unwrap())).await.expect(200).json();
    people[0].post(&judge_path(&turn), word(&turn, &full(&turn, 5, 1), "gold")).await.expect(200);
    let report = server.get("/admin/api/quality/ratings").await.expect(200).json();
    assert_eq!(report["rubrics"][0]["dimensions"][0]["ratings"], 0);
    let report = server.get("/admin/api/quality/ratings?kind=gold").await.expect(200).json();
    assert_eq!(report["rubrics"][0]["dimensions"][0]["ratings"], 2);
}

#[tokio::test]
async fn files_carry_ratings_to_another_server_and_back() {
    let server = Server::start().await;
    let version = put(&server, rubric()).await["version"].clone();
    new_set(&server, "q", &["x", "y"], 1).await;
    let ada = Person::new(&server, "ada").await;
    let turn = ada.next("").await.expect(200).json();
    let mut all = full(&turn, 6, 2);
    all.extend(ratings(&turn, "y", &[("notes", json!(["too long"]))]));
    ada.post(&judge_path(&turn), word(&turn, &all, "k")).await.expect(200);
    let out = server.get("/admin/export?format=comparisons").await.expect(200).text;
    let line: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(line["rubric"], version);
    let of = |text: &str| line["completions"].as_array().unwrap().iter().find(|c| c["text"] == text).unwrap().clone();
    assert_eq!(of("x")["ratings"], json!({"follows": true, "helpful": 6, "unsafe": false}));
    assert_eq!(of("y")["ratings"], json!({"follows": false, "helpful": 2, "notes": ["too long"], "unsafe": true}));
    // A version of a data set has the numbers and no words of labelers.
    let made = server.post("/admin/datasets", json!({"name": "d"})).await.expect(201).json();
    assert_eq!(made["n_sets"], 1);
    let kept = server.get("/admin/export?format=comparisons&dataset=d").await.expect(200).text;
    assert!(kept.contains("\"helpful\":2") && !kept.contains("too long"), "{kept}");
    // The file comes back to the server it was written by.
    let done = import(&server, out.clone()).await.expect(200).json();
    assert_eq!((&done["imported"], &done["skipped"]), (&json!(0), &json!(1)), "{done}");

    let second = Server::start().await;
    let refused = import(&second, out.clone()).await.expect(400).json();
    let message = refused["errors"][0]["message"].as_str().unwrap();
    assert!(message.contains(version.as_str().unwrap()) && message.contains("/admin/rubrics"), "{message}");
    let stored = second.post("/admin/rubrics", json!({"definition": rubric()})).await.expect(201).json();
    assert_eq!(stored["version"], version, "the same definition has the same version everywhere");
    let done = import(&second, out.clone()).await.expect(200).json();
    assert_eq!(done["imported"], 1, "{done}");
    let back: Value = serde_json::from_str(&second.get("/admin/export?format=comparisons").await.text).unwrap();
    let same = |line: &Value| (line["rubric"].clone(), line["completions"].clone(), line["labeler"].clone());
    assert_eq!(same(&back), same(&line));
    // Lines that do not fit their rubric are named.
    let mut bad = line.clone();
    bad["completions"][0]["ratings"]["helpful"] = json!(9);
    bad["prompt"][0]["content"] = json!("another");
    let done = import(&second, bad.to_string()).await.expect(400).json();
    assert!(done["errors"][0]["message"].as_str().unwrap().contains("1 to 7"), "{done}");
    bad["completions"][0]["ratings"]["helpful"] = json!({"n": 9});
    let done = import(&second, bad.to_string()).await.expect(400).json();
    assert!(done["errors"][0]["message"].as_str().unwrap().contains("ratings.helpful"), "{done}");
    bad["completions"][0]["ratings"]["helpful"] = json!(3);
    bad.as_object_mut().unwrap().remove("rubric");
    let done = import(&second, bad.to_string()).await.expect(400).json();
    assert!(done["errors"][0]["message"].as_str().unwrap().contains("`rubric`"), "{done}");
}

/// Data sets, and so reward models, of one dimension.
#[tokio::test]
async fn data_sets_rank_by_a_dimension() {
    let server = Server::start().await;
    let version = put(&server, rubric()).await["version"].clone();
    let ada = Person::new(&server, "ada").await;
    for (i, (x, y)) in [(6, 2), (3, 5), (4, 4)].into_iter().enumerate() {
        new_set(&server, &format!("q{i}"), &["x", "y"], 1).await;
        let turn = ada.next("").await.expect(200).json();
        ada.post(&judge_path(&turn), word(&turn, &full(&turn, x, y), &format!("k{i}"))).await.expect(200);
    }
    // One without a rubric has no ratings.
    server.post("/admin/rubrics/active", json!({"version": null})).await.expect(200);
    new_set(&server, "unrated", &["x", "y"], 1).await;
    let turn = ada.next("").await.expect(200).json();
    ada.judge(&turn, &["x", "y"]).await.expect(200);
    let freeze = async |name: &str, by: Value| {
        server.post("/admin/datasets", json!({"name": name, "filter": {"by_rating": by}})).await
    };
    let export = async |name: &str| {
        let text = server.get(&format!("/admin/export?format=comparisons&dataset={name}")).await.expect(200).text;
        let mut lines: Vec<(String, Vec<(String, i64)>)> = text
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["rubric"], version);
                assert!(!line.to_string().contains("ratings"), "{line}");
                let of = |c: &Value| (c["text"].as_str().unwrap().to_owned(), c["tier"].as_i64().unwrap());
                let mut order: Vec<_> = line["completions"].as_array().unwrap().iter().map(of).collect();
                order.sort();
                (line["prompt"][0]["content"].as_str().unwrap().to_owned(), order)
            })
            .collect();
        lines.sort();
        lines
    };
    let tiers = |name: &str, x, y| (name.to_owned(), vec![("x".to_owned(), x), ("y".to_owned(), y)]);
    let made = freeze("helpful", json!({"rubric": version, "dimension": "helpful"})).await.expect(201).json();
    assert_eq!((&made["n_sets"], &made["n_pairs"]), (&json!(3), &json!(2)), "the tie has no pair");
    assert_eq!(export("helpful").await, [tiers("q0", 0, 1), tiers("q1", 1, 0), tiers("q2", 0, 0)]);
    let unsafe_ = json!({"rubric": version, "dimension": "unsafe", "lower_is_better": true});
    freeze("safe", unsafe_).await.expect(201);
    assert_eq!(export("safe").await, [tiers("q0", 0, 1), tiers("q1", 0, 1), tiers("q2", 0, 1)]);
    // Formats of others hold them too.
    let trl = server.get("/admin/export?format=trl&dataset=helpful").await.expect(200).text;
    assert_eq!(trl.lines().count(), 2);
    for (by, param) in [
        (json!({"rubric": "nope", "dimension": "helpful"}), "filter.by_rating.rubric"),
        (json!({"rubric": version, "dimension": "nope"}), "filter.by_rating.dimension"),
        (json!({"rubric": version, "dimension": "notes"}), "filter.by_rating.dimension"),
    ] {
        assert_eq!(freeze("bad", by).await.expect(400).param().as_deref(), Some(param));
    }
    let both = json!({"filter": {"by_rating": {"rubric": version, "dimension": "helpful"}, "feedback": true}});
    server.post("/admin/datasets", both).await.expect(400);
    // A job takes the same filter.
    let args = json!({"filter": {"by_rating": {"rubric": version, "dimension": "nope"}}});
    let refused = server.post("/admin/jobs", json!({"kind": "reward", "args": args})).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("args.filter.by_rating.dimension"));
    let args = json!({"filter": {"by_rating": {"rubric": version, "dimension": "helpful"}}});
    server.post("/admin/jobs", json!({"kind": "reward", "args": args})).await.expect(201);
}
