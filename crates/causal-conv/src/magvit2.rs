//! The MAGVIT-v2 video tokenizer (Yu et al., ICLR 2024, arXiv 2310.05737): a causal 3D convolutional network around a
//! quantizer, lookup-free in the paper.
//!
//! The paper gives the network as a drawing; where that leaves a choice open, this follows O2-MAGVIT2 (cofe-ai), whose
//! published weights it can take.

mod config;
mod decoder;
mod describe;
mod encoder;

use quantizers::{Mode, Quantized, Quantizer};
use tch::{Tensor, nn, no_grad};
use video_core::{
    Compression, Error, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape, VideoTokenizer,
};

pub use config::Magvit2Config;
pub use decoder::Decoder;
pub use describe::LayerSummary;
pub use encoder::Encoder;

use crate::blocks::check_element;
use crate::stream::{Chunked, Decoding, Encoding};
use crate::time::Past;

/// What [`Magvit2::forward`] gives.
#[derive(Debug)]
pub struct Magvit2Output {
    /// `[B, C, T, H, W]`, not clamped.
    pub reconstruction: Tensor,
    /// What the bottleneck made of the features; embeddings `[B, T', H', W', K]`.
    pub quantized: Quantized,
}

/// The tokenizer. 1 + s·k frames become 1 + k maps of tokens; the first depends on the first frame alone, so that an image
/// is a video of one frame.
///
/// Variables: those of [`Encoder`] under `encoder`, of [`Decoder`] under `decoder`, of the quantizer under `quantizer`.
#[derive(Debug)]
pub struct Magvit2 {
    encoder: Encoder,
    decoder: Decoder,
    quantizer: Box<dyn Quantizer>,
    in_channels: i64,
    vocabulary_size: Option<i64>,
    compression: Compression,
}

impl Magvit2 {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range, or the quantizer does not take features of the latent's width.
    pub fn new(path: &nn::Path, config: &Magvit2Config) -> Result<Self> {
        config.validate()?;
        let quantizer = config
            .quantizer
            .build(&(path / "quantizer"), config.latent_channels()?)
            .map_err(|error| error.within("quantizer"))?;
        let vocabulary_size = vocabulary_size(quantizer.as_ref());
        let [time, height, width] = config.factors();
        let bits_per_token = match quantizer.codebook_size() {
            Some(size) => (size as f64).log2() * quantizer.num_ids() as f64,
            None => 32.0 * quantizer.dim() as f64,
        };
        Ok(Self {
            encoder: Encoder::new(&(path / "encoder"), config)?,
            decoder: Decoder::new(&(path / "decoder"), config)?,
            quantizer,
            in_channels: config.in_channels,
            vocabulary_size,
            compression: Compression { time, height, width, bits_per_token },
        })
    }

    /// Video `[B, C, T, H, W]` through the whole model, with gradients where they are enabled.
    ///
    /// # Errors
    /// The shape does not fit the compression, or the element type is not the model's.
    pub fn forward(&self, video: &Tensor, mode: Mode) -> Result<Magvit2Output> {
        let features = self.encode_features(video)?;
        let quantized = self.quantizer.quantize(&features.permute([0, 2, 3, 4, 1]), mode)?;
        let latent = quantized.embeddings.permute([0, 4, 1, 2, 3]);
        Ok(Magvit2Output { reconstruction: self.decoder.forward(&latent)?, quantized })
    }

    /// Video `[B, C, T, H, W]` to the features `[B, K, T', H', W']` before the quantizer.
    ///
    /// # Errors
    /// As [`Magvit2::forward`].
    pub fn encode_features(&self, video: &Tensor) -> Result<Tensor> {
        self.check_video(video)?;
        self.compression.grid_shape(VideoShape::of(video)?)?;
        self.encoder.forward(video)
    }

