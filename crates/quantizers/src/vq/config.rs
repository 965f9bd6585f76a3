//! [`VqConfig`] and the published forms of vector quantization.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use super::EntropyLossConfig;
use crate::lfq::{not_negative, positive};

/// Configuration of [`Vq`](super::Vq). The defaults are VideoGPT's codebook (EMA as in appendix A.1 of VQ-VAE) with 1024
/// codes; the other published forms are named constructors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VqConfig {
    /// K, codes in each codebook.
    pub codebook_size: i64,
    /// Width of a code. None: the features' width divided by `heads`. Features of another width are projected.
    pub codebook_dim: Option<i64>,
    /// Codes per position; each gives one id.
    pub heads: i64,
    /// Every head has a codebook of its own, instead of one for all.
    pub separate_codebook_per_head: bool,
    /// The linear maps between features and codes.
    pub projection: VqProjection,
    /// What makes a code near.
    pub similarity: Similarity,
    /// How the codes are learned.
    pub update: CodebookUpdate,
    /// EMA only: share of the old counts and sums that a step keeps.
    pub ema_decay: f64,
    /// EMA only: Laplace smoothing of the counts.
    pub ema_eps: f64,
    /// EMA only: codes whose count falls below this are dead. 0: never.
    pub dead_code_threshold: f64,
    /// EMA only: what becomes of a dead code.
    pub dead_code_restart: DeadCodeRestart,
    /// The codes before training.
    pub init: CodebookInit,
    /// The gradient of the discrete choice.
    pub estimator: Estimator,
    /// Codes are drawn in training: the temperature T of softmax(−distance / T). None: the nearest code.
    pub sample_temperature: Option<f64>,
    /// Codes in training carry the gradient of softmax(−distance / T), T = `sample_temperature` or 1. It passes into the
    /// losses only, as the estimator replaces it in the output.
    pub softmax_gradient: bool,
    /// Weight of mean((x − sg q)²).
    pub commitment_weight: f64,
    /// Gradient codebook only: weight of mean((q − sg x)²).
    pub codebook_weight: f64,
    /// Gradient codebook only: one term, mean((x − q)²) at `commitment_weight`, pulls features and codes (lucidrains);
    /// `codebook_weight` is not used.
    pub joint_loss: bool,
    /// The entropy loss on −squared distances.
    pub entropy: EntropyLossConfig,
    /// Weight of the mean squared cosine between codes. Above 0 it makes the codes a parameter; EMA stays on.
    pub orthogonal_weight: f64,
    /// The orthogonality is that of the codes of this batch.
    pub orthogonal_active_codes_only: bool,
    /// Weight of minus the entropy of the soft assignment's mean over the batch axis, at each position.
    pub diversity_weight: f64,
    /// Multiplies −distance in that soft assignment.
    pub diversity_temperature: f64,
}

/// The linear maps between features and codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VqProjection {
    /// With bias, and only where the widths differ.
    #[default]
    WhereNeeded,
    /// Without bias, always: TECO.
    Unbiased,
}

/// What makes a code near to a feature vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// The Euclidean distance.
    #[default]
    Euclidean,
    /// The angle; features and codes are normalised throughout.
    Cosine,
    /// The dot product of the normalised features with the codes as they are stored. The same as `cosine` under EMA,
    /// which keeps codes normalised; with a gradient codebook it is lucidrains' cosine mode.
    UnitFeatures,
    /// The angle, for the search only: the IBQ repository's VQ.
    CosineSearch,
    /// The angle for the search; losses and straight-through see the normalised features and the codes as they are
    /// stored: MAGVIT's `latent_normalize`.
    CosineFeatures,
}

impl Similarity {
    /// Whether codes live on the unit sphere.
    pub(crate) fn unit_codes(self) -> bool {
        matches!(self, Self::Cosine | Self::UnitFeatures)
    }
}

