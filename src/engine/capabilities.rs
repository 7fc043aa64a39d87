//! What a generator can do beside writing text. An upstream server, for instance, writes text and knows no token ids.
//! Callers use the methods of `dyn Generator`, such as `tokenize` and `embed`, which refuse the request with the reason
//! where the generator lacks the capability.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Attention, ChatPrompt, EmbedRequest, Embeddings, EngineError, FillRequest, Filled, Generator, Piece, ServedModel,
    TextForm, TokenLogprob,
};
use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use crate::prompt::Conversation;
use crate::prompt::answer::Dialect;

/// Text ↔ token ids of the served models; `None` as the version is the active one.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Text → ids. User text never becomes a special token unless the form says so.
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError>;

    /// Ids → text.
    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError>;

    /// The prompt of a gap between two texts, for models whose vocabulary has tokens for that.
    ///
    /// # Errors
    /// `BadRequest` at `suffix` for others.
    async fn gap_prompt(
        &self,
        version: Option<&ModelVersionId>,
        before: &str,
        behind: &str,
    ) -> Result<Vec<u32>, EngineError> {
        let (_, _, _) = (version, before, behind);
        let message = "suffix is not supported for this model: it has no tokens for gaps".into();
        Err(EngineError::BadRequest { param: "suffix", message })
    }

    /// For each token that and its alternatives, in this order, as they stand behind `left` and the tokens before.
    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError>;

    /// Renders with the model's chat template, generation prompt added, and tokenizes.
    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError>;

    /// As `chat_prompt`, of a conversation with tools and variables for the template.
    ///
    /// # Errors
    /// `BadRequest` at `tools`, `reasoning_effort`, `chat_template_kwargs` or `messages`: what this model's template
    /// does not take.
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
    /// Scores answers to one prompt: the mean of the version's heads, and their standard deviation as a measure of doubt.
    async fn reward_scores(
        &self,
        version: &ModelVersion,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError>;
}

/// Soft prompts before the prompt of a request.
#[async_trait]
pub trait SoftPrompts: Send + Sync {
    /// Makes a soft prompt ready for requests to `base`; returns how many positions it takes.
    ///
    /// # Errors
    /// `BadRequest` when it was tuned for another model.
    async fn load_adapter(&self, adapter: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError>;
}

/// Encoder versions.
#[async_trait]
pub trait EncoderModels: Send + Sync {
    /// Vectors of texts.
    async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError>;
    /// What the encoder puts into gaps.
    async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<Filled>, EngineError>;
}

/// Looking into a model.
#[async_trait]
pub trait Inspection: Send + Sync {
    /// The attention maps of a policy or an encoder version over one text of at most `most` tokens.
    async fn attention(&self, version: &ModelVersion, text: &str, most: usize) -> Result<Attention, EngineError>;
}

fn lacks(param: &'static str, message: impl Into<String>) -> EngineError {
    EngineError::BadRequest { param, message: message.into() }
}

/// The capabilities of whatever generator is served; each refuses where the generator lacks it.
impl dyn Generator {
    fn has_tokens(&self, param: &'static str) -> Result<&dyn Tokens, EngineError> {
        self.tokens()
            .ok_or_else(|| lacks(param, "this model is served by an upstream server: its token ids are not known here"))
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

    /// See [`Tokens::gap_prompt`].
    pub async fn gap_prompt(
        &self,
        version: Option<&ModelVersionId>,
        before: &str,
        behind: &str,
    ) -> Result<Vec<u32>, EngineError> {
        self.has_tokens("suffix")?.gap_prompt(version, before, behind).await
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
        let scorer = self.rewards().ok_or_else(|| lacks("model", "this server runs no reward models"))?;
        scorer.reward_scores(version, prompt, answers).await
    }

    /// See [`SoftPrompts::load_adapter`].
    pub async fn load_adapter(&self, adapter: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError> {
        let soft = self.soft_prompts();
        let soft = soft.ok_or_else(|| lacks("prompt_adapter", "this server's models take no soft prompts"))?;
        soft.load_adapter(adapter, base).await
    }

    fn has_encoders(&self, encoder: &ModelVersion) -> Result<&dyn EncoderModels, EngineError> {
        self.encoders().ok_or_else(|| lacks("model", format!("this server cannot run the encoder {}", encoder.name)))
    }

    /// See [`EncoderModels::embed`].
    pub async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError> {
        self.has_encoders(encoder)?.embed(encoder, request).await
    }

    /// See [`EncoderModels::fill`].
    pub async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<Filled>, EngineError> {
        self.has_encoders(encoder)?.fill(encoder, request).await
    }

    /// See [`Inspection::attention`].
    pub async fn attention(&self, version: &ModelVersion, text: &str, most: usize) -> Result<Attention, EngineError> {
        let inspection = self.inspection();
        let none = || lacks("model", format!("this server cannot look into {}", version.name));
        inspection.ok_or_else(none)?.attention(version, text, most).await
    }
}
