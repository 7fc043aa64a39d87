//! A model that advances cached sequences by the weights under training: it reads the trainer's own matrices, except those
//! that it needs in another form, of which it has copies.

use super::layout::{self, Linear};
use super::{DeviceTrainer, Element};
use crate::gpu::allocations::free_all;
use crate::gpu::device::Device;
use crate::gpu::launch::backward::MatmulNn;
use crate::gpu::shared::Shared;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::device::packing::Factors;
use crate::model::decoder::device::weights::{Block, Matrix, NormWeights, Weights};
use crate::model::decoder::device::{DeviceModel, Room};

impl DeviceTrainer {
    /// See `DevicePasses::stepping`.
    pub(super) fn stepping_model(&mut self, room: Room, temperature: f32) -> Result<DeviceModel, GpuError> {
        // Activations of a saved pass leave their memory to the cache.
        self.pass = None;
        self.buffers.give_all()?;
        let mut copies = Copies { trainer: self, held: Vec::new() };
        let made = copies.weights();
        let held = copies.held;
        let weights = match made {
            Ok(weights) => weights,
            Err(error) => {
                self.buffers.give_all()?;
                free_all(&mut self.buffers.device, held);
                return Err(error);
            }
        };
        let device: Shared = self.buffers.device.clone();
        let (config, element) = (self.config.clone(), self.options.element);
        let mut model = DeviceModel::with_weights(config, Box::new(device), element, (weights, held), self.wide, room)?;
        model.set_temperature(temperature);
        Ok(model)
    }
}

/// Makes the matrices of the model, with copies where the trainer has them in another form.
struct Copies<'t> {
    trainer: &'t mut DeviceTrainer,
    /// What was allocated.
    held: Vec<Slice>,
}

impl Copies<'_> {
    fn weights(&mut self) -> Result<Weights, GpuError> {
        let blocks = self.trainer.blocks.clone();
        let widest = blocks.iter().map(|block| block.qkv.iter().map(|l| self.rows(l)).sum::<usize>()).max();
        let widest = widest.unwrap_or(0).max(self.trainer.zeros.bytes / 4).max(self.trainer.config.vocab_size);
        let zeros = self.place(widest * 4)?;
        self.trainer.buffers.device.zero(zeros)?;
        let value = |trainer: &DeviceTrainer, id| trainer.weight(id).value;
        let plan = &self.trainer.plan;
        let (embed, positions) = (value(self.trainer, plan.embed), plan.positions.map(|id| value(self.trainer, id)));
        let (final_norm, head) = (plan.final_norm, self.trainer.weight(plan.head));
        Ok(Weights {
            embed,
            positions,
            blocks: blocks.iter().map(|block| self.block(block, zeros)).collect::<Result<_, _>>()?,
            final_norm: self.norm(final_norm, zeros),
            head: Matrix { weight: head.value, factors: Factors::None, bias: None, out: head.rows, input: head.width },
            zeros,
        })
    }

    fn rows(&self, linear: &Linear) -> usize {
        self.trainer.weight(linear.weight).rows
    }

    fn place(&mut self, bytes: usize) -> Result<Slice, GpuError> {
        let slice = self.trainer.buffers.device.alloc(bytes)?;
        self.held.push(slice);
        Ok(slice)
    }

    fn norm(&self, norm: layout::Norm, zeros: Slice) -> NormWeights {
        let layout::Norm { weight, bias, layer, eps, offset } = norm;
        let value = |id| self.trainer.weight(id).value;
        NormWeights { weight: value(weight), bias: bias.map_or(zeros, value), layer, eps, offset }
    }

    fn block(&mut self, block: &layout::Block, zeros: Slice) -> Result<Block, GpuError> {
        let norm = |copies: &Self, norm: Option<layout::Norm>| norm.map(|norm| copies.norm(norm, zeros));
        Ok(Block {
            attn_norm: norm(self, block.attn_norm),
            qkv: self.joint(&block.qkv)?,
            // The trainer has q, k and v apart in every model.
            by_head: false,
            qk_norm: block.qk_norm.map(|norms| norms.map(|norm| self.norm(norm, zeros))),
            out: self.linear(&block.out)?,
            attn_post: norm(self, block.attn_post),
            mlp_norm: norm(self, block.mlp_norm),
            up: self.linear(&block.up)?,
            gated: block.gated,
            activation: block.activation,
            down: self.linear(&block.down)?,
            mlp_post: norm(self, block.mlp_post),
            rope: block.rope,
            window: block.window,
        })
    }

    /// The trainer's matrix, or with adapters a copy in which they are merged.
    fn linear(&mut self, linear: &Linear) -> Result<Matrix, GpuError> {
        let weight = self.trainer.weight(linear.weight);
        let bias = linear.bias.map(|id| self.trainer.weight(id).value);
        let mut own = weight.value;
        if !linear.adapters.is_empty() {
            own = self.place(weight.value.bytes)?;
            self.merge(linear, own)?;
        }
        Ok(Matrix { weight: own, factors: Factors::None, bias, out: weight.rows, input: weight.width })
    }

    /// A copy of matrices with the same input, joined along their outputs.
    fn joint(&mut self, parts: &[Linear]) -> Result<Matrix, GpuError> {
        let input = self.trainer.weight(parts[0].weight).width;
        let out = parts.iter().map(|part| self.rows(part)).sum();
        let size = self.trainer.options.element.bytes();
        let weight = self.place(out * input * size)?;
        let has_bias = parts.iter().any(|part| part.bias.is_some());
        let bias = if has_bias { Some(self.place(out * size)?) } else { None };
        let mut at = 0;
        for part in parts {
            let rows = self.rows(part);
            let own = weight.part(at * input * size, rows * input * size);
            self.merge(part, own)?;
            if let Some(bias) = bias {
                let own = bias.part(at * size, rows * size);
                let device = &mut self.trainer.buffers.device;
                match part.bias {
                    Some(id) => device.copy(self.trainer.storage.weights[id].value, own)?,
                    None => device.zero(own)?,
                }
            }
            at += rows;
        }
        Ok(Matrix { weight, factors: Factors::None, bias, out, input })
    }

    /// Writes a matrix with its adapters merged to `to`.
    fn merge(&mut self, linear: &Linear, to: Slice) -> Result<(), GpuError> {
        let trainer = &mut *self.trainer;
        let weight = trainer.weight(linear.weight);
        if linear.adapters.is_empty() {
            return trainer.buffers.device.copy(weight.value, to);
        }
        let count = weight.rows * weight.width;
        // W + scale · B · A in f32, whatever the element type.
        let sum = trainer.buffers.zeros(count * 4)?;
        trainer.add(sum, weight.value, count, 1.0)?;
        for adapter in &linear.adapters {
            let (a, b) = (trainer.weight(adapter.a), trainer.weight(adapter.b));
            let rows = sum.part(adapter.column * weight.width * 4, b.rows * weight.width * 4);
            let (n, m, k) = (b.rows as i32, a.rows as i32, a.width as i32);
            let launched = MatmulNn { gy: b.value, w: a.value, gx: rows, n, m, k, stride: m, scale: adapter.scale };
            trainer.launch_product_back("matmul_nn_add", &launched, [b.rows, a.width], [a.rows, a.rows])?;
        }
        match trainer.options.element {
            Element::F32 => trainer.buffers.device.copy(sum, to)?,
            Element::Bf16 | Element::F16 => {
                let every = trainer.buffers.ints(0..weight.rows)?;
                trainer.write_bf16(sum, every, to, [weight.rows, weight.width])?;
                trainer.buffers.give(every)?;
            }
        }
        trainer.buffers.give(sum)
    }
}
