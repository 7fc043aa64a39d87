//! A tiny llama of random weights over a vocabulary that the test chooses: able to write any text, knowing nothing.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::noise;

const WIDTH: usize = 32;
const POSITIONS: usize = 2048;

/// Writes the model's files. `end` is the id that ends a text.
pub fn random_model(tokenizer: &Value, tokenizer_config: &Value, end: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let mut seed = 1;
    let mut tensor = |rows: usize, columns: usize, scale: f32| {
        seed += 1;
        let values: Vec<f32> = noise(rows * columns, seed).iter().map(|v| v * scale).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let ones = || Tensor::ones(WIDTH, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([("model.embed_tokens.weight".to_owned(), tensor(vocab, WIDTH, 0.3))]);
    for (name, rows, columns) in [
        ("self_attn.q_proj", WIDTH, WIDTH),
        ("self_attn.k_proj", WIDTH, WIDTH),
        ("self_attn.v_proj", WIDTH, WIDTH),
        ("self_attn.o_proj", WIDTH, WIDTH),
        ("mlp.gate_proj", 2 * WIDTH, WIDTH),
        ("mlp.up_proj", 2 * WIDTH, WIDTH),
        ("mlp.down_proj", WIDTH, 2 * WIDTH),
    ] {
        tensors.insert(format!("model.layers.0.{name}.weight"), tensor(rows, columns, 0.2));
    }
    for name in ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"] {
        tensors.insert(format!("{name}.weight"), ones());
    }
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH, "max_position_embeddings": POSITIONS, "num_attention_heads": 4,
        "num_hidden_layers": 1, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "vocab_size": vocab, "eos_token_id": end, "torch_dtype": "float32",
    });
    let write = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    write("config.json", &config);
    write("tokenizer.json", tokenizer);
    write("tokenizer_config.json", tokenizer_config);
    dir
}

/// Pieces that JSON texts are full of, beside single characters.
const PIECES: [&str; 18] = [
    "{\"", "\":", "\",", "\"}", "},", "[]", "true", "false", "null", "  ", "10", "99", "abc", "\",\"", "é", "中",
    "\\n", "0.",
];

fn vocabulary(tokens: Vec<String>) -> Value {
    let mut vocab = serde_json::Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    Value::Object(vocab)
}

/// `special`: texts of special tokens, of which the first ends a text; `plain`: added tokens that are text.
fn added(special: &[&str], plain: &[&str]) -> Value {
    let one = |(i, content): (usize, &&str)| {
        json!({"id": i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": i < special.len()})
    };
    special.iter().chain(plain).enumerate().map(one).collect()
}

/// Byte-level BPE over all bytes, as GPT-2, Llama 3 and Qwen have it. The first special token ends a text.
pub fn byte_level(special: &[&str], plain: &[&str]) -> Value {
    let byte_char = |b: u8| -> char {
        let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        if printable(b) {
            return char::from(b);
        }
        let before = (0..b).filter(|b| !printable(*b)).count() as u32;
        char::from_u32(0x100 + before).unwrap()
    };
    let spelled = |text: &str| text.bytes().map(byte_char).collect::<String>();
    let mut tokens: Vec<String> = special.iter().chain(plain).map(|s| (*s).to_owned()).collect();
    tokens.extend((0..=255u8).map(|b| byte_char(b).to_string()));
    let mut merges: Vec<Value> = Vec::new();
    for piece in PIECES {
        // From the left, one character after another.
        let chars: Vec<char> = spelled(piece).chars().collect();
        for end in 2..=chars.len() {
            let (left, right): (String, char) = (chars[..end - 1].iter().collect(), chars[end - 1]);
            merges.push(json!([left, right]));
            tokens.push(chars[..end].iter().collect());
        }
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(special, plain),
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary(tokens), "merges": merges},
    })
}

/// SentencePiece's BPE with byte fallback, as Llama 2, Mistral and Gemma have it: a space is `▁`, and one is put
/// before every text.
pub fn sentencepiece(special: &[&str], plain: &[&str]) -> Value {
    let mut tokens: Vec<String> = special.iter().chain(plain).map(|s| (*s).to_owned()).collect();
    tokens.push("<unk>".into());
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    tokens.push("▁".into());
    tokens.extend((0x21..=0x7Eu8).map(|b| char::from(b).to_string()));
    tokens.extend(["é", "中"].map(String::from));
    let mut merges: Vec<Value> = Vec::new();
    for piece in PIECES.iter().copied().chain(["▁{", "▁{\"", "▁\"", "▁a", "▁abc", "▁1"]) {
        let chars: Vec<char> = piece.replace(' ', "▁").chars().collect();
        for end in 2..=chars.len() {
            let (left, right): (String, char) = (chars[..end - 1].iter().collect(), chars[end - 1]);
            merges.push(json!([left, right]));
            tokens.push(chars[..end].iter().collect());
        }
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(special, plain),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary(tokens), "merges": merges},
    })
}
