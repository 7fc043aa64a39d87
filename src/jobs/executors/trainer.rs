//! The trainer's end of the channel: it begins only when its supervisor is alive and its attempt is the current one,
//! writes its heartbeat, reads lease and stop from the supervisor's message, and exits when it has been superseded.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::channel::{Channel, Heartbeat, SupervisorMessage};
use crate::jobs::lease::{LEASE_EXPIRED, Lease};

/// How often the files are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the supervisor's first message may take to become visible here.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(60);

/// How a trainer's attempt begins.
pub(in crate::jobs) enum Start {
    /// The recipe may run; its lines go into this file.
    Work(File),
    /// The supervisor asked to stop before the recipe began; the outcome goes into this file.
    Stopped(File),
    /// Another attempt has begun, or the supervisor is gone; says which.
    Superseded(String),
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    name.map(|name| name.trim().to_owned()).unwrap_or_else(|_| "an unknown host".to_owned())
}

/// Waits for the supervisor and starts a thread that reads the files until the process ends. `terminated` returns
/// whether SIGTERM has arrived.
///
/// # Errors
/// An attempt directory that cannot be written.
pub(in crate::jobs) fn begin(
    dir: &Path,
    stop: &Arc<AtomicBool>,
    lease: &Arc<Lease>,
    terminated: fn() -> bool,
) -> std::io::Result<Start> {
    let channel = Channel::at(dir);
    let mut heartbeat = Heartbeat { beat: 0, host: host(), pid: std::process::id() };
    let started = Instant::now();
    let mut first: Option<SupervisorMessage> = None;
    let message = loop {
        if !channel.is_current() {
            return Ok(Start::Superseded("another attempt of this job has begun".to_owned()));
        }
        heartbeat.beat += 1;
        channel.write_heartbeat(&heartbeat)?;
        match (channel.message(), first) {
            (Some(message), _) if message.stop => return Ok(Start::Stopped(channel.open_output()?)),
            _ if terminated() => return Ok(Start::Stopped(channel.open_output()?)),
            // A second message shows that the supervisor is alive: the first may be left over from one that has ended.
            (Some(message), Some(before)) if message.beat != before.beat => break message,
            (Some(message), None) => first = Some(message),
            _ => {}
        }
        let patience = first
            .map_or(SUPERVISOR_TIMEOUT, |message| SUPERVISOR_TIMEOUT.max(Duration::from_secs(message.lease_seconds)));
        if started.elapsed() >= patience {
            let seconds = patience.as_secs();
            return Ok(Start::Superseded(format!("the supervisor sent no message for {seconds} s")));
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    lease.extend(message.lease_seconds);
    let output = channel.open_output()?;
    let (stop, lease) = (stop.clone(), lease.clone());
    std::thread::spawn(move || watch_files(&channel, heartbeat, message, &stop, &lease));
    Ok(Start::Work(output))
}

/// Reads the files and writes heartbeats until the process ends.
fn watch_files(
    channel: &Channel,
    mut heartbeat: Heartbeat,
    mut last: SupervisorMessage,
    stop: &AtomicBool,
    lease: &Lease,
) {
    loop {
        std::thread::sleep(POLL_INTERVAL);
        if !channel.is_current() && !channel.is_current() {
            eprintln!("another attempt of this job has begun; this one exits");
            std::process::exit(LEASE_EXPIRED.into());
        }
        heartbeat.beat += 1;
        if let Err(error) = channel.write_heartbeat(&heartbeat) {
            // The supervisor observes the missing heartbeat; the lease limits how long that lasts.
            eprintln!("the heartbeat cannot be written: {error}");
        }
        if let Some(message) = channel.message().filter(|message| *message != last) {
            if message.beat != last.beat {
                lease.extend(message.lease_seconds);
            }
            if message.stop {
                stop.store(true, Relaxed);
            }
            last = message;
        }
    }
}
