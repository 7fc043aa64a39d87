//! Promotions behind `[upstream]`: every server follows, or none; a canary has servers of its own.

use std::path::Path;
use std::sync::Arc;

use instructd::artifacts::weights_sha256;
use instructd::config::Config;
use instructd::domain::{ModelKind, ModelVersion};
use instructd::model::adapters::peft;
use serde_json::json;

use super::client::{Answer, Server, admin, version};
use super::fake_replica::{Fault, MODEL, Replica, Stands, WEIGHTS};
use super::upstream::chat;
use crate::support::eventually::{LONG, eventually};
use crate::support::fixture;

const PATH: &str = "/v1/chat/completions";

async fn fleet(stands: Stands, count: usize) -> Vec<Arc<Replica>> {
    futures::future::join_all((0..count).map(|_| Replica::start(stands))).await
}

/// A server whose text comes from the replicas, and which loads versions there with `push`.
async fn behind(replicas: &[Arc<Replica>], push: &str, change: impl FnOnce(&mut Config)) -> Server {
    let server = Server::without_engine(|c| {
        c.upstream.url = Some(replicas[0].url.clone());
        c.upstream.replicas = replicas[1..].iter().map(|replica| replica.url.clone()).collect();
        c.upstream.kind = "vllm".into();
        c.upstream.retries = 0;
        c.upstream.health_seconds = 0;
        c.upstream.push = Some(push.into());
        c.upstream.push_timeout_seconds = 1;
        change(c);
    })
    .await;
    server.services.set_engine(instructd::app::upstream::start(&server.services).await.unwrap());
    server
}

