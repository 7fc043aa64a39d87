//! One child process that trains: started, read, asked to stop, and killed if it does not stop.

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
    /// `train-job` of the running program.
    ///
    /// # Errors
    /// When the path of the running program is not known.
    pub fn this_program() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, args: vec!["train-job".into()] })
    }
}

/// One line of the trainer's output.
pub(super) enum TrainerOutput {
    Line(Line),
    /// A line that is not a message: something else printed to stdout.
    Other(String),
}

/// Number of last lines of stderr kept for the error of a crashed job.
const TAIL_LINES: usize = 12;
/// Longer lines are cut: a faulty child must not fill the parent's memory.
const LINE_BYTES: usize = 1 << 20;
/// Serving has priority over training.
const NICENESS: libc::c_int = 5;

pub(super) struct ChildProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    pub output: mpsc::Receiver<TrainerOutput>,
    stderr: JoinHandle<VecDeque<String>>,
    /// Dropping it ends the thread that keeps the child alive.
    _anchor: oneshot::Sender<()>,
    stop: StopStage,
    /// From the request to stop to SIGTERM.
    patience: Duration,
    /// From SIGTERM to SIGKILL.
    grace: Duration,
}

/// Whether a child inherits this environment variable. An allow list: keys, database addresses and credentials are not
/// passed on, because a child parses models' files.
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

/// How far stopping has progressed.
enum StopStage {
    No,
    Asked(Instant),
    Terminated(Instant),
    Killed,
}

/// Sends lines (cut to `LINE_BYTES`, invalid UTF-8 replaced) until the end of `input`, or until the receiver is
/// dropped.
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

/// Parses a line of a trainer's output.
pub(super) fn parse_output(text: String) -> TrainerOutput {
    serde_json::from_str(&text).map(TrainerOutput::Line).unwrap_or(TrainerOutput::Other(text))
}

/// Logs lines as they arrive; returns the last `TAIL_LINES` at the end.
async fn keep_tail(mut lines: mpsc::Receiver<String>) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    while let Some(text) = lines.recv().await {
        tracing::debug!(target: "instructd::job", "{text}");
        if tail.len() == TAIL_LINES {
            // The backtrace after a panic must not push out its message.
            let panicked = tail.front().is_some_and(|line: &String| line.contains("panicked at"));
            tail.remove(if panicked { 2 } else { 0 });
        }
        tail.push_back(text.chars().take(500).collect());
    }
    tail
}

/// Starts the child on a thread of its own that lives until the returned sender is dropped: Linux binds
/// PR_SET_PDEATHSIG to the thread that forked, and a runtime's threads may end before the process does.
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

impl ChildProcess {
    /// Starts the child on `job_dir`. `threads` = 0 lets the child choose its number of threads; `grace` is the time
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
        // A process group of its own, so that Ctrl-C in a terminal reaches the parent only, which then requests a stop.
        #[cfg(unix)]
        command.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: both are direct system calls, safe between fork and exec; the child runs also when they fail.
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
        let (sender, output) = mpsc::channel(256);
        tokio::spawn(send_lines(stdout, sender, parse_output));
        let (log, lines) = mpsc::channel(256);
        tokio::spawn(send_lines(stderr, log, |text| text));
        let stderr = tokio::spawn(keep_tail(lines));
        Ok(Self {
            child,
            stdin: Some(stdin),
            output,
            stderr,
            _anchor: anchor,
            stop: StopStage::No,
            patience: grace,
            grace,
        })
    }

    /// Extends the child's lease to `seconds` from now. A child whose lease ends exits: another worker may run its job
    /// by then.
    pub(super) async fn extend_lease(&mut self, seconds: i64) {
        if let Some(stdin) = &mut self.stdin {
            // Writing fails when the child has ended, which its exit status shows.
            let _ = stdin.write_all(format!("{LEASE} {seconds}\n").as_bytes()).await;
        }
    }

    /// Asks the recipe to stop after its step and gives it `patience` before `escalate` acts. A later call can only
    /// shorten that time.
    pub(super) async fn request_stop(&mut self, patience: Duration) {
        if !matches!(self.stop, StopStage::No) {
            self.patience = self.patience.min(patience);
            return;
        }
        self.patience = patience;
        self.stop = StopStage::Asked(Instant::now());
        // Writing fails when the child has ended, which its exit status shows.
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(format!("{STOP}\n").as_bytes()).await;
        }
    }

    /// Goes to the next stage of stopping when the time of the current one is over: SIGTERM, then SIGKILL to the whole
    /// group.
    pub(super) fn escalate(&mut self) {
        self.stop = match self.stop {
            StopStage::Asked(since) if since.elapsed() >= self.patience => {
                self.signal(libc::SIGTERM);
                StopStage::Terminated(Instant::now())
            }
            StopStage::Terminated(since) if since.elapsed() >= self.grace => {
                self.signal(libc::SIGKILL);
                StopStage::Killed
            }
            StopStage::No => StopStage::No,
            StopStage::Asked(since) => StopStage::Asked(since),
            StopStage::Terminated(since) => StopStage::Terminated(since),
            StopStage::Killed => StopStage::Killed,
        };
    }

    /// Kills the child at once, because another worker has its job.
    pub(super) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.stop = StopStage::Killed;
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(pid) = self.child.id() {
            // SAFETY: the child has not been waited for (id() is Some), so its pid and group are its own.
            unsafe { libc::kill(-pid.cast_signed(), signal) };
        }
    }

    /// Waits for the end; returns the exit status and the last lines of stderr.
    pub(super) async fn wait(mut self) -> (std::io::Result<ExitStatus>, String) {
        drop(self.stdin.take());
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    // The child closed its stdout and still runs: it is stopped too.
                    if matches!(self.stop, StopStage::No) {
                        self.stop = StopStage::Asked(Instant::now());
                    }
                    self.escalate();
                }
            }
        };
        // A grandchild may hold the pipe open: only what has arrived by now is used.
        let tail = tokio::time::timeout(Duration::from_secs(1), self.stderr).await;
        let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
        (status, Vec::from(tail).join("\n"))
    }
}
