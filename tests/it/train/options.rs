//! Options that must do what they say: frozen layers, ensembles, encoders, references, answers, PPO's switches,
//! log files.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::data::PromptInput;
use instructd::model::{Loaded, RewardModel, load};
use instructd::objective::whiten::moments;
use instructd::prompt::Texts;
use serde_json::{Value, json};

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{World, train};
use crate::support::{copy_dir, fixture};

fn open(path: &str) -> Loaded {
    load(Path::new(path), &Device::Cpu).unwrap()
}

/// Names of the start model's tensors that a run has changed.
fn changed(start: &str, end: &str) -> BTreeSet<String> {
    let (start, end) = (open(start).weights, open(end).weights);
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let both = start.iter().filter(|(name, _)| end.contains_key(*name));
    both.filter(|(name, w)| bits(w) != bits(&end[*name])).map(|(name, _)| name.clone()).collect()
}

#[test]
fn frozen_layers_keep_their_bits_in_every_recipe_and_the_rest_moves() {
    let world = World::new();
    let rl = with(&rl(&world, "out"), json!({"iterations": 2, "minibatches": 1, "ppo_epochs": 1}));
    for (recipe, args) in [
        ("sft", with(&sft(&world, "out"), json!({"max_steps": 2}))),
        ("reward", with(&reward(&world, "out"), json!({"max_steps": 2}))),
        ("dpo", with(&reward(&world, "out"), json!({"max_steps": 2}))),
        ("ppo", with(&rl, json!({"critic": "separate"}))),
        ("reinforce", rl.clone()),
        ("grpo", rl.clone()),
        ("online_dpo", rl.clone()),
        ("raft", rl.clone()),
    ] {
        for lora in [Value::Null, json!({"rank": 2})] {
            let frozen = json!({"freeze_layers": 1, "freeze_embeddings": true, "lora": lora});
            train(recipe, &with(&args, frozen));
            let moved = changed(&World::model(), &world.path("out"));
            let held = |name: &String| name.starts_with("model.layers.0.") || name.starts_with("model.embed_tokens.");
            assert!(!moved.iter().any(held), "{recipe} {lora}: {moved:?}");
            assert!(moved.iter().any(|name| name.starts_with("model.layers.1.")), "{recipe} {lora}: {moved:?}");
            assert_eq!(moved.contains("model.norm.weight"), lora.is_null(), "{recipe} {lora}: {moved:?}");
        }
    }
    let error = fails("sft", &with(&sft(&world, "out"), json!({"freeze_layers": 99})));
    assert!(error.contains("freeze_layers") && error.contains("99"), "{error}");
}

/// Conversations of a comparisons file, and their scores by a saved reward model.
fn scored(world: &World, dir: &str, file: &str) -> Vec<instructd::domain::RewardScore> {
    let loaded = open(&world.path(dir));
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let mut ids = Vec::new();
    for set in instructd::data::read_comparisons(Path::new(file)).unwrap().map(Result::unwrap) {
        ids.extend(set.completions.iter().map(|c| texts.conversation(&set.prompt, &c.text, 64).unwrap().0));
    }
    model.scores(&ids, 500).unwrap()
}

#[test]
fn an_ensemble_learns_and_its_spread_falls_with_what_it_has_seen() {
    let world = World::new();
    let args = reward(&world, "rm");
    // Written last: the recipe's usual arguments write a smaller file of the same name.
    let comparisons = world.comparisons(400);
    let args = with(
        &args,
        json!({"comparisons": comparisons, "heads": 4, "epochs": 2, "learning_rate": 3e-3, "heldout_fraction": 0.2}),
    );
    let (recorder, metrics) = train("reward", &args);
    assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.9, "{metrics}");
    assert!(recorder.last("heads_spread") > 0.0);
    let scores = scored(&world, "rm", &comparisons);
    let means: Vec<f64> = scores.iter().map(|s| s.mean).collect();
    let (mean, variance) = moments(&means);
    assert!(mean.abs() < 0.1 && (variance - 1.0).abs() < 0.2, "mean {mean}, variance {variance}");
    let typical = moments(&scores.iter().map(|s| s.std).collect::<Vec<_>>()).0;
    assert!(typical > 0.0 && typical < 1.0, "the heads disagree by {typical} of a score's spread");
    // Heads that have seen nothing disagree more.
    train("reward", &with(&args, json!({"output_dir": world.path("raw"), "learning_rate": 1e-9})));
    let untrained = moments(&scored(&world, "raw", &comparisons).iter().map(|s| s.std).collect::<Vec<_>>()).0;
    assert!(untrained > 1.5 * typical, "{untrained} before, {typical} after");
    // The critic of PPO starts from their mean, and the recipe scores with it.
    let ppo = with(
        &rl(&world, "o"),
        json!({"reward": null, "reward_model": world.path("rm"), "critic": "separate", "iterations": 1, "sample_prompts": 1}),
    );
    let (recorder, _) = train("ppo", &ppo);
    assert!(recorder.last("reward").is_finite());
    // A head count that does not fit is refused.
    let error = fails("reward", &with(&args, json!({"model": world.path("rm"), "heads": 2})));
    assert!(error.contains("heads"), "{error}");
}

