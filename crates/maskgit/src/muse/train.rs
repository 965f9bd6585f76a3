//! Muse's training step.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor, no_grad};
use video_core::{Error, Result};

use super::transformer::{Critic, MuseContext, MuseTransformer};
use crate::decode::scattered;

/// What is masked in a training step.
#[derive(Debug)]
pub struct MuseMask {
    /// int64 `[B]`: round(N · cos(π t / 2)), halves to even, at least 1.
    pub counts: Tensor,
    /// bool `[B, N]`: what is to be predicted.
    pub masked: Tensor,
    /// bool `[B, N]`: of those, what keeps its token in the input.
    pub kept: Tensor,
}

impl MuseMask {
    /// From uniform draws: times t `[B]`, and `[B, N]` for the positions and for those of them that keep their token.
    ///
    /// # Errors
    /// A share outside [0, 1), or draws that do not fit each other.
    pub fn new(times: &Tensor, positions: &Tensor, keep: Option<&Tensor>, keep_share: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&keep_share) {
            return Err(Error::config("no_mask_token_prob", keep_share, "at least 0 and below 1"));
        }
        let size = positions.size();
        if size.len() != 2 || times.size() != [size[0]] || keep.is_some_and(|keep| keep.size() != size) {
            return Err(Error::shape("mask draws", &size, "[B, N], with times [B]"));
        }
        let counts = ((times * (std::f64::consts::PI * 0.5)).cos() * size[1]).round().clamp_min(1.0);
        let masked = positions.argsort(-1, false).lt_tensor(&counts.unsqueeze(-1));
        let kept = match keep {
            Some(draws) if keep_share > 0.0 => {
                // Masked positions come last in the order, so that their ranks count from the unmasked ones' number.
                let order = draws.masked_fill(&masked.logical_not(), -1.0).argsort(-1, false);
                let unmasked = masked.logical_not().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
                let ranks = order.argsort(-1, false).to_kind(Kind::Float) - unmasked;
                let wanted = masked.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float) * keep_share;
                ranks.lt_tensor(&wanted).logical_and(&masked)
            }
            _ => masked.zeros_like(),
        };
        Ok(Self { counts: counts.to_kind(Kind::Int64), masked, kept })
    }
}

/// How [`muse_loss`] goes about it; the defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuseLoss {
    /// Share of samples that are trained without text. The paper: 0.1.
    pub cond_drop_prob: f64,
    /// Share of masked positions that keep their token in the input.
    pub no_mask_token_prob: f64,
    /// How often self-conditioning is on, where the model has it.
    pub self_cond_prob: f64,
    /// Weight of the critic's loss.
    pub critic_loss_weight: f64,
}

impl Default for MuseLoss {
    fn default() -> Self {
        Self { cond_drop_prob: 0.5, no_mask_token_prob: 0.0, self_cond_prob: 0.9, critic_loss_weight: 1.0 }
    }
}

/// The draws of a training step.
#[derive(Debug)]
pub struct MuseDraws {
    /// Uniform `[B]`.
    pub times: Tensor,
    /// Uniform `[B, N]`.
    pub positions: Tensor,
    /// Uniform `[B, N]`.
    pub keep: Tensor,
    /// Uniform.
    pub self_cond: f64,
    /// Uniform `[B]`: the text is kept where it is below 1 − `cond_drop_prob`.
    pub drop_text: Tensor,
    /// The same for the critic's pass.
    pub drop_text_critic: Tensor,
    /// Gumbel `[B, N, V]` for the tokens that the critic judges; none where there is no critic.
    pub critic_tokens: Option<Tensor>,
    /// Their temperature.
    pub critic_temperature: f64,
}

