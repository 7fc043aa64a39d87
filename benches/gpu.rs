//! What a GPU must still prove, in one command that prints a table whatever fails:
//!
//! `cargo bench --bench gpu -- cuda` on a machine with an NVIDIA driver; `-- sim` is the dry run on the simulated
//! device that `.ci/run` makes. The program needs no CUDA and no network: it can be built on one machine and run on
//! another. Phases: the device, every recorded launch, logits and equality of bits of tiny models, their gradients, rewards, and
//! tokens per second of serving and training with random weights in the shapes of SmolLM2-135M and, for serving,
//! SmolLM2-1.7B (a tiny shape in the dry run), LoRA adapters over one base, and rounds of PPO. Exit status 1 when
//! anything fails. With `--json FILE`, the table is also written there, with INSTRUCTD_BENCH_COMMIT, _MACHINE, _DATE and
//! _COMMAND.

#[path = "gpu/adapters.rs"]
mod adapters;
#[path = "gpu/rl.rs"]
mod rl;
#[path = "gpu/scoring.rs"]
mod scoring;
#[path = "gpu/training.rs"]
mod training;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use candle_core::Device as Candle;
use instructd::gpu::cuda::Cuda;
use instructd::gpu::device::Device;
use instructd::gpu::sim::Sim;
use instructd::gpu::tape;
use instructd::model::decoder::device::{Blocks, Draw, Room};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceModel, ModelConfig, PackedBatch, Purpose};
use instructd::ops::linear::WeightFormat;
use serde_json::json;

/// No phase begins after so long.
const LIMIT: Duration = Duration::from_secs(500);
const FORMATS: [(WeightFormat, f32); 5] = [
    (WeightFormat::F32, 1e-4),
    (WeightFormat::Bf16, 2e-2),
    (WeightFormat::F16, 5e-3),
    (WeightFormat::Q8_0, 2e-2),
    (WeightFormat::Q4_1, 2e-2),
];

struct Table {
    began: Instant,
    rows: Vec<(String, String, bool)>,
}

impl Table {
    /// Runs a phase; whatever it does, the table goes on.
    fn phase(&mut self, name: &str, work: impl FnOnce() -> Result<String, String>) {
        let result = match self.began.elapsed() < LIMIT {
            true => catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("panicked".to_owned())),
            false => Err("no time was left".to_owned()),
        };
        let good = result.is_ok();
        let text = result.unwrap_or_else(|e| e);
        eprintln!("[{:5.1} s] {name}: {text}", self.began.elapsed().as_secs_f64());
        self.rows.push((name.to_owned(), text, good));
    }

    fn print(&self) -> bool {
        println!("| phase | result | |\n|---|---|---|");
        for (name, text, good) in &self.rows {
            println!("| {name} | {text} | {} |", if *good { "ok" } else { "FAILED" });
        }
        self.rows.iter().all(|(.., good)| *good)
    }

    fn json(&self) -> String {
        let rows: Vec<_> =
            self.rows.iter().map(|(name, text, good)| json!({"phase": name, "result": text, "ok": good})).collect();
        let of = |name: &str| std::env::var(format!("INSTRUCTD_BENCH_{name}")).unwrap_or_default();
        let text = json!({
            "bench": "gpu", "commit": of("COMMIT"), "machine": of("MACHINE"), "date": of("DATE"),
            "command": of("COMMAND"), "rows": rows,
        });
        format!("{text:#}\n")
    }
}

fn open(simulated: bool) -> Result<Box<dyn Device>, String> {
    match simulated {
        true => Ok(Box::new(Sim::new(4 << 30))),
        false => Ok(Box::new(Cuda::open(0, None).map_err(|e| e.to_string())?)),
    }
}

fn room(pages: usize) -> Room {
    Room { pages, longest: usize::MAX, rows: 512, wanted: 128 }
}

fn config(shape: [usize; 6]) -> ModelConfig {
    hf_config(shape).1
}

