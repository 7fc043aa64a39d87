//! Attention maps are the model's: mixing values by them gives what the fused attention gives, layer by layer.

use candle_core::{Device, Tensor};
use instructd::engine::attention_maps::{self, AttentionMaps};
use instructd::model::{Decoder, Encoder, PackedBatch, Purpose, load};
use instructd::ops::attention::attention;

use crate::support::fixture;

fn close(what: &str, a: &Tensor, b: &Tensor) {
    let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < 1e-4, "{what}: {difference}");
}

/// Every row is a distribution, and nobody in a decoder looks ahead.
fn check(name: &str, maps: &AttentionMaps, layers: usize) {
    assert_eq!(maps.layers.len(), layers);
    for layer in 0..layers {
        for head in 0..maps.n_heads {
            for from in 0..maps.n_tokens {
                let row = maps.row(layer, head, from);
                let total: f32 = row.iter().sum();
                assert!((total - 1.0).abs() < 1e-5, "{name}: {total}");
                let ahead = row[from + 1..].iter().any(|p| *p > 0.0);
                assert_eq!(ahead, !maps.causal && from + 1 < maps.n_tokens, "{name}, {from}");
            }
        }
    }
}

/// What the maps mix of the values that the fused attention was given.
fn mixed(maps: &AttentionMaps, layer: usize, v: &Tensor, kv_heads: usize) -> Tensor {
    let (n, width) = v.dims2().unwrap();
    let hd = width / kv_heads;
    let v = v.reshape((n, kv_heads, hd)).unwrap();
    let heads: Vec<Tensor> = (0..maps.n_heads)
        .map(|h| {
            let rows: Vec<f32> = (0..n).flat_map(|i| maps.row(layer, h, i).to_vec()).collect();
            let p = Tensor::from_vec(rows, (n, n), &Device::Cpu).unwrap();
            let kv = h / (maps.n_heads / kv_heads);
            p.matmul(&v.narrow(1, kv, 1).unwrap().squeeze(1).unwrap().contiguous().unwrap()).unwrap()
        })
        .collect();
    Tensor::cat(&heads, 1).unwrap()
}

#[test]
fn of_decoders() {
    let ids: Vec<u32> = (0..21).map(|i| (i * 17 + 3) % 96).collect();
    let batch = PackedBatch::new(&[&ids[..]]);
    for name in ["gpt2-tiny", "qwen2-tiny"].into_iter().chain(crate::support::UNLIKE) {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        for purpose in [Purpose::Train, Purpose::Serve] {
            let decoder = Decoder::new(&loaded.config, &loaded.weights, purpose).unwrap();
            let maps = attention_maps::of_decoder(&decoder, &ids).unwrap();
            check(name, &maps, loaded.config.n_layers);
            close(name, &maps.hidden, &decoder.forward(&batch).unwrap());
            let mut layer = 0;
            let mut fused = |q: &Tensor, k: &Tensor, v: &Tensor, spec: &_| {
                let out = attention(q, k, v, spec)?;
                close(name, &mixed(&maps, layer, v, loaded.config.n_kv_heads), &out);
                layer += 1;
                Ok(out)
            };
            decoder.forward_by(&batch, &mut fused).unwrap();
            assert_eq!(layer, loaded.config.n_layers);
        }
    }
}

#[test]
fn of_an_encoder() {
    let ids: Vec<u32> = (0..13).map(|i| (i * 29 + 5) % 96).collect();
    let (batch, types) = (PackedBatch::new(&[&ids[..]]), vec![0; ids.len()]);
    let loaded = load(&fixture("bert-tiny"), &Device::Cpu).unwrap();
    let encoder = Encoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let maps = attention_maps::of_encoder(&encoder, &ids).unwrap();
    check("bert-tiny", &maps, loaded.config.n_layers);
    close("bert-tiny", &maps.hidden, &encoder.forward(&batch, &types).unwrap());
    let mut layer = 0;
    let mut fused = |q: &Tensor, k: &Tensor, v: &Tensor, spec: &_| {
        let out = attention(q, k, v, spec)?;
        close("bert-tiny", &mixed(&maps, layer, v, loaded.config.n_heads), &out);
        layer += 1;
        Ok(out)
    };
    encoder.forward_by(&batch, &types, &mut fused).unwrap();
}
