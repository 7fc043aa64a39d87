//! What the local engine can do beside writing text: token ids, rewards, soft prompts, encoders, attention maps. What
//! takes more than a millisecond runs on threads for such work.

use std::sync::Arc;

use async_trait::async_trait;

use super::{LocalEngine, READ_HERE};
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
        if text.len() <= READ_HERE {
            return model.encode(text, form);
        }
        let text = text.to_owned();
        match form {
            TextForm::Whole { special, parse_special } => {
                self.texts.run(move |_| model.encode(&text, TextForm::Whole { special, parse_special })).await
            }
            TextForm::Open { special, parse_special } => {
                self.texts.run(move |_| model.encode(&text, TextForm::Open { special, parse_special })).await
            }
            TextForm::After(left) => {
                let left = left.to_owned();
                self.texts.run(move |_| model.encode(&text, TextForm::After(&left))).await
            }
        }
    }

    async fn gap_prompt(
        &self,
        version: Option<&ModelVersionId>,
        before: &str,
        behind: &str,
    ) -> Result<Vec<u32>, EngineError> {
        let model = self.find(version)?;
        if before.len() + behind.len() <= READ_HERE {
            return model.gap(before, behind);
        }
        let (before, behind) = (before.to_owned(), behind.to_owned());
        self.texts.run(move |_| model.gap(&before, &behind)).await
    }

    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        let model = self.find(version)?;
        let decode = move |ids: &[u32]| {
            let decoded = model.tokenizer()?.decode(ids, false);
            decoded.map_err(|e| EngineError::BadRequest { param: "tokens", message: e.to_string() })
        };
        if ids.len() <= READ_HERE / 4 {
            return decode(ids);
        }
        let ids = ids.to_owned();
        self.texts.run(move |_| decode(&ids)).await
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
            // Models without a tokenizer still answer log-prob requests: ids stand for themselves.
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
        // Templates of many messages take long, too.
        if messages.iter().map(|m| m.content.len() + 256).sum::<usize>() <= READ_HERE {
            return render(messages);
        }
        let messages = messages.to_owned();
        self.texts.run(move |_| render(&messages)).await
    }

    async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        let model = self.find(version)?;
        if conversation.bytes() + 256 * conversation.turns.len() <= READ_HERE {
            return model.conversation(conversation);
        }
        let conversation = conversation.clone();
        self.texts.run(move |_| model.conversation(&conversation)).await
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
    async fn load_adapter(&self, adapter: &ModelVersion, base: &ServedModel) -> Result<usize, EngineError> {
        self.adapters.load(adapter, &self.files, base).await
    }
}

#[async_trait]
impl EncoderModels for LocalEngine {
    async fn embed(&self, encoder: &ModelVersion, request: EmbedRequest) -> Result<Embeddings, EngineError> {
        self.encoders.with(encoder, &self.files, move |encoder, asker| encoders::embed(encoder, request, asker)).await
    }

    async fn fill(&self, encoder: &ModelVersion, request: FillRequest) -> Result<Vec<Filled>, EngineError> {
        self.encoders.with(encoder, &self.files, move |encoder, _| encoders::fill(encoder, request)).await
    }
}

#[async_trait]
impl Inspection for LocalEngine {
    async fn attention(&self, version: &ModelVersion, text: &str, most: usize) -> Result<Attention, EngineError> {
        let text = text.to_owned();
        if version.kind == ModelKind::Encoder {
            return self
                .encoders
                .with(version, &self.files, move |encoder, _| attention::of_encoder(encoder, &text, most))
                .await;
        }
        let model = self.find(Some(&version.id))?;
        if model.lora.is_some() {
            let message = format!("{} is served as an adapter; attention maps are made of whole models", version.name);
            return Err(EngineError::BadRequest { param: "model", message });
        }
        self.views.run(move |_| attention::of_decoder(&model.decoder, model.tokenizer()?, &text, most)).await
    }
}
