//! Files of models as people publish them: one rule for facts that several files hold, texts that go on, sentence
//! encoders, split GGUF files, and mistakes told by what they are.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use instructd::data::PromptInput;
use instructd::domain::Message;
use instructd::engine::Pooling;
use instructd::hub::pull;
use instructd::model::encoder::text::TextEncoder;
use instructd::model::{self, Encoder, PackedBatch, Purpose};
use instructd::prompt::{ChatTemplate, Texts};
use instructd::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::super::support::allocations::largest_in;
use super::super::support::published::{HELLO, WORLD, byte_level, framed, published, sentencepiece, words, write};
use super::super::support::{copy_dir, fixture};
use super::damaged::tiny_gguf;

fn refused(path: &Path) -> String {
    model::load(path, &Device::Cpu).err().unwrap_or_else(|| panic!("{} was accepted", path.display())).to_string()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".into(), content: content.into() }]
}

fn read(path: &Path) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The expected texts are Jinja2's, set up as transformers sets it up (tests/fixtures/make_chat_constructs.py).
#[test]
fn templates_render_as_jinja2_renders_them() {
    let mut rows: Vec<Value> = read(&fixture("chat_constructs.json"));
    // Published templates, which their makers keep: made by the same script out of a directory of them.
    match std::env::var_os("INSTRUCTD_TEST_TEMPLATES") {
        Some(path) => rows.extend(read(Path::new(&path))),
        None => eprintln!("skipped in part: INSTRUCTD_TEST_TEMPLATES names no file of whole templates"),
    }
    let names =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "pad_token": "<pad>"});
    let tokenizer = Tokenizer::from_json(&words(&[], Value::Null).to_string(), Some(names), &[]).unwrap();
    let mut failures = Vec::new();
    for row in &rows {
        let source = row["template"].as_str().unwrap();
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let found = ChatTemplate::new(source, Some(&tokenizer)).and_then(|t| t.render(&messages, row["open"] != false));
        match (found, row["text"].as_str()) {
            (Ok(found), Some(wanted)) if found.text == wanted => {}
            (Err(_), None) => {}
            // A loop over `tools` without tools: nothing here, a TypeError in Python.
            (Ok(_), None) if row["error"] == "TypeError: 'NoneType' object is not iterable" => {}
            (found, wanted) => failures.push(format!("{source}\n wanted {wanted:?}\n found {found:?}")),
        }
    }
    assert!(rows.len() > 150);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn hostile_templates_end_soon() {
    let many = 20_000;
    for source in [
        "{{ a % ".repeat(many),
        "{{ ".to_owned() + &"a % ".repeat(many) + "a }}",
        "{{ ".to_owned() + &"(".repeat(many) + "a" + &")".repeat(many) + " % 2 }}",
        "{{ a".to_owned() + &"|upper".repeat(many) + " }}",
        "{{ a".to_owned() + &".a".repeat(many) + " }}",
        "{{ a".to_owned() + &" ~ a".repeat(many) + " }}",
        "{{ a".to_owned() + &"()".repeat(many) + " }}",
        "{{ ".to_owned() + &"not ".repeat(many) + "a }}",
        "{{ ".to_owned() + &"-".repeat(many) + "a }}",
        "{% if a %}".to_owned() + &"{% elif a %}".repeat(many) + "{% endif %}",
        "{% raw %}".to_owned() + &"{%".repeat(many),
        "{% generation %}".repeat(many),
        "{% generation %}".repeat(400) + &"{% endgeneration %}".repeat(400),
        "{#".repeat(many),
        "x".repeat(2 << 20),
        "{{ 'x'.center(999999999) }}{{ 'x'.ljust(60000) * 60000 }}".to_owned(),
        "{{ '%999999999d' % 1 }}".to_owned(),
        "{% for i in range(99999) %}{{ messages | tojson(indent=64) }}{% endfor %}".to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}"
            .to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}".to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] | sum(start=[]) %}{% endfor %}"
            .to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l | chain(ns.l) %}{% endfor %}".to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l | reverse + ns.l | reverse %}{% endfor %}"
            .to_owned(),
        "{% macro f(l, n) %}{% if n %}{{ f(l + l, n - 1) }}{% endif %}{% endmacro %}{{ f([1], 60) }}".to_owned(),
        "{% with l = [1] %}".to_owned() + &"{% with l = l + l %}".repeat(60) + &"{% endwith %}".repeat(61),
        "{{ '{:999999999}'.format(1) }}".to_owned(),
        "{{ '{:{}}'.format(1, 999999999) }}".to_owned(),
        "{{ '".to_owned() + &"{0:60000}".repeat(20_000) + "'.format(1) }}",
    ] {
        let largest = largest_in(|| {
            let _ = ChatTemplate::new(&source, None).and_then(|t| t.render(&user("hello"), true));
        });
        let shown: String = source.chars().take(40).collect();
        assert!(largest < 256 << 20, "{shown}: {largest} bytes");
    }
}

