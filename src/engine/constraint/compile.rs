//! From a form to the matcher that llguidance builds of it over one model's vocabulary, within limits of size and
//! work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Logger, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{Constraint, Form, Guide, gbnf};
use crate::engine::EngineError;
use crate::tokenizer::Tokenizer;

/// Longest schema or grammar.
const MOST_BYTES: usize = 64 << 10;
/// Compiled forms that are kept for the next request that names the same.
const KEPT: usize = 16;
/// Longer tokens are never drawn under a constraint: the trie of the vocabulary is at most 1024 bytes deep.
const MOST_TOKEN: usize = 1000;
/// White space between the parts of a JSON text: a model that only ever indents must come to an end.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// Work and memory of one compiled form. llguidance counts some 50 thousand units of fuel and 20 thousand items in a
/// millisecond, and 2 kB for each state of the lexer.
fn limits(scannerless: bool) -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 500_000,
        // A grammar without tokens of its own is parsed byte by byte over the vocabulary.
        step_max_items: if scannerless { 2_000_000 } else { 200_000 },
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Everything that is the same for all forms over one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    /// Tokens whose text at the beginning of an answer is another one than inside it.
    unlike: Arc<SimpleVob>,
    eos_ids: Arc<[u32]>,
    kept: Mutex<VecDeque<(Arc<Constraint>, Matcher)>>,
}

impl Compiler {
    /// `vocab_size` is the number of logits; ids that the tokenizer does not know are never drawn.
    ///
    /// # Errors
    /// When the vocabulary cannot be arranged as a trie.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, eos_ids: &[u32]) -> Result<Self, String> {
        let eos_ids: Vec<u32> = eos_ids.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        let mut unlike = SimpleVob::alloc(vocab_size);
        let word = |id: u32| -> Vec<u8> {
            if eos_ids.contains(&id) || tokenizer.is_special(id) {
                let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                word.extend(tokenizer.id_to_token(id).unwrap_or_else(|| format!("<[{id}]>")).into_bytes());
                return word;
            }
            let inside = tokenizer.token_bytes_inside(id);
            if !tokenizer.is_byte_level() && (inside.starts_with(b" ") || inside != tokenizer.token_bytes(id)) {
                unlike.allow_token(id);
            }
            inside
        };
        let mut words: Vec<Vec<u8>> = (0..vocab_size as u32).map(word).collect();
        words.iter_mut().filter(|word| word.len() > MOST_TOKEN).for_each(Vec::clear);
        let build = || {
            let eos = eos_ids.first().copied().unwrap_or(INVALID_TOKEN);
            let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, eos), &words);
            if eos_ids.is_empty() { trie } else { trie.with_eos_tokens(&eos_ids) }
        };
        let trie = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build))
            .map_err(|_| "this model's vocabulary does not fit a trie of tokens".to_owned())?;
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Self { factory, unlike: Arc::new(unlike), eos_ids: eos_ids.into(), kept: Mutex::default() })
    }

    /// The guide at the beginning of a text. `begins`: the text stands behind nothing that is part of it, so that
    /// some vocabularies leave out the space of its first token.
    ///
    /// # Errors
    /// `BadRequest` at the constraint's field: it is too long or too complex, is no form that can be followed, or
    /// cannot be written with this model's tokens.
    pub fn compile(&self, constraint: &Arc<Constraint>, begins: bool) -> Result<Guide, EngineError> {
        let bad = |message: String| EngineError::BadRequest { param: constraint.field, message };
        let bytes = constraint.form.bytes();
        if bytes > MOST_BYTES {
            let message = format!("{} is {bytes} bytes long; at most {MOST_BYTES} are taken", constraint.field);
            return Err(bad(message));
        }
        let matcher = match self.known(constraint) {
            Some(matcher) => matcher,
            None => {
                let matcher = self.build(&constraint.form).map_err(bad)?;
                self.keep(constraint, &matcher);
                matcher
            }
        };
        let unlike = begins.then(|| self.unlike.clone());
        let guide = Guide::new(matcher, unlike, self.eos_ids.clone());
        match guide.allowed(0) {
            Err(problem) => Err(bad(problem)),
            Ok(first) if first.is_zero() => Err(bad("this model has no tokens to write such a text with".into())),
            Ok(_) => Ok(guide),
        }
    }

    fn known(&self, constraint: &Arc<Constraint>) -> Option<Matcher> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known.form == constraint.form)?;
        let found = kept.remove(at)?;
        // A copy of its own: what one request makes the lexer remember is gone with it.
        let matcher = found.1.deep_clone();
        kept.push_back(found);
        Some(matcher)
    }

    fn keep(&self, constraint: &Arc<Constraint>, matcher: &Matcher) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((constraint.clone(), matcher.deep_clone()));
    }

    fn build(&self, form: &Form) -> Result<Matcher, String> {
        let mut scannerless = false;
        let grammar = match form {
            Form::JsonObject => TopLevelGrammar::from_json_schema(spaced(&json!({"type": "object"}))?),
            Form::JsonSchema(schema) => TopLevelGrammar::from_json_schema(spaced(schema)?),
            Form::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Form::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|c| regex::escape(c)).collect();
                TopLevelGrammar::from_regex(&format!("({})", choices.join("|")))
            }
            Form::Grammar(text) if gbnf::is_gbnf(text) => {
                scannerless = true;
                TopLevelGrammar::from_lark(gbnf::to_lark(text)?)
            }
            Form::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let parser = self.factory.create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits(scannerless),
        );
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(explained(&error)),
            None => Ok(matcher),
        }
    }
}

/// A schema with the white space that this server lets through.
fn spaced(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("the schema accepts nothing".into()),
        Value::Object(_) => schema.clone(),
        _ => return Err("a schema is an object, true or false".into()),
    };
    schema["x-guidance"] = json!({"whitespace_pattern": JSON_SPACE});
    Ok(schema)
}

/// The first lines of an error, without what llguidance adds for its developers.
pub(super) fn explained(error: &str) -> String {
    let text = error.split("<non-verbose/>").next().unwrap_or(error);
    let text = text.split("<state>").next().unwrap_or(text).trim();
    let cut: String = text.chars().take(400).collect();
    format!("it cannot be followed: {cut}")
}
