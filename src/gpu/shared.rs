//! One device for several models of a process: each holds a handle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::manifest::Kernel;
use super::{GpuError, Slice};

/// A handle of a device. Memory that one handle allocated can be used through the others, and all work is in one stream.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Box<dyn Device>>>);

impl Shared {
    pub fn new(device: Box<dyn Device>) -> Self {
        Self(Arc::new(Mutex::new(device)))
    }

    fn device(&self) -> MutexGuard<'_, Box<dyn Device>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Shared {
    fn name(&self) -> String {
        self.device().name()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        self.device().alloc(bytes)
    }

    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.device().free(slice)
    }

    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError> {
        self.device().upload(to, data)
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        self.device().download(from)
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.device().copy(from, to)
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.device().zero(slice)
    }

    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        self.device().start(kernel, grid, args)
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.device().wait()
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        self.device().take(download)
    }

    fn counts(&self) -> Counts {
        self.device().counts()
    }

    fn memory(&self) -> (u64, u64) {
        self.device().memory()
    }

    fn bus_id(&self) -> Option<String> {
        self.device().bus_id()
    }
}
