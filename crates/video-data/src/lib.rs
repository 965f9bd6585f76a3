//! Clips in and out: decoding, synthetic worlds, folders, tar shards, a deterministic loader, writers.
//!
//! Videos are decoded and written by ffmpeg through pipes: whatever it reads can be read, in constant memory. Clips for
//! training come from a [`ClipSource`] by number; a [`Loader`] makes batches of them ahead of time, and the n-th batch
//! depends on n alone, so that a training run resumes exactly from a position.
//!
//! ```
//! use std::sync::Arc;
//! use video_data::{ClipConfig, DataConfig, Loader, LoaderConfig, Split};
//!
//! # fn main() -> video_data::Result<()> {
//! // "shapes", "maze", or a path: a video, an image, a tar shard, a folder of such.
//! let config = DataConfig::new("shapes", ClipConfig::square(9, 32));
//! let source = Arc::from(video_data::open(&config, Split::Train, 0)?);
//! let mut loader = Loader::new(source, LoaderConfig { batch_size: 4, workers: 1, prefetch: 2, seed: 0 }, 0)?;
//! assert_eq!(loader.next()?.video.size(), [4, 3, 9, 32, 32]);
//! # Ok(())
//! # }
//! ```

mod catalogue;
mod config;
mod error;
mod ffmpeg;
mod files;
mod frames;
mod loader;
mod location;
mod order;
mod reader;
mod shards;
mod source;
pub mod worlds;
mod writer;

pub use config::{ClipConfig, ClipSize, DataConfig, HeldOutBy};
pub use error::{Error, Failure, Result};
pub use ffmpeg::{VideoInfo, ffmpeg_path, probe};
pub use frames::{crop_video, pad_video};
pub use loader::{Batch, Loader, LoaderConfig};
pub use reader::{DecodeOptions, Fit, Size, VideoReader, is_image, is_video, read_image, read_video};
pub use source::{Clip, ClipSource, Split, open, spread_clips};
pub use writer::{VideoWriter, write_gif, write_mp4, write_png};
