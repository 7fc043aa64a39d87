//! Preprocessing of JSON bodies. Clients send every optional field, most of them null: one pass over the body removes
//! null fields, so that null means absent on every route. Another pass estimates the memory of its values.

use std::borrow::Cow;

/// Fields whose nulls are kept: those where null is a value (`value`, `daily_quota`; `const` and `enum` of JSON
/// schemas), and free-form objects that are passed on unchanged (`args`).
const KEPT: [&[u8]; 5] = [b"args", b"value", b"daily_quota", b"const", b"enum"];

/// The JSON text with every `"field": null` of an object overwritten by spaces. Lengths and offsets are kept, so that
/// errors refer to the sent text; text that is not JSON does not become JSON.
pub fn without_nulls(json: &[u8]) -> Cow<'_, [u8]> {
    if !json.windows(4).any(|w| w == b"null") {
        return Cow::Borrowed(json);
    }
    let mut out = Cow::Borrowed(json);
    // Offset of the last byte that is not white space, outside of removed fields.
    let mut last: Option<usize> = None;
    let (mut at, mut depth) = (0, 0usize);
    // Depth at which a kept value ends.
    let mut kept_until: Option<usize> = None;
    while let Some(byte) = json.get(at).copied() {
        let start = at;
        match byte {
            b'"' => {
                at = string_end(json, at);
                let colon = skip_space(json, at);
                if json.get(colon) == Some(&b':') && kept_until.is_none() {
                    let name = &json[start + 1..at.saturating_sub(1).max(start + 1)];
                    let value = skip_space(json, colon + 1);
                    if KEPT.contains(&name) {
                        if matches!(json.get(value), Some(b'{' | b'[')) {
                            kept_until = Some(depth);
                        }
                    } else if json[value.min(json.len())..].starts_with(b"null")
                        && let Some(end) = take_out(&mut out, json, last, start, value + 4)
                    {
                        at = end;
                        continue;
                    }
                }
                last = Some(at - 1);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if kept_until == Some(depth) {
                    kept_until = None;
                }
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            last = Some(start);
        }
        at += 1;
    }
    out
}

/// Overwrites the field `start..end` and one adjacent comma; returns the offset to continue at, or `None` if it is not
/// a field.
fn take_out(out: &mut Cow<'_, [u8]>, json: &[u8], last: Option<usize>, start: usize, end: usize) -> Option<usize> {
    let before = last.map(|l| json[l]);
    let next = skip_space(json, end);
    match (before, json.get(next)) {
        (Some(b'{' | b','), Some(b',')) if json.get(skip_space(json, next + 1)) == Some(&b'"') => {
            out.to_mut()[start..=next].fill(b' ');
            Some(next + 1)
        }
        (Some(b'{'), Some(b'}')) => {
            out.to_mut()[start..end].fill(b' ');
            Some(end)
        }
        (Some(b','), Some(b'}')) => {
            // Without this check `{,"a":null}`, which is no JSON, would become `{}`.
            let comma = last.filter(|comma| out[..*comma].trim_ascii_end().last() != Some(&b'{'))?;
            let out = out.to_mut();
            out[start..end].fill(b' ');
            out[comma] = b' ';
            Some(end)
        }
        _ => None,
    }
}

/// The offset after the string that begins at `at`.
fn string_end(json: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// Upper bound of the memory (bytes) of a JSON text's values as a tree: a number of two characters becomes a node of
/// eighty bytes, an object of one field half a kilobyte.
pub fn weight(json: &[u8]) -> usize {
    const VALUE: usize = 80;
    const STRING: usize = 32;
    const LIST: usize = 288;
    const OBJECT: usize = 480;
    let (mut at, mut sum) = (0, VALUE);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = string_end(json, at);
                sum += STRING + end - at;
                at = end;
                continue;
            }
            b',' => sum += VALUE,
            b'[' => sum += VALUE + LIST,
            b'{' => sum += VALUE + OBJECT,
            _ => {}
        }
        at += 1;
    }
    sum
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while json.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn stripped(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|name, v| !v.is_null() || KEPT.contains(&name.as_bytes()));
                for (name, v) in map.iter_mut() {
                    if !KEPT.contains(&name.as_bytes()) {
                        stripped(v);
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(stripped),
            _ => {}
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            3 => Just(Value::Null),
            1 => any::<bool>().prop_map(Value::from),
            1 => any::<i32>().prop_map(Value::from),
            2 => "[a-z\"\\\\,:{} ]{0,6}|null".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let name = prop_oneof!["[a-c\"\\\\]{0,2}", Just("args".to_owned()), Just("value".to_owned())];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((name, inner), 0..5).prop_map(|all| all.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn null_fields_go_and_nothing_else(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let out = without_nulls(text.as_bytes());
            prop_assert_eq!(out.len(), text.len());
            let mut wanted = value;
            stripped(&mut wanted);
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), wanted);
        }

        /// What is no JSON does not become JSON, and nothing panics.
        #[test]
        fn broken_text_stays_broken(text in "[\\[\\]{},:\" \\\\]{0,12}(\"a\": ?null)?[\\[\\]{},:\" \\\\]{0,6}") {
            let out = without_nulls(text.as_bytes());
            if serde_json::from_str::<Value>(&text).is_err() {
                prop_assert!(serde_json::from_slice::<Value>(&out).is_err(), "{}", text);
            }
        }
    }

    #[test]
    fn a_comma_without_a_field_before_it_stays() {
        for text in [r#"{,"a":null}"#, r#"{ , "z": null, "a": null }"#, r#"{"x":{ ,"a":null}}"#] {
            assert!(serde_json::from_slice::<Value>(&without_nulls(text.as_bytes())).is_err(), "{text}");
        }
    }

    #[test]
    fn a_tree_weighs_more_than_its_text() {
        assert!(weight(&[b"[0", b",0".repeat(500_000).as_slice(), b"]"].concat()) > 35 << 20);
        assert!(weight(format!("\"{}\"", "x,[{".repeat(1000)).as_bytes()) < 5000);
    }

    #[test]
    fn nulls_that_say_something_stay() {
        let text = json!({"args": {"a": null}, "value": null, "x": null, "list": [null]}).to_string();
        let out: Value = serde_json::from_slice(&without_nulls(text.as_bytes())).unwrap();
        assert_eq!(out, json!({"args": {"a": null}, "value": null, "list": [null]}));
        // Without its null a schema would let anything through.
        let schemas = json!({"a": {"const": null}, "b": {"enum": [{"k": null}]}, "c": {"const": {"k": null}}});
        assert_eq!(serde_json::from_slice::<Value>(&without_nulls(schemas.to_string().as_bytes())).unwrap(), schemas);
    }
}
