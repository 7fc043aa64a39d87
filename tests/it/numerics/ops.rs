//! Every fused operation against its plain twin: same values, same gradients, for awkward shapes.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use instructd::ops::activation::{gelu, swiglu};
use instructd::ops::attention::{AttentionSpec, attention};
use instructd::ops::embedding::embedding;
use instructd::ops::linear::{Weight, WeightLayout, linear};
use instructd::ops::norm::{layer_norm, rms_norm};
use instructd::ops::plain;
use instructd::ops::rope::{RopeTable, rope};
use instructd::ops::token_logprobs::token_logprobs;

use crate::support::noise;

fn var(shape: &[usize], seed: u64) -> Var {
    let n = shape.iter().product();
    Var::from_tensor(&Tensor::from_vec(noise(n, seed), shape, &Device::Cpu).unwrap()).unwrap()
}

/// Largest |a − b| relative to the largest |b|.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let a = a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let b = b.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scale = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    f64::from(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale)
}

/// Values and all gradients of `fused` and `twin` agree, under a random output gradient.
fn agree(vars: &[&Var], fused: &dyn Fn() -> Tensor, twin: &dyn Fn() -> Tensor) {
    let (a, b) = (fused(), twin());
    assert!(distance(&a, &b) < 2e-5, "values differ by {}", distance(&a, &b));
    let g = Tensor::from_vec(noise(a.elem_count(), 99), a.dims(), &Device::Cpu).unwrap();
    let ga = (&a * &g).unwrap().sum_all().unwrap().backward().unwrap();
    let gb = (&b * &g).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, v) in vars.iter().enumerate() {
        let (x, y) = (ga.get(v).expect("fused gradient"), gb.get(v).expect("twin gradient"));
        let total = x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(total.is_finite() && total > 0.0, "gradient {i} is dead");
        assert!(distance(x, y) < 5e-5, "gradient {i} differs by {}", distance(x, y));
    }
}

#[test]
fn norms() {
    for (n, d) in [(1, 5), (7, 48), (300, 33)] {
        let (x, w, b) = (var(&[n, d], 1), var(&[d], 2), var(&[d], 3));
        agree(&[&x, &w], &|| rms_norm(&x, &w, 1e-6).unwrap(), &|| plain::rms_norm(&x, &w, 1e-6).unwrap());
        agree(&[&x, &w, &b], &|| layer_norm(&x, &w, &b, 1e-5).unwrap(), &|| {
            plain::layer_norm(&x, &w, &b, 1e-5).unwrap()
        });
    }
}

#[test]
fn activations() {
    let (x, y) = (var(&[9, 37], 4), var(&[9, 37], 5));
    agree(&[&x, &y], &|| swiglu(&x, &y).unwrap(), &|| plain::swiglu(&x, &y).unwrap());
    agree(&[&x], &|| gelu(&x, true).unwrap(), &|| x.gelu().unwrap());
    agree(&[&x], &|| gelu(&x, false).unwrap(), &|| x.gelu_erf().unwrap());
}

#[test]
fn linears_in_both_layouts() {
    let (x, w, wt) = (var(&[13, 50], 6), var(&[70, 50], 7), var(&[50, 70], 8));
    agree(&[&x, &w], &|| linear(&x, &w, WeightLayout::OutIn).unwrap(), &|| x.matmul(&w.t().unwrap()).unwrap());
    agree(&[&x, &wt], &|| linear(&x, &wt, WeightLayout::InOut).unwrap(), &|| x.matmul(&wt).unwrap());
    let packed = Weight::new(&w.as_tensor().detach(), WeightLayout::OutIn, true).unwrap();
    agree(&[&x], &|| packed.apply(&x).unwrap(), &|| x.matmul(&w.detach().t().unwrap()).unwrap());
}

#[test]
fn rotary_positions() {
    let (x, table) = (var(&[5, 24], 9), Arc::new(RopeTable::new(10000.0, 8, 40)));
    let positions = Arc::new(vec![0u64, 1, 7, 39, 2]);
    agree(&[&x], &|| rope(&x, &table, &positions).unwrap(), &|| plain::rope(&x, &table, &positions).unwrap());
    let outside = Arc::new(vec![0u64, 1, 7, 40, 2]);
    assert!(rope(&x, &table, &outside).is_err());
}

#[test]
fn attention_over_ragged_sequences() {
    let shapes = [(6, 2, 8, true), (4, 4, 12, true), (4, 1, 16, false), (20, 2, 64, true)];
    let switches = [(None, None, None), (Some(5), None, None), (Some(20), Some(0.3), Some(1.5))];
    for ((heads, kv, hd, causal), (window, scale, softcap)) in shapes.into_iter().flat_map(|s| switches.map(|t| (s, t)))
    {
        let spec = AttentionSpec {
            window,
            scale,
            softcap,
            offsets: Arc::new(vec![0, 17, 18, 55]),
            n_heads: heads,
            n_kv_heads: kv,
            head_dim: hd,
            causal,
            queries: None,
        };
        let (q, k, v) = (var(&[55, heads * hd], 1), var(&[55, kv * hd], 2), var(&[55, kv * hd], 3));
        agree(&[&q, &k, &v], &|| attention(&q, &k, &v, &spec).unwrap(), &|| {
            plain::attention(&q, &k, &v, &spec).unwrap()
        });
    }
}

#[test]
fn embeddings_add_repeated_ids() {
    let table = var(&[11, 6], 4);
    let ids = Arc::new(vec![3u32, 3, 0, 10, 3]);
    let index = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
    agree(&[&table], &|| embedding(&table, &ids).unwrap(), &|| table.index_select(&index, 0).unwrap());
    assert!(embedding(&table, &Arc::new(vec![11u32])).is_err());
}

#[test]
fn token_logprobs_match_log_softmax_at_any_temperature() {
    let (x, w) = (var(&[9, 20], 5), var(&[77, 20], 6));
    let targets = [0u32, 76, 5, 5, 40, 1, 2, 3, 4];
    let index = Tensor::new(&targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    for t in [1.0f32, 0.7] {
        let twin = || {
            let logits = (x.matmul(&w.t().unwrap()).unwrap() / f64::from(t)).unwrap();
            plain::log_softmax(&logits).unwrap().gather(&index, 1).unwrap().squeeze(1).unwrap()
        };
        let dense = Weight::Dense(w.as_tensor().clone(), WeightLayout::OutIn);
        agree(&[&x, &w], &|| token_logprobs(&x, &dense, &targets, t).unwrap().logprobs, &twin);
        let frozen = Weight::new(&w.as_tensor().detach(), WeightLayout::OutIn, true).unwrap();
        agree(&[&x], &|| token_logprobs(&x, &frozen, &targets, t).unwrap().logprobs, &twin);
        let logits = (x.matmul(&w.t().unwrap()).unwrap() / f64::from(t)).unwrap();
        let all = plain::log_softmax(&logits).unwrap();
        let entropy = (all.exp().unwrap() * &all).unwrap().sum(1).unwrap().neg().unwrap();
        let got = token_logprobs(&x, &dense, &targets, t).unwrap().entropy;
        assert!(distance(&got, &entropy) < 1e-5);
    }
    let dense = Weight::Dense(w.as_tensor().clone(), WeightLayout::OutIn);
    assert!(token_logprobs(&x, &dense, &[77, 0, 0, 0, 0, 0, 0, 0, 0], 1.0).is_err());
}
