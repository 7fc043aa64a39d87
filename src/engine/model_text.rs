//! The tokenizer and the chat template of a model: converts its texts to and from token ids. Also for models whose
//! weights are at another server.

use super::text::{TextStream, bare_text};
use super::{ChatPrompt, EngineError, GenerateRequest, Piece, TextForm, TokenLogprob};
use crate::domain::Message;
use crate::prompt::answer::{Dialect, Thinking, ToolFormat, ToolTags};
use crate::prompt::{ChatError, ChatTemplate, Conversation};
use crate::tokenizer::Tokenizer;

/// Special tokens of fill-in-the-middle prompts: before the prefix, before the suffix, before the middle.
const INFILL_TOKENS: [[&str; 3]; 4] = [
    // Qwen 2.5, CodeGemma.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite, SmolLM.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // DeepSeek Coder.
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    // Code Llama.
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// Tokenizer and chat template of a model.
pub struct ModelText {
    tokenizer: Option<Tokenizer>,
    /// An invalid template fails the requests that need it, not the loading of the model.
    template: Option<Result<ChatTemplate, ChatError>>,
}

impl ModelText {
    /// `source` is the source of the chat template. An invalid one is logged with the model's name.
    pub fn new(name: &str, tokenizer: Option<Tokenizer>, source: Option<&str>) -> Self {
        let template = source.map(|source| ChatTemplate::new(source, tokenizer.as_ref()));
        if let Some(Err(error)) = &template {
            tracing::warn!(model = %name, %error, "chat requests to this model will be refused");
        }
        Self { tokenizer, template }
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Ids that precede a prompt and are not part of its text.
    pub fn before_text(&self) -> Vec<u32> {
        self.tokenizer.as_ref().map(|t| t.before_text().to_vec()).unwrap_or_default()
    }

    /// The decoder from tokens to text for one sample of a request.
    pub fn stream(&self, request: &GenerateRequest) -> TextStream {
        let params = &request.params;
        let include = params.include_stop_str_in_output;
        TextStream::new(self.tokenizer.as_ref(), &request.prompt_ids, &params.stop, include).showing(&params.shown)
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        self.tokenizer.as_ref().ok_or_else(|| EngineError::BadRequest {
            param: "model",
            message: "this model has no tokenizer: send token ids".into(),
        })
    }

    /// The ids of a fill-in-the-middle prompt (arXiv 2207.14255) for the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// `BadRequest` at `suffix` if the vocabulary has no tokens for such prompts.
    pub(super) fn infill_prompt(&self, prefix: &str, suffix: &str) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let special = |name: &&str| tokenizer.token_to_id(name).filter(|id| tokenizer.is_added(*id));
        let found = INFILL_TOKENS.iter().find_map(|names| {
            let ids: Vec<u32> = names.iter().filter_map(special).collect();
            <[u32; 3]>::try_from(ids).ok()
        });
        let Some([before_prefix, before_suffix, before_middle]) = found else {
            let message =
                "suffix is not supported for this model: its vocabulary has no fill-in-the-middle tokens".into();
            return Err(EngineError::BadRequest { param: "suffix", message });
        };
        let text = |left: u32, text: &str| tokenizer.encode_after(&[left], text);
        let bad =
            |e: crate::tokenizer::TokenizerError| EngineError::BadRequest { param: "prompt", message: e.to_string() };
        let mut ids = tokenizer.before_text().to_vec();
        ids.push(before_prefix);
        ids.extend(text(before_prefix, prefix).map_err(bad)?);
        ids.push(before_suffix);
        ids.extend(text(before_suffix, suffix).map_err(bad)?);
        ids.push(before_middle);
        Ok(ids)
    }

    /// # Errors
    /// `BadRequest` if the model has no template or an invalid one.
    pub(super) fn template(&self) -> Result<&ChatTemplate, EngineError> {
        let bad = |message: String| EngineError::BadRequest { param: "messages", message };
        let template = self.template.as_ref();
        let template = template.ok_or_else(|| bad("this model has no chat template: use /v1/completions".into()))?;
        template.as_ref().map_err(|e| bad(e.to_string()))
    }

    /// Renders and tokenizes a conversation, and determines the format of the model's answers.
    pub(super) fn conversation(&self, conversation: &Conversation) -> Result<ChatPrompt, EngineError> {
        let (template, tokenizer) = (self.template()?, self.tokenizer()?);
        let conversation = conversation
            .for_template(template.source())
            .map_err(|(param, message)| EngineError::BadRequest { param, message })?;
        let special = |tag: &&str| {
            let id = tokenizer.token_to_id(tag)?;
            tokenizer.is_special(id).then(|| ((*tag).to_owned(), id))
        };
        let format = ToolFormat::of(template.source());
        if conversation.tools.is_some() && format.is_none() {
            let message = "tools are not supported for this model: the format of its tool calls is unknown".into();
            return Err(EngineError::BadRequest { param: "tools", message });
        }
        let encoded = template.encode_conversation(&conversation, tokenizer);
        let (ids, text) = encoded.map_err(|e| EngineError::BadRequest { param: "messages", message: e.to_string() })?;
        let tags = |format: ToolFormat| format.tags().iter().filter_map(special).collect();
        let tools = format.map(|format| ToolTags { format, special: tags(format) });
        Ok(ChatPrompt { ids, dialect: Dialect { tools, thinking: Thinking::of(template.source(), &text) } })
    }

    pub(super) fn encode(&self, text: &str, form: TextForm<'_>) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let encoded = match form {
            TextForm::Whole { special, parse_special } => tokenizer.encode(text, special, parse_special),
            TextForm::Open { special: true, parse_special } => tokenizer.encode_open(text, parse_special),
            TextForm::Open { special: false, parse_special } => tokenizer.encode(text, false, parse_special),
            TextForm::After(left) => tokenizer.encode_after(left, text),
        };
        encoded.map_err(|e| EngineError::BadRequest { param: "prompt", message: e.to_string() })
    }

    /// The text of token ids; without a tokenizer, the ids.
    ///
    /// # Errors
    /// `BadRequest` at `tokens` for ids that cannot be decoded.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, EngineError> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(ids.iter().map(|id| bare_text(*id)).collect()) };
        let decoded = tokenizer.decode(ids, false);
        decoded.map_err(|e| EngineError::BadRequest { param: "tokens", message: e.to_string() })
    }

    /// Renders and tokenizes messages.
    pub(super) fn chat(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        let bad = |message: String| EngineError::BadRequest { param: "messages", message };
        self.template()?.encode(messages, true, self.tokenizer()?).map_err(|e| bad(e.to_string()))
    }

    /// For each token the texts of the token and of its alternatives, as they read after `left` and the tokens before
    /// it. Without a tokenizer, the text of a token is a space and its id.
    pub(super) fn pieces(&self, left: &[u32], tokens: &[TokenLogprob]) -> Vec<Vec<Piece>> {
        let mut context = left.to_vec();
        let one = |token: &TokenLogprob| {
            let piece = |id: u32| match &self.tokenizer {
                Some(tokenizer) => tokenizer.piece(&context, id),
                None => Piece::of(bare_text(id)),
            };
            let listed = std::iter::once(token.id).chain(token.top.iter().map(|(id, _)| *id)).map(piece).collect();
            context.push(token.id);
            listed
        };
        tokens.iter().map(one).collect()
    }
}
