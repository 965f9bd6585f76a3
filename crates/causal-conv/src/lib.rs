//! Causal convolution in time and the MAGVIT-v2 video tokenizer.
//!
//! Every layer here that looks along time looks back only: what it makes of frame t does not change with the frames after
//! t. So an image is a video of one frame, and a video of any length can be coded chunk by chunk, each layer keeping the
//! few frames that its next output still needs ([`TimeContext`]).
//!
//! Beside the layers there are whole tokenizers ([`magvit2`], [`cosmos`], and for single frames [`open_magvit2`]) and what
//! trains them adversarially ([`gan`]: discriminators, losses, penalties).
//!
//! Video is `[B, C, T, H, W]`. Channels-last order in memory (`torch_ext::channels_last_3d`) goes through every layer
//! unchanged, and is the fast one.
//!
//! ```
//! use causal_conv::{CausalConv3d, CausalConv3dConfig, TimeContext};
//! use tch::{Device, Kind, Tensor, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let variables = nn::VarStore::new(Device::Cpu);
//! let config = CausalConv3dConfig::new([3; 3]).with_stride([2, 1, 1]);
//! let conv = CausalConv3d::new(&variables.root(), 3, 8, config)?;
//! let video = Tensor::rand([1, 3, 5, 16, 16], (Kind::Float, Device::Cpu));
//! let whole = conv.forward(&video)?; // 1 + 2·2 frames: 3
//!
//! let mut context = TimeContext::new();
//! let first = conv.forward_chunk(&video.narrow(2, 0, 1), &mut context)?;
//! let rest = conv.forward_chunk(&video.narrow(2, 1, 4), &mut context)?;
//! assert!(Tensor::cat(&[first, rest], 2).allclose(&whole, 1e-5, 1e-6, false));
//! # Ok(())
//! # }
//! ```

mod blocks;
mod blur;
mod conv;
mod conv1d;
pub mod cosmos;
mod discriminator;
pub mod gan;
pub mod magvit2;
pub mod open_magvit2;
mod patch_discriminator;
mod patcher;
mod space_to_depth;
mod stream;
mod time;
mod transpose;

pub use blocks::{AdaptiveGroupNorm, Downsample, ResBlock, Upsample};
pub use blur::BlurPool3d;
pub use conv::{CausalConv3d, CausalConv3dConfig};
pub use conv1d::{CausalConv1d, CausalConv1dConfig};
pub use discriminator::{VideoDiscriminator, VideoDiscriminatorConfig};
pub use patch_discriminator::{PatchDiscriminator, PatchDiscriminatorConfig};
pub use space_to_depth::{depth_to_space, space_to_depth};
pub use time::{ClipStart, PadMode, TimeContext, TimePadding};
pub use transpose::{CausalConvTranspose1d, CausalConvTranspose3d};
