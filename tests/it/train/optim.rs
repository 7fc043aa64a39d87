//! AdamW: both forms against reference values, clipping that is really applied, fused = plain, restore = go on.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use instructd::train::optim::{AdamConfig, AdamForm, AdamStates, AdamW, Grads, Group, Moments, Params, global_norm};

fn params(values: &[f32]) -> Params {
    let tensor = Tensor::new(values, &Device::Cpu).unwrap();
    BTreeMap::from([("w".to_owned(), Var::from_tensor(&tensor).unwrap())])
}

fn grads(values: &[f32]) -> Grads {
    BTreeMap::from([("w".to_owned(), Tensor::new(values, &Device::Cpu).unwrap())])
}

fn values(params: &Params) -> Vec<f32> {
    params["w"].to_vec1().unwrap()
}

fn config(form: AdamForm) -> AdamConfig {
    AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-5, form }
}

/// `adam_first_step` of objectives.json; f32, relative 1e-5.
#[test]
fn first_step_in_both_forms() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/objectives.json");
    let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let field = |name: &str| file["adam_first_step"][name].as_f64().unwrap();
    for (form, expected) in [(AdamForm::Torch, "torch_update"), (AdamForm::Tf, "tf_update")] {
        let params = params(&[0.0]);
        let config = AdamConfig { beta1: field("beta1"), beta2: field("beta2"), eps: field("eps"), form };
        let mut adam = AdamW::new(config, Group::standard(0.0));
        adam.update(&params, &grads(&[field("grad") as f32]), field("lr"), None).unwrap();
        let update = -f64::from(values(&params)[0]);
        assert!((update / field(expected) - 1.0).abs() < 1e-5, "{form:?}: {update}");
    }
}

/// Ten steps of the textbook recurrence in f64.
#[test]
fn ten_steps_with_decay_follow_the_recurrence() {
    let tensor = Tensor::new(&[[0.5f32, -0.3]], &Device::Cpu).unwrap();
    let params: Params = BTreeMap::from([("w".to_owned(), Var::from_tensor(&tensor).unwrap())]);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.1));
    let (mut p, mut m, mut v) = ([0.5f64, -0.3], [0.0; 2], [0.0; 2]);
    for t in 1..=10 {
        let g = [0.1 * f64::from(t), -0.02 * f64::from(t * t)];
        let grad = Tensor::new(&[[g[0] as f32, g[1] as f32]], &Device::Cpu).unwrap();
        adam.update(&params, &BTreeMap::from([("w".to_owned(), grad)]), 0.01, None).unwrap();
        for i in 0..2 {
            m[i] = 0.9 * m[i] + 0.1 * g[i];
            v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
            let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
            p[i] = p[i] * (1.0 - 0.01 * 0.1) - 0.01 * mh / (vh.sqrt() + 1e-5);
        }
    }
    let got: Vec<Vec<f32>> = params["w"].to_vec2().unwrap();
    for i in 0..2 {
        assert!((f64::from(got[0][i]) - p[i]).abs() < 1e-5, "{} is not {}", got[0][i], p[i]);
    }
}

#[test]
fn weight_decay_spares_vectors_and_groups_scale_the_rate() {
    let vector = params(&[1.0]);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.5));
    adam.update(&vector, &grads(&[0.0]), 0.1, None).unwrap();
    assert_eq!(values(&vector), [1.0]);

    let groups = vec![Group { contains: "w".to_owned(), min_rank: 0, lr_scale: 0.0, weight_decay: 0.5 }];
    let mut frozen = AdamW::new(config(AdamForm::Torch), groups);
    frozen.update(&vector, &grads(&[3.0]), 0.1, None).unwrap();
    assert_eq!(values(&vector), [1.0]);
}

