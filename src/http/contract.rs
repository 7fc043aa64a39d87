//! Contracts of routes: JSON Schemas derived from the types that handlers read and return, and the shared types of
//! lists.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

use crate::domain::Micros;
use crate::service::searches::Listed;

/// Generates the schema of one type; the types in it are added to the generator's definitions.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Path of the schemas in the OpenAPI document.
pub const COMPONENTS: &str = "/components/schemas";

/// The body of a response.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// `application/json`.
    Json(SchemaOf),
    /// `text/event-stream`; the schema describes one event as an object with `data` and, if present, `event` and `id`.
    /// `data` is parsed if it is JSON.
    Events(SchemaOf),
    /// Another content type; `*/*` if it depends on the file.
    Other(&'static str),
    Empty,
}

/// One response of a route. Errors in the shape of [`super::error::ErrorBody`] are not listed.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub status: u16,
    pub content: Content,
    pub about: &'static str,
}

impl Answer {
    /// Whether `about` adds to status and schema.
    pub fn content_says_more(&self) -> bool {
        self.status == 204 && self.about != NOTHING
    }
}

/// Description of a response without a body.
pub const NOTHING: &str = "done; the response is empty";

/// The schema as a reference into the definitions, for types that have a name there.
pub fn named<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema itself; only the types in it are references.
pub fn open<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with(|s| s.definitions_path = COMPONENTS.into())
}

/// Settings for serialized types: fields that are always present are required.
pub fn written() -> SchemaGenerator {
    settings().for_serialize().into_generator()
}

/// Settings for deserialized types: optional fields may be absent.
pub fn read() -> SchemaGenerator {
    settings().for_deserialize().into_generator()
}

/// A request type's schema without references.
pub fn schema<T: JsonSchema>() -> Value {
    let settings = settings().for_deserialize().with(|s| s.inline_subschemas = true);
    in_terms_of_json(open::<T>(&mut settings.into_generator()).to_value())
}

/// A response's schema without references.
pub fn inlined(of: SchemaOf) -> Value {
    let settings = settings().for_serialize().with(|s| s.inline_subschemas = true);
    in_terms_of_json(of(&mut settings.into_generator()).to_value())
}

/// Descriptions come from doc comments, in which `None` is replaced by null.
pub fn in_terms_of_json(mut schema: Value) -> Value {
    fn rewrite(schema: &mut Value) {
        match schema {
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    match value {
                        Value::String(text) if name == "description" => *text = text.replace("`None`", "`null`"),
                        other => rewrite(other),
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(rewrite),
            _ => {}
        }
    }
    rewrite(&mut schema);
    schema
}

/// A whole list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    pub data: Vec<T>,
}

/// One page of a list, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub struct Paged<T> {
    pub data: Vec<T>,
    /// Id of the last row: for `?after=` of the next page. Null when the page is empty.
    pub after: Option<String>,
}

impl<T> Paged<T> {
    /// The page with the id of its last row.
    pub fn new(data: Vec<T>, id: impl Fn(&T) -> &str) -> Self {
        let after = data.last().map(|row| id(row).to_owned());
        Self { data, after }
    }
}

/// One page of a list that can be searched, newest first. A search for a text ends after about two seconds, however many
/// rows it has found; `after` continues it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}SearchPage")]
pub struct Searched<T> {
    pub data: Vec<T>,
    /// For `?after=` of the next page: id of the last row, or of the last one that the search looked at. Null when the page
    /// is empty and nothing is left to search.
    pub after: Option<String>,
    /// Number of all rows that match the filter. Null when it is not known: searches are counted only if one request has
    /// searched everything.
    pub total: Option<i64>,
    /// Null, unless the search ended before the page was full: rows older than this (µs UTC) have not been searched.
    pub searched_to: Option<Micros>,
}

impl<T, U: From<T>> From<Listed<T>> for Searched<U> {
    fn from(listed: Listed<T>) -> Self {
        let Listed { rows, after, total, searched_to } = listed.map(U::from);
        Self { data: rows, after, total, searched_to }
    }
}

/// The response's text before and after the contents of its first empty list. Long lists are formatted in between, row
/// by row, because a tree of values takes many times the memory of the text.
pub fn around_list(answer: &impl Serialize) -> (String, String) {
    let text = serde_json::to_string(answer).unwrap_or_default();
    match text.split_once("[]") {
        Some((head, tail)) => (format!("{head}["), format!("]{tail}")),
        None => (text, String::new()),
    }
}
