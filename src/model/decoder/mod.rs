//! Causal decoder of every family in `families`: blocks over packed sequences, for training and serving by the same
//! code.

pub mod attached;
mod blocks;
mod blocks_back;
mod cached;
pub mod device;
pub(in crate::model) mod embedding_table;
mod frame;
pub mod kv_cache;
mod kv_pages;
mod output_rows;
mod soft_rows;
pub mod training;

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{Result, Tensor};

use self::attached::Attached;
use self::embedding_table::EmbeddingTable;
use self::kv_cache::{KvCache, RopeLength, StepRows};
use self::output_rows::OutputRows;
use self::soft_rows::replace_rows;
use crate::model::adapters::lora::LoraConfig;
use crate::model::config::RopeScaling;
use crate::model::layers::block::{Layer, layer};
use crate::model::layers::rope_tables;
use crate::model::layers::{Builder, Norm, Parameters};
use crate::model::load::Opened;
use crate::model::{ModelConfig, PackedBatch, Weights};
use crate::ops::attention::{Attend, AttentionSpec, attention};
use crate::ops::embedding::{self, embedding};
use crate::ops::linear::{Weight, WeightFormat, WeightLayout};
use crate::ops::rope::{Row, grown_row};
use crate::ops::token_logprobs::{LogitShape, TokenLogprobs, shaped_logprobs, with_entropy};
use crate::ops::{fused, pool, read};
pub use blocks::Recompute;
pub use cached::SampledActivations;
pub use soft_rows::SoftRows;

/// The use of a decoder, which determines the layout of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training: natural weight layouts are kept for the backward pass.
    Train,
    /// Training with frozen matrices multiplied in bfloat16 on the CPU.
    TrainOverBf16,
    /// Training with frozen matrices quantized to blocks (`model::quantized`); other tensors are shared unchanged.
    TrainOverQuantized,
    /// Forward passes over many rows at a time (a reference, a reward model): weights are shared unchanged.
    Score,
    /// A copy to a device: as `Score`, but quantised matrices of a GGUF file stay in their blocks.
    Copy,
    /// Forward passes over many rows at a time, multiplied in bfloat16 on the CPU; weights are packed, not shared.
    ScoreInBf16,
    /// Forward passes over few rows at a time: frozen f32 weights are packed, and their natural layouts can be dropped.
    Serve,
    /// Forward passes with weights in another format: faster and smaller, but usually not exact. Not for rollouts.
    ServeAs(WeightFormat),
}

impl Purpose {
    /// Whether tensors keep the types of the model's files.
    pub(in crate::model) fn follows_file(self) -> bool {
        match self {
            Self::ServeAs(format) => format.follows_file(),
            purpose => purpose == Self::Copy,
        }
    }

