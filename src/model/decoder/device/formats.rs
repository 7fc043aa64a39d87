//! The formats of weights that devices have.

use std::collections::BTreeMap;

use super::packing::Packing;
use crate::model::gguf::GgufTensors;
use crate::model::load::Opened;
use crate::ops::blocks::BlockType;
use crate::ops::linear::WeightFormat;

/// The element type of weights, and of activations between additions to the f32 hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
    /// For serving alone: training has no kernels of it.
    F16,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The name in kernel names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Where the blocks and the output matrix of a decoder are.
#[derive(Clone, Copy)]
pub enum Blocks<'a> {
    /// In the decoder, which is built for `Purpose::Score`.
    Held,
    /// In the files of the model, from which they are read one block at a time.
    Files(&'a Opened),
}

/// The types of a model's numbers on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFormat {
    pub element: Element,
    /// How matrices are stored that the file does not quantise.
    pub packing: Packing,
    /// Whether quantised matrices of the file keep their integers.
    pub file: bool,
}

impl DeviceFormat {
    /// The types for a setting. Everything but matrices is bf16 where these are integers.
    pub fn new(format: WeightFormat, from: Blocks<'_>) -> Self {
        let all = |element, packing| Self { element, packing, file: false };
        match (format, from) {
            (WeightFormat::F32 | WeightFormat::Exact, _) | (WeightFormat::File, Blocks::Held) => {
                all(Element::F32, Packing::Dense)
            }
            (WeightFormat::Bf16, _) => all(Element::Bf16, Packing::Dense),
            (WeightFormat::F16, _) => all(Element::F16, Packing::Dense),
            (WeightFormat::Q8_0, _) => all(Element::Bf16, Packing::Q8),
            (WeightFormat::Q4_1, _) => all(Element::Bf16, Packing::Q4),
            (WeightFormat::File, Blocks::Files(opened)) => match opened.files.gguf() {
                Some(gguf) => Self { element: element_of(gguf), packing: Packing::Dense, file: true },
                None => Self::new(opened.published_format(), from),
            },
        }
    }
}

/// bf16 where the file has quantised matrices, otherwise the type of most of their numbers.
fn element_of(gguf: &GgufTensors) -> Element {
    let mut numbers: BTreeMap<BlockType, usize> = BTreeMap::new();
    for (_, kind, shape) in gguf.iter().filter(|(.., shape)| shape.len() > 1) {
        *numbers.entry(kind).or_default() += shape.iter().product::<usize>();
    }
    let most = numbers.iter().max_by_key(|(_, count)| **count).map(|(kind, _)| *kind);
    match most {
        _ if numbers.keys().any(|kind| kind.quantised()) => Element::Bf16,
        Some(BlockType::F16) => Element::F16,
        Some(BlockType::BF16) => Element::Bf16,
        _ => Element::F32,
    }
}

/// Matrices that are on the device in another type than in the file.
#[derive(Debug, Default)]
pub struct Converted(BTreeMap<BlockType, [usize; 3]>);

impl Converted {
    /// Counts a matrix, or a part of one, of `stored` bytes in the file and `held` on the device.
    pub fn add(&mut self, kind: BlockType, count: usize, stored: usize, held: usize) {
        let entry = self.0.entry(kind).or_default();
        let by = [count, stored, held];
        entry.iter_mut().zip(by).for_each(|(sum, by)| *sum += by);
    }

    /// "Q6_K: 12 matrices, 1.5 MB as 3.7 MB"; `None` if nothing was counted.
    pub fn described(&self) -> Option<String> {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let one = |(kind, [count, stored, held]): (&BlockType, &[usize; 3])| {
            let matrices = if *count == 1 { "matrix" } else { "matrices" };
            format!("{}: {count} {matrices}, {:.1} MB as {:.1} MB", kind.as_str(), mb(*stored), mb(*held))
        };
        (!self.0.is_empty()).then(|| self.0.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converted_types_are_listed_with_their_sizes() {
        let mut converted = Converted::default();
        assert_eq!(converted.described(), None);
        converted.add(BlockType::Q6K, 1, 1_000_000, 2_500_000);
        converted.add(BlockType::Q6K, 1, 500_000, 1_250_000);
        converted.add(BlockType::Q5_1, 1, 750_000, 2_000_000);
        let want = "Q5_1: 1 matrix, 0.8 MB as 2.0 MB; Q6_K: 2 matrices, 1.5 MB as 3.8 MB";
        assert_eq!(converted.described().unwrap(), want);
    }
}
