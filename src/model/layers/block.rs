//! One block of a decoder or an encoder: its norms and matrices, arranged as in its family.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::config::{LayerKind, QkNorm};
use crate::model::families::{MlpNames, Norms, Qkv};
use crate::model::layers::{Builder, Linear, Norm};
use crate::model::{Activation, ModelConfig};
use crate::ops::activation;
use crate::ops::attention::AttentionSpec;
use crate::ops::rope::{RopeTable, Row, rope};

#[derive(Debug, Clone)]
pub(in crate::model) struct Layer {
    pub attn_norm: Option<Norm>,
    pub attn: Projections,
    /// Norms of q and k, before rotary positions.
    pub qk_norm: Option<[Norm; 2]>,
    pub out: Linear,
    /// Norm of the output of attention, before it is added; in a post-norm encoder, of the sum.
    pub attn_post: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: Mlp,
    /// Norm of the output of the feed-forward network, before it is added.
    pub mlp_post: Option<Norm>,
    pub rope: Option<Arc<RopeTable>>,
    pub kind: LayerKind,
}

#[derive(Debug, Clone)]
pub(in crate::model) enum Projections {
    /// One matrix for q, k and v: where the file has one, and for serving.
    Joint {
        all: Linear,
        /// q, k and v of the first head, then of the second, …, instead of all of q, of k and of v.
        by_head: bool,
    },
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
}

#[derive(Debug, Clone)]
pub(in crate::model) enum Mlp {
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
        activation: Activation,
    },
    /// Gate and up as one matrix: where the file has one, and for serving.
    JointGated {
        gate_up: Linear,
        down: Linear,
        activation: Activation,
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
            Projections::Joint { all, .. } => vec![all],
            Projections::Split { q, k, v } => vec![q, k, v],
        };
        let mlp = match &self.mlp {
            Mlp::Gated { gate, up, down, .. } => vec![gate, up, down],
            Mlp::JointGated { gate_up, down, .. } => vec![gate_up, down],
            Mlp::Plain { up, down, .. } => vec![up, down],
        };
        attn.into_iter().chain([&self.out]).chain(mlp)
    }

    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let own = [&self.attn_norm, &self.attn_post, &self.mlp_norm, &self.mlp_post];
        own.into_iter().flatten().chain(self.qk_norm.iter().flatten())
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.linears().flat_map(Linear::tensors).chain(self.norms().flat_map(Norm::tensors))
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attn = match &mut self.attn {
            Projections::Joint { all, .. } => vec![all],
            Projections::Split { q, k, v } => vec![q, k, v],
        };
        let mlp = match &mut self.mlp {
            Mlp::Gated { gate, up, down, .. } => vec![gate, up, down],
            Mlp::JointGated { gate_up, down, .. } => vec![gate_up, down],
            Mlp::Plain { up, down, .. } => vec![up, down],
        };
        attn.into_iter().chain([&mut self.out]).chain(mlp)
    }

    pub fn on_host(&self) -> bool {
        self.norms().all(Norm::on_host) && self.linears().all(Linear::on_host)
    }

    pub fn trained(&self) -> bool {
        self.norms().any(Norm::trained) || self.linears().any(Linear::trained)
    }

    /// The attention pattern of this layer.
    pub fn attention(&self, all: &AttentionSpec) -> AttentionSpec {
        AttentionSpec { window: self.kind.window, ..all.clone() }
    }

    /// Rotated q and k, and v, of x, the block's input; `rotary` are its rows in the tables of rotary positions.
    pub fn qkv(&self, c: &ModelConfig, x: &Tensor, rotary: &Arc<Vec<Row>>) -> Result<(Tensor, Tensor, Tensor)> {
        let normed = match &self.attn_norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let (mut q, mut k, v) = match &self.attn {
            Projections::Split { q, k, v } => (q.forward(&normed)?, k.forward(&normed)?, v.forward(&normed)?),
            Projections::Joint { all, by_head } => {
                let (y, q, kv) = (all.forward(&normed)?, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
                if *by_head {
                    let (n, hd) = (y.dim(0)?, c.head_dim);
                    let heads = y.reshape((n, c.n_heads, 3 * hd))?;
                    let part = |i: usize| heads.narrow(2, i * hd, hd)?.reshape((n, q));
                    (part(0)?, part(1)?, part(2)?)
                } else {
                    (y.narrow(1, 0, q)?, y.narrow(1, q, kv)?, y.narrow(1, q + kv, kv)?)
                }
            }
        };
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        match &self.rope {
            Some(table) => Ok((rope(&q, table, rotary)?, rope(&k, table, rotary)?, v)),
            None => Ok((q, k, v)),
        }
    }

    pub fn joint(&self) -> bool {
        matches!(self.attn, Projections::Joint { .. })
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
            Self::Gated { gate, up, down, activation } => {
                down.forward(&activation::gated(*activation, &gate.forward(x)?, &up.forward(x)?)?)
            }
            Self::JointGated { gate_up, down, activation } => {
                down.forward(&activation::gated_joint(*activation, &gate_up.forward(x)?)?)
            }
            Self::Plain { up, down, activation } => down.forward(&activation::activate(*activation, &up.forward(x)?)?),
        }
    }
}

