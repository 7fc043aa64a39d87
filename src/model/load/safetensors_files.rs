//! Tensors of safetensors files, read one at a time under Hugging Face names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::model::load::rows::Place;
use crate::model::load::{LoadError, map_file, mistakes};
use crate::model::{ModelConfig, names};
use crate::ops::blocks::BlockType;

type Result<T> = std::result::Result<T, LoadError>;

/// Safetensors files, mapped into memory.
pub struct SafetensorsFiles {
    files: Vec<(PathBuf, memmap2::Mmap)>,
    tensors: BTreeMap<String, InFile>,
}

/// A tensor in one of the files.
struct InFile {
    file: usize,
    /// The name in the file.
    found: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    bytes: usize,
}

impl SafetensorsFiles {
    /// Reads the headers of all files. Tensors that a model of this configuration does not have are left out.
    ///
    /// # Errors
    /// `Io` when a file cannot be read, `Malformed` when it is not a safetensors file.
    pub fn open(config: &ModelConfig, paths: &[PathBuf]) -> Result<Self> {
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for path in paths {
            let map = map_file(path)?;
            let parsed = SafeTensors::deserialize(&map).map_err(|e| {
                let what = mistakes::of_bytes(&map).map_or_else(|| e.to_string(), str::to_owned);
                LoadError::malformed(path, format!("not a safetensors file: {what}"))
            })?;
            for (found, view) in parsed.iter() {
                let Some(name) = names::canonical(config, found) else { continue };
                let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
                let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().len());
                tensors.insert(name, InFile { file: files.len(), found: found.to_owned(), dtype, shape, start, bytes });
            }
            files.push((path.clone(), map));
        }
        Ok(Self { files, tensors })
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|found| found.shape.as_slice())
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// When there is no tensor of this name, or its type is not one of floating point.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(InFile { file, found, dtype, shape, start, bytes }) = self.tensors.get(name) else {
            let path = self.files.first().map_or(Path::new(name), |(path, _)| path.as_path());
            return Err(LoadError::malformed(path, format!("tensor {name} is missing")));
        };
        let (path, map) = &self.files[*file];
        let values = to_f32(*dtype, &map[*start..start + bytes])
            .ok_or_else(|| LoadError::unsupported(path, format!("tensor {found} of type {dtype:?}")))?;
        Tensor::from_vec(values, shape.as_slice(), device)
            .map_err(|e| LoadError::malformed(path, format!("tensor {found}: {e}")))
    }

    /// Where a matrix of 16 or 32 bits lies.
    pub fn place(&self, name: &str) -> Option<Place> {
        let tensor = self.tensors.get(name)?;
        let kind = match tensor.dtype {
            Dtype::F32 => BlockType::F32,
            Dtype::F16 => BlockType::F16,
            Dtype::BF16 => BlockType::BF16,
            _ => return None,
        };
        let &[rows, width] = tensor.shape.as_slice() else { return None };
        Some(Place { path: self.files[tensor.file].0.clone(), start: tensor.start, kind, rows, width })
    }
}

/// Values as f32; `None` for types that are not floating point.
fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}