impl MuseDraws {
    /// From torch's global generator.
    pub fn draw(ids: &Tensor, num_tokens: i64, critic: bool) -> Self {
        let (batch, tokens) = (ids.size()[0], ids.size()[1]);
        let options = (Kind::Float, ids.device());
        let uniform = |shape: &[i64]| Tensor::rand(shape, options);
        let number = || Tensor::rand([1], (Kind::Double, tch::Device::Cpu)).double_value(&[0]);
        let gumbel =
            || video_core::sampling::gumbel_like(&Tensor::zeros([batch, tokens, num_tokens], options));
        Self {
            times: uniform(&[batch]),
            positions: uniform(&[batch, tokens]),
            keep: uniform(&[batch, tokens]),
            self_cond: number(),
            drop_text: uniform(&[batch]),
            drop_text_critic: uniform(&[batch]),
            critic_tokens: critic.then(gumbel),
            critic_temperature: number(),
        }
    }
}

/// bool `[B]`: whose text is kept. Nothing is compared where all or none is.
fn kept_text(draws: &Tensor, drop_prob: f64) -> Tensor {
    draws.view([-1]).lt(1.0 - drop_prob)
}

/// The loss of a step, 0-d: cross-entropy, a mean over all masked tokens of the batch, and the critic's loss where there is a
/// critic. `context.keep_text` is drawn here, `context.self_cond` computed. Only masked positions go through the head.
///
/// # Errors
/// Options out of range, ids that are masked already, conditions that do not fit.
pub fn muse_loss(
    model: &MuseTransformer,
    critic: Option<&Critic>,
    ids: &Tensor,
    context: &MuseContext<'_>,
    options: &MuseLoss,
    draws: &MuseDraws,
) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&options.cond_drop_prob) {
        return Err(Error::config("cond_drop_prob", options.cond_drop_prob, "a number in [0, 1]"));
    }
    if ids.dim() != 2 || ids.size().contains(&0) || draws.positions.size() != ids.size() {
        let expected = format!("[B, N] with no empty axis, as the draws, {:?}", draws.positions.size());
        return Err(Error::shape("token sequence", &ids.size(), expected));
    }
    if ids.max().int64_value(&[]) >= model.mask_id() {
        return Err(Error::input("token ids", "a mask", format!("codes in 0..{}", model.mask_id())));
    }
    let mask = MuseMask::new(&draws.times, &draws.positions, Some(&draws.keep), options.no_mask_token_prob)?;
    let hidden_tokens = mask.masked.logical_and(&mask.kept.logical_not());
    let inputs = ids.masked_fill(&hidden_tokens, model.mask_id());
    let context = MuseContext { keep_text: None, self_cond: None, ..*context };

    let earlier = if model.config().self_cond && draws.self_cond < options.self_cond_prob {
        Some(no_grad(|| model.embed(&inputs, &context))?)
    } else {
        None
    };
    let keep = kept_text(&draws.drop_text, options.cond_drop_prob);
    let hidden = model
        .embed(&inputs, &MuseContext { keep_text: Some(&keep), self_cond: earlier.as_ref(), ..context })?;
    let rows = mask.masked.reshape([-1]).nonzero().squeeze_dim(-1);
    let logits = model.logits(&hidden.flatten(0, 1).index_select(0, &rows));
    let targets = ids.reshape([-1]).index_select(0, &rows);
    let loss = logits.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, 0.0);
    let Some(critic) = critic else { return Ok(loss) };

    let noise = match &draws.critic_tokens {
        Some(noise) => noise.flatten(0, 1).index_select(0, &rows),
        None => logits.zeros_like(),
    };
    let sampled = (logits.detach() / draws.critic_temperature.max(1e-10) + noise).argmax(-1, false);
    let judged = scattered(&inputs, &rows, &sampled).where_self(&hidden_tokens, &inputs);
    let wrong = judged.ne_tensor(ids).to_kind(Kind::Float);
    let keep = kept_text(&draws.drop_text_critic, options.cond_drop_prob);
    let context = MuseContext { keep_text: Some(&keep), ..context };
    let critic_loss = critic_loss(&critic.scores(model, &judged, &context)?, &wrong);
    Ok(loss + critic_loss * options.critic_loss_weight)
}

/// Mean binary cross-entropy of scores `[B, N]`; `wrong` is 1 where a token is.
pub fn critic_loss(scores: &Tensor, wrong: &Tensor) -> Tensor {
    scores.binary_cross_entropy_with_logits(wrong, None::<&Tensor>, None::<&Tensor>, Reduction::Mean)
}