/// A candidate with files, among them a LoRA adapter.
async fn candidate(server: &Server, name: &str) -> ModelVersion {
    let dir = server.services.config.data_dir.join("models").join(name);
    std::fs::create_dir_all(dir.join(peft::FOLDER)).unwrap();
    for entry in std::fs::read_dir(fixture("llama-tied-tiny")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(dir.join(peft::FOLDER).join("adapter_config.json"), "{}").unwrap();
    let sha256 = weights_sha256(&dir).unwrap();
    let candidate = ModelVersion { sha256, ..version(name, ModelKind::Policy, None) };
    server.services.store.models().put(candidate.clone()).await.unwrap();
    candidate
}

fn files(server: &Server, name: &str) -> String {
    server.services.config.data_dir.join("models").join(name).display().to_string()
}

async fn promote(server: &Server, name: &str) -> Answer {
    server.post(&format!("/admin/models/{name}/promote"), json!({})).await
}

/// The text of a completion, which says which version wrote it, and the version on record.
async fn ask(server: &Server) -> (String, String) {
    let answer = server.open_post(PATH, chat(json!({}))).await.expect(200).json();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    (text, answer["model"].as_str().unwrap().to_owned())
}

async fn active(server: &Server) -> String {
    server.services.store.models().active(ModelKind::Policy).await.unwrap().unwrap().name
}

#[tokio::test]
async fn vllm_serves_a_promoted_adapter_on_every_replica() {
    let replicas = fleet(Stands::Vllm, 3).await;
    let server = behind(&replicas, "vllm", |c| c.upstream.push_path = "/shared/{id}/{name}".into()).await;
    assert_eq!(ask(&server).await, (MODEL.to_owned(), "org-big-model".to_owned()));
    let tuned = candidate(&server, "tuned").await;
    promote(&server, "tuned").await.expect(200);
    let name = format!("tuned-{}", tuned.id);
    for replica in &replicas {
        assert_eq!(replica.serves(), std::slice::from_ref(&name));
    }
    for _ in 0..3 {
        assert_eq!(ask(&server).await, (name.clone(), "tuned".to_owned()));
    }
    assert!(replicas.iter().all(|replica| replica.completions() > 0));
    assert_eq!(active(&server).await, "tuned");
    // The servers' own model is beside it, and returns without a change there.
    promote(&server, "org-big-model").await.expect(200);
    assert_eq!(ask(&server).await, (MODEL.to_owned(), "org-big-model".to_owned()));
    assert_eq!(replicas[0].tried().len(), 1);
}

#[tokio::test]
async fn a_failing_replica_leaves_no_adapter_anywhere() {
    for fault in [Fault::Refuses, Fault::Pretends, Fault::Hangs, Fault::CannotGenerate, Fault::OtherWeights] {
        for at in 0..3 {
            // The first one has nothing to be compared with.
            if fault == Fault::OtherWeights && at == 0 {
                continue;
            }
            let replicas = fleet(Stands::Vllm, 3).await;
            let server = behind(&replicas, "vllm", |_| {}).await;
            candidate(&server, "tuned").await;
            replicas[at].fail(Some((fault, "tuned")));
            let refused = promote(&server, "tuned").await.expect(409).json();
            let message = refused["error"]["message"].as_str().unwrap();
            assert!(message.contains(&replicas[at].host()), "{fault:?} at {at}: {message}");
            let why = match fault {
                Fault::Refuses | Fault::SaysNo => "the files are damaged",
                Fault::Pretends => "does not serve it",
                Fault::Hangs => "within 1 s",
                Fault::CannotGenerate => "CUDA error",
                Fault::OtherWeights => "log-prob",
            };
            assert!(message.contains(why), "{fault:?}: {message}");
            for replica in &replicas {
                assert_eq!(replica.serves(), Vec::<String>::new(), "{fault:?} at {at}");
            }
            assert_eq!(active(&server).await, "org-big-model");
            assert_eq!(ask(&server).await, (MODEL.to_owned(), "org-big-model".to_owned()));
            // The same version follows when the fault is gone.
            replicas[at].fail(None);
            promote(&server, "tuned").await.expect(200);
            assert!(replicas.iter().all(|replica| replica.serves().len() == 1));
        }
    }
}

#[tokio::test]
async fn sglang_replaces_the_weights_of_all_replicas_or_of_none() {
    for count in [1, 3] {
        let replicas = fleet(Stands::Sglang, count).await;
        let server = behind(&replicas, "sglang", |_| {}).await;
        candidate(&server, "tuned").await;
        candidate(&server, "next").await;
        promote(&server, "tuned").await.expect(200);
        let tuned = files(&server, "tuned");
        assert_eq!(ask(&server).await, (tuned.clone(), "tuned".to_owned()));
        assert!(replicas.iter().all(|replica| replica.serves() == [tuned.clone()]));
        let faults =
            [Fault::Refuses, Fault::SaysNo, Fault::Pretends, Fault::Hangs, Fault::CannotGenerate, Fault::OtherWeights];
        for (fault, at) in faults.into_iter().flat_map(|fault| (0..count).map(move |at| (fault, at))) {
            // The first one that follows has nothing to be compared with: that is the last of several.
            if fault == Fault::OtherWeights && at + 1 == count {
                continue;
            }
            replicas[at].fail(Some((fault, "next")));
            let refused = promote(&server, "next").await.expect(409).json();
            let message = refused["error"]["message"].as_str().unwrap();
            assert!(message.contains(&replicas[at].host()), "{fault:?} at {at}: {message}");
            for replica in &replicas {
                assert_eq!(replica.serves(), std::slice::from_ref(&tuned), "{fault:?} at {at}");
            }
            assert_eq!(active(&server).await, "tuned");
            for _ in 0..count {
                assert_eq!(ask(&server).await, (tuned.clone(), "tuned".to_owned()), "{fault:?} at {at}");
            }
            replicas[at].fail(None);
        }
        promote(&server, "next").await.expect(200);
        assert!(replicas.iter().all(|replica| replica.serves() == [files(&server, "next")]));
        // Back to what the servers were started with.
        promote(&server, "org-big-model").await.expect(200);
        assert_eq!(ask(&server).await, (WEIGHTS.to_owned(), "org-big-model".to_owned()));
    }
}

#[tokio::test]
async fn llama_cpp_applies_an_adapter_that_it_was_started_with() {
    let known = ["/adapters/tuned.gguf".to_owned(), "/adapters/other.gguf".to_owned()];
    let replicas: Vec<_> =
        fleet(Stands::LlamaCpp, 2).await.into_iter().map(|replica| replica.with_adapters(&known)).collect();
    let server = behind(&replicas, "llama.cpp", |c| {
        c.upstream.kind = "llama.cpp".into();
        c.upstream.push_path = "/adapters/{name}.gguf".into();
    })
    .await;
    candidate(&server, "tuned").await;
    candidate(&server, "unknown").await;
    promote(&server, "tuned").await.expect(200);
    assert_eq!(ask(&server).await, (known[0].clone(), "tuned".to_owned()));
    assert!(replicas.iter().all(|replica| replica.serves() == [known[0].clone()]));
    let refused = promote(&server, "unknown").await.expect(409).text;
    assert!(refused.contains("--lora /adapters/unknown.gguf"), "{refused}");
    assert!(replicas.iter().all(|replica| replica.serves() == [known[0].clone()]));
    promote(&server, "org-big-model").await.expect(200);
    assert_eq!(ask(&server).await, (MODEL.to_owned(), "org-big-model".to_owned()));
}

#[cfg(unix)]
#[tokio::test]
async fn a_command_loads_versions() {
    let replicas = fleet(Stands::Sglang, 2).await;
    let calls = tempfile::tempdir().unwrap();
    let log = calls.path().join("log").display().to_string();
    // Fails for versions named `bad`; otherwise it notes what it was called with.
    let script =
        format!("[ $1 = bad ] && {{ echo out of memory >&2; exit 3; }}; echo \"$1 $2 $3\" >> {log}; env >> {log}");
    let command: Vec<String> =
        ["sh", "-c", &script, "load", "{name}", "{url}", "{path}"].map(str::to_owned).into_iter().collect();
    let server = behind(&replicas, "command", |c| c.upstream.push_command = command).await;
    candidate(&server, "tuned").await;
    candidate(&server, "bad").await;
    promote(&server, "tuned").await.expect(200);
    let refused = promote(&server, "bad").await.expect(409).text;
    assert!(refused.contains("out of memory") && refused.contains("exit status: 3"), "{refused}");
    assert_eq!(active(&server).await, "tuned");
    let noted = std::fs::read_to_string(Path::new(&log)).unwrap();
    // What is passed on, and what a shell sets itself.
    let expected = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "PWD", "OLDPWD", "SHLVL", "_"];
    let variables: Vec<&str> = noted.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(variables.contains(&"PATH") && variables.iter().all(|name| expected.contains(name)), "{variables:?}");
    for replica in &replicas {
        let line = format!("tuned {} {}", replica.url, files(&server, "tuned"));
        assert!(noted.lines().any(|noted| noted == line), "{line} is not in {noted}");
    }
}

