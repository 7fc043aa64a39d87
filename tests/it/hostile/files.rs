//! What lies on disk: who may read it, what a hostile backup may reach, and what a training child is told.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use instructd::domain::{JobId, JobState};
use serde_json::{Value, json};

use super::{place, user};
use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::store::fixture;

/// Every file and directory below `dir`, links not followed.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                left.push(path.clone());
            }
            all.insert(path);
        }
    }
    all
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn run(place: &Place, arguments: &[&Path]) -> Output {
    let mut command = place.command(arguments[0].to_str().unwrap());
    command.args(&arguments[1..]).output().unwrap()
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The environments of all training children of this test's server.
fn environments(job: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        if command.contains("train-job") && command.contains(job) {
            found.push(String::from_utf8_lossy(&read("environ")).into_owned());
        }
    }
    found
}

async fn wait_for(server: &Server, job: &str, fits: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..3000 {
        let seen = server.call("GET", &format!("/admin/jobs/{job}"), None).await.expect(200);
        if fits(&seen) {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the job did not come so far: {}", server.words());
}

/// A server, a job with checkpoints and a result, a backup, a dump and an export, under an open umask.
#[tokio::test(flavor = "multi_thread")]
async fn everything_written_is_for_the_owner_and_children_know_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let secret = "not-for-children";
    let place = place(dir.path())
        .with("INSTRUCTD_UPSTREAM__API_KEY", secret)
        .with("AWS_SECRET_ACCESS_KEY", secret)
        .with("PGPASSWORD", secret)
        .with("HF_TOKEN", secret);
    // The database is one that an older program left open to others.
    let database = dir.path().join("hostile.db");
    assert_done(&run(&place, &[Path::new("migrate")]));
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).unwrap();
    let server = Server::start(&place).await;
    assert_eq!(mode(&database), 0o600);
    for i in 0..4 {
        let body = json!({"messages": user(&format!("t{i}")), "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
    let args = json!({"epochs": 100_000, "checkpoint_every": 5, "batch_size": 2, "max_length": 16});
    let job = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await.json;
    let job = job["id"].as_str().unwrap().to_owned();
    wait_for(&server, &job, |j| !j["checkpoint_uri"].is_null()).await;
    let told = environments(&job);
    assert_eq!(told.len(), 1, "one child: {told:?}");
    assert!(told[0].contains("PATH="), "its environment was read");
    for word in [secret, ADMIN_KEY, "INSTRUCTD_ADMIN_KEY", "DATABASE_URL", "sqlite:"] {
        assert!(!told[0].contains(word), "a child knows {word}");
    }
    server.call("POST", &format!("/admin/jobs/{job}/cancel"), None).await;
    let args = json!({"epochs": 1, "batch_size": 2, "max_length": 16, "publish_as": "better"});
    let short = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await.json;
    let short = short["id"].as_str().unwrap().to_owned();
    let ended = wait_for(&server, &short, |j| !matches!(j["state"].as_str(), Some("queued" | "running"))).await;
    assert!(ended["result"].is_object(), "{ended}");
    assert_done(&run(&place, &[Path::new("backup"), &out.path().join("backup")]));
    assert_done(&run(&place, &[Path::new("export-db"), &out.path().join("dump")]));
    let export = [Path::new("export"), Path::new("--format"), Path::new("demonstrations"), Path::new("--out")];
    assert_done(&run(&place, &[&export[..], &[&out.path().join("export.jsonl")]].concat()));

    // Written by this test, under its own umask.
    let ours = ["server.log", "empty.toml", "data"];
    assert!(mode(&place.data_dir.join("server.log")) & 0o044 != 0, "this test needs a umask that lets others read");
    let mut seen = 0;
    for path in tree(dir.path()).into_iter().chain(tree(out.path())) {
        if ours.iter().any(|name| path.file_name().unwrap() == *name) {
            continue;
        }
        assert_eq!(mode(&path) & 0o077, 0, "{} has mode {:o}", path.display(), mode(&path));
        seen += 1;
    }
    assert!(seen > 30, "{seen} files: jobs, models, backup, dump");
    assert!(server.words().contains("chmod 700"), "a data directory that others may enter is worth a warning");
}

/// A data directory that is made, or found empty, is the owner's.
#[test]
fn a_new_data_directory_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["new", "empty"] {
        let data = dir.path().join(name);
        if name == "empty" {
            fs::create_dir(&data).unwrap();
            fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_instructd"));
        command.arg("migrate").arg("--data-dir").arg(&data).current_dir(dir.path());
        assert_done(&command.output().unwrap());
        assert_eq!(mode(&data), 0o700, "{name}");
        assert!(tree(&data).iter().all(|path| mode(path) & 0o077 == 0), "{name}");
    }
}

/// A backup whose manifest is changed by `change`; `dir` also gets what the change needs.
fn tampered(good: &Path, to: &Path, change: impl FnOnce(&mut Value, &Path)) {
    let copied = Command::new("cp").arg("-a").arg(good).arg(to).status().unwrap();
    assert!(copied.success());
    let path = to.join("manifest.json");
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut manifest, to);
    fs::write(&path, manifest.to_string()).unwrap();
}

type Change = Box<dyn FnOnce(&mut Value, &Path)>;

/// What a hostile archive may say. Each must be refused, or end up inside the new data directory.
fn hostile_backups() -> Vec<(&'static str, bool, Change)> {
    fn first(manifest: &mut Value) -> &mut Value {
        &mut manifest["models"][0]
    }
    /// Gives the version another id, and brings its files to where that id leads.
    fn renamed(id: &'static str) -> Change {
        Box::new(move |manifest, dir| {
            let old = dir.join("models").join(first(manifest)["id"].as_str().unwrap());
            let new = dir.join("models").join(id);
            let _ = fs::create_dir_all(dir.join("models/x"));
            let _ = fs::create_dir_all(new.parent().unwrap());
            fs::rename(old, new).unwrap();
            first(manifest)["id"] = json!(id);
        })
    }
    fn placed(uri: &'static str) -> Change {
        Box::new(move |manifest, _| first(manifest)["artifact_uri"] = json!(uri))
    }
    fn moved_behind_a_link(dir: &Path, what: &Path) {
        let outside = dir.with_extension("outside");
        fs::rename(what, &outside).unwrap();
        symlink(&outside, what).unwrap();
    }
    fn model(manifest: &Value, dir: &Path) -> PathBuf {
        dir.join("models").join(manifest["models"][0]["id"].as_str().unwrap())
    }
    vec![
        ("an id that leads up", true, renamed("x/../../../evil")),
        ("an id with a directory", true, renamed("x/y")),
        ("an id of dots", true, Box::new(|m, _| first(m)["id"] = json!(".."))),
        ("an absolute id", true, Box::new(|m, _| first(m)["id"] = json!("/tmp"))),
        ("no id", true, Box::new(|m, _| first(m)["id"] = json!(""))),
        ("an absolute place", false, placed("/nowhere")),
        ("a place that leads up", false, placed("models/../../evil")),
        ("no place", false, placed("")),
        ("a place among the server's own files", false, placed("jobs/x")),
        ("the directory of all models", false, placed("models")),
        (
            "a file that leads up",
            true,
            Box::new(|m, dir| {
                let file = first(m)["files"][0]["path"].as_str().unwrap().to_owned();
                let root = model(m, dir);
                fs::rename(root.join(file), dir.join("evil")).unwrap();
                first(m)["files"][0]["path"] = json!("../../evil");
            }),
        ),
        (
            "a file behind a link",
            true,
            Box::new(|m, dir| {
                let file = model(m, dir).join(first(m)["files"][0]["path"].as_str().unwrap());
                moved_behind_a_link(dir, &file);
            }),
        ),
        ("a directory behind a link", true, Box::new(|m, dir| moved_behind_a_link(dir, &model(m, dir)))),
        ("models behind a link", true, Box::new(|_, dir| moved_behind_a_link(dir, &dir.join("models")))),
        ("the database behind a link", true, Box::new(|_, dir| moved_behind_a_link(dir, &dir.join("instructd.db")))),
        (
            "a pipe as a file",
            true,
            Box::new(|m, dir| {
                let file = model(m, dir).join(first(m)["files"][0]["path"].as_str().unwrap());
                fs::remove_file(&file).unwrap();
                assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_stays_in_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let source = place(dir.path());
    let mut server = Server::start(&source).await;
    server.kill();
    let good = dir.path().join("good");
    assert_done(&run(&source, &[Path::new("backup"), &good]));
    for (i, (name, refused, change)) in hostile_backups().into_iter().enumerate() {
        // An archive of its own at every depth that it may climb.
        let root = dir.path().join(format!("case{i}"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        let from = root.join("a/b/backup");
        tampered(&good, &from, change);
        let target = root.join("home/deep");
        fs::create_dir_all(&target).unwrap();
        let place =
            Place::new(&format!("sqlite://{}", target.join("data/instructd.db").display()), &target.join("data"));
        fs::create_dir(&place.data_dir).unwrap();
        let before = tree(&root);
        let mut child = place.command("restore");
        let mut child = child.arg(&from).stderr(std::process::Stdio::piped()).spawn().unwrap();
        for _ in 0..600 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(i32::from(refused)), "{name}: {said}");
        let new: Vec<_> = tree(&root).difference(&before).cloned().collect();
        assert!(new.iter().all(|path| path.starts_with(&place.data_dir)), "{name}: {new:?}");
        if refused {
            assert!(!target.join("data/instructd.db").exists(), "{name}");
        } else {
            let own = ["instructd.db", "empty.toml", "models", "fetched"];
            let inside = |p: &PathBuf| {
                let first = p.strip_prefix(&place.data_dir).unwrap().components().next().unwrap();
                own.iter().any(|own| first.as_os_str().to_string_lossy().starts_with(own))
            };
            assert!(new.iter().all(inside), "{name}: {new:?}");
        }
    }
}

/// Ids of a restored database name directories: one that leads elsewhere fails its job and makes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_foreign_database_stays_in_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let server = Server::start(&place).await;
    let store = instructd::store::connect(&place.database_url).await.unwrap();
    let id = JobId::from("../../evil");
    let mut job = fixture::job("sft", None, 0);
    job.args = json!({"model": "llama-tied-tiny"});
    job.id = id.clone();
    store.jobs().enqueue(job).await.unwrap();
    for _ in 0..1000 {
        let job = store.jobs().get(&id).await.unwrap();
        if job.state == JobState::Failed {
            assert!(job.error.unwrap().contains("is not a valid job id"));
            assert!(!dir.path().join("evil").exists() && !place.data_dir.join("evil").exists());
            drop(server);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the job did not end: {}", server.words());
}
