//! Whole databases on the move: dumps between the two databases, upgrades from the first schema, backups.

use std::collections::BTreeMap;
use std::path::Path;

use instructd::config::Config;
use instructd::domain::*;
use instructd::service::backup;
use instructd::store::dump::{self, Dump};
use instructd::store::{self, Store};
use serde_json::{Value, json};

use super::integrity::assert_sound;
use super::{backend, fixture};

/// A row in every table, with everything that the two databases might see differently.
async fn full_world(store: &Store) {
    let base = fixture::model("base", ModelKind::Policy);
    store.models().put(base.clone()).await.unwrap();
    // The child's id sorts before the parent's: rows refer to rows that come later.
    let child = ModelVersion {
        id: "00000000000000000000000000".into(),
        parent_id: Some(base.id.clone()),
        metrics: json!({"z": 1.0, "a": [1e-7, 0.1, 12345678901234567i64], "nested": {"b": null, "a": true}}),
        ..fixture::model("child", ModelKind::Policy)
    };
    store.models().put(child.clone()).await.unwrap();
    store.models().activate(&child.id, fixture::T0).await.unwrap();
    let file = store::ModelFile { path: "sub/model.safetensors".into(), bytes: 7, sha256: "ab".into() };
    store.models().put_files(&child.id, vec![file]).await.unwrap();
    let set = fixture::stored_set(store, "q \u{1F600} 'quoted' \"too\"", &["a", "b", "c"], 2).await;
    let ada = fixture::labeler(store, "Äda").await;
    let held = store.leases().next(fixture::lease(&ada, fixture::T0)).await.unwrap().unwrap();
    let first = fixture::judgment(&set, &ada, Some(&held), "k1");
    let mut submit = fixture::submit(first.clone(), Some(&held), fixture::T0);
    submit.ideal_answer = Some(fixture::completion(&set.prompt_id, "ideal\nlines\ttabs"));
    store.judgments().submit(submit).await.unwrap();
    let mut second = fixture::judgment(&set, &ada, None, "k2");
    second.supersedes_id = Some(first.id.clone());
    store.judgments().submit(fixture::submit(second, None, fixture::T0)).await.unwrap();
    store
        .sets()
        .put_gold(&set.id, &[(set.completion_ids[0].clone(), 0), (set.completion_ids[1].clone(), 1)])
        .await
        .unwrap();
    let project = Project {
        id: ProjectId::new(),
        name: "二 \"two\"".into(),
        created: fixture::T0,
        archived: Some(fixture::T0 + 1),
    };
    store.projects().put(project.clone()).await.unwrap();
    let member = ProjectMember { labeler_id: ada.clone(), daily_quota: Some(0), created: fixture::T0 };
    store.projects().put_member(&project.id, member).await.unwrap();
    let feedback = FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: set.completion_ids[0].clone(),
        kind: "thumb".into(),
        value: json!(-1),
        actor_hash: None,
        idempotency_key: "f".into(),
        created: fixture::T0,
    };
    store.feedback().put(feedback).await.unwrap();
    store.completions().set_reward(&set.completion_ids[0], -1.0 / 3.0).await.unwrap();
    for i in 0..30 {
        // Text keys whose order depends on the collation.
        let token_hash = format!("{}{i}", if i % 2 == 0 { "a" } else { "B" });
        let session = Session {
            token_hash,
            labeler_id: ada.clone(),
            role: Role::Labeler,
            credential: "c".into(),
            expires: i,
            used: i,
            created: fixture::T0,
        };
        store.sessions().put(session).await.unwrap();
        store.audit_log().append(&"admin".into(), "test", "x", json!({"i": i}), fixture::T0).await.unwrap();
    }
    let invite = Invite {
        id: InviteId::new(),
        token_hash: "i".into(),
        role: Role::Reviewer,
        name: None,
        revoked: false,
        note: Some("n".into()),
        expires: 10,
        used_by: None,
        created: 0,
    };
    store.invites().put(invite).await.unwrap();
    let key = ApiKey {
        id: ApiKeyId::new(),
        name: "ci".into(),
        key_hash: "kh".into(),
        scopes: vec!["feedback".into()],
        labeler_id: Some(ada),
        daily_tokens: Some(7),
        origin: KeyOrigin::Created,
        revoked: true,
        created: 0,
    };
    store.api_keys().put(key).await.unwrap();
    let data = DatasetVersion {
        id: DatasetId::new(),
        name: Some("frozen".into()),
        filter: json!({"split": null}),
        as_of: 1,
        sha256: "ab".into(),
        n_sets: 3,
        n_pairs: 7,
    };
    store.datasets().put(data).await.unwrap();
    store.jobs().enqueue(fixture::job("sft", Some("key"), 3)).await.unwrap();
    let (job, _) = store.jobs().claim("w", 60, &[], 3).await.unwrap().unwrap();
    store.jobs().put_metrics(&job.id, &[Metric { step: 1, name: "loss".into(), value: 0.1 + 0.2 }]).await.unwrap();
    store.jobs().append_events(&job.id, &[("log".into(), json!({"message": "m"}))]).await.unwrap();
}

