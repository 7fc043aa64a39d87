//! Pushing a directory to a repository of the Hugging Face hub: the repository is created, large files go to its
//! large-file storage (Git LFS), and one commit holds everything. What the hub has already is not sent again, so an
//! interrupted push continues where it stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use reqwest::{Body, Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Hub, HubError, MAX_ATTEMPTS, Result, STALL, io, pause, why};
use crate::domain::hash;

/// Bytes of a file by which the hub decides where it is kept.
const SAMPLE: usize = 512;
/// Most bytes of one commit's small files; larger ones go to large-file storage whatever the hub proposes.
const MAX_REGULAR: u64 = 5 << 20;
/// Slowest accepted upload, bytes per second.
const SLOWEST: u64 = 32 << 10;
/// Bytes that are read from a file at once.
const PIECE: usize = 1 << 20;
/// Most characters of the hub's own explanation that are repeated.
const MAX_REASON: usize = 300;

const LFS: &str = "application/vnd.git-lfs+json";

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    /// Before a repository's name in addresses of pages and files.
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// What is pushed where.
pub struct Push<'a> {
    pub kind: RepoKind,
    /// `OWNER/NAME`.
    pub repo: &'a str,
    /// Whether a new repository is private; an existing one stays as it is.
    pub private: bool,
    pub dir: &'a Path,
    /// First line of the commit.
    pub summary: &'a str,
}

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Address of the repository's page.
    pub url: String,
    /// Files that were sent, and files that the hub had already.
    pub sent: usize,
    pub present: usize,
}

/// A file to push.
struct Local {
    /// Path in the repository, with `/`.
    name: String,
    path: PathBuf,
    bytes: u64,
    /// SHA-256 (hex).
    sha256: String,
}

#[derive(Deserialize)]
struct Proposals {
    files: Vec<Proposal>,
}

/// Where the hub keeps a file.
#[derive(Deserialize)]
struct Proposal {
    path: String,
    #[serde(rename = "uploadMode")]
    mode: String,
    #[serde(default, rename = "shouldIgnore")]
    ignored: bool,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// `None` when the hub has the object.
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    /// Headers to send; for an upload in parts, `chunk_size` and the address of each part by its number.
    #[serde(default)]
    header: Map<String, Value>,
}

impl Hub {
    /// Pushes every file of a directory. `on_progress` is called with a file's name and what happens to it.
    ///
    /// # Errors
    /// `Refused` with what to do (token, rights, quota); `Broken` for errors that may pass: push again to continue.
    pub async fn push(&self, push: &Push<'_>, on_progress: &(dyn Fn(&str, &str) + Sync)) -> Result<Pushed> {
        if self.token.is_none() {
            let message =
                "pushing needs a token with the right to write: set HF_TOKEN (see the settings of your account)";
            return Err(HubError::Refused(message.to_owned()));
        }
        let client = uploads()?;
        let dir = push.dir.to_owned();
        let files = tokio::task::spawn_blocking(move || files_of(&dir)).await;
        let files = files.map_err(|e| HubError::Refused(e.to_string()))?.map_err(io(push.dir))?;
        if files.is_empty() {
            return Err(HubError::Refused(format!("{} has no files to push", push.dir.display())));
        }
        self.create(&client, push).await?;
        let (large, small) = self.sorted(&client, push, files).await?;
        let uploaded = self.upload_large(&client, push, &large, on_progress).await?;
        self.commit(&client, push, &large, &small).await?;
        small.iter().for_each(|file| on_progress(&file.name, "sent"));
        let url = format!("{}/{}{}", self.endpoint, push.kind.prefix(), push.repo);
        Ok(Pushed { url, sent: uploaded + small.len(), present: large.len() - uploaded })
    }

