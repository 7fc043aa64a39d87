//! One training child: how it is started, listened to, asked to stop, and at last killed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::wire::{LEASE, Line, STOP};

/// Which program runs a job. `--job-dir DIR` is added to the arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl Launch {
    /// This very binary's `train-job`.
    ///
    /// # Errors
    /// When the system does not tell the path of the running program.
    pub fn this_program() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, args: vec!["train-job".into()] })
    }
}

/// What stdout brought.
pub(super) enum Said {
    Line(Line),
    /// Not one of ours: something printed to stdout.
    Other(String),
}

/// Last words kept for the error of a crashed job.
const TAIL_LINES: usize = 12;
/// Longer lines are cut: a child gone mad must not fill the parent's memory.
const LINE_BYTES: usize = 1 << 20;
/// Training gives way to serving.
const NICENESS: libc::c_int = 5;

pub(super) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    pub said: mpsc::Receiver<Said>,
    stderr: JoinHandle<VecDeque<String>>,
    /// Ends the thread that the child's life hangs on.
    _anchor: oneshot::Sender<()>,
    stop: Stop,
    /// From the request to stop to SIGTERM.
    patience: Duration,
    /// From SIGTERM to SIGKILL.
    grace: Duration,
}

/// Whether a child gets this variable of its parent's environment. A list of what it needs, not of what it must not
/// have: keys, database addresses and credentials stay with the server, because a child parses models' files.
pub fn is_passed_on(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "RUST_MIN_STACK",
        "RAYON_NUM_THREADS",
        "OMP_NUM_THREADS",
        "GLIBC_TUNABLES",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "INSTRUCTD_MAX_ISA",
        "LLVM_PROFILE_FILE",
    ];
    const PREFIXES: &[&str] = &["LC_", "CUDA_", "NVIDIA_", "CANDLE_", "MALLOC_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// How far stopping has gone.
enum Stop {
    No,
    Asked(Instant),
    Terminated(Instant),
    Killed,
}

/// Sends lines (cut to `LINE_BYTES`, invalid UTF-8 replaced) until the end, or until nobody listens.
async fn send_lines<T>(input: impl AsyncRead + Unpin, to: mpsc::Sender<T>, as_t: fn(String) -> T) {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    while let Ok(chunk) = input.fill_buf().await {
        if chunk.is_empty() {
            break;
        }
        let (part, used) = match chunk.iter().position(|b| *b == b'\n') {
            Some(end) => (&chunk[..end], end + 1),
            None => (chunk, chunk.len()),
        };
        let whole = used > part.len();
        line.extend_from_slice(&part[..part.len().min(LINE_BYTES - line.len())]);
        input.consume(used);
        if whole {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            if to.send(as_t(text)).await.is_err() {
                return;
            }
        }
    }
    if !line.is_empty() {
        let _ = to.send(as_t(String::from_utf8_lossy(&line).into_owned())).await;
    }
}

/// A line of a trainer.
pub(super) fn said(text: String) -> Said {
    serde_json::from_str(&text).map(Said::Line).unwrap_or(Said::Other(text))
}

/// Logs lines as they come; gives the last ones when there are no more.
async fn keep_tail(mut lines: mpsc::Receiver<String>) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    while let Some(text) = lines.recv().await {
        tracing::debug!(target: "instructd::job", "{text}");
        if tail.len() == TAIL_LINES {
            // The backtrace that follows must not push out what a panic said.
            let said = tail.front().is_some_and(|line: &String| line.contains("panicked at"));
            tail.remove(if said { 2 } else { 0 });
        }
        tail.push_back(text.chars().take(500).collect());
    }
    tail
}

/// Starts on a thread of its own that lives as long as the child is watched: Linux ties "tell me when my
/// parent dies" to the thread that forked, and a runtime's threads may end before the process does.
async fn spawn_anchored(mut command: Command) -> std::io::Result<(Child, oneshot::Sender<()>)> {
    let (started, starting) = oneshot::channel();
    let (anchor, anchored) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("job-anchor".into()).spawn(move || {
        let child = {
            let _inside = runtime.enter();
            command.spawn()
        };
        if started.send(child).is_ok() {
            let _ = anchored.blocking_recv();
        }
    })?;
    let child = starting.await.map_err(std::io::Error::other)??;
    Ok((child, anchor))
}

