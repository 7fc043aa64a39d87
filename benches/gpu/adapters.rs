//! LoRA adapters over one base on a device: logits against merged weights, and speed with several adapters in a step.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device as Candle, Tensor};
use instructd::model::adapters::served::ServedAdapter;
use instructd::model::adapters::{lora, peft};
use instructd::model::decoder::device::{AdapterImage, Blocks, Draw};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceModel, LoraConfig, PackedBatch, Purpose, Weights};
use instructd::ops::blocks::BlockType;
use instructd::ops::linear::WeightFormat;
use instructd::ops::quantized::QuantizedMatrix;

use super::{FORMATS, SMALL, Shape, TINY, Table, config, normals, open, prompt, room};

const RANK: usize = 16;

/// Random adapters of all matrices of a model, as if they had been trained.
fn adapters(weights: &Weights, shape: [usize; 6], n: usize) -> Result<Vec<peft::Adapter>, String> {
    let (config, normals) = (config(shape), normals());
    let settings = LoraConfig { rank: RANK, alpha: RANK as f64, targets: Vec::new() };
    let one = |i: usize| -> Result<peft::Adapter, String> {
        let mut factors = lora::init(&config, &settings, weights, i as u64).map_err(|e| e.to_string())?;
        for (name, b) in factors.iter_mut().filter(|(name, _)| name.ends_with("lora_B.weight")) {
            let seed = name.bytes().fold(i as u64 + 1, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
            let values = normals(seed, b.elem_count()).into_iter().map(|v| v as f32 * 0.02).collect::<Vec<_>>();
            *b = Tensor::from_vec(values, b.dims(), &Candle::Cpu).map_err(|e| e.to_string())?;
        }
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        peft::write(dir.path(), &config, &settings, &factors, weights, "base").map_err(|e| e.to_string())?;
        peft::read(dir.path(), &config).map_err(|e| e.to_string())
    };
    (0..n).map(one).collect()
}

/// The weights, with the matrices of blocks rounded as `format` holds them: rounding them again changes next to nothing, so
/// that what differs afterwards is not the rounding of the base.
fn held(weights: &Weights, format: WeightFormat) -> candle_core::Result<Weights> {
    let kind = match format {
        WeightFormat::Q8_0 => BlockType::Q8_0,
        WeightFormat::Q4_1 => BlockType::Q4_1,
        _ => return Ok(weights.clone()),
    };
    let mut rounded = weights.clone();
    for (_, matrix) in rounded.iter_mut().filter(|(name, _)| name.ends_with("_proj.weight")) {
        let (m, k) = matrix.dims2()?;
        let values = matrix.flatten_all()?.to_vec1::<f32>()?;
        *matrix = QuantizedMatrix::quantize(&values, m, k, kind)?.dequantize()?;
    }
    Ok(rounded)
}

/// A base with adapters on a device.
struct Bench {
    decoder: Decoder,
    model: DeviceModel,
    cache: KvCache,
    names: Vec<Arc<ServedAdapter>>,
}

/// A running sequence: its next tokens, its cache, and its adapter.
type Running = (Vec<u32>, CachedSequence, Option<usize>);

impl Bench {
    fn new(
        simulated: bool,
        weights: &Weights,
        shape: [usize; 6],
        format: WeightFormat,
        adapters: &[peft::Adapter],
        pages: usize,
    ) -> Result<Self, String> {
        let decoder = Decoder::new(&config(shape), weights, Purpose::Score).map_err(|e| e.to_string())?;
        let model = DeviceModel::new(&decoder, Blocks::Held, open(simulated)?, format, room(pages));
        let mut bench = Self {
            decoder,
            model: model.map_err(|e| e.to_string())?,
            cache: KvCache::on_device(pages * 16),
            names: Vec::new(),
        };
        for adapter in adapters {
            let name = Arc::new(ServedAdapter::on_devices(adapter));
            let image = AdapterImage::new(&bench.decoder.config, bench.model.element(), adapter);
            let image = image.map_err(|e| e.to_string())?;
            bench.model.load_adapter(&bench.decoder, &name, &image).map_err(|e| e.to_string())?;
            bench.names.push(name);
        }
        Ok(bench)
    }

    /// One step; the logits of the last row of each sequence, or a token drawn for each.
    fn step(&mut self, running: &mut [Running], draw: bool) -> Result<Vec<f32>, String> {
        let (mut rows, mut last) = (StepRows::default(), Vec::new());
        for (ids, cached, adapter) in running.iter_mut() {
            if !self.cache.reserve(cached, ids.len()) {
                return Err("the cache is too small".to_owned());
            }
            last.push(rows.push(ids, cached) as u32);
            if let Some(adapter) = adapter {
                rows.with_adapter(&self.names[*adapter], ids.len());
            }
        }
        let draws: Vec<Draw> =
            last.iter().map(|row| Draw { row: *row, inverse_temperature: 1.0, uniform: 0.4 }).collect();
        let (wanted, draws) = if draw { (Vec::new(), draws) } else { (last, Vec::new()) };
        let result = self.model.step(&self.decoder, &rows, &wanted, &draws).map_err(|e| e.to_string())?;
        for (i, (ids, cached, _)) in running.iter_mut().enumerate() {
            cached.len += ids.len();
            if let Some((id, _)) = result.drawn.get(i) {
                *ids = vec![*id];
            }
        }
        Ok(result.logits)
    }
}

fn fresh(ids: Vec<u32>, adapter: Option<usize>) -> Running {
    (ids, CachedSequence::default(), adapter)
}

/// Rows of the base and of two adapters in one step, against merged weights, and alone.
fn logits(simulated: bool, format: WeightFormat, tolerance: f32) -> Result<String, String> {
    let (shape, vocab) = (TINY.sizes, TINY.sizes[5]);
    let text = |e: candle_core::Error| e.to_string();
    let weights = init(&config(shape), Heads::Backbone, &Candle::Cpu, normals()).map_err(text)?;
    let weights = held(&weights, format).map_err(text)?;
    let adapters = adapters(&weights, shape, 2)?;
    let mut bench = Bench::new(simulated, &weights, shape, format, &adapters, 128)?;
    let parts = [(prompt(60, vocab, 0), Some(0)), (prompt(3, vocab, 1), None), (prompt(40, vocab, 2), Some(1))];
    let mut together: Vec<_> = parts.iter().map(|(ids, adapter)| fresh(ids.clone(), *adapter)).collect();
    let got = bench.step(&mut together, false)?;
    let mut worst = 0f32;
    for ((ids, adapter), got) in parts.iter().zip(got.chunks_exact(vocab)) {
        let alone = bench.step(&mut [fresh(ids.clone(), *adapter)], false)?;
        if alone.iter().zip(got).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("adapter {adapter:?} has other bits alone"));
        }
        let weights = adapter.map_or(Ok(weights.clone()), |i| adapters[i].merge(&config(shape), &weights));
        let merged = Decoder::new(&config(shape), &weights.map_err(text)?, Purpose::Score).map_err(text)?;
        let hidden = merged.forward(&PackedBatch::new(std::slice::from_ref(ids))).map_err(text)?;
        let last = hidden.narrow(0, ids.len() - 1, 1).map_err(text)?;
        let want: Vec<f32> = merged.logits(&last).and_then(|z| z.flatten_all()?.to_vec1()).map_err(text)?;
        let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        worst = want.iter().zip(got).fold(worst, |m, (a, b)| m.max((a - b).abs() / scale));
    }
    match worst < tolerance {
        true => Ok(format!("off by {worst:.1e}, equal bits alone and beside others")),
        false => Err(format!("logits are off by {worst:.1e}")),
    }
}

