//! Features of transformers' Jinja2 that minijinja lacks: `%` on strings, `{% generation %}`, Python's string
//! methods, `tojson` as Python's json writes it, and some filters.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, State};

use super::jinja_bounds::{MOST_WIDTH, charged, check_widths, sum, wrong};
use super::jinja_source::prepare;

/// Deeper values are not written as JSON.
const MOST_DEPTH: usize = 64;

/// Adds the template `name` and its functions and filters to `environment`.
///
/// # Errors
/// minijinja's syntax error, with its line.
pub(super) fn install(environment: &mut Environment<'static>, name: &str, source: &str) -> Result<(), Error> {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("__modulo__", modulo);
    environment.add_filter("__charged__", charged);
    environment.add_filter("sum", sum);
    // Jinja2 does not have these filters, and they join lists without charging fuel.
    environment.remove_filter("chain");
    environment.remove_filter("zip");
    environment.add_filter("wordcount", |text: String| word_count(&text));
    environment.add_filter("truncate", truncate);
    environment
        .add_filter("center", |text: String, width: Option<usize>| pad(&text, width.unwrap_or(80), ' ', Side::Both));
    environment.add_filter("striptags", |text: String| strip_tags(&text));
    environment.add_filter("forceescape", |text: String| escape(&text));
    environment.add_filter("urlencode", |text: String| percent(&text));
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    for escaping in ["e", "escape"] {
        environment.add_filter(escaping, |text: String| escape(&text));
    }
    environment.add_test("sequence", |value: Value| is_sequence(&value));
    environment.add_test("iterable", |value: Value| is_sequence(&value) || value.kind() == ValueKind::Iterable);
    environment.add_test("number", |value: Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(wrong(message)) });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now()).map_err(|e| wrong(e.to_string()))
    });
    environment.add_template_owned(name.to_owned(), prepare(source).map_err(wrong)?)
}

/// Python's strings, lists, tuples and dictionaries all have `__getitem__` and a length.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// `left % right`: formats where `left` is a string, else the remainder with the sign of the divisor.
fn modulo(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        let mut arguments: Vec<Value> = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right] };
        let format = with_repr(format, &mut arguments);
        arguments.insert(0, Value::from(format));
        return state.apply_filter("format", &arguments);
    }
    let whole =
        |v: &Value| if v.is_integer() || v.kind() == ValueKind::Bool { i64::try_from(v.clone()).ok() } else { None };
    if let (Some(a), Some(b)) = (whole(&left), whole(&right)) {
        let rest = a.checked_rem_euclid(b).ok_or_else(|| wrong("modulo by zero"))?;
        return Ok(Value::from(if b < 0 && rest != 0 { rest + b } else { rest }));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(_), Ok(0.0)) => Err(wrong("modulo by zero")),
        (Ok(a), Ok(b)) => Ok(Value::from(a - b * (a / b).floor())),
        _ => Err(wrong(format!("% between {} and {}", left.kind(), right.kind()))),
    }
}

/// `%r` becomes `%s` of the argument as Python's `repr` writes it.
fn with_repr(format: &str, arguments: &mut [Value]) -> String {
    let mut out = String::with_capacity(format.len());
    let (mut inside, mut named, mut which) = (false, false, 0);
    for c in format.chars() {
        let ends = inside && (c.is_alphabetic() && !named || c == '%');
        match c {
            '(' if inside => named = true,
            ')' if inside => named = false,
            _ => {}
        }
        if ends && c == 'r' {
            if let Some(value) = arguments.get_mut(which) {
                let list = Value::from(vec![value.clone()]).to_string();
                *value = Value::from(&list[1..list.len() - 1]);
            }
            out.push('s');
        } else {
            out.push(c);
        }
        which += usize::from(ends && c != '%');
        inside = if inside { !ends } else { c == '%' };
    }
    out
}

