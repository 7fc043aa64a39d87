//! Reads text settings: values of environment variables that look like numbers or booleans are still text.

use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl From<Scalar> for String {
    fn from(value: Scalar) -> Self {
        match value {
            Scalar::Text(text) => text,
            Scalar::Bool(b) => b.to_string(),
            Scalar::Int(i) => i.to_string(),
            Scalar::Float(f) => f.to_string(),
        }
    }
}

pub(super) fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(Scalar::deserialize(d)?.into())
}

/// A list of texts, or one text whose entries are separated by commas, as in an environment variable.
pub(super) fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Texts {
        List(Vec<Scalar>),
        One(Scalar),
    }
    Ok(match Texts::deserialize(d)? {
        Texts::List(list) => list.into_iter().map(String::from).collect(),
        Texts::One(one) => {
            String::from(one).split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect()
        }
    })
}

/// An empty text is `None`.
pub(super) fn optional_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let value = Option::<Scalar>::deserialize(d)?;
    Ok(value.map(String::from).filter(|text| !text.is_empty()))
}
