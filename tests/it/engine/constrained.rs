//! Constrained and free requests in one batch.

use std::sync::Arc;

use instructd::engine::{
    Constraint, ConstraintKind, EngineError, EngineOptions, Generator, LocalEngine, SamplingParams,
};
use serde_json::json;

use super::{collect, idle, params, request, run, version};
use crate::support::{byte_level, random_model};

fn constrained(seed: u64, form: ConstraintKind) -> SamplingParams {
    let constraint = Some(Arc::new(Constraint { field: "grammar", kind: form }));
    SamplingParams { constraint, ignore_eos: false, ..params(seed, 60) }
}

fn forms() -> [ConstraintKind; 4] {
    [
        ConstraintKind::JsonObject,
        ConstraintKind::JsonSchema(json!({"type": "array", "items": {"type": "integer"}, "minItems": 3})),
        ConstraintKind::Regex("[a-c]{5,20}".into()),
        ConstraintKind::Grammar("root ::= (\"x\" | \"(\" root \")\") root?".into()),
    ]
}

/// A free request's tokens, log-probs and text have the same bits alone and beside constrained ones, and so have
/// those of constrained requests in any company, preemption included.
#[tokio::test(flavor = "multi_thread")]
async fn constraints_change_nothing_in_other_rows() {
    let model = random_model(&byte_level(&["<|end|>"], &[]), &json!({}), 0);
    let start = async |options: EngineOptions| {
        let engine = LocalEngine::start(options).unwrap();
        let v = version("a", &model.path().display().to_string());
        engine.load(&v).await.unwrap();
        engine.activate(&v.id).await.unwrap();
        engine
    };
    let requests = || {
        (0..12u64).map(|i| {
            let prompt = (0..5 + i as u32 * 3).map(|t| 1 + (t * 7 + i as u32) % 200).collect();
            let params = if i % 3 == 0 { params(i, 40) } else { constrained(i, forms()[(i % 4) as usize].clone()) };
            request(prompt, 1 + (i % 2) as usize, params)
        })
    };
    let alone = start(EngineOptions { max_running: 1, ..EngineOptions::default() }).await;
    let mut want = Vec::new();
    for r in requests() {
        want.push(run(&alone, r).await);
    }
    assert!(want.iter().all(|c| c.failed.is_none()), "{want:?}");
    for kv_tokens in [200, 8192] {
        let crowded: Arc<LocalEngine> =
            start(EngineOptions { max_running: 8, prefill_tokens: 16, kv_tokens, ..EngineOptions::default() }).await;
        let tasks: Vec<_> = requests()
            .map(|r| {
                let engine = crowded.clone();
                tokio::spawn(async move { run(&engine, r).await })
            })
            .collect();
        for (i, (task, want)) in tasks.into_iter().zip(&want).enumerate() {
            assert_eq!(&task.await.unwrap(), want, "request {i}");
        }
        idle(&crowded).await;
    }
    // A form that this vocabulary cannot write, and one that no vocabulary can.
    let unwritable = super::engine(EngineOptions::default()).await;
    for (engine, form) in [(&unwritable, ConstraintKind::JsonObject), (&alone, ConstraintKind::Regex("a{".into()))] {
        let refused = engine.generate(request(vec![3], 1, constrained(1, form))).await;
        assert!(matches!(refused, Err(EngineError::BadRequest { param: "grammar", .. })), "{:?}", refused.err());
    }
    // Whoever leaves frees the slot, as without a constraint.
    let left =
        alone.generate(request(vec![3], 2, constrained(1, ConstraintKind::Regex("[a-z]*".into())))).await.unwrap();
    drop(left);
    idle(&alone).await;
    let after =
        alone.generate(request(vec![3], 1, constrained(1, ConstraintKind::Choice(vec!["ab".into()])))).await.unwrap();
    assert_eq!(collect(after, 1).await.text, ["ab"]);
}
