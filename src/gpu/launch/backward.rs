//! Launches of the kernels in `kernels/backward.py`.

use super::{Arg, Launch, launches};
use crate::gpu::Slice;

launches! {
    /// gx = scale · gy · w, or gx += that; rows of gy are `stride` elements apart.
    MatmulNn = "matmul_nn" { gy: Slice, w: Slice, gx: Slice, n: i32, m: i32, k: i32, stride: i32, scale: f32 }
    /// gw += scale · gyᵀ · x; rows of gy are `stride` elements apart.
    MatmulTn = "matmul_tn" { gy: Slice, x: Slice, gw: Slice, n: i32, m: i32, k: i32, stride: i32, scale: f32 }
    /// y += scale · x · wᵀ; rows of y are `stride` elements apart.
    MatmulAdd = "matmul_add" { x: Slice, w: Slice, y: Slice, n: i32, m: i32, k: i32, stride: i32, scale: f32 }
    /// g += the sums of the columns of gy.
    ColumnSums = "column_sums" { gy: Slice, g: Slice, n: i32, m: i32 }
    /// gx += the gradient of RMSNorm or LayerNorm.
    NormBack = "norm_back" {
        x: Slice, weight: Slice, gy: Slice, gx: Slice, factors: Slice, means: Slice, d: i32, eps: f32, offset: f32,
    }
    /// gw and gb += the gradients of a norm's weight and bias.
    NormBackWeight = "norm_back_weight" {
        x: Slice, gy: Slice, factors: Slice, means: Slice, gw: Slice, gb: Slice, n: i32, d: i32,
    }
    /// Rotary positions in place, or their gradient with sign −1.
    Rotate = "rotate" {
        x: Slice, cos: Slice, sin: Slice, rotary: Slice, heads: i32, hd: i32, half: i32, sign: f32,
    }
    /// Causal attention over packed sequences.
    Flash = "flash" {
        q: Slice, k: Slice, v: Slice, offsets: Slice, out: Slice, lse: Slice, heads: i32, kv_heads: i32, hd: i32,
        window: i32, scale: f32, cap: f32,
    }
    /// Sums of out · gout over the channels of each head.
    FlashDelta = "flash_delta" { out: Slice, gout: Slice, delta: Slice, heads: i32, hd: i32 }
    /// The gradient of attention's queries.
    FlashBackQ = "flash_back_q" {
        q: Slice, k: Slice, v: Slice, gout: Slice, offsets: Slice, lse: Slice, delta: Slice, gq: Slice, heads: i32,
        kv_heads: i32, hd: i32, window: i32, scale: f32, cap: f32,
    }
    /// The gradients of attention's keys and values.
    FlashBackKv = "flash_back_kv" {
        q: Slice, k: Slice, v: Slice, gout: Slice, offsets: Slice, lse: Slice, delta: Slice, gk: Slice, gv: Slice,
        heads: i32, kv_heads: i32, hd: i32, window: i32, scale: f32, cap: f32,
    }
    /// The gradient of `Activate`.
    ActivateBack = "activate_back" { x: Slice, gy: Slice, gx: Slice, inner: i32 }
    /// The gradient of `Logprobs` with respect to the logits, or to those before `ShapeLogits` capped them.
    LogitsBack = "logits_back" {
        z: Slice, targets: Slice, lse: Slice, g: Slice, gz: Slice, vocab: i32, inverse: f32, before: f32, cap: f32,
    }
    /// Adds rows of gx to distinct rows of a table.
    EmbedBack = "embed_back" {
        order: Slice, starts: Slice, ids: Slice, gx: Slice, table: Slice, d: i32, scale: f32,
    }
    /// One step of AdamW.
    AdamWStep = "adamw" {
        p: Slice, g: Slice, m: Slice, v: Slice, half: Slice, count: i32, rate: f32, beta1: f32, beta2: f32, eps: f32,
        decay: f32, correct1: f32, correct2: f32, clip: f32,
    }
    /// Sums of squares of consecutive parts.
    Squares = "squares" { x: Slice, sums: Slice, count: i32 }
}
