//! Launches: a struct for each kernel, whose fields are its parameters in order.

pub mod adapters;
pub mod backward;
pub mod encoders;

use super::manifest::{Kernel, Kind};
use super::{ALIGNMENT, GpuError, Slice};

/// One argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    Pointer(Slice),
    I32(i32),
    F32(f32),
}

impl From<Slice> for Arg {
    fn from(slice: Slice) -> Self {
        Self::Pointer(slice)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// The arguments of one kernel.
pub trait Launch {
    /// The kernel's function in `kernels/*.py`; the caller names the variant.
    const KERNEL: &'static str;
    /// Names of its parameters, and whether each is a pointer, an integer or a number.
    const FIELDS: &'static [(&'static str, &'static str)];

    fn args(&self) -> Vec<Arg>;
}

macro_rules! launches {
    ($($(#[$doc:meta])* $name:ident = $kernel:literal { $($field:ident: $kind:ident),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $(pub $field: $kind,)*
            }

            impl Launch for $name {
                const KERNEL: &'static str = $kernel;
                const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($kind)),)*];

                fn args(&self) -> Vec<Arg> {
                    vec![$(self.$field.into(),)*]
                }
            }
        )*

        /// Every kernel with its fields.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, &[(&str, &str)])] = &[$(($name::KERNEL, $name::FIELDS),)*];
    };
}

use launches;

launches! {
    /// Embeddings: rows of a table, plus rows of a table of positions.
    Embed = "embed" {
        ids: Slice, table: Slice, positions: Slice, position_table: Slice, out: Slice, d: i32, scale: f32,
    }
    /// RMSNorm or LayerNorm, optionally after an addition to the residual stream, which variants named `_kept` replace
    /// by its norm.
    Norm = "norm" {
        x: Slice, branch: Slice, weight: Slice, bias: Slice, y: Slice, d: i32, x_stride: i32, y_stride: i32, eps: f32,
        scale: f32, offset: f32,
    }
    /// x += scale · branch.
    Add = "add" { x: Slice, branch: Slice, count: i32, scale: f32 }
    /// Rotary positions, and keys and values into their pages.
    RopeCache = "rope_cache" {
        qkv: Slice, cos: Slice, sin: Slice, rotary: Slice, slots: Slice, q_weight: Slice, k_weight: Slice, q_out: Slice,
        keys: Slice, values: Slice, heads: i32, kv_heads: i32, hd: i32, half: i32, width: i32, head_stride: i32,
        k_base: i32, v_base: i32, eps: f32, offset: f32,
    }
    /// Attention over one range of keys for each tile.
    Attend = "attend" {
        q: Slice, keys: Slice, values: Slice, tables: Slice, tiles: Slice, partial: Slice, maxima: Slice, sums: Slice,
        n: i32, heads: i32, kv_heads: i32, hd: i32, table_width: i32, window: i32, scale: f32, cap: f32,
    }
    /// Combines the ranges of `Attend`.
    Combine = "combine" {
        partial: Slice, maxima: Slice, sums: Slice, positions: Slice, out: Slice, n: i32, heads: i32, hd: i32,
        window: i32,
    }
    /// y = x · wᵀ + bias.
    Matmul = "matmul" { x: Slice, w: Slice, bias: Slice, y: Slice, n: i32, m: i32, k: i32 }
    /// y = x · wᵀ + bias with 8-bit weights.
    MatmulQ8 = "matmul_q8" {
        x: Slice, w: Slice, scales: Slice, bias: Slice, y: Slice, n: i32, m: i32, k: i32,
    }
    /// y = x · wᵀ + bias with 4-bit weights.
    MatmulQ4 = "matmul_q4" {
        x: Slice, w: Slice, scales: Slice, minima: Slice, bias: Slice, y: Slice, n: i32, m: i32, k: i32,
    }
    /// y = x · wᵀ + bias with 8-bit weights that have a scale and a minimum for 16.
    MatmulFine = "matmul_fine" {
        x: Slice, w: Slice, scales: Slice, minima: Slice, bias: Slice, y: Slice, n: i32, m: i32, k: i32,
    }
    /// SiLU or GELU, gated or not.
    Activate = "activate" { x: Slice, y: Slice, inner: i32 }
    /// Scales and soft-caps logits, in place.
    ShapeLogits = "shape_logits" { z: Slice, count: i32, inverse: f32, cap: f32 }
    /// Gathers rows.
    GatherRows = "gather_rows" { x: Slice, rows: Slice, y: Slice, d: i32 }
    /// Log-softmax at targets, with entropies.
    Logprobs = "logprobs" {
        z: Slice, targets: Slice, logprob: Slice, lse: Slice, entropy: Slice, vocab: i32, inverse: f32,
    }
    /// Samples one token for each row.
    Sample = "sample" { z: Slice, uniforms: Slice, inverses: Slice, ids: Slice, vocab: i32 }
}