/// A configuration as in config.json, and what it means.
fn hf_config(shape: [usize; 6]) -> (serde_json::Value, ModelConfig) {
    let [hidden, inner, layers, heads, kv_heads, vocab] = shape;
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let read = ModelConfig::from_hf(&config, None).expect("a valid configuration");
    (config, read)
}

/// Normal numbers by the number of a tensor and their count. A prime number of them is repeated from another place in
/// each tensor, so that large models are made quickly.
fn normals() -> impl Fn(u64, usize) -> Vec<f64> {
    const KNOWN: usize = 1_000_003;
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut one = move || (-2.0 * f64::ln(uniform())).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let known: Vec<f64> = (0..KNOWN).map(|_| one()).collect();
    move |tensor, n| {
        let from = tensor.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize % KNOWN;
        known.iter().cycle().skip(from).take(n).copied().collect()
    }
}

/// A decoder of random weights: the same for the same shape.
fn decoder(shape: [usize; 6]) -> Result<Decoder, String> {
    let config = config(shape);
    let normals = normals();
    let weights = init(&config, Heads::Backbone, &Candle::Cpu, normals).map_err(|e| e.to_string())?;
    Decoder::new(&config, &weights, Purpose::Score).map_err(|e| e.to_string())
}

/// Feeds tokens to sequences; the logits of the last row of each.
fn feed(
    model: &mut DeviceModel,
    decoder: &Decoder,
    cache: &mut KvCache,
    parts: &mut [(Vec<u32>, CachedSequence)],
) -> Result<Vec<f32>, String> {
    let (mut rows, mut last) = (StepRows::default(), Vec::new());
    for (ids, cached) in parts.iter_mut() {
        if !cache.reserve(cached, ids.len()) {
            return Err("the cache is too small".to_owned());
        }
        last.push(rows.push(ids, cached) as u32);
    }
    let result = model.step(decoder, &rows, &last, &[]).map_err(|e| e.to_string())?;
    parts.iter_mut().for_each(|(ids, cached)| cached.len += ids.len());
    Ok(result.logits)
}

/// Advances every sequence by its next token, drawn on the device.
fn advance(
    model: &mut DeviceModel,
    decoder: &Decoder,
    cache: &mut KvCache,
    running: &mut [(Vec<u32>, CachedSequence)],
) -> Result<(), String> {
    let (mut rows, mut draws) = (StepRows::default(), Vec::new());
    for (i, (ids, cached)) in running.iter_mut().enumerate() {
        if !cache.reserve(cached, ids.len()) {
            return Err("the cache is too small".to_owned());
        }
        let row = rows.push(ids, cached) as u32;
        let uniform = (i * 37 % 101) as f64 / 101.0;
        draws.push(Draw { row, inverse_temperature: 1.0, uniform });
    }
    let result = model.step(decoder, &rows, &[], &draws).map_err(|e| e.to_string())?;
    for ((ids, cached), (id, logprob)) in running.iter_mut().zip(&result.drawn) {
        if !(logprob.is_finite() && *logprob <= 0.0) {
            return Err(format!("a log-prob of {logprob}"));
        }
        cached.len += ids.len();
        *ids = vec![*id];
    }
    Ok(())
}

fn prompt(n: usize, vocab: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + seed * 17 + 5) % vocab) as u32).collect()
}

