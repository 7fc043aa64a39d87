//! GGUF files of decoders: raw quantised tensors by Hugging Face name, dequantising, configuration.
//!
//! llama.cpp stores some rows in another order, those of q and k for interleaved rotary pairs. Reading restores Hugging
//! Face's order, also of quantised rows: a row is a whole number of blocks, so reordering rows changes no value.

pub mod export;
mod header;
pub(in crate::model) mod metadata;
mod names;
mod parts;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use self::header::{Header, TensorInfo, Value};
use self::names::Change;
use self::parts::Parts;
use crate::model::ModelConfig;
use crate::model::load::rows::Place;
use crate::model::load::{Described, LoadError, Source};
use crate::ops::blocks::{self, BlockType};
use crate::ops::linear::WeightFormat;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::gguf::Vocabulary;

type Result<T, E = LoadError> = std::result::Result<T, E>;

/// An open GGUF file: its description and its tensors.
pub struct RawGguf {
    described: Described,
    tensors: GgufTensors,
}

/// The tensors of an open GGUF file, read on demand from the memory map.
pub struct GgufTensors {
    path: PathBuf,
    /// The files, and one map per file.
    paths: Vec<PathBuf>,
    maps: Vec<memmap2::Mmap>,
    infos: BTreeMap<String, (TensorInfo, Change)>,
}

/// The files of the model that the file at `path` belongs to: the file itself, or all parts of a model in several
/// files.
///
/// # Errors
/// `Malformed` when the file is not a GGUF file, `Io` with the name of a missing part.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    parts::open(path).map(|parts| parts.paths)
}

/// Opens a GGUF file and checks that every tensor lies inside it.
///
/// # Errors
/// `Malformed` on damage, `Unsupported` on another architecture, tokenizer or quantisation.
pub fn open_raw(path: &Path) -> Result<RawGguf> {
    let Parts { paths, maps, header } = parts::open(path)?;
    let floats = |name: &str| {
        let info = header.tensors.get(name).filter(|info| info.shape.iter().product::<usize>() <= 1 << 16)?;
        let mut values = vec![0f32; info.shape.iter().product()];
        blocks::dequantize(maps.get(info.part)?.get(info.start..info.start + info.bytes)?, info.dtype, &mut values);
        Some(values)
    };
    let hf_config = metadata::hf_config(&header, &floats).map_err(|m| LoadError::unsupported(path, m))?;
    let mut config = ModelConfig::from_hf(&hf_config, None).map_err(|e| LoadError::config(path, e))?;
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        let id = header.uint(key).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < config.vocab_size);
        config.eos_ids.extend(id.filter(|id| !config.eos_ids.contains(id)));
    }
    let known: BTreeMap<String, (String, Change)> =
        names::all(&config).into_iter().map(|(name, in_file)| (in_file.file, (name, in_file.change))).collect();
    let mut tensors = BTreeMap::new();
    for (found, info) in &header.tensors {
        if ROTARY.contains(&found.as_str()) {
            continue;
        }
        let Some((name, change)) = known.get(found) else {
            return Err(LoadError::unsupported(path, format!("tensor {found} is not known")));
        };
        if !(config.tie_embeddings && name == "lm_head.weight") {
            tensors.insert(name.clone(), (info.clone(), *change));
        }
    }
    let tokenizer = match vocabulary(&header) {
        None => None,
        Some(vocabulary) => {
            Some(Tokenizer::from_gguf(vocabulary, &config.eos_ids).map_err(|e| LoadError::tokenizer(path, e))?)
        }
    };
    let described = Described {
        config,
        tokenizer,
        chat_template: header.str("tokenizer.chat_template").map(str::to_owned),
        hf_config,
        instructd: None,
        sentence: crate::model::Sentence::default(),
        source: Source { path: path.to_owned(), weight_files: paths.clone() },
    };
    Ok(RawGguf { described, tensors: GgufTensors { path: path.to_owned(), paths, maps, infos: tensors } })
}

/// Small tensors that belong to the configuration.
const ROTARY: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

impl RawGguf {
    pub fn described(&self) -> &Described {
        &self.described
    }

    pub fn tensors(&self) -> &GgufTensors {
        &self.tensors
    }

    pub fn into_parts(self) -> (Described, GgufTensors) {
        (self.described, self.tensors)
    }
}

impl GgufTensors {
    /// Hugging Face name → (quantisation, shape [out, in]).
    pub fn iter(&self) -> impl Iterator<Item = (&str, BlockType, &[usize])> {
        self.infos.iter().map(|(name, (info, _))| (name.as_str(), info.dtype, info.shape.as_slice()))
    }

