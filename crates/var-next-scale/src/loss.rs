//! The loss of taught logits, and what is logged beside it.

use tch::{Kind, Reduction, Tensor};
use video_core::{Error, Result};

use crate::quantizer::check_vocabulary;
use crate::scales::Pyramid;

/// Progressive training: scales behind the last one are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The last scale that is trained, from 0. The pyramid's own last counts as no progressive training.
    pub last_scale: usize,
    /// The weight of its tokens, 0 to 1, while it is new.
    pub weight: f64,
}

/// What a taught step is told by.
#[derive(Debug)]
pub struct Metrics {
    /// Mean cross entropy of all tokens, nats, 0-d.
    pub mean: Tensor,
    /// Mean cross entropy of the last scale, nats, 0-d.
    pub tail: Tensor,
    /// Percent of tokens whose most likely id is right, 0-d.
    pub accuracy: Tensor,
}

/// Cross entropy of each token, `[B, N]`, of logits `[B, N, V]` and ids `[B, N]`. With smoothing ε the target is
/// (1 − ε) of the id and ε / V of every id.
pub fn token_losses(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Tensor {
    let flat = logits.flatten(0, 1).to_kind(Kind::Float);
    flat.cross_entropy_loss(&targets.reshape([-1]), None::<Tensor>, Reduction::None, -100, label_smoothing)
        .view_as(targets)
}

/// The training loss, 0-d: the mean over the batch of Σ wᵢ · cross entropy, wᵢ = 1 / L of all tokens, trained or not.
///
/// Logits `[B, L', V]` and ids `[B, L']` end behind the last trained scale.
///
/// # Errors
/// Shapes that do not fit, an id outside the vocabulary.
pub fn next_scale_loss(
    logits: &Tensor,
    targets: &Tensor,
    pyramid: &Pyramid,
    label_smoothing: f64,
    progress: Option<Progress>,
) -> Result<Tensor> {
    let progress = progress.filter(|progress| progress.last_scale + 1 < pyramid.len());
    let scales = progress.map_or(pyramid.len(), |progress| progress.last_scale + 1);
    let length = pyramid.tokens_of(scales);
    let size = logits.size();
    if size.len() != 3 || size[1] != length || size.contains(&0) {
        return Err(Error::shape("logits", &size, format!("[B, {length}, V]")));
    }
    if targets.size() != size[..2] || targets.kind() != Kind::Int64 {
        return Err(Error::shape("targets", &targets.size(), format!("int64 {:?}", &size[..2])));
    }
    check_vocabulary(targets, size[2])?;
    let losses = token_losses(logits, targets, label_smoothing) / pyramid.tokens() as f64;
    let losses = match progress {
        None => losses,
        Some(Progress { last_scale, weight }) => {
            let last = pyramid.lengths()[last_scale];
            let weights = Tensor::ones([length], (Kind::Float, losses.device()));
            let _ = weights.narrow(0, length - last, last).fill_(weight.clamp(0.0, 1.0));
            losses * weights
        }
    };
    Ok(losses.sum_dim_intlist([1i64].as_slice(), false, Kind::Float).mean(Kind::Float))
}

/// What is logged of logits `[B, N, V]` and ids `[B, N]`, the last scale's tokens last.
///
/// # Panics
/// Shapes that do not fit.
pub fn metrics(logits: &Tensor, targets: &Tensor, last_scale_tokens: i64) -> Metrics {
    let losses = token_losses(&logits.detach(), targets, 0.0);
    let tail = losses.narrow(1, losses.size()[1] - last_scale_tokens, last_scale_tokens);
    let hits = logits.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float);
    Metrics {
        mean: losses.mean(Kind::Float),
        tail: tail.mean(Kind::Float),
        accuracy: hits.mean(Kind::Float) * 100.0,
    }
}
