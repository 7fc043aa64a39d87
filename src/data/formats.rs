//! The formats of JSONL files: each line ↔ a `Record`.

use std::io::BufRead;

use serde_json::{Map, Value, json};

use super::lines::{LineError, Lines};
use super::oasst;
use super::preferences::pairs;
use super::records::{Comparison, Format, PromptInput, PromptRecord, RankedText, Record, Written};
use crate::domain::{Message, Split, Strength};

/// More completions than these in one set are taken for a mistake: pairs grow with the square.
const MAX_COMPLETIONS: usize = 64;

type Parsed<T> = Result<T, String>;

/// The records of a JSONL stream, in order; bad lines come as errors and do not end the stream. A line of
/// Open-Assistant trees may hold several rankings or none. Parquet is no lines: see `parquet::read`.
pub fn import<R: BufRead>(format: Format, reader: R) -> impl Iterator<Item = Result<Record, LineError>> {
    Lines::new(reader).flat_map(move |line| {
        let parsed =
            line.and_then(|(line, text)| parse_line(format, &text).map_err(|message| LineError { line, message }));
        match parsed {
            Ok(records) => records.into_iter().map(Ok).collect(),
            Err(e) => vec![Err(e)],
        }
    })
}

/// The lines (without newline) that a record becomes. A ranking of K gives one TRL or HH line per pair;
/// formats that cannot hold the record give none.
pub fn export(format: Format, record: &Record) -> Vec<String> {
    match (format, record) {
        // Fields in the order of the struct, as jobs write them: the same data has the same hash.
        (Format::Comparisons, Record::Comparison(c)) => serde_json::to_string(c).into_iter().collect(),
        (Format::Demonstrations, Record::Demonstration(d)) => serde_json::to_string(d).into_iter().collect(),
        (Format::Prompts, Record::Prompt(p)) => vec![json!(p).to_string()],
        (Format::Trl, Record::Comparison(c)) => pair_lines(c, trl_line),
        (Format::Hh, Record::Comparison(c)) => pair_lines(c, hh_line),
        (Format::Oasst, Record::Comparison(c)) => oasst::tree(c).iter().map(Value::to_string).collect(),
        _ => Vec::new(),
    }
}

fn pair_lines(comparison: &Comparison, line: fn(&PromptInput, &str, &str) -> Value) -> Vec<String> {
    let text = |i: usize| comparison.completions.get(i).map_or("", |c| c.text.as_str());
    let lines = pairs(&comparison.completions);
    lines.into_iter().map(|p| line(&comparison.prompt, text(p.better), text(p.worse)).to_string()).collect()
}

fn trl_line(prompt: &PromptInput, chosen: &str, rejected: &str) -> Value {
    match prompt {
        PromptInput::Text(text) => json!({"prompt": text, "chosen": chosen, "rejected": rejected}),
        PromptInput::Chat(messages) => {
            let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
            json!({"prompt": messages, "chosen": answer(chosen), "rejected": answer(rejected)})
        }
    }
}

fn hh_line(prompt: &PromptInput, chosen: &str, rejected: &str) -> Value {
    let mut text = String::new();
    for message in prompt.messages() {
        let name = if message.role == "assistant" { "Assistant" } else { "Human" };
        text.push_str(&format!("\n\n{name}: {}", message.content));
    }
    json!({"chosen": format!("{text}\n\nAssistant: {chosen}"), "rejected": format!("{text}\n\nAssistant: {rejected}")})
}

fn parse_line(format: Format, text: &str) -> Parsed<Vec<Record>> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    if format == Format::Oasst {
        return Ok(oasst::rankings(&value)?.into_iter().map(Record::Comparison).collect());
    }
    let Value::Object(fields) = value else { return Err("must be a JSON object".into()) };
    Ok(vec![match format {
        Format::Comparisons => Record::Comparison(comparison(&fields)?),
        Format::Trl => Record::Comparison(trl(&fields)?),
        Format::Hh => Record::Comparison(hh(string(&fields, "chosen")?, string(&fields, "rejected")?)?),
        Format::Demonstrations => Record::Demonstration(demonstration(&fields)?),
        Format::Prompts => Record::Prompt(prompt_record(&fields)?),
        Format::Oasst | Format::Parquet => return Err(format!("{} is not read by lines", format.as_str())),
    }])
}

/// A row with `prompt`, `chosen`, `rejected` in any of TRL's shapes, and perhaps `split`.
pub(super) fn preference(fields: &Map<String, Value>) -> Parsed<Comparison> {
    let mut comparison = trl(fields)?;
    // Other data sets name their files' parts `split` too; only our two names mean a side.
    comparison.split = optional_string(fields, "split")?.and_then(|s| Split::parse(&s));
    Ok(comparison)
}

// ---------------------------------------------------------------- fields