#[test]
fn templates_and_names_come_from_any_file() {
    let names = json!([{"name": "other", "template": "no"}, {"name": "default", "template": "yes"}]);
    for files in [
        vec![("chat_template.jinja", json!("yes")), ("tokenizer_config.json", json!({"chat_template": "no"}))],
        vec![
            ("chat_template.json", json!({"chat_template": "yes"})),
            ("tokenizer_config.json", json!({"chat_template": "no"})),
        ],
        vec![("tokenizer_config.json", json!({"chat_template": "yes"}))],
        vec![("tokenizer_config.json", json!({"chat_template": names}))],
        vec![("tokenizer_config.json", json!({"chat_template": [{"name": "rag", "template": "yes"}]}))],
        vec![("tokenizer_config.json", json!({"chat_template": {"default": "yes", "other": "no"}}))],
    ] {
        assert_eq!(
            model::describe(published(&files).path()).unwrap().chat_template.as_deref(),
            Some("yes"),
            "{files:?}"
        );
    }
    let files = [
        ("tokenizer.json", words(&[(2, "</s>"), (3, "<pad>"), (4, "<b>")], Value::Null)),
        ("tokenizer_config.json", json!({"bos_token": "<b>", "unk_token": null})),
        ("special_tokens_map.json", json!({"pad_token": {"content": "<pad>"}, "bos_token": "no", "unk_token": "t0"})),
        ("chat_template.jinja", json!("{{ bos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token is defined }}")),
    ];
    let dir = published(&files);
    let described = model::describe(dir.path()).unwrap();
    let template = ChatTemplate::new(&described.chat_template.unwrap(), described.tokenizer.as_ref()).unwrap();
    assert_eq!(template.render(&user("x"), true).unwrap().text, "<b><pad>t0False");
    assert_eq!(described.config.pad_id, Some(3));
}

#[test]
fn a_continued_text_has_no_added_space() {
    for scheme in [None, Some("first"), Some("always"), Some("never")] {
        let tokenizer = Tokenizer::from_json(&sentencepiece(scheme).to_string(), None, &[2]).unwrap();
        let prompt = tokenizer.encode_open("hello", false).unwrap();
        let hello = if scheme == Some("never") { 37 } else { HELLO };
        assert_eq!(prompt, [1, hello]);
        assert_eq!(tokenizer.encode_after(&prompt, " world").unwrap(), [WORLD]);
        // w, or, ld
        assert_eq!(tokenizer.encode_after(&prompt, "world").unwrap(), [26, 40, 41]);
        // Behind nothing, or behind the begin token alone, a text begins.
        for left in [&[] as &[u32], &[1]] {
            assert_eq!(tokenizer.encode_after(left, "hello").unwrap(), [hello], "{scheme:?}");
        }
        for text in [" world", "world", "  hello", "hello", ".", " a b", "é"] {
            let ids = tokenizer.encode_after(&prompt, text).unwrap();
            assert_eq!(tokenizer.decode_after(&prompt, &ids, true), text, "{scheme:?}");
            let pieces: Vec<u8> =
                (0..ids.len()).flat_map(|i| tokenizer.piece(&[&prompt, &ids[..i]].concat(), ids[i]).bytes).collect();
            assert_eq!(String::from_utf8(pieces).unwrap(), text, "{scheme:?}");
        }
        assert_eq!(tokenizer.piece(&prompt, 44).bytes, [0xC3]);
    }
}

