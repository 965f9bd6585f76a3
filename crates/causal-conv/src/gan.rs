//! Adversarial training of a tokenizer: discriminators, GAN losses, and the regularizers that keep them stable.
//!
//! [`Adversary`] is all of it under one [`GanConfig`]; its parts stand alone, too. Published code differs in small things
//! (a factor of a half, what is averaged first, when moving averages are updated), and each has its name here:
//! [`LossConvention`], [`LecamRule`], [`PenaltyKind`], [`AdaptiveRule`].
//!
//! ```
//! use causal_conv::gan::{Adversary, GanConfig};
//! use tch::{Device, Kind, Tensor, nn};
//! use video_core::VideoShape;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut config = GanConfig::open_magvit2();
//! # config.discriminator = causal_conv::gan::DiscriminatorConfig::Patch2d(
//! #     causal_conv::PatchDiscriminatorConfig { filters: 4, num_layers: 2 });
//! let video = Tensor::rand([2, 3, 3, 32, 32], (Kind::Float, Device::Cpu));
//! let decoded = Tensor::rand([2, 3, 3, 32, 32], (Kind::Float, Device::Cpu));
//! let variables = nn::VarStore::new(Device::Cpu);
//! let mut adversary = Adversary::new(&variables.root(), &config, VideoShape::of(&video)?)?;
//! let terms = adversary.discriminator_terms(&video, &decoded, 0)?;
//! terms.total.backward();
//! # Ok(())
//! # }
//! ```

mod adversary;
mod lecam;
mod losses;
mod penalty;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{Error, Result, VideoShape};

pub use adversary::{Adversary, DiscriminatorTerms, GeneratorTerms};
pub use lecam::{Lecam, LecamConfig, LecamRule};
pub use losses::{GanLoss, LossConvention, discriminator_loss, generator_loss};
pub use penalty::{AdaptiveRule, GradientPenalty, PenaltyKind, adaptive_weight, gradient_penalty};

use crate::discriminator::{VideoDiscriminator, VideoDiscriminatorConfig};
use crate::patch_discriminator::{PatchDiscriminator, PatchDiscriminatorConfig};

/// The adversarial part of a tokenizer's training; the defaults are those of MAGVIT-v2's video tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GanConfig {
    /// Which discriminator: `{ kind = "video3d", filters = 64 }`, `{ kind = "patch2d" }`.
    pub discriminator: DiscriminatorConfig,
    /// The discriminator's loss, and the generator's where `generator_loss` is absent.
    pub loss: GanLoss,
    /// The generator's loss, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator_loss: Option<GanLoss>,
    /// How both average the logits.
    pub convention: LossConvention,
    /// Weight of the generator's loss beside the others.
    pub generator_weight: f64,
    /// Where present, `generator_weight` is multiplied by a factor that is computed anew at each step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveRule>,
    /// The step at which both losses set in.
    pub start_step: u64,
    /// The discriminator's gradient penalty.
    pub gradient_penalty: GradientPenalty,
    /// The discriminator's LeCAM term.
    pub lecam: LecamConfig,
}

impl Default for GanConfig {
    fn default() -> Self {
        Self {
            discriminator: DiscriminatorConfig::Video3d(VideoDiscriminatorConfig::default()),
            loss: GanLoss::NonSaturating,
            generator_loss: None,
            convention: LossConvention::Magvit,
            generator_weight: 0.1,
            adaptive: None,
            start_step: 0,
            gradient_penalty: GradientPenalty::default(),
            lecam: LecamConfig::default(),
        }
    }
}

impl GanConfig {
    /// Open-MAGVIT2's for frames of 256×256 pixels.
    pub fn open_magvit2() -> Self {
        Self {
            discriminator: DiscriminatorConfig::Patch2d(PatchDiscriminatorConfig::default()),
            loss: GanLoss::Hinge,
            generator_loss: Some(GanLoss::NonSaturating),
            convention: LossConvention::OpenMagvit2,
            gradient_penalty: GradientPenalty::OFF,
            lecam: LecamConfig { weight: 0.05, rule: LecamRule::OpenMagvit2, ..LecamConfig::default() },
            ..Self::default()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.discriminator.validate().map_err(|error| error.within("discriminator"))?;
        not_negative("generator_weight", self.generator_weight)?;
        self.gradient_penalty.validate().map_err(|error| error.within("gradient_penalty"))?;
        self.lecam.validate().map_err(|error| error.within("lecam"))
    }
}

/// Which discriminator, and its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DiscriminatorConfig {
    /// Sees a clip as a whole.
    #[serde(rename = "video3d")]
    Video3d(VideoDiscriminatorConfig),
    /// Sees patches of single frames.
    #[serde(rename = "patch2d")]
    Patch2d(PatchDiscriminatorConfig),
}

impl DiscriminatorConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Video3d(config) => config.validate(),
            Self::Patch2d(config) => config.validate(),
        }
    }
}

/// A discriminator of either kind.
#[derive(Debug)]
pub enum Discriminator {
    /// Sees a clip as a whole.
    Video3d(VideoDiscriminator),
    /// Sees patches of single frames.
    Patch2d(PatchDiscriminator),
}

impl Discriminator {
    /// For clips of `shape`, in any number.
    ///
    /// # Errors
    /// A field of the config is out of range, or the frames are too small for it.
    pub fn new(path: &nn::Path, config: &DiscriminatorConfig, shape: VideoShape) -> Result<Self> {
        match config {
            DiscriminatorConfig::Video3d(config) => {
                VideoDiscriminator::new(path, config, shape).map(Self::Video3d)
            }
            DiscriminatorConfig::Patch2d(config) => {
                let patch = PatchDiscriminator::new(path, config, shape.channels)?;
                let (smallest, smaller) = (patch.smallest_frame(), shape.height.min(shape.width));
                if smaller < smallest {
                    let expected = format!("fewer layers: frames of {smaller} pixels are below {smallest}");
                    return Err(Error::config("num_layers", config.num_layers, expected));
                }
                Ok(Self::Patch2d(patch))
            }
        }
    }

    /// `[B, C, T, H, W]` to logits `[N, ...]`, high where the video looks real; N is B, or B·T for the discriminator of
    /// frames. `train`: its batch norms use the batch's statistics and add them to the running ones, which they use
    /// otherwise.
    ///
    /// # Errors
    /// A shape that it was not built for.
    pub fn forward(&self, video: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Video3d(discriminator) => discriminator.forward(video),
            Self::Patch2d(discriminator) => discriminator.forward(video, train),
        }
    }
}

/// Refuses what is not a finite number of at least zero.
fn not_negative(field: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(field, value, "zero or a positive number"))
}
