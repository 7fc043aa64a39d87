//! Retention removes what is too old or too much, and nothing that anything rests on.

use std::path::Path;
use std::sync::Arc;

use instructd::config::RetentionConfig;
use instructd::domain::*;
use instructd::service::retention::{self, Amounts, Outlook, Status};
use instructd::store::{Expiring, JobReport, Store};
use serde_json::{Value, json};

use crate::api::client::Server;
use crate::crash::server::Place;
use crate::store::conformance::conformance;
use crate::store::fixture::{self, T0};
use crate::support::eventually::{LONG, eventually};

const DAY: Micros = 86_400_000_000;

/// A prompt with two answers to a request, `days` before `T0`.
async fn request(store: &Store, text: &str, days: i64) -> (Prompt, Vec<Completion>) {
    let created = T0 - days * DAY;
    let prompt = Prompt { source: "chat".into(), created, ..fixture::prompt(text) };
    let answers: Vec<_> = ["one", "two"]
        .iter()
        .map(|answer| Completion {
            origin: CompletionOrigin::Model,
            created,
            ..fixture::completion(&prompt.id, &format!("{answer} to {text}"))
        })
        .collect();
    store.completions().put_answers(prompt.clone(), answers.clone(), Some("chat")).await.unwrap();
    (prompt, answers)
}

fn event(completion: &Completion, days: i64) -> FeedbackEvent {
    FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: completion.id.clone(),
        kind: "comment".into(),
        value: json!("a comment"),
        actor_hash: None,
        idempotency_key: FeedbackId::new().to_string(),
        created: T0 - days * DAY,
    }
}

async fn dataset(store: &Store, filter: Value, days: i64) {
    let version = DatasetVersion {
        id: DatasetId::new(),
        name: None,
        filter,
        as_of: T0 - days * DAY,
        sha256: "00".into(),
        n_sets: 1,
        n_pairs: 1,
    };
    store.datasets().put(version).await.unwrap();
}

async fn look(store: &Store, limits: &RetentionConfig) -> Outlook {
    let stored = retention::stored(store, Path::new("/nowhere")).await.unwrap();
    retention::outlook(store, Path::new("/nowhere"), limits, T0, stored).await.unwrap()
}

async fn run(store: &Store, limits: &RetentionConfig) -> Amounts {
    let by = "test".into();
    retention::apply(store, Path::new("/nowhere"), limits, T0, &by, &Status::default()).await.unwrap()
}

async fn gone(store: &Store, completion: &Completion) -> bool {
    store.completions().get(&completion.id).await.is_err()
}

/// (answers, prompts, feedback events)
fn records(amounts: &Amounts) -> (i64, i64, i64) {
    (amounts.completions.records, amounts.prompts.records, amounts.feedback_events.records)
}

