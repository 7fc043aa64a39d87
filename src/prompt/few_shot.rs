//! Zero-, one- and few-shot prompts for a language model: worked examples, then the open case
//! (GPT-3, arXiv 2005.14165, section 2).

/// One worked case.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub input: String,
    pub output: String,
}

/// The words around inputs and outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FewShot {
    /// Stands first, if any.
    pub instruction: Option<String>,
    pub input_label: String,
    pub output_label: String,
}

impl Default for FewShot {
    fn default() -> Self {
        Self { instruction: None, input_label: "Input: ".into(), output_label: "Output:".into() }
    }
}

impl FewShot {
    /// The prompt that ends where the model should answer. It ends without a space: the answer's tokens
    /// begin with theirs.
    pub fn prompt(&self, examples: &[Example], input: &str) -> String {
        let mut text = String::new();
        if let Some(instruction) = &self.instruction {
            text.push_str(instruction);
            text.push_str("\n\n");
        }
        for example in examples {
            text.push_str(&format!("{}\n{} {}\n\n", self.open(&example.input), self.output_label, example.output));
        }
        text.push_str(&format!("{}\n{}", self.open(input), self.output_label));
        text
    }

    fn open(&self, input: &str) -> String {
        format!("{}{input}", self.input_label)
    }
}