/// Shipped elsewhere: `max_grad_norm` accepted and never applied.
#[test]
fn max_grad_norm_is_applied() {
    let run = |grad: &[f32], max| {
        let params = params(&[0.0, 0.0]);
        let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.0));
        let norm = adam.update(&params, &grads(grad), 0.1, max).unwrap();
        (norm, values(&params))
    };
    // ε = 1e-5 makes Adam's first step sensitive to the size of small gradients.
    let (norm, clipped) = run(&[3e-3, 4e-3], Some(5e-5));
    assert!((norm - 5e-3).abs() < 1e-9, "the norm reported is the one before clipping");
    let scale = (5e-5 / (5e-3 + 1e-6)) as f32;
    assert_eq!(clipped, run(&[3e-3 * scale, 4e-3 * scale], None).1);
    assert_ne!(clipped, run(&[3e-3, 4e-3], None).1);
    // Below the limit nothing changes.
    assert_eq!(run(&[3e-3, 4e-3], Some(1.0)).1, run(&[3e-3, 4e-3], None).1);
}

#[test]
fn a_gradient_that_is_not_finite_names_its_parameter_and_changes_nothing() {
    let params = params(&[1.0, 2.0]);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.0));
    let error = adam.update(&params, &grads(&[1.0, f32::NAN]), 0.1, Some(1.0)).unwrap_err();
    assert!(error.to_string().contains('w'), "{error}");
    assert_eq!((values(&params), adam.step, adam.moments.len()), (vec![1.0, 2.0], 0, 0));
}

#[test]
fn restored_state_goes_on_with_the_same_bits() {
    let grad = |t: u32| grads(&[0.3 * t as f32, -0.1, 0.7 / (t + 1) as f32]);
    let whole = params(&[0.5, 0.1, -2.0]);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.1));
    let mut halfway = None;
    for t in 0..6 {
        if t == 3 {
            halfway = Some((values(&whole), adam.state(&whole).unwrap(), adam.step));
        }
        adam.update(&whole, &grad(t), 0.01, Some(0.5)).unwrap();
    }
    let (weights, state, step) = halfway.unwrap();
    let resumed = params(&weights);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.1));
    adam.restore(&resumed, &state, step).unwrap();
    for t in 3..6 {
        adam.update(&resumed, &grad(t), 0.01, Some(0.5)).unwrap();
    }
    assert_eq!(values(&whole), values(&resumed));
}

/// Moments kept as tensors take the path of other devices.
#[test]
fn the_tensor_path_agrees_with_the_fused_one() {
    let data: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
    let base = Tensor::from_vec(data, (3, 4), &Device::Cpu).unwrap();
    let run = |fused: bool| {
        let var = Var::from_tensor(&base).unwrap();
        let params: Params = BTreeMap::from([("w".to_owned(), var)]);
        let mut adam = AdamW::new(config(AdamForm::Tf), Group::standard(0.1));
        if !fused {
            let zeros = base.zeros_like().unwrap();
            let moments = instructd::train::optim::Moments::Device { m: zeros.clone(), v: zeros };
            adam.moments.insert("w".to_owned(), moments);
        }
        for t in 1..5 {
            let grad: Grads = BTreeMap::from([("w".to_owned(), (&base * f64::from(t)).unwrap())]);
            adam.update(&params, &grad, 0.01, Some(1.0)).unwrap();
        }
        params["w"].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (a, b) in run(true).into_iter().zip(run(false)) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }
}

#[test]
fn the_global_norm_spans_all_parameters() {
    let grads: Grads = BTreeMap::from([
        ("a".to_owned(), Tensor::new(&[3f32], &Device::Cpu).unwrap()),
        ("b".to_owned(), Tensor::new(&[[4f32], [12.0]], &Device::Cpu).unwrap()),
    ]);
    assert!((global_norm(&grads).unwrap() - 13.0).abs() < 1e-12);
}

/// A noisy quadratic: parameters of very different curvature, pulled to a target.
struct Bowl {
    target: Vec<f32>,
    curvature: Vec<f32>,
}

impl Bowl {
    fn new(n: usize) -> Self {
        let noise = |i: usize, k: f64| ((i as f64 * 12.9898 + k).sin() * 43758.5453).fract() as f32;
        Self {
            target: (0..n).map(|i| noise(i, 1.0)).collect(),
            curvature: (0..n).map(|i| 10f32.powf(-2.0 * noise(i, 2.0).abs())).collect(),
        }
    }

