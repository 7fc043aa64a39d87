//! Names and grids of kernels, as serving and training start them.

use super::weights::Element;
use crate::gpu::GpuError;
use crate::gpu::launch::Matmul;
use crate::gpu::manifest::kernel;
use crate::model::{Activation, ModelConfig};

/// Most rows of a product that waits for its weights more than it computes.
const FEW: usize = 32;

/// Head sizes, in channels, that attention was compiled for.
const HEADS: [usize; 4] = [32, 64, 128, 256];

/// The channels of the kernels of attention for heads of `head_dim` channels.
///
/// # Errors
/// When there are none, with the reason.
pub fn head_width(head_dim: usize) -> Result<usize, String> {
    match HEADS.into_iter().find(|wide| *wide >= head_dim) {
        None => Err(format!("heads of {head_dim} channels: a device takes at most 256")),
        Some(wide) if wide > 64 && !head_dim.is_multiple_of(8) => {
            Err(format!("heads of {head_dim} channels: above 64, a device takes multiples of 8"))
        }
        Some(wide) => Ok(wide),
    }
}

/// The channels of heads that the kernels of a model are compiled for.
///
/// # Errors
/// For models that have no kernels.
pub fn compiled_width(config: &ModelConfig) -> Result<usize, String> {
    match config.activation {
        Activation::Relu => Err("layers with ReLU are computed on the CPU only".to_owned()),
        Activation::Silu | Activation::GeluTanh | Activation::GeluErf => head_width(config.head_dim),
    }
}

/// a / b, rounded up.
pub fn up(a: usize, b: usize) -> usize {
    a.div_ceil(b)
}

/// Rows of the tiles of a product with `n` rows and `out` outputs. Few rows wait for the weights, which narrow tiles
/// read best; large tiles read less, once they are enough to occupy a GPU. Measured on an H200.
fn tile_rows(n: usize, out: usize, element: Element) -> usize {
    const MULTIPROCESSORS: usize = 132;
    if n <= FEW {
        16
    } else if element != Element::F32 && up(n, 128) * up(out, 64) >= MULTIPROCESSORS {
        128
    } else {
        64
    }
}

/// The kernel of a product and its grid. `variant` is empty, `_bias`, or `_out` for outputs in f32. The size of the tiles
/// depends on the number of rows; the order of every sum does not.
///
/// # Errors
/// When there is no such variant.
pub fn matmul(variant: &str, launched: &Matmul, element: Element) -> Result<(String, [usize; 3]), GpuError> {
    let (n, out) = (launched.n as usize, launched.m as usize);
    let (rows, any) = match launched.k % 8 {
        0 => (tile_rows(n, out, element), ""),
        _ => (tile_rows(n, out, Element::F32), "_any"),
    };
    tiled(format!("matmul{variant}{any}.{rows}.{}", element.as_str()), n, out)
}

/// [`matmul`] with weights in blocks of integers, `n` rows and `out` outputs. `kind` is `matmul_q8`,
/// `matmul_q4` or `matmul_fine`.
///
/// # Errors
/// When there is no such variant.
pub fn matmul_blocks(
    kind: &str,
    variant: &str,
    n: usize,
    out: usize,
    element: Element,
) -> Result<(String, [usize; 3]), GpuError> {
    let rows = if n <= FEW { 16 } else { 64 };
    tiled(format!("{kind}{variant}.{rows}.{}", element.as_str()), n, out)
}

fn tiled(name: String, n: usize, out: usize) -> Result<(String, [usize; 3]), GpuError> {
    let tile = kernel(&name)?;
    let grid = [up(out, tile.constant("BM")), up(n, tile.constant("BN")), 1];
    Ok((name, grid))
}

/// The name of a norm in kernel names: LayerNorm (`layer`) or RMSNorm.
pub fn norm(layer: bool) -> &'static str {
    if layer { "layer" } else { "rms" }
}

/// The kernel of a norm whose input has the element type too. In f32 it is the one of the hidden states.
pub fn norm_of(layer: bool, element: Element) -> String {
    match element {
        Element::F32 => format!("{}.f32", norm(layer)),
        half => format!("{}_of.{}", norm(layer), half.as_str()),
    }
}

/// The name of an activation in kernel names.
pub fn activation(activation: Activation, gated: bool) -> String {
    let name = match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::GeluErf => "gelu_erf",
        Activation::Relu => "relu",
    };
    format!("{name}{}", if gated { "_gated" } else { "" })
}

/// Downloaded bytes as numbers.
pub fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut all = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut all).copy_from_slice(bytes);
    all
}
