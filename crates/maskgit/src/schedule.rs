//! Mask schedules: which share of the tokens is masked at which point of decoding, or of training.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

/// The least share that a schedule gives.
const LEAST: f32 = 1e-6;

/// γ(r): the share of tokens that is still masked when the share r of the steps is done (MaskGIT, section 3.3; MAGVIT's
/// `poly`). In configs a word: `"cosine"`, `"uniform"`, `"log"`, `"exp"`, `"pow2.5"`, `"poly:-1,0,1"`.
///
/// All arithmetic is float32, as in the reference: it decides counts. Twelve steps over 256 tokens leave 127 after the
/// eighth, not 128, because cos(π/3) rounds below a half.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MaskSchedule {
    /// 1 − r.
    Uniform,
    /// 1 − r^p.
    Pow(f32),
    /// cos(π r / 2).
    #[default]
    Cosine,
    /// −log₂ r / log₂ N.
    Log,
    /// 1 − N^(r − 1).
    Exp,
    /// A polynomial in r, the highest power first.
    Poly(Vec<f32>),
    /// (σ(b) − σ((r (e − s) + s)/τ)) / (σ(b) − σ(a)) with a = s/τ, b = e/τ: open-muse. In configs `"sigmoid"` for s = −3, e = 3,
    /// τ = 1, or `"sigmoid:-3,3,1"`.
    Sigmoid {
        /// s.
        start: f32,
        /// e.
        end: f32,
        /// τ.
        tau: f32,
    },
}

impl MaskSchedule {
    /// The share of `tokens` that is masked at progress r in [0, 1]; within [1e-6, 1].
    ///
    /// # Errors
    /// Progress outside [0, 1], or no token.
    pub fn ratio(&self, progress: f32, tokens: i64) -> Result<f32> {
        if !(0.0..=1.0).contains(&progress) {
            return Err(Error::input("progress", progress.to_string(), "a number in [0, 1]"));
        }
        if tokens < 1 {
            return Err(Error::input("tokens", tokens.to_string(), "at least one token to mask"));
        }
        let ratio = self.unclamped(progress, tokens);
        // One token alone makes log's 0/0; it is masked until the end.
        Ok(if ratio.is_nan() { 1.0 } else { ratio.clamp(LEAST, 1.0) })
    }

    /// γ(r) as its formula gives it, which may leave [0, 1] a little, or for `log` at 0 altogether.
    pub fn unclamped(&self, progress: f32, tokens: i64) -> f32 {
        let r = progress;
        let n = tokens as f32;
        match self {
            Self::Uniform => 1.0 - r,
            Self::Pow(exponent) => 1.0 - r.powf(*exponent),
            Self::Cosine => (std::f32::consts::FRAC_PI_2 * r).cos(),
            Self::Log => -log2(r) / log2(n),
            Self::Exp => 1.0 - (std::f32::consts::LN_2 * (-log2(n) * (1.0 - r))).exp(),
            Self::Poly(coefficients) => coefficients.iter().fold(0.0, |value, c| value * r + c),
            Self::Sigmoid { start, end, tau } => {
                let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
                let (first, last) = (sigmoid(start / tau), sigmoid(end / tau));
                (last - sigmoid((r * (end - start) + start) / tau)) / (last - first)
            }
        }
    }

    /// How many of `tokens` are still masked after each of `steps` steps, as both decoders count: at least one, and at
    /// least one fewer than before while there is more than one.
    ///
    /// # Errors
    /// No token or no step.
    pub fn counts(&self, tokens: i64, steps: i64) -> Result<Vec<i64>> {
        if steps < 1 {
            return Err(Error::config("steps", steps, "at least 1"));
        }
        let mut unknown = tokens;
        (1..=steps)
            .map(|step| {
                unknown = self.count(step as f32 / steps as f32, tokens, unknown)?;
                Ok(unknown)
            })
            .collect()
    }

    /// ⌊tokens · γ(progress)⌋, at least one, and fewer than the `unknown` ones of now if that leaves any.
    pub(crate) fn count(&self, progress: f32, tokens: i64, unknown: i64) -> Result<i64> {
        let wanted = (tokens as f32 * self.ratio(progress, tokens)?).floor() as i64;
        Ok(wanted.min(unknown - 1).max(1))
    }
}

/// As JAX computes it, a ratio of natural logarithms: where N is a square, the last bit decides a count.
fn log2(x: f32) -> f32 {
    x.ln() / std::f32::consts::LN_2
}

impl FromStr for MaskSchedule {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let refuse = || {
            Error::config(
                "mask_schedule",
                word,
                "uniform, cosine, log, exp, sigmoid, pow and a positive exponent (pow2.5), poly: and coefficients (poly:-1,0,1), \
                 or sigmoid: and start, end and tau (sigmoid:-3,3,1)",
            )
        };
        let number = |text: &str| match text.trim().parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(refuse()),
        };
        Ok(match word {
            "uniform" | "linear" => Self::Uniform,
            "sigmoid" => Self::Sigmoid { start: -3.0, end: 3.0, tau: 1.0 },
            "cosine" => Self::Cosine,
            "log" => Self::Log,
            "exp" => Self::Exp,
            _ if word.starts_with("sigmoid:") => {
                let numbers =
                    word["sigmoid:".len()..].split(',').map(number).collect::<Result<Vec<f32>>>()?;
                match numbers[..] {
                    [start, end, tau] if start < end && tau > 0.0 => Self::Sigmoid { start, end, tau },
                    _ => return Err(refuse()),
                }
            }
            _ => match (word.strip_prefix("pow"), word.strip_prefix("poly:")) {
                (Some(exponent), _) => {
                    Self::Pow(Some(number(exponent)?).filter(|&p| p > 0.0).ok_or_else(refuse)?)
                }
                (_, Some(list)) => Self::Poly(list.split(',').map(number).collect::<Result<_>>()?),
                _ => return Err(refuse()),
            },
        })
    }
}

impl fmt::Display for MaskSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Pow(exponent) => write!(f, "pow{exponent}"),
            Self::Cosine => f.write_str("cosine"),
            Self::Log => f.write_str("log"),
            Self::Exp => f.write_str("exp"),
            Self::Sigmoid { start, end, tau } => write!(f, "sigmoid:{start},{end},{tau}"),
            Self::Poly(coefficients) => {
                let list: Vec<String> = coefficients.iter().map(f32::to_string).collect();
                write!(f, "poly:{}", list.join(","))
            }
        }
    }
}

impl TryFrom<String> for MaskSchedule {
    type Error = Error;

    fn try_from(word: String) -> Result<Self> {
        word.parse()
    }
}

impl From<MaskSchedule> for String {
    fn from(schedule: MaskSchedule) -> Self {
        schedule.to_string()
    }
}
