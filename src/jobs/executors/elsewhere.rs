//! Attempts at a place that is not this process: handed over, followed by their files and by what the place says, and
//! stopped. A trainer's own heartbeat and last word count; that a place calls it running proves nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::channel::{Channel, Heartbeat, Lines, Told};
use super::{Attempt, AttemptState, Executor, Place, Refusal, Submission, Work, attempt_id};
use crate::config::PlaceConfig;
use crate::jobs::process::{Launch, Said, said};
use crate::jobs::wire::{Line, SPEC, Spec};
use crate::store::Fence;
use crate::train::TrainOutcome;

/// How often a place is asked.
const ASK: Duration = Duration::from_secs(2);
/// A place that does not answer within this time counts as away.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest pause before a place that is away is asked again to take an attempt.
const PAUSE: Duration = Duration::from_secs(15);
/// A trainer that wrote no heartbeat for this long, twice a second otherwise, has ended.
const QUIET: Duration = Duration::from_secs(3);
/// How long after its last word a trainer may take to end.
const LAST_WORD: Duration = Duration::from_secs(10);
/// Lines of the log in the error of a crash.
const TAIL_LINES: usize = 12;

/// A place, and how trainers are run there.
pub(super) struct Elsewhere {
    name: String,
    place: Arc<dyn Place>,
    launch: Launch,
    silence: Duration,
    grace: Duration,
    poll: Duration,
}

impl Elsewhere {
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
        texts.collect::<Option<_>>().ok_or_else(|| std::io::Error::other("a path is no Unicode text"))
    }
}

/// The attempt's directory: with the description of its work, and the only one that may work from now on.
fn lay_out(channel: &Channel, spec: &Spec, told: Told) -> std::io::Result<()> {
    let output_dir: PathBuf = channel.dir().join("output");
    let spec = Spec { output_dir, by_files: true, ..spec.clone() };
    channel.begin()?;
    crate::jobs::materialise::write_whole(&channel.dir().join(SPEC), &serde_json::to_vec_pretty(&spec)?)?;
    channel.tell(told)
}

#[async_trait]
impl Executor for Elsewhere {
    fn reference(&self, fence: &Fence) -> Option<String> {
        Some(format!("{}/{}", self.name, attempt_id(fence)))
    }

    async fn start(&self, work: Work<'_>) -> std::io::Result<Box<dyn Attempt>> {
        let id = attempt_id(work.fence);
        let channel = Channel::new(work.job_dir, &id);
        let told = Told { beat: 0, lease_seconds: work.lease_seconds.max(1) as u64, stop: false };
        let (laid, spec) = (channel.clone(), work.spec.clone());
        tokio::task::spawn_blocking(move || lay_out(&laid, &spec, told)).await.map_err(std::io::Error::other)??;
        let (argv, told) = (self.argv(channel.dir())?, Arc::new(Mutex::new(told)));
        let submission =
            Submission { id, kind: work.job.kind.clone(), attempt: work.fence.attempt, argv, channel: channel.clone() };
        let (say, heard) = mpsc::channel(256);
        let (orders, ordered) = watch::channel(Order::Go);
        let follower = Follower {
            place: self.place.clone(),
            name: self.name.clone(),
            work: submission,
            silence: self.silence,
            poll: self.poll,
            orders: ordered,
            say,
            told: told.clone(),
        };
        Ok(Box::new(Followed {
            channel,
            told,
            said: heard,
            orders,
            stop: None,
            patience: self.grace,
            grace: self.grace,
            following: tokio::spawn(follower.run()),
        }))
    }
}

/// How far stopping has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Go,
    /// The trainer was asked by its files.
    Stop,
    /// The place ends it.
    Terminate,
    /// And nobody waits any more.
    Kill,
}

/// The supervisor's handle of an attempt elsewhere.
struct Followed {
    channel: Channel,
    told: Arc<Mutex<Told>>,
    said: mpsc::Receiver<Said>,
    orders: watch::Sender<Order>,
    /// When the last step of stopping was taken.
    stop: Option<Instant>,
    patience: Duration,
    grace: Duration,
    following: JoinHandle<String>,
}

/// Says something to the trainer.
async fn tell(channel: &Channel, told: &Mutex<Told>, change: impl FnOnce(&mut Told)) {
    let word = {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.beat += 1;
        change(&mut told);
        *told
    };
    let at = channel.clone();
    // A trainer that is not told ends itself, and its end is seen.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || at.tell(word)).await {
        tracing::warn!(dir = %channel.dir().display(), %error, "the trainer cannot be told");
    }
}

impl Followed {
    fn order(&mut self, order: Order) {
        self.stop = Some(Instant::now());
        self.orders.send_replace(order);
    }
}

#[async_trait]
impl Attempt for Followed {
    async fn said(&mut self) -> Option<Said> {
        self.said.recv().await
    }

    async fn extend_lease(&mut self, seconds: i64) {
        tell(&self.channel, &self.told, |told| told.lease_seconds = seconds.max(1) as u64).await;
    }

