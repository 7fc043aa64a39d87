//! Speed, remaining time and memory, for progress reports. The only place in training that reads the clock; no
//! computation depends on it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Measures speed and remaining time.
pub struct Meter {
    started: Instant,
    first_step: u64,
    window: Instant,
    tokens: u64,
}

impl Meter {
    /// Starts at `first_step` (not 0 after a resume).
    pub fn new(first_step: u64) -> Self {
        let now = Instant::now();
        Self { started: now, first_step, window: now, tokens: 0 }
    }

    /// Counts tokens that the model has processed.
    pub fn add_tokens(&mut self, n: usize) {
        self.tokens += n as u64;
    }

    /// Tokens per second since the last call; `None` without tokens.
    pub fn take_rate(&mut self) -> Option<f64> {
        let seconds = self.window.elapsed().as_secs_f64();
        let tokens = std::mem::take(&mut self.tokens);
        self.window = Instant::now();
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Seconds since this process started the run. A resumed run starts again at 0.
    pub fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Remaining seconds at the mean speed so far; `None` before the first finished step.
    pub fn eta(&self, step: u64, total: u64) -> Option<f64> {
        let done = step.checked_sub(self.first_step).filter(|n| *n > 0)?;
        Some(self.started.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(step) as f64)
    }
}

/// Measures the phases of a step.
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start or the last call.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

/// Seconds since 1970, for the time stamps of event files.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// Resident memory of this process in bytes; Linux only.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
