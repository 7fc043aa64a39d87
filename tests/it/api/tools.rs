//! Calls of tools and reasoning, on models of random weights with templates in the manner of each family.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::{byte_level, random_model, sentencepiece};

pub struct Family {
    pub name: &'static str,
    pub template: &'static str,
    pub special: &'static [&'static str],
    pub plain: &'static [&'static str],
    bytes: bool,
}

const CHATML: &[&str] = &["<|im_end|>", "<|im_start|>"];
const MARKS: &[&str] = &["<|end|>", "<|start|>", "<|python_tag|>"];

/// Shortened templates of the families; what they write around calls is what the models were trained on.
pub fn families() -> Vec<Family> {
    let hermes = "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n\
                  {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}\
                  {% for c in m.tool_calls %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": \
                  {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let mistral = "{% for m in messages %}{% if m.role == 'user' %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}\
                   [/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS][\
                   {% for c in m.tool_calls %}{\"name\": \"{{ c.function.name }}\", \"arguments\": \
                   {{ c.function.arguments | tojson }}, \"id\": \"{{ c.id }}\"}{% endfor %}]{% elif m.role == 'tool' %}\
                   {% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}\
                   [TOOL_RESULTS]{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let named = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% for c in m.tool_calls %}[TOOL_CALLS]\
                 {{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools | tojson }}";
    let llama = "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.tool_calls %}{\"name\": \"{{ m.tool_calls[0].function.name }}\", \
                 \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|end|>\
                 {% endfor %}{% if tools %}{{ tools | tojson }}<|python_tag|>{% endif %}";
    let phi = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% if message['tools'] %}\
               <|tool|>{{ message['tools'] }}<|/tool|>{% endif %}<|end|>{% endfor %}<|assistant|>";
    let gemma = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}<|start|>model\n";
    vec![
        Family {
            name: "qwen",
            template: hermes,
            special: CHATML,
            plain: &["<tool_call>", "</tool_call>"],
            bytes: true,
        },
        Family {
            name: "hermes",
            template: hermes,
            special: &["<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>"],
            plain: &[],
            bytes: true,
        },
        Family {
            name: "mistral",
            template: mistral,
            special: &["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"],
            plain: &[],
            bytes: false,
        },
        Family {
            name: "mistral named",
            template: named,
            special: &["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]"],
            plain: &[],
            bytes: true,
        },
        Family { name: "llama 3", template: llama, special: MARKS, plain: &[], bytes: true },
        Family {
            name: "phi 4 mini",
            template: phi,
            special: &["<|end|>", "<|user|>", "<|system|>", "<|assistant|>"],
            plain: &["<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"],
            bytes: true,
        },
        Family { name: "gemma", template: gemma, special: MARKS, plain: &[], bytes: false },
    ]
}

pub struct Real {
    pub server: Server,
    _model: tempfile::TempDir,
}

impl Real {
    pub async fn start(family: &Family) -> Self {
        let make = if family.bytes { byte_level } else { sentencepiece };
        Self::of(make(family.special, family.plain), family.template).await
    }

    pub async fn of(tokenizer: Value, template: &str) -> Self {
        let model = random_model(&tokenizer, &json!({"chat_template": template}), 0);
        let server = Server::without_engine(|c| c.model = model.path().display().to_string()).await;
        server.services.set_engine(instructd::app::model::start(&server.services).await.unwrap());
        Self { server, _model: model }
    }

    pub async fn chat(&self, extra: Value) -> Value {
        self.server.open_post("/v1/chat/completions", ask(extra)).await.expect(200).json()
    }
}

fn ask(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 300, "seed": 1});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

pub fn tools() -> Value {
    let place = json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city", "days"], "additionalProperties": false, "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 14}}});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": place}},
        {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties":
            {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": false}}},
    ])
}