    async fn ask_to_stop(&mut self, patience: Duration) {
        if *self.orders.borrow() != Order::Go {
            self.patience = self.patience.min(patience);
            return;
        }
        self.patience = patience;
        tell(&self.channel, &self.told, |told| told.stop = true).await;
        self.order(Order::Stop);
    }

    fn press(&mut self) {
        let Some(since) = self.stop else { return };
        let order = *self.orders.borrow();
        match order {
            Order::Stop if since.elapsed() >= self.patience => self.order(Order::Terminate),
            Order::Terminate if since.elapsed() >= self.grace => self.order(Order::Kill),
            _ => {}
        }
    }

    fn kill(&mut self) {
        self.order(Order::Kill);
    }

    async fn end(self: Box<Self>) -> String {
        // Whoever waits for the end reads no more, and nothing may wait for a reader. Orders stay open until the end.
        let Self { said, orders, following, .. } = *self;
        drop(said);
        let how = following.await.unwrap_or_else(|error| error.to_string());
        drop(orders);
        how
    }
}

/// The task that follows an attempt from its submission to its end.
struct Follower {
    place: Arc<dyn Place>,
    name: String,
    work: Submission,
    silence: Duration,
    poll: Duration,
    orders: watch::Receiver<Order>,
    say: mpsc::Sender<Said>,
    told: Arc<Mutex<Told>>,
}

/// What the follower has seen so far.
struct Seen {
    lines: Lines,
    heartbeat: Option<Heartbeat>,
    /// When the heartbeat last changed; before the first one, when the attempt was handed over or began.
    heard: Instant,
    /// The trainer said how it ended.
    last_word: Option<Instant>,
    state: AttemptState,
    asked: Option<Instant>,
    terminated: bool,
}

impl Follower {
    async fn run(mut self) -> String {
        match self.submit().await {
            Ok(()) => {}
            Err(how) => return how,
        }
        let how = self.watch().await;
        let channel = self.work.channel.clone();
        let _ = tokio::task::spawn_blocking(move || channel.forget_said()).await;
        how
    }

    async fn note(&self, message: String) {
        let event = Line::Event { kind: "log".into(), data: json!({"message": message}) };
        let _ = self.say.send(Said::Line(event)).await;
    }

