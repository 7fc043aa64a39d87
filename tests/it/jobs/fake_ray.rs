//! A stand-in for Ray's Jobs REST API, as Ray 2.60 answers, that runs entrypoints as processes of this machine. Faults
//! are scripted: answers that get lost, a head that is away or forgets its jobs, a worker that dies.

use std::collections::{HashMap, VecDeque};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

/// What a submission gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Take,
    /// The job begins, and the answer says that something failed.
    TakeAndFail,
    /// Nothing begins, and the answer says that something failed.
    Fail,
    /// Stays in Ray's queue.
    Queue,
    /// A mistake of the request.
    Refuse,
}

pub struct Entry {
    pub request: Value,
    child: Option<Child>,
    log: std::path::PathBuf,
    /// Set by `stop`, and by faults.
    status: Option<&'static str>,
}

#[derive(Default)]
pub struct Cluster {
    pub jobs: HashMap<String, Entry>,
    pub script: VecDeque<Act>,
    /// Every answer is 503.
    pub away: bool,
    pub keys: Vec<Option<String>>,
    pub submissions: Vec<String>,
}

pub struct FakeRay {
    pub cluster: Mutex<Cluster>,
    pub url: String,
    dir: tempfile::TempDir,
}

impl FakeRay {
    pub async fn start(script: &[Act]) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cluster = Mutex::new(Cluster { script: script.iter().copied().collect(), ..Cluster::default() });
        let fake = Arc::new(Self { cluster, url, dir: tempfile::tempdir().unwrap() });
        let router = axum::Router::new()
            .route("/api/jobs/", post(submit))
            .route("/api/jobs/{id}", get(info))
            .route("/api/jobs/{id}/logs", get(logs))
            .route("/api/jobs/{id}/stop", post(stop))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    pub fn submissions(&self) -> Vec<String> {
        self.cluster.lock().unwrap().submissions.clone()
    }

    /// The node of every running job dies.
    pub fn lose_workers(&self) {
        for entry in self.cluster.lock().unwrap().jobs.values_mut() {
            if entry.alive() {
                entry.signal(libc::SIGKILL);
                entry.status = Some("FAILED");
            }
        }
    }

    /// The head dies and comes back without its memory; with it its jobs end.
    pub fn lose_head(&self) {
        let mut cluster = self.cluster.lock().unwrap();
        for entry in cluster.jobs.values_mut() {
            entry.signal(libc::SIGKILL);
            entry.reap();
        }
        cluster.jobs.clear();
    }

    /// Somebody stops every running job in Ray's dashboard.
    pub fn stop_all(&self) {
        for entry in self.cluster.lock().unwrap().jobs.values_mut().filter(|entry| entry.status.is_none()) {
            entry.signal(libc::SIGTERM);
            entry.status = Some("STOPPED");
        }
    }
}

impl Entry {
    fn alive(&mut self) -> bool {
        self.status.is_none() && self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// To the entrypoint's whole group, as Ray does.
    fn signal(&mut self, signal: libc::c_int) {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            // SAFETY: the child has not been waited for, so its pid and group are its own.
            unsafe { libc::kill(-child.id().cast_signed(), signal) };
        }
    }

    fn reap(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }

    fn status(&mut self) -> (&'static str, String) {
        let Some(child) = &mut self.child else {
            return (self.status.unwrap_or("PENDING"), "Job has not started yet.".to_owned());
        };
        match (child.try_wait(), self.status) {
            (Ok(None), _) => ("RUNNING", "Job is currently running.".to_owned()),
            (_, Some(status)) => (status, "Job supervisor actor died".to_owned()),
            (Ok(Some(status)), None) if status.success() => ("SUCCEEDED", "Job finished successfully.".to_owned()),
            (Ok(Some(status)), None) => ("FAILED", format!("Job entrypoint command failed with {status}")),
            (Err(error), None) => ("FAILED", error.to_string()),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.reap();
    }
}

const TRACEBACK: &str = "Traceback (most recent call last):\n  File \"job_head.py\", line 1\n";

async fn submit(State(fake): State<Arc<FakeRay>>, headers: HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let id = request["submission_id"].as_str().unwrap().to_owned();
    let mut cluster = fake.cluster.lock().unwrap();
    cluster.keys.push(headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()));
    if cluster.away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    cluster.submissions.push(id.clone());
    if cluster.jobs.contains_key(&id) {
        let words =
            format!("{TRACEBACK}ValueError: Job with submission_id {id} already exists. Please use a different one.");
        return (StatusCode::INTERNAL_SERVER_ERROR, words).into_response();
    }
    let act = cluster.script.pop_front().unwrap_or(Act::Take);
    match act {
        Act::Fail => {
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("{TRACEBACK}RuntimeError: busy")).into_response();
        }
        Act::Refuse => {
            return (StatusCode::BAD_REQUEST, "TypeError: entrypoint_num_gpus must be a number").into_response();
        }
        _ => {}
    }
    let log = fake.dir.path().join(&id);
    let file = std::fs::File::create(&log).unwrap();
    let start = || {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(request["entrypoint"].as_str().unwrap());
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file.try_clone().unwrap());
        command.process_group(0).spawn().unwrap()
    };
    let child = (act != Act::Queue).then(start);
    cluster.jobs.insert(id.clone(), Entry { request, child, log, status: None });
    match act {
        Act::TakeAndFail => (StatusCode::INTERNAL_SERVER_ERROR, format!("{TRACEBACK}TimeoutError")).into_response(),
        _ => axum::Json(json!({"job_id": id, "submission_id": id})).into_response(),
    }
}

/// The job's entry, if the head is there and knows it.
fn with_job(fake: &FakeRay, id: &str, answer: impl FnOnce(&mut Entry) -> Value) -> Response {
    let mut cluster = fake.cluster.lock().unwrap();
    if cluster.away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match cluster.jobs.get_mut(id) {
        Some(entry) => axum::Json(answer(entry)).into_response(),
        None => (StatusCode::NOT_FOUND, format!("Job {id} does not exist")).into_response(),
    }
}

async fn info(State(fake): State<Arc<FakeRay>>, Path(id): Path<String>) -> Response {
    with_job(&fake, &id, |entry| {
        let (status, message) = entry.status();
        json!({"type": "SUBMISSION", "submission_id": id, "status": status, "message": message,
            "entrypoint": entry.request["entrypoint"]})
    })
}

async fn logs(State(fake): State<Arc<FakeRay>>, Path(id): Path<String>) -> Response {
    with_job(&fake, &id, |entry| json!({"logs": std::fs::read_to_string(&entry.log).unwrap_or_default()}))
}

async fn stop(State(fake): State<Arc<FakeRay>>, Path(id): Path<String>) -> Response {
    with_job(&fake, &id, |entry| {
        let alive = entry.status.is_none() && entry.child.as_mut().is_none_or(|c| matches!(c.try_wait(), Ok(None)));
        if alive {
            entry.signal(libc::SIGTERM);
            entry.status = Some("STOPPED");
        }
        json!({"stopped": alive})
    })
}
