//! What clients get from models as people publish them: chat templates, end tokens in any file, stops on special
//! tokens, spaces before texts, tokens that are half a character.

use serde_json::{Value, json};

use instructd::domain::Message;
use instructd::prompt::{ChatTemplate, Conversation};

use super::client::Server;
use crate::support::published::{HELLO, WORLD, byte_level, framed, published, sentencepiece, words};

async fn serving(dir: &tempfile::TempDir) -> Server {
    Server::serving(dir.path().to_str().unwrap()).await
}

const TALK: &str = "{% for m in messages %}{{ m.content }} {% endfor %}t6";
const END: (u32, &str) = (5, "<|im_end|>");

fn say(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "t7"}], "max_tokens": 8, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_render_as_in_transformers_and_broken_ones_fail_alone() {
    let generation = "{% for m in messages %}{% generation %}{{ m.content }} {% endgeneration %}{% endfor %}t6";
    let none = "{% if tools is not none %}t10 t11 {% endif %}{% if documents is not none %}t14 {% endif %}{% for m in messages %}{{ m.content }} {% endfor %}t6";
    for template in [generation, none] {
        let dir = published(&[("chat_template.jinja", json!(template))]);
        let answer = serving(&dir).await.open_post("/v1/chat/completions", say(json!({}))).await.expect(200).json();
        assert_eq!(answer["usage"]["prompt_tokens"], 2, "{template}");
    }
    for (template, told) in [
        ("t1\n{% if %}", "line 2"),
        ("{{ messages | nothing_like_it }}", "nothing_like_it"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ] {
        let dir = published(&[("chat_template.jinja", json!(template))]);
        let server = serving(&dir).await;
        let answer = server.open_post("/v1/chat/completions", say(json!({}))).await.expect(400).json();
        assert_eq!(answer["error"]["param"], "messages");
        assert!(answer["error"]["message"].as_str().unwrap().contains(told), "{answer}");
        server.open_post("/v1/completions", json!({"prompt": "t7", "max_tokens": 1})).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_tokenizer_completes_token_ids() {
    let dir = published(&[]);
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let server = serving(&dir).await;
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "logprobs": 0, "echo": true});
    let choice = server.open_post("/v1/completions", body).await.expect(200).json()["choices"][0].clone();
    let tokens: Vec<&str> =
        choice["logprobs"]["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(choice["text"], tokens.concat());
    assert_eq!((tokens.len(), &tokens[..3]), (6, [" 5", " 6", " 7"].as_slice()));
    assert_eq!(choice["logprobs"]["text_offset"][3], 6);
    let error = server.open_post("/v1/completions", json!({"prompt": "a"})).await.expect(400).json();
    assert!(error["error"]["message"].as_str().unwrap().contains("token ids"), "{error}");
}

/// transformers renders conversations with tools by the template named `tool_use`.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_its_own_renders_tools() {
    let plain = "  {% for m in messages %}{{ m.content }} {% endfor %}t6 \n";
    let tools = "\n  {{ tools[0].function.name }} <tool_call>{{ messages[0].content }}\n  \n";
    let both = json!([{"name": "default", "template": plain}, {"name": "tool_use", "template": tools},
                      {"name": "rag", "template": "{{ documents[0] }}"}]);
    for files in [
        vec![("tokenizer_config.json", json!({"chat_template": both}))],
        vec![("chat_template.jinja", json!(plain)), ("additional_chat_templates/tool_use.jinja", json!(tools))],
    ] {
        let dir = published(&files);
        let source = instructd::model::describe(dir.path()).unwrap().chat_template.unwrap();
        let template = ChatTemplate::new(&source, None).unwrap();
        let turns = vec![Message { role: "user".into(), content: "t7".into() }.into()];
        let mut conversation = Conversation { turns, ..Conversation::default() };
        let render = |conversation: &Conversation| template.render_conversation(conversation, true).unwrap().text;
        assert_eq!(render(&conversation), "t7 t6 ");
        let function = json!({"name": "t9", "description": "", "parameters": {"type": "object", "properties": {}}});
        conversation.tools = Some(json!([{"type": "function", "function": function}]));
        assert_eq!(render(&conversation), "\n  t9 <tool_call>t7\n  ");
        let body = say(json!({"tools": conversation.tools, "max_tokens": 1}));
        serving(&dir).await.open_post("/v1/chat/completions", body).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_token_counts_whichever_file_names_it() {
    let tokenizer = ("tokenizer.json", words(&[(2, "</s>"), END], Value::Null));
    let template = ("chat_template.jinja", json!(TALK));
    let name = json!({"content": "<|im_end|>", "lstrip": false});
    for file in [
        ("tokenizer_config.json", json!({"eos_token": "<|im_end|>"})),
        ("tokenizer_config.json", json!({"eos_token": name})),
        ("special_tokens_map.json", json!({"eos_token": name})),
        ("generation_config.json", json!({"eos_token_id": [2, 5]})),
        ("generation_config.json", json!({"eos_token_id": 5})),
    ] {
        let dir = published(&[tokenizer.clone(), template.clone(), file.clone()]);
        let server = serving(&dir).await;
        for (id, stops) in [("5", true), ("2", true), ("9", false)] {
            let body = say(json!({"logit_bias": {id: 100}}));
            let answer = server.open_post("/v1/chat/completions", body).await.expect(200).json();
            let (reason, tokens) = if stops { ("stop", 1) } else { ("length", 8) };
            assert_eq!(answer["choices"][0]["finish_reason"], reason, "{file:?} {id}");
            assert_eq!(answer["usage"]["completion_tokens"], tokens, "{file:?} {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_see_special_tokens_and_ids() {
    let dir =
        published(&[("tokenizer.json", words(&[(2, "</s>"), END], Value::Null)), ("chat_template.jinja", json!(TALK))]);
    let server = serving(&dir).await;
    let base = json!({"prompt": "t7", "max_tokens": 8, "temperature": 0, "logit_bias": {"5": 100}});
    let run = async |more: Value| {
        let mut body = base.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.open_post("/v1/completions", body).await.expect(200).json();
        let choice = &answer["choices"][0];
        let text = choice["text"].as_str().unwrap().to_owned();
        (
            text,
            choice["finish_reason"].as_str().unwrap().to_owned(),
            answer["usage"]["completion_tokens"].as_u64().unwrap(),
        )
    };
    assert_eq!(run(json!({})).await, ("".into(), "length".into(), 8));
    assert_eq!(run(json!({"stop": ["<|im_end|>"]})).await, ("".into(), "stop".into(), 1));
    assert_eq!(run(json!({"stop": "<|im_end|>", "min_tokens": 3})).await, ("".into(), "stop".into(), 3));
    assert_eq!(run(json!({"stop_token_ids": [5]})).await, ("".into(), "stop".into(), 1));
    assert_eq!(run(json!({"stop_token_ids": [9], "logit_bias": {"9": 100}})).await, ("".into(), "stop".into(), 1));
    // Not before min_tokens: the end is not drawn until then.
    let (_, reason, n) = run(json!({"stop_token_ids": [5], "min_tokens": 4})).await;
    assert_eq!((reason.as_str(), n), ("stop", 5));
    // ignore_eos is about the model's end tokens, not about those that the request names.
    let eos = json!({"logit_bias": {"2": 100}, "ignore_eos": true, "stop_token_ids": [2]});
    assert_eq!(run(eos).await, ("".into(), "stop".into(), 1));
    // Text and special token in one stop string; kept on demand.
    let both = json!({"logit_bias": {"9": 100}, "stop": ["t9 t9"], "include_stop_str_in_output": true});
    assert_eq!(run(both).await, (" t9 t9".into(), "stop".into(), 2));
    for (body, param) in [
        (json!({"stop_token_ids": [96]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": vec![1; 300]}), "stop_token_ids"),
    ] {
        for (path, mut whole) in [("/v1/completions", base.clone()), ("/v1/chat/completions", say(json!({})))] {
            whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let answer = server.open_post(path, whole).await.expect(400).json();
            assert_eq!(answer["error"]["param"], param);
        }
    }
    let chat = server.open_post("/v1/chat/completions", say(json!({"stop_token_ids": [5], "logit_bias": {"5": 100}})));
    assert_eq!(chat.await.expect(200).json()["usage"]["completion_tokens"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn special_tokens_of_a_raw_prompt_are_read_on_demand_only() {
    let dir = published(&[(
        "tokenizer.json",
        words(&[(1, "<s>"), (2, "</s>"), END], framed(Some((1, "<s>")), Some((2, "</s>")))),
    )]);
    let server = serving(&dir).await;
    let echo = async |more: Value| {
        let mut body = json!({"prompt": "t7 <|im_end|> t8", "max_tokens": 0, "echo": true, "logprobs": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.open_post("/v1/completions", body).await.expect(200).json();
        assert_eq!(answer["choices"][0]["text"], "t7 <|im_end|> t8");
        answer["choices"][0]["logprobs"]["token_ids"].clone()
    };
    // As text it is what the vocabulary makes of its parts, although it holds the whole as a word.
    assert_eq!(echo(json!({})).await, json!([1, 7, 0, 0, 8]));
    assert_eq!(echo(json!({"parse_special": true})).await, json!([1, 7, 5, 8]));
    assert_eq!(echo(json!({"parse_special": true, "add_special_tokens": false})).await, json!([7, 5, 8]));
    let tokens = async |body: Value| server.open_post("/tokenize", body).await.expect(200).json()["tokens"].clone();
    assert_eq!(tokens(json!({"prompt": "t7 <|im_end|>"})).await, json!([1, 7, 0, 0, 2]));
    assert_eq!(tokens(json!({"prompt": "t7 <|im_end|>", "parse_special": true})).await, json!([1, 7, 5, 2]));
    assert_eq!(tokens(json!({"prompt": "t7", "add_special_tokens": false})).await, json!([7]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokens_of_a_conversation_are_those_of_its_prompt() {
    let template =
        "{% if tools %}t3 {% endif %}{% for m in messages %}{{ m.content }} {% endfor %}<tool_call>t6 {{ word }}";
    let dir = published(&[("chat_template.jinja", json!(template))]);
    let server = serving(&dir).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    for more in [json!({}), json!({"tools": [tool], "chat_template_kwargs": {"word": "t9 t9"}})] {
        let mut body = json!({"messages": [{"role": "user", "content": "t7 t8"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let tokens = server.open_post("/tokenize", body.clone()).await.expect(200).json();
        body["max_tokens"] = json!(1);
        let answer = server.open_post("/v1/chat/completions", body).await.expect(200).json();
        assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
        assert_eq!(tokens["tokens"].as_array().unwrap().len(), tokens["count"].as_u64().unwrap() as usize);
        assert_eq!(tokens["tokens"][if more == json!({}) { 0 } else { 1 }], 7);
    }
    for body in [json!({"prompt": "t7", "messages": []}), json!({"messages": [{"role": "nobody", "content": "x"}]})] {
        server.open_post("/tokenize", body).await.expect(400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_to_be_continued_has_no_end_token() {
    let dir = published(&[
        ("tokenizer.json", words(&[(1, "<s>"), (2, "</s>")], framed(Some((1, "<s>")), Some((2, "</s>"))))),
        ("chat_template.jinja", json!(TALK)),
    ]);
    let server = serving(&dir).await;
    let body = json!({"prompt": "t7 t8", "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = server.open_post("/v1/completions", body).await.expect(200).json();
    let listed = &answer["choices"][0]["logprobs"];
    assert_eq!(listed["token_ids"], json!([1, 7, 8]));
    // The begin token is no part of the text.
    assert_eq!((&listed["tokens"], &listed["text_offset"]), (&json!(["<s>", "t7", " t8"]), &json!([0, 0, 2])));
    let body = json!({"prompt": "t7 t8", "choices": [" t9", " t10"], "logprobs": true});
    let answer = server.open_post("/v1/choices", body).await.expect(200).json();
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["words"][0]["tokens"], 1);
    }
    let body = json!({"template": "t7 {input} t8 {label}", "input": "t9", "choices": ["t3", "t4"], "logprobs": true});
    let answer = server.open_post("/v1/choices", body).await.expect(200).json();
    assert_eq!(answer["choices"][0]["words"][0]["tokens"], 1);
    let asked = server.open_post("/v1/chat/completions", say(json!({"add_special_tokens": true, "max_tokens": 1})));
    assert_eq!(asked.await.expect(200).json()["usage"]["prompt_tokens"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_between_prompt_and_completion_survives() {
    for scheme in [None, Some("first"), Some("always")] {
        let dir = published(&[("tokenizer.json", sentencepiece(scheme))]);
        let server = serving(&dir).await;
        let bias = json!({WORLD.to_string(): 100});
        let body = json!({"prompt": "hello", "max_tokens": 2, "temperature": 0, "echo": true, "logprobs": 2, "logit_bias": bias});
        let answer = server.open_post("/v1/completions", body.clone()).await.expect(200).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], "hello world world", "{scheme:?}");
        let listed = &choice["logprobs"];
        assert_eq!(listed["tokens"], json!(["<s>", "hello", " world", " world"]));
        assert_eq!(listed["text_offset"], json!([0, 0, 5, 11]));
        assert_eq!(listed["token_ids"], json!([1, HELLO, WORLD, WORLD]));
        // Without echo, and streamed, the same.
        let mut plain = body.clone();
        plain["echo"] = json!(false);
        let answer = server.open_post("/v1/completions", plain.clone()).await.expect(200).json();
        assert_eq!(answer["choices"][0]["text"], " world world");
        assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!([" world", " world"]));
        for (mut body, whole) in [(body, "hello world world"), (plain, " world world")] {
            body["stream"] = json!(true);
            let text = server.open_post("/v1/completions", body).await.expect(200).text;
            let chunks: Vec<Value> =
                text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
            let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
            assert_eq!(streamed, whole);
            let tokens: Vec<&Value> =
                chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["tokens"].as_array()).flatten().collect();
            assert_eq!(&tokens[tokens.len() - 2..], [" world", " world"]);
        }
        let stop = json!({"prompt": "hello", "max_tokens": 2, "temperature": 0, "stop": " world", "logit_bias": {WORLD.to_string(): 100}});
        let answer = server.open_post("/v1/completions", stop).await.expect(200).json();
        assert_eq!(
            (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
            (&json!(""), &json!("stop"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_listed_by_their_own_bytes() {
    let dir =
        published(&[("tokenizer.json", byte_level()), ("chat_template.jinja", json!("{{ messages[0].content }}"))]);
    let server = serving(&dir).await;
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "temperature": 0, "logprobs": true,
        "top_logprobs": 5, "logit_bias": {"4": 100, "5": 99, "6": 98, "7": 97}});
    let answer = server.open_post("/v1/chat/completions", body).await.expect(200).json();
    let token = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&token["token_id"], &token["bytes"]), (&json!(4), &json!([0xF0])));
    let bytes_of = |id: u64| -> Value {
        let top = token["top_logprobs"].as_array().unwrap();
        top.iter().find(|t| t["token_id"] == id).map_or(Value::Null, |t| t["bytes"].clone())
    };
    assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 5);
    assert!([Value::Null, json!([0x9F])].contains(&bytes_of(5)));
    // Completions: every alternative keeps its place, and the token itself is among them by its own name.
    let prompt = "a😀é";
    let body = json!({"prompt": prompt, "max_tokens": 2, "temperature": 0, "echo": true, "logprobs": 20, "logit_bias": {"4": 100}});
    let answer = server.open_post("/v1/completions", body).await.expect(200).json();
    let listed = &answer["choices"][0]["logprobs"];
    assert_eq!(listed["token_ids"], json!([10, 4, 5, 6, 7, 8, 9, 4, 4]));
    assert_eq!(listed["tokens"][1], "bytes:\\xf0");
    // A character counts where its first byte stands.
    assert_eq!(listed["text_offset"], json!([0, 1, 2, 2, 2, 2, 3, 3, 4]));
    for i in 1..9 {
        let top = listed["top_logprobs"][i].as_object().unwrap();
        let own = listed["tokens"][i].as_str().unwrap();
        assert_eq!(top[own], listed["token_logprobs"][i]);
        assert!((20..=21).contains(&top.len()), "{}", top.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_with_equal_texts_are_distinguished() {
    // Word 9 is added once more as a special token of the same text.
    let mut tokenizer = words(&[(2, "</s>")], Value::Null);
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("t40");
    vocab.insert("\u{0}t9".to_owned(), json!(40));
    tokenizer["decoder"] = json!({"type": "Replace", "pattern": {"String": "\u{0}"}, "content": ""});
    let dir = published(&[("tokenizer.json", tokenizer)]);
    let server = serving(&dir).await;
    let body = json!({"prompt": "t7", "max_tokens": 1, "temperature": 0, "logprobs": 20, "logit_bias": {"9": 100}});
    let answer = server.open_post("/v1/completions", body).await.expect(200).json();
    let listed = &answer["choices"][0]["logprobs"];
    let top = listed["top_logprobs"][0].as_object().unwrap();
    assert!((20..=21).contains(&top.len()), "{top:?}");
    assert_eq!(top[listed["tokens"][0].as_str().unwrap()], listed["token_logprobs"][0]);
}
