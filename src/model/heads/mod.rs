//! Heads on a backbone: classifiers and reward models, and the backbone that both use.

pub mod classifier;
pub mod reward;
pub mod trunk;

use serde_json::Value;

use crate::model::Loaded;

/// A classifier or reward model that was trained by another program, and reads its texts as in transformers.
pub struct Foreign {
    /// The padding token of a decoder.
    padding: Option<u32>,
}

impl Foreign {
    pub fn of(loaded: &Loaded) -> Self {
        let id = loaded.hf_config.get("pad_token_id").and_then(Value::as_u64).filter(|_| !loaded.config.is_encoder());
        Self { padding: id.and_then(|id| u32::try_from(id).ok()) }
    }

    /// Cuts the padding tokens at the end of a sequence, of which `least` ids stay: the head of a decoder reads the last
    /// token that is not padding.
    pub fn cut_padding(&self, ids: &mut Vec<u32>, least: usize) {
        let Some(padding) = self.padding else { return };
        let kept = ids.iter().rposition(|id| *id != padding).map_or(0, |last| last + 1);
        ids.truncate(kept.max(least));
    }
}
