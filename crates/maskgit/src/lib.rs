//! Masked token generators with parallel decoding: MaskGIT (Chang et al., arXiv 2202.04200) and MAGVIT (Yu et al., arXiv
//! 2212.05199).
//!
//! A tokenizer makes a small grid of ids of an image or a clip; a bidirectional transformer learns to fill in those that
//! are masked; decoding starts with everything masked and fills the whole grid in 8 to 16 steps, the surest tokens first.
//!
//! The vocabulary head is the expensive part where codes are many, so it only ever sees the positions that are asked for:
//! masked ones, in training and in decoding. A vocabulary of 2^18 is two digits of 2^9 ([`TransformerConfig::factors`]).
//!
//! ```
//! use maskgit::{BidirectionalTransformer, DecodeOptions, TransformerConfig, decode, mask};
//! use tch::{Device, Kind, Tensor, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let config = TransformerConfig {
//!     codebook_size: 64, num_special: 1, max_position_embeddings: 16, // 4 × 4 tokens, no classes
//!     hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
//!     ..TransformerConfig::default()
//! };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let model = BidirectionalTransformer::new(&variables.root(), &config)?;
//! let nothing = Tensor::full([2, 16], mask::MASK, (Kind::Int64, Device::Cpu));
//! let ids = decode(&model, &nothing, &DecodeOptions { steps: 8, ..Default::default() }, None)?.ids;
//! assert!(ids.min().int64_value(&[]) >= 0);
//! # Ok(())
//! # }
//! ```

mod decode;
pub mod loss;
pub mod magvit;
pub mod mask;
mod schedule;
mod transformer;
mod vocabulary;
pub mod vqgan;

pub use decode::{DecodeNoise, DecodeOptions, Decoded, decode};
pub use schedule::MaskSchedule;
pub use transformer::{BidirectionalTransformer, TrainingSequence, TransformerConfig, TransformerLayer};
pub use vocabulary::{Columns, Draws, Logits, Vocabulary};
