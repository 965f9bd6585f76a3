//! Perceiver AR (Hawthorne et al., arXiv 2202.07765): autoregression over long contexts.
//!
//! A few latents sit on the last positions of a sequence. Each looks once, by a causally masked cross-attention, at all
//! inputs up to its own; a deep stack of causal self-attention then works on the latents alone. So cost is linear in the
//! context, once, and depth costs the same whatever the context. Each latent predicts the token behind its position.
//!
//! ```
//! use perceiver_ar::{PerceiverAr, PerceiverArConfig, Sequence, TrainDraws, LossConfig, random_copy_task, shift};
//! use tch::{Device, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let config = PerceiverArConfig {
//!     max_context_length: 64, max_wavelength: 64, // inputs
//!     z_index_dim: 16,                            // latents
//!     input_embed_dim: 32, num_z_channels: 32, num_transformers_per_block: 2,
//!     num_cross_attend_heads: 2, num_transformer_heads: 2,
//!     ..PerceiverArConfig::default()
//! };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let model = PerceiverAr::new(&variables.root(), &config)?;
//! let events = random_copy_task(4, 64, true, Device::Cpu)?.ids;
//! let (inputs, targets) = shift(&events);
//! let sequence = Sequence { ids: &inputs, positions: None };
//! let loss = model.training_loss(sequence, &targets, &TrainDraws::default(), LossConfig::default())?;
//! loss.total.backward(); // a sum over 4 · 16 targets
//! # Ok(())
//! # }
//! ```

mod attention;
mod config;
mod data;
mod generator;
mod loss;
mod memory;
mod model;
mod position;
mod sampler;
mod sequence;

pub use attention::{
    Attention, AttentionWidths, CrossAttentionLayer, LayerConfig, Rotations, SelfAttentionLayer,
};
pub use config::{
    Activation, AttentionShape, InitialQuery, PerceiverArConfig, PositionEncoding, PositionEncodingType,
};
pub use data::{
    CropConfig, Events, ImageOrdering, Windows, block_windows, byte_events, copy_task, count_positions,
    image_events, random_copy_task,
};
pub use generator::{GridPositions, PerceiverArGenerator, PerceiverArGeneratorConfig};
pub use loss::{CrossEntropy, EvalSums, Loss, LossConfig, cross_entropy};
pub use memory::{Memory, MemoryEntries, MemoryKind};
pub use model::{PerceiverAr, Predictions, Sequence, TrainDraws};
pub use position::{Rotary, RotaryConfig, fourier_table, sinusoidal_table, terminal_relative_positions};
pub use sampler::{Modality, Sampler, Scheme, process_logits};
pub use sequence::{
    EOS, Masks, PAD, RESERVED, SOS, masks, sequence_length, shift, shift_positions, truncate,
};