    /// Creates the repository, unless it exists.
    async fn create(&self, client: &Client, push: &Push<'_>) -> Result<()> {
        let Some((owner, name)) = push.repo.split_once('/').filter(|(o, n)| is_name(o) && is_name(n)) else {
            let message = format!("'{}' is not the name of a repository: write OWNER/NAME", push.repo);
            return Err(HubError::Refused(message));
        };
        let mut body = json!({"name": name, "organization": owner, "private": push.private});
        if push.kind != RepoKind::Model {
            body["type"] = json!(push.kind.name());
        }
        let url = format!("{}/api/repos/create", self.endpoint);
        let ask = || self.with_token(client.post(&url)).json(&body).timeout(STALL);
        self.persistently(ask, push, &[StatusCode::CONFLICT]).await.map(drop)
    }

    /// The files as (large, small), by where the hub keeps them.
    async fn sorted(&self, client: &Client, push: &Push<'_>, files: Vec<Local>) -> Result<(Vec<Local>, Vec<Local>)> {
        let mut entries = Vec::new();
        for file in &files {
            let mut sample = Vec::new();
            let opened = tokio::fs::File::open(&file.path).await.map_err(io(&file.path))?;
            opened.take(SAMPLE as u64).read_to_end(&mut sample).await.map_err(io(&file.path))?;
            entries.push(json!({"path": file.name, "size": file.bytes, "sample": STANDARD.encode(sample)}));
        }
        let body = json!({"files": entries});
        let url = format!("{}/api/{}s/{}/preupload/main", self.endpoint, push.kind.name(), push.repo);
        let ask = || self.with_token(client.post(&url)).json(&body).timeout(STALL);
        let proposals: Proposals = read(self.persistently(ask, push, &[]).await?).await?;
        let (mut large, mut small, mut regular) = (Vec::new(), Vec::new(), 0);
        for file in files {
            let proposal = proposals.files.iter().find(|proposal| proposal.path == file.name);
            if proposal.is_some_and(|proposal| proposal.ignored) {
                continue;
            }
            let fits = regular + file.bytes <= MAX_REGULAR;
            if fits && proposal.is_none_or(|proposal| proposal.mode != "lfs") {
                regular += file.bytes;
                small.push(file);
            } else {
                large.push(file);
            }
        }
        Ok((large, small))
    }

