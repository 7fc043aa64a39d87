//! The memory of a trainer: weights, gradients and moments in slabs, frozen weights, and buffers of a pass.

use std::collections::{BTreeMap, HashMap};

use super::layout::{HostTensor, MatrixId, Plan, PlannedMatrix};
use crate::gpu::device::Device;
use crate::gpu::shared::Shared;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::device::kernels::numbers;
use crate::model::decoder::device::weights::{Element, as_bytes};

/// A matrix [rows, width] on the device; a vector has width 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    /// In the element type of the computation.
    pub value: Slice,
    /// f32; of trained matrices only.
    pub grad: Option<Slice>,
    pub rows: usize,
    pub width: usize,
}

/// Trained matrices one after the other, so that an update is a launch for all of them.
pub(super) struct Slab {
    /// Whether weight decay applies.
    pub decayed: bool,
    /// Number of elements, including those between matrices, which stay 0.
    pub len: usize,
    /// Weights in f32.
    pub p: Slice,
    pub g: Slice,
    /// First and second moments.
    pub m: Slice,
    pub v: Slice,
    /// The weights in bfloat16, where the computation uses it.
    pub half: Option<Slice>,
}

/// A state of the trained tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Weights,
    Gradients,
    /// First moments.
    M,
    /// Second moments.
    V,
}

/// Begin of matrices in a slab: a multiple of this number of elements, for alignment in every element type.
const ALIGNED: usize = 8;

/// Where a trained matrix is: its slab and its first element there.
type Place = (usize, usize);

pub(super) struct Storage {
    pub weights: Vec<Weight>,
    pub slabs: Vec<Slab>,
    places: HashMap<MatrixId, Place>,
}

impl Storage {
    /// Allocates all matrices of a plan and copies the values of its tensors. Frozen matrices get no gradient and no
    /// moments.
    ///
    /// # Errors
    /// `OutOfMemory`, or errors of the device.
    pub fn new(device: &mut dyn Device, plan: &Plan, element: Element) -> Result<Self, GpuError> {
        let mut places = HashMap::new();
        let mut lens = [0usize; 2];
        for (id, matrix) in plan.matrices.iter().enumerate().filter(|(_, m)| m.trained) {
            let slab = usize::from(!matrix.decayed);
            places.insert(id, (slab, lens[slab]));
            lens[slab] += (matrix.rows * matrix.width).next_multiple_of(ALIGNED);
        }
        let mut slabs = Vec::new();
        let mut numbers = [0; 2];
        for (i, len) in lens.into_iter().enumerate().filter(|(_, len)| *len > 0) {
            numbers[i] = slabs.len();
            slabs.push(Slab::new(device, len, i == 0, element)?);
        }
        places.values_mut().for_each(|(slab, _)| *slab = numbers[*slab]);
        let weights = plan.matrices.iter().enumerate().map(|(id, matrix)| {
            let (rows, width) = (matrix.rows, matrix.width);
            let count = rows * width;
            match places.get(&id) {
                None => Ok(Weight { value: device.alloc(count * element.bytes())?, grad: None, rows, width }),
                Some((slab, at)) => {
                    let slab: &Slab = &slabs[*slab];
                    let (values, size) = slab.half.map_or((slab.p, 4), |half| (half, 2));
                    let value = values.part(at * size, count * size);
                    Ok(Weight { value, grad: Some(slab.g.part(at * 4, count * 4)), rows, width })
                }
            }
        });
        let weights = weights.collect::<Result<Vec<_>, GpuError>>()?;
        let storage = Self { weights, slabs, places };
        storage.copy_values(device, &plan.tensors, &plan.matrices, element)?;
        Ok(storage)
    }

    /// A storage without matrices.
    pub fn empty() -> Self {
        Self { weights: Vec::new(), slabs: Vec::new(), places: HashMap::new() }
    }

