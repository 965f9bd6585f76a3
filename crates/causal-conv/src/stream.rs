//! Coding a clip of any length chunk by chunk.

use tch::{Tensor, no_grad};
use video_core::{Error, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape, VideoTokenizer};

use crate::time::Past;

/// A tokenizer that can code the chunks of a clip, given what its causal layers keep of the chunks before.
pub(crate) trait Chunked: VideoTokenizer + std::fmt::Debug {
    /// Refuses frames that the model does not take, whatever their number and size.
    fn check_video(&self, frames: &Tensor) -> Result<()>;

    /// Tokens of frames that the strides fit.
    fn encode_chunk(&self, frames: &Tensor, past: &mut Past) -> Result<TokenGrid>;

    /// What the decoder reads for these tokens.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    fn embed(&self, tokens: &TokenGrid) -> Result<Tensor>;

    /// Frames, not clamped.
    fn decode_chunk(&self, features: &Tensor, past: &mut Past) -> Tensor;
}

/// What the next chunk must share with the first: all but the number of frames.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frame([i64; 3]);

impl Frame {
    /// Refuses a chunk whose frames are not those of the clip.
    fn check(self, what: &str, axes: &str, size: &[i64], first: &mut Option<Frame>) -> Result<()> {
        let clip = *first.get_or_insert(self);
        if self == clip {
            return Ok(());
        }
        Err(Error::shape(what, size, format!("{axes} of the clip's first chunk, {:?}", clip.0)))
    }
}

/// Video frames in, tokens out. It holds the last input frames of each causal layer and fewer frames than one stride.
#[derive(Debug)]
pub(crate) struct Encoding<'a, T> {
    tokenizer: &'a T,
    past: Past,
    frame: Option<Frame>,
    /// Frames that wait for the rest of their stride.
    pending: Option<Tensor>,
    frames: i64,
}

impl<'a, T> Encoding<'a, T> {
    pub fn new(tokenizer: &'a T) -> Self {
        Self { tokenizer, past: Past::stream(), frame: None, pending: None, frames: 0 }
    }
}

impl<T: Chunked> StreamEncoder for Encoding<'_, T> {
    fn push(&mut self, frames: &Tensor) -> Result<Option<TokenGrid>> {
        let shape = VideoShape::of(frames)?;
        self.tokenizer.check_video(frames)?;
        // Any number of frames will do here, but the strides must divide the size.
        self.tokenizer.compression().grid_shape(VideoShape { frames: 1, ..shape })?;
        let frame = Frame([shape.batch, shape.height, shape.width]);
        frame.check("frames", "batch, height and width", &frames.size(), &mut self.frame)?;
        self.frames += shape.frames;
        no_grad(|| {
            let waiting = match self.pending.take() {
                Some(pending) => Tensor::cat(&[&pending, frames], 2),
                None => frames.shallow_clone(),
            };
            let (count, stride) = (waiting.size()[2], self.tokenizer.compression().time);
            let complete = match self.past.starts_clip() {
                true => 1 + (count - 1) / stride * stride,
                false => count / stride * stride,
            };
            if complete < count {
                // A copy: a view would hold the whole chunk in memory.
                self.pending = Some(waiting.narrow(2, complete, count - complete).copy());
            }
            if complete == 0 {
                return Ok(None);
            }
            let ready = waiting.narrow(2, 0, complete);
            self.tokenizer.encode_chunk(&ready, &mut self.past).map(Some)
        })
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let stride = self.tokenizer.compression().time;
        let missing = (1 - self.frames).rem_euclid(stride);
        if self.frames == 0 || missing > 0 {
            let missing = if self.frames == 0 { 1 } else { missing };
            return Err(Error::input(
                "frames",
                format!("the clip ends after {} frames", self.frames),
                format!("1 + k·{stride} frames: {missing} more are missing"),
            ));
        }
        Ok(())
    }
}

/// Tokens in, video frames out. It holds the last input frames of each causal layer.
#[derive(Debug)]
pub(crate) struct Decoding<'a, T> {
    tokenizer: &'a T,
    past: Past,
    frame: Option<Frame>,
}

impl<'a, T> Decoding<'a, T> {
    pub fn new(tokenizer: &'a T) -> Self {
        Self { tokenizer, past: Past::stream(), frame: None }
    }
}

impl<T: Chunked> StreamDecoder for Decoding<'_, T> {
    fn push(&mut self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| {
            let features = self.tokenizer.embed(tokens)?;
            let grid = tokens.shape();
            let frame = Frame([tokens.batch(), grid.height, grid.width]);
            frame.check("token ids", "batch, height and width", &tokens.ids().size(), &mut self.frame)?;
            Ok(self.tokenizer.decode_chunk(&features, &mut self.past).clamp(-1.0, 1.0))
        })
    }
}
