//! A pool of reusable buffers: activations of a few fixed sizes are allocated and freed thousands of times a step, and
//! fresh memory from the system costs a page fault for every 4 KiB.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// Free buffers, smallest capacity first.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Smaller buffers are left to the allocator.
const WORTH_KEEPING: usize = 4096;
/// Values in all free buffers together, and how many there may be: a server's steps come in many sizes, and what one
/// left need not fit the next.
static KEPT: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(16 << 20);

/// Keeps whatever comes: for a process that does one kind of work over and over.
pub fn keep_all() {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

/// Returns memory that was freed to the system. After a model is loaded this is as much as the largest of its tensors.
pub fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a call without arguments in memory; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A buffer of `len` values of any content: the caller writes all of them.
pub fn take(len: usize) -> Vec<f32> {
    let found = (len >= WORTH_KEEPING).then(|| {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let at = free.partition_point(|b| b.capacity() < len);
        // Never a much larger one: it would be missing where it fits.
        let fits = at < free.len() && free[at].capacity() <= len + len / 4;
        fits.then(|| {
            KEPT.fetch_sub(free[at].capacity(), Ordering::Relaxed);
            free.remove(at)
        })
    });
    match found.flatten() {
        Some(mut buffer) => {
            buffer.resize(len, 0.0);
            buffer
        }
        None => vec![0.0; len],
    }
}

/// Gives a buffer back.
pub fn give(buffer: Vec<f32>) {
    let size = buffer.capacity();
    if size >= WORTH_KEEPING && size <= LIMIT.load(Ordering::Relaxed).saturating_sub(KEPT.load(Ordering::Relaxed)) {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        KEPT.fetch_add(size, Ordering::Relaxed);
        let at = free.partition_point(|b| b.capacity() < size);
        free.insert(at, buffer);
    }
}

/// Takes the buffer out of a tensor that nobody reads any more, and keeps it.
pub fn reclaim(tensor: Tensor) {
    // Tensors elsewhere, or of other numbers, are simply dropped.
    let _ = tensor.inplace_op1(&Reclaim);
}

struct Reclaim;

impl InplaceOp1 for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if let CpuStorage::F32(data) = storage {
            give(std::mem::take(data));
        }
        Ok(())
    }
}

/// Frees all that is not in use, where another kind of work begins.
pub fn drain() {
    let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
    free.clear();
    KEPT.store(0, Ordering::Relaxed);
}
