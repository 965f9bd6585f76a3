//! The successor's quantizer (Infinity, Han et al., arXiv 2412.04431, section 3.2): no codebook, each channel is one bit.

use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Tensor, no_grad};
use video_core::{Error, Result};

use crate::resample::{area, grid_of};
use crate::scales::Pyramid;

/// Configuration of [`MultiScaleBsq`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiScaleBsqConfig {
    /// d, bits a token: the vocabulary has 2^d words.
    pub dim: i64,
    /// Features are normed over their channels first.
    #[serde(default)]
    pub ln_before_quant: bool,
    /// Finer scales count less: 1, 0.9, ... not below 0.1.
    #[serde(default)]
    pub use_decay_factor: bool,
}

/// What [`MultiScaleBsq::quantize`] gives.
#[derive(Debug)]
pub struct BitQuantized {
    /// The sum of all scales, `[B, d, T, H, W]`.
    pub quantized: Tensor,
    /// Bits of each scale, bool `[B, t, h, w, d]`.
    pub bits: Vec<Tensor>,
    /// The sum so far at the size of each scale but the first, `[B, d, t, h, w]`.
    pub var_inputs: Vec<Tensor>,
}

/// Residual quantization over scales to ±1/√d in every channel. Variables: `layernorm.weight`, `layernorm.bias` `[d]` where
/// features are normed.
#[derive(Debug)]
pub struct MultiScaleBsq {
    config: MultiScaleBsqConfig,
    pyramid: Pyramid,
    norm: Option<nn::LayerNorm>,
}

impl MultiScaleBsq {
    /// For features of the pyramid's last size.
    ///
    /// # Errors
    /// `dim` is not 1 to 1024.
    pub fn new(path: &nn::Path, config: MultiScaleBsqConfig, pyramid: Pyramid) -> Result<Self> {
        if !(1..=1024).contains(&config.dim) {
            return Err(Error::config("dim", config.dim, "1 to 1024"));
        }
        let norm = || {
            let options = nn::LayerNormConfig { eps: 1e-6, ..Default::default() };
            nn::layer_norm(path / "layernorm", vec![config.dim], options)
        };
        Ok(Self { norm: config.ln_before_quant.then(norm), config, pyramid })
    }

    /// Quantizes `[B, d, T, H, W]`, without gradients.
    ///
    /// # Errors
    /// Another number of channels, another size than the pyramid's last.
    pub fn quantize(&self, z: &Tensor) -> Result<BitQuantized> {
        let (size, dim) = (z.size(), self.config.dim);
        if size.len() != 5 || size[0] < 1 || size[1] != dim || grid_of(z) != self.pyramid.last() {
            let last = self.pyramid.last();
            let expected = format!("[B, {dim}, {}, {}, {}]", last.frames, last.height, last.width);
            return Err(Error::shape("features", &size, expected));
        }
        Ok(no_grad(|| self.run(z)))
    }

    fn run(&self, z: &Tensor) -> BitQuantized {
        let channels = |x: &Tensor| x.permute([0, 2, 3, 4, 1]);
        let mut rest = match &self.norm {
            Some(norm) => norm.forward(&channels(z)).permute([0, 4, 1, 2, 3]),
            None => z.copy(),
        };
        let mut sum = rest.zeros_like();
        let (mut bits, mut var_inputs) = (Vec::new(), Vec::new());
        let scales = self.pyramid.scales();
        let full = self.pyramid.last();
        for (scale, &shape) in scales.iter().enumerate() {
            let small = area(&rest, shape);
            // The sign of a channel is that of the normalised one, so that the norm itself need not be made.
            let positive = small.gt(0.0);
            let sign = positive.to_kind(z.kind()) * 2.0 - 1.0;
            let decay = if self.config.use_decay_factor { (1.0 - 0.1 * scale as f64).max(0.1) } else { 1.0 };
            let code = sign * (decay / (self.config.dim as f64).sqrt());
            let code = if shape == full {
                code
            } else {
                code.upsample_trilinear3d([full.frames, full.height, full.width], false, None, None, None)
            };
            rest -= &code;
            sum = &sum + code;
            bits.push(channels(&positive));
            if let Some(&next) = scales.get(scale + 1) {
                var_inputs.push(area(&sum, next));
            }
        }
        BitQuantized { quantized: sum, bits, var_inputs }
    }
}
