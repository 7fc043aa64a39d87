//! Encoders in memory: loaded at the first request that names them, and run on blocking threads. They are on a device where
//! the engine has one, and on the CPU if they cannot be loaded there.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::model_cache::ModelCache;
use super::place::{Held, Place};
use super::{BlockingPool, CancelToken, EngineError, ModelFiles};
use crate::domain::ModelVersion;
use crate::gpu::shared::Shared;
use crate::model::decoder::training::TrainerOptions;
use crate::model::encoder::text::{BATCH_TOKENS, Pooling, TextEncoder};
use crate::model::{self, Encoder, Opened};

/// Number of encoders in memory.
const CACHED: usize = 2;
/// Maximum number of concurrent and of waiting tasks.
const MAX_RUNNING: usize = 2;
const MAX_WAITING: usize = 64;
/// Number of texts that are embedded between two checks for cancellation.
const TEXTS_PER_CHECK: usize = 64;
/// Maximum number of gaps of one text: each has log-probs of the whole vocabulary.
const MAX_GAPS: usize = 128;

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
    /// Number of tokens of all texts.
    pub tokens: usize,
}

/// A request for embeddings.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    pub inputs: Vec<EncoderInput>,
    /// `None` means the pooling that the encoder's files specify, or the mean.
    pub pooling: Option<Pooling>,
    pub normalize: bool,
    /// Truncate texts that are too long, instead of refusing them; the last token (`[SEP]`) stays.
    pub truncate: bool,
    /// Maximum number of tokens of all inputs together.
    pub max_tokens: usize,
}

/// A text with gaps.
#[derive(Clone, Debug)]
pub enum FillInput {
    /// A text in which the encoder's mask token, or a run of three or more underscores, is a gap.
    Text(String),
    /// Ids, their segments, and the positions to fill.
    Ids { ids: Vec<u32>, type_ids: Vec<u32>, positions: Vec<usize> },
}

/// A request for the tokens at the gaps of a text.
#[derive(Clone, Debug)]
pub struct FillRequest {
    pub input: FillInput,
    /// Number of most likely tokens to report for each gap.
    pub top: usize,
    /// Words whose probabilities are also reported; each must be one token.
    pub targets: Vec<String>,
    /// Maximum of gaps × reported tokens.
    pub max_listed: usize,
}

/// A token for a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct FillCandidate {
    pub id: u32,
    pub text: String,
    /// Natural log.
    pub logprob: f32,
}

/// The predictions for one gap.
#[derive(Clone, Debug, PartialEq)]
pub struct FillResult {
    /// Index of the gap's token.
    pub position: usize,
    /// Number of tokens of the whole text.
    pub text_tokens: usize,
    /// The most likely tokens, most likely first.
    pub top: Vec<FillCandidate>,
    pub targets: Vec<FillCandidate>,
}

/// The encoders in memory.
#[derive(Clone)]
pub struct Encoders {
    loaded: ModelCache<Held<TextEncoder>>,
    /// Copies on the CPU of encoders that are on devices.
    copies: ModelCache<Held<TextEncoder>>,
    blocking: BlockingPool,
    /// `None` for the CPU.
    place: Option<Place>,
}

fn bad(param: &'static str, message: impl Into<String>) -> EngineError {
    EngineError::BadRequest { param, message: message.into() }
}

impl Encoders {
    pub fn new(place: Option<Place>) -> Self {
        let blocking = BlockingPool::new(MAX_RUNNING, MAX_WAITING);
        let place = place.filter(|place| !place.devices.is_cpu());
        Self { loaded: ModelCache::new(CACHED), copies: ModelCache::new(1), blocking, place }
    }

    /// Unloads the encoders that are on devices.
    pub fn leave_devices(&self) {
        self.loaded.leave_devices();
    }

    /// Bytes of the encoders on a device.
    pub fn bytes_on(&self, device: &str) -> u64 {
        self.loaded.bytes_on(device)
    }

