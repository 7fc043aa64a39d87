//! Classifiers and reward models that other programs saved, beside transformers' values (tests/fixtures/make_classifiers.py).

use candle_core::Device;
use instructd::domain::{Message, PromptInput};
use instructd::model::heads::classifier::Classifier;
use instructd::model::{RewardModel, load};
use instructd::prompt::Texts;
use serde_json::Value;

use crate::support::fixture;

#[test]
fn foreign_classifiers_read_texts_as_transformers_does() {
    for name in ["decoder-begin", "decoder-padding", "decoder-plain", "encoder-roberta"] {
        let dir = fixture("classifiers").join(name);
        let expected: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
        let texts: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let classifier = Classifier::new(&load(&dir, &Device::Cpu).unwrap()).unwrap();
        let got = classifier.classify(&texts, 16).unwrap();
        for (text, (row, want)) in texts.iter().zip(got.iter().zip(expected["logprobs"].as_array().unwrap())) {
            for (label, value) in row.iter().enumerate() {
                let want = want[label].as_f64().unwrap();
                assert!((f64::from(*value) - want).abs() < 1e-5, "{name}, {text:?}: {value}, not {want}");
            }
        }
    }
}

#[test]
fn foreign_reward_models_read_conversations_as_transformers_does() {
    for name in ["reward-line-end", "reward-padding"] {
        let dir = fixture("classifiers").join(name);
        let expected: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
        let loaded = load(&dir, &Device::Cpu).unwrap();
        let (texts, model) = (Texts::for_scores(&loaded).unwrap(), RewardModel::new(&loaded).unwrap());
        for (talk, want) in
            expected["conversations"].as_array().unwrap().iter().zip(expected["scores"].as_array().unwrap())
        {
            let mut messages: Vec<Message> = serde_json::from_value(talk.clone()).unwrap();
            let answer = messages.pop().unwrap().content;
            let ids = texts.conversations(&[(&PromptInput::Chat(messages), &answer)], 160).unwrap();
            let (got, want) = (model.score(&ids, 160).unwrap()[0], want.as_f64().unwrap());
            assert!((got - want).abs() < 1e-5, "{name}, {answer:?}: {got}, not {want}");
        }
    }
}
