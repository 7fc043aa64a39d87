//! The tensors of a model's files, read one at a time under Hugging Face names: a model can be served without ever being
//! in memory as f32.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::model::gguf::GgufTensors;
use crate::model::load::{LoadError, map_file, mistakes};
use crate::model::{ModelConfig, names};
use crate::ops::blocks::{self, BlockType};

type Result<T> = std::result::Result<T, LoadError>;

/// The open files of a model.
pub enum ModelFiles {
    /// One or more safetensors files.
    Directory(SafetensorsFiles),
    Gguf(GgufTensors),
}

impl ModelFiles {
    /// Names of all tensors, in order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Directory(files) => files.tensors.keys().map(String::as_str).collect(),
            Self::Gguf(tensors) => tensors.iter().map(|(name, ..)| name).collect(),
        }
    }

    /// The shape of a tensor in the layout of Hugging Face; `None` where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Directory(files) => files.tensors.get(name).map(|found| found.shape.clone()),
            Self::Gguf(tensors) => tensors.shape(name),
        }
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        let sizes = self.names().into_iter().filter_map(|name| self.shape(name));
        sizes.map(|shape| shape.iter().product::<usize>() as u64).sum()
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// When there is no tensor of this name, its type is not one of floating point, or it lies outside its file.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        match self {
            Self::Directory(files) => files.tensor(name, device),
            Self::Gguf(tensors) => tensors.tensor(name, device),
        }
    }

    /// The tensors of a GGUF file, whose blocks can be served as they are.
    pub fn gguf(&self) -> Option<&GgufTensors> {
        match self {
            Self::Directory(_) => None,
            Self::Gguf(tensors) => Some(tensors),
        }
    }

    /// The rows of a matrix, to be read from the file when they are needed. `None` where the platform or the tensor's
    /// type does not allow it.
    ///
    /// # Errors
    /// When the file cannot be opened again.
    pub fn rows(&self, name: &str) -> Result<Option<StoredRows>> {
        let place = match self {
            Self::Directory(files) => files.place(name),
            Self::Gguf(tensors) => tensors.place(name),
        };
        place.map_or(Ok(None), |place| StoredRows::open(&place))
    }
}

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

    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(InFile { file, found, dtype, shape, start, bytes }) = self.tensors.get(name) else {
            let (path, _) = self.files.first().map_or((Path::new(name), ()), |(path, _)| (path.as_path(), ()));
            return Err(LoadError::malformed(path, format!("tensor {name} is missing")));
        };
        let (path, map) = &self.files[*file];
        let values = to_f32(*dtype, &map[*start..start + bytes])
            .ok_or_else(|| LoadError::unsupported(path, format!("tensor {found} of type {dtype:?}")))?;
        Tensor::from_vec(values, shape.as_slice(), device)
            .map_err(|e| LoadError::malformed(path, format!("tensor {found}: {e}")))
    }

    fn place(&self, name: &str) -> Option<Place> {
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

/// Where a matrix lies in a file, row after row.
pub struct Place {
    pub path: PathBuf,
    pub start: usize,
    pub kind: BlockType,
    pub rows: usize,
    pub width: usize,
}

/// Rows of a matrix that stay in the model's file and are read when they are needed. They are read by position and not
/// through a memory map, because a map ends the process when somebody shortens the file.
#[derive(Debug)]
pub struct StoredRows {
    file: File,
    path: PathBuf,
    /// Length and time of the last change of the file when the model was loaded.
    state: (u64, Option<SystemTime>),
    start: u64,
    kind: BlockType,
    rows: usize,
    width: usize,
}

impl StoredRows {
    fn open(place: &Place) -> Result<Option<Self>> {
        if cfg!(not(unix)) {
            return Ok(None);
        }
        let file = File::open(&place.path).map_err(|e| LoadError::io(&place.path, e))?;
        let state = state(&file).map_err(|e| LoadError::io(&place.path, e))?;
        let &Place { start, kind, rows, width, .. } = place;
        Ok(Some(Self { file, path: place.path.clone(), state, start: start as u64, kind, rows, width }))
    }

    /// (rows, values of a row).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// Writes the rows `ids` to `y`, `[ids.len(), width]`.
    ///
    /// # Errors
    /// When an id has no row, or the file was changed or cannot be read any more.
    pub fn gather(&self, ids: &[u32], y: &mut [f32]) -> candle_core::Result<()> {
        let failed = |e: std::io::Error| candle_core::Error::msg(format!("cannot read {}: {e}", self.path.display()));
        if state(&self.file).map_err(failed)? != self.state {
            candle_core::bail!("{} was changed while the model was served: load the model again", self.path.display());
        }
        let mut bytes = vec![0; self.kind.bytes(self.width)];
        for (id, row) in ids.iter().zip(y.chunks_exact_mut(self.width)) {
            if *id as usize >= self.rows {
                candle_core::bail!("id {id} is outside the table of {} rows", self.rows);
            }
            read_at(&self.file, &mut bytes, self.start + u64::from(*id) * self.kind.bytes(self.width) as u64)
                .map_err(failed)?;
            blocks::dequantize(&bytes, self.kind, row);
        }
        Ok(())
    }
}

fn state(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    file.metadata().map(|meta| (meta.len(), meta.modified().ok()))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(path: &Path) -> StoredRows {
        let values: Vec<u8> = (0..12u32).flat_map(|v| (v as f32).to_le_bytes()).collect();
        std::fs::write(path, [&[9; 5], values.as_slice()].concat()).unwrap();
        let place = Place { path: path.to_owned(), start: 5, kind: BlockType::F32, rows: 4, width: 3 };
        StoredRows::open(&place).unwrap().unwrap()
    }

    #[test]
    #[cfg(unix)]
    fn rows_come_from_the_file_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let table = rows(&dir.path().join("table"));
        let mut y = vec![f32::NAN; 9];
        table.gather(&[3, 0, 3], &mut y).unwrap();
        assert_eq!(y, [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0]);
        assert!(table.gather(&[4], &mut y).unwrap_err().to_string().contains("id 4"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_is_removed_still_serves_and_one_that_is_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("removed"), dir.path().join("shortened"));
        let (removed, shortened) = (rows(&path), rows(&other));
        std::fs::remove_file(&path).unwrap();
        let mut y = vec![f32::NAN; 3];
        removed.gather(&[1], &mut y).unwrap();
        assert_eq!(y, [3.0, 4.0, 5.0]);
        std::fs::write(&other, b"short").unwrap();
        assert!(shortened.gather(&[1], &mut y).unwrap_err().to_string().contains("was changed"));
    }
}