    /// Prepares a matrix in the layout for this purpose.
    pub(in crate::model) fn prepare(self, w: &Tensor, layout: WeightLayout) -> Result<Weight> {
        match self {
            Self::Train => Weight::new(w, layout, true),
            Self::TrainOverBf16 => Weight::bf16(w, layout, true),
            Self::TrainOverQuantized if w.track_op() => Ok(Weight::Dense(w.clone(), layout)),
            Self::TrainOverQuantized => Ok(Weight::Dense(w.detach(), layout)),
            Self::Score | Self::Copy => Ok(Weight::Dense(w.detach(), layout)),
            Self::ScoreInBf16 => Weight::bf16(&w.detach(), layout, false),
            Self::Serve => Weight::new(&w.detach(), layout, false),
            Self::ServeAs(format) => Weight::served(w, layout, format),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Decoder {
    pub config: ModelConfig,
    pub(in crate::model) embed: EmbeddingTable,
    pub(in crate::model) positions: Option<Tensor>,
    pub(in crate::model) layers: Vec<Layer>,
    pub(in crate::model) final_norm: Norm,
    head: Arc<Head>,
    shape: LogitShape,
    /// Sequences longer than this have other rotary frequencies.
    long_from: Option<usize>,
    /// The activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Whether gradients of variables are summed by `ops::grad::accumulate` instead of candle's store.
    collected: bool,
    /// Computes the passes of training and scoring on a device, if it is there.
    attached: Option<Attached>,
}

/// The output matrix, prepared for the first logits, so that models that compute only scores or values never prepare
/// it.
#[derive(Debug)]
struct Head {
    /// The unprepared matrix; moved into `ready`, which keeps it if its purpose needs it.
    tensor: Mutex<Option<Tensor>>,
    purpose: Purpose,
    ready: OnceLock<Weight>,
}

impl Head {
    fn weight(&self) -> Result<&Weight> {
        if let Some(weight) = self.ready.get() {
            return Ok(weight);
        }
        let mut tensor = self.tensor.lock().unwrap_or_else(|e| e.into_inner());
        match tensor.as_ref().map(|t| self.purpose.prepare(t, WeightLayout::OutIn)).transpose()? {
            Some(weight) => {
                *tensor = None;
                Ok(self.ready.get_or_init(|| weight))
            }
            // Another thread has prepared it.
            None => self.ready.get().ok_or_else(|| candle_core::Error::msg("no output matrix")),
        }
    }
}

/// The rows of one forward pass, one for each token.
pub(in crate::model) struct Rows {
    pub positions: Arc<Vec<u32>>,
    /// The rows' indices in the tables of rotary positions.
    pub rotary: Arc<Vec<Row>>,
    pub attention: AttentionSpec,
    /// The rows whose hidden states are needed; `None` for all.
    pub output: Option<OutputRows>,
}

impl Decoder {
    /// Builds a decoder from `weights` (Hugging Face names). Tensors that are `Var`s receive gradients.
    pub fn new(config: &ModelConfig, weights: &Weights, purpose: Purpose) -> Result<Self> {
        Self::build(&Builder { config, parameters: Parameters::Loaded(weights), lora: None, purpose })
    }

    /// Builds a decoder for serving with weights in `format`.
    ///
    /// Tensors are read one at a time, so that the model is never in memory as f32 where `format` is another, and word
    /// vectors stay in the file.
    pub fn serve(opened: &Opened, format: WeightFormat) -> Result<Self> {
        let format = match (opened.files.gguf(), format) {
            (None, format) if format.follows_file() => opened.published_format(),
            (_, format) => format,
        };
        let purpose = if format == WeightFormat::F32 { Purpose::Serve } else { Purpose::ServeAs(format) };
        let (config, parameters) = (&opened.described.config, Parameters::Files(&opened.files));
        Self::build(&Builder { config, parameters, lora: None, purpose })
    }

    /// Builds a decoder with low-rank adapters (`{module}.lora_A.weight`, `{module}.lora_B.weight`) on the base
    /// weights.
    pub fn with_lora(
        config: &ModelConfig,
        weights: &Weights,
        lora: &LoraConfig,
        adapters: &Weights,
        purpose: Purpose,
    ) -> Result<Self> {
        Self::build(&Builder { config, parameters: Parameters::Loaded(weights), lora: Some((lora, adapters)), purpose })
    }

    fn build(b: &Builder<'_>) -> Result<Self> {
        let mut decoder = Self::frame(b)?;
        let (c, ropes) = (b.config, rope_tables::tables(b.config));
        decoder.layers = (0..c.n_layers).map(|i| layer(b, i, &ropes)).collect::<Result<Vec<_>>>()?;
        for layer in &mut decoder.layers {
            layer.linears_mut().enumerate().for_each(|(slot, linear)| linear.slot = slot);
        }
        let (name, shape) = (c.head_name(), (c.vocab_size, c.hidden_size));
        let head = &decoder.head;
        match b.purpose {
            // The file's own blocks are available here.
            Purpose::ServeAs(_) => drop(head.ready.set(b.weight(&name, shape, WeightLayout::OutIn)?)),
            _ => {
                let tensor = b.tensor(&name, &[shape.0, shape.1])?;
                *head.tensor.lock().unwrap_or_else(|e| e.into_inner()) = Some(tensor);
            }
        }
        Ok(decoder)
    }

    /// A decoder that shares the frozen weights of this one and has `change` of each adapter tensor, or no adapter
    /// where `change` is `None`.
    pub fn with_changed_adapters(&self, change: &dyn Fn(&Tensor) -> Result<Option<Tensor>>) -> Result<Self> {
        let mut other = Self { collected: false, attached: None, ..self.clone() };
        for linear in other.layers.iter_mut().flat_map(Layer::linears_mut) {
            linear.change_adapter(change)?;
        }
        Ok(other)
    }

    /// Enables the fused backward pass; gradients must then be computed inside `ops::grad::accumulate`.
    pub fn collected(self) -> Self {
        Self { collected: true, ..self }
    }

    /// Final-norm hidden states [N, d] of every token, N = `batch.len()`.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        if self.by_blocks() {
            return blocks::forward(self, &Arc::new(batch.ids.clone()), self.rows(batch), None);
        }
        self.forward_graph(batch)
    }

    /// Final-norm hidden states of the last `lengths[i]` tokens of every sequence i, concatenated: [Σ lengths, d]. The
    /// last block computes these rows only.
    pub fn forward_last(&self, batch: &PackedBatch, lengths: &[usize]) -> Result<Tensor> {
        if self.by_blocks() {
            return blocks::forward(self, &Arc::new(batch.ids.clone()), self.last_rows(batch, lengths), None);
        }
        self.select_last(&self.forward_graph(batch)?, batch, lengths)
    }

    /// Final-norm hidden states of the last `lengths[i]` tokens of every sequence i, [Σ lengths, d], without a gradient,
    /// also where the decoder has variables.
    pub fn forward_last_frozen(&self, batch: &PackedBatch, lengths: &[usize]) -> Result<Tensor> {
        if self.on_host() {
            return blocks::forward_frozen(self, &Arc::new(batch.ids.clone()), self.last_rows(batch, lengths));
        }
        Ok(self.select_last(&self.forward_graph(batch)?, batch, lengths)?.detach())
    }

    /// Final-norm hidden states of the response tokens of sampled sequences, [Σ lengths, d], from the activations that
    /// sampling saved: no block is computed again. `batch` has the sequences of `order`, without the last token of each,
    /// and `lengths` the number of tokens of every response in that order.
    pub fn forward_sampled(
        &self,
        batch: &PackedBatch,
        lengths: &[usize],
        activations: SampledActivations,
        order: &[usize],
    ) -> Result<Tensor> {
        let saved = activations.into_saved(order, lengths);
        blocks::forward(self, &Arc::new(batch.ids.clone()), self.last_rows(batch, lengths), Some(saved))
    }

    /// Whether a forward pass is one node of the graph.
    fn by_blocks(&self) -> bool {
        self.on_host() && (self.collected || self.variable().is_none())
    }

    fn last_rows(&self, batch: &PackedBatch, lengths: &[usize]) -> Rows {
        let rows = self.rows(batch);
        Rows { output: OutputRows::new(batch, &rows.rotary, lengths, &rows.attention), ..rows }
    }

    fn select_last(&self, hidden: &Tensor, batch: &PackedBatch, lengths: &[usize]) -> Result<Tensor> {
        hidden.index_select(&Tensor::new(output_rows::rows(batch, lengths).0, hidden.device())?, 0)
    }

    /// Final-norm hidden states [N, d] without a gradient, also where the decoder has variables.
    pub fn forward_frozen(&self, batch: &PackedBatch) -> Result<Tensor> {
        if self.on_host() {
            return blocks::forward_frozen(self, &Arc::new(batch.ids.clone()), self.rows(batch));
        }
        Ok(self.forward_graph(batch)?.detach())
    }

    /// Final-norm hidden states [N, d] with one graph node per operation: used on other devices, and as the reference
    /// in tests.
    pub fn forward_graph(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.forward_by(batch, &mut attention)
    }

    /// `forward_graph` with `attend` as the attention of every layer, called in order of layers.
    pub fn forward_by(&self, batch: &PackedBatch, attend: &mut Attend<'_>) -> Result<Tensor> {
        self.check_host()?;
        let rows = self.rows(batch);
        let mut x = self.embed_tokens(&Arc::new(batch.ids.clone()), &rows.positions, &[])?;
        for layer in &self.layers {
            x = self.block_by(layer, &x, &rows, attend)?;
        }
        self.final_norm.forward(&x)
    }

    /// Final-norm hidden states with the soft prompt `soft` [n, d] before every sequence: sequence i then has n soft
    /// rows before its own, so its token t is row `offsets[i] + (i + 1)·n + t` of the result [N + n·sequences, d].
    /// Positions count the soft rows. Gradients reach `soft`.
    pub fn forward_soft(&self, soft: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        self.check_host()?;
        let (n, _) = soft.dims2()?;
        let words = self.words(&Arc::new(batch.ids.clone()))?;
        let mut longer = PackedBatch { offsets: vec![0], ..PackedBatch::default() };
        // Rows of [soft; words] in the order of the longer sequences.
        let mut order = Vec::new();
        for span in batch.offsets.windows(2) {
            order.extend(0..n as u32);
            order.extend((span[0]..span[1]).map(|row| (n + row) as u32));
            longer.positions.extend(0..(n + span[1] - span[0]) as u32);
            longer.offsets.push(order.len());
        }
        let rows = self.rows(&longer);
        let mut x = embedding(&Tensor::cat(&[soft, &words], 0)?, &Arc::new(order))?;
        if let Some(table) = &self.positions {
            x = (x + embedding(table, &rows.positions)?)?;
        }
        for layer in &self.layers {
            x = self.block(layer, &x, &rows)?;
        }
        self.final_norm.forward(&x)
    }

    /// `step` by single tensor operations, on any device.
    pub(in crate::model) fn step_by_tensors(&self, rows: &StepRows, cache: &mut KvCache) -> Result<Tensor> {
        let positions = Arc::new(rows.positions());
        let rotary = Arc::new(self.rotary_of(rows));
        self.check_host()?;
        self.check_positions(&positions)?;
        let mut x = self.embed_tokens(&Arc::new(rows.ids().to_vec()), &positions, rows.soft())?;
        for (i, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = layer.qkv(&self.config, &x, &rotary)?;
            let mixed = cache.attend(i, rows, &q, &k, &v, &self.config)?;
            x = self.add_parts(layer, &x, &mixed)?;
        }
        self.final_norm.forward(&x)
    }

    /// The output matrix [vocab, d] in the file's layout. Fails when it is packed.
    pub(super) fn head_tensor(&self) -> Result<Tensor> {
        let Some(weight) = self.head.weight()?.unpacked() else { candle_core::bail!("the output matrix is packed") };
        Ok(weight.clone())
    }

    /// Logits [m, vocab], f32, of hidden rows [m, d].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.shape.apply(&self.head.weight()?.apply(hidden)?)
    }

