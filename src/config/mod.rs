//! Settings: one struct per section of config.toml, unknown keys refused, every value checked at start.
//! Order of precedence: command line, environment (`INSTRUCTD_…`, `__` between nested names), file, defaults.

mod access;
mod artifacts;
mod auth;
mod batches;
mod engine;
mod executors;
mod hosts;
mod judges;
mod limits;
mod log;
mod oidc;
mod privacy;
mod spans;
mod text;
mod upstream;
mod webhooks;

pub use access::RatesConfig;
pub use artifacts::ArtifactsConfig;
pub use auth::AuthConfig;
pub use batches::BatchesConfig;
pub use engine::EngineConfig;
pub use executors::{ExecutorsConfig, PlaceConfig};
pub use hosts::{is_host, is_listed};
pub use judges::JudgeConfig;
pub use limits::LimitsConfig;
pub use log::LogConfig;
pub use oidc::{CALLBACK as OIDC_CALLBACK, OidcConfig, is_confidential};
pub use privacy::{PrivacyConfig, RetentionConfig};
pub use upstream::UpstreamConfig;
pub use webhooks::WebhooksConfig;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use text::{optional_text, text};

/// All settings. config.toml in the repository root describes each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The directory of models, checkpoints and the SQLite database.
    pub data_dir: PathBuf,
    /// `sqlite://FILE` or `postgres://…`; `None` = `instructd.db` in the data directory.
    #[serde(deserialize_with = "optional_text")]
    pub database_url: Option<String>,
    /// Name of a known or pullable model, a Hugging Face directory, or a .gguf file.
    #[serde(deserialize_with = "text")]
    pub model: String,
    /// The encoder that answers embeddings and fill-mask requests: a name, a Hugging Face directory; `None` = none.
    #[serde(deserialize_with = "optional_text")]
    pub encoder: Option<String>,
    /// The format of the served weights: `exact` or another one.
    #[serde(deserialize_with = "text")]
    pub weights: String,
    /// `None` = generated at the first start and printed once.
    #[serde(deserialize_with = "optional_text")]
    pub admin_key: Option<String>,
    /// Whether inference routes require a key.
    pub require_inference_key: bool,
    pub server: ServerConfig,
    pub auth: AuthConfig,
    pub limits: LimitsConfig,
    pub rates: RatesConfig,
    pub batches: BatchesConfig,
    pub engine: EngineConfig,
    pub upstream: UpstreamConfig,
    pub labeling: LabelingConfig,
    pub privacy: PrivacyConfig,
    pub retention: RetentionConfig,
    pub sessions: SessionsConfig,
    pub jobs: JobsConfig,
    pub executors: ExecutorsConfig,
    /// Programs that jobs of the recipe `external` may run, by name: program and arguments, with the placeholders
    /// `{job}`, `{dir}`, `{model}`, `{output}` and `{checkpoints}`.
    pub trainers: BTreeMap<String, Vec<String>>,
    /// Language models on other servers that rewards of kind `judge` may ask, by name: `url`, `model`, `api_key`,
    /// `logprobs`, `timeout_seconds` and `max_running`.
    pub judges: BTreeMap<String, JudgeConfig>,
    pub webhooks: WebhooksConfig,
    pub artifacts: ArtifactsConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Most open connections. Further ones wait, or replace an idle one.
    pub max_connections: usize,
    /// Most open connections of one address (IPv6: one /64); 0 = no limit. Not applied behind a proxy
    /// (`client_address_header`), where all come from one address.
    pub connections_per_address: usize,
    /// Additional connections for clients on this machine, so that its operator can connect when all others are taken.
    pub reserved_connections: usize,
    /// Names that a request's `Host` may have in addition to loopback names. Empty = any, except on a loopback address:
    /// there only loopback names are accepted. Add a proxy's public name.
    pub hosts: Vec<String>,
    /// A client must have sent its request's headers within this time.
    pub header_timeout_seconds: u64,
    /// A client must have sent its request's body within this time.
    pub body_timeout_seconds: u64,
    /// A client must read 16 KB of its response (or the rest of it) within this time.
    pub write_timeout_seconds: u64,
    /// A connection without a request is closed after this time.
    pub idle_timeout_seconds: u64,
    /// Concurrent requests on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Longest time that a shutdown waits for running requests.
    pub drain_timeout_seconds: u64,
    /// The header in which a reverse proxy gives the client's address (of `x-forwarded-for`, the last entry). Set it
    /// only behind a proxy that sets the header, because clients could write any address into it.
    #[serde(deserialize_with = "optional_text")]
    pub client_address_header: Option<String>,
    /// Marks the session cookie `Secure`; set it when served over TLS.
    pub secure_cookies: bool,
    /// Keep every completion that was sent, with its model version, in the database.
    pub store_completions: bool,
    /// Origins whose pages may call the API from a browser, such as `https://app.example.org`; `*` = any. Such calls
    /// need a key, because this server's cookies are not sent with them. Empty = none.
    pub cors_origins: Vec<String>,
    /// Compress responses of 1 KB or more with gzip for clients that accept it, except event streams, pictures and
    /// fonts. Off by default, because the length of a compressed response can reveal secrets in it even over TLS.
    pub compress: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LabelingConfig {
    /// How long a set is reserved for the person who ranks it; renewed while they work.
    pub lease_seconds: i64,
    /// Number of people who rank one set, for sets without their own number.
    pub overlap: i64,
    /// Number of completions sampled for a set without completions.
    pub completions_per_set: usize,
    /// `max_tokens` of completions sampled for a set.
    pub max_tokens: usize,
    /// Temperature of completions sampled for a set, 0 to 2.
    pub temperature: f64,
    /// `top_p` of completions sampled for a set, above 0 and at most 1.
    pub top_p: f64,
    /// Share of turns, 0 to 1, with a set that has a hidden known answer, where there are any.
    pub gold_share: f64,
    /// Share of turns, 0 to 1, with a calibration set, whose answer is shown after the judgment.
    pub calibration_share: f64,
    /// Number of calibration sets that a new labeler gets first, where there are any.
    pub onboarding_sets: i64,
    /// Judgments per day (UTC) of a labeler without an individual quota; 0 = no limit.
    pub daily_quota: i64,
    /// Show labelers the models of the answers after their judgment; authors of the prompt always see them. Judgments
    /// that are revised afterwards are stored separately and used in no figure and no data set.
    pub reveal: bool,
    /// Show labelers the reasoning before an answer (between `<think>` and `</think>`, or `[THINK]` and `[/THINK]`).
    /// Otherwise they read and rank the answers without it, and answers to their own prompts appear when complete.
    /// Stored texts and data sets include the reasoning.
    pub show_reasoning: bool,
    /// Key of the completion codes that labelers see when they have done their quota, for crowd platforms; 16 or more
    /// characters. `None` = no codes.
    #[serde(deserialize_with = "optional_text")]
    pub completion_secret: Option<String>,
    /// Markdown file with the guidelines, read for each request (`guide.zh.md` in the directory of `guide.md` for
    /// Chinese); `None` = the built-in text. A text written on the admin page takes precedence.
    pub guidelines: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SessionsConfig {
    /// A session ends this many hours after it began.
    pub lifetime_hours: i64,
    /// A session ends when it was not used for this many hours.
    pub idle_hours: i64,
    /// Hours for which an invite link is valid.
    pub invite_hours: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Run training jobs on this server; false = leave them to `instructd worker`.
    pub enabled: bool,
    /// Concurrent jobs of one process.
    pub slots: usize,
    /// A job whose lease is not extended for this many seconds is taken over.
    pub lease_seconds: i64,
    /// Number of crashes and lost leases without a new checkpoint after which a job fails.
    pub max_crashes: i64,
    /// Compute threads of a training job; 0 = one per physical core.
    pub threads: usize,
    /// Seconds for a cancelled job to finish its step and write its checkpoint before it is killed.
    pub cancel_grace_seconds: u64,
    /// `host` or `host:port` of services that a job's reward may call; none by default.
    pub reward_hosts: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data_dir: PathBuf::from("data"),
            database_url: None,
            model: "smollm2-135m-instruct".to_owned(),
            encoder: None,
            weights: "exact".to_owned(),
            admin_key: None,
            require_inference_key: false,
            server: ServerConfig::default(),
            auth: AuthConfig::default(),
            limits: LimitsConfig::default(),
            rates: RatesConfig::default(),
            batches: BatchesConfig::default(),
            engine: EngineConfig::default(),
            upstream: UpstreamConfig::default(),
            labeling: LabelingConfig::default(),
            privacy: PrivacyConfig::default(),
            retention: RetentionConfig::default(),
            sessions: SessionsConfig::default(),
            jobs: JobsConfig::default(),
            executors: ExecutorsConfig::default(),
            trainers: BTreeMap::new(),
            judges: BTreeMap::new(),
            webhooks: WebhooksConfig::default(),
            artifacts: ArtifactsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            connections_per_address: 256,
            reserved_connections: 8,
            hosts: Vec::new(),
            header_timeout_seconds: 10,
            body_timeout_seconds: 60,
            write_timeout_seconds: 30,
            idle_timeout_seconds: 60,
            http2_streams: 64,
            drain_timeout_seconds: 8,
            client_address_header: None,
            secure_cookies: false,
            store_completions: true,
            cors_origins: Vec::new(),
            compress: false,
        }
    }
}

