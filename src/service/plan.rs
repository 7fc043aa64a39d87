//! Resources that a model of given sizes needs: memory to serve and to train it, upper bounds of its speed, number of
//! accelerators. Arithmetic only; kernels do not reach the bounds.

use serde::{Deserialize, Serialize};

use crate::model::{ModelConfig, families, presets, quantized};

/// How numbers are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    #[default]
    Bf16,
    /// Blocks of 32 with one f16 scale: 34 bytes.
    Q8_0,
    /// Blocks of 32 with one f16 scale: 18 bytes.
    Q4_0,
}

impl Dtype {
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Q8_0, Self::Q4_0];

    pub fn bytes(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 => 2.0,
            Self::Q8_0 => 34.0 / 32.0,
            Self::Q4_0 => 18.0 / 32.0,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str() == text)
    }
}

/// The machine and the work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PlanArgs {
    /// Memory bandwidth of one device, GB/s (10⁹ bytes).
    pub bandwidth_gb_s: f64,
    /// Matrix arithmetic of one device, TFLOP/s.
    pub tflops: f64,
    /// Memory of one device, GiB.
    pub memory_gib: f64,
    /// Usable share of the memory.
    pub usable: f64,
    /// Tokens in each sequence; 0 = the model's context.
    pub context: usize,
    /// Sequences served together, or trained on in one micro-batch.
    pub batch: usize,
    /// Rank of the adapters on every matrix of the blocks.
    pub lora_rank: usize,
}

impl Default for PlanArgs {
    /// One NVIDIA H100 SXM (80 GB, 3.35 TB/s, 989 TFLOP/s in bf16).
    fn default() -> Self {
        Self {
            bandwidth_gb_s: 3350.0,
            tflops: 989.0,
            memory_gib: 80.0,
            usable: 0.9,
            context: 0,
            batch: 1,
            lora_rank: 8,
        }
    }
}

