//! Training on a device: gradients against the CPU's, and the time of a step.

use std::collections::HashMap;
use std::time::Instant;

use candle_core::Device as Candle;
use instructd::gpu::shared::Shared;
use instructd::model::decoder::attached::{DevicePasses, Keep, Wanted};
use instructd::model::decoder::training::{Element, State, TrainerOptions};
use instructd::model::init::{Heads, init};
use instructd::model::{DeviceTrainer, Recompute};
use instructd::objective::causal_lm;
use instructd::train::device_tensors::adam_step;
use instructd::train::optim::{AdamConfig, clipping};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence};
use instructd::train::trainable::Trainable;

use super::{Table, config, normals, open, prompt};

/// Products per second of an H100 or H200 in bfloat16 without sparsity, times two.
const PEAK: f64 = 989e12;

fn policy(shape: [usize; 6]) -> Result<Trainable, String> {
    let config = config(shape);
    let weights = init(&config, Heads::Backbone, &Candle::Cpu, normals()).map_err(|e| e.to_string())?;
    Trainable::new(&config, weights, None, 0).map_err(|e| e.to_string())
}

fn trainer(policy: &Trainable, simulated: bool, element: Element) -> Result<DeviceTrainer, String> {
    let names: HashMap<_, _> = policy.params.iter().map(|(name, var)| (var.id(), name.clone())).collect();
    let options = TrainerOptions::new(element, Recompute::None);
    DeviceTrainer::new(policy.decoder(), &names, Shared::new(open(simulated)?), options).map_err(|e| e.to_string())
}

/// One pass forward and backward of the mean log-prob.
fn pass(trainer: &mut DeviceTrainer, policy: &Trainable, sequences: &[Sequence]) -> Result<f64, String> {
    let packed = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    let n = packed.targets.len();
    let wanted = Wanted { batch: &packed.batch, rows: &packed.rows, targets: Some(&packed.targets) };
    let scores = trainer.logprobs(policy.decoder(), wanted, 1.0, Keep::All).map_err(|e| e.to_string())?;
    trainer.backward(&vec![-1.0 / n as f32; n]).map_err(|e| e.to_string())?;
    Ok(-scores.logprobs.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64)
}

/// The gradients of a small model, with sequences of several tiles.
fn gradients(simulated: bool, element: Element, tolerance: f64) -> Result<String, String> {
    let policy = policy([96, 160, 2, 6, 2, 200])?;
    let long = if simulated { 70 } else { 300 };
    let sequences: Vec<Sequence> = [long, 3, 17]
        .into_iter()
        .enumerate()
        .map(|(i, n)| Sequence { ids: prompt(n, 200, i).into(), start: 1 })
        .collect();
    let mut trainer = trainer(&policy, simulated, element)?;
    pass(&mut trainer, &policy, &sequences)?;
    let got = trainer.read(State::Gradients).map_err(|e| e.to_string())?;
    let host = || -> candle_core::Result<_> {
        let packed = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
        let hidden = packed.hidden(policy.decoder())?;
        let logprobs = packed.logprobs(policy.decoder(), &hidden, 1.0)?.logprobs;
        let mut sum = Accumulator::default();
        sum.add(&policy.params, &causal_lm::loss(&logprobs, packed.targets.len() as f64)?.0)?;
        Ok(sum.grads)
    };
    let (mut off, mut size) = (0f64, 0f64);
    for (name, want) in host().map_err(|e| e.to_string())? {
        let want: Vec<f32> = want.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| e.to_string())?;
        for (a, b) in want.iter().zip(&got[&name]) {
            if !b.is_finite() {
                return Err(format!("the gradient of {name} is not finite"));
            }
            off += f64::from(a - b).powi(2);
            size += f64::from(*a).powi(2);
        }
    }
    let off = (off / size).sqrt();
    // The same bits again.
    trainer.clear_gradients().map_err(|e| e.to_string())?;
    pass(&mut trainer, &policy, &sequences)?;
    if trainer.read(State::Gradients).map_err(|e| e.to_string())? != got {
        return Err("a repeated pass has other bits".to_owned());
    }
    if off < tolerance { Ok(format!("off by {off:.1e}, equal bits again")) } else { Err(format!("off by {off:.1e}")) }
}

/// Steps of training, with updates.
fn speed(simulated: bool, element: Element) -> Result<String, String> {
    let (shape, length, count, steps) = match simulated {
        true => ([96, 160, 2, 6, 2, 200], 16, 2, 1),
        false => ([576, 1536, 30, 9, 3, 49152], 1024, 8, 5),
    };
    let policy = policy(shape)?;
    let mut trainer = trainer(&policy, simulated, element)?;
    let sequences: Vec<Sequence> =
        (0..count).map(|i| Sequence { ids: prompt(length + 1, shape[5], i).into(), start: 1 }).collect();
    let mut losses = Vec::new();
    let mut seconds = 0.0;
    // The first step compiles the kernels.
    for step in 0..=steps {
        let began = Instant::now();
        losses.push(pass(&mut trainer, &policy, &sequences)?);
        let update = adam_step(AdamConfig::default(), step + 1, 1e-4, 0.0);
        let norm = trainer.gradient_norm().map_err(|e| e.to_string())?;
        let applied = trainer.apply(&update, clipping(norm, Some(1.0)));
        applied.and_then(|()| trainer.wait()).map_err(|e| e.to_string())?;
        seconds += if step > 0 { began.elapsed().as_secs_f64() } else { 0.0 };
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    if last.is_nan() || last >= first {
        return Err(format!("the loss went from {first:.4} to {last:.4} nats"));
    }
    let tokens = (count * length) as f64 * steps as f64;
    let parameters: usize = policy.params.values().map(|var| var.elem_count()).sum();
    let attention = 6 * shape[2] * shape[0] * length;
    let rate = tokens * (6 * parameters + attention) as f64 / seconds;
    let memory = trainer.take_peak() >> 20;
    Ok(format!(
        "{:.0} tokens/s, {:.0} ms a step of {}, {:.1} TFLOP/s ({:.1} % of an H100's peak in bf16), {memory} MB, loss {first:.2} to {last:.2}",
        tokens / seconds,
        seconds / steps as f64 * 1e3,
        count * length,
        rate / 1e12,
        rate / PEAK * 100.0,
    ))
}

/// Adds the phases of training to the table.
pub fn phases(table: &mut Table, simulated: bool) {
    for (element, tolerance) in [(Element::F32, 1e-4), (Element::Bf16, 5e-2)] {
        let name = element.as_str();
        table.phase(&format!("gradients, {name}"), || gradients(simulated, element, tolerance));
    }
    for element in [Element::Bf16, Element::F32] {
        table.phase(&format!("training, {}", element.as_str()), || speed(simulated, element));
    }
}
