//! How a supervisor and a trainer on another machine speak: by files in the attempt's directory, which both reach under
//! the same path. The trainer appends what it says to `said.jsonl` and rewrites `heartbeat.json`; the supervisor
//! rewrites `told.json` with each extension of the lease. `current` beside the attempts names the only one that may
//! work, so that a trainer that starts or wakes late ends itself.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jobs::materialise::write_whole;

/// Directory of all attempts in a job's directory.
pub const ATTEMPTS: &str = "attempts";
/// Names the attempt that may work.
const CURRENT: &str = "current";
const TOLD: &str = "told.json";
const HEARTBEAT: &str = "heartbeat.json";
const SAID: &str = "said.jsonl";
/// What the trainer's program prints, where the executor catches it.
pub const LOG: &str = "log.txt";
/// Longer lines are dropped: a runaway trainer must not fill the supervisor's memory.
const LINE_BYTES: usize = 1 << 20;
/// Read at once.
const PIECE: u64 = 4 << 20;

/// What the supervisor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Changes with every word of the supervisor.
    pub beat: u64,
    /// How long the trainer may go on when no further word comes.
    pub lease_seconds: u64,
    /// Write a checkpoint and end.
    pub stop: bool,
}

/// What the trainer says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Changes twice a second.
    pub beat: u64,
    pub host: String,
    pub pid: u32,
}

/// The directory of one attempt.
#[derive(Clone, Debug)]
pub struct Channel {
    dir: PathBuf,
}

/// Replaces a file as a whole, so that no reader sees half of it. It is not synced: what a crash takes is written again.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

impl Channel {
    /// The attempt `id` of the job at `job_dir`.
    pub fn new(job_dir: &Path, id: &str) -> Self {
        Self { dir: job_dir.join(ATTEMPTS).join(id) }
    }

    /// The attempt whose directory a trainer was given.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    fn id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Makes the directory, and this attempt the only one that may work.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        only(self.dir.parent().unwrap_or(&self.dir), &self.id())
    }

    /// False when another attempt has begun since.
    pub fn is_current(&self) -> bool {
        let current = self.dir.with_file_name(CURRENT);
        std::fs::read_to_string(current).is_ok_and(|name| name.trim() == self.id())
    }

    /// # Errors
    /// What the file system says.
    pub fn tell(&self, told: Told) -> std::io::Result<()> {
        replace(&self.dir.join(TOLD), &serde_json::to_vec(&told)?)
    }

    /// `None` while nothing was told.
    pub fn told(&self) -> Option<Told> {
        serde_json::from_slice(&std::fs::read(self.dir.join(TOLD)).ok()?).ok()
    }

    /// # Errors
    /// What the file system says.
    pub fn beat(&self, heartbeat: &Heartbeat) -> std::io::Result<()> {
        replace(&self.dir.join(HEARTBEAT), &serde_json::to_vec(heartbeat)?)
    }

    /// `None` while the trainer has not begun.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        serde_json::from_slice(&std::fs::read(self.dir.join(HEARTBEAT)).ok()?).ok()
    }

    /// Where the trainer writes its lines.
    ///
    /// # Errors
    /// What the file system says.
    pub fn voice(&self) -> std::io::Result<std::fs::File> {
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join(SAID))
    }

    /// What the trainer has said is in the database by now.
    pub fn forget_said(&self) {
        let _ = std::fs::remove_file(self.dir.join(SAID));
    }

    /// The end of the log, at most `bytes` of it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn log_tail(&self, bytes: u64) -> std::io::Result<String> {
        let mut file = std::fs::File::open(self.log())?;
        let from = file.metadata()?.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(bytes).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Lets only the attempt `id` of a job work; an id that no attempt has ends them all.
///
/// # Errors
/// What the file system says.
pub fn only(attempts: &Path, id: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(attempts)?;
    write_whole(&attempts.join(CURRENT), id.as_bytes())
}

/// Reads a growing file by whole lines.
#[derive(Debug, Default)]
pub struct Lines {
    offset: u64,
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that have come since the last call. A line that has not ended yet is kept for the next one.
    ///
    /// # Errors
    /// What the file system says; a file that is not there has no lines.
    pub fn more(&mut self, channel: &Channel) -> std::io::Result<Vec<String>> {
        let mut file = match std::fs::File::open(channel.dir.join(SAID)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.take(PIECE).read_to_end(&mut self.rest)?;
        self.offset += read as u64;
        let mut lines = Vec::new();
        let mut from = 0;
        while let Some(length) = self.rest[from..].iter().position(|b| *b == b'\n') {
            if length <= LINE_BYTES {
                lines.push(String::from_utf8_lossy(&self.rest[from..from + length]).into_owned());
            }
            from += length + 1;
        }
        self.rest.drain(..from);
        if self.rest.len() > LINE_BYTES {
            // The start of an over-long line; what follows until its end is no line of ours either.
            self.rest.truncate(LINE_BYTES + 1);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_whole_and_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let channel = Channel::new(dir.path(), "a1");
        channel.begin().expect("begun");
        let mut lines = Lines::default();
        assert!(lines.more(&channel).expect("no file").is_empty());
        let mut voice = channel.voice().expect("a file");
        voice.write_all(b"one\ntw").expect("written");
        assert_eq!(lines.more(&channel).expect("read"), ["one"]);
        assert!(lines.more(&channel).expect("read").is_empty());
        voice.write_all(b"o\n\xffx\n").expect("written");
        assert_eq!(lines.more(&channel).expect("read"), ["two", "\u{fffd}x"]);
        // An endless line costs no memory, and the next one is heard again.
        for _ in 0..4 {
            voice.write_all(&vec![b'y'; 1 << 20]).expect("written");
            assert!(lines.more(&channel).expect("read").is_empty());
            assert!(lines.rest.len() <= LINE_BYTES + 1);
        }
        voice.write_all(b"\nthree\n").expect("written");
        assert_eq!(lines.more(&channel).expect("read"), ["three"]);
    }

    #[test]
    fn one_attempt_is_current() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, second) = (Channel::new(dir.path(), "a1"), Channel::new(dir.path(), "a2"));
        assert!(!first.is_current());
        first.begin().expect("begun");
        assert!(Channel::at(first.dir()).is_current());
        second.begin().expect("begun");
        assert!(!first.is_current() && second.is_current());
        only(&dir.path().join(ATTEMPTS), "local").expect("written");
        assert!(!second.is_current());
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let channel = Channel::new(dir.path(), "a");
        channel.begin().expect("begun");
        assert_eq!((channel.told(), channel.heartbeat()), (None, None));
        let told = Told { beat: 3, lease_seconds: 30, stop: true };
        channel.tell(told).expect("told");
        let heartbeat = Heartbeat { beat: 9, host: "node".into(), pid: 4 };
        channel.beat(&heartbeat).expect("beaten");
        assert_eq!((channel.told(), channel.heartbeat()), (Some(told), Some(heartbeat)));
        std::fs::write(channel.log(), "0123456789").expect("written");
        assert_eq!(channel.log_tail(4).expect("a log"), "6789");
    }
}