async fn age_removes_unreferenced_records(store: Arc<Store>) {
    let store = store.as_ref();
    let (old, old_answers) = request(store, "old", 40).await;
    let (_, fresh_answers) = request(store, "fresh", 1).await;
    store.feedback().put(event(&old_answers[0], 40)).await.unwrap();
    store.feedback().put(event(&fresh_answers[0], 40)).await.unwrap();
    // Of these nothing may go, however old: ranked, in a set, a demonstration's prompt, submitted, not a request.
    let (ranked, ranked_answers) = request(store, "ranked", 50).await;
    let set = fixture::comparison_set(&ranked.id, &ranked_answers, 1);
    store.sets().put(set.clone()).await.unwrap();
    let judgment = fixture::judgment(&set, &"admin".into(), None, "j");
    store.judgments().submit(fixture::submit(judgment.clone(), None, T0)).await.unwrap();
    let (shown, shown_answers) = request(store, "shown", 50).await;
    store.demonstrations().put(shown.clone(), fixture::completion(&shown.id, "ideal"), None, T0).await.unwrap();
    let (submitted, submitted_answers) = request(store, "submitted", 50).await;
    let again = Prompt { id: PromptId::new(), source: "api".into(), ..submitted.clone() };
    store.prompts().put(again).await.unwrap();
    let own = fixture::stored_set(store, "own", &["a", "b"], 1).await;
    let (branched, branched_answers) = request(store, "branched", 50).await;
    let child = Completion {
        origin: CompletionOrigin::Edit,
        parent_completion_id: Some(branched_answers[0].id.clone()),
        ..fixture::completion(&branched.id, "edited")
    };
    store.completions().put(vec![child]).await.unwrap();

    let limits = RetentionConfig { request_days: 30, ..RetentionConfig::default() };
    let none = look(store, &RetentionConfig::default()).await;
    assert!(none.goes.is_empty(), "no limit, nothing goes: {none:?}");
    assert_eq!(records(&run(store, &RetentionConfig::default()).await), (0, 0, 0));
    // Answers of a prompt that stays for another reason go too: they answered requests and nothing names them.
    let before = look(store, &limits).await;
    assert_eq!(records(&before.goes), (2 + 2 + 2 + 1, 1, 1), "{before:?}");
    assert_eq!(records(&look(store, &limits).await.goes), records(&before.goes), "looking removes nothing");
    let removed = run(store, &limits).await;
    assert_eq!(removed, before.goes, "what was shown is what went");
    for answer in old_answers.iter().chain(&shown_answers).chain(&submitted_answers).chain(&branched_answers[1..]) {
        assert!(gone(store, answer).await, "{}", answer.text);
    }
    for answer in fresh_answers.iter().chain(&ranked_answers).chain(&branched_answers[..1]) {
        assert!(!gone(store, answer).await, "{}", answer.text);
    }
    assert!(store.prompts().get(&old.id).await.is_err());
    for id in [&ranked.id, &shown.id, &submitted.id, &branched.id, &own.prompt_id] {
        store.prompts().get(id).await.unwrap();
    }
    assert_eq!(store.judgments().get(&judgment.id).await.unwrap().items.len(), 2);
    assert_eq!(store.demonstrations().page(None, 9).await.unwrap().len(), 1);
    assert_eq!(store.feedback().list(fixture::page(10)).await.unwrap().len(), 1, "feedback goes with its answer only");
    assert!(run(store, &limits).await.is_empty(), "a second run finds nothing");

    let feedback = RetentionConfig { feedback_days: 30, ..RetentionConfig::default() };
    assert_eq!(records(&run(store, &feedback).await), (0, 0, 1));
    let audit = store.audit_log().list(&Default::default(), None, 10).await.unwrap();
    let lines: Vec<_> = audit.iter().filter(|line| line.action == "retention").collect();
    assert_eq!(lines.len(), 2, "runs that removed something");
    assert_eq!((&lines[1].detail["completions"], &lines[1].detail["prompts"]), (&json!(7), &json!(1)));
    assert!(lines[1].detail["bytes"].as_i64().unwrap() > 0);
}

async fn size_removes_the_oldest_first(store: Arc<Store>) {
    let store = store.as_ref();
    let mut all = Vec::new();
    for days in [5, 4, 3, 2, 1] {
        let created = T0 - days * DAY;
        let prompt = Prompt { source: "completions".into(), created, ..fixture::prompt(&format!("p{days}")) };
        let answer = Completion { created, ..fixture::completion(&prompt.id, &"x".repeat(400_000)) };
        store.completions().put_answers(prompt, vec![answer.clone()], Some("completions")).await.unwrap();
        store
            .feedback()
            .put(FeedbackEvent { value: json!("y".repeat(400_000)), ..event(&answer, days) })
            .await
            .unwrap();
        all.push(answer);
    }
    // 1 MB holds the two newest answers, of about 400 kB each.
    let limits = RetentionConfig { request_mb: 1, ..RetentionConfig::default() };
    let removed = run(store, &limits).await;
    assert_eq!(records(&removed), (3, 3, 3));
    let mut left = Vec::new();
    for answer in &all {
        left.push(!gone(store, answer).await);
    }
    assert_eq!(left, [false, false, false, true, true]);
    assert!(store.privacy().stored(Expiring::Completions, None, 10).await.unwrap().0.bytes <= 1_000_000);
    assert!(run(store, &limits).await.is_empty());
    // Both ways at once, and feedback on its own.
    let feedback = RetentionConfig { feedback_mb: 1, request_mb: 1, request_days: 100, ..RetentionConfig::default() };
    assert!(run(store, &feedback).await.is_empty(), "800 kB of feedback are left");
    // One prompt that is larger than all that may stay: not only answers count.
    let created = T0 - DAY / 2;
    let mut large = Prompt { source: "chat".into(), created, ..fixture::prompt("large") };
    large.messages[0].content = "q".repeat(2_000_000);
    let answer = Completion { created, ..fixture::completion(&large.id, "short") };
    store.completions().put_answers(large, vec![answer], Some("chat")).await.unwrap();
    assert_eq!(records(&run(store, &limits).await), (3, 3, 2));
}

