//! (model, ids, parameters, random stream) → ids and log-probs. Shared by serving and by RL rollouts, so
//! that the log-probs a policy sampled with are the ones its update starts from.

pub mod rollout;
pub mod sampling;
pub mod score;
pub mod stepper;

pub use rollout::{GenParams, Sample, generate, generate_recorded};
pub use sampling::{Drawn, Warpers};
