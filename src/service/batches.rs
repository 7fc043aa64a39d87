//! Files that clients upload, and batches of the requests in them: validated here, answered by `http`, which has the
//! request handlers.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;

use super::access::owner_of;
use super::people::Actor;
use super::{Result, ServiceError, Services, bad_input};
use crate::domain::time::{DAY, before};
use crate::domain::{Batch, BatchFault, BatchState, FilePurpose, StoredFile, new_id};
use crate::store::Page;

/// Most lines of one batch, as at OpenAI.
const MOST_LINES: usize = 50_000;
/// Most unfinished batches of one owner.
const MOST_OPEN: i64 = 64;
/// Most errors that are listed for one file.
const MOST_FAULTS: usize = 20;
/// Time (µs) after which a batch expires.
const WINDOW: i64 = DAY;

/// Paths of the requests that a batch may contain.
pub const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];

/// One line of an input file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub custom_id: String,
    pub method: String,
    pub url: String,
    pub body: Value,
}

/// Stores an uploaded file.
///
/// # Errors
/// `BadInput` for an empty file or text that is not UTF-8; `Conflict` when the owner has too many bytes.
pub async fn upload(services: &Services, by: &Actor, name: String, content: Vec<u8>) -> Result<StoredFile> {
    let Ok(content) = String::from_utf8(content) else { return Err(bad_input("file", "must be text in UTF-8")) };
    if content.trim().is_empty() {
        return Err(bad_input("file", "is empty"));
    }
    if content.contains('\0') {
        return Err(bad_input("file", "contains a NUL byte, which is not allowed in JSON"));
    }
    let file = StoredFile {
        id: format!("file-{}", new_id()),
        owner: owner_of(by),
        name: if name.is_empty() { "batch.jsonl".to_owned() } else { name },
        purpose: FilePurpose::Batch,
        bytes: content.len() as i64,
        created: services.now(),
    };
    let most = services.config.batches.key_bytes as i64;
    services.store.files().put(file.clone(), content, most).await?;
    Ok(file)
}

/// A request for a batch.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub input_file: String,
    pub endpoint: String,
    pub metadata: Value,
}

/// Validates the lines of a file and stores a batch of them; invalid lines make it a failed batch.
///
/// # Errors
/// `BadInput` for an unknown endpoint; `NotFound` for files of others; `Conflict` when too many batches wait;
/// `Forbidden` when batches are disabled.
pub async fn create(services: &Services, by: &Actor, new: NewBatch) -> Result<Batch> {
    if services.config.batches.at_once == 0 {
        return Err(ServiceError::Forbidden("batches are disabled on this server (batches.at_once is 0)".into()));
    }
    if !ENDPOINTS.contains(&new.endpoint.as_str()) {
        return Err(bad_input("endpoint", format!("must be one of {}", ENDPOINTS.join(", "))));
    }
    let owner = owner_of(by);
    let file = services.store.files().get(&new.input_file, &owner).await;
    let file = file.map_err(|e| super::not_found_as(e, "input_file_id"))?;
    if file.purpose != FilePurpose::Batch {
        return Err(bad_input("input_file_id", "is an output file of a batch; name an uploaded file"));
    }
    let content = services.store.files().content(&file.id).await?;
    let endpoint = new.endpoint.clone();
    let checked = tokio::task::spawn_blocking(move || check(&content, &endpoint)).await;
    let (total, faults) = checked.map_err(|e| ServiceError::Internal(e.to_string()))?;
    let now = services.now();
    let sound = faults.is_empty();
    let batch = Batch {
        id: format!("batch_{}", new_id()),
        owner,
        input_file: file.id,
        endpoint: new.endpoint,
        state: if sound { BatchState::Queued } else { BatchState::Failed },
        metadata: new.metadata,
        faults,
        total: if sound { total } else { 0 },
        completed: 0,
        failed: 0,
        created: now,
        began: None,
        cancelling: None,
        ended: (!sound).then_some(now),
        expires: now.saturating_add(WINDOW),
        output_file: None,
        error_file: None,
    };
    services.store.batches().put(batch.clone(), MOST_OPEN).await?;
    Ok(batch)
}

/// The lines of a file that are not blank, with their numbers from 1.
pub fn lines(content: &str) -> impl Iterator<Item = (i64, &str)> {
    content.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()).map(|(i, text)| (i as i64 + 1, text))
}

