//! The reasoning of answers as token ids of one model: where its tags are special tokens, and whether a prompt has
//! opened it.

use super::answer::Thinking;
use crate::tokenizer::Tokenizer;

/// Number of ids at the end of a prompt that are decoded to look for an opening tag.
const LOOKED_AT: usize = 16;

/// A tag, and its id if it is a special token.
struct ReasoningTag {
    text: &'static str,
    special: Option<u32>,
}

/// The tags between which a model writes its reasoning.
pub struct ReasoningTags {
    open: ReasoningTag,
    close: ReasoningTag,
}

/// A piece of an answer: text, or a tag that is a special token.
#[derive(Debug, PartialEq, Eq)]
pub enum AnswerPiece<'t> {
    Text(&'t str),
    Special(u32),
}

impl ReasoningTags {
    /// The tags that a chat template names; `None` if it names none.
    pub fn new(template: &str, tokenizer: &Tokenizer) -> Option<Self> {
        let (open, close) = Thinking::tags_of(template)?;
        let tag = |text| {
            let special = tokenizer.token_to_id(text).filter(|id| tokenizer.is_special(*id));
            ReasoningTag { text, special }
        };
        Some(Self { open: tag(open), close: tag(close) })
    }

    /// Whether the prompt ends with the opening tag, so that an answer begins inside its reasoning.
    pub fn opened_by(&self, prompt_ids: &[u32], tokenizer: &Tokenizer) -> bool {
        let end = &prompt_ids[prompt_ids.len().saturating_sub(LOOKED_AT)..];
        tokenizer.decode_after(&[], end, false).trim_end().ends_with(self.open.text)
    }

    /// The text that ends a reasoning which the prompt has opened, before an answer without any.
    pub fn empty_reasoning(&self) -> String {
        format!("\n{}\n\n", self.close.text)
    }

    /// The part of an answer after its reasoning, of which the prompt may have opened the tag. Reasoning that was never
    /// closed is the whole answer.
    pub fn answer_in<'t>(&self, text: &'t str, opened: bool) -> &'t str {
        if opened && !text.contains(self.close.text) { "" } else { super::answer::without_thoughts(text) }
    }

    /// The pieces of an answer, in order. Tags become special tokens only around the reasoning at the beginning; a tag
    /// that is written elsewhere is text.
    pub fn pieces<'t>(&self, text: &'t str, opened: bool) -> Vec<AnswerPiece<'t>> {
        let (Some(open), Some(close)) = (self.open.special, self.close.special) else {
            return vec![AnswerPiece::Text(text)];
        };
        let mut pieces = Vec::new();
        let mut rest = text;
        let begins = text.trim_start().strip_prefix(self.open.text);
        if let Some(behind) = begins {
            let before = &text[..text.len() - behind.len() - self.open.text.len()];
            pieces.extend([AnswerPiece::Text(before), AnswerPiece::Special(open)]);
            rest = behind;
        }
        if (begins.is_some() || opened)
            && let Some((thought, answer)) = rest.split_once(self.close.text)
        {
            pieces.extend([AnswerPiece::Text(thought), AnswerPiece::Special(close)]);
            rest = answer;
        }
        pieces.push(AnswerPiece::Text(rest));
        pieces.retain(|piece| *piece != AnswerPiece::Text(""));
        pieces
    }

    /// The text of a tag that is this special token.
    pub fn text_of(&self, id: u32) -> Option<&'static str> {
        [&self.open, &self.close].into_iter().find(|tag| tag.special == Some(id)).map(|tag| tag.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(special: bool) -> ReasoningTags {
        let id = |id| special.then_some(id);
        ReasoningTags {
            open: ReasoningTag { text: "[THINK]", special: id(1) },
            close: ReasoningTag { text: "[/THINK]", special: id(2) },
        }
    }

    #[test]
    fn only_the_tags_of_the_reasoning_become_special_tokens() {
        use AnswerPiece::{Special, Text};
        let special = tags(true);
        for (text, opened, want) in [
            ("[THINK]a[/THINK]b", false, vec![Special(1), Text("a"), Special(2), Text("b")]),
            ("\n[THINK]a", false, vec![Text("\n"), Special(1), Text("a")]),
            ("a[/THINK]b[/THINK]", true, vec![Text("a"), Special(2), Text("b[/THINK]")]),
            ("a [THINK] b [/THINK]", false, vec![Text("a [THINK] b [/THINK]")]),
            ("", true, vec![]),
        ] {
            assert_eq!(special.pieces(text, opened), want, "{text:?}");
        }
        assert_eq!(tags(false).pieces("[THINK]a[/THINK]b", false), [Text("[THINK]a[/THINK]b")]);
    }

    #[test]
    fn an_opened_reasoning_that_never_ends_is_the_whole_answer() {
        let tags = tags(true);
        assert_eq!(tags.answer_in("a[/THINK]\nb", true), "b");
        assert_eq!(tags.answer_in("[THINK]a[/THINK]b", false), "b");
        assert_eq!(tags.answer_in("a b", true), "");
        assert_eq!(tags.answer_in("a b", false), "a b");
    }
}
