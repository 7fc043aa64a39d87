//! The rule `final_answer`: whether a completion's final answer is the expected one.
//!
//! The two sides are read differently. The expected answer is used as a whole (for a GSM8K record, the text after
//! `####`): `2^10` is not reduced to `10`. The final answer of a completion is extracted: after the first `####`, else
//! in the last `\boxed{…}`, else after the last "answer is", else the last number. Text after a new question ("Q: …")
//! is ignored. Numbers are compared exactly, by value.

mod characters;
mod number;
mod rational;
mod units;
mod words;

use regex::Regex;

use self::characters::{BOX, BOX_END, FRACTION, plain};
use self::number::{NumberParser, Parsed, Value};
use self::rational::Rational;

/// The answer in a prompt's record.
pub struct ExpectedAnswer {
    text: String,
    value: Option<Value>,
}

impl ExpectedAnswer {
    /// `None` for an empty answer.
    pub fn new(answer: &str, pattern: Option<&Regex>) -> Option<Self> {
        let own = answer.rsplit_once("####").map_or(answer, |(_, rest)| rest).trim();
        // The answer may be written in the format that the pattern requires of completions.
        let own = match pattern.and_then(|p| p.captures(own)) {
            Some(found) if found.get(0).is_some_and(|all| all.as_str() == own) => {
                found.get(1).map_or(own, |group| group.as_str())
            }
            _ => own,
        };
        let chars = plain(own);
        let chars = last_box(&chars).unwrap_or(chars);
        let text = words_of(&chars);
        (!text.is_empty()).then(|| Self { value: alone(&chars), text })
    }

    /// Whether the completion's final answer is this one.
    pub fn is_answered_by(&self, completion: &str, pattern: Option<&Regex>) -> bool {
        let found = match pattern {
            Some(pattern) => {
                let Some(found) = pattern.captures_iter(completion).last() else { return false };
                let text = found.get(1).or_else(|| found.get(0)).map_or("", |m| m.as_str());
                let chars = plain(text);
                Found::one(last_box(&chars).unwrap_or(chars))
            }
            None => extract(&plain(completion)),
        };
        match (&self.value, found.value) {
            (Some(wanted), Some(value)) => same(wanted, &value),
            (Some(_), None) => false,
            (None, _) => found.texts.iter().any(|text| *text == self.text || choice(text, &self.text)),
        }
    }
}

/// A completion's final answer: its value, if it has one, and its possible texts.
struct Found {
    value: Option<Value>,
    texts: Vec<String>,
}

impl Found {
    /// The content of a box or the match of a pattern.
    fn one(chars: Vec<char>) -> Self {
        let value = alone(&chars).or_else(|| result_of(&chars));
        Self { value, texts: vec![words_of(&chars)] }
    }
}

/// Whether a text such as `B) twelve` is the choice `b`.
fn choice(text: &str, wanted: &str) -> bool {
    let letter = wanted.chars().count() == 1 && wanted.chars().all(char::is_alphabetic);
    let rest = text.strip_prefix('(').unwrap_or(text).strip_prefix(wanted);
    letter && rest.is_some_and(|rest| rest.starts_with([')', '.', ':']))
}

fn extract(all: &[char]) -> Found {
    let first = &all[..next_question(all)];
    marked(first).unwrap_or_else(|| {
        let line = first.split(|c| *c == '\n').rfind(|line| !words_of(line).is_empty()).unwrap_or(&[]);
        let value = alone(first).or_else(|| alone(line)).or_else(|| last_value(first).flatten());
        Found { value, texts: vec![words_of(line), words_of(first)] }
    })
}

/// The index at which a completion continues with a new question, after an answer.
fn next_question(chars: &[char]) -> usize {
    const BEGINNINGS: &[&str] = &["q:", "question:", "problem:", "human:", "user:", "instruction:", "问题:", "问:"];
    let mut start = 0;
    for line in chars.split(|c| *c == '\n') {
        let text: String = line.iter().collect::<String>().trim_start_matches(['#', '*', ' ']).to_lowercase();
        let before = &chars[..start];
        if BEGINNINGS.iter().any(|b| text.starts_with(b)) && (marked(before).is_some() || last_value(before).is_some())
        {
            return start;
        }
        start += line.len() + 1;
    }
    chars.len()
}

