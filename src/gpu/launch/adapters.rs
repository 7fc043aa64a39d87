//! Launches of the kernels in `kernels/adapters.py`.

use super::{Arg, Launch, launches};
use crate::gpu::Slice;

launches! {
    /// low = x · Aᵀ of the rows of a step that have adapters, in parts of 1024 inputs.
    LoraDown = "lora_down" {
        x: Slice, factors: Slice, tables: Slice, places: Slice, tiles: Slice, rows: Slice, low: Slice, count: i32,
        k: i32, stride: i32, matrix: i32,
    }
    /// y += low · Bᵀ in these rows.
    LoraUp = "lora_up" {
        low: Slice, factors: Slice, tables: Slice, places: Slice, tiles: Slice, rows: Slice, y: Slice, count: i32,
        splits: i32, stride: i32, m: i32, matrix: i32,
    }
}
