//! Figures of the report: completions of base, SFT model and policy, and their rewards.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use serde_json::{Value, json};

use super::{InstructGptArgs, Models, data};
use crate::data::{PromptInput, content_hash, read_prompts, split_of};
use crate::domain::Split;
use crate::generation::{GenParams, Warpers};
use crate::model::{self, RewardModel};
use crate::prompt::Texts;

/// Length in tokens of the longest completion that is shown and scored, unless PPO's limit is shorter.
const MAX_TOKENS: usize = 96;
/// Tokens scored in one forward pass.
const BATCH_TOKENS: usize = 2048;

/// Mean reward of each model's samples, and greedy completions side by side; `None` when a stop was requested.
pub fn measure(
    args: &InstructGptArgs,
    models: &Models,
    prompts: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Value>> {
    let known: Vec<PromptInput> =
        read_prompts(prompts)?.map(|record| record.map(|r| r.prompt)).collect::<Result<_, _>>()?;
    // Prompts of the default held-out split come first, because the reward model was not trained on their rankings.
    let held = |p: &PromptInput| split_of(&content_hash(&p.messages()), 0.1) == Split::Heldout;
    let (mut chosen, rest): (Vec<_>, Vec<_>) = known.into_iter().partition(held);
    let heldout = chosen.len().min(args.measured_prompts);
    chosen.extend(rest);
    chosen.truncate(args.measured_prompts.max(args.sample_prompts));
    let own = args.ppo.get("response_length").and_then(Value::as_u64).map(|n| n as usize);
    let max_new_tokens = own.unwrap_or(48).min(MAX_TOKENS);
    let sampled = GenParams { max_new_tokens, seed: args.seed ^ 0x5eed, ..GenParams::default() };
    let greedy = Warpers { temperature: 0.0, ..Warpers::default() };
    let greedy = GenParams { max_new_tokens, warpers: greedy, ..GenParams::default() };

    let files = model::load(&models.reward, &Device::Cpu)?;
    let (texts, judge) = (Texts::for_scores(&files)?, RewardModel::new(&files)?);
    let measured = &chosen[..chosen.len().min(args.measured_prompts)];
    let mut all: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut shown: Vec<Vec<String>> = Vec::new();
    for (name, path) in [("base", &models.base), ("sft", &models.sft), ("policy", &models.policy)] {
        let Some(written) = data::sample(path, measured, &sampled, stop)? else { return Ok(None) };
        let samples = &chosen[..chosen.len().min(args.sample_prompts)];
        let Some(best) = data::sample(path, samples, &greedy, stop)? else { return Ok(None) };
        all.push((name, written));
        shown.push(best);
    }
    // All models' answers to a prompt are scored after the same prompt tokens.
    let n = measured.len();
    let pairs: Vec<_> = (0..n)
        .flat_map(|i| all.iter().map(move |(_, written)| (i, written)))
        .map(|(i, written)| (&measured[i], written[i].as_str()))
        .collect();
    let ids = texts.conversations(&pairs, files.config.max_positions)?;
    let mut stages = Vec::new();
    for (stage, (name, written)) in all.iter().enumerate() {
        let own: Vec<Vec<u32>> = ids.iter().skip(stage).step_by(all.len()).cloned().collect();
        let scores = judge.score(&own, BATCH_TOKENS)?;
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let words: usize = written.iter().map(|w| w.split_whitespace().count()).sum();
        stages.push(json!({
            "model": name, "mean_reward": mean, "standard_error": (variance / n).sqrt(), "n": scores.len(),
            "mean_words": words as f64 / n,
        }));
    }
    let prompt_text = |p: &PromptInput| match p {
        PromptInput::Text(text) => text.clone(),
        PromptInput::Chat(messages) => {
            messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n")
        }
    };
    let samples: Vec<Value> = chosen[..shown[0].len()]
        .iter()
        .enumerate()
        .map(|(i, p)| json!({"prompt": prompt_text(p), "base": shown[0][i], "sft": shown[1][i], "policy": shown[2][i]}))
        .collect();
    Ok(Some(json!({
        "stages": stages, "samples": samples, "heldout_prompts": heldout, "max_tokens": max_new_tokens,
    })))
}
