//! Gradients as part of a loss: the discriminator's gradient penalties and the generator's adaptive weight.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use video_core::{Error, Result};

use super::losses::{at_least_float, check_logits};

/// What of the gradient is penalised. g is the gradient of the sum of the logits at one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PenaltyKind {
    /// R1, mean ‖g‖², of real samples: MAGVIT, MAGVIT-v2.
    #[default]
    R1,
    /// mean (10⁻⁶ + ‖g‖²), of real samples: O2-MAGVIT2.
    R1Offset,
    /// mean (‖g‖ − center)², of real samples and of generated ones: magvit2-pytorch.
    Norm,
}

/// A gradient penalty in a config.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientPenalty {
    /// What is penalised.
    pub kind: PenaltyKind,
    /// The norm that [`PenaltyKind::Norm`] wants.
    pub center: f64,
    /// Its weight in the discriminator's loss; 0: none.
    pub weight: f64,
    /// It is part of the loss at every so manieth step.
    pub every: u64,
}

impl Default for GradientPenalty {
    /// The paper's: R1 of weight 10 at every step.
    fn default() -> Self {
        Self { kind: PenaltyKind::R1, center: 0.0, weight: 10.0, every: 1 }
    }
}

impl GradientPenalty {
    /// No penalty.
    pub const OFF: Self = Self { kind: PenaltyKind::R1, center: 0.0, weight: 0.0, every: 1 };

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        super::not_negative("weight", self.weight)?;
        super::not_negative("center", self.center)?;
        if self.center != 0.0 && self.kind != PenaltyKind::Norm {
            return Err(Error::config("center", self.center, "0, as only the kind \"norm\" has a center"));
        }
        if self.every < 1 {
            return Err(Error::config("every", self.every, "at least 1"));
        }
        Ok(())
    }

    /// Whether it is part of the loss at a step.
    pub fn due(&self, step: u64) -> bool {
        self.weight > 0.0 && step.is_multiple_of(self.every)
    }
}

/// The penalty of samples `[N, ...]` whose `logits` were computed from them, 0-d, not weighted. It has gradients of its
/// own, which is what trains the discriminator.
///
/// # Errors
/// The logits do not depend on the samples, or these gather no gradients; either has no axes or no elements.
pub fn gradient_penalty(penalty: &GradientPenalty, samples: &Tensor, logits: &Tensor) -> Result<Tensor> {
    check_logits("logits", logits)?;
    check_logits("samples", samples)?;
    let gradient = gradient_of("logits", &at_least_float(logits).sum(None), "samples", samples, true)?;
    let squared =
        at_least_float(&gradient).reshape([samples.size()[0], -1]).square().sum_dim_intlist(1, false, None);
    let each = match penalty.kind {
        PenaltyKind::R1 => squared,
        PenaltyKind::R1Offset => squared + 1e-6,
        // A square root of zero would have no derivative.
        PenaltyKind::Norm => (squared.clamp_min(1e-24).sqrt() - penalty.center).square(),
    };
    Ok(each.mean(None))
}

/// How the generator's GAN loss is scaled so that its gradient at the decoder's last layer compares with that of the
/// reconstruction loss (VQGAN, arXiv 2012.09841, section 3.1). G_rec and G_gan are the norms of these gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptiveRule {
    /// min(G_rec / (G_gan + 10⁻⁴), 10⁴): VQGAN, Open-MAGVIT2, VidTok.
    OpenMagvit2,
    /// min(G_rec / max(G_gan, 10⁻³), 10³): magvit2-pytorch, where G_rec is that of the perceptual loss alone.
    Magvit2Pytorch,
}

/// The factor of a generator's loss `gan`, 0-d and without gradient, given the loss `fidelity` that it is to match at
/// `last_layer`. Both losses can still be differentiated afterwards.
///
/// # Errors
/// A loss does not depend on `last_layer` (it was computed without gradients, say).
pub fn adaptive_weight(
    rule: AdaptiveRule,
    fidelity: &Tensor,
    gan: &Tensor,
    last_layer: &Tensor,
) -> Result<Tensor> {
    let norm = |name: &str, loss: &Tensor| -> Result<Tensor> {
        let gradient = gradient_of(name, loss, "last layer", last_layer, false)?;
        Ok(at_least_float(&gradient.detach()).norm())
    };
    let (fidelity, gan) = (norm("reconstruction loss", fidelity)?, norm("generator loss", gan)?);
    Ok(match rule {
        AdaptiveRule::OpenMagvit2 => (fidelity / (gan + 1e-4)).clamp(0.0, 1e4),
        AdaptiveRule::Magvit2Pytorch => (fidelity / gan.clamp_min(1e-3)).clamp_max(1e3),
    })
}

/// d `scalar` / d `input`; the graph stays. `differentiable`: the gradient can be differentiated again.
fn gradient_of(
    scalar_name: &str,
    scalar: &Tensor,
    input_name: &str,
    input: &Tensor,
    differentiable: bool,
) -> Result<Tensor> {
    for (name, tensor) in [(scalar_name, scalar), (input_name, input)] {
        if !tensor.requires_grad() {
            return Err(Error::input(
                name,
                "it has no gradient",
                "a tensor that was computed with gradients",
            ));
        }
    }
    let gradients = Tensor::f_run_backward(&[scalar], &[input], true, differentiable)?;
    gradients.into_iter().next().filter(Tensor::defined).ok_or_else(|| {
        Error::input(scalar_name, format!("it does not depend on the {input_name}"), "a function of it")
    })
}
