//! What discriminator and generator minimise.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// The form of a GAN loss. r and f are the logits of real and generated samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GanLoss {
    /// Discriminator: relu(1 − r) + relu(1 + f). Generator: −f.
    Hinge,
    /// Discriminator: softplus(−r) + softplus(f). Generator: −f.
    Vanilla,
    /// Discriminator: softplus(−r) + softplus(f), the cross-entropy of "real" and "generated". Generator: softplus(−f).
    #[default]
    NonSaturating,
}

/// How the logits are averaged, in which published code differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossConvention {
    /// The means over all logits of both halves, added: MAGVIT, MAGVIT-v2, O2-MAGVIT2, magvit2-pytorch.
    #[default]
    Magvit,
    /// Half of that for the hinge and vanilla losses of the discriminator; in the non-saturating ones, which are not
    /// halved, the logits of each sample are averaged first: Open-MAGVIT2, VidTok, VQGAN.
    OpenMagvit2,
}

/// The discriminator's loss, 0-d, of logits of any shapes `[N, ...]`.
///
/// # Errors
/// Logits without axes or without elements.
pub fn discriminator_loss(
    loss: GanLoss,
    convention: LossConvention,
    real: &Tensor,
    fake: &Tensor,
) -> Result<Tensor> {
    let real = logits("real logits", real, loss, convention)?;
    let fake = logits("fake logits", fake, loss, convention)?;
    let sum = match loss {
        GanLoss::Hinge => mean(&(-real + 1.0).relu()) + mean(&(fake + 1.0).relu()),
        GanLoss::Vanilla | GanLoss::NonSaturating => mean(&(-real).softplus()) + mean(&fake.softplus()),
    };
    let halved = convention == LossConvention::OpenMagvit2 && loss != GanLoss::NonSaturating;
    Ok(if halved { sum * 0.5 } else { sum })
}

/// The generator's loss, 0-d, of logits `[N, ...]` of what it made.
///
/// # Errors
/// Logits without axes or without elements.
pub fn generator_loss(loss: GanLoss, convention: LossConvention, fake: &Tensor) -> Result<Tensor> {
    let fake = logits("fake logits", fake, loss, convention)?;
    Ok(match loss {
        GanLoss::Hinge | GanLoss::Vanilla => -mean(&fake),
        GanLoss::NonSaturating => mean(&(-fake).softplus()),
    })
}

/// Logits as the loss takes them: at least float32, averaged per sample where the convention says so.
fn logits(what: &str, logits: &Tensor, loss: GanLoss, convention: LossConvention) -> Result<Tensor> {
    check_logits(what, logits)?;
    let logits = at_least_float(logits);
    let per_sample = convention == LossConvention::OpenMagvit2 && loss == GanLoss::NonSaturating;
    Ok(if per_sample { logits.reshape([logits.size()[0], -1]).mean_dim(1, false, None) } else { logits })
}

pub(super) fn check_logits(what: &str, logits: &Tensor) -> Result<()> {
    if logits.dim() < 1 || logits.numel() == 0 {
        return Err(Error::shape(what, &logits.size(), "[N, ...] with no empty axis"));
    }
    Ok(())
}

/// Half-precision numbers as float32.
pub(super) fn at_least_float(x: &Tensor) -> Tensor {
    if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) }
}

pub(super) fn mean(x: &Tensor) -> Tensor {
    x.mean(x.kind())
}
