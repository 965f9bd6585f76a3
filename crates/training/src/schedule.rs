//! Learning-rate schedules, as the papers of the field use them. All start after the warm-up.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use crate::config::{below_one, positive};

/// How the learning rate goes on after the warm-up, from its peak to `min_learning_rate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The peak throughout.
    Constant {},
    /// Half a cosine (MAGVIT-v2, VideoGPT, TECO).
    Cosine {},
    /// Flat for the share `hold` of the decay, then a straight line (VAR: 0.05).
    Linear {
        /// Share of the decay spent at the peak, 0 to below 1.
        #[serde(default)]
        hold: f64,
    },
    /// Multiplied by `gamma` at each milestone (Open-MAGVIT2, Perceiver AR).
    Step {
        /// Steps of the run, rising.
        milestones: Vec<u64>,
        /// The factor, above 0.
        gamma: f64,
    },
    /// sqrt(timescale / (timescale + n)), n steps after the warm-up (Perceiver AR's `t5`).
    InverseSqrt {
        /// Steps, above 0.
        timescale: f64,
    },
    /// Flat for the share `hold` of the decay, then exponential (VAR: 0.15); needs a `min_learning_rate` above 0.
    Exponential {
        /// Share of the decay spent at the peak, 0 to below 1.
        #[serde(default)]
        hold: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Cosine {}
    }
}

impl Schedule {
    pub(crate) fn validate(&self) -> Result<()> {
        match self {
            Self::Constant {} | Self::Cosine {} => Ok(()),
            Self::Linear { hold } | Self::Exponential { hold } => below_one("hold", *hold),
            Self::Step { milestones, gamma } => {
                if !milestones.is_sorted_by(|a, b| a < b) {
                    return Err(Error::config("milestones", milestones, "steps in rising order"));
                }
                positive("gamma", *gamma)
            }
            Self::InverseSqrt { timescale } => positive("timescale", *timescale),
        }
    }

    /// The rate at `step` of the run, `since_warmup` steps after the warm-up, when the decay takes `decay_steps`.
    pub(crate) fn rate(&self, peak: f64, end: f64, step: u64, since_warmup: u64, decay_steps: u64) -> f64 {
        let done = (since_warmup as f64 / decay_steps as f64).min(1.0);
        // The share of the falling stretch that is done.
        let fallen = |hold: f64| ((done - hold) / (1.0 - hold)).max(0.0);
        match self {
            Self::Constant {} => peak,
            Self::Cosine {} => end + (peak - end) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Self::Linear { hold } => peak + (end - peak) * fallen(*hold),
            Self::Step { milestones, gamma } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= step).count();
                (peak * gamma.powi(passed as i32)).max(end)
            }
            Self::InverseSqrt { timescale } => {
                (peak * (timescale / (timescale + since_warmup as f64)).sqrt()).max(end)
            }
            Self::Exponential { hold } => peak * (end / peak).powf(fallen(*hold)),
        }
    }
}
