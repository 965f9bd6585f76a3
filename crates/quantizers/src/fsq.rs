//! Finite scalar quantization (Mentzer et al., ICLR 2024, arXiv 2309.15505): each channel is bounded and rounded to one of
//! a few levels, and the code is the tuple of levels. There is no table, no loss, and nothing that could collapse.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

use crate::bits::{check_ids, mixed_radix_digits, radix_basis};
use crate::estimators::{check_features, full_precision, straight_through};
use crate::projection::Projections;
use crate::{Mode, Quantized, Quantizer, Usage};

/// Configuration of [`Fsq`]. The default is the paper's set of levels for about 2^16 codes, which the Cosmos tokenizers
/// have too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FsqConfig {
    /// Levels L of each channel, 2 to 1000; the vocabulary is their product. In an id the first channel changes fastest.
    pub levels: Vec<i64>,
    /// Codebooks side by side; each takes one channel per level and gives one id.
    pub num_codebooks: i64,
    /// Codes lie symmetrically between -1 and 1, ends included. Else (the paper) an even number of levels has codes from
    /// -1 to 1 − 2/L, 0 among them.
    pub symmetric: bool,
    /// Channels are bounded by clamping to [-1, 1] instead of by tanh: the gradient is 1 inside, and 0 outside.
    pub hard_clamp: bool,
}

impl Default for FsqConfig {
    fn default() -> Self {
        Self { levels: vec![8, 8, 8, 5, 5, 5], num_codebooks: 1, symmetric: false, hard_clamp: false }
    }
}

/// Wider than this, and the margin by which the bound exceeds the last level would reach the next.
const MAX_LEVELS: i64 = 1000;

/// By how much, relatively, the bound of the plain form exceeds the outermost levels.
const MARGIN: f64 = 1e-3;

impl FsqConfig {
    /// The paper's levels (table 1) for about 2^`bits` codes; `bits` is 8, 10, 12, 14 or 16.
    ///
    /// # Errors
    /// The paper has no set of levels for that size.
    pub fn with_bits(bits: i64) -> Result<Self> {
        let levels: &[i64] = match bits {
            8 => &[8, 6, 5],
            10 => &[8, 5, 5, 5],
            12 => &[7, 5, 5, 5, 5],
            14 => &[8, 8, 8, 6, 5],
            16 => &[8, 8, 8, 5, 5, 5],
            _ => return Err(Error::config("bits", bits, "8, 10, 12, 14 or 16: set levels for other sizes")),
        };
        Ok(Self { levels: levels.into(), ..Self::default() })
    }

    /// Width of the codes, over all codebooks. Features of another width get projections with bias.
    pub fn code_dim(&self) -> i64 {
        self.levels.len() as i64 * self.num_codebooks
    }

    /// Ids in each codebook: the product of the levels. Of a valid config.
    pub fn codebook_size(&self) -> i64 {
        self.levels.iter().product()
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.levels.iter().any(|level| !(2..=MAX_LEVELS).contains(level)) {
            return Err(Error::config("levels", &self.levels, format!("2 to {MAX_LEVELS} each")));
        }
        if radix_basis(&self.levels).is_err() {
            let expected = "at least one number, and a product of at most 2^62";
            return Err(Error::config("levels", &self.levels, expected));
        }
        if !(1..=4096).contains(&self.num_codebooks) {
            return Err(Error::config("num_codebooks", self.num_codebooks, "1 to 4096"));
        }
        Ok(())
    }
}

/// Bounding and rounding to levels: FSQ without projections, as one stage of several needs it too. Channels are the last
/// axis.
#[derive(Debug)]
pub(crate) struct LevelGrid {
    levels: Vec<i64>,
    basis: Vec<i64>,
    symmetric: bool,
    hard_clamp: bool,
}

impl LevelGrid {
    /// # Errors
    /// The product of the levels is out of range.
    pub(crate) fn new(levels: &[i64], symmetric: bool, hard_clamp: bool) -> Result<Self> {
        Ok(Self { levels: levels.into(), basis: radix_basis(levels)?, symmetric, hard_clamp })
    }

    fn row(&self, like: &Tensor, of_level: impl Fn(f64) -> f64) -> Tensor {
        let row: Vec<f64> = self.levels.iter().map(|&level| of_level(level as f64)).collect();
        Tensor::from_slice(&row).to_device(like.device()).to_kind(like.kind())
    }

    fn squash(&self, z: &Tensor) -> Tensor {
        if self.hard_clamp { z.clamp(-1.0, 1.0) } else { z.tanh() }
    }