/// How a codebook is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodebookUpdate {
    /// Exponential moving averages of the features that chose each code.
    #[default]
    Ema,
    /// The optimizer, by the gradient of the codebook loss.
    Gradient,
}

/// What becomes of a dead code. Both take features of the present batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadCodeRestart {
    /// The code alone is replaced, in every step until its count has recovered: VideoGPT.
    #[default]
    KeepCount,
    /// Code, sum and count are replaced, the count by `dead_code_threshold`: lucidrains.
    ResetCount,
    /// As `reset_count`, with this count.
    ResetCountTo(f64),
}

/// The codes before training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CodebookInit {
    /// Features of the first training batch: VideoGPT.
    #[default]
    Data,
    /// k-means on the first training batch: lucidrains.
    KMeans {
        /// Lloyd iterations.
        iterations: u32,
    },
    /// Uniform within ±√(3/K): Google.
    FanIn,
    /// Uniform within ±1/K: taming-transformers.
    InverseSize,
    /// Uniform within ±√(6/(K·D)): lucidrains.
    Kaiming,
    /// Normal.
    Normal {
        /// Its standard deviation.
        std: f64,
    },
}

impl CodebookInit {
    /// Whether the first training batch makes the codes.
    pub(crate) fn needs_data(self) -> bool {
        matches!(self, Self::Data | Self::KMeans { .. })
    }
}

/// The gradient that the features get through the discrete choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The code's gradient.
    #[default]
    StraightThrough,
    /// The code's gradient, rotated: Fifty et al., arXiv 2410.06424.
    RotationTrick,
}

impl Default for VqConfig {
    fn default() -> Self {
        Self {
            codebook_size: 1024,
            codebook_dim: None,
            heads: 1,
            separate_codebook_per_head: false,
            projection: VqProjection::default(),
            similarity: Similarity::default(),
            update: CodebookUpdate::default(),
            ema_decay: 0.99,
            ema_eps: 1e-7,
            dead_code_threshold: 1.0,
            dead_code_restart: DeadCodeRestart::default(),
            init: CodebookInit::default(),
            estimator: Estimator::default(),
            sample_temperature: None,
            softmax_gradient: false,
            commitment_weight: 0.25,
            codebook_weight: 1.0,
            joint_loss: false,
            entropy: EntropyLossConfig::off(),
            orthogonal_weight: 0.0,
            orthogonal_active_codes_only: false,
            diversity_weight: 0.0,
            diversity_temperature: 100.0,
        }
    }
}

impl VqConfig {
    /// VideoGPT's codebook (Yan et al., arXiv 2104.10157): 2048 codes, EMA, data-dependent init, random restarts.
    pub fn video_gpt() -> Self {
        Self { codebook_size: 2048, ..Self::default() }
    }

    /// The codebook that MaskGIT (Chang et al., arXiv 2202.04200) and MAGVIT (arXiv 2212.05199) share: 1024 codes learned by
    /// gradient, with the entropy loss.
    pub fn mask_git() -> Self {
        Self {
            update: CodebookUpdate::Gradient,
            init: CodebookInit::FanIn,
            entropy: EntropyLossConfig::default(),
            ..Self::default()
        }
    }

    /// VQGAN's codebook (Esser et al., arXiv 2012.09841) as published, with β on the codebook term
    /// (taming-transformers' `legacy = True`): 1024 codes.
    pub fn vqgan() -> Self {
        Self {
            update: CodebookUpdate::Gradient,
            init: CodebookInit::InverseSize,
            commitment_weight: 1.0,
            codebook_weight: 0.25,
            ..Self::default()
        }
    }

    /// TECO's codebook (Yan et al., arXiv 2210.02396): cosine distance among 1024 codes of width 32.
    pub fn teco() -> Self {
        Self {
            codebook_dim: Some(32),
            projection: VqProjection::Unbiased,
            similarity: Similarity::Cosine,
            update: CodebookUpdate::Gradient,
            init: CodebookInit::Normal { std: 0.02 },
            // TECO's squared errors have a factor 0.5.
            commitment_weight: 0.125,
            codebook_weight: 0.5,
            ..Self::default()
        }
    }

