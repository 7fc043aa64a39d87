//! A model as one GGUF file that llama.cpp loads.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};
use sha2::{Digest, Sha256};

use crate::model::config::{ModelConfig, PositionKind, RopeScaling};
use crate::model::families::{self, NormKind};
use crate::model::gguf::metadata::llama3_divisors;
use crate::model::gguf::names::{self, Change};
use crate::model::gguf::write::{self, Meta};
use crate::model::load::{LoadError, Loaded};
use crate::ops::blocks::BlockType;
use crate::tokenizer::gguf::Vocabulary;

/// The format of an exported file's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufFormat {
    F16,
    Q8_0,
    /// Matrices in Q4_K, embeddings and output in Q6_K; Q8_0 where the row length is not a multiple of 256.
    Q4K,
}

impl GgufFormat {
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::Q4K];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// # Errors
    /// When the name is not known; the message lists the known ones.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("{name:?} is no format of a GGUF file (known: f16, q8_0, q4_k)"))
    }

    /// `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4K => 14,
        }
    }

    fn of(self, name: &str, shape: &[usize]) -> BlockType {
        let [_, k] = shape else { return BlockType::F32 };
        // llama.cpp adds learned positions to f32 rows.
        if name == "position_embd.weight" {
            return BlockType::F32;
        }
        let wide = matches!(name, "token_embd.weight" | "output.weight");
        match self {
            Self::Q4K if k.is_multiple_of(256) => {
                if wide {
                    BlockType::Q6K
                } else {
                    BlockType::Q4K
                }
            }
            Self::Q4K | Self::Q8_0 if k.is_multiple_of(32) => BlockType::Q8_0,
            _ => BlockType::F16,
        }
    }
}

/// Writes `loaded` to the file `out`; returns its SHA-256. The file is written atomically and read again to check that
/// its configuration is the model's.
///
/// # Errors
/// `Unsupported` for encoders, reward models and features that a GGUF file cannot represent; `Io` when it cannot be
/// written.
pub fn export(loaded: &Loaded, name: &str, out: &Path, format: GgufFormat) -> Result<String, LoadError> {
    let refuse = |message: String| LoadError::unsupported(out, message);
    let config = &loaded.config;
    let metadata = metadata(loaded, name, format).map_err(refuse)?;
    let names = names::all(config);
    let mut rows = Vec::new();
    for (own, tensor) in &loaded.weights {
        let Some(named) = names.get(own) else {
            return Err(refuse(format!("a GGUF file has no place for {own} (only language models are written)")));
        };
        let mut shape = tensor.dims().to_vec();
        if named.change == Change::Transposed {
            shape.reverse();
        }
        let kind = format.of(&named.file, &shape);
        rows.push((own, named.change, write::Tensor { name: named.file.clone(), kind, shape }));
    }
    let mut table: Vec<write::Tensor> = rows.iter().map(|(_, _, row)| row.clone()).collect();
    let extra = rotary_tensors(config);
    table.extend(extra.iter().map(|(name, values)| write::Tensor {
        name: (*name).to_owned(),
        kind: BlockType::F32,
        shape: vec![values.len()],
    }));
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder =
        tempfile::Builder::new().prefix(".export-").tempdir_in(parent).map_err(|e| LoadError::io(parent, e))?;
    let temporary = folder.path().join("model.gguf");
    let file = File::create(&temporary).map_err(|e| LoadError::io(out, e))?;
    let mut file = Hashing { out: BufWriter::new(file), hash: Sha256::new() };
    let bytes = |i: usize| match rows.get(i) {
        Some((own, change, row)) => {
            let tensor = loaded.weights.get(*own).ok_or_else(|| io::Error::other("no tensor"))?;
            encode(tensor, *change, row.kind).map_err(io::Error::other)
        }
        None => Ok(extra[i - rows.len()].1.iter().flat_map(|f| f.to_le_bytes()).collect()),
    };
    write::write(&mut file, &metadata, &table, bytes).map_err(|e| LoadError::io(out, e))?;
    let sha256 = hex::encode(file.hash.clone().finalize());
    file.out
        .into_inner()
        .map_err(|e| LoadError::io(out, e.into_error()))?
        .sync_all()
        .map_err(|e| LoadError::io(out, e))?;
    let again = crate::model::gguf::open_raw(&temporary)?;
    let mut read = again.described().config.clone();
    settle(&mut read, config);
    if read != *config {
        return Err(refuse(format!(
            "a GGUF file has no place for a part of this configuration; it would be read as {read:?}, not as {config:?}"
        )));
    }
    std::fs::rename(&temporary, out).map_err(|e| LoadError::io(out, e))?;
    Ok(sha256)
}

