//! One block of a decoder: its norms and matrices, as the two families of architectures lay them out.

use candle_core::{Result, Tensor};

use super::Activation;
use super::layers::{Builder, Linear, Norm};
use crate::ops::activation;

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub attn_norm: Norm,
    pub attn: Projections,
    pub out: Linear,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
}

#[derive(Debug, Clone)]
pub(super) enum Projections {
    /// One matrix for q, k and v: GPT-2, and others when only served.
    Joint(Linear),
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Mlp {
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// `Gated` for serving: gate and up as one matrix.
    JointGated {
        gate_up: Linear,
        down: Linear,
    },
    Plain {
        up: Linear,
        down: Linear,
        activation: Activation,
    },
}

impl Layer {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let attn = match &self.attn {
            Projections::Joint(all) => vec![all],
            Projections::Split { q, k, v } => vec![q, k, v],
        };
        let mlp = match &self.mlp {
            Mlp::Gated { gate, up, down } => vec![gate, up, down],
            Mlp::JointGated { gate_up, down } => vec![gate_up, down],
            Mlp::Plain { up, down, .. } => vec![up, down],
        };
        attn.into_iter().chain([&self.out]).chain(mlp)
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let norms = [&self.attn_norm, &self.mlp_norm].into_iter().flat_map(Norm::tensors);
        self.linears().flat_map(Linear::tensors).chain(norms)
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attn = match &mut self.attn {
            Projections::Joint(all) => vec![all],
            Projections::Split { q, k, v } => vec![q, k, v],
        };
        let mlp = match &mut self.mlp {
            Mlp::Gated { gate, up, down } => vec![gate, up, down],
            Mlp::JointGated { gate_up, down } => vec![gate_up, down],
            Mlp::Plain { up, down, .. } => vec![up, down],
        };
        attn.into_iter().chain([&mut self.out]).chain(mlp)
    }

    pub fn on_host(&self) -> bool {
        self.attn_norm.on_host() && self.mlp_norm.on_host() && self.linears().all(Linear::on_host)
    }

    pub fn trained(&self) -> bool {
        self.attn_norm.trained() || self.mlp_norm.trained() || self.linears().any(Linear::trained)
    }
}

impl Mlp {
    pub fn down(&self) -> &Linear {
        match self {
            Self::Gated { down, .. } | Self::JointGated { down, .. } | Self::Plain { down, .. } => down,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated { gate, up, down } => down.forward(&activation::swiglu(&gate.forward(x)?, &up.forward(x)?)?),
            Self::JointGated { gate_up, down } => down.forward(&activation::swiglu_joint(&gate_up.forward(x)?)?),
            Self::Plain { up, down, activation: kind } => {
                down.forward(&activation::gelu(&up.forward(x)?, *kind == Activation::GeluTanh)?)
            }
        }
    }
}

pub(super) fn gpt2_layer(b: &Builder<'_>, i: usize) -> Result<Layer> {
    let (d, inner, p) = (b.config.hidden_size, b.config.intermediate_size, format!("transformer.h.{i}"));
    Ok(Layer {
        attn_norm: b.layer_norm(&format!("{p}.ln_1"))?,
        attn: Projections::Joint(b.linear(&format!("{p}.attn.c_attn"), 3 * d, d, true)?),
        out: b.linear(&format!("{p}.attn.c_proj"), d, d, true)?,
        mlp_norm: b.layer_norm(&format!("{p}.ln_2"))?,
        mlp: Mlp::Plain {
            up: b.linear(&format!("{p}.mlp.c_fc"), inner, d, true)?,
            down: b.linear(&format!("{p}.mlp.c_proj"), d, inner, true)?,
            activation: b.config.activation,
        },
    })
}

pub(super) fn llama_layer(b: &Builder<'_>, i: usize) -> Result<Layer> {
    let c = b.config;
    let (d, inner, p) = (c.hidden_size, c.intermediate_size, format!("model.layers.{i}"));
    let (q_width, kv_width) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let attention = |name: &str| format!("{p}.self_attn.{name}");
    let qkv = [(attention("q_proj"), q_width), (attention("k_proj"), kv_width), (attention("v_proj"), kv_width)];
    let attn = match b.joint(&qkv, d, c.qkv_bias)? {
        Some(joint) => Projections::Joint(joint),
        None => {
            let [q, k, v] = qkv.map(|(name, out)| b.linear(&name, out, d, c.qkv_bias));
            Projections::Split { q: q?, k: k?, v: v? }
        }
    };
    let gated = [(format!("{p}.mlp.gate_proj"), inner), (format!("{p}.mlp.up_proj"), inner)];
    let down = b.linear(&format!("{p}.mlp.down_proj"), d, inner, false)?;
    let mlp = match b.joint(&gated, d, false)? {
        Some(gate_up) => Mlp::JointGated { gate_up, down },
        None => {
            let [gate, up] = gated.map(|(name, out)| b.linear(&name, out, d, false));
            Mlp::Gated { gate: gate?, up: up?, down }
        }
    };
    Ok(Layer {
        attn_norm: b.rms_norm(&format!("{p}.input_layernorm"))?,
        attn,
        out: b.linear(&attention("o_proj"), d, q_width, false)?,
        mlp_norm: b.rms_norm(&format!("{p}.post_attention_layernorm"))?,
        mlp,
    })
}
