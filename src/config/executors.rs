//! `[executors]`: places at which training jobs run instead of in child processes of this program.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, error, optional_text, text};

/// The places, and the recipes that run at each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExecutorsConfig {
    /// Recipe → name of a place. Recipes that are not named run in child processes on this machine.
    pub kinds: BTreeMap<String, String>,
    /// The places by name.
    pub places: BTreeMap<String, PlaceConfig>,
}

/// One place: a Ray cluster, or a system that a command submits to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PlaceConfig {
    /// `command` or `ray`.
    #[serde(rename = "type", deserialize_with = "text")]
    pub kind: String,
    /// Concurrent jobs at this place, per process of instructd.
    pub slots: usize,
    /// The instructd program at the place; `None` = the path of the running program.
    pub program: Option<PathBuf>,
    /// A started trainer that writes no heartbeat for this long counts as crashed.
    pub silence_seconds: u64,
    /// `command`: program and arguments, with the placeholders `{argv}`, `{run}`, `{id}`, `{kind}`, `{attempt}`, `{dir}`
    /// and `{log}`.
    pub command: Vec<String>,
    /// `command`: ends the attempt `{id}`; empty = the command itself is ended.
    pub stop_command: Vec<String>,
    /// `command`: additional variables of this program's environment that the command gets.
    pub environment: Vec<String>,
    /// `command`: the command returns when the job is queued, not when it has ended.
    pub detached: bool,
    /// `ray`: address of the dashboard, such as `http://head:8265`.
    #[serde(deserialize_with = "optional_text")]
    pub url: Option<String>,
    /// `ray`: sent as `Authorization: Bearer`.
    #[serde(deserialize_with = "optional_text")]
    pub token: Option<String>,
    /// `ray`: logical CPUs that a job reserves.
    pub cpus: Option<f64>,
    /// `ray`: GPUs that a job reserves.
    pub gpus: Option<f64>,
    /// `ray`: bytes of memory that a job reserves.
    pub memory_bytes: Option<u64>,
    /// `ray`: custom resources that a job reserves.
    pub resources: BTreeMap<String, f64>,
    /// `ray`: the job's runtime environment, passed to Ray unchanged.
    pub runtime_env: serde_json::Map<String, serde_json::Value>,
}

impl Default for PlaceConfig {
    fn default() -> Self {
        Self {
            kind: String::new(),
            slots: 1,
            program: None,
            silence_seconds: 120,
            command: Vec::new(),
            stop_command: Vec::new(),
            environment: Vec::new(),
            detached: false,
            url: None,
            token: None,
            cpus: None,
            gpus: None,
            memory_bytes: None,
            resources: BTreeMap::new(),
            runtime_env: serde_json::Map::new(),
        }
    }
}

/// Placeholders of a command template.
pub const PLACEHOLDERS: &[&str] = &["argv", "run", "id", "kind", "attempt", "dir", "log"];

impl ExecutorsConfig {
    /// # Errors
    /// When a value is not valid; the error has the key of the first one. Names of recipes are checked by
    /// `jobs::executors::check`.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, place) in &self.places {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            if !(1..=32).contains(&name.len()) || !name.bytes().all(plain) || name == "local" {
                let message = "is not a valid name of a place: use a-z, 0-9, '-' and '_', at most 32, and not 'local'";
                return Err(error(&format!("executors.places.{name}"), message));
            }
            place.check(&|field| format!("executors.places.{name}.{field}"))?;
        }
        for (kind, place) in self.kinds.iter().filter(|(_, place)| *place != "local") {
            if !self.places.contains_key(place) {
                let known: Vec<&str> = self.places.keys().map(String::as_str).chain(["local"]).collect();
                let message = format!("'{place}' is not a place; the configured places are: {}", known.join(", "));
                return Err(error(&format!("executors.kinds.{kind}"), message));
            }
        }
        Ok(())
    }

    /// The place of a recipe; `None` = this machine.
    pub fn place_of(&self, kind: &str) -> Option<&str> {
        self.kinds.get(kind).map(String::as_str).filter(|place| *place != "local")
    }
}

