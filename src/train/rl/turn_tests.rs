//! Tests of conversations whose answers the policy samples: the ids of the history, log-probs and gradients of all answers,
//! what rewards read, and the advantages across turns.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::Device;
use serde_json::{Value, json};

use super::response::Answer;
use super::rollout::{Rollout, RoundMonitor, Sampler};
use super::{Algorithm, Ensemble, Reward, RewardServices, Sources, advantages};
use crate::data::PromptInput;
use crate::domain::Message;
use crate::model::{self, Decoder, Loaded, Purpose};
use crate::objective::reinforce::RunningBaseline;
use crate::prompt::{ConversationIds, Texts};
use crate::train::args::{PpoArgs, parse};
use crate::train::optim::Params;
use crate::train::remote::{RemoteItem, RemoteReward};
use crate::train::sft::backbone_and_output;
use crate::train::step::{Accumulator, PredictionBatch, Sequence, TurnSequence};
use crate::train::token_file::TokenFile;
use crate::train::trainable::{Trainable, with_prefix};
use crate::train::turns::StoredPrompt;

/// Number of letters of the vocabulary of `letters`.
const LETTERS: u32 = 26;

/// A vocabulary of letters, in which every letter and its successor, such as `bc`, are also one token, and a chat template
/// with special tokens. A policy that writes single letters writes texts that are tokenized otherwise.
fn letters(dir: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tied-tiny");
    for entry in std::fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let letter = |i: u32| char::from(b'a' + i as u8).to_string();
    let special = ["<s>", "<unk>", "<end>", "<user>", "<model>"];
    let mut tokens: Vec<String> = special.iter().map(|text| (*text).to_owned()).collect();
    tokens.extend((0..LETTERS).map(letter));
    tokens.push("Y".into());
    tokens.push("X".into());
    let merges: Vec<Value> = (0..LETTERS - 1).map(|i| json!([letter(i), letter(i + 1)])).collect();
    tokens.extend((0..LETTERS - 1).map(|i| letter(i) + &letter(i + 1)));
    while tokens.len() < 96 {
        tokens.push(format!("<unused{}>", tokens.len()));
    }
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(t, i): (_, u32)| (t.clone(), i.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges}});
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<end>{% else %}<user>\
                    {{ m.content }}<end><model>{% endif %}{% endfor %}";
    let config = json!({"chat_template": template, "eos_token": "<end>"});
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Records what it is asked to score.
#[derive(Default)]
struct Recording(Mutex<Vec<(Value, String)>>);

impl RemoteReward for Recording {
    fn allows(&self, _: &str) -> anyhow::Result<()> {
        Ok(())
    }

    fn scores(&self, _: &str, _: Duration, items: &[RemoteItem<'_>]) -> anyhow::Result<Vec<f64>> {
        let mut seen = self.0.lock().unwrap();
        seen.extend(items.iter().map(|item| (json!(item.prompt), item.completion.to_owned())));
        Ok(items.iter().map(|item| item.completion.len() as f64).collect())
    }
}

/// A model with the vocabulary of `letters`, its texts, and twelve prompts of one to three turns.
struct Setting {
    _dir: tempfile::TempDir,
    loaded: Loaded,
    texts: Texts,
    prompts: Vec<StoredPrompt>,
    args: PpoArgs,
    seen: Arc<Recording>,
}

impl Setting {
    fn new(more: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        letters(dir.path());
        let loaded = model::load(dir.path(), &Device::Cpu).unwrap();
        let texts = Texts::new(&loaded).unwrap();
        texts.check_earlier_answers().unwrap();
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let prompt = |i: usize| {
            let mut messages = vec![message("user", "abc")];
            for turn in 0..i % 3 {
                messages.extend([message("assistant", "q"), message("user", ["xy", "zab"][turn])]);
            }
            texts.conversation_ids(&messages.into()).unwrap()
        };
        // In the file, whatever their number.
        let mut file = TokenFile::with_memory(dir.path(), 0);
        let mut keep = |prompt| StoredPrompt::keep(prompt, String::new(), None, 64, &mut file).unwrap();
        let prompts = (0..12).map(|i| keep(prompt(i))).collect();
        file.finish().unwrap();
        let mut args = json!({
            "model": dir.path(), "output_dir": "unused", "prompts": "unused", "turns": "all", "temperature": 1.3,
            "reward": {"kind": "http", "url": "http://reward/"}, "rollout_batch_size": 12, "response_length": 12,
            "minibatches": 1, "ppo_epochs": 1, "device": "cpu", "max_length": 64,
        });
        for (key, value) in more.as_object().unwrap() {
            args[key] = value.clone();
        }
        let args = parse(&args).unwrap();
        Self { _dir: dir, loaded, texts, prompts, args, seen: Arc::default() }
    }

    fn policy(&self) -> Trainable {
        let common = &self.args.rl().common;
        Trainable::<Decoder>::for_run(&self.loaded.config, backbone_and_output(&self.loaded), common).unwrap()
    }

