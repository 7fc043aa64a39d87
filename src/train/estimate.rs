//! Estimates the memory, steps and time of a run from sizes, without loading a model.
//!
//! Memory is that of this program's own training: f32 weights, gradients and Adam moments, a copy of the weights for
//! evaluation, activations of one micro-batch, and for reinforcement learning the reference, the reward model and the
//! cache of a round's samples. Time follows from the arithmetic of the passes and a speed: that of earlier runs on
//! this machine where there are any, else that of a matrix product measured here.

use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::args::sweep_of;
use super::assumption::Assumption;
use crate::model::{ModelConfig, families, presets, quantized};

/// Memory of the program before a model is loaded.
const PROGRAM_BYTES: f64 = 80e6;
/// Bytes of activations for each token, channel and layer in f32: twice the 34 bytes in 16 bits of
/// arXiv 2205.05198, without attention maps, which the fused kernel never writes.
const ACTIVATION_BYTES: f64 = 68.0;
/// The speed of training passes relative to that of a matrix product, at best and at worst. Attention, norms, the
/// optimizer and small products are slower.
const EFFICIENCY: (f64, f64) = (0.9, 0.2);

/// The size of the data that a run reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DataSize {
    /// Training rows: demonstrations, sets of answers, prompts.
    pub rows: u64,
    /// Sequences in one row: the answers of a set.
    pub sequences_per_row: f64,
    /// Mean tokens of a sequence, prompt included.
    pub tokens: f64,
    /// 99th percentile of the sequences' tokens.
    pub longest: f64,
}

/// A run to estimate. `args` are the arguments of the recipe; missing ones have their defaults.
#[derive(Debug)]
pub struct PlannedRun<'a> {
    pub recipe: &'a str,
    pub args: &'a Value,
    pub model: &'a ModelConfig,
    pub reward_model: Option<&'a ModelConfig>,
    pub gold_reward_model: Option<&'a ModelConfig>,
    pub judge_model: Option<&'a ModelConfig>,
    pub data: Option<DataSize>,
}

/// The work and the memory of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub memory_bytes: u64,
    pub steps: Option<u64>,
    /// Number of tokens of the whole run; unknown without data.
    pub tokens: Option<f64>,
    /// Floating-point operations of the whole run; unknown without data.
    pub flops: Option<f64>,
    pub assumptions: Vec<Assumption>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Seconds {
    pub low: f64,
    pub high: f64,
}

/// Arguments with their defaults.
struct Args<'a>(&'a Value);

impl Args<'_> {
    fn number(&self, name: &str, default: f64) -> f64 {
        self.0.get(name).and_then(Value::as_f64).unwrap_or(default)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Parameters of the matrices that a token passes through.
fn matrix_parameters(config: &ModelConfig) -> f64 {
    let all = presets::parameters(config) as f64;
    // A token reads only one row of an embedding that is not also the output matrix.
    let embedding = (config.vocab_size * config.hidden_size) as f64;
    if config.is_encoder() || !config.tie_embeddings { all - embedding } else { all }
}

fn adapter_parameters(config: &ModelConfig, rank: f64) -> f64 {
    let sides = families::block_matrices(config).iter().map(|(out, input)| (out + input) as f64).sum::<f64>();
    config.n_layers as f64 * rank * sides
}

/// The models that score responses.
fn scorers<'a>(planned: &PlannedRun<'a>) -> impl Iterator<Item = (Assumption, &'a ModelConfig)> {
    let rewards = [planned.reward_model, planned.gold_reward_model].into_iter().flatten();
    let rewards = rewards.map(|m| (Assumption::RewardModel { parameters: presets::parameters(m) }, m));
    let judge = planned.judge_model.map(|m| (Assumption::JudgeModel { parameters: presets::parameters(m) }, m));
    rewards.chain(judge)
}

