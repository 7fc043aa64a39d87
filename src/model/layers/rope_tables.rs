//! Tables of rotary positions from a configuration, with every kind of scaling, in the arithmetic of transformers: f32
//! frequencies, f64 where Python computes.

use std::sync::Arc;

use crate::model::config::RopeScaling;
use crate::model::{ModelConfig, PositionKind};
use crate::ops::rope::{RopeTable, frequencies};

/// The tables of full and of windowed layers; `None` without rotary positions.
pub(in crate::model) fn tables(config: &ModelConfig) -> [Option<Arc<RopeTable>>; 2] {
    let PositionKind::Rope { theta } = config.position else { return [None, None] };
    let full = Arc::new(table(config, theta, &config.switches.rope_scaling));
    let local = match &config.switches.local_rope {
        Some(own) => Arc::new(table(config, own.theta, &own.scaling)),
        None => full.clone(),
    };
    [Some(full), Some(local)]
}

/// Sequences longer than this use the second half of the tables, which follows the rows of all positions.
pub(in crate::model) fn long_from(config: &ModelConfig) -> Option<usize> {
    match &config.switches.rope_scaling {
        RopeScaling::Long { original, .. } if *original < config.max_positions => Some(*original),
        _ => None,
    }
}

fn table(config: &ModelConfig, theta: f64, scaling: &RopeScaling) -> RopeTable {
    let (head_dim, dim, n) = (config.head_dim, config.rotary_dim(), config.max_positions);
    let plain = frequencies(theta, dim);
    let of = |list: Vec<f32>, scale: f64| {
        let row_frequencies = move |row: usize, to: &mut Vec<f32>| {
            to.extend_from_slice(&list);
            row
        };
        RopeTable::with_frequencies(head_dim, dim.div_ceil(2), n, scale as f32, Box::new(row_frequencies))
    };
    match scaling {
        RopeScaling::None => of(plain, 1.0),
        RopeScaling::Linear { factor } => of(plain.iter().map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Dynamic { factor, trained } => {
            let (factor, trained) = (*factor, *trained);
            let length_frequencies = move |length: usize, to: &mut Vec<f32>| {
                let growth = factor * length as f64 / trained as f64 - (factor - 1.0);
                to.extend(frequencies(theta * growth.powf(dim as f64 / (dim as f64 - 2.0)), dim));
            };
            of(plain, 1.0).with_length_frequencies(Box::new(length_frequencies))
        }
        RopeScaling::Llama3 { factor, low, high, original } => {
            let one = |f: f32| llama3(f, *factor as f32, *low as f32, *high as f32, *original);
            of(plain.into_iter().map(one).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, fast, slow, original, attention, truncate } => {
            let list = yarn(theta, dim, *factor, [*fast, *slow], *original, *truncate);
            of(list, *attention)
        }
        RopeScaling::Long { short, long, original, attention } => {
            let divided = |by: &[f64]| -> Vec<f32> {
                let power = |i: usize| (theta as f32).powf((2 * i) as f32 / dim as f32);
                by.iter().enumerate().map(|(i, f)| 1.0 / (*f as f32 * power(i))).collect()
            };
            let (short, long) = (divided(short), divided(long));
            let rows = if *original < n { 2 * n } else { n };
            let row_frequencies = move |row: usize, to: &mut Vec<f32>| {
                to.extend_from_slice(if row < n { &short } else { &long });
                row % n
            };
            RopeTable::with_frequencies(head_dim, dim.div_ceil(2), rows, *attention as f32, Box::new(row_frequencies))
        }
    }
}

fn llama3(f: f32, factor: f32, low: f32, high: f32, original: usize) -> f32 {
    let original = original as f32;
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / f;
    if wavelength > original / low {
        f / factor
    } else if wavelength < original / high {
        f
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

fn yarn(theta: f64, dim: usize, factor: f64, [fast, slow]: [f64; 2], original: usize, truncate: bool) -> Vec<f32> {
    let correction = |rotations: f64| {
        dim as f64 * (original as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (correction(fast), correction(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min((dim - 1) as f64));
    if low == high {
        high += 0.001;
    }
    (0..dim.div_ceil(2))
        .map(|i| {
            let power = (theta as f32).powf((2 * i) as f32 / dim as f32);
            let (kept, divided) = (1.0 / power, 1.0 / (factor as f32 * power));
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            divided * (1.0 - keep) + kept * keep
        })
        .collect()
}
