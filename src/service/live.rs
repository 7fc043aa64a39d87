//! Changes by administrators while the server runs: a few settings, and the canary (a share of the requests that name
//! no model goes to a candidate). They are stored in the database, which every process reads again every few seconds.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::people::Actor;
use super::{Result, ServiceError, Services, bad_input, uncancelled};
use crate::config::Config;
use crate::domain::time::DAY;
use crate::domain::{Micros, ModelKind, ModelState, ModelVersionId};
use crate::engine::{EngineError, ServedModel};
use crate::store::{RequestCounts, Setting, VersionUse};

/// Name under which the canary is stored among the settings.
const CANARY: &str = "canary";
/// Interval at which a process reads the stored settings.
const REFRESH: Duration = Duration::from_secs(3);

/// Settings that take effect without a restart, because they are read for every request.
pub const LIVE: &[&str] = &[
    "labeling.calibration_share",
    "labeling.daily_quota",
    "labeling.gold_share",
    "labeling.lease_seconds",
    "labeling.overlap",
    "labeling.completions_per_set",
    "labeling.max_tokens",
    "labeling.temperature",
    "labeling.top_p",
    "labeling.onboarding_sets",
    "labeling.reveal",
    "labeling.show_reasoning",
    "limits.default_chat_tokens",
    "privacy.learn_from_requests",
    "retention.feedback_days",
    "retention.feedback_mb",
    "retention.job_days",
    "retention.job_mb",
    "retention.request_days",
    "retention.request_mb",
    "sessions.idle_hours",
    "sessions.invite_hours",
    "sessions.lifetime_hours",
];

/// A candidate that answers a share of the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Canary {
    pub model_version_id: ModelVersionId,
    /// Share of the requests that name no model, above 0 and at most 1.
    pub share: f64,
    pub since: Micros,
}

impl Canary {
    /// Whether a request with the random number `drawn` in [0, 1) goes to the candidate. The server draws it, so that
    /// clients cannot choose their version and bias the figures.
    pub fn takes(&self, drawn: f64) -> bool {
        drawn < self.share
    }
}

/// The current configuration.
#[derive(Clone, Debug)]
pub struct Live {
    pub config: Config,
    pub canary: Option<Canary>,
}

/// Reads the stored settings; loads the canary's version if this process has not loaded it.
pub async fn refresh(services: &Services) -> Result<()> {
    let stored = services.store.settings().list().await?;
    let mut live = Live { config: services.config.clone(), canary: None };
    for setting in &stored {
        if setting.name == CANARY {
            live.canary = serde_json::from_value(setting.value.clone()).ok();
        } else if LIVE.contains(&setting.name.as_str()) {
            match live.config.with(&setting.name, setting.value.clone()) {
                Ok(config) => live.config = config,
                // Stored by another release with different limits.
                Err(error) => tracing::warn!(%error, "a stored setting is not valid and is ignored"),
            }
        }
    }
    if let (Some(canary), Ok(engine)) = (&live.canary, services.engine())
        && !engine.loaded().iter().any(|m| m.version.id == canary.model_version_id)
    {
        let version = services.store.models().get(&canary.model_version_id).await?;
        engine.load(&version).await?;
    }
    let former = services.live().canary.clone();
    let is_over = |former: &&Canary| live.canary.as_ref().is_none_or(|c| c.model_version_id != former.model_version_id);
    let over = former.as_ref().filter(is_over).map(|former| former.model_version_id.clone());
    services.set_live(live);
    if let (Some(over), Ok(engine)) = (over, services.engine()) {
        engine.release(&over).await;
    }
    Ok(())
}

/// Reads the stored settings at an interval until shutdown.
pub async fn follow(services: Arc<Services>) {
    loop {
        if let Err(error) = refresh(&services).await {
            tracing::warn!(%error, "the settings cannot be read; the last known ones remain in effect");
        }
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = services.shutdown.cancelled() => return,
        }
    }
}

/// The candidate, if this request goes to it. A version that is not loaded gets no requests.
pub fn canary_for(services: &Services) -> Option<Arc<ServedModel>> {
    let live = services.live();
    let canary = live.canary.as_ref().filter(|c| c.takes(services.random.fraction()))?;
    services.engine().ok()?.loaded().into_iter().find(|m| m.version.id == canary.model_version_id)
}

