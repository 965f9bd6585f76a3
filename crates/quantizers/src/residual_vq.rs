//! Residual vector quantization (Zeghidour et al., SoundStream, arXiv 2107.03312): each stage quantizes what the stages
//! before it left.

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::estimators::{check_features, full_precision};
use crate::projection::Projections;
use crate::residual::{QuantizeDropout, StagePass, check_stages, kept_stages, lookup_stages, pass_stages};
use crate::vq::check_width;
use crate::{Mode, Quantized, Quantizer, Usage, Vq, VqConfig, VqExtras};

/// Configuration of [`ResidualVq`]. The stages' defaults are vector-quantize-pytorch's with restarts at a count of 2, as
/// in SoundStream; 8 stages of 1024 codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualVqConfig {
    /// Q, stages; each gives one id.
    pub num_quantizers: i64,
    /// Width of the codes. None: the features' width. Features of another width are projected, once around all stages.
    pub codebook_dim: Option<i64>,
    /// All stages have the same codes.
    pub shared_codebook: bool,
    /// In training the stages after a random one are left out; none: never.
    pub quantize_dropout: Option<QuantizeDropout>,
    /// Each stage; `heads` and `codebook_dim` are not for stages.
    pub stage: VqConfig,
}

impl Default for ResidualVqConfig {
    fn default() -> Self {
        Self {
            num_quantizers: 8,
            codebook_dim: None,
            shared_codebook: false,
            quantize_dropout: None,
            stage: VqConfig { dead_code_threshold: 2.0, ..VqConfig::lucidrains() },
        }
    }
}

impl ResidualVqConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_stages(self.num_quantizers, self.quantize_dropout)?;
        if let Some(width) = self.codebook_dim {
            check_width("codebook_dim", width)?;
        }
        if self.stage.heads != 1 {
            return Err(Error::config(
                "stage.heads",
                self.stage.heads,
                "1: stages have one code per position",
            ));
        }
        if self.stage.codebook_dim.is_some() {
            return Err(Error::config(
                "stage.codebook_dim",
                self.stage.codebook_dim,
                "none: set codebook_dim beside stage",
            ));
        }
        self.stage.validate().map_err(|error| error.within("stage"))
    }
}

/// Residual vector quantizer. Variables: those of each stage's [`Vq`] under `layers.<i>` (shared: `layers.0` alone), and
/// `project_in`, `project_out` where the features have another width than codes.
#[derive(Debug)]
pub struct ResidualVq {
    config: ResidualVqConfig,
    dim: i64,
    projections: Projections,
    stages: Vec<Vq>,
}

impl ResidualVq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: ResidualVqConfig) -> Result<Self> {
        config.validate()?;
        check_width("dim", dim)?;
        let width = config.codebook_dim.unwrap_or(dim);
        let held = if config.shared_codebook { 1 } else { config.num_quantizers };
        let stages = (0..held)
            .map(|i| Vq::new(&(path / "layers" / i), width, config.stage.clone()))
            .collect::<Result<_>>()?;
        Ok(Self { projections: Projections::new(path, dim, width), config, dim, stages })
    }

    /// Its configuration.
    pub fn config(&self) -> &ResidualVqConfig {
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
        let kept = kept_stages(self.config.num_quantizers, self.config.quantize_dropout, mode, last_stage)?;
        full_precision(features, |x| self.quantize_full(x, mode, kept))
    }

    fn quantize_full(&self, features: &Tensor, mode: Mode, kept: i64) -> Result<(Quantized, Tensor)> {
        let shared = self.config.shared_codebook;
        let extras = VqExtras::default();
        let mut seen = Vec::new();
        let x = self.projections.project_in(features);
        let pass = pass_stages(&x, self.config.num_quantizers, kept, |i, residual| {
            let stage = self.stage(i);
            let pass = stage.pass(residual, mode, &extras, !shared)?;
            seen.push(pass.seen);
            Ok(StagePass {
                taken: pass.codes.detach(),
                codes: pass.codes,
                ids: pass.ids,
                losses: pass.terms.map_or_else(Vec::new, |terms| terms.weighted(stage.config())),
            })
        })?;
        if shared && mode != Mode::Eval && features.numel() > 0 {
            self.stage(0).finish(&Tensor::cat(&seen, 1), &extras);
        }
        let usage = Some(Usage::of(&pass.ids, self.config.stage.codebook_size));
        let embeddings = self.projections.project_out(&pass.codes);
        let quantized = Quantized { embeddings, ids: Some(pass.ids), losses: pass.losses, usage };
        Ok((quantized, pass.stage_losses))
    }

    fn stage(&self, i: i64) -> &Vq {
        &self.stages[if self.config.shared_codebook { 0 } else { i as usize }]
    }
}

impl Quantizer for ResidualVq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_stages(features, mode, None)?.0)
    }

    /// An id of −1 contributes nothing.
    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let codes = lookup_stages(ids, config.num_quantizers, config.stage.codebook_size, |i, ids| {
            self.stage(i).codes(ids)
        })?;
        let sum = codes.sum_dim_intlist([0i64].as_slice(), false, codes.kind());
        Ok(self.projections.project_out(&sum.to_kind(self.projections.kind())))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.stage.codebook_size)
    }

    fn num_ids(&self) -> i64 {
        self.config.num_quantizers
    }
}