async fn dataset_versions_keep_their_records(store: Arc<Store>) {
    let store = store.as_ref();
    let (_, older) = request(store, "older", 60).await;
    store.feedback().put(event(&older[0], 60)).await.unwrap();
    let (_, newer) = request(store, "newer", 40).await;
    store.feedback().put(event(&newer[0], 40)).await.unwrap();
    let limits = RetentionConfig { request_days: 30, feedback_days: 30, ..RetentionConfig::default() };
    // A version without requests rests on none of it.
    dataset(store, json!({"data": "comparisons", "filter": {"feedback": true, "without_requests": true}}), 10).await;
    dataset(store, json!({"data": "comparisons", "filter": {}}), 10).await;
    assert_eq!(records(&look(store, &limits).await.goes), (4, 2, 2));
    dataset(store, json!({"data": "comparisons", "filter": {"feedback": true}}), 50).await;
    let found = look(store, &limits).await;
    assert_eq!(found.kept_feedback_until, Some(T0 - 50 * DAY));
    assert_eq!(records(&found.goes), (3, 1, 1), "the commented answer of before and its prompt stay");
    assert_eq!(run(store, &limits).await, found.goes);
    assert!(!gone(store, &older[0]).await && gone(store, &older[1]).await && gone(store, &newer[0]).await);

    // Prompts that a policy was trained on stay as well; the answers to them need not.
    let (trained, answers) = request(store, "trained", 60).await;
    dataset(store, json!({"data": "prompts", "filter": {}}), 50).await;
    assert_eq!(records(&run(store, &limits).await), (2, 0, 0));
    assert!(gone(store, &answers[0]).await);
    store.prompts().get(&trained.id).await.unwrap();
}

/// A job of a state, with files.
async fn job_with_files(store: &Store, data_dir: &Path, end: Option<JobState>) -> JobId {
    let job = store.jobs().enqueue(fixture::job("sft", None, 0)).await.unwrap();
    let (_, fence) = store.jobs().claim("w", 3600, &["sft"], 3).await.unwrap().unwrap();
    store.jobs().report(&fence, 3600, JobReport::default()).await.unwrap();
    if let Some(state) = end {
        store.jobs().finish(&fence, state, None, None).await.unwrap();
    }
    let dir = data_dir.join("jobs").join(job.id.as_str());
    for (name, text) in [
        ("spec.json", "{}"),
        ("datasets.json", "{}"),
        ("comparisons.jsonl", "{\"prompt\": \"words\"}\n"),
        ("checkpoints/step-1/model.safetensors", "0123456789"),
        ("logs/samples.jsonl", "{\"text\": \"words\"}\n"),
    ] {
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    }
    job.id
}

async fn files_of_ended_jobs_go(store: Arc<Store>) {
    let store = store.as_ref();
    let data = tempfile::tempdir().unwrap();
    let dir = |id: &JobId| data.path().join("jobs").join(id.as_str());
    let running = job_with_files(store, data.path(), None).await;
    let failed = job_with_files(store, data.path(), Some(JobState::Failed)).await;
    let published = job_with_files(store, data.path(), Some(JobState::Succeeded)).await;
    let model = ModelVersion { job_id: Some(published.clone()), ..fixture::model("better", ModelKind::Policy) };
    store.models().put(model).await.unwrap();
    let unknown = data.path().join("jobs/somebody-elses");
    std::fs::create_dir_all(&unknown).unwrap();
    // A link leads nowhere.
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("kept"), "kept").unwrap();
    std::os::unix::fs::symlink(outside.path(), dir(&failed).join("link")).unwrap();

    let days = RetentionConfig { job_days: 30, ..RetentionConfig::default() };
    let by = "test".into();
    let apply = async |limits: &RetentionConfig, now| {
        retention::apply(store, data.path(), limits, now, &by, &Status::default()).await.unwrap().job_files
    };
    let now = store.now().await.unwrap();
    assert_eq!(apply(&days, now + 29 * DAY).await.records, 0, "not old enough");
    let stored = retention::stored(store, data.path()).await.unwrap();
    let found = retention::outlook(store, data.path(), &days, now + 31 * DAY, stored).await.unwrap();
    assert_eq!((found.goes.job_files.records, found.stored.job_files.records), (2, 2));
    assert!(dir(&failed).exists(), "looking removes nothing");
    assert_eq!(apply(&days, now + 31 * DAY).await, found.goes.job_files);
    assert!(!dir(&failed).exists());
    assert!(outside.path().join("kept").exists());
    assert!(unknown.exists() && dir(&running).join("checkpoints/step-1/model.safetensors").exists());
    // What the published model learned from stays, and says what it is.
    for kept in ["comparisons.jsonl", "datasets.json", "spec.json"] {
        assert!(dir(&published).join(kept).exists(), "{kept}");
    }
    for removed in ["checkpoints", "logs"] {
        assert!(!dir(&published).join(removed).exists(), "{removed}");
    }
    assert_eq!(apply(&days, now + 31 * DAY).await.records, 0);

    // By size: the job that ended first goes first.
    let first = job_with_files(store, data.path(), Some(JobState::Cancelled)).await;
    let second = job_with_files(store, data.path(), Some(JobState::Failed)).await;
    for id in [&first, &second] {
        std::fs::write(dir(id).join("large"), vec![0; 600_000]).unwrap();
    }
    let size = RetentionConfig { job_mb: 1, ..RetentionConfig::default() };
    assert_eq!(apply(&size, now).await.records, 1);
    assert!(!dir(&first).exists() && dir(&second).exists());
}

