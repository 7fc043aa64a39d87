//! Import and export formats, pairs from rankings, the split.

use std::io::{BufReader, Cursor};

use instructd::data::{self, Comparison, Format, PromptInput, RankedText, Record};
use instructd::domain::{ByRating, Message, RatingValue, Split, Strength};
use proptest::prelude::*;
use serde_json::json;

use super::super::support::fixture;

fn import(format: Format, text: &str) -> Vec<Result<Record, data::LineError>> {
    data::import(format, Cursor::new(text.to_owned())).collect()
}

fn one(format: Format, text: &str) -> Record {
    let mut all = import(format, text);
    assert_eq!(all.len(), 1);
    all.remove(0).unwrap()
}

fn comparison(format: Format, text: &str) -> Comparison {
    match one(format, text) {
        Record::Comparison(c) => c,
        other => panic!("{other:?}"),
    }
}

fn user(content: &str) -> Message {
    Message { role: "user".into(), content: content.into() }
}

fn texts(c: &Comparison) -> Vec<(&str, i64)> {
    c.completions.iter().map(|c| (c.text.as_str(), c.tier)).collect()
}

#[test]
fn the_real_rankings_import_and_come_back_unchanged() {
    let path = fixture("oasst-en-ranked.jsonl");
    let file = std::fs::read_to_string(&path).unwrap();
    let records: Vec<Record> =
        data::import(Format::Comparisons, BufReader::new(file.as_bytes())).collect::<Result<_, _>>().unwrap();
    assert_eq!(records.len(), file.lines().count());
    assert_eq!(records.len(), 151);
    for (record, line) in records.iter().zip(file.lines()) {
        let back: serde_json::Value = serde_json::from_str(&data::export(Format::Comparisons, record)[0]).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(line).unwrap());
    }
    assert_eq!(data::read_comparisons(&path).unwrap().map(Result::unwrap).count(), 151);
}