/// Copies from `config` the fields that a file represents differently or less exactly.
fn settle(read: &mut ModelConfig, config: &ModelConfig) {
    // A file has two end tokens at most, and a Mistral without a window is read as a Llama, which has the same name.
    read.eos_ids.clone_from(&config.eos_ids);
    (read.bos_id, read.pad_id) = (config.bos_id, config.pad_id);
    let name = |config: &ModelConfig| config.family().gguf.as_ref().map(|gguf| gguf.name);
    if name(config) == name(read) && config.switches.layers.is_empty() {
        read.arch = config.arch;
    }
    let (ours, theirs) = (&config.switches, &mut read.switches);
    // Files store numbers as f32.
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    let lists = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(*a, *b));
    let same = match (&ours.rope_scaling, &theirs.rope_scaling) {
        (
            RopeScaling::Long { short, long, original, attention },
            RopeScaling::Long { short: s, long: l, original: o, attention: a },
        ) => lists(short, s) && lists(long, l) && original == o && near(*attention, *a),
        (
            RopeScaling::Yarn { factor, fast, slow, original, attention, truncate },
            RopeScaling::Yarn { factor: f, fast: q, slow: s, original: o, attention: a, truncate: t },
        ) => lists(&[*factor, *fast, *slow, *attention], &[*f, *q, *s, *a]) && original == o && truncate == t,
        // Files store divisors of frequencies without their kind.
        (RopeScaling::Llama3 { .. }, RopeScaling::Long { short, long, attention, .. }) => {
            let wide: Vec<f64> =
                rotary_tensors(config).iter().flat_map(|(_, list)| list).map(|f| f64::from(*f)).collect();
            lists(&wide, short) && lists(&wide, long) && *attention == 1.0
        }
        _ => false,
    };
    if same {
        theirs.rope_scaling = ours.rope_scaling.clone();
    }
    if let (Some(ours), Some(theirs)) = (ours.attention_scale, &mut theirs.attention_scale)
        && near(ours, *theirs)
    {
        *theirs = ours;
    }
    for (ours, theirs) in [
        (ours.embedding_scale, &mut theirs.embedding_scale),
        (ours.residual_scale, &mut theirs.residual_scale),
        (ours.logit_divisor, &mut theirs.logit_divisor),
        (config.norm_eps, &mut read.norm_eps),
    ] {
        if near(ours, *theirs) {
            *theirs = ours;
        }
    }
}

struct Hashing {
    out: BufWriter<File>,
    hash: Sha256,
}

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The bytes of a tensor, in the file's row order.
fn encode(tensor: &Tensor, change: Change, kind: BlockType) -> candle_core::Result<Vec<u8>> {
    let cpu = candle_core::Device::Cpu;
    let mut tensor = tensor.to_device(&cpu)?.to_dtype(candle_core::DType::F32)?;
    match change {
        Change::Transposed => tensor = tensor.t()?.contiguous()?,
        Change::PlusOne => tensor = (tensor + 1.0)?,
        _ => {}
    }
    if let Some(order) = change.rows(tensor.dim(0)?).map_err(candle_core::Error::msg)? {
        // `order` maps the rows here to rows of the file.
        let mut inverse = vec![0u32; order.len()];
        order.iter().enumerate().for_each(|(own, file)| inverse[*file] = own as u32);
        tensor = tensor.index_select(&Tensor::new(inverse, &cpu)?, 0)?;
    }
    let dtype = match kind {
        BlockType::F16 => GgmlDType::F16,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q6K => GgmlDType::Q6K,
        _ => GgmlDType::F32,
    };
    Ok(QTensor::quantize(&tensor.contiguous()?, dtype)?.data()?.into_owned())
}

/// Divisors of rotary frequencies, which files store as tensors.
fn rotary_tensors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let narrow = |list: &[f64]| list.iter().map(|f| *f as f32).collect();
    match (&config.switches.rope_scaling, config.position) {
        (RopeScaling::Llama3 { factor, low, high, original }, PositionKind::Rope { theta }) => {
            let dim = config.switches.rotary_dim.unwrap_or(config.head_dim);
            vec![("rope_freqs.weight", llama3_divisors(theta, dim, *factor, *low, *high, *original as f64))]
        }
        (RopeScaling::Long { short, long, .. }, _) => {
            vec![("rope_factors_long.weight", narrow(long)), ("rope_factors_short.weight", narrow(short))]
        }
        _ => Vec::new(),
    }
}

