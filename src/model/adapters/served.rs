//! LoRA adapters that are served on one base model: each row of a step gets the term of its request's adapter, if it
//! has one. On the CPU the rows of an adapter are gathered and computed together; every element of a term is a separate
//! sum, so it does not depend on the other rows of the step. Of an adapter whose base is on devices
//! (`decoder::device::adapters`) the factors are there, and `ServedAdapter` names it.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::adapters::peft;
use crate::model::families::{MlpNames, Qkv};
use crate::model::layers::block::{Mlp, Projections};
use crate::model::{Decoder, ModelConfig};
use crate::ops::linear::WeightLayout;
use crate::ops::low_rank::{LowRank, LowRankUpdate};
use crate::ops::{embedding, pool, read};

/// The term of one module. It adds to the columns from `at` of a matrix that may hold several modules.
#[derive(Debug)]
pub(in crate::model) struct Part {
    at: usize,
    width: usize,
    term: LowRank,
}

/// An adapter prepared for the matrices of one decoder.
#[derive(Debug)]
pub struct ServedAdapter {
    /// Terms by layer and by the number of the matrix in the layer; none where the adapter is on devices.
    layers: Vec<Vec<Vec<Part>>>,
    parameters: usize,
}

/// The rows of a step that use one adapter.
#[derive(Clone, Debug)]
pub struct AdapterRows {
    pub adapter: Arc<ServedAdapter>,
    pub rows: Vec<u32>,
}

/// The adapters of some rows, for the matrices of one layer.
#[derive(Clone, Copy)]
pub(in crate::model) struct Group<'a> {
    rows: &'a [u32],
    parts: &'a [Vec<Part>],
}

impl AdapterRows {
    pub(in crate::model) fn of_layer(&self, layer: usize) -> Group<'_> {
        Group { rows: &self.rows, parts: &self.adapter.layers[layer] }
    }
}

impl Group<'_> {
    /// Adds the terms of matrix `slot` to its output y [n, m] for x [n, k].
    pub fn add(&self, slot: usize, x: &[f32], y: &mut [f32], n: usize) {
        let (k, m, count) = (x.len() / n.max(1), y.len() / n.max(1), self.rows.len());
        let Some(parts) = self.parts.get(slot).filter(|parts| !parts.is_empty() && count > 0) else { return };
        let mut own = pool::take(count * k);
        embedding::gather(x, self.rows, k, &mut own);
        for Part { at, width, term } in parts {
            let mut added = pool::take(count * width);
            added.fill(0.0);
            let mut inner = pool::take(count * term.rank);
            LowRankUpdate { factors: term, projected: &mut inner }.add(&own, &mut added, count);
            for (row, add) in self.rows.iter().zip(added.chunks_exact(*width)) {
                let from = *row as usize * m + at;
                y[from..from + width].iter_mut().zip(add).for_each(|(y, v)| *y += v);
            }
            pool::give(inner);
            pool::give(added);
        }
        pool::give(own);
    }
}

/// The position of a module's output: matrix, first column, number of columns, and the width of its input.
struct Place {
    module: String,
    slot: usize,
    at: usize,
    width: usize,
    input: usize,
}

/// Which of a layer's modules with one input are one matrix.
#[derive(Clone, Copy)]
pub(in crate::model) struct Joined {
    pub qkv: bool,
    pub gate_up: bool,
}

/// The modules of layer `i`, in the order of its matrices.
fn places(c: &ModelConfig, i: usize, joined: Joined) -> Vec<Place> {
    let family = c.family();
    let (d, inner) = (c.hidden_size, c.intermediate_size);
    let [q, kv] = [c.n_heads, c.n_kv_heads].map(|heads| heads * c.head_dim);
    let place = |module: &str, slot, at, width, input| Place {
        module: format!("{}{i}.{module}", family.blocks),
        slot,
        at,
        width,
        input,
    };
    let mut all = Vec::new();
    match family.block.qkv {
        Qkv::Joint(module) | Qkv::ByHead(module) => all.push(place(module, 0, 0, q + 2 * kv, d)),
        Qkv::Split(modules) => {
            for (n, (module, (at, width))) in modules.into_iter().zip([(0, q), (q, kv), (q + kv, kv)]).enumerate() {
                all.push(if joined.qkv { place(module, 0, at, width, d) } else { place(module, n, 0, width, d) });
            }
        }
    }
    let out = if joined.qkv { 1 } else { 3 };
    all.push(place(family.block.out, out, 0, d, q));
    let first = out + 1;
    match family.block.mlp {
        MlpNames::Plain { up, down } => {
            all.extend([place(up, first, 0, inner, d), place(down, first + 1, 0, d, inner)]);
        }
        MlpNames::JointGated { gate_up, down } => {
            all.extend([place(gate_up, first, 0, 2 * inner, d), place(down, first + 1, 0, d, inner)]);
        }
        MlpNames::Gated { gate, up, down } if joined.gate_up => {
            all.extend([place(gate, first, 0, inner, d), place(up, first, inner, inner, d)]);
            all.push(place(down, first + 1, 0, d, inner));
        }
        MlpNames::Gated { gate, up, down } => {
            all.extend([place(gate, first, 0, inner, d), place(up, first + 1, 0, inner, d)]);
            all.push(place(down, first + 2, 0, d, inner));
        }
    }
    all
}

