//! Simulated devices that count their steps and fail on demand.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use instructd::gpu::device::{Counts, Device, Download};
use instructd::gpu::launch::Arg;
use instructd::gpu::manifest::Kernel;
use instructd::gpu::sim::{BYTES, Sim};
use instructd::gpu::{GpuError, Slice};

/// What a test changes of a device and reads from it. All devices that are opened with the same control obey it.
pub struct Control {
    /// Memory of devices that are opened from now on, in bytes.
    pub bytes: AtomicU64,
    /// Work fails.
    pub broken: AtomicBool,
    /// No memory can be allocated.
    pub full: AtomicBool,
    /// Number of times that work was waited for.
    pub waits: AtomicUsize,
    /// Number of tokens that were computed.
    pub tokens: AtomicUsize,
}

impl Control {
    pub const fn new() -> Self {
        let [broken, full] = [const { AtomicBool::new(false) }; 2];
        let [waits, tokens] = [const { AtomicUsize::new(0) }; 2];
        Self { bytes: AtomicU64::new(BYTES), broken, full, waits, tokens }
    }
}

/// A simulated device at the PCI address that is its name.
struct Controlled {
    name: String,
    inner: Sim,
    control: &'static Control,
}

/// Opens the device `sim:N` under the N-th control.
pub fn open(name: &str, controls: &'static [Control]) -> Result<Option<Box<dyn Device>>, String> {
    let index = name.strip_prefix("sim:").and_then(|n| n.parse::<usize>().ok());
    let control = index.and_then(|i| controls.get(i)).ok_or_else(|| format!("{name} has no control"))?;
    let inner = Sim::new(control.bytes.load(SeqCst));
    Ok(Some(Box::new(Controlled { name: name.to_owned(), inner, control })))
}

impl Device for Controlled {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        match self.control.full.load(SeqCst) {
            true => Err(GpuError::OutOfMemory { wanted: bytes as u64, free: 0 }),
            false => self.inner.alloc(bytes),
        }
    }

    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.inner.free(slice)
    }

    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError> {
        self.inner.upload(to, data)
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        self.inner.download(from)
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.inner.copy(from, to)
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.inner.zero(slice)
    }

    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        if kernel.kernel == "embed" {
            self.control.tokens.fetch_add(grid[0] as usize, SeqCst);
        }
        self.inner.start(kernel, grid, args)
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.control.waits.fetch_add(1, SeqCst);
        self.inner.wait()?;
        match self.control.broken.load(SeqCst) {
            true => Err(GpuError::Launch(format!("{} is broken", self.name))),
            false => Ok(()),
        }
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        self.inner.take(download)
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }

    fn memory(&self) -> (u64, u64) {
        self.inner.memory()
    }

    fn bus_id(&self) -> Option<String> {
        Some(self.name.clone())
    }
}
