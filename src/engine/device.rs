//! Which device serves, and how weights lie there. The CPU has kernels and weight formats of its own; any other
//! device takes the plain operations over dense f32, f16 or bf16 tensors.

use candle_core::{DType, Device};

use crate::gpu;
use crate::model::{Decoder, Loaded, Purpose, Weights};

/// The name of the simulated device: the launches of `gpu`, computed on the CPU. For tests; it is slow.
pub const SIMULATED: &str = "sim";
/// Its memory, taken as it is used.
pub const SIMULATED_BYTES: u64 = 8 << 30;

/// `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// # Errors
/// For other names, and where there is no such device or no support for it in this build.
pub fn open(name: &str) -> Result<Device, String> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| format!("'{other}' is no device; use cpu, cuda or cuda:N"))?,
    };
    gpu::open(index).map_err(|e| format!("the device {name} cannot be used: {e}"))
}

/// The decoder over dense weights of this format, on the device where the weights are. Norms and biases take
/// the format too: one kind of number flows through the whole pass.
///
/// # Errors
/// For formats that only the CPU's kernels read.
pub fn dense(loaded: &Loaded, format: &str) -> candle_core::Result<Decoder> {
    let dtype = match format {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => candle_core::bail!("weights = \"{other}\" is for the CPU; other devices take f32, f16 or bf16"),
    };
    let weights: candle_core::Result<Weights> =
        loaded.weights.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?))).collect();
    Decoder::new(&loaded.config, &weights?, Purpose::Serve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert!(open("cpu").is_ok_and(|d| d.is_cpu()));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "metal"] {
            assert!(open(name).is_err(), "{name}");
        }
        // What is missing is said in one line.
        if gpu::cuda::driver().is_err() {
            let error = open("cuda:1").unwrap_err();
            assert_eq!(error, "the device cuda:1 cannot be used: NVIDIA's driver (libcuda.so.1) is not installed here");
        }
    }
}