    /// Sends the large files that the hub lacks; returns their number.
    async fn upload_large(
        &self,
        client: &Client,
        push: &Push<'_>,
        files: &[Local],
        on_progress: &(dyn Fn(&str, &str) + Sync),
    ) -> Result<usize> {
        if files.is_empty() {
            return Ok(0);
        }
        let objects: Vec<Value> = files.iter().map(|f| json!({"oid": f.sha256, "size": f.bytes})).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": objects,
        });
        let url = format!("{}/{}{}.git/info/lfs/objects/batch", self.endpoint, push.kind.prefix(), push.repo);
        let text = body.to_string();
        let ask = || {
            let request = self.with_token(client.post(&url)).header(ACCEPT, LFS).header(CONTENT_TYPE, LFS);
            request.body(text.clone()).timeout(STALL)
        };
        let batch: Batch = read(self.persistently(ask, push, &[]).await?).await?;
        let mut sent = 0;
        for file in files {
            let object = batch.objects.iter().find(|object| object.oid == file.sha256);
            let Some(object) = object else {
                return Err(HubError::Refused(format!("the hub says nothing about the upload of {}", file.name)));
            };
            if let Some(error) = &object.error {
                let reason = plain(&error.message);
                return Err(HubError::Refused(format!("the hub does not take {}: {reason}", file.name)));
            }
            let Some(actions) = &object.actions else {
                on_progress(&file.name, "is there already");
                continue;
            };
            if let Some(upload) = &actions.upload {
                on_progress(&file.name, "sending");
                self.upload(client, push, file, upload).await?;
            }
            if let Some(verify) = &actions.verify {
                let body = json!({"oid": file.sha256, "size": file.bytes});
                let ask = || self.to_hub(client.post(&verify.href), &verify.href).json(&body).timeout(STALL);
                self.persistently(ask, push, &[]).await?;
            }
            sent += 1;
            on_progress(&file.name, "sent");
        }
        Ok(sent)
    }

    /// Sends one large file, whole or in parts as the hub asks.
    async fn upload(&self, client: &Client, push: &Push<'_>, file: &Local, action: &Action) -> Result<()> {
        let chunk = match action.header.get("chunk_size") {
            Some(Value::String(text)) => text.parse::<u64>().ok(),
            Some(value) => value.as_u64(),
            None => None,
        };
        let Some(chunk) = chunk.filter(|bytes| *bytes > 0) else {
            return self.send_part(client, push, file, &action.href, 0, file.bytes).await.map(drop);
        };
        let mut parts = Vec::new();
        for number in 1..=file.bytes.div_ceil(chunk) {
            // Keys are numbers with leading zeros.
            let address = action.header.iter().find(|(key, _)| key.parse() == Ok(number)).and_then(|(_, a)| a.as_str());
            let Some(address) = address else {
                return Err(HubError::Refused(format!("the hub gives no address for part {number} of {}", file.name)));
            };
            let start = (number - 1) * chunk;
            let answer = self.send_part(client, push, file, address, start, chunk.min(file.bytes - start)).await?;
            let etag = answer.headers().get(ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            if etag.is_empty() {
                return Err(HubError::Broken(format!("part {number} of {} was stored without an ETag", file.name)));
            }
            parts.push(json!({"partNumber": number, "etag": etag}));
        }
        let body = json!({"oid": file.sha256, "parts": parts}).to_string();
        let ask = || {
            let request = self.to_hub(client.post(&action.href), &action.href);
            request.header(ACCEPT, LFS).header(CONTENT_TYPE, LFS).body(body.clone()).timeout(STALL * 3)
        };
        self.persistently(ask, push, &[]).await.map(drop)
    }

    /// Sends `bytes` of a file from `start` on to an address that needs no token.
    async fn send_part(
        &self,
        client: &Client,
        push: &Push<'_>,
        file: &Local,
        address: &str,
        start: u64,
        bytes: u64,
    ) -> Result<Response> {
        let limit = STALL * 3 + Duration::from_secs(bytes / SLOWEST);
        let ask = || {
            let body = Body::wrap_stream(pieces(file.path.clone(), start, bytes));
            client.put(address).header(CONTENT_LENGTH, bytes).body(body).timeout(limit)
        };
        self.persistently(ask, push, &[]).await
    }

    /// One commit with the small files and references to the large ones.
    async fn commit(&self, client: &Client, push: &Push<'_>, large: &[Local], small: &[Local]) -> Result<()> {
        let line = |key: &str, value: Value| format!("{}\n", json!({"key": key, "value": value}));
        let mut body = line("header", json!({"summary": push.summary, "description": ""}));
        for file in small {
            let content = tokio::fs::read(&file.path).await.map_err(io(&file.path))?;
            let content = STANDARD.encode(content);
            body.push_str(&line("file", json!({"path": file.name, "encoding": "base64", "content": content})));
        }
        for file in large {
            let value = json!({"path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.bytes});
            body.push_str(&line("lfsFile", value));
        }
        let url = format!("{}/api/{}s/{}/commit/main", self.endpoint, push.kind.name(), push.repo);
        let ask = || {
            let request = self.with_token(client.post(&url)).header(CONTENT_TYPE, "application/x-ndjson");
            request.body(body.clone()).timeout(STALL * 6)
        };
        self.persistently(ask, push, &[]).await.map(drop)
    }

    /// A successful response, or one with a status of `accepted`; transient errors are tried again.
    async fn persistently(
        &self,
        ask: impl Fn() -> RequestBuilder,
        push: &Push<'_>,
        accepted: &[StatusCode],
    ) -> Result<Response> {
        let mut failure = HubError::Broken("no answer".into());
        for attempt in 0..MAX_ATTEMPTS {
            pause(attempt).await;
            let answer = match ask().send().await {
                Ok(answer) => answer,
                Err(error) => {
                    failure = HubError::Broken(format!("{}; push again to continue", why(&error)));
                    continue;
                }
            };
            let status = answer.status();
            if status.is_success() || accepted.contains(&status) {
                return Ok(answer);
            }
            if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                return Err(refusal(answer, push).await);
            }
            failure = HubError::Broken(format!("the hub responded with {status}; push again to continue"));
        }
        Err(failure)
    }

    /// A request to an address that the hub has named: only its own server gets the token.
    fn to_hub(&self, request: RequestBuilder, address: &str) -> RequestBuilder {
        let is_own = address.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'));
        if is_own { self.with_token(request) } else { request }
    }
}

/// A client whose requests have time limits of their own: an upload gets no answer until it has ended.
fn uploads() -> Result<Client> {
    let agent = concat!("instructd/", env!("CARGO_PKG_VERSION"));
    let builder = Client::builder().connect_timeout(STALL).user_agent(agent);
    builder.build().map_err(|e| HubError::Refused(why(&e)))
}

/// What a refusal means and what to do.
async fn refusal(answer: Response, push: &Push<'_>) -> HubError {
    let (status, repo) = (answer.status(), push.repo);
    let header = answer.headers().get("x-error-message").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let said = header.or(answer.json::<Value>().await.ok().and_then(|b| b["error"].as_str().map(str::to_owned)));
    let said = said.map(|text| plain(&text)).unwrap_or_default();
    let is_quota = status == StatusCode::PAYMENT_REQUIRED
        || status == StatusCode::INSUFFICIENT_STORAGE
        || ["quota", "storage limit", "limit reached"].iter().any(|word| said.to_lowercase().contains(word));
    let meaning = match status {
        _ if is_quota => format!("the storage of the account is used up: free some, or push {repo} elsewhere"),
        StatusCode::UNAUTHORIZED => "the token in HF_TOKEN is not valid: make a new one".to_owned(),
        StatusCode::FORBIDDEN => format!("the token in HF_TOKEN may not write to {repo}: it needs the right to write"),
        StatusCode::NOT_FOUND => format!("{repo} does not exist, or the token in HF_TOKEN may not see it"),
        StatusCode::PAYLOAD_TOO_LARGE => "a file is larger than the hub allows".to_owned(),
        _ => "the hub refused the request".to_owned(),
    };
    let said = if said.is_empty() { said } else { format!("; the hub says: {said}") };
    HubError::Refused(format!("{meaning} ({status}){said}"))
}

/// The beginning of a text from elsewhere, as one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

async fn read<T: serde::de::DeserializeOwned>(answer: Response) -> Result<T> {
    let unreadable = |e: reqwest::Error| HubError::Refused(format!("the hub's response cannot be read: {}", why(&e)));
    answer.json().await.map_err(unreadable)
}

fn is_name(part: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=96).contains(&part.len()) && part.bytes().all(fits) && !part.starts_with('.') && !part.contains("..")
}

/// Every file below a directory, with its hash, in the order of names. Hidden files are left out.
fn files_of(dir: &Path) -> std::io::Result<Vec<Local>> {
    let (mut found, mut open) = (Vec::new(), vec![(dir.to_owned(), String::new())]);
    while let Some((dir, prefix)) = open.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            if path.is_dir() {
                open.push((path, format!("{name}/")));
            } else {
                let (sha256, bytes) = hash::of_file(&path)?;
                found.push(Local { name, path, bytes, sha256 });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// `bytes` of a file from `start` on, in pieces.
fn pieces(path: PathBuf, start: u64, bytes: u64) -> impl futures::Stream<Item = std::io::Result<Vec<u8>>> {
    futures::stream::try_unfold((None, bytes), move |(file, left): (Option<tokio::fs::File>, u64)| {
        let path = path.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let mut file = match file {
                Some(file) => file,
                None => {
                    let mut file = tokio::fs::File::open(path).await?;
                    file.seek(std::io::SeekFrom::Start(start)).await?;
                    file
                }
            };
            let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            file.read_exact(&mut piece).await?;
            let left = left - piece.len() as u64;
            Ok(Some((piece, (Some(file), left))))
        }
    })
}
