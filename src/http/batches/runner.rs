//! Answers batches: every line by the handler of its route, as its owner may ask now, behind other requests. What is
//! answered is stored line by line, so that another server, or this one after a restart, goes on from there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::domain::time::SECOND;
use crate::domain::{Batch, BatchFault, BatchResult, BatchState, Micros, new_id};
use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{self, Json};
use crate::http::observe::RequestId;
use crate::http::{AppState, encoders, openai, responses};
use crate::service::batches::{self, Line};
use crate::service::people::Actor;
use crate::service::{access, meter, urgency};
use crate::store::{BatchEnd, StoreError};

/// Between two looks for a batch.
const LOOK: Duration = Duration::from_secs(1);
/// Batches of one server at the same time: none waits for the end of a long one.
const BATCHES_AT_ONCE: usize = 4;
/// A server that says nothing for this long has lost its batches.
const HELD: Micros = 30 * SECOND;
/// How often it says that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// Before a request is tried again that the server could not take.
const AGAIN: Duration = Duration::from_secs(2);
/// So often; a request that fits nowhere is refused in the end. Tokens of a new day are waited for in any case.
const TRIES: u32 = 150;
/// Looks between two removals of what is too old.
const LOOKS_A_REMOVAL: u32 = 3600;
/// Answers that are stored in one transaction when a batch's time has ended.
const AT_A_TIME: usize = 500;
/// One answer at most.
const ANSWER_BYTES: usize = 64 << 20;

