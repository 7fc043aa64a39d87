//! The formats of JSONL files: each line ↔ a `Record`.

use std::io::BufRead;

use serde_json::{Map, Value, json};

use super::error::LineError;
pub(super) use super::fields::is_prompt_like;
use super::fields::{Fields, Outcome, kind, parse_json, unknown_column};
use super::hh;
use super::lines::{Lines, MAX_SENT_LINE};
use super::oasst;
use super::preferences::pairs;
use super::records::{Comparison, Format, PromptRecord, RankedText, Record, Written};
use crate::domain::{Knowledge, LabelerKind, Message, PromptInput, Ratings, Split, Strength, TextSpan};

/// Most completions in one set; the number of pairs grows with its square. Labelers rank sets of two to nine; larger
/// ones come only from files.
pub const MAX_COMPLETIONS: usize = 64;

/// Columns that `trl` and Parquet files read: `question`, `system` and `system_prompt` are Orca's names.
pub(super) const TRL_FIELDS: &[&str] =
    &["prompt", "question", "conversations", "system", "system_prompt", "chosen", "rejected", "split"];

/// A line as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Lines and rows count from 1.
    pub line: usize,
    pub record: Record,
    /// Unread fields of the line.
    pub ignored: Vec<String>,
}

/// The records of a JSONL stream, in order; bad lines give errors and do not end the stream. A line of Open-Assistant
/// trees may contain several rankings or none. For Parquet see `parquet::read`.
pub fn import<R: BufRead>(format: Format, reader: R) -> impl Iterator<Item = Result<Record, LineError>> {
    parsed(format, Lines::new(reader)).map(|parsed| parsed.map(|p| p.record))
}

/// The records of an uploaded file: with a lower limit on the length of lines, line numbers, and unread fields.
pub fn import_lines<R: BufRead>(format: Format, reader: R) -> impl Iterator<Item = Result<Parsed, LineError>> {
    parsed(format, Lines::up_to(reader, MAX_SENT_LINE))
}

fn parsed<R: BufRead>(format: Format, lines: Lines<R>) -> impl Iterator<Item = Result<Parsed, LineError>> {
    lines.flat_map(move |line| {
        let parsed = line.and_then(|(line, text)| match parse_line(format, &text) {
            Ok((records, ignored)) => Ok((line, records, ignored)),
            Err(message) => Err(LineError::new(line, message)),
        });
        match parsed {
            Ok((line, records, ignored)) => {
                records.into_iter().map(|record| Ok(Parsed { line, record, ignored: ignored.clone() })).collect()
            }
            Err(e) => vec![Err(e)],
        }
    })
}

/// The lines (without newline) of a record. A ranking of K gives one TRL or HH line for each pair; formats that cannot
/// represent the record give none.
pub fn export(format: Format, record: &Record) -> Vec<String> {
    match (format, record) {
        // Fields in the order of the struct, so that equal data has equal hashes.
        (Format::Comparisons, Record::Comparison(c)) => serde_json::to_string(c).into_iter().collect(),
        (Format::Demonstrations, Record::Demonstration(d)) => serde_json::to_string(d).into_iter().collect(),
        (Format::Prompts, Record::Prompt(p)) => vec![json!(p).to_string()],
        (Format::Trl, Record::Comparison(c)) => pair_lines(c, trl_line),
        (Format::Hh, Record::Comparison(c)) => pair_lines(c, hh::line),
        (Format::Oasst, Record::Comparison(c)) => oasst::tree(c).iter().map(Value::to_string).collect(),
        _ => Vec::new(),
    }
}

/// All pairs of a set as lines, or none if the format cannot represent all of them.
fn pair_lines(comparison: &Comparison, line: fn(&PromptInput, &str, &str) -> Option<Value>) -> Vec<String> {
    let text = |i: usize| comparison.completions.get(i).map_or("", |c| c.text.as_str());
    let lines = pairs(&comparison.completions).into_iter();
    let lines = lines.map(|p| Some(line(&comparison.prompt, text(p.better), text(p.worse))?.to_string()));
    lines.collect::<Option<_>>().unwrap_or_default()
}

fn trl_line(prompt: &PromptInput, chosen: &str, rejected: &str) -> Option<Value> {
    Some(match prompt {
        PromptInput::Text(text) => json!({"prompt": text, "chosen": chosen, "rejected": rejected}),
        PromptInput::Chat(messages) => {
            let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
            json!({"prompt": messages, "chosen": answer(chosen), "rejected": answer(rejected)})
        }
    })
}

