//! Runs attempts by a command: sbatch, srun, kubectl, sky, torchrun, ssh. The configuration has the command's template;
//! only names that this program generates are inserted into it, nothing from a request.

use std::collections::HashMap;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::{Child, Command};

use super::{AttemptState, Place, Refusal, Submission, quoted, shell_line};
use crate::config::PlaceConfig;
use crate::jobs::is_passed_on;

/// Time limit of the command that stops an attempt.
const STOPPING: Duration = Duration::from_secs(30);

pub(super) struct CommandPlace {
    command: Vec<String>,
    stop_command: Vec<String>,
    environment: Vec<String>,
    detached: bool,
    running: Mutex<HashMap<String, Started>>,
}

enum Started {
    Child(Child),
    Ended(ExitStatus),
}

impl CommandPlace {
    pub(super) fn new(config: &PlaceConfig) -> Self {
        Self {
            command: config.command.clone(),
            stop_command: config.stop_command.clone(),
            environment: config.environment.clone(),
            detached: config.detached,
            running: Mutex::default(),
        }
    }

    /// A template's command with the attempt's values in place of its placeholders.
    fn filled(template: &[String], work: &Submission) -> Vec<String> {
        let mut out = Vec::new();
        for part in template {
            if part == "{argv}" {
                out.extend(work.argv.iter().cloned());
                continue;
            }
            let text = part
                .replace("{id}", &work.id)
                .replace("{kind}", &work.kind)
                .replace("{attempt}", &work.attempt.to_string())
                .replace("{dir}", &work.channel.dir().to_string_lossy())
                .replace("{log}", &work.channel.log().to_string_lossy())
                .replace("{run}", &shell_line(&work.argv));
            out.push(text);
        }
        out
    }

    /// A command with few of this process's environment variables: keys and addresses are not passed on.
    fn prepared(&self, argv: &[String], work: &Submission) -> std::io::Result<Command> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(std::io::Error::other("the command of the place is empty"));
        };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(work.channel.log())?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_clear().envs(
            std::env::vars_os().filter(|(name, _)| {
                name.to_str().is_some_and(|name| is_passed_on(name) || self.environment.iter().any(|own| own == name))
            }),
        );
        // A process group of its own, so that all of it can be ended, and Ctrl-C in a terminal reaches this program
        // only.
        #[cfg(unix)]
        command.process_group(0);
        Ok(command)
    }

    fn signal(&self, id: &str, signal: libc::c_int) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Started::Child(child)) = running.get(id)
            && let Some(pid) = child.id()
        {
            // SAFETY: the child has not been waited for (id() is Some), so its pid and group are its own.
            unsafe { libc::kill(-pid.cast_signed(), signal) };
        }
    }

    /// The exit status if this process started the command and it has ended; `None` while it runs or when it is not
    /// known.
    fn exit(&self, id: &str) -> Option<Result<Option<ExitStatus>, std::io::Error>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get_mut(id)? {
            Started::Ended(status) => Some(Ok(Some(*status))),
            Started::Child(child) => match child.try_wait() {
                Ok(Some(status)) => {
                    running.insert(id.to_owned(), Started::Ended(status));
                    Some(Ok(Some(status)))
                }
                other => Some(other),
            },
        }
    }
}

#[async_trait]
impl Place for CommandPlace {
    async fn submit(&self, work: &Submission) -> Result<(), Refusal> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.contains_key(&work.id) {
            return Ok(());
        }
        // Attempts that have ended are not queried again.
        running.retain(|_, started| !matches!(started, Started::Ended(_)));
        let argv = Self::filled(&self.command, work);
        let started = self.prepared(&argv, work).and_then(|mut command| command.spawn());
        // A missing program is an error in the configuration.
        let child = started.map_err(|e| Refusal::Permanent(format!("{}: {e}", argv.first().map_or("", |p| p))))?;
        running.insert(work.id.clone(), Started::Child(child));
        Ok(())
    }

    async fn state(&self, work: &Submission) -> AttemptState {
        match self.exit(&work.id) {
            None => AttemptState::Gone,
            Some(Err(error)) => AttemptState::Unknown(error.to_string()),
            // The command may wait in a queue of its own: only the trainer's heartbeat shows that it runs.
            Some(Ok(None)) => AttemptState::Waiting,
            Some(Ok(Some(status))) if self.detached && status.success() => AttemptState::Waiting,
            Some(Ok(Some(status))) => AttemptState::Ended(format!("the command ended: {status}")),
        }
    }

    async fn stop(&self, work: &Submission, force: bool) {
        if !self.stop_command.is_empty() {
            let argv = Self::filled(&self.stop_command, work);
            let stopping = async { self.prepared(&argv, work)?.kill_on_drop(true).status().await };
            match tokio::time::timeout(STOPPING, stopping).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => tracing::warn!(attempt = work.id, %status, "the stop command failed"),
                Ok(Err(error)) => tracing::warn!(attempt = work.id, %error, "the stop command did not start"),
                Err(_) => tracing::warn!(attempt = work.id, "the stop command took too long"),
            }
        }
        self.signal(&work.id, if force { libc::SIGKILL } else { libc::SIGTERM });
    }

    async fn log(&self, work: &Submission, bytes: u64) -> Result<String, String> {
        let channel = work.channel.clone();
        let read = tokio::task::spawn_blocking(move || channel.log_tail(bytes)).await.map_err(|e| e.to_string())?;
        read.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "the log is on the machine that supervises the job".to_owned(),
            _ => e.to_string(),
        })
    }
}

impl std::fmt::Debug for CommandPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line: Vec<String> = self.command.iter().map(|part| quoted(part)).collect();
        f.debug_struct("CommandPlace").field("command", &line.join(" ")).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::executors::channel::Channel;

    #[test]
    fn templates_are_filled() {
        let work = Submission {
            id: "instructd-j-1-ab".into(),
            kind: "ppo".into(),
            attempt: 1,
            argv: vec!["/opt/my tools/instructd".into(), "train-job".into()],
            channel: Channel::new("/data/jobs/j".as_ref(), "instructd-j-1-ab"),
        };
        let template =
            ["sbatch", "--job-name={id}", "-o", "{log}", "--wrap", "cd {dir}; {run}", "{argv}", "${HOME}{kind}"];
        let filled = CommandPlace::filled(&template.map(str::to_owned), &work);
        let dir = "/data/jobs/j/attempts/instructd-j-1-ab";
        assert_eq!(
            filled,
            [
                "sbatch",
                "--job-name=instructd-j-1-ab",
                "-o",
                &format!("{dir}/log.txt"),
                "--wrap",
                &format!("cd {dir}; '/opt/my tools/instructd' train-job"),
                "/opt/my tools/instructd",
                "train-job",
                "${HOME}ppo",
            ]
        );
    }
}
