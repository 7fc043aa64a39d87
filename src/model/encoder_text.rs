//! An encoder with its tokenizer: texts to pooled embeddings, and gaps to distributions over the vocabulary.

use candle_core::{Device, Result, Tensor};

use super::{Encoder, Loaded, PackedBatch, Purpose};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over all tokens, [CLS] and [SEP] included, as sentence-transformers does.
    #[default]
    Mean,
    /// The hidden state of the first token.
    Cls,
}

/// Tokens of one forward pass.
const BATCH_TOKENS: usize = 4096;

/// Token ids, and the positions of the gaps among them.
pub type GappedIds = (Vec<u32>, Vec<usize>);

/// Frozen: forward passes only.
pub struct TextEncoder {
    encoder: Encoder,
    tokenizer: Option<Tokenizer>,
    mask_id: Option<u32>,
    mask_text: String,
}

impl TextEncoder {
    /// # Errors
    /// When the model is no encoder.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        let encoder = Encoder::new(&loaded.config, &loaded.weights, Purpose::Serve)?;
        let tokenizer = loaded.tokenizer.clone();
        let named = tokenizer.as_ref().and_then(|t| t.named_token("mask_token").map(str::to_owned));
        let mask_text = named.unwrap_or_else(|| "[MASK]".to_owned());
        let mask_id = tokenizer.as_ref().and_then(|t| t.token_to_id(&mask_text));
        Ok(Self { encoder, tokenizer, mask_id, mask_text })
    }

    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The token that stands for a gap, if the vocabulary has one.
    pub fn mask_id(&self) -> Option<u32> {
        self.mask_id
    }

    /// How the gap is written in texts, such as `[MASK]`.
    pub fn mask_text(&self) -> &str {
        &self.mask_text
    }

    /// Ids of a text with [CLS] and [SEP] around it; `None` without a tokenizer.
    pub fn ids(&self, text: &str) -> Option<std::result::Result<Vec<u32>, TokenizerError>> {
        self.tokenizer.as_ref().map(|t| t.encode(text, true, false))
    }

    /// Ids of a text with gaps between its pieces, and where the gaps are. Pieces never become special
    /// tokens. `None` without a tokenizer or a mask token.
    pub fn with_gaps(&self, pieces: &[&str]) -> Option<std::result::Result<GappedIds, TokenizerError>> {
        let (tokenizer, mask) = (self.tokenizer.as_ref()?, self.mask_id?);
        let build = || {
            // What stands around any text: [CLS] and [SEP].
            let frame = tokenizer.encode("", true, false)?;
            let (mut ids, mut gaps) = (frame[..frame.len().min(1)].to_vec(), Vec::new());
            for (i, piece) in pieces.iter().enumerate() {
                if i > 0 {
                    gaps.push(ids.len());
                    ids.push(mask);
                }
                ids.extend(tokenizer.encode(piece, false, false)?);
            }
            ids.extend_from_slice(&frame[frame.len().min(1)..]);
            Ok((ids, gaps))
        };
        Some(build())
    }

    /// One vector [hidden] for each sequence (at least one token each), of length 1 if `normalize`.
    pub fn embed(&self, sequences: &[Vec<u32>], pooling: Pooling, normalize: bool) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|s| {
                tokens += s.len();
                tokens <= BATCH_TOKENS
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            let batch = PackedBatch::new(now);
            let hidden = self.encoder.forward(&batch, &vec![0; batch.len()])?;
            let d = self.encoder.config.hidden_size;
            let hidden = hidden.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            for bounds in batch.offsets.windows(2) {
                let rows = &hidden[bounds[0] * d..bounds[1] * d];
                let mut vector = match pooling {
                    Pooling::Cls => rows[..d].to_vec(),
                    Pooling::Mean => mean(rows, d),
                };
                if normalize {
                    let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                    vector.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
                }
                vectors.push(vector);
            }
            rest = later;
        }
        Ok(vectors)
    }

    /// Natural log-probabilities [positions][vocab] of the token at each position of one sequence.
    ///
    /// # Errors
    /// When the weights have no masked-LM head.
    pub fn fill(&self, ids: &[u32], type_ids: &[u32], positions: &[usize]) -> Result<Vec<Vec<f32>>> {
        let hidden = self.encoder.forward(&PackedBatch::new(&[ids]), type_ids)?;
        let rows: Vec<u32> = positions.iter().map(|p| *p as u32).collect();
        let picked = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
        let logits = self.encoder.mlm_logits(&picked)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        let log_softmax = |row: Vec<f32>| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total = row.iter().map(|v| f64::from(v - most).exp()).sum::<f64>().ln();
            row.iter().map(|v| (f64::from(v - most) - total) as f32).collect()
        };
        Ok(logits.into_iter().map(log_softmax).collect())
    }
}

fn mean(rows: &[f32], d: usize) -> Vec<f32> {
    let mut sums = vec![0f64; d];
    for row in rows.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
    }
    let n = (rows.len() / d) as f64;
    sums.into_iter().map(|s| (s / n) as f32).collect()
}
