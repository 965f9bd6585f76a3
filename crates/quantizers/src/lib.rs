//! Every bottleneck between an encoder and a decoder behind one trait, [`Quantizer`]: VQ, GumbelVQ, SimVQ, IBQ, LFQ and BSQ,
//! FSQ, residual forms of VQ, LFQ and FSQ, and the continuous KL bottleneck. [`QuantizerConfig`] is any of them as a word in a
//! config file.
//!
//! Features come channel-last, `[..., D]`; a channels-last video permuted to `[B, T, H, W, D]` is that already,
//! without a copy.
//!
//! ```
//! use quantizers::{Mode, QuantizerConfig, LfqConfig};
//! use tch::{Device, Kind, Tensor, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let vs = nn::VarStore::new(Device::Cpu);
//! let quantizer = QuantizerConfig::Lfq(LfqConfig::with_bits(10)).build(&vs.root(), 10)?; // 2^10 codes
//! let features = Tensor::randn([2, 5, 16, 16, 10], (Kind::Float, Device::Cpu));
//! let out = quantizer.quantize(&features, Mode::Train { step: 0 })?;
//! let ids = out.ids.expect("LFQ is discrete"); // [2, 5, 16, 16]
//! assert_eq!(quantizer.lookup(&ids)?.size(), features.size());
//! # Ok(())
//! # }
//! ```

pub mod bits;
mod codebook;
mod config;
pub mod estimators;
mod fsq;
mod gumbel;
mod ibq;
mod kl;
mod lfq;
mod projection;
mod residual;
mod residual_fsq;
mod residual_lfq;
mod residual_vq;
mod simvq;
mod usage;
mod vq;

use tch::Tensor;
use video_core::Result;

pub use bits::BitOrder;
pub use config::QuantizerConfig;
pub use fsq::{Fsq, FsqConfig};
pub use gumbel::{GumbelConfig, GumbelForm, GumbelTerms, GumbelVq, TemperatureSchedule};
pub use ibq::{Ibq, IbqConfig, IbqTerms};
pub use kl::{Gaussian, Kl, KlConfig};
pub use lfq::{
    BatchAverage, CodeEntropies, EntropyLog, EntropyWarmup, Lfq, LfqConfig, LfqTerms, MAX_ENTROPY_BITS,
    code_entropies, code_marginal,
};
pub use residual::QuantizeDropout;
pub use residual_fsq::{ResidualFsq, ResidualFsqConfig, ResidualFsqForm};
pub use residual_lfq::{ResidualLfq, ResidualLfqConfig};
pub use residual_vq::{ResidualVq, ResidualVqConfig};
pub use simvq::{SimVq, SimVqConfig};
pub use vq::{
    AffinityEntropy, CodebookInit, CodebookUpdate, DeadCodeRestart, EntropyLossConfig, EntropyTarget,
    Estimator, IdRemap, Similarity, UnknownId, Vq, VqConfig, VqExtras, VqProjection, VqTerms,
    affinity_entropy, assignment_perplexity, rotate_to,
};

/// What a quantizer makes of features.
#[derive(Debug)]
pub struct Quantized {
    /// `[..., D]`: what the decoder reads. In training it carries the quantizer's gradient estimator.
    pub embeddings: Tensor,
    /// int64 `[...]`, or `[..., G]` where [`Quantizer::num_ids`] G > 1; `None` for a continuous bottleneck.
    /// -1 marks a stage that quantize-dropout skipped.
    pub ids: Option<Tensor>,
    /// Named 0-d losses, each with its weight already applied, so that the objective adds their sum.
    pub losses: Vec<(&'static str, Tensor)>,
    /// How the codes were used in this call; `None` for a continuous bottleneck.
    pub usage: Option<Usage>,
}

impl Quantized {
    /// The sum of all losses, 0-d; zero where there is none.
    pub fn loss(&self) -> Tensor {
        let zero = Tensor::zeros([], (tch::Kind::Float, self.embeddings.device()));
        self.losses.iter().fold(zero, |sum, (_, loss)| sum + loss)
    }
}

/// Codebook use within one call. 0-d tensors, so that reading them is the caller's choice of when to wait for a GPU.
#[derive(Debug)]
pub struct Usage {
    /// exp of the entropy (nats) of the id histogram.
    pub perplexity: Tensor,
    /// Share of codes hit at least once.
    pub used_share: Tensor,
}

/// Whether a call trains: estimators, losses, codebook updates and noise exist in training only, but for what a
/// quantizer's documentation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A training step.
    Train {
        /// The optimizer step, for schedules (temperature, entropy weight).
        step: u64,
    },
    /// Encoding and evaluation.
    Eval,
}

/// Features to codes and back. One trait for every bottleneck, so that a tokenizer takes any of them.
pub trait Quantizer: std::fmt::Debug {
    /// Quantizes features `[..., D]`.
    ///
    /// # Errors
    /// The last axis is not [`Quantizer::dim`].
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized>;

    /// The embeddings `[..., D]` of ids `[...]` (or `[..., G]`): equal to what [`Quantizer::quantize`] gives in
    /// [`Mode::Eval`] for the features that these ids came from.
    ///
    /// # Errors
    /// An id outside the codebook, or a continuous bottleneck, which has none.
    fn lookup(&self, ids: &Tensor) -> Result<Tensor>;

    /// Width D of the features.
    fn dim(&self) -> i64;

    /// Ids in each codebook; `None` for a continuous bottleneck.
    fn codebook_size(&self) -> Option<i64>;

    /// Ids per position, G.
    fn num_ids(&self) -> i64 {
        1
    }
}
