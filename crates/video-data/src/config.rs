//! The data part of a run's config.

use serde::{Deserialize, Serialize};

use crate::worlds::shapes::ShapesConfig;
use crate::{Error, Result, Split};

/// Where clips come from, and their shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `shapes` or `maze` (synthetic worlds), or the path of a video, an image, a tar shard, or a folder of such.
    /// `{000..041}` in a path stands for the numbers in between.
    pub source: String,
    /// The clips.
    pub clip: ClipConfig,
    /// What the scenes of `shapes` are like. Other sources do not read it.
    #[serde(default)]
    pub shapes: ShapesConfig,
    /// Rows and columns of the window that each training clip is cut to, anywhere within `clip.size`. Held-out clips
    /// stay whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_crop: Option<ClipSize>,
    /// Mirrors half of the training clips left to right. Shapes are as often mirrored as not anyway.
    #[serde(default)]
    pub flip: bool,
    /// Share of the data that is kept for evaluation. The worlds hold out other scenes than those trained on.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// What is held out: the last part of every video (`time`), or whole files (`name`). If none: whole files where
    /// there are 20 or more of them, or pictures only.
    #[serde(default)]
    pub held_out_by: Option<HeldOutBy>,
    /// Files are decoded once and kept in memory where all of them together need no more than this, in MiB; otherwise
    /// each clip is decoded when it is needed.
    #[serde(default = "memory")]
    pub memory: u64,
}

fn held_out() -> f64 {
    0.15
}

fn memory() -> u64 {
    2048
}

/// What is held out of a set of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOutBy {
    /// The end of every video.
    Time,
    /// The files whose name has the smallest hashes.
    Name,
}

/// The shape of a clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Frames, T.
    pub frames: i64,
    /// Rows and columns: one number, or [rows, columns].
    pub size: ClipSize,
    /// Frames per second at which videos are read; their own if none. The shapes' is 8 if none; the maze has none, as an
    /// action is a frame.
    #[serde(default)]
    pub frame_rate: Option<f64>,
    /// Further sizes, for files of mixed shapes: each file takes the size whose aspect ratio is nearest to its own, and
    /// a batch holds clips of one size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<[i64; 2]>,
}

/// A square or a rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClipSize {
    /// Rows and columns alike.
    Square(i64),
    /// Rows, columns.
    Rectangle([i64; 2]),
}

impl ClipSize {
    /// Rows and columns.
    pub fn height_width(self) -> (i64, i64) {
        match self {
            Self::Square(side) => (side, side),
            Self::Rectangle([height, width]) => (height, width),
        }
    }
}

impl ClipConfig {
    /// Square clips, at the videos' own frame rates.
    pub fn square(frames: i64, side: i64) -> Self {
        Self { frames, size: ClipSize::Square(side), frame_rate: None, buckets: Vec::new() }
    }

    /// All sizes, rows and columns: `size`, then `buckets`.
    pub fn sizes(&self) -> Vec<(i64, i64)> {
        let further = self.buckets.iter().map(|&[height, width]| (height, width));
        std::iter::once(self.size.height_width()).chain(further).collect()
    }
}

impl DataConfig {
    /// Clips of a source, all else at its default.
    pub fn new(source: impl Into<String>, clip: ClipConfig) -> Self {
        Self {
            source: source.into(),
            clip,
            shapes: ShapesConfig::default(),
            train_crop: None,
            flip: false,
            held_out: held_out(),
            held_out_by: None,
            memory: memory(),
        }
    }

    /// All sizes, rows and columns, in which the clips of a split are handed out.
    pub fn sizes(&self, split: Split) -> Vec<(i64, i64)> {
        match self.train_crop {
            Some(crop) if split == Split::Train => vec![crop.height_width()],
            _ => self.clip.sizes(),
        }
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<()> {
        const MOST: i64 = 1 << 14;
        for (height, width) in self.clip.sizes() {
            if !(1..=MOST).contains(&height) || !(1..=MOST).contains(&width) {
                return Err(Error::config(
                    "clip.size",
                    format!("{height}x{width}"),
                    "1 to 16384 pixels a side",
                ));
            }
        }
        if let Some((rows, columns)) = self.train_crop.map(ClipSize::height_width) {
            let fits = |&(height, width): &(i64, i64)| rows <= height && columns <= width;
            if rows < 1 || columns < 1 || !self.clip.sizes().iter().all(fits) {
                return Err(Error::config(
                    "train_crop",
                    format!("{rows}x{columns}"),
                    "1 pixel a side to the size of the smallest clip (clip.size, clip.buckets)",
                ));
            }
        }
        if !(1..=MOST).contains(&self.clip.frames) {
            return Err(Error::config("clip.frames", self.clip.frames, "1 to 16384"));
        }
        if let Some(rate) = self.clip.frame_rate.filter(|&rate| !(rate > 0.0 && rate.is_finite())) {
            return Err(Error::config("clip.frame_rate", rate, "frames per second above 0"));
        }
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return Err(Error::config("held_out", self.held_out, "a share above 0 and below 1"));
        }
        self.shapes.validate()?;
        let world = crate::worlds::is_world(&self.source);
        if world && !self.clip.buckets.is_empty() {
            return Err(Error::config(
                "clip.buckets",
                &self.source,
                "files as data.source; a world's clips have one size",
            ));
        }
        if let ("maze", Some(rate)) = (self.source.as_str(), self.clip.frame_rate) {
            return Err(Error::config(
                "clip.frame_rate",
                rate,
                "none for the maze, where every frame is one action",
            ));
        }
        if self.source == "maze" && self.flip {
            return Err(Error::config(
                "flip",
                true,
                "false for the maze: a mirrored clip would contradict its actions",
            ));
        }
        Ok(())
    }
}
