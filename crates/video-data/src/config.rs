//! The data part of a run's config.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where clips come from, and their shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `shapes` (a synthetic world), or the path of a video, an image, or a folder of them.
    pub source: String,
    /// The clips.
    pub clip: ClipConfig,
    /// Mirrors half of the training clips left to right.
    #[serde(default)]
    pub flip: bool,
    /// Share of a video's frames, at its end (of a folder of images: share of the images), that is kept for evaluation.
    #[serde(default = "held_out")]
    pub held_out: f64,
}

fn held_out() -> f64 {
    0.15
}

/// The shape of a clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Frames, T.
    pub frames: i64,
    /// Rows and columns: one number, or [rows, columns].
    pub size: ClipSize,
    /// Frames per second at which videos are read; their own if none.
    #[serde(default)]
    pub frame_rate: Option<f64>,
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

impl DataConfig {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<()> {
        let (height, width) = self.clip.size.height_width();
        if height < 1 || width < 1 {
            return Err(Error::config("clip.size", format!("{height}x{width}"), "at least 1 pixel a side"));
        }
        if self.clip.frames < 1 {
            return Err(Error::config("clip.frames", self.clip.frames, "at least 1"));
        }
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return Err(Error::config("held_out", self.held_out, "a share above 0 and below 1"));
        }
        if let Some(rate) = self.clip.frame_rate.filter(|&rate| !(rate > 0.0 && rate.is_finite())) {
            return Err(Error::config("clip.frame_rate", rate, "frames per second above 0"));
        }
        Ok(())
    }
}
