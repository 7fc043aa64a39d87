//! Downloads a model repository of the Hugging Face hub into a directory.

use std::path::Path;
use std::sync::mpsc;

use super::files::{FILES, PullError, PullProgress, io};
use super::{Hub, RemoteFile};

enum Event {
    Bytes(PullProgress),
    Done(Result<(), String>),
}

/// Fetches configuration, tokenizer and weights of `repo` into `dir`. Sizes are checked, weights also against the
/// SHA-256 that the hub keeps for large files.
pub(super) fn fetch(
    hub: &Hub,
    repo: &str,
    dir: &Path,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<(), PullError> {
    let (events, incoming) = mpsc::channel();
    let (hub, repo, dir) = (hub.clone(), repo.to_owned(), dir.to_owned());
    // A thread of its own: the caller may be inside another runtime.
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = runtime
                .map_err(|e| e.to_string())
                .and_then(|runtime| runtime.block_on(download(&hub, &repo, &dir, &events)));
            // The receiver is gone when the caller has given up.
            let _ = events.send(Event::Done(outcome));
        })
        .map_err(io("a thread for the download"))?;
    loop {
        match incoming.recv() {
            Ok(Event::Bytes(at)) => progress(&at),
            Ok(Event::Done(outcome)) => return outcome.map_err(PullError::Refused),
            Err(mpsc::RecvError) => return Err(PullError::Refused("the download ended early".into())),
        }
    }
}

async fn download(hub: &Hub, repo: &str, dir: &Path, events: &mpsc::Sender<Event>) -> Result<(), String> {
    let found = hub.list(repo).await.map_err(|e| e.to_string())?;
    let files = wanted(&found.files)?;
    let report = |what: &str, done: u64, total: Option<u64>| {
        // The receiver is gone when the download was given up.
        let _ = events.send(Event::Bytes(PullProgress { what: what.to_owned(), done, total }));
    };
    hub.fetch(repo, &found.sha, &files, dir, &report).await.map_err(|e| e.to_string())?;
    // A single GGUF file is a complete model.
    if let Some(file) = files.iter().find(|file| file.name.ends_with(".gguf") && !file.name.contains("-of-")) {
        std::fs::rename(dir.join(&file.name), dir.join("model.gguf")).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The files that make the model: safetensors with their side files, else the one GGUF file or its parts.
fn wanted(files: &[RemoteFile]) -> Result<Vec<RemoteFile>, String> {
    let plain = |name: &str| !name.contains('/') && !name.contains("..");
    let ends = |end: &str| -> Vec<&RemoteFile> {
        files.iter().filter(|file| plain(&file.name) && file.name.ends_with(end)).collect()
    };
    let mut weights = ends(".safetensors");
    // Some repositories also have the same weights in a layout of their own.
    if weights.iter().any(|file| file.name.starts_with("model")) {
        weights.retain(|file| !file.name.starts_with("consolidated"));
    }
    if !weights.is_empty() {
        let sides = files.iter().filter(|file| FILES.contains(&file.name.as_str()));
        return Ok(sides.chain(weights).cloned().collect());
    }
    let gguf = ends(".gguf");
    let parts = gguf.iter().all(|file| file.name.contains("-of-"));
    match gguf.as_slice() {
        [] => Err("the repository has no weights in safetensors or GGUF files".into()),
        [one] => Ok(vec![(*one).clone()]),
        many if parts => Ok(many.iter().map(|file| (*file).clone()).collect()),
        many => {
            let names: Vec<&str> = many.iter().map(|file| file.name.as_str()).collect();
            Err(format!(
                "it has several GGUF files: download one of {} and pull it with `--from FILE`",
                names.join(", ")
            ))
        }
    }
}
