//! The disk is full while a file is imported, a version is promoted, a backup is written or restored, and a job trains:
//! each is refused with a clear error and leaves nothing in part, the server goes on, and with space again the same
//! succeeds.

use std::path::{Path, PathBuf};

use instructd::artifacts::{Artifacts, Remote};
use instructd::config::ArtifactsConfig;
use instructd::domain::{ModelState, ModelVersion, ModelVersionId};
use instructd::store::{self, Store};
use serde_json::{Value, json};

use super::disk::SmallDisk;
use super::server::{ADMIN_KEY, Answer, Place, Server, answer};
use crate::store::integrity::assert_sound;
use crate::support::eventually::{LONG, eventually};
use crate::support::fixture;

fn database(dir: &Path) -> String {
    format!("sqlite://{}", dir.join("instructd.db").display())
}

/// The answer says that the disk is full.
fn refused(answer: &Answer, server: &Server) {
    let code = &answer.json["error"]["code"];
    assert_eq!((answer.status, code), (503, &json!("disk_full")), "{}: {}", answer.json, server.words());
}

/// Stores a ranking.
async fn rank(server: &Server, key: &str) -> Answer {
    let body = json!({"messages": [{"role": "user", "content": key}], "idempotency_key": key,
        "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
    server.call("POST", "/v1/comparisons", Some(body)).await
}

async fn judgments(url: &str) -> i64 {
    let store = store::connect(url).await.unwrap();
    let judgments = store.counts().await.unwrap().judgments;
    store.close().await;
    judgments
}

/// Lines of an imported file: several transactions.
const LINES: usize = 1200;

async fn import(server: &Server, name: &str) -> Answer {
    let line = |i: usize| {
        let text = "x".repeat(4000);
        let completions = [0, 1].map(|tier| json!({"text": format!("{tier} {text}"), "tier": tier}));
        json!({"prompt": format!("{name} {i}"), "completions": completions}).to_string() + "\n"
    };
    let file: String = (0..LINES).map(line).collect();
    let path = format!("/admin/import?format=comparisons&name={name}");
    let request = server.http.post(format!("{}{path}", server.url)).bearer_auth(ADMIN_KEY).body(file);
    answer(request.header("content-type", "application/x-ndjson"), "POST", &path).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_onto_a_full_disk_goes_on_where_it_stopped() {
    let Some(disk) = SmallDisk::mount(40) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let url = database(disk.path());
    let server = Server::start(&Place::new(&url, elsewhere.path())).await;
    rank(&server, "before").await.expect(201);
    disk.fill();
    // Some of the lines fit.
    disk.leave(3 << 20);
    refused(&import(&server, "file").await, &server);
    server.call("GET", "/v1/judgments?limit=10", None).await.expect(200);
    server.call("GET", "/ready", None).await.expect(200);

    disk.clear();
    let report = import(&server, "file").await.expect(200);
    let of = |name: &str| report[name].as_u64().unwrap() as usize;
    assert_eq!((of("imported") + of("skipped"), of("failed")), (LINES, 0), "{report}");
    assert!(of("skipped") > 0 && of("imported") > 0, "the first lines were stored, the last were not: {report}");
    rank(&server, "afterwards").await.expect(201);
    assert_eq!(judgments(&url).await, (LINES + 2) as i64, "each line once");
    drop(server);
    assert_sound(&url).await;
}

/// The served version, and the active one of the database.
async fn served(server: &Server) -> (String, Vec<String>) {
    let ready = server.call("GET", "/ready", None).await.json;
    let models = server.call("GET", "/admin/models", None).await.expect(200);
    let active = |m: &&Value| m["kind"] == "policy" && m["state"] == "active";
    let active = models["data"].as_array().unwrap().iter().filter(active).map(|m| m["name"].as_str().unwrap().into());
    (ready["model"].as_str().unwrap_or_default().to_owned(), active.collect())
}

async fn promote(server: &Server, name: &str) -> Answer {
    server.call("POST", &format!("/admin/models/{name}/promote"), Some(json!({}))).await
}

/// Stores a candidate with the weights of the first version.
async fn put_candidate(store: &Store, name: &str, artifact_uri: Option<&str>) -> ModelVersion {
    let base = store.models().list().await.unwrap().remove(0);
    let version = ModelVersion {
        id: ModelVersionId::new(),
        name: name.into(),
        state: ModelState::Candidate,
        artifact_uri: artifact_uri.map_or(base.artifact_uri, str::to_owned),
        ..base
    };
    store.models().put(version.clone()).await.unwrap();
    version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_the_full_disk_refuses_changes_nothing() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let url = database(disk.path());
    let server = Server::start(&Place::new(&url, elsewhere.path())).await;
    let store = store::connect(&url).await.unwrap();
    let names = ["one", "two"];
    for name in names {
        put_candidate(&store, name, None).await;
    }
    store.close().await;
    promote(&server, names[0]).await.expect(200);
    disk.fill();
    // What is left inside the log's pages may still take some.
    let mut n = 0;
    loop {
        let answer = promote(&server, names[(n + 1) % 2]).await;
        if answer.status != 200 {
            refused(&answer, &server);
            break;
        }
        n += 1;
    }
    let (acknowledged, wanted) = (names[n % 2], names[(n + 1) % 2]);
    assert_eq!(served(&server).await, (acknowledged.to_owned(), vec![acknowledged.to_owned()]), "after {n}");

    disk.clear();
    promote(&server, wanted).await.expect(200);
    assert_eq!(served(&server).await, (wanted.to_owned(), vec![wanted.to_owned()]));
    let body = json!({"prompt": [1, 2], "max_tokens": 2});
    assert_eq!(server.call("POST", "/v1/completions", Some(body)).await.expect(200)["model"], json!(wanted));
    drop(server);
    assert_sound(&url).await;
}

/// Files under a directory, with what they are called below it.
fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files_under(&path)),
            path => found.push(path),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_the_full_disk_has_no_room_for_is_not_served() {
    let Some(disk) = SmallDisk::mount(12) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (url, data) = (database(elsewhere.path()), disk.path().join("data"));
    let shared = format!("file://{}", elsewhere.path().join("artifacts").display());
    let server = Server::start(&Place::new(&url, &data).with("INSTRUCTD_ARTIFACTS__URL", &shared)).await;
    let store = store::connect(&url).await.unwrap();
    // Another server made it: its files are in the artifact store only.
    let version = put_candidate(&store, "elsewhere", Some("models/elsewhere")).await;
    let config = ArtifactsConfig { url: Some(shared), ..ArtifactsConfig::default() };
    let artifacts = Artifacts::with(elsewhere.path().to_owned(), store.clone(), Remote::open(&config).unwrap());
    let files = artifacts.publish(&version.id, &fixture("llama-tied-tiny")).await.unwrap();
    store.models().put_files(&version.id, files).await.unwrap();
    store.close().await;
    let base = served(&server).await;

    disk.fill();
    for name in ["builtin", "elsewhere"] {
        let before = files_under(&data);
        refused(&promote(&server, name).await, &server);
        assert_eq!(files_under(&data), before, "{name} leaves nothing");
        assert_eq!(served(&server).await, base);
        rank(&server, name).await.expect(201);
        let body = json!({"prompt": [1, 2], "max_tokens": 2});
        assert_eq!(server.call("POST", "/v1/completions", Some(body)).await.expect(200)["model"], json!(base.0));
    }
    disk.clear();
    for name in ["builtin", "elsewhere"] {
        promote(&server, name).await.expect(200);
        assert_eq!(served(&server).await, (name.to_owned(), vec![name.to_owned()]));
    }
}

/// Runs a subcommand; returns whether it succeeded and what it said.
async fn command(place: &Place, subcommand: &str, path: &Path) -> (bool, String) {
    let mut command = place.command(subcommand);
    command.arg(path);
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_a_restore_onto_a_full_disk_leave_nothing_in_the_way() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let url = database(elsewhere.path());
    let place = Place::new(&url, &elsewhere.path().join("data"));
    let server = Server::start(&place).await;
    rank(&server, "before").await.expect(201);

    let out = disk.path().join("backup");
    disk.fill();
    for room in [0, 100 << 10] {
        disk.leave(room);
        let (succeeded, words) = command(&place, "backup", &out).await;
        assert!(!succeeded && words.contains("disk is full") && words.contains("backup.part"), "{words}");
        assert_eq!(files_under(disk.path()), [disk.path().join("filler")]);
        rank(&server, &format!("after {room}")).await.expect(201);
    }
    disk.clear();
    let (succeeded, words) = command(&place, "backup", &out).await;
    assert!(succeeded, "{words}");

    // A restore: first nothing fits, then the models without the database.
    let backup = elsewhere.path().join("backup");
    assert!(std::process::Command::new("cp").arg("-r").args([&out, &backup]).status().unwrap().success());
    std::fs::remove_dir_all(&out).unwrap();
    let size = |dir: &Path| files_under(dir).iter().map(|f| f.metadata().unwrap().len()).sum::<u64>();
    let models = size(&backup.join("models"));
    assert!(models > 100 << 10 && size(&backup) - models > 400 << 10, "{models} of {}", size(&backup));
    let data = disk.path().join("restored");
    let restored = database(&data);
    let to = Place::new(&restored, &data);
    // Its directory and configuration are there before the disk is full.
    to.command("restore");
    disk.fill();
    for room in [0, models + (150 << 10)] {
        disk.leave(room);
        let (succeeded, words) = command(&to, "restore", &backup).await;
        assert!(!succeeded && (words.contains("No space left") || words.contains("disk is full")), "{words}");
        assert_eq!(files_under(&data).iter().filter(|f| f.extension().is_some_and(|e| e == "part")).count(), 0);
        assert!(!data.join("instructd.db").exists());
    }
    disk.clear();
    let (succeeded, words) = command(&to, "restore", &backup).await;
    assert!(succeeded, "{words}");
    assert_eq!(judgments(&restored).await, 3);
    assert_sound(&restored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_on_a_full_disk_can_be_backed_up_elsewhere() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let url = database(disk.path());
    let place = Place::new(&url, &elsewhere.path().join("data"));
    let server = Server::start(&place).await;
    let mut stored = 0;
    while stored < 10 {
        rank(&server, &format!("k{stored}")).await.expect(201);
        stored += 1;
    }
    disk.fill();
    loop {
        let answer = rank(&server, &format!("k{stored}")).await;
        if answer.status != 201 {
            refused(&answer, &server);
            break;
        }
        stored += 1;
    }
    let out = elsewhere.path().join("backup");
    let (succeeded, words) = command(&place, "backup", &out).await;
    assert!(succeeded && words.contains("does not list this backup"), "{words}");
    let data = elsewhere.path().join("restored");
    let restored = database(&data);
    let (succeeded, words) = command(&Place::new(&restored, &data), "restore", &out).await;
    assert!(succeeded, "{words}");
    assert_eq!(judgments(&restored).await, stored);
}

async fn demonstrate(server: &Server) {
    for i in 0..4 {
        let body = json!({"messages": [{"role": "user", "content": format!("t{i}")}], "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
}

/// Queues a short run that publishes `name`; returns the job's id.
async fn train(server: &Server, name: &str) -> String {
    let args = json!({"epochs": 2, "checkpoint_every": 2, "batch_size": 2, "max_length": 16, "publish_as": name});
    let made = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await;
    assert!([201, 202].contains(&made.status), "{} {}", made.status, made.json);
    made.json["id"].as_str().unwrap().to_owned()
}

/// The job, once it has ended.
async fn ended(server: &Server, id: &str) -> Value {
    let path = format!("/admin/jobs/{id}");
    eventually(LONG, "the job's end", async || {
        let job = server.call("GET", &path, None).await.expect(200);
        ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()).then_some(job)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_the_artifact_store_has_no_room_for_keeps_its_name_free() {
    let Some(disk) = SmallDisk::mount(12) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (url, data) = (database(elsewhere.path()), elsewhere.path().join("data"));
    let shared = format!("file://{}", disk.path().join("artifacts").display());
    let server = Server::start(&Place::new(&url, &data).with("INSTRUCTD_ARTIFACTS__URL", shared)).await;
    demonstrate(&server).await;
    disk.fill();
    let id = train(&server, "roomy").await;
    let job = ended(&server, &id).await;
    let error = job["error"].as_str().unwrap_or_default();
    assert!(job["state"] == "failed" && error.contains("publishing failed"), "{job}");
    assert!(error.contains("No space left"), "{job}");
    assert!(!data.join("models/roomy").exists(), "a directory of no version");

    disk.clear();
    server.call("POST", &format!("/admin/jobs/{id}/resume"), None).await.expect(200);
    let job = ended(&server, &id).await;
    assert_eq!((&job["state"], &job["result"]["model"]), (&json!("succeeded"), &json!("roomy")), "{job}");
    promote(&server, "roomy").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_on_a_full_disk_fails_and_is_resumed() {
    let Some(disk) = SmallDisk::mount(12) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let url = database(elsewhere.path());
    let server = Server::start(&Place::new(&url, &disk.path().join("data"))).await;
    demonstrate(&server).await;
    disk.fill();
    // First its data has no room, then its first checkpoint.
    for (room, at) in [(0, "cannot write the job's files"), (128 << 10, "cannot write checkpoint")] {
        disk.leave(room);
        let name = format!("room-{room}");
        let id = train(&server, &name).await;
        let job = ended(&server, &id).await;
        let error = job["error"].as_str().unwrap_or_default();
        assert!(job["state"] == "failed" && error.contains(at) && error.contains("No space left"), "{job}");
        rank(&server, &name).await.expect(201);

        disk.clear();
        server.call("POST", &format!("/admin/jobs/{id}/resume"), None).await.expect(200);
        let job = ended(&server, &id).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        promote(&server, &name).await.expect(200);
        disk.fill();
    }
}
