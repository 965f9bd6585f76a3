//! The multi-scale VQVAE of images (arXiv 2404.02905, sections 3.3 and 4): VQGAN's convolutions around [`MultiScaleVq`].

mod blocks;
mod config;
mod network;

use tch::nn::{self, Module};
use tch::{Tensor, no_grad};
use video_core::{
    Compression, Error, GridShape, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape,
    VideoTokenizer,
};

pub use blocks::{AttnBlock, Downsample, ResBlock, Upsample};
pub use config::{VqvaeConfig, VqvaeParameters};
pub use network::{Decoder, Encoder};

use crate::quantizer::{Encoded, MultiScaleVq, TrainQuantized};
use crate::scales::Pyramid;

/// What [`Vqvae::forward`] gives.
#[derive(Debug)]
pub struct VqvaeOutput {
    /// `[B, 3, H, W]`, not clamped.
    pub reconstruction: Tensor,
    /// What the quantizer made of the features.
    pub quantized: TrainQuantized,
}

/// The tokenizer of images. Through [`VideoTokenizer`] an image is a video of one frame, and its tokens are those of all scales
/// one behind another: a grid of 1 × 1 × L.
///
/// Variables: those of [`Encoder`] under `encoder`, of [`Decoder`] under `decoder`, of [`MultiScaleVq`] under `quantize`, and
/// the convolutions `quant_conv`, `post_quant_conv`.
#[derive(Debug)]
pub struct Vqvae {
    config: VqvaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    quantizer: MultiScaleVq,
    quant_conv: nn::Conv2D,
    post_quant_conv: nn::Conv2D,
}

impl Vqvae {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &VqvaeConfig) -> Result<Self> {
        config.validate()?;
        let z = config.quantizer.z_channels;
        let conv = |name: &str| blocks::conv(path / name, z, z, config.quant_conv_ks);
        Ok(Self {
            encoder: Encoder::new(&(path / "encoder"), config)?,
            decoder: Decoder::new(&(path / "decoder"), config)?,
            quantizer: MultiScaleVq::new(&(path / "quantize"), &config.quantizer)?,
            quant_conv: conv("quant_conv"),
            post_quant_conv: conv("post_quant_conv"),
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &VqvaeConfig {
        &self.config
    }

    /// Its quantizer.
    pub fn quantizer(&self) -> &MultiScaleVq {
        &self.quantizer
    }

    /// Its encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The weight of the decoder's last convolution.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// Images `[B, 3, H, W]` in [-1, 1] to the features `[B, z, h, w]` that are quantized.
    ///
    /// # Errors
    /// Not images, or of a size that the levels do not halve.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        let (size, factor) = (images.size(), self.config.factor());
        let halves = |n: i64| n > 0 && n % factor == 0;
        if size.len() != 4 || size[0] < 1 || size[1] != 3 || !halves(size[2]) || !halves(size[3]) {
            let expected = format!("[B, 3, H, W] with H and W multiples of {factor}");
            return Err(Error::shape("images", &size, expected));
        }
        Ok(self.quant_conv.forward(&self.encoder.forward(images)))
    }

    /// Features `[B, z, h, w]`, quantized, to images `[B, 3, H, W]`, not clamped.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn decode_features(&self, f_hat: &Tensor) -> Result<Tensor> {
        let (size, z) = (f_hat.size(), self.config.quantizer.z_channels);
        if size.len() != 4 || size[1] != z || size.contains(&0) {
            return Err(Error::shape("features", &size, format!("[B, {z}, h, w] with no empty axis")));
        }
        Ok(self.decoder.forward(&self.post_quant_conv.forward(f_hat)))
    }

    /// Features `[B, z, h, w]`, quantized, to images `[B, 3, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// As [`Vqvae::decode_features`].
    pub fn fhat_to_images(&self, f_hat: &Tensor) -> Result<Tensor> {
        Ok(self.decode_features(f_hat)?.clamp(-1.0, 1.0))
    }

    /// Images `[B, 3, H, W]` to ids `[B, h·w]` and running sums `[B, z, 1, h, w]`, scale by scale, without gradients.
    ///
    /// # Errors
    /// As [`Vqvae::features`]; `v_patch_nums` does not end at the features' size.
    pub fn encode_images(&self, images: &Tensor) -> Result<Encoded> {
        let pyramid = self.quantizer.pyramid();
        let features = no_grad(|| self.features(images))?;
        self.quantizer.encode(&features.unsqueeze(2), pyramid, pyramid.len())
    }

