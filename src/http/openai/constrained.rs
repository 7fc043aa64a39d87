//! The fields that require a form of the text, with the names of OpenAI (`response_format`), vLLM
//! (`guided_…`, `structured_outputs`) and llama.cpp (`grammar`, `json_schema`).

use std::sync::Arc;

use serde_json::Value;

use crate::engine::{Constraint, ConstraintKind};
use crate::http::error::{ApiError, ApiResult};

/// The fields as given.
pub struct FormFields<'a> {
    pub response_format: Option<&'a Value>,
    pub guided_json: Option<&'a Value>,
    pub guided_regex: Option<&'a String>,
    pub guided_choice: Option<&'a Vec<String>>,
    pub guided_grammar: Option<&'a String>,
    pub structured_outputs: Option<&'a Value>,
    pub grammar: Option<&'a String>,
    pub json_schema: Option<&'a Value>,
}

impl FormFields<'_> {
    /// The required form, if there is one.
    ///
    /// # Errors
    /// 400 at a malformed field, and at the second of two fields that require a form.
    pub fn check(self) -> ApiResult<Option<Arc<Constraint>>> {
        let text = |t: Option<&String>, form: fn(String) -> ConstraintKind| t.map(|t| form(t.clone()));
        let schema = |field, given: Option<&Value>| given.map(|v| schema(field, v)).transpose();
        let choice = self.guided_choice.map(|list| choices("guided_choice", list.clone())).transpose()?;
        let given = [
            ("response_format", self.response_format.map(response_format).transpose()?.flatten()),
            ("guided_json", schema("guided_json", self.guided_json)?),
            ("guided_regex", text(self.guided_regex, ConstraintKind::Regex)),
            ("guided_choice", choice),
            ("guided_grammar", text(self.guided_grammar, ConstraintKind::Grammar)),
            ("structured_outputs", self.structured_outputs.map(structured_outputs).transpose()?.flatten()),
            ("grammar", text(self.grammar, ConstraintKind::Grammar)),
            ("json_schema", schema("json_schema", self.json_schema)?),
        ];
        let mut found: Option<Constraint> = None;
        for (field, form) in given {
            let Some(form) = form else { continue };
            if let Some(first) = &found {
                let message = format!("{field} and {} both require a form of the text; give one of them", first.field);
                return Err(ApiError::bad(field, message));
            }
            found = Some(Constraint { field, kind: form });
        }
        Ok(found.map(Arc::new))
    }
}

/// A schema as an object or, like in vLLM, as its text.
fn schema(field: &str, given: &Value) -> ApiResult<ConstraintKind> {
    match given {
        Value::Object(_) | Value::Bool(_) => Ok(ConstraintKind::JsonSchema(given.clone())),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(read @ (Value::Object(_) | Value::Bool(_))) => Ok(ConstraintKind::JsonSchema(read)),
            _ => Err(ApiError::bad(field, "must be a JSON schema: an object, or the text of one")),
        },
        _ => Err(ApiError::bad(field, "must be a JSON schema: an object, or the text of one")),
    }
}

fn choices(field: &str, list: Vec<String>) -> ApiResult<ConstraintKind> {
    match list.is_empty() {
        true => Err(ApiError::bad(field, "must name at least one choice")),
        false => Ok(ConstraintKind::Choice(list)),
    }
}

/// Refuses fields that are not in the list.
fn only(field: &str, object: &serde_json::Map<String, Value>, known: &[&str]) -> ApiResult<()> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(ApiError::bad(format!("{field}.{key}"), format!("unknown field {key}"))),
        None => Ok(()),
    }
}

fn response_format(given: &Value) -> ApiResult<Option<ConstraintKind>> {
    const FIELD: &str = "response_format";
    let object = given.as_object().ok_or_else(|| ApiError::bad(FIELD, "must be an object with a type"))?;
    match object.get("type").and_then(Value::as_str) {
        Some("text") => only(FIELD, object, &["type"]).map(|()| None),
        // llama.cpp accepts a schema here too.
        Some("json_object") => {
            only(FIELD, object, &["type", "schema"])?;
            match object.get("schema").filter(|s| !s.is_null()) {
                Some(given) => Ok(Some(schema("response_format.schema", given)?)),
                None => Ok(Some(ConstraintKind::JsonObject)),
            }
        }
        Some("json_schema") => {
            only(FIELD, object, &["type", "json_schema"])?;
            let inner = object.get("json_schema").and_then(Value::as_object).ok_or_else(|| {
                ApiError::bad("response_format.json_schema", "must be an object with a name and a schema")
            })?;
            only("response_format.json_schema", inner, &["name", "description", "schema", "strict"])?;
            let field = "response_format.json_schema.schema";
            let given = inner.get("schema").ok_or_else(|| ApiError::bad(field, "is missing"))?;
            Ok(Some(schema(field, given)?))
        }
        _ => Err(ApiError::bad("response_format.type", "must be text, json_object or json_schema")),
    }
}

