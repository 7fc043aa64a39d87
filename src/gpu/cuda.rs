//! A GPU through NVIDIA's driver: libcuda is opened when a GPU is requested, and no other part of CUDA is needed.
//!
//! No GPU has run this file yet; `docs/gpu.md` says what stands in for that.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::arena::Arena;
use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::manifest::Kernel;
use super::{GpuError, Slice};

/// Bytes of pinned memory for uploads, in two halves: one is filled while the other is copied.
const STAGING: usize = 32 << 20;
/// Bytes left free when the arena takes all other memory.
const SPARE: u64 = 512 << 20;

/// Whether NVIDIA's driver can be opened.
///
/// # Errors
/// A line that says what is missing.
pub fn driver() -> Result<(), GpuError> {
    if present() { Ok(()) } else { Err(unavailable("NVIDIA's driver (libcuda.so.1) is not installed here")) }
}

/// In builds with candle's CUDA the driver is linked: the program would not have started without it.
#[cfg(feature = "cuda")]
fn present() -> bool {
    true
}

#[cfg(not(feature = "cuda"))]
fn present() -> bool {
    // SAFETY: opens the library and closes it again; it has no requirements of ours.
    catch_unwind(|| unsafe { sys::is_culib_present() }).unwrap_or(false)
}

fn unavailable(why: impl Into<String>) -> GpuError {
    GpuError::Unavailable(why.into())
}

fn failed(what: &str, error: DriverError) -> GpuError {
    GpuError::Launch(format!("{what}: {error}"))
}

