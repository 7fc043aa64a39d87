//! The options of `grpo`: each does what it says, micro-batches change nothing, the first step starts from itself, and a
//! checkpoint from before an option existed goes on with what it was made with.

use std::path::Path;

use instructd::train::TrainOutcome;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::recipes::{fails, rl, with};
use crate::loop_closes::world::{World, share_written_by, train};
use crate::support::Recorder;

/// What a run is that the table's every line changes.
fn base(world: &World, out: &str) -> Value {
    with(&rl(world, out), json!({"group_size": 4, "iterations": 1, "minibatches": 1, "ppo_epochs": 1}))
}

/// Every form of the loss. The responses are short, so most are cut; `t2` ends one.
fn forms() -> Vec<Value> {
    vec![
        json!({"loss_normalization": "sequence", "cliprange_high": null}),
        json!({"loss_normalization": "token"}),
        json!({"loss_normalization": "constant", "scale_rewards": "none"}),
        json!({"scale_rewards": "batch", "kl_coef": 0.0}),
        json!({"importance_sampling_level": "sequence", "loss_normalization": "sequence"}),
        json!({"surrogate": "cispo"}),
        json!({"surrogate": "cispo", "importance_sampling_level": "sequence"}),
        json!({"entropy_coef": 0.05}),
        json!({"mask_truncated_completions": true, "response_length": 40, "entropy_coef": 0.01}),
    ]
}

#[test]
fn micro_batches_change_nothing_in_any_form() {
    let world = World::new();
    for form in forms() {
        let args = with(&base(&world, "out"), form.clone());
        let run = |tokens: usize| train("grpo", &with(&args, json!({"micro_batch_tokens": tokens}))).0;
        let (whole, parts) = (run(100_000), run(20));
        for name in ["policy_loss", "grad_norm", "approx_kl", "clip_fraction", "loss_k3", "update_entropy"] {
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-2), "{form} {name}: {a} whole, {b} in parts");
            }
        }
        assert!(whole.last("grad_norm") > 0.0, "{form}: nothing is learned");
    }
}

#[test]
fn the_first_step_starts_from_itself_in_any_form() {
    let world = World::new();
    for form in forms() {
        for lora in [json!(null), json!({"rank": 4})] {
            let args = with(
                &with(&base(&world, "out"), form.clone()),
                json!({"lora": lora, "temperature": 0.7, "iterations": 2, "learning_rate": 1e-2}),
            );
            let recorder = train("grpo", &args).0;
            assert_eq!(recorder.curve("kl")[0], 0.0, "{form}");
            assert_ne!(recorder.curve("kl")[1], 0.0, "{form}: the reference must not follow");
            assert_eq!(recorder.curve("loss_k3")[0], 0.0, "{form}");
            for ratio in recorder.curve("start_ratio") {
                assert!((ratio - 1.0).abs() < 1e-6, "{form}: ratio {ratio}");
            }
            assert!(recorder.curve("sampling_gap").iter().all(|gap| *gap < 1e-4));
            assert_eq!(recorder.curve("start_clip_fraction"), [0.0, 0.0], "{form}");
        }
    }
}

/// Normalisations differ where lengths do: the gradients of the same responses are not the same.
#[test]
fn forms_differ_in_their_gradients() {
    let world = World::new();
    // Responses of different lengths, and several updates, so that ratios leave 1.
    let args = with(
        &base(&world, "out"),
        json!({"response_length": 40, "minibatches": 2, "ppo_epochs": 2, "learning_rate": 1e-2, "kl_coef": 0.0}),
    );
    let norm = |form: &Value| train("grpo", &with(&args, form.clone())).0.last("grad_norm");
    let mut norms: Vec<(Value, f64)> = forms().into_iter().map(|form| (form.clone(), norm(&form))).collect();
    norms.sort_by(|a, b| a.1.total_cmp(&b.1));
    for pair in norms.windows(2) {
        // `kl_coef` 0 makes batch scaling the only difference of its form.
        assert!(pair[0].1 != pair[1].1, "{} and {} have the same gradient", pair[0].0, pair[1].0);
    }
}

