//! Round trips of every format, real files of other programs, and preferences from feedback events.

use std::collections::BTreeSet;
use std::io::Cursor;

use instructd::data::from_feedback::{FeedbackRecord, preferences};
use instructd::data::{self, Comparison, Format, PromptInput, RankedText, Record, Written};
use instructd::domain::{CompletionId, Message, ProjectId, Prompt, PromptId, Split};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::support::fixture;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn read(format: Format, lines: &str) -> Vec<Record> {
    data::import(format, Cursor::new(lines.to_owned())).collect::<Result<_, _>>().unwrap()
}

fn comparisons(records: Vec<Record>) -> Vec<Comparison> {
    let one = |r| if let Record::Comparison(c) = r { c } else { panic!("{r:?}") };
    records.into_iter().map(one).collect()
}

fn texts(c: &Comparison) -> Vec<(&str, i64)> {
    c.completions.iter().map(|c| (c.text.as_str(), c.tier)).collect()
}

/// A ranking of a conversation of user and assistant in turn, by a labeler.
fn ranking_of(said: &[&str], answers: [&str; 2], labeler: &str) -> Comparison {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let messages = said.iter().enumerate().map(|(i, text)| message(role(i), text)).collect();
    let completions = answers.iter().enumerate().map(|(i, text)| RankedText::new(*text, i as i64)).collect();
    Comparison { labeler: Some(labeler.into()), ..Comparison::new(PromptInput::Chat(messages), completions) }
}

/// The trees of rankings that are announced and added in this order; and the rankings that come back from them.
fn planted(rankings: &[Comparison]) -> (Vec<String>, Vec<Comparison>) {
    let mut forest = data::Forest::default();
    rankings.iter().for_each(|ranking| forest.expect(ranking));
    let mut lines: Vec<String> = rankings.iter().filter_map(|ranking| forest.add(ranking)).collect();
    lines.extend(forest.finish());
    let back = comparisons(read(Format::Oasst, &lines.join("\n")));
    (lines, back)
}

#[test]
fn rankings_of_a_conversation_are_one_tree() {
    let first = ranking_of(&["q"], ["a", "b"], "ada");
    let other = ranking_of(&["another"], ["a", "b"], "ada");
    let second = ranking_of(&["q", "b", "and?"], ["c", "d"], "ada");
    // Two ways to go on with one answer, and one more turn on the first way.
    let aside = ranking_of(&["q", "b", "why?"], ["e", "f"], "ada");
    let third = ranking_of(&["q", "b", "and?", "c", "so?"], ["g", "h"], "ada");
    let foreign = ranking_of(&["q", "b", "and?"], ["c", "d"], "bob");
    let all = [first, other, second, aside, third, foreign].map(|c| c);
    let (lines, back) = planted(&all);
    assert_eq!(lines.len(), 3, "a tree of four rankings, and two of one");
    let mut wanted: Vec<_> = all.iter().map(|c| (c.prompt.messages(), texts(c).len())).collect();
    let mut found: Vec<_> = back.iter().map(|c| (c.prompt.messages(), texts(c).len())).collect();
    let by_content = |one: &(Vec<Message>, usize)| serde_json::to_string(&one.0).unwrap();
    wanted.sort_by_key(by_content);
    found.sort_by_key(by_content);
    assert_eq!(found, wanted);
    let whole: Value = serde_json::from_str(lines.iter().max_by_key(|line| line.len()).unwrap()).unwrap();
    // Every message names its parent and the tree, and has an id of its own.
    let mut seen = BTreeSet::new();
    fn walk(node: &Value, parent: &Value, tree: &Value, seen: &mut BTreeSet<String>) {
        assert_eq!((&node["parent_id"], &node["message_tree_id"]), (parent, tree));
        assert!(seen.insert(node["message_id"].as_str().unwrap().to_owned()));
        node["replies"].as_array().unwrap().iter().for_each(|reply| walk(reply, &node["message_id"], tree, seen));
    }
    walk(&whole["prompt"], &Value::Null, &whole["message_tree_id"], &mut seen);
    assert_eq!(seen.len(), 4 + 4 * 2, "four messages of the user and the answers to each");
    let went_on = &whole["prompt"]["replies"][1];
    assert_eq!((&went_on["text"], &went_on["rank"]), (&json!("b"), &json!(1)));
    assert_eq!(went_on["replies"].as_array().unwrap().len(), 2);
}

