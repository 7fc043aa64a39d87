//! The servers that generate the text: one, or several replicas. A request goes to the replica with the fewest running
//! samples among those that hold its model version. A replica that fails is skipped, and a call that was not begun is
//! made at the next one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::Response;
use serde_json::Value;

use super::address::Address;
use super::breaker::{Breaker, Pass};
use super::http::{self, Failure, Http};
use super::tokens::verify::{Unverified, Verifier};
use super::{DiscoverError, Discovered, UpstreamOptions, record_outcome, resting};
use crate::domain::ModelVersionId;
use crate::engine::EngineError;

/// Longest wait between two attempts: a client waits meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Interval at which a replica is looked at until its requests have ended.
const IDLE_CHECK: Duration = Duration::from_millis(20);

/// One server.
pub struct Replica {
    /// Host and port, for logs, metrics and messages.
    pub name: String,
    pub http: Http,
    breaker: Arc<Breaker>,
    /// Samples that run there.
    running: AtomicUsize,
    /// The last check found the model there.
    healthy: AtomicBool,
    /// Its token ids mean what they mean here, or are not used.
    are_ids_known: AtomicBool,
    /// Takes no new requests, because a version is being loaded there.
    paused: AtomicBool,
    /// The versions that it serves, and those that it is to serve.
    holds: Mutex<Vec<ModelVersionId>>,
    assigned: Mutex<Vec<ModelVersionId>>,
}

impl Replica {
    pub fn holds(&self) -> MutexGuard<'_, Vec<ModelVersionId>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has(&self, version: &ModelVersionId) -> bool {
        self.holds().contains(version)
    }

    pub fn assigned(&self) -> Vec<ModelVersionId> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It serves these versions from now on.
    pub fn assign(&self, versions: Vec<ModelVersionId>) {
        *self.holds() = versions.clone();
        *self.assigned.lock().unwrap_or_else(PoisonError::into_inner) = versions;
    }

    /// It is to serve this version, too, and does so if `holds`.
    pub fn assign_also(&self, version: &ModelVersionId, holds: bool) {
        let add = |versions: &mut Vec<ModelVersionId>| {
            versions.retain(|known| known != version);
            versions.push(version.clone());
        };
        add(&mut self.assigned.lock().unwrap_or_else(PoisonError::into_inner));
        if holds {
            add(&mut self.holds());
        }
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, SeqCst);
    }

    /// Waits until no sample runs there.
    ///
    /// # Errors
    /// How many still run after `limit`.
    pub async fn idle(&self, limit: Duration) -> Result<(), usize> {
        let idle = async {
            while self.running.load(SeqCst) > 0 {
                tokio::time::sleep(IDLE_CHECK).await;
            }
        };
        tokio::time::timeout(limit, idle).await.map_err(|_| self.running.load(SeqCst))
    }
}

/// All servers that generate text.
pub struct Fleet {
    pub replicas: Vec<Arc<Replica>>,
    /// Position of the replica that the next request tries first among equally busy ones.
    turn: AtomicUsize,
    /// Checks the token ids of servers, where they are used.
    verifier: Option<Verifier>,
    backoff: ExponentialBuilder,
}

/// Counts samples as running at a replica until it is dropped.
struct Busy(Arc<Replica>, usize);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.running.fetch_sub(self.1, SeqCst);
    }
}

/// Answers that have begun, all at one replica.
pub struct Opened {
    pub responses: Vec<Response>,
    pub seat: Seat,
}

/// A request's place at a replica, until its answers have ended.
pub struct Seat {
    pub pass: Pass,
    busy: Busy,
}

impl Seat {
    pub fn http(&self) -> &Http {
        &self.busy.0.http
    }

    /// The answers have ended.
    pub fn settle(self, broken: bool) {
        record_outcome(self.pass, broken);
    }
}

/// What one request asks a replica for.
pub struct Calls<'a> {
    /// Address and body of each call.
    pub calls: &'a [(Address, Value)],
    pub samples: usize,
    pub version: &'a ModelVersionId,
    /// The parameter that a refusal without one is about.
    pub blame: &'static str,
}

/// Permission to call a replica, and whether its last answer was a failure of the server.
type Admitted = Option<(Pass, bool)>;