    /// Allocates those of `matrices` that are not here yet, none of which is trained, and copies the values of `tensors`.
    ///
    /// # Errors
    /// `OutOfMemory`, or errors of the device.
    pub fn add_frozen(
        &mut self,
        device: &mut dyn Device,
        tensors: &[HostTensor],
        matrices: &[PlannedMatrix],
        element: Element,
    ) -> Result<(), GpuError> {
        for PlannedMatrix { rows, width, .. } in &matrices[self.weights.len()..] {
            let value = device.alloc(rows * width * element.bytes())?;
            self.weights.push(Weight { value, grad: None, rows: *rows, width: *width });
        }
        self.copy_values(device, tensors, matrices, element)
    }

    /// Copies `tensors` to their places in `matrices`.
    fn copy_values(
        &self,
        device: &mut dyn Device,
        tensors: &[HostTensor],
        matrices: &[PlannedMatrix],
        element: Element,
    ) -> Result<(), GpuError> {
        for (number, tensor) in tensors.iter().enumerate() {
            let (values, (_, width)) = (tensor.values()?, tensor.rows_and_width());
            for (id, matrix) in matrices.iter().enumerate() {
                for part in matrix.parts.iter().filter(|part| part.tensor == number) {
                    let values = &values[part.rows.start * width..part.rows.end * width];
                    if matrix.trained {
                        self.put(device, matrix, id, State::Weights, part.at, values)?;
                    } else {
                        let size = element.bytes();
                        let to = self.weights[id].value.part(part.at * width * size, values.len() * size);
                        device.upload(to, &as_bytes(element, values))?;
                    }
                }
            }
            device.wait()?;
        }
        Ok(())
    }

    /// Everything that is allocated.
    pub fn slices(&self) -> impl Iterator<Item = Slice> {
        let frozen = self.weights.iter().filter(|weight| weight.grad.is_none()).map(|weight| weight.value);
        let slabs = self.slabs.iter().flat_map(|slab| [slab.p, slab.g, slab.m, slab.v].into_iter().chain(slab.half));
        frozen.chain(slabs)
    }

    /// The f32 values of a state of a trained matrix.
    fn slice(&self, matrix: &PlannedMatrix, id: MatrixId, state: State) -> Slice {
        let (slab, at) = self.places[&id];
        let slab = &self.slabs[slab];
        let all = match state {
            State::Weights => slab.p,
            State::Gradients => slab.g,
            State::M => slab.m,
            State::V => slab.v,
        };
        all.part(at * 4, matrix.rows * matrix.width * 4)
    }

    /// Writes rows of a trained matrix from row `at` on.
    fn put(
        &self,
        device: &mut dyn Device,
        matrix: &PlannedMatrix,
        id: MatrixId,
        state: State,
        at: usize,
        values: &[f32],
    ) -> Result<(), GpuError> {
        let from = at * matrix.width;
        let to = self.slice(matrix, id, state).part(from * 4, values.len() * 4);
        device.upload(to, bytemuck::cast_slice(values))?;
        let (slab, first) = self.places[&id];
        if let (State::Weights, Some(half)) = (state, self.slabs[slab].half) {
            let to = half.part((first + from) * 2, values.len() * 2);
            device.upload(to, &as_bytes(Element::Bf16, values))?;
        }
        Ok(())
    }

    /// A state of every trained tensor by name, in the layout of the host.
    pub fn read(
        &self,
        device: &mut dyn Device,
        plan: &Plan,
        state: State,
    ) -> Result<BTreeMap<String, Vec<f32>>, GpuError> {
        let mut out: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for (id, matrix) in plan.matrices.iter().enumerate().filter(|(_, m)| m.trained) {
            let download = device.download(self.slice(matrix, id, state))?;
            device.wait()?;
            let values: Vec<f32> = numbers(&device.take(download)?);
            for part in &matrix.parts {
                let (rows, width) = plan.tensors[part.tensor].rows_and_width();
                let to = out.entry(part.tensor).or_insert_with(|| vec![0.0; rows * width]);
                let count = part.rows.len() * width;
                to[part.rows.start * width..][..count].copy_from_slice(&values[part.at * width..][..count]);
            }
        }
        let named = out.into_iter().filter_map(|(number, values)| {
            let tensor = &plan.tensors[number];
            let (rows, width) = tensor.rows_and_width();
            Some((tensor.name.clone()?, if tensor.transposed { transposed(&values, rows, width) } else { values }))
        });
        Ok(named.collect())
    }

