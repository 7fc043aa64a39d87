//! Loading model versions at upstream servers: tells one server to load a version, asks which one it serves, and
//! compares its answer to a short prompt with that of the others.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use super::address::Address;
use super::http::Http;
use crate::domain::ModelVersionId;

/// What the probe completes, with one token.
const PROBE: &str = "The quick brown fox jumps over the lazy";
/// Variables of this program's environment that a command gets.
const PASSED_ON: &[&str] = &["PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ"];
/// Most characters of a command's error output in a message.
const MAX_WORDS: usize = 300;

/// How a server is told to load a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loader {
    /// A LoRA adapter at vLLM, beside the model and other adapters. It is named in requests.
    Vllm,
    /// The weights of SGLang's model are replaced.
    Sglang,
    /// llama.cpp applies one of the adapters that it was started with, to all requests.
    LlamaCpp,
    /// A program of the operator replaces the model.
    Command(Vec<String>),
}

impl Loader {
    pub const NAMES: &str = "vllm, sglang, llama.cpp, command";

    /// The loader of this name; `command` is that of `command`.
    pub fn parse(name: &str, command: &[String]) -> Option<Self> {
        match name {
            "vllm" => Some(Self::Vllm),
            "sglang" => Some(Self::Sglang),
            "llama.cpp" => Some(Self::LlamaCpp),
            "command" if !command.is_empty() => Some(Self::Command(command.to_owned())),
            _ => None,
        }
    }

    /// Whether a server serves several versions at a time.
    pub fn keeps_others(&self) -> bool {
        *self == Self::Vllm
    }
}

/// How versions are loaded at the servers.
#[derive(Clone, Debug)]
pub struct PushOptions {
    pub loader: Loader,
    /// Path of a version's files as the servers see it, with `{path}`, `{id}` and `{name}`.
    pub path: String,
    /// Longest time for loading at one server, and for its running requests to end before that.
    pub timeout: Duration,
    /// Largest difference in the first token's log-prob between servers with the same version.
    pub tolerance: f64,
}

/// A version as the servers know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub version: ModelVersionId,
    pub version_name: String,
    /// The model's name in requests.
    pub model: String,
    /// Where its files are for the servers; empty for the model that they were started with, where it is not known.
    pub path: String,
    /// Whether the servers were started with it.
    pub is_base: bool,
}

/// A server's answer to the probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    token: String,
    /// Natural log; `None` where the server reports none.
    logprob: Option<f64>,
}

impl Probe {
    /// # Errors
    /// When the difference is larger than `tolerance`; without log-probs, when the tokens differ.
    pub fn agrees(&self, other: &Self, tolerance: f64) -> Result<(), String> {
        match (self.logprob, other.logprob) {
            // Two tokens that are almost equally probable may change places.
            (Some(a), Some(b)) if (a - b).abs() <= tolerance => Ok(()),
            (Some(a), Some(b)) => Err(format!(
                "the log-prob of its first token is {a:.3}, that of another server with this version {b:.3}"
            )),
            _ if self.token == other.token => Ok(()),
            _ => Err(format!("its first token is {:?}, that of another server {:?}", self.token, other.token)),
        }
    }
}

impl PushOptions {
    /// Makes the server serve the version.
    ///
    /// # Errors
    /// What the server or the command says.
    pub async fn load(&self, http: &Http, target: &Target) -> Result<(), String> {
        match &self.loader {
            Loader::Vllm if target.is_base => Ok(()),
            Loader::Vllm => {
                let body = json!({"lora_name": target.model, "lora_path": target.path});
                http.ask(Address::Api("load_lora_adapter"), Some(body), self.timeout).await.map(drop)
            }
            Loader::Sglang if target.path.is_empty() => {
                Err("the path of the model that it was started with is not known: restart it".to_owned())
            }
            Loader::Sglang => {
                let body = json!({"model_path": target.path});
                let answer = http.ask(Address::Root("update_weights_from_disk"), Some(body), self.timeout).await?;
                match answer["success"].as_bool() {
                    Some(true) => Ok(()),
                    _ => Err(answer["message"].as_str().unwrap_or("it did not load the weights").to_owned()),
                }
            }
            Loader::LlamaCpp => self.scale_adapters(http, target).await,
            Loader::Command(command) => self.run(command, http, target).await,
        }
    }

    /// Makes the server forget a version that it serves beside others.
    pub async fn unload(&self, http: &Http, target: &Target) -> Result<(), String> {
        if !self.loader.keeps_others() || target.is_base {
            return Ok(());
        }
        let body = json!({"lora_name": target.model});
        http.ask(Address::Api("unload_lora_adapter"), Some(body), self.timeout).await.map(drop)
    }

