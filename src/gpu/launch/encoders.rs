//! Launches of the kernel in `kernels/encoders.py`.

use super::{Arg, Launch, launches};
use crate::gpu::Slice;

launches! {
    /// Attention to both sides over packed sequences, with q, k and v in one matrix.
    AttendBoth = "attend_both" {
        qkv: Slice, offsets: Slice, out: Slice, heads: i32, hd: i32, window: i32, scale: f32,
    }
}
