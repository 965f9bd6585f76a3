//! Residual vector quantization (Zeghidour et al., SoundStream, arXiv 2107.03312): each stage quantizes what the stages
//! before it left.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

use crate::bits::check_ids;
use crate::estimators::{check_features, full_precision};
use crate::projection::Projections;
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
    /// In training the stages after a random one are left out.
    pub quantize_dropout: bool,
    /// Stages that are never left out, after the first: the last kept index is drawn from this to Q − 1.
    pub quantize_dropout_cutoff_index: i64,
    /// The number of kept stages is rounded up to a multiple of this.
    pub quantize_dropout_multiple_of: i64,
    /// Each stage; `heads` and `codebook_dim` are not for stages.
    pub stage: VqConfig,
}

impl Default for ResidualVqConfig {
    fn default() -> Self {
        Self {
            num_quantizers: 8,
            codebook_dim: None,
            shared_codebook: false,
            quantize_dropout: false,
            quantize_dropout_cutoff_index: 0,
            quantize_dropout_multiple_of: 1,
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
        if !(1..=1024).contains(&self.num_quantizers) {
            return Err(Error::config("num_quantizers", self.num_quantizers, "1 to 1024"));
        }
        if let Some(width) = self.codebook_dim {
            check_width("codebook_dim", width)?;
        }
        if !(0..self.num_quantizers).contains(&self.quantize_dropout_cutoff_index) {
            return Err(Error::config(
                "quantize_dropout_cutoff_index",
                self.quantize_dropout_cutoff_index,
                format!("0 to {}", self.num_quantizers - 1),
            ));
        }
        let multiple = self.quantize_dropout_multiple_of;
        if !(1..=self.num_quantizers).contains(&multiple) {
            return Err(Error::config(
                "quantize_dropout_multiple_of",
                multiple,
                format!("1 to {}", self.num_quantizers),
            ));
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

    /// The last stage that is kept where `drawn` was drawn.
    pub fn last_kept(&self, drawn: i64) -> i64 {
        let multiple = self.quantize_dropout_multiple_of;
        let kept = (drawn / multiple + 1) * multiple;
        kept.min(self.num_quantizers) - 1
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
        if let Some(last) = last_stage.filter(|last| !(0..self.config.num_quantizers).contains(last)) {
            return Err(Error::config(
                "last_stage",
                last,
                format!("0 to {}", self.config.num_quantizers - 1),
            ));
        }
        full_precision(features, |x| self.quantize_full(x, mode, last_stage))
    }

    fn quantize_full(
        &self,
        features: &Tensor,
        mode: Mode,
        last_stage: Option<i64>,
    ) -> Result<(Quantized, Tensor)> {
        let shared = self.config.shared_codebook;
        let kept = 1 + self.choose_last(mode, last_stage);
        let extras = VqExtras::default();
        let mut residual = self.projections.project_in(features);
        let mut sum = residual.zeros_like();
        let (mut ids, mut stage_losses, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let mut losses: Vec<(&'static str, Tensor)> = Vec::new();
        for i in 0..kept {
            let stage = self.stage(i);
            let pass = stage.pass(&residual, mode, &extras, !shared)?;
            // Not in place: the losses hold the old residual.
            let rest = &residual - pass.codes.detach();
            residual = rest;
            sum += pass.codes;
            ids.push(pass.ids);
            seen.push(pass.seen);
            let named = pass.terms.map_or_else(Vec::new, |terms| terms.weighted(stage.config()));
            stage_losses.push(total(&named, features));
            add_by_name(&mut losses, named);
        }
        if shared && mode != Mode::Eval && features.numel() > 0 {
            self.stage(0).finish(&Tensor::cat(&seen, 1), &extras);
        }
        for _ in kept..self.config.num_quantizers {
            ids.push(ids[0].full_like(-1));
            stage_losses.push(total(&[], features));
        }
        let ids = if self.config.num_quantizers == 1 { ids.remove(0) } else { Tensor::stack(&ids, -1) };
        let usage = Some(Usage::of(&ids, self.config.stage.codebook_size));
        let embeddings = self.projections.project_out(&sum);
        Ok((Quantized { embeddings, ids: Some(ids), losses, usage }, Tensor::stack(&stage_losses, 0)))
    }

    fn stage(&self, i: i64) -> &Vq {
        &self.stages[if self.config.shared_codebook { 0 } else { i as usize }]
    }

    fn choose_last(&self, mode: Mode, given: Option<i64>) -> i64 {
        let stages = self.config.num_quantizers;
        match given {
            _ if mode == Mode::Eval => stages - 1,
            Some(last) => last,
            None if self.config.quantize_dropout => {
                let from = self.config.quantize_dropout_cutoff_index;
                let drawn = Tensor::randint_low(from, stages, [1], (Kind::Int64, tch::Device::Cpu));
                self.config.last_kept(drawn.int64_value(&[0]))
            }
            None => stages - 1,
        }
    }
}

fn total(losses: &[(&'static str, Tensor)], like: &Tensor) -> Tensor {
    let zero = Tensor::zeros([], (like.kind(), like.device()));
    losses.iter().fold(zero, |sum, (_, loss)| sum + loss)
}

fn add_by_name(sums: &mut Vec<(&'static str, Tensor)>, losses: Vec<(&'static str, Tensor)>) {
    for (name, loss) in losses {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = &*sum + loss,
            None => sums.push((name, loss)),
        }
    }
}

impl Quantizer for ResidualVq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_stages(features, mode, None)?.0)
    }

    /// An id of −1 contributes nothing.
    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let count = self.config.num_quantizers;
        let ids = if count == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
        if ids.size().last() != Some(&count) {
            return Err(Error::shape("ids", &ids.size(), format!("[..., {count}], one id for each stage")));
        }
        check_ids(&ids.masked_fill(&ids.eq(-1), 0), self.config.stage.codebook_size)?;
        let mut sum: Option<Tensor> = None;
        for i in 0..count {
            let of_stage = ids.select(-1, i);
            let codes = self.stage(i).codes(&of_stage.clamp_min(0))?;
            let codes = codes.masked_fill(&of_stage.lt(0).unsqueeze(-1), 0.0);
            sum = Some(match sum {
                Some(sum) => sum + codes,
                None => codes,
            });
        }
        let sum = sum.ok_or_else(|| Error::config("num_quantizers", count, "at least 1"))?;
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