impl PlaceConfig {
    fn check(&self, key: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        let fields_of_ray = [
            ("url", self.url.is_some()),
            ("token", self.token.is_some()),
            ("cpus", self.cpus.is_some()),
            ("gpus", self.gpus.is_some()),
            ("memory_bytes", self.memory_bytes.is_some()),
            ("resources", !self.resources.is_empty()),
            ("runtime_env", !self.runtime_env.is_empty()),
        ];
        let fields_of_command = [
            ("command", !self.command.is_empty()),
            ("stop_command", !self.stop_command.is_empty()),
            ("environment", !self.environment.is_empty()),
            ("detached", self.detached),
        ];
        let foreign = match self.kind.as_str() {
            "command" => fields_of_ray.iter().find(|(_, given)| *given),
            "ray" => fields_of_command.iter().find(|(_, given)| *given),
            _ => return Err(error(&key("type"), "must be 'command' or 'ray'")),
        };
        if let Some((field, _)) = foreign {
            return Err(error(&key(field), format!("does not apply to the type '{}'", self.kind)));
        }
        for (field, value) in [("slots", self.slots), ("silence_seconds", self.silence_seconds as usize)] {
            if value == 0 {
                return Err(error(&key(field), "must be at least 1"));
            }
        }
        match self.kind.as_str() {
            "command" => self.check_commands(key),
            _ => self.check_ray(key),
        }
    }

    fn check_commands(&self, key: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        if self.command.is_empty() {
            return Err(error(&key("command"), "must contain a program and its arguments"));
        }
        if !self.command.iter().any(|part| part.contains("{run}") || part == "{argv}") {
            let message = "must run the trainer: {argv} as an argument by itself, or {run} inside of one";
            return Err(error(&key("command"), message));
        }
        for (field, parts) in [("command", &self.command), ("stop_command", &self.stop_command)] {
            if parts.first().is_some_and(String::is_empty) {
                return Err(error(&key(field), "names no program; give a program and its arguments"));
            }
            for part in parts {
                if part.contains("{argv}") && part != "{argv}" {
                    return Err(error(&key(field), "{argv} must be an argument by itself; inside of one write {run}"));
                }
                if let Some(unknown) = placeholders(part).find(|name| !PLACEHOLDERS.contains(name)) {
                    let known: Vec<String> = PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
                    let message = format!("has {{{unknown}}}; known are {}", known.join(", "));
                    return Err(error(&key(field), message));
                }
            }
        }
        let plain = |name: &String| {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty() && !name.contains('=')
        };
        match self.environment.iter().find(|name| !plain(name)) {
            Some(_) => Err(error(&key("environment"), "must contain names of variables, without values")),
            None => Ok(()),
        }
    }

    fn check_ray(&self, key: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        let Some(url) = &self.url else {
            return Err(error(&key("url"), "must be the address of Ray's dashboard, such as http://head:8265"));
        };
        let parsed = reqwest::Url::parse(url).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
        let Some(parsed) = parsed.filter(|u| u.host_str().is_some()) else {
            return Err(error(&key("url"), "must be http://… or https://…"));
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(error(&key("url"), "must not contain a password; use token"));
        }
        let numbers = [("cpus", self.cpus), ("gpus", self.gpus)];
        let resources = self.resources.values().map(|value| ("resources", Some(*value)));
        for (field, value) in numbers.into_iter().chain(resources) {
            if value.is_some_and(|n| !n.is_finite() || n < 0.0) {
                return Err(error(&key(field), "must not be negative"));
            }
        }
        Ok(())
    }
}

/// Placeholders of a trainer's command.
const TRAINER_PLACEHOLDERS: &[&str] = &["job", "dir", "model", "output", "checkpoints"];