#[test]
fn a_ranking_before_the_one_with_its_answer_is_a_tree_of_its_own() {
    let first = ranking_of(&["q"], ["a", "b"], "ada");
    let second = ranking_of(&["q", "b", "and?"], ["c", "d"], "ada");
    let (lines, back) = planted(&[second.clone(), first.clone()]);
    assert_eq!((lines.len(), back.len()), (2, 2));
    // What was not announced is written too.
    let mut forest = data::Forest::default();
    assert!(forest.add(&first).is_some() && forest.add(&second).is_some() && forest.finish().is_empty());
    let system =
        Comparison::new(PromptInput::Chat(vec![message("system", "s"), message("user", "u")]), first.completions);
    assert_eq!(forest_of(&system), None, "no tree has a system message");
}

fn forest_of(ranking: &Comparison) -> Option<String> {
    let mut forest = data::Forest::default();
    forest.expect(ranking);
    forest.add(ranking)
}

#[test]
fn open_assistant_trees_give_every_ranked_group_of_replies() {
    let file = std::fs::read_to_string(fixture("formats").join("oasst-trees.jsonl")).unwrap();
    let found = comparisons(read(Format::Oasst, &file));
    assert_eq!(found.len(), 2, "a tree without replies gives nothing, and is no error");
    assert_eq!(found[0].prompt.messages(), [message("user", "Can you write a short introduction about monopsony?")]);
    assert_eq!(
        texts(&found[0]),
        [("Monopsony is a market with one buyer.", 1), ("“Monopsony” refers to a market structure.", 0)],
        "the deleted reply is left out"
    );
    let roles: Vec<String> = found[1].prompt.messages().into_iter().map(|m| m.role).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    assert_eq!(texts(&found[1]).iter().map(|t| t.1).collect::<Vec<_>>(), [0, 2, 1]);
    for bad in [
        r#"{"message_tree_id": "x"}"#,
        r#"{"prompt": {"text": "a", "role": "narrator"}}"#,
        r#"{"prompt": {"role": "prompter"}}"#,
        r#"{"prompt": {"text": "a", "role": "prompter", "replies": "none"}}"#,
        r#"{"prompt": {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "rank": -1}]}}"#,
    ] {
        let errors: Vec<_> = data::import(Format::Oasst, Cursor::new(bad.to_owned())).collect();
        assert!(errors.len() == 1 && errors[0].is_err(), "{bad}");
    }
    let deep =
        format!("{}{}", r#"{"prompt":{"text":"a","role":"prompter","replies":["#.repeat(5000), "]}}".repeat(5000));
    assert!(data::import(Format::Oasst, Cursor::new(deep)).next().unwrap().is_err(), "no stack overflow");
}

#[test]
fn parquet_of_other_programs_is_read() {
    let bytes = std::fs::read(fixture("formats").join("preferences.parquet")).unwrap();
    let found: Vec<Record> = data::parquet::read(bytes.into()).unwrap().collect::<Result<_, _>>().unwrap();
    let found = comparisons(found);
    assert_eq!(found.len(), 3);
    assert_eq!(texts(&found[0]), [("Rayleigh scattering.", 0), ("It reflects the sea.", 1)]);
    assert_eq!((found[0].split, found[1].split, found[2].split), (Some(Split::Train), Some(Split::Heldout), None));
    let messages = found[1].prompt.messages();
    assert_eq!((messages.len(), messages[3].content.as_str()), (4, "再加一？"));
    assert_eq!(texts(&found[1])[0].0, "5 😀");
    assert!(data::parquet::read(bytes::Bytes::from_static(b"no parquet at all")).is_err());
    assert!(data::parquet::read(bytes::Bytes::new()).is_err());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("é 雨 😀\n\"quoted\"".to_owned()), "[ -~]{1,30}", "[a-c]{1,3}"]
}

