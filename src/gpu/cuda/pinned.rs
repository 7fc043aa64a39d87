//! Pinned host memory, which copies to and from a GPU read and write without the processor.

use cudarc::driver::result;

use super::failed;
use crate::gpu::GpuError;

/// Number of unused buffers that a pool keeps.
const MOST_UNUSED: usize = 8;

/// One block of pinned memory.
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// Allocates `bytes` bytes, whose contents are undefined.
    ///
    /// # Errors
    /// When the driver refuses. The context must be current.
    pub fn new(bytes: usize) -> Result<Self, GpuError> {
        // SAFETY: the context is current; the memory is freed once, in `drop`.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| failed("pinned memory", e))?;
        Ok(Self { at: at.cast(), bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn slice(&mut self) -> &mut [u8] {
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

/// Buffers that are used again, because allocating one takes longer than a step of a small model.
#[derive(Default)]
pub struct Pool {
    unused: Vec<Pinned>,
}

impl Pool {
    /// A buffer of at least `bytes` bytes.
    ///
    /// # Errors
    /// Those of [`Pinned::new`].
    pub fn take(&mut self, bytes: usize) -> Result<Pinned, GpuError> {
        let fits = |p: &(usize, &Pinned)| p.1.bytes() >= bytes;
        let smallest = self.unused.iter().enumerate().filter(fits).min_by_key(|(_, p)| p.bytes()).map(|(i, _)| i);
        match smallest {
            Some(i) => Ok(self.unused.swap_remove(i)),
            None => Pinned::new(bytes.max(4096).next_power_of_two()),
        }
    }

    /// Returns a buffer that no copy uses any more.
    pub fn give(&mut self, pinned: Pinned) {
        self.unused.push(pinned);
        if self.unused.len() > MOST_UNUSED {
            // The smallest is the cheapest to allocate again.
            let smallest = self.unused.iter().enumerate().min_by_key(|(_, p)| p.bytes()).map(|(i, _)| i);
            smallest.map(|i| self.unused.swap_remove(i));
        }
    }

    pub fn clear(&mut self) {
        self.unused.clear();
    }
}
