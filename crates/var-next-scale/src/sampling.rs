//! What is done to logits in sampling, and how guidance and smoothing grow from scale to scale.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::sampling::Filter;
use video_core::{Error, Result};

/// How to draw (arXiv 2404.02905's code). The published figures are of `cfg` 1.5, top-k 900, top-p 0.96, no smoothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VarSampling {
    /// Guidance: t rises from 0 at the first scale to this at the last, and logits are (1 + t) · with − t · without class.
    pub cfg: f64,
    /// Temperature, top-k and top-p. Of ids as likely as the k-th all stay.
    pub filter: Filter,
    /// Instead of one code each position gets a mixture of codes, sharper at finer scales: smoother pictures.
    pub more_smooth: bool,
}

impl Default for VarSampling {
    fn default() -> Self {
        let filter = Filter { top_k: Some(900), top_p: Some(0.96), ..Filter::default() };
        Self { cfg: 1.5, filter, more_smooth: false }
    }
}

impl VarSampling {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !self.cfg.is_finite() {
            return Err(Error::config("cfg", self.cfg, "a number; 0 is no guidance"));
        }
        self.filter.validate().map_err(|error| error.within("filter"))
    }

    /// t, the guidance of a scale that is `ratio` along, from 0 at the first to 1 at the last.
    pub fn guidance(&self, ratio: f64) -> f64 {
        self.cfg * ratio
    }
}

/// The temperature of the mixture at a scale that is `ratio` along.
pub fn smooth_temperature(ratio: f64) -> f64 {
    (0.27 * (1.0 - ratio * 0.95)).max(0.005)
}

/// The factor on the logits of the mixture at a scale that is `ratio` along.
pub fn smooth_factor(ratio: f64) -> f64 {
    1.0 + ratio
}

/// (1 + t) · cond − t · uncond.
pub fn guided(cond: &Tensor, uncond: &Tensor, t: f64) -> Tensor {
    cond * (1.0 + t) - uncond * t
}

/// Logits `[..., V]`, −∞ where an id is filtered out: temperature, then top-k, where ids as likely as the k-th stay, then
/// top-p, where ids are dropped from the least likely on while their sum is at most 1 − p. A temperature of 0 is top-1.
pub fn filter_logits(logits: &Tensor, filter: &Filter) -> Tensor {
    let greedy = filter.temperature == 0.0;
    let mut logits = if greedy || filter.temperature == 1.0 {
        logits.shallow_clone()
    } else {
        logits / filter.temperature
    };
    let vocabulary = logits.size().last().copied().unwrap_or(0);
    let top_k = if greedy { Some(1) } else { filter.top_k };
    if let Some(k) = top_k.filter(|&k| k < vocabulary) {
        let least = logits.topk(k, -1, true, false).0.amin([-1i64].as_slice(), true);
        logits = logits.masked_fill(&logits.lt_tensor(&least), f64::NEG_INFINITY);
    }
    if let Some(p) = filter.top_p {
        let (sorted, order) = logits.sort(-1, false);
        let dropped = sorted.softmax(-1, Kind::Float).cumsum(-1, Kind::Float).le(1.0 - p);
        let _ = dropped.narrow(-1, vocabulary - 1, 1).fill_(0.0);
        let dropped = dropped.zeros_like().scatter(-1, &order, &dropped);
        logits = logits.masked_fill(&dropped, f64::NEG_INFINITY);
    }
    logits
}

/// Ids `[...]` drawn from logits `[..., V]`: the argmax of p / e, e standard exponential draws of the logits' shape.
pub fn draw(logits: &Tensor, exponential: &Tensor) -> Tensor {
    (logits.softmax(-1, Kind::Float) / exponential).argmax(-1, false)
}

/// Standard exponential draws in the shape of `like`, from torch's generator.
pub(crate) fn exponential_like(like: &Tensor) -> Tensor {
    like.empty_like().detach().exponential_(1.0)
}
