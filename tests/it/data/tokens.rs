//! Token ids are Hugging Face's; user text never becomes a special token; streamed text is the whole text.

use candle_core::Device;
use instructd::model;
use instructd::tokenizer::{Specials, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

use super::super::support::published::{framed, words};
use super::super::support::{fixture, smollm2};

/// Byte-level BPE over all bytes with a few merges and two special tokens.
pub fn byte_tokenizer() -> Tokenizer {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = vec!["<|start|>".into(), "<|end|>".into()];
    tokens.extend(alphabet.iter().map(|c| c.to_string()));
    tokens.extend(["ä½", "he", "Ġt", "Ġthe"].map(String::from));
    let vocabulary = instructd::tokenizer::gguf::Vocabulary {
        model: "gpt2".into(),
        pre: "smollm".into(),
        kinds: (0..tokens.len() as u64).map(|i| if i < 2 { 3 } else { 1 }).collect(),
        tokens,
        merges: ["ä ½", "h e", "Ġ t", "Ġt he"].map(String::from).to_vec(),
        bos: Some(0),
        eos: Some(1),
        ..Default::default()
    };
    Tokenizer::from_gguf(vocabulary, &[1]).unwrap()
}

#[test]
fn user_text_is_never_special() {
    let tokenizer = byte_tokenizer();
    let text = "hi<|end|> the <|start|>";
    let plain = tokenizer.encode(text, true, false).unwrap();
    assert!(plain.iter().all(|id| !tokenizer.is_special(*id)), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    let parsed = tokenizer.encode(text, true, true).unwrap();
    assert_eq!(parsed.iter().filter(|id| tokenizer.is_special(**id)).count(), 2);
    assert_eq!(tokenizer.decode(&parsed, true).unwrap(), "hi the ");
    assert_eq!(tokenizer.decode(&parsed, false).unwrap(), text);
}

#[test]
fn a_break_forbids_only_the_token_across_it() {
    let tokenizer = byte_tokenizer();
    let text = "<|end|><|end|><|end|>";
    for (breaks, special) in
        [(vec![], 3), (vec![0], 3), (vec![7], 3), (vec![8], 2), (vec![1, 20], 1), (vec![6, 13, 15], 0), (vec![21], 3)]
    {
        let ids = tokenizer.encode_with(text, false, Specials::Between(&breaks)).unwrap();
        assert_eq!(ids.iter().filter(|id| tokenizer.is_special(**id)).count(), special, "{breaks:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

/// As transformers 5: `add_bos_token` and `add_eos_token` of tokenizer_config.json go before the post-processor of
/// tokenizer.json, and one that is not given counts as false beside the other.
#[test]
fn flags_of_the_configuration_say_what_surrounds_a_text() {
    let specials = [(1, "<s>"), (2, "</s>")];
    let (none, both) = (json!(null), framed(Some((1, "<s>")), Some((2, "</s>"))));
    let names = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    for (processor, flags, ids, open) in [
        (&none, json!({}), vec![7], vec![7]),
        (&none, json!({"add_bos_token": true}), vec![1, 7], vec![1, 7]),
        (&none, json!({"add_bos_token": true, "add_eos_token": true}), vec![1, 7, 2], vec![1, 7]),
        (&both, json!({}), vec![1, 7, 2], vec![1, 7]),
        (&both, json!({"add_bos_token": true, "add_eos_token": true}), vec![1, 7, 2], vec![1, 7]),
        (&both, json!({"add_bos_token": true}), vec![1, 7], vec![1, 7]),
        (&both, json!({"add_eos_token": false}), vec![7], vec![7]),
        (&both, json!({"add_bos_token": null}), vec![1, 7, 2], vec![1, 7]),
        (&none, json!({"add_bos_token": true, "bos_token": null}), vec![7], vec![7]),
        (&none, json!({"add_bos_token": true, "bos_token": "<other>"}), vec![7], vec![7]),
    ] {
        let mut config = names.clone();
        config.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        let text = words(&specials, processor.clone()).to_string();
        let tokenizer = Tokenizer::from_json(&text, Some(config.clone()), &[2]).unwrap();
        assert_eq!(tokenizer.encode("t7", true, false).unwrap(), ids, "{flags}");
        assert_eq!(tokenizer.encode_open("t7", false).unwrap(), open, "{flags}");
        assert_eq!(tokenizer.encode("t7", false, false).unwrap(), [7]);
        // The file that is saved says the same by itself.
        let saved = Tokenizer::from_json(&tokenizer.to_json().unwrap(), None, &[2]).unwrap();
        assert_eq!(saved.encode("t7", true, false).unwrap(), ids, "{flags}");
    }
}

#[test]
fn ids_outside_the_vocabulary_give_nothing() {
    let tokenizer = byte_tokenizer();
    assert_eq!(tokenizer.decode(&[u32::MAX, 999_999], false).unwrap(), "");
    assert_eq!(tokenizer.token_text(u32::MAX), "");
    assert!(tokenizer.incremental(&[], false).push(u32::MAX).is_empty());
}

#[test]
fn fixture_tokens_stream() {
    let tokenizer = model::describe(&fixture("llama-tiny")).unwrap().tokenizer.unwrap();
    let ids = tokenizer.encode("t5 t77 t3 t0", true, false).unwrap();
    assert_eq!(ids, [5, 77, 3, 0]);
    let mut decoder = tokenizer.incremental(&[], false);
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    assert_eq!(text, "t5 t77 t3 t0");
}

#[test]
fn smollm2_ids_are_hugging_faces() {
    let Some(path) = smollm2() else { return };
    let tokenizer = model::describe(&path).unwrap().tokenizer.unwrap();
    let text = std::fs::read_to_string(fixture("smollm2.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = reference["rows"].as_array().unwrap();
    let mut checked = 0;
    for row in rows.iter().filter(|row| row["kind"] == "text") {
        let ids = tokenizer.encode(row["input"].as_str().unwrap(), true, false).unwrap();
        assert_eq!(json!(ids), row["token_ids"], "{}", row["input"]);
        assert_eq!(json!(tokenizer.decode(&ids, false).unwrap()), row["input"]);
        checked += 1;
    }
    assert_eq!(checked, 5);
    for row in rows {
        let ids: Vec<u32> = serde_json::from_value(row["greedy_24"].clone()).unwrap();
        assert_eq!(json!(tokenizer.decode(&ids, false).unwrap()), row["greedy_24_text"]);
    }
}

/// Whatever the tokenizers crate does with a text, the wrapper does.
#[test]
fn ids_equal_the_crates_own() {
    let tokenizer = byte_tokenizer();
    let plain = tokenizers::Tokenizer::from_bytes(tokenizer.to_json().unwrap()).unwrap();
    for text in ["", " ", "the  the\n\t 12345 naïve 你好 😀", "<|start|>the<|end|>", "a<|end|", "  <|end|>  x"] {
        let expected = plain.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.encode(text, true, true).unwrap(), expected, "{text:?}");
    }
}

proptest! {
    /// Any ids, valid UTF-8 or not: the parts are the whole, and no part ends inside a character.
    #[test]
    fn streaming_is_lossless(ids in prop::collection::vec(0u32..262, 0..40)) {
        let tokenizer = byte_tokenizer();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let mut decoder = tokenizer.incremental(&[], false);
        let mut text = String::new();
        for (i, id) in ids.iter().enumerate() {
            text.push_str(&decoder.push(*id));
            // What is held back is at most the beginning of one character.
            let so_far: Vec<u8> = ids[..=i].iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
            prop_assert!(String::from_utf8_lossy(&so_far).starts_with(&text));
        }
        text.push_str(&decoder.finish());
        prop_assert_eq!(&text, &whole);
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), whole);
    }

    /// A damaged tokenizer.json is an error or another tokenizer, never a panic.
    #[test]
    fn damaged_tokenizers_never_panic(changes in prop::collection::vec((0usize..100_000, any::<u8>()), 1..4), cut in 0usize..200) {
        let mut bytes = byte_tokenizer().to_json().unwrap().into_bytes();
        let length = bytes.len();
        for (at, value) in changes {
            bytes[at % length] = value;
        }
        bytes.truncate(length.saturating_sub(cut.saturating_sub(150)));
        if let Ok(tokenizer) = Tokenizer::from_json(&String::from_utf8_lossy(&bytes), None, &[]) {
            let _ = tokenizer.encode("the <|end|> 12 你好", true, true).map(|ids| tokenizer.decode(&ids, false));
        }
    }

    #[test]
    fn text_survives(text in "\\PC{0,40}") {
        let tokenizer = byte_tokenizer();
        let ids = tokenizer.encode(&text, false, false).unwrap();
        let mut decoder = tokenizer.incremental(&[], false);
        let mut streamed = String::new();
        for id in ids {
            let part = decoder.push(id);
            let replaced = part.contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!replaced || text.contains(char::REPLACEMENT_CHARACTER));
            streamed.push_str(&part);
        }
        streamed.push_str(&decoder.finish());
        prop_assert_eq!(streamed, text);
    }
}

#[test]
fn loading_with_a_device_keeps_the_tokenizer() {
    let loaded = model::load(&fixture("gpt2-tiny"), &Device::Cpu).unwrap();
    assert_eq!(loaded.tokenizer.unwrap().eos_ids(), [0]);
}
