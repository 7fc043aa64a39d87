//! The memory of the simulated device.

use std::collections::BTreeMap;

use super::Slice;

/// The contents of all allocations, by address.
#[derive(Default)]
pub struct Memory {
    pub(super) held: BTreeMap<u64, Vec<u8>>,
}

impl Memory {
    /// The bytes of a slice.
    ///
    /// # Errors
    /// When they are not within one allocation.
    pub fn bytes(&mut self, slice: Slice) -> Result<&mut [u8], String> {
        let (at, data) = self
            .held
            .range_mut(..=slice.address)
            .next_back()
            .filter(|(at, data)| slice.address + slice.bytes as u64 <= **at + data.len() as u64)
            .ok_or_else(|| format!("{:#x}..+{} is not allocated", slice.address, slice.bytes))?;
        let from = (slice.address - at) as usize;
        Ok(&mut data[from..from + slice.bytes])
    }
}
