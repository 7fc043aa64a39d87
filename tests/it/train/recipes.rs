//! What every recipe promises: it learns, its first step starts from itself, micro-batches change nothing,
//! and a resumed run ends with the bits of an uninterrupted one.

use std::path::Path;

use candle_core::Device;
use instructd::model::{RewardModel, load};
use instructd::prompt::Texts;
use instructd::train::TrainOutcome;
use serde_json::{Value, json};

use crate::loop_closes::world::{LIKED, World, share_written_by, train};
use crate::support::Recorder;

/// `base` with the entries of `more`.
pub fn with(base: &Value, more: Value) -> Value {
    let mut args = base.clone();
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    args
}

/// Arguments of an RL recipe that is paid for liked words.
pub fn rl(world: &World, out: &str) -> Value {
    let liked: Vec<String> = LIKED.map(|i| format!("t{i}")).collect();
    json!({
        "model": World::model(), "output_dir": world.path(out), "prompts": world.prompts(24), "device": "cpu",
        "reward": {"kind": "word_share", "words": liked}, "rollout_batch_size": 16, "response_length": 8,
        "iterations": 2, "max_length": 64, "learning_rate": 1e-3,
    })
}

pub fn sft(world: &World, out: &str) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path(out), "demonstrations": world.demonstrations(64),
        "device": "cpu", "learning_rate": 2e-3, "max_length": 64,
    })
}

pub fn reward(world: &World, out: &str) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path(out), "comparisons": world.comparisons(48),
        "device": "cpu", "learning_rate": 1e-3, "max_length": 64, "batch_size": 8,
    })
}

pub fn fails(recipe: &str, args: &Value) -> String {
    let mut recorder = Recorder::default();
    format!("{:#}", (instructd::train::recipe(recipe).unwrap().run)(args, &mut recorder).unwrap_err())
}

#[test]
fn the_first_step_starts_from_itself() {
    let world = World::new();
    // A temperature other than 1 shows a log-prob that forgot it: the ratio would not be 1.
    for lora in [json!(null), json!({"rank": 4})] {
        for critic in ["shared", "separate"] {
            let args = with(
                &rl(&world, "out"),
                json!({"lora": lora, "critic": critic, "temperature": 0.7, "minibatches": 1, "ppo_epochs": 1,
                       "micro_batch_tokens": 50}),
            );
            let (recorder, _) = train("ppo", &args);
            assert_eq!(recorder.curve("kl")[0], 0.0, "the reference is the start policy");
            assert_ne!(recorder.curve("kl")[1], 0.0, "and does not follow the policy");
            assert!(recorder.curve("k3").iter().all(|k3| *k3 >= 0.0));
            for ratio in recorder.curve("start_ratio") {
                assert!((ratio - 1.0).abs() < 1e-6, "ratio {ratio}");
            }
            // Positions, temperature and weights of sampling are those of the update.
            assert!(recorder.curve("sampling_gap").iter().all(|gap| *gap < 1e-4));
            assert!(recorder.curve("start_approx_kl").iter().all(|kl| *kl < 1e-10));
            assert_eq!(recorder.curve("start_clip_fraction"), [0.0, 0.0]);
        }
    }
}

#[test]
fn micro_batches_change_nothing() {
    let world = World::new();
    let rl = with(&rl(&world, "rl"), json!({"iterations": 1, "minibatches": 1, "ppo_epochs": 1}));
    for (recipe, args) in [
        ("sft", with(&sft(&world, "sft"), json!({"max_steps": 1}))),
        ("reward", with(&reward(&world, "reward"), json!({"max_steps": 1}))),
        ("dpo", with(&reward(&world, "dpo"), json!({"max_steps": 1}))),
        (
            "ppo",
            with(
                &rl,
                json!({"missing_eos_penalty": 1.0, "ptx_coef": 0.5, "ptx_demonstrations": world.demonstrations(30)}),
            ),
        ),
        // In one micro-batch, the first update goes on from the pass that measured the values.
        ("ppo", with(&rl, json!({"critic": "separate"}))),
        ("reinforce", rl.clone()),
        ("rloo", rl.clone()),
        ("grpo", rl.clone()),
        ("online_dpo", rl.clone()),
        ("raft", rl.clone()),
    ] {
        let run = |tokens: usize| train(recipe, &with(&args, json!({"micro_batch_tokens": tokens}))).0;
        let (whole, parts) = (run(100_000), run(20));
        for name in ["loss", "policy_loss", "value_loss", "ptx_loss", "grad_norm", "approx_kl", "train_accuracy"] {
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-2), "{recipe} {name}: {a} whole, {b} in parts");
            }
        }
        assert!(!whole.curve("grad_norm").is_empty() && whole.last("grad_norm") > 0.0);
    }
}