fn parse_line(format: Format, text: &str) -> Outcome<(Vec<Record>, Vec<String>)> {
    let value = parse_json(text)?;
    let Value::Object(map) = &value else {
        return Err(format!("must be a JSON object, not {}", kind(&value)));
    };
    let fields = Fields::new(map);
    if format == Format::Oasst {
        if !map.get("prompt").is_some_and(Value::is_object) {
            return Err(fields.missing("prompt", format));
        }
        return Ok((oasst::rankings(&value)?.into_iter().map(Record::Comparison).collect(), Vec::new()));
    }
    let record = match format {
        Format::Comparisons => Record::Comparison(comparison(&fields)?),
        Format::Trl => Record::Comparison(trl(&fields)?),
        Format::Hh => {
            let text = |name| fields.string(name)?.ok_or_else(|| fields.missing(name, format));
            Record::Comparison(hh::pair(text("chosen")?, text("rejected")?)?)
        }
        Format::Demonstrations => Record::Demonstration(demonstration(&fields)?),
        Format::Prompts => Record::Prompt(prompt_record(&fields)?),
        Format::Oasst | Format::Parquet => return Err(format!("the format {} is not line-based", format.as_str())),
    };
    Ok((vec![record], fields.unread()))
}

/// A row with `prompt`, `chosen`, `rejected` in any of TRL's shapes, and perhaps `split`; and its unread fields.
pub(super) fn preference(map: &Map<String, Value>) -> Outcome<(Comparison, Vec<String>)> {
    let fields = Fields::new(map);
    let mut comparison = trl(&fields)?;
    // Other data sets use `split` for parts of files; only the values `train` and `heldout` apply.
    comparison.split = fields.owned("split")?.and_then(|s| Split::parse(&s));
    Ok((comparison, fields.unread()))
}

// ---------------------------------------------------------------- formats

/// A non-negative whole number, also in the form `1.0`.
fn tier(value: Option<&Value>) -> Option<i64> {
    let value = value?;
    let number = value.as_i64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64))?;
    (0..=1_000_000).contains(&number).then_some(number)
}

fn comparison(fields: &Fields<'_>) -> Outcome<Comparison> {
    let list = fields.require("completions", Format::Comparisons)?;
    let list = list.as_array().ok_or("`completions` must be a list")?;
    if !(2..=MAX_COMPLETIONS).contains(&list.len()) {
        return Err(format!("`completions` must contain 2 to {MAX_COMPLETIONS} texts, found {}", list.len()));
    }
    let mut completions = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let text =
            item.get("text").and_then(Value::as_str).ok_or(format!("`completions[{i}].text` must be a string"))?;
        let found = item.get("tier").map_or("nothing".to_owned(), Value::to_string);
        let tier = tier(item.get("tier"))
            .ok_or(format!("`completions[{i}].tier` must be a whole number from 0 to 1000000, found {found}"))?;
        let ratings = ratings(item.get("ratings")).map_err(|e| format!("`completions[{i}].ratings{e}"))?;
        let spans = spans(item.get("spans"), text).map_err(|e| format!("`completions[{i}].spans` {e}"))?;
        completions.push(RankedText { ratings, spans, ..RankedText::new(text, tier) });
    }
    let strength = fields.owned("strength")?;
    let strength = strength.map(|s| Strength::parse(&s).ok_or(format!("`strength` = {s:?}"))).transpose()?;
    let split = fields.owned("split")?;
    let split = split.map(|s| Split::parse(&s).ok_or(format!("`split` = {s:?} (train, heldout)"))).transpose()?;
    let knowledge = fields.owned("knowledge")?;
    let knowledge =
        knowledge.map(|k| Knowledge::parse(&k).ok_or(format!("`knowledge` = {k:?} (blind, authors, answer)")));
    let labeler_kind = fields.owned("labeler_kind")?;
    let labeler_kind =
        labeler_kind.map(|k| LabelerKind::parse(&k).ok_or(format!("`labeler_kind` = {k:?} (human, model)")));
    let rubric = fields.owned("rubric")?;
    if rubric.is_none() && completions.iter().any(|c| !c.ratings.is_empty()) {
        return Err("`rubric` is missing: the version of the rubric that the ratings are by".into());
    }
    Ok(Comparison {
        prompt_id: fields.owned("prompt_id")?,
        prompt: with_system_of(fields, fields.prompt(Format::Comparisons)?)?,
        completions,
        strength,
        split,
        labeler: labeler(fields)?,
        labeler_kind: labeler_kind.transpose()?,
        project: fields.owned("project")?,
        knowledge: knowledge.transpose()?,
        explanation: fields.owned("explanation")?,
        rubric,
    })
}

/// The ratings of a completion; an error begins with the name of what is wrong within `ratings`.
fn ratings(value: Option<&Value>) -> Outcome<Ratings> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Ratings::new()) };
    let Value::Object(map) = value else { return Err(format!("` must be an object, not {}", kind(value))) };
    let one = |(dimension, value): (&String, &Value)| match serde_json::from_value(value.clone()) {
        Ok(rating) => Ok((dimension.clone(), rating)),
        Err(_) => Err(format!(".{dimension}` must be a whole number, true or false, or a list of tags; found {value}")),
    };
    map.iter().map(one).collect()
}

