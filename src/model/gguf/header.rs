//! The header of a GGUF file, versions 2 and 3: metadata and tensor table, read with checked arithmetic and
//! bounded memory: candle's own reader divides by an unchecked alignment and lets a small file allocate much memory.

use std::collections::BTreeMap;

use crate::ops::blocks::BlockType;

/// More metadata values or tensors than these are refused as damaged.
const MAX_VALUES: u64 = 8 << 20;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEYS: u64 = 1 << 16;
const MAX_DEPTH: usize = 4;

type Result<T> = std::result::Result<T, String>;

/// A metadata value; integers and floats are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
    Array(Vec<Value>),
}

impl Value {
    /// The value as a non-negative integer.
    pub fn as_uint(&self) -> Option<u64> {
        match self {
            Self::Uint(n) => Some(*n),
            Self::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Uint(n) => Some(*n as f64),
            Self::Int(n) => Some(*n as f64),
            _ => None,
        }
    }
}

/// One row of the tensor table, already checked against the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub dtype: BlockType,
    /// Outermost dimension first: [out, in].
    pub shape: Vec<usize>,
    /// The number of the file, of a split model, that holds it.
    pub part: usize,
    /// Byte range in the file.
    pub start: usize,
    pub bytes: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header of a file with the bytes `file`.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut reader = Reader { file, at: 0, values: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} (known: 2, 3)"));
        }
        let (n_tensors, n_keys) = (reader.u64()?, reader.u64()?);
        if n_tensors > MAX_TENSORS || n_keys > MAX_KEYS {
            return Err(format!("{n_tensors} tensors and {n_keys} metadata entries"));
        }
        let mut header = Self::default();
        for _ in 0..n_keys {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0).map_err(|e| format!("metadata {key:?}: {e}"))?;
            header.metadata.insert(key, value);
        }
        let mut rows = Vec::new();
        for _ in 0..n_tensors {
            let name = reader.string()?;
            let row = reader.tensor_row().map_err(|e| format!("tensor {name:?}: {e}"))?;
            rows.push((name, row));
        }
        let alignment = header.uint("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(format!("alignment {alignment}"));
        }
        let data = (reader.at as u64).next_multiple_of(alignment);
        for (name, (dtype, shape, offset)) in rows {
            let bytes =
                byte_size(dtype, &shape).ok_or_else(|| format!("tensor {name:?}: impossible shape {shape:?}"))?;
            let range = data.checked_add(offset).and_then(|start| Some((start, start.checked_add(bytes)?)));
            let Some((start, _)) = range.filter(|(_, end)| *end <= file.len() as u64) else {
                return Err(format!("tensor {name:?} lies outside the file of {} bytes", file.len()));
            };
            let info = TensorInfo { dtype, shape, part: 0, start: start as usize, bytes: bytes as usize };
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor {name:?} is there twice"));
            }
        }
        Ok(header)
    }

    pub fn uint(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.as_uint()
    }

    pub fn float(&self, key: &str) -> Option<f64> {
        self.metadata.get(key)?.as_float()
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        if let Value::Bool(b) = self.metadata.get(key)? { Some(*b) } else { None }
    }

    pub fn str(&self, key: &str) -> Option<&str> {
        if let Value::Str(s) = self.metadata.get(key)? { Some(s) } else { None }
    }

    pub fn array(&self, key: &str) -> Option<&[Value]> {
        if let Value::Array(items) = self.metadata.get(key)? { Some(items) } else { None }
    }
}

/// Bytes of a tensor, or `None` when its rows are not whole blocks or a size overflows.
fn byte_size(dtype: BlockType, shape: &[usize]) -> Option<u64> {
    let (block, size) = dtype.block();
    let row = *shape.last()?;
    if shape.contains(&0) || !row.is_multiple_of(block) {
        return None;
    }
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
    (elements / block as u64).checked_mul(size as u64)
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    /// Metadata values read so far; at most `MAX_VALUES`.
    values: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.file.len());
        let end = end.ok_or_else(|| format!("the file ends inside its header, at byte {}", self.at))?;
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn string(&mut self) -> Result<String> {
        let length = usize::try_from(self.u64()?).map_err(|_| "string too long")?;
        let bytes = self.take(length)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        self.values += 1;
        if self.values > MAX_VALUES || depth > MAX_DEPTH {
            return Err("more metadata than a model needs".into());
        }
        Ok(match kind {
            0 => Value::Uint(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Uint(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Str(self.string()?),
            9 => {
                let kind = self.u32()?;
                let length = self.u64()?;
                // The loop ends at the first value that is not in the file, so the length needs no check.
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(self.value(kind, depth + 1)?);
                }
                Value::Array(items)
            }
            10 => Value::Uint(self.u64()?),
            11 => Value::Int(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(format!("value type {other}")),
        })
    }

    fn tensor_row(&mut self) -> Result<(BlockType, Vec<usize>, u64)> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("{rank} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(usize::try_from(self.u64()?).map_err(|_| "dimension too large")?);
        }
        shape.reverse();
        let dtype = BlockType::from_number(self.u32()?)?;
        Ok((dtype, shape, self.u64()?))
    }
}