    /// Runs Adam from 0; returns the parameters.
    fn run(&self, states: AdamStates, steps: u32, adam: &mut AdamW, params: &Params) -> Vec<f32> {
        adam.states = states;
        for t in 0..steps {
            let now = values(params);
            let grad: Vec<f32> = (0..now.len())
                .map(|i| {
                    let noise = ((i as f64 * 78.233 + f64::from(t) * 3.7).sin() * 12543.123).fract() as f32;
                    self.curvature[i] * (now[i] - self.target[i] + 0.2 * noise)
                })
                .collect();
            adam.update(params, &grads(&grad), 0.01, None).unwrap();
        }
        values(params)
    }
}

/// Moments in 8 bits follow exact ones: after 200 noisy steps the parameters of both differ by less than 2 % of the way
/// that they went, and both have lost all but a thousandth of the loss.
#[test]
fn adam_in_8_bits_follows_exact_adam() {
    let n = 8192;
    let bowl = Bowl::new(n);
    let run = |states| {
        let (params, mut adam) = (params(&vec![0.0; n]), AdamW::new(config(AdamForm::Torch), Group::standard(0.0)));
        let end = bowl.run(states, 200, &mut adam, &params);
        let rounded = matches!(adam.moments["w"], Moments::Bytes { .. });
        assert_eq!(rounded, states == AdamStates::Bytes);
        end
    };
    let (exact, rounded) = (run(AdamStates::F32), run(AdamStates::Bytes));
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let apart = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
    let loss = |end: &[f32]| -> f64 {
        let term = |i: usize| f64::from(bowl.curvature[i]) * f64::from(end[i] - bowl.target[i]).powi(2);
        (0..n).map(term).sum::<f64>() / n as f64
    };
    println!(
        "apart {apart:.4}, losses {:.6} {:.6}, at the start {:.6}",
        loss(&exact),
        loss(&rounded),
        loss(&vec![0.0; n])
    );
    assert!(apart > 0.0 && apart < 0.02, "{apart}");
    assert!(loss(&rounded).max(loss(&exact)) < 1e-3 * loss(&vec![0.0; n]));
}

#[test]
fn rounded_moments_take_a_quarter_and_go_on_with_the_same_bits() {
    let n = 5000;
    let bowl = Bowl::new(n);
    let whole = params(&vec![0.0; n]);
    let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.1));
    bowl.run(AdamStates::Bytes, 5, &mut adam, &whole);
    let state = adam.state(&whole).unwrap();
    let bytes: usize = state.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
    assert_eq!(bytes, 2 * n + 2 * 4 * n.div_ceil(256), "one byte an entry, one scale for 256");
    let resumed = params(&values(&whole));
    let mut again = AdamW::new(config(AdamForm::Torch), Group::standard(0.1));
    again.restore(&resumed, &state, adam.step).unwrap();
    // The same gradients, which follow from the parameters.
    for (adam, params) in [(&mut adam, &whole), (&mut again, &resumed)] {
        bowl.run(AdamStates::Bytes, 4, adam, params);
    }
    assert_eq!(values(&whole), values(&resumed));
    let mut damaged = state;
    damaged.insert("m_scale.w".to_owned(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
    assert!(again.restore(&resumed, &damaged, 5).unwrap_err().to_string().contains("1 scales for 5000"));
}

/// Small parameters are not worth rounding.
#[test]
fn small_parameters_keep_exact_moments() {
    let run = |states| {
        let whole = params(&[0.5, 0.1, -2.0]);
        let mut adam = AdamW::new(config(AdamForm::Torch), Group::standard(0.1)).with_states(states);
        for _ in 0..5 {
            adam.update(&whole, &grads(&[0.3, -0.1, 0.7]), 0.01, None).unwrap();
        }
        values(&whole)
    };
    assert_eq!(run(AdamStates::F32), run(AdamStates::Bytes));
}
