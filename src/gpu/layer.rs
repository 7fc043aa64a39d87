//! Devices in front of another that change how memory is allocated and pass everything else on.

use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::manifest::Kernel;
use super::{GpuError, Slice};

/// A device in front of another one.
pub(super) trait Layer: Send {
    /// The device behind it.
    fn below(&self) -> &dyn Device;

    fn below_mut(&mut self) -> &mut dyn Device;

    /// Allocates for [`Device::alloc`].
    ///
    /// # Errors
    /// `OutOfMemory`; nothing is changed then.
    fn allocate(&mut self, bytes: usize) -> Result<Slice, GpuError>;

    /// Frees for [`Device::free`].
    ///
    /// # Errors
    /// When `slice` is not allocated.
    fn release(&mut self, slice: Slice) -> Result<(), GpuError>;
}

impl<L: Layer> Device for L {
    fn name(&self) -> String {
        self.below().name()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        self.allocate(bytes)
    }

    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.release(slice)
    }

    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError> {
        self.below_mut().upload(to, data)
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        self.below_mut().download(from)
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.below_mut().copy(from, to)
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.below_mut().zero(slice)
    }

    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        self.below_mut().start(kernel, grid, args)
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.below_mut().wait()
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        self.below_mut().take(download)
    }

    fn counts(&self) -> Counts {
        self.below().counts()
    }

    fn memory(&self) -> (u64, u64) {
        self.below().memory()
    }

    fn bus_id(&self) -> Option<String> {
        self.below().bus_id()
    }
}
