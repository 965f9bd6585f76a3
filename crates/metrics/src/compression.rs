//! What a tokenizer's tokens cost, and likelihoods in bits.

use serde::{Deserialize, Serialize};
use video_core::{Compression, Error, GridShape, Result, VideoShape};

/// What the tokens of one clip cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompressionFigures {
    /// Tokens of one clip.
    pub tokens: i64,
    /// Bits of those tokens at their bit width, without entropy coding.
    pub bits: f64,
    /// Bits per pixel (all colour channels of one position of one frame).
    pub bits_per_pixel: f64,
    /// How many times smaller than three 8-bit channels per pixel.
    pub ratio_to_rgb24: f64,
}

/// The figures of one clip of a shape (its batch and channel counts do not matter).
///
/// # Errors
/// A shape that the tokenizer's strides do not divide.
pub fn figures(compression: &Compression, shape: VideoShape) -> Result<CompressionFigures> {
    Ok(figures_of_grid(compression, shape, compression.grid_shape(shape)?))
}

/// The figures of one clip of a shape that is encoded to `grid`, for a tokenizer that counts frames in its own way.
pub fn figures_of_grid(compression: &Compression, shape: VideoShape, grid: GridShape) -> CompressionFigures {
    let tokens = grid.tokens();
    let bits = tokens as f64 * compression.bits_per_token;
    let bits_per_pixel = bits / (shape.frames * shape.height * shape.width) as f64;
    CompressionFigures { tokens, bits, bits_per_pixel, ratio_to_rgb24: 24.0 / bits_per_pixel }
}

/// Bits per dimension: a negative log-likelihood in nats of something with so many dimensions.
///
/// For a model of pixels the dimensions are its sub-pixels (H·W·T·C). For a model of tokens they are the tokens; bits of
/// tokens divided by pixels are a rate, not a likelihood, because the decoder is lossy.
///
/// # Errors
/// No dimension at all.
pub fn bits_per_dimension(nats: f64, dimensions: u64) -> Result<f64> {
    if dimensions == 0 {
        return Err(Error::config("dimensions", dimensions, "at least 1"));
    }
    Ok(nats / (std::f64::consts::LN_2 * dimensions as f64))
}