conformance!(
    age_removes_unreferenced_records,
    size_removes_the_oldest_first,
    dataset_versions_keep_their_records,
    files_of_ended_jobs_go,
);

/// Through the page's routes: what would go, the removal, what went.
#[tokio::test]
async fn the_page_shows_and_removes() {
    let clock = Arc::new(std::sync::atomic::AtomicI64::new(T0));
    let server = Server::at(clock.clone(), |_| {}).await;
    let chat = json!({"model": "base", "max_tokens": 10, "messages": [{"role": "user", "content": "q"}]});
    server.open_post("/v1/chat/completions", chat).await.expect(200);
    clock.fetch_add(8 * DAY, std::sync::atomic::Ordering::SeqCst);
    let shown = async || {
        eventually(LONG, "the amounts", async || {
            let page = server.get("/admin/retention").await.expect(200).json();
            (!page["outlook"].is_null()).then_some(page)
        })
        .await
    };
    let first = shown().await;
    assert_eq!(first["outlook"]["stored"]["completions"]["records"], 1, "{first}");
    assert_eq!(first["outlook"]["goes"]["completions"]["records"], 0);
    let limit = json!({"name": "retention.request_days", "value": 7});
    server.post("/admin/settings", limit).await.expect(204);
    server.post("/admin/settings", json!({"name": "retention.request_days", "value": -1})).await.expect(400);
    let second = shown().await;
    assert_eq!(second["limits"]["request_days"], 7);
    assert_eq!(second["outlook"]["goes"]["completions"]["records"], 1);
    assert_eq!(second["outlook"]["goes"]["prompts"]["records"], 1);
    server.post("/admin/retention", json!({})).await.expect(202);
    let done = eventually(LONG, "the end of the removal", async || {
        let now = shown().await;
        (now["progress"]["running"] == false).then_some(now)
    })
    .await;
    assert_eq!(
        (&done["progress"]["removed"]["completions"]["records"], &done["progress"]["error"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(done["outlook"]["stored"]["completions"]["records"], 0);
    let audit = server.get("/admin/audit?action=retention").await.expect(200).json();
    let line = &audit["data"][0];
    assert_eq!((&line["actor"], &line["detail"]["completions"]), (&json!("admin"), &json!(1)), "{line}");
}

/// The command shows, and removes only when it is not a dry run; it makes no admin key.
#[tokio::test]
async fn the_command_shows_and_removes() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("instructd.db").display());
    let store = instructd::store::connect(&url).await.unwrap();
    let created = store.now().await.unwrap() - 40 * DAY;
    let prompt = Prompt { source: "chat".into(), created, ..fixture::prompt("old") };
    let answer = Completion { created, ..fixture::completion(&prompt.id, "answer") };
    store.completions().put_answers(prompt, vec![answer.clone()], Some("chat")).await.unwrap();
    let place = Place::new(&url, dir.path()).with("INSTRUCTD_RETENTION__REQUEST_DAYS", 30);
    let said = |arguments: &[&str]| {
        let ran = place.command("retention").args(arguments).env_remove("INSTRUCTD_ADMIN_KEY").output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let line = |text: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with("answers to requests")).unwrap();
        line.split_whitespace().skip(3).map(str::to_owned).collect()
    };
    let shown = said(&["--dry-run"]);
    assert!(shown.contains("would go"), "{shown}");
    assert_eq!((line(&shown)[0].as_str(), line(&shown)[2].as_str()), ("1", "1"), "{shown}");
    assert!(!gone(store.as_ref(), &answer).await, "a dry run removes nothing");
    let removed = said(&[]);
    assert!(removed.contains("removed") && line(&removed)[2] == "1", "{removed}");
    assert!(gone(store.as_ref(), &answer).await);
    let audit = store.audit_log().list(&Default::default(), None, 10).await.unwrap();
    assert_eq!(audit.iter().map(|l| l.actor.as_str()).collect::<Vec<_>>(), ["command line"]);
    assert!(store.api_keys().list().await.unwrap().is_empty());
}