    /// The blocks of a tensor as stored, except that rows are in Hugging Face's order. Row-major; each row takes
    /// `shape[1] / block_size · type_size` bytes.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (info, change) = self.info(name)?;
        let data = self
            .maps
            .get(info.part)
            .and_then(|map| map.get(info.start..info.start + info.bytes))
            .ok_or_else(|| LoadError::malformed(&self.path, format!("tensor {name} lies outside the file")))?;
        let rows = info.shape.first().copied().unwrap_or(0);
        let order = change.rows(rows).map_err(|e| LoadError::malformed(&self.path, format!("tensor {name}: {e}")))?;
        let Some(order) = order else { return Ok(data.to_vec()) };
        let row_bytes = data.len() / rows;
        Ok(order.iter().flat_map(|from| &data[from * row_bytes..(from + 1) * row_bytes]).copied().collect())
    }

    /// The tensor's type, where it is quantised, and its shape [out, in].
    pub fn block_kind(&self, name: &str) -> Option<(BlockType, usize, usize)> {
        let (info, _) = self.infos.get(name).filter(|(info, _)| info.dtype.quantised())?;
        let [m, k] = info.shape.as_slice() else { return None };
        Some((info.dtype, *m, *k))
    }

    /// The shape in the layout of Hugging Face.
    pub(in crate::model) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (info, change) = self.infos.get(name)?;
        let shape = info.shape.iter().copied();
        Some(if *change == Change::Transposed { shape.rev().collect() } else { shape.collect() })
    }

    /// Where a matrix lies, if its rows are in Hugging Face's order there.
    pub(in crate::model) fn place(&self, name: &str) -> Option<Place> {
        let (info, change) = self.infos.get(name)?;
        let (&[rows, width], Change::None) = (info.shape.as_slice(), change) else { return None };
        let path = self.paths.get(info.part)?.clone();
        Some(Place { path, start: info.start, kind: info.dtype, rows, width })
    }

    /// The serving format equal to the file's type of a tensor, where that is not quantised; for others, whose rows are
    /// in another order than the model's, the nearest one that `format` allows.
    pub fn near_format(&self, name: &str, format: WeightFormat) -> WeightFormat {
        match self.infos.get(name).map(|(info, _)| info.dtype) {
            Some(BlockType::F16) => WeightFormat::F16,
            Some(BlockType::BF16) => WeightFormat::Bf16,
            None | Some(BlockType::F32) => WeightFormat::F32,
            Some(_) if format == WeightFormat::Exact => WeightFormat::F32,
            Some(_) => WeightFormat::Q8_0,
        }
    }

    /// One tensor as f32.
    pub(in crate::model) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (info, change) = self.info(name)?;
        let mut values = vec![0f32; info.shape.iter().product()];
        blocks::dequantize(&self.bytes(name)?, info.dtype, &mut values);
        if *change == Change::PlusOne {
            values.iter_mut().for_each(|v| *v -= 1.0);
        }
        let tensor = Tensor::from_vec(values, info.shape.clone(), device);
        let tensor = match change {
            Change::Transposed => tensor.and_then(|t| t.t()?.contiguous()),
            _ => tensor,
        };
        tensor.map_err(|e| LoadError::malformed(&self.path, format!("tensor {name}: {e}")))
    }

    fn info(&self, name: &str) -> Result<&(TensorInfo, Change)> {
        self.infos.get(name).ok_or_else(|| LoadError::malformed(&self.path, format!("there is no tensor {name}")))
    }
}

fn vocabulary(header: &Header) -> Option<Vocabulary> {
    let strings = |key: &str| -> Option<Vec<String>> {
        header.array(key)?.iter().map(|v| if let Value::Str(s) = v { Some(s.clone()) } else { None }).collect()
    };
    let id = |name: &str| header.uint(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| u32::try_from(id).ok());
    Some(Vocabulary {
        model: header.str("tokenizer.ggml.model")?.to_owned(),
        pre: header.str("tokenizer.ggml.pre").unwrap_or("default").to_owned(),
        tokens: strings("tokenizer.ggml.tokens")?,
        kinds: header
            .array("tokenizer.ggml.token_type")
            .map(|kinds| kinds.iter().map(|kind| kind.as_uint().unwrap_or(1)).collect())
            .unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges").unwrap_or_default(),
        scores: header
            .array("tokenizer.ggml.scores")
            .map(|scores| scores.iter().map(|score| score.as_float().unwrap_or(0.0)).collect())
            .unwrap_or_default(),
        add_bos: header.bool("tokenizer.ggml.add_bos_token"),
        add_eos: header.bool("tokenizer.ggml.add_eos_token").unwrap_or(false),
        add_space_prefix: header.bool("tokenizer.ggml.add_space_prefix"),
        // Phi-3's control tokens consume the spaces after them, which a GGUF file cannot represent.
        strip_behind: header
            .str("general.name")
            .is_some_and(|name| ["phi-3", "phi3"].iter().any(|phi| name.to_lowercase().contains(phi))),
        bos: id("bos"),
        eos: id("eos"),
        unknown: id("unknown"),
        padding: id("padding"),
    })
}