    /// Features `[..., d]` to codes `[..., d]` in [-1, 1], with the gradient of the bound, and digits `[..., d]`, int64.
    pub(crate) fn quantize(&self, z: &Tensor) -> (Tensor, Tensor) {
        // `at` counts from the first level for the symmetric form, from the middle one for the plain form.
        let (at, rounded, codes, digits);
        if self.symmetric {
            let last = self.row(z, |level| level - 1.0);
            at = (self.squash(z) + 1.0) * &last / 2.0;
            // The reference rounds halves up, not to even.
            rounded = straight_through(&at, &(&at + 0.5).floor());
            codes = &rounded * 2.0 / last - 1.0;
            digits = rounded.detach();
        } else {
            let half = |level: f64| (level - 1.0) * (1.0 + MARGIN) / 2.0;
            let offset = |level: f64| if level % 2.0 == 0.0 { 0.5 } else { 0.0 };
            let shift = self.row(z, |level| {
                let ratio = offset(level) / half(level);
                if self.hard_clamp { ratio } else { ratio.atanh() }
            });
            let middle = self.row(z, |level| (level / 2.0).floor());
            at = self.squash(&(z + shift)) * self.row(z, half) - self.row(z, offset);
            rounded = straight_through(&at, &at.round());
            codes = &rounded / &middle;
            digits = rounded.detach() + middle;
        }
        // A feature that is not a number gets some digit all the same: ids never leave the vocabulary.
        let last = self.row(z, |level| level - 1.0).to_kind(Kind::Int64);
        let digits = digits.round().to_kind(Kind::Int64).clamp_min(0).minimum(&last);
        (codes, digits)
    }

    /// Codes `[..., d]` of digits `[..., d]`.
    pub(crate) fn codes_of_digits(&self, digits: &Tensor, kind: Kind) -> Tensor {
        let digits = digits.to_kind(kind);
        if self.symmetric {
            let last = self.row(&digits, |level| level - 1.0);
            return digits * 2.0 / last - 1.0;
        }
        let middle = self.row(&digits, |level| (level / 2.0).floor());
        (digits - &middle) / middle
    }

    /// Ids `[...]` of digits `[..., d]`.
    pub(crate) fn ids(&self, digits: &Tensor) -> Tensor {
        let basis = Tensor::from_slice(&self.basis).to_device(digits.device());
        (digits * basis).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64)
    }

    /// Digits `[..., d]` of ids `[...]`.
    pub(crate) fn digits(&self, ids: &Tensor) -> Tensor {
        mixed_radix_digits(ids, &self.basis, &self.levels)
    }
}

/// Finite scalar quantizer. Parameters: `project_in`, `project_out` where the features' width is not
/// [`FsqConfig::code_dim`], otherwise none.
#[derive(Debug)]
pub struct Fsq {
    config: FsqConfig,
    dim: i64,
    projections: Projections,
    grid: LevelGrid,
}

impl Fsq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: FsqConfig) -> Result<Self> {
        config.validate()?;
        if dim < 1 {
            return Err(Error::config("dim", dim, "a positive width"));
        }
        Ok(Self {
            projections: Projections::new(path, dim, config.code_dim()),
            grid: LevelGrid::new(&config.levels, config.symmetric, config.hard_clamp)?,
            config,
            dim,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &FsqConfig {
        &self.config
    }

    /// Each channel's level, int64 `[..., d]` from 0, of ids `[...]`.
    ///
    /// # Errors
    /// An id outside the codebook.
    pub fn digits(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.codebook_size())?;
        Ok(self.grid.digits(ids))
    }

    /// The codes `[..., d]` of ids `[...]` of any one codebook, before `project_out`.
    ///
    /// # Errors
    /// An id outside the codebook.
    pub fn codes(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.grid.codes_of_digits(&self.digits(ids)?, self.projections.kind()))
    }
}

impl Quantizer for Fsq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        check_features(features, self.dim)?;
        full_precision(features, |x| {
            let z = self.projections.project_in(x).unflatten(-1, [self.config.num_codebooks, -1]);
            let (codes, digits) = self.grid.quantize(&z);
            let codes = match mode {
                Mode::Train { .. } => codes,
                // Free of the estimator's rounding, so that looking up the ids gives the same.
                Mode::Eval => self.grid.codes_of_digits(&digits, z.kind()),
            };
            let ids = self.grid.ids(&digits);
            let ids = if self.config.num_codebooks == 1 { ids.squeeze_dim(-1) } else { ids };
            let embeddings = self.projections.project_out(&codes.flatten(-2, -1)).to_kind(features.kind());
            let usage = Some(Usage::of(&ids, self.config.codebook_size()));
            Ok(Quantized { embeddings, ids: Some(ids), losses: Vec::new(), usage })
        })
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let count = self.config.num_codebooks;
        let ids = if count == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
        if ids.size().last() != Some(&count) {
            return Err(Error::shape(
                "ids",
                &ids.size(),
                format!("[..., {count}], one id for each codebook"),
            ));
        }
        Ok(self.projections.project_out(&self.codes(&ids)?.flatten(-2, -1)))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.codebook_size())
    }

    fn num_ids(&self) -> i64 {
        self.config.num_codebooks
    }
}
