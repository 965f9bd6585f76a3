//! A causal video tokenizer around the multi-scale quantizer.

use causal_conv::magvit2::{Decoder, Encoder, Magvit2Config};
use quantizers::{QuantizerConfig, VqConfig};
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, no_grad};
use video_core::{
    Compression, Error, GridShape, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape,
    VideoTokenizer,
};

use super::scales::SpaceTimePyramid;
use crate::quantizer::{MultiScaleVq, MultiScaleVqConfig};
use crate::scales::Pyramid;

/// Configuration of [`SpaceTimeVqvae`]. The network is MAGVIT-v2's, whose words it uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpaceTimeVqvaeConfig {
    /// Haar wavelets of so many pixels and frames a side come before the network; 1 for none.
    pub patch_size: i64,
    /// Width of the network.
    pub filters: i64,
    /// One factor a level, from the finest to the coarsest.
    pub channel_multipliers: Vec<i64>,
    /// Residual blocks a level.
    pub num_res_blocks: i64,
    /// For each transition to a coarser level, whether time is halved. Height and width always are.
    pub temporal_downsample: Vec<bool>,
    /// Groups of every group norm.
    pub num_groups: i64,
    /// The quantizer; its `v_patch_nums` are the scales of the first latent frame.
    pub quantizer: MultiScaleVqConfig,
    /// The scales (t, h, w) of each further chunk of latent frames.
    pub chunk_scales: Vec<[i64; 3]>,
}

impl Default for SpaceTimeVqvaeConfig {
    /// 17 × 128 × 128 pixels as 5 × 16 × 16 latent positions, one image and one chunk of four latent frames.
    fn default() -> Self {
        let network = Magvit2Config::paper_128();
        Self {
            patch_size: network.patch_size,
            filters: network.filters,
            channel_multipliers: network.channel_multipliers,
            num_res_blocks: network.num_res_blocks,
            temporal_downsample: network.temporal_downsample,
            num_groups: network.num_groups,
            quantizer: MultiScaleVqConfig::default(),
            chunk_scales: default_chunk_scales(),
        }
    }
}

/// Scales of four latent frames of 16 × 16.
pub(super) fn default_chunk_scales() -> Vec<[i64; 3]> {
    vec![[1, 1, 1], [1, 2, 2], [1, 4, 4], [2, 6, 6], [2, 10, 10], [4, 16, 16]]
}

impl SpaceTimeVqvaeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.quantizer.validate().map_err(|error| error.within("quantizer"))?;
        self.pyramid()?;
        self.network().validate()
    }

    /// The scales.
    ///
    /// # Errors
    /// As [`SpaceTimePyramid::new`].
    pub fn pyramid(&self) -> Result<SpaceTimePyramid> {
        SpaceTimePyramid::new(&self.quantizer.v_patch_nums, &self.chunk_scales)
    }

    /// The network around a quantizer that takes any width.
    fn network(&self) -> Magvit2Config {
        Magvit2Config {
            patch_size: self.patch_size,
            filters: self.filters,
            channel_multipliers: self.channel_multipliers.clone(),
            num_res_blocks: self.num_res_blocks,
            temporal_downsample: self.temporal_downsample.clone(),
            num_groups: self.num_groups,
            z_channels: Some(self.quantizer.z_channels),
            quantizer: QuantizerConfig::Vq(VqConfig::default()),
            ..Magvit2Config::paper_128()
        }
    }
}

/// What [`SpaceTimeVqvae::forward`] gives.
#[derive(Debug)]
pub struct SpaceTimeOutput {
    /// `[B, 3, T, H, W]`, not clamped.
    pub reconstruction: Tensor,
    /// The sums of all scales `[B, z, T', h, w]`, with the gradient of the features.
    pub f_hat: Tensor,
    /// The quantizer's loss, the mean over latent frames, 0-d.
    pub vq_loss: Tensor,
    /// Ids of each scale of the first latent frame, then of all chunks, int64 `[.., n]`.
    pub ids: Vec<Tensor>,
}

