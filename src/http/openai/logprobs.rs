//! Log-probabilities in OpenAI's two forms: parallel lists (completions) and objects (chat).

use serde_json::{Map, Value, json};

use crate::domain::ModelVersionId;
use crate::engine::{EngineError, Generator, Piece, TokenLogprob};

/// Where a list of tokens stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Ids before the first.
    pub left: &'a [u32],
    /// Of the first tokens, so many are not in the text at all (a begin token put before a prompt) …
    pub added: usize,
    /// … and so many belong to the prompt, whose special tokens are text.
    pub prompt: usize,
}

/// `{tokens, token_logprobs, top_logprobs, text_offset, token_ids}`. Offsets count characters of the choice's text
/// from `offset`, which moves on; a character counts where its first byte stands. `top_logprobs` holds every
/// alternative and the token itself: where two read the same, the token keeps its text and the others are
/// `token_id:N`. Tokens that are no whole characters are written `bytes:\xf0\x9f`.
///
/// # Errors
/// What the engine fails with.
pub async fn completion(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
    place: Place<'_>,
    offset: &mut usize,
) -> Result<Value, EngineError> {
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
            None => Value::Null,
            Some(logprob) => {
                let mut top = Map::from_iter([(name.clone(), json!(logprob))]);
                for ((id, p), piece) in token.top.iter().zip(alternatives).filter(|((id, _), _)| *id != token.id) {
                    let name = key(piece);
                    let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
                    top.insert(name, json!(p));
                }
                Value::Object(top)
            }
        });
        own.push(name);
    }
    Ok(json!({
        "tokens": own,
        "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
        "top_logprobs": top_logprobs,
        "text_offset": text_offset,
        "token_ids": tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
    }))
}

/// The token's text, or its bytes where they are no text.
fn key(piece: &Piece) -> String {
    match std::str::from_utf8(&piece.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => piece.bytes.iter().fold("bytes:".to_owned(), |out, byte| format!("{out}\\x{byte:02x}")),
    }
}

/// `[{token, logprob, bytes, token_id, top_logprobs: [{token, logprob, bytes, token_id}]}]`; `left` stands before
/// the first.
///
/// # Errors
/// What the engine fails with.
pub async fn chat(
    engine: &dyn Generator,
    version: &ModelVersionId,
    left: &[u32],
    tokens: &[TokenLogprob],
) -> Result<Vec<Value>, EngineError> {
    let listed = engine.token_pieces(Some(version), left, tokens).await?;
    let entry = |piece: &Piece, id: u32, logprob: Option<f32>| json!({"token": piece.text, "logprob": logprob, "bytes": piece.bytes, "token_id": id});
    let one = |(token, pieces): (&TokenLogprob, &Vec<Piece>)| {
        let (piece, alternatives) = pieces.split_first()?;
        let mut value = entry(piece, token.id, token.logprob);
        let top = token.top.iter().zip(alternatives);
        value["top_logprobs"] = top.map(|((id, p), piece)| entry(piece, *id, Some(*p))).collect();
        Some(value)
    };
    Ok(tokens.iter().zip(&listed).filter_map(one).collect())
}
