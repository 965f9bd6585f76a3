//! Muse's attention and feed-forward: pre-norm, without biases.

use layers::{AttentionOptions, Linear, attention, merge_heads, split_heads};
use tch::nn::Init;
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

/// Scores are q·k times this, of normalised q and k.
const SCALE: f64 = 8.0;

/// Layer norm with a scale and no shift. Variables: `gamma`.
#[derive(Debug)]
pub(super) struct ScaleNorm {
    gamma: Tensor,
}

impl ScaleNorm {
    pub(super) fn new(path: &nn::Path, width: i64) -> Self {
        Self { gamma: path.ones("gamma", &[width]) }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.gamma.size(), Some(&self.gamma), None::<&Tensor>, 1e-5, true)
    }
}

/// Attention with normalised queries and keys, and one learnt key and value that every query sees: what is left where all
/// text is masked.
///
/// Variables: `norm.gamma`, `null_kv` `[2, H, 1, d]`, `q_scale` and `k_scale` `[d]`, `to_q`, `to_kv` (keys first), `to_out`.
#[derive(Debug)]
pub struct MuseAttention {
    norm: ScaleNorm,
    null_kv: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: i64,
}

impl MuseAttention {
    /// Of width `dim`, with so many heads of width `dim_head`.
    ///
    /// # Errors
    /// A size below 1.
    pub fn new(path: &nn::Path, dim: i64, heads: i64, dim_head: i64) -> Result<Self> {
        for (field, value) in [("dim", dim), ("heads", heads), ("dim_head", dim_head)] {
            if !(1..=1 << 20).contains(&value) {
                return Err(Error::config(field, value, "1 to 2^20"));
            }
        }
        let inner = heads * dim_head;
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        Ok(Self {
            norm: ScaleNorm::new(&(path / "norm"), dim),
            null_kv: path.var("null_kv", &[2, heads, 1, dim_head], normal),
            q_scale: path.ones("q_scale", &[dim_head]),
            k_scale: path.ones("k_scale", &[dim_head]),
            to_q: Linear::new(&(path / "to_q"), dim, inner, false),
            to_kv: Linear::new(&(path / "to_kv"), dim, 2 * inner, false),
            to_out: Linear::new(&(path / "to_out"), inner, dim, false),
            heads,
        })
    }

    /// `[B, N, D]` to the same shape, without the residual. It attends to itself, or to a context `[B, M, D]` with a mask,
    /// bool `[B, M]`, true where a row is seen.
    ///
    /// # Panics
    /// Another width.
    pub fn forward(&self, x: &Tensor, context: Option<(&Tensor, &Tensor)>) -> Tensor {
        let x = self.norm.forward(x);
        let q = split_heads(&self.to_q.forward(&x), self.heads);
        let kv = self.to_kv.forward(context.map_or(&x, |(context, _)| context)).chunk(2, -1);
        let batch = x.size()[0];
        let with_null = |index: i64, x: &Tensor| {
            let null = self.null_kv.get(index).unsqueeze(0);
            let size = null.size();
            let null = null.expand([batch, size[1], size[2], size[3]], false);
            Tensor::cat(&[null, split_heads(x, self.heads)], 2)
        };
        let (k, v) = (with_null(0, &kv[0]), with_null(1, &kv[1]));
        let q = normalize(&q) * &self.q_scale;
        let k = normalize(&k) * &self.k_scale;
        let mask = context.map(|(_, mask)| {
            let null = mask.narrow(1, 0, 1).ones_like();
            Tensor::cat(&[null, mask.shallow_clone()], 1).unsqueeze(1).unsqueeze(1)
        });
        let options = AttentionOptions { scale: Some(SCALE), ..Default::default() };
        self.to_out.forward(&merge_heads(&attention(&q, &k, &v, mask.as_ref(), options)))
    }
}

/// x / |x| over the last axis; 0 stays 0, as keys of padding are, and its gradient is finite.
fn normalize(x: &Tensor) -> Tensor {
    let squares = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
    x / squares.clamp_min(1e-24).sqrt()
}

/// Gated feed-forward with a norm inside. Variables: `norm.gamma`, `up`, `inner_norm.gamma`, `down`.
#[derive(Debug)]
pub struct FeedForward {
    norm: ScaleNorm,
    up: Linear,
    inner_norm: ScaleNorm,
    down: Linear,
}

impl FeedForward {
    /// Of width `dim`, ⌊dim · mult · 2/3⌋ inside.
    ///
    /// # Errors
    /// A width below 1.
    pub fn new(path: &nn::Path, dim: i64, mult: f64) -> Result<Self> {
        let inner = (dim as f64 * mult * 2.0 / 3.0) as i64;
        if dim < 1 || !(1..=1 << 24).contains(&inner) {
            return Err(Error::config("ff_mult", mult, "a number that leaves at least one channel inside"));
        }
        Ok(Self {
            norm: ScaleNorm::new(&(path / "norm"), dim),
            up: Linear::new(&(path / "up"), dim, 2 * inner, false),
            inner_norm: ScaleNorm::new(&(path / "inner_norm"), inner),
            down: Linear::new(&(path / "down"), inner, dim, false),
        })
    }

    /// `[..., D]` to the same shape, without the residual.
    ///
    /// # Panics
    /// Another width.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let halves = self.up.forward(&self.norm.forward(x)).chunk(2, -1);
        // The gelu is on the first half, which the reference does not call the gate.
        let gated = &halves[1] * halves[0].gelu("none");
        self.down.forward(&self.inner_norm.forward(&gated))
    }
}
