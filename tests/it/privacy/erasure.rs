//! What is stored about a person: every column that names them is exported, and erased or exempt for a reason; backups
//! do not bring them back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::support::mock::{MockGenerator, MockOptions};
use instructd::config::Config;
use instructd::domain::*;
use instructd::service::backup;
use instructd::service::random::{actor_hash, secret_hash};
use instructd::service::{Random, Services, system_clock};
use instructd::store::dump;
use serde_json::{Value, json};

use crate::api::client::{ADMIN_KEY, Answer, Server, version};
use crate::store::backend::{self, Fresh};

/// What a column that names a person has to do with them.
enum Column {
    /// In the export under this name, and gone after an erasure.
    Exported(&'static str),
    /// Not in the export, and gone after an erasure: a secret's hash, or what another column says already.
    Internal,
    /// Stays after an erasure, for this reason.
    Stays(&'static str, &'static str),
}
use Column::{Exported, Internal, Stays};

const NAMELESS: &str = "the id stays on a row without a name, so that what others did beside it keeps its meaning";

/// Every column that can name a person or their key.
const COLUMNS: &[(&str, Column)] = &[
    ("api_keys.id", Stays("keys", "its use may be counted elsewhere; the key is revoked, nameless and nobody's")),
    ("api_keys.labeler_id", Exported("keys")),
    ("assignments.labeler_id", Exported("assignments")),
    ("audit_log.actor", Stays("actions", NAMELESS)),
    ("audit_log.credential", Stays("actions", "says what kind of secret was shown, of a key or link that is gone")),
    ("audit_log.detail", Stays("actions", "holds ids and counts, no texts")),
    ("audit_log.target", Stays("actions", NAMELESS)),
    ("comparison_sets.made_by", Exported("sets")),
    ("conversations.labeler_id", Exported("conversations")),
    ("demonstrations.labeler_id", Exported("demonstrations")),
    ("erasures.labeler_id", Stays("", "it is how a restored backup erases the person again")),
    ("feedback_events.actor_hash", Exported("feedback_events")),
    ("identities.labeler_id", Exported("identities")),
    ("guideline_versions.created_by", Stays("guidelines", NAMELESS)),
    ("invites.used_by", Stays("invites", NAMELESS)),
    ("jobs.created_by", Exported("jobs")),
    ("judgments.labeler_id", Exported("judgments")),
    ("key_usage.key_id", Stays("", "a count of tokens a day, of a key that is nobody's")),
    ("key_maps.labeler_id", Exported("key_map")),
    ("labelers.id", Stays("labeler", NAMELESS)),
    ("project_members.labeler_id", Exported("projects")),
    ("resolutions.reviewer_id", Exported("resolutions")),
    ("rubric_activations.created_by", Stays("rubric_activations", NAMELESS)),
    ("rubrics.created_by", Stays("rubrics", NAMELESS)),
    ("model_judgments.labeler_id", Stays("", "names a language model, never a person")),
    ("prompt_submissions.labeler_id", Exported("prompts")),
    ("reveals.labeler_id", Exported("reveals")),
    ("sessions.credential", Internal),
    ("sessions.labeler_id", Exported("sessions")),
    ("settings.updated_by", Exported("settings")),
    ("sign_in_links.labeler_id", Exported("links")),
];

/// Columns that hold the person's words, and where the export has them.
const WORDS: &[&str] = &[
    "completions.text",
    "feedback_events.value",
    "judgment_flags.note",
    "judgment_ratings.value",
    "judgment_spans.note",
    "judgments.rationale",
    "prompts.messages",
];

const MARK: &str = "ADA-SAYS";

/// A server over a fresh database.
async fn serving(fresh: &Fresh, dir: &Path) -> Server {
    let mut config = Config { data_dir: dir.to_owned(), database_url: Some(fresh.url.clone()), ..Config::default() };
    config.labeling.reveal = true;
    let services = Services::new(
        config,
        fresh.store.clone(),
        system_clock(),
        Random::from_seed(3),
        secret_hash(ADMIN_KEY),
        instructd::train::job_kinds(),
    );
    let server = Server::of(Arc::new(services), tempfile::tempdir().unwrap());
    let base = version("base", ModelKind::Policy, None);
    fresh.store.models().put(base.clone()).await.unwrap();
    fresh.store.models().activate(&base.id, 1).await.unwrap();
    server.services.set_engine(Arc::new(MockGenerator::new(base, MockOptions::default())));
    server
}

/// Data of the last server-sent event.
fn last_event(answer: &Answer) -> Value {
    serde_json::from_str(answer.events().last().unwrap()).unwrap()
}

/// Everything that a person can do; returns their id.
async fn busy_person(server: &Server) -> String {
    let invite = server.post("/admin/invites", json!({"role": "admin", "note": "for Ada"})).await.expect(201).json();
    let login =
        server.open_post("/session", json!({"invite": invite["token"], "name": "Ada Person"})).await.expect(200);
    let cookie = login.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let id = login.json()["labeler"]["id"].as_str().unwrap().to_owned();
    let ada = [("cookie", cookie.as_str())];
    let post = async |path: &str, body: Value| server.call("POST", path, &ada, Some(body)).await;
    let said = |what: &str| format!("{MARK} {what}");
    let messages = |what: &str| json!([{"role": "user", "content": said(what)}]);
    let ranked = |set: &Value, key: &str| {
        let items: Vec<Value> = (0i64..)
            .zip(set["completions"].as_array().unwrap())
            .map(|(tier, c)| json!({"completion_id": c["id"], "tier": tier}))
            .collect();
        json!({"outcome": "ranked", "items": items, "idempotency_key": key, "rationale": said("why"),
               "flags": [{"code": "other", "note": said("flag")}]})
    };
    let person = server.services.store.people().get(&id.as_str().into()).await.unwrap();
    server.services.store.people().join("proxy", "Ada@example.org", person).await.unwrap();
    post("/v1/label/keys", json!({"keys": {"tie": "t"}})).await.expect(200);
    // A rubric with tags, which she activates.
    let notes = json!({"key": "notes", "label": {"en": "Notes"}, "kind": "tags"});
    let rubric = json!({"definition": {"name": "Notes", "dimensions": [notes]}, "activate": true});
    post("/admin/rubrics", rubric).await.expect(201);
    // A set of her own, judged by her alone, with an ideal answer; another that nobody judges.
    let set = json!({"messages": messages("question"), "completions": ["x", "y"]});
    let set = post("/v1/comparison-sets", set).await.expect(201).json();
    let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
    let turn = server.call("GET", &path, &ada, None).await.expect(200).json();
    let mut body = ranked(&turn, "a1");
    body["lease_token"] = turn["lease_token"].clone();
    body["ideal_answer"] = said("ideal").into();
    body["ratings"] =
        json!([{"completion_id": turn["completions"][0]["id"], "dimension": "notes", "value": [said("tag")]}]);
    body["spans"] =
        json!([{"completion_id": turn["completions"][0]["id"], "start": 0, "end": 1, "note": said("span")}]);
    body["corrections"] = json!([{"completion_id": turn["completions"][1]["id"], "text": said("correction")}]);
    post(&format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap()), body).await.expect(200);
    // A conversation of two turns, of which she judges the first.
    let ask = json!({"messages": messages("asks"), "n": 2, "sampling": {"max_tokens": 16}});
    let asked = last_event(&post("/v1/label/ask", ask).await.expect(200));
    let mut body = ranked(&asked, "a3");
    body["lease_token"] = asked["lease_token"].clone();
    post(&format!("/v1/label/{}/judgment", asked["assignment_id"].as_str().unwrap()), body).await.expect(200);
    let next = json!({"set_id": asked["set_id"], "completion_id": asked["completions"][0]["id"], "content": said("goes on"),
                      "n": 2, "sampling": {"max_tokens": 16}});
    last_event(&post("/v1/label/continue", next).await.expect(200));
    let other = json!({"messages": messages("unjudged"), "completions": ["x", "y"]});
    post("/v1/comparison-sets", other).await.expect(201);
    // A set of others, settled by her, with feedback on an answer.
    let shared = json!({"messages": [{"role": "user", "content": "shared"}], "completions": ["p", "q"]});
    let shared = server.post("/v1/comparison-sets", shared).await.expect(201).json();
    let settle = format!("/v1/review/sets/{}/settle", shared["id"].as_str().unwrap());
    post(&settle, ranked(&shared, "a2")).await.expect(200);
    let comment = json!({"completion_id": shared["completions"][0]["id"], "kind": "comment", "value": said("comment")});
    post("/v1/feedback", comment).await.expect(201);
    let demonstration = json!({"messages": messages("shows"), "completion": said("how")});
    post("/v1/demonstrations", demonstration).await.expect(201);
    post("/admin/guidelines", json!({"lang": "en", "text": "Be kind."})).await.expect(200);
    post("/admin/settings", json!({"name": "labeling.overlap", "value": 1})).await.expect(204);
    post("/admin/jobs", json!({"kind": "reward", "args": {}})).await.expect(201);
    server.post("/admin/projects/default/members", json!({"labeler_id": id, "daily_quota": 5})).await.expect(200);
    server.post(&format!("/admin/labelers/{id}/link"), json!({})).await.expect(201);
    let key = json!({"name": "Ada's key", "scopes": ["inference"], "labeler_id": id, "daily_tokens": 1000});
    let key = server.post("/admin/keys", key).await.expect(201).json();
    let bearer = format!("Bearer {}", key["key"].as_str().unwrap());
    let chat = json!({"model": "base", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]});
    server.call("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(chat)).await.expect(200);
    id
}

