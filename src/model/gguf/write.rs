//! Writing GGUF files, version 3: metadata, tensor table, then the tensors one after another.

use std::io::{self, Write};

use crate::ops::blocks::BlockType;

/// Alignment of each tensor's data, in bytes.
const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A row of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub kind: BlockType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl Tensor {
    fn bytes(&self) -> u64 {
        self.kind.bytes(self.shape.iter().product()) as u64
    }
}

/// Writes a file; `data` returns the bytes of tensor number i and is called in order.
///
/// # Errors
/// `InvalidData` when the number of a tensor's bytes differs from its row of the table.
pub fn write(
    out: &mut impl Write,
    metadata: &[(String, Meta)],
    tensors: &[Tensor],
    mut data: impl FnMut(usize) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut header, key);
        put(&mut header, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        string(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(tensor.kind.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    out.write_all(&header)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = data(i)?;
        if bytes.len() as u64 != tensor.bytes() {
            let message = format!("tensor {}: {} bytes, not {}", tensor.name, bytes.len(), tensor.bytes());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        out.write_all(&bytes)?;
        let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
        out.write_all(&vec![0; padding as usize])?;
    }
    Ok(())
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Meta) {
    let mut kind = |number: u32| out.extend(number.to_le_bytes());
    match value {
        Meta::U32(n) => {
            kind(4);
            out.extend(n.to_le_bytes());
        }
        Meta::F32(x) => {
            kind(6);
            out.extend(x.to_le_bytes());
        }
        Meta::Bool(b) => {
            kind(7);
            out.push(u8::from(*b));
        }
        Meta::Str(text) => {
            kind(8);
            string(out, text);
        }
        Meta::Strs(list) => {
            array(out, 8, list.len());
            list.iter().for_each(|text| string(out, text));
        }
        Meta::I32s(list) => {
            array(out, 5, list.len());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Meta::F32s(list) => {
            array(out, 6, list.len());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}

fn array(out: &mut Vec<u8>, of: u32, length: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(of.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}
