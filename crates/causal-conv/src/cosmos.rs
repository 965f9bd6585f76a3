//! The causal video tokenizers of Cosmos (NVIDIA, arXiv 2501.03575 section 3; Cosmos-Tokenizer): Haar wavelet patches around
//! a convolutional network with attention, continuous (CV) or with finite scalar quantization (DV).
//!
//! ```
//! use causal_conv::cosmos::{CosmosConfig, CosmosTokenizer};
//! use tch::{Device, Kind, Tensor, nn};
//!
//! # fn main() -> video_core::Result<()> {
//! let config = CosmosConfig { channels: 8, num_res_blocks: 1, ..CosmosConfig::cv8x8x8() };
//! let variables = nn::VarStore::new(Device::Cpu);
//! let tokenizer = CosmosTokenizer::new(&variables.root(), &config)?;
//! let video = Tensor::rand([1, 3, 9, 32, 32], (Kind::Float, Device::Cpu)) * 2 - 1;
//! let latent = tokenizer.encode_features(&video)?; // [1, 16, 2, 4, 4]
//! assert_eq!(tokenizer.decode_features(&latent)?.size(), video.size());
//! # Ok(())
//! # }
//! ```

mod blocks;
mod config;
mod decoder;
mod encoder;
mod resample;

use quantizers::{Gaussian, KlConfig, Mode, Quantized, Quantizer};
use tch::{Tensor, nn, no_grad};
use video_core::{
    Compression, Error, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape, VideoTokenizer,
};

pub use blocks::{Attention, AttentionAxes, ResBlock};
pub use config::{CosmosBottleneck, CosmosConfig, CosmosNet};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use resample::{Downsample, HybridDownsample, HybridUpsample, Upsample};

use crate::blocks::check_channels;
use crate::conv::CausalConv3d;
use crate::magvit2::Magvit2Output;
pub use crate::patcher::{PatchMethod, Patcher};
use crate::stream::{Chunked, Decoding, Encoding};
use crate::time::Past;

/// Refuses a video of other channels or of a size that the strides do not fit.
fn check_video(video: &Tensor, config: &CosmosConfig, [time, height, width]: [i64; 3]) -> Result<()> {
    check_channels("video", video, config.in_channels)?;
    Compression { time, height, width, bits_per_token: 0.0 }.grid_shape(VideoShape::of(video)?)?;
    Ok(())
}

/// The tokenizer: 1 + s·k frames become 1 + k maps of tokens, or of `latent_channels` numbers per position.
///
/// Variables: those of [`Encoder`] under `encoder`, of [`Decoder`] under `decoder`, the 1×1×1 convolutions `quant_conv` and
/// `post_quant_conv`, and those of the quantizer, if it has any, under `quantizer`.
#[derive(Debug)]
pub struct CosmosTokenizer {
    config: CosmosConfig,
    encoder: Encoder,
    quant_conv: CausalConv3d,
    quantizer: Option<Box<dyn Quantizer>>,
    post_quant_conv: CausalConv3d,
    decoder: Decoder,
    compression: Compression,
}

