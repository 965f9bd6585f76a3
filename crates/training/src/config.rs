//! The `[train]` table of a config file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use torch_ext::{AdamWConfig, multiplies_bf16};
use video_core::{Error, Result};

use crate::Schedule;

/// Where losses are computed in bfloat16 autocast: matrix products and convolutions in bfloat16, the rest in float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bf16 {
    /// Nowhere.
    Never,
    /// On CUDA devices.
    #[default]
    Cuda,
    /// On CPUs, too, that have instructions for it ([`multiplies_bf16`]). Not the default: there, libtorch's gradients of some strided
    /// 3D convolutions are infinite in bfloat16 (seen in 2.13), at which a run stops in its first step.
    Native,
}

impl Bf16 {
    /// Whether it is used on a device.
    pub fn on(self, device: Device) -> bool {
        match self {
            Self::Never => false,
            Self::Cuda => device.is_cuda(),
            Self::Native => multiplies_bf16(device),
        }
    }
}

/// How a run is trained. The defaults are plain Adam under a cosine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// The run's seed; the draws of step n come from (seed, n).
    pub seed: u64,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Where schedules that fall end.
    pub min_learning_rate: f64,
    /// How the rate falls after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Share of the learning rate at step 0 of the warm-up, 0 to 1.
    pub warmup_start: f64,
    /// Steps from the end of the warm-up until the schedule ends; all the rest if absent.
    pub decay_steps: Option<u64>,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// AdamW's decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Muon for the inner weights; if none, AdamW has them all.
    pub muon: Option<MuonConfig>,
    /// Each part's gradients are scaled to at most this 2-norm.
    pub clip_norm: Option<f64>,
    /// Micro-batches whose mean gradient makes one step.
    pub gradient_accumulation: u64,
    /// Moving average of the weights, used by evaluation.
    pub ema: Option<EmaConfig>,
    /// Where losses are computed in bfloat16 autocast.
    pub bf16: Bf16,
    /// What is different for one part, by its name (`[train.parts.discriminator]`).
    pub parts: BTreeMap<String, PartConfig>,
    /// Steps between checkpoints; 0 writes one at the end only.
    pub checkpoint_every: u64,
    /// How many of the latest checkpoints stay on disk.
    pub keep_checkpoints: usize,
    /// Steps between lines in `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_every: u64,
}

/// Overrides for one part; what is absent is the run's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartConfig {
    /// The peak learning rate.
    pub learning_rate: Option<f64>,
    /// Where schedules that fall end.
    pub min_learning_rate: Option<f64>,
    /// AdamW's decay of the mean of gradients.
    pub beta1: Option<f64>,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: Option<f64>,
    /// AdamW's decoupled weight decay.
    pub weight_decay: Option<f64>,
    /// AdamW's epsilon.
    pub eps: Option<f64>,
    /// Muon for the inner weights.
    pub muon: Option<MuonConfig>,
    /// The largest 2-norm of its gradients.
    pub clip_norm: Option<f64>,
}

/// Muon, which takes the place of AdamW for weights of two axes and more: linear layers and convolutions. It needs far fewer
/// steps where there are few to be had; `docs/quickstart.md` has figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// The peak learning rate of these weights, under the run's schedule: about how much of its size a weight's matrix changes in
    /// a step. `weight_decay` is shared with AdamW.
    pub learning_rate: f64,
    /// Share of the momentum that stays at each step, 0 to below 1.
    pub momentum: f64,
    /// Weights that are left to AdamW, by parts of their names: tables whose rows are looked up, and heads.
    pub except: Vec<String>,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self { learning_rate: 0.02, momentum: 0.95, except: Vec::new() }
    }
}

impl MuonConfig {
    /// Whether a parameter is Muon's.
    pub(crate) fn takes(&self, name: &str, param: &Tensor) -> bool {
        param.dim() >= 2 && !self.except.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Exponential moving average of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Share of the average that stays at each step.
    pub decay: f64,
    /// Whether the n-th update uses min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999, warmup: false }
    }
}

impl EmaConfig {
    /// The decay of the n-th update, counted from 1.
    pub fn decay_at(&self, update: u64) -> f64 {
        let n = update as f64;
        if self.warmup { self.decay.min((1.0 + n) / (10.0 + n)) } else { self.decay }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 10_000,
            seed: 0,
            learning_rate: 1e-4,
            min_learning_rate: 0.0,
            schedule: Schedule::default(),
            warmup_steps: 0,
            warmup_start: 0.0,
            decay_steps: None,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.0,
            eps: 1e-8,
            muon: None,
            clip_norm: None,
            gradient_accumulation: 1,
            ema: None,
            bf16: Bf16::Cuda,
            parts: BTreeMap::new(),
            checkpoint_every: 1000,
            keep_checkpoints: 2,
            log_every: 10,
            eval_every: 0,
        }
    }
}

