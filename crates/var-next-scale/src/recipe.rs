//! The published training recipe: learning rate, weight decay and the progress over scales, step by step.

use std::f64::consts::PI;
use std::str::FromStr;

use video_core::{Error, Result};

/// How the learning rate falls behind the warm-up. As words: `cos`, `lin`, `lin0`, `lin00`, `lin0.4`, `exp`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LrDecay {
    /// Half a cosine.
    Cosine,
    /// Flat for this share of the time, then a straight line.
    Hold(f64),
    /// Two straight lines that meet after this share of the time, halfway between where one line would be and the end of a
    /// hold of that share.
    Bent(f64),
    /// Flat for 15 % of the time, then exponential.
    Exponential,
}

impl FromStr for LrDecay {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let bent = || {
            let share: f64 = word.strip_prefix("lin")?.parse().ok()?;
            (0.0..1.0).contains(&share).then_some(Self::Bent(share))
        };
        match word {
            "cos" => Ok(Self::Cosine),
            "lin" => Ok(Self::Hold(0.15)),
            "lin0" => Ok(Self::Hold(0.05)),
            "lin00" => Ok(Self::Hold(0.0)),
            "exp" => Ok(Self::Exponential),
            _ => bent().ok_or_else(|| {
                Error::config("sche_type", word, "cos, lin, lin0, lin00, exp, or lin and a share below 1")
            }),
        }
    }
}

/// Learning rate and weight decay over a run (arXiv 2404.02905's code). Iterations count from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// How the rate falls.
    pub decay: LrDecay,
    /// The learning rate behind the warm-up.
    pub peak_lr: f64,
    /// Iterations of linear warm-up.
    pub wp_it: i64,
    /// Iterations of the run.
    pub max_it: i64,
    /// Where the warm-up starts, as a share of the peak.
    pub wp0: f64,
    /// Where the rate ends, as a share of the peak.
    pub wpe: f64,
}

impl LrSchedule {
    /// The learning rate at an iteration.
    pub fn lr(&self, iteration: i64) -> f64 {
        let Self { wp_it, wp0, .. } = *self;
        if iteration < wp_it {
            return self.peak_lr * (wp0 + (1.0 - wp0) * iteration as f64 / wp_it as f64);
        }
        let steps = (self.max_it - 1 - wp_it).max(1);
        self.peak_lr * self.factor((iteration - wp_it) as f64 / steps as f64)
    }

    /// The share of the peak when `done` of the decay is over.
    fn factor(&self, done: f64) -> f64 {
        let (end, rest) = (self.wpe, 1.0 - done);
        match self.decay {
            LrDecay::Cosine => end + (1.0 - end) * (0.5 + 0.5 * (PI * done).cos()),
            LrDecay::Hold(hold) if done < hold => 1.0,
            LrDecay::Hold(hold) => end + (1.0 - end) * rest / (1.0 - hold),
            LrDecay::Bent(bend) => {
                let middle = (1.0 + end + (1.0 - end) * (1.0 - bend)) / 2.0;
                if done < bend {
                    1.0 + (middle - 1.0) * done / bend
                } else {
                    end + (middle - end) * rest / (1.0 - bend)
                }
            }
            LrDecay::Exponential if done < 0.15 => 1.0,
            LrDecay::Exponential => ((done - 0.15) / 0.85 * end.ln()).exp(),
        }
    }

    /// The weight decay at an iteration: half a cosine over the whole run, the warm-up included.
    pub fn weight_decay(&self, iteration: i64, start: f64, end: f64) -> f64 {
        let done = iteration as f64 / (self.max_it - 1).max(1) as f64;
        end + (start - end) * (0.5 + 0.5 * (PI * done).cos())
    }
}

/// Whether a variable of [`Var`](crate::Var) decays: weights of linear layers and the tables of classes do; biases, positions,
/// levels, shared modulations and attention scales do not.
pub fn decays(name: &str, axes: usize) -> bool {
    const KEPT: [&str; 14] = [
        "cls_token",
        "start_token",
        "task_token",
        "cfg_uncond",
        "pos_embed",
        "pos_1LC",
        "pos_start",
        "start_pos",
        "lvl_embed",
        "gamma",
        "beta",
        "ada_gss",
        "moe_bias",
        "scale_mul",
    ];
    axes != 1 && !name.ends_with("bias") && !KEPT.iter().any(|kept| name.contains(kept))
}

/// When progressive training takes in the next scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgressSchedule {
    /// The last scale at first, from 0.
    pub pg0: usize,
    /// The share of the run after which all scales are trained, above 0.
    pub pg: f64,
    /// Iterations of warm-up, during which the first stage stays.
    pub wp_it: i64,
    /// Iterations of the run.
    pub max_it: i64,
}

impl ProgressSchedule {
    /// The last scale that is trained at an iteration, of so many.
    pub fn last_scale(&self, iteration: i64, scales: usize) -> usize {
        let all = self.max_it as f64 * self.pg;
        if iteration <= self.wp_it {
            self.pg0
        } else if iteration as f64 >= all {
            scales - 1
        } else {
            let done = (iteration - self.wp_it) as f64 / (all - self.wp_it as f64);
            let more = (scales - 1).saturating_sub(self.pg0) as f64;
            self.pg0 + (done.clamp(0.0, 1.0) * more).round_ties_even() as usize
        }
    }
}
