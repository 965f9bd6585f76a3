//! Clips in and out: decoding, synthetic worlds, folders, a deterministic loader, writers.
//!
//! Videos are decoded and written by ffmpeg through pipes: whatever it reads can be read, in constant memory. Clips for
//! training come from a [`ClipSource`] by number; a [`Loader`] makes batches of them ahead of time, and the n-th batch
//! depends on n alone, so that a training run resumes exactly from a position.
//!
//! ```
//! use std::sync::Arc;
//! use video_data::{ClipConfig, ClipSize, DataConfig, Loader, LoaderConfig, Split};
//!
//! # fn main() -> video_data::Result<()> {
//! let clip = ClipConfig { frames: 9, size: ClipSize::Square(32), frame_rate: None };
//! let config = DataConfig { source: "shapes".into(), clip, flip: false, held_out: 0.15 };
//! let source = Arc::from(video_data::open(&config, Split::Train, 0)?);
//! let mut loader = Loader::new(source, LoaderConfig { batch_size: 4, workers: 1, prefetch: 2, seed: 0 }, 0)?;
//! assert_eq!(loader.next()?.video.size(), [4, 3, 9, 32, 32]);
//! # Ok(())
//! # }
//! ```

mod config;
mod error;
mod ffmpeg;
mod frames;
mod loader;
mod reader;
mod source;
pub mod worlds;
mod writer;

pub use config::{ClipConfig, ClipSize, DataConfig};
pub use error::{Error, Result};
pub use ffmpeg::{VideoInfo, ffmpeg_path, probe};
pub use frames::{crop_video, pad_video};
pub use loader::{Batch, Loader, LoaderConfig};
pub use reader::{DecodeOptions, Fit, Size, VideoReader, is_image, is_video, read_image, read_video};
pub use source::{Clip, ClipSource, Split, open};
pub use writer::{VideoWriter, write_gif, write_mp4, write_png};
