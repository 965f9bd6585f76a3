//! The scales of a clip.

use std::ops::Range;

use video_core::{Error, GridShape, Result};

use crate::scales::Pyramid;

/// The scales of the first latent frame, and those of each chunk of latent frames behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceTimePyramid {
    /// Of the first latent frame.
    pub image: Pyramid,
    /// Of a chunk.
    pub chunk: Pyramid,
}

impl SpaceTimePyramid {
    /// Of `patch_nums`, the sides of the image's scales, and `chunk_scales` (t, h, w).
    ///
    /// # Errors
    /// Either list is empty or does not end at its largest; they end at other heights or widths.
    pub fn new(patch_nums: &[i64], chunk_scales: &[[i64; 3]]) -> Result<Self> {
        let shape = |&[frames, height, width]: &[i64; 3]| GridShape { frames, height, width };
        let image = Pyramid::square(patch_nums)?;
        let chunk = Pyramid::new("chunk_scales", chunk_scales.iter().map(shape).collect())?;
        let (still, moving) = (image.last(), chunk.last());
        if (still.height, still.width) != (moving.height, moving.width) {
            let expected = format!("a list that ends at {} × {}, as patch_nums", still.height, still.width);
            return Err(Error::config("chunk_scales", chunk_scales, expected));
        }
        Ok(Self { image, chunk })
    }

    /// Latent frames of a chunk.
    pub fn chunk_frames(&self) -> i64 {
        self.chunk.last().frames
    }

    /// Tokens of a clip of so many chunks.
    pub fn tokens(&self, chunks: i64) -> i64 {
        self.image.tokens() + chunks * self.chunk.tokens()
    }

    /// The chunks of a clip of so many latent frames.
    ///
    /// # Errors
    /// Not 1 + n·c latent frames.
    pub fn chunks_of_frames(&self, frames: i64) -> Result<i64> {
        let chunk = self.chunk_frames();
        if frames >= 1 && (frames - 1) % chunk == 0 {
            return Ok((frames - 1) / chunk);
        }
        let problem = format!("{frames} latent frames");
        Err(Error::input("frames", problem, format!("1 + n·{chunk} latent frames, chunks of {chunk}")))
    }

    /// The chunks of a clip of so many tokens.
    ///
    /// # Errors
    /// No image and whole chunks have that many tokens.
    pub fn chunks_of_tokens(&self, tokens: i64) -> Result<i64> {
        let (image, chunk) = (self.image.tokens(), self.chunk.tokens());
        if tokens >= image && (tokens - image) % chunk == 0 {
            return Ok((tokens - image) / chunk);
        }
        let expected = format!("{image} + n·{chunk}, the image's scales and those of n chunks");
        Err(Error::input("token grid", format!("{tokens} tokens"), expected))
    }

    /// Tokens of each scale of a clip, the image's first.
    pub fn lengths(&self, chunks: i64) -> Vec<i64> {
        let chunk = self.chunk.lengths();
        let mut lengths = self.image.lengths();
        lengths.extend(chunk.iter().cycle().take(chunk.len() * chunks as usize));
        lengths
    }

    /// Where the tokens of chunk n lie.
    pub fn chunk_range(&self, chunk: i64) -> Range<i64> {
        self.tokens(chunk)..self.tokens(chunk + 1)
    }
}