    /// A round of the start policy.
    fn rollout(&self, policy: &Trainable, exact_sampler: bool) -> Rollout {
        let rl = self.args.rl();
        let mut behaviour =
            Decoder::new(&self.loaded.config, &backbone_and_output(&self.loaded), Purpose::Serve).unwrap();
        let reference = policy.reference(&self.loaded.weights).unwrap();
        let (ensemble, rule) = (Ensemble::default(), rl.reward.as_ref());
        let sources = Sources { model: None, rule, field: "reward", ensemble, weights: None, for_critic: false };
        let mut services = RewardServices::default();
        services.remote = Some(self.seen.clone());
        let (reward, _) = Reward::open(&sources, &rl.common, (&Device::Cpu, None), &services).unwrap();
        let sampler = Sampler {
            args: &rl,
            texts: &self.texts,
            prompts: &self.prompts,
            reward: &reward,
            reference: &reference,
            trainer: policy.decoder(),
            exact_sampler,
            max_length: 64,
            group: 1,
            redraws: 0,
            fleet: None,
            activations_for: None,
        };
        let watch = RoundMonitor { stop: &|| false, report: &|_, _| {} };
        sampler.collect(&mut behaviour, None, 0, &watch).unwrap().unwrap()
    }
}

#[test]
fn the_history_has_the_ids_that_the_policy_sampled() {
    let setting = Setting::new(&json!({}));
    let rollout = setting.rollout(&setting.policy(), true);
    let (mut several, mut differs) = (0, 0);
    for ((sequence, texts), answers) in rollout.sequences.iter().zip(&rollout.texts).zip(&rollout.answers) {
        let prompt = &setting.prompts[texts.prompt];
        assert_eq!(sequence.predicted.len(), prompt.ids.turns());
        assert_eq!(sequence.ids[..sequence.predicted[0].start], *prompt.ids.first);
        assert_eq!(sequence.predicted.last().unwrap().end, sequence.ids.len());
        for (i, turn) in sequence.predicted.iter().enumerate() {
            let written = &sequence.ids[turn.clone()];
            assert_eq!(written.len(), answers[i].length);
            assert_eq!(setting.texts.text(&[], written).unwrap(), texts.answers[i]);
            let again = setting.texts.continuation(&[4], &texts.answers[i]).unwrap();
            let own = written.strip_suffix(&[2]).unwrap_or(written);
            differs += usize::from(i + 1 < sequence.predicted.len() && again != own);
            let Some(later) = sequence.predicted.get(i + 1) else { continue };
            several += 1;
            // The end of the turn, the user's message and the opening of the answer, each once.
            let between = &sequence.ids[turn.end..later.start];
            let end: &[u32] = if answers[i].finished { &[] } else { &[2] };
            let message = &texts.source.next[i][0].content;
            let message = setting.texts.continuation(&[3], message).unwrap();
            assert_eq!(between, [end, &[3], &message, &[2, 4]].concat());
            assert_eq!(written.contains(&2), answers[i].finished);
        }
    }
    assert_eq!(several, 12);
    assert!(differs >= 1, "every history is tokenized to what was sampled");
}

#[test]
fn log_probs_of_all_answers_are_those_of_a_forward_pass() {
    let setting = Setting::new(&json!({}));
    let policy = setting.policy();
    let (exact, again) = (setting.rollout(&policy, true), setting.rollout(&policy, false));
    assert!(exact.answers.iter().any(|answers| answers.len() == 3));
    assert_eq!(exact.sampled, exact.logprobs);
    assert_eq!(exact.sampled, again.sampled, "the same samples");
    assert_eq!(exact.logprobs, again.logprobs, "the bits of a pass over the whole conversation");
    assert_eq!((&exact.entropy, &exact.reference), (&again.entropy, &exact.logprobs));
    // And of a pass over each answer alone, with what is before it as its prompt.
    let mut alone = Vec::new();
    for sequence in &exact.sequences {
        for turn in &sequence.predicted {
            let one = Sequence::new(&sequence.ids[..turn.start], &sequence.ids[turn.clone()]);
            let packed = PredictionBatch::new(&[&one]);
            let hidden = packed.hidden_frozen(policy.decoder()).unwrap();
            let found = packed.logprobs(policy.decoder(), &hidden, 1.3).unwrap().logprobs;
            alone.extend(found.to_vec1::<f32>().unwrap().into_iter().map(f64::from));
        }
    }
    assert_eq!(alone, exact.logprobs);
}

/// Gradient norms by parameter of the sum of the log-probs of the predicted tokens.
fn gradients(policy: &Trainable, params: &Params, packed: &PredictionBatch) -> Vec<(String, Vec<f32>)> {
    let hidden = packed.hidden(policy.decoder()).unwrap();
    let loss = packed.logprobs(policy.decoder(), &hidden, 1.3).unwrap().logprobs.sum_all().unwrap();
    let mut sum = Accumulator::default();
    sum.add(params, &loss).unwrap();
    let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    params.keys().map(|name| (name.clone(), flat(&sum.grads[name]))).collect()
}

/// The gradient of a conversation is the sum of those of its answers: nothing between them has one, and every answer has.
#[test]
fn gradients_are_those_of_all_answers_and_of_nothing_else() {
    let setting = Setting::new(&json!({}));
    let policy = setting.policy();
    let params: Params = with_prefix("policy.", &policy.params).collect();
    let rollout = setting.rollout(&policy, true);
    let sequences: Vec<&TurnSequence> = rollout.sequences.iter().collect();
    let all = gradients(&policy, &params, &PredictionBatch::of_turns(&sequences));
    let mut sums: Vec<Vec<f64>> = all.iter().map(|(_, grad)| vec![0.0; grad.len()]).collect();
    for sequence in &sequences {
        for turn in &sequence.predicted {
            let one = Sequence::new(&sequence.ids[..turn.start], &sequence.ids[turn.clone()]);
            let own = gradients(&policy, &params, &PredictionBatch::new(&[&one]));
            assert!(own.iter().all(|(_, grad)| grad.iter().any(|g| *g != 0.0)), "an answer has no gradient");
            for (sum, (_, grad)) in sums.iter_mut().zip(&own) {
                sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += f64::from(*g));
            }
        }
    }
    for ((name, found), sum) in all.iter().zip(&sums) {
        let norm = sum.iter().map(|g| g * g).sum::<f64>().sqrt();
        let distance = found.iter().zip(sum).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
        assert!(distance < 1e-5 * norm.max(1e-3), "{name}: {distance} of {norm}");
    }
}