    /// The defaults of vector-quantize-pytorch's `VectorQuantize`: EMA 0.8, rotation trick.
    pub fn lucidrains() -> Self {
        Self {
            ema_decay: 0.8,
            ema_eps: 1e-5,
            dead_code_threshold: 0.0,
            dead_code_restart: DeadCodeRestart::ResetCount,
            init: CodebookInit::Kaiming,
            estimator: Estimator::RotationTrick,
            commitment_weight: 1.0,
            ..Self::default()
        }
    }

    /// Codebooks that are held.
    pub fn num_codebooks(&self) -> i64 {
        if self.separate_codebook_per_head { self.heads } else { 1 }
    }

    /// Width of a code, for features of width `dim`.
    ///
    /// # Errors
    /// No width is set and the heads do not divide that of the features.
    pub fn code_dim(&self, dim: i64) -> Result<i64> {
        match self.codebook_dim {
            Some(width) => Ok(width),
            None if dim % self.heads == 0 => Ok(dim / self.heads),
            None => {
                Err(Error::config("heads", self.heads, format!("a divisor of {dim}, or set codebook_dim")))
            }
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("codebook_size", self.codebook_size)?;
        if let Some(width) = self.codebook_dim {
            check_width("codebook_dim", width)?;
        }
        if !(1..=4096).contains(&self.heads) {
            return Err(Error::config("heads", self.heads, "1 to 4096"));
        }
        if !(0.0..1.0).contains(&self.ema_decay) {
            return Err(Error::config("ema_decay", self.ema_decay, "at least 0 and below 1"));
        }
        positive("ema_eps", self.ema_eps)?;
        not_negative("dead_code_threshold", self.dead_code_threshold)?;
        if let DeadCodeRestart::ResetCountTo(count) = self.dead_code_restart {
            positive("dead_code_restart", count)?;
        }
        match self.init {
            CodebookInit::KMeans { iterations: 0 } => {
                return Err(Error::config("init.k_means.iterations", 0, "at least 1"));
            }
            CodebookInit::Normal { std } => positive("init.normal.std", std)?,
            _ => (),
        }
        if let Some(temperature) = self.sample_temperature {
            positive("sample_temperature", temperature)?;
        }
        for (field, weight) in [
            ("commitment_weight", self.commitment_weight),
            ("codebook_weight", self.codebook_weight),
            ("orthogonal_weight", self.orthogonal_weight),
            ("diversity_weight", self.diversity_weight),
        ] {
            not_negative(field, weight)?;
        }
        positive("diversity_temperature", self.diversity_temperature)?;
        self.entropy.validate().map_err(|error| error.within("entropy"))?;
        self.validate_together()
    }

    /// What fields mean for each other.
    fn validate_together(&self) -> Result<()> {
        if self.orthogonal_active_codes_only && self.separate_codebook_per_head && self.heads > 1 {
            return Err(Error::config(
                "orthogonal_active_codes_only",
                true,
                "false where every head has a codebook of its own",
            ));
        }
        if self.update == CodebookUpdate::Ema && self.joint_loss {
            return Err(Error::config("joint_loss", true, "false with update = \"ema\""));
        }
        Ok(())
    }
}

/// Refuses what is no vocabulary.
pub(crate) fn check_size(field: &str, size: i64) -> Result<()> {
    if (1..=1 << 30).contains(&size) {
        return Ok(());
    }
    Err(Error::config(field, size, "1 to 2^30 codes"))
}

/// Refuses what is no width.
pub(crate) fn check_width(field: &str, width: i64) -> Result<()> {
    if (1..=1 << 20).contains(&width) {
        return Ok(());
    }
    Err(Error::config(field, width, "a width of 1 to 2^20"))
}
