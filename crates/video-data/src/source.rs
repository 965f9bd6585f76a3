//! Sources of clips: by number, so that the n-th clip is the same whoever asks, and whenever.

use std::ops::Range;

use tch::Tensor;

use crate::files::Files;
use crate::reader::to_float;
use crate::worlds::{self, World};
use crate::{DataConfig, Error, Failure, Result};

/// Which part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What a model is trained on.
    Train,
    /// What it never saw.
    HeldOut,
}

/// One clip.
#[derive(Debug)]
pub struct Clip {
    /// uint8 `[3, T, H, W]`.
    pub video: Tensor,
    /// Where it comes from.
    pub name: String,
    /// Its class, where the data set has classes.
    pub class: Option<i64>,
    /// What was done between one frame and the next, int64 `[T - 1]`, where the data set has actions.
    pub actions: Option<Tensor>,
    /// What its text file says of it, where the data set has texts.
    pub caption: Option<String>,
}

impl Clip {
    /// The video as floats in [-1, 1], `[3, T, H, W]`.
    pub fn to_float(&self) -> Tensor {
        to_float(&self.video)
    }
}

/// Clips by number. None is empty.
#[expect(clippy::len_without_is_empty, reason = "opening refuses empty sources")]
pub trait ClipSource: Send + Sync {
    /// How many clips there are that do not overlap; `None` where every number is another clip.
    fn len(&self) -> Option<u64>;

    /// The clip of a number, as it is. Numbers beyond the last begin again.
    ///
    /// # Errors
    /// Its file is damaged, or has become unreadable.
    fn clip(&self, index: u64) -> Result<Clip>;

    /// The clip of a number as training wants it: cut from anywhere in its file and perhaps mirrored, as the seed says.
    ///
    /// # Errors
    /// As [`ClipSource::clip`].
    fn varied(&self, index: u64, _seed: u64) -> Result<Clip> {
        self.clip(index)
    }

    /// The numbers of the clips of each size; one range where all clips have the same size. Empty for endless sources.
    fn buckets(&self) -> Vec<Range<u64>> {
        self.len().into_iter().map(|len| 0..len).collect()
    }

    /// Files that could not be read and were left out.
    fn failures(&self) -> &[Failure] {
        &[]
    }

    /// How many files were left out.
    fn skipped(&self) -> usize {
        self.failures().len()
    }
}

/// Opens what a config names. The seed makes the worlds' training clips; held-out clips are the same for all seeds.
///
/// # Errors
/// A config value that means nothing, a path that does not exist, files that all are unreadable or too short for a
/// clip.
pub fn open(config: &DataConfig, split: Split, seed: u64) -> Result<Box<dyn ClipSource>> {
    config.validate()?;
    if worlds::is_world(&config.source) {
        return Ok(Box::new(World::new(config, split, seed)));
    }
    Ok(Box::new(Files::open(config, split)?))
}

/// So many clips of a source (all of them if it has fewer) for evaluation, evenly spread over it and always the same
/// ones, and those that cannot be read.
///
/// # Errors
/// All of them are unreadable; ffmpeg is absent.
pub fn spread_clips(source: &dyn ClipSource, count: usize) -> Result<(Vec<Clip>, Vec<Failure>)> {
    let count = count as u64;
    let (tried, step) = match source.len() {
        None => (count, 1.0),
        Some(len) => (count.min(len), len as f64 / count.clamp(1, len) as f64),
    };
    let (mut clips, mut failures) = (Vec::new(), Vec::new());
    for index in 0..tried {
        match source.clip((index as f64 * step) as u64) {
            Ok(clip) => clips.push(clip),
            Err(error) if error.is_of_one_file() => failures.push(Failure::of(&error)),
            Err(error) => return Err(error),
        }
    }
    if clips.is_empty() && !failures.is_empty() {
        return Err(Error::AllUnreadable { what: "clips".into(), failures });
    }
    Ok((clips, failures))
}
