//! The entropy loss over soft assignments that MaskGIT, MAGVIT and IBQ train with, and perplexity.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::Result;

use crate::lfq::{not_negative, positive};

/// Inside every logarithm of a probability.
const EPS: f64 = 1e-5;

/// Configuration of [`affinity_entropy`]; the defaults are MaskGIT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyLossConfig {
    /// Weight of the whole term. At 0 it is not computed.
    pub weight: f64,
    /// T of softmax(affinity / T).
    pub temperature: f64,
    /// What the entropies are taken of.
    pub target: EntropyTarget,
    /// Weight of the mean entropy of a token's assignment, which training makes small.
    pub per_sample_weight: f64,
    /// Weight of the entropy of the mean assignment, which training makes large.
    pub batch_weight: f64,
}

impl Default for EntropyLossConfig {
    fn default() -> Self {
        Self {
            weight: 0.1,
            temperature: 0.01,
            target: EntropyTarget::default(),
            per_sample_weight: 1.0,
            batch_weight: 1.0,
        }
    }
}

/// What stands for a token's assignment in [`affinity_entropy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyTarget {
    /// The soft assignment itself.
    #[default]
    Softmax,
    /// The code chosen, with the gradient of the soft assignment.
    Argmax,
}

impl EntropyLossConfig {
    /// No entropy loss.
    pub fn off() -> Self {
        Self { weight: 0.0, ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        not_negative("weight", self.weight)?;
        not_negative("per_sample_weight", self.per_sample_weight)?;
        not_negative("batch_weight", self.batch_weight)
    }
}

/// The two entropies of an assignment (nats, 0-d) and the loss made of them.
#[derive(Debug)]
pub struct AffinityEntropy {
    /// per_sample_weight · per_sample − batch_weight · batch; the term's own weight is not in it.
    pub loss: Tensor,
    /// Mean entropy of a token's assignment.
    pub per_sample: Tensor,
    /// Entropy of the mean assignment.
    pub batch: Tensor,
}

/// The entropy loss of affinities `[..., K]` (minus squared distances, or dot products): low entropy for each token,
/// high entropy for the batch. The mean is over all tokens.
pub fn affinity_entropy(affinity: &Tensor, config: &EntropyLossConfig) -> AffinityEntropy {
    let size = affinity.size().last().copied().unwrap_or(1);
    grouped_entropy(&affinity.reshape([1, -1, size]), config)
}

/// [`affinity_entropy`] of `[c, N, K]`: one mean for each codebook, the codebooks' entropies averaged.
pub(crate) fn grouped_entropy(affinity: &Tensor, config: &EntropyLossConfig) -> AffinityEntropy {
    let kind = affinity.kind();
    let logits = affinity / config.temperature;
    let log_probabilities = logits.log_softmax(-1, kind);
    let probabilities = logits.softmax(-1, kind);
    let target = match config.target {
        EntropyTarget::Softmax => probabilities,
        EntropyTarget::Argmax => {
            let chosen = logits.argmax(-1, false).one_hot(*logits.size().last().unwrap_or(&1)).to_kind(kind);
            &probabilities - (&probabilities - chosen).detach()
        }
    };
    let mean = target.mean_dim([1i64].as_slice(), false, kind);
    let batch = -(&mean * (&mean + EPS).log()).sum_dim_intlist([-1i64].as_slice(), false, kind).mean(kind);
    let per_sample =
        -(target * log_probabilities).sum_dim_intlist([-1i64].as_slice(), false, kind).mean(kind);
    let loss = &per_sample * config.per_sample_weight - &batch * config.batch_weight;
    AffinityEntropy { loss, per_sample, batch }
}

/// exp(−Σ p ln(p + eps)), 0-d, of one-hot (or soft) assignments `[..., K]`; p is their normalised sum. Google's
/// quantizers report it with eps 1e-5; [`Usage`](crate::Usage) has none.
pub fn assignment_perplexity(assignments: &Tensor, eps: f64) -> Tensor {
    let size = assignments.size().last().copied().unwrap_or(1);
    let counts = assignments.to_kind(Kind::Float).reshape([-1, size]).sum_dim_intlist(
        [0i64].as_slice(),
        false,
        Kind::Float,
    );
    let shares = &counts / counts.sum(Kind::Float).clamp_min(f64::MIN_POSITIVE);
    (-(&shares * (&shares + eps).log()).sum(Kind::Float)).exp()
}
