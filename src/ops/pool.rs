//! Buffers that come back: activations of a few fixed sizes are taken and given thousands of times a step,
//! and fresh memory from the system costs a page fault for every 4 KiB.

use std::sync::Mutex;

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

/// A buffer of zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    let mut buffer = take(len);
    buffer.fill(0.0);
    buffer
}

/// Gives a buffer back.
pub fn give(buffer: Vec<f32>) {
    if buffer.capacity() >= WORTH_KEEPING {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let at = free.partition_point(|b| b.capacity() < buffer.capacity());
        free.insert(at, buffer);
    }
}

/// Frees all that is not in use, where another kind of work begins.
pub fn drain() {
    FREE.lock().unwrap_or_else(|e| e.into_inner()).clear();
}
