//! Work sharing for CPU kernels. Every output element is computed by exactly one task in a fixed order,
//! so results never depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

/// Multiply-adds below which waking a thread costs more time than it saves.
const WORTH_A_THREAD: usize = 128 * 1024;

/// Configures the thread pool and the allocator of a process that only trains; called from the thread that trains. The
/// calling thread becomes a compute thread, so that work is not handed over to another thread while this one sleeps, and
/// freed buffers of the sizes that kernels use stay with the process instead of returning to the system at each step.
pub fn configure_for_training() {
    super::pool::keep_all();
    // Fails where the pool exists already; the pool then computes without this thread.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
}

/// Runs `f` over disjoint ranges that cover `0..n`, in parallel when `work` (about: number of
/// multiply-adds) is worth waking threads for.
pub fn split(n: usize, work: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let threads = rayon::current_num_threads();
    if n <= 1 || threads <= 1 || work < WORTH_A_THREAD {
        return f(0..n);
    }
    let pieces = n.min(threads * 4).min(work / WORTH_A_THREAD + 1).max(1);
    (0..pieces).into_par_iter().for_each(|i| f(n * i / pieces..n * (i + 1) / pieces));
}

/// Runs `f(panel, tiles)` over all pairs of panels and row tiles, cut into equal runs, panels first, two for every
/// thread: none waits for a last odd panel.
pub(super) fn split_panels(panels: usize, tiles: usize, work: usize, f: impl Fn(usize, Range<usize>) + Sync + Send) {
    let units = panels * tiles;
    let pieces = if work < WORTH_A_THREAD { 1 } else { (rayon::current_num_threads() * 2).min(units) };
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

/// A raw pointer that tasks may share because they write disjoint parts behind it.
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

    /// Where `start` lies, with at least `len` elements from there on.
    pub fn at(&self, start: usize, len: usize) -> *mut T {
        assert!(start + len <= self.1, "part {start}+{len} outside {}", self.1);
        self.0.wrapping_add(start)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// Parts handed out at the same time must not overlap, and the slice must outlive them.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "part {start}+{len} outside {}", self.1);
        // SAFETY: in bounds by the assertion, disjoint by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
