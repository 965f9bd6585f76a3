//! Neural building blocks shared by several models.
//!
//! `tch::nn` has linear and convolution layers already; what stands here differs from it in something that matters to
//! video tokenizers, and several crates need it:
//!
//! - [`init`]: PyTorch's default initialisation, which `tch`'s own "default" is not, and the truncated normal of JAX;
//! - [`Linear`]: a linear layer with either initialisation, on the last axis;
//! - [`attention`]: libtorch's fused attention, and heads split and merged;
//! - [`KvCache`]: keys and values of past positions, or of a window of them, for decoding token by token;
//! - [`RmsNorm`]: root-mean-square norm, in float32;
//! - [`FrameGroupNorm`]: group norm whose statistics stay within a frame, so that a causal network stays causal, in
//!   channels-last order without a copy.
//!
//! ```
//! use layers::FrameGroupNorm;
//! use tch::{Device, Kind, Tensor, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let variables = nn::VarStore::new(Device::Cpu);
//! let norm = FrameGroupNorm::new(&variables.root(), 4, 16, 1e-5)?;
//! let video = torch_ext::channels_last_3d(&Tensor::rand([2, 16, 3, 8, 8], (Kind::Float, Device::Cpu)));
//! let normed = norm.forward(&video);
//! assert_eq!(normed.size(), video.size());
//! # Ok(())
//! # }
//! ```

pub mod init;

mod attention;
mod frame_group_norm;
mod kv_cache;
mod linear;
mod rms_norm;

pub use attention::{AttentionOptions, attention, merge_heads, split_heads};
pub use frame_group_norm::{FrameGroupNorm, fold_time, unfold_time};
pub use kv_cache::KvCache;
pub use linear::{Linear, linear};
pub use rms_norm::RmsNorm;
