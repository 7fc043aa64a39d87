//! What computes: memory of its own, one stream of work, and launches of compiled kernels.

use super::launch::{Arg, Launch};
use super::manifest::{Kernel, kernel};
use super::{GpuError, Slice};

/// A copy to the host that has been asked for; see `Device::take`.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Download(pub(super) u64);

/// What has been asked of a device so far.
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

/// A GPU, or the simulated one. Work is done in the order in which it is asked for, some time before `wait` returns.
pub trait Device: Send {
    /// How messages call it.
    fn name(&self) -> String;

    /// Memory whose contents are not defined.
    ///
    /// # Errors
    /// `OutOfMemory`, and nothing is changed.
    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError>;

    /// Gives memory back once the work asked for so far is done. `slice` is what `alloc` gave.
    ///
    /// # Errors
    /// When it is not allocated.
    fn free(&mut self, slice: Slice) -> Result<(), GpuError>;

    /// Copies `data` to the start of `to`. The bytes are taken before this returns.
    ///
    /// # Errors
    /// When they do not fit.
    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError>;

    /// Asks for a copy of `from`.
    ///
    /// # Errors
    /// When it is not allocated.
    fn download(&mut self, from: Slice) -> Result<Download, GpuError>;

    /// Copies within the device; both have the same size and do not overlap.
    ///
    /// # Errors
    /// When sizes differ or memory is not allocated.
    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError>;

    /// Starts a kernel. Arguments have been compared with its parameters.
    ///
    /// # Errors
    /// When an argument points to memory that is not allocated, or the driver refuses.
    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError>;

    /// Returns when all that was asked for is done.
    ///
    /// # Errors
    /// When any of it failed.
    fn wait(&mut self) -> Result<(), GpuError>;

    /// The bytes of a download, after a `wait`.
    ///
    /// # Errors
    /// When nobody has waited for it.
    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError>;

    fn counts(&self) -> Counts;

    /// Bytes in use, and bytes there are.
    fn memory(&self) -> (u64, u64);
}

/// Starts the variant of a kernel called `name`.
///
/// # Errors
/// As `Device::start`; and when there is no such variant, or the arguments are not those of its kernel.
pub fn launch<L: Launch>(device: &mut dyn Device, name: &str, grid: [usize; 3], arguments: &L) -> Result<(), GpuError> {
    let kernel = kernel(name)?;
    if kernel.kernel != L::KERNEL {
        return Err(GpuError::Launch(format!("{name} is a variant of {}, not of {}", kernel.kernel, L::KERNEL)));
    }
    let (grid, args) = (grid.map(|n| u32::try_from(n).unwrap_or(0)), arguments.args());
    super::launch::check(kernel, grid, &args)?;
    device.start(kernel, grid, &args)
}
