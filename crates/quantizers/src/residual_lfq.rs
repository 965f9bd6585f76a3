//! Residual lookup-free quantization: stage i is an [`Lfq`] whose codes are ±2^-i, so that each stage halves the step.

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::estimators::{check_features, full_precision};
use crate::projection::Projections;
use crate::residual::{QuantizeDropout, StagePass, check_stages, kept_stages, lookup_stages, pass_stages};
use crate::{Lfq, LfqConfig, Mode, Quantized, Quantizer, Usage};

/// Configuration of [`ResidualLfq`]. The default is 8 stages of 2^8 codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualLfqConfig {
    /// Q, stages; each gives one id.
    pub num_quantizers: i64,
    /// In training the stages after a random one are left out; none: never.
    pub quantize_dropout: Option<QuantizeDropout>,
    /// The first stage. Stage i has its `codebook_scale` and `soft_clamp` times 2^-i, and the same inverse temperature: its
    /// assignments are softer. One codebook.
    pub stage: LfqConfig,
}

impl Default for ResidualLfqConfig {
    fn default() -> Self {
        Self { num_quantizers: 8, quantize_dropout: None, stage: LfqConfig::with_bits(8) }
    }
}

impl ResidualLfqConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_stages(self.num_quantizers, self.quantize_dropout)?;
        // 2^-Q must stay far from the smallest float.
        if self.num_quantizers > 64 {
            return Err(Error::config("num_quantizers", self.num_quantizers, "1 to 64: scales halve"));
        }
        if self.stage.num_codebooks != 1 {
            let expected = "1: stages have one code per position";
            return Err(Error::config("stage.num_codebooks", self.stage.num_codebooks, expected));
        }
        self.stage.validate().map_err(|error| error.within("stage"))
    }

    fn stage(&self, i: i64) -> LfqConfig {
        let scale = 0.5f64.powi(i as i32);
        LfqConfig {
            codebook_scale: self.stage.codebook_scale * scale,
            soft_clamp: self.stage.soft_clamp.map(|limit| limit * scale),
            ..self.stage.clone()
        }
    }
}

/// Residual lookup-free quantizer. Parameters: `project_in`, `project_out` where the features' width is not the stage's
/// bits, otherwise none.
#[derive(Debug)]
pub struct ResidualLfq {
    config: ResidualLfqConfig,
    dim: i64,
    projections: Projections,
    stages: Vec<Lfq>,
}

impl ResidualLfq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: ResidualLfqConfig) -> Result<Self> {
        config.validate()?;
        if dim < 1 {
            return Err(Error::config("dim", dim, "a positive width"));
        }
        let width = config.stage.bits;
        let stages = (0..config.num_quantizers)
            .map(|i| Lfq::new(&(path / "layers" / i), width, config.stage(i)))
            .collect::<Result<_>>()?;
        Ok(Self { projections: Projections::new(path, dim, width), config, dim, stages })
    }

    /// Its configuration.
    pub fn config(&self) -> &ResidualLfqConfig {
        &self.config
    }

    /// [`Quantizer::quantize`] with the last stage to keep given (0-based, for training; else drawn if the config says
    /// so), and with the loss of each stage, `[Q]`, 0 for those left out.
    ///
    /// # Errors
    /// The last axis is not the width, or there is no such stage.
    pub fn quantize_stages(
        &self,
        features: &Tensor,
        mode: Mode,
        last_stage: Option<i64>,
    ) -> Result<(Quantized, Tensor)> {
        check_features(features, self.dim)?;
        let config = &self.config;
        let kept = kept_stages(config.num_quantizers, config.quantize_dropout, mode, last_stage)?;
        full_precision(features, |x| {
            let x = self.projections.project_in(x);
            let pass = pass_stages(&x, config.num_quantizers, kept, |i, residual| {
                let pass = self.stages[i as usize].pass(residual, mode, None)?;
                Ok(StagePass { codes: pass.codes, taken: pass.quantized, ids: pass.ids, losses: pass.losses })
            })?;
            let usage = Some(Usage::of(&pass.ids, 1 << config.stage.bits));
            let embeddings = self.projections.project_out(&pass.codes).to_kind(features.kind());
            let quantized = Quantized { embeddings, ids: Some(pass.ids), losses: pass.losses, usage };
            Ok((quantized, pass.stage_losses))
        })
    }
}

impl Quantizer for ResidualLfq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_stages(features, mode, None)?.0)
    }

    /// An id of −1 contributes nothing.
    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let codes = lookup_stages(ids, config.num_quantizers, 1 << config.stage.bits, |i, ids| {
            Ok(self.stages[i as usize].codes(ids))
        })?;
        let sum = codes.sum_dim_intlist([0i64].as_slice(), false, codes.kind());
        Ok(self.projections.project_out(&sum.to_kind(self.projections.kind())))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(1 << self.config.stage.bits)
    }

    fn num_ids(&self) -> i64 {
        self.config.num_quantizers
    }
}
