//! Allocations that succeed or fail together, for devices that other models use as well.

use std::collections::BTreeMap;

use super::device::Device;
use super::layer::Layer;
use super::{GpuError, Slice};

/// A device that records what is allocated through it and not freed again.
struct Recorded<'d> {
    device: &'d mut dyn Device,
    /// By address.
    held: BTreeMap<u64, Slice>,
}

/// Runs `make`, and frees what it has allocated if it fails. Also returns the allocations that it left.
///
/// # Errors
/// Those of `make`.
pub fn all_or_nothing<T>(
    device: &mut dyn Device,
    make: impl FnOnce(&mut dyn Device) -> Result<T, GpuError>,
) -> Result<(T, Vec<Slice>), GpuError> {
    let mut recorded = Recorded { device: &mut *device, held: BTreeMap::new() };
    let made = make(&mut recorded);
    let held: Vec<Slice> = recorded.held.into_values().collect();
    match made {
        Ok(made) => Ok((made, held)),
        Err(error) => {
            free_all(device, held);
            Err(error)
        }
    }
}

/// Frees slices whose contents are not needed any more. A device that has failed frees nothing.
pub fn free_all(device: &mut dyn Device, slices: impl IntoIterator<Item = Slice>) {
    for slice in slices {
        let _ = device.free(slice);
    }
    let _ = device.wait();
}

impl Layer for Recorded<'_> {
    fn below(&self) -> &dyn Device {
        self.device
    }

    fn below_mut(&mut self) -> &mut dyn Device {
        self.device
    }

    fn allocate(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let slice = self.device.alloc(bytes)?;
        self.held.insert(slice.address, slice);
        Ok(slice)
    }

    fn release(&mut self, slice: Slice) -> Result<(), GpuError> {
        self.device.free(slice)?;
        self.held.remove(&slice.address);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::Sim;
    use super::*;

    #[test]
    fn a_failure_frees_what_was_allocated_before_it_and_nothing_else() {
        let mut sim = Sim::new(4096);
        let before = sim.alloc(256).unwrap();
        let error = all_or_nothing(&mut sim, |device| {
            let first = device.alloc(512)?;
            device.alloc(256)?;
            device.free(first)?;
            device.alloc(8192)
        });
        assert!(matches!(error, Err(GpuError::OutOfMemory { wanted: 8192, .. })));
        assert_eq!(sim.memory().0, 256);
        let (last, held) = all_or_nothing(&mut sim, |device| {
            let passing = device.alloc(300)?;
            let kept = device.alloc(256)?;
            device.free(passing)?;
            Ok(kept)
        })
        .unwrap();
        assert_eq!((held, sim.memory().0), (vec![last], 512));
        free_all(&mut sim, [before, last]);
        assert_eq!(sim.memory().0, 0);
    }
}
