//! An encoder with its tokenizer: texts to pooled embeddings, and mask positions to distributions over the vocabulary.

use candle_core::{Device, Result};

use crate::model::{Encoder, Loaded, PackedBatch, Purpose, Sentence};
use crate::tokenizer::{EncoderToken, Tokenizer, TokenizerError};

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens, `[CLS]` and `[SEP]` included, as sentence-transformers does.
    #[default]
    Mean,
    /// The hidden state of the first token.
    Cls,
    /// The maximum of each channel.
    Max,
    /// The sum over all tokens, divided by the square root of their number.
    MeanSqrtLen,
    /// The mean weighted by the token's index i (from 1).
    WeightedMean,
    /// The hidden state of the last token.
    LastToken,
}

impl Pooling {
    /// `rows` [tokens, d] → [d].
    fn pool(self, rows: &[f32], d: usize) -> Vec<f32> {
        let n = rows.len() / d;
        match self {
            Self::Cls => rows[..d].to_vec(),
            Self::LastToken => rows[(n - 1) * d..].to_vec(),
            Self::Mean => mean(rows, d),
            Self::MeanSqrtLen => mean(rows, d).into_iter().map(|v| (f64::from(v) * (n as f64).sqrt()) as f32).collect(),
            Self::Max => rows
                .chunks_exact(d)
                .fold(vec![f32::NEG_INFINITY; d], |most, row| most.iter().zip(row).map(|(a, b)| a.max(*b)).collect()),
            Self::WeightedMean => {
                let mut sums = vec![0f64; d];
                for (i, row) in rows.chunks_exact(d).enumerate() {
                    sums.iter_mut().zip(row).for_each(|(s, v)| *s += (i + 1) as f64 * f64::from(*v));
                }
                let weight = (n * (n + 1) / 2) as f64;
                sums.into_iter().map(|s| (s / weight) as f32).collect()
            }
        }
    }
}

/// Most tokens of one forward pass, unless one text has more.
pub const BATCH_TOKENS: usize = 4096;

/// Token ids, and the positions of the mask tokens among them.
pub type GappedIds = (Vec<u32>, Vec<usize>);

/// An encoder model for forward passes.
pub struct TextEncoder {
    encoder: Encoder,
    tokenizer: Option<Tokenizer>,
    mask_id: Option<u32>,
    mask_text: String,
    /// Settings from the model's directory.
    sentence: Sentence,
}

impl TextEncoder {
    /// # Errors
    /// When the model is not an encoder.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        Ok(Self::over(Encoder::new(&loaded.config, &loaded.weights, Purpose::Serve)?, loaded))
    }

    /// An encoder that is there already, for instance on a device, with the tokenizer and the settings of `loaded`.
    pub fn over(encoder: Encoder, loaded: &Loaded) -> Self {
        let tokenizer = loaded.tokenizer.clone();
        let named = tokenizer.as_ref().and_then(|t| t.role_token(EncoderToken::Mask).map(str::to_owned));
        let mask_text = named.unwrap_or_else(|| "[MASK]".to_owned());
        let mask_id = tokenizer.as_ref().and_then(|t| t.token_to_id(&mask_text));
        let sentence = loaded.sentence.clone();
        Self { encoder, tokenizer, mask_id, mask_text, sentence }
    }

    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The id of the mask token, if the vocabulary has one.
    pub fn mask_id(&self) -> Option<u32> {
        self.mask_id
    }

    /// The text of the mask token, such as `[MASK]`.
    pub fn mask_text(&self) -> &str {
        &self.mask_text
    }

    /// Ids of a text with `[CLS]` and `[SEP]` around it; `None` without a tokenizer.
    pub fn ids(&self, text: &str) -> Option<std::result::Result<Vec<u32>, TokenizerError>> {
        let lower = self.sentence.lowercase.then(|| text.to_lowercase());
        self.tokenizer.as_ref().map(|t| t.encode(lower.as_deref().unwrap_or(text), true, false))
    }

    /// Ids of a text with a mask token between its pieces, and the positions of the mask tokens. Pieces never become
    /// special tokens. `None` without a tokenizer or a mask token.
    pub fn with_gaps(&self, pieces: &[&str]) -> Option<std::result::Result<GappedIds, TokenizerError>> {
        let (tokenizer, mask) = (self.tokenizer.as_ref()?, self.mask_id?);
        let build = || {
            // The tokens around any text: [CLS] and [SEP].
            let frame = tokenizer.encode("", true, false)?;
            let (mut ids, mut gaps) = (frame[..frame.len().min(1)].to_vec(), Vec::new());
            for (i, piece) in pieces.iter().enumerate() {
                if i > 0 {
                    gaps.push(ids.len());
                    ids.push(mask);
                }
                ids.extend(tokenizer.encode_after(&ids, piece)?);
            }
            ids.extend_from_slice(&frame[frame.len().min(1)..]);
            Ok((ids, gaps))
        };
        Some(build())
    }

    /// Length of the longest text that is embedded, in tokens.
    pub fn max_tokens(&self) -> usize {
        let most = self.encoder.config.max_positions;
        self.sentence.max_tokens.map_or(most, |n| n.min(most))
    }

    /// One vector for each sequence (at least one token each), of length 1 if `normalize`. `pooling` `None`: as the
    /// model's directory specifies, else the mean; several poolings of a directory are concatenated.
    pub fn embed(&self, sequences: &[Vec<u32>], pooling: Option<Pooling>, normalize: bool) -> Result<Vec<Vec<f32>>> {
        let poolings = match pooling {
            Some(one) => vec![one],
            None if self.sentence.pooling.is_empty() => vec![Pooling::Mean],
            None => self.sentence.pooling.clone(),
        };
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
                let mut vector: Vec<f32> = poolings.iter().flat_map(|pooling| pooling.pool(rows, d)).collect();
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

    /// Natural log-probabilities `[positions][vocab]` of the token at each position of one sequence.
    ///
    /// # Errors
    /// When the weights have no masked-LM head.
    pub fn fill(&self, ids: &[u32], type_ids: &[u32], positions: &[usize]) -> Result<Vec<Vec<f32>>> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<u32> = positions.iter().map(|p| *p as u32).collect();
        let picked = self.encoder.forward_at(&PackedBatch::new(&[ids]), type_ids, &rows)?;
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