    /// Loads the encoder `version` if necessary, and runs `work` with it on a blocking thread.
    ///
    /// # Errors
    /// `Failed` if the encoder cannot be loaded, `Overloaded` if too many tasks wait, and those of `work`.
    pub async fn with<T: Send + 'static>(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        work: impl FnOnce(&TextEncoder, &CancelToken) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (name, place) = (version.name.clone(), self.place.clone());
        let load = move |path: &Path| encoder(&name, path, place.as_ref());
        let held = self.loaded.get_or_load(version, files, load).await?;
        let on_device = held.device.is_some();
        let result = self.blocking.run(move |cancel| work(&held.model, cancel)).await;
        if on_device && matches!(result, Err(EngineError::Failed(_))) {
            // A device that has failed may work after the model is loaded anew.
            self.loaded.retain(|id, _| *id != version.id);
        }
        result
    }

    /// `with` an encoder on the CPU.
    ///
    /// # Errors
    /// Those of `with`.
    pub async fn with_copy<T: Send + 'static>(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        work: impl FnOnce(&TextEncoder, &CancelToken) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let name = version.name.clone();
        let cache = if self.place.is_some() { &self.copies } else { &self.loaded };
        let held = cache.get_or_load(version, files, move |path| encoder(&name, path, None)).await?;
        self.blocking.run(move |cancel| work(&held.model, cancel)).await
    }
}

fn encoder(name: &str, path: &Path, place: Option<&Place>) -> Result<Held<TextEncoder>, EngineError> {
    let on_cpu = |path: &Path| {
        let files = model::load(path, &Device::Cpu).map_err(|e| e.to_string())?;
        TextEncoder::new(&files).map_err(|e| e.to_string())
    };
    let held = Held::load("an encoder", path, place, on_device, on_cpu);
    held.map_err(|e| EngineError::Failed(format!("encoder '{name}': {e}")))
}

fn on_device(opened: Opened, device: Shared, options: TrainerOptions) -> Result<TextEncoder, String> {
    let encoder = Encoder::on_device(&opened, true, device, options.element).map_err(|e| e.to_string())?;
    // What is loaded later leaves the memory of batches alone.
    encoder.reserve(BATCH_TOKENS, MAX_GAPS).map_err(|e| e.to_string())?;
    let encoder = TextEncoder::over(encoder, &opened.into_heads().map_err(|e| e.to_string())?);
    // The driver compiles the kernels now, and a model of other numbers is not used.
    let mut numbers = encoder.embed(&[vec![0, 1]], None, false).map_err(|e| e.to_string())?;
    if encoder.encoder().has_mlm_head() {
        numbers.extend(encoder.fill(&[0, 1], &[0, 0], &[0]).map_err(|e| e.to_string())?);
    }
    match numbers.iter().flatten().all(|number| number.is_finite()) {
        true => Ok(encoder),
        false => Err("its hidden states are not finite".to_owned()),
    }
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// Refuses ids that are outside the vocabulary, too many or none, with an error at `param`.
fn check_ids(encoder: &TextEncoder, ids: &[u32], param: &'static str, which: &str) -> Result<(), EngineError> {
    let config = &encoder.encoder().config;
    if ids.is_empty() {
        return Err(bad(param, format!("{which}has no tokens")));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(bad(param, format!("{which}token id {id} is outside the vocabulary of {}", config.vocab_size)));
    }
    if ids.len() > config.max_positions {
        let message = format!("{which}{} tokens; the encoder has {} positions", ids.len(), config.max_positions);
        return Err(bad(param, message));
    }
    Ok(())
}

/// Computes the embeddings of `request`. `cancel` is checked between texts.
///
/// # Errors
/// `BadRequest` for inputs that are empty, too long, or not in the vocabulary.
pub fn embed(encoder: &TextEncoder, request: EmbedRequest, cancel: &CancelToken) -> Result<Embeddings, EngineError> {
    let longest = encoder.max_tokens();
    let mut sequences = Vec::with_capacity(request.inputs.len());
    let mut tokens = 0;
    for (i, input) in request.inputs.into_iter().enumerate() {
        cancel.check()?;
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
                "input[{i}]: {} tokens; the encoder's files limit it to {longest}: send a shorter text, or truncate = true",
                ids.len()
            );
            return Err(bad("input", message));
        }
        tokens += ids.len();
        if tokens > request.max_tokens {
            let message = format!("has over {} tokens up to input[{i}]: send fewer texts at once", request.max_tokens);
            return Err(bad("input", message));
        }
        sequences.push(ids);
    }
    let mut vectors = Vec::with_capacity(sequences.len());
    for batch in sequences.chunks(TEXTS_PER_CHECK) {
        cancel.check()?;
        vectors.extend(encoder.embed(batch, request.pooling, request.normalize).map_err(failed)?);
    }
    Ok(Embeddings { vectors, tokens })
}

