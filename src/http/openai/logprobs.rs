//! Log-probabilities in OpenAI's two forms: parallel lists (completions) and objects (chat).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::ModelVersionId;
use crate::engine::{EngineError, Generator, Piece, TokenLogprob};

/// The position of a list of tokens in the text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Ids before the first token.
    pub left: &'a [u32],
    /// Number of leading tokens that are not in the text (an added begin token).
    pub added: usize,
    /// Number of tokens of the prompt, whose special tokens are text.
    pub prompt: usize,
}

/// The tokens of a raw completion as parallel lists. Tokens that are partial characters are written as
/// `bytes:\xf0\x9f`.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of a prompt, which has no distribution before it.
    pub token_logprobs: Vec<Option<f64>>,
    /// Every alternative and the token itself: if two have the same text, the token keeps it and the others are
    /// `token_id:N`.
    #[schemars(with = "Vec<Option<BTreeMap<String, f64>>>")]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Offsets in characters of the choice's text; a character counts at its first byte.
    pub text_offset: Vec<usize>,
    pub token_ids: Vec<u32>,
}

/// The tokens of a chat message.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct ChatLogprobs {
    pub content: Vec<ChatToken>,
    /// Always null.
    pub refusal: Option<String>,
}

/// A token and its alternatives.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatToken {
    #[serde(flatten)]
    pub token: TokenEntry,
    pub top_logprobs: Vec<TokenEntry>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenEntry {
    pub token: String,
    pub logprob: Option<f64>,
    /// Bytes of the token, which may be partial characters.
    pub bytes: Vec<u8>,
    pub token_id: u32,
}

/// Lists tokens for a raw completion. Offsets count from `offset`, which is advanced.
///
/// # Errors
/// Errors of the engine.
pub async fn completion(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
    place: Place<'_>,
    offset: &mut usize,
) -> Result<TextLogprobs, EngineError> {
    let listed = engine.token_pieces(Some(version), place.left, tokens).await?;
    let (mut own, mut top_logprobs, mut text_offset) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (token, pieces)) in tokens.iter().zip(&listed).enumerate() {
        let Some((piece, alternatives)) = pieces.split_first() else { continue };
        text_offset.push(*offset);
        let silent = i < place.added || (i >= place.prompt && piece.special);
        *offset += if silent { 0 } else { piece.characters() };
        let name = key(piece);
        top_logprobs.push(match token.logprob {
            // The first token of a prompt has no distribution before it.
            None => None,
            Some(logprob) => {
                let mut top = Map::from_iter([(name.clone(), Value::from(logprob))]);
                for ((id, p), piece) in token.top.iter().zip(alternatives).filter(|((id, _), _)| *id != token.id) {
                    let name = key(piece);
                    let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
                    top.insert(name, Value::from(*p));
                }
                Some(top)
            }
        });
        own.push(name);
    }
    Ok(TextLogprobs {
        tokens: own,
        token_logprobs: tokens.iter().map(|t| t.logprob.map(f64::from)).collect(),
        top_logprobs,
        text_offset,
        token_ids: tokens.iter().map(|t| t.id).collect(),
    })
}

/// The token's text, or its bytes if they are not valid text.
fn key(piece: &Piece) -> String {
    match std::str::from_utf8(&piece.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => piece.bytes.iter().fold("bytes:".to_owned(), |out, byte| format!("{out}\\x{byte:02x}")),
    }
}

/// Lists tokens for a chat message; `left` are the ids before the first.
///
/// # Errors
/// Errors of the engine.
pub async fn chat(
    engine: &dyn Generator,
    version: &ModelVersionId,
    left: &[u32],
    tokens: &[TokenLogprob],
) -> Result<Vec<ChatToken>, EngineError> {
    let listed = engine.token_pieces(Some(version), left, tokens).await?;
    let entry = |piece: &Piece, token_id: u32, logprob: Option<f32>| TokenEntry {
        token: piece.text.clone(),
        logprob: logprob.map(f64::from),
        bytes: piece.bytes.clone(),
        token_id,
    };
    let one = |(token, pieces): (&TokenLogprob, &Vec<Piece>)| {
        let (piece, alternatives) = pieces.split_first()?;
        let top = token.top.iter().zip(alternatives);
        let top_logprobs = top.map(|((id, p), piece)| entry(piece, *id, Some(*p))).collect();
        Some(ChatToken { token: entry(piece, token.id, token.logprob), top_logprobs })
    };
    Ok(tokens.iter().zip(&listed).filter_map(one).collect())
}
