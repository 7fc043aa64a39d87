//! The size that a request expands to, computed before it is built. Limits on single fields do not bound
//! products of them (a template by its examples, a prompt by its answers, samples by their log-probs). Every computing
//! route checks its request here first; the limits keep one request under about 64 MB.

use super::{Result, bad_input};
use crate::config::LimitsConfig;

/// Most bytes of text that are tokenized for one request, each text counted as often as it is tokenized.
pub const EXPANDED_BYTES: usize = 8 << 20;
/// Most tokens sampled for one request: samples × `max_tokens`.
pub const DRAWN_TOKENS: usize = 1 << 19;
/// Most log-probs in one response: tokens × (1 + alternatives).
pub const REPORTED: usize = 1 << 17;
/// Most bytes of prompts that are returned with their completions: Σ prompts × n.
pub const ECHOED_BYTES: usize = 4 << 20;
/// Most texts and tokens of one `/v1/embeddings` request.
pub const EMBEDDED_TEXTS: usize = 2048;
pub const EMBEDDED_TOKENS: usize = 300_000;
/// Most tokens listed by one `/v1/fill-mask` request: gaps × (`top_k` + targets).
pub const LISTED: usize = 1 << 14;
/// Most probabilities in one `/v1/attention` response: layers × heads × tokens².
pub const MAPPED: usize = 2_000_000;
/// Most tokens of one `/detokenize` request, for models with a shorter context.
pub const WRITTEN_TOKENS: usize = 1 << 16;
/// Most token ids of the sequences of one `/v1/choices` request.
pub const SCORED_IDS: usize = 4 << 20;

fn over(param: impl Into<String>, what: std::fmt::Arguments<'_>, found: usize, most: usize) -> Result<()> {
    if found <= most {
        return Ok(());
    }
    Err(bad_input(param, format!("{what} come to {found}; at most {most} in one request")))
}

/// The product, or `usize::MAX` when it overflows.
fn times(factors: &[usize]) -> usize {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

/// Sizes of few-shot examples in a template, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cases {
    pub template: usize,
    pub instruction: usize,
    pub separator: usize,
    /// Number of examples, and the bytes of their inputs and labels.
    pub examples: usize,
    pub example_bytes: usize,
    /// Bytes of the input.
    pub input: usize,
}

impl Cases {
    /// Upper bound of the text's length: it contains template and separator once for each example.
    pub fn bytes(&self) -> usize {
        let cases = times(&[self.template.saturating_add(self.separator), self.examples.saturating_add(1)]);
        [self.instruction, self.separator, self.example_bytes, self.input]
            .iter()
            .fold(cases, |sum, part| sum.saturating_add(*part))
    }

    /// # Errors
    /// `BadInput` at the largest part, when the text is longer than a prompt may be.
    pub fn check(&self, limits: &LimitsConfig) -> Result<()> {
        let (found, most) = (self.bytes(), limits.prompt_bytes);
        if found <= most {
            return Ok(());
        }
        let parts = [
            ("template", times(&[self.template, self.examples.saturating_add(1)])),
            ("separator", times(&[self.separator, self.examples.saturating_add(1)])),
            ("examples", self.example_bytes),
            ("instruction", self.instruction),
            ("input", self.input),
        ];
        let heaviest = parts.iter().max_by_key(|p| p.1).map_or("template", |p| p.0);
        let message = format!(
            "the prompt would be {found} bytes long: {} cases of a template of {} bytes and a separator of {}, with {} \
             bytes of examples, {} of instruction and {} of input; at most {most} are allowed",
            self.examples.saturating_add(1),
            self.template,
            self.separator,
            self.example_bytes,
            self.instruction,
            self.input,
        );
        Err(bad_input(heaviest, message))
    }
}

/// Checks choices in their contexts: each context is tokenized once for each word of each choice.
///
/// # Errors
/// `BadInput` at `choices`.
pub fn choices(contexts: &[usize], words: &[usize]) -> Result<()> {
    let longest = words.iter().copied().max().unwrap_or(0);
    let one = contexts.iter().fold(0usize, |sum, c| sum.saturating_add(c.saturating_add(longest)));
    let what = format_args!(
        "{} prompts of {one} bytes in all, each read with {} texts of choices,",
        contexts.len(),
        words.len()
    );
    over("choices", what, times(&[one, words.len()]), EXPANDED_BYTES)
}