/// The factors of one module, for the columns from `at` of matrix `slot` of a layer.
pub(in crate::model) struct Factors<'a> {
    pub slot: usize,
    pub at: usize,
    pub rank: usize,
    /// [rank, input].
    pub a: &'a Tensor,
    /// [width, rank], with the scale.
    pub b: &'a Tensor,
    pub width: usize,
}

/// The factors of an adapter by layer, in the order of the layer's matrices.
///
/// # Errors
/// When the adapter is of another model, which lacks a module or has it in another shape.
pub(in crate::model) fn by_layer<'a>(
    config: &ModelConfig,
    adapter: &'a peft::Adapter,
    joined: impl Fn(usize) -> Joined,
) -> Result<Vec<Vec<Factors<'a>>>> {
    let factors = adapter.factors();
    let mut known = BTreeSet::new();
    let mut layers = Vec::with_capacity(config.n_layers);
    for i in 0..config.n_layers {
        let mut own = Vec::new();
        for Place { module, slot, at, width, input } in places(config, i, joined(i)) {
            let pair = [format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight")];
            let [Some(a), Some(b)] = pair.each_ref().map(|name| factors.get(name)) else { continue };
            let rank = a.dim(0)?;
            if a.dims() != [rank, input] || b.dims() != [width, rank] {
                let (a, b) = (a.dims(), b.dims());
                candle_core::bail!("the adapter is for another model: {module} is {b:?} × {a:?} there");
            }
            own.push(Factors { slot, at, rank, a, b, width });
            known.extend(pair);
        }
        layers.push(own);
    }
    match factors.keys().find(|name| !known.contains(*name)) {
        Some(name) => candle_core::bail!("the adapter is for another model: there is no place for {name}"),
        None => Ok(layers),
    }
}

fn parameters(adapter: &peft::Adapter) -> usize {
    adapter.factors().values().map(Tensor::elem_count).sum()
}

impl ServedAdapter {
    /// Prepares an adapter for a decoder on the CPU.
    ///
    /// # Errors
    /// When the adapter is of another model: the decoder lacks a module or has it in another shape. When the decoder is
    /// not on the CPU.
    pub fn new(decoder: &Decoder, adapter: &peft::Adapter) -> Result<Self> {
        if !decoder.on_host() {
            candle_core::bail!("this decoder is not on the CPU");
        }
        let joined = |i: usize| Joined {
            qkv: matches!(decoder.layers[i].attn, Projections::Joint { .. }),
            gate_up: matches!(decoder.layers[i].mlp, Mlp::JointGated { .. }),
        };
        let mut layers = Vec::with_capacity(decoder.layers.len());
        for own in by_layer(&decoder.config, adapter, joined)? {
            let mut slots: Vec<Vec<Part>> = Vec::new();
            for Factors { slot, at, rank, a, b, width } in own {
                let term = LowRank::new(&read(a)?, &read(b)?, WeightLayout::OutIn, rank, 1.0);
                slots.resize_with(slots.len().max(slot + 1), Vec::new);
                slots[slot].push(Part { at, width, term });
            }
            layers.push(slots);
        }
        Ok(Self { layers, parameters: parameters(adapter) })
    }

    /// The name of an adapter that devices hold; see `DeviceModel::load_adapter`.
    pub fn on_devices(adapter: &peft::Adapter) -> Self {
        Self { layers: Vec::new(), parameters: parameters(adapter) }
    }

    /// Number of the adapter's parameters.
    pub fn parameters(&self) -> usize {
        self.parameters
    }
}
