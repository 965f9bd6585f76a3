//! VAR: visual autoregressive modelling by next-scale prediction (Tian et al., arXiv 2404.02905).
//!
//! An image becomes a pyramid of token maps, 1 × 1, 2 × 2, ... 16 × 16, each of which codes what the coarser ones left over.
//! A transformer predicts all tokens of a map at once from the maps before it, so that an image of 680 tokens takes ten
//! steps.
//!
//! ```
//! use tch::{Device, Kind, Tensor, nn};
//! use var_next_scale::{MultiScaleVqConfig, Vqvae, VqvaeConfig};
//! use video_core::VideoTokenizer;
//!
//! # fn main() -> video_core::Result<()> {
//! let quantizer = MultiScaleVqConfig {
//!     vocab_size: 64, z_channels: 8, v_patch_nums: vec![1, 2, 4], ..MultiScaleVqConfig::default()
//! };
//! let config = VqvaeConfig { ch: 32, ch_mult: vec![1, 2], quantizer, ..VqvaeConfig::default() };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let tokenizer = Vqvae::new(&variables.root(), &config)?;
//! let image = Tensor::rand([1, 3, 1, 8, 8], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
//! let tokens = tokenizer.encode(&image)?;
//! assert_eq!(tokens.ids().size(), [1, 1, 1, 1 + 4 + 16]); // all scales in a row
//! assert_eq!(tokenizer.decode(&tokens)?.size(), image.size());
//! # Ok(())
//! # }
//! ```

pub mod bitwise;
mod edit;
mod generator;
mod loss;
pub mod phi;
mod pyramid_run;
mod quantizer;
pub mod recipe;
pub mod resample;
pub mod sampling;
mod scales;
pub mod transformer;
pub mod video;
pub mod vqvae;

pub use edit::{Edit, EditBox, EditKind, edit_mask};
pub use generator::{VarGenerator, VarPrompt};
pub use loss::{Metrics, Progress, metrics, next_scale_loss, token_losses};
pub use pyramid_run::{Sampled, ScaleStep};
pub use quantizer::{Encoded, MultiScaleVq, MultiScaleVqConfig, TrainQuantized};
pub use sampling::VarSampling;
pub use scales::{Pyramid, block_causal_mask};
pub use transformer::{Var, VarConfig};
pub use vqvae::{Vqvae, VqvaeConfig};
