//! The device that serves, and the format of its weights. The CPU has fused kernels and quantised formats; other
//! devices use candle's operations on dense f32, f16 or bf16 tensors.

use candle_core::{DType, Device};

use crate::gpu;
use crate::model::{Decoder, ModelConfig, Purpose, Weights};

/// The name of the simulated device, which runs the kernels of `gpu` on the CPU. It is slow and meant for tests.
pub const SIMULATED: &str = "sim";
/// Memory of the simulated device in bytes, allocated when it is used.
pub const SIMULATED_BYTES: u64 = 8 << 30;

/// Opens the device `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// # Errors
/// If the name is another one, or the device or its driver is missing.
pub fn open(name: &str) -> Result<Device, String> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| format!("unknown device '{other}'; use cpu, cuda or cuda:N"))?,
    };
    gpu::open(index).map_err(|e| format!("the device {name} cannot be used: {e}"))
}

/// The decoder with all weights, including norms and biases, in a dense format, on the device of the weights.
///
/// # Errors
/// If `format` is supported only on the CPU.
pub fn dense(config: &ModelConfig, weights: &Weights, format: &str) -> candle_core::Result<Decoder> {
    let dtype = match format {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => candle_core::bail!("weights = \"{other}\" is supported only on the CPU; use f32, f16 or bf16"),
    };
    let weights: candle_core::Result<Weights> =
        weights.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?))).collect();
    Decoder::new(config, &weights?, Purpose::Serve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_device_names_are_refused() {
        assert!(open("cpu").is_ok_and(|d| d.is_cpu()));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "metal"] {
            assert!(open(name).is_err(), "{name}");
        }
        // The error names what is missing.
        if gpu::cuda::driver().is_err() {
            let error = open("cuda:1").unwrap_err();
            assert_eq!(error, "the device cuda:1 cannot be used: NVIDIA's driver (libcuda.so.1) is not installed here");
        }
    }
}
