//! Encoders in memory: loaded at the first request that names them, run on blocking threads. Results are plain data.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::recent::Recent;
use super::{Asker, EngineError, ModelFiles, Turns};
use crate::domain::ModelVersion;
use crate::model;
use crate::model::encoder::text::{Pooling, TextEncoder};

/// Encoders kept in memory.
const KEEP: usize = 2;
/// Forward passes at the same time, and those that may wait for a turn.
const AT_ONCE: usize = 2;
const MAY_WAIT: usize = 64;
/// Texts between two looks whether the asker is still there.
const EMBED_BETWEEN_LOOKS: usize = 64;
/// Gaps of one text: each has a row over the whole vocabulary.
const MOST_GAPS: usize = 128;

/// A text or its ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncoderInput {
    Text(String),
    Ids(Vec<u32>),
}

/// Embeddings of texts, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// `[texts][hidden]`.
    pub vectors: Vec<Vec<f32>>,
    pub tokens: usize,
}

#[derive(Clone, Debug)]
pub struct EmbedRequest {
    pub inputs: Vec<EncoderInput>,
    /// `None` = as the encoder's directory says, else the mean.
    pub pooling: Option<Pooling>,
    pub normalize: bool,
    /// Cut over-long texts instead of refusing them; the last token (`[SEP]`) stays.
    pub truncate: bool,
    /// Tokens of all inputs together, at most.
    pub most_tokens: usize,
}

/// What has gaps.
#[derive(Clone, Debug)]
pub enum Gapped {
    /// A text in which the encoder's mask token, or a run of three or more underscores, is a gap.
    Text(String),
    /// Ids as they are, their segments, and which positions to fill.
    Ids { ids: Vec<u32>, type_ids: Vec<u32>, positions: Vec<usize> },
}

#[derive(Clone, Debug)]
pub struct FillRequest {
    pub input: Gapped,
    /// Most likely tokens to report for each gap.
    pub top: usize,
    /// Words whose probabilities are reported too; each must be one token.
    pub targets: Vec<String>,
    /// Gaps × reported tokens, at most.
    pub most_listed: usize,
}

/// One token that may stand in a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct Filling {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
}

/// One gap, in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Filled {
    pub position: usize,
    /// Tokens of the text, which all its gaps share.
    pub read: usize,
    pub top: Vec<Filling>,
    pub targets: Vec<Filling>,
}

#[derive(Clone)]
pub struct Encoders {
    loaded: Recent<TextEncoder>,
    turns: Turns,
}

fn bad(param: &'static str, message: impl Into<String>) -> EngineError {
    EngineError::BadRequest { param, message: message.into() }
}

impl Encoders {
    pub fn new() -> Self {
        Self { loaded: Recent::new(KEEP), turns: Turns::new(AT_ONCE, MAY_WAIT) }
    }

    /// Runs `work` on a blocking thread, in turn.
    pub async fn with<T: Send + 'static>(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        work: impl FnOnce(&TextEncoder, &Asker) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let name = version.name.clone();
        let encoder = self.loaded.get_or_load(version, files, move |path| encoder(&name, path)).await?;
        self.turns.run(move |asker| work(&encoder, asker)).await
    }
}

fn encoder(name: &str, path: &Path) -> Result<TextEncoder, EngineError> {
    let failed = |e: String| EngineError::Failed(format!("encoder '{name}': {e}"));
    let files = model::load(path, &Device::Cpu).map_err(|e| failed(e.to_string()))?;
    TextEncoder::new(&files).map_err(|e| failed(e.to_string()))
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// Ids that the encoder can read, or a refusal that names `param`.
fn check_ids(encoder: &TextEncoder, ids: &[u32], param: &'static str, which: &str) -> Result<(), EngineError> {
    let config = &encoder.encoder().config;
    if ids.is_empty() {
        return Err(bad(param, format!("{which}has no tokens")));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(bad(param, format!("{which}token id {id} is outside the vocabulary of {}", config.vocab_size)));
    }
    if ids.len() > config.max_positions {
        let message = format!("{which}{} tokens; the encoder reads {} at most", ids.len(), config.max_positions);
        return Err(bad(param, message));
    }
    Ok(())
}

pub fn embed(encoder: &TextEncoder, request: EmbedRequest, asker: &Asker) -> Result<Embeddings, EngineError> {
    let longest = encoder.max_tokens();
    let mut sequences = Vec::with_capacity(request.inputs.len());
    let mut tokens = 0;
    for (i, input) in request.inputs.into_iter().enumerate() {
        asker.still_there()?;
        let mut ids = match input {
            EncoderInput::Ids(ids) => ids,
            EncoderInput::Text(text) => encoder
                .ids(&text)
                .ok_or_else(|| bad("input", "this encoder has no tokenizer: send token ids"))?
                .map_err(|e| bad("input", e.to_string()))?,
        };
        if request.truncate && ids.len() > longest {
            let end = ids[ids.len() - 1];
            ids.truncate(longest.saturating_sub(1));
            ids.push(end);
        }
        check_ids(encoder, &ids, "input", &format!("input[{i}]: "))?;
        if ids.len() > longest {
            let message = format!(
                "input[{i}]: {} tokens; the encoder's files say {longest} at most: send less, or truncate = true",
                ids.len()
            );
            return Err(bad("input", message));
        }
        tokens += ids.len();
        if tokens > request.most_tokens {
            let message = format!("has over {} tokens up to input[{i}]: send fewer texts at once", request.most_tokens);
            return Err(bad("input", message));
        }
        sequences.push(ids);
    }
    let mut vectors = Vec::with_capacity(sequences.len());
    for some in sequences.chunks(EMBED_BETWEEN_LOOKS) {
        asker.still_there()?;
        vectors.extend(encoder.embed(some, request.pooling, request.normalize).map_err(failed)?);
    }
    Ok(Embeddings { vectors, tokens })
}

/// The pieces of a text between its gaps.
fn pieces<'a>(text: &'a str, mask: &str) -> Vec<&'a str> {
    let (mut pieces, mut start, mut at) = (Vec::new(), 0, 0);
    while at < text.len() {
        let rest = &text[at..];
        let underscores = rest.bytes().take_while(|b| *b == b'_').count();
        let gap = match (rest.starts_with(mask), underscores) {
            (true, _) => mask.len(),
            (false, 3..) => underscores,
            (false, _) => 0,
        };
        if gap > 0 {
            pieces.push(&text[start..at]);
            start = at + gap;
        }
        at += gap.max(rest.chars().next().map_or(1, char::len_utf8));
    }
    pieces.push(&text[start..]);
    pieces
}

