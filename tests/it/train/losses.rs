//! Every loss of the group-based and preference recipes reaches every variable: a finite gradient that is not zero,
//! with all parameters and through adapters, and the same whether the sequences go through together or one by one.

use candle_core::{Device, Result, Tensor};
use instructd::model::Recompute;
use instructd::objective::grpo::{RatioLevel, Settings, Surrogate, Targets};
use instructd::objective::logprobs::{per_token, sequence_sums_tensor};
use instructd::objective::{dpo, entropy, grpo, kto, orpo, simpo};
use instructd::train::args::LoraArgs;
use instructd::train::optim::{Grads, global_norm};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence};
use instructd::train::trainable::Trainable;

use super::gradients::{largest, stirred};

/// Chosen and rejected alternate.
fn sequences() -> Vec<Sequence> {
    vec![
        Sequence::new(&[5, 6, 7], &[8, 9, 2]),
        Sequence::new(&[5, 6, 7], &[12, 13, 14, 15, 2]),
        Sequence::new(&[11], &[30, 31, 2]),
        Sequence::new(&[11], &[3]),
    ]
}

const ADVANTAGES: [f64; 4] = [0.9, -0.7, 0.4, -0.6];

fn column(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(candle_core::DType::F32).unwrap()
}

/// The loss of the sequences from number `from` on.
type Loss = Box<dyn Fn(&Trainable, &PredictionBatch, usize) -> Result<Tensor>>;

fn group(level: RatioLevel, surrogate: Surrogate, entropy_coef: f64) -> Loss {
    Box::new(move |policy: &Trainable, picked: &PredictionBatch, from| {
        let hidden = picked.hidden(policy.decoder())?;
        let both = picked.logprobs_and_entropy(policy.decoder(), &hidden, 0.9)?;
        let advantages = column(&per_token(&ADVANTAGES[from..from + picked.lengths.len()], &picked.lengths));
        let old = (both.logprobs.detach() + 0.05)?;
        let reference = (both.logprobs.detach() - 0.1)?;
        let weights = both.logprobs.detach().ones_like()?;
        let targets = Targets {
            old: &old,
            reference: &reference,
            advantages: &advantages,
            weights: &weights,
            lengths: &picked.lengths,
        };
        let settings = Settings { clip_low: 0.2, clip_high: 0.28, level, surrogate, beta: 0.04 };
        let loss = grpo::loss(&both.logprobs, &targets, &settings, 12.0)?.0;
        loss + (entropy::loss(&both.entropy, &weights, 12.0)?.0 * entropy_coef)?
    })
}

/// Of pairs: sums (or means) of the chosen and of the rejected.
fn pairs(mean: bool, loss: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'static) -> Loss {
    Box::new(move |policy: &Trainable, picked: &PredictionBatch, _| {
        let hidden = picked.hidden(policy.decoder())?;
        let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0)?.logprobs;
        let mut sums = sequence_sums_tensor(&logprobs, &picked.lengths)?;
        if mean {
            sums = (sums * column(&picked.lengths.iter().map(|n| 1.0 / *n as f64).collect::<Vec<_>>()))?;
        }
        let pick = |first: u32| -> Result<Tensor> {
            let rows: Vec<u32> = (0..picked.lengths.len() as u32 / 2).map(|i| 2 * i + first).collect();
            sums.index_select(&Tensor::new(rows, sums.device())?, 0)
        };
        let weights = column(&vec![1.0; picked.lengths.len() / 2]);
        loss(&pick(0)?, &pick(1)?, &weights)
    })
}

fn preference(kind: dpo::DpoLoss, label_smoothing: f64) -> Loss {
    pairs(false, move |chosen, rejected, weights| {
        let (ref_chosen, ref_rejected) = ((chosen.detach() - 0.5)?, (rejected.detach() + 0.2)?);
        let logps = dpo::Logps {
            policy_chosen: chosen,
            policy_rejected: rejected,
            ref_chosen: &ref_chosen,
            ref_rejected: &ref_rejected,
        };
        Ok(dpo::loss(&logps, weights, &dpo::Settings { kind, beta: 0.1, label_smoothing }, 2.0)?.0)
    })
}

fn losses() -> Vec<(&'static str, Loss)> {
    let simpo = simpo::Settings { beta: 2.0, gamma: 1.0, label_smoothing: 0.1 };
    let kto = kto::Settings { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.5 };
    let thumbs: Loss = Box::new(move |policy: &Trainable, picked: &PredictionBatch, _| {
        let hidden = picked.hidden(policy.decoder())?;
        let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0)?.logprobs;
        let sums = sequence_sums_tensor(&logprobs, &picked.lengths)?;
        let liked: Vec<bool> = (0..picked.lengths.len()).map(|i| i % 2 == 0).collect();
        Ok(kto::loss(&sums, &(sums.detach() - 0.3)?, &liked, 0.1, &kto, 4.0)?.0)
    });
    vec![
        ("grpo", group(RatioLevel::Token, Surrogate::Clip, 0.0)),
        ("gspo", group(RatioLevel::Sequence, Surrogate::Clip, 0.0)),
        ("cispo", group(RatioLevel::Token, Surrogate::Cispo, 0.0)),
        ("entropy", group(RatioLevel::Token, Surrogate::Clip, 0.5)),
        ("cdpo", preference(dpo::DpoLoss::Sigmoid, 0.1)),
        ("robust", preference(dpo::DpoLoss::Robust, 0.1)),
        ("simpo", pairs(true, move |c, r, w| Ok(simpo::loss(c, r, w, &simpo, 2.0)?.0))),
        ("orpo", pairs(true, |c, r, w| Ok(orpo::loss(c, r, w, 0.1, 2.0)?.0))),
        ("kto", thumbs),
    ]
}

fn gradients(policy: &Trainable, loss: &Loss, parts: &[&[Sequence]]) -> Grads {
    let (mut sum, mut from) = (Accumulator::default(), 0);
    for part in parts {
        let picked = PredictionBatch::new(&part.iter().collect::<Vec<_>>());
        sum.add(&policy.params, &loss(policy, &picked, from).unwrap()).unwrap();
        from += part.len();
    }
    sum.grads
}

#[test]
fn every_loss_reaches_every_variable_and_parts_add_up() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    let all = sequences();
    for model in ["llama-tied-tiny", "llama-tiny", "gpt2-tiny"] {
        for lora in [None, Some(&lora)] {
            let policy = stirred(model, lora, Recompute::None);
            for (name, loss) in losses() {
                let whole = gradients(&policy, &loss, &[&all]);
                assert_eq!(whole.len(), policy.params.len(), "{model} {name}: some variables got no gradient at all");
                let most = global_norm(&whole).unwrap();
                let parts = gradients(&policy, &loss, &[&all[..2], &all[2..]]);
                for (variable, grad) in &whole {
                    let norm = global_norm(&Grads::from([(variable.clone(), grad.clone())])).unwrap();
                    assert!(norm > 0.0, "{model} {name}: the gradient of {variable} is zero");
                    let difference = largest(&(grad - &parts[variable]).unwrap());
                    assert!(f64::from(difference) <= 1e-5 * most, "{model} {name} {variable}: {difference} of {most}");
                }
            }
        }
    }
}