    /// Ends as a recipe that was asked to stop before it began.
    async fn stopped(&self) -> String {
        let _ = self.say.send(Said::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint: None }))).await;
        "stopped before it began".to_owned()
    }

    fn order(&self) -> Order {
        *self.orders.borrow()
    }

    /// Waits, or until there is an order.
    async fn pause(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            Ok(()) = self.orders.changed() => {}
        }
    }

    /// Hands the attempt over, as often as the place is away. `Err` = the attempt has ended, with the words for it.
    async fn submit(&mut self) -> Result<(), String> {
        let mut pause = self.poll.max(Duration::from_millis(100));
        let mut told = false;
        loop {
            if self.order() >= Order::Stop {
                return Err(self.stopped().await);
            }
            let answer = tokio::time::timeout(ANSWER * 2, self.place.submit(&self.work)).await;
            let away = match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Refusal::Permanent(error))) => {
                    let error = format!("'{}' did not take the job: {error}", self.name);
                    let _ = self.say.send(Said::Line(Line::Failed { error: error.clone() })).await;
                    return Err(error);
                }
                Ok(Err(Refusal::Transient(error))) => error,
                Err(_) => "no answer in time".to_owned(),
            };
            if !told {
                told = true;
                self.note(format!("'{}' cannot take the job now, it is asked again: {away}", self.name)).await;
            }
            self.pause(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    async fn watch(&mut self) -> String {
        let mut seen = Seen {
            lines: Lines::default(),
            heartbeat: None,
            heard: Instant::now(),
            last_word: None,
            state: AttemptState::Waiting,
            asked: None,
            terminated: false,
        };
        loop {
            self.look(&mut seen).await;
            if seen.asked.is_none_or(|then| then.elapsed() >= ASK.min(self.poll * 4)) {
                self.ask(&mut seen).await;
            }
            if let Some(how) = self.ended(&mut seen).await {
                return how;
            }
            self.pause(self.poll).await;
        }
    }

    /// Passes on what the trainer has written since the last look.
    async fn look(&self, seen: &mut Seen) {
        let (channel, mut lines) = (self.work.channel.clone(), std::mem::take(&mut seen.lines));
        let looked = tokio::task::spawn_blocking(move || {
            let more = lines.more(&channel);
            (lines, more, channel.heartbeat())
        });
        let Ok((lines, more, heartbeat)) = looked.await else { return };
        seen.lines = lines;
        if heartbeat.is_some() && heartbeat != seen.heartbeat {
            if let (None, Some(first)) = (&seen.heartbeat, &heartbeat) {
                self.note(format!("the trainer runs at '{}', on {}, process {}", self.name, first.host, first.pid))
                    .await;
                // It begins when it hears a second word. The lease was extended a while ago: at most a sixth of it.
                tell(&self.work.channel, &self.told, |told| told.lease_seconds = (told.lease_seconds * 3 / 4).max(1))
                    .await;
            }
            (seen.heartbeat, seen.heard) = (heartbeat, Instant::now());
        }
        for line in more.unwrap_or_default() {
            let line = said(line);
            if matches!(line, Said::Line(Line::Outcome(_) | Line::Failed { .. })) {
                seen.last_word = Some(Instant::now());
            }
            let _ = self.say.send(line).await;
        }
    }

    /// Asks the place.
    async fn ask(&self, seen: &mut Seen) {
        let before = seen.state.clone();
        let answer = tokio::time::timeout(ANSWER, self.place.state(&self.work)).await;
        seen.state = answer.unwrap_or_else(|_| AttemptState::Unknown("no answer in time".to_owned()));
        seen.asked = Some(Instant::now());
        if before == AttemptState::Waiting && seen.state == AttemptState::Running && seen.heartbeat.is_none() {
            seen.heard = Instant::now();
        }
        if let AttemptState::Unknown(error) = &seen.state
            && !matches!(before, AttemptState::Unknown(_))
        {
            tracing::warn!(place = self.name, attempt = self.work.id, error, "the place does not answer");
        }
    }

    /// How the attempt ended, if it has.
    async fn ended(&self, seen: &mut Seen) -> Option<String> {
        let silent = seen.heard.elapsed();
        if let AttemptState::Ended(how) = seen.state.clone() {
            // Its last lines may take a moment to be seen here.
            for _ in 0..5 {
                self.look(seen).await;
                if seen.last_word.is_some() {
                    break;
                }
                tokio::time::sleep(self.poll.max(Duration::from_millis(200))).await;
            }
            return Some(if seen.last_word.is_some() { how } else { self.with_last_words(how).await });
        }
        // A place that does not say so, or says so late, is not waited for.
        if seen.last_word.is_some_and(|then| silent >= QUIET || then.elapsed() >= LAST_WORD) {
            return Some("it said its last word".to_owned());
        }
        if self.orders.has_changed().is_err() {
            return Some("nobody follows it any more".to_owned());
        }
        match self.order() {
            Order::Kill => {
                let _ = tokio::time::timeout(ANSWER, self.place.stop(&self.work, true)).await;
                return Some("it was ended".to_owned());
            }
            order if order >= Order::Stop && seen.heartbeat.is_none() && seen.state == AttemptState::Waiting => {
                let _ = tokio::time::timeout(ANSWER, self.place.stop(&self.work, true)).await;
                return Some(self.stopped().await);
            }
            Order::Terminate if !seen.terminated => {
                seen.terminated = true;
                let _ = tokio::time::timeout(ANSWER, self.place.stop(&self.work, false)).await;
            }
            _ => {}
        }
        let lost = seen.state == AttemptState::Gone && silent >= LAST_WORD.min(self.silence);
        let begun = seen.heartbeat.is_some() || seen.state == AttemptState::Running;
        if lost || (begun && seen.last_word.is_none() && silent >= self.silence) {
            let _ = tokio::time::timeout(ANSWER, self.place.stop(&self.work, true)).await;
            let how = match &seen.state {
                AttemptState::Gone => format!("'{}' has lost it", self.name),
                AttemptState::Unknown(error) => {
                    format!("nothing is heard of the trainer, nor of '{}': {error}", self.name)
                }
                _ => format!("nothing was heard of the trainer for {} s", silent.as_secs()),
            };
            return Some(self.with_last_words(how).await);
        }
        None
    }

    async fn with_last_words(&self, how: String) -> String {
        let log = tokio::time::timeout(ANSWER, self.place.log(&self.work, 16 << 10)).await;
        let Ok(Ok(text)) = log else { return how };
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail: Vec<String> =
            lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|l| l.chars().take(500).collect()).collect();
        if tail.is_empty() { how } else { format!("{how}\n{}", tail.join("\n")) }
    }
}

/// An attempt that an earlier supervisor handed over, and that may still run.
pub(super) struct Former {
    place: Option<Arc<dyn Place>>,
    work: Submission,
}

impl Former {
    pub(super) fn new(place: Option<Arc<dyn Place>>, work: Submission) -> Self {
        Self { place, work }
    }

    /// Stops it and waits until its heartbeat stands still; at most twice the lease, after which it has ended itself.
    pub(super) async fn end(&self, lease: Duration) {
        let heartbeat = || {
            let channel = self.work.channel.clone();
            async move { tokio::task::spawn_blocking(move || channel.heartbeat()).await.ok().flatten() }
        };
        if let Some(place) = &self.place {
            let known = tokio::time::timeout(ANSWER, place.state(&self.work)).await;
            if !matches!(known, Ok(AttemptState::Ended(_))) {
                let _ = tokio::time::timeout(ANSWER, place.stop(&self.work, true)).await;
            }
        }
        let Some(mut last) = heartbeat().await else { return };
        let (begun, mut changed) = (Instant::now(), Instant::now());
        while changed.elapsed() < QUIET && begun.elapsed() < lease * 2 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            match heartbeat().await {
                Some(now) if now != last => (last, changed) = (now, Instant::now()),
                _ => {}
            }
        }
    }
}
