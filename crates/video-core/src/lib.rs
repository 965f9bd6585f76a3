//! The words that every Vireo crate speaks.
//!
//! A *video* is a float tensor `[B, C, T, H, W]` with values in [-1, 1]; an image is a video with T = 1. A
//! [`VideoTokenizer`] turns it into a [`TokenGrid`], int64 ids `[B, T', H', W']`, and back. A [`TokenGenerator`] learns
//! the distribution of such grids under a [`Condition`] and samples from it. What each of them compresses is told by
//! [`Compression`]; what can go wrong by [`Error`].
//!
//! ```
//! use video_core::{Compression, GridShape, VideoShape};
//!
//! # fn main() -> video_core::Result<()> {
//! let compression = Compression { time: 4, height: 8, width: 8, bits_per_token: 18.0 };
//! let clip = VideoShape { batch: 1, channels: 3, frames: 17, height: 128, width: 128 };
//! assert_eq!(compression.grid_shape(clip)?, GridShape { frames: 5, height: 16, width: 16 });
//! # Ok(())
//! # }
//! ```

mod error;
mod generator;
pub mod sampling;
pub mod seeds;
mod shape;
mod tokenizer;

pub use error::{Error, Result};
pub use generator::{Condition, ConditionKind, SampleOptions, TokenGenerator};
pub use shape::{Compression, GridShape, TokenGrid, VideoShape};
pub use tokenizer::{StreamDecoder, StreamEncoder, VideoTokenizer};
