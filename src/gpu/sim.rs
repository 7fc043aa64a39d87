//! A simulated device: the same calls as a GPU's, computed on the CPU by `twins`.
//!
//! It is stricter than a GPU. Memory is NaN until it is written, and inaccessible once it is freed; work runs only in
//! `wait`, so that reading too early is an error; every access is checked against the bounds of the launch's slice.

use std::collections::HashMap;

use super::arena::Arena;
use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::manifest::Kernel;
use super::memory::Memory;
use super::twins::{self, Call};
use super::{GpuError, Slice};

/// Memory, in bytes, of the device that settings and arguments call `sim`. It is allocated when it is used.
pub const BYTES: u64 = 8 << 30;
/// First simulated address: neither 0 nor an address of the host.
const BASE: u64 = 0x7A00_0000_0000;

enum Work {
    Alloc { at: u64, bytes: usize },
    Free { at: u64 },
    Upload { to: Slice, data: Vec<u8> },
    Download { id: u64, from: Slice },
    Copy { from: Slice, to: Slice },
    Zero { slice: Slice },
    Launch { kernel: &'static Kernel, grid: [u32; 3], args: Vec<Arg> },
}

pub struct Sim {
    arena: Arena,
    memory: Memory,
    queue: Vec<Work>,
    done: HashMap<u64, Vec<u8>>,
    asked: u64,
    counts: Counts,
}

impl Sim {
    /// A device with `bytes` of memory.
    pub fn new(bytes: u64) -> Self {
        Self {
            arena: Arena::new(bytes),
            memory: Memory::default(),
            queue: Vec::new(),
            done: HashMap::new(),
            asked: 0,
            counts: Counts::default(),
        }
    }

    /// # Errors
    /// When `slice` is not within one live allocation.
    fn held(&self, slice: Slice, what: &str) -> Result<(), GpuError> {
        let at = slice.address.checked_sub(BASE);
        match at.and_then(|at| self.arena.holder(at, slice.bytes as u64)) {
            Some(_) => Ok(()),
            None => Err(GpuError::Launch(format!("{what}: {:#x}..+{} is not allocated", slice.address, slice.bytes))),
        }
    }

    fn run(&mut self, work: Work) -> Result<(), String> {
        match work {
            Work::Alloc { at, bytes } => drop(self.memory.held.insert(at, vec![0xFF; bytes])),
            Work::Free { at } => drop(self.memory.held.remove(&at)),
            Work::Upload { to, data } => self.memory.bytes(to)?[..data.len()].copy_from_slice(&data),
            Work::Download { id, from } => {
                let data = self.memory.bytes(from)?.to_vec();
                self.done.insert(id, data);
            }
            Work::Copy { from, to } => {
                let data = self.memory.bytes(from)?.to_vec();
                self.memory.bytes(to)?.copy_from_slice(&data);
            }
            Work::Zero { slice } => self.memory.bytes(slice)?.fill(0),
            Work::Launch { kernel, grid, args } => {
                let mut call = Call { kernel, grid, args: &args, memory: &mut self.memory };
                twins::run(&mut call).map_err(|why| format!("{}: {why}", kernel.name))?;
            }
        }
        Ok(())
    }
}

impl Device for Sim {
    fn name(&self) -> String {
        "simulated device".to_owned()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let Some(at) = self.arena.alloc(bytes as u64) else {
            let free = self.arena.size() - self.arena.used_bytes();
            return Err(GpuError::OutOfMemory { wanted: bytes as u64, free });
        };
        let address = BASE + at;
        self.queue.push(Work::Alloc { at: address, bytes });
        Ok(Slice { address, bytes })
    }

    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        if !slice.address.checked_sub(BASE).is_some_and(|at| self.arena.free(at)) {
            return Err(GpuError::Launch(format!("free: {:#x} is not allocated", slice.address)));
        }
        self.queue.push(Work::Free { at: slice.address });
        Ok(())
    }

    fn upload(&mut self, to: Slice, data: &[u8]) -> Result<(), GpuError> {
        self.held(to, "upload")?;
        if data.len() > to.bytes {
            return Err(GpuError::Launch(format!("upload: {} bytes into {}", data.len(), to.bytes)));
        }
        self.counts.uploads += 1;
        self.queue.push(Work::Upload { to, data: data.to_vec() });
        Ok(())
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        self.held(from, "download")?;
        self.counts.downloads += 1;
        self.asked += 1;
        self.queue.push(Work::Download { id: self.asked, from });
        Ok(Download(self.asked))
    }

    fn copy(&mut self, from: Slice, to: Slice) -> Result<(), GpuError> {
        self.held(from, "copy")?;
        self.held(to, "copy")?;
        if from.bytes != to.bytes {
            return Err(GpuError::Launch(format!("copy: {} bytes to {}", from.bytes, to.bytes)));
        }
        self.queue.push(Work::Copy { from, to });
        Ok(())
    }

