//! The continuous bottleneck: a diagonal Gaussian per position, held near the unit Gaussian by a small KL weight (Kingma &
//! Welling, arXiv 1312.6114; in this place and weighting: Rombach et al., arXiv 2112.10752, section 3.1).

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module};
use video_core::{Error, Result};

use crate::estimators::{check_features, full_precision};
use crate::lfq::not_negative;
use crate::{Mode, Quantized, Quantizer};

/// Configuration of [`Kl`]; the defaults are latent diffusion's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlConfig {
    /// Channels of the latent.
    pub latent_dim: i64,
    /// Weight of the KL divergence in nats per position: summed over the latent's channels, averaged over positions. Code
    /// that sums it over the P positions of a sample, beside a loss that is a mean over pixels, has this weight / P.
    pub kl_weight: f64,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self { latent_dim: 4, kl_weight: 1e-6 }
    }
}

impl KlConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.latent_dim) {
            return Err(Error::config("latent_dim", self.latent_dim, "1 to 2^20"));
        }
        not_negative("kl_weight", self.kl_weight)
    }
}

/// A Gaussian per position and channel.
#[derive(Debug)]
pub struct Gaussian {
    /// `[..., L]`; also the mode.
    pub mean: Tensor,
    /// ln of the variance, `[..., L]`, clamped to [-30, 20].
    pub log_variance: Tensor,
}

impl Gaussian {
    /// From mean and log-variance side by side, `[..., 2L]`.
    ///
    /// # Errors
    /// The last axis is not even.
    pub fn from_moments(moments: &Tensor) -> Result<Self> {
        match moments.size().last() {
            Some(&width) if width > 0 && width % 2 == 0 => Ok(Self {
                mean: moments.narrow(-1, 0, width / 2),
                log_variance: moments.narrow(-1, width / 2, width / 2).clamp(-30.0, 20.0),
            }),
            _ => Err(Error::shape("moments", &moments.size(), "[..., 2L], mean and log-variance")),
        }
    }

    /// A draw `[..., L]` from torch's generator, with gradients to both moments.
    pub fn sample(&self) -> Tensor {
        &self.mean + (&self.log_variance * 0.5).exp() * self.mean.detach().randn_like()
    }

    /// The divergence from the unit Gaussian in nats, summed over channels: `[...]`.
    pub fn kl(&self) -> Tensor {
        let per_channel = (self.mean.square() + self.log_variance.exp() - 1.0 - &self.log_variance) * 0.5;
        per_channel.sum_dim_intlist([-1i64].as_slice(), false, self.mean.kind())
    }
}

/// The KL bottleneck: it has no ids. In training the decoder reads a sample, in [`Mode::Eval`] the mean. Parameters:
/// `project_in` (features to moments) and `project_out` (latent to features), the 1×1 convolutions around the latent of
/// published autoencoders.
#[derive(Debug)]
pub struct Kl {
    config: KlConfig,
    dim: i64,
    project_in: nn::Linear,
    project_out: nn::Linear,
}

impl Kl {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: KlConfig) -> Result<Self> {
        config.validate()?;
        if dim < 1 {
            return Err(Error::config("dim", dim, "a positive width"));
        }
        let latent = config.latent_dim;
        Ok(Self {
            project_in: nn::linear(path / "project_in", dim, 2 * latent, Default::default()),
            project_out: nn::linear(path / "project_out", latent, dim, Default::default()),
            config,
            dim,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    /// The posterior of features `[..., D]`, over latents `[..., L]`.
    ///
    /// # Errors
    /// The last axis is not the width.
    pub fn posterior(&self, features: &Tensor) -> Result<Gaussian> {
        check_features(features, self.dim)?;
        full_precision(features, |x| Gaussian::from_moments(&self.project_in.forward(x)))
    }

    /// Features `[..., D]` of latents `[..., L]`.
    ///
    /// # Errors
    /// The last axis is not the latent's width.
    pub fn embed(&self, latent: &Tensor) -> Result<Tensor> {
        check_features(latent, self.config.latent_dim)?;
        Ok(self.project_out.forward(latent))
    }
}

impl Quantizer for Kl {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        let posterior = self.posterior(features)?;
        let mut losses = Vec::new();
        let latent = match mode {
            Mode::Eval => posterior.mean,
            Mode::Train { .. } => {
                if self.config.kl_weight > 0.0 && features.numel() > 0 {
                    let kl = posterior.kl();
                    losses.push(("kl", kl.mean(kl.kind()) * self.config.kl_weight));
                }
                posterior.sample()
            }
        };
        let embeddings = full_precision(&latent, |latent| self.embed(latent))?.to_kind(features.kind());
        Ok(Quantized { embeddings, ids: None, losses, usage: None })
    }

    fn lookup(&self, _ids: &Tensor) -> Result<Tensor> {
        let because = "it is continuous and has none: use posterior and embed, or a discrete quantizer";
        Err(Error::unsupported("the KL bottleneck", "look up ids", because))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        None
    }
}
