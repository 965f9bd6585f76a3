//! Muse's sampling, in the reading of muse-maskgit-pytorch: masks come before a step, not behind it.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};
use video_core::sampling::gumbel_like;
use video_core::{Error, Result};

use super::transformer::{Critic, MuseContext, MuseTransformer};
use crate::decode::scattered;

/// Score of positions that were not masked: they are not masked again.
const SETTLED: f64 = -1e5;

/// How [`generate`] goes about it; the defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuseSampling {
    /// T. Published: 24 for the base, 8 for super-resolution; the reference's default is 18.
    pub timesteps: i64,
    /// τ of the first step; it falls linearly, and the last step is greedy.
    pub temperature: f64,
    /// Share of the logits that is left out: the ⌈(1 − this) · V⌉ largest stay.
    pub topk_filter_thres: f64,
    /// s of null + s (cond − null); 1 is none.
    pub cond_scale: f64,
    /// Whether tokens of earlier steps may be masked again, by their probability now. Needs training with
    /// [`super::MuseLoss::no_mask_token_prob`].
    pub can_remask_prev_masked: bool,
    /// Scale of the noise on a critic's scores in the first step; it falls linearly.
    pub critic_noise_scale: f64,
}

impl Default for MuseSampling {
    fn default() -> Self {
        Self {
            timesteps: 18,
            temperature: 1.0,
            topk_filter_thres: 0.9,
            cond_scale: 3.0,
            can_remask_prev_masked: false,
            critic_noise_scale: 1.0,
        }
    }
}

impl MuseSampling {
    /// The paper's steps for the base model.
    pub fn base() -> Self {
        Self { timesteps: 24, ..Self::default() }
    }

    /// The paper's steps for super-resolution.
    pub fn super_resolution() -> Self {
        Self { timesteps: 8, ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.timesteps) {
            return Err(Error::config("timesteps", self.timesteps, "1 to 2^20"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::config("temperature", self.temperature, "at least 0"));
        }
        if !(0.0..1.0).contains(&self.topk_filter_thres) {
            return Err(Error::config("topk_filter_thres", self.topk_filter_thres, "at least 0, below 1"));
        }
        for (field, value) in
            [("cond_scale", self.cond_scale), ("critic_noise_scale", self.critic_noise_scale)]
        {
            if !value.is_finite() {
                return Err(Error::config(field, value, "a finite number"));
            }
        }
        Ok(())
    }
}

/// The noise of every draw. Where it is not given, it comes from torch's global generator.
#[derive(Debug)]
pub struct MuseNoise {
    /// Gumbel `[T, B, N, V]`.
    pub tokens: Tensor,
    /// Uniform `[T, B, N]` for a critic's scores.
    pub critic: Tensor,
}

/// A sampling and how it came about.
#[derive(Debug)]
pub struct MuseDecoded {
    /// int64 `[B, N]`.
    pub ids: Tensor,
    /// What the model read in each step, `[B, N]`.
    pub inputs: Vec<Tensor>,
}

/// How many of `tokens` are masked before each of `steps` steps: max(1, ⌊N cos(π i / (2 (T − 1)))⌋) in float32.
///
/// # Errors
/// No token or no step.
pub fn masked_counts(tokens: i64, steps: i64) -> Result<Vec<i64>> {
    if tokens < 1 || steps < 1 {
        return Err(Error::input("counts", format!("{tokens} tokens, {steps} steps"), "at least 1 of each"));
    }
    let times = Tensor::linspace(0.0, 1.0, steps, (Kind::Float, tch::Device::Cpu));
    let shares = (times * std::f64::consts::PI * 0.5).cos() * tokens;
    let shares = Vec::<f32>::try_from(shares)?;
    Ok(shares.into_iter().map(|share| (share as i64).max(1)).collect())
}

/// The ⌈(1 − thres) · V⌉ largest logits of each row `[..., V]`; -∞ elsewhere.
pub fn top_fraction(logits: &Tensor, thres: f64) -> Tensor {
    let vocabulary = *logits.size().last().unwrap_or(&1);
    let k = ((1.0 - thres) * vocabulary as f64).ceil() as i64;
    let (largest, ids) = logits.topk(k.clamp(1, vocabulary), -1, true, true);
    logits.full_like(f64::NEG_INFINITY).scatter(-1, &ids, &largest)
}

/// argmax(kept / max(temperature, 1e-10) + noise) over the last axis.
pub fn sample_ids(kept: &Tensor, temperature: f64, noise: &Tensor) -> Tensor {
    (kept / temperature.max(1e-10) + noise).argmax(-1, false)
}

/// Draws sequences of `tokens` ids for each text. With a critic, its scores say what is masked next.
///
/// # Errors
/// Options out of range, more tokens than the model has positions for, conditions that do not fit.
pub fn generate(
    model: &MuseTransformer,
    critic: Option<&Critic>,
    context: &MuseContext<'_>,
    tokens: i64,
    options: &MuseSampling,
    noise: Option<&MuseNoise>,
) -> Result<MuseDecoded> {
    options.validate()?;
    let Ok((batch, ..)) = context.text.size3() else {
        return Err(Error::shape("text embeddings", &context.text.size(), "[B, L, E]"));
    };
    no_grad(|| {
        let device = context.text.device();
        let mut ids = Tensor::full([batch, tokens], model.mask_id(), (Kind::Int64, device));
        let mut scores = Tensor::zeros([batch, tokens], (Kind::Float, device));
        let mut earlier: Option<Tensor> = None;
        let mut inputs = Vec::new();
        for (step, count) in masked_counts(tokens, options.timesteps)?.into_iter().enumerate() {
            let left = (options.timesteps - 1 - step as i64) as f64 / options.timesteps as f64;
            let (_, masked) = scores.topk(count, -1, true, true);
            ids = ids.scatter_value(1, &masked, model.mask_id());
            inputs.push(ids.shallow_clone());
            let is_mask = ids.eq(model.mask_id());
            // Scores of settled tokens are read only where they may be masked again.
            let rows = if options.can_remask_prev_masked && critic.is_none() {
                Tensor::arange(batch * tokens, (Kind::Int64, device))
            } else {
                is_mask.reshape([-1]).nonzero().squeeze_dim(-1)
            };
            let at_step = MuseContext { self_cond: earlier.as_ref(), ..*context };
            let (logits, hidden) = model.guided_logits(&ids, &at_step, &rows, options.cond_scale)?;
            earlier = model.config().self_cond.then_some(hidden);

            let kept = top_fraction(&logits, options.topk_filter_thres);
            let perturbation = match noise {
                Some(noise) => noise.tokens.get(step as i64).flatten(0, 1).index_select(0, &rows),
                None => gumbel_like(&logits),
            };
            let drawn = sample_ids(&kept, options.temperature * left, &perturbation);
            ids = scattered(&ids, &rows, &drawn).where_self(&is_mask, &ids);

            scores = match critic {
                Some(critic) => {
                    let context = MuseContext { self_cond: None, ..*context };
                    let judged = critic.guided_scores(model, &ids, &context, options.cond_scale)?;
                    let uniform = match noise {
                        Some(noise) => noise.critic.get(step as i64),
                        None => judged.rand_like(),
                    };
                    judged + (uniform - 0.5) * (options.critic_noise_scale * left)
                }
                None => {
                    let p = logits.softmax(-1, Kind::Float).gather(-1, &drawn.unsqueeze(-1), false);
                    let settled = scores.full_like(SETTLED);
                    scattered(&settled, &rows, &(-p.squeeze_dim(-1) + 1.0))
                }
            };
        }
        Ok(MuseDecoded { ids, inputs })
    })
}
