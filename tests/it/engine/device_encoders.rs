//! Encoders on the engine's devices: the CPU's embeddings and predictions, memory that a promotion gets first, and the CPU
//! where a device has no room or fails.

use std::sync::atomic::Ordering::SeqCst;

use instructd::domain::{ModelKind, ModelVersion};
use instructd::engine::{
    EmbedRequest, EncoderInput, EncoderModels, EngineError, FillInput, FillRequest, FillResult, Generator, Inspection,
    LocalEngine, device,
};
use instructd::ops::linear::WeightFormat;

use super::device_rewards::serving;
use super::version;
use crate::support::devices::{self, Control};

fn encoder() -> ModelVersion {
    ModelVersion { kind: ModelKind::Encoder, ..version("bert", "bert-tiny") }
}

pub(super) async fn embedded(engine: &LocalEngine) -> Result<Vec<Vec<f32>>, EngineError> {
    let inputs = (1..6).map(|n| EncoderInput::Ids((0..n * 7).map(|i| 10 + i).collect())).collect();
    let request = EmbedRequest { inputs, pooling: None, normalize: true, truncate: false, max_tokens: 1000 };
    Ok(engine.embed(&encoder(), request).await?.vectors)
}

async fn filled(engine: &LocalEngine) -> Vec<FillResult> {
    let input = FillInput::Ids { ids: vec![4, 9, 2, 31], type_ids: vec![0, 0, 1, 1], positions: vec![1, 3] };
    let request = FillRequest { input, top: 5, targets: Vec::new(), max_listed: 100 };
    engine.fill(&encoder(), request).await.unwrap()
}

fn near(want: &[Vec<f32>], got: &[Vec<f32>], tolerance: f32) {
    assert_eq!(want.len(), got.len());
    for (want, got) in want.iter().flatten().zip(got.iter().flatten()) {
        assert!((want - got).abs() <= tolerance, "{got}, not {want}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encoders_on_a_device_are_those_of_the_cpu_and_leave_it_for_a_promotion() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let cpu = serving(&["cpu"], device::open, WeightFormat::F32).await;
    // The emptier device gets it.
    CONTROLS[0].bytes.store(1 << 30, SeqCst);
    let engine = serving(&["sim", "sim"], |name| devices::open(name, &CONTROLS), WeightFormat::F32).await;
    let used = || engine.devices().iter().map(|device| device.models.used).collect::<Vec<_>>();
    let waits = || CONTROLS.each_ref().map(|control| control.waits.load(SeqCst));
    let before = used();
    let first = embedded(&engine).await.unwrap();
    near(&embedded(&cpu).await.unwrap(), &first, 1e-5);
    let with = used();
    assert_eq!(with[0], before[0]);
    assert!(with[1] > before[1], "{before:?} {with:?}");
    let counted = waits();
    assert_eq!(embedded(&engine).await.unwrap(), first);
    assert_eq!(waits()[0], counted[0]);
    assert!(waits()[1] > counted[1], "computed on the device");
    for (want, got) in filled(&cpu).await.iter().zip(filled(&engine).await) {
        assert_eq!((want.position, want.text_tokens), (got.position, got.text_tokens));
        for (want, got) in want.top.iter().zip(&got.top) {
            assert_eq!(want.id, got.id);
            assert!((want.logprob - got.logprob).abs() <= 1e-5, "{got:?}, not {want:?}");
        }
    }
    // What others allocate after it was loaded takes nothing of its memory.
    CONTROLS[1].full.store(true, SeqCst);
    assert_eq!(embedded(&engine).await.unwrap(), first);
    filled(&engine).await;
    CONTROLS[1].full.store(false, SeqCst);
    // Attention maps need a copy on the CPU, which takes nothing of the device.
    let bert = encoder();
    let [want, got] = [&cpu, &engine].map(|engine| engine.attention(&bert, "t5 t6 t7", 64));
    assert_eq!(want.await.unwrap().layers, got.await.unwrap().layers);
    assert_eq!(used(), with);
    // A version that is loaded gets the memory first; the next request loads the encoder again.
    engine.load(&version("b", "llama-tiny")).await.unwrap();
    assert!(used()[1] < with[1] + before[1], "{before:?} {:?}", used());
    assert_eq!(embedded(&engine).await.unwrap(), first);
    assert_eq!(used()[1] - with[1], before[1], "two versions and an encoder");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_the_device_or_after_its_failure_the_cpu_embeds() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let cpu = serving(&["cpu"], device::open, WeightFormat::F32).await;
    let want = embedded(&cpu).await.unwrap();
    let open: device::Open = |name| devices::open(name, &CONTROLS);
    let engine = serving(&["sim"], open, WeightFormat::F32).await;
    let used = engine.devices()[0].models.used;
    CONTROLS[0].full.store(true, SeqCst);
    assert_eq!(embedded(&engine).await.unwrap(), want, "the CPU's bits");
    assert_eq!(engine.devices()[0].models.used, used);

    CONTROLS[0].full.store(false, SeqCst);
    let engine = serving(&["sim"], open, WeightFormat::F32).await;
    near(&want, &embedded(&engine).await.unwrap(), 1e-5);
    CONTROLS[0].broken.store(true, SeqCst);
    let failed = embedded(&engine).await.unwrap_err();
    assert!(matches!(&failed, EngineError::Failed(why) if why.contains("is broken")), "{failed:?}");
    assert_eq!(embedded(&engine).await.unwrap(), want, "the CPU's bits");
}

#[tokio::test(flavor = "multi_thread")]
async fn served_formats_below_f32_are_bf16_for_encoders() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let cpu = serving(&["cpu"], device::open, WeightFormat::F32).await;
    let want = embedded(&cpu).await.unwrap();
    let mut all = Vec::new();
    for weights in [WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::F16] {
        let engine = serving(&["sim"], |name| devices::open(name, &CONTROLS), weights).await;
        all.push(embedded(&engine).await.unwrap());
        near(&want, &all[0], 2e-2);
    }
    assert_eq!((&all[0], &all[0]), (&all[1], &all[2]));
    assert_ne!(all[0], want);
}