/// The answer after a mark.
fn marked(chars: &[char]) -> Option<Found> {
    hashes(chars).or_else(|| last_box(chars).map(Found::one)).or_else(|| announced(chars))
}

/// The answer after the first `####` that is not the heading of a section.
fn hashes(chars: &[char]) -> Option<Found> {
    const HEADINGS: &[&str] = &["step", "part", "solution", "explanation", "reasoning", "calculation", "given"];
    let mut i = 0;
    while i + 4 <= chars.len() {
        if chars[i..i + 4] != ['#'; 4] {
            i += 1;
            continue;
        }
        let mut start = i;
        while chars.get(start) == Some(&'#') {
            start += 1;
        }
        let line = |from: usize| -> &[char] {
            let end = chars[from..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| from + n);
            &chars[from..end]
        };
        let (mut text, end) = (line(start), start + line(start).len());
        let words = words_of(text);
        if matches!(words.trim_end_matches(':'), "answer" | "final answer" | "the answer") {
            // A heading: the answer is on a following line.
            let from = (end..chars.len()).find(|i| !chars[*i].is_whitespace()).unwrap_or(chars.len());
            text = line(from);
        } else if words.is_empty() || words.ends_with(':') || HEADINGS.iter().any(|h| words.starts_with(h)) {
            i = end;
            continue;
        }
        let boxed = last_box(text);
        let text = boxed.as_deref().unwrap_or(text);
        let value = alone(text).or_else(|| result_of(text)).or_else(|| leading_value(text)).or_else(|| {
            let found = announced(text).and_then(|found| found.value);
            found.or_else(|| last_value(text).flatten())
        });
        return Some(Found { value, texts: vec![words_of(text)] });
    }
    None
}

/// The content of the last `\boxed{…}`.
fn last_box(chars: &[char]) -> Option<Vec<char>> {
    let start = chars.iter().rposition(|c| *c == BOX)?;
    let end = chars[start..].iter().position(|c| *c == BOX_END).map_or(chars.len(), |n| start + n);
    Some(chars[start + 1..end].to_vec())
}

/// The answer after the last "answer is", "answer:" or "答案是".
fn announced(chars: &[char]) -> Option<Found> {
    let lower: Vec<char> = chars.iter().map(|c| c.to_ascii_lowercase()).collect();
    let starts = |i: usize, word: &str| word.chars().enumerate().all(|(k, c)| lower.get(i + k) == Some(&c));
    let start = (0..lower.len()).rev().find_map(|i| {
        let word = ["answer", "答案"].into_iter().find(|word| starts(i, word))?;
        let mut at = i + word.chars().count();
        while lower.get(at).is_some_and(|c| matches!(c, '*' | '_' | ' ' | '"')) {
            at += 1;
        }
        ["is:", "are:", "is", "are", "=>", "=", "->", ":", "应该是", "是", "为"]
            .into_iter()
            .find(|verb| starts(at, verb))
            .map(|verb| at + verb.chars().count())
    })?;
    let rest = &chars[start..];
    let skip = rest.iter().position(|c| c.is_alphanumeric() || *c == FRACTION)?;
    let line_end = rest[skip..].iter().position(|c| *c == '\n').map_or(rest.len(), |n| skip + n);
    let line = &rest[..line_end];
    // A sentence ends at a point before a space. Other points may be decimal points.
    let sentence_end = (0..line.len())
        .find(|i| matches!(line[*i], '.' | ';') && line.get(i + 1).is_none_or(|c| *c == ' ') && *i >= skip)
        .unwrap_or(line.len());
    let sentence = &line[..sentence_end];
    let value = alone(sentence).or_else(|| result_of(sentence)).or_else(|| first_value(sentence));
    let value = match value {
        Some(value) => Some(value),
        None if sentence.iter().any(char::is_ascii_digit) => None,
        // "The answer is as follows: …"
        None => last_value(rest).flatten(),
    };
    Some(Found { value, texts: vec![words_of(sentence), words_of(line)] })
}