/// Every column of every table, with the rows' cells as text.
async fn columns(url: &str) -> BTreeMap<String, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump::export(url, dir.path()).await.unwrap();
    let mut all = BTreeMap::new();
    for table in dump.tables {
        let text = std::fs::read_to_string(dir.path().join(format!("{}.jsonl", table.name))).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Vec<Value>>(line).unwrap());
        let names = lines.next().unwrap();
        let mut cells: Vec<Vec<String>> = vec![Vec::new(); names.len()];
        for row in lines {
            row.iter().zip(&mut cells).for_each(|(cell, column)| column.push(cell.as_str().unwrap_or("").to_owned()));
        }
        for (name, cells) in names.iter().zip(cells) {
            all.insert(format!("{}.{}", table.name, name.as_str().unwrap()), cells);
        }
    }
    all
}

/// Columns in which any of these is found.
fn holding(all: &BTreeMap<String, Vec<String>>, texts: &[&str]) -> BTreeSet<String> {
    let holds = |cells: &Vec<String>| cells.iter().any(|cell| texts.iter().any(|text| cell.contains(text)));
    all.iter().filter(|(_, cells)| holds(cells)).map(|(name, _)| name.clone()).collect()
}

async fn every_column_is_accounted_for(fresh: Fresh) {
    let dir = tempfile::tempdir().unwrap();
    let server = serving(&fresh, dir.path()).await;
    let id = busy_person(&server).await;
    let key =
        server.services.store.api_keys().list().await.unwrap().into_iter().find(|k| k.name == "Ada's key").unwrap();
    let hash = actor_hash(&id.as_str().into());
    let names = [id.as_str(), hash.as_str(), key.id.as_str()];
    let all = columns(&fresh.url).await;
    let known: BTreeMap<&str, &Column> = COLUMNS.iter().map(|(name, column)| (*name, column)).collect();

    // Columns that are made to name people, and columns that do: both are decided about.
    let speaks = |name: &str| {
        let column = name.split('.').next_back().unwrap();
        ["labeler", "reviewer", "actor", "created_by", "updated_by", "made_by", "used_by", "key_id", "credential"]
            .iter()
            .any(|word| column.contains(word))
    };
    let undecided: Vec<_> = all.keys().filter(|name| speaks(name) && !known.contains_key(name.as_str())).collect();
    assert!(undecided.is_empty(), "columns that may name a person: {undecided:?}");
    let before = holding(&all, &names);
    let undecided: Vec<_> = before.iter().filter(|name| !known.contains_key(name.as_str())).collect();
    assert!(undecided.is_empty(), "columns that name a person: {undecided:?}");
    let unused: Vec<_> = COLUMNS
        .iter()
        .filter(|(name, column)| matches!(column, Exported(_)) && !before.contains(*name))
        .map(|(name, _)| name)
        .collect();
    assert!(unused.is_empty(), "the test's person has no part in {unused:?}");
    assert_eq!(holding(&all, &[MARK]).iter().map(String::as_str).collect::<Vec<_>>(), WORDS);

    let data = server.get(&format!("/admin/labelers/{id}/data")).await.expect(200).json();
    for (name, column) in COLUMNS {
        let (Exported(part) | Stays(part, _)) = column else { continue };
        if part.is_empty() {
            continue;
        }
        let found = &data[part];
        assert!(found.as_array().map_or(found.is_object(), |list| !list.is_empty()), "{name}: no {part} in {data}");
    }
    for words in [
        "question",
        "unjudged",
        "ideal",
        "why",
        "flag",
        "tag",
        "span",
        "correction",
        "asks",
        "goes on",
        "comment",
        "shows",
        "how",
    ] {
        assert!(data.to_string().contains(&format!("{MARK} {words}")), "{words}: {data}");
    }

    let path = format!("/admin/labelers/{id}/erase");
    let erased = server.post(&path, json!({"judgments": "remove"})).await.expect(200).json();
    assert_eq!((&erased["sets"], &erased["judgments"]), (&json!(4), &json!(3)), "{erased}");
    let all = columns(&fresh.url).await;
    for name in holding(&all, &names) {
        let reason = known.get(name.as_str()).and_then(|column| match column {
            Stays(_, reason) => Some(reason),
            _ => None,
        });
        assert!(reason.is_some_and(|reason| !reason.is_empty()), "{name} still names the person");
    }
    let left = holding(&all, &["Ada"]);
    assert!(left.is_empty(), "the name is in {left:?}");
    let left = holding(&all, &[MARK]);
    assert!(left.is_empty(), "words of hers are in {left:?}");
    let data = server.get(&format!("/admin/labelers/{id}/data")).await.expect(200).json();
    for part in [
        "judgments",
        "demonstrations",
        "feedback_events",
        "reveals",
        "sets",
        "prompts",
        "resolutions",
        "conversations",
        "projects",
        "sessions",
        "links",
    ] {
        assert_eq!(data[part], json!([]), "{part}");
    }
    fresh.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_column_is_accounted_for_on_sqlite() {
    every_column_is_accounted_for(backend::sqlite().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_column_is_accounted_for_on_postgres() {
    if let Some(fresh) = backend::postgres().await {
        every_column_is_accounted_for(fresh).await;
    }
}

/// What a restored database says of the person, and whether it holds their words.
async fn restored(from: &Path, lists: &[std::path::PathBuf], id: &str) -> (String, bool) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
    backup::restore(&config, from, lists, system_clock()()).await.unwrap();
    let store = instructd::store::connect(&config.database_url()).await.unwrap();
    let name = store.people().get(&id.into()).await.unwrap().name;
    store.close().await;
    let all = columns(&config.database_url()).await;
    let words = holding(&all, &[&format!("{MARK} why"), "Ada"]);
    (name, !words.is_empty())
}

async fn restored_backups_erase_people_again(fresh: Fresh) {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = serving(&fresh, dir.path()).await;
    let id = busy_person(&server).await;
    let config = server.services.config.clone();
    let (known, moved, later) = (out.path().join("known"), out.path().join("moved"), out.path().join("later"));
    backup::backup(&config, &known, system_clock()()).await.unwrap();
    backup::backup(&config, &moved, system_clock()()).await.unwrap();
    // Somebody carries this one away before the erasure.
    let away = out.path().join("away");
    std::fs::rename(&moved, &away).unwrap();
    assert_eq!(restored(&known, &[], &id).await, ("Ada Person".to_owned(), true));

    let path = format!("/admin/labelers/{id}/erase");
    let erased = server.post(&path, json!({"judgments": "remove"})).await.expect(200).json();
    assert_eq!(erased["backups"], json!([known.display().to_string()]), "{erased}");
    assert!(erased["not_reached"].to_string().contains(&moved.display().to_string()), "{erased}");
    assert_eq!(restored(&known, &[], &id).await, ("erased".to_owned(), false), "its manifest names the person");
    // The one that was away brings the person back, unless a list is given with it.
    assert_eq!(restored(&away, &[], &id).await, ("Ada Person".to_owned(), true));
    backup::backup(&config, &later, system_clock()()).await.unwrap();
    for list in [dir.path().join("erased.json"), later.clone(), known.join("manifest.json")] {
        let found = restored(&away, std::slice::from_ref(&list), &id).await;
        assert_eq!(found, ("erased".to_owned(), false), "{}", list.display());
    }
    // The data directory that is restored into may have the list itself.
    let target = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("erased.json"), target.path().join("erased.json")).unwrap();
    let into = Config { data_dir: target.path().to_owned(), ..Config::default() };
    backup::restore(&into, &away, &[], system_clock()()).await.unwrap();
    let all = columns(&into.database_url()).await;
    assert!(holding(&all, &["Ada"]).is_empty());
    let error = backup::restore(&into, &away, &[out.path().join("none")], system_clock()()).await.unwrap_err();
    assert!(error.to_string().contains("none"), "a list that is not there is no empty list: {error:#}");
    fresh.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_backups_erase_people_again_on_sqlite() {
    restored_backups_erase_people_again(backend::sqlite().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_backups_erase_people_again_on_postgres() {
    if let Some(fresh) = backend::postgres().await {
        restored_backups_erase_people_again(fresh).await;
    }
}