/// The rows of a dump's table, columns by name.
fn rows(dir: &Path, table: &str) -> Vec<BTreeMap<String, Value>> {
    let text = std::fs::read_to_string(dir.join(format!("{table}.jsonl"))).unwrap();
    let mut lines = text.lines();
    let columns: Vec<String> = serde_json::from_str(lines.next().unwrap()).unwrap();
    lines
        .map(|line| {
            let cells: Vec<Value> = serde_json::from_str(line).unwrap();
            columns.iter().cloned().zip(cells).collect()
        })
        .collect()
}

/// JSON columns are text that each database writes in its own way.
fn normal(cell: &Value) -> Value {
    match cell {
        Value::String(text) if text.starts_with(['{', '[', '"', '-']) || text == "null" => {
            serde_json::from_str::<Value>(text).map_or_else(|_| cell.clone(), whole_numbers)
        }
        other => other.clone(),
    }
}

fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() == 0.0) && n.is_f64() => {
            json!(n.as_f64().unwrap() as i64)
        }
        Value::Array(a) => a.into_iter().map(whole_numbers).collect(),
        Value::Object(o) => o.into_iter().map(|(k, v)| (k, whole_numbers(v))).collect(),
        other => other,
    }
}

fn assert_same(a: (&Path, &Dump), b: (&Path, &Dump)) {
    let names = |d: &Dump| d.tables.iter().map(|t| (t.name.clone(), t.rows)).collect::<BTreeMap<_, _>>();
    assert_eq!(names(a.1), names(b.1));
    for table in &a.1.tables {
        for (x, y) in rows(a.0, &table.name).iter().zip(rows(b.0, &table.name)) {
            for (column, cell) in x {
                assert_eq!(normal(cell), normal(&y[column]), "{}.{column}", table.name);
            }
        }
    }
}