impl Default for LabelingConfig {
    fn default() -> Self {
        Self {
            lease_seconds: 600,
            overlap: 1,
            completions_per_set: 2,
            max_tokens: 512,
            temperature: 0.7,
            top_p: 0.95,
            gold_share: 0.1,
            calibration_share: 0.05,
            onboarding_sets: 5,
            daily_quota: 0,
            reveal: false,
            show_reasoning: true,
            completion_secret: None,
            guidelines: None,
        }
    }
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self { lifetime_hours: 24 * 14, idle_hours: 72, invite_hours: 24 * 7 }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            slots: 1,
            lease_seconds: 30,
            max_crashes: 3,
            threads: 0,
            cancel_grace_seconds: 600,
            reward_hosts: Vec::new(),
        }
    }
}

/// A setting that is not valid; `key` is its name in config.toml.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {key}: {message}")]
pub struct ConfigError {
    pub key: String,
    pub message: String,
}

/// Settings that the command line overrides.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
}

/// Shorter admin keys can be guessed; they are accepted only when the server listens on a loopback address.
pub const SHORTEST_OPEN_ADMIN_KEY: usize = 16;

impl Config {
    /// Reads the defaults, overridden by `file` (or `config.toml` in the working directory, if there is one), the
    /// environment and the command line, in this order.
    ///
    /// # Errors
    /// When `file` is missing, a key is unknown, or a value has the wrong type or is out of range; the error has the
    /// key.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        match file {
            Some(path) if !path.is_file() => {
                return Err(error("--config", format!("the file {} does not exist", path.display())));
            }
            Some(path) => figment = figment.merge(Toml::file_exact(path)),
            None if Path::new("config.toml").is_file() => figment = figment.merge(Toml::file_exact("config.toml")),
            None => {}
        }
        // Other programs' variables may have the same prefix (test scripts, container platforms), so only names of
        // settings are read. An unknown name inside a section is an error.
        let environment = Env::prefixed("INSTRUCTD_").filter(|key| names_setting(key.as_str())).split("__");
        let config: Self =
            figment.merge(environment).merge(Serialized::defaults(overrides)).extract().map_err(|e| {
                match key_of(&e) {
                    key if key == "listen" => error(&key, "must be an IP address and a port, such as 127.0.0.1:8080"),
                    key => error(&key, e.kind.to_string()),
                }
            })?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.model.trim().is_empty() {
            return Err(error("model", "must name a model, a directory or a .gguf file"));
        }
        if self.admin_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            return Err(error("admin_key", "must not be empty; leave it out to have one generated"));
        }
        if let Some(key) = &self.admin_key
            && key.len() < SHORTEST_OPEN_ADMIN_KEY
            && !self.listen.ip().to_canonical().is_loopback()
        {
            let message = format!(
                "has {} characters and the server listens on {}, where others can try keys: use at least \
                 {SHORTEST_OPEN_ADMIN_KEY} (openssl rand -hex 32), leave it out to have one generated, or listen on \
                 127.0.0.1",
                key.chars().count(),
                self.listen
            );
            return Err(error("admin_key", message));
        }
        self.log.check()?;
        for (key, hosts) in [
            ("jobs.reward_hosts", &self.jobs.reward_hosts),
            ("server.hosts", &self.server.hosts),
            ("webhooks.hosts", &self.webhooks.hosts),
        ] {
            if let Some(wrong) = hosts.iter().find(|host| !is_host(host)) {
                let message =
                    format!("'{wrong}' is not a host: write HOST or HOST:PORT, without https:// and without a path");
                return Err(error(key, message));
            }
        }
        if let Some(url) = &self.database_url
            && !["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme))
        {
            return Err(error("database_url", "must start with sqlite: or postgres:"));
        }
        self.artifacts.check()?;
        self.auth.check()?;
        let positive = [
            ("server.max_connections", self.server.max_connections),
            ("server.header_timeout_seconds", self.server.header_timeout_seconds as usize),
            ("server.body_timeout_seconds", self.server.body_timeout_seconds as usize),
            ("server.write_timeout_seconds", self.server.write_timeout_seconds as usize),
            ("server.idle_timeout_seconds", self.server.idle_timeout_seconds as usize),
            ("server.http2_streams", self.server.http2_streams as usize),
            ("limits.body_bytes", self.limits.body_bytes),
            ("limits.import_bytes", self.limits.import_bytes),
            ("limits.prompt_bytes", self.limits.prompt_bytes),
            ("limits.prompts", self.limits.prompts),
            ("limits.samples", self.limits.samples),
            ("limits.default_chat_tokens", self.limits.default_chat_tokens),
            ("limits.file_bytes", self.limits.file_bytes),
            ("batches.keep_days", self.batches.keep_days as usize),
            ("engine.max_batch", self.engine.max_batch),
            ("upstream.connect_timeout_seconds", self.upstream.connect_timeout_seconds as usize),
            ("upstream.response_timeout_seconds", self.upstream.response_timeout_seconds as usize),
            ("upstream.max_running", self.upstream.max_running),
            ("upstream.breaker_failures", self.upstream.breaker_failures as usize),
            ("upstream.push_timeout_seconds", self.upstream.push_timeout_seconds as usize),
            ("labeling.max_tokens", self.labeling.max_tokens),
            ("labeling.lease_seconds", self.labeling.lease_seconds.max(0) as usize),
            ("labeling.overlap", self.labeling.overlap.max(0) as usize),
            ("sessions.lifetime_hours", self.sessions.lifetime_hours.max(0) as usize),
            ("sessions.idle_hours", self.sessions.idle_hours.max(0) as usize),
            ("sessions.invite_hours", self.sessions.invite_hours.max(0) as usize),
            ("jobs.slots", self.jobs.slots),
            ("jobs.lease_seconds", self.jobs.lease_seconds.max(0) as usize),
            ("jobs.cancel_grace_seconds", self.jobs.cancel_grace_seconds as usize),
            ("jobs.max_crashes", self.jobs.max_crashes.max(0) as usize),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(error(key, "must be at least 1"));
            }
        }
        self.engine.check()?;
        if self.labeling.overlap > 100 {
            return Err(error("labeling.overlap", "must be 1 to 100"));
        }
        for (key, share) in [
            ("labeling.gold_share", self.labeling.gold_share),
            ("labeling.calibration_share", self.labeling.calibration_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(error(key, "must be 0 to 1"));
            }
        }
        if self.labeling.gold_share + self.labeling.calibration_share > 1.0 {
            return Err(error("labeling.gold_share", "and labeling.calibration_share must be at most 1 together"));
        }
        for (key, value) in [
            ("labeling.onboarding_sets", self.labeling.onboarding_sets),
            ("labeling.daily_quota", self.labeling.daily_quota),
        ] {
            if value < 0 {
                return Err(error(key, "must not be negative"));
            }
        }
        if !(0.0..=2.0).contains(&self.labeling.temperature) {
            return Err(error("labeling.temperature", "must be 0 to 2"));
        }
        if !(self.labeling.top_p > 0.0 && self.labeling.top_p <= 1.0) {
            return Err(error("labeling.top_p", "must be above 0 and at most 1"));
        }
        if !(2..=9).contains(&self.labeling.completions_per_set) {
            return Err(error("labeling.completions_per_set", "must be 2 to 9"));
        }
        if self.labeling.completion_secret.as_ref().is_some_and(|secret| secret.len() < 16) {
            return Err(error("labeling.completion_secret", "must have 16 characters or more: openssl rand -hex 32"));
        }
        self.executors.check()?;
        executors::check_trainers(&self.trainers)?;
        judges::check(&self.judges)?;
        self.webhooks.check()?;
        spans::check(self)
    }

    /// This configuration with one setting (`section.key`) changed.
    ///
    /// # Errors
    /// When the name is unknown, or the value has the wrong type or is out of range.
    pub fn with(&self, name: &str, value: serde_json::Value) -> Result<Self, ConfigError> {
        let mut all = serde_json::to_value(self).map_err(|e| error(name, e.to_string()))?;
        let place = all.pointer_mut(&format!("/{}", name.replace('.', "/")));
        *place.ok_or_else(|| error(name, "is not a setting"))? = value;
        let changed: Self = serde_json::from_value(all).map_err(|e| error(name, e.to_string()))?;
        changed.validate()?;
        Ok(changed)
    }

    /// The database to open.
    pub fn database_url(&self) -> String {
        match &self.database_url {
            Some(url) => url.clone(),
            None => format!("sqlite://{}", self.data_dir.join("instructd.db").display()),
        }
    }

    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.server.drain_timeout_seconds)
    }
}

fn error(key: &str, message: impl Into<String>) -> ConfigError {
    ConfigError { key: key.to_owned(), message: message.into() }
}

/// The dotted key an error is about; unknown keys are named by the error itself, not its path.
fn key_of(e: &figment::Error) -> String {
    let mut path = e.path.clone();
    if let figment::error::Kind::UnknownField(name, _) = &e.kind
        && path.last() != Some(name)
    {
        path.push(name.clone());
    }
    path.join(".")
}

/// Whether an environment variable's name (without prefix) begins with the name of a setting or section.
pub fn names_setting(key: &str) -> bool {
    let all = serde_json::to_value(Config::default()).unwrap_or_default();
    let key = key.to_ascii_lowercase();
    match key.split_once("__") {
        Some((section, _)) => all[section].is_object(),
        None => all.get(&key).is_some_and(|value| !value.is_object()),
    }
}

#[cfg(test)]
mod tests;