/// Sends `share` of the requests without a named model to a candidate, until it is ended or promoted.
///
/// # Errors
/// `BadInput` for shares outside (0, 1]; `BadInput` for versions that are not candidate policies; errors of the engine
/// when the version cannot be loaded.
pub async fn start_canary(services: &Arc<Services>, by: &Actor, model: &str, share: f64) -> Result<Canary> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(bad_input("share", "must be above 0 and at most 1"));
    }
    let version = super::register::find_or_register(services, model, Some(ModelKind::Policy), Some("model")).await?;
    if version.kind != ModelKind::Policy || version.state != ModelState::Candidate {
        return Err(bad_input("model", format!("{} is not a candidate policy", version.name)));
    }
    let engine = services.engine()?;
    engine.load(&version).await.map_err(|e| match e {
        EngineError::Failed(why) => ServiceError::Conflict(format!("{} cannot be served: {why}", version.name)),
        other => other.into(),
    })?;
    if !engine.loaded().iter().any(|m| m.version.id == version.id) {
        let message = format!(
            "{} cannot be served beside the active version: a canary needs a second server in upstream.replicas",
            version.name
        );
        return Err(ServiceError::Conflict(message));
    }
    let now = services.now();
    // A new share for the same candidate keeps the start of its figures.
    let since = match services.live().canary.as_ref() {
        Some(c) if c.model_version_id == version.id => c.since,
        _ => now,
    };
    let canary = Canary { model_version_id: version.id.clone(), share, since };
    let value = serde_json::to_value(&canary).map_err(|e| ServiceError::Internal(e.to_string()))?;
    put(services, by, CANARY, Some(value), "canary", json!({"model": version.name, "share": share})).await?;
    Ok(canary)
}

/// Ends the canary: all requests without a named model go to the active version again.
pub async fn end_canary(services: &Arc<Services>, by: &Actor) -> Result<()> {
    put(services, by, CANARY, None, "end_canary", json!({})).await
}

/// Ends the canary if its candidate was promoted.
pub(super) async fn promoted(services: &Arc<Services>, by: &Actor, active: &ModelVersionId) -> Result<()> {
    refresh(services).await?;
    let over = services.live().canary.as_ref().is_some_and(|c| c.model_version_id == *active);
    if over { end_canary(services, by).await } else { Ok(()) }
}

/// How each version is used: since the canary began, else over the last day. When counting takes longer than a second, it
/// is done in the background, and the last numbers are returned.
pub async fn usage(services: &Arc<Services>) -> Result<Usage> {
    let canary = services.live().canary.clone();
    let (all, wanted) = (services.clone(), canary.clone());
    let count = async move {
        let counted = all.now();
        let since = canary.as_ref().map_or(counted - DAY, |c| c.since);
        let versions = all.store.models().usage(since).await?;
        Ok::<_, ServiceError>(Usage { counted, since, canary, versions })
    };
    services.last_usage.wait(move |usage| usage.canary == wanted, count).await
}

/// Completions of the versions, and feedback on them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Usage {
    /// When this was counted (µs UTC). In a large database that is up to some minutes ago.
    pub counted: Micros,
    /// Start of the period: the canary's start, else a day ago (µs UTC).
    pub since: Micros,
    pub canary: Option<Canary>,
    pub versions: Vec<VersionUse>,
}

async fn put(
    services: &Arc<Services>,
    by: &Actor,
    name: &'static str,
    value: Option<Value>,
    action: &'static str,
    detail: Value,
) -> Result<()> {
    let (all, actor, now) = (services.clone(), by.signature(), services.now());
    uncancelled(async move {
        all.store.settings().put(name, value, &actor.actor, now).await?;
        all.store.audit_log().append(&actor, action, name, detail, now).await?;
        refresh(&all).await
    })
    .await
}

/// Changes a setting while the server runs; `None` returns to the value of file and environment.
///
/// # Errors
/// `BadInput` naming `name` for settings that need a restart, `value` for values that do not fit.
pub async fn set(services: &Arc<Services>, by: &Actor, name: &str, value: Option<Value>) -> Result<()> {
    let Some(name) = LIVE.iter().find(|n| **n == name) else {
        return Err(bad_input("name", format!("must be one of {}", LIVE.join(", "))));
    };
    if let Some(value) = &value {
        services.config.with(name, value.clone()).map_err(|e| bad_input("value", e.message))?;
    }
    let detail = json!({"value": value});
    put(services, by, name, value, "set", detail).await
}

/// One setting for the page.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "SettingView")]
pub struct Described {
    pub name: String,
    pub about: String,
    /// Current value; of secrets only whether they are set.
    pub value: Value,
    pub default: Value,
    /// Value from file, environment and command line.
    pub configured: Value,
    /// Can be changed while the server runs.
    pub live: bool,
    pub changed: Option<Setting>,
    /// Number of records that the setting affects, for settings that count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affects: Option<RequestCounts>,
}

