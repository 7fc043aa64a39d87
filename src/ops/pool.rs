//! A pool of reusable buffers. Activations of a few sizes are allocated and freed thousands of times per step, and
//! fresh memory from the system costs a page fault for every 4 KiB.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// Free buffers, smallest capacity first.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Smaller buffers (in values) are freed.
const MIN_POOLED: usize = 4096;
/// Number of values in all free buffers.
static POOLED: AtomicUsize = AtomicUsize::new(0);
/// Maximum of `POOLED`: a server's steps have many sizes, so that a freed buffer may never fit again.
static LIMIT: AtomicUsize = AtomicUsize::new(16 << 20);

/// Removes the limit, for a process that repeats the same kind of step.
pub fn keep_all() {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

/// A buffer of `len` arbitrary values, all of which the caller overwrites.
pub fn take(len: usize) -> Vec<f32> {
    let found = (len >= MIN_POOLED).then(|| {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let at = free.partition_point(|b| b.capacity() < len);
        // Not a much larger one, which another caller may need.
        let fits = at < free.len() && free[at].capacity() <= len + len / 4;
        fits.then(|| {
            POOLED.fetch_sub(free[at].capacity(), Ordering::Relaxed);
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

/// Returns a buffer to the pool.
pub fn give(buffer: Vec<f32>) {
    let size = buffer.capacity();
    if size >= MIN_POOLED && size <= LIMIT.load(Ordering::Relaxed).saturating_sub(POOLED.load(Ordering::Relaxed)) {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        POOLED.fetch_add(size, Ordering::Relaxed);
        let at = free.partition_point(|b| b.capacity() < size);
        free.insert(at, buffer);
    }
}

/// Moves the buffer of a tensor that is no longer used to the pool.
pub fn reclaim(tensor: Tensor) {
    // Tensors of other types or on other devices are dropped.
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

/// Frees all pooled buffers, before another kind of work begins.
pub fn drain() {
    let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
    free.clear();
    POOLED.store(0, Ordering::Relaxed);
}
