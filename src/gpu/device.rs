//! The interface of a device: its memory, one stream of work, and launches of compiled kernels.

use super::launch::{Arg, Launch};
use super::manifest::{Kernel, kernel};
use super::{GpuError, Slice};

/// A requested copy to the host; see `Device::take`.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Download(pub(super) u64);

/// Numbers of operations of a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub launches: u64,
    pub uploads: u64,
    pub downloads: u64,
    pub waits: u64,
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            uploads: self.uploads - before.uploads,
            downloads: self.downloads - before.downloads,
            waits: self.waits - before.waits,
        }
    }
}

/// A GPU, or the simulated one. Work is done in the order of the calls, before `wait` returns.
pub trait Device: Send {
    /// Name in messages.
    fn name(&self) -> String;

    /// Allocates memory with undefined contents.
    ///
    /// # Errors
    /// `OutOfMemory`; nothing is changed then.
    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError>;

    /// Frees memory once the work requested so far is done. `slice` was returned by `alloc`.
    ///
    /// # Errors
    /// When `slice` is not allocated.
    fn free(&mut self, slice: Slice) -> Result<(), GpuError>;

    /// Copies `data` to the start of `to`. The bytes are read before this returns.
    ///
    /// # Errors
    /// When they do not fit.
    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError>;

    /// Requests a copy of `from` to the host.
    ///
    /// # Errors
    /// When `slice` is not allocated.
    fn download(&mut self, from: Slice) -> Result<Download, GpuError>;

    /// Copies within the device; both have the same size and do not overlap.
    ///
    /// # Errors
    /// When sizes differ or memory is not allocated.
    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError>;

    /// Sets all bytes of a slice to 0.
    ///
    /// # Errors
    /// When memory is not allocated.
    fn zero(&mut self, slice: Slice) -> Result<(), GpuError>;

    /// Starts a kernel. Arguments have been compared with its parameters.
    ///
    /// # Errors
    /// When an argument points to memory that is not allocated, or the driver refuses.
    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError>;

    /// Returns when all requested work is done.
    ///
    /// # Errors
    /// When any of it failed.
    fn wait(&mut self) -> Result<(), GpuError>;

    /// The bytes of a download, after `wait`.
    ///
    /// # Errors
    /// Before `wait`, or a second time.
    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError>;

    fn counts(&self) -> Counts;

    /// (bytes in use, bytes in use and bytes that can be allocated).
    fn memory(&self) -> (u64, u64);

    /// The PCI address `domain:bus:device.function` by which NVML finds the GPU. `None` for a device that is no GPU.
    fn bus_id(&self) -> Option<String> {
        None
    }
}

/// Starts the variant of a kernel called `name`.
///
/// # Errors
/// Errors of `Device::start`; an unknown variant, or arguments that do not match its kernel.
pub fn launch<L: Launch>(device: &mut dyn Device, name: &str, grid: [usize; 3], arguments: &L) -> Result<(), GpuError> {
    let kernel = kernel(name)?;
    if kernel.kernel != L::KERNEL {
        return Err(GpuError::Launch(format!("{name} is a variant of {}, not of {}", kernel.kernel, L::KERNEL)));
    }
    let (grid, args) = (grid.map(|n| u32::try_from(n).unwrap_or(0)), arguments.args());
    super::launch::check(kernel, grid, &args)?;
    device.start(kernel, grid, &args)
}