/// Stops after every step, damages nothing, resumes; the model file must have the same bytes.
#[test]
fn a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    let ppo = with(
        &rl(&world, "whole"),
        json!({"iterations": 4, "kl_target": 1.0, "kl_horizon": 100, "lr_schedule": "linear", "warmup_steps": 2,
               "whiten_rewards": true, "minibatches": 2, "ppo_epochs": 2}),
    );
    for (recipe, args) in [
        ("sft", with(&sft(&world, "whole"), json!({"weight_decay": 0.1, "epochs": 2}))),
        ("reward", with(&reward(&world, "whole"), json!({"lr_schedule": "cosine"}))),
        ("ppo", ppo.clone()),
        ("ppo", with(&ppo, json!({"lora": {"rank": 4}, "critic": "separate"}))),
        ("reinforce", with(&rl(&world, "whole"), json!({"iterations": 4}))),
        ("dpo", reward(&world, "whole")),
        ("online_dpo", with(&rl(&world, "whole"), json!({"iterations": 4, "minibatches": 2, "ppo_epochs": 2}))),
        ("online_dpo", with(&rl(&world, "whole"), json!({"iterations": 4, "lora": {"rank": 4}, "kl_target": 1.0}))),
        ("raft", with(&rl(&world, "whole"), json!({"iterations": 4, "keep_share": 0.5, "lr_schedule": "linear"}))),
    ] {
        train(recipe, &args);
        let checkpoints = tempfile::tempdir().unwrap();
        let args = with(
            &args,
            json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true}),
        );
        let mut stops = 0;
        loop {
            let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
            match (instructd::train::recipe(recipe).unwrap().run)(&args, &mut recorder).unwrap() {
                TrainOutcome::Stopped { checkpoint } => assert!(Path::new(&checkpoint.unwrap()).exists()),
                TrainOutcome::Done { .. } => break,
            }
            stops += 1;
            assert!(stops < 30, "{recipe} makes no progress");
        }
        assert!(stops >= 2, "{recipe} was only stopped {stops} times");
        let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{recipe} {}: other weights after resuming", args["lora"]);
    }
}

#[test]
fn a_damaged_checkpoint_costs_one_generation_and_other_arguments_are_refused() {
    let world = World::new();
    let checkpoints = tempfile::tempdir().unwrap();
    train("sft", &with(&sft(&world, "whole"), json!({"batch_size": 8})));
    let args = with(
        &sft(&world, "parts"),
        json!({"batch_size": 8, "checkpoint_dir": checkpoints.path(), "checkpoint_every": 1, "resume": true}),
    );
    let mut recorder = Recorder { stop_after: Some(3), ..Recorder::default() };
    (instructd::train::recipe("sft").unwrap().run)(&args, &mut recorder).unwrap();

    let error = fails("sft", &with(&args, json!({"learning_rate": 1e-4})));
    assert!(error.contains("another learning_rate"), "{error}");
    let error = fails("sft", &with(&args, json!({"demonstrations": world.prompts(3)})));
    assert!(error.contains("demonstrations"), "{error}");
    world.demonstrations(64);

    let file = checkpoints.path().join("ckpt-00000003-a1/optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (recorder, _) = train("sft", &args);
    assert!(recorder.events("warning")[0]["message"].as_str().unwrap().contains("ckpt-00000003"));
    assert_eq!(recorder.events("log")[0]["message"], "resumed after step 2");
    let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("parts"));
}

