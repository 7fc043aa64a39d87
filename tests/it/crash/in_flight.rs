//! SIGKILL of the server while a file is imported, models are promoted, a backup is written and a job trains. What was
//! acknowledged is there once, a backup that ended well restores, and the job has one result. `INSTRUCTD_CRASH_KILLS` sets
//! the number of kills of a long run, `INSTRUCTD_CRASH_SEED` the seed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use instructd::domain::JobState;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::server::{ADMIN_KEY, Client, Dice, Place, Server, setting};
use crate::store::backend::{self, Fresh};
use crate::store::integrity;
use crate::support::eventually::{LONG, eventually};

/// Lines of an imported file: more than one transaction takes.
const LINES: usize = 600;

/// What the acts share.
struct Acts {
    client: Client,
    stop: Arc<AtomicBool>,
    seed: u64,
    /// Number of files whose import was acknowledged.
    imported: AtomicUsize,
}

impl Acts {
    fn over(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Imports one file of rankings after the other.
    async fn import(&self) {
        let mut client = self.client.clone();
        while !self.over() {
            let n = self.imported.load(SeqCst);
            let path = "/admin/import?format=comparisons&name=crash";
            let file = rankings(n);
            let answer =
                client.insist_on("POST", path, ADMIN_KEY, Some(("application/x-ndjson", file.as_bytes()))).await;
            let report = answer.expect(200);
            // What an import stored before it was cut off is there already.
            let usable = report["imported"].as_u64().unwrap() + report["skipped"].as_u64().unwrap();
            assert_eq!(usable, LINES as u64, "{report}");
            self.imported.store(n + 1, SeqCst);
        }
    }

    /// Promotes two versions in turns; returns the last one that was acknowledged and the number of promotions.
    async fn promote(&self, names: [&str; 2]) -> (String, usize) {
        let mut client = self.client.clone();
        let (mut active, mut n) = (names[0].to_owned(), 0);
        while !self.over() {
            let name = names[(n + 1) % 2];
            client
                .insist("POST", &format!("/admin/models/{name}/promote"), ADMIN_KEY, Some(&json!({})))
                .await
                .expect(200);
            let models = client.insist("GET", "/admin/models", ADMIN_KEY, None).await.expect(200);
            let is_active = |m: &&Value| m["kind"] == "policy" && m["state"] == "active";
            let now: Vec<_> = models["data"].as_array().unwrap().iter().filter(is_active).collect();
            assert_eq!((now.len(), &now[0]["name"]), (1, &json!(name)), "an acknowledged promotion stays");
            (active, n) = (name.to_owned(), n + 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (active, n)
    }

    /// Writes one backup after the other, each of which is killed at first and then written again. Returns the last
    /// one, with the number of files that were imported when it began.
    async fn backup(&self, place: &Place, directory: &Path) -> (PathBuf, usize) {
        let mut dice = Dice(self.seed + 7);
        let mut last: Option<(PathBuf, usize)> = None;
        loop {
            let known = self.imported.load(SeqCst);
            let out = directory.join(format!("after-{known}"));
            let begin = || {
                let mut command = place.command("backup");
                command.arg(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            };
            let mut killed = begin();
            tokio::time::sleep(Duration::from_millis(dice.roll(600))).await;
            killed.kill().unwrap();
            let ended = killed.wait().unwrap();
            assert!(out.exists() || !ended.success(), "a backup that ended well is there");
            if out.exists() {
                // The process may have been killed after it had written everything.
                restored(&out).await;
            } else {
                let mut child = begin();
                let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
                assert!(status.success(), "a backup beside a killed server failed: {status}");
            }
            if let Some((old, _)) = last.replace((out.clone(), known)).filter(|(old, _)| *old != out) {
                std::fs::remove_dir_all(old).unwrap();
            }
            eventually(LONG, "another import", async || {
                (self.over() || self.imported.load(SeqCst) > known).then_some(())
            })
            .await;
            if self.imported.load(SeqCst) == known {
                return last.unwrap();
            }
        }
    }
}

/// The lines of file `n`, each with a prompt of its own.
fn rankings(n: usize) -> String {
    let line = |i: usize| {
        let completions = [0, 1].map(|tier| json!({"text": format!("answer {tier} of {n}-{i}"), "tier": tier}));
        json!({"prompt": format!("question {n}-{i}"), "completions": completions}).to_string() + "\n"
    };
    (0..LINES).map(line).collect()
}

async fn job(server: &Server, name: &str, epochs: u64) -> String {
    let args = json!({"epochs": epochs, "checkpoint_every": 2, "batch_size": 2, "max_length": 16, "publish_as": name});
    let made = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await;
    assert!([201, 202].contains(&made.status), "{} {}", made.status, made.json);
    made.json["id"].as_str().unwrap().to_owned()
}

async fn succeeded(fresh: &Fresh, id: &str) {
    eventually(LONG, "the job's end", async || {
        let seen = fresh.store.jobs().get(&id.into()).await.unwrap();
        assert!(!seen.state.is_terminal() || seen.state == JobState::Succeeded, "{:?}", seen.error);
        seen.state.is_terminal().then_some(())
    })
    .await;
}

/// Restores a backup into a new SQLite database; returns the number of its judgments.
async fn restored(from: &Path) -> i64 {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("restored");
    let url = format!("sqlite://{}", data.join("instructd.db").display());
    let ended = Place::new(&url, &data).command("restore").arg(from).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    integrity::assert_sound(&url).await;
    let store = instructd::store::connect(&url).await.unwrap();
    let judgments = store.counts().await.unwrap().judgments;
    store.close().await;
    judgments
}

async fn killed_in_flight(fresh: Fresh) {
    let (kills, seed) = (setting("INSTRUCTD_CRASH_KILLS", 4), setting("INSTRUCTD_CRASH_SEED", 1));
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = Place::new(&fresh.url, data.path())
        .with("INSTRUCTD_JOBS__LEASE_SECONDS", 2)
        // The server may be killed often before a first checkpoint.
        .with("INSTRUCTD_JOBS__MAX_CRASHES", 1_000_000);
    let mut server = Server::start(&place).await;
    for i in 0..4 {
        let body = json!({"messages": [{"role": "user", "content": format!("t{i}")}], "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
    let first = job(&server, "second", 1).await;
    succeeded(&fresh, &first).await;
    let long = job(&server, "third", 100).await;

    let (url, watching) = watch::channel(server.url.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let acts = Acts { client: Client::new(&watching), stop: stop.clone(), seed, imported: AtomicUsize::new(0) };
    let disturb = async {
        let mut dice = Dice(seed);
        for kill in 1..=kills {
            tokio::time::sleep(Duration::from_millis(50 + dice.roll(1500))).await;
            server.kill();
            server = Server::start(&place).await;
            url.send_replace(server.url.clone());
            if kill % 20 == 0 {
                println!("{kill} kills");
            }
        }
        stop.store(true, SeqCst);
    };
    let ((), (), (active, promotions), (backup, known)) = tokio::join!(
        disturb,
        acts.import(),
        acts.promote(["llama-tied-tiny", "second"]),
        acts.backup(&place, out.path())
    );
    let files = acts.imported.load(SeqCst);
    assert!(files > 0 && promotions > 0);

    succeeded(&fresh, &long).await;
    let versions = fresh.store.models().list().await.unwrap();
    for (id, name) in [(&first, "second"), (&long, "third")] {
        let of: Vec<_> = versions.iter().filter(|v| v.job_id.as_ref().is_some_and(|job| job.as_str() == id)).collect();
        assert_eq!((of.len(), of[0].name.as_str()), (1, name), "one version of a job");
    }
    let model = server.call("GET", "/v1/models", None).await.expect(200);
    assert!(model.to_string().contains(&active), "{active}: {model}");
    server.kill();
    assert_eq!(fresh.store.counts().await.unwrap().judgments, (files * LINES) as i64, "each line once");
    integrity::assert_sound(&fresh.url).await;

    let judgments = restored(&backup).await;
    assert!(judgments >= (known * LINES) as i64, "{judgments} of {known} files in the backup");
    println!(
        "{}: {kills} kills, seed {seed}: {files} files imported, {promotions} promotions, one job, a backup with {judgments} \
         judgments: none lost, none doubled",
        fresh.store.backend()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_flight_on_sqlite() {
    killed_in_flight(backend::sqlite().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_flight_on_postgres() {
    if let Some(fresh) = backend::postgres().await {
        killed_in_flight(fresh).await;
    }
}
