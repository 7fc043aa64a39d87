//! Guards: what is published when the reward rises and the rest falls, when the KL passes its budget, when
//! numbers break, and when there is nothing to learn from.

use std::path::Path;

use candle_core::Device;
use instructd::model::load;
use serde_json::json;

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{LIKED, World, share_written_by, train};
use crate::support::copy_dir;

/// The held-out reward pays for exactly the words that the trained one does not pay for.
#[test]
fn a_run_that_games_its_reward_is_stopped_and_the_policy_before_it_published() {
    let world = World::new();
    let disliked: Vec<String> = (3..96).filter(|i| !LIKED.contains(i)).map(|i| format!("t{i}")).collect();
    let args = with(
        &rl(&world, "out"),
        json!({"gold_reward": {"kind": "word_share", "words": disliked}, "gold_patience": 2, "iterations": 60,
               "rollout_batch_size": 64, "learning_rate": 3e-3, "kl_coef": 0.0}),
    );
    let (recorder, metrics) = train("ppo", &args);
    assert!(metrics["stopped_because"].as_str().unwrap().contains("held-out signal fell"), "{metrics}");
    let (published, made) = (metrics["published_iteration"].as_u64().unwrap(), metrics["iterations"].as_u64().unwrap());
    assert!(published + 2 <= made && made < 60, "{metrics}");
    let (gold, proxy) = (recorder.curve("gold"), recorder.curve("reward"));
    assert_eq!((gold.len(), proxy.len()), (made as usize + 1, made as usize + 1), "one point per measured policy");
    assert!(gold[made as usize] < gold[published as usize] && proxy[made as usize] > proxy[published as usize]);
    // What was published writes like the policy of that iteration, not like the last one.
    let share = share_written_by(&world.path("out"));
    assert!(share < share_written_by(&World::model()) + 0.1, "{share}");
    let said = recorder.events("warning").last().unwrap()["message"].to_string();
    assert!(said.contains(&format!("after iteration {published} is published")), "{said}");
}

#[test]
fn the_policy_that_breaks_the_kl_budget_is_not_published() {
    let world = World::new();
    let args = with(
        &rl(&world, "out"),
        json!({"kl_budget": 0.5, "iterations": 40, "rollout_batch_size": 32, "learning_rate": 3e-3, "kl_coef": 0.0}),
    );
    let (recorder, metrics) = train("reinforce", &args);
    let kl = recorder.curve("kl");
    let published = metrics["published_iteration"].as_u64().unwrap() as usize;
    assert!(metrics["stopped_because"].as_str().unwrap().contains("budget of 0.5"), "{metrics}");
    assert!(published > 0 && kl[published] <= 0.5 && kl[kl.len() - 1] > 0.5, "{published}: {kl:?}");
    assert_eq!(published + 1, kl.len() - 1, "the last policy within the budget is the one before the last update");
    // The file holds that policy: a run cut there leaves the same weights.
    let cut = with(&args, json!({"output_dir": world.path("cut"), "kl_budget": null, "max_steps": published}));
    train("reinforce", &cut);
    let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
    assert!(bytes("out") == bytes("cut"));
}

/// Held-out judgments as the curve: at first no completion was raised above another.
#[test]
fn held_out_judgments_are_a_curve_next_to_the_reward() {
    let world = World::new();
    let args = with(
        &rl(&world, "out"),
        json!({"gold_comparisons": world.comparisons(40), "iterations": 12, "rollout_batch_size": 32,
               "learning_rate": 2e-3, "gold_every": 3}),
    );
    let (recorder, metrics) = train("ppo", &args);
    let gold = recorder.curve("gold");
    assert_eq!(gold.len(), 5, "rounds 0, 3, 6, 9 and the end: {gold:?}");
    assert!(gold[0] == 0.5 && gold[4] > 0.6, "{gold:?}");
    assert_eq!(metrics["published_iteration"], 12, "{metrics}");
}

