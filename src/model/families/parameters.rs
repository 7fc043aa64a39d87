//! The parameters of a backbone, from its family's table and the switches of its configuration.

use super::{MlpNames, NormKind, Norms, Qkv};
use crate::model::config::{ModelConfig, QkNorm};
use crate::ops::linear::WeightLayout;

/// The role of a parameter, which determines its initial values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Embedding,
    /// Scale of a norm.
    Gain,
    Bias,
    Matrix,
    /// A matrix whose product is added to the hidden states.
    Residual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
}

/// A matrix of a block: its module, its sizes, whether it has a bias, and its role.
struct Matrix {
    module: &'static str,
    out: usize,
    input: usize,
    bias: bool,
    role: Role,
}

fn matrices(config: &ModelConfig) -> Vec<Matrix> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.n_heads.saturating_mul(config.head_dim), config.n_kv_heads.saturating_mul(config.head_dim));
    let (block, switches) = (&config.family().block, &config.switches);
    let one = |module, out, input, bias, role| Matrix { module, out, input, bias, role };
    let mut list = match block.qkv {
        Qkv::Split(names) => names
            .into_iter()
            .zip([q, kv, kv])
            .map(|(name, out)| one(name, out, d, config.qkv_bias, Role::Matrix))
            .collect(),
        Qkv::Joint(name) | Qkv::ByHead(name) => {
            vec![one(name, q.saturating_add(kv.saturating_mul(2)), d, config.qkv_bias, Role::Matrix)]
        }
    };
    list.push(one(block.out, d, q, switches.out_bias, Role::Residual));
    let bias = switches.mlp_bias;
    match block.mlp {
        MlpNames::Plain { up, down } => {
            list.push(one(up, inner, d, bias, Role::Matrix));
            list.push(one(down, d, inner, bias, Role::Residual));
        }
        MlpNames::Gated { gate, up, down } => {
            list.push(one(gate, inner, d, bias, Role::Matrix));
            list.push(one(up, inner, d, bias, Role::Matrix));
            list.push(one(down, d, inner, bias, Role::Residual));
        }
        MlpNames::JointGated { gate_up, down } => {
            list.push(one(gate_up, inner.saturating_mul(2), d, bias, Role::Matrix));
            list.push(one(down, d, inner, bias, Role::Residual));
        }
    }
    list
}

/// (out, in) of every matrix of one block.
pub fn block_matrices(config: &ModelConfig) -> Vec<(usize, usize)> {
    matrices(config).iter().map(|m| (m.out, m.input)).collect()
}

/// Every parameter of the backbone, in model order; heads are not listed. Matrices are [out, in], those of GPT-2
/// [in, out] as in Hugging Face's Conv1D.
pub fn parameters(config: &ModelConfig) -> Vec<Parameter> {
    let (family, d) = (config.family(), config.hidden_size);
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize], role| list.push(Parameter { name, shape: shape.to_vec(), role });
    add(format!("{}.weight", family.words), &[config.vocab_size, d], Role::Embedding);
    if let Some(positions) = family.positions {
        let rows = config.max_positions.saturating_add(config.switches.position_offset);
        add(format!("{positions}.weight"), &[rows, d], Role::Embedding);
    }
    if let Some(segments) = family.segments {
        add(format!("{segments}.weight"), &[config.type_vocab_size, d], Role::Embedding);
    }
    let norm = |module: &str, width: usize, add: &mut dyn FnMut(String, &[usize], Role)| {
        add(format!("{module}.weight"), &[width], Role::Gain);
        if family.norm == NormKind::Layer {
            add(format!("{module}.bias"), &[width], Role::Bias);
        }
    };
    let matrices = matrices(config);
    for i in 0..config.n_layers {
        let named = |module: &str| format!("{}{i}.{module}", family.blocks);
        // An encoder lists its norms after its matrices, a decoder before them: initial values depend on the position
        // here.
        let norms_of = |add: &mut dyn FnMut(String, &[usize], Role)| {
            let modules: &[&str] = match &family.block.norms {
                Norms::Before(pair) | Norms::After(pair) | Norms::OfSum(pair) => pair,
                Norms::Around(four) => four,
            };
            let absent = usize::from(i == 0 && config.switches.first_norm_absent);
            for module in &modules[absent..] {
                norm(&named(module), d, add);
            }
            if let Some([q, k]) = family.block.qk_norm {
                let (heads, kv_heads) = match config.switches.qk_norm {
                    QkNorm::None => return,
                    QkNorm::Heads => (1, 1),
                    QkNorm::Whole => (config.n_heads, config.n_kv_heads),
                };
                norm(&named(q), heads * config.head_dim, add);
                norm(&named(k), kv_heads * config.head_dim, add);
            }
        };
        if !family.is_encoder() {
            norms_of(&mut add);
        }
        for m in &matrices {
            let shape = if family.layout == WeightLayout::InOut { [m.input, m.out] } else { [m.out, m.input] };
            add(named(m.module) + ".weight", &shape, m.role);
            if m.bias {
                add(named(m.module) + ".bias", &[m.out], Role::Bias);
            }
        }
        if family.is_encoder() {
            norms_of(&mut add);
        }
    }
    for module in family.final_norm.into_iter().chain(family.embed_norm) {
        norm(module, d, &mut add);
    }
    list
}
