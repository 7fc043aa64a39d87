//! Attention maps of loaded models as plain data.

use super::EngineError;
use crate::engine::attention_maps::{self, AttentionMaps};
use crate::model::Decoder;
use crate::model::encoder::text::TextEncoder;
use crate::tokenizer::Tokenizer;

/// Maps of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub ids: Vec<u32>,
    /// The texts of the tokens; for special tokens their names.
    pub tokens: Vec<String>,
    /// The bytes of each token: a token that is a part of a character has no text.
    pub bytes: Vec<Vec<u8>>,
    /// Whether positions attend only to themselves and to earlier positions, as in decoders.
    pub causal: bool,
    pub n_heads: usize,
    /// The probabilities of each layer, `[heads, queries, keys]`, flat.
    pub layers: Vec<Vec<f32>>,
}

fn bad(message: String) -> EngineError {
    EngineError::BadRequest { param: "text", message }
}

fn check(ids: &[u32], max_tokens: usize) -> Result<(), EngineError> {
    match ids.len() {
        0 => Err(bad("has no tokens".into())),
        n if n > max_tokens => Err(bad(format!("has {n} tokens; at most {max_tokens} are allowed"))),
        _ => Ok(()),
    }
}

fn answer(
    ids: Vec<u32>,
    tokens: Vec<String>,
    maps: candle_core::Result<AttentionMaps>,
) -> Result<Attention, EngineError> {
    let maps = maps.map_err(|e| EngineError::Failed(e.to_string()))?;
    let bytes = tokens.iter().map(|t| t.clone().into_bytes()).collect();
    Ok(Attention { ids, tokens, bytes, causal: maps.causal, n_heads: maps.n_heads, layers: maps.layers })
}

/// The attention maps of a decoder over a text of at most `max_tokens` tokens.
///
/// # Errors
/// `BadRequest` for a text that is empty, too long, or cannot be tokenized.
pub fn of_decoder(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    text: &str,
    max_tokens: usize,
) -> Result<Attention, EngineError> {
    let ids = tokenizer.encode_open(text, false).map_err(|e| bad(e.to_string()))?;
    check(&ids, max_tokens.min(decoder.config.max_positions))?;
    let (tokens, bytes) = tokenizer.pieces(&ids).into_iter().map(|piece| (piece.text, piece.bytes)).unzip();
    let maps = attention_maps::of_decoder(decoder, &ids);
    Ok(Attention { bytes, ..answer(ids, tokens, maps)? })
}

/// The attention maps of an encoder over a text of at most `max_tokens` tokens.
///
/// # Errors
/// `BadRequest` for a text that is empty, too long, or cannot be tokenized.
pub fn of_encoder(encoder: &TextEncoder, text: &str, max_tokens: usize) -> Result<Attention, EngineError> {
    let Some((tokenizer, ids)) = encoder.tokenizer().zip(encoder.ids(text)) else {
        return Err(bad("cannot be read: this encoder has no tokenizer".into()));
    };
    let ids = ids.map_err(|e| bad(e.to_string()))?;
    check(&ids, max_tokens.min(encoder.encoder().config.max_positions))?;
    let tokens = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect();
    let maps = attention_maps::of_encoder(encoder.encoder(), &ids);
    answer(ids, tokens, maps)
}