#[test]
fn an_encoder_learns_to_score() {
    let world = World::new();
    let args = json!({
        "model": fixture("bert-tiny"), "output_dir": world.path("rm"), "comparisons": world.comparisons(400),
        "device": "cpu", "learning_rate": 3e-3, "max_length": 48, "batch_size": 8, "epochs": 2, "heldout_fraction": 0.2,
        "heads": 2,
    });
    let (_, metrics) = train("reward", &args);
    println!("{metrics}");
    assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.85, "{metrics}");
    assert!(scored(&world, "rm", &world.path("comparisons.jsonl")).iter().all(|s| s.mean.is_finite() && s.std >= 0.0));
    // The policy has another tokenizer: text goes between them.
    let ppo = with(&rl(&world, "o"), json!({"reward": null, "reward_model": world.path("rm"), "iterations": 1}));
    assert!(train("ppo", &ppo).0.last("reward").is_finite());
    let lora =
        with(&args, json!({"lora": {"rank": 2}, "freeze_layers": 1, "max_steps": 2, "output_dir": world.path("lora")}));
    train("reward", &lora);
    let moved = changed(&fixture("bert-tiny").display().to_string(), &world.path("lora"));
    assert!(!moved.is_empty() && moved.iter().all(|n| n.starts_with("bert.encoder.layer.1.")), "{moved:?}");
}

/// `[CLS] prompt [SEP] completion [SEP]`, the prompt cut first when it is too long.
#[test]
fn an_encoder_reads_prompt_and_completion_as_two_segments() {
    let dir = copy_dir(&fixture("bert-tiny"));
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"t3\"", "\"[CLS]\"").replace("\"t4\"", "\"[SEP]\"")).unwrap();
    let loaded = load(dir.path(), &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let prompt = PromptInput::Text("t10 t11 t12".into());
    assert_eq!(texts.conversation(&prompt, "t20 t21", 64).unwrap(), (vec![3, 10, 11, 12, 4, 20, 21, 4], 5));
    assert_eq!(texts.conversation(&prompt, "t20 t21", 6).unwrap(), (vec![3, 12, 4, 20, 21, 4], 3));
    assert_eq!(instructd::model::heads::reward::separator(&loaded), Some(4));
}

#[test]
fn scores_are_normalised_on_demonstrations_when_asked() {
    let world = World::new();
    let demonstrations = world.demonstrations(60);
    let args = with(
        &reward(&world, "rm"),
        json!({"normalize_on": "demonstrations", "reference_demonstrations": demonstrations}),
    );
    train("reward", &args);
    let loaded = open(&world.path("rm"));
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let written = instructd::data::read_demonstrations(Path::new(&demonstrations)).unwrap().map(Result::unwrap);
    let ids: Vec<_> = written.map(|w| texts.conversation(&w.prompt, &w.completion, 64).unwrap().0).collect();
    let (mean, variance) = moments(&model.score(&ids, 500).unwrap());
    assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3, "mean {mean}, variance {variance}");
}

/// InstructGPT's order: the reward model starts from the fine-tuned policy.
#[test]
fn a_reward_model_starts_from_the_fine_tuned_weights() {
    let world = World::new();
    train("sft", &sft(&world, "sft"));
    let args = with(&reward(&world, "rm"), json!({"model": world.path("sft"), "max_steps": 1, "learning_rate": 1e-30}));
    train("reward", &args);
    assert!(changed(&world.path("sft"), &world.path("rm")).is_empty());
    assert!(!changed(&World::model(), &world.path("rm")).is_empty());
}

