//! Limits on reading one untrusted file: time, rows and bytes of text. Readers check them between rows and pages, so
//! that an endless file or a decompression bomb gives an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bounds of one file. Clones share their counters.
#[derive(Clone, Debug)]
pub struct Limits {
    deadline: Instant,
    seconds: u64,
    rows: u64,
    bytes: u64,
    used: Arc<Used>,
}

#[derive(Debug, Default)]
struct Used {
    rows: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Default for Limits {
    /// Limits for files that the administrator put on this machine: an hour, and more text than memory holds.
    fn default() -> Self {
        Self::new(Duration::from_secs(3600), 100_000_000, 1 << 40)
    }
}

impl Limits {
    /// At most `time` from now, `rows` rows or lines, and `bytes` bytes of unpacked text.
    pub fn new(time: Duration, rows: u64, bytes: u64) -> Self {
        Self { deadline: Instant::now() + time, seconds: time.as_secs(), rows, bytes, used: Arc::default() }
    }

    /// Cancels the reading at its next check, when the caller is gone.
    pub fn cancel(&self) {
        self.used.cancelled.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Past the deadline or cancelled.
    pub fn check(&self) -> Result<(), String> {
        if self.used.cancelled.load(Ordering::Relaxed) {
            return Err("the request was cancelled".to_owned());
        }
        if Instant::now() >= self.deadline {
            return Err(format!("reading took longer than {} seconds; send smaller files", self.seconds));
        }
        Ok(())
    }

    /// Counts one row.
    ///
    /// # Errors
    /// Past the deadline, cancelled, or beyond the row limit.
    pub fn row(&self) -> Result<(), String> {
        self.check()?;
        if self.used.rows.fetch_add(1, Ordering::Relaxed) >= self.rows {
            return Err(format!("the file has more than {} rows; send smaller files", self.rows));
        }
        Ok(())
    }

    /// Counts `n` bytes of unpacked data.
    ///
    /// # Errors
    /// Past the deadline, cancelled, or beyond the byte limit.
    pub fn bytes(&self, n: usize) -> Result<(), String> {
        self.check()?;
        let before = self.used.bytes.fetch_add(n as u64, Ordering::Relaxed);
        if before.saturating_add(n as u64) > self.bytes {
            return Err(format!("the file unpacks to more than {} bytes; send smaller files", self.bytes));
        }
        Ok(())
    }
}