impl CosmosTokenizer {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range, encoder or decoder do not compress as it says, or the quantizer does not take
    /// features of `embedding_dim`, or gives more than one id per position.
    pub fn new(path: &nn::Path, config: &CosmosConfig) -> Result<Self> {
        config.validate()?;
        config.check_compression()?;
        let (latent, factor) = (config.bottleneck.latent_channels(), config.bottleneck.factor());
        let quantizer = match &config.bottleneck {
            CosmosBottleneck::Discrete { embedding_dim, quantizer } => {
                let built = quantizer.build(&(path / "quantizer"), *embedding_dim);
                Some(built.map_err(|error| error.within("bottleneck.quantizer"))?)
            }
            _ => None,
        };
        let bits_per_token = match &quantizer {
            None => 32.0 * latent as f64,
            Some(quantizer) => match quantizer.codebook_size() {
                Some(size) if quantizer.num_ids() == 1 => (size as f64).log2(),
                _ => {
                    let expected = "a quantizer with one id per position";
                    return Err(Error::config("bottleneck.quantizer", &config.bottleneck, expected));
                }
            },
        };
        let (time, space) = (config.temporal_compression, config.spatial_compression);
        let conv = |name: &str, inputs, outputs| {
            CausalConv3d::new(&(path / name), inputs, outputs, blocks::conv_config([1; 3]))
        };
        Ok(Self {
            encoder: Encoder::new(&(path / "encoder"), config)?,
            quant_conv: conv("quant_conv", factor * config.z_channels, factor * latent)?,
            quantizer,
            post_quant_conv: conv("post_quant_conv", latent, config.z_channels)?,
            decoder: Decoder::new(&(path / "decoder"), config)?,
            compression: Compression { time, height: space, width: space, bits_per_token },
            config: config.clone(),
        })
    }

    /// Video `[B, C, T, H, W]` to the latent `[B, L, T', H', W']`: of a continuous tokenizer the mean, of a discrete one the
    /// features before the quantizer.
    ///
    /// # Errors
    /// The shape does not fit the compression, or the element type is not the model's.
    pub fn encode_features(&self, video: &Tensor) -> Result<Tensor> {
        let moments = self.moments(video)?;
        Ok(moments.narrow(1, 0, self.config.bottleneck.latent_channels()))
    }

    /// Mean and log-variance, both `[B, L, T', H', W']`, the latter clamped to [-30, 20].
    ///
    /// # Errors
    /// As [`CosmosTokenizer::encode_features`], or the bottleneck is not [`CosmosBottleneck::Variational`].
    pub fn posterior(&self, video: &Tensor) -> Result<(Tensor, Tensor)> {
        let CosmosBottleneck::Variational { latent_channels } = self.config.bottleneck else {
            let because = "its bottleneck is not variational: use encode_features";
            return Err(Error::unsupported("CosmosTokenizer", "give a posterior", because));
        };
        let moments = self.moments(video)?;
        let log_variance = moments.narrow(1, latent_channels, latent_channels).clamp(-30.0, 20.0);
        Ok((moments.narrow(1, 0, latent_channels), log_variance))
    }

