//! Names in requests: a model by any of its names on every route, misspelt names refused with the ones that are near,
//! names in lists and filters that nothing has.

use instructd::domain::ModelKind;
use serde_json::{Value, json};

use super::client::{Answer, Server, admin, version};
use crate::support::{copy_dir, copy_into, fixture};

struct Real {
    server: Server,
    _model: tempfile::TempDir,
}

/// The real engine with a tiny model, another tiny model pulled, and a reward model on record.
async fn real() -> Real {
    let model = copy_dir(&fixture("llama-tied-tiny"));
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(model.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let server = Server::without_engine(|c| c.model = model.path().display().to_string()).await;
    let models = server.services.config.data_dir.join("models");
    copy_into(model.path(), &models.join("pulled-one"));
    server.services.set_engine(instructd::app::model::start(&server.services).await.unwrap());
    Real { server, _model: model }
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_model_is_refused_alike_on_every_route() {
    let Real { server, _model } = real().await;
    let store = &server.services.store;
    store.models().put(version("published-one", ModelKind::Policy, None)).await.unwrap();
    for kind in [ModelKind::Reward, ModelKind::Encoder, ModelKind::PromptAdapter] {
        store.models().put(version(&format!("published-{kind}"), kind, None)).await.unwrap();
    }
    let chat = json!([{"role": "user", "content": "t1"}]);
    let near = "did you mean 'published-one'";
    let routes = [
        ("POST", "/v1/chat/completions", json!({"messages": chat, "model": "publshed-one"}), 404, "model", near),
        ("POST", "/v1/completions", json!({"prompt": "t1", "model": "publshed-one"}), 404, "model", near),
        (
            "POST",
            "/v1/completions",
            json!({"prompt": "t1", "prompt_adapter": "publshed-prompt_adapter"}),
            404,
            "prompt_adapter",
            "did you mean 'published-prompt_adapter'?",
        ),
        (
            "POST",
            "/v1/choices",
            json!({"prompt": "t1", "choices": ["a", "b"], "model": "publshed-one"}),
            404,
            "model",
            near,
        ),
        ("POST", "/tokenize", json!({"prompt": "t1", "model": "publshed-one"}), 404, "model", near),
        (
            "POST",
            "/v1/embeddings",
            json!({"input": "t1", "model": "publshed-encoder"}),
            404,
            "model",
            "did you mean 'published-encoder'?",
        ),
        (
            "POST",
            "/v1/rewards",
            json!({"prompt": chat, "completions": ["a"], "model": "publshed-reward"}),
            404,
            "model",
            "did you mean 'published-reward'?",
        ),
        ("POST", "/v1/attention", json!({"text": "t1 t2", "model": "publshed-one"}), 404, "model", near),
        (
            "POST",
            "/v1/label/ask",
            json!({"messages": chat, "models": ["active", "publshed-one"]}),
            404,
            "models[1]",
            near,
        ),
        (
            "POST",
            "/admin/sets/draw",
            json!({"policy": "versus", "count": 1, "n": 2, "versions": ["active", "publshed-one"]}),
            404,
            "versions[1]",
            near,
        ),
        ("POST", "/admin/jobs", json!({"kind": "sft", "args": {"model": "publshed-one"}}), 400, "args.model", near),
        (
            "POST",
            "/admin/jobs/estimate",
            json!({"kind": "sft", "args": {"model": "publshed-one"}}),
            400,
            "args.model",
            near,
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "ppo", "args": {"reward_model": "publshed-reward"}}),
            400,
            "args.reward_model",
            "did you mean 'published-reward'?",
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "ppo", "args": {"reward_model": "published-reward", "gold_reward_model": "publshed-reward"}}),
            400,
            "args.gold_reward_model",
            "did you mean 'published-reward'?",
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "rloo", "args": {"reward": {"kind": "judge"}, "judge_model": "publshed-one"}}),
            400,
            "args.judge_model",
            near,
        ),
        ("POST", "/admin/canary", json!({"model": "publshed-one", "share": 0.1}), 404, "model", near),
        ("POST", "/admin/models/publshed-one/promote", json!({}), 404, "", near),
        ("GET", "/admin/models/publshed-one", Value::Null, 404, "", near),
        ("GET", "/admin/models/publshed-one/evidence", Value::Null, 404, "", near),
        ("DELETE", "/admin/models/publshed-one", Value::Null, 404, "", near),
        ("GET", "/v1/models/publshed-one", Value::Null, 404, "model", near),
    ];
    let table = instructd::http::routes::table(&server.services.config.limits);
    for (method, path, body, status, param, near) in routes {
        let route = |r: &&instructd::http::routes::Route| {
            let same = r.path.replace("{id}", "publshed-one") == path;
            same && r.method.as_str() == method
        };
        if table.iter().find(route).is_none() {
            panic!("{method} {path} is no route");
        }
        let body = (!body.is_null() && body != json!({})).then_some(body);
        let answer = server.call(method, path, &[admin()], body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        let said = message(&answer);
        assert!(said.contains("there is no model 'publshed-"), "{method} {path}: {said}");
        assert!(said.contains(near), "{method} {path}: {said}");
        if !param.is_empty() {
            assert_eq!(answer.param().as_deref(), Some(param), "{method} {path}: {}", answer.text);
        }
        if status == 404 {
            assert_eq!(answer.json()["error"]["code"], "model_not_found", "{method} {path}");
        }
    }
    let unknown_judge = json!({"kind": "rloo", "args": {"reward": {"kind": "judge", "host": "large"}}});
    let answer = server.call("POST", "/admin/jobs", &[admin()], Some(unknown_judge)).await;
    assert_eq!((answer.status.as_u16(), answer.param().as_deref()), (400, Some("args.reward")), "{}", answer.text);
    assert!(message(&answer).contains("the configuration has no judges"), "{}", answer.text);
    let rubric = json!({"definition": {"name": "r", "dimensions": [
        {"key": "helpful", "label": {"en": "Helpful"}, "kind": "flag"},
        {"key": "topic", "label": {"en": "Topic"}, "kind": "tags"}]}});
    let version = server.post("/admin/rubrics", rubric).await.expect(201).json()["version"].clone();
    for (args, param, near) in [
        (json!({"dimensions": {"helpfull": 1}}), "args.dimensions", "helpful"),
        (json!({"dimensions": {"topic": 1}}), "args.dimensions", "helpful"),
        (json!({"dimensions": {"helpful": 1}, "rubric": "nope"}), "args.rubric", version.as_str().unwrap()),
        (json!({"dimensions": {"helpful": 1}, "heads": 3}), "args.heads", "dimensions"),
    ] {
        let body = json!({"kind": "reward", "args": args});
        let answer = server.call("POST", "/admin/jobs", &[admin()], Some(body)).await;
        assert_eq!((answer.status.as_u16(), answer.param().as_deref()), (400, Some(param)), "{}", answer.text);
        assert!(message(&answer).contains(near), "{}", answer.text);
    }
    // Who may only infer hears of language models, and of no other kind.
    let open = server.open_post("/v1/completions", json!({"prompt": "t1", "model": "publshed-one"})).await.expect(404);
    assert!(message(&open).contains("published-one") && !message(&open).contains("published-reward"), "{}", open.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_model_and_pulled_ones_can_be_named_in_requests() {
    let Real { server, _model } = real().await;
    for name in ["builtin", "pulled-one", "SomeOwner/Pulled-One"] {
        let body = json!({"prompt": "t1", "max_tokens": 1, "model": name});
        // Anybody else is not made to wait for a model to load.
        if name == "builtin" {
            server.open_post("/v1/completions", body.clone()).await.expect(404);
        }
        let answer = server.post("/v1/completions", body).await.expect(200).json();
        assert_eq!(answer["model"], name.rsplit('/').next().unwrap().to_lowercase(), "{answer}");
    }
    let models = server.get("/admin/models").await.expect(200).json();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names.iter().filter(|n| **n == "pulled-one").count(), 1, "one version for both names: {names:?}");
    // Jobs and promotions take them too; paths of this machine are no names.
    let estimate = json!({"kind": "sft", "args": {"model": "builtin"}});
    assert!(server.post("/admin/jobs/estimate", estimate).await.expect(200).json()["memory_bytes"].as_u64() > Some(0));
    server.post("/admin/models/pulled-one/promote", json!({})).await.expect(200);
    let path = server.services.config.data_dir.join("models/pulled-one").display().to_string();
    for path in [path.as_str(), "../models/pulled-one", "models/../pulled-one"] {
        let job = json!({"kind": "sft", "args": {"model": path}});
        let refused = server.post("/admin/jobs", job).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("args.model"), "{}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_not_the_published_ones_are_never_loaded() {
    let Real { server, _model } = real().await;
    let models = server.services.config.data_dir.join("models");
    server.post("/v1/completions", json!({"prompt": "t1", "max_tokens": 1, "model": "pulled-one"})).await.expect(200);
    let good = server.services.store.models().find("pulled-one").await.unwrap().unwrap();
    for (name, kind) in
        [("damaged", ModelKind::Policy), ("damaged-reward", ModelKind::Reward), ("damaged-encoder", ModelKind::Encoder)]
    {
        copy_into(&models.join("pulled-one"), &models.join(name));
        let mut bad = version(name, kind, None);
        bad.sha256.clone_from(&good.sha256);
        server.services.store.models().put(bad).await.unwrap();
        let file = models.join(name).join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let refused = server.post("/admin/models/damaged/promote", json!({})).await.expect(409);
    assert!(
        message(&refused).contains("not the published ones") && message(&refused).contains("damaged"),
        "{}",
        refused.text
    );
    let served = server.get("/ready").await.expect(200).json();
    assert_ne!(served["model"], "damaged", "what was served goes on");
    let chat = json!([{"role": "user", "content": "t1"}]);
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "t1", "model": "damaged"})),
        ("/v1/rewards", json!({"prompt": chat, "completions": ["a"], "model": "damaged-reward"})),
        ("/v1/embeddings", json!({"input": [[1, 2]], "model": "damaged-encoder"})),
    ] {
        let answer = server.post(path, body).await;
        assert!(answer.status.as_u16() >= 400, "{path}: {}", answer.text);
    }
    // Mended files load: what was found once does not hold for other bytes.
    copy_into(&models.join("pulled-one"), &models.join("damaged"));
    server.post("/admin/models/damaged/promote", json!({})).await.expect(200);
}

