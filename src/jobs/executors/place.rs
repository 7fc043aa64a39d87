//! Attempts on another machine, at a place of the configuration: submitted, monitored by their files and the place's
//! state, and stopped. A trainer's heartbeat and outcome are authoritative; the state "running" of a place proves
//! nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::channel::{Channel, Heartbeat, OutputReader, SupervisorMessage};
use super::{Attempt, AttemptState, Executor, Place, Refusal, Submission, Work, attempt_id};
use crate::config::PlaceConfig;
use crate::jobs::process::{Launch, TrainerOutput, parse_output};
use crate::jobs::wire::{Line, SPEC, Spec};
use crate::store::Fence;
use crate::train::TrainOutcome;

/// How often a place is asked for an attempt's state.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A place that does not answer within this time counts as unavailable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause before an attempt is submitted again to an unavailable place.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(15);
/// A trainer writes a heartbeat twice a second; one that wrote none for this long has ended.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a trainer may take to exit after it reported its outcome.
const EXIT_GRACE: Duration = Duration::from_secs(10);
/// Number of log lines in the error of a crash.
const TAIL_LINES: usize = 12;

/// Runs attempts at a place of the configuration.
pub(super) struct PlaceExecutor {
    name: String,
    place: Arc<dyn Place>,
    launch: Launch,
    silence: Duration,
    grace: Duration,
    poll: Duration,
}

impl PlaceExecutor {
    pub(super) fn new(
        name: &str,
        config: &PlaceConfig,
        place: Arc<dyn Place>,
        launch: &Launch,
        grace: Duration,
        poll: Duration,
    ) -> Self {
        let launch = match &config.program {
            Some(program) => Launch { program: program.clone(), ..launch.clone() },
            None => launch.clone(),
        };
        let silence = Duration::from_secs(config.silence_seconds);
        Self { name: name.to_owned(), place, launch, silence, grace, poll }
    }

    pub(super) fn place(&self) -> Arc<dyn Place> {
        self.place.clone()
    }

    fn argv(&self, dir: &std::path::Path) -> std::io::Result<Vec<String>> {
        let words = [self.launch.program.as_os_str()].into_iter().chain(self.launch.args.iter().map(AsRef::as_ref));
        let words = words.chain(["--job-dir".as_ref(), dir.as_os_str()]);
        let texts = words.map(|word| word.to_str().map(str::to_owned));
        texts
            .collect::<Option<_>>()
            .ok_or_else(|| std::io::Error::other("the path of the program or of the job is not valid Unicode"))
    }
}

/// Writes the attempt's directory with its spec.json and makes it the only attempt that may run.
fn write_attempt(channel: &Channel, spec: &Spec, message: SupervisorMessage) -> std::io::Result<()> {
    let output_dir: PathBuf = channel.dir().join("output");
    let spec = Spec { output_dir, by_files: true, ..spec.clone() };
    channel.begin()?;
    crate::domain::files::write_atomically(&channel.dir().join(SPEC), &serde_json::to_vec_pretty(&spec)?)?;
    channel.send_message(message)
}

#[async_trait]
impl Executor for PlaceExecutor {
    fn reference(&self, fence: &Fence) -> Option<String> {
        Some(format!("{}/{}", self.name, attempt_id(fence)))
    }

    async fn start(&self, work: Work<'_>) -> std::io::Result<Box<dyn Attempt>> {
        let id = attempt_id(work.fence);
        let channel = Channel::new(work.job_dir, &id);
        let message = SupervisorMessage { beat: 0, lease_seconds: work.lease_seconds.max(1) as u64, stop: false };
        let (attempt_files, spec) = (channel.clone(), work.spec.clone());
        tokio::task::spawn_blocking(move || write_attempt(&attempt_files, &spec, message))
            .await
            .map_err(std::io::Error::other)??;
        let (argv, message) = (self.argv(channel.dir())?, Arc::new(Mutex::new(message)));
        let submission =
            Submission { id, kind: work.job.kind.clone(), attempt: work.fence.attempt, argv, channel: channel.clone() };
        let (output_sender, output) = mpsc::channel(256);
        let (stage, stage_changes) = watch::channel(StopStage::Running);
        let attempt_monitor = AttemptMonitor {
            place: self.place.clone(),
            name: self.name.clone(),
            work: submission,
            silence: self.silence,
            poll: self.poll,
            stage: stage_changes,
            output: output_sender,
            message: message.clone(),
        };
        Ok(Box::new(PlaceAttempt {
            channel,
            message,
            output,
            stage,
            stop: None,
            patience: self.grace,
            grace: self.grace,
            monitor: tokio::spawn(attempt_monitor.run()),
        }))
    }
}

