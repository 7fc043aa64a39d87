//! One value of a row in a dump.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

/// The kind of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int,
    Real,
    Flag,
    Bytes,
    /// Compared as JSON, because databases format it differently.
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Text(String),
    Int(i64),
    Real(f64),
    Bytes(Vec<u8>),
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => s.serialize_unit(),
            Self::Text(text) => s.serialize_str(text),
            Self::Int(i) => s.serialize_i64(*i),
            // The shortest text that reads back to the same number, which JSON readers do not promise.
            Self::Real(r) => json!({"r": format!("{r:?}")}).serialize(s),
            Self::Bytes(bytes) => json!({"b": STANDARD.encode(bytes)}).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("not a cell of a dump");
        Ok(match Value::deserialize(d)? {
            Value::Null => Self::Null,
            Value::String(text) => Self::Text(text),
            Value::Number(n) => Self::Int(n.as_i64().ok_or_else(wrong)?),
            Value::Object(map) if map.len() == 1 => match (map.get("r"), map.get("b")) {
                (Some(Value::String(text)), None) => Self::Real(text.parse().map_err(|_| wrong())?),
                (None, Some(Value::String(text))) => Self::Bytes(STANDARD.decode(text).map_err(|_| wrong())?),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        })
    }
}

/// Whether a stored cell equals the written one. Postgres cannot store U+0000 in text and has U+FFFD instead.
pub(super) fn same(kind: Kind, written: &Cell, stored: &Cell) -> bool {
    match (kind, written, stored) {
        (Kind::Json, Cell::Text(a), Cell::Text(b)) => {
            let json = |text: &str| serde_json::from_str::<Value>(text).ok().map(plain);
            match (json(a), json(b)) {
                (Some(a), Some(b)) => a == b,
                _ => a == b,
            }
        }
        (_, Cell::Text(a), Cell::Text(b)) => a == b || a.replace('\0', "\u{FFFD}") == *b,
        (_, Cell::Real(a), Cell::Real(b)) => a.to_bits() == b.to_bits() || a == b,
        _ => written == stored,
    }
}

/// Compares JSON across databases: 1.0 and 1 are equal, and U+0000 equals U+FFFD.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64() {
            Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 9e15 => json!(f as i64),
            _ => Value::Number(n),
        },
        Value::String(s) => Value::String(s.replace('\0', "\u{FFFD}")),
        Value::Array(a) => Value::Array(a.into_iter().map(plain).collect()),
        Value::Object(o) => {
            Value::Object(o.into_iter().map(|(k, v)| (k.replace('\0', "\u{FFFD}"), plain(v))).collect())
        }
        other => other,
    }
}
