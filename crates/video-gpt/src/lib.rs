//! VideoGPT (Yan et al., arXiv 2104.10157): a VQ-VAE of 3D convolutions and axial attention turns a clip into a small grid
//! of codes, and a GPT models the codes in raster order, with exact likelihoods.
//!
//! Tokenizer and prior are independent: [`VideoGpt`] is a generator over any tokenizer's grid, with vectors of its own for
//! the codes or those of a codebook that it is given. The raster is time-major: all tokens of a latent frame, row by row,
//! then the next frame's; so the tokens of the first latent frames are a prompt, whatever the model was trained for.
//!
//! ```
//! use tch::{Device, Kind, Tensor, nn};
//! use video_core::{Condition, GridShape, SampleOptions, TokenGenerator, TokenGrid, sampling::Filter};
//! use video_gpt::{GptConfig, VideoGpt};
//!
//! # fn main() -> video_core::Result<()> {
//! let grid = GridShape { frames: 2, height: 3, width: 3 };
//! let config = GptConfig {
//!     n_codes: 64, embedding_dim: 16, grid, hidden_dim: 24, heads: 2, layers: 2,
//!     ..GptConfig::default()
//! };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let model = VideoGpt::new(&variables.root(), &config)?;
//! let tokens = TokenGrid::new(Tensor::randint(64, [3, 2, 3, 3], (Kind::Int64, Device::Cpu)))?;
//! model.loss(&tokens, &Condition::default(), 0)?.backward();
//! let options = SampleOptions { batch: 1, seed: 0, filter: Filter::default(), guidance: 1.0 };
//! assert_eq!(model.sample(&Condition::default(), grid, &options)?.shape(), grid);
//! # Ok(())
//! # }
//! ```

mod attention;
mod generator;
mod gpt;
mod layer_norm;
mod position;
mod preprocess;
mod resnet;
mod same_pad;
mod sparse;
mod vqvae;

pub use attention::{AttentionWidths, AxialAttention, MultiHeadAttention};
pub use gpt::{AttentionType, FrameConfig, GptCondition, GptConfig, GptDecoder, VideoGpt};
pub use layer_norm::LayerNorm;
pub use position::{PositionEmbedding, RightShift};
pub use preprocess::preprocess;
pub use resnet::{ResNet, ResNetConfig};
pub use same_pad::{SamePadConfig, SamePadConv3d, SamePadConvTranspose3d};
pub use sparse::SparseLayout;
pub use vqvae::{AttentionResidualBlock, Decoder, Encoder, VqVae, VqVaeConfig, VqVaeOutput};
