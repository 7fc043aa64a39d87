//! A language model as a judge that training loads: its probabilities are those of its distribution, and recipes learn
//! from its grades and comparisons.

use std::path::Path;

use candle_core::{D, DType, Device};
use instructd::domain::{Message, PromptInput};
use instructd::model::{Decoder, PackedBatch, Purpose, load};
use instructd::objective::logprobs::log_softmax;
use instructd::prompt::Texts;
use instructd::train::TrainOutcome;
use instructd::train::args::{DeviceArg, Precision};
use instructd::train::judge::{Judge, LocalJudge, Question};
use instructd::train::on_device::RunDevice;
use serde_json::{Value, json};

use super::recipes::{fails, rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::{Recorder, byte_level, random_model, sentencepiece};

const GRADES: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

fn tokenizer_config() -> Value {
    json!({"eos_token": "<end>", "chat_template":
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"})
}

/// A judge that knows nothing. `ten`: whether "10" is one token.
pub fn judge(ten: bool) -> tempfile::TempDir {
    let mut tokenizer = byte_level(&["<end>"], &[]);
    if !ten {
        let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|merge| *merge != json!(["1", "0"]));
    }
    random_model(&tokenizer, &tokenizer_config(), 0)
}

fn open(dir: &Path, max_tokens: usize) -> LocalJudge {
    LocalJudge::open(&dir.display().to_string(), &Device::Cpu, Purpose::Score, max_tokens).unwrap()
}

fn question(conversation: &str) -> Question {
    Question { before: "Judge.\n".into(), conversation: conversation.into(), after: "\nGrade?".into() }
}

/// ln p of the ids behind a prompt, by a forward pass over everything.
fn logprob(decoder: &Decoder, prompt: &[u32], ids: &[u32]) -> f64 {
    let all = [prompt, ids].concat();
    let hidden = decoder.forward(&PackedBatch::new(&[all.as_slice()])).unwrap();
    let logits = decoder.logits(&hidden).unwrap().to_dtype(DType::F64).unwrap();
    let rows = log_softmax(&logits).unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(rows[0].len(), logits.dim(D::Minus1).unwrap());
    ids.iter().enumerate().map(|(k, id)| rows[prompt.len() + k - 1][*id as usize]).sum()
}

/// The probability that the judge's reply is a choice, with or without a space before it: of "1" what does not go on as
/// "10".
fn by_hand(dir: &Path, question: &Question, ten: bool) -> Vec<f64> {
    let loaded = load(dir, &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let message = Message { role: "user".into(), content: question.text() };
    let prompt = texts.prompt(&PromptInput::Chat(vec![message])).unwrap();
    let p = |text: &str| {
        let ids = texts.continuation(&prompt, text).unwrap();
        logprob(&decoder, &prompt, &ids).exp()
    };
    let mut probabilities: Vec<f64> = GRADES.iter().map(|grade| p(grade) + p(&format!(" {grade}"))).collect();
    if !ten {
        assert_eq!(texts.continuation(&prompt, "10").unwrap().len(), 2);
        probabilities[0] -= probabilities[9];
    }
    probabilities
}

#[test]
fn probabilities_of_choices_are_those_of_whole_replies() {
    for ten in [true, false] {
        let dir = judge(ten);
        let questions =
            ["Who?", "What is it that makes a long question longer than another one?", "Who?"].map(question);
        let found = open(dir.path(), 4096).probabilities(&questions, &GRADES).unwrap();
        for (question, probabilities) in questions.iter().zip(&found) {
            let expected = by_hand(dir.path(), question, ten);
            for (mass, expected) in probabilities.iter().zip(&expected) {
                assert!(*expected > 0.0 && (mass / expected - 1.0).abs() < 1e-3, "{probabilities:?} {expected:?}");
            }
            assert!(probabilities.iter().sum::<f64>() < 1.0);
        }
        assert_eq!(found[0], found[2], "the same question has the same answer");
        assert_ne!(found[0], found[1]);
        // Batches change no bit.
        assert_eq!(found, open(dir.path(), 1).probabilities(&questions, &GRADES).unwrap());
    }
}

#[test]
fn vocabularies_that_put_a_space_before_texts_judge_too() {
    let dir = random_model(&sentencepiece(&["<end>"], &[]), &tokenizer_config(), 0);
    let probabilities = open(dir.path(), 4096).probabilities(&[question("Who?")], &["A", "B"]).unwrap().remove(0);
    assert!(
        probabilities.iter().all(|mass| *mass > 0.0) && probabilities.iter().sum::<f64>() < 1.0,
        "{probabilities:?}"
    );
}

#[test]
fn a_question_that_is_too_long_loses_the_beginning_of_the_conversation() {
    let dir = judge(true);
    let open = open(dir.path(), 4096);
    // The model has 2048 positions; one letter is one token.
    let long = format!("{}end", "x".repeat(5000));
    let probabilities = open.probabilities(&[question(&long)], &["A", "B"]).unwrap();
    assert!(probabilities[0].iter().all(|mass| mass.is_finite() && *mass > 0.0));
    let answer = Question { after: "x".repeat(5000), ..question("Who?") };
    let error = open.probabilities(&[answer], &["A", "B"]).unwrap_err().to_string();
    assert!(error.contains("longer than the judge's"), "{error}");
}

#[test]
fn a_judge_on_a_device_has_the_probabilities_of_the_cpu() {
    let questions = ["Who?", "What is it that you ask?", "A"].map(question);
    for ten in [true, false] {
        let dir = judge(ten);
        let want = open(dir.path(), 4096).probabilities(&questions, &GRADES).unwrap();
        let device = RunDevice::for_evaluation(DeviceArg::Sim, Precision::F32).unwrap().unwrap();
        let path = dir.path().display().to_string();
        let of = |max_tokens: usize| {
            let judge = LocalJudge::on_device(&path, &device, max_tokens).unwrap();
            judge.probabilities(&questions, &GRADES).unwrap()
        };
        let got = of(4096);
        for (a, b) in want.iter().flatten().zip(got.iter().flatten()) {
            assert!((a - b).abs() <= 1e-5 * a, "{b}, not {a}");
        }
        assert_eq!(of(1), got, "one at a time");
    }
}

#[test]
fn a_vocabulary_without_the_choices_is_refused() {
    // Its words are t0, t1, …: every letter is the unknown token.
    let error = open(Path::new(&World::model()), 4096).probabilities(&[question("t5")], &["A", "B"]).unwrap_err();
    assert!(error.to_string().contains("another model as the judge"), "{error}");
    let encoder = crate::support::fixture("bert-tiny").display().to_string();
    let error = LocalJudge::open(&encoder, &Device::Cpu, Purpose::Score, 99).err().unwrap().to_string();
    assert!(error.contains("encoder"), "{error}");
}

/// A recipe judged by a random model; the world's own model is the policy.
fn judged(world: &World, judge: &Path, out: &str, by: &str) -> Value {
    with(
        &rl(world, out),
        json!({
            "reward": {"kind": "judge", "by": by}, "judge_model": judge, "group_size": 4, "rollout_batch_size": 8,
            "iterations": 2, "micro_batch_tokens": 4096,
        }),
    )
}

#[test]
fn a_round_of_a_judge_on_a_device_is_that_of_the_cpu() {
    let (world, dir) = (World::new(), judge(true));
    for by in ["grades", "pairs"] {
        let args = with(&judged(&world, dir.path(), "out", by), json!({"iterations": 1, "response_length": 5}));
        let on = |device: &str| train("rloo", &with(&args, json!({"device": device}))).0;
        let (host, device) = (on("cpu"), on("sim"));
        for name in ["reward", "judge_on_choices"] {
            let (a, b) = (host.curve(name), device.curve(name));
            assert_eq!((a.len(), b.len()), (1, 1), "{by}: {name}");
            assert!((a[0] - b[0]).abs() <= 1e-4 * a[0], "{by}: {name} is {}, not {}", b[0], a[0]);
        }
    }
}

#[test]
fn recipes_learn_from_grades_and_from_comparisons() {
    let (world, dir) = (World::new(), judge(true));
    for recipe in ["rloo", "grpo", "online_dpo", "raft"] {
        for by in ["grades", "pairs"] {
            let (recorder, _) = train(recipe, &judged(&world, dir.path(), "out", by));
            let rewards = recorder.curve("reward");
            match by {
                "grades" => {
                    assert!(rewards.iter().all(|grade| *grade > 1.0 && *grade < 10.0), "{rewards:?}");
                    assert!(recorder.curve("judge_consistency").is_empty());
                }
                _ => {
                    // Whoever wins, somebody loses.
                    assert!(rewards.iter().all(|rate| (rate - 0.5).abs() < 1e-6), "{rewards:?}");
                    for name in ["judge_consistency", "judge_first_place"] {
                        assert!(recorder.curve(name).iter().all(|share| (0.0..=1.0).contains(share)), "{name}");
                    }
                    assert!(recorder.events("sample").iter().all(|sample| sample["score"].is_null()));
                }
            }
            assert!(recorder.curve("judge_on_choices").iter().all(|mass| *mass > 0.0 && *mass < 1.0));
            assert_eq!(recorder.curve("judge_without_answer"), [0.0; 2]);
            assert!(recorder.curve("grad_norm").iter().all(|norm| *norm > 0.0), "{recipe} {by}");
        }
    }
    // One response for each prompt is graded, and cannot be compared.
    let ppo = |by: &str| {
        let mut args = judged(&world, dir.path(), "out", by);
        args.as_object_mut().unwrap().remove("group_size");
        args
    };
    assert!(train("ppo", &ppo("grades")).0.last("reward") > 1.0);
    let error = fails("ppo", &ppo("pairs"));
    assert!(error.contains("set `by` to grades"), "{error}");
}

#[test]
fn a_judge_is_a_term_of_a_sum_and_a_held_out_reward() {
    let (world, dir) = (World::new(), judge(true));
    let alone = train("rloo", &judged(&world, dir.path(), "out", "grades")).0;
    let sum = json!({"kind": "sum", "terms": [
        {"weight": 2.0, "reward": {"kind": "judge"}}, {"weight": 0.0, "reward": {"kind": "length", "target": 3}}]});
    let twice = train("rloo", &with(&judged(&world, dir.path(), "out", "grades"), json!({"reward": sum}))).0;
    assert!((twice.curve("reward")[0] - 2.0 * alone.curve("reward")[0]).abs() < 1e-9);
    let gold = json!({"reward": {"kind": "length", "target": 3}, "gold_reward": {"kind": "judge"}});
    let gold = train("rloo", &with(&judged(&world, dir.path(), "out", "grades"), gold)).0;
    assert_eq!(gold.curve("gold")[0], alone.curve("reward")[0], "the same first responses, graded by the same judge");
    assert!(gold.curve("judge_on_choices").is_empty(), "the curves of a judge are those of the reward");
}

#[test]
fn a_judged_run_resumes_with_the_bits_of_an_uninterrupted_one() {
    let (world, dir) = (World::new(), judge(false));
    let args = with(&judged(&world, dir.path(), "whole", "pairs"), json!({"iterations": 3}));
    train("online_dpo", &args);
    let checkpoints = tempfile::tempdir().unwrap();
    let parts =
        with(&args, json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true}));
    let run = |args: &Value| {
        let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
        (instructd::train::recipe("online_dpo").unwrap().run)(args, &mut recorder)
    };
    let TrainOutcome::Stopped { .. } = run(&parts).unwrap() else { panic!("it did not stop") };
    // Another judge would grade the rest of the run by other measures.
    let other = judge(true);
    let weights = other.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = format!("{:#}", run(&with(&parts, json!({"judge_model": other.path()}))).unwrap_err());
    assert!(error.contains("another file for judge_model"), "{error}");
    while let TrainOutcome::Stopped { .. } = run(&parts).unwrap() {}
    let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("parts"));
}

#[test]
fn a_judge_that_is_not_there_is_said_before_anything_begins() {
    let (world, dir) = (World::new(), judge(true));
    let args = judged(&world, dir.path(), "out", "grades");
    for (more, words) in [
        (json!({"judge_model": null}), "judge_model: is required"),
        (json!({"reward": {"kind": "length", "target": 3}}), "judge_model: has no effect"),
        (json!({"judge_model": null, "reward": {"kind": "judge", "host": "large"}}), "no judge 'large'"),
        (json!({"reward": {"kind": "judge", "rubric": " "}}), "reward.rubric"),
        (json!({"judge_model": world.path("nothing")}), "judge_model"),
    ] {
        let error = fails("rloo", &with(&args, more.clone()));
        assert!(error.contains(words), "{more}: {error}");
    }
}
