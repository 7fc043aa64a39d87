//! Jobs that panic, abort, run out of memory or are killed: serving in the same process answers throughout,
//! and each job fails after three crashes.

use std::path::Path;
use std::time::Duration;

use instructd::domain::*;
use instructd::engine::{EngineOptions, LocalEngine};
use instructd::jobs::{Launch, Supervisor, SupervisorConfig, child, queue};
use instructd::train::{Recipe, Reporter, TrainOutcome};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::client::Server;
use crate::store::fixture;
use crate::support;

fn panics(_: &Value, reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    reporter.event("log", json!({"message": "about to panic"}));
    panic!("the recipe panics");
}

fn aborts(_: &Value, _: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    std::process::abort();
}

/// Takes memory until the limit that the kernel sets refuses it.
fn hoards(_: &Value, _: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let most = pages * 4096 + (256 << 20);
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the struct is valid for the call.
    anyhow::ensure!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } == 0, "no limit could be set");
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(vec![1; 16 << 20]);
        anyhow::ensure!(kept.len() < 1024, "the limit does not hold");
    }
}

/// As the kernel's out-of-memory killer ends a process.
fn is_killed(_: &Value, _: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    // SAFETY: a signal to this very process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    anyhow::bail!("survived SIGKILL")
}

const fn poison(name: &'static str, run: fn(&Value, &mut dyn Reporter) -> anyhow::Result<TrainOutcome>) -> Recipe {
    Recipe { name, about: "", schema: || json!({}), validate: |_| Ok(()), run }
}

static POISON: &[Recipe] =
    &[poison("panics", panics), poison("aborts", aborts), poison("hoards", hoards), poison("is_killed", is_killed)];

/// Not a test by itself: the body of a poisonous child.
#[test]
#[ignore = "the child process of the test below"]
fn as_child() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--job-dir") {
        std::process::exit(child::main(Path::new(&args[at + 1]), POISON).into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_poisonous_jobs_do_not_touch_serving() {
    let server = Server::without_engine(|_| {}).await;
    let store = server.services.store.clone();
    let tiny = support::fixture("llama-tiny").display().to_string();
    let base = ModelVersion { artifact_uri: tiny, ..fixture::model("base", ModelKind::Policy) };
    store.models().put(base.clone()).await.unwrap();
    store.models().activate(&base.id, fixture::T0).await.unwrap();
    let engine = LocalEngine::start(EngineOptions::default()).unwrap();
    use instructd::engine::Generator;
    engine.load(&base).await.unwrap();
    engine.activate(&base.id).await.unwrap();
    server.services.set_engine(engine);

    let mut jobs = Vec::new();
    for i in 0..20 {
        let kind = POISON[i % POISON.len()].name.to_owned();
        let request = queue::Request {
            kind,
            args: json!({}),
            unique_key: None,
            priority: 0,
            notes: Default::default(),
            now: fixture::T0,
        };
        jobs.push(queue::enqueue(&store, POISON, request).await.unwrap());
    }
    let as_child = ["crash::poison::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
    let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
    let config = SupervisorConfig {
        slots: 2,
        tick: Duration::from_millis(10),
        ..SupervisorConfig::new(server.services.config.data_dir.clone(), launch)
    };
    let (supervisor, shutdown) = (Supervisor::new(store.clone(), POISON, config), CancellationToken::new());
    let token = shutdown.clone();
    let working = tokio::spawn(async move { supervisor.run(token).await });

    let mut answered = 0;
    loop {
        let body = json!({"model": "base", "prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0});
        server.open_post("/v1/completions", body).await.expect(200);
        answered += 1;
        let counts = store.counts().await.unwrap();
        if counts.jobs_queued + counts.jobs_running == 0 {
            break;
        }
    }
    shutdown.cancel();
    working.await.unwrap();
    for job in jobs {
        let dead = store.jobs().get(&job.id).await.unwrap();
        assert_eq!((dead.state, dead.crash_count), (JobState::Failed, 3), "{}: {:?}", dead.kind, dead.error);
        let error = dead.error.unwrap();
        let word = match dead.kind.as_str() {
            "panics" => "the recipe panics",
            "aborts" => "signal: 6",
            "hoards" => "memory allocation",
            _ => "signal: 9",
        };
        assert!(error.contains(word), "{}: {error}", dead.kind);
    }
    println!("20 poisonous jobs failed after three crashes each; {answered} completions answered meanwhile");
}