/// The norm of a part, where there is one; `at` is its position among the family's norms.
pub(in crate::model) fn block_norms(b: &Builder<'_>, i: usize) -> Result<[Option<Norm>; 4]> {
    let family = b.config.family();
    let norm = |module: &str| b.norm(&format!("{}{i}.{module}", family.blocks)).map(Some);
    Ok(match family.block.norms {
        Norms::Before([attn, mlp]) => {
            let absent = i == 0 && b.config.switches.first_norm_absent;
            [if absent { None } else { norm(attn)? }, None, norm(mlp)?, None]
        }
        Norms::After([attn, mlp]) | Norms::OfSum([attn, mlp]) => [None, norm(attn)?, None, norm(mlp)?],
        Norms::Around([a, b, c, d]) => [norm(a)?, norm(b)?, norm(c)?, norm(d)?],
    })
}

pub(in crate::model) fn projections(b: &Builder<'_>, i: usize) -> Result<Projections> {
    let (c, family) = (b.config, b.config.family());
    let (d, widths) = (c.hidden_size, [c.n_heads, c.n_kv_heads, c.n_kv_heads].map(|heads| heads * c.head_dim));
    let named = |module: &str| format!("{}{i}.{module}", family.blocks);
    let joint = |module: &str| b.linear(&named(module), widths.iter().sum(), d, c.qkv_bias);
    Ok(match family.block.qkv {
        Qkv::Joint(module) => Projections::Joint { all: joint(module)?, by_head: false },
        Qkv::ByHead(module) => Projections::Joint { all: joint(module)?, by_head: true },
        Qkv::Split(modules) => {
            let [q, k, v] = modules.map(named);
            let qkv = [(q, widths[0]), (k, widths[1]), (v, widths[2])];
            match b.joint(&qkv, d, c.qkv_bias)? {
                Some(all) => Projections::Joint { all, by_head: false },
                None => {
                    let [q, k, v] = qkv.map(|(name, out)| b.linear(&name, out, d, c.qkv_bias));
                    Projections::Split { q: q?, k: k?, v: v? }
                }
            }
        }
    })
}

pub(in crate::model) fn attention_out(b: &Builder<'_>, i: usize) -> Result<Linear> {
    let (c, family) = (b.config, b.config.family());
    let module = format!("{}{i}.{}", family.blocks, family.block.out);
    b.linear(&module, c.hidden_size, c.n_heads * c.head_dim, c.switches.out_bias)
}

pub(in crate::model) fn mlp(b: &Builder<'_>, i: usize) -> Result<Mlp> {
    let (c, family) = (b.config, b.config.family());
    let (d, inner, bias, activation) = (c.hidden_size, c.intermediate_size, c.switches.mlp_bias, c.activation);
    let named = |module: &str| format!("{}{i}.{module}", family.blocks);
    Ok(match family.block.mlp {
        MlpNames::Plain { up, down } => Mlp::Plain {
            up: b.linear(&named(up), inner, d, bias)?,
            down: b.linear(&named(down), d, inner, bias)?,
            activation,
        },
        MlpNames::JointGated { gate_up, down } => Mlp::JointGated {
            gate_up: b.linear(&named(gate_up), 2 * inner, d, bias)?,
            down: b.linear(&named(down), d, inner, bias)?,
            activation,
        },
        MlpNames::Gated { gate, up, down } => {
            let gated = [(named(gate), inner), (named(up), inner)];
            let down = b.linear(&named(down), d, inner, bias)?;
            match b.joint(&gated, d, bias)? {
                Some(gate_up) => Mlp::JointGated { gate_up, down, activation },
                None => {
                    let [gate, up] = gated.map(|(name, out)| b.linear(&name, out, d, bias));
                    Mlp::Gated { gate: gate?, up: up?, down, activation }
                }
            }
        }
    })
}

/// Block `i`; `ropes` are the tables of full and of windowed layers.
pub(in crate::model) fn layer(b: &Builder<'_>, i: usize, ropes: &[Option<Arc<RopeTable>>; 2]) -> Result<Layer> {
    let (c, family) = (b.config, b.config.family());
    let kind = c.layer(i);
    let named = |module: &str| format!("{}{i}.{module}", family.blocks);
    let [attn_norm, attn_post, mlp_norm, mlp_post] = block_norms(b, i)?;
    let qk_norm = match (family.block.qk_norm, c.switches.qk_norm) {
        (None, _) | (_, QkNorm::None) => None,
        (Some([q, k]), QkNorm::Heads) => Some([b.norm_of(&named(q), c.head_dim)?, b.norm_of(&named(k), c.head_dim)?]),
        (Some([q, k]), QkNorm::Whole) => {
            Some([b.norm_of(&named(q), c.n_heads * c.head_dim)?, b.norm_of(&named(k), c.n_kv_heads * c.head_dim)?])
        }
    };
    let rope = match kind {
        LayerKind { no_rope: true, .. } => None,
        LayerKind { window: Some(_), .. } => ropes[1].clone(),
        LayerKind { window: None, .. } => ropes[0].clone(),
    };
    Ok(Layer {
        attn_norm,
        attn: projections(b, i)?,
        qk_norm,
        out: attention_out(b, i)?,
        attn_post,
        mlp_norm,
        mlp: mlp(b, i)?,
        mlp_post,
        rope,
        kind,
    })
}