/// All numbers in a text, with their ranges; `None` for digits without a value.
fn values(chars: &[char]) -> Vec<(usize, usize, Option<Value>)> {
    let parser = NumberParser { chars, alone: false };
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found: Vec<(usize, usize, Option<Value>)> = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let begins = at(i).is_ascii_digit() || at(i) == FRACTION || (at(i) == '.' && at(i + 1).is_ascii_digit());
        let Some(reading) = begins.then(|| parser.value(i)).flatten() else {
            i += 1;
            continue;
        };
        let before = Before::of(chars, i, found.last().map_or(0, |(_, end, _)| *end));
        let (value, end) = match reading {
            Parsed::Value(value, end) => (before.apply(value), end),
            Parsed::Opaque(end) => (None, end),
        };
        let end = end.max(i + 1);
        found.push((before.start, end, value));
        i = end;
    }
    found
}

/// Signs and currency before a number.
struct Before {
    start: usize,
    negative: bool,
    currency: Option<units::Unit>,
    /// The number is an exponent, an index or under a root, so it is not a value.
    bound: bool,
}

impl Before {
    fn of(chars: &[char], number: usize, after: usize) -> Self {
        let back = |i: usize| (after..i).rev().find(|k| !matches!(chars[*k], ' ' | characters::THIN));
        let mut found = Self { start: number, negative: false, currency: None, bound: false };
        for _ in 0..2 {
            let Some(last) = back(found.start) else { break };
            let glued = last + 1 == found.start;
            // A code must be a separate word; a sign may be joined.
            let code = last.checked_sub(2).filter(|k| *k >= after && (*k == after || !chars[k - 1].is_alphanumeric()));
            let begins = [code, (chars[last] == '$').then(|| last.saturating_sub(2)), Some(last)];
            let currency = begins.into_iter().flatten().find_map(|k| {
                units::currency_before(chars, k.max(after)).filter(|(_, end)| *end == found.start).map(|(u, _)| (u, k))
            });
            if let Some((unit, k)) = currency.filter(|_| found.currency.is_none()) {
                found.currency = Some(unit);
                found.start = k.max(after);
                continue;
            }
            if chars[last] == '-' && !found.negative {
                let earlier = last.checked_sub(1).filter(|k| *k >= after).map(|k| chars[k]);
                let joined = earlier.is_some_and(|c| c.is_alphanumeric() || matches!(c, ')' | '}' | '%'));
                let operand = back(last).map_or(after > 0 && last <= after + 1, |k| chars[k].is_ascii_digit());
                if (glued && !joined && !(after > 0 && last == after)) || (!glued && !operand && earlier != Some('\n'))
                {
                    let bullet = !glued && earlier.is_none_or(|c| c == '\n');
                    found.negative = !bullet;
                    found.start = last;
                    continue;
                }
            }
            break;
        }
        let text: String = chars[after..found.start].iter().collect::<String>().trim_end().to_lowercase();
        found.negative |= text.ends_with("negative") || (text.ends_with("minus") && text.trim() != "minus");
        found.negative |= after == 0 && text.trim() == "minus";
        let previous = found.start.checked_sub(1).map_or('\0', |k| chars[k]);
        let braced = previous == '{' && found.start >= 2 && matches!(chars[found.start - 2], '^' | '_' | '√');
        let letters = chars[..found.start].iter().rev().take_while(|c| c.is_ascii_alphabetic()).count();
        found.bound = matches!(previous, '^' | '√')
            || braced
            || (previous == '_' && found.start >= 2 && chars[found.start - 2].is_alphanumeric())
            || (1..=2).contains(&letters);
        found
    }

    fn apply(&self, value: Value) -> Option<Value> {
        if self.bound {
            return None;
        }
        signed(value, self.negative, self.currency.clone())
    }
}

fn signed(value: Value, negative: bool, currency: Option<units::Unit>) -> Option<Value> {
    match value {
        Value::Number { number, percent, unit } => {
            let number = if negative { number.negative() } else { number };
            Some(Value::Number { number, percent, unit: currency.or(unit) })
        }
        _ if negative => None,
        other => Some(other),
    }
}

/// The last value of a text: `None` without numbers, `Some(None)` if the last number has no value or is an operand of
/// an unfinished calculation.
fn last_value(chars: &[char]) -> Option<Option<Value>> {
    let mut found = values(chars);
    let (start, _, value) = found.pop()?;
    let open = found.last().is_some_and(|(_, end, _)| operator(&chars[*end..start.max(*end)]));
    Some(value.filter(|_| !open))
}

/// The first value of a sentence, unless it begins a calculation.
fn first_value(chars: &[char]) -> Option<Value> {
    let mut found = values(chars).into_iter();
    let (_, end, value) = found.next()?;
    let open = found.next().is_some_and(|(start, _, _)| operator(&chars[end..start.max(end)]));
    value.filter(|_| !open)
}