#[test]
fn training_tokenizes_a_completion_in_its_conversation() {
    let dir = published(&[("tokenizer.json", sentencepiece(None))]);
    let texts = Texts::new(&model::load(dir.path(), &Device::Cpu).unwrap()).unwrap();
    let prompt = PromptInput::Text("hello".into());
    assert_eq!(texts.conversation(&prompt, " world", 16).unwrap(), (vec![1, HELLO, WORLD, 2], 2));
    assert_eq!(texts.text(&[1, HELLO], &[WORLD, 2, 5]).unwrap(), " world");
    // No end token between a prompt and its completion, and the turn's own end behind a chat answer.
    let end = (5, "<|im_end|>");
    let files = |template: &str| {
        published(&[
            ("tokenizer.json", words(&[(1, "<s>"), (2, "</s>"), end], framed(Some((1, "<s>")), Some((2, "</s>"))))),
            ("generation_config.json", json!({"eos_token_id": [2, 5]})),
            ("chat_template.jinja", json!(template)),
        ])
    };
    let ending = files(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} <|im_end|>{% endif %} {% endfor %}t6",
    );
    let texts = Texts::new(&model::load(ending.path(), &Device::Cpu).unwrap()).unwrap();
    assert_eq!(texts.conversation(&PromptInput::Text("t7".into()), "t8", 16).unwrap(), (vec![1, 7, 8, 5], 2));
    assert_eq!(texts.conversation(&PromptInput::Chat(user("t7")), "t8", 16).unwrap(), (vec![7, 6, 8, 5], 2));
    // A template that cannot be used fails only what needs it.
    let broken = files("{% if %}");
    let texts = Texts::new(&model::load(broken.path(), &Device::Cpu).unwrap()).unwrap();
    assert!(texts.conversation(&PromptInput::Text("t7".into()), "t8", 16).is_ok());
    assert!(texts.prompt(&PromptInput::Chat(user("t7"))).unwrap_err().to_string().contains("line 1"));
}

#[test]
fn half_a_character_is_its_bytes() {
    let tokenizer = Tokenizer::from_json(&byte_level().to_string(), None, &[1]).unwrap();
    let ids = tokenizer.encode("😀", false, false).unwrap();
    let bytes: Vec<Vec<u8>> = tokenizer.pieces(&ids).into_iter().map(|p| p.bytes).collect();
    assert_eq!(bytes, [[0xF0], [0x9F], [0x98], [0x80]]);
    assert_eq!(tokenizer.pieces(&ids).iter().map(|p| p.characters()).collect::<Vec<_>>(), [1, 0, 0, 0]);
}

/// A bert-tiny with these files.
fn encoder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = copy_dir(&fixture("bert-tiny"));
    write(dir.path(), files);
    dir
}

fn modules(list: &[(&str, &str)]) -> Value {
    let one =
        |(path, kind): &(&str, &str)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    list.iter().map(one).collect()
}

