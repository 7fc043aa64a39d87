//! A GPU through NVIDIA's driver: libcuda is opened when a GPU is requested, and no other part of CUDA is needed.
//! `docs/gpu.md` says on which GPU it was run.

mod graphs;
mod pinned;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use self::graphs::{Graphs, Queued, Start};
use self::pinned::{Pinned, Pool};
use super::arena::{Arena, GRAIN};
use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::manifest::Kernel;
use super::{GpuError, Slice};

/// Bytes of pinned memory for uploads, in two halves: one is filled while the other is copied.
const STAGING: usize = 32 << 20;
/// Bytes of the GPU's memory that are never taken.
const SPARE: u64 = 512 << 20;
/// Memory is taken from the driver in pieces of at least this many bytes.
const PIECE: u64 = 64 << 20;

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

/// One GPU: its context, one stream, and the memory that was taken from the driver for allocations. Memory that was
/// freed is used again and returned to the driver only in the end, so a step needs none of the driver's allocations.
pub struct Cuda {
    index: usize,
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// By address.
    pieces: BTreeMap<u64, Arena>,
    /// Most bytes to take.
    most: u64,
    functions: BTreeMap<&'static str, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    /// Launches that were requested and not started yet.
    queue: Vec<Queued>,
    graphs: Graphs,
    /// The halves, each with the event after which it may be filled again.
    staging: Vec<(Pinned, sys::CUevent)>,
    turn: usize,
    /// Copies to the host; those below `waited` are complete.
    downloads: HashMap<u64, (Pinned, usize)>,
    unused: Pool,
    asked: u64,
    waited: u64,
    counts: Counts,
}

// SAFETY: handles of the driver may be used by any thread on which their context is current; every method makes it so.
unsafe impl Send for Cuda {}

impl Cuda {
    /// GPU `index`, counted from 0, of whose memory at most `most` bytes are taken; `None` = all but `SPARE`.
    ///
    /// # Errors
    /// `Unavailable` with one line when the driver or the GPU is missing.
    pub fn open(index: usize, most: Option<u64>) -> Result<Self, GpuError> {
        driver()?;
        // The loader of the driver's functions panics when one is missing, as in an old driver.
        catch_unwind(AssertUnwindSafe(|| Self::open_checked(index, most)))
            .unwrap_or_else(|_| Err(unavailable("NVIDIA's driver is too old: 525 or newer is needed")))
    }

