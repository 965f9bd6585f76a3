//! VAR.

pub mod phi;
mod quantizer;
pub mod resample;
mod scales;
pub mod vqvae;

pub use quantizer::{Encoded, MultiScaleVq, MultiScaleVqConfig, TrainQuantized};
pub use scales::{Pyramid, block_causal_mask};
pub use vqvae::{Vqvae, VqvaeConfig};