#[test]
fn rewards_read_the_conversation_that_the_policy_wrote() {
    for (rewarded, all) in [("last", false), ("all", true)] {
        let setting = Setting::new(&json!({"rewarded_turns": rewarded}));
        let rollout = setting.rollout(&setting.policy(), true);
        let seen = setting.seen.0.lock().unwrap();
        let answers: usize = rollout.answers.iter().map(Vec::len).sum();
        assert_eq!(seen.len(), if all { answers } else { rollout.texts.len() }, "{rewarded}");
        for (texts, scored) in rollout.texts.iter().zip(&rollout.answers) {
            let mut messages = vec![json!({"role": "user", "content": "abc"})];
            let last = texts.answers.len() - 1;
            for (i, text) in texts.answers.iter().enumerate() {
                let is_seen = seen.contains(&(json!(messages), text.clone()));
                assert_eq!(is_seen, all || i == last, "{rewarded}, turn {i}: {messages:?} {text:?}");
                assert_eq!(scored[i].score, if all || i == last { text.len() as f64 } else { 0.0 });
                messages.push(json!({"role": "assistant", "content": text}));
                let next = texts.source.next.get(i);
                messages.extend(next.map(|next| json!({"role": "user", "content": next[0].content})));
            }
        }
        let of_answers = |answers: &Vec<Answer>| answers.iter().map(|answer| answer.score).sum::<f64>();
        assert_eq!(rollout.scores, rollout.answers.iter().map(of_answers).collect::<Vec<_>>());
    }
}

/// By hand: one conversation of two answers, of two tokens and of one, with γ = λ = ½ and β = 0.
#[test]
fn advantages_step_from_one_answer_to_the_next() {
    let answer = |length, score| Answer { length, finished: true, score };
    let turns = |scores: [f64; 2]| Rollout {
        lengths: vec![3],
        answers: vec![vec![answer(2, scores[0]), answer(1, scores[1])]],
        scores: vec![scores.iter().sum()],
        values: vec![0.5, 1.0, 2.0],
        ..Rollout::default()
    };
    let args: PpoArgs = parse(&json!({"model": "m", "output_dir": "o", "prompts": "p", "gamma": 0.5, "lambda": 0.5,
        "reward": {"kind": "length", "target": 4}}))
    .unwrap();
    let returns = |scores: [f64; 2]| {
        let algorithm = Algorithm::Ppo(Box::new(args.clone()));
        let mut baseline = RunningBaseline::default();
        advantages(&algorithm, turns(scores), &[0.0; 3], &[0.0], 0.0, &mut baseline).unwrap().returns
    };
    // δ₃ = s₂ − 2, δ₂ = s₁ + ½·2 − 1, δ₁ = 0 + ½·1 − ½; A₂ = δ₂ + ¼A₃, A₁ = δ₁ + ¼A₂; returns are A + V.
    let by_hand = |[first, second]: [f64; 2]| {
        let a3 = second - 2.0;
        let a2 = first + 0.25 * a3;
        vec![0.25 * a2 + 0.5, a2 + 1.0, a3 + 2.0]
    };
    for scores in [[0.0, 3.0], [1.0, 3.0], [-2.0, 0.0]] {
        assert_eq!(returns(scores), by_hand(scores), "{scores:?}");
    }
}

#[test]
fn a_prompt_of_raw_text_has_one_turn() {
    let setting = Setting::new(&json!({}));
    let prompt = PromptInput::Text("abc".into());
    let ids = setting.texts.prompt(&prompt).unwrap();
    assert_eq!(setting.texts.conversation_ids(&prompt).unwrap(), ConversationIds { prompt, ids, next: Vec::new() });
}