    /// The latent `[B, L, T', H', W']`, of a discrete tokenizer as the quantizer gives it, to video `[B, C, T, H, W]`, not
    /// clamped.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn decode_features(&self, latent: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.post_quant_conv.forward(latent)?)
    }

    /// Video `[B, C, T, H, W]` through the whole model, with gradients where they are enabled: a discrete tokenizer with the
    /// losses of its quantizer, a variational one with a drawn latent and the KL loss at [`KlConfig`]'s weight.
    ///
    /// # Errors
    /// As [`CosmosTokenizer::encode_features`].
    pub fn forward(&self, video: &Tensor, mode: Mode) -> Result<Magvit2Output> {
        let moments = self.moments(video)?.permute([0, 2, 3, 4, 1]);
        let without_ids = |embeddings, losses| Quantized { embeddings, ids: None, losses, usage: None };
        let quantized = match (&self.quantizer, &self.config.bottleneck, mode) {
            (Some(quantizer), ..) => quantizer.quantize(&moments, mode)?,
            (None, CosmosBottleneck::Variational { .. }, Mode::Train { .. }) => {
                let posterior = Gaussian::from_moments(&moments)?;
                let kl = posterior.kl().mean(moments.kind()) * KlConfig::default().kl_weight;
                without_ids(posterior.sample(), vec![("kl", kl)])
            }
            _ => without_ids(moments.narrow(-1, 0, self.config.bottleneck.latent_channels()), Vec::new()),
        };
        let latent = quantized.embeddings.permute([0, 4, 1, 2, 3]);
        Ok(Magvit2Output { reconstruction: self.decode_features(&latent)?, quantized })
    }

    /// The quantizer of a discrete tokenizer.
    pub fn quantizer(&self) -> Option<&dyn Quantizer> {
        self.quantizer.as_deref()
    }

    /// The weight of the decoder's last convolution, at which the adaptive weight of a GAN loss compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// What `quant_conv` gives.
    fn moments(&self, video: &Tensor) -> Result<Tensor> {
        self.check_video(video)?;
        self.quant_conv.forward(&self.encoder.forward(video)?)
    }

    fn discrete(&self, action: &str) -> Result<&dyn Quantizer> {
        self.quantizer.as_deref().ok_or_else(|| {
            let because = "its bottleneck is continuous: use encode_features and decode_features";
            Error::unsupported("CosmosTokenizer", action, because)
        })
    }

    /// Features `[B, L, T', H', W']` to tokens.
    fn tokens(&self, features: &Tensor) -> Result<TokenGrid> {
        let quantizer = self.discrete("encode to tokens")?;
        let quantized = quantizer.quantize(&features.permute([0, 2, 3, 4, 1]), Mode::Eval)?;
        TokenGrid::new(quantized.ids.expect("a discrete quantizer gives ids"))
    }

    /// Refuses to stream where a frame's result depends on all frames before it, or after it.
    fn check_streams(&self, net: CosmosNet) -> Result<()> {
        self.discrete("stream tokens")?;
        let because = match net {
            CosmosNet::Factorized => {
                "its attention along time sees every frame since the clip began, so that the state would grow with the \
                 clip: code windows of the length that the model was trained on, or use base networks with num_groups = 1"
            }
            CosmosNet::Base if self.config.num_groups > 1 => {
                "the statistics of its group norms are those of the whole clip: use num_groups = 1"
            }
            CosmosNet::Base => return Ok(()),
        };
        Err(Error::unsupported("CosmosTokenizer", "stream", because))
    }
}

impl VideoTokenizer for CosmosTokenizer {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        self.discrete("encode to tokens")?;
        no_grad(|| self.tokens(&self.encode_features(video)?))
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| Ok(self.decoder.forward(&self.embed(tokens)?)?.clamp(-1.0, 1.0)))
    }

    fn vocabulary_size(&self) -> Option<i64> {
        self.quantizer.as_ref().and_then(|quantizer| quantizer.codebook_size())
    }

    fn compression(&self) -> Compression {
        self.compression
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        self.check_streams(self.config.encoder)?;
        Ok(Box::new(Encoding::new(self)))
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        self.check_streams(self.config.decoder)?;
        Ok(Box::new(Decoding::new(self)))
    }
}

impl Chunked for CosmosTokenizer {
    fn check_video(&self, video: &Tensor) -> Result<()> {
        let weight = self.last_layer();
        if video.kind() != weight.kind() || video.device() != weight.device() {
            return Err(Error::input(
                "video",
                format!("{:?} numbers on {:?}", video.kind(), video.device()),
                format!("the model's, {:?} on {:?}", weight.kind(), weight.device()),
            ));
        }
        check_channels("video", video, self.config.in_channels)
    }

    fn encode_chunk(&self, frames: &Tensor, past: &mut Past) -> Result<TokenGrid> {
        let features = self.encoder.run(frames, past);
        self.tokens(&self.quant_conv.run(&features, &mut Past::WholeClip))
    }

    fn embed(&self, tokens: &TokenGrid) -> Result<Tensor> {
        let quantizer = self.discrete("decode tokens")?;
        tokens.check_vocabulary(quantizer.codebook_size().unwrap_or(0))?;
        let ids = tokens.ids().to_device(self.last_layer().device());
        let latent = quantizer.lookup(&ids)?.permute([0, 4, 1, 2, 3]).to_kind(self.last_layer().kind());
        self.post_quant_conv.forward(&latent)
    }

    fn decode_chunk(&self, features: &Tensor, past: &mut Past) -> Tensor {
        self.decoder.run(features, past)
    }
}