impl Fleet {
    /// # Errors
    /// When an address or the key cannot be used.
    pub fn new(options: &UpstreamOptions) -> Result<Self, String> {
        let replica = |url: &String| {
            let http = Http::new(url, options)?;
            Ok(Arc::new(Replica {
                name: http.host(),
                http,
                breaker: Arc::new(Breaker::new(options.breaker_failures, options.breaker_pause)),
                running: AtomicUsize::new(0),
                healthy: AtomicBool::new(true),
                are_ids_known: AtomicBool::new(true),
                paused: AtomicBool::new(false),
                holds: Mutex::default(),
                assigned: Mutex::default(),
            }))
        };
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(MAX_WAIT)
            .with_max_times(options.retries)
            .with_jitter()
            .with_jitter_seed(options.jitter_seed);
        let replicas = options.urls.iter().map(replica).collect::<Result<Vec<_>, String>>()?;
        if replicas.is_empty() {
            return Err("no address is given".to_owned());
        }
        Ok(Self { replicas, turn: AtomicUsize::new(0), verifier: None, backoff })
    }

    /// The wanted model, or else the first of the first replica that answers.
    ///
    /// # Errors
    /// `Away` when asking again later may help.
    pub async fn discover(&self, wanted: Option<&str>) -> Result<Discovered, DiscoverError> {
        let mut worst = DiscoverError::NoModel;
        for replica in &self.replicas {
            match find(&replica.http, wanted, self.backoff).await {
                Ok(found) => return Ok(found),
                // A replica that does not answer may have it.
                Err(error) if !matches!(worst, DiscoverError::Away(_)) => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    /// How many replicas hold the version.
    pub fn holders(&self, version: &ModelVersionId) -> usize {
        self.replicas.iter().filter(|replica| replica.has(version)).count()
    }

    /// Replicas that hold the version, in the order in which a request tries them: those that the last check found
    /// healthy first, and of them the least busy first.
    fn order(&self, version: &ModelVersionId) -> Vec<usize> {
        let (count, turn) = (self.replicas.len(), self.turn.fetch_add(1, Relaxed));
        let takes = |i: &usize| {
            let replica = &self.replicas[*i];
            !replica.paused.load(Relaxed) && replica.are_ids_known.load(Relaxed) && replica.has(version)
        };
        let mut order: Vec<usize> = (0..count).map(|i| (turn.wrapping_add(i)) % count).filter(takes).collect();
        order.sort_by_key(|&i| {
            let replica = &self.replicas[i];
            (!replica.healthy.load(Relaxed), replica.running.load(Relaxed))
        });
        order
    }

    /// Opens all calls of a request at one replica. Where a replica cannot have begun, the next one is asked; when none
    /// is left, all are asked again after a pause.
    ///
    /// # Errors
    /// The last refusal or failure.
    pub async fn open(&self, request: &Calls<'_>) -> Result<Opened, Failure> {
        let mut waits = self.backoff.build();
        let mut admitted: Vec<Admitted> = self.replicas.iter().map(|_| None).collect();
        loop {
            let failure = match self.round(&mut admitted, request).await {
                Ok(opened) => {
                    settle(admitted);
                    return Ok(opened);
                }
                Err(failure) => failure,
            };
            let wait = if failure.unstarted { http::wait(&failure, waits.next()) } else { None };
            let Some(wait) = wait else {
                settle(admitted);
                return Err(failure);
            };
            tracing::info!(wait.ms = wait.as_millis() as u64, "asking the upstream server again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks each replica once, until one takes the request.
    async fn round(&self, admitted: &mut [Admitted], request: &Calls<'_>) -> Result<Opened, Failure> {
        let mut last: Option<Failure> = None;
        let mut rest: Option<Duration> = None;
        for i in self.order(request.version) {
            let replica = &self.replicas[i];
            if admitted[i].is_none() {
                match replica.breaker.admit(Instant::now()) {
                    Ok(pass) => admitted[i] = Some((pass, false)),
                    Err(left) => {
                        rest = Some(rest.map_or(left, |shortest| shortest.min(left)));
                        continue;
                    }
                }
            }
            if last.is_some() {
                metrics::counter!("instructd_upstream_failovers_total").increment(1);
            }
            replica.running.fetch_add(request.samples, SeqCst);
            let busy = Busy(replica.clone(), request.samples);
            // A version may have been replaced since the order was made; from here on the replica is not idle.
            if replica.paused.load(SeqCst) || !replica.has(request.version) {
                admitted[i] = None;
                continue;
            }
            let opening = request.calls.iter().map(|(at, body)| replica.http.open(*at, body, request.blame));
            match futures::future::try_join_all(opening).await {
                Ok(responses) => {
                    if let Some((pass, _)) = admitted[i].take() {
                        return Ok(Opened { responses, seat: Seat { pass, busy } });
                    }
                }
                Err(failure) => {
                    if let Some((_, broken)) = &mut admitted[i] {
                        *broken = failure.broken;
                    }
                    if !failure.elsewhere {
                        return Err(failure);
                    }
                    last = Some(failure);
                }
            }
        }
        Err(last.unwrap_or_else(|| match rest {
            Some(rest) => Failure::refused(resting(rest)),
            None => {
                let message = "no upstream server has this model version now: versions are being switched".to_owned();
                Failure::refused(EngineError::Unavailable { message, retry_after_s: 2 }).unstarted()
            }
        }))
    }

    /// # Errors
    /// How long no replica will be asked.
    pub fn ready(&self) -> Result<(), Duration> {
        let rests = self.replicas.iter().map(|replica| replica.breaker.refuses_for(Instant::now()));
        match rests.collect::<Option<Vec<Duration>>>() {
            Some(all) => Err(all.into_iter().min().unwrap_or_default()),
            None => Ok(()),
        }
    }

    /// Uses the token ids of the servers from now on. Servers that do not answer now get no requests before they have
    /// been checked.
    ///
    /// # Errors
    /// The first server whose ids cannot be used and why, or that none answers. Then the ids are not used.
    pub async fn verify_tokens(&mut self, verifier: Verifier) -> Result<(), String> {
        let checks = self.replicas.iter().map(|replica| verifier.verify(&replica.http));
        let found = futures::future::join_all(checks).await;
        for (replica, found) in self.replicas.iter().zip(&found) {
            if let Err(Unverified::Differs(why)) = found {
                return Err(format!("{}: {why}", replica.name));
            }
        }
        if found.iter().all(Result::is_err) {
            return Err("no server answers".to_owned());
        }
        for (replica, found) in self.replicas.iter().zip(&found) {
            replica.are_ids_known.store(found.is_ok(), Relaxed);
        }
        self.verifier = Some(verifier);
        Ok(())
    }

    /// Checks the token ids of a server that was away: another model may have been started there.
    async fn verify_again(&self, replica: &Replica) {
        let Some(verifier) = &self.verifier else { return };
        let are_known = match verifier.verify(&replica.http).await {
            Ok(()) => true,
            Err(Unverified::Away(_)) => return,
            Err(Unverified::Differs(why)) => {
                tracing::warn!(replica = %replica.name, %why, "an upstream replica gets no requests");
                false
            }
        };
        replica.are_ids_known.store(are_known, Relaxed);
    }

    /// Checks whether each replica lists `model`, within `limit`.
    pub async fn check(&self, model: &str, limit: Duration) {
        let checks = self.replicas.iter().map(|replica| async {
            let found = tokio::time::timeout(limit, replica.http.models()).await;
            let healthy = matches!(&found, Ok(Ok(listing)) if listing.data.iter().any(|m| m.id == model));
            let changed = replica.healthy.swap(healthy, Relaxed) != healthy;
            if changed {
                tracing::warn!(replica = %replica.name, healthy, "an upstream replica changed");
            }
            if healthy && (changed || !replica.are_ids_known.load(Relaxed)) {
                self.verify_again(replica).await;
            }
            let up = if healthy { 1.0 } else { 0.0 };
            metrics::gauge!("instructd_upstream_replica_up", "replica" => replica.name.clone()).set(up);
        });
        futures::future::join_all(checks).await;
    }
}

/// Records the outcomes of calls that opened no stream.
fn settle(admitted: Vec<Admitted>) {
    for (pass, broken) in admitted.into_iter().flatten() {
        record_outcome(pass, broken);
    }
}

async fn find(http: &Http, wanted: Option<&str>, backoff: ExponentialBuilder) -> Result<Discovered, DiscoverError> {
    let mut waits = backoff.build();
    let listing = loop {
        match http.models().await {
            Ok(listing) => break listing,
            Err(failure) => match http::wait(&failure, waits.next()).filter(|_| failure.broken) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(DiscoverError::Away(failure.error)),
            },
        }
    };
    let listed = match wanted {
        None => listing.data.first().ok_or(DiscoverError::NoModel)?,
        Some(wanted) => listing.data.iter().find(|m| m.id == wanted).ok_or_else(|| {
            let known: Vec<_> = listing.data.iter().take(20).map(|m| m.id.as_str()).collect();
            DiscoverError::NoSuchModel { wanted: wanted.to_owned(), known: known.join(", ") }
        })?,
    };
    Ok(Discovered { model: listed.id.clone(), max_context: listed.max_context(), path: None })
}
