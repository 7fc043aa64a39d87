//! Steps of cached sequences with the parts of `blocks`, on plain buffers, and the activations that they save for the
//! backward pass of an update. Kernels are batch-invariant, so the activations of sampling are those of a forward pass
//! over the sampled sequences.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::Decoder;
use crate::model::adapters::served::Group;
use crate::model::decoder::blocks::{self, Attn, BlockActivations, MlpHidden, MlpOutput, Recompute, SavedActivations};
use crate::model::decoder::kv_cache::{KvCache, StepRows};
use crate::model::layers::block::Layer;
use crate::ops::{embedding, pool, read, tensor};

/// The activations that an update needs of sequences while they are sampled, by their rows in a packed batch of these
/// sequences.
pub struct SampledActivations {
    saved: SavedActivations,
    /// Prompt tokens of every sequence, its first row, and the first of the rows that predict its response.
    sequences: Vec<(usize, usize, usize)>,
    /// Capacity, in rows and in rows that predict.
    total: [usize; 2],
    /// The decoder's sizes, and whether q, k and v share one matrix in it.
    layers: usize,
    joint: bool,
}

impl SampledActivations {
    /// No activations yet, for an update of `trained`: `prompts` are lengths in tokens, and each response has `response`
    /// sampled tokens, of which the last is never fed. `None` where the decoder's forward pass would save less
    /// (`Recompute`), or where the CPU kernels do not apply.
    pub fn new(trained: &Decoder, prompts: &[usize], response: usize) -> Option<Self> {
        if !trained.on_host() || trained.recompute != Recompute::None || response == 0 {
            return None;
        }
        let mut total = [0, 0];
        let sequences = prompts.iter().map(|&prompt| {
            let place = (prompt, total[0], total[1]);
            total = [total[0] + prompt + response - 1, total[1] + response];
            place
        });
        let (sequences, layers) = (sequences.collect(), trained.layers.len());
        let blocks = (trained.lowest_trained()..layers).map(|_| BlockActivations::default()).collect();
        let joint = trained.layers.first().is_some_and(Layer::joint);
        Some(Self { saved: SavedActivations { blocks, last: Vec::new() }, sequences, total, layers, joint })
    }

    /// The destinations of a step's rows: for all rows, then for those that predict, (row of the step, row here).
    fn places(&self, fed: &[(usize, usize)]) -> [Vec<(usize, usize)>; 2] {
        let place =
            |(row, &(sequence, position)): (usize, &(usize, usize))| (row, self.sequences[sequence].1 + position);
        let predicting = |(row, &(sequence, position)): (usize, &(usize, usize))| {
            let (prompt, _, start) = self.sequences[sequence];
            Some((row, start + (position + 1).checked_sub(prompt)?))
        };
        [fed.iter().enumerate().map(place).collect(), fed.iter().enumerate().filter_map(predicting).collect()]
    }

    /// Stores what a step computed in block `layer`.
    fn put(&mut self, layer: usize, step: &mut BlockActivations, places: &[Vec<(usize, usize)>; 2]) {
        let Some(at) = (layer + self.saved.blocks.len()).checked_sub(self.layers) else { return };
        let last = layer + 1 == self.layers;
        for ((to, from), output) in
            buffers(&mut self.saved.blocks[at]).into_iter().zip(buffers(step)).zip(has_output_rows(self.joint))
        {
            copy_rows(from, to, places, usize::from(last && output), self.total);
        }
    }

    /// The saved activations of a forward pass over the sequences of `order`, whose responses have `responses` tokens.
    pub(in crate::model) fn into_saved(self, order: &[usize], responses: &[usize]) -> SavedActivations {
        let mut rows = [Vec::new(), Vec::new()];
        for (&i, &response) in order.iter().zip(responses) {
            let (prompt, start, output) = self.sequences[i];
            rows[0].extend((start..start + prompt + response - 1).map(|r| r as u32));
            rows[1].extend((output..output + response).map(|r| r as u32));
        }
        let SavedActivations { mut blocks, mut last } = self.saved;
        if !rows[0].iter().copied().eq(0..self.total[0] as u32) {
            let n = blocks.len();
            for (i, block) in blocks.iter_mut().enumerate() {
                for (buffer, output) in buffers(block).into_iter().zip(has_output_rows(self.joint)) {
                    let kind = usize::from(i + 1 == n && output);
                    arrange(buffer, &rows[kind], self.total[kind]);
                }
            }
            arrange(&mut last, &rows[1], self.total[1]);
        }
        SavedActivations { blocks, last }
    }
}