#[test]
fn a_sentence_encoder_pools_as_its_directory_says() {
    let list = modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]);
    let ids = [5u32, 6, 7, 8];
    let plain = model::load(&fixture("bert-tiny"), &Device::Cpu).unwrap();
    let hidden = Encoder::new(&plain.config, &plain.weights, Purpose::Serve).unwrap();
    let rows: Vec<Vec<f32>> = hidden.forward(&PackedBatch::new(&[ids]), &[0; 4]).unwrap().to_vec2().unwrap();
    let by =
        |f: &dyn Fn(Vec<f32>) -> f32| -> Vec<f32> { (0..48).map(|c| f(rows.iter().map(|r| r[c]).collect())).collect() };
    let mean = by(&|v| v.iter().sum::<f32>() / 4.0);
    let max = by(&|v| v.into_iter().fold(f32::MIN, f32::max));
    let weighted = by(&|v| v.iter().enumerate().map(|(i, x)| (i + 1) as f32 * x).sum::<f32>() / 10.0);
    for (pooling, wanted) in [
        (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}), rows[0].clone()),
        (json!({"pooling_mode_mean_tokens": true}), mean.clone()),
        (json!({"pooling_mode_max_tokens": true}), max.clone()),
        (json!({"pooling_mode_mean_sqrt_len_tokens": true}), mean.iter().map(|v| v * 2.0).collect()),
        (json!({"pooling_mode_weightedmean_tokens": true}), weighted),
        (json!({"pooling_mode_lasttoken": true, "word_embedding_dimension": 48}), rows[3].clone()),
        (json!({"pooling_mode": "cls"}), rows[0].clone()),
        (
            json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}),
            [rows[0].clone(), mean.clone()].concat(),
        ),
    ] {
        let dir = encoder(&[("modules.json", list.clone()), ("1_Pooling/config.json", pooling.clone())]);
        let text = TextEncoder::new(&model::load(dir.path(), &Device::Cpu).unwrap()).unwrap();
        let found = text.embed(&[ids.to_vec()], None, false).unwrap();
        assert_eq!(found[0].len(), wanted.len(), "{pooling}");
        assert!(found[0].iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{pooling}");
        // What a request asks for wins.
        assert!((text.embed(&[ids.to_vec()], Some(Pooling::Max), false).unwrap()[0][0] - max[0]).abs() < 1e-6);
    }
    let dir = encoder(&[
        ("sentence_bert_config.json", json!({"max_seq_length": 7})),
        ("tokenizer_config.json", json!({"model_max_length": 9})),
    ]);
    assert_eq!(TextEncoder::new(&model::load(dir.path(), &Device::Cpu).unwrap()).unwrap().max_tokens(), 7);
    let dir = encoder(&[("tokenizer_config.json", json!({"model_max_length": 1e30}))]);
    assert_eq!(TextEncoder::new(&model::load(dir.path(), &Device::Cpu).unwrap()).unwrap().max_tokens(), 64);
}

#[test]
fn modules_that_are_not_computed_are_refused_by_name() {
    let pooling = ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}));
    for (list, told) in [
        (modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]), "2_Dense"),
        (modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_LayerNorm", "LayerNorm")]), "LayerNorm"),
        (modules(&[("", "Transformer"), ("../x", "Pooling")]), "plain folder"),
        (json!({"a": 1}), "must be a list"),
    ] {
        let dir = encoder(&[("modules.json", list), pooling.clone()]);
        let error = refused(dir.path());
        assert!(error.contains(told), "{error}");
    }
    let list = modules(&[("", "Transformer"), ("1_Pooling", "Pooling")]);
    for (config, told) in [
        (json!({"pooling_mode_attention": true}), "attention"),
        (json!({"word_embedding_dimension": 47, "pooling_mode_mean_tokens": true}), "47"),
    ] {
        let dir = encoder(&[("modules.json", list.clone()), ("1_Pooling/config.json", config)]);
        assert!(refused(dir.path()).contains(told));
    }
    assert!(refused(encoder(&[("modules.json", list)]).path()).contains("1_Pooling"));
}

