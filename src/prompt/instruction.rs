//! Instructions for models without a chat template, in the format of Stanford Alpaca, which many tuned models were
//! trained on; and templates that turn rows of a data set into instructions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a row of a task becomes a request and its answer. `{field}` stands for the row's field, `{{` for `{`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub prompt: String,
    pub completion: String,
}

impl Template {
    /// (prompt, completion) of one row.
    ///
    /// # Errors
    /// When the row lacks a field, or a brace has no counterpart.
    pub fn fill(&self, row: &BTreeMap<String, String>) -> Result<(String, String), String> {
        Ok((fill(&self.prompt, row)?, fill(&self.completion, row)?))
    }
}

/// One pass, so that braces inside a row's text stay text.
fn fill(template: &str, row: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let name = rest.split_once('}').filter(|_| brace == "{");
        let (name, after) = name.ok_or_else(|| format!("a single {brace} in {template:?}"))?;
        out.push_str(row.get(name).ok_or_else(|| format!("a row has no field `{name}`"))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The prompt for one instruction, with its input text where there is one. The answer follows it.
pub fn instruction(task: &str, input: Option<&str>) -> String {
    match input.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{task}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!(
            "Below is an instruction that describes a task. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{task}\n\n### Response:\n"
        ),
    }
}
