//! Any quantizer, as a word in a config file.

use serde::{Deserialize, Serialize};
use tch::nn;
use video_core::Result;

use crate::{
    Fsq, FsqConfig, GumbelConfig, GumbelVq, Ibq, IbqConfig, Kl, KlConfig, Lfq, LfqConfig, Quantizer,
    ResidualFsq, ResidualFsqConfig, ResidualLfq, ResidualLfqConfig, ResidualVq, ResidualVqConfig, SimVq,
    SimVqConfig, Vq, VqConfig,
};

/// Which quantizer, and its configuration: `{ kind = "lfq", bits = 10 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum QuantizerConfig {
    /// Lookup-free quantization; `spherical = true` is BSQ.
    Lfq(LfqConfig),
    /// Finite scalar quantization.
    Fsq(FsqConfig),
    /// Vector quantization with a table of codes.
    Vq(VqConfig),
    /// A noisy softmax over codes, in MaskGIT's or VQGAN's form.
    Gumbel(GumbelConfig),
    /// A frozen table behind a learned linear map.
    #[serde(rename = "simvq")]
    SimVq(SimVqConfig),
    /// Index backpropagation.
    Ibq(IbqConfig),
    /// Stages of vector quantization.
    ResidualVq(ResidualVqConfig),
    /// Stages of finite scalar quantization.
    ResidualFsq(ResidualFsqConfig),
    /// Stages of lookup-free quantization.
    ResidualLfq(ResidualLfqConfig),
    /// A continuous Gaussian latent, without ids.
    Kl(KlConfig),
}

impl QuantizerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Lfq(config) => config.validate(),
            Self::Fsq(config) => config.validate(),
            Self::Gumbel(config) => config.validate(),
            Self::SimVq(config) => config.validate(),
            Self::Ibq(config) => config.validate(),
            Self::ResidualVq(config) => config.validate(),
            Self::ResidualFsq(config) => config.validate(),
            Self::ResidualLfq(config) => config.validate(),
            Self::Kl(config) => config.validate(),
            Self::Vq(config) => config.validate(),
        }
    }

    /// The feature width at which this quantizer needs no projection; `None` where any width will do.
    pub fn dim(&self) -> Option<i64> {
        match self {
            Self::Lfq(config) => Some(config.code_dim()),
            Self::Fsq(config) => Some(config.code_dim()),
            Self::Gumbel(config) => config.codebook_dim,
            Self::ResidualVq(config) => config.codebook_dim,
            Self::ResidualFsq(config) => Some(config.levels.len() as i64),
            Self::ResidualLfq(config) => Some(config.stage.bits),
            Self::SimVq(_) | Self::Ibq(_) | Self::Kl(_) => None,
            Self::Vq(config) => config.codebook_dim.map(|width| width * config.heads),
        }
    }

    /// Builds the quantizer for features of width `dim`, its parameters under `path`.
    ///
    /// # Errors
    /// A field is out of range, or the quantizer does not take features of this width.
    pub fn build(&self, path: &nn::Path, dim: i64) -> Result<Box<dyn Quantizer>> {
        Ok(match self {
            Self::Lfq(config) => Box::new(Lfq::new(path, dim, config.clone())?),
            Self::Fsq(config) => Box::new(Fsq::new(path, dim, config.clone())?),
            Self::Gumbel(config) => Box::new(GumbelVq::new(path, dim, config.clone())?),
            Self::SimVq(config) => Box::new(SimVq::new(path, dim, config.clone())?),
            Self::Ibq(config) => Box::new(Ibq::new(path, dim, config.clone())?),
            Self::ResidualVq(config) => Box::new(ResidualVq::new(path, dim, config.clone())?),
            Self::ResidualFsq(config) => Box::new(ResidualFsq::new(path, dim, config.clone())?),
            Self::ResidualLfq(config) => Box::new(ResidualLfq::new(path, dim, config.clone())?),
            Self::Kl(config) => Box::new(Kl::new(path, dim, config.clone())?),
            Self::Vq(config) => Box::new(Vq::new(path, dim, config.clone())?),
        })
    }
}