/// Claims and answers batches until shutdown.
pub async fn follow(state: AppState) {
    let services = state.services.clone();
    let places = services.config.batches.at_once;
    let me = new_id();
    let turns = Arc::new(Semaphore::new(places));
    let mut running = JoinSet::new();
    for look in 0u32.. {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = services.shutdown.cancelled() => break,
        }
        while running.try_join_next().is_some() {}
        if look % LOOKS_A_REMOVAL == 0
            && let Err(error) = batches::expire(&services).await
        {
            tracing::warn!(%error, "old files were not removed");
        }
        // Without a model nothing can be answered.
        if places == 0 || running.len() >= BATCHES_AT_ONCE || services.engine().is_err() {
            continue;
        }
        let now = services.now();
        match services.store.claim_batch(&me, now, now + HELD).await {
            Ok(None) => {}
            Ok(Some(batch)) => {
                let run = Run { state: state.clone(), me: me.clone(), places, turns: turns.clone() };
                running.spawn(async move {
                    let id = batch.id.clone();
                    if let Err(error) = run.answer(batch).await {
                        tracing::warn!(%error, batch = %id, "a batch was put down; it goes on later");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "no batch could be taken"),
        }
    }
    while running.join_next().await.is_some() {}
}

/// Why a batch ends before its last line is answered.
enum Stop {
    Cancelled,
    Expired,
    Failed(BatchFault),
}

#[derive(Clone)]
struct Run {
    state: AppState,
    me: String,
    places: usize,
    turns: Arc<Semaphore>,
}

impl Run {
    async fn answer(&self, batch: Batch) -> Result<(), StoreError> {
        let (store, shutdown) = (&self.state.services.store, &self.state.services.shutdown);
        let answered: HashSet<i64> = store.answered_lines(&batch.id).await?.into_iter().collect();
        let content = match store.file_content(&batch.input_file).await {
            Ok(content) => content,
            Err(StoreError::NotFound { .. }) => {
                let message = "its input file was removed".to_owned();
                let gone = BatchFault { code: "file_not_found".into(), message, param: None, line: None };
                return self.end(&batch, BatchState::Failed, vec![gone]).await;
            }
            Err(error) => return Err(error),
        };
        let mut left = batches::lines(&content).filter(|(line, _)| !answered.contains(line)).peekable();
        let mut running: JoinSet<Result<(), StoreError>> = JoinSet::new();
        let mut signs = tokio::time::interval(SIGN_OF_LIFE);
        let stop = loop {
            if left.peek().is_none() && running.is_empty() {
                break None;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    running.shutdown().await;
                    // Whoever comes next goes on at once.
                    store.hold_batch(&batch.id, &self.me, 0).await?;
                    return Ok(());
                }
                _ = signs.tick() => {
                    let now = self.state.services.now();
                    let known = store.hold_batch(&batch.id, &self.me, now + HELD).await?;
                    if let Some(stop) = self.stop(&known, now).await? {
                        running.shutdown().await;
                        break Some(stop);
                    }
                }
                Some(done) = running.join_next() => {
                    done.map_err(|e| StoreError::Internal(format!("a request of a batch was torn down: {e}")))??;
                }
                () = std::future::ready(()), if running.len() < self.places && left.peek().is_some() => {
                    let Some((line, text)) = left.next() else { continue };
                    let (run, batch, text) = (self.clone(), batch.clone(), text.to_owned());
                    running.spawn(async move {
                        let result = run.one(&batch, line, &text).await;
                        run.state.services.store.put_results(&batch.id, &run.me, vec![result]).await
                    });
                }
            }
        };
        match stop {
            None => self.end(&batch, BatchState::Done, Vec::new()).await,
            Some(Stop::Cancelled) => self.end(&batch, BatchState::Cancelled, Vec::new()).await,
            Some(Stop::Failed(fault)) => self.end(&batch, BatchState::Failed, vec![fault]).await,
            Some(Stop::Expired) => {
                self.too_late(&batch, &content).await?;
                self.end(&batch, BatchState::Expired, Vec::new()).await
            }
        }
    }

    async fn stop(&self, batch: &Batch, now: Micros) -> Result<Option<Stop>, StoreError> {
        let services = &self.state.services;
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
        // A database that is away ends nothing.
        if let Ok(None) = access::by_owner(services, &batch.owner).await {
            return failed("access_ended", "the key of this batch was revoked");
        }
        if services.store.file_bytes(&batch.owner).await? > services.config.batches.key_bytes as i64 {
            return failed("too_many_bytes", "the answers are more than one key may store");
        }
        Ok(None)
    }

    async fn end(&self, batch: &Batch, state: BatchState, faults: Vec<BatchFault>) -> Result<(), StoreError> {
        let (output, errors) = (format!("file-{}", new_id()), format!("file-{}", new_id()));
        let end = BatchEnd { state, faults, output, errors, now: self.state.services.now() };
        self.state.services.store.end_batch(&batch.id, &self.me, end).await?;
        Ok(())
    }

    /// Lists the requests that were not answered in time.
    async fn too_late(&self, batch: &Batch, content: &str) -> Result<(), StoreError> {
        let store = &self.state.services.store;
        let answered: HashSet<i64> = store.answered_lines(&batch.id).await?.into_iter().collect();
        let late = |(line, text): (i64, &str)| {
            let custom_id = serde_json::from_str::<Line>(text).map(|l| l.custom_id).unwrap_or_default();
            let error =
                json!({"code": "batch_expired", "message": "the batch expired before this request was answered"});
            result(line, &custom_id, Value::Null, error)
        };
        let all: Vec<_> = batches::lines(content).filter(|(line, _)| !answered.contains(line)).map(late).collect();
        for some in all.chunks(AT_A_TIME) {
            store.put_results(&batch.id, &self.me, some.to_vec()).await?;
        }
        Ok(())
    }

    /// Answers one line; waits as long as the server cannot take it.
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
            let asked = {
                // Not while it waits for another try: others may have their turn meanwhile.
                let _turn = self.turns.acquire().await;
                self.ask(batch, &id, body.as_bytes()).await
            };
            if let Err(error) = &asked
                && (error.code == Some("quota_exceeded") || matches!(error.status.as_u16(), 429 | 503) && tries < TRIES)
            {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let response = asked.unwrap_or_else(IntoResponse::into_response);
            let status = response.status().as_u16();
            let body = match to_bytes(response.into_body(), ANSWER_BYTES).await {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
                Err(e) => json!({"error": {"message": e.to_string()}}),
            };
            let response = json!({"status_code": status, "request_id": id, "body": body});
            return result(line, &request.custom_id, response, Value::Null);
        }
    }

    /// As the owner may ask now, at the owner's expense.
    async fn ask(&self, batch: &Batch, id: &str, body: &[u8]) -> ApiResult<Response> {
        let services = &self.state.services;
        let actor = access::by_owner(services, &batch.owner).await?;
        let actor = actor.filter(|actor| actor.inference || actor.is_admin());
        let actor = actor.ok_or_else(|| ApiError::forbidden("the key of this batch is not for inference any more"))?;
        if let Some(seconds) = meter::exhausted(services, &actor).await? {
            let message = "this key has used up its tokens of today";
            return Err(ApiError::too_many(message, "quota_exceeded", seconds));
        }
        let payer = actor.quota.as_ref().map(|(id, _)| id.clone());
        let answer = handled(self.state.clone(), actor, &batch.endpoint, id, body);
        urgency::in_background(meter::paid_by(payer, answer)).await
    }
}

async fn handled(state: AppState, actor: Actor, endpoint: &str, id: &str, body: &[u8]) -> ApiResult<Response> {
    let (app, id, caller) = (State(state), RequestId(format!("batch-{id}")), MaybeCaller(Some(actor)));
    match endpoint {
        "/v1/chat/completions" => openai::chat::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/completions" => openai::completions::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/responses" => responses::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/embeddings" => Ok(encoders::embeddings(app, Json(extract::parse(body)?)).await?.into_response()),
        other => Err(ApiError::bad("url", format!("{other} cannot be asked for in a batch"))),
    }
}

/// A line of an output file.
fn result(line: i64, custom_id: &str, response: Value, error: Value) -> BatchResult {
    let failed = response["status_code"] != 200;
    let id = format!("batch_req_{}", new_id());
    let text = json!({"id": id, "custom_id": custom_id, "response": response, "error": error}).to_string();
    BatchResult { line, failed, text }
}
