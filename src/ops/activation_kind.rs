//! The activation functions.

/// The activation function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// 0.5x(1 + erf(x/√2)).
    GeluErf,
    /// The tanh approximation, `gelu_new` in transformers.
    GeluTanh,
    /// max(x, 0).
    Relu,
}
