//! NVIDIA GPUs: detection, handles, and the runtime of the kernels in `kernels/aot`.
//!
//! `Device` has two implementations: `cuda::Cuda`, and `sim::Sim` on the CPU for tests. Both run the same launches.

pub mod allocations;
pub mod arena;
pub mod cuda;
pub mod device;
pub mod launch;
mod layer;
pub mod manifest;
mod memory;
pub mod nvml;
pub mod reserve;
pub mod shared;
pub mod sim;
pub mod tape;
mod twins;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use candle_core::Device;

/// Alignment (bytes) of pointers that are passed to kernels.
pub const ALIGNMENT: usize = 16;

/// An error of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    #[error("the device has {free} bytes free, not {wanted}")]
    OutOfMemory { wanted: u64, free: u64 },
    /// There is no such device, or its driver does not work.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Launch(String),
}

/// A slice of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub address: u64,
    pub bytes: usize,
}

impl Slice {
    /// The part of `bytes` bytes at `offset`.
    ///
    /// # Panics
    /// When the part is not inside of the slice.
    pub fn part(self, offset: usize, bytes: usize) -> Self {
        assert!(offset + bytes <= self.bytes, "{offset}..+{bytes} of {} bytes", self.bytes);
        Self { address: self.address + offset as u64, bytes }
    }
}

/// One handle for each GPU, shared in this process, because a handle has a stream and caches.
static OPENED: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());

/// GPU `index`, counted from 0.
///
/// # Errors
/// When this build or machine has no such GPU, with the reason.
pub fn open(index: usize) -> Result<Device, String> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(i, _)| *i == index) {
        return Ok(device.clone());
    }
    cuda::driver().map_err(|e| e.to_string())?;
    if cfg!(not(feature = "cuda")) {
        return Err("this program was built without the cargo feature `cuda`".to_owned());
    }
    let device = guarded(|| Device::new_cuda(index).map_err(|e| e.to_string()))?;
    opened.push((index, device.clone()));
    Ok(device)
}

/// The first GPU, or the CPU when no GPU works.
pub fn first_or_cpu() -> Device {
    choose(|| open(0))
}

fn choose(first: impl FnOnce() -> Result<Device, String>) -> Device {
    guarded(first).unwrap_or_else(|why| {
        tracing::debug!(%why, "no GPU is used");
        Device::Cpu
    })
}

/// The loader of NVIDIA's driver panics when the driver is missing or too old.
fn guarded(open: impl FnOnce() -> Result<Device, String>) -> Result<Device, String> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err("NVIDIA's driver cannot be loaded".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_without_a_working_driver_is_the_cpu() {
        assert!(choose(|| Err("no device".to_owned())).is_cpu());
        assert!(choose(|| panic!("no libcuda")).is_cpu());
        // A GPU that opens is taken; whatever is missing here is no error.
        if open(0).is_err() {
            assert!(first_or_cpu().is_cpu());
        }
    }
}