#[test]
fn responses_that_were_cut_can_be_left_out() {
    let world = World::new();
    let masked = json!({"mask_truncated_completions": true, "entropy_coef": 0.1, "learning_rate": 1e-2});
    // One token: hardly any response ends, and what does not end moves nothing.
    let args = with(&base(&world, "out"), with(&masked, json!({"response_length": 1})));
    let recorder = train("grpo", &args).0;
    if recorder.last("no_eos_share") == 1.0 {
        assert_eq!(recorder.last("grad_norm"), 0.0);
        assert!(recorder.curve("policy_loss").is_empty(), "there is no token to take a mean of");
    }
    // Long enough for some to end: with and without the mask other gradients.
    let long = json!({"response_length": 40});
    let with_mask = train("grpo", &with(&with(&base(&world, "out"), masked), long.clone())).0;
    let share = with_mask.last("no_eos_share");
    assert!(share > 0.0 && share < 1.0, "{share} were cut");
    let without =
        train("grpo", &with(&base(&world, "out"), with(&long, json!({"entropy_coef": 0.1, "learning_rate": 1e-2})))).0;
    assert_ne!(with_mask.last("grad_norm"), without.last("grad_norm"));
}

#[test]
fn the_entropy_bonus_keeps_entropy_up() {
    let world = World::new();
    let args = with(
        &base(&world, "out"),
        json!({"iterations": 20, "rollout_batch_size": 32, "learning_rate": 3e-3, "kl_coef": 0.0}),
    );
    let entropy = |coef: f64| train("grpo", &with(&args, json!({"entropy_coef": coef}))).0.last("entropy");
    let (without, with_bonus) = (entropy(0.0), entropy(1.0));
    println!("entropy {without:.4} without the bonus, {with_bonus:.4} with it");
    assert!(with_bonus > without + 0.03, "{without} without the bonus, {with_bonus} with it");
}

/// A reward that few responses get: many groups are all 0.
fn rare(world: &World, out: &str) -> Value {
    with(
        &base(world, out),
        json!({"reward": {"kind": "contains", "texts": ["t11", "t12"]}, "iterations": 3, "group_size": 4}),
    )
}

#[test]
fn groups_without_variance_are_drawn_again() {
    let world = World::new();
    let plain = train("grpo", &rare(&world, "plain")).0;
    let again = train("grpo", &with(&rare(&world, "again"), json!({"dynamic_sampling": 8}))).0;
    let first = |r: &Recorder, name: &str| r.curve(name)[0];
    // The reported reward is that of the first draw, which is the same: it says what the policy writes.
    assert_eq!(first(&plain, "reward"), first(&again, "reward"));
    assert_eq!(first(&plain, "frac_reward_zero_std"), first(&again, "frac_reward_zero_std"));
    assert!(first(&plain, "frac_reward_zero_std") > 0.0, "every group varied: nothing to draw again");
    assert_eq!(first(&plain, "frac_without_signal"), first(&plain, "frac_reward_zero_std"));
    assert!(first(&again, "frac_without_signal") < first(&again, "frac_reward_zero_std"));
    assert_eq!(first(&plain, "groups_drawn_again"), 0.0);
    assert!(first(&again, "groups_drawn_again") > 0.0);
    // Bounded: a reward that never varies ends after the attempts.
    let never = json!({"reward": {"kind": "contains", "texts": ["no such word"]}, "dynamic_sampling": 2, "iterations": 1,
        "kl_coef": 0.0});
    let never = train("grpo", &with(&rare(&world, "never"), never)).0;
    assert_eq!(never.last("groups_drawn_again"), 2.0 * 4.0, "four groups, two attempts each");
    assert_eq!((never.last("frac_without_signal"), never.last("grad_norm")), (1.0, 0.0));
    // Through adapters, whose first update would go on from the recorded pass.
    let lora = json!({"dynamic_sampling": 8, "lora": {"rank": 4}, "micro_batch_tokens": 100_000});
    let lora = train("grpo", &with(&rare(&world, "lora"), lora)).0;
    assert!(lora.curve("sampling_gap").iter().all(|gap| *gap < 1e-4));
    assert!(lora.curve("start_ratio").iter().all(|ratio| (ratio - 1.0).abs() < 1e-6));
}

fn model_bytes(world: &World, dir: &str) -> Vec<u8> {
    std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap()
}

fn in_parts(args: &Value) -> usize {
    in_parts_of("grpo", args)
}

/// Runs to the end, stopping after every step. Returns the number of stops.
pub fn in_parts_of(recipe: &str, args: &Value) -> usize {
    let mut stops = 0;
    loop {
        let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
        match (instructd::train::recipe(recipe).unwrap().run)(args, &mut recorder).unwrap() {
            TrainOutcome::Stopped { .. } => stops += 1,
            TrainOutcome::Done { .. } => return stops,
        }
        assert!(stops < 30, "no progress");
    }
}

