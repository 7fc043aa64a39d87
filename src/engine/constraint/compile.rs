//! Compiles a constraint to a matcher of llguidance over one model's vocabulary, within limits on size and work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Logger, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{Constraint, ConstraintKind, Guide, gbnf, readable};
use crate::engine::EngineError;
use crate::prompt::answer::limit_space;
use crate::tokenizer::Tokenizer;

/// Maximum size of a schema or grammar.
const MAX_BYTES: usize = 64 << 10;
/// Number of compiled constraints that are cached for later requests.
const CACHED: usize = 16;
/// Longer tokens are never drawn under a constraint, because the vocabulary's trie is at most 1024 bytes deep.
const MAX_TOKEN_BYTES: usize = 1000;
/// Limits on the work and memory of one compiled constraint. llguidance uses about 50 thousand units of fuel or 20
/// thousand items per millisecond, and 2 kB for each state of the lexer.
fn limits(scannerless: bool) -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 500_000,
        // A grammar without a lexer is parsed byte by byte.
        step_max_items: if scannerless { 2_000_000 } else { 200_000 },
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Compiles constraints over one vocabulary, and caches them.
pub struct Compiler {
    factory: ParserFactory,
    /// Tokens whose text differs at the beginning of a text, where the vocabulary drops a space.
    not_first: Arc<SimpleVob>,
    eos_ids: Arc<[u32]>,
    cache: Mutex<VecDeque<(Arc<Constraint>, Matcher)>>,
}

impl Compiler {
    /// `vocab_size` is the number of logits. Ids that the tokenizer does not know are never allowed.
    ///
    /// # Errors
    /// If the vocabulary cannot be stored as a trie.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, eos_ids: &[u32]) -> Result<Self, String> {
        let eos_ids: Vec<u32> = eos_ids.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        let mut not_first = SimpleVob::alloc(vocab_size);
        let token_bytes = |id: u32| -> Vec<u8> {
            if eos_ids.contains(&id) || tokenizer.is_special(id) {
                let mut bytes = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                bytes.extend(tokenizer.id_to_token(id).unwrap_or_else(|| format!("<[{id}]>")).into_bytes());
                return bytes;
            }
            let inside = tokenizer.token_bytes_inside(id);
            if !tokenizer.is_byte_level() && (inside.starts_with(b" ") || inside != tokenizer.token_bytes(id)) {
                not_first.allow_token(id);
            }
            inside
        };
        let mut tokens: Vec<Vec<u8>> = (0..vocab_size as u32).map(token_bytes).collect();
        tokens.iter_mut().filter(|bytes| bytes.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        let build = || {
            let eos = eos_ids.first().copied().unwrap_or(INVALID_TOKEN);
            let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, eos), &tokens);
            if eos_ids.is_empty() { trie } else { trie.with_eos_tokens(&eos_ids) }
        };
        let trie = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)).map_err(|_| {
            "constraints are not supported for this model: its vocabulary cannot be stored as a trie".to_owned()
        })?;
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Self { factory, not_first: Arc::new(not_first), eos_ids: eos_ids.into(), cache: Mutex::default() })
    }

    /// The guide at the start of an answer. `begins_text`: the answer begins a text, so that some vocabularies drop the
    /// space before its first token.
    ///
    /// # Errors
    /// `BadRequest` at the constraint's field if it is invalid, too long or too complex, or cannot be satisfied with
    /// this model's tokens.
    pub fn compile(&self, constraint: &Arc<Constraint>, begins_text: bool) -> Result<Guide, EngineError> {
        let bad = |message: String| EngineError::BadRequest { param: constraint.field, message };
        let bytes = constraint.kind.bytes();
        if bytes > MAX_BYTES {
            let message = format!("{} is {bytes} bytes long; at most {MAX_BYTES} are accepted", constraint.field);
            return Err(bad(message));
        }
        let matcher = match self.cached(constraint) {
            Some(matcher) => matcher,
            None => {
                let matcher = self.build(&constraint.kind).map_err(bad)?;
                self.store(constraint, &matcher);
                matcher
            }
        };
        let not_first = begins_text.then(|| self.not_first.clone());
        let guide = Guide::new(matcher, not_first, self.eos_ids.clone());
        match guide.allowed(0) {
            Err(problem) => Err(bad(problem)),
            Ok(first) if first.is_zero() => Err(bad("no token of this model can begin such a text".into())),
            Ok(_) => Ok(guide),
        }
    }

    fn cached(&self, constraint: &Arc<Constraint>) -> Option<Matcher> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|(known, _)| known.kind == constraint.kind)?;
        let found = cache.remove(at)?;
        // A deep clone: states that a request adds to the lexer are freed with the request.
        let matcher = found.1.deep_clone();
        cache.push_back(found);
        Some(matcher)
    }

    fn store(&self, constraint: &Arc<Constraint>, matcher: &Matcher) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == CACHED {
            cache.pop_front();
        }
        cache.push_back((constraint.clone(), matcher.deep_clone()));
    }

    fn build(&self, kind: &ConstraintKind) -> Result<Matcher, String> {
        let mut scannerless = false;
        let grammar = match kind {
            ConstraintKind::JsonObject => TopLevelGrammar::from_json_schema(spaced(&json!({"type": "object"}))?),
            ConstraintKind::JsonSchema(schema) => TopLevelGrammar::from_json_schema(spaced(schema)?),
            ConstraintKind::Regex(regex) => TopLevelGrammar::from_regex(regex),
            ConstraintKind::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|c| regex::escape(c)).collect();
                TopLevelGrammar::from_regex(&format!("({})", choices.join("|")))
            }
            ConstraintKind::Grammar(text) if gbnf::is_gbnf(text) => {
                scannerless = true;
                TopLevelGrammar::from_lark(gbnf::to_lark(text)?)
            }
            ConstraintKind::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let parser = self.factory.create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits(scannerless),
        );
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(readable(&error)),
            None => Ok(matcher),
        }
    }
}

/// The schema with the white space that this server allows.
fn spaced(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("the schema accepts nothing".into()),
        Value::Object(_) => schema.clone(),
        _ => return Err("a schema must be an object, true or false".into()),
    };
    limit_space(&mut schema);
    Ok(schema)
}
