//! Responses sampled by rounded weights (`numerics: fast`): the trainer's log-probs are computed again, losses are
//! weighted by importance, and what is published is still the trainer's.

use instructd::train::TrainOutcome;
use serde_json::json;

use super::group::rewrite;
use super::recipes::{rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::Recorder;

fn warned(recorder: &Recorder) -> bool {
    recorder.events.iter().any(|(kind, value)| kind == "warning" && value.to_string().contains("sampler_correction"))
}

#[test]
fn responses_sampled_by_rounded_weights_are_weighted_by_importance() {
    let world = World::new();
    let recipes = [
        ("ppo", json!({"critic": "shared", "minibatches": 2, "ppo_epochs": 2})),
        ("ppo", json!({"critic": "separate", "minibatches": 1, "ppo_epochs": 1, "lora": {"rank": 4}})),
        ("rloo", json!({"group_size": 2})),
        ("grpo", json!({"group_size": 4, "surrogate": "cispo", "dynamic_sampling": 2})),
    ];
    for (recipe, more) in recipes {
        let fast = with(&with(&rl(&world, "fast"), more), json!({"numerics": "fast"}));
        let (rounded, _) = train(recipe, &fast);
        assert!(warned(&rounded), "{recipe}");
        for name in ["sampling_gap", "sampling_gap_mean"] {
            let gaps = rounded.curve(name);
            assert!(gaps.len() == 2 && gaps.iter().all(|gap| (1e-6..0.1).contains(gap)), "{recipe} {name}: {gaps:?}");
        }
        // Ratios are of the trainer's own log-probs: they start at 1 whatever the sampler did.
        let ratios = rounded.curve("start_ratio");
        assert!(ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-6), "{recipe}: {ratios:?}");
        let weights = rounded.curve("importance_weight");
        assert!(weights.iter().all(|weight| *weight != 1.0 && (weight - 1.0).abs() < 0.1), "{recipe}: {weights:?}");
        let exact = train(recipe, &with(&fast, json!({"numerics": "exact"}))).0;
        assert!(!warned(&exact) && exact.curve("importance_weight").is_empty());
        assert!(exact.curve("sampling_gap").iter().all(|gap| *gap < 1e-6), "{recipe}");
    }
}

/// Held at a cap, no weight is above it; with a cap that every response passes, no response has a gradient.
#[test]
fn caps_hold_weights_and_leave_responses_out() {
    let world = World::new();
    let args = with(&rl(&world, "held"), json!({"numerics": "fast", "group_size": 2, "sampler_correction_cap": 1.0}));
    for correction in ["token_truncate", "sequence_truncate", "token_mask", "sequence_mask"] {
        let (run, _) = train("rloo", &with(&args, json!({"sampler_correction": correction})));
        assert!(run.curve("importance_weight_max").iter().all(|weight| *weight <= 1.0), "{correction}");
        let beyond = run.curve("importance_beyond_cap");
        assert!(beyond.iter().all(|share| *share > 0.0 && *share < 1.0), "{correction}: {beyond:?}");
        let masked = run.curve("importance_weight_min").contains(&0.0);
        assert_eq!(masked, correction.ends_with("mask"), "{correction}");
    }
}

/// Stops after one iteration, and goes on; what the second part warned of.
fn resumed(world: &World, change: impl Fn(&mut serde_json::Value)) -> Vec<String> {
    let checkpoints = tempfile::tempdir().unwrap();
    let args = with(
        &rl(world, "resumed"),
        json!({"numerics": "fast", "checkpoint_dir": checkpoints.path(), "resume": true, "group_size": 2}),
    );
    let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
    let outcome = (instructd::train::recipe("rloo").unwrap().run)(&args, &mut recorder).unwrap();
    assert!(matches!(outcome, TrainOutcome::Stopped { .. }));
    rewrite(checkpoints.path(), change);
    let (recorder, _) = train("rloo", &args);
    let warnings = recorder.events.iter().filter(|(kind, _)| kind == "warning");
    warnings.map(|(_, value)| value["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_checkpoint_records_how_it_was_computed() {
    let world = World::new();
    let computed = |warnings: &[String]| warnings.iter().filter(|w| w.contains("was computed by")).count();
    assert_eq!(computed(&resumed(&world, |state| assert_eq!(state["computed_by"], "the CPU's kernels"))), 0);
    let warnings = resumed(&world, |state| state["computed_by"] = json!("a GPU"));
    assert_eq!(computed(&warnings), 1, "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("by a GPU") && w.contains("on the CPU's kernels")), "{warnings:?}");
    // One that an older version wrote says nothing.
    assert_eq!(computed(&resumed(&world, |state| drop(state.as_object_mut().unwrap().remove("computed_by")))), 0);
}
