//! The channel between a supervisor and a trainer on another machine: files in the attempt's directory, which both see
//! under the same path. The trainer appends its output to `said.jsonl` and rewrites `heartbeat.json`; the supervisor
//! rewrites `told.json` with each extension of the lease. `current`, in the directory of the attempts, names the only
//! one that may run, so that a trainer that starts or resumes late exits.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::files::write_atomically;

/// Directory of all attempts in a job's directory.
pub const ATTEMPTS: &str = "attempts";
/// File that names the attempt that may run.
const CURRENT: &str = "current";
const MESSAGE: &str = "told.json";
const HEARTBEAT: &str = "heartbeat.json";
const OUTPUT: &str = "said.jsonl";
/// File of the trainer's standard output and error, if the executor captures them.
pub const LOG: &str = "log.txt";
/// Longer lines are dropped: a faulty trainer must not fill the supervisor's memory.
const LINE_BYTES: usize = 1 << 20;
/// Most bytes of output that are read in one call.
const READ_BYTES: u64 = 4 << 20;

/// The supervisor's current message to the trainer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorMessage {
    /// Counter that changes with every message.
    pub beat: u64,
    /// Seconds that the trainer may go on without a further message.
    pub lease_seconds: u64,
    /// Whether the trainer should write a checkpoint and exit.
    pub stop: bool,
}

/// A sign of life of the trainer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counter that changes twice a second.
    pub beat: u64,
    pub host: String,
    pub pid: u32,
}

/// The directory of one attempt.
#[derive(Clone, Debug)]
pub struct Channel {
    dir: PathBuf,
}

/// Replaces a file atomically, so that no reader sees part of it. It is not synced: after a crash it is written again.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

impl Channel {
    /// The channel of the attempt `id` of the job at `job_dir`.
    pub fn new(job_dir: &Path, id: &str) -> Self {
        Self { dir: job_dir.join(ATTEMPTS).join(id) }
    }

    /// The channel in the attempt directory `dir`, which a trainer was given.
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

    /// Creates the directory and makes this attempt the only one that may run.
    ///
    /// # Errors
    /// I/O errors.
    pub fn begin(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        set_current(self.dir.parent().unwrap_or(&self.dir), &self.id())
    }

    /// Whether this attempt may run; false once another attempt has begun.
    pub fn is_current(&self) -> bool {
        let current = self.dir.with_file_name(CURRENT);
        std::fs::read_to_string(current).is_ok_and(|name| name.trim() == self.id())
    }

    /// # Errors
    /// I/O errors.
    pub fn send_message(&self, message: SupervisorMessage) -> std::io::Result<()> {
        replace(&self.dir.join(MESSAGE), &serde_json::to_vec(&message)?)
    }

    /// The supervisor's last message; `None` before the first one.
    pub fn message(&self) -> Option<SupervisorMessage> {
        serde_json::from_slice(&std::fs::read(self.dir.join(MESSAGE)).ok()?).ok()
    }

    /// # Errors
    /// I/O errors.
    pub fn write_heartbeat(&self, heartbeat: &Heartbeat) -> std::io::Result<()> {
        replace(&self.dir.join(HEARTBEAT), &serde_json::to_vec(heartbeat)?)
    }

    /// The trainer's last heartbeat; `None` before the first one.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        serde_json::from_slice(&std::fs::read(self.dir.join(HEARTBEAT)).ok()?).ok()
    }

    /// Opens the file to which the trainer appends its output.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open_output(&self) -> std::io::Result<std::fs::File> {
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join(OUTPUT))
    }

    /// Removes the trainer's output, once it is in the database.
    pub fn remove_output(&self) {
        let _ = std::fs::remove_file(self.dir.join(OUTPUT));
    }

    /// The last `bytes` bytes of the log.
    ///
    /// # Errors
    /// I/O errors.
    pub fn log_tail(&self, bytes: u64) -> std::io::Result<String> {
        let mut file = std::fs::File::open(self.log())?;
        let from = file.metadata()?.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(bytes).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Lets only the attempt `id` of a job run; an id that no attempt has ends them all.
///
/// # Errors
/// I/O errors.
pub fn set_current(attempts: &Path, id: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(attempts)?;
    write_atomically(&attempts.join(CURRENT), id.as_bytes())
}

/// Reads the trainer's output by whole lines while it grows.
#[derive(Debug, Default)]
pub struct OutputReader {
    offset: u64,
    rest: Vec<u8>,
}

impl OutputReader {
    /// The lines written since the last call. An incomplete line is kept for the next call.
    ///
    /// # Errors
    /// I/O errors; a missing file has no lines.
    pub fn read_lines(&mut self, channel: &Channel) -> std::io::Result<Vec<String>> {
        let mut file = match std::fs::File::open(channel.dir.join(OUTPUT)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.take(READ_BYTES).read_to_end(&mut self.rest)?;
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
            // The start of an over-long line: the rest of it is dropped too.
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
    fn lines_are_read_whole_and_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let channel = Channel::new(dir.path(), "a1");
        channel.begin().expect("begun");
        let mut lines = OutputReader::default();
        assert!(lines.read_lines(&channel).expect("no file").is_empty());
        let mut output = channel.open_output().expect("a file");
        output.write_all(b"one\ntw").expect("written");
        assert_eq!(lines.read_lines(&channel).expect("read"), ["one"]);
        assert!(lines.read_lines(&channel).expect("read").is_empty());
        output.write_all(b"o\n\xffx\n").expect("written");
        assert_eq!(lines.read_lines(&channel).expect("read"), ["two", "\u{fffd}x"]);
        // An endless line takes no memory, and the line after it is read.
        for _ in 0..4 {
            output.write_all(&vec![b'y'; 1 << 20]).expect("written");
            assert!(lines.read_lines(&channel).expect("read").is_empty());
            assert!(lines.rest.len() <= LINE_BYTES + 1);
        }
        output.write_all(b"\nthree\n").expect("written");
        assert_eq!(lines.read_lines(&channel).expect("read"), ["three"]);
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
        set_current(&dir.path().join(ATTEMPTS), "local").expect("written");
        assert!(!second.is_current());
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let channel = Channel::new(dir.path(), "a");
        channel.begin().expect("begun");
        assert_eq!((channel.message(), channel.heartbeat()), (None, None));
        let message = SupervisorMessage { beat: 3, lease_seconds: 30, stop: true };
        channel.send_message(message).expect("sent");
        let heartbeat = Heartbeat { beat: 9, host: "node".into(), pid: 4 };
        channel.write_heartbeat(&heartbeat).expect("written");
        assert_eq!((channel.message(), channel.heartbeat()), (Some(message), Some(heartbeat)));
        std::fs::write(channel.log(), "0123456789").expect("written");
        assert_eq!(channel.log_tail(4).expect("a log"), "6789");
    }
}
