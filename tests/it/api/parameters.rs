//! The parameters of completions and chat, one by one, on the built-in engine with a tiny real model: each has
//! the effect that it promises. (Refusals of bad values are in `input.rs`.) Words are t0 … t95; t2 ends a text.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::{copy_dir, fixture};

struct Real {
    server: Server,
    _model: tempfile::TempDir,
}

impl Real {
    async fn start() -> Self {
        let model = copy_dir(&fixture("llama-tied-tiny"));
        let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
        std::fs::write(model.path().join("tokenizer_config.json"), template.to_string()).unwrap();
        let server = Server::without_engine(|c| c.model = model.path().display().to_string()).await;
        server.services.set_engine(instructd::app::model::start(&server.services).await.unwrap());
        Self { server, _model: model }
    }

    /// The answer to one prompt with these parameters on top.
    async fn ask(&self, extra: Value) -> Value {
        let mut body = json!({"prompt": "t5 t6 t7", "max_tokens": 12, "seed": 11});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.server.open_post("/v1/completions", body).await.expect(200).json()
    }

    async fn text(&self, extra: Value) -> String {
        self.ask(extra).await["choices"][0]["text"].as_str().unwrap().to_owned()
    }
}

fn words(answer: &Value) -> Vec<String> {
    answer["choices"][0]["text"].as_str().unwrap().split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reshapes_the_distribution() {
    let real = Real::start().await;
    let greedy = real.text(json!({"temperature": 0, "ignore_eos": true})).await;
    let drawn = real.text(json!({"ignore_eos": true})).await;
    assert_ne!(greedy, drawn);
    assert_eq!(drawn, real.text(json!({"ignore_eos": true})).await, "the same seed");
    assert_ne!(drawn, real.text(json!({"ignore_eos": true, "seed": 12})).await);
    // Three ways to leave only the most likely token.
    for one in [json!({"top_k": 1}), json!({"top_p": 1e-6}), json!({"min_p": 1.0})] {
        let mut extra = one.clone();
        extra["ignore_eos"] = json!(true);
        assert_eq!(real.text(extra).await, greedy, "{one}");
    }
    // Biases of 100 decide alone.
    let forced = real.ask(json!({"logit_bias": {"40": 100}, "ignore_eos": true, "max_tokens": 5})).await;
    assert_eq!(words(&forced), ["t40"; 5]);
    let first = greedy.split_whitespace().next().unwrap()[1..].to_owned();
    let banned = real.ask(json!({"temperature": 0, "logit_bias": {first.clone(): -100}, "ignore_eos": true})).await;
    assert!(!words(&banned).contains(&format!("t{first}")));
    // Penalties: a word forced by a bias of 3 comes again and again, unless repeating costs more.
    let again = json!({"temperature": 0, "logit_bias": {"40": 12, "41": 11}, "ignore_eos": true, "max_tokens": 6});
    let with = async |name: &str, value: f64| {
        let mut body = again.clone();
        body[name] = json!(value);
        words(&real.ask(body).await)
    };
    assert_eq!(with("presence_penalty", 0.0).await, ["t40"; 6]);
    for (name, value) in [("presence_penalty", 2.0), ("frequency_penalty", 2.0)] {
        assert!(with(name, value).await.contains(&"t41".to_owned()), "{name}");
    }
    // What was said or asked already is as good as forbidden.
    let unlike = words(&real.ask(json!({"temperature": 0, "repetition_penalty": 10, "ignore_eos": true})).await);
    let mut seen: Vec<String> = ["t5", "t6", "t7"].map(str::to_owned).into();
    for word in unlike {
        assert!(!seen.contains(&word), "{word} again after {seen:?}");
        seen.push(word);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_text() {
    let real = Real::start().await;
    let end = json!({"2": 100});
    let ended = real.ask(json!({"logit_bias": end})).await;
    assert_eq!((&ended["choices"][0]["finish_reason"], words(&ended).len()), (&json!("stop"), 0));
    let held = real.ask(json!({"logit_bias": end, "min_tokens": 4, "logprobs": 0})).await;
    assert_eq!((&held["choices"][0]["finish_reason"], words(&held).len()), (&json!("stop"), 4));
    assert_eq!(held["usage"]["completion_tokens"], 5, "the end token was drawn too");
    let ignored = real.ask(json!({"logit_bias": end, "ignore_eos": true, "max_tokens": 7})).await;
    assert_eq!(
        (&ignored["choices"][0]["finish_reason"], &ignored["usage"]["completion_tokens"]),
        (&json!("length"), &json!(7))
    );

    let free = real.text(json!({"ignore_eos": true})).await;
    let all: Vec<&str> = free.split_whitespace().collect();
    // Across the border of two tokens, and inside one; the earliest of several wins.
    let across = format!("{} {}", all[3], all[4]);
    let inside = &all[6][1..];
    for stop in [json!(across), json!([inside, "never there"]), json!([all[8], across])] {
        let list: Vec<&str> = match &stop {
            Value::String(one) => vec![one],
            many => many.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect(),
        };
        let at = list.iter().filter_map(|s| free.find(s)).min().unwrap();
        let body = json!({"ignore_eos": true, "stop": stop});
        let whole = real.ask(body.clone()).await;
        assert_eq!(
            (&whole["choices"][0]["text"], &whole["choices"][0]["finish_reason"]),
            (&json!(free[..at]), &json!("stop"))
        );
        // Streamed, no piece of a stop string is ever sent and taken back.
        let mut streamed = json!({"prompt": "t5 t6 t7", "max_tokens": 12, "seed": 11, "stream": true});
        streamed.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let events = real.server.open_post("/v1/completions", streamed).await.expect(200).events();
        let chunks = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
        let text: String = chunks.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect();
        assert_eq!(text, free[..at]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_logprobs_and_echo() {
    let real = Real::start().await;
    let several = real.ask(json!({"n": 3, "ignore_eos": true, "logprobs": 3})).await;
    let choices = several["choices"].as_array().unwrap();
    assert_eq!((choices.len(), &several["usage"]["completion_tokens"]), (3, &json!(36)));
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // A sample alone is the first of several.
    assert_eq!(choices[0]["text"], real.text(json!({"ignore_eos": true})).await);
    for choice in choices {
        let logprobs = &choice["logprobs"];
        let tokens = logprobs["tokens"].as_array().unwrap();
        let tops = logprobs["top_logprobs"].as_array().unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let own = logprobs["token_logprobs"][i].as_f64().unwrap();
            let top = tops[i].as_object().unwrap();
            assert!(own <= 0.0 && (3..=4).contains(&top.len()));
            assert_eq!(top[token.as_str().unwrap()].as_f64().unwrap(), own);
            let mass: f64 = top.values().map(|p| p.as_f64().unwrap().exp()).sum();
            assert!(mass <= 1.0 + 1e-6);
        }
    }
    // The log-probs of what was drawn are those of the same text as a prompt.
    let text = format!("t5 t6 t7 {}", choices[0]["text"].as_str().unwrap().trim());
    let scored = real.ask(json!({"prompt": text, "echo": true, "max_tokens": 0, "logprobs": 0})).await;
    let again = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let drawn = choices[0]["logprobs"]["token_logprobs"].as_array().unwrap();
    for (a, b) in again[3..].iter().zip(drawn) {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4, "{a} {b}");
    }
    let best = real.ask(json!({"n": 1, "best_of": 3, "ignore_eos": true, "logprobs": 0})).await;
    let mean = |c: &Value| {
        c["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum::<f64>()
    };
    let highest = choices.iter().map(mean).fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(mean(&best["choices"][0]), highest);
    assert_eq!(best["usage"]["completion_tokens"], 36, "all that were drawn are counted");
    let echoed = real.text(json!({"echo": true, "ignore_eos": true})).await;
    assert!(echoed.starts_with("t5 t6 t7"));
    // `user` changes nothing.
    assert_eq!(real.text(json!({"user": "u-1"})).await, real.text(json!({})).await);
}

/// Time in the queue has a sample for every request that was run, and the cache is empty when nothing runs.
#[tokio::test(flavor = "multi_thread")]
async fn queue_time_is_reported() {
    let real = Real::start().await;
    let count = async || {
        let metrics = real.server.get("/metrics").await.text;
        let line = metrics.lines().find(|l| l.starts_with("instructd_queue_seconds_count"));
        line.map_or(0.0, |l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    let before = count().await;
    for _ in 0..3 {
        real.ask(json!({"prompt": vec![json!(3); 40], "n": 2})).await;
    }
    assert!(count().await >= before + 3.0);
    for _ in 0..500 {
        if real.server.services.engine().unwrap().stats().kv_tokens_used == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let stats = real.server.services.engine().unwrap().stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_tokens_used), (0, 0, 0));
    assert!(stats.kv_tokens_remembered > 0, "the prompt's pages stay for the next one");
}