/// All buffers of a block.
fn buffers(block: &mut BlockActivations) -> [&mut Vec<f32>; 19] {
    let BlockActivations { x, attn, mlp, low, raw_out: raw_mlp } = block;
    let Attn { q, k, v, mixed, mid, raw_q, raw_k, raw_out, low: [low_q, low_k, low_v, low_out] } =
        attn.get_or_insert_default();
    let MlpHidden { gate, up, low: [low_gate, low_up] } = mlp.get_or_insert_default();
    [
        x, k, v, low_k, low_v, raw_k, low_q, q, mixed, mid, low_out, gate, up, low_gate, low_up, low, raw_q, raw_out,
        raw_mlp,
    ]
}

/// Which of `buffers` have, in the last block, rows only for tokens that predict a token of the response. A joint
/// projection of q, k and v is applied to all rows, and so is its LoRA adapter.
fn has_output_rows(joint: bool) -> [bool; 19] {
    std::array::from_fn(|i| i >= if joint { 7 } else { 6 })
}

/// Copies rows of a step to their positions among `total[kind]` rows.
fn copy_rows(from: &[f32], to: &mut Vec<f32>, places: &[Vec<(usize, usize)>; 2], kind: usize, total: [usize; 2]) {
    if from.is_empty() {
        return;
    }
    let width = from.len() / places[0].len();
    if to.is_empty() {
        *to = pool::take(total[kind] * width);
    }
    for (row, place) in &places[kind] {
        to[place * width..(place + 1) * width].copy_from_slice(&from[row * width..(row + 1) * width]);
    }
}

/// Reduces a buffer of `total` rows to `rows`.
fn arrange(buffer: &mut Vec<f32>, rows: &[u32], total: usize) {
    if buffer.is_empty() {
        return;
    }
    let width = buffer.len() / total;
    let mut arranged = pool::take(rows.len() * width);
    embedding::gather(buffer, rows, width, &mut arranged);
    pool::give(std::mem::replace(buffer, arranged));
}

impl Decoder {
    /// Advances cached sequences: rows are new tokens of any sequences, prompts and decodes mixed. Writes
    /// their keys and values into the cache; returns final-norm hidden states [N, d]. No gradient.
    pub fn step(&self, rows: &StepRows, cache: &mut KvCache) -> Result<Tensor> {
        if self.on_host() { self.step_with_activations(rows, cache, None) } else { self.step_by_tensors(rows, cache) }
    }

    /// Like [`Decoder::step`], with the kernels of the CPU. `saved`: where to save the activations that an update needs,
    /// and the (sequence, position) of every row.
    pub fn step_with_activations(
        &self,
        rows: &StepRows,
        cache: &mut KvCache,
        mut saved: Option<(&mut SampledActivations, &[(usize, usize)])>,
    ) -> Result<Tensor> {
        let positions = Arc::new(rows.positions());
        self.check_host()?;
        self.check_positions(&positions)?;
        let rotary = self.rotary_of(rows);
        let (n, d) = (positions.len(), self.config.hidden_size);
        let mut x = pool::take(n * d);
        x.copy_from_slice(&read(&self.embed_tokens(&Arc::new(rows.ids().to_vec()), &positions, rows.soft())?)?);
        let places = saved.as_ref().map(|(saved, fed)| saved.places(fed));
        for (i, layer) in self.layers.iter().enumerate() {
            let adapters: Vec<Group<'_>> = rows.adapters().iter().map(|adapter| adapter.of_layer(i)).collect();
            let attn = blocks::attn(self, layer, &x, &rotary, None, &adapters, |q, k, v, mixed| {
                cache.attend_rows(i, rows, [q, k, v], mixed, &self.config);
            })?;
            let source = if self.config.switches.parallel { &x } else { &attn.mid };
            let mlp = blocks::mlp_hidden(layer, source, &adapters)?;
            let MlpOutput { out, raw_out, low } = blocks::mlp_output(self, layer, &attn.mid, &mlp, &adapters)?;
            let mut step =
                BlockActivations { x: std::mem::replace(&mut x, out), attn: Some(attn), mlp: Some(mlp), low, raw_out };
            if let (Some((saved, _)), Some(places)) = (&mut saved, &places) {
                saved.put(i, &mut step, places);
            }
            pool::give(step.raw_out);
            pool::give(step.x);
        }
        if let (Some((saved, _)), Some(places)) = (&mut saved, &places) {
            copy_rows(&x, &mut saved.saved.last, places, 1, saved.total);
        }
        let hidden = blocks::finish(self, &x)?;
        pool::give(x);
        tensor(hidden, (n, d))
    }
}
