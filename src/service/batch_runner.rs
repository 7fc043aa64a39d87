//! Runs batches: every line is a request with its owner's current rights and lower priority than other requests.
//! Responses are stored line by line, so that another server, or this one after a restart, can continue.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::batches::{self, Line};
use super::people::Actor;
use super::{Services, access, meter, urgency};
use crate::domain::time::SECOND;
use crate::domain::{Batch, BatchFault, BatchResult, BatchState, Micros, new_id};
use crate::store::{BatchEnd, StoreError};

/// The response to one request.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchResponse {
    /// HTTP status: 200 is success, 429 and 503 ask for a retry.
    pub status: u16,
    /// The body; a refusal has `error`.
    pub body: Value,
}

/// Handles the requests that a batch may contain.
#[async_trait]
pub trait RequestHandler: Send + Sync + 'static {
    /// RequestHandler the JSON `body` of a request for the path `endpoint`, as `actor`. `id` is the request's id.
    async fn answer(&self, actor: Actor, endpoint: &str, id: &str, body: &[u8]) -> BatchResponse;
}

/// Interval of checks for a batch.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Batches that one server runs at the same time, so that none waits for a long one.
const BATCHES_AT_ONCE: usize = 4;
/// A server that sends no heartbeat for this long (µs) loses its batches.
const LEASE: Micros = 30 * SECOND;
/// How often it sends a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Pause before a request is retried that the server could not accept.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Number of attempts before a request is refused. Waiting for the token limit of a new day does not count.
const MAX_ATTEMPTS: u32 = 150;
/// Polls between two removals of old files.
const POLLS_PER_REMOVAL: u32 = 3600;
/// Results that are stored in one transaction when a batch has expired.
const RESULTS_PER_WRITE: usize = 500;

