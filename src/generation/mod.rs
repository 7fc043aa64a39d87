//! Token generation and scoring: from a model, token ids, sampling parameters and a random stream to ids and log-probs.
//! Serving and RL rollouts share this module, so an update starts from the log-probs that the policy sampled with.

pub mod rollout;
pub mod sampling;
pub mod score;
pub mod stepper;

pub use rollout::{GenParams, LaterTurns, PREFILL_TOKENS, Sample, generate, generate_conversations};
pub use sampling::{Drawn, Warpers};
