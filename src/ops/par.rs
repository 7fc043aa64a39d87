//! Parallelism of CPU kernels. Every output element is computed by one task in a fixed order, so results do not depend
//! on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

/// Below this number of multiply-adds, waking a thread costs more time than it saves.
const MIN_WORK_PER_THREAD: usize = 128 * 1024;

/// Configures the thread pool and the allocator of a process that only trains. Call it on the training thread, which
/// becomes a thread of the pool, so that work is not handed to another thread while this one sleeps. The allocator
/// keeps freed buffers instead of returning them to the system at every step.
pub fn configure_for_training() {
    super::pool::keep_all();
    // Fails if the pool exists already, which then works without this thread.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` sets two parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
}

/// Runs `f` over disjoint ranges that cover `0..n`, in parallel if `work`, the approximate number of multiply-adds, is
/// large enough.
pub fn split(n: usize, work: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let threads = rayon::current_num_threads();
    if n <= 1 || threads <= 1 || work < MIN_WORK_PER_THREAD {
        return f(0..n);
    }
    let pieces = n.min(threads * 4).min(work / MIN_WORK_PER_THREAD + 1).max(1);
    (0..pieces).into_par_iter().for_each(|i| f(n * i / pieces..n * (i + 1) / pieces));
}

/// Runs `f(panel, tiles)` over all pairs of panels and row tiles, in the order of panels, divided into two equal parts
/// per thread, so that no thread waits for the last panel.
pub(super) fn split_panels(panels: usize, tiles: usize, work: usize, f: impl Fn(usize, Range<usize>) + Sync + Send) {
    let units = panels * tiles;
    let pieces = if work < MIN_WORK_PER_THREAD { 1 } else { (rayon::current_num_threads() * 2).min(units) };
    let run = |i: usize| {
        let (mut at, end) = (units * i / pieces, units * (i + 1) / pieces);
        while at < end {
            let (panel, first) = (at / tiles, at % tiles);
            let last = (first + end - at).min(tiles);
            f(panel, first..last);
            at += last - first;
        }
    };
    match pieces {
        1 => run(0),
        _ => (0..pieces).into_par_iter().with_max_len(1).for_each(run),
    }
}

/// A pointer to a slice of which parallel tasks write disjoint parts.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T, usize);

// SAFETY: `slice` is unsafe and its contract demands disjoint ranges.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: `slice` is unsafe and its contract demands disjoint ranges.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// A pointer to the element `start`.
    ///
    /// # Panics
    /// If the slice has less than `len` elements from there on.
    pub fn at(&self, start: usize, len: usize) -> *mut T {
        assert!(start + len <= self.1, "part {start}+{len} outside {}", self.1);
        self.0.wrapping_add(start)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// Parts in use at the same time must not overlap, and the slice must outlive them.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "part {start}+{len} outside {}", self.1);
        // SAFETY: in bounds by the assertion, disjoint by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
