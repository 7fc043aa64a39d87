//! The trainer's side of the files: it begins only for a supervisor that lives and when its attempt is the current one,
//! writes its heartbeat, hears the lease and the word to stop, and ends itself when it has been superseded.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::channel::{Channel, Heartbeat, Told};
use crate::jobs::child::{LEASE_RAN_OUT, Lease};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the supervisor's first word may take to be seen here.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// How a trainer's attempt begins.
pub(in crate::jobs) enum Begun {
    /// The recipe may run; its lines go into this file.
    Work(File),
    /// It was asked to stop before it began.
    Stopped(File),
    /// Another attempt has taken its place, or nobody waits for it; with the words for it.
    Superseded(String),
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    name.map(|name| name.trim().to_owned()).unwrap_or_else(|_| "an unknown host".to_owned())
}

/// Waits for the supervisor, and leaves a thread behind that looks at the files as long as the process lives.
/// `terminated` says whether the process was asked to end.
///
/// # Errors
/// An attempt's directory that cannot be written.
pub(in crate::jobs) fn begin(
    dir: &Path,
    stop: &Arc<AtomicBool>,
    lease: &Arc<Lease>,
    terminated: fn() -> bool,
) -> std::io::Result<Begun> {
    let channel = Channel::at(dir);
    let mut heartbeat = Heartbeat { beat: 0, host: host(), pid: std::process::id() };
    let started = Instant::now();
    let mut first: Option<Told> = None;
    let told = loop {
        if !channel.is_current() {
            return Ok(Begun::Superseded("another attempt of this job has begun since".to_owned()));
        }
        heartbeat.beat += 1;
        channel.beat(&heartbeat)?;
        match (channel.told(), first) {
            (Some(told), _) if told.stop => return Ok(Begun::Stopped(channel.voice()?)),
            _ if terminated() => return Ok(Begun::Stopped(channel.voice()?)),
            // A second word: the supervisor lives, and has not only left its first one behind.
            (Some(told), Some(before)) if told.beat != before.beat => break told,
            (Some(told), None) => first = Some(told),
            _ => {}
        }
        let patience = first.map_or(FIRST_WORD, |told| FIRST_WORD.max(Duration::from_secs(told.lease_seconds)));
        if started.elapsed() >= patience {
            let seconds = patience.as_secs();
            return Ok(Begun::Superseded(format!("nothing was heard of the supervisor for {seconds} s")));
        }
        std::thread::sleep(LOOK);
    };
    lease.extend(told.lease_seconds);
    let voice = channel.voice()?;
    let (stop, lease) = (stop.clone(), lease.clone());
    std::thread::spawn(move || attend(&channel, heartbeat, told, &stop, &lease));
    Ok(Begun::Work(voice))
}

/// Looks at the files for ever.
fn attend(channel: &Channel, mut heartbeat: Heartbeat, mut heard: Told, stop: &AtomicBool, lease: &Lease) {
    loop {
        std::thread::sleep(LOOK);
        if !channel.is_current() && !channel.is_current() {
            eprintln!("another attempt of this job has begun: this one ends");
            std::process::exit(LEASE_RAN_OUT.into());
        }
        heartbeat.beat += 1;
        if let Err(error) = channel.beat(&heartbeat) {
            // The supervisor sees that it is not heard of; the lease says how long that may last.
            eprintln!("the heartbeat cannot be written: {error}");
        }
        if let Some(told) = channel.told().filter(|told| *told != heard) {
            if told.beat != heard.beat {
                lease.extend(told.lease_seconds);
            }
            if told.stop {
                stop.store(true, Relaxed);
            }
            heard = told;
        }
    }
}
