//! Token ids and log-probs of vLLM: `/v1/completions` with `return_token_ids` and `return_tokens_as_token_ids`, which
//! also names the alternatives by their ids.

use serde_json::{Value, json};

use super::{Part, TokenCall, list, sampling, token, token_id, with_top};
use crate::engine::upstream::address::Address;
use crate::engine::upstream::wire::{self, Kind};
use crate::engine::{EngineError, TokenLogprob};

/// What precedes an id where a token's text would be.
const ID_PREFIX: &str = "token_id:";

pub(super) fn call(call: &TokenCall<'_>) -> Result<(Address, Value), EngineError> {
    let mut body = sampling(Kind::Vllm, call.params)?;
    if let Some(constraint) = &call.params.constraint {
        let (name, value) = wire::form(Kind::Vllm, constraint)?;
        body.insert(name.into(), value);
    }
    let fields = json!({
        "model": call.model, "prompt": call.ids, "max_tokens": call.max_tokens, "n": call.n, "seed": call.seed as i64,
        "stop_token_ids": call.end_ids, "logprobs": call.top, "return_token_ids": true,
        "return_tokens_as_token_ids": true, "stream": call.stream,
    });
    body.extend(fields.as_object().cloned().unwrap_or_default());
    Ok((Address::Api("completions"), body.into()))
}

pub(super) fn read(answer: &Value, vocab: usize, top: usize) -> Result<Vec<Part>, String> {
    list(answer, "choices")?.iter().map(|choice| part(choice, vocab, top)).collect()
}

fn part(choice: &Value, vocab: usize, top: usize) -> Result<Part, String> {
    let index = choice["index"].as_u64().unwrap_or(0) as usize;
    let finish = choice["finish_reason"].as_str().map(wire::finish);
    let logprobs = &choice["logprobs"];
    let reported = choice["token_ids"].as_array();
    if logprobs.is_null() && reported.is_none_or(Vec::is_empty) && (finish.is_some() || choice["text"] == "") {
        return Ok(Part { index, tokens: Vec::new(), finish });
    }
    let named = list(logprobs, "tokens")?.iter().map(|name| named_id(name, vocab)).collect::<Result<Vec<_>, _>>()?;
    if let Some(reported) = reported {
        let reported = reported.iter().map(|id| token_id(id, vocab)).collect::<Result<Vec<_>, _>>()?;
        if reported != named {
            return Err(format!("token ids {reported:?} with log-probs of {named:?}"));
        }
    }
    let values = list(logprobs, "token_logprobs")?;
    if values.len() != named.len() {
        return Err(format!("{} log-probs for {} tokens", values.len(), named.len()));
    }
    let one = |(i, (id, logprob)): (usize, (u32, &Value))| {
        let alternatives = match logprobs["top_logprobs"][i].as_object() {
            Some(listed) => listed.iter().map(|(name, lp)| token(&json!(id_in(name)), lp, vocab)).collect(),
            None if top == 0 => Ok(Vec::new()),
            None => Err("a token has no alternatives".to_owned()),
        };
        Ok(with_top(token(&json!(id), logprob, vocab)?, alternatives?, top))
    };
    let tokens = named.into_iter().zip(values).enumerate().map(one).collect::<Result<Vec<_>, String>>()?;
    Ok(Part { index, tokens, finish })
}

fn id_in(name: &str) -> Option<u64> {
    name.strip_prefix(ID_PREFIX)?.parse().ok()
}

fn named_id(name: &Value, vocab: usize) -> Result<u32, String> {
    let id = name.as_str().and_then(id_in).ok_or_else(|| format!("{name} is not '{ID_PREFIX}' and an id"))?;
    token_id(&json!(id), vocab)
}

