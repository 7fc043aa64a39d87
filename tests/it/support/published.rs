//! Model directories as people publish them: the weights of a tiny fixture with other files around them.

use std::path::Path;

use serde_json::{Value, json};

use super::{copy_dir, fixture};

/// `llama-tiny` with these files written over its own.
pub fn published(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = copy_dir(&fixture("llama-tiny"));
    write(dir.path(), files);
    dir
}

/// Texts are written as they are, everything else as JSON.
pub fn write(dir: &Path, files: &[(&str, Value)]) {
    for (name, value) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.as_str().map_or_else(|| value.to_string(), str::to_owned)).unwrap();
    }
}

fn added(tokens: &[(u32, &str)]) -> Value {
    let one = |(id, text): &(u32, &str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    tokens.iter().map(one).collect()
}

/// Begin and end tokens around a text.
pub fn framed(before: Option<(u32, &str)>, after: Option<(u32, &str)>) -> Value {
    let piece =
        |token: &Option<(u32, &str)>| token.map(|(_, name)| json!({"SpecialToken": {"id": name, "type_id": 0}}));
    let single: Vec<Value> = piece(&before)
        .into_iter()
        .chain([json!({"Sequence": {"id": "A", "type_id": 0}})])
        .chain(piece(&after))
        .collect();
    let special: serde_json::Map<String, Value> = before
        .iter()
        .chain(&after)
        .map(|(id, name)| ((*name).to_owned(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special})
}

/// Words `t0` … `t95`, some of them replaced by special tokens.
pub fn words(specials: &[(u32, &str)], post_processor: Value) -> Value {
    let name =
        |id: u32| specials.iter().find(|(s, _)| *s == id).map_or_else(|| format!("t{id}"), |(_, n)| (*n).to_owned());
    let vocab: serde_json::Map<String, Value> = (0..96).map(|id| (name(id), json!(id))).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added(specials), "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": post_processor, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": name(0)}})
}

const PIECES: [&str; 46] = [
    "<unk>", "<s>", "</s>", "▁", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
    "r", "s", "t", "u", "v", "w", "x", "y", "z", ".", "!", "el", "ll", "he", "hel", "hell", "hello", "▁hello", "▁w",
    "or", "ld", "▁wor", "▁world", "<0xC3>", "<0xA9>",
];
pub const HELLO: u32 = 38;
pub const WORLD: u32 = 43;

/// Llama's kind: a space before every text, `▁` for spaces. `metaspace` names the newer form's scheme.
pub fn sentencepiece(metaspace: Option<&str>) -> Value {
    let vocab: serde_json::Map<String, Value> = (0..96)
        .map(|id: usize| (PIECES.get(id).map_or_else(|| format!("<unused{id}>"), |p| (*p).to_owned()), json!(id)))
        .collect();
    let merges = ["h e", "l l", "he ll", "hell o", "▁ hello", "▁ w", "o r", "l d", "▁w or", "▁wor ld"];
    let merges: Vec<Vec<&str>> = merges.iter().map(|m| m.split(' ').collect()).collect();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let (normalizer, pre_tokenizer) = match metaspace {
        None => (
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}),
            Value::Null,
        ),
        Some(scheme) => {
            (Value::Null, json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}))
        }
    };
    json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&[(0, "<unk>"), (1, "<s>"), (2, "</s>")]),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": framed(Some((1, "<s>")), None),
        "decoder": {"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges}})
}

/// Byte-level: id 4 to 7 are the bytes of 😀, 8 and 9 those of é, 10 to 35 the letters.
pub fn byte_level() -> Value {
    let first = ["<s>", "</s>", "Ġ", "!", "ð", "Ł", "ĺ", "Ģ", "Ã", "©"];
    let name = |id: u32| match (id, first.get(id as usize)) {
        (_, Some(text)) => (*text).to_owned(),
        (10..36, _) => char::from(b'a' + (id - 10) as u8).to_string(),
        _ => format!("<unused{id}>"),
    };
    let vocab: serde_json::Map<String, Value> = (0..96).map(|id| (name(id), json!(id))).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added(&[(0, "<s>"), (1, "</s>")]),
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}})
}
