//! The training loss and what evaluation counts.

use tch::{Kind, Tensor, no_grad};
use video_core::{Error, Result};

use crate::model::{PerceiverAr, Predictions, Sequence, TrainDraws};
use crate::sequence::PAD;

/// How targets are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossConfig {
    /// ε: the share of the target distribution that goes to the other ids.
    pub label_smoothing: f64,
    /// Weight of the squared logarithm of the softmax' denominator.
    pub z_loss: f64,
}

impl Default for LossConfig {
    /// As published: no smoothing, 1e-4.
    fn default() -> Self {
        Self { label_smoothing: 0.0, z_loss: 1e-4 }
    }
}

/// Scores of single targets.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Of the logits' leading shape, weighted: the cross entropy, in nats, less its least value under smoothing, and the z
    /// term.
    pub loss: Tensor,
    /// The z term in it.
    pub z_loss: Tensor,
}

/// Cross entropy of logits `[..., V]` with targets int64 `[...]`, weighted by `[...]`.
///
/// # Errors
/// A smoothing outside [0, 1), shapes that do not fit, targets outside the vocabulary.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    config: LossConfig,
) -> Result<CrossEntropy> {
    let LossConfig { label_smoothing, z_loss } = config;
    if !(0.0..1.0).contains(&label_smoothing) {
        return Err(Error::config("label_smoothing", label_smoothing, "a number in [0, 1)"));
    }
    if !(z_loss >= 0.0 && z_loss.is_finite()) {
        return Err(Error::config("z_loss", z_loss, "a number of at least 0"));
    }
    let size = logits.size();
    let (leading, vocabulary) = match size.split_last() {
        Some((&vocabulary, leading)) if vocabulary > 1 => (leading, vocabulary),
        _ => return Err(Error::shape("logits", &size, "[..., V] with V at least 2")),
    };
    for (name, tensor) in [("targets", targets), ("weights", weights)] {
        if tensor.size() != leading {
            return Err(Error::shape(name, &tensor.size(), format!("{leading:?}, as the logits")));
        }
    }
    if targets.numel() > 0 {
        let [least, most] = [targets.min(), targets.max()].map(|id| id.int64_value(&[]));
        if least < 0 || most >= vocabulary {
            return Err(Error::input("targets", format!("{least} to {most}"), format!("0..{vocabulary}")));
        }
    }
    let logits = logits.to_kind(Kind::Float);
    let log_z = logits.logsumexp([-1i64].as_slice(), false);
    let target = logits.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    // −Σ soft · (logits − log_z), where soft is 1 − ε at the target and ε / (V − 1) elsewhere.
    let (high, low) = (1.0 - label_smoothing, label_smoothing / (vocabulary - 1) as f64);
    let nats = if label_smoothing == 0.0 {
        &log_z - target
    } else {
        let all = logits.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        let least = high * high.ln() + (vocabulary - 1) as f64 * low * (low + 1e-20).ln();
        &log_z - target * (high - low) - all * low + least
    };
    let z = log_z.square() * z_loss;
    Ok(CrossEntropy { loss: (nats + &z) * weights, z_loss: z * weights })
}

/// The loss of a batch.
#[derive(Debug)]
pub struct Loss {
    /// Summed over all valid targets, 0-d, the z term included, with gradients.
    pub total: Tensor,
    /// The z terms' sum, 0-d.
    pub z_loss: Tensor,
    /// Valid targets, 0-d.
    pub num_events: Tensor,
}

/// Sums over targets that were evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvalSums {
    /// −ln p, summed: neither smoothed nor with a z term.
    pub nats: f64,
    /// Targets that were the most likely.
    pub correct: i64,
    /// Targets.
    pub count: i64,
}

impl EvalSums {
    /// Mean −log2 p; bits per dimension where a token is a dimension.
    pub fn bits(&self) -> f64 {
        self.nats / self.count as f64 / std::f64::consts::LN_2
    }