#[test]
fn a_margin_by_strength_and_the_labelers_own_agreement() {
    let world = World::new();
    let line = |better: &str, worse: &str, strength: &str| {
        json!({"prompt": "t5", "completions": [{"text": better, "tier": 0}, {"text": worse, "tier": 1}],
               "strength": strength, "split": "train"})
    };
    // Three people on the same two texts: two pairs of people disagree, one agrees.
    let lines = [line("t6", "t7", "significantly"), line("t6", "t7", "barely"), line("t7", "t6", "barely")];
    let file = world.path("strong.jsonl");
    std::fs::write(&file, lines.map(|l| l.to_string()).join("\n")).unwrap();
    let args = with(&reward(&world, "rm"), json!({"comparisons": file, "max_steps": 1}));
    let (plain, metrics) = train("reward", &args);
    assert!((metrics["labeler_agreement"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12, "{metrics}");
    let (wide, _) = train("reward", &with(&args, json!({"margin": 2.0})));
    assert!(wide.last("loss") > plain.last("loss") + 0.1, "{} {}", wide.last("loss"), plain.last("loss"));
    for name in ["heldout_accuracy_same_length", "ece"] {
        let (recorder, _) = train("reward", &with(&reward(&world, "rm"), json!({"heldout_fraction": 0.5})));
        assert!(recorder.last(name) >= 0.0);
    }
}

#[test]
fn switches_of_ppo_change_what_they_name() {
    let world = World::new();
    let base =
        with(&rl(&world, "out"), json!({"iterations": 3, "minibatches": 1, "ppo_epochs": 2, "learning_rate": 3e-3}));
    let run = |more: Value| train("ppo", &with(&base, more)).0;
    let plain = run(json!({}));
    // Fixed β stays; the adaptive one moves towards its target.
    assert_eq!(plain.curve("kl_coef"), [0.05; 3]);
    // A value clip of almost nothing clips almost everything after the first step; a wide one nothing.
    assert!(run(json!({"cliprange_value": 1e-9})).last("value_clip_fraction") > 0.1);
    assert_eq!(run(json!({"cliprange_value": 100.0})).last("value_clip_fraction"), 0.0);
    // Whitened rewards change the returns, and so the value loss, but not the score.
    let whitened = run(json!({"whiten_rewards": true}));
    assert_eq!(whitened.curve("reward")[0], plain.curve("reward")[0]);
    assert_ne!(whitened.curve("value_loss")[0], plain.curve("value_loss")[0]);
    // Missing ends: subtracted from the score, or in its place.
    let ends = |mode: &str| {
        let r = run(json!({"missing_eos_penalty": 2.0, "missing_eos_mode": mode, "iterations": 1, "kl_coef": 0.0}));
        (r.last("reward"), r.last("rlhf_reward"), r.last("no_eos_share"))
    };
    let (raw, score, share) = ends("subtract");
    assert!(share > 0.5 && (raw - 2.0 * share - score).abs() < 1e-9, "{raw} {score} {share}");
    assert!(ends("replace").1 < score + raw && ends("replace").1 >= -2.0);
    // PPO-ptx holds on to the demonstrations.
    let ptx = run(json!({"ptx_coef": 5.0, "ptx_demonstrations": world.demonstrations(40), "iterations": 3}));
    let losses = ptx.curve("ptx_loss");
    assert!(losses.len() == 3 && losses[2] < losses[0] - 0.1, "{losses:?}");
    assert!(plain.curve("ptx_loss").is_empty());
}

/// A reward model, policy, reference and sampling in bfloat16: the first step starts from itself, exactly.
#[test]
fn bf16_of_frozen_matrices_trains_and_starts_from_itself() {
    let world = World::new();
    train("reward", &with(&reward(&world, "rm"), json!({"max_steps": 2})));
    let args = with(
        &rl(&world, "out"),
        json!({"reward": null, "reward_model": world.path("rm"), "frozen_precision": "bf16", "lora": {"rank": 4},
            "iterations": 3, "kl_coef": 0.0}),
    );
    for recipe in ["ppo", "rloo"] {
        let (recorder, _) = train(recipe, &args);
        let first = |name: &str| recorder.curve(name)[0];
        assert_eq!((first("start_ratio"), first("sampling_gap"), first("kl")), (1.0, 0.0, 0.0), "{recipe}");
        assert!(recorder.last("kl") != 0.0, "{recipe}: nothing was learned");
        let exact = train(recipe, &with(&args, json!({"frozen_precision": "f32"}))).0;
        let (exact, half) = (exact.curve("entropy")[0], first("entropy"));
        assert!(exact != half && (exact - half).abs() < 0.05, "{recipe}: entropy {half}, in f32 {exact}");
    }
    let error = fails("ppo", &with(&args, json!({"lora": null})));
    assert!(error.contains("frozen_precision") && error.contains("needs lora"), "{error}");
}

#[test]
fn right_answers_pay_and_prompts_without_one_are_named() {
    let world = World::new();
    let file = world.path("answers.jsonl");
    let lines: String =
        (0..8).map(|i| json!({"prompt": format!("t{}", 5 + i), "answer": "3"}).to_string() + "\n").collect();
    std::fs::write(&file, &lines).unwrap();
    let args = with(
        &rl(&world, "out"),
        json!({"prompts": file, "reward": {"kind": "sum", "terms": [
            {"weight": 3.0, "reward": {"kind": "final_answer", "pattern": "t(\\d)\\d*"}},
            {"weight": 0.5, "reward": {"kind": "length", "target": 8}}]},
            "iterations": 40, "rollout_batch_size": 32, "response_length": 2, "learning_rate": 5e-3, "kl_coef": 0.0}),
    );
    let (recorder, _) = train("rloo", &args);
    let curve = recorder.curve("reward");
    let (early, late) = (moments(&curve[..5]).0, moments(&curve[35..]).0);
    assert!(late > early + 1.0, "the answer was not learned: {early} -> {late}");
    // One prompt without an answer is named and left out.
    std::fs::write(&file, lines + "{\"prompt\": \"t5\"}\n").unwrap();
    let once = with(&args, json!({"iterations": 1, "output_dir": world.path("once")}));
    let (recorder, _) = train("rloo", &once);
    let warned = recorder.events("warning");
    let text = |w: &Value| w["message"].as_str().unwrap_or_default().to_owned();
    assert!(warned.iter().any(|w| text(w).contains("prompt 9 is left out: the reward compares")));
    std::fs::write(&file, "{\"prompt\": \"t5\"}\n").unwrap();
    let error = fails("rloo", &with(&args, json!({"output_dir": world.path("none")})));
    assert!(error.contains("none of the 1 has an `answer`"), "{error}");
}

#[test]
fn curves_and_samples_are_files_too_under_our_names_and_those_of_trl() {
    let world = World::new();
    let logs = world.path("logs");
    let args = with(&rl(&world, "out"), json!({"log_dir": logs, "eval_every": 1, "sample_prompts": 2}));
    let (recorder, _) = train("ppo", &args);
    let text = std::fs::read_to_string(Path::new(&logs).join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (ours, theirs) in [
        ("kl", "objective/kl"),
        ("reward", "objective/scores"),
        ("value_loss", "loss/value_avg"),
        ("eos_count", "val/num_eos_tokens"),
        ("rlhf_reward", "objective/rlhf_reward"),
        ("learning_rate", "lr"),
    ] {
        let point = lines.iter().find(|l| l["step"] == 2 && l.get(ours).is_some()).unwrap();
        let (last, ours, theirs) =
            (recorder.last(ours), point[ours].as_f64().unwrap(), point[theirs].as_f64().unwrap());
        assert!(ours == theirs && (ours - last).abs() <= 1e-9 * last.abs(), "{ours} {theirs} {last}");
    }
    let samples = std::fs::read_to_string(Path::new(&logs).join("samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 6, "two prompts before the first update and at two evaluations");
    let events: Vec<_> = std::fs::read_dir(&logs).unwrap().map(|e| e.unwrap().path()).collect();
    let events = events.iter().find(|p| p.to_string_lossy().contains("events.out.tfevents.")).unwrap();
    let bytes = std::fs::read(events).unwrap();
    let found = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
    assert!(found(b"brain.Event:2") && found(b"objective/kl") && found(b"tokens_per_second"));
    let elapsed = recorder.curve("elapsed_seconds");
    assert!(elapsed.len() > 1 && elapsed.is_sorted() && elapsed[0] > 0.0, "time at work: {elapsed:?}");
    let progress = recorder.progress.last().unwrap();
    assert!(progress.memory_bytes.is_some() && recorder.progress.iter().any(|p| p.eta_seconds.is_some()));
}