/// A conversation that every format can hold: user first, user last.
fn conversation() -> impl Strategy<Value = Vec<Message>> {
    (0usize..3, prop::collection::vec(text(), 5)).prop_map(|(rounds, texts)| {
        let turn = |i: usize| message(if i.is_multiple_of(2) { "user" } else { "assistant" }, &texts[i]);
        (0..2 * rounds + 1).map(turn).collect()
    })
}

fn ranking() -> impl Strategy<Value = Comparison> {
    let completions = prop::collection::vec((text(), 0i64..4), 2..6);
    let split = prop_oneof![Just(None), Just(Some(Split::Train)), Just(Some(Split::Heldout))];
    (conversation(), completions, split).prop_map(|(prompt, completions, split)| Comparison {
        prompt_id: None,
        prompt: PromptInput::Chat(prompt),
        completions: completions.into_iter().map(|(text, tier)| RankedText::new(text, tier)).collect(),
        strength: None,
        split,
        labeler: None,
        labeler_kind: None,
        project: None,
        knowledge: None,
        explanation: None,
        rubric: None,
    })
}

/// (prompt, better, worse) of every strict pair.
fn pair_set(all: &[Comparison]) -> Vec<(Vec<Message>, String, String)> {
    let mut pairs: Vec<_> = all
        .iter()
        .flat_map(|c| {
            data::pairs(&c.completions).into_iter().map(|p| {
                let text = |i: usize| c.completions[i].text.clone();
                (c.prompt.messages(), text(p.better), text(p.worse))
            })
        })
        .collect();
    pairs.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
    pairs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn k_wise_formats_round_trip(all in prop::collection::vec(ranking(), 1..6)) {
        for format in [Format::Comparisons, Format::Oasst] {
            let lines: Vec<String> =
                all.iter().flat_map(|c| data::export(format, &Record::Comparison(c.clone()))).collect();
            prop_assert_eq!(lines.len(), all.len());
            let back = comparisons(read(format, &lines.join("\n")));
            // Trees know nothing of our split.
            let expected: Vec<Comparison> = match format {
                Format::Oasst => all.iter().map(|c| Comparison { split: None, ..c.clone() }).collect(),
                _ => all.clone(),
            };
            prop_assert_eq!(back, expected);
        }
    }

    #[test]
    fn pairwise_formats_keep_every_preference(all in prop::collection::vec(ranking(), 1..6)) {
        let lines = |format| {
            let lines = all.iter().flat_map(|c| data::export(format, &Record::Comparison(c.clone())));
            lines.collect::<Vec<_>>().join("\n")
        };
        prop_assert_eq!(pair_set(&comparisons(read(Format::Trl, &lines(Format::Trl)))), pair_set(&all));
        let file = data::parquet::write(&all).unwrap();
        let back: Vec<Record> = data::parquet::read(file.into()).unwrap().collect::<Result<_, _>>().unwrap();
        let back = comparisons(back);
        prop_assert_eq!(pair_set(&back), pair_set(&all));
        let heldout = |all: &[Comparison]| {
            pair_set(&all.iter().filter(|c| c.split == Some(Split::Heldout)).cloned().collect::<Vec<_>>())
        };
        prop_assert_eq!(heldout(&back), heldout(&all));
    }

    #[test]
    fn pairs_of_a_ranking_follow_its_tiers(tiers in prop::collection::vec(0i64..5, 2..10)) {
        let completions: Vec<RankedText> = tiers.iter().map(|t| RankedText::new("x", *t)).collect();
        let pairs = data::pairs(&completions);
        let tied = tiers.iter().enumerate().map(|(i, a)| tiers[i + 1..].iter().filter(|b| *b == a).count()).sum::<usize>();
        prop_assert_eq!(pairs.len(), tiers.len() * (tiers.len() - 1) / 2 - tied);
        for pair in &pairs {
            prop_assert!(tiers[pair.better] < tiers[pair.worse]);
        }
        let weight: f32 = pairs.iter().map(|p| p.weight).sum();
        prop_assert!(pairs.is_empty() || (weight - 1.0).abs() < 1e-5, "one set, one vote: {}", weight);
        let mut seen: Vec<_> = pairs.iter().map(|p| (p.better.min(p.worse), p.better.max(p.worse))).collect();
        seen.sort_unstable();
        let n = seen.len();
        seen.dedup();
        prop_assert_eq!(seen.len(), n, "each pair once");
    }
}

