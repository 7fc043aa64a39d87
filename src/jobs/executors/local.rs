//! Runs attempts in child processes of this program.

use std::time::Duration;

use async_trait::async_trait;

use super::{Attempt, Executor, Work};
use crate::jobs::process::{ChildProcess, Launch, TrainerOutput};
use crate::store::Fence;

pub(super) struct LocalExecutor {
    launch: Launch,
    threads: usize,
    grace: Duration,
}

impl LocalExecutor {
    pub(super) fn new(launch: Launch, threads: usize, grace: Duration) -> Self {
        Self { launch, threads, grace }
    }
}

#[async_trait]
impl Executor for LocalExecutor {
    fn reference(&self, _: &Fence) -> Option<String> {
        None
    }

    async fn start(&self, work: Work<'_>) -> std::io::Result<Box<dyn Attempt>> {
        Ok(Box::new(ChildProcess::start(&self.launch, work.job_dir, self.threads, self.grace).await?))
    }
}

#[async_trait]
impl Attempt for ChildProcess {
    async fn next_output(&mut self) -> Option<TrainerOutput> {
        self.output.recv().await
    }

    async fn extend_lease(&mut self, seconds: i64) {
        ChildProcess::extend_lease(self, seconds).await;
    }

    async fn request_stop(&mut self, patience: Duration) {
        ChildProcess::request_stop(self, patience).await;
    }

    fn escalate(&mut self) {
        ChildProcess::escalate(self);
    }

    fn kill(&mut self) {
        ChildProcess::kill(self);
    }

    async fn wait(self: Box<Self>) -> String {
        let (status, tail) = ChildProcess::wait(*self).await;
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if tail.is_empty() { how } else { format!("{how}\n{tail}") }
    }
}
