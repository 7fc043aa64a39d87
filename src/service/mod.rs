//! Use-cases between HTTP and the modules that do the work. No status codes, no SQL text, no tensors.

pub mod access;
pub mod ask;
pub mod attention;
pub mod backup;
pub mod batch_runner;
pub mod batches;
pub mod browse;
pub mod budget;
pub mod catalogue;
pub mod choices;
mod clock;
pub mod complete;
pub mod configured;
pub mod datasets;
pub mod draw;
mod drawn;
pub mod encoders;
pub mod erased;
pub mod erasure;
pub mod evidence;
pub mod feedback;
pub mod filters;
pub mod guidelines;
pub mod health;
pub mod imports;
pub mod job_files;
pub mod jobs;
pub mod judge;
pub mod label;
pub mod live;
pub mod meter;
pub mod next_step;
pub mod overview;
pub mod own_page;
pub mod people;
pub mod plan;
pub mod prompts;
pub mod publish;
pub mod quality;
pub mod random;
mod ratings;
pub mod register;
pub mod responses;
pub mod retention;
pub mod review;
pub mod rubrics;
pub mod sample;
pub mod sets;
pub mod transfer;
pub mod urgency;
pub mod visible;

use std::sync::{Arc, RwLock};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::domain::Micros;
use crate::engine::{EngineError, Generator};
use crate::store::{Store, StoreError};
use crate::train::Recipe;

pub use clock::system_clock;
pub use random::Random;

/// Reads the time; tests pass their own.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// A fault of the version that is served: its files are not the published ones, or another version should be served and
/// does not load. A promotion ends it.
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

/// What every use-case may reach.
pub struct Services {
    pub config: Config,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub random: Random,
    /// SHA-256 (hex) of the configured admin key; without one, a generated key in the store is an administrator's.
    pub admin_key_hash: Option<String>,
    /// The recipes that jobs may run.
    pub recipes: &'static [Recipe],
    /// Cancelled when the server begins to shut down; long streams end with it.
    pub shutdown: CancellationToken,
    engine: RwLock<Option<Arc<dyn Generator>>>,
    live: RwLock<Arc<live::Live>>,
    /// What is wrong with what is served, and while which version is.
    model_fault: ModelFault,
    pub last_overview: overview::Last,
    /// The removal of what is past its limits.
    pub retention: retention::Status,
    /// How much of the Responses API's answers was stored.
    responses: responses::Stored,
    /// One promotion at a time: engine and database must agree on the active version.
    publishing: tokio::sync::Mutex<()>,
}

impl Services {
    /// Without an engine yet: requests get `NotReady` until `set_engine`.
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
            last_overview: overview::Last::default(),
            retention: retention::Status::default(),
            responses: responses::Stored::default(),
            publishing: tokio::sync::Mutex::new(()),
        }
    }

    /// Says what is wrong with what is served, as long as `serving` is.
    pub fn set_model_fault(&self, serving: crate::domain::ModelVersionId, message: String) {
        self.model_fault.set(serving, message);
    }

    /// For whoever finds out later.
    pub fn model_fault_handle(&self) -> ModelFault {
        self.model_fault.clone()
    }

    /// What is wrong with what is served now.
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

    /// The configuration with what was changed while running; read it where a change should take effect.
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

/// Why a use-case did not happen. `param` names the field of the request that is to blame.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{message}")]
    BadInput { param: String, message: String },
    #[error("no such {what}: {id}")]
    NotFound { what: &'static str, id: String, param: Option<String> },
    /// A model's name that no version has. The message has the names that are near.
    #[error("{message}")]
    UnknownModel { message: String, param: Option<String> },
    #[error("{0}")]
    Forbidden(String),
    #[error("{}", .0.message())]
    SignIn(access::Refusal),
    #[error("{0}")]
    Conflict(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Internal(String),
}

pub type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// A refusal that names the field.
pub fn bad_input(param: impl Into<String>, message: impl Into<String>) -> ServiceError {
    ServiceError::BadInput { param: param.into(), message: message.into() }
}

/// Makes "not found" point at the request field that named the missing thing.
pub(crate) fn not_found_as(error: StoreError, param: &str) -> ServiceError {
    match error {
        StoreError::NotFound { what, id } => ServiceError::NotFound { what, id, param: Some(param.to_owned()) },
        other => other.into(),
    }
}

/// Runs a write to its end even when the caller's request is dropped in the middle.
pub(crate) async fn to_the_end<T: Send + 'static>(
    write: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(write).await {
        Ok(result) => result,
        Err(e) => Err(ServiceError::Internal(format!("a write did not finish: {e}"))),
    }
}
