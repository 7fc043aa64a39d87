//! What `POST /admin/jobs` may ask for: refusals name the field, names become versions.

use instructd::domain::*;
use instructd::jobs::queue::{self, EnqueueError};
use instructd::train::{recipe, recipes};
use serde_json::{Value, json};

use super::{enqueue, small_world};
use crate::store::{backend, fixture};

#[tokio::test]
async fn refusals_name_the_field() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    let no_model = enqueue(store, "sft", json!({})).await;
    assert!(matches!(no_model, Err(EnqueueError::Args(e)) if e.field == "model"), "nothing is active yet");
    small_world(store).await;
    let retired = fixture::model("old", ModelKind::Policy);
    store.models().put(retired.clone()).await.unwrap();
    store.models().retire(&retired.id).await.unwrap();
    for (kind, args, field) in [
        ("reward", json!([1]), "args"),
        ("reward", json!({"learning_rat": 1.0}), "learning_rat"),
        ("reward", json!({"epochs": 0}), "epochs"),
        ("reward", json!({"model": "nobody"}), "model"),
        ("reward", json!({"model": 7}), "model"),
        ("reward", json!({"model": "old"}), "model"),
        ("reward", json!({"comparisons": "/etc/passwd"}), "comparisons"),
        ("reward", json!({"output_dir": "/tmp"}), "output_dir"),
        ("reward", json!({"publish_as": "../up"}), "publish_as"),
        ("reward", json!({"publish_as": "base"}), "publish_as"),
        ("reward", json!({"filter": {"colour": 1}}), "filter"),
        ("pretrain", json!({"architecture": "gpt-tiny"}), "texts"),
        ("pretrain", json!({"architecture": "gpt-tiny", "texts": ["../secret.txt"]}), "texts"),
        ("pretrain", json!({"architecture": "gpt-tiny", "texts": ["/etc/passwd"]}), "texts"),
        ("pretrain", json!({"architecture": "gpt-tiny", "texts": [".."]}), "texts"),
        ("pretrain", json!({"architecture": "gpt-tiny", "texts": ["a.txt"], "tokenizer": "/t.json"}), "tokenizer"),
        ("sft", json!({"mixture": "a/b.json"}), "mixture"),
        ("finetune", json!({}), "labelled"),
        ("finetune", json!({"labelled": 7}), "labelled"),
        ("ppo", json!({}), "reward_model"),
        ("ppo", json!({"reward_model": "base"}), "reward_model"),
    ] {
        match enqueue(store, kind, args.clone()).await {
            Err(EnqueueError::Args(e)) => assert_eq!(e.field, field, "{kind} {args}: {e}"),
            other => panic!("{kind} {args}: {other:?}"),
        }
    }
    match enqueue(store, "cooking", json!({})).await {
        Err(EnqueueError::UnknownKind(message)) => assert!(message.contains("cooking") && message.contains("ppo")),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.counts().await.unwrap().jobs_queued, 0);
}

#[tokio::test]
async fn names_and_ids_become_version_names() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    let base = small_world(store).await;
    let reward = fixture::model("rm", ModelKind::Reward);
    store.models().put(reward.clone()).await.unwrap();
    let by_id = enqueue(store, "reward", json!({"model": base.id, "publish_as": "rm.2", "filter": {"tag": "a"}})).await;
    let job = by_id.unwrap();
    assert_eq!((job.state, job.args["model"].as_str()), (JobState::Queued, Some("base")));
    let ppo = json!({"reward_model": reward.id, "iterations": 3});
    assert_eq!(enqueue(store, "ppo", ppo).await.unwrap().args["reward_model"], "rm");
    let custom = enqueue(store, "ppo", json!({"reward": {"kind": "length", "target": 10}})).await.unwrap();
    assert_eq!(custom.args.get("reward_model"), None);
    // A new model has no parent; one that goes on from a version names it.
    let new = json!({"architecture": "gpt-tiny", "texts": ["a.txt"]});
    assert_eq!(enqueue(store, "pretrain", new).await.unwrap().args.get("model"), None);
    let more = json!({"model": base.id, "texts": ["a.txt"]});
    assert_eq!(enqueue(store, "pretrain", more).await.unwrap().args["model"], "base");
}

#[test]
fn schemas_show_what_a_caller_may_set() {
    for recipe in recipes() {
        let schema = queue::job_schema(recipe);
        for name in ["output_dir", "checkpoint_dir", "log_dir", "comparisons", "demonstrations", "prompts", "resume"] {
            assert_eq!(schema["properties"].get(name), None, "{}", recipe.name);
        }
        assert!(schema["properties"].get("publish_as").is_some());
        assert!(!schema["required"].as_array().unwrap().contains(&Value::from("model")));
    }
    assert!(queue::job_schema(recipe("reward").unwrap())["properties"].get("filter").is_some());
}

#[test]
fn model_names_are_safe_in_paths() {
    for good in ["a", "0", "smollm2-135m-instruct", "a.b_c-d"] {
        assert!(is_model_name(good), "{good}");
    }
    for bad in ["", ".a", "-a", "A", "a/b", "a\\b", "a..b", "a b", "\u{e9}", "a\0", &"x".repeat(65)] {
        assert!(!is_model_name(bad), "{bad:?}");
    }
}
