//! Root-mean-square norm.

use tch::{Kind, Tensor, nn};

/// x / √(mean x² + ε) · weight over the last axis, in float32 whatever the kind of `x` (Zhang & Sennrich 2019,
/// arXiv 1910.07467). Variables: `weight` `[D]`, or none.
#[derive(Debug)]
pub struct RmsNorm {
    eps: f64,
    weight: Option<Tensor>,
}

impl RmsNorm {
    /// With a learnt scale, ones at first.
    pub fn new(path: &nn::Path, width: i64, eps: f64) -> Self {
        Self { eps, weight: Some(path.ones("weight", &[width])) }
    }

    /// Normalisation alone.
    pub fn without_affine(eps: f64) -> Self {
        Self { eps, weight: None }
    }

    /// `[..., D]` to the same shape and kind.
    ///
    /// # Panics
    /// The last axis is not D.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let mean = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        let normed = (wide * (mean + self.eps).rsqrt()).to_kind(x.kind());
        match &self.weight {
            Some(weight) => normed * weight,
            None => normed,
        }
    }
}
