//! Shapes of videos and token grids, and the compression between them.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The shape of a video `[B, C, T, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoShape {
    /// Clips, B.
    pub batch: i64,
    /// Colour channels, C.
    pub channels: i64,
    /// Frames, T; 1 for an image.
    pub frames: i64,
    /// Pixels from top to bottom, H.
    pub height: i64,
    /// Pixels from left to right, W.
    pub width: i64,
}

impl VideoShape {
    /// The shape of a video tensor.
    ///
    /// # Errors
    /// The tensor has not five axes, or an empty one.
    pub fn of(video: &Tensor) -> Result<Self> {
        let size = video.size();
        match size[..] {
            [batch, channels, frames, height, width] if size.iter().all(|&n| n > 0) => {
                Ok(Self { batch, channels, frames, height, width })
            }
            _ => Err(Error::shape("video", &size, "[B, C, T, H, W] with no empty axis")),
        }
    }

    /// As `[B, C, T, H, W]`.
    pub fn to_array(self) -> [i64; 5] {
        [self.batch, self.channels, self.frames, self.height, self.width]
    }
}

/// The shape of one clip's tokens: T' × H' × W'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridShape {
    /// Latent frames, T'.
    pub frames: i64,
    /// Latent rows, H'.
    pub height: i64,
    /// Latent columns, W'.
    pub width: i64,
}

impl GridShape {
    /// Tokens of one clip.
    pub fn tokens(self) -> i64 {
        self.frames * self.height * self.width
    }
}

/// Token ids of a batch of clips: int64 `[B, T', H', W']`.
#[derive(Debug)]
pub struct TokenGrid {
    ids: Tensor,
}

impl TokenGrid {
    /// Wraps ids `[B, T', H', W']`.
    ///
    /// # Errors
    /// Not four axes, or not int64.
    pub fn new(ids: Tensor) -> Result<Self> {
        if ids.dim() != 4 || ids.size().contains(&0) {
            return Err(Error::shape("token ids", &ids.size(), "[B, T', H', W'] with no empty axis"));
        }
        if ids.kind() != Kind::Int64 {
            return Err(Error::input("token ids", format!("kind {:?}", ids.kind()), "int64"));
        }
        Ok(Self { ids })
    }

    /// The ids, `[B, T', H', W']`.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The ids, given away.
    pub fn into_ids(self) -> Tensor {
        self.ids
    }

    /// Clips in the batch.
    pub fn batch(&self) -> i64 {
        self.ids.size()[0]
    }

    /// The shape of each clip's grid.
    pub fn shape(&self) -> GridShape {
        let size = self.ids.size();
        GridShape { frames: size[1], height: size[2], width: size[3] }
    }

    /// Refuses ids outside `0..vocabulary_size`.
    ///
    /// # Errors
    /// Names the smallest or the largest offending id.
    pub fn check_vocabulary(&self, vocabulary_size: i64) -> Result<()> {
        for id in [self.ids.min(), self.ids.max()] {
            let id = id.int64_value(&[]);
            if !(0..vocabulary_size).contains(&id) {
                return Err(Error::input(
                    "token ids",
                    format!("id {id}"),
                    format!("ids in 0..{vocabulary_size}, the tokenizer's vocabulary"),
                ));
            }
        }
        Ok(())
    }

    /// The same ids on a device.
    #[must_use]
    pub fn to_device(&self, device: tch::Device) -> Self {
        Self { ids: self.ids.to_device(device) }
    }

    /// Joins grids of consecutive latent frames in time.
    ///
    /// # Errors
    /// The list is empty, or batch or spatial sizes differ.
    pub fn cat_time(grids: &[TokenGrid]) -> Result<Self> {
        let Some(first) = grids.first() else {
            return Err(Error::input("token grids", "an empty list", "at least one grid"));
        };
        let spatial = |grid: &TokenGrid| (grid.batch(), grid.shape().height, grid.shape().width);
        if let Some(odd) = grids.iter().find(|grid| spatial(grid) != spatial(first)) {
            return Err(Error::shape(
                "token grid",
                &odd.ids.size(),
                format!("the batch, height and width of the first, {:?}", first.ids.size()),
            ));
        }
        let ids: Vec<&Tensor> = grids.iter().map(|grid| &grid.ids).collect();
        Ok(Self { ids: Tensor::cat(&ids, 1) })
    }