#[tokio::test]
async fn a_canary_has_a_replica_of_its_own() {
    let replicas = fleet(Stands::Sglang, 3).await;
    let server = behind(&replicas, "sglang", |_| {}).await;
    let tuned = candidate(&server, "tuned").await;
    server.post("/admin/canary", json!({"model": "tuned", "share": 0.5})).await.expect(200);
    let holders = || replicas.iter().filter(|replica| replica.serves() == [files(&server, "tuned")]).count();
    assert_eq!(holders(), 1);
    let mut seen = std::collections::BTreeMap::<(String, String), usize>::new();
    for _ in 0..40 {
        *seen.entry(ask(&server).await).or_default() += 1;
    }
    let own = seen.get(&(files(&server, "tuned"), "tuned".to_owned())).copied().unwrap_or(0);
    let rest = seen.get(&(WEIGHTS.to_owned(), "org-big-model".to_owned())).copied().unwrap_or(0);
    // Every text is on record with the version that wrote it. Binomial(40, ½): 5 or fewer have probability 1e-6.
    assert_eq!(own + rest, 40, "{seen:?}");
    assert!(own > 5 && rest > 5, "{seen:?}");
    let on_it: usize =
        replicas.iter().filter(|r| r.serves() == [files(&server, "tuned")]).map(|r| r.completions()).sum();
    assert_eq!(on_it, own);

    assert!(server.call("DELETE", "/admin/canary", &[admin()], None).await.status.is_success());
    eventually(LONG, "the replica's return", async || (holders() == 0).then_some(())).await;
    assert_eq!(active(&server).await, "org-big-model");

    // With a share again, and promoted: the others follow.
    server.post("/admin/canary", json!({"model": tuned.id, "share": 0.1})).await.expect(200);
    promote(&server, "tuned").await.expect(200);
    assert_eq!(holders(), 3);
    assert_eq!(ask(&server).await.1, "tuned");
}