fn word_count(text: &str) -> usize {
    let mut words = 0;
    let mut inside = false;
    for c in text.chars() {
        let word = c.is_alphanumeric() || c == '_';
        words += usize::from(word && !inside);
        inside = word;
    }
    words
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(text: String, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let at = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(match given.get(i) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        })
    };
    let count = |value: Option<Value>, default: usize| value.map_or(Ok(default), usize::try_from);
    let length = count(at(0, "length")?, 255)?;
    let cut_words = at(1, "killwords")?.is_some_and(|v| v.is_true());
    let end = at(2, "end")?.map_or_else(|| "...".to_owned(), |v| v.to_string());
    let leeway = count(at(3, "leeway")?, 5)?;
    named.assert_all_used()?;
    let total = text.chars().count();
    if total <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let room = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| wrong(format!("truncate: length {length} is shorter than its end")))?;
    let mut kept: String = text.chars().take(room).collect();
    if !cut_words && let Some(space) = kept.rfind(' ') {
        kept.truncate(space);
    }
    Ok(kept + &end)
}

fn strip_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        out.push_str(&rest[..open]);
        match rest[open..].find('>') {
            Some(close) => rest = &rest[open + close + 1..],
            None => {
                out.push_str(&rest[open..]);
                rest = "";
            }
        }
    }
    out.push_str(rest);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As markupsafe escapes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
    Both,
}

