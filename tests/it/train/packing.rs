//! Packing is exact: sequences that go through together see nothing of each other, and the loss and its gradients are
//! those of each alone, weighted by tokens, however the batch is divided.

use candle_core::Tensor;
use instructd::model::Recompute;
use instructd::objective::causal_lm;
use instructd::train::args::LoraArgs;
use instructd::train::optim::{Grads, global_norm};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use instructd::train::trainable::Trainable;

use super::gradients::{MODELS, largest, stirred};

fn sequences() -> Vec<Sequence> {
    vec![
        Sequence::new(&[5, 6, 7], &[8, 9, 2]),
        Sequence::new(&[11], &[12, 13, 14, 15, 16, 17, 18, 2]),
        Sequence::new(&[20, 21, 22, 23, 24, 25], &[2]),
        Sequence::new(&[40, 41], &[42, 43, 2]),
    ]
}

fn logprobs(policy: &Trainable, sequences: &[&Sequence]) -> (Tensor, Vec<usize>) {
    let picked = PredictionBatch::new(sequences);
    let hidden = picked.hidden(policy.decoder()).unwrap();
    (picked.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs, picked.lengths)
}

/// The summed loss and the gradients of the groups, normalised by the tokens of all of them.
fn pass(policy: &Trainable, groups: &[Vec<&Sequence>]) -> (f64, Grads) {
    let tokens: usize = groups.iter().flatten().map(|s| s.predicted()).sum();
    let (mut sum, mut total) = (Accumulator::default(), 0.0);
    for group in groups {
        let loss = causal_lm::loss(&logprobs(policy, group).0, tokens as f64).unwrap().0;
        total += f64::from(loss.to_scalar::<f32>().unwrap());
        sum.add(&policy.params, &loss).unwrap();
    }
    (total, sum.grads)
}

#[test]
fn packed_sequences_are_independent() {
    let all = sequences();
    for model in MODELS {
        let policy = stirred(model, None, Recompute::None);
        let (packed, lengths) = logprobs(&policy, &all.iter().collect::<Vec<_>>());
        let packed: Vec<f32> = packed.to_vec1().unwrap();
        let mut at = 0;
        for (sequence, length) in all.iter().zip(lengths) {
            let alone: Vec<f32> = logprobs(&policy, &[sequence]).0.to_vec1().unwrap();
            assert_eq!(packed[at..at + length], alone, "{model}: not the bits of the sequence alone");
            at += length;
        }
        // Another neighbour changes no bit of the others.
        let mut other = all.clone();
        other[1] = Sequence::new(&[90, 91, 92], &[3, 4]);
        let changed: Vec<f32> = logprobs(&policy, &other.iter().collect::<Vec<_>>()).0.to_vec1().unwrap();
        assert_eq!(changed[..3], packed[..3], "{model}");
        assert_eq!(changed[changed.len() - 4..], packed[packed.len() - 4..], "{model}");
    }
}

#[test]
fn packed_losses_and_gradients_are_those_of_each_sequence_alone() {
    let all = sequences();
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let policy = stirred(model, lora, Recompute::None);
            let packed = pass(&policy, &[all.iter().collect()]);
            let each: Vec<Vec<&Sequence>> = all.iter().map(|s| vec![s]).collect();
            let alone = pass(&policy, &each);
            let lengths: Vec<usize> = all.iter().map(|s| s.ids.len()).collect();
            let groups = micro_batches(&lengths, 13).into_iter();
            let groups: Vec<Vec<&Sequence>> = groups.map(|g| g.into_iter().map(|i| &all[i]).collect()).collect();
            let divided = pass(&policy, &groups);
            let most = global_norm(&packed.1).unwrap();
            for (name, (loss, grads)) in [("alone", &alone), ("in micro-batches", &divided)] {
                assert!((loss - packed.0).abs() <= 1e-6 * packed.0, "{model} {name}: {loss} is not {}", packed.0);
                for (variable, grad) in &packed.1 {
                    let difference = f64::from(largest(&(grad - &grads[variable]).unwrap()));
                    assert!(difference <= 2e-6 * most, "{model} {name} {variable}: {difference} of {most}");
                }
            }
        }
    }
}
