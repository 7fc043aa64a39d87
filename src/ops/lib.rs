//! Fused tensor operations with backward passes, which candle's fused operations lack. Each CPU kernel has a reference
//! version in `plain`, which is used on other devices and in tests.

#![expect(clippy::needless_range_loop, reason = "kernels read as index arithmetic over several buffers at once")]

pub mod activation;
mod activation_kind;
pub mod attention;
mod attention_spec;
pub mod attn_kernel;
pub mod bf16;
mod bits;
pub mod blocks;
pub mod embedding;
mod exact_blocks;
pub mod gemm;
pub mod gemm16;
pub mod grad;
pub mod kv_blocks;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod par;
pub mod plain;
pub mod pool;
pub mod product;
pub mod q4;
pub mod q8;
mod q8_rows;
pub mod quantized;
pub mod rope;
mod rope_table;
pub mod served;
pub mod simd;
pub mod token_logprobs;

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor};

/// Whether the CPU kernels apply: f32 on the CPU. Other tensors use the reference versions.
pub fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The f32 data of a contiguous storage.
pub fn f32s<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => candle_core::bail!("{op}: input must be contiguous"),
    }
}

/// Calls `f` with the data of an f32 CPU tensor, which is copied only if it is not contiguous.
pub fn with_f32s<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(cpu) => f(f32s(cpu, layout, "read")?),
        _ => candle_core::bail!("expected a CPU tensor"),
    }
}

/// A guard that gives access to the data of a contiguous f32 CPU tensor.
struct Read<G> {
    storage: G,
    range: std::ops::Range<usize>,
}

impl<G: Deref<Target = candle_core::Storage>> Deref for Read<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            candle_core::Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            // `read` has checked the storage.
            _ => &[],
        }
    }
}

/// The data of a tensor, without a copy.
///
/// # Errors
/// If it is not f32, not on the CPU, or not contiguous.
pub fn read(t: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (candle_core::Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Read { storage, range: start..end }),
        _ => candle_core::bail!("expected contiguous f32 on the CPU"),
    }
}

/// Adds x to `sum`, element by element.
pub fn add_assign(sum: &mut [f32], x: &[f32]) {
    assert_eq!(sum.len(), x.len(), "sizes");
    let out = par::SharedMut::new(sum);
    par::split(x.len().div_ceil(4096), x.len(), |blocks| {
        let r = blocks.start * 4096..(blocks.end * 4096).min(x.len());
        // SAFETY: disjoint ranges.
        let to = unsafe { out.slice(r.start, r.len()) };
        for (t, v) in to.iter_mut().zip(&x[r]) {
            *t += v;
        }
    });
}

/// A CPU storage with its shape, the result of a custom operation.
pub fn storage(data: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(data), shape.into())
}

/// A CPU tensor that owns `data`.
pub fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &candle_core::Device::Cpu)
}

/// A zeroed buffer.
pub fn buffer(len: usize) -> Vec<f32> {
    // The system zeroes fresh pages, so this costs nothing for large buffers.
    vec![0f32; len]
}

/// Deterministic values in [−1, 1) for tests.
#[cfg(test)]
pub fn noise(n: usize, mut seed: u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The sizes `(n, m, k)` of products that a test computes. Under Miri, which is some thousand times slower, the small ones.
#[cfg(test)]
pub fn sizes<const N: usize>(all: [(usize, usize, usize); N]) -> impl Iterator<Item = (usize, usize, usize)> {
    all.into_iter().filter(|(n, m, k)| !cfg!(miri) || n * m * k <= 20_000)
}