/// HH marks turns inside the text, so only conversations without such marks can come back.
#[test]
fn hh_and_demonstrations_round_trip() {
    let chat =
        PromptInput::Chat(vec![message("user", "Hi"), message("assistant", "Hello!\n\nHow?"), message("user", "Well")]);
    let ranked = |text: &str, tier| RankedText::new(text, tier);
    let comparison = Comparison {
        prompt_id: None,
        prompt: chat.clone(),
        completions: vec![ranked("good\n\nindeed", 0), ranked("so", 1), ranked("also so", 1)],
        strength: None,
        split: None,
        labeler: None,
        labeler_kind: None,
        project: None,
        knowledge: None,
        explanation: None,
        rubric: None,
    };
    let lines = data::export(Format::Hh, &Record::Comparison(comparison.clone()));
    assert_eq!(lines.len(), 2, "ties give no line");
    assert_eq!(pair_set(&comparisons(read(Format::Hh, &lines.join("\n")))), pair_set(&[comparison]));
    let written = Record::Demonstration(Written {
        prompt_id: None,
        prompt: chat,
        completion: "it is".into(),
        corrects: None,
        labeler: Some("ada".into()),
        project: None,
    });
    let lines = data::export(Format::Demonstrations, &written);
    assert_eq!(read(Format::Demonstrations, &lines[0]), [written]);
}

#[test]
fn feedback_becomes_preferences() {
    let prompt = |id: &str| Prompt {
        id: PromptId::from(id),
        project_id: ProjectId::first(),
        messages: vec![message("user", id)],
        lang: None,
        source: "chat".into(),
        content_hash: id.into(),
        split: Split::Train,
        tags: vec![],
        answer: None,
        created: 0,
    };
    let (p, q) = (prompt("p"), prompt("q"));
    let ids: Vec<CompletionId> = ["a", "b", "c", "d"].map(CompletionId::from).to_vec();
    let events: Vec<(&Prompt, usize, &str, Value, &str)> = vec![
        (&p, 0, "edit", json!("first try"), "u1"),
        (&p, 0, "edit", json!("better a"), "u1"),
        (&p, 1, "edit", json!("text b"), "u1"), // changed nothing
        (&p, 0, "thumb", json!("up"), "u1"),
        (&p, 0, "thumb", json!(-1), "u2"),
        (&p, 1, "thumb", json!(false), "u2"),
        (&p, 2, "thumb", json!("down"), "u3"),
        (&p, 2, "thumb", json!(1), "u3"), // changed his mind
        (&q, 3, "score", json!(9), "u1"), // alone with its user and prompt
        (&p, 0, "score", json!(2), "u1"),
        (&p, 1, "score", json!(5.5), "u1"),
        (&p, 2, "score", json!(100), "u2"), // another scale
        (&p, 0, "comment", json!("hm"), "u1"),
    ];
    let texts_of = ["text a", "text b", "text c", "text d"];
    let told: Vec<FeedbackRecord> = events
        .iter()
        .map(|(prompt, i, kind, value, actor)| FeedbackRecord {
            prompt,
            completion_id: &ids[*i],
            text: texts_of[*i],
            kind,
            value,
            actor,
        })
        .collect();
    let found = preferences(&told);
    let all: Vec<_> = found.iter().map(texts).collect();
    assert_eq!(
        all,
        [
            vec![("better a", 0), ("text a", 1)],
            vec![("text c", 0), ("text a", 1), ("text b", 2)],
            vec![("text b", 0), ("text a", 1)],
        ]
    );
    assert!(found.iter().all(|c| c.split == Some(Split::Train) && c.prompt_id.as_deref() == Some("p")));
}
