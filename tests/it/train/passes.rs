//! Forward passes that compute less than all rows, or nothing that sampling has computed already, give what the whole
//! pass gives.

use candle_core::{Device, Tensor};
use instructd::generation::{GenParams, Warpers, generate, generate_conversations};
use instructd::model::{PackedBatch, Recompute, SampledActivations};
use instructd::objective::causal_lm;
use instructd::train::args::{FrozenPrecision, LoraArgs};
use instructd::train::optim::Grads;
use instructd::train::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use instructd::train::trainable::Trainable;

use super::gradients::{MODELS, largest, stirred, stirred_over};

fn gradients(policy: &Trainable, picked: &PredictionBatch, hidden: &Tensor) -> Grads {
    let logprobs = picked.logprobs(policy.decoder(), hidden, 1.0).unwrap().logprobs;
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &causal_lm::loss(&logprobs, 10.0).unwrap().0).unwrap();
    sum.grads
}

#[test]
fn selected_rows_equal_those_of_the_full_pass() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    let sequences = [
        Sequence::new(&[5, 6, 7, 8], &[9, 2]),
        Sequence::new(&[11], &[12, 13, 14, 15, 2]),
        Sequence::new(&[3, 4, 5, 6, 7, 8, 9, 10], &[11]),
    ];
    let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    let rows = Tensor::new(picked.rows.as_slice(), &Device::Cpu).unwrap();
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let policy = stirred(model, lora, Recompute::None);
            let whole = policy.decoder().forward(&picked.batch).unwrap().index_select(&rows, 0).unwrap();
            let wanted = picked.hidden(policy.decoder()).unwrap();
            let frozen = picked.hidden_frozen(policy.decoder()).unwrap();
            let graph =
                policy.behaviour().unwrap().forward_graph(&picked.batch).unwrap().index_select(&rows, 0).unwrap();
            assert!(largest(&(&wanted - &whole).unwrap()) == 0.0, "{model}: another value than in the whole pass");
            assert!(largest(&(&wanted - &frozen).unwrap()) == 0.0, "{model}: another value with a gradient");
            assert!(largest(&(&wanted - &graph).unwrap()) < 1e-5 * largest(&graph), "{model}: not the graph's");
            let (whole, wanted) = (gradients(&policy, &picked, &whole), gradients(&policy, &picked, &wanted));
            assert_eq!(whole.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
            for (name, expected) in &whole {
                let difference = largest(&(&wanted[name] - expected).unwrap());
                assert!(difference <= 1e-5 * largest(expected) + 1e-7, "{model} {name}: {difference}");
            }
        }
    }
}

/// The first update of a round goes on from the activations of sampling: sequences of several lengths, some of which
/// end early and so have other rows in the update's batch than in sampling.
#[test]
fn activations_of_sampling_equal_the_first_pass_bit_for_bit() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    let prompts: Vec<Vec<u32>> = vec![vec![3, 4, 5], vec![6], vec![7, 8, 9, 10, 11, 12], vec![13, 14]];
    for model in MODELS {
        for (lora, precision) in
            [(None, FrozenPrecision::F32), (Some(&lora), FrozenPrecision::F32), (Some(&lora), FrozenPrecision::Bf16)]
        {
            let policy = stirred_over(model, lora, Recompute::None, precision);
            for ends in [0, 3] {
                let params = GenParams {
                    max_new_tokens: 9,
                    warpers: Warpers { temperature: 1.0, ..Warpers::default() },
                    // With 3, a third of all tokens end a sequence.
                    eos_ids: (0..1000).filter(|id| ends > 0 && id % ends == 1).collect(),
                    seed: 5,
                    // Fewer than there are prompts: later ones join while others are under way.
                    max_batch: 3,
                    ..GenParams::default()
                };
                let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
                let mut activations =
                    SampledActivations::new(policy.decoder(), &lengths, params.max_new_tokens).unwrap();
                let behaviour = policy.behaviour().unwrap();
                let samples =
                    generate_conversations(&behaviour, &prompts, &params, None, Some(&mut activations), &|| false);
                let samples: Vec<_> = samples.unwrap().into_iter().flatten().collect();
                assert_eq!(samples, generate(&behaviour, &prompts, &params, &|| false).unwrap(), "{model}");
                let early = samples.iter().filter(|s| s.ids.len() < 9).count();
                assert!(if ends == 0 { early == 0 } else { early > 0 }, "{model}: {early} ended early");

                let pair = |(p, s): (&Vec<u32>, &instructd::generation::Sample)| Sequence::new(p, &s.ids);
                let sequences: Vec<Sequence> = prompts.iter().zip(&samples).map(pair).collect();
                let order = micro_batches(&sequences.iter().map(|s| s.ids.len()).collect::<Vec<_>>(), 1000).remove(0);
                let picked = PredictionBatch::new(&order.iter().map(|&i| &sequences[i]).collect::<Vec<_>>());
                let made =
                    policy.decoder().forward_sampled(&picked.batch, &picked.lengths, activations, &order).unwrap();
                let anew = picked.hidden(policy.decoder()).unwrap();
                assert!(largest(&(&made - &anew).unwrap()) == 0.0, "{model}: other states");
                let (made, anew) = (gradients(&policy, &picked, &made), gradients(&policy, &picked, &anew));
                assert_eq!(made.keys().collect::<Vec<_>>(), anew.keys().collect::<Vec<_>>());
                for (name, grad) in &anew {
                    assert!(largest(&(grad - &made[name]).unwrap()) == 0.0, "{model} {name}: another gradient");
                    assert!(largest(grad) > 0.0, "{model} {name}: no gradient");
                }
            }
        }
    }
}

#[test]
fn nothing_is_saved_for_a_pass_that_saves_less() {
    for recompute in [Recompute::Mlp, Recompute::Block] {
        assert!(SampledActivations::new(stirred("llama-tiny", None, recompute).decoder(), &[3], 4).is_none());
    }
    let policy = stirred("llama-tiny", None, Recompute::None);
    assert!(SampledActivations::new(policy.decoder(), &[3], 4).is_some());
    // All rows wanted is the whole pass.
    let batch = PackedBatch::new(&[vec![1u32, 2, 3]]);
    let all = policy.decoder().forward_last(&batch, &[3]).unwrap();
    assert!(largest(&(&all - policy.decoder().forward(&batch).unwrap()).unwrap()) == 0.0);
}