/// The end token is trained: the tuned policy says six liked words and stops.
#[test]
fn sft_learns_the_words_and_the_end() {
    let world = World::new();
    let (recorder, metrics) = train(
        "sft",
        &with(
            &sft(&world, "out"),
            json!({"demonstrations": world.demonstrations(600), "epochs": 2, "learning_rate": 5e-3}),
        ),
    );
    let losses = recorder.curve("loss");
    // Six of twenty words, then the end: ln 20 · 6/7 ≈ 2.57 nats per token at best.
    assert!(losses[0] > 4.5 && metrics["heldout_loss"].as_f64().unwrap() < 3.0, "{losses:?} {metrics}");
    assert!(share_written_by(&world.path("out")) > 0.9);
    let samples = recorder.events("sample");
    let words = |v: &&Value| v["completion"].as_str().unwrap().split(' ').count();
    assert!(samples.iter().map(words).all(|n| n <= 10), "the end token was not learned: {samples:?}");
}

#[test]
fn policy_gradients_raise_a_custom_reward() {
    let world = World::new();
    let start = share_written_by(&World::model());
    for (recipe, more) in [
        ("reinforce", json!({"kl_coef": 0.005})),
        ("rloo", json!({"kl_coef": 0.005})),
        ("grpo", json!({"group_size": 4, "kl_coef": 0.01})),
        ("online_dpo", json!({"group_size": 4, "kl_coef": 0.05})),
        ("raft", json!({"group_size": 4})),
    ] {
        let args =
            with(&rl(&world, recipe), json!({"iterations": 30, "rollout_batch_size": 32, "learning_rate": 3e-3}));
        let (recorder, _) = train(recipe, &with(&args, more));
        let share = share_written_by(&world.path(recipe));
        println!("{recipe}: {start:.3} -> {share:.3}, kl {:.2}", recorder.last("kl"));
        assert!(share > start + 0.15, "{recipe}: {start} -> {share}");
    }
}

#[test]
fn dpo_moves_the_policy_towards_what_was_preferred() {
    let world = World::new();
    for loss in ["sigmoid", "ipo"] {
        let args = with(
            &reward(&world, loss),
            json!({"comparisons": world.comparisons(400), "loss": loss, "epochs": 3, "learning_rate": 2e-3, "heldout_fraction": 0.2}),
        );
        let (recorder, metrics) = train("dpo", &args);
        assert_eq!(recorder.curve("margin")[0], 0.0, "before the first update policy and reference are one");
        println!("{loss}: {metrics}");
        assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.75, "{loss}: {metrics}");
    }
}

#[test]
fn options_of_ppo_have_their_effect() {
    let world = World::new();
    let base = with(&rl(&world, "out"), json!({"iterations": 3, "minibatches": 2, "ppo_epochs": 4}));
    let (early, _) = train("ppo", &with(&base, json!({"target_kl": 1e-9})));
    assert_eq!(early.curve("epochs"), [1.0; 3]);
    let (adaptive, _) = train("ppo", &with(&base, json!({"kl_target": 50.0, "kl_horizon": 100.0})));
    let coefs = adaptive.curve("kl_coef");
    assert!(coefs[0] == 0.05 && coefs[1] < coefs[0] && coefs[2] < coefs[1], "{coefs:?}");
    let (budget, _) = train("ppo", &with(&base, json!({"kl_budget": 1e-6, "iterations": 3})));
    assert_eq!(budget.curve("kl").len(), 2);
    for name in [
        "reward",
        "kl",
        "k3",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "ratio",
        "value_loss",
        "policy_loss",
        "explained_variance",
        "response_length",
        "no_eos_share",
        "kl_coef",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "objective/kl",
        "policy/clipfrac_avg",
    ] {
        assert!(!budget.curve(name).is_empty(), "no metric {name}");
    }
    // max_grad_norm reaches the optimizer: a tiny one moves the policy less.
    let moved = |max: f64| {
        train("ppo", &with(&base, json!({"max_grad_norm": max, "iterations": 2, "adam_eps": 1.0}))).0.last("kl")
    };
    assert!(moved(1e-3).abs() < moved(10.0).abs());
}

