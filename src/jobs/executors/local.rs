//! Attempts in child processes of this program.

use std::time::Duration;

use async_trait::async_trait;

use super::{Attempt, Executor, Work};
use crate::jobs::process::{Launch, Running, Said};
use crate::store::Fence;

pub(super) struct Local {
    launch: Launch,
    threads: usize,
    grace: Duration,
}

impl Local {
    pub(super) fn new(launch: Launch, threads: usize, grace: Duration) -> Self {
        Self { launch, threads, grace }
    }
}

#[async_trait]
impl Executor for Local {
    fn reference(&self, _: &Fence) -> Option<String> {
        None
    }

    async fn start(&self, work: Work<'_>) -> std::io::Result<Box<dyn Attempt>> {
        Ok(Box::new(Running::start(&self.launch, work.job_dir, self.threads, self.grace).await?))
    }
}

#[async_trait]
impl Attempt for Running {
    async fn said(&mut self) -> Option<Said> {
        self.said.recv().await
    }

    async fn extend_lease(&mut self, seconds: i64) {
        Running::extend_lease(self, seconds).await;
    }

    async fn ask_to_stop(&mut self, patience: Duration) {
        Running::ask_to_stop(self, patience).await;
    }

    fn press(&mut self) {
        Running::press(self);
    }

    fn kill(&mut self) {
        Running::kill(self);
    }

    async fn end(self: Box<Self>) -> String {
        let (status, tail) = Running::end(*self).await;
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if tail.is_empty() { how } else { format!("{how}\n{tail}") }
    }
}