#[test]
fn numbers_that_are_not_finite_stop_the_run_and_name_the_tensor() {
    let world = World::new();
    let model = copy_dir(Path::new(&World::model()));
    let loaded = load(model.path(), &Device::Cpu).unwrap();
    let mut weights = loaded.weights.clone();
    let name = "model.layers.1.mlp.down_proj.weight";
    weights.insert(name.into(), (&weights[name] * f64::NAN).unwrap());
    instructd::model::save_dir(
        model.path(),
        &loaded.config,
        &loaded.hf_config,
        &weights,
        loaded.tokenizer.as_ref(),
        None,
        None,
    )
    .unwrap();
    let broken = json!({"model": model.path()});
    for recipe in ["ppo", "sft", "reward", "dpo"] {
        let args = match recipe {
            "ppo" => rl(&world, "o"),
            "sft" => sft(&world, "o"),
            _ => reward(&world, "o"),
        };
        let error = fails(recipe, &with(&args, broken.clone()));
        assert!(error.contains("not finite") && error.contains("model.layers."), "{recipe}: {error}");
        assert!(!Path::new(&world.path("o")).join("model.safetensors").exists());
    }
}

#[test]
fn runs_without_usable_data_are_refused_with_the_reason() {
    let world = World::new();
    let write = |name: &str, text: &str| {
        std::fs::write(world.path(name), text).unwrap();
        world.path(name)
    };
    let (empty, blank) = (write("empty.jsonl", ""), write("blank.jsonl", "\n\n"));
    let ties = write("ties.jsonl", r#"{"prompt":"t5","completions":[{"text":"t6","tier":0},{"text":"t7","tier":0}]}"#);
    let one = write(
        "one.jsonl",
        r#"{"prompt":"t5","completions":[{"text":"t6","tier":0},{"text":"t7","tier":1}],"split":"heldout"}"#,
    );
    for (recipe, args, words) in [
        ("sft", with(&sft(&world, "o"), json!({"demonstrations": empty})), "contains no demonstration"),
        ("sft", with(&sft(&world, "o"), json!({"demonstrations": blank})), "contains no demonstration"),
        ("reward", with(&reward(&world, "o"), json!({"comparisons": empty})), "contains no comparison"),
        ("reward", with(&reward(&world, "o"), json!({"comparisons": ties})), "1 are all ties"),
        ("dpo", with(&reward(&world, "o"), json!({"comparisons": ties})), "1 are all ties"),
        ("dpo", with(&reward(&world, "o"), json!({"comparisons": one})), "1 are held out"),
        ("ppo", with(&rl(&world, "o"), json!({"prompts": empty})), "contains no prompt"),
        ("ppo", with(&rl(&world, "o"), json!({"gold_comparisons": ties})), "gold_comparisons"),
    ] {
        let error = fails(recipe, &args);
        assert!(error.contains(words), "{recipe}: {error}");
    }
    // One prompt is little, but no error: groups of it and single samples of it both work.
    let prompt = write("prompt.jsonl", r#"{"prompt":"t5 t6"}"#);
    for recipe in ["ppo", "reinforce", "rloo", "grpo", "online_dpo", "raft"] {
        let (recorder, _) = train(recipe, &with(&rl(&world, recipe), json!({"prompts": prompt, "iterations": 1})));
        assert_eq!(recorder.curve("reward").len(), 1);
    }
    // One ranked set, none held out.
    let set = write(
        "set.jsonl",
        r#"{"prompt":"t5","completions":[{"text":"t6","tier":0},{"text":"t7","tier":1}],"split":"train"}"#,
    );
    let (recorder, metrics) = train("reward", &with(&reward(&world, "rm"), json!({"comparisons": set})));
    assert!(metrics["heldout_accuracy"].is_null());
    assert!(recorder.events("warning")[0]["message"].as_str().unwrap().contains("no prompt is held out"));
}
