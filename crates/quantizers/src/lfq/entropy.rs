//! The entropies of LFQ over all 2^d codes, exactly, without a tensor of tokens × codes.
//!
//! With codes c ∈ {±v}^d the soft assignment p(k|x) ∝ exp(2β x·c_k) is a product of independent bits,
//! P(bit_i = 1) = sigmoid(a x_i) with slope a = 4βv. So the entropy of one token is the sum of its bits' entropies, and the
//! mean assignment over N tokens is one matrix product: split the d bits into two halves, P_A `[N, 2^dA]` and P_B
//! `[N, 2^dB]`, then m = P_Aᵀ P_B / N. Memory is 2·N·2^(d/2) + O(2^d) instead of several N·2^d, and nothing is
//! approximated.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::BitOrder;

/// The logarithm inside the entropies. At 2^17 codes and more, only `exact` still gives every code a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyLog {
    /// −Σ m ln m.
    #[default]
    Exact,
    /// −Σ m ln(m + 1e-5): Google, Open-MAGVIT2. The per-token entropy is exact.
    Added,
    /// −Σ m ln max(m, 1e-5): lucidrains. The per-token entropy does not factorise under this logarithm, and is computed
    /// over all codes in chunks of tokens: for parity at small d.
    Clamp,
}

/// The mean assignment over 2^d codes is laid out; beyond this it would not fit ordinary memory.
pub const MAX_ENTROPY_BITS: i64 = 24;

const EPSILON: f64 = 1e-5;

/// Elements of one chunk of tokens × codes in [`EntropyLog::Clamp`].
const CHUNK_ELEMENTS: i64 = 1 << 20;

/// Both entropies in nats, 0-d, with gradients to the features.
#[derive(Debug)]
pub struct CodeEntropies {
    /// Mean over tokens (and codebooks) of the entropy of p(·|x): small when each token is sure of its code.
    pub per_sample: Tensor,
    /// Entropy of the mean assignment, averaged over codebooks: large when all codes are used.
    pub batch: Tensor,
}

/// The entropies of features `[c, N, d]` (c codebooks, N ≥ 1 tokens, d ≤ [`MAX_ENTROPY_BITS`] bits) at `slope`
/// a = 4·inv_temperature·code value.
///
/// # Errors
/// The features have another shape.
pub fn code_entropies(features: &Tensor, slope: f64, log: EntropyLog) -> Result<CodeEntropies> {
    check_shape(features)?;
    let halves = BitHalves::new(features, slope);
    let per_sample = match log {
        EntropyLog::Exact | EntropyLog::Added => bit_entropy(&(features * slope)),
        EntropyLog::Clamp => clamped_sample_entropy(features, slope),
    };
    let m = halves.marginal();
    let codebooks = m.size()[0] as f64;
    Ok(CodeEntropies { per_sample, batch: -weighted_log(&m, log).sum(m.kind()) / codebooks })
}

/// The mean assignment m `[c, 2^d]` of features `[c, N, d]`, indexed by id in the given bit order.
///
/// # Errors
/// The features have another shape, or more than [`MAX_ENTROPY_BITS`] bits.
pub fn code_marginal(features: &Tensor, slope: f64, order: BitOrder) -> Result<Tensor> {
    check_shape(features)?;
    // The halves are most significant bit first; reading the channels backwards gives the other order.
    let features = match order {
        BitOrder::MsbFirst => features.shallow_clone(),
        BitOrder::LsbFirst => features.flip([-1]),
    };
    Ok(BitHalves::new(&features, slope).marginal().flatten(1, 2))
}

fn check_shape(features: &Tensor) -> Result<()> {
    match features.size()[..] {
        [_, tokens, bits] if tokens > 0 && (1..=MAX_ENTROPY_BITS).contains(&bits) => Ok(()),
        _ => Err(Error::shape(
            "features",
            &features.size(),
            format!("[codebooks, tokens ≥ 1, bits ≤ {MAX_ENTROPY_BITS}]"),
        )),
    }
}