fn operator(between: &[char]) -> bool {
    let text: String = between.iter().collect();
    !text.contains('\n') && matches!(text.trim(), "+" | "-" | "×" | "*" | "÷" | "/" | "x")
}

/// The value at the beginning of a line that continues with other text.
fn leading_value(chars: &[char]) -> Option<Value> {
    let (start, end, value) = values(chars).into_iter().next()?;
    let before = chars[..start].iter().all(|c| c.is_whitespace() || matches!(c, '*' | '_' | '$'));
    let goes_on = chars[end..].iter().find(|c| !matches!(c, ' ' | '*'));
    value.filter(|_| before && goes_on.is_some_and(|c| c.is_alphabetic() || matches!(c, '(' | '.' | ',' | ';' | '[')))
}

/// The value after the last `=`.
fn result_of(chars: &[char]) -> Option<Value> {
    let equals = chars.iter().rposition(|c| *c == '=')?;
    alone(&chars[equals + 1..])
}

/// The characters without surrounding Markdown, formula marks, quotes and punctuation.
fn trimmed(mut chars: &[char]) -> &[char] {
    loop {
        let before = chars.len();
        while let [first, rest @ ..] = chars {
            let formula = *first == '$' && rest.contains(&'$');
            if !(first.is_whitespace() || formula || matches!(first, '*' | '_' | '`' | '"' | '\'' | ':')) {
                break;
            }
            chars = rest;
        }
        while let [rest @ .., last] = chars {
            let formula = *last == '$' && !rest.last().is_some_and(char::is_ascii_digit);
            let stop = matches!(last, '*' | '_' | '`' | '"' | '\'' | '.' | ',' | ';' | '!' | '?');
            if !(last.is_whitespace() || formula || stop) {
                break;
            }
            chars = rest;
        }
        if chars.len() == before {
            return chars;
        }
    }
}

/// The value of a text that is a single answer; `None` if there is other text.
fn alone(chars: &[char]) -> Option<Value> {
    let chars = trimmed(chars);
    let (open, close) = (*chars.first()?, *chars.last()?);
    if let (true, Some(inner)) =
        (matches!((open, close), ('(', ')') | ('[', ']') | ('{', '}')), chars.get(1..chars.len() - 1))
    {
        if let Some(items) = list(inner) {
            return Some(Value::List { items, is_set: open == '{' });
        }
        return if inner.iter().any(|c| matches!(c, '(' | ')')) { None } else { alone(inner) };
    }
    if let Some(value) = one_number(chars) {
        return Some(value);
    }
    if let Some(items) = list(chars) {
        return Some(Value::List { items, is_set: false });
    }
    let text: String = chars.iter().collect();
    if let Some(n) = words::number(&text) {
        return Some(Value::Number { number: Rational::whole(n), percent: false, unit: None });
    }
    // x = 5
    let (name, value) = text.split_once('=')?;
    let name = name.trim();
    let variable = name.chars().next().is_some_and(char::is_alphabetic) && name.chars().count() <= 3;
    let equals = chars.iter().position(|c| *c == '=')?;
    (variable && !value.contains('=')).then(|| alone(&chars[equals + 1..])).flatten()
}

/// Two or more values that are separated by commas or semicolons.
fn list(chars: &[char]) -> Option<Vec<Value>> {
    let mut depth = 0;
    let parts: Vec<&[char]> = chars
        .split(|c| {
            depth += i32::from(matches!(c, '(' | '[' | '{')) - i32::from(matches!(c, ')' | ']' | '}'));
            depth == 0 && matches!(c, ',' | ';')
        })
        .collect();
    if parts.len() < 2 {
        return None;
    }
    parts.into_iter().map(alone).collect()
}

