//! Muse (Chang et al., arXiv 2301.00704): masked tokens given text, by cross-attention to frozen T5 embeddings; and a second
//! such model that fills a finer grid given text and all tokens of the coarse one.
//!
//! [`Muse`] is a generator, [`MusePair`] one of both models. Its parts stand alone, too: [`MuseTransformer`] with [`muse_loss`] and [`generate`] is the reading of lucidrains' muse-maskgit-pytorch.

mod blocks;
mod generate;
mod generator;
mod pair;
mod train;
mod transformer;
mod vqgan;

pub use blocks::{FeedForward, MuseAttention};
pub use generate::{MuseDecoded, MuseNoise, MuseSampling, generate, masked_counts, sample_ids, top_fraction};
pub use generator::{CriticConfig, Muse, MuseGeneratorConfig};
pub use pair::{MusePair, MusePairConfig};
pub use train::{MuseDraws, MuseLoss, MuseMask, critic_loss, muse_loss};
pub use transformer::{Critic, MuseConfig, MuseContext, MuseTransformer};
pub use vqgan::{MuseVqgan, MuseVqganConfig};