/// Checks arguments against the kernel's parameters: number, types and alignment.
///
/// # Errors
/// Names the kernel and the argument.
pub fn check(kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
    let wrong = |what: String| Err(GpuError::Launch(format!("{}: {what}", kernel.name)));
    if args.len() != kernel.params.len() {
        return wrong(format!("{} arguments for {} parameters", args.len(), kernel.params.len()));
    }
    if grid.contains(&0) || grid[1] > 65_535 || grid[2] > 65_535 {
        return wrong(format!("a grid of {grid:?}"));
    }
    for (arg, (name, kind)) in args.iter().zip(&kernel.params) {
        match (arg, kind) {
            (Arg::I32(_), Kind::I32) | (Arg::F32(_), Kind::F32) => {}
            (Arg::I32(v), Kind::Eights) if v % 8 == 0 => {}
            (Arg::I32(v), Kind::Eights) => return wrong(format!("{name} is {v}, no multiple of 8")),
            (Arg::Pointer(slice), kind) if kind.is_pointer() => {
                if !slice.address.is_multiple_of(ALIGNMENT as u64) {
                    return wrong(format!("{name} is not aligned to {ALIGNMENT} bytes"));
                }
                if !slice.bytes.is_multiple_of(kind.size()) {
                    return wrong(format!("{name} has {} bytes, no multiple of {}", slice.bytes, kind.size()));
                }
            }
            _ => return wrong(format!("{name} is {kind:?}, not {arg:?}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::manifest::kernels;
    use super::*;

    #[test]
    fn launch_structs_have_the_parameters_of_the_kernels() {
        let all: Vec<_> = ALL.iter().chain(backward::ALL).chain(adapters::ALL).chain(encoders::ALL).collect();
        for kernel in kernels() {
            assert!(all.iter().any(|(name, _)| *name == kernel.kernel), "{} has no struct", kernel.name);
        }
        for (kernel, fields) in all {
            let variants: Vec<_> = kernels().filter(|k| k.kernel == *kernel).collect();
            assert!(!variants.is_empty(), "no variant of {kernel}");
            for variant in variants {
                let params: Vec<_> = variant
                    .params
                    .iter()
                    .map(|(name, kind)| {
                        let kind = match kind {
                            Kind::I32 | Kind::Eights => "i32",
                            Kind::F32 => "f32",
                            _ => "Slice",
                        };
                        (name.as_str(), kind)
                    })
                    .collect();
                assert_eq!(params, *fields, "{}", variant.name);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_manifest_is_refused() {
        let kernel = super::super::manifest::kernel("add.f32").unwrap();
        let slice = Slice { address: 4096, bytes: 64 };
        let good = Add { x: slice, branch: slice, count: 16, scale: 1.0 }.args();
        check(kernel, [1, 1, 1], &good).unwrap();
        let mut bad = good.clone();
        bad[1] = Arg::Pointer(Slice { address: 4096 + 8, ..slice });
        let error = check(kernel, [1, 1, 1], &bad).unwrap_err().to_string();
        assert!(error.contains("branch is not aligned"), "{error}");
        let mut bad = good.clone();
        bad[2] = Arg::F32(16.0);
        assert!(check(kernel, [1, 1, 1], &bad).is_err());
        assert!(check(kernel, [1, 1, 1], &good[1..]).is_err());
        assert!(check(kernel, [0, 1, 1], &good).is_err());
        bad = good;
        bad[0] = Arg::Pointer(Slice { address: 4096, bytes: 63 });
        assert!(check(kernel, [1, 1, 1], &bad).is_err());
        let kernel = super::super::manifest::kernel("matmul.16.f32").unwrap();
        let of = |k| Matmul { x: slice, w: slice, bias: slice, y: slice, n: 1, m: 1, k }.args();
        check(kernel, [1, 1, 1], &of(16)).unwrap();
        let error = check(kernel, [1, 1, 1], &of(12)).unwrap_err().to_string();
        assert!(error.contains("k is 12, no multiple of 8"), "{error}");
    }
}
