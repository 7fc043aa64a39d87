//! A classification case as text with a placeholder for the label: zero-, one- and few-shot prompts for models that
//! score given answers (GPT-3, arXiv 2005.14165, section 2), and sentences with a blank.

/// A pattern such as `"Review: {input}\nSentiment: {label}"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTemplate {
    before: String,
    after: String,
}

/// A text before and after the label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub before: String,
    pub after: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelTemplateError {
    #[error("must contain {0} exactly once")]
    Placeholder(&'static str),
    #[error("must have one blank (three or more underscores), found {0}")]
    Blanks(usize),
}

/// The text around the cases.
#[derive(Clone, Copy, Debug)]
pub struct Shots<'a> {
    /// The instruction, if any; first, followed by the separator.
    pub instruction: Option<&'a str>,
    /// Worked cases: (input, the words of its label).
    pub examples: &'a [(String, String)],
    pub separator: &'a str,
}

impl LabelTemplate {
    /// # Errors
    /// When the pattern does not contain `{input}` and `{label}` exactly once each.
    pub fn new(template: &str) -> Result<Self, LabelTemplateError> {
        for placeholder in ["{input}", "{label}"] {
            if template.matches(placeholder).count() != 1 {
                return Err(LabelTemplateError::Placeholder(placeholder));
            }
        }
        let (before, after) = template.split_once("{label}").unwrap_or((template, ""));
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// Bytes of the pattern.
    pub fn bytes(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Instruction, worked examples and the case to be decided. Placeholders inside an input are not replaced.
    pub fn gap(&self, shots: Shots<'_>, input: &str) -> Gap {
        let fill = |pattern: &str, input: &str| pattern.replacen("{input}", input, 1);
        let mut before = String::new();
        if let Some(instruction) = shots.instruction {
            before.push_str(instruction);
            before.push_str(shots.separator);
        }
        for (input, words) in shots.examples {
            before.push_str(&fill(&self.before, input));
            before.push_str(words);
            before.push_str(&fill(&self.after, input));
            before.push_str(shots.separator);
        }
        before.push_str(&fill(&self.before, input));
        Gap { before, after: fill(&self.after, input) }
    }
}

impl Gap {
    /// Splits a text at its only run of three or more underscores, the blank; `None` when it has none.
    ///
    /// # Errors
    /// `Blanks` when there are several.
    pub fn find(text: &str) -> Result<Option<Self>, LabelTemplateError> {
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(start) = text[at..].find("___").map(|i| at + i) {
            let end = start + text[start..].bytes().take_while(|b| *b == b'_').count();
            runs.push((start, end));
            at = end;
        }
        match runs.as_slice() {
            [] => Ok(None),
            [(start, end)] => Ok(Some(Self { before: text[..*start].to_owned(), after: text[*end..].to_owned() })),
            more => Err(LabelTemplateError::Blanks(more.len())),
        }
    }

    /// The whole text with `words` in the blank.
    pub fn filled(&self, words: &str) -> String {
        format!("{}{words}{}", self.before, self.after)
    }

    /// Whether text follows the blank; the whole text is then scored, not only the words in the blank.
    pub fn is_inner(&self) -> bool {
        !self.after.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_before_the_open_case() {
        let template = LabelTemplate::new("Q: {input}\nA: {label}!").unwrap();
        let examples = [("x {label}".to_owned(), "one".to_owned())];
        let shots = Shots { instruction: Some("Answer."), examples: &examples, separator: "\n\n" };
        let gap = template.gap(shots, "y {input}");
        assert_eq!(gap.filled("two"), "Answer.\n\nQ: x {label}\nA: one!\n\nQ: y {input}\nA: two!");
        assert!(gap.is_inner());
        assert_eq!(LabelTemplate::new("{input}"), Err(LabelTemplateError::Placeholder("{label}")));
        assert_eq!(LabelTemplate::new("{label}{label}{input}"), Err(LabelTemplateError::Placeholder("{label}")));
    }

    #[test]
    fn a_blank_is_three_or_more_underscores() {
        let gap = Gap::find("这个项链太____了").unwrap().unwrap();
        assert_eq!((gap.before.as_str(), gap.after.as_str()), ("这个项链太", "了"));
        assert_eq!(Gap::find("snake_case __init__"), Ok(None));
        assert_eq!(Gap::find("___ and ____"), Err(LabelTemplateError::Blanks(2)));
    }
}
