//! Cloze prompts for masked models: a sentence with a gap, and the words that stand for the classes
//! (pattern-exploiting training, arXiv 2001.07676).

use std::collections::BTreeMap;

/// `template` has `{text}` once and `{mask}` once, as in `"{text} It was {mask}."`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloze {
    template: String,
    /// Class → the word that stands for it in the gap.
    verbalizer: BTreeMap<String, String>,
}

/// Why a cloze cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClozeError {
    #[error("the template must contain {0} exactly once")]
    Placeholder(&'static str),
    #[error("the classes {0:?} and {1:?} have the same word")]
    SameWord(String, String),
    #[error("there are no classes")]
    NoClasses,
}

impl Cloze {
    pub fn new(template: &str, verbalizer: BTreeMap<String, String>) -> Result<Self, ClozeError> {
        for placeholder in ["{text}", "{mask}"] {
            if template.matches(placeholder).count() != 1 {
                return Err(ClozeError::Placeholder(placeholder));
            }
        }
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (class, word) in &verbalizer {
            if let Some(other) = seen.insert(word, class) {
                return Err(ClozeError::SameWord(other.to_owned(), class.clone()));
            }
        }
        if verbalizer.is_empty() {
            return Err(ClozeError::NoClasses);
        }
        Ok(Self { template: template.to_owned(), verbalizer })
    }

    /// The text before and after the gap; the caller puts the mask token's id between them, so that a text
    /// that contains the mask token's name stays text.
    pub fn around(&self, text: &str) -> (String, String) {
        let (before, after) = self.template.split_once("{mask}").unwrap_or((&self.template, ""));
        (before.replacen("{text}", text, 1), after.replacen("{text}", text, 1))
    }

    /// (class, word) in order of the class.
    pub fn words(&self) -> impl Iterator<Item = (&str, &str)> {
        self.verbalizer.iter().map(|(class, word)| (class.as_str(), word.as_str()))
    }
}
