//! Masked token generators.

mod decode;
pub mod loss;
pub mod mask;
mod schedule;
mod transformer;
mod vocabulary;

pub use decode::{DecodeNoise, DecodeOptions, Decoded, decode};
pub use schedule::MaskSchedule;
pub use transformer::{BidirectionalTransformer, TrainingSequence, TransformerConfig, TransformerLayer};
pub use vocabulary::{Columns, Draws, Logits, Vocabulary};