#[tokio::test]
async fn a_canary_needs_a_second_replica_where_weights_are_replaced() {
    let replicas = fleet(Stands::Sglang, 1).await;
    let server = behind(&replicas, "sglang", |_| {}).await;
    candidate(&server, "tuned").await;
    let refused = server.post("/admin/canary", json!({"model": "tuned", "share": 0.5})).await.expect(409);
    assert!(refused.text.contains("upstream.replicas"), "{}", refused.text);
    assert_eq!(replicas[0].serves(), [WEIGHTS]);
    assert_eq!(ask(&server).await, (WEIGHTS.to_owned(), "org-big-model".to_owned()));
}

#[tokio::test]
async fn a_replica_that_was_started_again_gets_the_active_version() {
    for (stands, push) in [(Stands::Vllm, "vllm"), (Stands::Sglang, "sglang")] {
        let replicas = fleet(stands, 2).await;
        let server = behind(&replicas, push, |c| c.upstream.health_seconds = 1).await;
        candidate(&server, "tuned").await;
        promote(&server, "tuned").await.expect(200);
        let served = replicas[0].serves();
        replicas[1].restart();
        eventually(LONG, "the version", async || (replicas[1].serves() == served).then_some(())).await;
        eventually(LONG, "requests there", async || {
            let before = replicas[1].completions();
            assert_eq!(ask(&server).await.1, "tuned");
            (replicas[1].completions() > before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_active_version_survives_a_restart_of_this_server() {
    for (stands, push) in [(Stands::Vllm, "vllm"), (Stands::Sglang, "sglang")] {
        let replicas = fleet(stands, 2).await;
        let server = behind(&replicas, push, |_| {}).await;
        candidate(&server, "tuned").await;
        promote(&server, "tuned").await.expect(200);
        let (served, tried) = (replicas[0].serves(), replicas[0].tried());
        server.services.set_engine(instructd::app::upstream::start(&server.services).await.unwrap());
        assert_eq!(ask(&server).await, (served[0].clone(), "tuned".to_owned()));
        assert_eq!(active(&server).await, "tuned");
        assert_eq!(replicas[0].tried(), tried, "it was not loaded again");
        // What the servers were started with is still known.
        promote(&server, "org-big-model").await.expect(200);
        assert_eq!(ask(&server).await.1, "org-big-model");
    }
}

#[tokio::test]
async fn an_unknown_way_of_loading_is_refused_at_the_start() {
    for (push, command) in [("ftp", vec![]), ("command", vec![])] {
        let replicas = fleet(Stands::Sglang, 1).await;
        let server = Server::without_engine(|c| {
            c.upstream.url = Some(replicas[0].url.clone());
            c.upstream.push = Some(push.into());
            c.upstream.push_command = command;
        })
        .await;
        let error = instructd::app::upstream::start(&server.services).await.err().unwrap().to_string();
        assert!(error.contains("upstream.push") && error.contains("sglang"), "{error}");
    }
}