/// m · ln m under the chosen logarithm; 0 at m = 0.
fn weighted_log(m: &Tensor, log: EntropyLog) -> Tensor {
    match log {
        // Below the smallest normal float the logarithm's gradient would overflow; its weight there is nil.
        EntropyLog::Exact => m * m.clamp_min(1e-37).log(),
        EntropyLog::Added => m * (m + EPSILON).log(),
        EntropyLog::Clamp => m * m.clamp_min(EPSILON).log(),
    }
}

/// Mean over tokens of Σ_i h(t_i), t `[c, N, d]`, h the entropy of a bit with logit t. This form keeps its precision
/// where the bit is saturated.
fn bit_entropy(t: &Tensor) -> Tensor {
    let magnitude = t.abs();
    let entropy = (-&magnitude).exp().log1p() + &magnitude * (-&magnitude).sigmoid();
    let tokens = t.size()[0] * t.size()[1];
    entropy.sum(t.kind()) / tokens as f64
}

/// The assignment of every token over the codes of each half.
struct BitHalves {
    /// `[c, N, 2^dA]`
    a: Tensor,
    /// `[c, N, 2^dB]`
    b: Tensor,
}

impl BitHalves {
    fn new(features: &Tensor, slope: f64) -> Self {
        let d = features.size()[2];
        let split = (d + 1) / 2;
        let t = features * slope;
        // ln P(bit = 1) and ln P(bit = 0).
        let (one, zero) = (t.log_sigmoid(), (-&t).log_sigmoid());
        let half = |start: i64, width: i64| {
            // ln P of a code: Σ over ones of `one`, over zeros of `zero`: a product with the table of all codes.
            let codes = Tensor::arange(1 << width, (Kind::Int64, features.device()));
            let table = crate::bits::unpack_bits(&codes, width, BitOrder::MsbFirst).to_kind(features.kind());
            let (one, zero) = (one.narrow(2, start, width), zero.narrow(2, start, width));
            (one.matmul(&table.tr()) + zero.matmul(&table.ne(1.0).to_kind(features.kind()).tr())).exp()
        };
        Self { a: half(0, split), b: half(split, d - split) }
    }

    /// m `[c, 2^dA, 2^dB]`; row-major it is indexed by ids whose first channel is most significant.
    fn marginal(&self) -> Tensor {
        let tokens = self.a.size()[1];
        (&self.a / tokens as f64).transpose(1, 2).matmul(&self.b)
    }
}

/// Mean over tokens of −Σ_k p ln max(p, ε), with its gradient taken chunk by chunk, so that no tensor of tokens × codes
/// outlives its chunk.
fn clamped_sample_entropy(features: &Tensor, slope: f64) -> Tensor {
    let size = features.size();
    let (c, n, d) = (size[0], size[1], size[2]);
    let needs_gradient = features.requires_grad();
    let tokens = features.detach().reshape([1, c * n, d]);
    let chunk = (CHUNK_ELEMENTS >> d).max(1);
    let mut value = Tensor::zeros([], (features.kind(), features.device()));
    let mut gradients = Vec::new();
    for start in (0..c * n).step_by(chunk as usize) {
        let part = tokens.narrow(1, start, chunk.min(c * n - start)).set_requires_grad(needs_gradient);
        tch::with_grad(|| {
            let halves = BitHalves::new(&part, slope);
            let p = halves.a.unsqueeze(3) * halves.b.unsqueeze(2);
            let entropy = -weighted_log(&p, EntropyLog::Clamp).sum(p.kind()) / (c * n) as f64;
            if needs_gradient {
                gradients.extend(Tensor::run_backward(&[&entropy], &[&part], false, false));
            }
            value += entropy.detach();
        });
    }
    if !needs_gradient {
        return value;
    }
    let gradient = Tensor::cat(&gradients, 1).reshape([c, n, d]);
    let carrier = (features * gradient).sum(features.kind());
    &carrier - carrier.detach() + value
}