fn metadata(loaded: &Loaded, name: &str, format: GgufFormat) -> Result<Vec<(String, Meta)>, String> {
    let config = &loaded.config;
    let family = config.family();
    let Some(gguf) = &family.gguf else {
        let known = families::gguf_names().join(", ");
        return Err(format!("{} is not written as a GGUF file (known: {known})", family.class));
    };
    let prefix = gguf.name;
    let biased = config.qkv_bias || config.switches.out_bias || config.switches.mlp_bias;
    if biased && !gguf.biases {
        return Err(format!("a GGUF file of a {} has no place for biases", family.class));
    }
    let mut list = vec![
        ("general.architecture".to_owned(), Meta::Str(prefix.to_owned())),
        ("general.name".to_owned(), Meta::Str(name.to_owned())),
        ("general.file_type".to_owned(), Meta::U32(format.file_type())),
        ("general.quantization_version".to_owned(), Meta::U32(2)),
    ];
    let (switches, count) = (&config.switches, |n: usize| Meta::U32(n as u32));
    let mut add = |key: &str, value: Meta| list.push((format!("{prefix}.{key}"), value));
    add("context_length", count(config.max_positions));
    add("embedding_length", count(config.hidden_size));
    add("block_count", count(config.n_layers));
    add("feed_forward_length", count(config.intermediate_size));
    add("attention.head_count", count(config.n_heads));
    add("attention.head_count_kv", count(config.n_kv_heads));
    let layer_norm = matches!(family.norm, NormKind::Layer | NormKind::LayerNoBias);
    let eps = if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    add(eps, Meta::F32(config.norm_eps as f32));
    add("vocab_size", count(config.vocab_size));
    if let PositionKind::Rope { theta } = config.position {
        add("rope.freq_base", Meta::F32(theta as f32));
        add("rope.dimension_count", count(switches.rotary_dim.unwrap_or(config.head_dim)));
        add("attention.key_length", count(config.head_dim));
        add("attention.value_length", count(config.head_dim));
    }
    match &switches.rope_scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", Meta::Str("linear".into()));
            add("rope.scaling.factor", Meta::F32(*factor as f32));
        }
        RopeScaling::Yarn { factor, original, attention, fast, slow, .. } => {
            add("rope.scaling.type", Meta::Str("yarn".into()));
            add("rope.scaling.factor", Meta::F32(*factor as f32));
            add("rope.scaling.original_context_length", count(*original));
            add("rope.scaling.yarn_beta_fast", Meta::F32(*fast as f32));
            add("rope.scaling.yarn_beta_slow", Meta::F32(*slow as f32));
            let usual = 0.1 * factor.ln() + 1.0;
            if (attention - usual).abs() > 1e-9 {
                add("rope.scaling.attn_factor", Meta::F32((attention / usual) as f32));
            }
        }
        RopeScaling::Long { original, attention, .. } => {
            add("rope.scaling.original_context_length", count(*original));
            add("rope.scaling.attn_factor", Meta::F32(*attention as f32));
        }
        RopeScaling::Dynamic { .. } => return Err("a GGUF file has no place for dynamic rotary scaling".into()),
    }
    if let Some(window) = switches.layers.iter().find_map(|layer| layer.window) {
        add("attention.sliding_window", count(window));
    }
    (gguf.write)(config, &mut add);
    vocabulary(loaded, &mut list)?;
    Ok(list)
}

fn vocabulary(loaded: &Loaded, list: &mut Vec<(String, Meta)>) -> Result<(), String> {
    let mut add = |key: &str, value: Meta| list.push((format!("tokenizer.{key}"), value));
    let Some(tokenizer) = &loaded.tokenizer else {
        add("ggml.model", Meta::Str("none".into()));
        return Ok(());
    };
    let found: Vocabulary = tokenizer.to_gguf(loaded.config.vocab_size).map_err(|e| e.to_string())?;
    add("ggml.model", Meta::Str(found.model));
    add("ggml.pre", Meta::Str(found.pre));
    add("ggml.tokens", Meta::Strs(found.tokens));
    add("ggml.token_type", Meta::I32s(found.kinds.iter().map(|kind| *kind as i32).collect()));
    if !found.scores.is_empty() {
        add("ggml.scores", Meta::F32s(found.scores.iter().map(|score| *score as f32).collect()));
    }
    if !found.merges.is_empty() {
        add("ggml.merges", Meta::Strs(found.merges));
    }
    for (key, id) in [
        ("bos", found.bos.or(loaded.config.bos_id)),
        ("eos", found.eos.or(loaded.config.eos_ids.first().copied())),
        ("unknown", found.unknown),
        ("padding", found.padding.or(loaded.config.pad_id)),
    ] {
        if let Some(id) = id {
            add(&format!("ggml.{key}_token_id"), Meta::U32(id));
        }
    }
    // The second end token.
    if let Some(id) = loaded.config.eos_ids.iter().find(|id| Some(**id) != found.eos) {
        add("ggml.eot_token_id", Meta::U32(*id));
    }
    if let Some(on) = found.add_bos {
        add("ggml.add_bos_token", Meta::Bool(on));
    }
    add("ggml.add_eos_token", Meta::Bool(found.add_eos));
    if let Some(on) = found.add_space_prefix {
        add("ggml.add_space_prefix", Meta::Bool(on));
    }
    if let Some(template) = &loaded.chat_template {
        add("chat_template", Meta::Str(template.clone()));
    }
    Ok(())
}
