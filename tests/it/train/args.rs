//! Recipe arguments: unknown keys, wrong types and values out of range are refused with the field named.

use instructd::train::{args, recipe, recipes};
use serde_json::{Value, json};

fn minimal(name: &str) -> Value {
    match name {
        "sft" => json!({"model": "m", "output_dir": "o", "demonstrations": "d.jsonl"}),
        "pretrain" => json!({"model": "m", "output_dir": "o", "texts": ["t.txt"]}),
        "mlm" => json!({"model": "m", "output_dir": "o", "texts": ["t.txt"]}),
        "finetune" => json!({"model": "m", "output_dir": "o", "labelled": "l.jsonl"}),
        "prompt_tuning" => json!({"model": "m", "output_dir": "o", "demonstrations": "d.jsonl"}),
        "external" => json!({"model": "m", "output_dir": "o", "trainer": "t", "comparisons": "c.jsonl"}),
        "kto" => json!({"model": "m", "output_dir": "o", "feedback": "f.jsonl"}),
        "reward" | "dpo" | "simpo" | "orpo" => json!({"model": "m", "output_dir": "o", "comparisons": "c.jsonl"}),
        _ => json!({"model": "m", "output_dir": "o", "prompts": "p.jsonl", "reward_model": "r"}),
    }
}

/// The field that the recipe complains about after `changes` are put into its minimal arguments.
fn complaint(name: &str, changes: Value) -> String {
    let mut args = minimal(name);
    for (key, value) in changes.as_object().unwrap() {
        args[key] = value.clone();
    }
    (recipe(name).unwrap().validate)(&args).map_or_else(|e| e.field, |()| "accepted".to_owned())
}

#[test]
fn minimal_arguments_are_enough_and_each_required_one_is_needed() {
    for recipe in recipes() {
        let args = minimal(recipe.name);
        (recipe.validate)(&args).unwrap_or_else(|e| panic!("{}: {e}", recipe.name));
        for field in ["model", "output_dir"] {
            assert_eq!(complaint(recipe.name, json!({field: null})), field);
        }
    }
    assert_eq!(complaint("ppo", json!({"prompts": ""})), "prompts");
    assert_eq!(complaint("reward", json!({"comparisons": null})), "comparisons");
    assert_eq!(complaint("ppo", json!({"reward_model": null})), "reward_model");
}

/// Misspelt hyper-parameters silently ignored is what LMHP shipped.
#[test]
fn unknown_keys_are_named() {
    for recipe in recipes() {
        assert_eq!(complaint(recipe.name, json!({"learning_rat": 1.0})), "learning_rat");
    }
    assert_eq!(complaint("sft", json!({"kl_coef": 0.1})), "kl_coef");
    // Accepted and never applied is as bad: REINFORCE does not clip.
    assert_eq!(complaint("reinforce", json!({"cliprange": 0.2})), "cliprange");
    assert_eq!(complaint("sft", json!({"lora": {"rank": 4, "alhpa": 8}})), "lora.alhpa");
}

