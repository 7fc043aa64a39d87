//! The servers that write the text: one, or several replicas of the same model. A request goes to the replica with the
//! fewest samples under way; one that fails is passed over, and a call that was not begun is made at the next one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::Response;
use serde_json::Value;

use super::breaker::{Breaker, Pass};
use super::http::{self, Failure, Http};
use super::{DiscoverError, Discovered, UpstreamOptions, record_outcome, resting};

/// Longest wait between two attempts: a client waits meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// One server.
pub struct Replica {
    /// Host and port, for logs and metrics.
    name: String,
    pub http: Http,
    breaker: Arc<Breaker>,
    running: AtomicUsize,
    /// The last check found the model there.
    healthy: AtomicBool,
}

/// All servers of the model.
pub struct Fleet {
    replicas: Vec<Arc<Replica>>,
    /// Where the next request begins among replicas that are equally busy.
    turn: AtomicUsize,
    backoff: ExponentialBuilder,
}

/// Counts samples as running at a replica until it is dropped.
struct Busy(Arc<Replica>, usize);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.running.fetch_sub(self.1, Relaxed);
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

/// Calls of one request: path and body of each.
pub type Calls = [(&'static str, Value)];

/// Leave to call a replica, and whether its last answer was a failure of its own.
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
        Ok(Self { replicas, turn: AtomicUsize::new(0), backoff })
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
                // A replica that is away may have it.
                Err(error) if !matches!(worst, DiscoverError::Away(_)) => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    /// Replicas in the order in which a request tries them: those that the last check found healthy, and of them the least
    /// busy first.
    fn order(&self) -> Vec<usize> {
        let (count, turn) = (self.replicas.len(), self.turn.fetch_add(1, Relaxed));
        let mut order: Vec<usize> = (0..count).map(|i| (turn.wrapping_add(i)) % count).collect();
        order.sort_by_key(|&i| {
            let replica = &self.replicas[i];
            (!replica.healthy.load(Relaxed), replica.running.load(Relaxed))
        });
        order
    }

    /// Opens all calls of a request of `samples` samples at one replica. Where a replica cannot have begun, the next one is
    /// asked; when none is left, all are asked again after a pause.
    ///
    /// # Errors
    /// The last refusal or failure.
    pub async fn open(&self, calls: &Calls, samples: usize, blame: &'static str) -> Result<Opened, Failure> {
        let mut waits = self.backoff.build();
        let mut admitted: Vec<Admitted> = self.replicas.iter().map(|_| None).collect();
        loop {
            let failure = match self.round(&mut admitted, calls, samples, blame).await {
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
    async fn round(
        &self,
        admitted: &mut [Admitted],
        calls: &Calls,
        samples: usize,
        blame: &'static str,
    ) -> Result<Opened, Failure> {
        let mut last: Option<Failure> = None;
        let mut rest: Option<Duration> = None;
        for i in self.order() {
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
            replica.running.fetch_add(samples, Relaxed);
            let busy = Busy(replica.clone(), samples);
            let opening = calls.iter().map(|(path, body)| replica.http.open(path, body, blame));
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
        Err(last.unwrap_or_else(|| Failure::refused(resting(rest.unwrap_or_default()))))
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

    /// Looks every `period` whether each replica lists `model`, as long as the fleet is in use.
    pub async fn watch(fleet: Weak<Self>, model: String, period: Duration) {
        loop {
            let Some(alive) = fleet.upgrade() else { return };
            let looks = alive.replicas.iter().map(|replica| async {
                let found = tokio::time::timeout(period, replica.http.models()).await;
                let healthy = matches!(&found, Ok(Ok(listing)) if listing.data.iter().any(|m| m.id == model));
                if replica.healthy.swap(healthy, Relaxed) != healthy {
                    tracing::warn!(replica = %replica.name, healthy, "an upstream replica changed");
                }
                let up = if healthy { 1.0 } else { 0.0 };
                metrics::gauge!("instructd_upstream_replica_up", "replica" => replica.name.clone()).set(up);
            });
            futures::future::join_all(looks).await;
            drop(alive);
            tokio::time::sleep(period).await;
        }
    }
}

/// Says how the calls that led nowhere ended.
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
    Ok(Discovered { model: listed.id.clone(), max_context: listed.max_context() })
}