/// How far stopping has progressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StopStage {
    Running,
    /// The trainer was asked by a message.
    Stop,
    /// The place was asked to end the attempt.
    Terminate,
    /// The attempt is ended without waiting.
    Kill,
}

/// The supervisor's handle of an attempt at a place.
struct PlaceAttempt {
    channel: Channel,
    message: Arc<Mutex<SupervisorMessage>>,
    output: mpsc::Receiver<TrainerOutput>,
    stage: watch::Sender<StopStage>,
    /// When the current stage of stopping began.
    stop: Option<Instant>,
    patience: Duration,
    grace: Duration,
    monitor: JoinHandle<String>,
}

/// Changes the message to the trainer and sends it.
async fn update_message(
    channel: &Channel,
    shared: &Mutex<SupervisorMessage>,
    change: impl FnOnce(&mut SupervisorMessage),
) {
    let message = {
        let mut message = shared.lock().unwrap_or_else(PoisonError::into_inner);
        message.beat += 1;
        change(&mut message);
        *message
    };
    let at = channel.clone();
    // A trainer that gets no message exits when its lease ends, which is observed.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || at.send_message(message)).await {
        tracing::warn!(dir = %channel.dir().display(), %error, "the message to the trainer cannot be written");
    }
}

impl PlaceAttempt {
    fn set_stage(&mut self, stage: StopStage) {
        self.stop = Some(Instant::now());
        self.stage.send_replace(stage);
    }
}

#[async_trait]
impl Attempt for PlaceAttempt {
    async fn next_output(&mut self) -> Option<TrainerOutput> {
        self.output.recv().await
    }

    async fn extend_lease(&mut self, seconds: i64) {
        update_message(&self.channel, &self.message, |message| message.lease_seconds = seconds.max(1) as u64).await;
    }

    async fn request_stop(&mut self, patience: Duration) {
        if *self.stage.borrow() != StopStage::Running {
            self.patience = self.patience.min(patience);
            return;
        }
        self.patience = patience;
        update_message(&self.channel, &self.message, |message| message.stop = true).await;
        self.set_stage(StopStage::Stop);
    }

    fn escalate(&mut self) {
        let Some(since) = self.stop else { return };
        let stage = *self.stage.borrow();
        match stage {
            StopStage::Stop if since.elapsed() >= self.patience => self.set_stage(StopStage::Terminate),
            StopStage::Terminate if since.elapsed() >= self.grace => self.set_stage(StopStage::Kill),
            _ => {}
        }
    }

    fn kill(&mut self) {
        self.set_stage(StopStage::Kill);
    }

    async fn wait(self: Box<Self>) -> String {
        // The receiver is closed first, because the monitor must not wait for a reader. The stage is kept open until
        // the end.
        let Self { output, stage, monitor, .. } = *self;
        drop(output);
        let how = monitor.await.unwrap_or_else(|error| error.to_string());
        drop(stage);
        how
    }
}

/// The task that monitors an attempt from its submission to its end.
struct AttemptMonitor {
    place: Arc<dyn Place>,
    name: String,
    work: Submission,
    silence: Duration,
    poll: Duration,
    stage: watch::Receiver<StopStage>,
    output: mpsc::Sender<TrainerOutput>,
    message: Arc<Mutex<SupervisorMessage>>,
}

/// What the monitor has observed so far.
struct Observed {
    lines: OutputReader,
    heartbeat: Option<Heartbeat>,
    /// When the heartbeat last changed; before the first one, when the attempt was submitted or began.
    last_sign: Instant,
    /// When the trainer reported its outcome.
    outcome_at: Option<Instant>,
    state: AttemptState,
    asked: Option<Instant>,
    terminated: bool,
}

impl AttemptMonitor {
    async fn run(mut self) -> String {
        match self.submit().await {
            Ok(()) => {}
            Err(how) => return how,
        }
        let how = self.watch().await;
        let channel = self.work.channel.clone();
        let _ = tokio::task::spawn_blocking(move || channel.remove_output()).await;
        how
    }