/// The value of a field; null counts as absent.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|v| !v.is_null())
}

fn string<'a>(fields: &'a Map<String, Value>, name: &str) -> Parsed<&'a str> {
    field(fields, name).ok_or(format!("`{name}` is missing"))?.as_str().ok_or(format!("`{name}` must be a string"))
}

fn optional_string(fields: &Map<String, Value>, name: &str) -> Parsed<Option<String>> {
    if field(fields, name).is_none() { Ok(None) } else { string(fields, name).map(|s| Some(s.to_owned())) }
}

fn messages(value: &Value, name: &str) -> Parsed<Vec<Message>> {
    let items = value.as_array().ok_or(format!("`{name}` must be a list of messages"))?;
    let one = |(i, item): (usize, &Value)| -> Parsed<Message> {
        let part =
            |key: &str| item.get(key).and_then(Value::as_str).ok_or(format!("`{name}[{i}].{key}` must be a string"));
        let role = match part("role")? {
            "prompter" | "human" => "user",
            role @ ("system" | "user" | "assistant") => role,
            other => return Err(format!("`{name}[{i}].role` = {other:?} (known: system, user, assistant)")),
        };
        Ok(Message { role: role.to_owned(), content: part("content")?.to_owned() })
    };
    items.iter().enumerate().map(one).collect()
}

fn prompt_input(value: &Value, name: &str) -> Parsed<PromptInput> {
    match value {
        Value::String(text) if text.is_empty() => Err(format!("`{name}` is empty")),
        Value::String(text) => Ok(PromptInput::Text(text.clone())),
        list => match messages(list, name)? {
            list if list.is_empty() => Err(format!("`{name}` is empty")),
            list => Ok(PromptInput::Chat(list)),
        },
    }
}

/// `prompt` (text or messages) or `messages`.
fn prompt_field(fields: &Map<String, Value>) -> Parsed<PromptInput> {
    match (field(fields, "prompt"), field(fields, "messages")) {
        (Some(value), _) => prompt_input(value, "prompt"),
        (None, Some(value)) => prompt_input(value, "messages"),
        (None, None) => Err("`prompt` is missing".into()),
    }
}

/// A completion: a string, or a list with one message of the assistant.
fn answer(value: &Value, name: &str) -> Parsed<String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match messages(value, name)?.as_slice() {
        [one] if one.role == "assistant" => Ok(one.content.clone()),
        _ => Err(format!("`{name}` must be a string or one message of the assistant")),
    }
}

// ---------------------------------------------------------------- formats

fn comparison(fields: &Map<String, Value>) -> Parsed<Comparison> {
    let list = field(fields, "completions").ok_or("`completions` is missing")?;
    let list = list.as_array().ok_or("`completions` must be a list")?;
    if !(2..=MAX_COMPLETIONS).contains(&list.len()) {
        return Err(format!("`completions` must hold 2 to {MAX_COMPLETIONS} texts, found {}", list.len()));
    }
    let mut completions = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let text =
            item.get("text").and_then(Value::as_str).ok_or(format!("`completions[{i}].text` must be a string"))?;
        let tier = item.get("tier").and_then(Value::as_i64).filter(|t| (0..=1_000_000).contains(t));
        let tier = tier.ok_or(format!("`completions[{i}].tier` must be a whole number from 0"))?;
        completions.push(RankedText { text: text.to_owned(), tier });
    }
    let strength = optional_string(fields, "strength")?;
    let strength = strength.map(|s| Strength::parse(&s).ok_or(format!("`strength` = {s:?}"))).transpose()?;
    let split = optional_string(fields, "split")?;
    let split = split.map(|s| Split::parse(&s).ok_or(format!("`split` = {s:?} (train, heldout)"))).transpose()?;
    Ok(Comparison {
        prompt_id: optional_string(fields, "prompt_id")?,
        prompt: prompt_field(fields)?,
        completions,
        strength,
        split,
    })
}

/// A pair with the preferred text first.
fn preferred(prompt: PromptInput, chosen: String, rejected: String) -> Comparison {
    let completions = vec![RankedText { text: chosen, tier: 0 }, RankedText { text: rejected, tier: 1 }];
    Comparison { prompt_id: None, prompt, completions, strength: None, split: None }
}