/// Estimates a run.
pub fn need(planned: &PlannedRun<'_>) -> Need {
    let (args, model) = (Args(planned.args), planned.model);
    let parameters = presets::parameters(model) as f64;
    let lora = planned.args.get("lora").filter(|lora| !lora.is_null());
    let rank = lora.map(|lora| lora.get("rank").and_then(Value::as_f64).unwrap_or(16.0));
    let trained = rank.map_or(parameters, |rank| adapter_parameters(model, rank));
    let rl = matches!(planned.recipe, "ppo" | "reinforce" | "rloo" | "grpo" | "online_dpo" | "raft");
    // Updates learn from all responses of a group, from a pair, or from the best one.
    let learned = match planned.recipe {
        "online_dpo" => 2.0 / args.number("group_size", 2.0).max(1.0),
        "raft" => 1.0 / args.number("group_size", 4.0).max(1.0),
        _ => 1.0,
    };
    let half = args.text("frozen_precision") == "bf16";
    let held = match args.text("frozen_precision") {
        "q8_0" => Some(quantized::Q8_0_BYTES),
        "q4" => Some(quantized::Q4_BYTES),
        _ => None,
    };

    let positions = model.max_positions as f64;
    let response = if rl { args.number("response_length", 48.0) } else { 0.0 };
    let chosen = planned.data.filter(|data| data.rows > 0).map(|data| data.longest + response);
    let given = planned.args.get("max_length").and_then(Value::as_f64);
    // As in `fit::length`.
    let round_up = |n: f64| (n / 16.0).ceil() * 16.0;
    let max_length = given.or(chosen.map(round_up)).unwrap_or(1024.0).min(positions);
    let in_batch = if rl { args.number("rollout_batch_size", 64.0) } else { args.number("batch_size", 16.0) };
    let data = planned.data.unwrap_or_default();
    let known = planned.data.is_some_and(|data| data.rows > 0);
    let longest = if known { data.longest.max(data.tokens).min(max_length) } else { max_length };
    let (length, longest) = match rl {
        true => ((data.tokens + response).min(max_length), (longest + response).min(max_length)),
        false => (data.tokens.min(max_length), longest),
    };
    // Neither a set of answers nor a sequence is divided.
    let together = if rl { 1.0 } else { data.sequences_per_row.max(1.0) };
    let batch_tokens = in_batch * together * if known { length } else { max_length };
    let micro = args.number("micro_batch_tokens", 1024.0).max(longest * together).min(batch_tokens.max(longest));

    let (layers, d) = (model.n_layers as f64, model.hidden_size as f64);
    let all_activations = micro * layers * d * ACTIVATION_BYTES;
    let activations = match args.text("recompute") {
        "block" => all_activations / layers.max(1.0) + micro * layers * d * 8.0,
        "mlp" => all_activations * 0.55,
        _ => all_activations,
    };
    let logits = if planned.recipe == "reward" { 0.0 } else { micro * model.vocab_size as f64 * 8.0 };
    // f32 weights; for trained ones also gradient, two moments, and a copy for evaluation, samples and the file.
    // Quantised matrices are shared by all of these and written one at a time.
    let blocks = presets::block_parameters(model) as f64;
    let (frozen, copy) = match (rank, held) {
        (None, _) => (0.0, parameters * 8.0),
        (Some(_), Some(bytes)) => (blocks * bytes + (parameters - blocks) * 4.0, 0.0),
        (Some(_), None) => (parameters * if half { 4.0 + 2.0 } else { 4.0 + 4.0 }, parameters * 4.0),
    };
    let moments = if args.text("adam_states") == "8bit" { 2.0 } else { 8.0 };
    let own = trained * (4.0 + 4.0 + moments) + copy;
    let mut memory = PROGRAM_BYTES + frozen + own + activations + logits;
    let whole = |count: f64| count.round() as u64;
    let mut assumptions = vec![match rank {
        Some(rank) => Assumption::Lora { rank: whole(rank), trained: whole(trained), parameters: whole(parameters) },
        None => Assumption::AllParameters { parameters: whole(parameters) },
    }];
    assumptions.push(match (given, chosen) {
        (None, Some(_)) => Assumption::MaxLengthOfData { tokens: whole(max_length) },
        _ => Assumption::MaxLength { tokens: whole(max_length) },
    });
    assumptions.push(Assumption::MicroBatches { tokens: whole(micro) });
    if rl {
        let per_token = 2.0 * layers * (model.n_kv_heads * model.head_dim) as f64 * 4.0;
        let round = in_batch * (longest + response).min(model.max_positions as f64);
        // The reference shares frozen weights. If all parameters are trained, it has its own.
        memory += round * per_token + if rank.is_some() { 0.0 } else { parameters * 4.0 };
        for (what, other) in scorers(planned) {
            let size = presets::parameters(other) as f64;
            memory += size * if half { 4.0 } else { 8.0 };
            assumptions.push(what);
        }
        if args.text("critic") == "separate" {
            let critic = planned.reward_model.map_or(parameters, |m| presets::parameters(m) as f64);
            memory += if rank.is_some() { critic * 4.0 } else { critic * 16.0 };
        }
    }

    let cut = |steps: u64| args.0.get("max_steps").and_then(Value::as_u64).map_or(steps, |most| steps.min(most));
    let heldout = args.number("heldout_fraction", 0.1);
    let steps = match planned.recipe {
        _ if rl => Some(cut(args.number("iterations", 100.0) as u64)),
        "pretrain" | "mlm" => args.0.get("steps").and_then(Value::as_u64).map(cut),
        _ if known => {
            let rows = (data.rows as f64 * (1.0 - heldout)).ceil().max(1.0);
            Some(cut(args.number("epochs", 1.0) as u64 * (rows / in_batch).ceil() as u64))
        }
        _ => None,
    };
    // 2 operations per parameter and token forward, 2 backward for the inputs, and 2 for trained weights.
    let passes = if rank.is_some() { 2.2 } else { 3.0 };
    let (mut tokens, mut flops) = (None, None);
    if let Some(steps) = steps.filter(|_| known || rl) {
        let matrices = matrix_parameters(model);
        let keys = 4.0 * layers * (model.n_heads * model.head_dim) as f64 * length / 2.0;
        let forward = 2.0 * matrices + keys;
        let seen = steps as f64 * in_batch * together * length.max(1.0);
        let work = match rl {
            true => {
                let judged: f64 = scorers(planned).map(|(_, m)| 2.0 * matrix_parameters(m)).sum();
                // Sampling reads the weights for few tokens at a time and takes about twice as long as its arithmetic.
                let (epochs, critic) =
                    (args.number("ppo_epochs", 1.0), if args.text("critic") == "separate" { 2.0 } else { 1.0 });
                2.0 * forward + forward + judged + learned * epochs * passes * forward * critic
            }
            false => passes * forward,
        };
        tokens = Some(seen);
        flops = Some(seen * work);
    }
    assumptions.push(match known {
        true => Assumption::Rows { rows: data.rows, tokens: whole(data.tokens) },
        false => Assumption::LongestSequences,
    });
    let sweep = sweep_of(planned.args).ok().flatten();
    let runs = sweep.map_or(1, |sweep| sweep.cells().len() as u64 * sweep.seeds);
    if runs > 1 {
        assumptions.push(Assumption::Runs { runs });
    }
    Need {
        memory_bytes: memory as u64,
        steps: steps.map(|steps| steps * runs),
        tokens: tokens.map(|tokens| tokens * runs as f64),
        flops: flops.map(|flops| flops * runs as f64),
        assumptions,
    }
}

