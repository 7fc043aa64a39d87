//! Settings: one struct per section of config.toml, unknown keys refused, every value checked at start.
//! Order of precedence: command line, environment (`INSTRUCTD_…`, `__` between nested names), file, defaults.

mod access;
mod batches;
mod engine;
mod executors;
mod hosts;
mod limits;
mod log;
mod privacy;
mod spans;
mod text;
mod upstream;

pub use access::RatesConfig;
pub use batches::BatchesConfig;
pub use engine::EngineConfig;
pub use executors::{ExecutorsConfig, PlaceConfig};
pub use hosts::is_host;
pub use limits::LimitsConfig;
pub use log::LogConfig;
pub use privacy::{PrivacyConfig, RetentionConfig};
pub use upstream::UpstreamConfig;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use text::{optional_text, text};

/// Everything that can be set. See config.toml in the repository root for what each key does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Where models, checkpoints and the SQLite database lie.
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
    /// How the weights are held for serving: `f32`, or a quantised kind.
    #[serde(deserialize_with = "text")]
    pub weights: String,
    /// `None` = generated at the first start and printed once.
    #[serde(deserialize_with = "optional_text")]
    pub admin_key: Option<String>,
    /// Whether inference routes need a key too.
    pub require_inference_key: bool,
    pub server: ServerConfig,
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
    pub artifacts: ArtifactsConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Connections open at the same time; more wait, or take the place of one that has been still.
    pub max_connections: usize,
    /// Of these, connections of one address (IPv6: one /64); 0 = any number. Not applied behind a proxy
    /// (`client_address_header`), where all come from one address.
    pub connections_per_address: usize,
    /// Further connections for this machine itself, so that its operator gets in when all places are taken.
    pub reserved_connections: usize,
    /// Names that a request's `Host` may have, beside loopback ones. Empty = any, except on a loopback address:
    /// there only loopback names are answered. A proxy's public name belongs here.
    pub hosts: Vec<String>,
    /// A client must have sent its request's headers within this time.
    pub header_timeout_seconds: u64,
    /// A client must have sent its request's body within this time.
    pub body_timeout_seconds: u64,
    /// A client must take some of its answer (16 KB) within this time.
    pub write_timeout_seconds: u64,
    /// A connection without a request is closed after this time.
    pub idle_timeout_seconds: u64,
    /// Requests at the same time on one HTTP/2 connection.
    pub http2_streams: u32,
    /// How long shutdown waits for running requests.
    pub drain_timeout_seconds: u64,
    /// The header in which a reverse proxy names the client's address (`x-forwarded-for`: its last entry). Only
    /// behind a proxy that sets it: others could write any address into it.
    #[serde(deserialize_with = "optional_text")]
    pub client_address_header: Option<String>,
    /// Marks the session cookie `Secure`; set it when served over TLS.
    pub secure_cookies: bool,
    /// Keep every completion that was sent, with its model version, in the database.
    pub store_completions: bool,
    /// Origins whose pages may call the API from a browser, such as `https://app.example.org`; `*` = any. They need a
    /// key: cookies of this server are of no use to them. Empty = none.
    pub cors_origins: Vec<String>,
    /// Answers of 1 KB or more go out in gzip to clients that take it. Event streams, pictures and fonts never do. Off
    /// by default: behind TLS the length of a compressed answer can tell about secrets in it.
    pub compress: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LabelingConfig {
    /// How long a set is reserved for the person who ranks it; renewed while they work.
    pub lease_seconds: i64,
    /// How many people rank one set, when the set does not say.
    pub overlap: i64,
    /// Completions drawn for a set that names none.
    pub completions_per_set: usize,
    /// `max_tokens` of completions drawn for a set.
    pub max_tokens: usize,
    /// Temperature of completions drawn for a set, 0 to 2.
    pub temperature: f64,
    /// `top_p` of completions drawn for a set, above 0 and at most 1.
    pub top_p: f64,
    /// Share of turns, 0 to 1, on which a set with a hidden known answer is given, where there are any.
    pub gold_share: f64,
    /// Share of turns, 0 to 1, on which a calibration set is given, whose answer is shown after the vote.
    pub calibration_share: f64,
    /// Calibration sets that a new labeler gets before other work, where there are any.
    pub onboarding_sets: i64,
    /// Judgments a day (UTC) of a labeler who has no quota of their own; 0 = no limit.
    pub daily_quota: i64,
    /// Show labelers after their judgment which model wrote which answer; those who asked the question themselves
    /// are always told. What is judged again with that knowledge is kept apart and counts in no figure and no
    /// data set.
    pub reveal: bool,
    /// Show labelers what a model thought before its answer (between `<think>` and `</think>`, or `[THINK]` and
    /// `[/THINK]`). Without it they read and rank the answers alone, and answers to their own questions appear when they
    /// are whole. Stored texts and data sets keep the thoughts.
    pub show_reasoning: bool,
    /// Markdown file with the guidelines, read anew each time (`guide.zh.md` beside `guide.md` for Chinese);
    /// `None` = the built-in text. A text written on the admin page goes before it.
    pub guidelines: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SessionsConfig {
    /// A session ends this long after it began, used or not.
    pub lifetime_hours: i64,
    /// A session ends when nobody used it for this long.
    pub idle_hours: i64,
    /// How long an invite link works.
    pub invite_hours: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Run training jobs beside the server; false = leave them to `instructd worker`.
    pub enabled: bool,
    /// Jobs run at the same time by one process.
    pub slots: usize,
    /// A job whose process says nothing for this long is taken over.
    pub lease_seconds: i64,
    /// Crashes after which a job is given up.
    pub max_crashes: i64,
    /// Compute threads of a training job; 0 = one per physical core.
    pub threads: usize,
    /// How long a cancelled job may take to finish its step and write its checkpoint before it is killed.
    pub cancel_grace_seconds: u64,
    /// `host` or `host:port` of services that a job's reward may ask; none by default.
    pub reward_hosts: Vec<String>,
}

/// Where servers on several machines share the files of models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArtifactsConfig {
    /// `file://DIR` or `s3://BUCKET[/PREFIX]`; `None` = files stay in the data directory.
    #[serde(deserialize_with = "optional_text")]
    pub url: Option<String>,
    /// Of an S3-compatible service; `None` = Amazon's.
    #[serde(deserialize_with = "optional_text")]
    pub endpoint: Option<String>,
    /// Of the bucket.
    #[serde(deserialize_with = "optional_text")]
    pub region: Option<String>,
    /// `None` = from `AWS_ACCESS_KEY_ID` and so on, or the machine's role.
    #[serde(deserialize_with = "optional_text")]
    pub access_key_id: Option<String>,
    /// Belongs to the access key.
    #[serde(deserialize_with = "optional_text")]
    pub secret_access_key: Option<String>,
    /// Whether the endpoint may be plain HTTP.
    pub allow_http: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data_dir: PathBuf::from("data"),
            database_url: None,
            model: "smollm2-135m-instruct".to_owned(),
            encoder: None,
            weights: "f32".to_owned(),
            admin_key: None,
            require_inference_key: false,
            server: ServerConfig::default(),
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

/// A setting that cannot be used; `key` is its name in config.toml.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {key}: {message}")]
pub struct ConfigError {
    pub key: String,
    pub message: String,
}

/// What the command line may override.
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
    /// Defaults, then `file` (or `config.toml` in the working directory, if there is one), then the
    /// environment, then the command line.
    ///
    /// # Errors
    /// A missing `file`, an unknown key, a value of the wrong type or out of range: all name the key.
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
        let config: Self = figment
            .merge(environment)
            .merge(Serialized::defaults(overrides))
            .extract()
            .map_err(|e| error(&key_of(&e), e.kind.to_string()))?;
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
        for (key, hosts) in [("jobs.reward_hosts", &self.jobs.reward_hosts), ("server.hosts", &self.server.hosts)] {
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
        if let Some(url) = &self.artifacts.url
            && !["file://", "s3://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
        {
            return Err(error("artifacts.url", "must be file://DIR or s3://BUCKET/PREFIX"));
        }
        if self.artifacts.access_key_id.is_some() != self.artifacts.secret_access_key.is_some() {
            return Err(error("artifacts.secret_access_key", "and access_key_id go together"));
        }
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
        self.executors.check()?;
        executors::check_trainers(&self.trainers)?;
        spans::check(self)
    }

    /// This configuration with one setting (`section.key`) changed.
    ///
    /// # Errors
    /// Unknown names, wrong types and values out of range.
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
fn names_setting(key: &str) -> bool {
    let all = serde_json::to_value(Config::default()).unwrap_or_default();
    let key = key.to_ascii_lowercase();
    match key.split_once("__") {
        Some((section, _)) => all[section].is_object(),
        None => all.get(&key).is_some_and(|value| !value.is_object()),
    }
}

#[cfg(test)]
mod tests;
