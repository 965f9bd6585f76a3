//! Residual finite scalar quantization: stages of [`Fsq`](crate::Fsq), each on what the stages before it left.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

use crate::estimators::{check_features, full_precision};
use crate::fsq::LevelGrid;
use crate::lfq::positive;
use crate::projection::Projections;
use crate::residual::{QuantizeDropout, StagePass, check_stages, kept_stages, lookup_stages, pass_stages};
use crate::{FsqConfig, Mode, Quantized, Quantizer, Usage};

/// What a stage does to the residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidualFsqForm {
    /// Stage i quantizes residual / L^-i to symmetric levels, clamping to [-1, 1], so that each stage refines one step of
    /// the stage before it. The features are first squashed to c·tanh(x/c), c = 1 + 1/(L − 1): vector-quantize-pytorch.
    #[default]
    Clamped,
    /// The same with tanh in place of the clamp, and without the squash unless `soft_clamp` gives its c.
    Tanh,
    /// Every stage is a plain FSQ of the same scale: Cosmos.
    Plain,
}

/// Configuration of [`ResidualFsq`]. The default is 8 stages of 600 codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualFsqConfig {
    /// Levels L of each channel, as in [`FsqConfig`]; all stages have the same.
    pub levels: Vec<i64>,
    /// Q, stages; each gives one id.
    pub num_quantizers: i64,
    /// What a stage does.
    pub form: ResidualFsqForm,
    /// c of a squash c·tanh(x/c) of the features before the first stage of [`ResidualFsqForm::Tanh`]: one for each
    /// channel, or one for all of them. None: no squash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_clamp: Option<Vec<f64>>,
    /// In training the stages after a random one are left out; none: never.
    pub quantize_dropout: Option<QuantizeDropout>,
}

impl Default for ResidualFsqConfig {
    fn default() -> Self {
        Self {
            levels: vec![8, 5, 5, 3],
            num_quantizers: 8,
            form: ResidualFsqForm::default(),
            soft_clamp: None,
            quantize_dropout: None,
        }
    }
}

impl ResidualFsqConfig {
    /// Cosmos' residual FSQ: 4 plain stages.
    pub fn cosmos() -> Self {
        Self {
            levels: FsqConfig::default().levels,
            num_quantizers: 4,
            form: ResidualFsqForm::Plain,
            ..Self::default()
        }
    }

