//! Buffers that come back: activations of a few fixed sizes are taken and given thousands of times a step,
//! and fresh memory from the system costs a page fault for every 4 KiB.

use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// Free buffers, smallest capacity first.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Smaller buffers are left to the allocator.
const WORTH_KEEPING: usize = 4096;

/// A buffer of `len` values of any content: the caller writes all of them.
pub fn take(len: usize) -> Vec<f32> {
    let found = (len >= WORTH_KEEPING).then(|| {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let at = free.partition_point(|b| b.capacity() < len);
        // Never a much larger one: it would be missing where it fits.
        (at < free.len() && free[at].capacity() <= len + len / 4).then(|| free.remove(at))
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
    if buffer.capacity() >= WORTH_KEEPING {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let at = free.partition_point(|b| b.capacity() < buffer.capacity());
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
    FREE.lock().unwrap_or_else(|e| e.into_inner()).clear();
}