pub fn fill(encoder: &TextEncoder, request: FillRequest) -> Result<Vec<Filled>, EngineError> {
    if !encoder.encoder().has_mlm_head() {
        return Err(bad("model", "this encoder has no masked-LM head: it gives embeddings, but fills no gaps"));
    }
    let (ids, type_ids, positions) = match request.input {
        Gapped::Text(text) => {
            let pieces = pieces(&text, encoder.mask_text());
            if pieces.len() == 1 {
                let mask = encoder.mask_text();
                return Err(bad("text", format!("has no gap: write {mask} or ____ where the word is missing")));
            }
            let (ids, positions) = encoder
                .with_gaps(&pieces)
                .ok_or_else(|| bad("text", "this encoder has no tokenizer with a mask token: send token ids"))?
                .map_err(|e| bad("text", e.to_string()))?;
            let type_ids = vec![0; ids.len()];
            (ids, type_ids, positions)
        }
        Gapped::Ids { ids, type_ids, positions } => (ids, type_ids, positions),
    };
    check_ids(encoder, &ids, "text", "")?;
    if positions.len() > MOST_GAPS {
        return Err(bad("positions", format!("{} gaps; at most {MOST_GAPS} in one request", positions.len())));
    }
    let listed = positions.len() * (request.top + request.targets.len());
    if listed > request.most_listed {
        let message = format!(
            "{} gaps × {} tokens each are {listed}; at most {} in one answer",
            positions.len(),
            request.top + request.targets.len(),
            request.most_listed
        );
        return Err(bad("top_k", message));
    }
    if let Some(at) = positions.iter().find(|at| **at >= ids.len()) {
        return Err(bad("positions", format!("{at} is outside the {} tokens", ids.len())));
    }
    let segments = encoder.encoder().config.type_vocab_size;
    if type_ids.len() != ids.len() || type_ids.iter().any(|t| *t as usize >= segments) {
        return Err(bad("token_type_ids", format!("must be {} numbers under {segments}", ids.len())));
    }
    let target_ids = request.targets.iter().map(|t| target(encoder, t)).collect::<Result<Vec<_>, _>>()?;
    let rows = encoder.fill(&ids, &type_ids, &positions).map_err(failed)?;
    let filling = |row: &[f32], id: u32| {
        let text = encoder.tokenizer().map_or_else(|| id.to_string(), |t| t.id_to_token(id).unwrap_or_default());
        Filling { id, text, logprob: row[id as usize] }
    };
    let one = |(position, row): (usize, Vec<f32>)| {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let top = request.top.min(order.len());
        let by_probability = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        if top < order.len() {
            order.select_nth_unstable_by(top, by_probability);
            order.truncate(top);
        }
        order.sort_unstable_by(by_probability);
        Filled {
            position,
            read: ids.len(),
            top: order.into_iter().map(|id| filling(&row, id)).collect(),
            targets: target_ids.iter().map(|id| filling(&row, *id)).collect(),
        }
    };
    Ok(positions.into_iter().zip(rows).map(one).collect())
}

fn target(encoder: &TextEncoder, word: &str) -> Result<u32, EngineError> {
    let Some(tokenizer) = encoder.tokenizer() else {
        return Err(bad("targets", "this encoder has no tokenizer"));
    };
    // A continuation piece such as ##ing is a token that no text alone gives.
    if let Some(id) = tokenizer.token_to_id(word).filter(|id| !tokenizer.is_special(*id)) {
        return Ok(id);
    }
    match tokenizer.encode(word, false, false).map_err(|e| bad("targets", e.to_string()))?.as_slice() {
        [id] => Ok(*id),
        several => Err(bad("targets", format!("'{word}' is {} tokens: one gap holds one token", several.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn gaps_are_masks_and_underscores() {
        assert_eq!(pieces("a [MASK] b____c", "[MASK]"), ["a ", " b", "c"]);
        assert_eq!(pieces("这个项链太____了", "[MASK]"), ["这个项链太", "了"]);
        assert_eq!(pieces("snake_case __x", "[MASK]"), ["snake_case __x"]);
        assert_eq!(pieces("[MASK]", "[MASK]"), ["", ""]);
    }
}