    /// One stage's codes.
    fn stage(&self) -> FsqConfig {
        FsqConfig {
            levels: self.levels.clone(),
            num_codebooks: 1,
            symmetric: self.form != ResidualFsqForm::Plain,
            hard_clamp: self.form == ResidualFsqForm::Clamped,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_stages(self.num_quantizers, self.quantize_dropout)?;
        self.stage().validate()?;
        if let Some(limits) = &self.soft_clamp {
            if self.form != ResidualFsqForm::Tanh {
                return Err(Error::config("soft_clamp", limits, "none: it belongs to form = \"tanh\""));
            }
            if limits.len() != 1 && limits.len() != self.levels.len() {
                let expected = format!("1 number, or {}, one for each channel", self.levels.len());
                return Err(Error::config("soft_clamp", limits, expected));
            }
            limits.iter().try_for_each(|&limit| positive("soft_clamp", limit))?;
        }
        let finest = self.levels.iter().copied().max().unwrap_or(1) as f64;
        // The scales and what they are divided by must stay normal floats.
        if self.form != ResidualFsqForm::Plain && finest.powi(self.num_quantizers as i32 - 1) > 1e30 {
            let expected = format!("fewer stages: the last one's scale is {finest}^-(num_quantizers − 1)");
            return Err(Error::config("num_quantizers", self.num_quantizers, expected));
        }
        Ok(())
    }
}

/// Residual finite scalar quantizer. Parameters: `project_in`, `project_out` where the features' width is not the number of
/// levels, otherwise none.
#[derive(Debug)]
pub struct ResidualFsq {
    config: ResidualFsqConfig,
    codebook_size: i64,
    dim: i64,
    projections: Projections,
    grid: LevelGrid,
}

impl ResidualFsq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: ResidualFsqConfig) -> Result<Self> {
        config.validate()?;
        if dim < 1 {
            return Err(Error::config("dim", dim, "a positive width"));
        }
        let stage = config.stage();
        Ok(Self {
            codebook_size: stage.codebook_size(),
            projections: Projections::new(path, dim, stage.code_dim()),
            grid: LevelGrid::new(&stage.levels, stage.symmetric, stage.hard_clamp)?,
            config,
            dim,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ResidualFsqConfig {
        &self.config
    }

    /// The scale of each stage's codes, float32 `[Q, d]`.
    pub fn scales(&self) -> Tensor {
        let levels = Tensor::from_slice(&self.config.levels).to_kind(Kind::Float);
        if self.config.form == ResidualFsqForm::Plain {
            return levels.ones_like().unsqueeze(0).repeat([self.config.num_quantizers, 1]);
        }
        let stages = Tensor::arange(self.config.num_quantizers, (Kind::Float, levels.device()));
        levels.unsqueeze(0).pow(&-stages.unsqueeze(-1))
    }

    /// The scaled codes of each stage, `[Q, ..., d]`, of ids `[..., Q]`, before they are summed and projected.
    ///
    /// # Errors
    /// The last axis is not Q, or an id is outside the codebook.
    pub fn stage_codes(&self, ids: &Tensor) -> Result<Tensor> {
        let scales = self.scales().to_device(ids.device());
        lookup_stages(ids, self.config.num_quantizers, self.codebook_size, |i, ids| {
            Ok(self.grid.codes_of_digits(&self.grid.digits(ids), Kind::Float) * scales.get(i))
        })
    }

    /// [`Quantizer::quantize`] with the last stage to keep given (0-based, for training; else drawn if the config says so).
    ///
    /// # Errors
    /// The last axis is not the width, or there is no such stage.
    pub fn quantize_stages(
        &self,
        features: &Tensor,
        mode: Mode,
        last_stage: Option<i64>,
    ) -> Result<Quantized> {
        check_features(features, self.dim)?;
        let config = &self.config;
        let kept = kept_stages(config.num_quantizers, config.quantize_dropout, mode, last_stage)?;
        full_precision(features, |x| {
            let scales = self.scales().to_device(x.device());
            let z = self.squash(&self.projections.project_in(x));
            let pass = pass_stages(&z, config.num_quantizers, kept, |i, residual| {
                let scale = scales.get(i);
                let (codes, digits) = self.grid.quantize(&(residual / &scale));
                let codes = match mode {
                    Mode::Train { .. } => codes,
                    Mode::Eval => self.grid.codes_of_digits(&digits, z.kind()),
                } * scale;
                let ids = self.grid.ids(&digits);
                Ok(StagePass { taken: codes.detach(), codes, ids, losses: Vec::new() })
            })?;
            let usage = Some(Usage::of(&pass.ids, self.codebook_size));
            let embeddings = self.projections.project_out(&pass.codes).to_kind(features.kind());
            Ok(Quantized { embeddings, ids: Some(pass.ids), losses: Vec::new(), usage })
        })
    }

    /// Brings features softly near the range of the first stage.
    fn squash(&self, z: &Tensor) -> Tensor {
        let limit = match (self.config.form, &self.config.soft_clamp) {
            (ResidualFsqForm::Clamped, _) => {
                let limits: Vec<f64> =
                    self.config.levels.iter().map(|&level| 1.0 + 1.0 / (level - 1) as f64).collect();
                Tensor::from_slice(&limits)
            }
            (_, Some(limits)) => Tensor::from_slice(limits),
            (_, None) => return z.shallow_clone(),
        };
        let limit = limit.to_device(z.device()).to_kind(z.kind());
        (z / &limit).tanh() * limit
    }
}

impl Quantizer for ResidualFsq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        self.quantize_stages(features, mode, None)
    }

    /// An id of −1 contributes nothing.
    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let codes = self.stage_codes(ids)?.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        Ok(self.projections.project_out(&codes.to_kind(self.projections.kind())))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.codebook_size)
    }

    fn num_ids(&self) -> i64 {
        self.config.num_quantizers
    }
}
