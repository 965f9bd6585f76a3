//! Text to embeddings: the encoder of the T5 family (Raffel et al., arXiv 1910.10683), which Muse and VideoPoet condition on.
//!
//! [`T5Encoder`] is the network, under the names of the published checkpoints; [`TextEncoder`] opens a folder of such a
//! checkpoint (`config.json`, `tokenizer.json`, safetensors) and takes text.
//!
//! ```
//! use tch::{Device, Kind, Tensor, nn};
//! use text_encoder::{T5Config, T5Encoder};
//!
//! # fn main() -> video_core::Result<()> {
//! let config = T5Config { d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_heads: 4, ..T5Config::v1_1_small() };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let encoder = T5Encoder::new(&variables.root(), &config)?;
//! let ids = Tensor::from_slice2(&[[37i64, 1712, 1], [2335, 1, 0]]);  // </s> is 1, padding 0
//! let states = encoder.forward(&ids, &ids.ne(0))?;
//! assert_eq!(states.size(), [2, 3, 32]);
//! # Ok(())
//! # }
//! ```

mod t5;
mod text;

pub use t5::{FeedForward, T5Config, T5Encoder};
pub use text::TextEncoder;