/// The parts of a text between its gaps.
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

/// Predicts the tokens at the gaps of `request`, in the order of the text.
///
/// # Errors
/// `BadRequest` for an encoder without a masked-LM head, and for invalid inputs.
pub fn fill(encoder: &TextEncoder, request: FillRequest) -> Result<Vec<FillResult>, EngineError> {
    if !encoder.encoder().has_mlm_head() {
        return Err(bad("model", "this encoder has no masked-LM head: it computes embeddings, but cannot fill gaps"));
    }
    let (ids, type_ids, positions) = match request.input {
        FillInput::Text(text) => {
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
        FillInput::Ids { ids, type_ids, positions } => (ids, type_ids, positions),
    };
    check_ids(encoder, &ids, "text", "")?;
    if positions.len() > MAX_GAPS {
        return Err(bad("positions", format!("{} gaps; at most {MAX_GAPS} in one request", positions.len())));
    }
    let listed = positions.len() * (request.top + request.targets.len());
    if listed > request.max_listed {
        let message = format!(
            "{} gaps × {} tokens each are {listed}; at most {} in one answer",
            positions.len(),
            request.top + request.targets.len(),
            request.max_listed
        );
        return Err(bad("top_k", message));
    }
    if let Some(at) = positions.iter().find(|at| **at >= ids.len()) {
        return Err(bad("positions", format!("{at} is outside the {} tokens", ids.len())));
    }
    // Encoders without segments (DistilBERT, ModernBERT) take zeros, as all others do.
    let segments = encoder.encoder().config.type_vocab_size.max(1);
    if type_ids.len() != ids.len() || type_ids.iter().any(|t| *t as usize >= segments) {
        return Err(bad("token_type_ids", format!("must be {} numbers under {segments}", ids.len())));
    }
    let target_ids = request.targets.iter().map(|t| target(encoder, t)).collect::<Result<Vec<_>, _>>()?;
    let rows = encoder.fill(&ids, &type_ids, &positions).map_err(failed)?;
    let filling = |row: &[f32], id: u32| {
        let text = encoder.tokenizer().map_or_else(|| id.to_string(), |t| t.id_to_token(id).unwrap_or_default());
        FillCandidate { id, text, logprob: row[id as usize] }
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
        FillResult {
            position,
            text_tokens: ids.len(),
            top: order.into_iter().map(|id| filling(&row, id)).collect(),
            targets: target_ids.iter().map(|id| filling(&row, *id)).collect(),
        }
    };
    Ok(positions.into_iter().zip(rows).map(one).collect())
}

/// The id of a word that is one token.
fn target(encoder: &TextEncoder, word: &str) -> Result<u32, EngineError> {
    let Some(tokenizer) = encoder.tokenizer() else {
        return Err(bad("targets", "this encoder has no tokenizer"));
    };
    // No text is encoded to a continuation piece such as ##ing alone.
    if let Some(id) = tokenizer.token_to_id(word).filter(|id| !tokenizer.is_special(*id)) {
        return Ok(id);
    }
    match tokenizer.encode(word, false, false).map_err(|e| bad("targets", e.to_string()))?.as_slice() {
        [id] => Ok(*id),
        several => Err(bad(
            "targets",
            format!("'{word}' is {} tokens: a gap has one token, so a target must be one token", several.len()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn gaps_are_mask_tokens_and_runs_of_underscores() {
        assert_eq!(pieces("a [MASK] b____c", "[MASK]"), ["a ", " b", "c"]);
        assert_eq!(pieces("这个项链太____了", "[MASK]"), ["这个项链太", "了"]);
        assert_eq!(pieces("snake_case __x", "[MASK]"), ["snake_case __x"]);
        assert_eq!(pieces("[MASK]", "[MASK]"), ["", ""]);
    }
}
