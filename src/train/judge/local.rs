//! A judge whose model this process loads. The probabilities of choices are those of the model's distribution at the
//! start of its reply, without sampling.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::{Judge, Question};
use crate::data::PromptInput;
use crate::domain::Message;
use crate::model::{self, Decoder, PackedBatch, Purpose};
use crate::objective::judge::probabilities;
use crate::ops::token_logprobs::log_sum_exp;
use crate::prompt::Texts;
use crate::train::on_device::RunDevice;
use crate::train::step::micro_batches;

/// A judge with a local model.
pub struct LocalJudge {
    decoder: Decoder,
    texts: Texts,
    /// Maximum number of tokens in one forward pass.
    max_tokens: usize,
}

impl LocalJudge {
    /// Loads the model at `path`. `purpose` is `Score` or `ScoreInBf16`.
    ///
    /// # Errors
    /// If it cannot be loaded, or is an encoder.
    pub fn open(path: &str, device: &Device, purpose: Purpose, max_tokens: usize) -> Result<Self> {
        let loaded = model::load(Path::new(path), device)?;
        if loaded.config.is_encoder() {
            bail!("an encoder cannot be a judge; give a decoder");
        }
        let decoder = Decoder::new(&loaded.config, &loaded.weights, purpose)?;
        Ok(Self { decoder, texts: Texts::new(&loaded)?, max_tokens })
    }

    /// Loads the model at `path` to a device alone.
    ///
    /// # Errors
    /// If the device cannot load it.
    pub fn on_device(path: &str, device: &RunDevice, max_tokens: usize) -> Result<Self> {
        let (decoder, loaded) = device.load(Path::new(path))?;
        Ok(Self { decoder, texts: Texts::new(&loaded)?, max_tokens })
    }

    /// For each sequence the log-probs `[tails, tokens]` of its tokens at its last rows, from a device, which returns
    /// log-probs of given tokens instead of logits.
    fn following(&self, batch: &PackedBatch, tails: &[usize], tokens: &[&[u32]]) -> Result<Vec<Vec<Vec<f32>>>> {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for ((end, tail), tokens) in batch.offsets[1..].iter().zip(tails).zip(tokens) {
            for row in end - tail..*end {
                rows.extend(tokens.iter().map(|_| row as u32));
                targets.extend_from_slice(tokens);
            }
        }
        let logprobs = self.decoder.logprobs_at(batch, &rows, &targets)?.to_vec1::<f32>()?;
        let mut rest = logprobs.into_iter();
        let mut row = |tokens: &[u32]| rest.by_ref().take(tokens.len()).collect::<Vec<f32>>();
        Ok(tails.iter().zip(tokens).map(|(tail, tokens)| (0..*tail).map(|_| row(tokens)).collect()).collect())
    }

    /// The ids of a question, with room for `reply` tokens after it. The beginning of the conversation is cut off until
    /// it fits.
    fn ids(&self, question: &Question, reply: usize) -> Result<Vec<u32>> {
        let limit = self.decoder.config.max_positions.saturating_sub(reply);
        let mut question = question.clone();
        loop {
            let message = Message { role: "user".into(), content: question.text() };
            let ids = self.texts.prompt(&PromptInput::Chat(vec![message]))?;
            if ids.len() <= limit {
                return Ok(ids);
            }
            let characters = question.conversation.chars().count();
            if characters == 0 {
                bail!("a question of {} tokens is longer than the judge's {limit}, even without the prompt", ids.len());
            }
            question.conversation = question.conversation.chars().skip(characters.div_ceil(2)).collect();
        }
    }
}

/// The tokens of the choices after a question.
struct ChoiceTokens {
    /// All spellings of all choices.
    spellings: Vec<Spelling>,
    /// The tokens of all spellings, ascending: those whose log-probs are read.
    tokens: Vec<u32>,
    /// For each spelling the index of the longest other spelling that it begins with.
    extends: Vec<Option<usize>>,
    /// Prefixes of spellings after which the next token is predicted. None is a prefix of another one.
    prefixes: Vec<Vec<u32>>,
}

struct Spelling {
    choice: usize,
    ids: Vec<u32>,
}