/// `tiny_gguf` as two files: the metadata and the first `first` tensors, then the rest.
fn split(dir: &Path, first: usize, count: u16) -> (std::path::PathBuf, std::path::PathBuf) {
    let whole = tiny_gguf();
    let u64_at = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let (tensors, keys) = (u64_at(8), u64_at(16));
    // Where the metadata ends: the table's first name.
    let table = whole.windows(17).position(|w| w == b"token_embd.weight").unwrap() - 8;
    let (mut rows, mut at) = (Vec::new(), table);
    for _ in 0..tensors {
        let start = at;
        at += 8 + u64_at(at);
        let rank = u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
        let dims: Vec<usize> = (0..rank).map(|i| u64_at(at + 4 + 8 * i)).collect();
        at += 4 + 8 * rank + 4;
        rows.push((whole[start..at].to_vec(), u64_at(at), dims.iter().product::<usize>() * 4));
        at += 8;
    }
    let data = at.next_multiple_of(32);
    let part = |rows: &[(Vec<u8>, usize, usize)], metadata: &[u8], keys: usize, no: u16| {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((rows.len() as u64).to_le_bytes());
        out.extend((keys as u64 + 2).to_le_bytes());
        for (key, value) in [("split.no", no), ("split.count", count)] {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(2u32.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        out.extend(metadata);
        let mut bytes: Vec<u8> = Vec::new();
        for (row, offset, size) in rows {
            out.extend(row);
            out.extend((bytes.len() as u64).to_le_bytes());
            bytes.extend(&whole[data + offset..data + offset + size]);
            bytes.resize(bytes.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(bytes);
        out
    };
    let path = |i: u16| dir.join(format!("m-{i:05}-of-{count:05}.gguf"));
    std::fs::write(path(1), part(&rows[..first], &whole[24..table], keys, 0)).unwrap();
    std::fs::write(path(2), part(&rows[first..], &[], 0, 1)).unwrap();
    (path(1), path(2))
}

#[test]
fn a_gguf_in_parts_is_one_model() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("whole.gguf"), tiny_gguf()).unwrap();
    let whole = model::load(&dir.path().join("whole.gguf"), &Device::Cpu).unwrap();
    let (first, second) = split(dir.path(), 4, 2);
    // Either part names the model.
    for path in [&first, &second] {
        let found = model::load(path, &Device::Cpu).unwrap();
        assert_eq!(found.source.weight_files, [first.clone(), second.clone()]);
        assert_eq!(found.weights.len(), whole.weights.len());
        for (name, tensor) in &whole.weights {
            let same = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(same(tensor), same(&found.weights[name]), "{name}");
        }
    }
    std::fs::rename(&second, dir.path().join("away")).unwrap();
    let error = refused(&first);
    assert!(error.contains("part 1 of 2; part 2 is missing") && error.contains("m-00002-of-00002.gguf"), "{error}");
    // The second part is a copy of the first.
    std::fs::copy(&first, &second).unwrap();
    assert!(refused(&first).contains("part 1 of 2, its name says 2"));
    let alone = dir.path().join("renamed.gguf");
    std::fs::rename(&first, &alone).unwrap();
    assert!(refused(&alone).contains("its name does not tell"));
    let many = tempfile::tempdir().unwrap();
    assert!(refused(&split(many.path(), 4, 65535).0).contains("part 1 of 65535"));
}

/// What is pulled is the whole model: every part, and every file that says something about it.
#[test]
fn pulled_models_keep_their_parts_and_side_files() {
    let (data, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = split(from.path(), 4, 2);
    let path = pull::pull("parts", data.path(), Some(&first), &mut |_| {}).unwrap();
    assert_eq!(model::load(&path, &Device::Cpu).unwrap().source.weight_files.len(), 2);
    assert_eq!(pull::resolve("parts", data.path()).unwrap(), path);
    let list = modules(&[("", "Transformer"), ("1_Pooling", "Pooling")]);
    let dir = encoder(&[
        ("modules.json", list),
        ("1_Pooling/config.json", json!({"pooling_mode_cls_token": true})),
        ("sentence_bert_config.json", json!({"max_seq_length": 7})),
        ("special_tokens_map.json", json!({"pad_token": "t0"})),
    ]);
    let path = pull::pull("sentences", data.path(), Some(dir.path()), &mut |_| {}).unwrap();
    let found = model::describe(&path).unwrap();
    assert_eq!((found.sentence.pooling, found.sentence.max_tokens), (vec![Pooling::Cls], Some(7)));
    assert_eq!(found.tokenizer.unwrap().named_token("pad_token"), Some("t0"));
    // A directory that is no model is told so, not "not a path".
    let adapter = tempfile::tempdir().unwrap();
    write(adapter.path(), &[("adapter_config.json", json!({}))]);
    let error = pull::resolve(adapter.path().to_str().unwrap(), data.path()).unwrap_err().to_string();
    assert!(error.contains("PEFT adapter"), "{error}");
}

#[test]
fn common_mistakes_are_named_in_errors() {
    let lfs = json!("version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 134\n");
    let html = json!("<!DOCTYPE html>\n<html>404</html>");
    for (file, text, told) in [
        ("model.safetensors", &lfs, "git lfs pull"),
        ("tokenizer.json", &lfs, "git lfs pull"),
        ("config.json", &html, "web page"),
        ("model.safetensors", &html, "web page"),
        ("tokenizer.json", &json!(""), "empty"),
        ("model.safetensors", &json!(""), "empty"),
    ] {
        let error = refused(published(&[(file, text.clone())]).path());
        assert!(error.contains(told) && error.contains(file), "{file}: {error}");
    }
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("llama-tiny").join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    assert!(refused(published(&[("config.json", config.clone())]).path()).contains("gptq"));
    config["quantization_config"] = Value::Null;
    config["quantization"] = json!({"group_size": 64, "bits": 4});
    assert!(refused(published(&[("config.json", config)]).path()).contains("MLX"));
    let without = |remove: &str, files: &[(&str, Value)]| {
        let dir = published(files);
        std::fs::remove_file(dir.path().join(remove)).unwrap();
        refused(dir.path())
    };
    for (remove, file, told) in [
        ("model.safetensors", "pytorch_model.bin", "save_pretrained"),
        ("model.safetensors", "model.onnx", "model.onnx"),
        ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("tokenizer.json", "tokenizer.model", "tokenizer.model"),
        ("config.json", "adapter_config.json", "PEFT adapter"),
        ("config.json", "m.gguf", "m.gguf"),
        ("config.json", "inner/config.json", "inner"),
    ] {
        let error = without(remove, &[(file, json!("x"))]);
        assert!(error.contains(told), "{file}: {error}");
    }
    let index =
        json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    let error = without(
        "model.safetensors",
        &[("model.safetensors.index.json", index), ("model-00001-of-00002.safetensors", json!("x"))],
    );
    assert!(error.contains("1 of 2 shards missing: model-00002-of-00002.safetensors"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, told) in [
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      ".as_slice(), "directory"),
        ("a.bin", b"PK\x03\x04zip", "pickle"),
        ("a.gguf", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("config.json", b"{}", "directory"),
        ("b.gguf", b"", "0 bytes"),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let error = refused(&dir.path().join(name));
        assert!(error.contains(told), "{name}: {error}");
    }
}

/// Expressions that backtrack without end are refused when the model is loaded, not at somebody's request.
#[test]
fn hostile_expressions_are_refused_at_load() {
    let with = |expression: &str| {
        let mut tokenizer = words(&[], Value::Null);
        tokenizer["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        published(&[("tokenizer.json", tokenizer)])
    };
    for expression in [r"(a+)+$", r"(a|a)*$", r"(x+x+)+y", r"(\w+\s*)+:", r"(.*)*(.*)*(.*)*#"] {
        let begun = Instant::now();
        let error = refused(with(expression).path());
        assert!(error.contains("regular expressions"), "{expression}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{expression}: {:?}", begun.elapsed());
    }
    let mut decoder = words(&[], Value::Null);
    decoder["decoder"] = json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""});
    assert!(refused(published(&[("tokenizer.json", decoder)]).path()).contains("regular expressions"));
    for fine in [
        r"\s+(?!\S)|\s+|\w+",
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    ] {
        model::load(with(fine).path(), &Device::Cpu).unwrap();
    }
}

/// Damage anywhere in any side file: an error or a model, soon and in little memory.
#[test]
fn damaged_side_files_are_bounded() {
    let dir = encoder(&[
        ("modules.json", modules(&[("", "Transformer"), ("1_Pooling", "Pooling")])),
        ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true})),
        ("sentence_bert_config.json", json!({"max_seq_length": 8})),
        ("special_tokens_map.json", json!({"pad_token": "t0"})),
        ("tokenizer_config.json", json!({"model_max_length": 8})),
    ]);
    let deep = "[".repeat(200_000);
    for file in [
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "config.json",
        "tokenizer.json",
    ] {
        let path = dir.path().join(file);
        let good = std::fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..24).map(|i| good[..good.len() * i / 24].to_vec()).collect();
        damaged.extend([
            b"null".to_vec(),
            b"[]".to_vec(),
            b"{}".to_vec(),
            b"7".to_vec(),
            deep.clone().into_bytes(),
            vec![0xFF; 64],
        ]);
        for bytes in damaged {
            std::fs::write(&path, &bytes).unwrap();
            let begun = Instant::now();
            let largest = largest_in(|| drop(model::load(dir.path(), &Device::Cpu)));
            assert!(begun.elapsed() < Duration::from_secs(10), "{file}: {:?}", begun.elapsed());
            assert!(largest < 64 << 20, "{file}: {largest}");
        }
        std::fs::write(&path, &good).unwrap();
    }
    model::load(dir.path(), &Device::Cpu).unwrap();
}
