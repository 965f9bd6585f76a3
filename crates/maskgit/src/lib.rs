//! Masked token generators with parallel decoding: MaskGIT (Chang et al., arXiv 2202.04200), MAGVIT (Yu et al., arXiv
//! 2212.05199) and [`muse`] (Chang et al., arXiv 2301.00704), the last also in the form of [`open_muse`].
//!
//! A tokenizer makes a small grid of ids of an image or a clip; a bidirectional transformer learns to fill in those that
//! are masked; decoding starts with everything masked and fills the whole grid in 8 to 16 steps, the surest tokens first.
//!
//! The vocabulary head is the expensive part where codes are many, so it only ever sees the positions that are asked for:
//! masked ones, in training and in decoding. A vocabulary of 2^18 is two digits of 2^9 ([`TransformerConfig::factors`]).
//!
//! ```
//! use maskgit::{MaskGit, MaskGitConfig};
//! use tch::{Device, Kind, Tensor, nn};
//! use video_core::{Condition, GridShape, SampleOptions, TokenGenerator, TokenGrid, sampling::Filter};
//!
//! # fn main() -> video_core::Result<()> {
//! let grid = GridShape { frames: 2, height: 4, width: 4 };
//! let config = MaskGitConfig {
//!     codebook_size: 64, grid, // 2 × 4 × 4 tokens
//!     hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
//!     ..MaskGitConfig::default()
//! };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let model = MaskGit::new(&variables.root(), &config)?;
//! let tokens = TokenGrid::new(Tensor::randint(64, [3, 2, 4, 4], (Kind::Int64, Device::Cpu)))?;
//! model.loss(&tokens, &Condition::default(), 0)?.backward();
//! let options = SampleOptions { batch: 1, seed: 0, filter: Filter::default(), guidance: 1.0 };
//! assert_eq!(model.sample(&Condition::default(), grid, &options)?.shape(), grid);
//! # Ok(())
//! # }
//! ```

mod decode;
mod generator;
pub mod loss;
pub mod magvit;
pub mod mask;
pub mod muse;
pub mod open_muse;
mod schedule;
mod strategy;
mod transformer;
mod vocabulary;
pub mod vqgan;

pub use decode::{DecodeNoise, DecodeOptions, Decoded, decode};
pub use generator::{FirstFrames, MaskGit, MaskGitConfig};
pub use schedule::MaskSchedule;
pub use strategy::MaskStrategy;
pub use transformer::{BidirectionalTransformer, TrainingSequence, TransformerConfig, TransformerLayer};
pub use vocabulary::{Columns, Draws, Logits, Vocabulary};