/// The time of a run, and what it follows from. `measured` are (tokens per second, parameters) of earlier runs of this
/// recipe on this machine.
pub fn seconds(need: &Need, parameters: f64, measured: &[(f64, f64)]) -> Option<(Seconds, Assumption)> {
    let (tokens, flops) = (need.tokens?, need.flops?);
    let mut rates: Vec<f64> = measured
        .iter()
        .filter(|(rate, size)| *rate > 0.0 && *size > 0.0)
        .map(|(rate, size)| rate * size / parameters.max(1.0))
        .collect();
    rates.sort_by(f64::total_cmp);
    if let Some(median) = rates.get(rates.len() / 2) {
        let seconds = tokens / median;
        let runs = rates.len() as u64;
        return Some((Seconds { low: seconds * 0.6, high: seconds * 1.8 }, Assumption::EarlierRuns { runs }));
    }
    let speed = product_speed()?;
    let (best, worst) = (flops / (speed * EFFICIENCY.0), flops / (speed * EFFICIENCY.1));
    let gflops = (speed / 1e9).round() as u64;
    Some((Seconds { low: best, high: worst }, Assumption::MeasuredProduct { gflops }))
}

/// Floating-point operations per second of a matrix product of medium size on all threads. Measured once.
fn product_speed() -> Option<f64> {
    static SPEED: std::sync::OnceLock<Option<f64>> = std::sync::OnceLock::new();
    const N: usize = 512;
    let measure = || -> candle_core::Result<f64> {
        let a = candle_core::Tensor::ones((N, N), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let mut best = f64::INFINITY;
        // The first run warms up; the fastest of a few is least affected by other load.
        for _ in 0..4 {
            let start = Instant::now();
            a.matmul(&a)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(2.0 * (N * N * N) as f64 / best.max(1e-9))
    };
    *SPEED.get_or_init(|| measure().ok())
}

/// Memory in bytes that a new process can use: what is available, within the limit of the control group. Linux only.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let allowed = number("memory.max").zip(number("memory.current")).map(|(most, now)| most.saturating_sub(now));
    Some(allowed.map_or(free, |allowed| free.min(allowed)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn alone(model: &ModelConfig) -> PlannedRun<'_> {
        PlannedRun {
            recipe: "ppo",
            args: &Value::Null,
            model,
            reward_model: None,
            gold_reward_model: None,
            judge_model: None,
            data: None,
        }
    }

    fn of(args: Value, data: Option<DataSize>) -> Need {
        let model = presets::find("smollm2-135m").expect("a preset").config;
        need(&PlannedRun { recipe: "sft", args: &args, data, ..alone(&model) })
    }

    #[test]
    fn adapters_and_recomputation_reduce_memory_and_longer_batches_increase_it() {
        let data = Some(DataSize { rows: 1000, sequences_per_row: 1.0, tokens: 200.0, longest: 400.0 });
        let full = of(json!({}), data);
        let lora = of(json!({"lora": {"rank": 8}}), data);
        assert!(lora.memory_bytes < full.memory_bytes, "{lora:?} {full:?}");
        assert!(lora.flops.unwrap() < full.flops.unwrap());
        // At least 16 bytes per parameter.
        assert!(full.memory_bytes > 16 * 134_000_000);
        let rounded = of(json!({"adam_states": "8bit"}), data);
        assert!((full.memory_bytes - rounded.memory_bytes).abs_diff(6 * 134_515_008) <= 1, "2 bytes of moments, not 8");
        let [half, q8, q4] = ["bf16", "q8_0", "q4"]
            .map(|held| of(json!({"lora": {"rank": 8}, "frozen_precision": held}), data).memory_bytes);
        assert!(q4 < q8 && q8 < half && half < lora.memory_bytes, "{q4} {q8} {half} {lora:?}");
        let again = of(json!({"recompute": "block"}), data);
        assert!(again.memory_bytes < full.memory_bytes);
        let long = of(json!({"micro_batch_tokens": 8192, "batch_size": 64}), data);
        assert!(long.memory_bytes > full.memory_bytes);
        // 900 of 1,000 rows are trained on, 16 at a time.
        assert_eq!((full.steps, of(json!({"max_steps": 3}), data).steps), (Some(57), Some(3)));
        assert_eq!(of(json!({}), None).steps, None);
        let sweep = of(json!({"sweep": {"grid": {"learning_rate": [1e-5, 1e-4]}, "seeds": 2}}), data);
        assert_eq!((sweep.steps, sweep.memory_bytes), (Some(4 * 57), full.memory_bytes));
        assert_eq!(sweep.flops, full.flops.map(|flops| 4.0 * flops));
    }

    #[test]
    fn a_reward_model_needs_memory_and_iterations_are_steps() {
        let model = presets::find("smollm2-135m").unwrap().config;
        let ask = |args: Value, reward: bool| {
            let reward_model = reward.then_some(&model);
            need(&PlannedRun { recipe: "ppo", args: &args, reward_model, ..alone(&model) })
        };
        let alone = ask(json!({"lora": {"rank": 8}, "iterations": 7}), false);
        let judged = ask(json!({"lora": {"rank": 8}, "iterations": 7}), true);
        assert_eq!(alone.steps, Some(7));
        assert!(judged.memory_bytes > alone.memory_bytes + 4 * 134_000_000);
        assert!(judged.flops > alone.flops);
    }

    #[test]
    fn a_judge_needs_memory_and_fewer_learned_responses_need_less_work() {
        let model = presets::find("smollm2-135m").unwrap().config;
        let args = json!({"group_size": 8});
        let ask = |recipe, judge_model| need(&PlannedRun { recipe, args: &args, judge_model, ..alone(&model) });
        let [all, pairs, best] = ["grpo", "online_dpo", "raft"].map(|recipe| ask(recipe, None));
        assert!(all.flops > pairs.flops && pairs.flops > best.flops, "{all:?} {pairs:?} {best:?}");
        assert!(ask("raft", Some(&model)).memory_bytes > best.memory_bytes + 4 * 134_000_000);
        assert!(ask("raft", Some(&model)).flops > best.flops);
    }

    #[test]
    fn earlier_runs_determine_the_time() {
        let need = of(json!({}), Some(DataSize { rows: 1000, sequences_per_row: 1.0, tokens: 200.0, longest: 400.0 }));
        let (seconds, from) = super::seconds(&need, 1e6, &[(100.0, 1e6), (50.0, 2e6)]).unwrap();
        // Both runs went at 100 tokens per second for this size.
        let exact = need.tokens.unwrap() / 100.0;
        assert!(seconds.low < exact && exact < seconds.high, "{seconds:?} {exact}");
        assert_eq!(from, Assumption::EarlierRuns { runs: 2 });
        let (guessed, from) = super::seconds(&need, 1e6, &[]).unwrap();
        assert!(guessed.low > 0.0 && guessed.low < guessed.high);
        assert!(matches!(from, Assumption::MeasuredProduct { gflops } if gflops > 0), "{from}");
    }
}
