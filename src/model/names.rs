//! Parameter names: the variants found in published files brought to the one form that the models use,
//! and the list of what a backbone must have.

use super::{Arch, ModelConfig};

/// The canonical Hugging Face name of a tensor found in a file, or `None` for buffers and for copies of
/// tied weights, which are not parameters.
pub fn canonical(config: &ModelConfig, found: &str) -> Option<String> {
    match config.arch {
        Arch::Gpt2 => gpt2(config, found),
        Arch::Llama | Arch::Qwen2 => llama(config, found),
        Arch::Bert => bert(config, found),
    }
}

/// True for names of heads, which stand beside the backbone and carry no prefix.
fn is_head(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or(name);
    matches!(first, "lm_head" | "score" | "classifier" | "v_head" | "value_head" | "reward_head" | "cls" | "qa_outputs")
}

fn with_prefix(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) || is_head(name) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn gpt2(config: &ModelConfig, found: &str) -> Option<String> {
    // Causal masks that old files store; `.attn.c_attn.bias` is a parameter and does not match.
    if found.ends_with(".attn.bias") || found.ends_with(".attn.masked_bias") {
        return None;
    }
    if config.tie_embeddings && found == "lm_head.weight" {
        return None;
    }
    Some(with_prefix("transformer.", found))
}

fn llama(config: &ModelConfig, found: &str) -> Option<String> {
    if found.ends_with(".rotary_emb.inv_freq") || (config.tie_embeddings && found == "lm_head.weight") {
        return None;
    }
    Some(with_prefix("model.", found))
}

fn bert(config: &ModelConfig, found: &str) -> Option<String> {
    // Files converted from TensorFlow still say gamma and beta.
    let name = match (found.strip_suffix(".gamma"), found.strip_suffix(".beta")) {
        (Some(stem), _) => format!("{stem}.weight"),
        (_, Some(stem)) => format!("{stem}.bias"),
        _ => found.to_owned(),
    };
    if name.ends_with("embeddings.position_ids") || (config.tie_embeddings && name == "cls.predictions.decoder.weight")
    {
        return None;
    }
    if name == "cls.predictions.decoder.bias" {
        return Some("cls.predictions.bias".to_owned());
    }
    Some(with_prefix("bert.", &name))
}

/// Every parameter the backbone needs, with its shape, in model order. Heads are not listed.
/// Linear weights are [out, in]; GPT-2's are [in, out] as in Hugging Face's Conv1D.
pub fn backbone(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.n_heads.saturating_mul(config.head_dim), config.n_kv_heads.saturating_mul(config.head_dim));
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));
    let mut norm_or_bias = Vec::new();
    match config.arch {
        Arch::Gpt2 => {
            add("transformer.wte.weight".into(), &[config.vocab_size, d]);
            add("transformer.wpe.weight".into(), &[config.max_positions, d]);
            for i in 0..config.n_layers {
                let layer = |name: &str| format!("transformer.h.{i}.{name}");
                for norm in ["ln_1", "ln_2"] {
                    add(layer(&format!("{norm}.weight")), &[d]);
                    add(layer(&format!("{norm}.bias")), &[d]);
                }
                for (name, rows, columns) in
                    [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, inner), ("mlp.c_proj", inner, d)]
                {
                    add(layer(&format!("{name}.weight")), &[rows, columns]);
                    add(layer(&format!("{name}.bias")), &[columns]);
                }
            }
            norm_or_bias.extend(["transformer.ln_f.weight", "transformer.ln_f.bias"]);
        }
        Arch::Llama | Arch::Qwen2 => {
            add("model.embed_tokens.weight".into(), &[config.vocab_size, d]);
            for i in 0..config.n_layers {
                let layer = |name: &str| format!("model.layers.{i}.{name}.weight");
                add(layer("input_layernorm"), &[d]);
                add(layer("post_attention_layernorm"), &[d]);
                add(layer("self_attn.q_proj"), &[q, d]);
                add(layer("self_attn.k_proj"), &[kv, d]);
                add(layer("self_attn.v_proj"), &[kv, d]);
                add(layer("self_attn.o_proj"), &[d, q]);
                add(layer("mlp.gate_proj"), &[inner, d]);
                add(layer("mlp.up_proj"), &[inner, d]);
                add(layer("mlp.down_proj"), &[d, inner]);
                if config.qkv_bias {
                    for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                        add(format!("model.layers.{i}.self_attn.{name}.bias"), &[rows]);
                    }
                    if config.arch == Arch::Llama {
                        add(format!("model.layers.{i}.self_attn.o_proj.bias"), &[d]);
                    }
                }
            }
            norm_or_bias.push("model.norm.weight");
        }
        Arch::Bert => {
            for (name, rows) in [
                ("word_embeddings", config.vocab_size),
                ("position_embeddings", config.max_positions),
                ("token_type_embeddings", config.type_vocab_size),
            ] {
                add(format!("bert.embeddings.{name}.weight"), &[rows, d]);
            }
            norm_or_bias.extend(["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]);
            for i in 0..config.n_layers {
                let layer = |name: &str| format!("bert.encoder.layer.{i}.{name}");
                for (name, rows, columns) in [
                    ("attention.self.query", d, d),
                    ("attention.self.key", d, d),
                    ("attention.self.value", d, d),
                    ("attention.output.dense", d, d),
                    ("intermediate.dense", inner, d),
                    ("output.dense", d, inner),
                ] {
                    add(layer(&format!("{name}.weight")), &[rows, columns]);
                    add(layer(&format!("{name}.bias")), &[rows]);
                }
                for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
                    add(layer(&format!("{norm}.weight")), &[d]);
                    add(layer(&format!("{norm}.bias")), &[d]);
                }
            }
        }
    }
    for name in norm_or_bias {
        add(name.into(), &[d]);
    }
    list
}
