//! The value function: a linear head on the policy's hidden states, or on those of a separate model. V_t is computed
//! from the hidden state before token t, as the log-prob of token t is.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};

use crate::model::heads::reward::{self, SCORE, below, headless};
use crate::model::{Decoder, Loaded};
use crate::train::args::Common;
use crate::train::on_device::RunDevice;
use crate::train::optim::Params;
use crate::train::run::Run;
use crate::train::step::PredictionBatch;
use crate::train::trainable::{Trainable, with_prefix};

/// A value function under training.
pub struct Critic {
    /// `None` if the head is on the policy's trunk.
    model: Option<Trainable>,
    weight: Var,
    bias: Var,
}

impl Critic {
    /// A head on the policy's trunk, initialised with zeros, so that it does not affect the policy at first.
    pub fn shared(hidden_size: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            model: None,
            weight: Var::zeros((1, hidden_size), DType::F32, device)?,
            bias: Var::zeros(1, DType::F32, device)?,
        })
    }

    /// A separate model. If it starts from a reward model (as in InstructGPT), its head starts from the reward head
    /// with the model's gain and bias; otherwise from zeros.
    pub fn separate(source: &Loaded, common: &Common) -> Result<Self> {
        let common = Common { seed: common.seed.wrapping_add(1), ..common.clone() };
        let model =
            Trainable::<Decoder>::for_run(&headless(&source.config), below(&source.config, &source.weights), &common)?;
        let mut critic = Self::shared(source.config.hidden_size, &model.device())?;
        if source.weights.contains_key(SCORE) {
            // The score is a linear function of the heads, so one row represents it.
            let (rows, scoring) = reward::head(source)?;
            let (gains, bias) = scoring.linear();
            let gains: Vec<f32> = gains.into_iter().map(|gain| gain as f32).collect();
            let gains = Tensor::new(gains, rows.device())?.unsqueeze(1)?;
            critic.weight.set(&rows.broadcast_mul(&gains)?.sum_keepdim(0)?)?;
            critic.bias.set(&Tensor::new(&[bias as f32], &model.device())?)?;
        }
        critic.model = Some(model);
        Ok(critic)
    }

    /// Lets the device of the run train a separate model. The head, a vector, stays on the host.
    ///
    /// # Errors
    /// Those of [`RunDevice::train`].
    pub fn attach(&mut self, device: &RunDevice, run: &mut Run<'_>) -> Result<()> {
        self.model.as_mut().map_or(Ok(()), |model| device.train(run, model, "critic."))
    }

    /// Its variables, named `critic.…`.
    pub fn params(&self) -> Params {
        let head = [
            ("critic.head.weight".to_owned(), self.weight.clone()),
            ("critic.head.bias".to_owned(), self.bias.clone()),
        ];
        let model = self.model.iter().flat_map(|m| with_prefix("critic.", &m.params));
        model.chain(head).collect()
    }

    /// Whether it is a head on the policy's trunk.
    pub fn is_shared(&self) -> bool {
        self.model.is_none()
    }

    /// Values `[n]` at the predicting rows, with a gradient. A critic on the policy's trunk uses `policy_hidden`, the
    /// policy's states there.
    pub fn values(&self, packed: &PredictionBatch, policy_hidden: Option<&Tensor>) -> Result<Tensor> {
        match (&self.model, policy_hidden) {
            (None, Some(hidden)) => head(hidden, self.weight.as_tensor(), self.bias.as_tensor()),
            (None, None) => anyhow::bail!("a critic on the policy's trunk needs the policy's states"),
            (Some(_), _) => self.own_values(packed),
        }
    }

    /// Values `[n]` at the predicting rows, with a gradient, of a critic with a separate model.
    pub fn own_values(&self, packed: &PredictionBatch) -> Result<Tensor> {
        let Some(model) = &self.model else {
            anyhow::bail!("a critic on the policy's trunk needs the policy's states")
        };
        head(&packed.hidden(model.decoder())?, self.weight.as_tensor(), self.bias.as_tensor())
    }

    /// Values `[n]` at the predicting rows, without a gradient. A critic on the policy's trunk uses `policy_hidden`.
    pub fn numbers(&self, packed: &PredictionBatch, policy_hidden: Option<&Tensor>) -> Result<Vec<f64>> {
        let (weight, bias) = (self.weight.as_detached_tensor(), self.bias.as_detached_tensor());
        let values = match (&self.model, policy_hidden) {
            (None, Some(hidden)) => head(&hidden.detach(), &weight, &bias)?,
            (None, None) => anyhow::bail!("a critic on the policy's trunk needs the policy's states"),
            (Some(model), _) => head(&packed.hidden_frozen(model.decoder())?, &weight, &bias)?,
        };
        Ok(values.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    }
}

fn head(hidden: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(hidden.matmul(&weight.t()?)?.squeeze(1)?.broadcast_add(bias)?)
}
