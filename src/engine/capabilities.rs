//! Optional capabilities of a generator. An upstream server, for instance, generates text but has no token ids. Callers
//! use the methods of `dyn Generator`, such as `tokenize` and `embed`, which return an error if the generator lacks the
//! capability.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Attention, ChatPrompt, EmbedRequest, Embeddings, EngineError, FillRequest, FillResult, Generator, Piece,
    ServedModel, TextForm, TokenLogprob,
};
use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use crate::prompt::Conversation;
use crate::prompt::answer::Dialect;

/// Conversion between text and token ids of the served models. `version` `None` means the active one.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Text to ids. User text becomes a special token only if `form` allows it.
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError>;

    /// Ids to text.
    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError>;

    /// The ids of a fill-in-the-middle prompt for the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// `BadRequest` at `suffix` if the model's vocabulary has no tokens for such prompts.
    async fn infill_prompt(
        &self,
        version: Option<&ModelVersionId>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        let (_, _, _) = (version, prefix, suffix);
        let message = "suffix is not supported for this model: it has no fill-in-the-middle tokens".into();
        Err(EngineError::BadRequest { param: "suffix", message })
    }

    /// For each token the texts of the token and of its alternatives, as they read after `left` and the tokens before
    /// it.
    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError>;

    /// Renders messages with the model's chat template, adds the generation prompt, and tokenizes.
    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError>;

    /// Renders a conversation, with tools and variables for the chat template, adds the generation prompt, and
    /// tokenizes.
    ///
    /// # Errors
    /// `BadRequest` at `tools`, `reasoning_effort`, `chat_template_kwargs` or `messages` if the model's template does
    /// not support it.
    async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        if let Some(param) = conversation.asks_for() {
            let message = format!("{param} is not supported for this model");
            return Err(EngineError::BadRequest { param, message });
        }
        let ids = self.chat_prompt(version, &conversation.stored()).await?;
        Ok(ChatPrompt { ids, dialect: Dialect::default() })
    }
}

/// Reward model versions.
#[async_trait]
pub trait RewardScorer: Send + Sync {
    /// Scores answers to one prompt: the mean of the version's heads, and their standard deviation as the uncertainty.
    async fn reward_scores(
        &self,
        version: &ModelVersion,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError>;
}

/// Soft prompts, which precede the prompt of a request.
#[async_trait]
pub trait SoftPrompts: Send + Sync {
    /// Loads a soft prompt for requests to `base`. Returns its number of positions.
    ///
    /// # Errors
    /// `BadRequest` if it was tuned for another model.
    async fn load_soft_prompt(&self, soft_prompt: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError>;
}

/// Encoder versions.
#[async_trait]
pub trait EncoderModels: Send + Sync {
    /// Computes an embedding of each input.
    async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError>;
    /// Predicts the tokens at the gaps of a text.
    async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<FillResult>, EngineError>;
}

/// Inspection of a model's computation.
#[async_trait]
pub trait Inspection: Send + Sync {
    /// The attention maps of a policy or an encoder version over one text of at most `max_tokens`
    /// tokens.
    async fn attention(&self, version: &ModelVersion, text: &str, max_tokens: usize) -> Result<Attention, EngineError>;
}

fn unsupported(param: &'static str, message: impl Into<String>) -> EngineError {
    EngineError::BadRequest { param, message: message.into() }
}

/// The capabilities of any generator. Each method returns an error if the generator lacks the capability.
impl dyn Generator {
    fn has_tokens(&self, param: &'static str) -> Result<&dyn Tokens, EngineError> {
        self.tokens().ok_or_else(|| {
            unsupported(param, "this model is served by an upstream server: its token ids are not known here")
        })
    }

    /// See [`Tokens::tokenize`].
    pub async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError> {
        self.has_tokens("model")?.tokenize(version, text, form).await
    }

    /// See [`Tokens::detokenize`].
    pub async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        self.has_tokens("model")?.detokenize(version, ids).await
    }

    /// See [`Tokens::infill_prompt`].
    pub async fn infill_prompt(
        &self,
        version: Option<&ModelVersionId>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        self.has_tokens("suffix")?.infill_prompt(version, prefix, suffix).await
    }

    /// See [`Tokens::token_pieces`].
    pub async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError> {
        self.has_tokens("model")?.token_pieces(version, left, tokens).await
    }

    /// See [`Tokens::chat_prompt`].
    pub async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError> {
        self.has_tokens("messages")?.chat_prompt(version, messages).await
    }

    /// See [`Tokens::conversation_prompt`].
    pub async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        self.has_tokens(conversation.asks_for().unwrap_or("messages"))?.conversation_prompt(version, conversation).await
    }

    /// See [`RewardScorer::reward_scores`].
    pub async fn reward_scores(
        &self,
        version: &ModelVersion,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError> {
        let scorer = self.rewards().ok_or_else(|| unsupported("model", "this server runs no reward models"))?;
        scorer.reward_scores(version, prompt, answers).await
    }

    /// See [`SoftPrompts::load_soft_prompt`].
    pub async fn load_soft_prompt(&self, soft_prompt: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError> {
        let soft = self.soft_prompts();
        let soft = soft.ok_or_else(|| unsupported("prompt_adapter", "this server's models take no soft prompts"))?;
        soft.load_soft_prompt(soft_prompt, base).await
    }

    fn has_encoders(&self, encoder: &ModelVersion) -> Result<&dyn EncoderModels, EngineError> {
        self.encoders()
            .ok_or_else(|| unsupported("model", format!("this server cannot run the encoder {}", encoder.name)))
    }

    /// See [`EncoderModels::embed`].
    pub async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError> {
        self.has_encoders(encoder)?.embed(encoder, request).await
    }

    /// See [`EncoderModels::fill`].
    pub async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<FillResult>, EngineError> {
        self.has_encoders(encoder)?.fill(encoder, request).await
    }

    /// See [`Inspection::attention`].
    pub async fn attention(
        &self,
        version: &ModelVersion,
        text: &str,
        max_tokens: usize,
    ) -> Result<Attention, EngineError> {
        let inspection = self.inspection();
        let none = || unsupported("model", format!("this server cannot look into {}", version.name));
        inspection.ok_or_else(none)?.attention(version, text, max_tokens).await
    }
}