async fn dumped(url: &str) -> (tempfile::TempDir, Dump) {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump::export(url, dir.path()).await.unwrap();
    (dir, dump)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_moves_to_postgres_and_back() {
    let Some(target) = backend::postgres_without_schema().await else { return };
    let fresh = backend::sqlite().await.unwrap();
    full_world(&fresh.store).await;
    let (dir, dump) = dumped(&fresh.url).await;
    let filled = |t: &&str| dump.tables.iter().any(|d| d.name == **t && d.rows > 0);
    let missing: Vec<_> = first_tables().into_iter().filter(|t| !filled(t)).collect();
    assert!(missing.is_empty(), "the world has no row in {missing:?}");
    assert!(filled(&"model_files") && dump.schema >= 3);
    // While the source lives on, the dump is what it was.
    fresh.store.prompts().put(fixture::prompt("later")).await.unwrap();
    dump::import(&target, dir.path(), &dump).await.unwrap();
    assert_sound(&target).await;
    let (there, in_postgres) = dumped(&target).await;
    assert_same((dir.path(), &dump), (there.path(), &in_postgres));

    // It works there: numbers that the database gives itself go on, references bind.
    let store = store::connect(&target).await.unwrap();
    store.audit_log().append(&"admin".into(), "after", "x", json!({}), 1).await.unwrap();
    let refused = store.completions().put(vec![fixture::completion(&"nobody".into(), "x")]).await;
    assert!(refused.is_err());
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().name, "child");
    store.close().await;

    // And back, into a new file.
    let home = tempfile::tempdir().unwrap();
    let back = format!("sqlite://{}", home.path().join("back.db").display());
    dump::import(&back, there.path(), &in_postgres).await.unwrap();
    assert_sound(&back).await;
    let (again, in_sqlite) = dumped(&back).await;
    assert_same((dir.path(), &dump), (again.path(), &in_sqlite));
    let store = store::connect(&back).await.unwrap();
    let mut expected = fresh.store.models().list().await.unwrap();
    expected.iter_mut().for_each(|m| m.metrics = whole_numbers(m.metrics.take()));
    let mut found = store.models().list().await.unwrap();
    found.iter_mut().for_each(|m| m.metrics = whole_numbers(m.metrics.take()));
    assert_eq!(found, expected);
    assert_eq!(
        store.judgments().ranked(&Default::default()).await.unwrap(),
        fresh.store.judgments().ranked(&Default::default()).await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_dumps_and_existing_databases_are_refused() {
    let fresh = backend::sqlite().await.unwrap();
    full_world(&fresh.store).await;
    let (dir, dump) = dumped(&fresh.url).await;
    let home = tempfile::tempdir().unwrap();
    let target = |name: &str| format!("sqlite://{}", home.path().join(name).display());
    let word = async |url: String, dump: &Dump| dump::import(&url, dir.path(), dump).await.unwrap_err().to_string();
    assert!(word(fresh.url.clone(), &dump).await.contains("not empty"));
    let mut newer = dump.clone();
    newer.schema = 9999;
    let error = word(target("newer.db"), &newer).await;
    assert!(error.contains("9999"), "{error}");
    let mut named = dump.clone();
    named.tables[0].name = "../../etc/passwd".into();
    assert!(word(target("named.db"), &named).await.contains("is not a valid table name"));
    let mut fewer = dump.clone();
    fewer.tables.retain(|t| t.name != "judgments");
    assert!(word(target("fewer.db"), &fewer).await.contains("judgments"));
    // One letter of one row.
    let file = dir.path().join("prompts.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("quoted", "quotes")).unwrap();
    assert!(word(target("damaged.db"), &dump).await.contains("SHA-256"));
    // Nothing half-made is left to be mistaken for a database.
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

/// One row in every table of the first schema; `$true` and `$bytes` differ between the databases.
const FIRST_ROWS: &str = r#"
INSERT INTO labelers (id, name, role, active, created) VALUES ('ada', 'Ada', 'labeler', $true, 1);
INSERT INTO prompts (id, messages, lang, source, content_hash, split, tags, created)
    VALUES ('p', '[{"role": "user", "content": "q"}]', 'en', 'api', 'h', 'train', '["t"]', 2);
INSERT INTO model_versions (id, kind, name, stage, parent_id, job_id, artifact_uri, sha256, metrics, state, created,
    activated) VALUES ('root', 'policy', 'root', 'base', NULL, NULL, 'u', 's', '{"a": 0.5}', 'active', 1, 5),
    ('child', 'policy', 'child', 'sft', 'root', 'j', 'u', 's', '{}', 'candidate', 2, NULL);
INSERT INTO completions (id, prompt_id, model_version_id, origin, parent_completion_id, text, token_ids, logprobs,
    sampling, seed, finish_reason, request_id, reward, created) VALUES
    ('c1', 'p', 'child', 'model', NULL, 'one', $bytes, $bytes, '{}', 7, 'stop', 'r', 0.25, 3),
    ('c2', 'p', NULL, 'human', 'c1', 'two', $bytes, $bytes, 'null', NULL, NULL, NULL, NULL, 3);
INSERT INTO comparison_sets (id, prompt_id, kind, target_overlap, selection_policy, selection_score, status, created)
    VALUES ('s', 'p', 'normal', 1, 'random', 0.5, 'done', 4);
INSERT INTO set_items (set_id, completion_id, position) VALUES ('s', 'c1', 0), ('s', 'c2', 1);
INSERT INTO gold_items (set_id, completion_id, expected_tier) VALUES ('s', 'c1', 0);
INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed)
    VALUES ('a', 's', 'ada', 'submitted', 't', 5, -6);
INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength, rationale,
    active_ms, wall_ms, guideline_version, idempotency_key, created)
    VALUES ('j1', 'a', 's', 'ada', 1, NULL, 'ranked', 'clearly', 'because', 1, 2, 'g', 'k', 6),
           ('j2', 'a', 's', 'ada', 2, 'j1', 'ranked', NULL, NULL, 1, 2, 'g', 'k2', 7);
INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position, rating)
    VALUES ('j1', 'c1', 0, 1, 5), ('j1', 'c2', 1, 0, NULL), ('j2', 'c1', 1, 1, NULL), ('j2', 'c2', 0, 0, NULL);
INSERT INTO judgment_flags (judgment_id, position, completion_id, code, note) VALUES ('j1', 0, 'c1', 'unsafe', 'n');
INSERT INTO demonstrations (prompt_id, completion_id, labeler_id, created) VALUES ('p', 'c2', 'ada', 8);
INSERT INTO feedback_events (id, completion_id, kind, value, actor_hash, idempotency_key, created)
    VALUES ('f', 'c1', 'thumb', '1', 'x', 'fk', 9);
INSERT INTO sessions (token_hash, labeler_id, role, expires, created) VALUES ('h', 'ada', 'labeler', 99, 1);
INSERT INTO invites (id, token_hash, role, note, expires, used_by, created) VALUES ('i', 'ih', 'labeler', NULL, 9, 'ada', 1);
INSERT INTO api_keys (id, name, key_hash, scopes, labeler_id, revoked, created)
    VALUES ('k', 'key', 'kh', '["feedback"]', 'ada', $true, 1);
INSERT INTO audit_log (actor, action, target, detail, created) VALUES ('admin', 'x', 'y', '{"d": 1}', 1);
INSERT INTO dataset_versions (id, filter, as_of, sha256, n_sets, n_pairs) VALUES ('d', '{}', 1, 's', 1, 1);
INSERT INTO jobs (id, kind, args, state, unique_key, priority, attempt, max_attempts, crash_count, lease_owner,
    lease_expires, cancel_requested, checkpoint_uri, external_ref, progress, result, error, created, started, finished)
    VALUES ('j', 'sft', '{"model": "root"}', 'succeeded', 'u', 0, 1, 10, 0, NULL, NULL, $true, 'ck', NULL,
            '{"phase": "train", "step": 1}', '{"model": "child"}', NULL, 1, 2, 3);
INSERT INTO job_events (job_id, seq, kind, data, created) VALUES ('j', 1, 'state', '{"state": "running"}', 2);
INSERT INTO metrics (job_id, name, step, value) VALUES ('j', 'loss', 1, 0.75);
"#;

/// The tables that the first schema had.
fn first_tables() -> Vec<&'static str> {
    FIRST_ROWS.split("INSERT INTO ").skip(1).filter_map(|rest| rest.split(' ').next()).collect()
}

