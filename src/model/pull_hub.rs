//! A model repository on the Hugging Face hub → a directory. hf-hub sets no time limits, so it works on a
//! thread of its own, and a download that stands still is given up.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError};

use super::pull::{FILES, PullError, PullProgress, hash_file, io};

/// A download without a byte for so long has failed.
const STALL: Duration = Duration::from_secs(20);

enum Event {
    Bytes(PullProgress),
    Done(Result<(), String>),
}

/// Fetches configuration, tokenizer and safetensors of `repo` into `dir`. Sizes are checked by the
/// transfer; weights also against the SHA-256 that the hub keeps for large files.
pub(super) fn fetch(repo: &str, dir: &Path, progress: &mut dyn FnMut(&PullProgress)) -> Result<(), PullError> {
    let (events, incoming) = mpsc::channel();
    let (repo, dir) = (repo.to_owned(), dir.to_owned());
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            let outcome = download(&repo, &dir, &events).map_err(|e| e.to_string());
            // The other side has gone when it has given up; then nobody wants the outcome.
            let _ = events.send(Event::Done(outcome));
        })
        .map_err(io("a thread for the download"))?;
    loop {
        match incoming.recv_timeout(STALL) {
            Ok(Event::Bytes(at)) => progress(&at),
            Ok(Event::Done(outcome)) => return outcome.map_err(PullError::Refused),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(PullError::Refused(format!("no answer for {} seconds", STALL.as_secs())));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(PullError::Refused("the download broke off".into()));
            }
        }
    }
}

/// Says how far one file is.
struct Told {
    events: mpsc::Sender<Event>,
    at: PullProgress,
}

impl Progress for Told {
    fn init(&mut self, size: usize, filename: &str) {
        self.at = PullProgress { what: filename.to_owned(), done: 0, total: Some(size as u64) };
    }

    fn update(&mut self, size: usize) {
        self.at.done += size as u64;
        // Nobody listens any more once the download was given up.
        let _ = self.events.send(Event::Bytes(self.at.clone()));
    }

    fn finish(&mut self) {}
}

fn download(repo: &str, dir: &Path, events: &mpsc::Sender<Event>) -> Result<(), PullError> {
    let failed = |e: ApiError| PullError::Refused(e.to_string());
    // Parts and links live in the staging directory and go with it.
    let cache = dir.join(".hub");
    let api = ApiBuilder::from_env().with_cache_dir(cache.clone()).with_progress(false).with_retries(2);
    let api = api.build().map_err(failed)?.model(repo.to_owned());
    let files: Vec<String> = api.info().map_err(failed)?.siblings.into_iter().map(|s| s.rfilename).collect();
    let wanted = |name: &str| {
        let plain = !name.contains('/') && !name.contains("..");
        FILES.contains(&name) || (plain && name.ends_with(".safetensors"))
    };
    for name in files.iter().filter(|name| wanted(name)) {
        let told = Told { events: events.clone(), at: PullProgress { what: name.clone(), done: 0, total: None } };
        let link = api.download_with_progress(name, told).map_err(failed)?;
        // The blob is named by its etag, which for large files is their SHA-256.
        let blob: PathBuf = link.canonicalize().map_err(io(name))?;
        let etag = blob.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if etag.len() == 64 {
            let (_, sha) = hash_file(&blob)?;
            if sha != etag {
                return Err(PullError::Refused(format!("{name} arrived damaged: SHA-256 {sha}, expected {etag}")));
            }
        }
        let to = dir.join(name);
        std::fs::create_dir_all(to.parent().unwrap_or(dir)).map_err(io(name))?;
        std::fs::rename(&blob, to).map_err(io(name))?;
    }
    std::fs::remove_dir_all(&cache).map_err(io(cache.display()))
}