/// Tokens per second of `streams` sequences that use 0, 1, … adapters in turn.
fn speed(simulated: bool, shape: &Shape, streams: usize, counts: &[usize]) -> Result<String, String> {
    let text = |e: candle_core::Error| e.to_string();
    let weights = init(&config(shape.sizes), Heads::Backbone, &Candle::Cpu, normals()).map_err(text)?;
    let adapters = adapters(&weights, shape.sizes, *counts.iter().max().unwrap_or(&0))?;
    let steps = shape.steps;
    let pages = streams * (8 + 2 * steps).div_ceil(16);
    let mut bench = Bench::new(simulated, &weights, shape.sizes, WeightFormat::Bf16, &adapters, pages)?;
    let mut rates = Vec::new();
    for count in counts {
        let own = |i: usize| (*count > 0).then(|| i % count);
        let mut running: Vec<_> = (0..streams).map(|i| fresh(prompt(8, shape.sizes[5], i), own(i))).collect();
        for _ in 0..steps / 2 + 1 {
            bench.step(&mut running, true)?;
        }
        let began = Instant::now();
        for _ in 0..steps {
            bench.step(&mut running, true)?;
        }
        let rate = (streams * steps) as f64 / began.elapsed().as_secs_f64();
        rates.push(format!("{count}: {rate:.0} tokens/s"));
        running.iter_mut().for_each(|(_, cached, _)| bench.cache.release_all(cached));
    }
    Ok(rates.join(", "))
}

pub fn phases(table: &mut Table, simulated: bool) {
    for (format, tolerance) in FORMATS {
        table.phase(&format!("adapters, {}", format.as_str()), || logits(simulated, format, tolerance));
    }
    let (shape, streams, counts) = match simulated {
        true => (TINY, 4, &[0, 1, 2][..]),
        false => (SMALL, 32, &[0, 1, 8, 32][..]),
    };
    let name = format!("{}, bf16, streams: {streams}, adapters", shape.name);
    table.phase(&name, || speed(simulated, &shape, streams, counts));
}