/// A causal tokenizer of videos whose tokens are pyramids. An image is a video of one frame; the first tokens of a video are
/// those of its first frame. Through [`VideoTokenizer`] all scales lie in a row: a grid of 1 × 1 × L.
///
/// Variables: `encoder`, `decoder` (see `causal_conv::magvit2`), and those of [`MultiScaleVq`] under `quantize`.
#[derive(Debug)]
pub struct SpaceTimeVqvae {
    config: SpaceTimeVqvaeConfig,
    pyramid: SpaceTimePyramid,
    latent: Compression,
    encoder: Encoder,
    decoder: Decoder,
    quantizer: MultiScaleVq,
}

impl SpaceTimeVqvae {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &SpaceTimeVqvaeConfig) -> Result<Self> {
        config.validate()?;
        let network = config.network();
        let [time, height, width] = network.factors();
        Ok(Self {
            pyramid: config.pyramid()?,
            latent: Compression {
                time,
                height,
                width,
                bits_per_token: (config.quantizer.vocab_size as f64).log2(),
            },
            encoder: Encoder::new(&(path / "encoder"), &network)?,
            decoder: Decoder::new(&(path / "decoder"), &network)?,
            quantizer: MultiScaleVq::new(&(path / "quantize"), &config.quantizer)?,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &SpaceTimeVqvaeConfig {
        &self.config
    }

    /// Its scales.
    pub fn pyramid(&self) -> &SpaceTimePyramid {
        &self.pyramid
    }

    /// Its quantizer.
    pub fn quantizer(&self) -> &MultiScaleVq {
        &self.quantizer
    }

    /// The weight of the decoder's last convolution.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// A training step on videos `[B, 3, T, H, W]`, with gradients.
    ///
    /// # Errors
    /// Another shape than the scales and strides allow.
    pub fn forward(&self, video: &Tensor, record_hits: bool) -> Result<SpaceTimeOutput> {
        self.grid_shape(VideoShape::of(video)?)?;
        let features = self.encoder.forward(video)?;
        let (first, rest) = self.parts(&features);
        let image = self.quantizer.train(&first, &self.pyramid.image, record_hits)?;
        let (f_hat, vq_loss, ids) = match rest {
            None => (image.f_hat, image.vq_loss, image.ids),
            Some(rest) => {
                let chunks = self.quantizer.train(&rest, &self.pyramid.chunk, false)?;
                let frames = features.size()[2] as f64;
                let loss = (image.vq_loss + chunks.vq_loss * (frames - 1.0)) / frames;
                let f_hat = Tensor::cat(&[image.f_hat, self.joined(&chunks.f_hat, video.size()[0])], 2);
                (f_hat, loss, image.ids.into_iter().chain(chunks.ids).collect())
            }
        };
        Ok(SpaceTimeOutput { reconstruction: self.decoder.forward(&f_hat)?, f_hat, vq_loss, ids })
    }

    /// Ids `[B, L]` of features `[B, z, T', h, w]`.
    fn ids(&self, features: &Tensor) -> Result<Tensor> {
        let SpaceTimePyramid { image, chunk } = &self.pyramid;
        let (first, rest) = self.parts(features);
        let first = Tensor::cat(&self.quantizer.encode(&first, image, image.len())?.ids, 1);
        let Some(rest) = rest else { return Ok(first) };
        let rest = Tensor::cat(&self.quantizer.encode(&rest, chunk, chunk.len())?.ids, 1);
        Ok(Tensor::cat(&[&first, &rest.view([first.size()[0], -1])], 1))
    }

    /// Sums of the first scales `[B, z, T', h, w]` of ids `[B, L]`, at most `scales` of each pyramid.
    fn f_hat(&self, ids: &Tensor, scales: usize) -> Result<Tensor> {
        let SpaceTimePyramid { image, chunk } = &self.pyramid;
        let sum = |ids: &Tensor, pyramid: &Pyramid| -> Result<Tensor> {
            let maps = self.quantizer.embed(&pyramid.split(ids)?, pyramid)?;
            let mut sums = self.quantizer.f_hats(&maps, pyramid)?;
            Ok(sums.swap_remove(scales.min(sums.len()) - 1))
        };
        let batch = ids.size()[0];
        let first = sum(&ids.narrow(1, 0, image.tokens()), image)?;
        let rest = ids.narrow(1, image.tokens(), ids.size()[1] - image.tokens());
        if rest.numel() == 0 {
            return Ok(first);
        }
        let rest = sum(&rest.reshape([-1, chunk.tokens()]), chunk)?;
        Ok(Tensor::cat(&[first, self.joined(&rest, batch)], 2))
    }

    /// The video `[B, 3, T, H, W]` in [-1, 1] of a grid of tokens, of at most the first `scales` of each pyramid.
    fn decode_scales(&self, tokens: &TokenGrid, scales: usize) -> Result<Tensor> {
        tokens.check_vocabulary(self.config.quantizer.vocab_size)?;
        let ids = tokens.ids().flatten(1, -1);
        self.pyramid.chunks_of_tokens(ids.size()[1])?;
        no_grad(|| Ok(self.decoder.forward(&self.f_hat(&ids, scales)?)?.clamp(-1.0, 1.0)))
    }

    /// The videos `[B, 3, T, H, W]` in [-1, 1] that the first scale of each pyramid gives, the first two, and so on: from
    /// coarse to fine. A pyramid of fewer scales than the other is finished earlier.
    ///
    /// # Errors
    /// As [`VideoTokenizer::decode`].
    pub fn videos_by_scale(&self, tokens: &TokenGrid) -> Result<Vec<Tensor>> {
        let SpaceTimePyramid { image, chunk } = &self.pyramid;
        (1..=image.len().max(chunk.len())).map(|scales| self.decode_scales(tokens, scales)).collect()
    }

    /// The first latent frame, and the chunks behind it side by side in the batch, `[B·n, z, c, h, w]`.
    fn parts(&self, features: &Tensor) -> (Tensor, Option<Tensor>) {
        let frames = features.size()[2];
        let first = features.narrow(2, 0, 1);
        if frames == 1 {
            return (first, None);
        }
        let rest = features.narrow(2, 1, frames - 1).unflatten(2, [-1, self.pyramid.chunk_frames()]);
        (first, Some(rest.transpose(1, 2).flatten(0, 1)))
    }

    /// The inverse for the chunks: `[B·n, z, c, h, w]` as `[B, z, n·c, h, w]`.
    fn joined(&self, chunks: &Tensor, batch: i64) -> Tensor {
        chunks.unflatten(0, [batch, -1]).transpose(1, 2).flatten(2, 3)
    }
}

impl VideoTokenizer for SpaceTimeVqvae {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        self.grid_shape(VideoShape::of(video)?)?;
        let ids = no_grad(|| self.ids(&self.encoder.forward(video)?))?;
        TokenGrid::new(ids.unsqueeze(1).unsqueeze(1))
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        self.decode_scales(tokens, usize::MAX)
    }

    fn vocabulary_size(&self) -> Option<i64> {
        Some(self.config.quantizer.vocab_size)
    }

    /// Strides are those of the latent, which has fewer positions than all scales together have tokens.
    fn compression(&self) -> Compression {
        self.latent
    }

    /// All scales' tokens in a row.
    fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        let latent = self.latent.grid_shape(shape)?;
        let last = self.pyramid.image.last();
        if (latent.height, latent.width) != (last.height, last.width) {
            let expected =
                format!("a list that ends at the latent's size {} × {}", latent.height, latent.width);
            return Err(Error::config("v_patch_nums", &self.config.quantizer.v_patch_nums, expected));
        }
        let chunks = self.pyramid.chunks_of_frames(latent.frames)?;
        Ok(GridShape { frames: 1, height: 1, width: self.pyramid.tokens(chunks) })
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        Err(Error::unsupported("SpaceTimeVqvae", "stream", "its chunks are coded as a whole: encode clips"))
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        Err(Error::unsupported("SpaceTimeVqvae", "stream", "its chunks are coded as a whole: decode clips"))
    }
}
