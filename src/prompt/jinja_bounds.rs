//! Limits on the size of one operation's result before minijinja charges fuel for it.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Largest field width.
pub(super) const MOST_WIDTH: usize = 1 << 16;

/// Charges fuel for the right operand of `+`, in proportion to its length, before it is added. An iterator becomes a
/// list.
pub(super) fn charged(state: &State, value: Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(value);
    }
    if let Some(length) = value.len() {
        state.consume_fuel(length as u64)?;
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        state.consume_fuel(1)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// `sum(attribute=None, start=0)`: numbers, or lists where `start` is one.
pub(super) fn sum(
    state: &State,
    values: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let attribute = match attribute {
        Some(name) => Some(name.to_owned()),
        None => named.get::<Option<String>>("attribute")?,
    };
    let start = start.or(named.get::<Option<Value>>("start")?).unwrap_or_else(|| Value::from(0));
    if start.is_number() || start.kind() == ValueKind::Bool {
        return minijinja::filters::sum(state, values, attribute.as_deref(), Some(start), named);
    }
    named.assert_all_used()?;
    if !matches!(start.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(wrong(format!("sum: cannot start from {}", start.kind())));
    }
    let mut all: Vec<Value> = charged(state, start)?.try_iter()?.collect();
    for item in values.try_iter()? {
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        if !matches!(item.kind(), ValueKind::Seq | ValueKind::Iterable) {
            return Err(wrong(format!("sum: cannot add {} to a list", item.kind())));
        }
        all.extend(charged(state, item)?.try_iter()?);
    }
    Ok(Value::from(all))
}

/// Charges fuel for the widths and precisions of `'{:…}'.format(…)` before the text is made.
///
/// # Errors
/// When a width is larger than `MOST_WIDTH`, or the fuel is used up.
pub(super) fn check_widths(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    let (mut depth, mut number, mut total, mut nested) = (0u32, 0u64, 0u64, false);
    let mut add = |number: &mut u64| {
        total = total.saturating_add(*number);
        let width = std::mem::take(number);
        if width > MOST_WIDTH as u64 { Err(wrong(format!("a width of {width} is over {MOST_WIDTH}"))) } else { Ok(()) }
    };
    for c in format.chars() {
        match c {
            '0'..='9' if depth > 0 => {
                number = number.saturating_mul(10).saturating_add(u64::from(c as u32 - '0' as u32));
                continue;
            }
            '{' => (depth, nested) = (depth + 1, nested || depth > 0),
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        add(&mut number)?;
    }
    add(&mut number)?;
    if nested {
        // The width may be any of the arguments.
        let fields = format.matches('{').count() as u64;
        let is_wide = |v: &Value| i64::try_from(v.clone()).is_ok_and(|n| v.is_integer() && n > MOST_WIDTH as i64);
        let mut all = args.iter().flat_map(|v| match v.kind() {
            ValueKind::Map => v.try_iter().into_iter().flatten().filter_map(|k| v.get_item(&k).ok()).collect(),
            _ => vec![v.clone()],
        });
        if all.any(|v| is_wide(&v)) {
            return Err(wrong(format!("a width is over {MOST_WIDTH}")));
        }
        total = total.saturating_add(fields.saturating_mul(MOST_WIDTH as u64));
    }
    state.consume_fuel(total / 64)
}
