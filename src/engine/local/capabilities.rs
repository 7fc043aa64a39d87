//! The capabilities of the local engine: token ids, rewards, soft prompts, encoders, attention maps. Work that takes
//! more than a millisecond runs on blocking threads.

use std::sync::Arc;

use async_trait::async_trait;

use super::{INLINE_BYTES, LocalEngine};
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
        let model = self.find(version)?;
        if text.len() <= INLINE_BYTES {
            return model.encode(text, form);
        }
        let text = text.to_owned();
        match form {
            TextForm::Whole { special, parse_special } => {
                self.tokenizing.run(move |_| model.encode(&text, TextForm::Whole { special, parse_special })).await
            }
            TextForm::Open { special, parse_special } => {
                self.tokenizing.run(move |_| model.encode(&text, TextForm::Open { special, parse_special })).await
            }
            TextForm::After(left) => {
                let left = left.to_owned();
                self.tokenizing.run(move |_| model.encode(&text, TextForm::After(&left))).await
            }
        }
    }

    async fn infill_prompt(
        &self,
        version: Option<&ModelVersionId>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        let model = self.find(version)?;
        if prefix.len() + suffix.len() <= INLINE_BYTES {
            return model.infill_prompt(prefix, suffix);
        }
        let (prefix, suffix) = (prefix.to_owned(), suffix.to_owned());
        self.tokenizing.run(move |_| model.infill_prompt(&prefix, &suffix)).await
    }

    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        let model = self.find(version)?;
        let decode = move |ids: &[u32]| {
            let decoded = model.tokenizer()?.decode(ids, false);
            decoded.map_err(|e| EngineError::BadRequest { param: "tokens", message: e.to_string() })
        };
        if ids.len() <= INLINE_BYTES / 4 {
            return decode(ids);
        }
        let ids = ids.to_owned();
        self.tokenizing.run(move |_| decode(&ids)).await
    }

    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError> {
        let model = self.find(version)?;
        let mut context = left.to_vec();
        let one = |token: &TokenLogprob| {
            // A model without a tokenizer still answers log-prob requests; the text of a token is then its id.
            let piece = |id: u32| match &model.tokenizer {
                Some(tokenizer) => tokenizer.piece(&context, id),
                None => Piece::of(id.to_string()),
            };
            let listed = std::iter::once(token.id).chain(token.top.iter().map(|(id, _)| *id)).map(piece).collect();
            context.push(token.id);
            listed
        };
        Ok(tokens.iter().map(one).collect())
    }

    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError> {
        let model = self.find(version)?;
        let render = move |messages: &[Message]| {
            let bad = |message: String| EngineError::BadRequest { param: "messages", message };
            model.template()?.encode(messages, true, model.tokenizer()?).map_err(|e| bad(e.to_string()))
        };
        // Many short messages take long to render, too: each counts as at least 256 bytes.
        if messages.iter().map(|m| m.content.len() + 256).sum::<usize>() <= INLINE_BYTES {
            return render(messages);
        }
        let messages = messages.to_owned();
        self.tokenizing.run(move |_| render(&messages)).await
    }

    async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        let model = self.find(version)?;
        if conversation.bytes() + 256 * conversation.turns.len() <= INLINE_BYTES {
            return model.conversation(conversation);
        }
        let conversation = conversation.clone();
        self.tokenizing.run(move |_| model.conversation(&conversation)).await
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
                .with(version, &self.files, move |encoder, _| attention::of_encoder(encoder, &text, max_tokens))
                .await;
        }
        let model = self.find(Some(&version.id))?;
        if model.lora.is_some() {
            let message = format!(
                "{} is served as a LoRA adapter; attention maps need a version with weights of its own: set engine.share_base = false",
                version.name
            );
            return Err(EngineError::BadRequest { param: "model", message });
        }
        self.inspecting.run(move |_| attention::of_decoder(&model.decoder, model.tokenizer()?, &text, max_tokens)).await
    }
}
