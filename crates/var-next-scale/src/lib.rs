//! VAR: visual autoregressive modelling by next-scale prediction (Tian et al., arXiv 2404.02905), and its extension to
//! [`video`].
//!
//! An image becomes a pyramid of token maps, 1 × 1, 2 × 2, ... 16 × 16, each of which codes what the coarser ones left over
//! ([`Vqvae`]). A transformer ([`Var`]) predicts all tokens of a map at once from the maps before it, so that an image of 680
//! tokens takes ten steps ([`VarGenerator`]).
//!
//! The tokens of all scales lie in a row: to the rest of the workspace a pyramid is a token grid of 1 × 1 × L. What goes into
//! the transformer are not tokens but sums of codes at the next scale's size, so a generator needs the tokenizer's quantizer;
//! it takes a frozen one and leaves it out of its own variables.
//!
//! ```
//! use tch::{Device, Kind, Tensor, nn};
//! use var_next_scale::{MultiScaleVqConfig, VarConfig, VarGenerator, Vqvae, VqvaeConfig};
//! use video_core::{Condition, SampleOptions, TokenGenerator, VideoTokenizer, sampling::Filter};
//!
//! # fn main() -> video_core::Result<()> {
//! let quantizer = MultiScaleVqConfig {
//!     vocab_size: 64, z_channels: 8, v_patch_nums: vec![1, 2, 4], ..MultiScaleVqConfig::default()
//! };
//! let config = VqvaeConfig { ch: 32, ch_mult: vec![1, 2], quantizer, ..VqvaeConfig::default() };
//! let (vae, variables) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
//! let tokenizer = Vqvae::new(&vae.root(), &config)?;
//! let tokens = tokenizer.encode(&Tensor::zeros([2, 3, 1, 8, 8], (Kind::Float, Device::Cpu)))?;
//! assert_eq!(tokens.ids().size(), [2, 1, 1, 1 + 4 + 16]); // all scales in a row
//!
//! let config = VarConfig {
//!     vocab_size: 64, z_channels: 8, patch_nums: vec![1, 2, 4],
//!     num_classes: 10, depth: 2, embed_dim: 32, num_heads: 2, ..VarConfig::default()
//! };
//! let generator = VarGenerator::new(&variables.root(), &config, tokenizer.quantizer().frozen())?;
//! let condition = || Condition { class: Some(Tensor::from_slice(&[3i64, 7])), ..Condition::default() };
//! generator.loss(&tokens, &condition(), 0)?.backward();
//! let options = SampleOptions { batch: 2, seed: 0, filter: Filter::default(), guidance: 2.5 };
//! let sample = generator.sample(&condition(), tokens.shape(), &options)?;
//! assert_eq!(tokenizer.decode(&sample)?.size(), [2, 3, 1, 8, 8]);
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
