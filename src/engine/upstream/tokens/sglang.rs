//! Token ids and log-probs of SGLang: its own `/generate` with `return_logprob`. Lists in the events of a stream have
//! all tokens so far, or with `--incremental-streaming-output` those since the last event.

use serde_json::{Map, Value, json};

use super::{Part, TokenCall, list, sampling, token, with_top};
use crate::engine::upstream::address::Address;
use crate::engine::upstream::wire::{self, Kind, refuse};
use crate::engine::{Constraint, ConstraintKind, EngineError, TokenLogprob};

pub(super) fn call(call: &TokenCall<'_>) -> Result<(Address, Value), EngineError> {
    let mut params = sampling(Kind::Sglang, call.params)?;
    if let Some(least) = params.remove("min_tokens") {
        params.insert("min_new_tokens".into(), least);
    }
    if let Some(constraint) = &call.params.constraint {
        insert_form(constraint, &mut params)?;
    }
    let fields = json!({
        "max_new_tokens": call.max_tokens, "n": call.n, "sampling_seed": call.seed as i64,
        "stop_token_ids": call.end_ids,
    });
    params.extend(fields.as_object().cloned().unwrap_or_default());
    let body = json!({
        "input_ids": call.ids, "sampling_params": params, "return_logprob": true, "logprob_start_len": -1,
        "top_logprobs_num": call.top, "stream": call.stream,
    });
    Ok((Address::Root("generate"), body))
}

fn insert_form(constraint: &Constraint, params: &mut Map<String, Value>) -> Result<(), EngineError> {
    let (name, value) = match &constraint.kind {
        ConstraintKind::JsonObject => ("json_schema", json!({"type": "object"}).to_string()),
        ConstraintKind::JsonSchema(schema) => ("json_schema", schema.to_string()),
        ConstraintKind::Regex(regex) => ("regex", regex.clone()),
        ConstraintKind::Choice(_) | ConstraintKind::Grammar(_) => return Err(refuse(constraint.field)),
    };
    params.insert(name.into(), value.into());
    Ok(())
}

/// `seen` is the number of tokens of each sample that were read before.
pub(super) fn read(answer: &Value, vocab: usize, top: usize, seen: &[usize]) -> Result<Vec<Part>, String> {
    // A whole answer with several samples is a list.
    let answers = answer.as_array().map_or(std::slice::from_ref(answer), Vec::as_slice);
    answers.iter().enumerate().map(|(i, answer)| part(answer, i, vocab, top, seen)).collect()
}

fn part(answer: &Value, place: usize, vocab: usize, top: usize, seen: &[usize]) -> Result<Part, String> {
    let index = answer["index"].as_u64().map_or(place, |index| index as usize);
    let seen = seen.get(index).copied().unwrap_or(0);
    let meta = &answer["meta_info"];
    let reason = &meta["finish_reason"];
    let finish = reason["type"].as_str().or_else(|| reason.as_str()).map(wire::finish);
    let total = meta["completion_tokens"].as_u64().ok_or("the answer has no number 'completion_tokens'")? as usize;
    let values = list(meta, "output_token_logprobs")?;
    let skipped = match values.len() {
        n if n == total => seen,
        n if n + seen == total => 0,
        n => return Err(format!("{n} log-probs for {total} tokens, of which {seen} were sent before")),
    };
    let one = |(i, entry): (usize, &Value)| reported(entry, &meta["output_top_logprobs"][i], vocab, top, "a token");
    let tokens = values.iter().enumerate().skip(skipped).map(one).collect::<Result<Vec<_>, String>>()?;
    Ok(Part { index, tokens, finish })
}

/// A token with its `top` alternatives. `entry` and the entries of `listed` are a log-prob, an id and perhaps a text; `what`
/// names the token in an error.
fn reported(entry: &Value, listed: &Value, vocab: usize, top: usize, what: &str) -> Result<TokenLogprob, String> {
    let alternatives = match listed.as_array() {
        Some(listed) => listed.iter().map(|entry| token(&entry[1], &entry[0], vocab)).collect(),
        None if top == 0 => Ok(Vec::new()),
        None => Err(format!("{what} has no alternatives")),
    };
    Ok(with_top(token(&entry[1], &entry[0], vocab)?, alternatives?, top))
}

/// Address and body of the request for the log-probs of a prompt from `from` on.
pub(super) fn prompt_call(ids: &[u32], from: usize, top: usize) -> (Address, Value) {
    let body = json!({
        "input_ids": ids, "sampling_params": {"max_new_tokens": 0, "temperature": 0.0}, "return_logprob": true,
        "logprob_start_len": from.saturating_sub(1), "top_logprobs_num": top, "stream": false,
    });
    (Address::Root("generate"), body)
}