fn logits(simulated: bool, format: WeightFormat, tolerance: f32) -> Result<String, String> {
    const SHAPE: [usize; 6] = [96, 160, 2, 6, 2, 200];
    let decoder = decoder(SHAPE)?;
    let mut model =
        DeviceModel::new(&decoder, Blocks::Held, open(simulated)?, format, room(128)).map_err(|e| e.to_string())?;
    let mut cache = KvCache::on_device(128 * 16);
    let sequences = [prompt(300, 200, 0), prompt(3, 200, 1), prompt(17, 200, 2)];
    let mut together: Vec<_> = sequences.iter().map(|ids| (ids.clone(), CachedSequence::default())).collect();
    let got = feed(&mut model, &decoder, &mut cache, &mut together)?;
    let plain = || -> candle_core::Result<Vec<f32>> {
        let hidden = decoder.forward(&PackedBatch::new(&sequences))?;
        let last: Vec<u32> = sequences
            .iter()
            .scan(0, |end, ids| {
                *end += ids.len() as u32;
                Some(*end - 1)
            })
            .collect();
        let picked = hidden.index_select(&candle_core::Tensor::new(last, &Candle::Cpu)?, 0)?;
        decoder.logits(&picked)?.flatten_all()?.to_vec1()
    };
    // Matrices of integers are compared with the simulated device, which rounds the same weights.
    let want = match format {
        WeightFormat::Q8_0 | WeightFormat::Q4_1 => {
            let simulated = DeviceModel::new(&decoder, Blocks::Held, open(true)?, format, room(128));
            let mut fresh: Vec<_> = sequences.iter().map(|ids| (ids.clone(), CachedSequence::default())).collect();
            let mut cache = KvCache::on_device(128 * 16);
            feed(&mut simulated.map_err(|e| e.to_string())?, &decoder, &mut cache, &mut fresh)?
        }
        _ => plain().map_err(|e| e.to_string())?,
    };
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = want.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
    if !(off < tolerance && got.iter().all(|v| v.is_finite())) {
        return Err(format!("logits are off by {off:.1e}"));
    }
    // Alone, and in chunks: the same bits.
    for (i, ids) in sequences.iter().enumerate() {
        let mut cached = CachedSequence::default();
        let mut last = Vec::new();
        for chunk in ids.chunks(if i == 0 { 77 } else { 5 }) {
            let mut one = vec![(chunk.to_vec(), cached)];
            last = feed(&mut model, &decoder, &mut cache, &mut one)?;
            cached = one.remove(0).1;
        }
        if last.iter().zip(&got[i * 200..]).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("sequence {i} has other bits in chunks than in a batch"));
        }
    }
    Ok(format!("off by {off:.1e}, equal bits alone, in a batch and in chunks"))
}

/// A shape whose speed is measured.
struct Shape {
    name: &'static str,
    /// hidden, inner, layers, heads, key and value heads, vocabulary.
    sizes: [usize; 6],
    prompt: usize,
    steps: usize,
}

const TINY: Shape = Shape { name: "tiny", sizes: [96, 160, 2, 6, 2, 200], prompt: 8, steps: 3 };
const SMALL: Shape =
    Shape { name: "SmolLM2-135M's shape", sizes: [576, 1536, 30, 9, 3, 49152], prompt: 128, steps: 128 };
const LARGE: Shape =
    Shape { name: "SmolLM2-1.7B's shape", sizes: [2048, 8192, 24, 32, 32, 49152], prompt: 128, steps: 64 };

