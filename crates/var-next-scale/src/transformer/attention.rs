//! Self-attention within a scale and over those before.

use layers::{AttentionOptions, KvCache, Linear, attention, merge_heads, split_heads};
use tch::nn::{self, Init};
use tch::{Kind, Tensor};
use video_core::Result;

use super::linear;

/// The logarithm of the largest scale of normalised queries.
const MAX_SCALE_LN: f64 = 4.605_170_185_988_092;

/// Which positions are seen.
#[derive(Debug)]
pub enum Attend<'a> {
    /// Those that a mask names, bool `[N, N]`, true where a row sees a column.
    Masked(&'a Tensor),
    /// All of them and those in the cache, to which they are added. Without gradients.
    Cached(&'a mut KvCache),
}

/// Attention with biases of queries and values only.
///
/// Variables: `mat_qkv.weight` `[3C, C]`, `q_bias`, `v_bias` `[C]`, `proj`, and with normalised queries and keys
/// `scale_mul_1H11` `[1, H, 1, 1]`, the logarithms of the scales.
#[derive(Debug)]
pub struct SelfAttention {
    heads: i64,
    qkv: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    scale_mul: Option<Tensor>,
    proj: Linear,
}

impl SelfAttention {
    /// Of `width` C in `heads` heads, that divide it; weights start with `std`, those of the projection with `proj_std`.
    pub fn new(path: &nn::Path, width: i64, heads: i64, l2_norm: bool, [std, proj_std]: [f64; 2]) -> Self {
        let normal = Init::Randn { mean: 0.0, stdev: std };
        Self {
            heads,
            qkv: (path / "mat_qkv").var("weight", &[3 * width, width], normal),
            q_bias: path.zeros("q_bias", &[width]),
            v_bias: path.zeros("v_bias", &[width]),
            scale_mul: l2_norm.then(|| path.var("scale_mul_1H11", &[1, heads, 1, 1], Init::Const(4f64.ln()))),
            proj: linear(&(path / "proj"), width, width, proj_std),
        }
    }

    /// `[B, N, C]` to the same shape.
    ///
    /// # Errors
    /// The cache is of another batch, or full.
    pub fn forward(&self, x: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        let bias = Tensor::cat(&[&self.q_bias, &self.q_bias.zeros_like().detach(), &self.v_bias], 0);
        let qkv = layers::linear(x, &self.qkv, Some(&bias)).chunk(3, -1);
        let [q, k, v] = [0, 1, 2].map(|part| split_heads(&qkv[part], self.heads));
        let (q, k, scale) = match &self.scale_mul {
            Some(logarithms) => {
                let scale = logarithms.clamp_max(MAX_SCALE_LN).exp();
                (normalize(&q) * scale, normalize(&k), 1.0)
            }
            None => {
                let scale = 0.25 / (q.size()[3] as f64).sqrt();
                (q, k, scale)
            }
        };
        let options = AttentionOptions { scale: Some(scale), ..AttentionOptions::default() };
        let attended = match attend {
            Attend::Masked(mask) => attention(&q, &k, &v, Some(mask), options),
            Attend::Cached(cache) => {
                let (k, v) = cache.append(&k, &v)?;
                attention(&q, &k, &v, None, options)
            }
        };
        Ok(self.proj.forward(&merge_heads(&attended)))
    }
}

/// x / max(|x|, 1e-12) over the last axis.
fn normalize(x: &Tensor) -> Tensor {
    let squares = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
    x / squares.sqrt().clamp_min(1e-12)
}
