//! Token ids and log-probs of llama.cpp: its own `/completion` with `n_probs` and `return_tokens`. It reports no
//! log-probs of prompts; that of a given token is found by forcing it with a bias, which the reported values leave out.

use serde_json::{Map, Value, json};

use super::{Part, TokenCall, list, sampling, token, token_id, with_top};
use crate::engine::upstream::address::Address;
use crate::engine::upstream::wire::{Kind, refuse};
use crate::engine::{Constraint, ConstraintKind, EngineError, FinishReason, TokenLogprob};

/// Most tokens of a prompt that are scored, each by a call.
pub(super) const MAX_SCORED: usize = 48;
/// The bias that forces a token.
const FORCING: f64 = 1e4;

pub(super) fn call(call: &TokenCall<'_>) -> Result<(Address, Value), EngineError> {
    let mut body = sampling(Kind::LlamaCpp, call.params)?;
    if let Some(constraint) = &call.params.constraint {
        insert_form(constraint, &mut body)?;
    }
    let fields = json!({
        "prompt": call.ids, "n_predict": call.max_tokens, "seed": call.seed as u32, "n_probs": call.top.max(1),
        "post_sampling_probs": false, "return_tokens": true, "cache_prompt": true, "stream": false,
    });
    body.extend(fields.as_object().cloned().unwrap_or_default());
    Ok((Address::Root("completion"), body.into()))
}

fn insert_form(constraint: &Constraint, body: &mut Map<String, Value>) -> Result<(), EngineError> {
    let (name, value) = match &constraint.kind {
        ConstraintKind::JsonObject => ("json_schema", json!({"type": "object"})),
        ConstraintKind::JsonSchema(schema) => ("json_schema", json!(schema)),
        ConstraintKind::Grammar(grammar) => ("grammar", json!(grammar)),
        ConstraintKind::Regex(_) | ConstraintKind::Choice(_) => return Err(refuse(constraint.field)),
    };
    body.insert(name.into(), value);
    Ok(())
}