#[test]
fn wrong_types_and_ranges_are_named() {
    for (recipe, change, field) in [
        ("pretrain", json!({"texts": []}), "texts"),
        ("pretrain", json!({"architecture": "gpt-9", "model": ""}), "architecture"),
        ("pretrain", json!({"architecture": "bert-base", "model": ""}), "architecture"),
        ("pretrain", json!({"architecture": "gpt2"}), "architecture"),
        ("pretrain", json!({"model": ""}), "architecture"),
        ("pretrain", json!({"vocab_size": 3}), "vocab_size"),
        ("mlm", json!({"architecture": "gpt2", "model": ""}), "architecture"),
        ("mlm", json!({"mask_rate": 1.0}), "mask_rate"),
        ("finetune", json!({"lm_coef": -1.0}), "lm_coef"),
        ("finetune", json!({"label_field": "text"}), "label_field"),
        ("prompt_tuning", json!({"n_tokens": 0}), "n_tokens"),
        ("prompt_tuning", json!({"lora": {"rank": 4}}), "lora"),
        ("sft", json!({"demonstrations": ""}), "demonstrations"),
        ("sft", json!({"epochs": "two"}), "epochs"),
        ("sft", json!({"epochs": 0}), "epochs"),
        ("sft", json!({"batch_size": -1}), "batch_size"),
        ("sft", json!({"learning_rate": 0.0}), "learning_rate"),
        ("sft", json!({"lr_schedule": "cosin"}), "lr_schedule"),
        ("sft", json!({"lora": {"rank": 0}}), "lora.rank"),
        ("sft", json!({"lora": {"rank": "x"}}), "lora.rank"),
        ("sft", json!({"resume": true}), "resume"),
        ("reward", json!({"heldout_fraction": 1.0}), "heldout_fraction"),
        ("external", json!({"data": []}), "data"),
        ("external", json!({"data": ["prompts"]}), "prompts"),
        ("external", json!({"data": ["comparisons", "comparisons"]}), "data"),
        ("external", json!({"kl_prompts": 0}), "kl_prompts"),
        ("external", json!({"max_kl": 0}), "max_kl"),
        ("external", json!({"trainer": ""}), "trainer"),
        ("ppo", json!({"kl_coef": -0.1}), "kl_coef"),
        ("ppo", json!({"temperature": 0}), "temperature"),
        ("ppo", json!({"response_length": 1024, "max_length": 512}), "response_length"),
        ("ppo", json!({"minibatches": 65}), "minibatches"),
        ("ppo", json!({"ptx_coef": 0.5}), "ptx_demonstrations"),
        ("ppo", json!({"critic": "none"}), "critic"),
        ("ppo", json!({"max_grad_norm": 0}), "max_grad_norm"),
        ("rloo", json!({"group_size": 1}), "group_size"),
        ("grpo", json!({"rollout_batch_size": 12}), "rollout_batch_size"),
        ("grpo", json!({"cliprange_high": 0.0}), "cliprange_high"),
        ("grpo", json!({"loss_normalization": "tokens"}), "loss_normalization"),
        ("grpo", json!({"scale_rewards": true}), "scale_rewards"),
        ("grpo", json!({"dynamic_sampling": 101}), "dynamic_sampling"),
        ("grpo", json!({"entropy_coef": -0.1}), "entropy_coef"),
        ("grpo", json!({"surrogate": "cisp"}), "surrogate"),
        ("ppo", json!({"ensemble_doubt": -1.0}), "ensemble_doubt"),
        ("ppo", json!({"numerics": "quick"}), "numerics"),
        ("grpo", json!({"numerics": "fast", "device": "cuda"}), "numerics"),
        ("ppo", json!({"numerics": "fast", "lora": {"rank": 2}, "frozen_precision": "q4"}), "numerics"),
        ("rloo", json!({"sampler_correction": "mask"}), "sampler_correction"),
        ("ppo", json!({"sampler_correction_cap": 0.5}), "sampler_correction_cap"),
        (
            "ppo",
            json!({"reward_model": null, "reward": {"kind": "exact", "text": "a"}, "ensemble_reward": "worst_case"}),
            "ensemble_reward",
        ),
        ("sft", json!({"adam_states": "8bits"}), "adam_states"),
        ("dpo", json!({"label_smoothing": 0.5}), "label_smoothing"),
        ("dpo", json!({"loss": "ipo", "label_smoothing": 0.1}), "label_smoothing"),
        ("dpo", json!({"loss": "robust"}), "label_smoothing"),
        ("dpo", json!({"label_smoothing": 0.1, "smoothing_from_agreement": true}), "smoothing_from_agreement"),
        ("simpo", json!({"simpo_gamma": -1.0}), "simpo_gamma"),
        ("simpo", json!({"beta": 0.0}), "beta"),
        ("orpo", json!({"beta": -1.0}), "beta"),
        ("online_dpo", json!({"group_size": 1}), "group_size"),
        ("online_dpo", json!({"kl_coef": 0.0}), "kl_coef"),
        ("online_dpo", json!({"loss": "ipo", "label_smoothing": 0.1}), "label_smoothing"),
        ("online_dpo", json!({"loss": "robust"}), "label_smoothing"),
        ("online_dpo", json!({"rollout_batch_size": 8, "minibatches": 5}), "minibatches"),
        ("raft", json!({"group_size": 1}), "group_size"),
        ("raft", json!({"keep_share": 0.0}), "keep_share"),
        ("raft", json!({"keep_share": 1.1}), "keep_share"),
        ("raft", json!({"minibatches": 17}), "minibatches"),
        ("ppo", json!({"judge_model": "j"}), "judge_model"),
        ("ppo", json!({"reward": {"kind": "judge"}}), "judge_model"),
        ("ppo", json!({"reward": {"kind": "judge", "rubric": ""}, "judge_model": "j"}), "reward.rubric"),
        ("ppo", json!({"reward": {"kind": "judge", "host": ""}}), "reward.host"),
        ("ppo", json!({"reward": {"kind": "judge", "host": "x", "by": "pairs"}}), "reward"),
        ("grpo", json!({"reward": {"kind": "judge", "host": "x", "by": "pairs"}}), "accepted"),
        ("kto", json!({"feedback": ""}), "feedback"),
        ("kto", json!({"desirable_weight": 0.0}), "desirable_weight"),
        ("kto", json!({"batch_size": 1}), "batch_size"),
        ("ppo", json!({"reward": {"kind": "regex", "pattern": "("}}), "reward.pattern"),
        ("ppo", json!({"reward": {"kind": "sum", "terms": []}}), "reward.terms"),
    ] {
        assert_eq!(complaint(recipe, change.clone()), field, "{recipe} {change}");
    }
}

#[test]
fn values_reach_the_struct() {
    let mut value = minimal("ppo");
    value["lora"] = json!({"rank": 4});
    value["reward"] = json!({"kind": "contains", "texts": ["please"], "score": 2.0});
    let args: args::PpoArgs = args::parse(&value).unwrap();
    let lora = args.lora.clone().unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.targets), (4, 32.0, None));
    assert_eq!(args.rl().common.max_grad_norm, Some(1.0));
    assert_eq!(args.cliprange, 0.2);
}

#[test]
fn schemas_describe_every_field() {
    for recipe in recipes() {
        let schema = (recipe.schema)();
        let properties = schema["properties"].as_object().unwrap();
        for (name, property) in properties {
            let described = property.get("description").is_some() || property.get("$ref").is_some();
            assert!(described, "{}: {name} has no description", recipe.name);
        }
        let required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        // Pretraining makes its model; every other recipe starts from one.
        let makes = matches!(recipe.name, "pretrain" | "mlm");
        assert!(makes || required.contains(&"model") && properties["model"].get("default").is_none());
        // What another program optimizes with is its own business.
        assert!(recipe.name == "external" || properties["max_grad_norm"]["default"] == json!(1.0));
    }
}