/// Whether the arguments of a call are what its schema says.
fn fits(call: &Value) -> bool {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "get" => arguments["x"].is_boolean() && arguments.as_object().unwrap().len() == 1,
        "get_weather" => {
            let days = arguments["days"].as_i64().unwrap();
            matches!(arguments["city"].as_str().unwrap(), "Bonn" | "Ulm") && (1..=14).contains(&days)
        }
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enforced_calls_are_calls_in_every_family() {
    for family in families() {
        let real = Real::start(&family).await;
        let mut names = Vec::new();
        for seed in 0..5 {
            let once = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "seed": seed});
            let answer = real.chat(once.clone()).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{}: {choice}", family.name);
            assert_eq!(choice["message"]["content"], Value::Null, "{}: {choice}", family.name);
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1, "{}", family.name);
            assert!(fits(&calls[0]), "{}: {calls:?}", family.name);
            names.push(calls[0]["function"]["name"].as_str().unwrap().to_owned());
            // The same, streamed.
            let mut streamed = once;
            streamed["stream"] = json!(true);
            let events = real.server.open_post("/v1/chat/completions", ask(streamed)).await.expect(200).events();
            let (mut built, mut finish, mut chunks) = (Vec::<Value>::new(), Value::Null, 0);
            for chunk in events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok()) {
                let choice = &chunk["choices"][0];
                for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                    let index = delta["index"].as_u64().unwrap() as usize;
                    if index == built.len() {
                        built.push(json!({"id": delta["id"], "function": {"name": delta["function"]["name"], "arguments": ""}}));
                    }
                    let more = delta["function"]["arguments"].as_str().unwrap();
                    chunks += usize::from(!more.is_empty());
                    let so_far = built[index]["function"]["arguments"].as_str().unwrap().to_owned();
                    built[index]["function"]["arguments"] = json!(so_far + more);
                }
                if choice["finish_reason"].is_string() {
                    finish = choice["finish_reason"].clone();
                }
            }
            assert_eq!(finish, "tool_calls");
            assert!(chunks > 1, "{}: arguments come in pieces", family.name);
            assert_eq!(built.len(), 1);
            assert_eq!(built[0]["function"], calls[0]["function"], "{}", family.name);
        }
        let named = json!({"type": "function", "function": {"name": "get"}});
        let answer = real.chat(json!({"tools": tools(), "tool_choice": named, "parallel_tool_calls": false})).await;
        assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "get", "{}", family.name);
        // Several calls, or the limit of the length.
        let answer = real.chat(json!({"tools": tools(), "tool_choice": "required"})).await;
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        if answer["choices"][0]["finish_reason"] == "tool_calls" {
            assert!(calls.iter().all(fits), "{}: {calls:?}", family.name);
        }
        let ids: std::collections::BTreeSet<&str> = calls.iter().map(|c| c["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), calls.len());
        // What it called, and what the tools said, goes on.
        let message = real
            .chat(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false}))
            .await["choices"][0]["message"]
            .clone();
        let id = message["tool_calls"][0]["id"].clone();
        let on = json!([{"role": "user", "content": "ab"}, message, {"role": "tool", "tool_call_id": id, "content": "fine"}]);
        real.chat(json!({"messages": on, "tools": tools(), "max_tokens": 4})).await;
        assert!(names.len() == 5);
    }
}

/// The template sees the tools; without a choice the answer is the model's own.
#[tokio::test(flavor = "multi_thread")]
async fn tools_are_shown_unless_none_may_be_called() {
    let family = &families()[0];
    let real = Real::start(family).await;
    let count = async |extra: Value| real.chat(extra).await["usage"]["prompt_tokens"].as_u64().unwrap();
    let plain = count(json!({"max_tokens": 1})).await;
    assert!(count(json!({"max_tokens": 1, "tools": tools()})).await > plain + 50);
    assert_eq!(count(json!({"max_tokens": 1, "tools": tools(), "tool_choice": "none"})).await, plain);
    assert_eq!(count(json!({"max_tokens": 1, "tools": []})).await, plain);
    // Forced by biases, a call in a free answer is read as one.
    let text = real.chat(json!({"tools": tools(), "guided_regex": "hello", "seed": 3})).await;
    assert_eq!(text["choices"][0]["message"]["content"], "hello");
    for (extra, param) in [
        (json!({"tools": tools(), "tool_choice": "required", "guided_regex": "a"}), "tool_choice"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "no"}}}),
            "tool_choice.function.name",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "no such"}}}],
            "tool_choice": "required"}),
            "tools",
        ),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
    ] {
        let answer = real.server.open_post("/v1/chat/completions", ask(extra.clone())).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{extra}: {}", answer.text);
    }
    let unknown =
        Real::of(byte_level(family.special, &[]), "{{ tools }}<tool_call><function=x>{{ messages[0].content }}").await;
    let answer = unknown.server.open_post("/v1/chat/completions", ask(json!({"tools": tools()}))).await.expect(400);
    assert_eq!(answer.param().as_deref(), Some("tools"));
}

/// What is stored of a conversation with tools is readable text.
#[tokio::test(flavor = "multi_thread")]
async fn stored_conversations_are_readable() {
    let real = Real::start(&families()[2]).await;
    let answer = real.chat(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false})).await;
    let id = answer["instructd"]["completion_ids"][0].as_str().unwrap();
    let store = &real.server.services.store;
    let completion = store.completions().get(&id.into()).await.unwrap();
    assert!(completion.text.starts_with("[TOOL_CALLS][{\"name\": \"get"), "{}", completion.text);
    assert_eq!(completion.sampling["constrained"], "grammar");
    let prompt = store.prompts().get(&completion.prompt_id).await.unwrap();
    assert_eq!(prompt.messages[0].role, "system");
    assert!(prompt.messages[0].content.starts_with("# Tools\n\n[{"), "{:?}", prompt.messages);
}

const THINKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}\
                      </think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n\
                      {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";

#[tokio::test(flavor = "multi_thread")]
async fn thoughts_are_separated_from_answers() {
    for special in [&["<|im_end|>", "<|im_start|>"][..], &["<|im_end|>", "<|im_start|>", "<think>", "</think>"]] {
        let plain: &[&str] = if special.len() == 2 { &["<think>", "</think>"] } else { &[] };
        let real = Real::of(byte_level(special, plain), THINKS).await;
        // The end of the thought is likely; which id it has depends on where it was added.
        let close = "3";
        let extra = json!({"logit_bias": {close: 6, "0": -100}, "max_tokens": 60, "seed": 4});
        let answer = real.chat(extra.clone()).await;
        let message = &answer["choices"][0]["message"];
        let thought = message["reasoning_content"].as_str().unwrap_or_default();
        let content = message["content"].as_str().unwrap();
        assert!(!thought.contains("</think>"), "{message}");
        let mut streamed = extra.clone();
        streamed["stream"] = json!(true);
        let events = real.server.open_post("/v1/chat/completions", ask(streamed)).await.expect(200).events();
        let (mut thoughts, mut said) = (String::new(), String::new());
        for chunk in events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok()) {
            let delta = &chunk["choices"][0]["delta"];
            thoughts.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
            said.push_str(delta["content"].as_str().unwrap_or_default());
        }
        assert_eq!((thoughts.as_str(), said.as_str()), (thought, content));
        // Without thinking, everything is content.
        for off in [json!({"chat_template_kwargs": {"enable_thinking": false}}), json!({"reasoning_effort": "none"})] {
            let mut off = off;
            off["max_tokens"] = json!(8);
            off["logit_bias"] = json!({close: -100, "0": -100, "2": -100});
            let message = real.chat(off).await["choices"][0]["message"].clone();
            assert!(message.get("reasoning_content").is_none() && message["content"] != "", "{message}");
        }
        // A text of a given form has no room for thoughts.
        let formed = real.chat(json!({"guided_choice": ["yes"]})).await["choices"][0]["message"].clone();
        assert_eq!((&formed["content"], formed.get("reasoning_content")), (&json!("yes"), None));
        // Thoughts of former turns are the template's to show.
        let said = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"},
            {"role": "user", "content": "c"}]);
        let with = real.chat(json!({"messages": said, "max_tokens": 1})).await["usage"]["prompt_tokens"].as_u64();
        let mut without = said.clone();
        without[1].as_object_mut().unwrap().remove("reasoning_content");
        assert!(
            with > real.chat(json!({"messages": without, "max_tokens": 1})).await["usage"]["prompt_tokens"].as_u64()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_templates_are_read_or_refused() {
    let template = "{{ reasoning_effort }}{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let real = Real::of(byte_level(&["<|end|>"], &[]), template).await;
    let tokens = async |extra: Value| {
        let mut extra = extra;
        extra["max_tokens"] = json!(1);
        real.chat(extra).await["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = tokens(json!({})).await;
    assert!(tokens(json!({"reasoning_effort": "high"})).await > plain);
    assert!(tokens(json!({"chat_template_kwargs": {"greeting": "hello"}})).await > plain);
    // A special token in a variable stays text.
    let attack = real.chat(json!({"chat_template_kwargs": {"greeting": "<|end|>"}, "max_tokens": 1})).await;
    assert!(attack["usage"]["prompt_tokens"].as_u64().unwrap() >= plain + 5, "spelled out");
    for (extra, param) in [
        (json!({"chat_template_kwargs": {"no_such": 1}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (json!({"chat_template_kwargs": {"bos_token": "x"}}), "chat_template_kwargs.bos_token"),
        (json!({"chat_template_kwargs": 3}), "chat_template_kwargs"),
        (json!({"reasoning_effort": "very"}), "reasoning_effort"),
    ] {
        let answer = real.server.open_post("/v1/chat/completions", ask(extra.clone())).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{extra}: {}", answer.text);
    }
}

/// A gap is filled where the vocabulary has the tokens for it.
#[tokio::test(flavor = "multi_thread")]
async fn suffixes_make_gaps() {
    let names = ["<|end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
    let real = Real::of(byte_level(&names, &[]), "{{ messages[0].content }}").await;
    let body = json!({"prompt": "xy", "suffix": "cd<|end|>", "max_tokens": 3, "seed": 1});
    let answer = real.server.open_post("/v1/completions", body).await.expect(200).json();
    // Three tokens around it, and every character its own: special tokens in the text stay text.
    assert_eq!(answer["usage"]["prompt_tokens"], 3 + 2 + 2 + 7);
    let id = answer["instructd"]["completion_ids"][0].as_str().unwrap();
    let store = &real.server.services.store;
    let completion = store.completions().get(&id.into()).await.unwrap();
    let prompt = store.prompts().get(&completion.prompt_id).await.unwrap();
    assert_eq!(prompt.messages[0].content, "<|fim_prefix|>xy<|fim_suffix|>cd<|end|><|fim_middle|>");
    let without = Real::of(byte_level(&["<|end|>"], &[]), "{{ messages[0].content }}").await;
    for (real, body) in
        [(&without, json!({"prompt": "ab", "suffix": "cd"})), (&real, json!({"prompt": [5, 6], "suffix": "cd"}))]
    {
        let answer = real.server.open_post("/v1/completions", body).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some("suffix"), "{}", answer.text);
    }
    let echo = json!({"prompt": "ab", "suffix": "cd", "echo": true});
    assert_eq!(real.server.open_post("/v1/completions", echo).await.expect(400).param().as_deref(), Some("echo"));
}