/// Fills `text` up to `width` characters at the given side.
fn pad(text: &str, width: usize, fill: char, side: Side) -> Result<String, Error> {
    if width > MOST_WIDTH {
        return Err(wrong(format!("a width of {width} is over {MOST_WIDTH}")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // As in Python, the odd space is on the left when the width is odd.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let fill = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(format!("{}{text}{}", fill(left), fill(missing - left)))
}

/// Methods of Python's values that pycompat lacks or implements differently.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        // The fuel that reading the text costs, before any work.
        state.consume_fuel((text.len() / 64) as u64)?;
        if name == "format" {
            check_widths(state, text, args)?;
        }
        if let Some(result) = string_method(text, name, args)? {
            return Ok(result);
        }
    } else if name == "index" && matches!(value.kind(), ValueKind::Seq) {
        let (wanted,): (Value,) = from_args(args)?;
        for (i, item) in value.try_iter()?.enumerate() {
            if item == wanted {
                return Ok(Value::from(i));
            }
        }
        return Err(wrong(format!("{wanted} is not in the list")));
    } else if name == "copy" && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let padded = |side: Side| -> Result<Option<Value>, Error> {
        let (width, fill): (usize, Option<char>) = from_args(args)?;
        Ok(Some(Value::from(pad(text, width, fill.unwrap_or(' '), side)?)))
    };
    Ok(Some(match name {
        "partition" | "rpartition" => {
            let (mark,): (&str,) = from_args(args)?;
            if mark.is_empty() {
                return Err(wrong("empty separator"));
            }
            let parts = match (name, text.split_once(mark), text.rsplit_once(mark)) {
                ("partition", Some((head, tail)), _) | ("rpartition", _, Some((head, tail))) => [head, mark, tail],
                ("partition", ..) => [text, "", ""],
                _ => ["", "", text],
            };
            Value::from(minijinja::value::Tuple::from(parts.map(Value::from).to_vec()))
        }
        "split" | "rsplit" => {
            let (mark, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let mark = match mark {
                Some(mark) => Some(mark),
                None => named.get::<Option<Value>>("sep")?,
            };
            let most = match most {
                Some(most) => Some(most),
                None => named.get::<Option<i64>>("maxsplit")?,
            };
            named.assert_all_used()?;
            let most = most.and_then(|n| usize::try_from(n).ok());
            let mark = mark.filter(|m| !m.is_none());
            let mark = mark.as_ref().map(|m| m.as_str().ok_or_else(|| wrong("split: the separator must be a string")));
            match mark.transpose()? {
                Some("") => return Err(wrong("empty separator")),
                Some(mark) => Value::from(split(text, mark, most, name == "rsplit")),
                None => Value::from(split_white(text, most, name == "rsplit")),
            }
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "ljust" => return padded(Side::Right),
        "rjust" => return padded(Side::Left),
        "center" => return padded(Side::Both),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let sign = usize::from(text.starts_with(['+', '-']));
            let body = pad(&text[sign..], width.saturating_sub(sign), '0', Side::Left)?;
            Value::from(format!("{}{body}", &text[..sign]))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if name == "index" { text.find(part) } else { text.rfind(part) };
            Value::from(text[..at.ok_or_else(|| wrong("substring not found"))?].chars().count())
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            Value::from(expand_tabs(text, size.unwrap_or(8).min(256)))
        }
        _ => return Ok(None),
    }))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            _ => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

fn split(text: &str, mark: &str, most: Option<usize>, from_right: bool) -> Vec<Value> {
    let parts: Vec<&str> = match (most, from_right) {
        (None, _) => text.split(mark).collect(),
        (Some(n), false) => text.splitn(n.saturating_add(1), mark).collect(),
        (Some(n), true) => {
            let mut parts: Vec<&str> = text.rsplitn(n.saturating_add(1), mark).collect();
            parts.reverse();
            parts
        }
    };
    parts.into_iter().map(Value::from).collect()
}

fn split_white(text: &str, most: Option<usize>, from_right: bool) -> Vec<Value> {
    let Some(most) = most else { return text.split_whitespace().map(Value::from).collect() };
    let mut parts = Vec::new();
    if from_right {
        let mut rest = text.trim_end();
        while parts.len() < most && !rest.is_empty() {
            let at = rest.char_indices().rev().find(|(_, c)| c.is_whitespace());
            let Some((at, c)) = at else { break };
            parts.push(Value::from(&rest[at + c.len_utf8()..]));
            rest = rest[..at].trim_end();
        }
        if !rest.is_empty() {
            parts.push(Value::from(rest));
        }
        parts.reverse();
    } else {
        let mut rest = text.trim_start();
        while parts.len() < most && !rest.is_empty() {
            let Some(at) = rest.find(char::is_whitespace) else { break };
            parts.push(Value::from(&rest[..at]));
            rest = rest[at..].trim_start();
        }
        if !rest.is_empty() {
            parts.push(Value::from(rest));
        }
    }
    parts
}

/// `json.dumps` with transformers' defaults: nothing escaped for HTML, characters as they are.
fn tojson(state: &State, value: Value, named: Kwargs) -> Result<String, Error> {
    let indent = match named.get::<Option<Value>>("indent")?.filter(|v| !v.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(n) => Some(" ".repeat(usize::try_from(n)?.min(64))),
    };
    let separators = named.get::<Option<Value>>("separators")?.filter(|v| !v.is_none());
    let (item, key) = match separators {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|v| v.to_string()).collect();
            match pair.as_slice() {
                [item, key] => (item.clone(), key.clone()),
                _ => return Err(wrong("tojson: separators must be two strings")),
            }
        }
    };
    let ascii = named.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let mut writer = Json { state, out: String::new(), paid: 0, indent, item, key, ascii, sorted };
    writer.value(&value, 0)?;
    Ok(writer.out)
}

struct Json<'s, 'a, 'e> {
    state: &'s State<'a, 'e>,
    out: String,
    /// Number of bytes of `out` that fuel has been charged for.
    paid: usize,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MOST_DEPTH {
            return Err(wrong("tojson: the value is nested too deeply"));
        }
        self.state.consume_fuel(1 + ((self.out.len() - self.paid) / 64) as u64)?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list("[", "]", items.len(), depth, |json, i| json.value(&items[i], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list("{", "}", keys.len(), depth, |json, i| {
                    let name = match keys[i].as_str() {
                        Some(text) => text.to_owned(),
                        None => match keys[i].kind() {
                            ValueKind::None => "null".to_owned(),
                            ValueKind::Bool => keys[i].is_true().to_string(),
                            _ => keys[i].to_string(),
                        },
                    };
                    json.string(&name);
                    json.out.push_str(&json.key.clone());
                    json.value(&value.get_item(&keys[i])?, depth + 1)
                })?;
            }
            other => return Err(wrong(format!("tojson: a value of type {other} is not JSON"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: &str,
        close: &str,
        n: usize,
        depth: usize,
        one: impl Fn(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        for i in 0..n {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            one(self, i)?;
        }
        if n > 0 {
            self.line(depth);
        }
        self.out.push_str(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// `repr` of a Python float.
fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