/// Every row of the first schema is still there, column for column, after each migration on the way.
fn assert_kept(first: (&Path, &Dump), now: &Path, what: &str) {
    for table in &first.1.tables {
        let stored = rows(now, &table.name);
        for row in rows(first.0, &table.name) {
            let kept =
                stored.iter().any(|s| row.iter().all(|(c, cell)| s.get(c).is_none_or(|v| normal(v) == normal(cell))));
            assert!(kept, "{what}: {} lost {row:?}", table.name);
        }
    }
}

async fn upgraded(url: &str, migrate: impl AsyncFn(i64), versions: Vec<i64>) {
    let (dir, first) = dumped(url).await;
    assert_eq!(first.schema, 1);
    assert!(first.tables.iter().all(|t| t.rows > 0), "a row in every table of the first schema: {first:?}");
    for version in &versions[1..] {
        migrate(*version).await;
        assert_sound(url).await;
        let (now, dump) = dumped(url).await;
        assert_eq!(dump.schema, *version);
        assert_kept((dir.path(), &first), now.path(), &format!("migration {version}"));
    }
    let store = store::connect(url).await.unwrap();
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().name, "root");
    assert_eq!(store.judgments().get(&"j2".into()).await.unwrap().supersedes_id, Some("j1".into()));
    assert_eq!(store.completions().get(&"c2".into()).await.unwrap().parent_completion_id, Some("c1".into()));
    store.close().await;
    // A dump of the first schema, brought into today's program.
    let home = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", home.path().join("old.db").display());
    dump::import(&target, dir.path(), &first).await.unwrap();
    let (now, dump) = dumped(&target).await;
    assert_eq!(dump.schema, *versions.last().unwrap());
    assert_kept((dir.path(), &first), now.path(), "an old dump");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_schema_upgrades_step_by_step_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("old.db").display());
    let migrations = sqlx::migrate::Migrator::new(Path::new("migrations/sqlite")).await.unwrap();
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    migrations.run_to(1, &pool).await.unwrap();
    let sql = FIRST_ROWS.replace("$true", "1").replace("$bytes", "x'0102'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    let versions = migrations.iter().map(|m| m.version).collect();
    upgraded(&url, async |version| migrations.run_to(version, &pool).await.unwrap(), versions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_schema_upgrades_step_by_step_on_postgres() {
    let Some(url) = backend::postgres_without_schema().await else { return };
    let migrations = sqlx::migrate::Migrator::new(Path::new("migrations/postgres")).await.unwrap();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    migrations.run_to(1, &pool).await.unwrap();
    let sql = FIRST_ROWS.replace("$true", "TRUE").replace("$bytes", "'\\x0102'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    let versions = migrations.iter().map(|m| m.version).collect();
    upgraded(&url, async |version| migrations.run_to(version, &pool).await.unwrap(), versions).await;
}

// ---------------------------------------------------------------- backup and restore

/// A configuration on the database, with one model whose files are in the data directory and one elsewhere.
async fn installation(url: &str, store: &Store, data: &Path, elsewhere: &Path) -> Config {
    full_world(store).await;
    let inside = data.join("models/kept");
    std::fs::create_dir_all(inside.join("sub")).unwrap();
    std::fs::write(inside.join("model.safetensors"), "weights").unwrap();
    std::fs::write(inside.join("sub/tokenizer.json"), "{}").unwrap();
    store.models().put(fixture::model("kept", ModelKind::Policy)).await.unwrap();
    std::fs::write(elsewhere.join("outside.gguf"), "gguf weights").unwrap();
    let outside = elsewhere.join("outside.gguf").display().to_string();
    store
        .models()
        .put(ModelVersion { artifact_uri: outside, ..fixture::model("outside", ModelKind::Policy) })
        .await
        .unwrap();
    Config { data_dir: data.to_owned(), database_url: Some(url.to_owned()), ..Config::default() }
}

async fn backed_up(fresh: backend::Fresh, target: Option<backend::Database>) {
    let (data, elsewhere, out) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = installation(&fresh.url, &fresh.store, data.path(), elsewhere.path()).await;
    let to = out.path().join("backup");
    backup::backup(&config, &to, fixture::T0).await.unwrap();
    assert!(backup::backup(&config, &to, fixture::T0).await.is_err(), "an older backup is not written over");
    let before = fresh.store.models().list().await.unwrap();
    let ranked = fresh.store.judgments().ranked(&Default::default()).await.unwrap();
    fresh.store.prompts().put(fixture::prompt("after the backup")).await.unwrap();
    // The machine is gone.
    elsewhere.close().unwrap();

    let new = tempfile::tempdir().unwrap();
    let database_url = target.as_ref().map(|database| database.to_string());
    let restored = Config { data_dir: new.path().join("data"), database_url, ..Config::default() };
    backup::restore(&restored, &to, &[], fixture::T0).await.unwrap();
    assert!(backup::restore(&restored, &to, &[], fixture::T0).await.is_err(), "and an installation is not either");
    assert_sound(&restored.database_url()).await;
    let store = store::connect(&restored.database_url()).await.unwrap();
    assert_eq!(store.models().list().await.unwrap().len(), before.len());
    assert_eq!(store.judgments().ranked(&Default::default()).await.unwrap(), ranked);
    assert_eq!(store.counts().await.unwrap().prompts, 1, "as of the backup");
    let artifacts = instructd::artifacts::Artifacts::open(&restored, store.clone()).unwrap();
    for (name, file, text) in [
        ("kept", "sub/tokenizer.json", "{}"),
        ("kept", "model.safetensors", "weights"),
        ("outside", "", "gguf weights"),
    ] {
        let version = store.models().find(name).await.unwrap().unwrap();
        let root = artifacts.path(&version).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let path = if file.is_empty() { root } else { root.join(file) };
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }
    store.close().await;

    // A letter changed anywhere is noticed before anything is written.
    let kept = before.iter().find(|m| m.name == "kept").unwrap();
    std::fs::write(to.join("models").join(kept.id.as_str()).join("model.safetensors"), "weightz").unwrap();
    let third = Config { data_dir: new.path().join("third"), database_url: None, ..Config::default() };
    let error = format!("{:#}", backup::restore(&third, &to, &[], fixture::T0).await.unwrap_err());
    assert!(error.contains("kept") && error.contains("model.safetensors"), "{error}");
    assert!(!third.data_dir.join("instructd.db").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_sqlite_restores() {
    backed_up(backend::sqlite().await.unwrap(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_postgres_restores_to_either() {
    let (Some(fresh), Some(target)) = (backend::postgres().await, backend::postgres_without_schema().await) else {
        return;
    };
    backed_up(fresh, Some(target)).await;
    backed_up(backend::postgres().await.unwrap(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_sqlite_restores_to_postgres() {
    let Some(target) = backend::postgres_without_schema().await else { return };
    backed_up(backend::sqlite().await.unwrap(), Some(target)).await;
}