    /// Whether the server says that it serves the version; `None` where it cannot be asked.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn serves(&self, http: &Http, target: &Target) -> Result<Option<bool>, String> {
        match &self.loader {
            Loader::Vllm => {
                let listing = http.models().await.map_err(|failure| failure.error.to_string())?;
                Ok(Some(listing.data.iter().any(|model| model.id == target.model)))
            }
            Loader::Sglang if target.path.is_empty() => Ok(None),
            Loader::Sglang => Ok(self.model_path(http).await?.map(|path| path == target.path)),
            Loader::LlamaCpp => {
                let adapters = self.adapters(http).await?;
                let is_applied = |adapter: &Value| adapter["scale"].as_f64().is_some_and(|scale| scale != 0.0);
                let as_wanted = |adapter: &Value| is_applied(adapter) == is_adapter(adapter, target);
                let has_it = target.is_base || adapters.iter().any(|adapter| is_adapter(adapter, target));
                Ok(Some(has_it && adapters.iter().all(as_wanted)))
            }
            Loader::Command(_) => Ok(None),
        }
    }

    /// The path of the weights that the server serves, where it says so.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn model_path(&self, http: &Http) -> Result<Option<String>, String> {
        if self.loader != Loader::Sglang {
            return Ok(None);
        }
        let info = http.ask(Address::Root("get_model_info"), None, self.timeout).await?;
        Ok(info["model_path"].as_str().map(str::to_owned))
    }

    /// The first token that the server's model continues a fixed prompt with.
    ///
    /// # Errors
    /// When it does not answer, or with something else than a completion.
    pub async fn probe(&self, http: &Http, target: &Target) -> Result<Probe, String> {
        let body = json!({"model": target.model, "prompt": PROBE, "max_tokens": 1, "temperature": 0.0, "logprobs": 1});
        let answer = http.ask(Address::Api("completions"), Some(body), self.timeout).await?;
        read_probe(&answer)
            .ok_or_else(|| "its answer to the probe is not a completion with a finite log-prob".to_owned())
    }

    async fn adapters(&self, http: &Http) -> Result<Vec<Value>, String> {
        let listed = http.ask(Address::Root("lora-adapters"), None, self.timeout).await?;
        listed.as_array().cloned().ok_or_else(|| "its list of adapters is not a list".to_owned())
    }

    async fn scale_adapters(&self, http: &Http, target: &Target) -> Result<(), String> {
        let adapters = self.adapters(http).await?;
        if !target.is_base && !adapters.iter().any(|adapter| is_adapter(adapter, target)) {
            let path = &target.path;
            return Err(format!("it has no adapter {path}: start it with --lora {path} --lora-init-without-apply"));
        }
        let scale = |adapter: &Value| if is_adapter(adapter, target) { 1.0 } else { 0.0 };
        let scales: Vec<Value> = adapters.iter().map(|a| json!({"id": a["id"], "scale": scale(a)})).collect();
        http.ask(Address::Root("lora-adapters"), Some(scales.into()), self.timeout).await.map(drop)
    }

    async fn run(&self, command: &[String], http: &Http, target: &Target) -> Result<(), String> {
        let fill = |part: &String| {
            let part = part.replace("{url}", http.base()).replace("{path}", &target.path);
            part.replace("{id}", target.version.as_str()).replace("{name}", &target.version_name)
        };
        let [program, arguments @ ..] = command else { return Err("upstream.push_command is empty".to_owned()) };
        let mut running = Command::new(fill(program));
        running.args(arguments.iter().map(fill)).kill_on_drop(true).stdin(std::process::Stdio::null());
        // The environment of this program holds its keys.
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        running.env_clear().envs(passed_on);
        let done = match tokio::time::timeout(self.timeout, running.output()).await {
            Ok(done) => done.map_err(|e| format!("the command {program} cannot be run: {e}"))?,
            Err(_) => return Err(format!("the command {program} took longer than {} s", self.timeout.as_secs())),
        };
        if done.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&done.stderr);
        let words: String = words.trim().chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
        Err(format!("the command {program} ended with {}: {words}", done.status))
    }
}

fn is_adapter(adapter: &Value, target: &Target) -> bool {
    !target.is_base && adapter["path"].as_str() == Some(&target.path)
}

/// The first token of a completion, in OpenAI's form of log-probs or in llama.cpp's.
fn read_probe(answer: &Value) -> Option<Probe> {
    let choice = answer["choices"].get(0)?;
    let logprobs = &choice["logprobs"];
    let first = &logprobs["content"][0];
    let token =
        first["token"].as_str().or_else(|| logprobs["tokens"][0].as_str()).or_else(|| choice["text"].as_str())?;
    let logprob = first["logprob"].as_f64().or_else(|| logprobs["token_logprobs"][0].as_f64());
    // A model whose weights are broken reports NaN, which JSON has as null, or text.
    let is_reported = !logprobs.is_null();
    (logprob.is_some_and(f64::is_finite) || !is_reported).then(|| Probe { token: token.to_owned(), logprob })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_in_both_forms() {
        let probe = |logprobs: Value| read_probe(&json!({"choices": [{"text": " dog", "logprobs": logprobs}]}));
        let found = Some(Probe { token: " dog".into(), logprob: Some(-0.25) });
        assert_eq!(probe(json!({"tokens": [" dog"], "token_logprobs": [-0.25]})), found, "vLLM and SGLang");
        assert_eq!(probe(json!({"content": [{"token": " dog", "logprob": -0.25}]})), found, "llama.cpp");
        assert_eq!(probe(Value::Null), Some(Probe { token: " dog".into(), logprob: None }));
        assert_eq!(probe(json!({"tokens": [" dog"], "token_logprobs": [null]})), None, "not a number");
        assert_eq!(read_probe(&json!({"error": "x"})), None);
    }

    #[test]
    fn probes_agree_within_the_tolerance() {
        let probe = |token: &str, logprob| Probe { token: token.to_owned(), logprob };
        assert_eq!(probe("a", Some(-1.0)).agrees(&probe("b", Some(-1.1)), 0.2), Ok(()), "a near tie");
        assert!(probe("a", Some(-1.0)).agrees(&probe("a", Some(-1.5)), 0.2).unwrap_err().contains("-1.500"));
        assert!(probe("a", None).agrees(&probe("b", Some(-1.0)), 0.2).is_err());
        assert_eq!(probe("a", None).agrees(&probe("a", None), 0.0), Ok(()));
    }
}