impl TrainConfig {
    /// The fields under which a checkpoint may be resumed though they differ: none of them changes a step that was
    /// already taken. (More `steps` stretch the schedules that end with the run.)
    pub(crate) const FREE_TO_CHANGE: [&'static str; 5] =
        ["steps", "checkpoint_every", "keep_checkpoints", "log_every", "eval_every"];

    /// Checks every field.
    ///
    /// # Errors
    /// The first one that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = |field, value: u64| {
            if value == 0 { Err(Error::config(field, value, "at least 1")) } else { Ok(()) }
        };
        at_least_one("steps", self.steps)?;
        at_least_one("gradient_accumulation", self.gradient_accumulation)?;
        at_least_one("log_every", self.log_every)?;
        at_least_one("keep_checkpoints", self.keep_checkpoints as u64)?;
        at_least_one("decay_steps", self.decay_steps.unwrap_or(1))?;
        in_range("warmup_start", self.warmup_start, 0.0, 1.0)?;
        if let Some(ema) = self.ema {
            in_range("ema.decay", ema.decay, 0.0, 1.0)?;
        }
        self.schedule.validate().map_err(|error| error.within("schedule"))?;
        self.validate_part("")?;
        for name in self.parts.keys() {
            self.validate_part(name).map_err(|error| error.within(&format!("parts.{name}")))?;
        }
        Ok(())
    }

    /// Checks the fields that a part may override, as that part sees them.
    fn validate_part(&self, part: &str) -> Result<()> {
        let AdamWConfig { beta1, beta2, weight_decay, eps } = self.adamw(part);
        let (peak, end) = self.peak_and_end(part);
        in_range("learning_rate", peak, 0.0, f64::MAX)?;
        in_range("min_learning_rate", end, 0.0, f64::MAX)?;
        if end > peak {
            return Err(Error::config("min_learning_rate", end, format!("at most learning_rate, {peak}")));
        }
        if matches!(self.schedule, Schedule::Exponential { .. }) && end <= 0.0 {
            return Err(Error::config("min_learning_rate", end, "more than 0 under an exponential schedule"));
        }
        below_one("beta1", beta1)?;
        below_one("beta2", beta2)?;
        in_range("weight_decay", weight_decay, 0.0, f64::MAX)?;
        positive("eps", eps)?;
        if let Some(muon) = self.muon(part) {
            positive("muon.learning_rate", muon.learning_rate)?;
            below_one("muon.momentum", muon.momentum)?;
        }
        self.clip_norm(part).map_or(Ok(()), |norm| positive("clip_norm", norm))
    }

    /// The learning rate of a part at a step, counted from 0.
    pub fn learning_rate_at(&self, part: &str, step: u64) -> f64 {
        let (peak, end) = self.peak_and_end(part);
        if step < self.warmup_steps {
            let risen = step as f64 / self.warmup_steps as f64;
            return peak * (self.warmup_start + (1.0 - self.warmup_start) * risen);
        }
        let decay_steps =
            self.decay_steps.unwrap_or_else(|| self.steps.saturating_sub(self.warmup_steps).max(1));
        self.schedule.rate(peak, end, step, step - self.warmup_steps, decay_steps)
    }

    /// What a part's learning rate at a step is a share of the peak.
    pub(crate) fn schedule_at(&self, part: &str, step: u64) -> f64 {
        let (peak, _) = self.peak_and_end(part);
        if peak > 0.0 { self.learning_rate_at(part, step) / peak } else { 0.0 }
    }

    /// AdamW's settings for a part.
    pub fn adamw(&self, part: &str) -> AdamWConfig {
        let own = self.parts.get(part);
        let or = |value: Option<f64>, shared| value.unwrap_or(shared);
        AdamWConfig {
            beta1: or(own.and_then(|p| p.beta1), self.beta1),
            beta2: or(own.and_then(|p| p.beta2), self.beta2),
            weight_decay: or(own.and_then(|p| p.weight_decay), self.weight_decay),
            eps: or(own.and_then(|p| p.eps), self.eps),
        }
    }

    /// Muon's settings for a part.
    pub fn muon(&self, part: &str) -> Option<&MuonConfig> {
        self.parts.get(part).and_then(|p| p.muon.as_ref()).or(self.muon.as_ref())
    }

    /// The largest norm of a part's gradients.
    pub fn clip_norm(&self, part: &str) -> Option<f64> {
        self.parts.get(part).and_then(|p| p.clip_norm).or(self.clip_norm)
    }

    fn peak_and_end(&self, part: &str) -> (f64, f64) {
        let own = self.parts.get(part);
        (
            own.and_then(|p| p.learning_rate).unwrap_or(self.learning_rate),
            own.and_then(|p| p.min_learning_rate).unwrap_or(self.min_learning_rate),
        )
    }
}

pub(crate) fn in_range(field: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let expected = if high == f64::MAX { format!("at least {low}") } else { format!("from {low} to {high}") };
    Err(Error::config(field, value, expected))
}

pub(crate) fn positive(field: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(Error::config(field, value, "more than 0")) }
}

pub(crate) fn below_one(field: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(Error::config(field, value, "from 0, below 1")) }
}
