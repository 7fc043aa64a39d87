//! Arguments that only the CPU's kernels follow are refused where a GPU is asked for, not ignored.

use instructd::train::recipe;
use serde_json::json;

use super::recipes::{fails, rl, sft, with};
use crate::loop_closes::world::World;

#[test]
fn arguments_that_a_gpu_would_ignore_are_refused() {
    let world = World::new();
    let ppo = rl(&world, "ppo");
    let validate = |more| (recipe("ppo").unwrap().validate)(&with(&ppo, more));
    // A recipe that candle's operations train.
    let mlm = json!({"model": World::model(), "output_dir": world.path("mlm"), "texts": ["texts.txt"]});
    for value in ["mlp", "block"] {
        let recompute = json!({"device": "cuda", "recompute": value});
        let error = (recipe("mlm").unwrap().validate)(&with(&mlm, recompute.clone())).unwrap_err();
        assert_eq!(error.field, "recompute", "{error}");
        assert!(error.message.contains("would have no effect"), "{error}");
        validate(recompute).unwrap();
        validate(json!({"device": "cpu", "recompute": value})).unwrap();
    }
    let half = json!({"device": "cuda", "frozen_precision": "bf16", "lora": {"rank": 2}});
    assert_eq!(validate(half.clone()).unwrap_err().field, "frozen_precision");
    validate(with(&half, json!({"device": "cpu"}))).unwrap();
    validate(json!({"device": "cuda"})).unwrap();
}

#[test]
fn a_missing_gpu_is_an_error_and_auto_uses_the_cpu() {
    if instructd::gpu::open(0).is_ok() {
        return;
    }
    let world = World::new();
    let args = with(&sft(&world, "out"), json!({"max_steps": 1}));
    let error = fails("sft", &with(&args, json!({"device": "cuda"})));
    assert!(error.contains("device: the GPU cannot be used: ") && !error.contains('\n'), "{error}");
    // On the CPU, `recompute` has its effect.
    crate::loop_closes::world::train("sft", &with(&args, json!({"device": "auto", "recompute": "block"})));
}