    async fn log_event(&self, message: String) {
        let event = Line::Event { kind: "log".into(), data: json!({"message": message}) };
        let _ = self.output.send(TrainerOutput::Line(event)).await;
    }

    /// Reports that the attempt was stopped before it began.
    async fn report_stopped(&self) -> String {
        let _ = self.output.send(TrainerOutput::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint: None }))).await;
        "stopped before it began".to_owned()
    }

    fn stage(&self) -> StopStage {
        *self.stage.borrow()
    }

    /// Waits for `time` or until the stage changes.
    async fn pause(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            Ok(()) = self.stage.changed() => {}
        }
    }

    /// Submits the attempt, again and again while the place is unavailable. `Err` says how the attempt ended.
    async fn submit(&mut self) -> Result<(), String> {
        let mut pause = self.poll.max(Duration::from_millis(100));
        let mut reported = false;
        loop {
            if self.stage() >= StopStage::Stop {
                return Err(self.report_stopped().await);
            }
            let answer = tokio::time::timeout(ANSWER_TIMEOUT * 2, self.place.submit(&self.work)).await;
            let unavailable = match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Refusal::Permanent(error))) => {
                    let error = format!("the place '{}' refused the job: {error}", self.name);
                    let _ = self.output.send(TrainerOutput::Line(Line::Failed { error: error.clone() })).await;
                    return Err(error);
                }
                Ok(Err(Refusal::Transient(error))) => error,
                Err(_) => "no answer within the time limit".to_owned(),
            };
            if !reported {
                reported = true;
                self.log_event(format!(
                    "the place '{}' cannot take the job now and will be asked again: {unavailable}",
                    self.name
                ))
                .await;
            }
            self.pause(pause).await;
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        }
    }

    async fn watch(&mut self) -> String {
        let mut observed = Observed {
            lines: OutputReader::default(),
            heartbeat: None,
            last_sign: Instant::now(),
            outcome_at: None,
            state: AttemptState::Waiting,
            asked: None,
            terminated: false,
        };
        loop {
            self.read_files(&mut observed).await;
            if observed.asked.is_none_or(|then| then.elapsed() >= POLL_INTERVAL.min(self.poll * 4)) {
                self.poll_place(&mut observed).await;
            }
            if let Some(how) = self.ended(&mut observed).await {
                return how;
            }
            self.pause(self.poll).await;
        }
    }

    /// Passes on what the trainer has written since the last call.
    async fn read_files(&self, observed: &mut Observed) {
        let (channel, mut lines) = (self.work.channel.clone(), std::mem::take(&mut observed.lines));
        let read = tokio::task::spawn_blocking(move || {
            let more = lines.read_lines(&channel);
            (lines, more, channel.heartbeat())
        });
        let Ok((lines, more, heartbeat)) = read.await else { return };
        observed.lines = lines;
        if heartbeat.is_some() && heartbeat != observed.heartbeat {
            if let (None, Some(first)) = (&observed.heartbeat, &heartbeat) {
                self.log_event(format!(
                    "the trainer runs at the place '{}', on {}, process {}",
                    self.name, first.host, first.pid
                ))
                .await;
                // The trainer begins with the second message. The last extension of the lease was at most a sixth of it
                // ago.
                update_message(&self.work.channel, &self.message, |message| {
                    message.lease_seconds = (message.lease_seconds * 3 / 4).max(1)
                })
                .await;
            }
            (observed.heartbeat, observed.last_sign) = (heartbeat, Instant::now());
        }
        for line in more.unwrap_or_default() {
            let line = parse_output(line);
            if matches!(line, TrainerOutput::Line(Line::Outcome(_) | Line::Failed { .. })) {
                observed.outcome_at = Some(Instant::now());
            }
            let _ = self.output.send(line).await;
        }
    }

    /// Asks the place for the attempt's state.
    async fn poll_place(&self, observed: &mut Observed) {
        let before = observed.state.clone();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.place.state(&self.work)).await;
        observed.state = answer.unwrap_or_else(|_| AttemptState::Unknown("no answer within the time limit".to_owned()));
        observed.asked = Some(Instant::now());
        if before == AttemptState::Waiting && observed.state == AttemptState::Running && observed.heartbeat.is_none() {
            observed.last_sign = Instant::now();
        }
        if let AttemptState::Unknown(error) = &observed.state
            && !matches!(before, AttemptState::Unknown(_))
        {
            tracing::warn!(place = self.name, attempt = self.work.id, error, "the place does not answer");
        }
    }

    /// How the attempt ended, if it has.
    async fn ended(&self, observed: &mut Observed) -> Option<String> {
        let silent = observed.last_sign.elapsed();
        if let AttemptState::Ended(how) = observed.state.clone() {
            // Its last lines may take a moment to become visible here.
            for _ in 0..5 {
                self.read_files(observed).await;
                if observed.outcome_at.is_some() {
                    break;
                }
                tokio::time::sleep(self.poll.max(Duration::from_millis(200))).await;
            }
            return Some(if observed.outcome_at.is_some() { how } else { self.with_log_tail(how).await });
        }
        // The place's report of the end is not waited for.
        if observed.outcome_at.is_some_and(|then| silent >= HEARTBEAT_TIMEOUT || then.elapsed() >= EXIT_GRACE) {
            return Some("the trainer reported its outcome".to_owned());
        }
        if self.stage.has_changed().is_err() {
            return Some("its supervisor has stopped monitoring it".to_owned());
        }
        match self.stage() {
            StopStage::Kill => {
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.place.stop(&self.work, true)).await;
                return Some("it was killed".to_owned());
            }
            stage
                if stage >= StopStage::Stop
                    && observed.heartbeat.is_none()
                    && observed.state == AttemptState::Waiting =>
            {
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.place.stop(&self.work, true)).await;
                return Some(self.report_stopped().await);
            }
            StopStage::Terminate if !observed.terminated => {
                observed.terminated = true;
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.place.stop(&self.work, false)).await;
            }
            _ => {}
        }
        let lost = observed.state == AttemptState::Gone && silent >= EXIT_GRACE.min(self.silence);
        let begun = observed.heartbeat.is_some() || observed.state == AttemptState::Running;
        if lost || (begun && observed.outcome_at.is_none() && silent >= self.silence) {
            let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.place.stop(&self.work, true)).await;
            let how = match &observed.state {
                AttemptState::Gone => format!("the place '{}' no longer knows the attempt", self.name),
                AttemptState::Unknown(error) => {
                    format!("no heartbeat of the trainer, and the place '{}' does not answer: {error}", self.name)
                }
                _ => format!("no heartbeat of the trainer for {} s", silent.as_secs()),
            };
            return Some(self.with_log_tail(how).await);
        }
        None
    }

    async fn with_log_tail(&self, how: String) -> String {
        let log = tokio::time::timeout(ANSWER_TIMEOUT, self.place.log(&self.work, 16 << 10)).await;
        let Ok(Ok(text)) = log else { return how };
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail: Vec<String> =
            lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|l| l.chars().take(500).collect()).collect();
        if tail.is_empty() { how } else { format!("{how}\n{}", tail.join("\n")) }
    }
}