/// Tokens per second of steps with `streams` sequences, and the time of a prompt of 512 tokens (the shape's in the dry
/// run), each after a warm-up.
fn speed(simulated: bool, decoder: &Decoder, shape: &Shape, streams: usize) -> Result<String, String> {
    let first = if simulated { shape.prompt } else { 512 };
    let pages = streams * (shape.prompt + 2 * shape.steps).div_ceil(16) + 2 * first.div_ceil(16) + streams;
    let mut model = DeviceModel::new(decoder, Blocks::Held, open(simulated)?, WeightFormat::Bf16, room(pages))
        .map_err(|e| e.to_string())?;
    let mut cache = KvCache::on_device(pages * 16);
    let mut prompts = Vec::new();
    for i in 0..2 {
        let mut one = vec![(prompt(first, shape.sizes[5], 100 + i), CachedSequence::default())];
        let began = Instant::now();
        feed(&mut model, decoder, &mut cache, &mut one)?;
        prompts.push(began.elapsed().as_secs_f64());
        cache.release_all(&mut one[0].1);
    }
    let mut running: Vec<_> =
        (0..streams).map(|i| (prompt(shape.prompt, shape.sizes[5], i), CachedSequence::default())).collect();
    // In chunks that fit `room`.
    for some in running.chunks_mut((512 / shape.prompt).max(1)) {
        feed(&mut model, decoder, &mut cache, some)?;
    }
    running.iter_mut().for_each(|(ids, _)| ids.truncate(1));
    let mut timed = |steps: usize| -> Result<f64, String> {
        let began = Instant::now();
        for _ in 0..steps {
            advance(&mut model, decoder, &mut cache, &mut running)?;
        }
        Ok(began.elapsed().as_secs_f64())
    };
    timed(shape.steps / 2)?;
    let rate = (streams * shape.steps) as f64 / timed(shape.steps)?;
    Ok(format!("{rate:.0} tokens/s; a prompt of {first} tokens takes {:.1} ms", prompts[1] * 1e3))
}

fn main() -> ExitCode {
    let simulated = match std::env::args().skip(1).find(|a| !a.starts_with('-')).as_deref() {
        Some("sim") => true,
        Some("cuda") => false,
        _ => {
            eprintln!("usage: gpu cuda|sim");
            return ExitCode::from(2);
        }
    };
    let mut table = Table { began: Instant::now(), rows: Vec::new() };
    table.phase("device", || {
        let device = open(simulated)?;
        Ok(format!("{}, {} MB", device.name(), device.memory().1 >> 20))
    });
    table.phase("recorded launches", || {
        let tapes: [&[u8]; 4] = [
            include_bytes!("../tests/fixtures/kernels.tape.gz"),
            include_bytes!("../tests/fixtures/kernels_backward.tape.gz"),
            include_bytes!("../tests/fixtures/kernels_adapters.tape.gz"),
            include_bytes!("../tests/fixtures/kernels_encoders.tape.gz"),
        ];
        let (mut device, mut replayed) = (open(simulated)?, Vec::new());
        for tape in tapes {
            replayed.extend(tape::replay(device.as_mut(), tape).map_err(|e| e.to_string())?);
        }
        let wrong: Vec<_> = replayed.iter().filter(|r| !r.agrees).collect();
        let worst = replayed.iter().map(|r| r.off).fold(0.0, f64::max);
        match wrong.first() {
            None => Ok(format!("{} agree, at most {worst:.1e} off", replayed.len())),
            Some(r) => Err(format!("{} of {} differ, {} by {:.1e}", wrong.len(), replayed.len(), r.kernel.name, r.off)),
        }
    });
    for (format, tolerance) in FORMATS {
        table.phase(&format!("logits, {}", format.as_str()), || logits(simulated, format, tolerance));
    }
    let shapes: &[Shape] = if simulated { &[TINY] } else { &[SMALL, LARGE] };
    for shape in shapes {
        let mut made = None;
        table.phase(&format!("weights, {}", shape.name), || {
            made = Some(decoder(shape.sizes)?);
            Ok("made".to_owned())
        });
        let Some(decoder) = &made else { continue };
        for streams in if simulated { [1, 2, 3, 4] } else { [1, 8, 32, 128] } {
            let name = format!("{}, bf16, streams: {streams}", shape.name);
            table.phase(&name, || speed(simulated, decoder, shape, streams));
        }
    }
    scoring::phases(&mut table, simulated);
    adapters::phases(&mut table, simulated);
    training::phases(&mut table, simulated);
    rl::phase(&mut table, simulated);
    let good = table.print();
    let arguments: Vec<String> = std::env::args().collect();
    if let Some([_, file]) = arguments.windows(2).find(|pair| pair[0] == "--json")
        && let Err(e) = std::fs::write(file, table.json())
    {
        eprintln!("{file}: {e}");
        return ExitCode::FAILURE;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