/// The spans of a text, in their order.
fn spans(value: Option<&Value>, text: &str) -> Outcome<Vec<TextSpan>> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let mut spans: Vec<TextSpan> = serde_json::from_value(value.clone())
        .map_err(|_| format!("must be a list of objects with `start`, `end` and perhaps `note`; found {value}"))?;
    spans.sort_by_key(|span| span.start);
    let length = text.chars().count() as i64;
    let mut last = 0;
    for TextSpan { start, end, .. } in &spans {
        if *start < last || start >= end || *end > length {
            return Err(format!(
                "has {start} to {end}; must be within the text of {length} characters, without overlap"
            ));
        }
        last = *end;
    }
    Ok(spans)
}

/// The labeler: an id of an export, or any short name.
fn labeler(fields: &Fields<'_>) -> Outcome<Option<String>> {
    let Some(name) = fields.string("labeler")? else { return Ok(None) };
    let fits = !name.is_empty() && name.len() <= 64 && !name.chars().any(char::is_control) && name.trim() == name;
    if fits { Ok(Some(name.to_owned())) } else { Err("`labeler` must be a name of 1 to 64 bytes".into()) }
}

fn trl(fields: &Fields<'_>) -> Outcome<Comparison> {
    let chosen = fields.require("chosen", Format::Trl)?;
    let rejected = fields.require("rejected", Format::Trl)?;
    let (name, prompt) = match fields.named_prompt()? {
        Some((name, prompt)) => (name, Some(prompt)),
        // ShareGPT's preference data: a conversation and two answers.
        None => match fields.get("conversations").filter(|list| list.is_array()) {
            Some(list) => ("conversations", Some(list)),
            None => ("question", None),
        },
    };
    let system = fields.system()?;
    let comparison = match (prompt, chosen, rejected) {
        (Some(prompt @ Value::Array(_)), Value::Object(_), Value::Object(_)) => {
            let alone = |value: &Value| Value::Array(vec![value.clone()]);
            Comparison::preferred(
                fields.prompt_input(prompt, name)?,
                fields.answer(&alone(chosen), "chosen")?,
                fields.answer(&alone(rejected), "rejected")?,
            )
        }
        (Some(prompt), Value::String(a), Value::String(b)) => {
            Comparison::preferred(fields.prompt_input(prompt, name)?, a.clone(), b.clone())
        }
        (Some(prompt @ Value::Array(_)), _, _) => Comparison::preferred(
            fields.prompt_input(prompt, name)?,
            fields.answer(chosen, "chosen")?,
            fields.answer(rejected, "rejected")?,
        ),
        // Complete conversations, or answers with a separate prompt.
        (prompt, Value::Array(_), Value::Array(_)) => {
            let (chosen, rejected) = (fields.messages(chosen, "chosen")?, fields.messages(rejected, "rejected")?);
            conversations(fields, prompt.map(|p| (name, p)), &chosen, &rejected)?
        }
        (None, Value::String(chosen), Value::String(rejected)) => implicit(fields, chosen, rejected)?,
        _ => return Err("`prompt`, `chosen` and `rejected` must all be strings or all be messages".into()),
    };
    match system {
        None => Ok(comparison),
        Some(system) => with_system(comparison, system),
    }
}

/// `chosen` and `rejected` as conversations that differ in their last message. A separate string prompt repeats one of
/// their messages.
fn conversations(
    fields: &Fields<'_>,
    prompt: Option<(&str, &Value)>,
    chosen: &[Message],
    rejected: &[Message],
) -> Outcome<Comparison> {
    if let ([a], [b]) = (chosen, rejected)
        && a.role == "assistant"
        && b.role == "assistant"
    {
        let Some((name, prompt)) = prompt else {
            return Err(match fields.prompt_like() {
                Some(column) => unknown_column(column),
                None => fields.missing("prompt", Format::Trl),
            });
        };
        let prompt = PromptInput::Chat(fields.prompt_input(prompt, name)?.into_messages());
        return Ok(Comparison::preferred(prompt, a.content.clone(), b.content.clone()));
    }
    let common = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    // With equal answers the last message is the answer.
    let common = common.min(chosen.len().saturating_sub(1));
    match (&chosen[common..], rejected.get(common..)) {
        ([a], Some([b])) if common > 0 && a.role == "assistant" && b.role == "assistant" => {
            let messages = &chosen[..common];
            if let Some((name, Value::String(text))) = prompt
                && !messages.iter().any(|m| m.content.trim() == text.trim())
            {
                return Err(format!("`{name}` is not a message of `chosen`: the line has two different prompts"));
            }
            Ok(Comparison::preferred(PromptInput::Chat(messages.to_vec()), a.content.clone(), b.content.clone()))
        }
        _ => Err("`chosen` and `rejected` must differ in one last message of the assistant".into()),
    }
}

