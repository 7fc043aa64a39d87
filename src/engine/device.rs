//! The device that serves: the CPU, which has fused kernels and quantised formats, or one that runs the kernels of `gpu`.

use crate::gpu::cuda::Cuda;
use crate::gpu::device::Device;
use crate::gpu::sim::{self, Sim};

/// Opens the device `cuda` (the first GPU), `cuda:N`, or `sim`, the simulated device, which is slow and meant for tests.
/// `None` for `cpu`.
///
/// # Errors
/// If the name is another one, or the device or its driver is missing.
pub fn open(name: &str) -> Result<Option<Box<dyn Device>>, String> {
    let index = match name {
        "cpu" => return Ok(None),
        "sim" => return Ok(Some(Box::new(Sim::new(sim::BYTES)))),
        "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| format!("unknown device '{other}'; use cpu, cuda or cuda:N"))?,
    };
    match Cuda::open(index, None) {
        Ok(gpu) => Ok(Some(Box::new(gpu))),
        Err(e) => Err(format!("the device {name} cannot be used: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_device_names_are_refused() {
        assert!(open("cpu").is_ok_and(|device| device.is_none()));
        assert!(open("sim").is_ok_and(|device| device.is_some()));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "metal"] {
            assert!(open(name).is_err(), "{name}");
        }
        // The error names what is missing.
        if crate::gpu::cuda::driver().is_err() {
            let Err(error) = open("cuda:1") else { panic!("a GPU without a driver") };
            assert_eq!(error, "the device cuda:1 cannot be used: NVIDIA's driver (libcuda.so.1) is not installed here");
        }
    }
}