#[test]
fn a_resumed_run_with_every_option_ends_with_the_same_bits() {
    let world = World::new();
    let args = with(
        &rare(&world, "whole"),
        json!({"dynamic_sampling": 3, "entropy_coef": 0.01, "loss_normalization": "constant", "scale_rewards": "batch",
            "surrogate": "cispo", "adam_states": "8bit", "mask_truncated_completions": false}),
    );
    train("grpo", &args);
    let checkpoints = tempfile::tempdir().unwrap();
    let parts =
        with(&args, json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true}));
    assert!(in_parts(&parts) >= 2);
    assert!(model_bytes(&world, "whole") == model_bytes(&world, "parts"));
}

/// Changes the state of every checkpoint, as if another version or machine had written it.
pub fn rewrite(checkpoints: &Path, change: impl Fn(&mut Value)) {
    for entry in std::fs::read_dir(checkpoints).unwrap() {
        let dir = entry.unwrap().path();
        let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap() };
        let (mut state, mut manifest) = (read("state.json"), read("manifest.json"));
        change(&mut state);
        let bytes = serde_json::to_vec_pretty(&state).unwrap();
        manifest["files"]["state.json"] = json!({"bytes": bytes.len(), "sha256": hex::encode(Sha256::digest(&bytes))});
        std::fs::write(dir.join("state.json"), bytes).unwrap();
        std::fs::write(dir.join("manifest.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    }
}

/// Takes every argument out of a checkpoint that is younger than it.
fn age(checkpoints: &Path, younger: &[&str]) {
    rewrite(checkpoints, |state| {
        for name in younger {
            state["identity"]["args"].as_object_mut().unwrap().remove(*name).expect("an argument of the checkpoint");
        }
    });
}

const YOUNGER: &[&str] = &[
    "cliprange_high",
    "loss_normalization",
    "scale_rewards",
    "importance_sampling_level",
    "surrogate",
    "mask_truncated_completions",
    "dynamic_sampling",
    "entropy_coef",
    "ensemble_reward",
    "ensemble_doubt",
    "numerics",
    "sampler_correction",
    "sampler_correction_cap",
    "adam_states",
];

/// Defaults have changed since: an old run goes on as it was begun, and is not made another one by today's defaults.
#[test]
fn an_older_checkpoint_resumes_with_the_values_it_was_made_with() {
    let world = World::new();
    // Lengths and ratios differ, so that today's defaults would end elsewhere.
    let plain = with(
        &base(&world, "today"),
        json!({"iterations": 3, "response_length": 40, "ppo_epochs": 2, "minibatches": 2, "learning_rate": 1e-2}),
    );
    let then = json!({"loss_normalization": "sequence", "cliprange_high": null});
    train("grpo", &plain);
    train("grpo", &with(&with(&plain, then.clone()), json!({"output_dir": world.path("then")})));
    assert!(model_bytes(&world, "today") != model_bytes(&world, "then"), "the defaults make no difference here");

    let checkpoints = tempfile::tempdir().unwrap();
    let resumed = json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true});
    let begun = with(&with(&plain, then), resumed.clone());
    let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
    (instructd::train::recipe("grpo").unwrap().run)(&begun, &mut recorder).unwrap();
    age(checkpoints.path(), YOUNGER);
    let error = fails("grpo", &with(&with(&plain, resumed.clone()), json!({"loss_normalization": "token"})));
    assert!(error.contains("another loss_normalization"), "{error}");
    train("grpo", &with(&plain, resumed));
    assert!(model_bytes(&world, "parts") == model_bytes(&world, "then"), "it did not go on as it was begun");
}

#[test]
fn every_form_learns() {
    let world = World::new();
    let start = share_written_by(&World::model());
    for form in [
        json!({}),
        json!({"importance_sampling_level": "sequence", "loss_normalization": "sequence", "cliprange": 3e-4,
            "cliprange_high": 4e-4}),
        json!({"surrogate": "cispo", "scale_rewards": "batch"}),
        json!({"loss_normalization": "constant", "scale_rewards": "none", "kl_coef": 0.0}),
    ] {
        let args = with(
            &rl(&world, "out"),
            json!({"iterations": 30, "rollout_batch_size": 32, "learning_rate": 3e-3, "group_size": 4, "kl_coef": 0.01}),
        );
        let recorder = train("grpo", &with(&args, form.clone())).0;
        let share = share_written_by(&world.path("out"));
        println!("{form}: {start:.3} -> {share:.3}, kl {:.2}", recorder.last("kl"));
        assert!(share > start + 0.15, "{form}: {start} -> {share}");
    }
}
