//! Instructions for models without a chat template, in the words of Stanford Alpaca, which many tuned
//! models have seen.

/// The prompt for one instruction, with the text it works on where there is one. The answer follows it.
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