/// Serving with the weights in one type; the cache is in 16 bits, or in 32 with f32 weights.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct ServePlan {
    pub dtype: Dtype,
    pub weights_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// `batch` sequences of `context` tokens, of which windowed layers keep their window.
    pub kv_bytes: u64,
    pub total_bytes: u64,
    pub devices: u64,
    /// Tokens per second of one device that holds it all: the weights and the cache read once per step …
    pub bandwidth_bound: f64,
    /// … and the arithmetic.
    pub compute_bound: f64,
    pub tokens_per_second: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct TrainPlan {
    /// `full_f32`, `full_mixed`, `lora_bf16`, …
    pub kind: String,
    pub trained_parameters: u64,
    /// Weights, and where they are trained a master copy.
    pub weights_bytes: u64,
    pub gradients_bytes: u64,
    /// Adam's two moments.
    pub optimizer_bytes: u64,
    /// An estimate: 34 bytes per token, channel and layer in 16 bits (arXiv 2205.05198, without the
    /// attention maps, which fused kernels never write), twice that in f32.
    pub activations_bytes: u64,
    pub total_bytes: u64,
    pub devices: u64,
    pub tokens_per_second: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Plan {
    pub parameters: u64,
    /// Matrices that a token passes through: they determine the arithmetic.
    pub matrix_parameters: u64,
    pub lora_parameters: u64,
    pub context: usize,
    pub batch: usize,
    /// Forward pass of one token at the end of a full context.
    pub flops_per_token: f64,
    pub serve: Vec<ServePlan>,
    pub train: Vec<TrainPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PlanError {
    pub field: &'static str,
    pub message: String,
}

impl PlanArgs {
    fn check(&self, config: &ModelConfig) -> Result<(), PlanError> {
        let bad = |field, message: String| Err(PlanError { field, message });
        for (field, value) in
            [("bandwidth_gb_s", self.bandwidth_gb_s), ("tflops", self.tflops), ("memory_gib", self.memory_gib)]
        {
            if !(value > 0.0 && value <= 1e9) {
                return bad(field, "must be over 0".into());
            }
        }
        if !(self.usable > 0.0 && self.usable <= 1.0) {
            return bad("usable", "must be over 0, to 1".into());
        }
        if self.context > config.max_positions {
            return bad("context", format!("the model's context is {}", config.max_positions));
        }
        if !(1..=1_000_000).contains(&self.batch) {
            return bad("batch", "must be 1 to 1000000".into());
        }
        if !(1..=4096).contains(&self.lora_rank) {
            return bad("lora_rank", "must be 1 to 4096".into());
        }
        Ok(())
    }

    fn devices(&self, bytes: f64) -> u64 {
        (bytes / (self.memory_gib * f64::from(1u32 << 30) * self.usable)).ceil().max(1.0) as u64
    }
}

/// # Errors
/// Names the argument that is out of range.
pub fn plan(config: &ModelConfig, args: &PlanArgs) -> Result<Plan, PlanError> {
    args.check(config)?;
    let layers = config.n_layers as u64;
    let context = if args.context == 0 { config.max_positions } else { args.context };
    let matrices: Vec<(u64, u64)> =
        families::block_matrices(config).into_iter().map(|(out, input)| (out as u64, input as u64)).collect();
    let parameters = presets::parameters(config);
    let head = if config.is_encoder() { 0 } else { (config.vocab_size * config.hidden_size) as u64 };
    let matrix_parameters = layers * matrices.iter().map(|(o, i)| o * i).sum::<u64>() + head;
    let lora_parameters = layers * matrices.iter().map(|(o, i)| args.lora_rank as u64 * (o + i)).sum::<u64>();
    // A multiplication and an addition per weight; scores and their mixture per key.
    let attention = 4.0 * (config.n_layers * config.n_heads * config.head_dim) as f64;
    let flops_per_token = 2.0 * matrix_parameters as f64 + attention * context as f64;
    let sizes = Sizes { config, args, context, parameters, matrix_parameters, lora_parameters, attention };
    let serve = Dtype::ALL.map(|dtype| sizes.serve(dtype, flops_per_token)).to_vec();
    let train = vec![
        sizes.train("full_f32", None, Dtype::F32),
        sizes.train("full_mixed", None, Dtype::Bf16),
        sizes.train("lora_f32", Some(4.0), Dtype::F32),
        sizes.train("lora_bf16", Some(2.0), Dtype::Bf16),
        sizes.train("lora_q8_0", Some(quantized::Q8_0_BYTES), Dtype::F32),
        sizes.train("lora_q4", Some(quantized::Q4_BYTES), Dtype::F32),
    ];
    Ok(Plan {
        parameters,
        matrix_parameters,
        lora_parameters,
        context,
        batch: args.batch,
        flops_per_token,
        serve,
        train,
    })
}

struct Sizes<'a> {
    config: &'a ModelConfig,
    args: &'a PlanArgs,
    context: usize,
    parameters: u64,
    matrix_parameters: u64,
    lora_parameters: u64,
    /// Arithmetic of attention per token and key, all layers.
    attention: f64,
}

impl Sizes<'_> {
    fn serve(&self, dtype: Dtype, flops_per_token: f64) -> ServePlan {
        let c = self.config;
        let kv_type = if dtype == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        // Encoders keep no cache.
        let per_layer = match c.is_encoder() {
            true => 0.0,
            false => (2 * c.n_kv_heads * c.head_dim) as f64 * kv_type.bytes(),
        };
        let per_token = per_layer * c.n_layers as f64;
        let batch = self.args.batch as f64;
        let weights = self.parameters as f64 * dtype.bytes();
        // Windowed layers keep their window.
        let seen = |i: usize| c.layer(i).window.map_or(self.context, |window| window.min(self.context)) as f64;
        let kv = per_layer * (0..c.n_layers).map(seen).sum::<f64>() * batch;
        let total = weights + kv;
        // Of the embedding only the rows of the tokens are read, unless it is also the output matrix.
        let read = self.matrix_parameters as f64 * dtype.bytes() + kv;
        let bandwidth_bound = batch * self.args.bandwidth_gb_s * 1e9 / read;
        let compute_bound = self.args.tflops * 1e12 / flops_per_token;
        ServePlan {
            dtype,
            weights_bytes: weights as u64,
            kv_bytes_per_token: per_token as u64,
            kv_bytes: kv as u64,
            total_bytes: total as u64,
            devices: self.args.devices(total),
            bandwidth_bound,
            compute_bound,
            tokens_per_second: bandwidth_bound.min(compute_bound),
        }
    }

    /// `frozen`: bytes of a frozen weight of the blocks under adapters; `None` = all weights are trained. Other tensors
    /// than the blocks' matrices take at least 2 bytes (bf16), and 4 (f32) when the blocks have fewer bits.
    fn train(&self, kind: &str, frozen: Option<f64>, compute: Dtype) -> TrainPlan {
        let trained = if frozen.is_some() { self.lora_parameters } else { self.parameters } as f64;
        // Trained in 16 bits, a master copy in f32 takes the updates.
        let own = if compute == Dtype::F32 { 4.0 } else { 2.0 + 4.0 };
        let blocks = presets::block_parameters(self.config) as f64;
        let rest = (self.parameters as f64 - blocks) * compute.bytes();
        let weights = frozen.map_or(0.0, |bytes| blocks * bytes + rest) + trained * own;
        let gradients = trained * compute.bytes();
        let optimizer = trained * 8.0;
        let tokens = self.args.batch as f64 * self.context as f64;
        let width = (self.config.n_layers * self.config.hidden_size) as f64;
        let activations = tokens * width * 34.0 * compute.bytes() / 2.0;
        let total = weights + gradients + optimizer + activations;
        // Backward: once more for the inputs, and once more for the weights where they are trained.
        let passes = if frozen.is_some() { 2.0 } else { 3.0 };
        let mean_keys = if self.config.is_encoder() { 1.0 } else { 0.5 } * self.context as f64;
        let flops = passes * 2.0 * self.matrix_parameters as f64 + 3.0 * self.attention * mean_keys;
        TrainPlan {
            kind: kind.to_owned(),
            trained_parameters: trained as u64,
            weights_bytes: weights as u64,
            gradients_bytes: gradients as u64,
            optimizer_bytes: optimizer as u64,
            activations_bytes: activations as u64,
            total_bytes: total as u64,
            devices: self.args.devices(total),
            tokens_per_second: self.args.tflops * 1e12 / flops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, args: PlanArgs) -> Plan {
        plan(&presets::find(name).expect("a preset").config, &args).expect("a plan")
    }

    #[test]
    fn gpt3_needs_what_is_known_of_it() {
        let plan = of("gpt3-175b", PlanArgs::default());
        // 2 · 96 layers · 12288 channels · 2 bytes = 4.5 MiB a token; 349 GB in 16 bits; 16 bytes a parameter.
        let bf16 = &plan.serve[1];
        assert_eq!((bf16.dtype, bf16.kv_bytes_per_token), (Dtype::Bf16, 4_718_592));
        assert_eq!(bf16.weights_bytes, 2 * plan.parameters);
        assert_eq!(bf16.devices, 5);
        let full = &plan.train[1];
        assert_eq!(full.weights_bytes + full.gradients_bytes + full.optimizer_bytes, 16 * plan.parameters);
        // The paper's table D.1: 2 flops per parameter and token forward, 6 with the backward pass.
        assert!((plan.flops_per_token / (2.0 * 174.6e9) - 1.0).abs() < 0.04, "{}", plan.flops_per_token);
        assert!((full.tokens_per_second * 6.0 * 174.6e9 / 989e12 - 1.0).abs() < 0.03);
        // Rank 8 with frozen 16-bit weights: the weights dominate.
        let lora = plan.train.iter().find(|t| t.kind == "lora_bf16").unwrap();
        assert_eq!(lora.trained_parameters, 96 * 8 * (4 + 2 + 5 + 5) * 12_288);
        assert!(lora.total_bytes < full.total_bytes / 5);
        let q4 = plan.train.iter().find(|t| t.kind == "lora_q4").unwrap();
        assert!(q4.weights_bytes < lora.weights_bytes / 3 + 4 * 2 * 50_257 * 12_288, "{q4:?}");
    }

    #[test]
    fn a_small_model_is_bound_by_memory_alone_and_by_arithmetic_in_a_batch() {
        // Two cores: 20 GB/s, 0.1 TFLOP/s.
        let args = PlanArgs { bandwidth_gb_s: 20.0, tflops: 0.1, context: 256, ..PlanArgs::default() };
        let alone = &of("smollm2-135m", args).serve[0];
        assert_eq!(alone.kv_bytes_per_token, 2 * 30 * 3 * 64 * 4);
        assert!(alone.tokens_per_second == alone.bandwidth_bound && alone.bandwidth_bound < alone.compute_bound);
        assert!((alone.bandwidth_bound - 20e9 / (134.5e6 * 4.0 + 256.0 * 46_080.0)).abs() < 0.5);
        let many = &of("smollm2-135m", PlanArgs { batch: 64, ..args }).serve[0];
        assert!(many.tokens_per_second == many.compute_bound);
    }

    #[test]
    fn senseless_arguments_are_named() {
        let config = presets::find("gpt2").unwrap().config;
        for (field, args) in [
            ("tflops", PlanArgs { tflops: 0.0, ..PlanArgs::default() }),
            ("memory_gib", PlanArgs { memory_gib: f64::NAN, ..PlanArgs::default() }),
            ("usable", PlanArgs { usable: 1.5, ..PlanArgs::default() }),
            ("context", PlanArgs { context: 1025, ..PlanArgs::default() }),
            ("batch", PlanArgs { batch: 0, ..PlanArgs::default() }),
            ("lora_rank", PlanArgs { lora_rank: 0, ..PlanArgs::default() }),
        ] {
            assert_eq!(plan(&config, &args).unwrap_err().field, field);
        }
    }
}
