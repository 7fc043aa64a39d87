//! Sequences of any length, concatenated without padding: the batch format of every forward pass.

/// `ids[offsets[i]..offsets[i + 1]]` is sequence i; its positions start at 0.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PackedBatch {
    pub ids: Vec<u32>,
    /// Position of each token inside its sequence.
    pub positions: Vec<u32>,
    /// `n_sequences + 1` ascending offsets, the first 0, the last `ids.len()`.
    pub offsets: Vec<usize>,
}

impl PackedBatch {
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut batch = Self { offsets: vec![0], ..Self::default() };
        for sequence in sequences {
            let sequence = sequence.as_ref();
            batch.ids.extend_from_slice(sequence);
            batch.positions.extend(0..sequence.len() as u32);
            batch.offsets.push(batch.ids.len());
        }
        batch
    }

    /// The batches of at most `tokens` tokens, in texts of at most `longest` tokens, that need the most memory: of the longest
    /// texts, and of the most texts. All ids are 0.
    pub(in crate::model) fn largest(tokens: usize, longest: usize) -> [Self; 2] {
        let ids = vec![0; tokens];
        let of = |length: usize| Self::new(&ids.chunks(length.max(1)).collect::<Vec<_>>());
        [of(tokens.min(longest)), of(1)]
    }

    /// Total number of tokens N.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn n_sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Row of the first token of each sequence.
    pub fn first_rows(&self) -> Vec<u32> {
        self.offsets[..self.n_sequences()].iter().map(|start| *start as u32).collect()
    }

    /// Row of the last token of each sequence.
    pub fn last_rows(&self) -> Vec<u32> {
        self.offsets[1..].iter().map(|end| (end - 1) as u32).collect()
    }
}