    /// Writes a state of trained tensors, in the layout of the host; tensors that `values` does not name keep theirs.
    pub fn write(
        &self,
        device: &mut dyn Device,
        plan: &Plan,
        state: State,
        values: &BTreeMap<String, Vec<f32>>,
    ) -> Result<(), GpuError> {
        for (id, matrix) in plan.matrices.iter().enumerate().filter(|(_, m)| m.trained) {
            for part in &matrix.parts {
                let tensor = &plan.tensors[part.tensor];
                let Some(values) = tensor.name.as_ref().and_then(|name| values.get(name)) else { continue };
                let (rows, width) = tensor.rows_and_width();
                let values = if tensor.transposed { transposed(values, width, rows) } else { values.clone() };
                let values = &values[part.rows.start * width..part.rows.end * width];
                self.put(device, matrix, id, state, part.at, values)?;
            }
        }
        device.wait()
    }

    /// The name of a trained tensor that has elements in `from..to` of a slab.
    pub fn name_at(&self, plan: &Plan, slab: usize, from: usize, to: usize) -> Option<String> {
        let holds = |(id, (own, at)): (&MatrixId, &Place)| {
            let matrix = &plan.matrices[*id];
            let inside = *own == slab && *at < to && from < at + matrix.rows * matrix.width;
            inside.then(|| plan.tensors[matrix.parts[0].tensor].name.clone())?
        };
        self.places.iter().filter_map(holds).min()
    }
}

impl Slab {
    fn new(device: &mut dyn Device, len: usize, decayed: bool, element: Element) -> Result<Self, GpuError> {
        let mut zeros = |bytes: usize| {
            let slice = device.alloc(bytes)?;
            device.zero(slice)?;
            Ok::<_, GpuError>(slice)
        };
        Ok(Self {
            decayed,
            len,
            p: zeros(len * 4)?,
            g: zeros(len * 4)?,
            m: zeros(len * 4)?,
            v: zeros(len * 4)?,
            half: if element == Element::Bf16 { Some(zeros(len * 2)?) } else { None },
        })
    }
}

/// [rows, width] → [width, rows].
fn transposed(values: &[f32], rows: usize, width: usize) -> Vec<f32> {
    (0..width).flat_map(|c| (0..rows).map(move |r| values[r * width + c])).collect()
}

/// The buffers of a pass. They are freed one by one, or all at once after an error.
pub(super) struct Buffers {
    pub device: Shared,
    held: BTreeMap<u64, Slice>,
    /// The most bytes of the device that were in use.
    pub peak: u64,
}

impl Buffers {
    pub fn new(device: Shared) -> Self {
        let peak = device.memory().0;
        Self { device, held: BTreeMap::new(), peak }
    }

    pub fn take(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let slice = self.device.alloc(bytes)?;
        self.held.insert(slice.address, slice);
        self.peak = self.peak.max(self.device.memory().0);
        Ok(slice)
    }

    /// A buffer of zeros.
    pub fn zeros(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let slice = self.take(bytes)?;
        self.device.zero(slice)?;
        Ok(slice)
    }

    pub fn give(&mut self, slice: Slice) -> Result<(), GpuError> {
        match self.held.remove(&slice.address) {
            Some(slice) => self.device.free(slice),
            None => Err(GpuError::Launch(format!("buffer {:#x} is not in use", slice.address))),
        }
    }

    pub fn give_all(&mut self) -> Result<(), GpuError> {
        for slice in std::mem::take(&mut self.held).into_values() {
            self.device.free(slice)?;
        }
        Ok(())
    }

    /// A buffer of integers.
    pub fn ints(&mut self, values: impl IntoIterator<Item = usize>) -> Result<Slice, GpuError> {
        let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
        let to = self.take(values.len() * 4)?;
        self.device.upload(to, bytemuck::cast_slice(&values))?;
        Ok(to)
    }

    /// A buffer of numbers in an element type.
    pub fn numbers(&mut self, values: &[f32], element: Element) -> Result<Slice, GpuError> {
        let to = self.take(values.len() * element.bytes())?;
        self.device.upload(to, &as_bytes(element, values))?;
        Ok(to)
    }
}
