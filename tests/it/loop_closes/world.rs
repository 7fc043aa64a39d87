//! A tiny world with a known taste: words t0…t95, and people who like the words t10…t29.

use std::path::{Path, PathBuf};

use candle_core::Device;
use instructd::generation::{GenParams, generate};
use instructd::model::{Decoder, Purpose, load};
use instructd::train::TrainOutcome;
use instructd::train::rng::{Stream, rng, uniform};
use rand_chacha::ChaCha12Rng;
use serde_json::{Value, json};

use crate::support::{Recorder, fixture};

pub const LIKED: std::ops::Range<u32> = 10..30;

pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn model() -> String {
        fixture("llama-tied-tiny").display().to_string()
    }

    fn write(&self, name: &str, lines: impl IntoIterator<Item = Value>) -> String {
        let text: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self.path(name)
    }

    /// Rankings of four random completions each by their share of liked words; equal shares tie.
    pub fn comparisons(&self, n: usize) -> String {
        let mut rng = rng(1, Stream::Samples, 0);
        let lines = (0..n).map(|_| {
            let prompt = words(&mut rng, 3);
            let completions: Vec<Vec<u32>> = (0..4).map(|_| completion(&mut rng)).collect();
            let shares: Vec<f64> = completions.iter().map(|c| liked_share(c)).collect();
            let tier = |share: f64| shares.iter().filter(|s| **s > share).count();
            let completions: Vec<Value> = completions
                .iter()
                .zip(&shares)
                .map(|(ids, share)| json!({"text": text(ids), "tier": tier(*share)}))
                .collect();
            json!({"prompt": text(&prompt), "completions": completions})
        });
        self.write("comparisons.jsonl", lines.collect::<Vec<_>>())
    }

    pub fn prompts(&self, n: usize) -> String {
        let mut rng = rng(2, Stream::Samples, 0);
        self.write("prompts.jsonl", (0..n).map(|_| json!({"prompt": text(&words(&mut rng, 3))})))
    }

    /// Demonstrations that use liked words only.
    pub fn demonstrations(&self, n: usize) -> String {
        let mut rng = rng(3, Stream::Samples, 0);
        let lines = (0..n).map(|_| {
            let liked: Vec<u32> = (0..6).map(|_| LIKED.start + (uniform(&mut rng) * 20.0) as u32).collect();
            json!({"prompt": text(&words(&mut rng, 3)), "completion": text(&liked)})
        });
        self.write("demonstrations.jsonl", lines.collect::<Vec<_>>())
    }
}

/// `n` random words, the end token t2 not among them.
fn words(rng: &mut ChaCha12Rng, n: usize) -> Vec<u32> {
    (0..n).map(|_| 3 + (uniform(rng) * 93.0) as u32).collect()
}

/// Ten words, a random part of which is liked.
fn completion(rng: &mut ChaCha12Rng) -> Vec<u32> {
    let taste = uniform(rng);
    (0..10)
        .map(|_| if uniform(rng) < taste { LIKED.start + (uniform(rng) * 20.0) as u32 } else { words(rng, 1)[0] })
        .collect()
}

fn text(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ")
}

pub fn liked_share(ids: &[u32]) -> f64 {
    ids.iter().filter(|id| LIKED.contains(id)).count() as f64 / ids.len() as f64
}

/// Runs a recipe to its end.
pub fn train(recipe: &str, args: &Value) -> (Recorder, Value) {
    let mut recorder = Recorder::default();
    match (instructd::train::recipe(recipe).unwrap().run)(args, &mut recorder).unwrap() {
        TrainOutcome::Done { metrics, .. } => (recorder, metrics),
        TrainOutcome::Stopped { .. } => panic!("nobody asked {recipe} to stop"),
    }
}

/// Share of liked words in what a model writes for 128 prompts, end tokens not counted.
pub fn share_written_by(model: &str) -> f64 {
    let loaded = load(Path::new(model), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let mut rng = rng(9, Stream::Samples, 0);
    let prompts: Vec<Vec<u32>> = (0..128).map(|_| words(&mut rng, 3)).collect();
    let params = GenParams { max_new_tokens: 10, eos_ids: vec![2], seed: 5, ..GenParams::default() };
    let written: Vec<u32> =
        generate(&decoder, &prompts, &params, &|| false).unwrap().into_iter().flat_map(|s| s.ids).collect();
    liked_share(&written.into_iter().filter(|id| *id != 2).collect::<Vec<_>>())
}

pub fn exists(dir: &str, file: &str) -> bool {
    PathBuf::from(dir).join(file).exists()
}