    fn zero(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.held(slice, "zero")?;
        self.queue.push(Work::Zero { slice });
        Ok(())
    }

    fn start(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), GpuError> {
        for (arg, (name, _)) in args.iter().zip(&kernel.params) {
            if let Arg::Pointer(slice) = arg {
                self.held(*slice, &format!("{}: {name}", kernel.name))?;
            }
        }
        self.counts.launches += 1;
        self.queue.push(Work::Launch { kernel, grid, args: args.to_vec() });
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.counts.waits += 1;
        let mut failed = None;
        for work in std::mem::take(&mut self.queue) {
            // As on a GPU, work after a failure does not run; allocations stay consistent.
            if failed.is_some() && !matches!(work, Work::Alloc { .. } | Work::Free { .. }) {
                continue;
            }
            if let Err(why) = self.run(work) {
                failed.get_or_insert(why);
            }
        }
        failed.map_or(Ok(()), |why| Err(GpuError::Launch(why)))
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        let early = || GpuError::Launch("a download was read before `wait`".to_owned());
        self.done.remove(&download.0).ok_or_else(early)
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn memory(&self) -> (u64, u64) {
        (self.arena.used_bytes(), self.arena.size())
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::launch;
    use super::super::launch::Add;
    use super::*;

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn add(sim: &mut Sim, x: Slice, branch: Slice, count: i32) -> Result<(), GpuError> {
        launch(sim, "add.f32", [1, 1, 1], &Add { x, branch, count, scale: 2.0 })
    }

    #[test]
    fn work_runs_in_order_and_only_in_a_wait() {
        let mut sim = Sim::new(4096);
        let (x, y) = (sim.alloc(8).unwrap(), sim.alloc(8).unwrap());
        sim.upload(x, bytemuck::cast_slice(&[1f32, 2.0])).unwrap();
        sim.copy(x, y).unwrap();
        add(&mut sim, x, y, 2).unwrap();
        sim.zero(y).unwrap();
        add(&mut sim, x, y, 2).unwrap();
        let download = sim.download(x).unwrap();
        let error = sim.take(download).unwrap_err().to_string();
        assert!(error.contains("before `wait`"), "{error}");
        sim.wait().unwrap();
        assert_eq!(floats(&sim.take(download).unwrap()), [3.0, 6.0]);
        assert!(sim.take(download).is_err(), "a download is taken once");
        assert_eq!(sim.counts(), Counts { launches: 2, uploads: 1, downloads: 1, waits: 1 });
    }

    #[test]
    fn memory_is_nan_before_it_is_written_and_gone_after_it_is_freed() {
        let mut sim = Sim::new(4096);
        let (x, y) = (sim.alloc(8).unwrap(), sim.alloc(8).unwrap());
        sim.upload(y, bytemuck::cast_slice(&[1f32, 2.0])).unwrap();
        add(&mut sim, x, y, 2).unwrap();
        let download = sim.download(x).unwrap();
        sim.free(y).unwrap();
        let error = add(&mut sim, x, y, 2).unwrap_err().to_string();
        assert!(error.contains("add.f32: branch") && error.contains("not allocated"), "{error}");
        assert!(sim.free(y).is_err() && sim.upload(y, &[0]).is_err() && sim.download(y).is_err());
        sim.wait().unwrap();
        assert!(floats(&sim.take(download).unwrap()).iter().all(|v| v.is_nan()));
        // The memory is allocated again; its contents are gone.
        let again = sim.alloc(8).unwrap();
        assert_eq!(again.address, y.address);
        let download = sim.download(again).unwrap();
        sim.wait().unwrap();
        assert!(floats(&sim.take(download).unwrap()).iter().all(|v| v.is_nan()));
    }

    #[test]
    fn a_kernel_that_leaves_its_slice_fails_and_later_work_does_not_run() {
        let mut sim = Sim::new(4096);
        let (x, y) = (sim.alloc(8).unwrap(), sim.alloc(8).unwrap());
        sim.upload(x, bytemuck::cast_slice(&[1f32, 2.0])).unwrap();
        sim.upload(y, bytemuck::cast_slice(&[1f32, 2.0])).unwrap();
        add(&mut sim, x, y, 3).unwrap();
        add(&mut sim, x, y, 2).unwrap();
        let download = sim.download(x).unwrap();
        let error = sim.wait().unwrap_err().to_string();
        assert!(error.contains("add.f32") && error.contains("outside"), "{error}");
        assert!(sim.take(download).is_err());
    }

    #[test]
    fn misaligned_arguments_and_too_much_memory_are_refused() {
        let mut sim = Sim::new(4096);
        let x = sim.alloc(64).unwrap();
        let error = add(&mut sim, x.part(4, 8), x.part(16, 8), 2).unwrap_err().to_string();
        assert!(error.contains("x is not aligned"), "{error}");
        assert_eq!(sim.alloc(5000).unwrap_err(), GpuError::OutOfMemory { wanted: 5000, free: 4096 - 256 });
    }
}