impl ChoiceTokens {
    /// Tokenizes each choice, with and without a space before it.
    ///
    /// # Errors
    /// If a choice has no tokens, or two choices have the same.
    fn new(texts: &Texts, question: &[u32], choices: &[&str]) -> Result<Self> {
        let mut spellings: Vec<Spelling> = Vec::new();
        for (choice, text) in choices.iter().enumerate() {
            for written in [(*text).to_owned(), format!(" {text}")] {
                let ids = texts.continuation(question, &written)?;
                if ids.is_empty() {
                    bail!("the model's tokenizer has no token for {text}; use another model as the judge");
                }
                match spellings.iter().find(|spelling| spelling.ids == ids) {
                    Some(same) if same.choice == choice => {}
                    Some(same) => {
                        let other = choices[same.choice];
                        bail!(
                            "the model's tokenizer has the same tokens for {text} and {other}; use another model as the judge"
                        );
                    }
                    None => spellings.push(Spelling { choice, ids }),
                }
            }
        }
        let begins = |shorter: &[u32], longer: &[u32]| shorter.len() < longer.len() && longer.starts_with(shorter);
        let longest = |spelling: &Spelling| {
            let shorter = (0..spellings.len()).filter(|i| begins(&spellings[*i].ids, &spelling.ids));
            shorter.max_by_key(|i| spellings[*i].ids.len())
        };
        let extends = spellings.iter().map(longest).collect();
        let mut tokens: Vec<u32> = spellings.iter().flat_map(|spelling| spelling.ids.iter().copied()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let mut prefixes: Vec<Vec<u32>> =
            spellings.iter().map(|spelling| spelling.ids[..spelling.ids.len() - 1].to_vec()).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let all = prefixes.clone();
        prefixes.retain(|one| !all.iter().any(|other| begins(one, other)));
        Ok(Self { spellings, tokens, extends, prefixes })
    }

    /// The log-probs of `tokens` in a row of logits over the whole vocabulary.
    fn read(&self, logits: &[f32]) -> Vec<f32> {
        let normaliser = log_sum_exp(logits, 1.0);
        self.tokens.iter().map(|id| logits[*id as usize] - normaliser).collect()
    }

    /// The probabilities of `n` choices, from the log-probs `[len + 1, tokens]` for each prefix: row k is of the token
    /// after its first k tokens.
    fn probabilities(&self, n: usize, following: &[Vec<Vec<f32>>]) -> Result<Vec<f64>> {
        let mut logprobs = Vec::with_capacity(self.spellings.len());
        for spelling in &self.spellings {
            let before = &spelling.ids[..spelling.ids.len() - 1];
            let at = self.prefixes.iter().position(|prefix| prefix.starts_with(before));
            let rows = &following[at.context("a choice has no prefix")?];
            let place = |id: &u32| self.tokens.partition_point(|token| token < id);
            logprobs.push(spelling.ids.iter().zip(rows).map(|(id, row)| f64::from(row[place(id)])).sum::<f64>());
        }
        let mut of_choices = vec![0.0; n];
        for (spelling, mass) in self.spellings.iter().zip(probabilities(&logprobs, &self.extends)) {
            of_choices[spelling.choice] += mass;
        }
        Ok(of_choices)
    }
}

impl Judge for LocalJudge {
    fn probabilities(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>> {
        let reply = choices.iter().map(|choice| choice.len() + 1).max().unwrap_or(1);
        let mut spelled = Vec::with_capacity(questions.len());
        // For each sequence of question and prefix: the number of last rows that are read, and the index of the
        // question.
        let (mut sequences, mut tails, mut owners) = (Vec::<Vec<u32>>::new(), Vec::<usize>::new(), Vec::new());
        for (number, question) in questions.iter().enumerate() {
            let ids = self.ids(question, reply)?;
            let spellings = ChoiceTokens::new(&self.texts, &ids, choices)?;
            for prefix in &spellings.prefixes {
                sequences.push([ids.as_slice(), prefix].concat());
                tails.push(prefix.len() + 1);
                owners.push(number);
            }
            spelled.push(spellings);
        }
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let mut rows: Vec<Vec<Vec<f32>>> = vec![Vec::new(); sequences.len()];
        for group in micro_batches(&lengths, self.max_tokens) {
            let batch = PackedBatch::new(&group.iter().map(|&i| sequences[i].as_slice()).collect::<Vec<_>>());
            let wanted: Vec<usize> = group.iter().map(|&i| tails[i]).collect();
            if self.decoder.attached().is_some() {
                let tokens: Vec<&[u32]> = group.iter().map(|&i| spelled[owners[i]].tokens.as_slice()).collect();
                for (i, found) in group.into_iter().zip(self.following(&batch, &wanted, &tokens)?) {
                    rows[i] = found;
                }
                continue;
            }
            let hidden = self.decoder.forward_last_frozen(&batch, &wanted)?;
            let logits = self.decoder.logits(&hidden)?.to_vec2::<f32>()?;
            let mut logits = logits.iter();
            for i in group {
                rows[i] = logits.by_ref().take(tails[i]).map(|row| spelled[owners[i]].read(row)).collect();
            }
        }
        let mut rest = rows.as_slice();
        let mut all = Vec::with_capacity(questions.len());
        for spellings in &spelled {
            let (own, others) = rest.split_at(spellings.prefixes.len());
            all.push(spellings.probabilities(choices.len(), own)?);
            rest = others;
        }
        Ok(all)
    }
}