/// The number of requests, and errors in them.
fn check(content: &str, endpoint: &str) -> (i64, Vec<BatchFault>) {
    let (mut total, mut faults, mut seen) = (0, Vec::new(), HashSet::new());
    for (line, text) in lines(content) {
        total += 1;
        let mut fault = |code: &str, param: Option<&str>, message: String| {
            faults.push(BatchFault { code: code.into(), message, param: param.map(str::to_owned), line: Some(line) });
        };
        if total as usize > MOST_LINES {
            fault("too_many_requests", None, format!("a batch has at most {MOST_LINES} requests"));
            break;
        }
        match serde_json::from_str::<Line>(text) {
            Err(e) => fault("invalid_json_line", None, format!("this line is not a request: {e}")),
            Ok(one) if one.method != "POST" => fault("invalid_method", Some("method"), "must be POST".into()),
            Ok(one) if one.url != endpoint => {
                fault("mismatched_url", Some("url"), format!("is {}; the batch is for {endpoint}", one.url));
            }
            Ok(one) if !one.body.is_object() => fault("invalid_body", Some("body"), "must be an object".into()),
            Ok(one) if one.body["stream"] == true => {
                fault("invalid_body", Some("body.stream"), "answers of a batch cannot be streamed".into());
            }
            Ok(one) => {
                if !seen.insert(one.custom_id.clone()) {
                    let message =
                        format!("{} is the id of another line of this file too; ids must be unique", one.custom_id);
                    fault("duplicate_custom_id", Some("custom_id"), message);
                }
            }
        }
        if faults.len() >= MOST_FAULTS {
            break;
        }
    }
    if total == 0 {
        faults.push(BatchFault {
            code: "empty_file".into(),
            message: "the file contains no requests".into(),
            param: None,
            line: None,
        });
    }
    (total, faults)
}

pub async fn get(services: &Services, by: &Actor, id: &str) -> Result<Batch> {
    Ok(services.store.batches().get(id, &owner_of(by)).await?)
}

pub async fn list(services: &Services, by: &Actor, page: Page) -> Result<Vec<Batch>> {
    Ok(services.store.batches().list(&owner_of(by), page).await?)
}

pub async fn cancel(services: &Services, by: &Actor, id: &str) -> Result<Batch> {
    Ok(services.store.batches().cancel(id, &owner_of(by), services.now()).await?)
}

pub async fn file(services: &Services, by: &Actor, id: &str) -> Result<StoredFile> {
    Ok(services.store.files().get(id, &owner_of(by)).await?)
}

pub async fn files(
    services: &Services,
    by: &Actor,
    purpose: Option<FilePurpose>,
    page: Page,
) -> Result<Vec<StoredFile>> {
    Ok(services.store.files().list(&owner_of(by), purpose, page).await?)
}

pub async fn delete(services: &Services, by: &Actor, id: &str) -> Result<()> {
    Ok(services.store.files().delete(id, &owner_of(by)).await?)
}

/// Source of a file's text.
pub enum Content {
    Whole(String),
    /// Results of a batch: either the failed or the successful ones.
    Answers {
        batch: String,
        failed: bool,
    },
}

/// Finds the text of a file.
///
/// # Errors
/// `NotFound` for files of others.
pub async fn content(services: &Services, by: &Actor, id: &str) -> Result<Content> {
    let file = file(services, by, id).await?;
    match file.purpose {
        FilePurpose::Batch => Ok(Content::Whole(services.store.files().content(id).await?)),
        FilePurpose::BatchOutput => {
            let (batch, failed) = services.store.files().batch_of(id).await?;
            Ok(Content::Answers { batch, failed })
        }
    }
}

/// Results of a batch after a line, in order, about `bytes` bytes of them.
///
/// # Errors
/// What the store says.
pub async fn answers(
    services: &Services,
    batch: &str,
    failed: bool,
    after: i64,
    bytes: usize,
) -> Result<Vec<(i64, String)>> {
    Ok(services.store.batches().results(batch, failed, after, bytes).await?)
}

/// Removes what is older than `batches.keep_days`.
pub async fn expire(services: &Services) -> Result<u64> {
    let cut = before(services.now(), services.config.batches.keep_days, DAY);
    Ok(services.store.files().expire(cut).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, url: &str, body: &str) -> String {
        format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "{url}", "body": {body}}}"#)
    }

    #[test]
    fn faults_name_their_line() {
        let url = "/v1/completions";
        let good = line("a", url, r#"{"prompt": "x"}"#);
        assert_eq!(check(&format!("{good}\n\n{}\n", line("b", url, "{}")), url), (2, Vec::new()));
        for (text, code, at) in [
            (format!("{good}\n{good}"), "duplicate_custom_id", 2),
            (format!("\n{}", line("a", "/v1/embeddings", "{}")), "mismatched_url", 2),
            (line("a", url, "3"), "invalid_body", 1),
            (line("a", url, r#"{"stream": true}"#), "invalid_body", 1),
            (format!("{good}\nnonsense"), "invalid_json_line", 2),
            (good.replace("POST", "GET"), "invalid_method", 1),
        ] {
            let (_, faults) = check(&text, url);
            let found: Vec<_> = faults.iter().map(|f| (f.code.as_str(), f.line)).collect();
            assert_eq!(found, [(code, Some(at))], "{text}");
        }
        assert_eq!(check(" \n", url).1[0].code, "empty_file");
        let many: String = (0..=MOST_LINES).map(|i| line(&i.to_string(), url, "{}") + "\n").collect();
        assert_eq!(check(&many, url).1[0].code, "too_many_requests");
        assert_eq!(check(&"x\n".repeat(1000), url).1.len(), MOST_FAULTS);
    }
}