#[test]
fn trl_in_every_shape() {
    let explicit = comparison(Format::Trl, r#"{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}"#);
    assert_eq!(explicit.prompt, PromptInput::Text("The sky is".into()));
    assert_eq!(texts(&explicit), [(" blue.", 0), (" green.", 1)]);

    let implicit = comparison(Format::Trl, r#"{"chosen": "The sky is blue.", "rejected": "The sky is green."}"#);
    assert_eq!(implicit.prompt, explicit.prompt);
    assert_eq!(texts(&implicit), texts(&explicit));

    let chat = json!({"prompt": [{"role": "user", "content": "What colour?"}],
        "chosen": [{"role": "assistant", "content": "Blue."}], "rejected": [{"role": "assistant", "content": "Green."}]});
    let chat = comparison(Format::Trl, &chat.to_string());
    assert_eq!(chat.prompt, PromptInput::Chat(vec![user("What colour?")]));
    assert_eq!(texts(&chat), [("Blue.", 0), ("Green.", 1)]);

    let whole = json!({"prompt": "What colour?", "score_chosen": 9,
        "chosen": [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "Green."}]});
    let whole = comparison(Format::Trl, &whole.to_string());
    assert_eq!((&whole.prompt, texts(&whole)), (&chat.prompt, texts(&chat)));

    for c in [explicit, chat] {
        let lines = data::export(Format::Trl, &Record::Comparison(c.clone()));
        assert_eq!(lines.len(), 1);
        assert_eq!(comparison(Format::Trl, &lines[0]), c);
    }
}

#[test]
fn hh_turns_become_messages() {
    let line = json!({
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Two\n\nparagraphs?\n\nAssistant: Yes.\n\nSure.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Two\n\nparagraphs?\n\nAssistant: No.",
    });
    for format in [Format::Hh, Format::Trl] {
        let c = comparison(format, &line.to_string());
        assert_eq!(
            c.prompt,
            PromptInput::Chat(vec![
                user("Hi"),
                Message { role: "assistant".into(), content: "Hello!".into() },
                user("Two\n\nparagraphs?"),
            ])
        );
        assert_eq!(texts(&c), [("Yes.\n\nSure.", 0), ("No.", 1)]);
        let back: serde_json::Value =
            serde_json::from_str(&data::export(Format::Hh, &Record::Comparison(c))[0]).unwrap();
        assert_eq!(back, line);
    }
}

#[test]
fn demonstrations_and_prompts() {
    let Record::Demonstration(d) = one(
        Format::Demonstrations,
        r#"{"messages": [{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#,
    ) else {
        panic!()
    };
    assert_eq!((d.prompt.messages(), d.completion.as_str()), (vec![user("Hi")], "Hello"));
    let line = &data::export(Format::Demonstrations, &Record::Demonstration(d.clone()))[0];
    assert_eq!(one(Format::Demonstrations, line), Record::Demonstration(d));

    for (line, prompt) in [
        (r#"{"prompt": "raw"}"#, PromptInput::Text("raw".into())),
        (r#"{"prompt": [{"role":"user","content":"a"}]}"#, PromptInput::Chat(vec![user("a")])),
        (r#"{"messages": [{"role":"prompter","content":"a"}], "lang": "en"}"#, PromptInput::Chat(vec![user("a")])),
    ] {
        let Record::Prompt(p) = one(Format::Prompts, line) else { panic!() };
        assert_eq!(p.prompt, prompt);
    }
}

#[test]
fn bad_lines_are_named_and_do_not_end_the_import() {
    let good =
        r#"{"prompt":[{"role":"user","content":"q"}],"completions":[{"text":"a","tier":0},{"text":"b","tier":0}]}"#;
    let text = [
        "\u{FEFF}".to_owned() + good,
        String::new(),
        "{".into(),
        "[1]".into(),
        r#"{"prompt":[{"role":"user","content":"q"}],"completions":[{"text":"a","tier":0}]}"#.into(),
        r#"{"prompt":[{"role":"root","content":"q"}],"completions":[{"text":"a","tier":0},{"text":"b","tier":1}]}"#
            .into(),
        r#"{"completions":[{"text":"a","tier":0},{"text":"b","tier":1}]}"#.into(),
        r#"{"prompt":"q","completions":[{"text":"a","tier":0},{"text":"b","tier":-1}]}"#.into(),
        r#"{"prompt":"q","completions":[{"text":"a","tier":0},{"text":"b","tier":1}],"strength":"very"}"#.into(),
        good.to_owned(),
    ]
    .join("\r\n");
    let found = import(Format::Comparisons, &text);
    let errors: Vec<(usize, &str)> =
        found.iter().filter_map(|r| r.as_ref().err()).map(|e| (e.line, e.message.as_str())).collect();
    let words =
        ["not JSON", "object", "2 to 64", "prompt[0].role", "`prompt` is missing", "completions[1].tier", "strength"];
    assert_eq!(errors.len(), words.len(), "{errors:?}");
    for ((line, message), (i, word)) in errors.iter().zip(words.iter().enumerate()) {
        assert_eq!(*line, i + 3, "{message}");
        assert!(message.contains(word), "{message}");
    }
    // The caller names the line, so the message names the column alone.
    assert!(errors[0].1.contains(" at column ") && !errors[0].1.contains("line"), "{:?}", errors[0]);
    assert_eq!(found.iter().filter(|r| r.is_ok()).count(), 2);

    let mut bytes = b"{\"prompt\": \"\xff\"}\n".to_vec();
    bytes.extend(vec![b'x'; 17 << 20]);
    bytes.extend(b"\n{\"prompt\": \"ok\"}");
    let found: Vec<_> = data::import(Format::Prompts, Cursor::new(bytes)).collect();
    assert_eq!(found.len(), 3);
    assert!(found[0].as_ref().unwrap_err().message.contains("UTF-8"));
    assert!(found[1].as_ref().unwrap_err().message.contains("longer"));
    assert!(found[2].is_ok());
}

#[test]
fn pairs_weigh_one_per_set() {
    let ranked =
        |tiers: &[i64]| -> Vec<RankedText> { tiers.iter().map(|t| RankedText::new(t.to_string(), *t)).collect() };
    let pairs = |tiers: &[i64]| -> Vec<(usize, usize, f32)> {
        data::pairs(&ranked(tiers)).iter().map(|p| (p.better, p.worse, p.weight)).collect()
    };
    assert_eq!(pairs(&[1, 0]), [(1, 0, 1.0)]);
    assert_eq!(pairs(&[0, 0]), []);
    assert_eq!(pairs(&[0, 1, 1]), [(0, 1, 0.5), (0, 2, 0.5)]);
    assert_eq!(pairs(&[0, 1, 2, 3]).len(), 6);
}

proptest! {
    #[test]
    fn every_untied_pair_once(tiers in prop::collection::vec(0i64..4, 2..10)) {
        let set: Vec<RankedText> = tiers.iter().map(|t| RankedText::new("", *t)).collect();
        let pairs = data::pairs(&set);
        let untied = (0..tiers.len()).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|(a, b)| tiers[*a] != tiers[*b]).count();
        prop_assert_eq!(pairs.len(), untied);
        prop_assert!(pairs.iter().all(|p| tiers[p.better] < tiers[p.worse]));
        let total: f32 = pairs.iter().map(|p| p.weight).sum();
        prop_assert!(untied == 0 || (total - 1.0).abs() < 1e-5);
    }

    #[test]
    fn any_bytes_import_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in Format::ALL {
            let _ = data::import(*format, Cursor::new(&bytes)).count();
        }
    }
}

#[test]
fn the_split_is_by_prompt_and_about_the_fraction_asked_for() {
    let side = |i: usize| data::split_of(&data::content_hash(&[user(&format!("prompt {i}"))]), 0.2);
    let heldout = (0..5000).filter(|i| side(*i) == Split::Heldout).count();
    assert!((900..1100).contains(&heldout), "{heldout}");
    assert!((0..100).all(|i| side(i) == side(i)));
    let hash = data::content_hash(&[user("x")]);
    assert_eq!((data::split_of(&hash, 0.0), data::split_of(&hash, 1.0)), (Split::Train, Split::Heldout));
    // The canonical form is part of the stored hash: it must never change.
    assert_eq!(hash, "aa97aaaade8ba2434d8f425b2568ff44673185dedebbb248eede8324edd582a1");
}

#[test]
fn a_line_keeps_strength_and_split() {
    let c = Comparison {
        prompt_id: Some("p".into()),
        prompt: PromptInput::Chat(vec![user("q")]),
        completions: vec![RankedText::new("a", 1), RankedText::new("b", 0)],
        strength: Some(Strength::Barely),
        split: Some(Split::Heldout),
        labeler: Some("ada".into()),
        labeler_kind: None,
        project: None,
        knowledge: Some(instructd::domain::Knowledge::Authors),
        explanation: Some("b is shorter".into()),
        rubric: None,
    };
    assert_eq!(c.side(0.0), Split::Heldout);
    let line = &data::export(Format::Comparisons, &Record::Comparison(c.clone()))[0];
    assert_eq!(one(Format::Comparisons, line), Record::Comparison(c));
}

#[test]
fn packing_lays_documents_end_to_end() {
    let blocks = data::corpus::pack([vec![1, 2, 3], vec![4], vec![5, 6]], Some(0), 4);
    assert_eq!(blocks, [vec![1, 2, 3, 0], vec![4, 0, 5, 6]]);
}

#[test]
fn ratings_give_an_order_of_their_own() {
    let rated = |text: &str, tier, values: &[(&str, RatingValue)]| RankedText {
        ratings: values.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        ..RankedText::new(text, tier)
    };
    let n = RatingValue::Likert;
    let line = Comparison {
        completions: vec![
            rated("a", 0, &[("q", n(2)), ("bad", RatingValue::Flag(true))]),
            rated("b", 1, &[("q", n(5)), ("bad", RatingValue::Flag(false))]),
            rated("c", 2, &[("q", n(2)), ("notes", RatingValue::Tags(vec!["t".into()]))]),
        ],
        rubric: Some("v".into()),
        strength: Some(Strength::Barely),
        ..Comparison::preferred(PromptInput::Text("p".into()), String::new(), String::new())
    };
    let by = |rubric: &str, dimension: &str, lower_is_better| {
        let by = ByRating { rubric: rubric.into(), dimension: dimension.into(), lower_is_better };
        let ranked = line.ranked_by(&by)?;
        assert_eq!((ranked.strength, ranked.rubric.as_deref()), (None, Some("v")));
        assert!(ranked.completions.iter().all(|c| c.ratings.is_empty()));
        Some(ranked.completions.iter().map(|c| (c.text.clone(), c.tier)).collect::<Vec<_>>())
    };
    let order = |places: &[(&str, i64)]| -> Option<Vec<(String, i64)>> {
        Some(places.iter().map(|(text, tier)| ((*text).to_owned(), *tier)).collect())
    };
    assert_eq!(by("v", "q", false), order(&[("b", 0), ("a", 1), ("c", 1)]), "equal ratings tie");
    assert_eq!(by("v", "q", true), order(&[("a", 0), ("c", 0), ("b", 1)]));
    assert_eq!(by("v", "bad", true), order(&[("b", 0), ("a", 1)]), "what is not rated is left out");
    for none in [by("w", "q", false), by("v", "notes", false), by("v", "other", false)] {
        assert_eq!(none, None);
    }
    assert_eq!(line.ranked_by_each().len(), 4, "both directions of a scale and a flag; tags have no order");
}
