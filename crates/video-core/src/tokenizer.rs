//! The contract of a video tokenizer.

use tch::Tensor;

use crate::{Compression, GridShape, Result, TokenGrid, VideoShape};

/// Video in, token ids out, and back. Implementors validate shapes here and are quick inside.
pub trait VideoTokenizer {
    /// Tokens of a video `[B, C, T, H, W]` in [-1, 1], without gradients.
    ///
    /// # Errors
    /// The shape does not fit [`VideoTokenizer::compression`], or the bottleneck is continuous.
    fn encode(&self, video: &Tensor) -> Result<TokenGrid>;

    /// The video `[B, C, T, H, W]`, clamped to [-1, 1], of a grid of tokens.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor>;

    /// How many ids there are; `None` for a continuous bottleneck.
    fn vocabulary_size(&self) -> Option<i64>;

    /// Strides in time and space, and bits per token.
    fn compression(&self) -> Compression;

    /// The grid that a video of the given shape is encoded to.
    ///
    /// # Errors
    /// The shape is one that cannot be encoded.
    fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        self.compression().grid_shape(shape)
    }

    /// An encoder for one clip of any length, fed in chunks.
    ///
    /// # Errors
    /// The configuration cannot stream (statistics across frames, say).
    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>>;

    /// A decoder for one clip of any length, fed in chunks.
    ///
    /// # Errors
    /// The configuration cannot stream (statistics across frames, say).
    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>>;
}

/// An encoder whose state the caller owns. The concatenation of all it gives equals the whole-clip result, whatever the
/// chunks; its memory does not grow with the number of frames.
pub trait StreamEncoder {
    /// Takes the next frames `[B, C, t, H, W]`, any t ≥ 1, and gives the tokens that are complete now (often none: a
    /// latent frame is complete when the last frame of its stride is there).
    ///
    /// # Errors
    /// Batch, channels or size differ from the first chunk's, or the strides do not divide the size.
    fn push(&mut self, frames: &Tensor) -> Result<Option<TokenGrid>>;

    /// Ends the clip.
    ///
    /// # Errors
    /// The clip's length is not 1 + k·stride: the message says how many frames are missing.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A decoder whose state the caller owns; see [`StreamEncoder`].
pub trait StreamDecoder {
    /// Takes the next latent frames and gives the frames `[B, C, t, H, W]` that they complete: one for the first latent
    /// frame of the clip, `stride` for each further.
    ///
    /// # Errors
    /// Batch or size differ from the first chunk's, or an id is outside the vocabulary.
    fn push(&mut self, tokens: &TokenGrid) -> Result<Tensor>;
}