fn structured_outputs(given: &Value) -> ApiResult<Option<ConstraintKind>> {
    const FIELD: &str = "structured_outputs";
    let object = given.as_object().ok_or_else(|| ApiError::bad(FIELD, "must be an object"))?;
    only(FIELD, object, &["json", "regex", "choice", "grammar", "json_object"])?;
    let given: Vec<(&String, &Value)> =
        object.iter().filter(|(_, v)| !v.is_null() && **v != Value::Bool(false)).collect();
    let (key, value) = match given.as_slice() {
        [] => return Ok(None),
        [one] => *one,
        [_, (key, _), ..] => {
            return Err(ApiError::bad(format!("{FIELD}.{key}"), "only one form may be given"));
        }
    };
    let field = format!("{FIELD}.{key}");
    let text = || value.as_str().map(str::to_owned).ok_or_else(|| ApiError::bad(&field, "must be a text"));
    let form = match key.as_str() {
        "json" => schema(&field, value)?,
        "regex" => ConstraintKind::Regex(text()?),
        "grammar" => ConstraintKind::Grammar(text()?),
        "choice" => match serde_json::from_value(value.clone()) {
            Ok(list) => choices(&field, list)?,
            Err(_) => return Err(ApiError::bad(field, "must be a list of texts")),
        },
        _ => match value {
            Value::Bool(true) => ConstraintKind::JsonObject,
            _ => return Err(ApiError::bad(field, "must be true or false")),
        },
    };
    Ok(Some(form))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NONE: FormFields<'static> = FormFields {
        response_format: None,
        guided_json: None,
        guided_regex: None,
        guided_choice: None,
        guided_grammar: None,
        structured_outputs: None,
        grammar: None,
        json_schema: None,
    };

    #[test]
    fn every_spelling_is_read() {
        let schema = json!({"type": "integer"});
        let named = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
        let text = json!(schema.to_string());
        let of = |asked: FormFields<'_>| asked.check().unwrap().map(|c| (c.field, c.kind.clone()));
        let want = ConstraintKind::JsonSchema(schema.clone());
        assert_eq!(of(FormFields { response_format: Some(&named), ..NONE }), Some(("response_format", want.clone())));
        let loose = json!({"type": "json_object", "schema": schema});
        assert_eq!(of(FormFields { response_format: Some(&loose), ..NONE }), Some(("response_format", want.clone())));
        assert_eq!(of(FormFields { guided_json: Some(&text), ..NONE }), Some(("guided_json", want.clone())));
        let outputs = json!({"json": schema, "regex": null, "json_object": false});
        assert_eq!(
            of(FormFields { structured_outputs: Some(&outputs), ..NONE }),
            Some(("structured_outputs", want.clone()))
        );
        assert_eq!(of(FormFields { json_schema: Some(&schema), ..NONE }), Some(("json_schema", want)));
        let plain = json!({"type": "text"});
        assert_eq!(of(FormFields { response_format: Some(&plain), ..NONE }), None);
        let list = vec!["a".to_owned()];
        assert_eq!(
            of(FormFields { guided_choice: Some(&list), ..NONE }),
            Some(("guided_choice", ConstraintKind::Choice(list.clone())))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let object = json!({"type": "json_object"});
        let two = FormFields { response_format: Some(&object), guided_choice: Some(&vec!["a".to_owned()]), ..NONE };
        assert_eq!(two.check().unwrap_err().param.as_deref(), Some("guided_choice"));
        for (given, param) in [
            (json!("json"), "response_format"),
            (json!({"type": "xml"}), "response_format.type"),
            (json!({"type": "text", "more": 1}), "response_format.more"),
            (json!({"type": "json_schema"}), "response_format.json_schema"),
            (json!({"type": "json_schema", "json_schema": {"name": "n"}}), "response_format.json_schema.schema"),
            (json!({"type": "json_schema", "json_schema": {"schema": 3}}), "response_format.json_schema.schema"),
            (json!({"type": "json_schema", "json_schema": {"schema": {}, "x": 3}}), "response_format.json_schema.x"),
        ] {
            let error = FormFields { response_format: Some(&given), ..NONE }.check().unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{given}");
        }
        for (given, param) in [
            (json!([]), "structured_outputs"),
            (json!({"regex": "a", "choice": ["b"]}), "structured_outputs.choice"),
            (json!({"choice": []}), "structured_outputs.choice"),
            (json!({"choice": [1]}), "structured_outputs.choice"),
            (json!({"regex": 1}), "structured_outputs.regex"),
            (json!({"structural_tag": "x"}), "structured_outputs.structural_tag"),
        ] {
            let error = FormFields { structured_outputs: Some(&given), ..NONE }.check().unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{given}");
        }
    }
}
