//! What is done to logits between a model and a draw: temperature, top-k, top-p (nucleus), and Gumbel noise.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Filters of a categorical draw, applied in the order temperature, top-k, top-p.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Keeps the k largest logits.
    pub top_k: Option<i64>,
    /// Keeps the smallest set of most likely ids whose probabilities sum to at least p (Holtzman et al., arXiv 1904.09751).
    pub top_p: Option<f64>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

impl Filter {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// A negative temperature, `top_k` below 1, `top_p` outside (0, 1].
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::config(
                "temperature",
                self.temperature,
                "a number of at least 0 (0 is greedy)",
            ));
        }
        if let Some(k) = self.top_k.filter(|&k| k < 1) {
            return Err(Error::config("top_k", k, "at least 1, or none for no limit"));
        }
        if let Some(p) = self.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
            return Err(Error::config("top_p", p, "a number in (0, 1], or none for no limit"));
        }
        Ok(())
    }

    /// The filtered logits `[..., K]`: ids that are filtered out get -∞.
    pub fn apply(&self, logits: &Tensor) -> Tensor {
        let mut logits =
            if self.temperature > 0.0 { logits / self.temperature } else { logits.shallow_clone() };
        let vocabulary = *logits.size().last().unwrap_or(&0);
        if let Some(k) = self.top_k.filter(|&k| k < vocabulary) {
            let (_, kept) = logits.topk(k, -1, true, false);
            logits = keep_only(&logits, &kept, &kept.ones_like().to_kind(Kind::Bool));
        }
        if let Some(p) = self.top_p.filter(|&p| p < 1.0) {
            let (sorted, order) = logits.sort(-1, true);
            let probabilities = sorted.softmax(-1, Kind::Float);
            // An id stays while the mass before it is short of p, so the most likely one always stays.
            let before = probabilities.cumsum(-1, Kind::Float) - &probabilities;
            logits = keep_only(&logits, &order, &before.lt(p));
        }
        logits
    }

    /// Draws ids `[...]` from logits `[..., K]` with libtorch's global generator.
    pub fn sample(&self, logits: &Tensor) -> Tensor {
        if self.temperature == 0.0 {
            return logits.argmax(-1, false);
        }
        // Gumbel-max: the argmax of logits plus Gumbel noise is a categorical draw, for any leading shape.
        (self.apply(logits) + gumbel_like(logits)).argmax(-1, false)
    }
}

/// `logits` where `keep` says so for the ids in `order`, -∞ elsewhere.
fn keep_only(logits: &Tensor, order: &Tensor, keep: &Tensor) -> Tensor {
    let mask = logits.zeros_like().to_kind(Kind::Bool).scatter(-1, order, keep);
    logits.masked_fill(&mask.logical_not(), f64::NEG_INFINITY)
}

/// Standard Gumbel noise in the shape of `like`.
pub fn gumbel_like(like: &Tensor) -> Tensor {
    // -ln(-ln U) with U uniform. libtorch's exponential_ would save a logarithm, but draws one number at a time on CPUs. U comes
    // in steps of 2^-24 and what would be 0 is half a step; in half precision it could be 1, whose noise is infinite.
    let mut uniform = Tensor::empty(like.size(), (Kind::Float, like.device()));
    let mut uniform = uniform.uniform_(0.0, 1.0).clamp_min_(0.5f64.powi(25));
    (-(-uniform.log_()).log_()).to_kind(like.kind())
}