#[tokio::test]
async fn names_in_lists_and_filters_that_nothing_has_are_refused() {
    let server = Server::start().await;
    let prompt = json!({"messages": [{"role": "user", "content": "q"}], "tags": ["mathematics"], "lang": "en"});
    server.post("/v1/prompts", prompt).await.expect(201);
    let refusals = [
        ("POST", "/admin/datasets", json!({"filter": {"tag": "mathematic"}}), "filter.tag", "'mathematics'"),
        ("POST", "/admin/datasets", json!({"filter": {"labeler_id": "nobody"}}), "filter.labeler_id", "there "),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "reward", "args": {"filter": {"tag": "mathematic"}}}),
            "args.filter.tag",
            "'mathematics'",
        ),
        (
            "POST",
            "/admin/jobs/estimate",
            json!({"kind": "reward", "args": {"filter": {"tag": "mathematic"}}}),
            "args.filter.tag",
            "'mathematics'",
        ),
        (
            "POST",
            "/admin/sets/draw",
            json!({"policy": "random", "count": 1, "prompts": {"tag": "mathematic"}}),
            "prompts.tag",
            "'mathematics'",
        ),
        (
            "POST",
            "/admin/sets/draw",
            json!({"policy": "random", "count": 1, "prompts": {"lang": "english"}}),
            "prompts.lang",
            "there is en",
        ),
        (
            "POST",
            "/admin/sets/draw",
            json!({"policy": "random", "count": 1, "prompts": {"source": "apis"}}),
            "prompts.source",
            "'api'",
        ),
        ("GET", "/admin/jobs?kind=rewrad", Value::Null, "kind", "'reward'"),
        ("POST", "/admin/jobs", json!({"kind": "rewrad", "args": {}}), "kind", "'reward'"),
        ("POST", "/admin/jobs", json!({"kind": "reward", "args": {"epoch": 1}}), "args.epoch", "`epochs`"),
        ("GET", "/admin/sets?policy=uncertain", Value::Null, "policy", "'uncertainty'"),
        ("GET", "/admin/jobs?sate=queued", Value::Null, "sate", "did you mean `state`?"),
        ("GET", "/admin/jobs?state=runing", Value::Null, "state", "did you mean `running`?"),
        (
            "POST",
            "/v1/chat/completions",
            json!({"messages": [], "temprature": 1}),
            "temprature",
            "did you mean `temperature`?",
        ),
        ("POST", "/v1/comparisons", json!({"outcome": "rankd"}), "outcome", "did you mean `ranked`?"),
        ("POST", "/v1/comparisons", json!({"complections": []}), "complections", "did you mean `completions`?"),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "reward", "args": {"publishas": "x"}}),
            "args.publishas",
            "did you mean `publish_as`?",
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "reward", "args": {"filters": {}}}),
            "args.filters",
            "did you mean `filter`?",
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "reward", "args": {"filter": {"tags": "x"}}}),
            "args.filter",
            "did you mean `tag`?",
        ),
        (
            "POST",
            "/admin/jobs",
            json!({"kind": "sft", "args": {"model": "qwen3-0.6b"}}),
            "args.model",
            "`instructd models pull qwen3-0.6b` downloads it",
        ),
    ];
    for (method, path, body, param, near) in refusals {
        let body = (!body.is_null()).then_some(body);
        let answer = server.call(method, path, &[admin()], body).await;
        assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text);
        assert_eq!(answer.param().as_deref(), Some(param), "{method} {path}: {}", answer.text);
        assert!(message(&answer).contains(near), "{method} {path}: {}", answer.text);
    }
    // What a job may be given is listed whole, without what it sets itself.
    for (kind, some) in [("reward", "`filter`"), ("sft", "`epochs`"), ("ppo", "`gold_judgments`")] {
        let args = match kind {
            "ppo" => json!({"qqqq": 1, "reward": {"kind": "length", "target": 9}}),
            _ => json!({"qqqq": 1}),
        };
        let answer = server.post("/admin/jobs", json!({"kind": kind, "args": args})).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some("args.qqqq"), "{}", answer.text);
        let said = message(&answer);
        assert!(said.contains("`publish_as`") && said.contains(some), "{said}");
        assert!(!said.contains("output_dir") && !said.contains("`demonstrations`"), "{said}");
    }
    // Curves of a job, by name.
    server.demonstrate().await;
    let job = server.post("/admin/jobs", json!({"kind": "sft", "args": {}})).await.expect(201).json();
    let id = job["id"].as_str().unwrap();
    server.get(&format!("/admin/jobs/{id}/metrics?names=los")).await.expect(200);
}

#[test]
fn hosts_and_log_filters_of_the_configuration_are_checked() {
    use instructd::config::Config;
    let config = Config::default();
    for (name, value) in [
        ("jobs.reward_hosts", json!(["https://example.org"])),
        ("jobs.reward_hosts", json!(["example.org", "example.org/score"])),
        ("server.hosts", json!(["http://here"])),
        ("log.filter", json!("instructd=loud")),
    ] {
        let error = config.with(name, value).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    config.with("jobs.reward_hosts", json!(["example.org:8080", "10.0.0.1", "[::1]:80"])).unwrap();
}
