//! Replicas of a model on several devices: the same tokens on each, one queue, and failures that stay where they are.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use instructd::engine::{EngineError, EngineOptions, GenEvent, GenerateRequest, Generator, LocalEngine, device};
use instructd::gpu::device::Device;

use super::{Collected, collect, idle, params, request, requests, run, version};
use crate::support::devices::{self, Control};
use crate::support::eventually::{LONG, eventually};

/// An engine that serves the tiny Llama on two simulated devices.
async fn pair(open: device::Open, options: EngineOptions) -> Arc<LocalEngine> {
    on(vec!["sim".to_owned(); 2], EngineOptions { open, ..options }).await
}

async fn on(devices: Vec<String>, options: EngineOptions) -> Arc<LocalEngine> {
    let engine = LocalEngine::start(EngineOptions { devices, ..options }).unwrap();
    let v = version("a", "llama-tiny");
    engine.load(&v).await.unwrap();
    engine.activate(&v.id).await.unwrap();
    engine
}

fn set(control: &Control, broken: bool) {
    control.broken.store(broken, SeqCst);
}

fn works(engine: &LocalEngine) -> Vec<bool> {
    engine.devices().iter().map(|device| device.works).collect()
}

/// A request without a full page, so that no replica is preferred for its beginning.
fn short(first: u32, max_tokens: usize) -> GenerateRequest {
    request(vec![first, 2, 3], 1, params(u64::from(first), max_tokens))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_the_same_tokens_on_every_replica_and_in_any_company() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let one = EngineOptions { max_running: 1, prefill_tokens: 1000, ..EngineOptions::default() };
    let alone = on(vec!["sim".to_owned()], one).await;
    let mut want: Vec<Collected> = Vec::new();
    for r in requests() {
        want.push(run(&alone, r).await);
    }
    // Few places and pages: requests wait, prompts are cut into chunks, samples are preempted.
    let few = EngineOptions { max_running: 3, kv_tokens: 160, prefill_tokens: 7, ..EngineOptions::default() };
    let engine = pair(|name| devices::open(name, &CONTROLS), few).await;
    let before = CONTROLS.each_ref().map(|control| control.waits.load(SeqCst));
    let mut generations = Vec::new();
    for r in requests() {
        let n = r.n;
        generations.push((n, engine.generate(r).await.unwrap()));
    }
    for (i, (n, generation)) in generations.into_iter().enumerate() {
        assert_eq!(collect(generation, n).await, want[i], "request {i}");
    }
    idle(&engine).await;
    assert_eq!(engine.stats().kv_tokens_used, 0);
    for (control, before) in CONTROLS.iter().zip(before) {
        assert!(control.waits.load(SeqCst) - before > 10, "a replica had next to nothing to do");
    }
    // Each replica alone: two requests at a time reach both, as long as neither is known to fail, or both are.
    for broken in [[false, true], [true, true], [true, false]] {
        CONTROLS.iter().zip(broken).for_each(|(control, broken)| set(control, broken));
        eventually(LONG, "what works and what fails is known", async || {
            tokio::join!(run(&engine, short(1, 20)), run(&engine, short(2, 20)));
            (works(&engine) == broken.map(|broken| !broken)).then_some(())
        })
        .await;
        if broken != [true, true] {
            assert_eq!(run(&engine, requests().swap_remove(5)).await, want[5], "{broken:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_ends_its_requests_and_the_others_go_on() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let engine = pair(|name| devices::open(name, &CONTROLS), EngineOptions::default()).await;
    let mut want = Vec::new();
    for first in 0..6 {
        want.push(run(&engine, short(first, 55)).await);
        idle(&engine).await;
    }
    let mut running = Vec::new();
    for first in 0..2 {
        let mut generation = engine.generate(short(first, 55)).await.unwrap();
        assert!(matches!(generation.events.recv().await, Some(GenEvent::Delta { .. })));
        running.push(generation);
    }
    set(&CONTROLS[1], true);
    let second = collect(running.remove(1), 1).await;
    let first = collect(running.remove(0), 1).await;
    assert_eq!((first.failed, &first.tokens[0][..]), (None, &want[0].tokens[0][1..]));
    assert!(matches!(&second.failed, Some(EngineError::Failed(why)) if why.contains("sim:1 is broken")), "{second:?}");
    eventually(LONG, "a device that is known to fail", async || (works(&engine) == [true, false]).then_some(())).await;

    // The other one serves, and the server is ready.
    assert_eq!(engine.ready(), Ok(()));
    let all = futures::future::join_all((0..6).map(|first| run(&engine, short(first, 55)))).await;
    assert_eq!(all, want);

    // When all fail, requests fail, and so does the check of readiness.
    set(&CONTROLS[0], true);
    eventually(LONG, "no device that works", async || {
        assert!(run(&engine, short(0, 5)).await.failed.is_some());
        (works(&engine) == [false, false]).then_some(())
    })
    .await;
    assert!(matches!(engine.ready(), Err(EngineError::Unavailable { .. })), "{:?}", engine.ready());

    // A request that succeeds ends the failure.
    CONTROLS.iter().for_each(|control| set(control, false));
    assert_eq!(run(&engine, short(3, 55)).await, want[3]);
    eventually(LONG, "a server that is ready", async || engine.ready().ok()).await;
}

/// Memory that runs out in a step ends the requests of that step with the reason, and the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_memory_refuses_and_serves_again() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let open: device::Open = |name| devices::open(name, &CONTROLS);
    let engine = on(vec!["sim".to_owned()], EngineOptions { open, ..EngineOptions::default() }).await;
    let want = run(&engine, short(1, 20)).await;
    CONTROLS[0].full.store(true, SeqCst);
    for _ in 0..2 {
        let got = run(&engine, short(1, 20)).await.failed;
        assert!(
            matches!(&got, Some(EngineError::Failed(why)) if why.contains("the device has 0 bytes free")),
            "{got:?}"
        );
    }
    CONTROLS[0].full.store(false, SeqCst);
    assert_eq!(run(&engine, short(1, 20)).await, want);
    eventually(LONG, "a server that is ready", async || engine.ready().ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_loads_on_all_devices_or_not_at_all() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let engine = pair(|name| devices::open(name, &CONTROLS), EngineOptions::default()).await;
    let ask = || async { futures::future::join_all((0..4).map(|first| run(&engine, short(first, 20)))).await };
    let of_a = ask().await;
    let b = version("b", "llama-tied-tiny");
    CONTROLS[1].bytes.store(4096, SeqCst);
    let error = engine.load(&b).await.unwrap_err().to_string();
    assert!(error.contains("loading 'b': sim:1: ") && error.contains("bytes free"), "{error}");
    assert_eq!(engine.loaded().len(), 1);
    assert!(engine.activate(&b.id).await.is_err());
    assert_eq!(ask().await, of_a);

    CONTROLS[1].bytes.store(1 << 30, SeqCst);
    idle(&engine).await;
    let mut in_flight = Vec::new();
    for first in 0..4 {
        in_flight.push(engine.generate(short(first, 20)).await.unwrap());
    }
    engine.load(&b).await.unwrap();
    engine.activate(&b.id).await.unwrap();
    let old = futures::future::join_all(in_flight.into_iter().map(|generation| collect(generation, 1))).await;
    assert_eq!(old, of_a);
    let only_b = LocalEngine::start(EngineOptions { devices: vec!["sim".into()], ..EngineOptions::default() }).unwrap();
    only_b.load(&b).await.unwrap();
    only_b.activate(&b.id).await.unwrap();
    let mut of_b = Vec::new();
    for first in 0..4 {
        of_b.push(run(&only_b, short(first, 20)).await);
    }
    assert_eq!(ask().await, of_b);
    // Both versions are in the memory of both devices.
    let (both, one) = (engine.devices(), only_b.devices());
    assert!(both.iter().all(|device| device.models.used > one[0].models.used), "{both:?}");
    assert_eq!(both.iter().map(|d| d.pages_total).collect::<Vec<_>>(), [2 * one[0].pages_total; 2]);
    assert_eq!(both[1].models.total, (1 << 30) + both[1].models.used - one[0].models.used);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_go_to_whichever_replica_has_room() {
    let few = EngineOptions { max_running: 1, max_waiting: 9, ..EngineOptions::default() };
    let engine = pair(device::open, few).await;
    let mut generations = Vec::new();
    for first in 0..8 {
        generations.push(engine.generate(short(first, 55)).await.unwrap());
    }
    // A replica computes one at a time, and the rest waits in the queue.
    eventually(LONG, "two that run", async || {
        let (stats, devices) = (engine.stats(), engine.devices());
        assert!(stats.running <= 2 && devices.iter().all(|device| device.running <= 1), "{stats:?}");
        (stats.running == 2).then_some(())
    })
    .await;
    // Those that leave are not computed.
    let kept: Vec<_> = generations.into_iter().enumerate().filter(|(i, _)| i % 4 != 3).collect();
    for (i, generation) in kept {
        let got = collect(generation, 1).await;
        assert_eq!((got.failed, got.tokens[0].len()), (None, 55), "request {i}");
    }
    idle(&engine).await;
    assert!(engine.stats().tokens_generated < 8 * 55);
}

#[test]
fn devices_of_different_kinds_are_refused() {
    let start = |names: &[&str]| {
        let devices = names.iter().map(|name| (*name).to_owned()).collect();
        LocalEngine::start(EngineOptions { devices, ..EngineOptions::default() }).err().map(|e| e.to_string())
    };
    let error = start(&["cpu", "cuda:0"]).unwrap();
    assert!(error.contains("'cpu, cuda:0': the CPU serves alone"), "{error}");
    assert!(start(&["sim", "cuda:0"]).is_some());
    assert_eq!(start(&["cpu"]), None);
}

/// Both replicas' threads end with the engine, also while a request is running.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_dropped_frees_its_devices() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    static OPEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    fn open(name: &str) -> Result<Option<Box<dyn Device>>, String> {
        OPEN.fetch_add(1, SeqCst);
        devices::open(name, &CONTROLS)
    }
    let engine = pair(open, EngineOptions::default()).await;
    let loaded = Arc::downgrade(&engine.active().unwrap());
    let generation = engine.generate(short(1, 55)).await.unwrap();
    drop(engine);
    assert_eq!(collect(generation, 1).await.tokens[0].len(), 55);
    eventually(LONG, "no model in memory", async || (loaded.strong_count() == 0).then_some(())).await;
    assert_eq!(OPEN.load(SeqCst), 2);
}
