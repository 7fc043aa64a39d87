//! The table of token embeddings [vocab, d], in memory or in the model's file.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::Purpose;
use crate::model::layers::{Builder, Parameters};
use crate::model::load::rows::StoredRows;
use crate::ops::embedding::{self, embedding_with_padding};
use crate::ops::{read, with_f32s};

/// The token embeddings of a decoder, [vocab, d].
#[derive(Clone, Debug)]
pub(in crate::model) enum EmbeddingTable {
    Tensor(Tensor),
    /// Rows that are read from the model's file when they are needed. As f32 in memory, the table of a small model is
    /// larger than its file.
    Stored(Arc<StoredRows>),
}

impl EmbeddingTable {
    /// The table `name` of `(vocab, d)`.
    ///
    /// # Errors
    /// When there is no such tensor, or it has another shape.
    pub fn new(b: &Builder<'_>, name: &str, (vocab, d): (usize, usize)) -> Result<Self> {
        if let (Parameters::Files(files), Purpose::Serve | Purpose::ServeAs(_)) = (b.parameters, b.purpose)
            && let Some(rows) = files.rows(name).map_err(candle_core::Error::wrap)?.filter(|r| r.shape() == (vocab, d))
        {
            return Ok(Self::Stored(Arc::new(rows)));
        }
        b.tensor(name, &[vocab, d]).map(Self::Tensor)
    }

    /// Passes all rows to `take`, as parts of at most `values` numbers but at least one row.
    ///
    /// # Errors
    /// Those of `take`; when the table is elsewhere, or its file cannot be read any more.
    pub fn parts(&self, values: usize, take: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        match self {
            Self::Tensor(table) => {
                with_f32s(&table.detach().contiguous()?, |all| all.chunks(values).try_for_each(take))
            }
            Self::Stored(rows) => rows.parts(values, take),
        }
    }

    /// The table in memory; `None` where it stays in the file.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(table) => Some(table),
            Self::Stored(_) => None,
        }
    }

    /// Checks that every id has a row.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = match self {
            Self::Tensor(table) => table.dim(0)?,
            Self::Stored(rows) => rows.shape().0,
        };
        embedding::check(vocab, ids)
    }

    /// Writes the rows `ids` to `y`, `[ids.len(), d]`; the table must be f32 on the CPU.
    ///
    /// # Errors
    /// When the table is elsewhere, or its file cannot be read any more.
    pub fn gather(&self, ids: &[u32], d: usize, y: &mut [f32]) -> Result<()> {
        match self {
            Self::Tensor(table) => embedding::gather(&read(table)?, ids, d, y),
            Self::Stored(rows) => rows.gather(ids, y)?,
        }
        Ok(())
    }

    /// The rows `ids` as a tensor `[ids.len(), d]`; the row `padding` gets no gradient.
    ///
    /// # Errors
    /// When an id has no row, or the file of the table cannot be read any more.
    pub fn rows(&self, ids: &Arc<Vec<u32>>, padding: Option<u32>) -> Result<Tensor> {
        match self {
            Self::Tensor(table) => embedding_with_padding(table, ids, padding),
            Self::Stored(rows) => {
                let mut y = vec![0f32; ids.len() * rows.shape().1];
                rows.gather(ids, &mut y)?;
                crate::ops::tensor(y, (ids.len(), rows.shape().1))
            }
        }
    }
}