    /// Logits of the rows `wanted` of hidden states `[n, d]`, end to end in `out`, whose memory is used again: a step's
    /// logits are tens of megabytes where the vocabulary is large.
    ///
    /// # Errors
    /// Those of the products.
    pub fn logits_into(&self, hidden: &Tensor, wanted: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let head = self.head.weight()?;
        if !(head.on_host() && fused(hidden) && hidden.is_contiguous()) {
            let picked = hidden.index_select(&Tensor::new(wanted, hidden.device())?, 0)?;
            *out = self.logits(&picked)?.flatten_all()?.to_vec1()?;
            return Ok(());
        }
        let (d, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut x = pool::take(wanted.len() * d);
        embedding::gather(&read(hidden)?, wanted, d, &mut x);
        out.resize(wanted.len() * vocab, 0.0);
        head.forward(&x, out, wanted.len(), None)?;
        pool::give(x);
        out.chunks_exact_mut(vocab).for_each(|row| self.shape.apply_to(row));
        Ok(())
    }

    /// log p(target) at each hidden row [m, d]; see `ops::token_logprobs`.
    pub fn token_logprobs(&self, hidden: &Tensor, targets: &[u32], temperature: f32) -> Result<TokenLogprobs> {
        shaped_logprobs(hidden, self.head.weight()?, targets, temperature, self.shape)
    }

    /// log p(target) and entropy at each hidden row [m, d], both differentiable; see
    /// `ops::token_logprobs::with_entropy`.
    pub fn token_logprobs_and_entropy(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f32,
    ) -> Result<TokenLogprobs> {
        with_entropy(hidden, self.head.weight()?, targets, temperature, self.shape)
    }

    /// Input embeddings of `ids` [n, d], scaled where the family scales them, without positions. Soft prompts are
    /// initialised from them.
    pub fn word_vectors(&self, ids: &[u32]) -> Result<Tensor> {
        self.words(&Arc::new(ids.to_vec()))
    }

    fn words(&self, ids: &Arc<Vec<u32>>) -> Result<Tensor> {
        let words = self.embed.rows(ids, self.config.frozen_padding())?;
        match self.config.switches.embedding_scale {
            1.0 => Ok(words),
            scale => words * scale,
        }
    }

    /// Input embeddings of every token [N, d], before the first block. Soft rows replace the token's embedding; learned
    /// positions are added to all rows.
    pub(in crate::model) fn embed_tokens(
        &self,
        ids: &Arc<Vec<u32>>,
        positions: &Arc<Vec<u32>>,
        soft: &[SoftRows],
    ) -> Result<Tensor> {
        let x = replace_rows(self.words(ids)?, soft)?;
        match &self.positions {
            Some(table) => x + embedding(table, positions)?,
            None => Ok(x),
        }
    }

    fn rows(&self, batch: &PackedBatch) -> Rows {
        let positions = Arc::new(batch.positions.clone());
        let mut rotary: Vec<Row> = batch.positions.iter().map(|p| Row::from(*p)).collect();
        for span in batch.offsets.windows(2) {
            let (rows, sequence) = (&mut rotary[span[0]..span[1]], self.rope_length(span[1] - span[0]));
            rows.iter_mut().enumerate().for_each(|(p, row)| *row = self.rope_row(&sequence, p));
        }
        Rows {
            positions,
            rotary: Arc::new(rotary),
            attention: AttentionSpec {
                offsets: Arc::new(batch.offsets.clone()),
                n_heads: self.config.n_heads,
                n_kv_heads: self.config.n_kv_heads,
                head_dim: self.config.head_dim,
                causal: true,
                queries: None,
                window: None,
                scale: self.config.switches.attention_scale.map(|scale| scale as f32),
                softcap: self.config.switches.attention_softcap.map(|cap| cap as f32),
            },
            output: None,
        }
    }

    /// The rows in the tables of rotary positions for a step's tokens.
    pub(in crate::model) fn rotary_of(&self, rows: &StepRows) -> Vec<Row> {
        rows.rotary(|sequence, position| self.rope_row(sequence, position))
    }

    /// The row in the rotary tables of one token of a sequence.
    fn rope_row(&self, sequence: &RopeLength, position: usize) -> Row {
        match &self.config.switches.rope_scaling {
            RopeScaling::Long { .. } if sequence.long => (position + self.config.max_positions) as Row,
            // Tokens fed at once use the frequencies of their total length, each later token those of its own position.
            RopeScaling::Dynamic { trained, .. } if position >= *trained.max(&sequence.grown) => {
                grown_row(position + 1, position)
            }
            RopeScaling::Dynamic { .. } => grown_row(sequence.grown, position),
            _ => position as Row,
        }
    }

    /// The properties that determine the rotary frequencies of a text whose first `len` tokens are fed at once.
    pub fn rope_length(&self, len: usize) -> RopeLength {
        let grown = match &self.config.switches.rope_scaling {
            RopeScaling::Dynamic { trained, .. } if len > *trained => len,
            _ => 0,
        };
        RopeLength { long: self.is_long(len), grown }
    }

    /// Whether a sequence of `len` tokens uses the frequencies of long sequences (longrope). A cached sequence that
    /// becomes long is recomputed, as in transformers.
    pub fn is_long(&self, len: usize) -> bool {
        self.long_from.is_some_and(|original| len > original)
    }

    /// # Errors
    /// When a position is outside the model's positions.
    pub(in crate::model) fn check_positions(&self, positions: &[u32]) -> Result<()> {
        let most = self.config.max_positions;
        match positions.iter().find(|p| **p as usize >= most) {
            Some(p) => candle_core::bail!("position {p} is outside the model's {most} positions"),
            None => Ok(()),
        }
    }

    /// Whether the CPU kernels apply, which are batch-invariant.
    pub fn on_host(&self) -> bool {
        let tables = self.embed.tensor().into_iter().chain(&self.positions);
        tables.into_iter().all(|t| fused(t) && t.is_contiguous())
            && self.final_norm.on_host()
            && self.layers.iter().all(Layer::on_host)
    }

    pub(in crate::model) fn embeddings_trained(&self) -> bool {
        self.embed.tensor().is_some_and(Tensor::track_op) || self.positions.as_ref().is_some_and(Tensor::track_op)
    }

    /// Index of the lowest block that a gradient must reach, or one past the last.
    pub(in crate::model) fn lowest_trained(&self) -> usize {
        if self.embeddings_trained() {
            return 0;
        }
        self.layers.iter().position(Layer::trained).unwrap_or(self.layers.len())
    }

    /// Any variable of the blocks; `None` when all are frozen.
    pub(in crate::model) fn variable(&self) -> Option<&Tensor> {
        let tables = self.embed.tensor().into_iter().chain(&self.positions);
        let blocks = self.layers.iter().flat_map(Layer::tensors);
        tables.chain(blocks).chain(self.final_norm.tensors()).find(|t| t.track_op())
    }

    fn block(&self, layer: &Layer, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.block_by(layer, x, rows, &mut attention)
    }

    fn block_by(&self, layer: &Layer, x: &Tensor, rows: &Rows, attend: &mut Attend<'_>) -> Result<Tensor> {
        let (q, k, v) = layer.qkv(&self.config, x, &rows.rotary)?;
        let mixed = attend(&q, &k, &v, &layer.attention(&rows.attention))?;
        self.add_parts(layer, x, &mixed)
    }

    /// The block's output, from its input and the output of attention.
    fn add_parts(&self, layer: &Layer, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let switches = &self.config.switches;
        let part = |given: Tensor, post: &Option<Norm>| -> Result<Tensor> {
            let given = match post {
                Some(norm) => norm.forward(&given)?,
                None => given,
            };
            if switches.residual_scale == 1.0 { Ok(given) } else { given * switches.residual_scale }
        };
        let mid = (x + part(layer.out.forward(mixed)?, &layer.attn_post)?)?;
        let source = if switches.parallel { x } else { &mid };
        let normed = match &layer.mlp_norm {
            Some(norm) => norm.forward(source)?,
            None => source.clone(),
        };
        &mid + part(layer.mlp.forward(&normed)?, &layer.mlp_post)?
    }
}
