//! The disk fills up: a clear error, and everything stored before is intact. Needs a small file system of its
//! own, which only root may mount; elsewhere these tests print a line and pass.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use instructd::train::checkpoint::CheckpointDir;
use instructd::train::{Reporter, TrainOutcome, recipes};
use serde_json::{Value, json};

use super::server::{Place, Server};
use crate::store::integrity::assert_sound;
use crate::support;

/// A file system in memory of a few MiB; unmounted when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (target, options) = (path(dir.path()), CString::new(format!("size={mib}m")).unwrap());
        // SAFETY: all pointers are valid for the call.
        let done =
            unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if done != 0 {
            println!("SKIPPED: no small file system can be mounted: {}", std::io::Error::last_os_error());
            return None;
        }
        Some(Self(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        fill(self.path());
    }

    /// Gives back `bytes` of what `fill` took.
    pub fn leave(&self, bytes: u64) {
        let filler = std::fs::File::options().write(true).open(self.path().join(FILLER)).unwrap();
        filler.set_len(filler.metadata().unwrap().len() - bytes).unwrap();
    }

    /// Gives back all that `fill` took.
    pub fn clear(&self) {
        std::fs::remove_file(self.path().join(FILLER)).unwrap();
    }
}

const FILLER: &str = "filler";

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // SAFETY: the path is valid for the call. Lazily: a process may just be ending there.
        unsafe { libc::umount2(path(self.0.path()).as_ptr(), libc::MNT_DETACH) };
    }
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Takes all the space that is left.
fn fill(dir: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join(FILLER)).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_rankings_and_loses_none() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let url = format!("sqlite://{}", disk.path().join("instructd.db").display());
    let elsewhere = tempfile::tempdir().unwrap();
    let place = Place::new(&url, elsewhere.path());
    let mut server = Server::start(&place).await;
    let ranking = |i: usize| {
        json!({"messages": [{"role": "user", "content": format!("q{i}")}], "idempotency_key": format!("k{i}"),
            "completions": [{"text": "x".repeat(2000), "tier": 0}, {"text": "y".repeat(2000), "tier": 1}]})
    };
    for i in 0..20 {
        server.call("POST", "/v1/comparisons", Some(ranking(i))).await.expect(201);
    }
    disk.fill();
    let (mut stored, mut refused) = (20, 0);
    // What is left inside the log's pages still takes some.
    while refused < 5 {
        let answer = server.call("POST", "/v1/comparisons", Some(ranking(stored + refused))).await;
        match answer.status {
            201 => stored += 1,
            status => {
                assert_eq!((status, &answer.json["error"]["code"]), (503, &json!("disk_full")), "{}", server.words());
                refused += 1;
            }
        }
    }
    server.call("GET", "/v1/judgments?limit=500", None).await.expect(200);
    disk.clear();
    // The same requests again, without a restart.
    for i in stored..stored + refused {
        let answer = server.call("POST", "/v1/comparisons", Some(ranking(i))).await;
        assert!([200, 201].contains(&answer.status), "{}", answer.json);
    }
    let all = server.call("GET", "/v1/judgments?limit=500", None).await.expect(200);
    let keys: Vec<_> = all["data"].as_array().unwrap().iter().map(|j| j["idempotency_key"].to_string()).collect();
    for i in 0..stored + refused {
        assert_eq!(keys.iter().filter(|k| **k == format!("\"k{i}\"")).count(), 1, "k{i}");
    }
    server.kill();
    assert_sound(&url).await;
}

/// Fills the disk once the first checkpoint is there.
struct Filler<'a> {
    disk: &'a Path,
    checkpoints: usize,
}

impl Reporter for Filler<'_> {
    fn progress(&mut self, _: &instructd::domain::Progress) {}
    fn metrics(&mut self, _: &[instructd::domain::Metric]) {}
    fn event(&mut self, kind: &str, _: Value) {
        if kind == "checkpoint" {
            self.checkpoints += 1;
            if self.checkpoints == 1 {
                fill(self.disk);
            }
        }
    }
    fn should_stop(&self) -> bool {
        false
    }
}

#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    let Some(disk) = SmallDisk::mount(4) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let data = elsewhere.path().join("demonstrations.jsonl");
    let line = r#"{"prompt": [{"role": "user", "content": "t1"}], "completion": "t2 t3"}"#;
    std::fs::write(&data, format!("{line}\n").repeat(8)).unwrap();
    let checkpoints = disk.path().join("checkpoints");
    let args = json!({"model": support::fixture("llama-tied-tiny"), "demonstrations": data, "epochs": 3,
        "batch_size": 4, "max_length": 16, "checkpoint_every": 2, "checkpoint_dir": checkpoints,
        "output_dir": elsewhere.path().join("output"), "device": "cpu"});
    let sft = recipes().iter().find(|r| r.name == "sft").unwrap();
    let mut filler = Filler { disk: disk.path(), checkpoints: 0 };
    let error = match (sft.run)(&args, &mut filler) {
        Ok(_) => panic!("a checkpoint was written to a full disk"),
        Err(error) => format!("{error:#}"),
    };
    assert!(error.contains("cannot write checkpoint") && error.contains("No space left"), "{error}");
    let kept = CheckpointDir::open(&checkpoints).unwrap().load_latest().unwrap().expect("the first checkpoint");
    assert!(kept.1.is_empty() && kept.0.step == 2, "{:?}", kept.1);
    assert!(std::fs::read_dir(&checkpoints).unwrap().all(|e| !e.unwrap().path().ends_with("tmp")));
    // With room again it goes on from there, to the end.
    disk.clear();
    let mut again = args.clone();
    again["resume"] = json!(true);
    let done = (sft.run)(&again, &mut Filler { disk: disk.path(), checkpoints: 1 }).unwrap();
    assert!(matches!(done, TrainOutcome::Done { .. }));
}