/// Every setting with its explanation, in the order of config.toml.
pub async fn describe(services: &Services) -> Result<Vec<Described>> {
    let stored = services.store.settings().list().await?;
    let live = services.live();
    let requests = services.store.prompts().request_counts().await?;
    let schema = schemars::schema_for!(Config).to_value();
    let (now, configured, default) = (flat(&live.config)?, flat(&services.config)?, flat(&Config::default())?);
    let value_in = |all: &[(String, Value)], name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    Ok(now
        .into_iter()
        .map(|(name, value)| Described {
            about: about(&schema, &name),
            value: shown(&name, value),
            default: shown(&name, value_in(&default, &name).unwrap_or_default()),
            configured: shown(&name, value_in(&configured, &name).unwrap_or_default()),
            live: LIVE.contains(&name.as_str()),
            changed: stored.iter().find(|s| s.name == name).cloned(),
            affects: (name == "privacy.learn_from_requests").then_some(requests),
            name,
        })
        .collect())
}

/// Leaves of the configuration under their dotted names.
fn flat(config: &Config) -> Result<Vec<(String, Value)>> {
    let value = serde_json::to_value(config).map_err(|e| ServiceError::Internal(e.to_string()))?;
    let mut out = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(section) => out.extend(section.iter().map(|(k, v)| (format!("{key}.{k}"), v.clone()))),
            None => out.push((key.clone(), value.clone())),
        }
    }
    Ok(out)
}

/// The doc comment of a setting, from the schema.
fn about(schema: &Value, name: &str) -> String {
    let (mut node, mut found) = (schema, "");
    for part in name.split('.') {
        let target = node["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
        node = target.and_then(|path| schema.pointer(path)).unwrap_or(node);
        // Entries of maps (such as trainers and judges) have the map's explanation.
        let Some(next) = node["properties"].get(part) else { break };
        (node, found) = (next, next["description"].as_str().unwrap_or_default());
    }
    found.to_owned()
}

/// Masks secrets: of passwords, keys and tokens only whether they are set.
fn shown(name: &str, value: Value) -> Value {
    if let Value::Object(map) = value {
        return map.into_iter().map(|(key, value)| (key.clone(), shown(&key, value))).collect::<Map<_, _>>().into();
    }
    let Some(text) = value.as_str() else { return value };
    let leaf = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    if ["key", "secret", "token", "password"].iter().any(|word| leaf.contains(word)) {
        return json!("•••");
    }
    // user:password@ in a URL
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => json!(format!("{}•••{}", &text[..scheme + 3], &text[at..])),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthConfig, ExecutorsConfig, JudgeConfig, OidcConfig, PlaceConfig};

    #[test]
    fn a_canary_takes_its_share() {
        let canary = |share| Canary { model_version_id: "m".into(), share, since: 0 };
        let random = crate::service::Random::from_seed(3);
        let taken = |share| (0..4000).filter(|_| canary(share).takes(random.fraction())).count();
        assert_eq!(taken(1.0), 4000);
        // Binomial(4000, 0.2): standard deviation 25.
        assert!((700..900).contains(&taken(0.2)), "{}", taken(0.2));
    }

    #[test]
    fn every_setting_is_explained_and_no_secret_is_shown() {
        let schema = schemars::schema_for!(Config).to_value();
        let config = Config {
            admin_key: Some("hunter2".into()),
            database_url: Some("postgres://ada:hunter2@db/x".into()),
            auth: AuthConfig {
                oidc: OidcConfig { client_secret: Some("hunter2".into()), ..OidcConfig::default() },
                ..AuthConfig::default()
            },
            executors: ExecutorsConfig {
                places: [(
                    "cluster".to_owned(),
                    PlaceConfig {
                        token: Some("hunter2".into()),
                        runtime_env: Map::from_iter([("env_vars".to_owned(), json!({"HF_TOKEN": "hunter2"}))]),
                        ..PlaceConfig::default()
                    },
                )]
                .into(),
                ..ExecutorsConfig::default()
            },
            trainers: [("dpo".to_owned(), vec!["python3".to_owned()])].into(),
            judges: [("large".to_owned(), JudgeConfig { api_key: Some("hunter2".into()), ..JudgeConfig::default() })]
                .into(),
            ..Config::default()
        };
        for (name, value) in flat(&config).expect("flat") {
            assert!(about(&schema, &name).len() > 8, "{name} has no explanation");
            assert!(!shown(&name, value).to_string().contains("hunter2"), "{name}");
        }
        for name in LIVE {
            assert!(flat(&config).expect("flat").iter().any(|(n, _)| n == name), "{name} is no setting");
        }
    }
}