/// # Errors
/// When a trainer's command is not valid; the error has the key of the first one.
pub(super) fn check_trainers(trainers: &BTreeMap<String, Vec<String>>) -> Result<(), ConfigError> {
    for (name, command) in trainers {
        let key = format!("trainers.{name}");
        if name.is_empty() || name.len() > 64 {
            return Err(error(&key, "is not a valid name: it must have 1 to 64 bytes"));
        }
        if command.first().is_none_or(String::is_empty) {
            return Err(error(&key, "must contain a program and its arguments"));
        }
        let unknown = command.iter().flat_map(|part| placeholders(part)).find(|n| !TRAINER_PLACEHOLDERS.contains(n));
        if let Some(unknown) = unknown {
            let known: Vec<String> = TRAINER_PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
            return Err(error(&key, format!("has {{{unknown}}}; known are {}", known.join(", "))));
        }
    }
    Ok(())
}

/// Names between braces.
fn placeholders(part: &str) -> impl Iterator<Item = &str> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    part.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name)).filter(move |n| is_name(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), ConfigError> {
        let config: ExecutorsConfig =
            figment::Figment::from(figment::providers::Serialized::defaults(ExecutorsConfig::default()))
                .merge(<figment::providers::Toml as figment::providers::Format>::string(text))
                .extract()
                .unwrap_or_else(|e| panic!("{text}: {e}"));
        config.check()
    }

    #[test]
    fn places_that_can_be_used() {
        for text in [
            "",
            "kinds = { ppo = 'gpu', sft = 'local' }\n[places.gpu]\ntype = 'ray'\nurl = 'http://head:8265'\ngpus = 1\n\
             resources = { h200 = 1 }\nruntime_env = { env_vars = { A = 'b' } }\ntoken = 't'",
            "[places.slurm]\ntype = 'command'\ncommand = ['sbatch', '--wait', '--wrap', '{run}']\n\
             stop_command = ['scancel', '--name={id}']\nenvironment = ['SLURM_CONF']",
            "[places.torch]\ntype = 'command'\ncommand = ['srun', '-o', '{log}', '{argv}', '${HOME}']\ndetached = true",
        ] {
            checked(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn trainers_that_cannot_run_are_named() {
        let one = |command: &[&str]| {
            let command = command.iter().map(|part| (*part).to_owned()).collect();
            check_trainers(&[("dpo".to_owned(), command)].into())
        };
        one(&["python3", "dpo.py", "{job}", "--out={output}"]).expect("fine");
        for wrong in [&[][..], &[""], &["python3", "{run}"]] {
            assert_eq!(one(wrong).expect_err("refused").key, "trainers.dpo", "{wrong:?}");
        }
    }

    #[test]
    fn places_that_cannot_name_the_key() {
        for (text, key) in [
            ("kinds = { ppo = 'nowhere' }", "kinds.ppo"),
            ("[places.Big]\ntype = 'ray'", "places.Big"),
            ("[places.local]\ntype = 'ray'", "places.local"),
            ("[places.a]\nslots = 2", "places.a.type"),
            ("[places.a]\ntype = 'ray'", "places.a.url"),
            ("[places.a]\ntype = 'ray'\nurl = 'head:8265'", "places.a.url"),
            ("[places.a]\ntype = 'ray'\nurl = 'http://u:p@head'", "places.a.url"),
            ("[places.a]\ntype = 'ray'\nurl = 'http://head'\ngpus = -1", "places.a.gpus"),
            ("[places.a]\ntype = 'ray'\nurl = 'http://head'\ncommand = ['x']", "places.a.command"),
            ("[places.a]\ntype = 'ray'\nurl = 'http://head'\nslots = 0", "places.a.slots"),
            ("[places.a]\ntype = 'command'", "places.a.command"),
            ("[places.a]\ntype = 'command'\ncommand = ['sbatch']", "places.a.command"),
            ("[places.a]\ntype = 'command'\ncommand = ['x', '{argv} y']", "places.a.command"),
            ("[places.a]\ntype = 'command'\ncommand = ['x', '{argv}', '{secret}']", "places.a.command"),
            ("[places.a]\ntype = 'command'\ncommand = ['x', '{argv}']\ntoken = 't'", "places.a.token"),
            ("[places.a]\ntype = 'command'\ncommand = ['x', '{argv}']\nenvironment = ['A=b']", "places.a.environment"),
        ] {
            let refused = checked(text).expect_err(text);
            assert_eq!(refused.key, format!("executors.{key}"), "{text}: {refused}");
        }
    }
}