/// Pinned host memory.
struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, GpuError> {
        // SAFETY: the context is current; the memory is freed once, in `drop`.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| failed("pinned memory", e))?;
        Ok(Self { at: at.cast(), bytes })
    }

    fn slice(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` bytes that this owns; whoever copies to or from it on the device waits before the next use.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: what `malloc_host` gave.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// One GPU: its context, one stream, and one large block of memory for allocations.
pub struct Cuda {
    index: usize,
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    base: u64,
    arena: Arena,
    functions: BTreeMap<&'static str, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    /// The halves, each with the event after which it may be filled again.
    staging: Vec<(Pinned, sys::CUevent)>,
    turn: usize,
    /// Copies to the host; those below `waited` are complete.
    downloads: HashMap<u64, Pinned>,
    asked: u64,
    waited: u64,
    counts: Counts,
}

// SAFETY: handles of the driver may be used by any thread on which their context is current; every method makes it so.
unsafe impl Send for Cuda {}

impl Cuda {
    /// GPU `index`, counted from 0, with `bytes` of its memory; `None` = all free memory but `SPARE`.
    ///
    /// # Errors
    /// `Unavailable` with one line when the driver or the GPU is missing; `OutOfMemory`.
    pub fn open(index: usize, bytes: Option<u64>) -> Result<Self, GpuError> {
        driver()?;
        // The loader of the driver's functions panics when one is missing, as in an old driver.
        catch_unwind(AssertUnwindSafe(|| Self::open_checked(index, bytes)))
            .unwrap_or_else(|_| Err(unavailable("NVIDIA's driver is too old: 525 or newer is needed")))
    }

    fn open_checked(index: usize, bytes: Option<u64>) -> Result<Self, GpuError> {
        let no = |what: &str, e: DriverError| unavailable(format!("GPU {index} cannot be used: {what}: {e}"));
        result::init().map_err(|e| no("the driver does not start", e))?;
        let count = result::device::get_count().map_err(|e| no("counting", e))?;
        let ordinal = i32::try_from(index).ok().filter(|i| *i < count);
        let Some(ordinal) = ordinal else {
            return Err(unavailable(format!("there is no GPU {index}: the driver reports {count}, counted from 0")));
        };
        let device = result::device::get(ordinal).map_err(|e| no("opening", e))?;
        let name = result::device::get_name(device).map_err(|e| no("its name", e))?;
        // SAFETY: `device` is what the driver gave; the context is made current before it is used.
        let (context, stream) = unsafe {
            let context = result::primary_ctx::retain(device).map_err(|e| no("its context", e))?;
            result::ctx::set_current(context).map_err(|e| no("its context", e))?;
            (context, result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| no("a stream", e))?)
        };
        let (free, _) = result::mem_get_info().map_err(|e| no("its memory", e))?;
        let room = (free as u64).saturating_sub(SPARE);
        let bytes = bytes.unwrap_or(room);
        if bytes > room {
            return Err(GpuError::OutOfMemory { wanted: bytes, free: room });
        }
        // SAFETY: a plain allocation, freed in `drop`; whoever reads it writes it before.
        let base = unsafe { result::malloc_sync(bytes as usize) }.map_err(|e| no("allocating its memory", e))?;
        let event =
            || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(|e| no("an event", e));
        let staging = vec![(Pinned::new(STAGING / 2)?, event()?), (Pinned::new(STAGING / 2)?, event()?)];
        Ok(Self {
            index,
            name,
            device,
            context,
            stream,
            base,
            arena: Arena::new(bytes),
            functions: BTreeMap::new(),
            modules: Vec::new(),
            staging,
            turn: 0,
            downloads: HashMap::new(),
            asked: 0,
            waited: 0,
            counts: Counts::default(),
        })
    }

    fn enter(&self) -> Result<(), GpuError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("context", e))
    }

    /// # Errors
    /// When `slice` is not within one allocation.
    fn held(&self, slice: Slice, what: &str) -> Result<(), GpuError> {
        let at = slice.address.checked_sub(self.base);
        match at.and_then(|at| self.arena.holder(at, slice.bytes as u64)) {
            Some(_) => Ok(()),
            None => Err(GpuError::Launch(format!("{what}: {:#x}..+{} is not allocated", slice.address, slice.bytes))),
        }
    }

    /// The function of a kernel; its PTX is compiled by the driver when it is first needed.
    fn function(&mut self, kernel: &'static Kernel) -> Result<sys::CUfunction, GpuError> {
        if let Some(function) = self.functions.get(kernel.name.as_str()) {
            return Ok(*function);
        }
        let text =
            |s: String| CString::new(s).map_err(|_| GpuError::Launch(format!("{}: a zero in its PTX", kernel.name)));
        let (ptx, entry) = (text(kernel.ptx()?)?, text(kernel.entry.clone())?);
        // SAFETY: the image is a C string that outlives the call; the module is unloaded in `drop`.
        let function = unsafe {
            let module = result::module::load_data(ptx.as_ptr().cast()).map_err(|e| failed(&kernel.name, e))?;
            self.modules.push(module);
            let function = result::module::get_function(module, entry).map_err(|e| failed(&kernel.name, e))?;
            // More than 48 kB of shared memory must be enabled explicitly.
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, most, kernel.shared as i32)
                .map_err(|e| failed(&kernel.name, e))?;
            function
        };
        self.functions.insert(&kernel.name, function);
        Ok(function)
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        format!("GPU {} ({})", self.index, self.name)
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let Some(at) = self.arena.alloc(bytes as u64) else {
            let free = self.arena.size() - self.arena.used_bytes();
            return Err(GpuError::OutOfMemory { wanted: bytes as u64, free });
        };
        Ok(Slice { address: self.base + at, bytes })
    }

    /// One stream does all work in order, so memory can be reused at once.
    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        if slice.address.checked_sub(self.base).is_some_and(|at| self.arena.free(at)) {
            return Ok(());
        }
        Err(GpuError::Launch(format!("free: {:#x} is not allocated", slice.address)))
    }

    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError> {
        self.held(to, "upload")?;
        if data.len() > to.bytes {
            return Err(GpuError::Launch(format!("upload: {} bytes into {}", data.len(), to.bytes)));
        }
        self.enter()?;
        self.counts.uploads += 1;
        for (i, part) in data.chunks(STAGING / 2).enumerate() {
            let (pinned, event) = &mut self.staging[self.turn];
            self.turn = 1 - self.turn;
            // SAFETY: the event says when the last copy out of this half is done; the destination was checked.
            unsafe {
                result::event::synchronize(*event).map_err(|e| failed("upload", e))?;
                let staged = &mut pinned.slice()[..part.len()];
                staged.copy_from_slice(part);
                let at = to.address + (i * (STAGING / 2)) as u64;
                result::memcpy_htod_async(at, staged, self.stream).map_err(|e| failed("upload", e))?;
                result::event::record(*event, self.stream).map_err(|e| failed("upload", e))?;
            }
        }
        Ok(())
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        self.held(from, "download")?;
        self.enter()?;
        self.counts.downloads += 1;
        let mut pinned = Pinned::new(from.bytes.max(1))?;
        // SAFETY: the memory stays in `downloads` until the stream has been waited for; `take` and `drop` see to that.
        unsafe { result::memcpy_dtoh_async(&mut pinned.slice()[..from.bytes], from.address, self.stream) }
            .map_err(|e| failed("download", e))?;
        self.asked += 1;
        self.downloads.insert(self.asked, pinned);
        Ok(Download(self.asked))
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.held(from, "copy")?;
        self.held(to, "copy")?;
        if from.bytes != to.bytes {
            return Err(GpuError::Launch(format!("copy: {} bytes to {}", from.bytes, to.bytes)));
        }
        self.enter()?;
        // SAFETY: both were checked.
        unsafe { result::memcpy_dtod_async(to.address, from.address, from.bytes, self.stream) }
            .map_err(|e| failed("copy", e))
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.held(slice, "zero")?;
        self.enter()?;
        // SAFETY: the slice was checked.
        unsafe { result::memset_d8_async(slice.address, 0, slice.bytes, self.stream) }.map_err(|e| failed("zero", e))
    }

    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        for (arg, (name, _)) in args.iter().zip(&kernel.params) {
            if let Arg::Pointer(slice) = arg {
                self.held(*slice, &format!("{}: {name}", kernel.name))?;
            }
        }
        self.enter()?;
        let function = self.function(kernel)?;
        // Eight bytes for each argument, of which the driver reads as many as the parameter has; then the two scratch
        // pointers that Triton adds and that these kernels do not use.
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match arg {
                Arg::Pointer(slice) => slice.address,
                Arg::I32(v) => u64::from(*v as u32),
                Arg::F32(v) => u64::from(v.to_bits()),
            })
            .chain([0, 0])
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let block = (kernel.warps * 32, 1, 1);
        // SAFETY: the arguments were compared with the kernel's parameters, and the driver copies them before it
        // returns.
        unsafe {
            result::launch_kernel(
                function,
                (grid[0], grid[1], grid[2]),
                block,
                kernel.shared,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(|e| failed(&kernel.name, e))?;
        self.counts.launches += 1;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.enter()?;
        self.counts.waits += 1;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| failed("the GPU", e))?;
        self.waited = self.asked;
        Ok(())
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        if download.0 > self.waited {
            return Err(GpuError::Launch("a download was read before `wait`".to_owned()));
        }
        let taken = || GpuError::Launch("a download was taken twice".to_owned());
        let mut pinned = self.downloads.remove(&download.0).ok_or_else(taken)?;
        Ok(pinned.slice().to_vec())
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn memory(&self) -> (u64, u64) {
        (self.arena.used_bytes(), self.arena.size())
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: nothing runs after the stream was waited for; every handle is given back once.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            self.downloads.clear();
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            let _ = result::free_sync(self.base);
            for (pinned, event) in self.staging.drain(..) {
                let _ = result::event::destroy(event);
                drop(pinned);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_gpu_is_an_error_of_one_line() {
        let Err(error) = Cuda::open(4096, None) else { panic!("4097 GPUs") };
        let GpuError::Unavailable(line) = error else { panic!("{error}") };
        assert!(!line.contains('\n') && (line.contains("driver") || line.contains("GPU 4096")), "{line}");
        if driver().is_err() {
            assert!(line.contains("libcuda.so.1"), "{line}");
        }
    }
}