/// Address and body of the request for the log-probs of a prompt.
pub(super) fn prompt_call(model: &str, ids: &[u32], top: usize) -> (Address, Value) {
    let body = json!({"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top});
    (Address::Api("completions"), body)
}

/// The log-probs of `ids` from `from` on.
pub(super) fn read_prompt(
    answer: &Value,
    ids: &[u32],
    from: usize,
    vocab: usize,
    top: usize,
) -> Result<Vec<TokenLogprob>, String> {
    let reported = list(&answer["choices"][0], "prompt_logprobs")?;
    if reported.len() != ids.len() {
        return Err(format!("log-probs of {} tokens for a prompt of {}", reported.len(), ids.len()));
    }
    let one = |(at, listed): (usize, &Value)| {
        if at == 0 {
            return Ok(TokenLogprob { id: ids[0], logprob: None, top: Vec::new() });
        }
        let listed = listed.as_object().ok_or_else(|| format!("token {at} of the prompt has no log-prob"))?;
        let own = listed.get(&ids[at].to_string());
        let own = own.ok_or_else(|| format!("token {at} of the prompt is not among its log-probs"))?;
        let numbered = |id: &String, entry: &Value| token(&json!(id.parse::<u64>().ok()), &entry["logprob"], vocab);
        let alternatives = listed.iter().map(|(id, entry)| numbered(id, entry)).collect::<Result<Vec<_>, _>>()?;
        Ok(with_top(token(&json!(ids[at]), &own["logprob"], vocab)?, alternatives, top))
    };
    reported.iter().enumerate().skip(from).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FinishReason;

    /// The events of a stream as vLLM 0.11 sends them.
    fn event() -> Value {
        json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [{"index": 1,
            "text": " bear", "logprobs": {"text_offset": [0], "token_logprobs": [-1.8467],
            "tokens": ["token_id:7012"], "top_logprobs": [{"token_id:7012": -1.8467, "token_id:10607": -1.75}]},
            "finish_reason": null, "stop_reason": null, "prompt_token_ids": null, "token_ids": [7012]}]})
    }

    #[test]
    fn events_are_read() {
        let found = read(&event(), 49152, 1).expect("an event");
        let token = TokenLogprob { id: 7012, logprob: Some(-1.8467), top: vec![(10607, -1.75)] };
        assert_eq!(found, [Part { index: 1, tokens: vec![token], finish: None }]);
        let end = json!({"choices": [{"index": 0, "text": "", "logprobs": null, "finish_reason": "length",
            "token_ids": []}]});
        let found = read(&end, 49152, 1).expect("an end");
        assert_eq!(found, [Part { index: 0, tokens: vec![], finish: Some(FinishReason::Length) }]);
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
        assert_eq!(read(&usage, 49152, 1), Ok(vec![]));
    }

    #[test]
    fn incomplete_events_are_refused() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut event = event();
            change(&mut event["choices"][0]);
            read(&event, 49152, 1).expect_err("a refusal")
        };
        assert!(changed(&|c| c["logprobs"] = Value::Null).contains("'tokens'"), "no log-probs");
        assert!(changed(&|c| c["logprobs"]["token_logprobs"] = json!([])).contains("0 log-probs for 1 tokens"));
        assert!(changed(&|c| c["logprobs"]["token_logprobs"] = json!([null])).contains("is null"), "NaN");
        assert!(changed(&|c| c["logprobs"]["token_logprobs"] = json!([0.5])).contains("is 0.5"));
        assert!(changed(&|c| c["logprobs"]["tokens"] = json!([" bear"])).contains("token_id:"), "an old server");
        assert!(changed(&|c| c["logprobs"]["top_logprobs"] = Value::Null).contains("no alternatives"));
        assert!(changed(&|c| c["token_ids"] = json!([7013])).contains("[7013] with log-probs of [7012]"));
        assert!(changed(&|c| c["token_ids"] = json!([7012, 3])).contains("with log-probs of"));
        let beyond = changed(&|c| {
            c["token_ids"] = json!([49152]);
            c["logprobs"]["tokens"] = json!(["token_id:49152"]);
        });
        assert_eq!(beyond, "token id 49152 is outside the vocabulary (49152)");
        assert!(read(&json!({}), 49152, 0).is_err());
    }

    #[test]
    fn prompts_are_read() {
        let entry = |logprob: f64| json!({"logprob": logprob, "rank": 1, "decoded_token": "x"});
        let answer = |second: Value| json!({"choices": [{"prompt_logprobs": [null, {"7": entry(-2.5)}, second]}]});
        let whole = answer(json!({"9": entry(-3.0), "4": entry(-0.25)}));
        let found = read_prompt(&whole, &[5, 7, 9], 1, 100, 1).expect("a prompt");
        assert_eq!(found[0], TokenLogprob { id: 7, logprob: Some(-2.5), top: vec![(7, -2.5)] });
        assert_eq!(found[1], TokenLogprob { id: 9, logprob: Some(-3.0), top: vec![(4, -0.25)] });
        assert_eq!(read_prompt(&whole, &[5, 7, 9], 0, 100, 0).expect("a prompt")[0].logprob, None);
        let refused = |second: Value, ids: &[u32]| read_prompt(&answer(second), ids, 1, 100, 1).expect_err("a refusal");
        assert!(refused(Value::Null, &[5, 7, 9]).contains("token 2 of the prompt"));
        assert!(refused(json!({"4": entry(-1.0)}), &[5, 7, 9]).contains("not among"));
        assert!(refused(json!({"9": {"logprob": null}}), &[5, 7, 9]).contains("is null"));
        assert!(refused(json!({"9": entry(-1.0), "100": entry(-1.0)}), &[5, 7, 9]).contains("outside"));
        assert!(refused(json!({"9": entry(-1.0)}), &[5, 7]).contains("3 tokens for a prompt of 2"));
    }
}