#[test]
fn saved_scores_are_normalised_and_a_separate_critic_starts_from_them() {
    let world = World::new();
    let args = with(&reward(&world, "rm"), json!({"epochs": 2}));
    train("reward", &args);
    let loaded = load(Path::new(&world.path("rm")), &Device::Cpu).unwrap();
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let mut conversations = Vec::new();
    let sets = instructd::data::read_comparisons(Path::new(&world.path("comparisons.jsonl"))).unwrap();
    for set in sets.map(Result::unwrap) {
        for completion in &set.completions {
            conversations.push(texts.conversation(&set.prompt, &completion.text, 64).unwrap().0);
        }
    }
    let scores = model.score(&conversations, 500).unwrap();
    let (mean, variance) = instructd::objective::whiten::moments(&scores);
    // The held-out tenth is scored here too, so the moments are near 0 and 1, not equal.
    assert!(mean.abs() < 0.1 && (variance - 1.0).abs() < 0.2, "mean {mean}, variance {variance}");

    let args =
        with(&rl(&world, "out"), json!({"reward_model": world.path("rm"), "critic": "separate", "iterations": 1}));
    let (recorder, _) = train("ppo", &args);
    assert_ne!(recorder.last("explained_variance"), 0.0);
    assert!(recorder.events("sample")[0]["score"].is_number());
}

#[test]
fn unusable_data_is_refused_with_the_reason() {
    let world = World::new();
    let write = |name: &str, text: &str| {
        std::fs::write(world.path(name), text).unwrap();
        world.path(name)
    };
    let ties = write("ties.jsonl", r#"{"prompt":"t5","completions":[{"text":"t6","tier":0},{"text":"t7","tier":0}]}"#);
    let error = fails("reward", &with(&reward(&world, "o"), json!({"comparisons": ties})));
    assert!(error.contains("comparisons") && error.contains("1 are all ties"), "{error}");
    let error = fails("reward", &with(&reward(&world, "o"), json!({"comparisons": write("empty.jsonl", "")})));
    assert!(error.contains("comparisons"), "{error}");
    let error = fails("sft", &with(&sft(&world, "o"), json!({"model": world.path("nowhere")})));
    assert!(error.contains("nowhere"), "{error}");
    let error = fails("ppo", &with(&rl(&world, "o"), json!({"reward_model": World::model()})));
    assert!(error.contains("reward_model") && error.contains("score.weight"), "{error}");
    let error = fails("ppo", &with(&rl(&world, "o"), json!({"response_length": 64, "max_length": 200})));
    assert!(error.contains("response_length"), "{error}");
    // One prompt is enough to run.
    let one = write("one.jsonl", r#"{"prompt":"t5 t6"}"#);
    train("ppo", &with(&rl(&world, "o"), json!({"prompts": one, "iterations": 1})));
}

/// An end token inside the prompt ends nothing, and the share without end token counts responses only.
#[test]
fn end_tokens_in_prompts_do_not_count() {
    let world = World::new();
    let prompts = world.path("ends.jsonl");
    std::fs::write(&prompts, "{\"prompt\":\"t5 t2 t6 t2\"}\n").unwrap();
    let never = with(&rl(&world, "o"), json!({"prompts": prompts, "iterations": 1, "response_length": 1}));
    let (recorder, _) = train("ppo", &with(&never, json!({"rollout_batch_size": 64})));
    // One token each: the share that is not t2 is the share without end.
    assert_eq!(recorder.last("response_length"), 1.0);
    assert!(recorder.last("no_eos_share") > 0.8, "{}", recorder.last("no_eos_share"));
    // The reward counts the response's words, not the prompt's.
    let paid = json!({"reward": {"kind": "contains", "texts": ["t5 t2 t6"]}, "rollout_batch_size": 16});
    assert_eq!(train("ppo", &with(&never, paid)).0.last("reward"), 0.0);
}

/// NaN stops the run, names the tensor, and leaves the checkpoint before it.
#[test]
fn a_loss_that_explodes_stops_at_the_last_good_checkpoint() {
    let world = World::new();
    let checkpoints = tempfile::tempdir().unwrap();
    let args = with(
        &sft(&world, "out"),
        json!({"learning_rate": 1e30, "max_grad_norm": null, "epochs": 5, "checkpoint_dir": checkpoints.path(), "checkpoint_every": 1}),
    );
    let error = fails("sft", &args);
    assert!(error.contains("not finite") && error.contains("last checkpoint"), "{error}");
    assert!(!Path::new(&world.path("out")).join("model.safetensors").exists());
    assert!(checkpoints.path().join("ckpt-00000001-a1/manifest.json").exists());
}