    /// The image `[B, 3, H, W]` in [-1, 1] that each scale's ids `[B, h·w]` and all before give: from coarse to fine. With
    /// `own_size` each is of its scale's size, otherwise all are of the last's.
    ///
    /// # Errors
    /// As [`MultiScaleVq::embed`].
    pub fn images_by_scale(&self, ids: &[Tensor], own_size: bool) -> Result<Vec<Tensor>> {
        let pyramid = self.quantizer.pyramid();
        no_grad(|| {
            let maps = self.quantizer.embed(ids, pyramid)?;
            let sums = if own_size {
                self.quantizer.f_hats_own_size(&maps, pyramid)?
            } else {
                self.quantizer.f_hats(&maps, pyramid)?
            };
            sums.iter().map(|f_hat| self.fhat_to_images(&f_hat.squeeze_dim(2))).collect()
        })
    }

    /// As [`Vqvae::images_by_scale`], all of the last scale's size, for a grid of tokens: videos `[B, 3, 1, H, W]`.
    ///
    /// # Errors
    /// As [`VideoTokenizer::decode`].
    pub fn videos_by_scale(&self, tokens: &TokenGrid) -> Result<Vec<Tensor>> {
        tokens.check_vocabulary(self.config.quantizer.vocab_size)?;
        let ids = self.pyramid().split(&tokens.ids().flatten(1, -1))?;
        Ok(self.images_by_scale(&ids, false)?.iter().map(|images| images.unsqueeze(2)).collect())
    }

    /// A training step on images `[B, 3, H, W]`, with gradients.
    ///
    /// # Errors
    /// As [`Vqvae::encode_images`].
    pub fn forward(&self, images: &Tensor, record_hits: bool) -> Result<VqvaeOutput> {
        let features = self.features(images)?.unsqueeze(2);
        let quantized = self.quantizer.train(&features, self.quantizer.pyramid(), record_hits)?;
        let reconstruction = self.decode_features(&quantized.f_hat.squeeze_dim(2))?;
        Ok(VqvaeOutput { reconstruction, quantized })
    }

    fn pyramid(&self) -> &Pyramid {
        self.quantizer.pyramid()
    }
}

impl VideoTokenizer for Vqvae {
    /// Of videos of one frame.
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        self.grid_shape(VideoShape::of(video)?)?;
        let encoded = self.encode_images(&video.squeeze_dim(2))?;
        let ids = Tensor::cat(&encoded.ids, 1);
        TokenGrid::new(ids.unsqueeze(1).unsqueeze(1))
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        tokens.check_vocabulary(self.config.quantizer.vocab_size)?;
        let ids = self.pyramid().split(&tokens.ids().flatten(1, -1))?;
        no_grad(|| {
            let maps = self.quantizer.embed(&ids, self.pyramid())?;
            let sums = self.quantizer.f_hats(&maps, self.pyramid())?;
            let images = self.fhat_to_images(&sums[sums.len() - 1].squeeze_dim(2))?;
            Ok(images.unsqueeze(2))
        })
    }

    fn vocabulary_size(&self) -> Option<i64> {
        Some(self.config.quantizer.vocab_size)
    }

    /// Strides are those of the latent, which has fewer positions than all scales together have tokens.
    fn compression(&self) -> Compression {
        let factor = self.config.factor();
        let bits_per_token = (self.config.quantizer.vocab_size as f64).log2();
        Compression { time: 1, height: factor, width: factor, bits_per_token }
    }

    /// All scales' tokens in a row.
    fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        let latent = self.compression().grid_shape(shape)?;
        if latent.frames != 1 {
            return Err(one_frame(format!("encode {} frames", shape.frames)));
        }
        if latent != self.pyramid().last() {
            let expected = format!("a list that ends at the latent's side {}", latent.height);
            return Err(Error::config("v_patch_nums", &self.config.quantizer.v_patch_nums, expected));
        }
        Ok(GridShape { frames: 1, height: 1, width: self.pyramid().tokens() })
    }

    /// Of one frame: a second is refused.
    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        Ok(Box::new(OneImage { tokenizer: self, given: false }))
    }

    /// Of one frame: a second is refused.
    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        Ok(Box::new(OneImage { tokenizer: self, given: false }))
    }
}

/// A stream that ends with its first frame.
struct OneImage<'a> {
    tokenizer: &'a Vqvae,
    given: bool,
}

impl OneImage<'_> {
    /// Takes so many frames at a time.
    fn take(&mut self, frames: i64) -> Result<()> {
        if self.given || frames != 1 {
            return Err(one_frame(format!("stream {} frames", frames + i64::from(self.given))));
        }
        self.given = true;
        Ok(())
    }
}

impl StreamEncoder for OneImage<'_> {
    fn push(&mut self, frames: &Tensor) -> Result<Option<TokenGrid>> {
        self.take(VideoShape::of(frames)?.frames)?;
        self.tokenizer.encode(frames).map(Some)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl StreamDecoder for OneImage<'_> {
    fn push(&mut self, tokens: &TokenGrid) -> Result<Tensor> {
        self.take(tokens.shape().frames)?;
        self.tokenizer.decode(tokens)
    }
}

/// Refuses more than one frame.
fn one_frame(what: String) -> Error {
    Error::unsupported("Vqvae", what, "it is a tokenizer of images: use SpaceTimeVqvae for videos")
}