/// The log-probs of `ids` from `from` on. Where the first of the server's entries stands has differed between its
/// versions, so the last ones are used, and their ids compared.
pub(super) fn read_prompt(
    answer: &Value,
    ids: &[u32],
    from: usize,
    vocab: usize,
    top: usize,
) -> Result<Vec<TokenLogprob>, String> {
    let meta = &answer["meta_info"];
    let values = list(meta, "input_token_logprobs")?;
    let wanted = ids.len() - from;
    let skipped = values.len().checked_sub(wanted);
    let skipped = skipped.ok_or_else(|| format!("log-probs of {} tokens for {wanted}", values.len()))?;
    let one = |(at, i): (usize, usize)| {
        let entry = &values[i];
        if entry[1].as_u64() != Some(u64::from(ids[at])) {
            return Err(format!("token {at} of the prompt is {}, and its log-prob that of {}", ids[at], entry[1]));
        }
        if at == 0 {
            return Ok(TokenLogprob { id: ids[0], logprob: None, top: Vec::new() });
        }
        reported(entry, &meta["input_top_logprobs"][i], vocab, top, &format!("token {at} of the prompt"))
    };
    (from..ids.len()).zip(skipped..values.len()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FinishReason;

    /// An event of a stream as SGLang 0.5 sends it, with all tokens so far.
    fn event() -> Value {
        json!({"text": " bear is", "output_ids": [7012, 314], "meta_info": {"id": "a", "finish_reason": null,
            "prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 0, "weight_version": "default",
            "output_token_logprobs": [[-1.8467, 7012, null], [-2.022, 314, null]],
            "output_top_logprobs": [[[-1.8467, 7012, null]], [[-2.022, 314, null]]]}})
    }

    fn one(index: usize, ids: &[(u32, f32)], finish: Option<FinishReason>) -> Vec<Part> {
        let token = |(id, lp): &(u32, f32)| TokenLogprob { id: *id, logprob: Some(*lp), top: vec![(*id, *lp)] };
        vec![Part { index, tokens: ids.iter().map(token).collect(), finish }]
    }

    #[test]
    fn both_forms_of_streams_are_read() {
        assert_eq!(read(&event(), 49152, 1, &[0]), Ok(one(0, &[(7012, -1.8467), (314, -2.022)], None)));
        assert_eq!(read(&event(), 49152, 1, &[1]), Ok(one(0, &[(314, -2.022)], None)));
        let mut since = event();
        since["index"] = json!(1);
        since["meta_info"]["completion_tokens"] = json!(5);
        since["meta_info"]["finish_reason"] = json!({"type": "stop", "matched": 2});
        let end = Some(FinishReason::Stop);
        assert_eq!(read(&since, 49152, 1, &[0, 3]), Ok(one(1, &[(7012, -1.8467), (314, -2.022)], end)));
    }

    #[test]
    fn incomplete_events_are_refused() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut event = event();
            change(&mut event["meta_info"]);
            read(&event, 49152, 1, &[1]).expect_err("a refusal")
        };
        assert!(changed(&|m| m["output_token_logprobs"] = Value::Null).contains("'output_token_logprobs'"));
        assert!(changed(&|m| m["completion_tokens"] = Value::Null).contains("'completion_tokens'"));
        assert!(changed(&|m| m["completion_tokens"] = json!(7)).contains("2 log-probs for 7 tokens"));
        assert!(changed(&|m| m["output_token_logprobs"][1] = json!([null, 314, null])).contains("is null"));
        assert!(changed(&|m| m["output_token_logprobs"][1] = json!([-1.0, 49152, null])).contains("outside"));
        assert!(changed(&|m| m["output_top_logprobs"] = json!([])).contains("no alternatives"));
        assert!(read(&json!({"text": "x"}), 49152, 0, &[0]).is_err());
    }

    #[test]
    fn prompts_are_read_from_their_end() {
        let answer = |values: Value| json!({"meta_info": {"input_token_logprobs": values}});
        let whole = answer(json!([[null, 5, null], [-2.5, 7, null], [-3.0, 9, null]]));
        for values in [whole.clone(), answer(json!([[-2.5, 7, null], [-3.0, 9, null]]))] {
            let found = read_prompt(&values, &[5, 7, 9], 1, 100, 0).expect("a prompt");
            assert_eq!(found.iter().map(|t| (t.id, t.logprob)).collect::<Vec<_>>(), [(7, Some(-2.5)), (9, Some(-3.0))]);
        }
        assert_eq!(read_prompt(&whole, &[5, 7, 9], 0, 100, 0).expect("a prompt")[0].logprob, None);
        let refused = |values: Value| read_prompt(&answer(values), &[5, 7, 9], 1, 100, 0).expect_err("a refusal");
        assert!(refused(json!([[-3.0, 9, null]])).contains("1 tokens for 2"));
        assert!(refused(json!([[-2.5, 8, null], [-3.0, 9, null]])).contains("that of 8"));
        assert!(refused(json!([[null, 7, null], [-3.0, 9, null]])).contains("is null"));
    }
}
