//! The capabilities of the local engine: token ids, rewards, soft prompts, encoders, attention maps. Work that takes
//! more than a millisecond runs on blocking threads.

use std::sync::Arc;

use async_trait::async_trait;

use super::LocalEngine;
use crate::domain::{Message, ModelKind};
use crate::engine::*;
use crate::engine::{attention, encoders};

#[async_trait]
impl Tokens for LocalEngine {
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError> {
        self.tokenizing.tokenize(&self.find(version)?.text, text, form).await
    }

    async fn infill_prompt(
        &self,
        version: Option<&ModelVersionId>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        self.tokenizing.infill_prompt(&self.find(version)?.text, prefix, suffix).await
    }

    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        self.tokenizing.detokenize(&self.find(version)?.text, ids).await
    }

    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError> {
        Ok(self.find(version)?.text.pieces(left, tokens))
    }

    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError> {
        self.tokenizing.chat(&self.find(version)?.text, messages).await
    }

    async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        self.tokenizing.conversation(&self.find(version)?.text, conversation).await
    }
}

#[async_trait]
impl RewardScorer for LocalEngine {
    async fn reward_scores(
        &self,
        version: &ModelVersion,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError> {
        self.rewards.score(version, &self.files, prompt, answers).await
    }
}

#[async_trait]
impl SoftPrompts for LocalEngine {
    async fn load_soft_prompt(&self, soft_prompt: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError> {
        self.soft_prompts.load(soft_prompt, &self.files, base).await
    }
}

#[async_trait]
impl EncoderModels for LocalEngine {
    async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError> {
        self.encoders.with(encoder, &self.files, move |encoder, cancel| encoders::embed(encoder, request, cancel)).await
    }

    async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<FillResult>, EngineError> {
        self.encoders.with(encoder, &self.files, move |encoder, _| encoders::fill(encoder, request)).await
    }
}

#[async_trait]
impl Inspection for LocalEngine {
    async fn attention(&self, version: &ModelVersion, text: &str, max_tokens: usize) -> Result<Attention, EngineError> {
        let text = text.to_owned();
        if version.kind == ModelKind::Encoder {
            return self
                .encoders
                .with_copy(version, &self.files, move |encoder, _| attention::of_encoder(encoder, &text, max_tokens))
                .await;
        }
        let model = self.find(Some(&version.id))?;
        if !model.base.as_ref().unwrap_or(&model).replicas.is_empty() {
            let message = format!("{} is on a GPU; attention maps are computed for models on the CPU", version.name);
            return Err(EngineError::BadRequest { param: "model", message });
        }
        if model.lora.is_some() {
            let message = format!(
                "{} is served as a LoRA adapter; attention maps need a version with weights of its own: set engine.share_base = false",
                version.name
            );
            return Err(EngineError::BadRequest { param: "model", message });
        }
        self.inspecting
            .run(move |_| attention::of_decoder(&model.decoder, model.text.tokenizer()?, &text, max_tokens))
            .await
    }
}