    fn open_checked(index: usize, most: Option<u64>) -> Result<Self, GpuError> {
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
        let event =
            || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(|e| no("an event", e));
        let staging = vec![(Pinned::new(STAGING / 2)?, event()?), (Pinned::new(STAGING / 2)?, event()?)];
        Ok(Self {
            index,
            name,
            device,
            context,
            stream,
            pieces: BTreeMap::new(),
            most: most.unwrap_or(u64::MAX),
            functions: BTreeMap::new(),
            modules: Vec::new(),
            queue: Vec::new(),
            graphs: Graphs::default(),
            staging,
            turn: 0,
            downloads: HashMap::new(),
            unused: Pool::default(),
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
        let piece = self.pieces.range(..=slice.address).next_back();
        match piece.and_then(|(base, arena)| arena.holder(slice.address - base, slice.bytes as u64)) {
            Some(_) => Ok(()),
            None => Err(GpuError::Launch(format!("{what}: {:#x}..+{} is not allocated", slice.address, slice.bytes))),
        }
    }

    /// Bytes that can still be taken from the driver.
    fn room(&self) -> u64 {
        let taken: u64 = self.pieces.values().map(Arena::size).sum();
        let (free, _) = result::mem_get_info().unwrap_or((0, 0));
        (free as u64).saturating_sub(SPARE).min(self.most.saturating_sub(taken))
    }

    /// Takes a piece of at least `bytes` bytes from the driver.
    fn grow(&mut self, bytes: u64) -> Result<(), GpuError> {
        let need = bytes.max(1).next_multiple_of(GRAIN);
        let room = self.room() / GRAIN * GRAIN;
        if need > room {
            return Err(GpuError::OutOfMemory { wanted: bytes, free: room });
        }
        let size = need.max(PIECE).min(room);
        // SAFETY: a plain allocation, freed in `drop`; whoever reads it writes it before.
        let base = unsafe { result::malloc_sync(size as usize) }
            .map_err(|_| GpuError::OutOfMemory { wanted: bytes, free: room })?;
        self.pieces.insert(base, Arena::new(size));
        Ok(())
    }

    /// Gives pieces without allocations back to the driver, which can join them. Whether there were any.
    fn give_back(&mut self) -> Result<bool, GpuError> {
        if self.pieces.values().all(|arena| arena.used_bytes() > 0) {
            return Ok(false);
        }
        self.wait()?;
        let (empty, used) =
            std::mem::take(&mut self.pieces).into_iter().partition(|(_, arena)| arena.used_bytes() == 0);
        self.pieces = used;
        let empty: BTreeMap<u64, Arena> = empty;
        for base in empty.into_keys() {
            // SAFETY: the stream was waited for, and nothing in the piece is allocated.
            unsafe { result::free_sync(base) }.map_err(|e| failed("the GPU", e))?;
        }
        Ok(true)
    }

    fn alloc_in_pieces(&mut self, bytes: usize) -> Option<Slice> {
        let found = self.pieces.iter_mut().find_map(|(base, arena)| Some(base + arena.alloc(bytes as u64)?));
        found.map(|address| Slice { address, bytes })
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

    /// Starts the queued launches.
    fn flush(&mut self) -> Result<(), GpuError> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let queue = std::mem::take(&mut self.queue);
        let started = self.start_all(&queue);
        // The allocation is used again.
        self.queue = queue;
        self.queue.clear();
        started
    }

    fn start_all(&mut self, queue: &[Queued]) -> Result<(), GpuError> {
        let stream = self.stream;
        let graph = match self.graphs.plan(queue) {
            Start::Graph(graph) => graph,
            Start::Singly => {
                self.check_memory(queue)?;
                return queue
                    .iter()
                    .try_for_each(|launch| launch_kernel(launch, stream).map_err(|e| failed(&launch.kernel.name, e)));
            }
            Start::Capture(key) => {
                let launches = || queue.iter().try_for_each(|launch| launch_kernel(launch, stream));
                let graph = graphs::capture(stream, launches).map_err(|e| failed("a graph", e))?;
                self.graphs.captured(key, graph);
                graph
            }
        };
        // SAFETY: made by `capture` and not destroyed.
        unsafe { result::graph::launch(graph, stream) }.map_err(|e| failed("a graph", e))
    }

    /// # Errors
    /// When an argument points outside of allocated memory. Repeated queues passed this before.
    fn check_memory(&self, queue: &[Queued]) -> Result<(), GpuError> {
        for launch in queue {
            for (arg, (name, _)) in launch.args.iter().zip(&launch.kernel.params) {
                if let Arg::Pointer(slice) = arg {
                    self.held(*slice, &format!("{}: {name}", launch.kernel.name))?;
                }
            }
        }
        Ok(())
    }
}

/// Starts one kernel.
fn launch_kernel(launch: &Queued, stream: sys::CUstream) -> Result<(), DriverError> {
    // Eight bytes for each argument, of which the driver reads as many as the parameter has; then the two scratch
    // pointers that Triton adds and that these kernels do not use.
    let mut values: Vec<u64> = launch
        .args
        .iter()
        .map(|arg| match arg {
            Arg::Pointer(slice) => slice.address,
            Arg::I32(v) => u64::from(*v as u32),
            Arg::F32(v) => u64::from(v.to_bits()),
        })
        .chain([0, 0])
        .collect();
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
    let (grid, kernel) = (launch.grid, launch.kernel);
    let block = (kernel.warps * 32, 1, 1);
    // SAFETY: the arguments were compared with the kernel's parameters, and the driver copies them before it returns.
    unsafe {
        result::launch_kernel(launch.function, (grid[0], grid[1], grid[2]), block, kernel.shared, stream, &mut pointers)
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        format!("GPU {} ({})", self.index, self.name)
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        if let Some(slice) = self.alloc_in_pieces(bytes) {
            return Ok(slice);
        }
        self.enter()?;
        if let Err(full) = self.grow(bytes as u64) {
            if !self.give_back()? {
                return Err(full);
            }
            self.grow(bytes as u64)?;
        }
        self.alloc_in_pieces(bytes).ok_or(GpuError::OutOfMemory { wanted: bytes as u64, free: 0 })
    }

    /// One stream does all work in order, so memory can be reused at once.
    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.enter()?;
        self.flush()?;
        let piece = self.pieces.range_mut(..=slice.address).next_back();
        if piece.is_some_and(|(base, arena)| arena.free(slice.address - base)) {
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
        self.flush()?;
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
        self.flush()?;
        self.counts.downloads += 1;
        let mut pinned = self.unused.take(from.bytes)?;
        // SAFETY: the memory stays in `downloads` until the stream has been waited for; `take` and `drop` see to that.
        unsafe { result::memcpy_dtoh_async(&mut pinned.slice()[..from.bytes], from.address, self.stream) }
            .map_err(|e| failed("download", e))?;
        self.asked += 1;
        self.downloads.insert(self.asked, (pinned, from.bytes));
        Ok(Download(self.asked))
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.held(from, "copy")?;
        self.held(to, "copy")?;
        if from.bytes != to.bytes {
            return Err(GpuError::Launch(format!("copy: {} bytes to {}", from.bytes, to.bytes)));
        }
        self.enter()?;
        self.flush()?;
        // SAFETY: both were checked.
        unsafe { result::memcpy_dtod_async(to.address, from.address, from.bytes, self.stream) }
            .map_err(|e| failed("copy", e))
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.held(slice, "zero")?;
        self.enter()?;
        self.flush()?;
        // SAFETY: the slice was checked.
        unsafe { result::memset_d8_async(slice.address, 0, slice.bytes, self.stream) }.map_err(|e| failed("zero", e))
    }

    /// Queues the launch; `flush` starts it.
    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        self.enter()?;
        let function = self.function(kernel)?;
        self.counts.launches += 1;
        self.queue.push(Queued { kernel, function, grid, args: args.to_vec() });
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.enter()?;
        self.flush()?;
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
        let (mut pinned, bytes) = self.downloads.remove(&download.0).ok_or_else(taken)?;
        let data = pinned.slice()[..bytes].to_vec();
        self.unused.give(pinned);
        Ok(data)
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn memory(&self) -> (u64, u64) {
        let used = self.pieces.values().map(Arena::used_bytes).sum();
        let taken: u64 = self.pieces.values().map(Arena::size).sum();
        let room = self.enter().map_or(0, |()| self.room());
        (used, taken + room)
    }

    fn bus_id(&self) -> Option<String> {
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: `device` is what the driver gave.
        let attribute = |name| unsafe { result::device::get_attribute(self.device, name) }.ok();
        let domain = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
        let bus = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
        let device = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
        Some(format!("{domain:08x}:{bus:02x}:{device:02x}.0"))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: nothing runs after the stream was waited for; every handle is given back once.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            self.downloads.clear();
            self.unused.clear();
            self.graphs.clear();
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            for base in self.pieces.keys() {
                let _ = result::free_sync(*base);
            }
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