    /// The sums of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            nats: self.nats + other.nats,
            correct: self.correct + other.correct,
            count: self.count + other.count,
        }
    }
}

/// The targets at the latents' positions, and which of them count, float.
fn at_latents(predictions: &Predictions, targets: &Tensor) -> (Tensor, Tensor) {
    let steps = &predictions.last_steps;
    let labels = targets.gather(1, &steps.remainder(targets.size()[1]), false);
    let valid = steps.ge(0).logical_and(&labels.gt(PAD));
    (labels, valid.to_kind(Kind::Float))
}

fn check_targets(sequence: Sequence<'_>, targets: &Tensor) -> Result<()> {
    if targets.size() != sequence.ids.size() || targets.kind() != Kind::Int64 {
        let expected = format!("int64 {:?}, as the inputs", sequence.ids.size());
        return Err(Error::shape("targets", &targets.size(), expected));
    }
    Ok(())
}

impl PerceiverAr {
    /// The loss of a training step: each latent's target is that of its slot, of int64 `[B, T]`.
    ///
    /// # Errors
    /// As [`PerceiverAr::forward`] and [`cross_entropy`].
    pub fn training_loss(
        &self,
        sequence: Sequence<'_>,
        targets: &Tensor,
        draws: &TrainDraws,
        config: LossConfig,
    ) -> Result<Loss> {
        check_targets(sequence, targets)?;
        let predictions = self.forward(sequence, None, Some(draws))?;
        let (labels, valid) = at_latents(&predictions, &targets.to_device(self.device));
        let scored = cross_entropy(&predictions.logits, &labels, &valid, config)?;
        Ok(Loss {
            total: scored.loss.sum(Kind::Float),
            z_loss: scored.z_loss.sum(Kind::Float),
            num_events: valid.sum(Kind::Int64),
        })
    }

    /// −ln p of the targets of the last `block` latent positions, and which of them count: float `[B, block]` both.
    ///
    /// # Errors
    /// As [`PerceiverAr::forward`]; more positions than there are.
    pub fn target_nats(
        &self,
        sequence: Sequence<'_>,
        targets: &Tensor,
        latents: Option<i64>,
        block: i64,
    ) -> Result<(Tensor, Tensor)> {
        let (nats, _, valid) = self.score(sequence, targets, latents, block)?;
        Ok((nats, valid))
    }

    /// Evaluates the last `block` latent positions of each window (`eval_block_size`; 0: the last alone).
    ///
    /// # Errors
    /// As [`PerceiverAr::target_nats`].
    pub fn evaluate(&self, sequence: Sequence<'_>, targets: &Tensor, block: i64) -> Result<EvalSums> {
        let (nats, correct, valid) = self.score(sequence, targets, None, block.max(1))?;
        Ok(EvalSums {
            nats: nats.sum(Kind::Double).double_value(&[]),
            correct: correct.sum(Kind::Int64).int64_value(&[]),
            count: valid.sum(Kind::Int64).int64_value(&[]),
        })
    }

    fn score(
        &self,
        sequence: Sequence<'_>,
        targets: &Tensor,
        latents: Option<i64>,
        block: i64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        check_targets(sequence, targets)?;
        let predictions = no_grad(|| self.forward(sequence, latents, None))?;
        let positions = predictions.last_steps.size()[1];
        if !(1..=positions).contains(&block) {
            return Err(Error::config("eval_block_size", block, format!("at most {positions} positions")));
        }
        let (labels, valid) = at_latents(&predictions, &targets.to_device(self.device));
        let last = |x: &Tensor| x.narrow(1, positions - block, block);
        let (logits, labels, valid) = (last(&predictions.logits), last(&labels), last(&valid));
        let plain = LossConfig { label_smoothing: 0.0, z_loss: 0.0 };
        let nats = cross_entropy(&logits, &labels, &valid, plain)?.loss;
        let hits = logits.argmax(-1, false).eq_tensor(&labels).to_kind(Kind::Float) * &valid;
        Ok((nats, hits, valid))
    }
}
