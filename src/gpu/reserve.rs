//! Memory that is set aside for work whose needs were measured beforehand, so that it finds its memory at any time.

use std::collections::HashMap;

use super::arena::{Arena, GRAIN};
use super::device::{Counts, Device, Download};
use super::launch::Arg;
use super::layer::Layer;
use super::manifest::Kernel;
use super::shared::Shared;
use super::{GpuError, Slice};

/// A device whose allocations are in a block that is allocated in advance, as long as there is room in it. The block is
/// freed when this is dropped.
pub struct Reserve {
    device: Shared,
    block: Slice,
    arena: Arena,
}

impl Reserve {
    /// Sets `bytes` bytes of `device` aside.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(mut device: Shared, bytes: u64) -> Result<Self, GpuError> {
        let bytes = bytes.next_multiple_of(GRAIN);
        let block = device.alloc(bytes as usize)?;
        Ok(Self { device, block, arena: Arena::new(bytes) })
    }
}

impl Drop for Reserve {
    /// A device that has failed frees nothing.
    fn drop(&mut self) {
        super::allocations::free_all(&mut self.device, [self.block]);
    }
}

impl Layer for Reserve {
    fn below(&self) -> &dyn Device {
        &self.device
    }

    fn below_mut(&mut self) -> &mut dyn Device {
        &mut self.device
    }

    fn allocate(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        match self.arena.alloc(bytes as u64) {
            Some(at) => Ok(self.block.part(at as usize, bytes)),
            None => self.device.alloc(bytes),
        }
    }

    /// All work is done in order, so memory of the block can be used again at once.
    fn release(&mut self, slice: Slice) -> Result<(), GpuError> {
        match slice.address.checked_sub(self.block.address) {
            Some(at) if at < self.block.bytes as u64 => match self.arena.free(at) {
                true => Ok(()),
                false => Err(GpuError::Launch(format!("free: {:#x} is not allocated", slice.address))),
            },
            _ => self.device.free(slice),
        }
    }
}

/// A device that computes nothing and has more memory than any other: work on it tells the size of the block in which
/// the same work finds its memory. Downloads are zeros.
pub struct Measure {
    arena: Arena,
    /// The end of the highest allocation.
    end: u64,
    /// Bytes of each download.
    downloads: HashMap<u64, usize>,
}

/// First address.
const BASE: u64 = 1 << 20;
const BYTES: u64 = 1 << 50;

impl Measure {
    pub fn new() -> Self {
        Self { arena: Arena::new(BYTES), end: 0, downloads: HashMap::new() }
    }

    /// The bytes of the block that `work` needs.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn of(work: impl FnOnce(Shared) -> Result<(), GpuError>) -> Result<u64, GpuError> {
        let device = Shared::new(Box::new(Self::new()));
        work(device.clone())?;
        Ok(device.memory().0)
    }
}

impl Default for Measure {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Measure {
    fn name(&self) -> String {
        "a measured device".to_owned()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let out_of_memory = GpuError::OutOfMemory { wanted: bytes as u64, free: BYTES - self.arena.used_bytes() };
        let at = self.arena.alloc(bytes as u64).ok_or(out_of_memory)?;
        self.end = self.end.max(at + (bytes.max(1) as u64).next_multiple_of(GRAIN));
        Ok(Slice { address: BASE + at, bytes })
    }

    fn free(&mut self, slice: Slice) -> Result<(), GpuError> {
        match slice.address.checked_sub(BASE).is_some_and(|at| self.arena.free(at)) {
            true => Ok(()),
            false => Err(GpuError::Launch(format!("free: {:#x} is not allocated", slice.address))),
        }
    }

    fn upload(&mut self, _: Slice, _: &[u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn download(&mut self, from: Slice) -> Result<Download, GpuError> {
        let id = self.downloads.len() as u64;
        self.downloads.insert(id, from.bytes);
        Ok(Download(id))
    }

    fn copy(&mut self, _: Slice, _: Slice) -> Result<(), GpuError> {
        Ok(())
    }

    fn zero(&mut self, _: Slice) -> Result<(), GpuError> {
        Ok(())
    }

    fn start(&mut self, _: &'static Kernel, _: [u32; 3], _: &[Arg]) -> Result<(), GpuError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        Ok(())
    }

    fn take(&mut self, download: Download) -> Result<Vec<u8>, GpuError> {
        Ok(vec![0; self.downloads.get(&download.0).copied().unwrap_or(0)])
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// The end of the highest allocation so far, and all bytes.
    fn memory(&self) -> (u64, u64) {
        (self.end, BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::Sim;
    use super::*;

    /// Takes and frees memory; downloads what it wrote.
    fn work(device: &mut dyn Device) -> Result<Vec<u8>, GpuError> {
        let (a, b) = (device.alloc(300)?, device.alloc(1000)?);
        device.free(a)?;
        let (c, d) = (device.alloc(200)?, device.alloc(600)?);
        device.upload(d, &[7; 600])?;
        let download = device.download(d)?;
        [b, c, d].into_iter().try_for_each(|slice| device.free(slice))?;
        device.wait()?;
        device.take(download)
    }

    #[test]
    fn work_finds_the_memory_that_was_measured_and_takes_more_from_the_device() {
        let measured = Measure::of(|mut device| {
            assert_eq!(work(&mut device)?, [0; 600]);
            Ok(())
        });
        let bytes = measured.unwrap();
        assert_eq!(bytes, 512 + 1024 + 768);
        let sim = Shared::new(Box::new(Sim::new(bytes + 256)));
        let mut reserve = Reserve::new(sim.clone(), bytes).unwrap();
        assert_eq!((sim.memory().0, reserve.memory().0), (bytes, bytes));
        for _ in 0..2 {
            assert_eq!(work(&mut reserve).unwrap(), [7; 600]);
        }
        // What the block has no room for is of the device, as long as there is any.
        let (all, more) = (reserve.alloc(bytes as usize).unwrap(), reserve.alloc(100).unwrap());
        assert_eq!(sim.memory().0, bytes + 256);
        assert!(matches!(reserve.alloc(1), Err(GpuError::OutOfMemory { .. })));
        [all, more].into_iter().for_each(|slice| reserve.free(slice).unwrap());
        assert!(reserve.free(all).is_err() && reserve.free(more).is_err());
        assert_eq!(sim.memory().0, bytes);
        drop(reserve);
        assert_eq!(sim.memory().0, 0);
        assert!(Reserve::new(sim, bytes + 300).is_err());
    }
}