    /// The latent frames `start .. start + frames`.
    ///
    /// # Errors
    /// The range leaves the grid.
    pub fn time_slice(&self, start: i64, frames: i64) -> Result<Self> {
        if start < 0 || frames < 1 || start + frames > self.shape().frames {
            return Err(Error::input(
                "latent frames",
                format!("{start}..{}", start + frames),
                format!("a non-empty range within 0..{}", self.shape().frames),
            ));
        }
        Ok(Self { ids: self.ids.narrow(1, start, frames) })
    }
}

impl Clone for TokenGrid {
    /// A second handle on the same ids.
    fn clone(&self) -> Self {
        Self { ids: self.ids.shallow_clone() }
    }
}

/// How much a tokenizer compresses: one latent frame for the first frame and for each further `time` frames, one
/// latent position for `height × width` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compression {
    /// Frames per latent frame after the first.
    pub time: i64,
    /// Pixel rows per latent row.
    pub height: i64,
    /// Pixel columns per latent column.
    pub width: i64,
    /// log2 of the vocabulary size; of the latent's width times its float bits for a continuous tokenizer.
    pub bits_per_token: f64,
}

impl Compression {
    /// The grid of a clip: T = 1 + k·time frames give 1 + k latent frames.
    ///
    /// # Errors
    /// A frame count that is not 1 + k·time (the message names the next lower and higher that are), or a height or width
    /// that is no multiple of the stride.
    pub fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        if shape.frames < 1 || (shape.frames - 1) % self.time != 0 {
            let lower = self.crop_frames(shape.frames.max(1));
            return Err(Error::input(
                "frames",
                format!("{} frames", shape.frames),
                format!(
                    "1 + k·{} frames: crop to {lower} or pad to {}",
                    self.time,
                    self.pad_frames(shape.frames.max(1))
                ),
            ));
        }
        for (name, size, stride) in
            [("height", shape.height, self.height), ("width", shape.width, self.width)]
        {
            if size < 1 || size % stride != 0 {
                return Err(Error::input(
                    name,
                    format!("{size} pixels"),
                    format!("a multiple of {stride}: pad to {}", pad_to(size, stride)),
                ));
            }
        }
        Ok(GridShape {
            frames: 1 + (shape.frames - 1) / self.time,
            height: shape.height / self.height,
            width: shape.width / self.width,
        })
    }

    /// The frames that a grid decodes to.
    pub fn frames(&self, latent_frames: i64) -> i64 {
        1 + (latent_frames - 1) * self.time
    }

    /// The largest 1 + k·time that is not above `frames`.
    pub fn crop_frames(&self, frames: i64) -> i64 {
        1 + (frames - 1) / self.time * self.time
    }

    /// The smallest 1 + k·time that is not below `frames`.
    pub fn pad_frames(&self, frames: i64) -> i64 {
        1 + (frames - 1 + self.time - 1) / self.time * self.time
    }

    /// The smallest height and width, not below the given, that the strides divide.
    pub fn pad_size(&self, height: i64, width: i64) -> (i64, i64) {
        (pad_to(height, self.height), pad_to(width, self.width))
    }

    /// Bits of tokens per pixel (all colour channels of one position of one frame) of a clip.
    ///
    /// # Errors
    /// As [`Compression::grid_shape`].
    pub fn bits_per_pixel(&self, shape: VideoShape) -> Result<f64> {
        let tokens = self.grid_shape(shape)?.tokens() as f64;
        Ok(tokens * self.bits_per_token / (shape.frames * shape.height * shape.width) as f64)
    }
}

fn pad_to(size: i64, stride: i64) -> i64 {
    (size.max(1) + stride - 1) / stride * stride
}
