//! Use cases between HTTP and the modules below. No status codes, no SQL text, no tensors.

pub mod access;
pub mod ask;
pub mod attention;
pub mod backup;
pub mod batch_runner;
pub mod batches;
pub mod browse;
pub mod budget;
pub mod cached;
pub mod catalogue;
pub mod choices;
mod clock;
pub mod complete;
pub mod completion_code;
pub mod configured;
pub mod conversations;
pub mod datasets;
mod doubted;
pub mod draw;
mod draw_request;
mod draw_steps;
mod drawn;
pub mod encoders;
pub mod erased;
pub mod erasure;
pub mod evidence;
pub mod feedback;
pub mod filters;
pub mod guidelines;
pub mod health;
pub mod hub_dataset;
pub mod identity;
pub mod imports;
pub mod job_files;
pub mod jobs;
pub mod judge;
pub mod judges;
pub mod key_map;
pub mod label;
pub mod learned;
pub mod live;
pub mod marks;
pub mod meter;
pub mod next_step;
pub mod oidc;
pub mod overview;
pub mod own_page;
pub mod people;
pub mod plan;
pub mod projects;
pub mod prompts;
pub mod publish;
pub mod quality;
mod quota;
pub mod random;
mod ratings;
pub mod register;
pub mod responses;
pub mod retention;
pub mod review;
pub mod rubrics;
pub mod sample;
pub mod searches;
pub mod sets;
pub mod sign_in;
mod tournament;
pub mod transfer;
pub mod urgency;
pub mod visible;
pub mod webhooks;

use std::sync::{Arc, RwLock};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::domain::Micros;
use crate::engine::{EngineError, Generator};
use crate::store::{Store, StoreError};
use crate::train::Recipe;

pub use clock::system_clock;
pub use random::Random;

/// Returns the time; tests pass their own.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// An error of the served version: its files are not the published ones, or another version should be served and cannot
/// be loaded. A promotion clears it.
#[derive(Clone, Debug, Default)]
pub struct ModelFault(Arc<RwLock<Option<(crate::domain::ModelVersionId, String)>>>);

impl ModelFault {
    pub fn set(&self, serving: crate::domain::ModelVersionId, message: String) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((serving, message));
    }

    fn of(&self, serving: &crate::domain::ModelVersionId) -> Option<String> {
        let fault = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        fault.as_ref().filter(|(id, _)| id == serving).map(|(_, message)| message.clone())
    }
}

/// Resources of all use cases.
pub struct Services {
    pub config: Config,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub random: Random,
    /// SHA-256 (hex) of the configured admin key; `None` = the generated key in the store is the admin key.
    pub admin_key_hash: Option<String>,
    /// The recipes that jobs may run.
    pub recipes: &'static [Recipe],
    /// Cancelled when the server begins to shut down; long streams end with it.
    pub shutdown: CancellationToken,
    engine: RwLock<Option<Arc<dyn Generator>>>,
    live: RwLock<Arc<live::Live>>,
    /// The error of the served version.
    model_fault: ModelFault,
    pub last_overview: cached::Cached<overview::Overview>,
    /// Amounts of stored records.
    pub stored_amounts: cached::Cached<retention::Amounts>,
    /// What is stored and what the limits remove, for the page about retention.
    pub retention_outlook: cached::Cached<retention::LimitedOutlook>,
    /// Use of model versions.
    pub last_usage: cached::Cached<live::Usage>,
    /// How long a request may search a list.
    pub search: searches::SearchLimits,
    /// Progress of the removal of old records.
    pub retention: retention::Status,
    /// Bytes of stored responses since the last check.
    responses: responses::Stored,
    /// What is known of the OpenID Connect provider.
    oidc: oidc::Provider,
    /// One promotion at a time: engine and database must agree on the active version.
    publishing: tokio::sync::Mutex<()>,
}

impl Services {
    /// Services without an engine: requests get `NotReady` until `set_engine`.
    pub fn new(
        config: Config,
        store: Arc<Store>,
        clock: Clock,
        random: Random,
        admin_key_hash: impl Into<Option<String>>,
        recipes: &'static [Recipe],
    ) -> Self {
        let live = live::Live { config: config.clone(), canary: None };
        Self {
            live: RwLock::new(Arc::new(live)),
            admin_key_hash: admin_key_hash.into(),
            config,
            store,
            clock,
            random,
            recipes,
            shutdown: CancellationToken::new(),
            engine: RwLock::new(None),
            model_fault: ModelFault::default(),
            last_overview: cached::Cached::default(),
            stored_amounts: cached::Cached::default(),
            retention_outlook: cached::Cached::default(),
            last_usage: cached::Cached::default(),
            search: searches::SearchLimits::default(),
            retention: retention::Status::default(),
            responses: responses::Stored::default(),
            oidc: oidc::Provider::default(),
            publishing: tokio::sync::Mutex::new(()),
        }
    }

    /// Sets the error of the served version; it holds while `serving` is served.
    pub fn set_model_fault(&self, serving: crate::domain::ModelVersionId, message: String) {
        self.model_fault.set(serving, message);
    }

    /// A handle for setting the error later.
    pub fn model_fault_handle(&self) -> ModelFault {
        self.model_fault.clone()
    }

    /// The error of the served version, if there is one.
    pub fn model_fault(&self) -> Option<String> {
        let active = self.engine().ok()?.active()?.version.id.clone();
        self.model_fault.of(&active)
    }

    pub fn set_engine(&self, engine: Arc<dyn Generator>) {
        *self.engine.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(engine);
    }

    /// # Errors
    /// `NotReady` while the model loads.
    pub fn engine(&self) -> Result<Arc<dyn Generator>, EngineError> {
        let engine = self.engine.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        engine.clone().ok_or(EngineError::NotReady)
    }

    /// The current configuration, with changes made while the server runs.
    pub fn live(&self) -> Arc<live::Live> {
        self.live.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether requests to the model may be labeled, trained on and exported.
    pub fn learns_from_requests(&self) -> bool {
        self.live().config.privacy.learn_from_requests
    }

    fn set_live(&self, live: live::Live) {
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(live);
    }

    pub fn now(&self) -> Micros {
        (self.clock)()
    }
}

/// Why a use case failed. `param` names the field of the request that caused it.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{message}")]
    BadInput { param: String, message: String },
    #[error("no such {what}: {id}")]
    NotFound { what: &'static str, id: String, param: Option<String> },
    /// An unknown model name. The message lists similar names.
    #[error("{message}")]
    UnknownModel { message: String, param: Option<String> },
    #[error("{0}")]
    Forbidden(String),
    #[error("{}", .0.message())]
    SignIn(sign_in::Refusal),
    #[error("{0}")]
    Conflict(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file could not be written to the server's disk.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("{0}")]
    Internal(String),
}

pub type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// `BadInput` at a field.
pub fn bad_input(param: impl Into<String>, message: impl Into<String>) -> ServiceError {
    ServiceError::BadInput { param: param.into(), message: message.into() }
}

/// Sets the request field of a `NotFound` error.
pub(crate) fn not_found_as(error: StoreError, param: &str) -> ServiceError {
    match error {
        StoreError::NotFound { what, id } => ServiceError::NotFound { what, id, param: Some(param.to_owned()) },
        other => other.into(),
    }
}

/// Runs a write to its end even if the caller's request is dropped.
pub(crate) async fn uncancelled<T: Send + 'static>(
    write: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(write).await {
        Ok(result) => result,
        Err(e) => Err(ServiceError::Internal(format!("a write did not finish: {e}"))),
    }
}