fn trl(fields: &Map<String, Value>) -> Parsed<Comparison> {
    let chosen = field(fields, "chosen").ok_or("`chosen` is missing")?;
    let rejected = field(fields, "rejected").ok_or("`rejected` is missing")?;
    match (field(fields, "prompt"), chosen, rejected) {
        (Some(prompt @ Value::String(_)), Value::String(_), Value::String(_))
        | (Some(prompt @ Value::Array(_)), _, _) => {
            Ok(preferred(prompt_input(prompt, "prompt")?, answer(chosen, "chosen")?, answer(rejected, "rejected")?))
        }
        // Whole conversations (a string prompt beside them repeats their first message): the prompt is
        // what both have in common.
        (_, Value::Array(_), Value::Array(_)) => {
            let (chosen, rejected) = (messages(chosen, "chosen")?, messages(rejected, "rejected")?);
            let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
            // Equal answers are a pair all the same; their last message is the answer.
            let common = common.min(chosen.len().saturating_sub(1));
            match (&chosen[common..], rejected.get(common..)) {
                ([a], Some([b])) if common > 0 && a.role == "assistant" && b.role == "assistant" => {
                    let prompt = PromptInput::Chat(chosen[..common].to_vec());
                    Ok(preferred(prompt, a.content.clone(), b.content.clone()))
                }
                _ => Err("`chosen` and `rejected` must differ in one last message of the assistant".into()),
            }
        }
        (None, Value::String(chosen), Value::String(rejected)) => {
            if chosen.trim_start().starts_with("Human:") && rejected.trim_start().starts_with("Human:") {
                return hh(chosen, rejected);
            }
            let at = common_prefix(chosen, rejected);
            if at == 0 {
                return Err("without `prompt`, `chosen` and `rejected` must begin alike".into());
            }
            Ok(preferred(
                PromptInput::Text(chosen[..at].to_owned()),
                chosen[at..].to_owned(),
                rejected[at..].to_owned(),
            ))
        }
        _ => Err("`prompt`, `chosen` and `rejected` must all be strings or all be messages".into()),
    }
}

/// Bytes that two texts have in common from the start. A space before the difference belongs to the
/// completions, as in TRL's `extract_prompt`.
fn common_prefix(a: &str, b: &str) -> usize {
    let at: usize = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    if at > 0 && a.as_bytes().get(at - 1) == Some(&b' ') { at - 1 } else { at }
}

fn hh(chosen: &str, rejected: &str) -> Parsed<Comparison> {
    let (mut prompt, a) = hh_turns(chosen).map_err(|e| format!("`chosen` {e}"))?;
    let (other, b) = hh_turns(rejected).map_err(|e| format!("`rejected` {e}"))?;
    if prompt != other {
        // In a few dozen published lines the conversations part earlier; they are no comparison of answers.
        return Err("`chosen` and `rejected` have different prompts".into());
    }
    prompt.shrink_to_fit();
    Ok(preferred(PromptInput::Chat(prompt), a, b))
}

/// The turns of `\n\nHuman: …\n\nAssistant: …`: all but the last, and the last.
fn hh_turns(text: &str) -> Parsed<(Vec<Message>, String)> {
    let mut turns: Vec<Message> = Vec::new();
    let text = format!("\n\n{}", text.trim_start());
    for part in text.split("\n\n") {
        let start = [("Human:", "user"), ("Assistant:", "assistant")]
            .into_iter()
            .find_map(|(name, role)| Some((role, part.strip_prefix(name)?)));
        match (start, turns.last_mut()) {
            (Some((role, content)), _) => {
                turns.push(Message { role: role.into(), content: content.trim_start_matches(' ').to_owned() });
            }
            (None, Some(last)) => last.content.push_str(&format!("\n\n{part}")),
            (None, None) if part.is_empty() => {}
            (None, None) => return Err("must begin with \"Human:\"".into()),
        }
    }
    match turns.pop() {
        Some(last) if last.role == "assistant" && !turns.is_empty() => Ok((turns, last.content)),
        _ => Err("must end with a turn of the assistant".into()),
    }
}

fn demonstration(fields: &Map<String, Value>) -> Parsed<Written> {
    let prompt_id = optional_string(fields, "prompt_id")?;
    if let (None, Some(list)) = (field(fields, "completion"), field(fields, "messages")) {
        let mut list = messages(list, "messages")?;
        return match list.pop() {
            Some(last) if last.role == "assistant" && !list.is_empty() => {
                Ok(Written { prompt_id, prompt: PromptInput::Chat(list), completion: last.content })
            }
            _ => Err("`messages` must end with a message of the assistant after a prompt".into()),
        };
    }
    let completion = answer(field(fields, "completion").ok_or("`completion` is missing")?, "completion")?;
    Ok(Written { prompt_id, prompt: prompt_field(fields)?, completion })
}

fn prompt_record(fields: &Map<String, Value>) -> Parsed<PromptRecord> {
    let tags = match field(fields, "tags") {
        None => Vec::new(),
        Some(list) => serde_json::from_value(list.clone()).map_err(|_| "`tags` must be a list of strings")?,
    };
    Ok(PromptRecord {
        prompt_id: optional_string(fields, "prompt_id")?,
        prompt: prompt_field(fields)?,
        tags,
        lang: optional_string(fields, "lang")?,
        answer: optional_string(fields, "answer")?,
    })
}
