//! Memory that a step takes and frees, and the inputs that it uploads.

use crate::gpu::device::Device;
use crate::gpu::{GpuError, Slice};

/// The inputs of a step, packed for one upload: sections at multiples of 16 bytes.
#[derive(Default)]
pub(in crate::model) struct Packed {
    pub data: Vec<u8>,
    /// Offsets and lengths in bytes.
    pub sections: Vec<(usize, usize)>,
}

impl Packed {
    /// Adds a section and returns its number.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        self.sections.push((self.data.len(), bytes.len()));
        self.data.extend_from_slice(bytes);
        self.sections.len() - 1
    }

    /// Adds a section of 32-bit integers.
    pub fn ints(&mut self, values: impl IntoIterator<Item = usize>) -> usize {
        let bytes: Vec<u8> = values.into_iter().flat_map(|v| (v as i32).to_le_bytes()).collect();
        self.push(&bytes)
    }

    /// Adds a section of f32.
    pub fn floats(&mut self, values: &[f32]) -> usize {
        self.push(bytemuck::cast_slice(values))
    }
}

/// Memory that is freed when the step ends.
pub(in crate::model) struct Scratch<'a> {
    pub device: &'a mut dyn Device,
    pub held: Vec<Slice>,
}

impl Scratch<'_> {
    pub fn take(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let slice = self.device.alloc(bytes)?;
        self.held.push(slice);
        Ok(slice)
    }

    /// Uploads packed inputs; returns their sections.
    pub fn upload(&mut self, packed: &Packed) -> Result<Vec<Slice>, GpuError> {
        let all = self.take(packed.data.len())?;
        self.device.upload(all, &packed.data)?;
        Ok(packed.sections.iter().map(|(at, bytes)| all.part(*at, *bytes)).collect())
    }

    pub fn give(&mut self) -> Result<(), GpuError> {
        for slice in self.held.drain(..) {
            self.device.free(slice)?;
        }
        Ok(())
    }
}
