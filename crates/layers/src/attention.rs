//! Attention through libtorch's fused kernels.

use tch::Tensor;

/// What is attended to, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions {
    /// Share of the probabilities that are dropped; 0 in evaluation.
    pub dropout: f64,
    /// Each query sees the keys up to its own position only.
    pub causal: bool,
    /// Multiplies q·k. None: 1/√d.
    pub scale: Option<f64>,
}

/// softmax(scale · q kᵀ + mask) v, fused: the N × M scores are never stored whole.
///
/// q `[B, H, N, d]`, k `[B, H, M, d]` and v `[B, H, M, e]` give `[B, H, N, e]`. `mask` broadcasts to `[B, H, N, M]`: bool, true where
/// a key is seen, or float, added to the scores. It excludes `causal`.
///
/// # Panics
/// The shapes do not fit.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    options: AttentionOptions,
) -> Tensor {
    let AttentionOptions { dropout, causal, scale } = options;
    Tensor::scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale, false)
}

/// `[B, N, H·d]` as `[B, H, N, d]`, a view.
///
/// # Panics
/// The heads do not divide the width.
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    x.unflatten(-1, [heads, -1]).transpose(1, 2)
}

/// The inverse of [`split_heads`]: `[B, H, N, d]` as `[B, N, H·d]`.
///
/// # Panics
/// Not four axes.
pub fn merge_heads(x: &Tensor) -> Tensor {
    x.transpose(1, 2).flatten(-2, -1)
}
