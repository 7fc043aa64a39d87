//! Scoring given answers: log p of each candidate after a prompt, by the serving engine. The shared prefix is computed
//! once and read from the prefix cache.

use std::sync::Arc;

use futures::future::try_join_all;

use super::budget::SCORED_IDS;
use super::complete::Adapter;
use super::{Result, Services, bad_input};
use crate::engine::{EngineError, GenEvent, GenerateRequest, Generator, SamplingParams, ServedModel, TextForm};
use crate::eval::choices::{Decided, Normalize, Scored, decide};
use crate::prompt::Gap;

/// Most sequences of one request in the engine at the same time.
const AT_ONCE: usize = 16;
/// Most sequences (contexts × words) of one request.
pub const MOST_SEQUENCES: usize = 1024;

/// The context of the candidates.
#[derive(Clone, Debug)]
pub enum Context {
    /// Tokenised together with each candidate. If there is text after the candidate, the whole text is scored.
    Text { gap: Gap, form: TextForm<'static> },
    /// Ids (a rendered conversation); the candidate's own tokens follow.
    Ids(Vec<u32>),
}

/// One class and the words that express it.
#[derive(Clone, Debug)]
pub struct Label {
    pub name: String,
    pub words: Vec<String>,
}

pub struct Question {
    pub request_id: String,
    pub model: Arc<ServedModel>,
    pub adapter: Option<Adapter>,
    pub context: Context,
    /// Content-free contexts for calibration; empty = not calibrated.
    pub content_free: Vec<Context>,
    pub labels: Vec<Label>,
    pub normalize: Normalize,
}

pub struct Answer {
    /// Labels, best first.
    pub ranking: Vec<Decided>,
    /// For each label, in the order of the request, its words as scored after the context.
    pub words: Vec<Vec<Scored>>,
    /// Tokens of all scored sequences; a shared prefix is counted once per context.
    pub tokens: usize,
}

/// # Errors
/// `BadInput` at `choices` and `prompt` for candidates without tokens or without a preceding token, and for texts that
/// do not fit the context; errors of the engine.
pub async fn answer(services: &Services, question: &Question) -> Result<Answer> {
    let words: usize = question.labels.iter().map(|l| l.words.len()).sum();
    if words * (1 + question.content_free.len()) > MOST_SEQUENCES {
        return Err(bad_input("choices", format!("at most {MOST_SEQUENCES} texts (choices × prompts) in one request")));
    }
    let engine = services.engine()?;
    let (scored, mut tokens) = score(engine.as_ref(), question, &question.context, "prompt").await?;
    super::meter::charge(services, tokens).await?;
    let mut content_free = Vec::new();
    for context in &question.content_free {
        let (scored, more) = score(engine.as_ref(), question, context, "content_free").await?;
        content_free.push(by_score(&scored, question.normalize));
        super::meter::charge(services, more).await?;
        tokens += more;
    }
    let ranking = decide(&by_score(&scored, question.normalize), &content_free);
    metrics::counter!("instructd_prompt_tokens_total").increment(tokens as u64);
    Ok(Answer { ranking, words: scored, tokens })
}

fn by_score(scored: &[Vec<Scored>], normalize: Normalize) -> Vec<Vec<f64>> {
    scored.iter().map(|words| words.iter().map(|w| w.score(normalize)).collect()).collect()
}

/// The token ids of a candidate in its context, and the index of the first scored token.
struct Sequence {
    ids: Vec<u32>,
    from: usize,
    bytes: usize,
}

/// Number of equal tokens at the start of both.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// One `Scored` for each word of each label, and the number of tokens computed.
async fn score(
    engine: &dyn Generator,
    question: &Question,
    context: &Context,
    field: &'static str,
) -> Result<(Vec<Vec<Scored>>, usize)> {
    let mut sequences = Vec::new();
    let mut kept = 0;
    for (i, label) in question.labels.iter().enumerate() {
        for word in &label.words {
            let next = sequence(engine, question, context, word, field, i).await?;
            kept += next.ids.len();
            if kept > SCORED_IDS {
                let message = format!("choices × tokens of their prompt are over {SCORED_IDS}; ask for fewer at once");
                return Err(bad_input("choices", message));
            }
            sequences.push(next);
        }
    }
    let Some(first) = sequences.first() else { return Err(bad_input("choices", "must contain at least one choice")) };
    // At least one token of every sequence is left for its own request.
    let shared = sequences.iter().map(|s| common(&first.ids, &s.ids).min(s.ids.len() - 1)).min().unwrap_or(0);
    let whole_text = matches!(context, Context::Text { gap, .. } if gap.is_inner());
    let soft = question.adapter.as_ref().map_or(0, |a| a.tokens);
    if whole_text && shared + soft == 0 && sequences.len() > 1 {
        return Err(bad_input(
            field,
            "the blank is at the start: a decoder gives no probability for the first token; put text before it",
        ));
    }
    let mut known = Vec::new();
    if shared > 0 && (sequences.len() > 1 || whole_text) {
        // Computes the shared prefix, so that the candidates find it in the cache; it is scored when the whole text is.
        known = run(engine, question, first.ids[..shared].to_vec(), whole_text.then_some(0)).await?;
    }
    let tokens = shared + sequences.iter().map(|s| s.ids.len() - shared).sum::<usize>();
    let mut scored: Vec<Scored> = Vec::with_capacity(sequences.len());
    for together in sequences.chunks(AT_ONCE) {
        let mut runs = Vec::with_capacity(together.len());
        for s in together {
            runs.push(run(engine, question, s.ids.clone(), Some(if whole_text { shared } else { s.from })));
        }
        for (s, own) in together.iter().zip(try_join_all(runs).await?) {
            scored.push(Scored { logprobs: [known.as_slice(), &own].concat(), bytes: s.bytes });
        }
    }
    let mut by_label = Vec::with_capacity(question.labels.len());
    for label in &question.labels {
        let rest = scored.split_off(label.words.len());
        by_label.push(std::mem::replace(&mut scored, rest));
    }
    Ok((by_label, tokens))
}

async fn sequence(
    engine: &dyn Generator,
    question: &Question,
    context: &Context,
    word: &str,
    field: &'static str,
    label: usize,
) -> Result<Sequence> {
    let version = Some(&question.model.version.id);
    let (ids, from, bytes) = match context {
        Context::Text { gap, form } => {
            let text = gap.filled(word);
            let whole = engine.tokenize(version, &text, *form).await?;
            if gap.is_inner() {
                (whole, 1, text.len())
            } else {
                // A token may span the boundary: the first token that differs is the first scored one.
                let before = engine.tokenize(version, &gap.before, *form).await?;
                let from = common(&before, &whole);
                (whole, from, word.len())
            }
        }
        Context::Ids(before) => {
            let own = engine.tokenize(version, word, TextForm::After(before)).await?;
            ([before.as_slice(), &own].concat(), before.len(), word.len())
        }
    };
    if let Some(id) = ids.iter().find(|id| **id as usize >= question.model.vocab_size) {
        let message = format!("token id {id} is outside the vocabulary of {}", question.model.vocab_size);
        return Err(bad_input(field, message));
    }
    let soft = question.adapter.as_ref().map_or(0, |a| a.tokens);
    if ids.len() <= from {
        return Err(bad_input(format!("choices[{label}]"), "has no tokens of its own after the context"));
    }
    if from == 0 && soft == 0 {
        return Err(bad_input(field, "has no tokens before the choice; give some text before it"));
    }
    let room = question.model.max_context - soft;
    if ids.len() > room {
        let message = format!("with choices[{label}] has {} tokens; the model's context holds {room}", ids.len());
        return Err(bad_input(field, message));
    }
    Ok(Sequence { ids, from, bytes })
}

/// Runs ids through the engine without sampling; returns the log-probs of the tokens from `from` on.
async fn run(engine: &dyn Generator, question: &Question, ids: Vec<u32>, from: Option<usize>) -> Result<Vec<f32>> {
    let request = GenerateRequest {
        request_id: question.request_id.clone(),
        version: Some(question.model.version.id.clone()),
        prompt_ids: ids,
        n: 1,
        params: SamplingParams { max_tokens: 0, ..SamplingParams::default() },
        prompt_logprobs: from.map(|_| 0),
        prompt_from: from.unwrap_or(0),
        soft_prompt: question.adapter.as_ref().map(|a| a.id.clone()),
        background: false,
    };
    let mut generation = engine.generate(request).await?;
    let mut found = Vec::new();
    while let Some(event) = generation.events.recv().await {
        match event {
            GenEvent::Prompt { tokens } => found = tokens.iter().filter_map(|t| t.logprob).collect(),
            GenEvent::Delta { .. } | GenEvent::Usage { .. } => {}
            GenEvent::Finish { .. } => return Ok(found),
            GenEvent::Failed { error } => return Err(error.into()),
        }
    }
    Err(EngineError::Failed("the scoring ended early".into()).into())
}