/// An attempt that an earlier supervisor submitted and that may still run.
pub(super) struct PreviousAttempt {
    place: Option<Arc<dyn Place>>,
    work: Submission,
}

impl PreviousAttempt {
    pub(super) fn new(place: Option<Arc<dyn Place>>, work: Submission) -> Self {
        Self { place, work }
    }

    /// Stops the attempt and waits until its heartbeat no longer changes; at most twice the lease, after which it has
    /// exited.
    pub(super) async fn stop_and_wait(&self, lease: Duration) {
        let heartbeat = || {
            let channel = self.work.channel.clone();
            async move { tokio::task::spawn_blocking(move || channel.heartbeat()).await.ok().flatten() }
        };
        if let Some(place) = &self.place {
            let known = tokio::time::timeout(ANSWER_TIMEOUT, place.state(&self.work)).await;
            if !matches!(known, Ok(AttemptState::Ended(_))) {
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, place.stop(&self.work, true)).await;
            }
        }
        let Some(mut last) = heartbeat().await else { return };
        let (begun, mut changed) = (Instant::now(), Instant::now());
        while changed.elapsed() < HEARTBEAT_TIMEOUT && begun.elapsed() < lease * 2 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            match heartbeat().await {
                Some(now) if now != last => (last, changed) = (now, Instant::now()),
                _ => {}
            }
        }
    }
}
