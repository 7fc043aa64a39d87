//! Finding added tokens in text, as the tokenizers crate does it (longest first, from the left, `lstrip`,
//! `rstrip`, `single_word`), but with control over where special ones are recognised.

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::tokenizer::normalizer::Range;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizedString, Result as TokResult, Token,
};

use super::{Specials, TokenizerError, failed};

/// The added tokens of one tokenizer, by whether they are looked for before or after normalising.
pub(super) struct Finders {
    tokens: BTreeMap<u32, AddedToken>,
    before: Option<Finder>,
    after: Option<Finder>,
}

struct Finder {
    matcher: AhoCorasick,
    /// Token id of each pattern.
    ids: Vec<u32>,
}

impl Finder {
    fn new(patterns: Vec<(String, u32)>) -> Result<Option<Self>, TokenizerError> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let (texts, ids): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).map_err(failed)?;
        Ok(Some(Self { matcher, ids }))
    }
}

impl Finders {
    pub fn new(base: &tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let tokens: BTreeMap<u32, AddedToken> = base.get_added_tokens_decoder().into_iter().collect();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (id, token) in &tokens {
            if !token.normalized {
                before.push((token.content.clone(), *id));
                continue;
            }
            let mut text = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = base.get_normalizer() {
                normalizer.normalize(&mut text).map_err(failed)?;
            }
            if !text.get().is_empty() {
                after.push((text.get().to_owned(), *id));
            }
        }
        Ok(Self { before: Finder::new(before)?, after: Finder::new(after)?, tokens })
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.tokens.get(&id).is_some_and(|token| token.special)
    }

    pub fn is_added(&self, id: u32) -> bool {
        self.tokens.contains_key(&id)
    }

    /// The text of an added token.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).map(|token| token.content.as_str())
    }

    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).filter(|token| token.special).map(|token| token.content.as_str())
    }

    pub fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens.values().filter(|token| token.special).map(|token| token.content.as_str())
    }

    /// Splits the added tokens from `pieces` and normalises the rest.
    pub fn split(
        &self,
        pieces: &mut PreTokenizedString,
        normalizer: Option<&NormalizerWrapper>,
        specials: Specials<'_>,
    ) -> TokResult<()> {
        pieces.split(|_, piece| self.cut(piece, self.before.as_ref(), specials))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut piece)?;
            }
            self.cut(piece, self.after.as_ref(), specials)
        })
    }

    /// Parts of one piece in order, those that are a token with their id.
    fn cut(
        &self,
        piece: NormalizedString,
        finder: Option<&Finder>,
        specials: Specials<'_>,
    ) -> TokResult<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let Some(finder) = finder else { return Ok(vec![(piece, None)]) };
        let part = |start: usize, end: usize| {
            piece.slice(Range::Normalized(start..end)).ok_or("an added token cuts through a character")
        };
        let mut parts = Vec::new();
        let mut done = 0;
        for (id, start, end) in self.matches(&piece, finder, specials) {
            if done < start {
                parts.push((part(done, start)?, None));
            }
            let slice = part(start, end)?;
            let text = slice.get().to_owned();
            let length = text.len();
            parts.push((slice, Some(vec![Token::new(id, text, (0, length))])));
            done = end;
        }
        if done < piece.len() {
            parts.push((part(done, piece.len())?, None));
        }
        Ok(parts)
    }

    /// (id, start, end) of the tokens in the normalised text, ascending and disjoint.
    fn matches(&self, piece: &NormalizedString, finder: &Finder, specials: Specials<'_>) -> Vec<(u32, usize, usize)> {
        let text = piece.get();
        let mut found = Vec::new();
        let (mut at, mut done) = (0, 0);
        while at <= text.len() {
            let Some(hit) = finder.matcher.find(Input::new(text).range(at..)) else { break };
            let (mut start, mut end) = (hit.start(), hit.end());
            let Some((id, token)) =
                finder.ids.get(hit.pattern().as_usize()).and_then(|id| self.tokens.get_key_value(id))
            else {
                break;
            };
            if token.special {
                let offset = piece.offsets_original().0;
                let original = piece.convert_offsets(Range::Normalized(start..end)).unwrap_or(start..end);
                if !specials.allow(offset + original.start, offset + original.end) {
                    // A refused token must not hide one that begins inside it.
                    at = text.ceil_char_boundary(start + 1);
                    continue;
                }
            }
            at = end;
            if token.single_word && !stands_alone(text, start, end) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            found.push((*id, start, end));
            (at, done) = (end.max(at), end);
        }
        found
    }
}

/// No word character directly before or after `start..end`.
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].ends_with(word) && !text[end..].starts_with(word)
}
