//! `[judges]`: OpenAI-compatible servers whose models judge answers in training and rank sets as labelers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, error, optional_text, text};

/// A language model on another server that rewards and jobs of kind `judge` may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    /// Base address as OpenAI clients take it, such as `http://judge:8000/v1`.
    #[serde(deserialize_with = "text")]
    pub url: String,
    /// The model's name there.
    #[serde(deserialize_with = "text")]
    pub model: String,
    /// Sent as `Authorization: Bearer`.
    #[serde(deserialize_with = "optional_text")]
    pub api_key: Option<String>,
    /// Whether the server reports the log-probs of 20 tokens (`top_logprobs`); without them the judge's single answer
    /// counts, in a form that a JSON schema prescribes.
    pub logprobs: bool,
    /// How long one answer may take.
    pub timeout_seconds: u64,
    /// Questions under way at the same time.
    pub max_running: usize,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            api_key: None,
            logprobs: true,
            timeout_seconds: 120,
            max_running: 16,
        }
    }
}

/// # Errors
/// The key of the first judge that cannot be asked.
pub(super) fn check(judges: &BTreeMap<String, JudgeConfig>) -> Result<(), ConfigError> {
    for (name, judge) in judges {
        let key = |field: &str| format!("judges.{name}.{field}");
        if name.is_empty() || name.len() > 64 {
            return Err(error(&format!("judges.{name}"), "is no name of 1 to 64 bytes"));
        }
        let parsed = reqwest::Url::parse(&judge.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(parsed) = parsed.filter(|url| url.host_str().is_some()) else {
            return Err(error(&key("url"), "must be the base address of a server, such as http://judge:8000/v1"));
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(error(&key("url"), "must not hold a password; use api_key"));
        }
        if judge.model.trim().is_empty() {
            return Err(error(&key("model"), "must name a model of that server"));
        }
        let sendable = |secret: &str| secret.bytes().all(|b| (0x20..0x7f).contains(&b));
        if judge.api_key.as_deref().is_some_and(|secret| !sendable(secret)) {
            return Err(error(&key("api_key"), "has characters that no header can carry"));
        }
        if !(1..=3600).contains(&judge.timeout_seconds) {
            return Err(error(&key("timeout_seconds"), "must be 1 to 3600"));
        }
        if !(1..=1024).contains(&judge.max_running) {
            return Err(error(&key("max_running"), "must be 1 to 1024"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: impl FnOnce(&mut JudgeConfig)) -> Result<(), ConfigError> {
        let mut judge =
            JudgeConfig { url: "http://judge:8000/v1".to_owned(), model: "m".to_owned(), ..JudgeConfig::default() };
        change(&mut judge);
        check(&[("large".to_owned(), judge)].into())
    }

    #[test]
    fn judges_that_cannot_be_asked_are_named() {
        one(|_| {}).expect("fine");
        let refused = |change: fn(&mut JudgeConfig)| one(change).expect_err("refused").key;
        assert_eq!(refused(|j| j.url = String::new()), "judges.large.url");
        assert_eq!(refused(|j| j.url = "judge:8000".to_owned()), "judges.large.url");
        assert_eq!(refused(|j| j.url = "http://u:p@judge/v1".to_owned()), "judges.large.url");
        assert_eq!(refused(|j| j.model = " ".to_owned()), "judges.large.model");
        assert_eq!(refused(|j| j.api_key = Some("a\nb".to_owned())), "judges.large.api_key");
        assert_eq!(refused(|j| j.timeout_seconds = 0), "judges.large.timeout_seconds");
        assert_eq!(refused(|j| j.max_running = 0), "judges.large.max_running");
    }
}