/// A number, ratio or time, with signs before it and words after it.
fn one_number(chars: &[char]) -> Option<Value> {
    let parser = NumberParser { chars, alone: true };
    let (mut i, mut negative, mut currency, mut signs) = (0, false, None, 0);
    loop {
        i = parser.spaces(i);
        if matches!(chars.get(i), Some('-' | '+')) && signs == 0 {
            negative = chars[i] == '-';
            signs = 1;
            i += 1;
        } else if let Some((unit, after)) = units::currency_before(chars, i).filter(|_| currency.is_none()) {
            currency = Some(unit);
            i = after;
        } else if let Some(word) = [['n', 'e', 'g', 'a', 't', 'i', 'v', 'e'].as_slice(), &['m', 'i', 'n', 'u', 's']]
            .into_iter()
            .find(|word| signs == 0 && chars[i..].starts_with(word))
        {
            negative = true;
            signs = 1;
            i += word.len();
        } else {
            break;
        }
    }
    let Parsed::Value(value, end) = parser.value(i)? else { return None };
    let rest: String = chars[end..].iter().collect();
    let rest = rest.trim_matches([' ', '$', characters::THIN]);
    only_words(rest).then(|| signed(value, negative, currency)).flatten()
}

/// Whether the text after a number only names what is counted.
fn only_words(rest: &str) -> bool {
    const CHANGES: &[&str] = &[
        "or",
        "and",
        "to",
        "than",
        "more",
        "less",
        "plus",
        "minus",
        "times",
        "by",
        "over",
        "at",
        "least",
        "most",
        "out",
        "divided",
        "squared",
        "cubed",
        "through",
        "remainder",
        "factorial",
    ];
    let words = rest.split([' ', '-']).filter(|word| !word.is_empty()).collect::<Vec<_>>();
    let letters = |word: &&str| word.chars().all(|c| c.is_alphabetic() || matches!(c, '\'' | '.'));
    let short = |word: &&str| word.chars().count() == 1 && word.is_ascii() && !matches!(*word, "a" | "A");
    words.len() <= 6
        && words.iter().all(letters)
        && !words.iter().any(|w| short(w) || CHANGES.contains(&w.to_lowercase().as_str()))
        && !words.iter().any(|w| w.contains('π'))
}

/// The normalised text: lower case, without surrounding marks and redundant spaces.
fn words_of(chars: &[char]) -> String {
    let chars = trimmed(chars);
    let inner = match chars {
        ['(', inner @ .., ')'] if !inner.iter().any(|c| matches!(c, '(' | ')')) => inner,
        _ => chars,
    };
    let text: String = inner.iter().filter(|c| !matches!(**c, BOX | BOX_END)).collect();
    let text = text.to_lowercase();
    let formula = text.contains(|c: char| matches!(c, '^' | '/' | '=' | '+' | '\\' | '√' | 'π' | '×' | FRACTION));
    match formula {
        true => text.chars().filter(|c| !c.is_whitespace() && *c != '$').collect(),
        false => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (
            Value::Number { number: w, percent: w_percent, unit: w_unit },
            Value::Number { number: f, percent: f_percent, unit: f_unit },
        ) => {
            let hundredth = |n: &Rational| n.over(&Rational::whole(100));
            let conflict = match (w_unit, f_unit) {
                (Some(w), Some(f)) => w != f,
                (Some(_), None) => *f_percent,
                (None, Some(_)) => *w_percent,
                (None, None) => false,
            };
            // If only one side has a percent sign, 50 %, 50 and 0.5 are equal.
            let by_percent = match (w_percent, f_percent) {
                (true, false) => hundredth(w).is_some_and(|w| w == *f),
                (false, true) => hundredth(f).is_some_and(|f| f == *w),
                _ => false,
            };
            !conflict && (w == f || by_percent)
        }
        (Value::Time { seconds: w, afternoon: a }, Value::Time { seconds: f, afternoon: b }) => {
            // If only one side names the half of the day, the other may be either half.
            let half_open = a.is_none() != b.is_none() && w % 43_200 == f % 43_200;
            w == f || half_open
        }
        (Value::Ratio(w), Value::Ratio(f)) => {
            let proportional = |(a, b): (&Rational, &Rational)| match (a.times(&f[0]), b.times(&w[0])) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            };
            w.len() == f.len() && w.iter().zip(f).all(proportional)
        }
        (Value::List { items: w, is_set }, Value::List { items: f, is_set: other }) => {
            if w.len() != f.len() {
                return false;
            }
            if !(*is_set && *other) {
                return w.iter().zip(f).all(|(w, f)| same(w, f));
            }
            let mut left: Vec<&Value> = f.iter().collect();
            w.iter().all(|w| left.iter().position(|f| same(w, f)).map(|at| left.remove(at)).is_some())
        }
        _ => false,
    }
}
