//! Figures of a trained classifier on labelled texts.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::data::labelled;
use crate::model::heads::classifier::Classifier;
use crate::statistics::interval::wilson;

/// Tokens per forward pass.
const BATCH_TOKENS: usize = 2048;

/// Figures over labelled texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classified {
    pub texts: usize,
    pub accuracy: f64,
    /// 95 % Wilson interval of the accuracy.
    pub interval: [f64; 2],
    /// Mean of the F1 of every label.
    pub macro_f1: f64,
    /// Mean −log p of the right label.
    pub loss: f64,
}

/// Classifies every text of a file. `limit` takes the first ones only.
///
/// # Errors
/// A file that cannot be read, a label that the classifier does not have.
pub fn run(
    classifier: &Classifier,
    labelled: &Path,
    text_field: &str,
    label_field: &str,
    limit: Option<usize>,
) -> Result<Classified> {
    let mut rows = labelled::read(labelled, text_field, label_field)?;
    rows.truncate(limit.unwrap_or(usize::MAX).max(1));
    let mut right = Vec::new();
    for row in &rows {
        match classifier.labels.iter().position(|label| *label == row.label) {
            Some(class) => right.push(class),
            None => bail!("the classifier has no label {:?}; it has {}", row.label, classifier.labels.join(", ")),
        }
    }
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let logprobs = classifier.classify(&texts, BATCH_TOKENS)?;
    let best = |row: &Vec<f32>| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let predicted: Vec<usize> =
        logprobs.iter().map(best).collect::<Option<_>>().context("a classifier without labels")?;
    let n = rows.len() as f64;
    let hits = predicted.iter().zip(&right).filter(|(a, b)| a == b).count();
    let (low, high) = wilson(hits, rows.len());
    let loss = logprobs.iter().zip(&right).map(|(row, class)| -f64::from(row[*class])).sum::<f64>() / n;
    let macro_f1 = macro_f1(&predicted, &right, classifier.labels.len());
    Ok(Classified { texts: rows.len(), accuracy: hits as f64 / n, interval: [low, high], macro_f1, loss })
}

/// Mean F1 over the classes, from the predicted and the true class of every text. Classes that do not occur are
/// ignored.
pub fn macro_f1(predicted: &[usize], right: &[usize], classes: usize) -> f64 {
    let (mut sum, mut present) = (0.0, 0.0);
    for class in 0..classes {
        let both = predicted.iter().zip(right).filter(|(s, r)| **s == class && **r == class).count() as f64;
        let named = predicted.iter().filter(|s| **s == class).count() as f64;
        let are = right.iter().filter(|r| **r == class).count() as f64;
        if named + are > 0.0 {
            sum += 2.0 * both / (named + are);
            present += 1.0;
        }
    }
    sum / present
}