pub(super) fn read(answer: &Value, vocab: usize, top: usize) -> Result<Vec<Part>, String> {
    let ids = list(answer, "tokens")?;
    let reported = answer["completion_probabilities"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    if reported.len() != ids.len() {
        return Err(format!("{} log-probs for {} tokens", reported.len(), ids.len()));
    }
    let one = |(id, entry): (&Value, &Value)| {
        if entry["id"] != *id {
            return Err(format!("token {id} with the log-prob of {}", entry["id"]));
        }
        let alternatives =
            list(entry, "top_logprobs")?.iter().map(|other| token(&other["id"], &other["logprob"], vocab));
        Ok(with_top(token(id, &entry["logprob"], vocab)?, alternatives.collect::<Result<Vec<_>, _>>()?, top))
    };
    let tokens = ids.iter().zip(reported).map(one).collect::<Result<Vec<_>, String>>()?;
    let finish = match answer["stop_type"].as_str() {
        Some("eos" | "word") => FinishReason::Stop,
        Some("limit") => FinishReason::Length,
        _ => return Err(format!("the answer's 'stop_type' is {}", answer["stop_type"])),
    };
    Ok(vec![Part { index: 0, tokens, finish: Some(finish) }])
}

/// Address and body of the request for the log-prob of `id` after `left`.
pub(super) fn forced_call(left: &[u32], id: u32, top: usize) -> (Address, Value) {
    let body = json!({
        "prompt": left, "n_predict": 1, "n_probs": top.max(1), "post_sampling_probs": false, "return_tokens": true,
        "cache_prompt": true, "temperature": 0.0, "logit_bias": [[id, FORCING]], "ignore_eos": false, "stream": false,
    });
    (Address::Root("completion"), body)
}

/// The log-prob of the token that was forced.
pub(super) fn read_forced(answer: &Value, id: u32, vocab: usize, top: usize) -> Result<TokenLogprob, String> {
    token_id(&json!(id), vocab)?;
    let tokens = read(answer, vocab, top)?.pop().map(|part| part.tokens).unwrap_or_default();
    match <[TokenLogprob; 1]>::try_from(tokens) {
        Ok([token]) if token.id == id => Ok(token),
        other => Err(format!("{other:?} instead of the forced token {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as llama.cpp gives it (recorded, without its settings and times).
    fn answer() -> Value {
        json!({"index": 0, "content": " bear is", "tokens": [7012, 314], "id_slot": 1, "stop": true, "model": "m.gguf",
            "tokens_predicted": 2, "tokens_evaluated": 3, "prompt": "The capital brown", "has_new_line": false,
            "truncated": false, "stop_type": "limit", "stopping_word": "", "tokens_cached": 4,
            "completion_probabilities": [
                {"id": 7012, "token": " bear", "bytes": [32, 98, 101, 97, 114], "logprob": -1.8467867374420166,
                    "top_logprobs": [
                        {"id": 7012, "token": " bear", "bytes": [32, 98, 101, 97, 114], "logprob": -1.8467867374420166},
                        {"id": 10607, "token": " bears", "bytes": [32, 98], "logprob": -2.0041143894195557}]},
                {"id": 314, "token": " is", "bytes": [32, 105, 115], "logprob": -2.02203631401062, "top_logprobs": [
                    {"id": 314, "token": " is", "bytes": [32, 105, 115], "logprob": -2.02203631401062},
                    {"id": 28, "token": ",", "bytes": [44], "logprob": -2.0979373455047607}]}]})
    }

    #[test]
    fn answers_are_read() {
        let found = read(&answer(), 49152, 2).expect("an answer");
        let first = vec![(7012, -1.846_786_7), (10607, -2.004_114_4)];
        let second = vec![(314, -2.022_036_3), (28, -2.097_937_3)];
        let tokens = vec![
            TokenLogprob { id: 7012, logprob: Some(-1.846_786_7), top: first },
            TokenLogprob { id: 314, logprob: Some(-2.022_036_3), top: second },
        ];
        assert_eq!(found, [Part { index: 0, tokens, finish: Some(FinishReason::Length) }]);
        assert!(read(&answer(), 49152, 0).expect("an answer")[0].tokens.iter().all(|t| t.top.is_empty()));
    }

    #[test]
    fn incomplete_answers_are_refused() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut answer = answer();
            change(&mut answer);
            read(&answer, 49152, 1).expect_err("a refusal")
        };
        assert!(changed(&|a| a["tokens"] = Value::Null).contains("'tokens'"), "without return_tokens");
        assert!(changed(&|a| a["completion_probabilities"] = Value::Null).contains("0 log-probs for 2 tokens"));
        assert!(changed(&|a| a["tokens"] = json!([7012])).contains("2 log-probs for 1 tokens"));
        assert!(changed(&|a| a["tokens"] = json!([7012, 315])).contains("token 315 with the log-prob of 314"));
        let lp = |value: Value| changed(&|a| a["completion_probabilities"][0]["logprob"] = value.clone());
        assert!(lp(Value::Null).contains("is null"), "NaN is written as null");
        let beyond = changed(&|a| {
            a["tokens"] = json!([7012, 49152]);
            a["completion_probabilities"][1]["id"] = json!(49152);
        });
        assert_eq!(beyond, "token id 49152 is outside the vocabulary (49152)");
        assert!(changed(&|a| a["stop_type"] = json!("none")).contains("stop_type"));
    }

    #[test]
    fn a_forced_token_must_be_the_answer() {
        let mut one = answer();
        one["tokens"] = json!([7012]);
        one["completion_probabilities"].as_array_mut().expect("a list").pop();
        assert_eq!(read_forced(&one, 7012, 49152, 0).expect("a token").logprob, Some(-1.846_786_7));
        assert!(read_forced(&one, 314, 49152, 0).expect_err("a refusal").contains("forced token 314"));
        assert!(read_forced(&answer(), 7012, 49152, 0).is_err(), "two tokens");
    }
}