/// Checks completions that are scored after one prompt, which is tokenized once for each of them.
///
/// # Errors
/// `BadInput` at `completions`, or at the completion that is too long with its prompt.
pub fn rewards(prompt: usize, answers: &[usize], limits: &LimitsConfig) -> Result<()> {
    for (i, answer) in answers.iter().enumerate() {
        let (found, most) = (prompt.saturating_add(*answer), limits.prompt_bytes);
        if found > most {
            let message = format!("is {found} bytes long with its prompt; at most {most} are allowed");
            return Err(bad_input(format!("completions[{i}]"), message));
        }
    }
    let all = answers.iter().fold(times(&[prompt, answers.len()]), |sum, a| sum.saturating_add(*a));
    let what = format_args!("{} completions, each read with a prompt of {prompt} bytes,", answers.len());
    over("completions", what, all, EXPANDED_BYTES)
}

/// What is sampled and reported for one completion or chat request.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    pub prompts: usize,
    /// Number of samples of each prompt, and of those that are returned.
    pub drawn: usize,
    pub returned: usize,
    pub max_tokens: usize,
    /// Alternatives of each reported token; `None` = no log-probs were requested.
    pub alternatives: Option<usize>,
}

impl Drawing {
    /// # Errors
    /// `BadInput` at `n` (or `max_tokens` for one sample), and at `reported_as`, the route's name of `logprobs`.
    pub fn check(&self, reported_as: &str) -> Result<()> {
        let Self { prompts, drawn, max_tokens, .. } = *self;
        let field = if drawn > 1 { "n" } else { "max_tokens" };
        let what = format_args!("{prompts} prompts × {drawn} samples × {max_tokens} tokens");
        over(field, what, times(&[prompts, drawn, max_tokens]), DRAWN_TOKENS)?;
        self.check_reported(0, reported_as)
    }

    /// Checks the reported log-probs. `echoed`: tokens of all prompts, if they are reported too.
    ///
    /// # Errors
    /// `BadInput` at `reported_as`.
    pub fn check_reported(&self, echoed: usize, reported_as: &str) -> Result<()> {
        let Some(alternatives) = self.alternatives else { return Ok(()) };
        let drawn = times(&[self.prompts, self.drawn, self.max_tokens]);
        let tokens = drawn.saturating_add(times(&[echoed, self.returned]));
        let what = format_args!("log-probs of {tokens} tokens with {alternatives} alternatives each");
        over(reported_as, what, times(&[tokens, alternatives.saturating_add(1)]), REPORTED)
    }

    /// Checks the bytes of all prompts, which are returned with each of their completions.
    ///
    /// # Errors
    /// `BadInput` at `echo`.
    pub fn check_echo(&self, bytes: usize) -> Result<()> {
        let what = format_args!("{bytes} bytes of prompts before {} completions each", self.returned);
        over("echo", what, times(&[bytes, self.returned]), ECHOED_BYTES)
    }
}

/// Checks prompts that are each tokenized with the same suffix.
///
/// # Errors
/// `BadInput` at `suffix`.
pub fn gaps(prompts: usize, suffix: usize) -> Result<()> {
    let what = format_args!("{prompts} prompts, each read with a suffix of {suffix} bytes,");
    over("suffix", what, times(&[prompts, suffix]), EXPANDED_BYTES)
}

/// Checks the size of attention maps.
///
/// # Errors
/// `BadInput` at `layers`.
pub fn maps(layers: usize, heads: usize, tokens: usize) -> Result<()> {
    let what = format_args!("{layers} layers × {heads} heads × {tokens}² tokens");
    over("layers", what, times(&[layers, heads, tokens, tokens]), MAPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_never_wrap_around() {
        let limits = LimitsConfig::default();
        let cases = Cases { template: usize::MAX / 2, examples: 256, ..Cases::default() };
        assert!(cases.check(&limits).is_err());
        assert!(choices(&[usize::MAX, usize::MAX], &[1, 1]).is_err());
        assert!(rewards(usize::MAX, &[1], &limits).is_err());
        let huge =
            Drawing { prompts: usize::MAX, drawn: 2, returned: 2, max_tokens: usize::MAX, alternatives: Some(20) };
        assert!(huge.check("logprobs").is_err() && huge.check_echo(usize::MAX).is_err());
        assert!(maps(1, 1, usize::MAX).is_err() && gaps(2, usize::MAX).is_err());
    }

    #[test]
    fn a_template_is_counted_once_for_each_case() {
        let cases = Cases { template: 10, instruction: 3, separator: 2, examples: 4, example_bytes: 7, input: 5 };
        assert_eq!(cases.bytes(), 5 * 12 + 3 + 2 + 7 + 5);
        let limits = LimitsConfig { prompt_bytes: 50, ..LimitsConfig::default() };
        match cases.check(&limits) {
            Err(crate::service::ServiceError::BadInput { param, message }) => {
                assert_eq!(param, "template");
                assert!(message.contains("77 bytes") && message.contains("at most 50"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}