/// Claims and runs batches until shutdown.
pub async fn follow(services: Arc<Services>, handlers: Arc<dyn RequestHandler>) {
    let places = services.config.batches.at_once;
    let me = new_id();
    let turns = Arc::new(Semaphore::new(places));
    let mut running = JoinSet::new();
    for look in 0u32.. {
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = services.shutdown.cancelled() => break,
        }
        while running.try_join_next().is_some() {}
        if look % POLLS_PER_REMOVAL == 0
            && let Err(error) = batches::expire(&services).await
        {
            tracing::warn!(%error, "old files cannot be removed");
        }
        // Requests cannot be answered before the model is loaded.
        if places == 0 || running.len() >= BATCHES_AT_ONCE || services.engine().is_err() {
            continue;
        }
        let now = services.now();
        match services.store.batches().claim(&me, now, now + LEASE).await {
            Ok(None) => {}
            Ok(Some(batch)) => {
                let (services, handlers, turns) = (services.clone(), handlers.clone(), turns.clone());
                let run = Run { services, handlers, me: me.clone(), places, turns };
                running.spawn(async move {
                    let id = batch.id.clone();
                    if let Err(error) = run.answer(batch).await {
                        tracing::warn!(%error, batch = %id, "a batch was interrupted and will be continued later");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "no batch can be claimed"),
        }
    }
    while running.join_next().await.is_some() {}
}

/// Why a batch ends before its last line.
enum Stop {
    Cancelled,
    Expired,
    Failed(BatchFault),
}

#[derive(Clone)]
struct Run {
    services: Arc<Services>,
    handlers: Arc<dyn RequestHandler>,
    me: String,
    places: usize,
    turns: Arc<Semaphore>,
}

impl Run {
    async fn answer(&self, batch: Batch) -> Result<(), StoreError> {
        let (store, shutdown) = (&self.services.store, &self.services.shutdown);
        let answered: HashSet<i64> = store.batches().answered_lines(&batch.id).await?.into_iter().collect();
        let content = match store.files().content(&batch.input_file).await {
            Ok(content) => content,
            Err(StoreError::NotFound { .. }) => {
                let message = "the input file of this batch was removed".to_owned();
                let gone = BatchFault { code: "file_not_found".into(), message, param: None, line: None };
                return self.end(&batch, BatchState::Failed, vec![gone]).await;
            }
            Err(error) => return Err(error),
        };
        let lines = batches::lines(&content).filter(|(line, _)| !answered.contains(line));
        let mut left: VecDeque<(i64, String)> = lines.map(|(line, text)| (line, text.to_owned())).collect();
        let mut running: JoinSet<Result<(), StoreError>> = JoinSet::new();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let stop = loop {
            if left.is_empty() && running.is_empty() {
                break None;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    running.shutdown().await;
                    // The next server can claim it at once.
                    store.batches().hold(&batch.id, &self.me, 0).await?;
                    return Ok(());
                }
                _ = heartbeat.tick() => {
                    let now = self.services.now();
                    let known = store.batches().hold(&batch.id, &self.me, now + LEASE).await?;
                    if let Some(stop) = self.stop(&known, now).await? {
                        running.shutdown().await;
                        break Some(stop);
                    }
                }
                Some(done) = running.join_next() => {
                    done.map_err(|e| StoreError::Internal(format!("the task of a batch's request failed: {e}")))??;
                }
                () = std::future::ready(()), if running.len() < self.places && !left.is_empty() => {
                    let Some((line, text)) = left.pop_front() else { continue };
                    let (run, batch) = (self.clone(), batch.clone());
                    running.spawn(async move {
                        let result = run.one(&batch, line, &text).await;
                        run.services.store.batches().put_results(&batch.id, &run.me, vec![result]).await
                    });
                }
            }
        };
        match stop {
            None => self.end(&batch, BatchState::Done, Vec::new()).await,
            Some(Stop::Cancelled) => self.end(&batch, BatchState::Cancelled, Vec::new()).await,
            Some(Stop::Failed(fault)) => self.end(&batch, BatchState::Failed, vec![fault]).await,
            Some(Stop::Expired) => {
                self.expire_unanswered(&batch, &content).await?;
                self.end(&batch, BatchState::Expired, Vec::new()).await
            }
        }
    }

    async fn stop(&self, batch: &Batch, now: Micros) -> Result<Option<Stop>, StoreError> {
        let services = &self.services;
        if batch.state == BatchState::Cancelling {
            return Ok(Some(Stop::Cancelled));
        }
        if batch.expires <= now {
            return Ok(Some(Stop::Expired));
        }
        let failed = |code: &str, message: &str| {
            let fault = BatchFault { code: code.into(), message: message.into(), param: None, line: None };
            Ok(Some(Stop::Failed(fault)))
        };
        // An unavailable database does not end the batch.
        if let Ok(None) = access::by_owner(services, &batch.owner).await {
            return failed("access_ended", "the key of this batch was revoked");
        }
        if services.store.files().bytes(&batch.owner).await? > services.config.batches.key_bytes as i64 {
            return failed(
                "too_many_bytes",
                "the responses exceed the bytes that one key may store (batches.max_bytes_per_key)",
            );
        }
        Ok(None)
    }

    async fn end(&self, batch: &Batch, state: BatchState, faults: Vec<BatchFault>) -> Result<(), StoreError> {
        let (output, errors) = (format!("file-{}", new_id()), format!("file-{}", new_id()));
        let end = BatchEnd { state, faults, output, errors, now: self.services.now() };
        self.services.store.batches().end(&batch.id, &self.me, end).await?;
        Ok(())
    }

    /// Stores an error for every request that was not answered in time.
    async fn expire_unanswered(&self, batch: &Batch, content: &str) -> Result<(), StoreError> {
        let store = &self.services.store;
        let answered: HashSet<i64> = store.batches().answered_lines(&batch.id).await?.into_iter().collect();
        let late = |(line, text): (i64, &str)| {
            let custom_id = serde_json::from_str::<Line>(text).map(|l| l.custom_id).unwrap_or_default();
            let error =
                json!({"code": "batch_expired", "message": "the batch expired before this request was answered"});
            result(line, &custom_id, Value::Null, error)
        };
        let all: Vec<_> = batches::lines(content).filter(|(line, _)| !answered.contains(line)).map(late).collect();
        for some in all.chunks(RESULTS_PER_WRITE) {
            store.batches().put_results(&batch.id, &self.me, some.to_vec()).await?;
        }
        Ok(())
    }

    /// Runs one line, with retries while the server cannot accept it.
    async fn one(&self, batch: &Batch, line: i64, text: &str) -> BatchResult {
        let request = match serde_json::from_str::<Line>(text) {
            Ok(request) => request,
            Err(e) => {
                let error = json!({"code": "invalid_json_line", "message": e.to_string()});
                return result(line, "", Value::Null, error);
            }
        };
        let body = request.body.to_string();
        let mut tries = 0;
        loop {
            let id = new_id();
            let answered = {
                // Released while it waits for a retry, so that other requests can run.
                let _turn = self.turns.acquire().await;
                self.ask(batch, &id, body.as_bytes()).await
            };
            let waits = match &answered {
                AttemptResult::OutOfTokens => true,
                AttemptResult::BatchResponse(answer) => matches!(answer.status, 429 | 503) && tries < MAX_ATTEMPTS,
                AttemptResult::Later => tries < MAX_ATTEMPTS,
            };
            if waits {
                tries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            let AttemptResult::BatchResponse(BatchResponse { status, body }) = answered else {
                let error = json!({"code": "server_error", "message": "the server was too busy for this request; send it again"});
                return result(line, &request.custom_id, Value::Null, error);
            };
            let response = json!({"status_code": status, "request_id": id, "body": body});
            return result(line, &request.custom_id, response, Value::Null);
        }
    }

    /// Runs a request with the owner's current rights and charges its tokens to the owner.
    async fn ask(&self, batch: &Batch, id: &str, body: &[u8]) -> AttemptResult {
        let services = &self.services;
        // `stop` detects a revoked key and ends the batch.
        let Ok(Some(actor)) = access::by_owner(services, &batch.owner).await else { return AttemptResult::Later };
        if !(actor.inference || actor.is_admin()) {
            let message = "the key of this batch no longer has the scope inference";
            let error = json!({"error": {"message": message, "type": "permission_error", "code": "forbidden"}});
            return AttemptResult::BatchResponse(BatchResponse { status: 403, body: error });
        }
        match meter::exhausted(services, &actor).await {
            Ok(None) => {}
            Ok(Some(_)) => return AttemptResult::OutOfTokens,
            Err(_) => return AttemptResult::Later,
        }
        let payer = actor.quota.as_ref().map(|(id, _)| id.clone());
        let answer = self.handlers.answer(actor, &batch.endpoint, id, body);
        AttemptResult::BatchResponse(urgency::in_background(meter::paid_by(payer, answer)).await)
    }
}

/// Result of one attempt.
enum AttemptResult {
    BatchResponse(BatchResponse),
    /// The key's token limit of today is used up.
    OutOfTokens,
    /// The database is unavailable, or the key was removed.
    Later,
}

/// A line of an output file.
fn result(line: i64, custom_id: &str, response: Value, error: Value) -> BatchResult {
    let failed = response["status_code"] != 200;
    let id = format!("batch_req_{}", new_id());
    let text = json!({"id": id, "custom_id": custom_id, "response": response, "error": error}).to_string();
    BatchResult { line, failed, text }
}
