//! Reward models on the engine's devices: the CPU's scores, memory that a promotion gets first, and the CPU where a device
//! has no room or fails.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use instructd::domain::{Message, ModelKind, ModelVersion, RewardScore};
use instructd::engine::{EngineError, EngineOptions, Generator, LocalEngine, RewardScorer, device};
use instructd::ops::linear::WeightFormat;

use super::version;
use crate::support::devices::{self, Control};
use crate::support::{assert_near, write_reward_model};

/// A started engine that serves llama-tiny as `a`.
pub(super) async fn serving(devices: &[&str], open: device::Open, weights: WeightFormat) -> Arc<LocalEngine> {
    let devices = devices.iter().map(|name| (*name).to_owned()).collect();
    let engine = LocalEngine::start(EngineOptions { devices, open, weights, ..EngineOptions::default() }).unwrap();
    let v = version("a", "llama-tiny");
    engine.load(&v).await.unwrap();
    engine.activate(&v.id).await.unwrap();
    engine
}

pub(super) fn reward(dir: &Path) -> ModelVersion {
    let artifact_uri = dir.to_string_lossy().into_owned();
    ModelVersion { kind: ModelKind::Reward, artifact_uri, ..version("judge", "llama-tiny") }
}

pub(super) async fn scores(engine: &LocalEngine, judge: &ModelVersion) -> Result<Vec<RewardScore>, EngineError> {
    let prompt: Arc<[Message]> = Arc::new([Message { role: "user".into(), content: "t5 t6 t7".into() }]);
    let answers = (1..6).map(|n| (0..n * 7).map(|i| format!("t{}", 10 + i)).collect::<Vec<_>>().join(" "));
    engine.reward_scores(judge, &prompt, answers.collect()).await
}

/// A reward model, and its scores on the CPU.
async fn reward_model() -> (tempfile::TempDir, ModelVersion, Vec<RewardScore>) {
    let dir = tempfile::tempdir().unwrap();
    write_reward_model("llama-tiny", dir.path());
    let judge = reward(dir.path());
    let cpu = serving(&["cpu"], device::open, WeightFormat::F32).await;
    let want = scores(&cpu, &judge).await.unwrap();
    (dir, judge, want)
}

#[tokio::test(flavor = "multi_thread")]
async fn rewards_on_a_device_are_those_of_the_cpu_and_leave_it_for_a_promotion() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let (_dir, judge, want) = reward_model().await;
    // The emptier device gets it.
    CONTROLS[0].bytes.store(1 << 30, SeqCst);
    let engine = serving(&["sim", "sim"], |name| devices::open(name, &CONTROLS), WeightFormat::F32).await;
    let used = || engine.devices().iter().map(|device| device.models.used).collect::<Vec<_>>();
    let before = used();
    let waits = || CONTROLS.each_ref().map(|control| control.waits.load(SeqCst));
    let first = scores(&engine, &judge).await.unwrap();
    assert_near(&want, &first, 1e-5, "f32");
    let with = used();
    assert_eq!(with[0], before[0]);
    assert!(with[1] > before[1], "{before:?} {with:?}");
    let counted = waits();
    assert_eq!(scores(&engine, &judge).await.unwrap(), first);
    assert_eq!(waits()[0], counted[0]);
    assert!(waits()[1] > counted[1], "computed on the device");
    // What others allocate after it was loaded takes nothing of its memory.
    CONTROLS[1].full.store(true, SeqCst);
    assert_eq!(scores(&engine, &judge).await.unwrap(), first);
    CONTROLS[1].full.store(false, SeqCst);
    // A version that is loaded gets the memory first; the next request loads the reward model again.
    let next = version("b", "llama-tiny");
    engine.load(&next).await.unwrap();
    assert!(used()[1] < with[1] + before[1], "{before:?} {:?}", used());
    assert_eq!(scores(&engine, &judge).await.unwrap(), first);
    assert_eq!(used()[1] - with[1], before[1], "two versions and a reward model");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_the_device_or_after_its_failure_the_cpu_scores() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let (_dir, judge, want) = reward_model().await;
    let open: device::Open = |name| devices::open(name, &CONTROLS);
    let engine = serving(&["sim"], open, WeightFormat::F32).await;
    let used = engine.devices()[0].models.used;
    CONTROLS[0].full.store(true, SeqCst);
    assert_eq!(scores(&engine, &judge).await.unwrap(), want, "the CPU's bits");
    assert_eq!(engine.devices()[0].models.used, used);

    CONTROLS[0].full.store(false, SeqCst);
    let engine = serving(&["sim"], open, WeightFormat::F32).await;
    assert_near(&want, &scores(&engine, &judge).await.unwrap(), 1e-5, "f32");
    CONTROLS[0].broken.store(true, SeqCst);
    let failed = scores(&engine, &judge).await.unwrap_err();
    assert!(matches!(&failed, EngineError::Failed(why) if why.contains("is broken")), "{failed:?}");
    assert_eq!(scores(&engine, &judge).await.unwrap(), want, "the CPU's bits");
}

#[tokio::test(flavor = "multi_thread")]
async fn served_formats_below_f32_are_bf16_for_rewards() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let (_dir, judge, want) = reward_model().await;
    let mut all = Vec::new();
    for weights in [WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::F16] {
        let engine = serving(&["sim"], |name| devices::open(name, &CONTROLS), weights).await;
        all.push(scores(&engine, &judge).await.unwrap());
        assert_near(&want, &all[0], 3e-2, "bf16");
    }
    assert_eq!((&all[0], &all[0]), (&all[1], &all[2]));
    assert_ne!(all[0], want);
}
