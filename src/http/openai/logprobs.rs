//! Log-probabilities in OpenAI's two forms: parallel lists (completions) and objects (chat).

use serde_json::{Map, Value, json};

use crate::domain::ModelVersionId;
use crate::engine::{EngineError, Generator, TokenLogprob};

/// Texts of the tokens and of their alternatives, in order.
async fn texts(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
) -> Result<(Vec<String>, std::vec::IntoIter<String>), EngineError> {
    let own: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let alternatives: Vec<u32> = tokens.iter().flat_map(|t| t.top.iter().map(|(id, _)| *id)).collect();
    let own = engine.token_texts(Some(version), &own).await?;
    let alternatives = engine.token_texts(Some(version), &alternatives).await?;
    Ok((own, alternatives.into_iter()))
}

/// `{tokens, token_logprobs, top_logprobs, text_offset, token_ids}`. Offsets count characters from `offset`,
/// which moves on.
///
/// # Errors
/// What the engine fails with.
pub async fn completion(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
    offset: &mut usize,
) -> Result<Value, EngineError> {
    let (own, mut alternatives) = texts(engine, version, tokens).await?;
    let (mut top_logprobs, mut text_offset) = (Vec::new(), Vec::new());
    for (token, text) in tokens.iter().zip(&own) {
        text_offset.push(*offset);
        *offset += text.chars().count();
        let Some(logprob) = token.logprob else {
            // The first token of a prompt has no distribution before it.
            alternatives.by_ref().take(token.top.len()).for_each(drop);
            top_logprobs.push(Value::Null);
            continue;
        };
        let mut top = Map::new();
        for ((_, p), text) in token.top.iter().zip(alternatives.by_ref().take(token.top.len())) {
            top.entry(text).or_insert_with(|| json!(p));
        }
        top.entry(text.clone()).or_insert_with(|| json!(logprob));
        top_logprobs.push(Value::Object(top));
    }
    Ok(json!({
        "tokens": own,
        "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
        "top_logprobs": top_logprobs,
        "text_offset": text_offset,
        "token_ids": tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
    }))
}

/// `[{token, logprob, bytes, token_id, top_logprobs: [{token, logprob, bytes, token_id}]}]`.
///
/// # Errors
/// What the engine fails with.
pub async fn chat(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
) -> Result<Vec<Value>, EngineError> {
    let (own, mut alternatives) = texts(engine, version, tokens).await?;
    let entry = |text: &str, id: u32, logprob: Option<f32>| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes(), "token_id": id});
    let mut out = Vec::with_capacity(tokens.len());
    for (token, text) in tokens.iter().zip(&own) {
        let mut value = entry(text, token.id, token.logprob);
        let top = token.top.iter().zip(alternatives.by_ref().take(token.top.len()));
        value["top_logprobs"] = top.map(|((id, p), text)| entry(&text, *id, Some(*p))).collect();
        out.push(value);
    }
    Ok(out)
}
