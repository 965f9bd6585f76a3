//! Parallel decoding as in open-muse's `generate2`: MaskGIT's, with details of its own.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};
use video_core::sampling::gumbel_like;
use video_core::{Error, Result};

use crate::decode::{counts_of, scattered};
use crate::mask::below_cut;
use crate::schedule::MaskSchedule;

/// Scale of the noise on the confidence by step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperatures {
    /// τ_i = τ_{i−1} (1 − (i + 1)/T): the first transformer's, a slip that published samples have.
    Compounding(f64),
    /// Linear from the first to the last.
    Linear(f64, f64),
}

impl Temperatures {
    /// The U-ViT's for a single number.
    pub fn to_almost_zero(first: f64) -> Self {
        Self::Linear(first, 0.01)
    }

    /// One a step.
    fn all(self, steps: i64) -> Vec<f64> {
        match self {
            Self::Compounding(mut temperature) => (0..steps)
                .map(|step| {
                    temperature *= 1.0 - (step + 1) as f64 / steps as f64;
                    temperature
                })
                .collect(),
            Self::Linear(first, last) => linear(first, last, steps),
        }
    }
}

/// Numbers from the first to the last, in float32.
fn linear(first: f64, last: f64, steps: i64) -> Vec<f64> {
    let values = Tensor::linspace(first, last, steps, (Kind::Float, tch::Device::Cpu));
    (0..steps).map(|step| values.double_value(&[step])).collect()
}

/// The weight of guidance by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceSchedule {
    /// The same always.
    #[default]
    Constant,
    /// Linear from 0.
    Linear,
    /// ⌊s cos(π/2 (1 − (i + 1)/T))⌋.
    Cosine,
}

impl GuidanceSchedule {
    /// One a step.
    pub fn scales(self, scale: f64, steps: i64) -> Vec<f64> {
        match self {
            Self::Constant => vec![scale; steps as usize],
            Self::Linear => linear(0.0, scale, steps),
            Self::Cosine => (0..steps)
                .map(|step| {
                    let rest = (1.0 - (step + 1) as f64 / steps as f64) as f32;
                    f64::from(((std::f32::consts::FRAC_PI_2 * rest).cos() * scale as f32).floor())
                })
                .collect(),
        }
    }
}

/// Gumbel noise for every draw.
#[derive(Debug)]
pub struct OpenMuseNoise {
    /// `[T, B, N, K]`.
    pub sample: Tensor,
    /// `[T, B, N]`.
    pub choice: Tensor,
}

/// How a grid is decoded from a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpenMuseSampling {
    /// T.
    pub timesteps: i64,
    /// Scale of the noise on the confidence.
    pub temperatures: Temperatures,
    /// s of null + s (cond − null); 0: no guidance, and no pass without the prompt.
    pub guidance_scale: f64,
    /// s by step.
    pub guidance_schedule: GuidanceSchedule,
}

/// A decoding and how it came about.
#[derive(Debug)]
pub struct OpenMuseDecoded {
    /// int64 `[B, N]`.
    pub ids: Tensor,
    /// The model's input of each step, `[B, N]`.
    pub inputs: Vec<Tensor>,
}

/// bool `[B, N]`: ln(max(p, 1e-20)) + temperature · noise strictly below the (n + 1)-th lowest of its sample, n from `counts`
/// `[B]`. Where `known`, p is the largest float32.
pub fn mask_by_random_topk(
    probabilities: &Tensor,
    known: &Tensor,
    counts: &Tensor,
    temperature: f64,
    noise: &Tensor,
) -> Tensor {
    let p = probabilities.masked_fill(known, f64::from(f32::MAX));
    below_cut(&(p.clamp_min(1e-20).log() + noise * temperature), counts)
}

impl OpenMuseSampling {
    /// null + s (cond − null) with the s of a step.
    pub(super) fn guide(&self, step: i64, conditional: Tensor, null: &Tensor) -> Tensor {
        let scale = self.guidance_schedule.scales(self.guidance_scale, self.timesteps)[step as usize];
        null + (conditional - null) * scale
    }
}

/// Fills the positions of ids `[B, N]` that hold `mask_id`, in steps.
///
/// `logits(step, ids, rows)` gives the guided logits `[M, K]` at `rows`, int64 `[M]` of B·N: the masked ones. N, not the number of
/// masked tokens, decides how many stay masked.
///
/// # Errors
/// No step, ids of another shape, and what `logits` refuses.
pub fn parallel_decode(
    ids: &Tensor,
    mask_id: i64,
    temperatures: Temperatures,
    steps: i64,
    noise: Option<&OpenMuseNoise>,
    mut logits: impl FnMut(i64, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<OpenMuseDecoded> {
    if !(1..=1 << 20).contains(&steps) {
        return Err(Error::config("timesteps", steps, "1 to 2^20"));
    }
    if ids.dim() != 2 || ids.size().contains(&0) {
        return Err(Error::shape("token sequence", &ids.size(), "[B, N] with no empty axis"));
    }
    let temperatures = temperatures.all(steps);
    no_grad(|| {
        let tokens = ids.size()[1];
        let mut input = ids.shallow_clone();
        let (mut inputs, mut sampled) = (Vec::new(), ids.shallow_clone());
        for step in 0..steps {
            inputs.push(input.shallow_clone());
            let unknown = input.eq(mask_id);
            let rows = unknown.reshape([-1]).nonzero().squeeze_dim(-1);
            let log_p = logits(step, &input, &rows)?.log_softmax(-1, Kind::Float);
            let (sample_noise, choice_noise) = match noise {
                Some(noise) => {
                    (noise.sample.get(step).flatten(0, 1).index_select(0, &rows), noise.choice.get(step))
                }
                None => {
                    let choice = Tensor::zeros(input.size(), (Kind::Float, input.device()));
                    (gumbel_like(&log_p), gumbel_like(&choice))
                }
            };
            let drawn = (&log_p + sample_noise).argmax(-1, false);
            sampled = scattered(&input, &rows, &drawn);

            let progress = (step + 1) as f32 / steps as f32;
            let counts: Vec<i64> = counts_of(&unknown)
                .into_iter()
                .map(
                    |left| if left == 0 { Ok(0) } else { MaskSchedule::Cosine.count(progress, tokens, left) },
                )
                .collect::<Result<_>>()?;
            let p = log_p.gather(-1, &drawn.unsqueeze(-1), false).squeeze_dim(-1).exp();
            let p = scattered(&Tensor::zeros(input.size(), (Kind::Float, input.device())), &rows, &p);
            let counts = Tensor::from_slice(&counts).to_device(input.device());
            let known = unknown.logical_not();
            let masked = mask_by_random_topk(&p, &known, &counts, temperatures[step as usize], &choice_noise);
            input = sampled.masked_fill(&masked.logical_and(&unknown), mask_id);
        }
        Ok(OpenMuseDecoded { ids: sampled, inputs })
    })
}