impl Running {
    /// Starts the child on `job_dir`. `threads` 0 leaves its thread count to itself; `grace` is the time
    /// between SIGTERM and SIGKILL.
    pub(super) async fn start(
        launch: &Launch,
        job_dir: &Path,
        threads: usize,
        grace: Duration,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .arg("--job-dir")
            .arg(job_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed_on)));
        if threads > 0 {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        // Its own group, so that Ctrl-C in a terminal reaches the parent only, which then asks politely.
        #[cfg(unix)]
        command.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: both are direct system calls, safe between fork and exec; their failure is no reason not to run.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
                Ok(())
            });
        }
        let (mut child, anchor) = spawn_anchored(command).await?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(std::io::Error::other("the child has no pipes"));
        };
        let (tell, heard) = mpsc::channel(256);
        tokio::spawn(send_lines(stdout, tell, said));
        let (log, lines) = mpsc::channel(256);
        tokio::spawn(send_lines(stderr, log, |text| text));
        let stderr = tokio::spawn(keep_tail(lines));
        Ok(Self {
            child,
            stdin: Some(stdin),
            said: heard,
            stderr,
            _anchor: anchor,
            stop: Stop::No,
            patience: grace,
            grace,
        })
    }

    /// Tells the child how long it may go on without hearing from its parent again. A child that is not told
    /// for so long ends itself: somebody else may have its job by then.
    pub(super) async fn extend_lease(&mut self, seconds: i64) {
        if let Some(stdin) = &mut self.stdin {
            // A line that cannot be written finds a child that has gone; the exit status tells.
            let _ = stdin.write_all(format!("{LEASE} {seconds}\n").as_bytes()).await;
        }
    }

    /// Asks the recipe to stop after its step, and waits `patience` before pressing. A later call can only
    /// shorten the wait: a shutdown does not stand back for a cancel.
    pub(super) async fn ask_to_stop(&mut self, patience: Duration) {
        if !matches!(self.stop, Stop::No) {
            self.patience = self.patience.min(patience);
            return;
        }
        self.patience = patience;
        self.stop = Stop::Asked(Instant::now());
        // A line that cannot be written finds a child that has gone; the exit status tells.
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(format!("{STOP}\n").as_bytes()).await;
        }
    }

    /// Goes on with stopping when its time has come: SIGTERM, then SIGKILL to the whole group.
    pub(super) fn press(&mut self) {
        self.stop = match self.stop {
            Stop::Asked(since) if since.elapsed() >= self.patience => {
                self.signal(libc::SIGTERM);
                Stop::Terminated(Instant::now())
            }
            Stop::Terminated(since) if since.elapsed() >= self.grace => {
                self.signal(libc::SIGKILL);
                Stop::Killed
            }
            Stop::No => Stop::No,
            Stop::Asked(since) => Stop::Asked(since),
            Stop::Terminated(since) => Stop::Terminated(since),
            Stop::Killed => Stop::Killed,
        };
    }

    /// At once, for a job that belongs to somebody else now.
    pub(super) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.stop = Stop::Killed;
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(pid) = self.child.id() {
            // SAFETY: the child has not been waited for (id() is Some), so its pid and group are its own.
            unsafe { libc::kill(-pid.cast_signed(), signal) };
        }
    }

    /// Waits for the end; returns the exit status and the last lines of stderr.
    pub(super) async fn end(mut self) -> (std::io::Result<ExitStatus>, String) {
        drop(self.stdin.take());
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    // It closed its stdout but lives on: stopping goes its way here too.
                    if matches!(self.stop, Stop::No) {
                        self.stop = Stop::Asked(Instant::now());
                    }
                    self.press();
                }
            }
        };
        // A grandchild may hold the pipe open: what was said by now is what counts.
        let tail = tokio::time::timeout(Duration::from_secs(1), self.stderr).await;
        let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
        (status, Vec::from(tail).join("\n"))
    }
}