/// Two texts that begin with the prompt, without a column for it.
fn implicit(fields: &Fields<'_>, chosen: &str, rejected: &str) -> Outcome<Comparison> {
    if let Some(column) = fields.prompt_like() {
        return Err(unknown_column(column));
    }
    // If a data set has a column for the prompt, its answers do not contain it.
    if let Some(column) = fields.null_prompt() {
        return Err(format!("`{column}` is null; the line needs a prompt"));
    }
    if chosen.trim_start().starts_with("Human:") && rejected.trim_start().starts_with("Human:") {
        return hh::pair(chosen, rejected);
    }
    if chosen.trim() == rejected.trim() {
        return Err("`chosen` and `rejected` are the same text; remove the line".into());
    }
    let at = common_prefix(chosen, rejected);
    if chosen[..at].trim().is_empty() {
        return Err("`prompt` is missing, and `chosen` and `rejected` do not begin with one".into());
    }
    let (a, b) = (&chosen[at..], &rejected[at..]);
    if a.trim().is_empty() || b.trim().is_empty() {
        return Err("`prompt` is missing, and one of `chosen` and `rejected` is the beginning of the other".into());
    }
    Ok(Comparison::preferred(PromptInput::Text(chosen[..at].to_owned()), a.to_owned(), b.to_owned()))
}

/// Inserts a system message before the prompt.
fn with_system(mut comparison: Comparison, system: &str) -> Outcome<Comparison> {
    let mut messages = comparison.prompt.into_messages();
    match messages.first() {
        Some(first) if first.role == "system" && first.content == system => {}
        Some(first) if first.role == "system" => {
            return Err("`system` and the prompt's system message differ; keep one of them".into());
        }
        _ => messages.insert(0, Message { role: "system".into(), content: system.to_owned() }),
    }
    comparison.prompt = PromptInput::Chat(messages);
    Ok(comparison)
}

/// The prompt with the system message of a separate column.
fn with_system_of(fields: &Fields<'_>, prompt: PromptInput) -> Outcome<PromptInput> {
    let Some(system) = fields.system()? else { return Ok(prompt) };
    Ok(with_system(Comparison::preferred(prompt, String::new(), String::new()), system)?.prompt)
}

/// Length in bytes of the common prefix of two texts. A space before the difference belongs to the completions, as in
/// TRL's `extract_prompt`.
fn common_prefix(a: &str, b: &str) -> usize {
    let at: usize = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    if at > 0 && a.as_bytes().get(at - 1) == Some(&b' ') { at - 1 } else { at }
}

fn demonstration(fields: &Fields<'_>) -> Outcome<Written> {
    let (prompt_id, labeler, project) = (fields.owned("prompt_id")?, labeler(fields)?, fields.owned("project")?);
    let completion = fields.get("completion");
    if completion.is_none()
        && let Some((name, list)) = fields.conversation()
    {
        if fields.get("prompt").is_some() {
            return Err(format!("`prompt` and `{name}` are both present without a `completion`; keep one of them"));
        }
        let mut list = with_system_of(fields, PromptInput::Chat(fields.messages(list, name)?))?.into_messages();
        return match list.pop() {
            Some(last) if last.role == "assistant" && !list.is_empty() => {
                let prompt = PromptInput::Chat(list);
                Ok(Written { prompt_id, prompt, completion: last.content, corrects: None, labeler, project })
            }
            _ => Err(format!("`{name}` must end with a message of the assistant after a prompt")),
        };
    }
    let completion = completion.ok_or_else(|| fields.missing("completion", Format::Demonstrations))?;
    let completion = fields.answer(completion, "completion")?;
    let prompt = with_system_of(fields, fields.prompt(Format::Demonstrations)?)?;
    Ok(Written { prompt_id, prompt, completion, corrects: None, labeler, project })
}

fn prompt_record(fields: &Fields<'_>) -> Outcome<PromptRecord> {
    let tags: Vec<String> = match fields.get("tags") {
        None => Vec::new(),
        Some(list) => serde_json::from_value(list.clone()).map_err(|_| "`tags` must be a list of strings")?,
    };
    // GSM8K and others have whole numbers as numbers.
    let answer = match fields.get("answer") {
        None => None,
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(other) => return Err(format!("`answer` must be a string, not {}", kind(other))),
    };
    Ok(PromptRecord {
        prompt_id: fields.owned("prompt_id")?,
        prompt: with_system_of(fields, fields.prompt(Format::Prompts)?)?,
        tags,
        lang: fields.owned("lang")?,
        answer,
        project: fields.owned("project")?,
    })
}
