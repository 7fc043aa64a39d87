//! A judge whose model is loaded here: the probability of a choice is read off the model's own distribution where its reply
//! would begin, without sampling.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::{Judge, Question};
use crate::data::PromptInput;
use crate::domain::Message;
use crate::model::{self, Decoder, PackedBatch, Purpose};
use crate::objective::judge::masses;
use crate::ops::token_logprobs::log_sum_exp;
use crate::prompt::Texts;
use crate::train::step::micro_batches;

pub struct OwnJudge {
    decoder: Decoder,
    texts: Texts,
    /// Tokens in one forward pass.
    max_tokens: usize,
}

impl OwnJudge {
    /// The model at `path`. `purpose`: `Score`, or `ScoreInBf16`.
    ///
    /// # Errors
    /// When it cannot be loaded, or is no language model.
    pub fn open(path: &str, device: &Device, purpose: Purpose, max_tokens: usize) -> Result<Self> {
        let loaded = model::load(Path::new(path), device)?;
        if loaded.config.is_encoder() {
            bail!("an encoder writes no text: a judge is a language model");
        }
        let decoder = Decoder::new(&loaded.config, &loaded.weights, purpose)?;
        Ok(Self { decoder, texts: Texts::new(&loaded)?, max_tokens })
    }

    /// A question as ids, with room for `reply` tokens behind it: the conversation loses its beginning until it fits.
    fn ids(&self, question: &Question, reply: usize) -> Result<Vec<u32>> {
        let most = self.decoder.config.max_positions.saturating_sub(reply);
        let mut question = question.clone();
        loop {
            let message = Message { role: "user".into(), content: question.text() };
            let ids = self.texts.prompt(&PromptInput::Chat(vec![message]))?;
            if ids.len() <= most {
                return Ok(ids);
            }
            let characters = question.conversation.chars().count();
            if characters == 0 {
                bail!("a question of {} tokens is longer than the judge's {most}, even without the prompt", ids.len());
            }
            question.conversation = question.conversation.chars().skip(characters.div_ceil(2)).collect();
        }
    }
}

/// The choices as tokens behind a question.
struct Spelled {
    /// Each way to write a choice, once.
    ways: Vec<Way>,
    /// The tokens of all ways, ascending: the only ones whose log-probs are read.
    tokens: Vec<u32>,
    /// Index of the longest other way that a way begins with.
    extends: Vec<Option<usize>>,
    /// Beginnings behind which a next token is asked for, none of which begins another one.
    beginnings: Vec<Vec<u32>>,
}

struct Way {
    choice: usize,
    ids: Vec<u32>,
}

impl Spelled {
    /// A choice may be written with a space before it.
    fn new(texts: &Texts, question: &[u32], choices: &[&str]) -> Result<Self> {
        let mut ways: Vec<Way> = Vec::new();
        for (choice, text) in choices.iter().enumerate() {
            for written in [(*text).to_owned(), format!(" {text}")] {
                let ids = texts.continuation(question, &written)?;
                if ids.is_empty() {
                    bail!("the model's tokenizer writes {text} with no token: it is no judge");
                }
                match ways.iter().find(|way| way.ids == ids) {
                    Some(same) if same.choice == choice => {}
                    Some(same) => {
                        let other = choices[same.choice];
                        bail!("the model's tokenizer cannot tell {text} from {other}: it is no judge");
                    }
                    None => ways.push(Way { choice, ids }),
                }
            }
        }
        let begins = |shorter: &[u32], longer: &[u32]| shorter.len() < longer.len() && longer.starts_with(shorter);
        let longest = |way: &Way| {
            let shorter = (0..ways.len()).filter(|i| begins(&ways[*i].ids, &way.ids));
            shorter.max_by_key(|i| ways[*i].ids.len())
        };
        let extends = ways.iter().map(longest).collect();
        let mut tokens: Vec<u32> = ways.iter().flat_map(|way| way.ids.iter().copied()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let mut beginnings: Vec<Vec<u32>> = ways.iter().map(|way| way.ids[..way.ids.len() - 1].to_vec()).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        let all = beginnings.clone();
        beginnings.retain(|one| !all.iter().any(|other| begins(one, other)));
        Ok(Self { ways, tokens, extends, beginnings })
    }

    /// The log-probs of `tokens` in a row of logits over the whole vocabulary.
    fn read(&self, logits: &[f32]) -> Vec<f32> {
        let normaliser = log_sum_exp(logits, 1.0);
        self.tokens.iter().map(|id| logits[*id as usize] - normaliser).collect()
    }

    /// Probabilities of `n` choices, from the log-probs `[len + 1, tokens]` of each beginning: row k is of the token that
    /// follows its first k tokens.
    fn masses(&self, n: usize, following: &[Vec<Vec<f32>>]) -> Result<Vec<f64>> {
        let mut logprobs = Vec::with_capacity(self.ways.len());
        for way in &self.ways {
            let before = &way.ids[..way.ids.len() - 1];
            let at = self.beginnings.iter().position(|beginning| beginning.starts_with(before));
            let rows = &following[at.context("a choice has no beginning")?];
            let place = |id: &u32| self.tokens.partition_point(|token| token < id);
            logprobs.push(way.ids.iter().zip(rows).map(|(id, row)| f64::from(row[place(id)])).sum::<f64>());
        }
        let mut of_choices = vec![0.0; n];
        for (way, mass) in self.ways.iter().zip(masses(&logprobs, &self.extends)) {
            of_choices[way.choice] += mass;
        }
        Ok(of_choices)
    }
}

impl Judge for OwnJudge {
    fn masses(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>> {
        let reply = choices.iter().map(|choice| choice.len() + 1).max().unwrap_or(1);
        let mut spelled = Vec::with_capacity(questions.len());
        // Of each sequence: question and beginning, the rows that are read, and the number of the question.
        let (mut sequences, mut tails, mut owners) = (Vec::<Vec<u32>>::new(), Vec::<usize>::new(), Vec::new());
        for (number, question) in questions.iter().enumerate() {
            let ids = self.ids(question, reply)?;
            let ways = Spelled::new(&self.texts, &ids, choices)?;
            for beginning in &ways.beginnings {
                sequences.push([ids.as_slice(), beginning].concat());
                tails.push(beginning.len() + 1);
                owners.push(number);
            }
            spelled.push(ways);
        }
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let mut rows: Vec<Vec<Vec<f32>>> = vec![Vec::new(); sequences.len()];
        for group in micro_batches(&lengths, self.max_tokens) {
            let ids: Vec<&[u32]> = group.iter().map(|&i| sequences[i].as_slice()).collect();
            let wanted: Vec<usize> = group.iter().map(|&i| tails[i]).collect();
            let hidden = self.decoder.frozen_tails(&PackedBatch::new(&ids), &wanted)?;
            let logits = self.decoder.logits(&hidden)?.to_vec2::<f32>()?;
            let mut logits = logits.iter();
            for i in group {
                rows[i] = logits.by_ref().take(tails[i]).map(|row| spelled[owners[i]].read(row)).collect();
            }
        }
        let mut rest = rows.as_slice();
        let mut all = Vec::with_capacity(questions.len());
        for ways in &spelled {
            let (own, others) = rest.split_at(ways.beginnings.len());
            all.push(ways.masses(choices.len(), own)?);
            rest = others;
        }
        Ok(all)
    }
}
