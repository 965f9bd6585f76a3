//! Attention with its projections, and the two layers made of it.

use layers::{AttentionOptions, KvCache, Linear, attention, merge_heads, split_heads};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::config::Activation;
use crate::position::Rotary;

/// Scores of what is not seen: a row that sees nothing attends to everything alike.
const UNSEEN: f64 = -1e30;

/// A mask that is added to scores, of one that is true where something is seen.
pub(crate) fn additive(mask: &Tensor) -> Tensor {
    mask.logical_not().to_kind(Kind::Float) * UNSEEN
}

/// A linear layer as haiku starts it: normal weights, cut at two standard deviations, of variance 1/inputs; biases 0.
pub(crate) fn linear(path: &nn::Path, inputs: i64, outputs: i64) -> Linear {
    // The deviation that the cut leaves of 1.
    let cut = 0.879_625_66;
    Linear::truncated_normal(path, inputs, outputs, true, 1.0 / (inputs as f64).sqrt() / cut)
}

pub(crate) fn layer_norm(path: nn::Path, width: i64) -> nn::LayerNorm {
    nn::layer_norm(path, vec![width], Default::default())
}

/// The widths of an [`Attention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWidths {
    /// Of what asks.
    pub query: i64,
    /// Of what is asked.
    pub key_value: i64,
    /// Of queries and keys.
    pub qk: i64,
    /// Of values.
    pub v: i64,
    /// Of the result.
    pub output: i64,
    /// Heads, a divisor of `qk` and `v`.
    pub heads: i64,
}

impl AttentionWidths {
    /// Self-attention of one width throughout.
    pub fn uniform(width: i64, heads: i64) -> Self {
        Self { query: width, key_value: width, qk: width, v: width, output: width, heads }
    }
}

/// Multi-head attention; all four projections have biases. Variables under `q`, `k`, `v`, `out`.
#[derive(Debug)]
pub struct Attention {
    heads: i64,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

/// Where queries and keys are, and what rotates them there.
#[derive(Clone, Copy, Debug)]
pub struct Rotations<'a> {
    /// The rotation.
    pub rotary: &'a Rotary,
    /// int64 `[B, N]`.
    pub query: &'a Tensor,
    /// int64 `[B, M]`.
    pub key: &'a Tensor,
}

impl Attention {
    /// Builds it.
    ///
    /// # Errors
    /// The heads do not divide the widths.
    pub fn new(path: &nn::Path, widths: AttentionWidths) -> Result<Self> {
        let AttentionWidths { query, key_value, qk, v, output, heads } = widths;
        if heads < 1
            || qk % heads != 0
            || v % heads != 0
            || [query, key_value, qk, v, output].iter().any(|n| *n < 1)
        {
            return Err(Error::config("heads", widths, "positive widths that the heads divide"));
        }
        Ok(Self {
            heads,
            q: linear(&(path / "q"), query, qk),
            k: linear(&(path / "k"), key_value, qk),
            v: linear(&(path / "v"), key_value, v),
            out: linear(&(path / "out"), v, output),
        })
    }

    /// What `[B, N, query]` finds in `[B, M, key_value]`: `[B, N, output]`. `mask`: added to scores, broadcast to
    /// `[B, H, N, M]`. With a cache, what is asked comes behind what is cached, which the mask covers, too.
    ///
    /// # Errors
    /// The cache was begun with another batch size, or does not hold as many.
    pub fn forward(
        &self,
        query: &Tensor,
        key_value: &Tensor,
        mask: Option<&Tensor>,
        rotations: Option<Rotations<'_>>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let split = |linear: &Linear, x: &Tensor| split_heads(&linear.forward(x), self.heads);
        let (mut q, mut k, v) = (split(&self.q, query), split(&self.k, key_value), split(&self.v, key_value));
        if let Some(Rotations { rotary, query, key }) = rotations {
            q = rotary.rotate(&q, query);
            k = rotary.rotate(&k, key);
        }
        // Positions stay what they are, so keys are kept as they were rotated.
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        Ok(self.out.forward(&merge_heads(&attention(&q, &k, &v, mask, AttentionOptions::default()))))
    }
}