    /// Features `[B, K, T', H', W']` as the quantizer gives them to video `[B, C, T, H, W]`, not clamped.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn decode_features(&self, features: &Tensor) -> Result<Tensor> {
        self.decoder.forward(features)
    }

    /// The weight of the decoder's last convolution, at which the adaptive weight of a GAN loss compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// The bottleneck.
    pub fn quantizer(&self) -> &dyn Quantizer {
        self.quantizer.as_ref()
    }

    /// Refuses a bottleneck without one id per position.
    fn check_discrete(&self, action: &str) -> Result<i64> {
        self.vocabulary_size.ok_or_else(|| {
            let because = if self.quantizer.codebook_size().is_none() {
                "its bottleneck is continuous: use Magvit2::forward, or encode_features and decode_features"
            } else {
                "the ids of its codebooks do not fit into one of 62 bits: use fewer or smaller codebooks"
            };
            Error::unsupported("Magvit2", action, because)
        })
    }

    /// Features `[B, K, T', H', W']` to tokens.
    fn tokens(&self, features: &Tensor) -> Result<TokenGrid> {
        self.check_discrete("encode to tokens")?;
        let quantized = self.quantizer.quantize(&features.permute([0, 2, 3, 4, 1]), Mode::Eval)?;
        let ids = quantized.ids.expect("a discrete quantizer gives ids");
        let (count, size) = (self.quantizer.num_ids(), self.quantizer.codebook_size().unwrap_or(1));
        if count == 1 {
            return TokenGrid::new(ids);
        }
        let digits = Tensor::from_slice(&place_values(size, count)).to_device(ids.device());
        TokenGrid::new((ids * digits).sum_dim_intlist(-1, false, None))
    }
}

impl VideoTokenizer for Magvit2 {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        self.check_discrete("encode to tokens")?;
        no_grad(|| self.tokens(&self.encode_features(video)?))
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| Ok(self.decoder.forward(&self.embed(tokens)?)?.clamp(-1.0, 1.0)))
    }

    fn vocabulary_size(&self) -> Option<i64> {
        self.vocabulary_size
    }

    fn compression(&self) -> Compression {
        self.compression
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        self.check_discrete("stream tokens")?;
        Ok(Box::new(Encoding::new(self)))
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        self.check_discrete("stream tokens")?;
        Ok(Box::new(Decoding::new(self)))
    }
}

impl Chunked for Magvit2 {
    fn check_video(&self, video: &Tensor) -> Result<()> {
        check_element("video", video, self.last_layer())?;
        let shape = VideoShape::of(video)?;
        if shape.channels != self.in_channels {
            let expected = format!("{} channels, the config's in_channels", self.in_channels);
            return Err(Error::shape("video", &video.size(), expected));
        }
        Ok(())
    }

    fn encode_chunk(&self, frames: &Tensor, past: &mut Past) -> Result<TokenGrid> {
        self.tokens(&self.encoder.run(frames, past))
    }

    fn embed(&self, tokens: &TokenGrid) -> Result<Tensor> {
        tokens.check_vocabulary(self.check_discrete("decode tokens")?)?;
        let ids = tokens.ids().to_device(self.last_layer().device());
        let (count, size) = (self.quantizer.num_ids(), self.quantizer.codebook_size().unwrap_or(1));
        let ids = if count == 1 {
            ids
        } else {
            let digits = Tensor::from_slice(&place_values(size, count)).to_device(ids.device());
            ids.unsqueeze(-1).divide_tensor_mode(&digits, "floor").remainder(size)
        };
        Ok(self.quantizer.lookup(&ids)?.permute([0, 4, 1, 2, 3]))
    }

    fn decode_chunk(&self, features: &Tensor, past: &mut Past) -> Tensor {
        self.decoder.run(features, past)
    }
}

/// Ids of all codebooks together, where one id of 62 bits holds those of a position: the first codebook's is the least
/// significant digit.
fn vocabulary_size(quantizer: &dyn Quantizer) -> Option<i64> {
    let count = u32::try_from(quantizer.num_ids()).ok()?;
    quantizer.codebook_size()?.checked_pow(count).filter(|&size| size <= 1 << 62)
}

/// The weight of each codebook's id in a token.
fn place_values(codebook_size: i64, count: i64) -> Vec<i64> {
    (0..count as u32).map(|place| codebook_size.pow(place)).collect()
}
