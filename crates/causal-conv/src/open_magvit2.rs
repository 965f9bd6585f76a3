//! Open-MAGVIT2 (Luo et al., arXiv 2409.04410): MAGVIT-v2's tokenizer for images, with published weights.
//!
//! Every frame of a video is coded by itself. The variables have the names of the reference, so that its checkpoints
//! (their EMA weights) and those of 1X's fork enter as they are.
//!
//! ```
//! use causal_conv::open_magvit2::{OpenMagvit2, OpenMagvit2Config};
//! use tch::{Device, Kind, Tensor, nn};
//! use video_core::VideoTokenizer;
//!
//! # fn main() -> video_core::Result<()> {
//! let config = OpenMagvit2Config { ch: 4, num_groups: 2, num_res_blocks: 1, ..OpenMagvit2Config::large_128() };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let tokenizer = OpenMagvit2::new(&variables.root(), &config)?;
//! let image = Tensor::rand([1, 3, 1, 32, 32], (Kind::Float, Device::Cpu)) * 2 - 1;
//! let tokens = tokenizer.encode(&image)?; // [1, 1, 4, 4]
//! assert_eq!(tokenizer.decode(&tokens)?.size(), image.size());
//! # Ok(())
//! # }
//! ```

mod blocks;
mod config;
mod decoder;
mod encoder;

use layers::{fold_time, unfold_time};
use quantizers::{Mode, Quantizer};
use tch::{Tensor, nn, no_grad};
use video_core::{
    Compression, Error, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape, VideoTokenizer,
};

pub use blocks::{AdaptiveGroupNorm, ResBlock, ResBlockConfig, Upsampler};
pub use config::OpenMagvit2Config;
pub use decoder::Decoder;
pub use encoder::Encoder;

use crate::blocks::{check_channels, check_element};
use crate::magvit2::Magvit2Output;
use crate::stream::{Chunked, Decoding, Encoding};
use crate::time::Past;

/// The tokenizer: each frame becomes one map of tokens.
///
/// Variables: those of [`Encoder`] under `encoder`, of [`Decoder`] under `decoder`, of the quantizer under `quantizer`
/// (an LFQ of the latent's width has none).
#[derive(Debug)]
pub struct OpenMagvit2 {
    encoder: Encoder,
    decoder: Decoder,
    quantizer: Box<dyn Quantizer>,
    in_channels: i64,
    compression: Compression,
}

impl OpenMagvit2 {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range, or the quantizer does not give one id per position.
    pub fn new(path: &nn::Path, config: &OpenMagvit2Config) -> Result<Self> {
        config.validate()?;
        let quantizer = config
            .quantizer
            .build(&(path / "quantizer"), config.z_channels)
            .map_err(|error| error.within("quantizer"))?;
        let (1, Some(codes)) = (quantizer.num_ids(), quantizer.codebook_size()) else {
            return Err(Error::config("quantizer", &config.quantizer, "one with a single id per position"));
        };
        let (height, width) = (config.stride(), config.stride());
        Ok(Self {
            encoder: Encoder::new(&(path / "encoder"), config)?,
            decoder: Decoder::new(&(path / "decoder"), config)?,
            quantizer,
            in_channels: config.in_channels,
            compression: Compression { time: 1, height, width, bits_per_token: (codes as f64).log2() },
        })
    }

    /// Video `[B, C, T, H, W]` through the whole model, with gradients where they are enabled.
    ///
    /// # Errors
    /// The shape does not fit the compression, or the element type is not the model's.
    pub fn forward(&self, video: &Tensor, mode: Mode) -> Result<Magvit2Output> {
        let features = self.encode_features(video)?;
        let quantized = self.quantizer.quantize(&features.permute([0, 2, 3, 4, 1]), mode)?;
        let reconstruction = self.decode_features(&quantized.embeddings.permute([0, 4, 1, 2, 3]))?;
        Ok(Magvit2Output { reconstruction, quantized })
    }

    /// Video `[B, C, T, H, W]` to the features `[B, K, T, H', W']` before the quantizer.
    ///
    /// # Errors
    /// As [`OpenMagvit2::forward`].
    pub fn encode_features(&self, video: &Tensor) -> Result<Tensor> {
        self.check_video(video)?;
        self.compression.grid_shape(VideoShape::of(video)?)?;
        Ok(unfold_time(&self.encoder.forward(&frames(video))?, video.size()[0]))
    }

    /// Features `[B, K, T, H', W']` as the quantizer gives them to video `[B, C, T, H, W]`, not clamped.
    ///
    /// # Errors
    /// Another number of axes or channels; a single position per frame where there are adaptive norms.
    pub fn decode_features(&self, features: &Tensor) -> Result<Tensor> {
        VideoShape::of(features)?;
        Ok(unfold_time(&self.decoder.forward(&frames(features))?, features.size()[0]))
    }

    /// The weight of the decoder's last convolution, at which the adaptive weight of a GAN loss compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// The bottleneck.
    pub fn quantizer(&self) -> &dyn Quantizer {
        self.quantizer.as_ref()
    }

    /// Features `[B, K, T, H', W']` to tokens.
    fn tokens(&self, features: &Tensor) -> Result<TokenGrid> {
        let quantized = self.quantizer.quantize(&features.permute([0, 2, 3, 4, 1]), Mode::Eval)?;
        TokenGrid::new(quantized.ids.expect("a quantizer with a codebook gives ids"))
    }
}

impl VideoTokenizer for OpenMagvit2 {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        no_grad(|| self.tokens(&self.encode_features(video)?))
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| Ok(self.decode_features(&self.embed(tokens)?)?.clamp(-1.0, 1.0)))
    }

    fn vocabulary_size(&self) -> Option<i64> {
        self.quantizer.codebook_size()
    }

    fn compression(&self) -> Compression {
        self.compression
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        Ok(Box::new(Encoding::new(self)))
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        Ok(Box::new(Decoding::new(self)))
    }
}

/// Frames know nothing of each other: the chunks need no memory.
impl Chunked for OpenMagvit2 {
    fn check_video(&self, video: &Tensor) -> Result<()> {
        check_channels("video", video, self.in_channels)?;
        check_element("video", video, self.last_layer())
    }

    fn encode_chunk(&self, frames: &Tensor, past: &mut Past) -> Result<TokenGrid> {
        past.end_chunk();
        self.tokens(&self.encode_features(frames)?)
    }

    fn embed(&self, tokens: &TokenGrid) -> Result<Tensor> {
        tokens.check_vocabulary(self.quantizer.codebook_size().unwrap_or(0))?;
        let ids = tokens.ids().to_device(self.last_layer().device());
        let code = self.quantizer.lookup(&ids)?.permute([0, 4, 1, 2, 3]);
        self.decoder.check(&frames(&code))?;
        Ok(code)
    }

    fn decode_chunk(&self, features: &Tensor, past: &mut Past) -> Tensor {
        past.end_chunk();
        unfold_time(&self.decoder.run(&frames(features)), features.size()[0])
    }
}

/// `[B, C, T, H, W]` as images `[B·T, C, H, W]` in channels-last order.
fn frames(video: &Tensor) -> Tensor {
    torch_ext::channels_last(&fold_time(video))
}