/// Width to `widening` times as much and back. Variables under `up`, `down`.
#[derive(Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(path: &nn::Path, width: i64, widening: i64, activation: Activation) -> Self {
        Self {
            up: linear(&(path / "up"), width, widening * width),
            down: linear(&(path / "down"), widening * width, width),
            activation,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.down.forward(&activate(self.activation, &self.up.forward(x)))
    }
}

pub(crate) fn activate(activation: Activation, x: &Tensor) -> Tensor {
    match activation {
        Activation::SqRelu => x.relu().square(),
        Activation::Gelu => x.gelu("tanh"),
    }
}

/// What the layers are told beside their widths.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// The MLP's hidden width over its own.
    pub widening_factor: i64,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Dropout behind attention and MLP, in training.
    pub dropout: f64,
}

/// Pre-norm self-attention and MLP, both added. Variables under `norm`, `attention`, `norm_mlp`, `mlp`.
#[derive(Debug)]
pub struct SelfAttentionLayer {
    norm: nn::LayerNorm,
    attention: Attention,
    norm_mlp: nn::LayerNorm,
    mlp: Mlp,
    dropout: f64,
}

impl SelfAttentionLayer {
    /// Builds it.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn new(path: &nn::Path, width: i64, heads: i64, config: LayerConfig) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(path / "norm", width),
            attention: Attention::new(&(path / "attention"), AttentionWidths::uniform(width, heads))?,
            norm_mlp: layer_norm(path / "norm_mlp", width),
            mlp: Mlp::new(&(path / "mlp"), width, config.widening_factor, config.activation),
            dropout: config.dropout,
        })
    }

    /// `[B, N, C]` to the same shape; see [`Attention::forward`].
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        rotations: Option<Rotations<'_>>,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> Result<Tensor> {
        let h = self.norm.forward(x);
        let x = x + self.attention.forward(&h, &h, mask, rotations, cache)?.dropout(self.dropout, train);
        let h = self.mlp.forward(&self.norm_mlp.forward(&x));
        Ok(x + h.dropout(self.dropout, train))
    }
}

/// Pre-norm cross-attention and MLP. Variables under `norm_q`, `norm_kv`, `attention`, `norm_mlp`, `mlp`.
#[derive(Debug)]
pub struct CrossAttentionLayer {
    norm_q: nn::LayerNorm,
    norm_kv: nn::LayerNorm,
    attention: Attention,
    norm_mlp: nn::LayerNorm,
    mlp: Mlp,
    residual: bool,
    dropout: f64,
}

impl CrossAttentionLayer {
    /// Builds it; the result has the queries' width. Without `residual` what is found replaces the queries.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn new(
        path: &nn::Path,
        widths: AttentionWidths,
        residual: bool,
        config: LayerConfig,
    ) -> Result<Self> {
        let width = widths.query;
        Ok(Self {
            norm_q: layer_norm(path / "norm_q", width),
            norm_kv: layer_norm(path / "norm_kv", widths.key_value),
            attention: Attention::new(&(path / "attention"), AttentionWidths { output: width, ..widths })?,
            norm_mlp: layer_norm(path / "norm_mlp", width),
            mlp: Mlp::new(&(path / "mlp"), width, config.widening_factor, config.activation),
            residual,
            dropout: config.dropout,
        })
    }

    /// `[B, N, C]` to the same shape; see [`Attention::forward`].
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        inputs: &Tensor,
        mask: Option<&Tensor>,
        rotations: Option<Rotations<'_>>,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> Result<Tensor> {
        let (q, kv) = (self.norm_q.forward(x), self.norm_kv.forward(inputs));
        let seen = self.attention.forward(&q, &kv, mask, rotations, cache)?.dropout(self.dropout, train);
        let x = if self.residual { x + seen } else { seen };
        let h = self.mlp.forward(&self.norm_mlp.forward(&x));
        Ok(x + h.dropout(self.dropout, train))
    }
}
