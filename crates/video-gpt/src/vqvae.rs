//! The VQ-VAE: 3D convolutions and axial attention around a codebook.

mod blocks;

use quantizers::{Mode, Quantized, Quantizer, QuantizerConfig, VqConfig};
use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Kind, Reduction, Tensor, no_grad};
use video_core::{
    Compression, Error, GridShape, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape,
    VideoTokenizer,
};

pub use blocks::{AttentionResidualBlock, Decoder, Encoder};

/// What the reconstruction error is divided by: taken for the variance of pixels in [-0.5, 0.5].
const DATA_VARIANCE: f64 = 0.06;

/// Configuration of [`VqVae`]; the defaults are those of all four published models, with the strides of the BAIR one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VqVaeConfig {
    /// Width of the networks; inside residual blocks it is half as wide, rounded down.
    pub n_hiddens: i64,
    /// Residual blocks of each network.
    pub n_res_layers: i64,
    /// Width of a code.
    pub embedding_dim: i64,
    /// Powers of two by which time, height and width shrink; at least one of them does.
    pub downsample: [i64; 3],
    /// The bottleneck.
    pub quantizer: QuantizerConfig,
}

impl Default for VqVaeConfig {
    fn default() -> Self {
        Self {
            n_hiddens: 240,
            n_res_layers: 4,
            embedding_dim: 256,
            downsample: [4, 2, 2],
            quantizer: QuantizerConfig::Vq(VqConfig::video_gpt()),
        }
    }
}

impl VqVaeConfig {
    /// `bair_stride4x2x2`: clips of 16 frames of 64 × 64.
    pub fn bair_stride4x2x2() -> Self {
        Self::default()
    }

    /// `ucf101_stride4x4x4` and `kinetics_stride4x4x4`: clips of 16 frames of 128 × 128.
    pub fn ucf101_stride4x4x4() -> Self {
        Self { downsample: [4, 4, 4], ..Self::default() }
    }

    /// `kinetics_stride2x4x4`: clips of 16 frames of 128 × 128.
    pub fn kinetics_stride2x4x4() -> Self {
        Self { downsample: [2, 4, 4], ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(2..=1 << 16).contains(&self.n_hiddens) {
            return Err(Error::config("n_hiddens", self.n_hiddens, "2 to 65536"));
        }
        if !(0..=1024).contains(&self.n_res_layers) {
            return Err(Error::config("n_res_layers", self.n_res_layers, "0 to 1024"));
        }
        if !(1..=1 << 16).contains(&self.embedding_dim) {
            return Err(Error::config("embedding_dim", self.embedding_dim, "1 to 65536"));
        }
        let powers = self.downsample.iter().all(|s| (1..=64).contains(s) && s.count_ones() == 1);
        if !powers || self.downsample == [1; 3] {
            let expected = "powers of two up to 64, not all of them 1";
            return Err(Error::config("downsample", self.downsample, expected));
        }
        self.quantizer.validate().map_err(|error| error.within("quantizer"))
    }
}

/// The tokenizer of VideoGPT (Yan et al., arXiv 2104.10157, section 3.1). Its networks read and write pixels in
/// [-0.5, 0.5]; as a [`VideoTokenizer`] it takes and gives [-1, 1], as all do. The strides must divide a clip's size.
///
/// Variables are named as in the published checkpoints, but for the codebook: `codebook` holds those of
/// [`quantizers::Vq`], or of whatever the bottleneck is.
#[derive(Debug)]
pub struct VqVae {
    config: VqVaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    pre_vq_conv: nn::Conv3D,
    post_vq_conv: nn::Conv3D,
    codebook: Box<dyn Quantizer>,
}

/// A training step's forward pass.
#[derive(Debug)]
pub struct VqVaeOutput {
    /// The reconstruction, in [-0.5, 0.5] but not clamped.
    pub reconstruction: Tensor,
    /// Mean squared error over 0.06, 0-d.
    pub recon_loss: Tensor,
    /// What the bottleneck says, its losses among it.
    pub quantized: Quantized,
}

impl VqVaeOutput {
    /// Reconstruction and bottleneck together, 0-d.
    pub fn loss(&self) -> Tensor {
        &self.recon_loss + self.quantized.loss()
    }
}

impl VqVae {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid, or the quantizer has several ids a position.
    pub fn new(path: &nn::Path, config: &VqVaeConfig) -> Result<Self> {
        config.validate()?;
        let &VqVaeConfig { n_hiddens, n_res_layers, embedding_dim, downsample, .. } = config;
        let codebook = config
            .quantizer
            .build(&(path / "codebook"), embedding_dim)
            .map_err(|error| error.within("quantizer"))?;
        if codebook.num_ids() != 1 {
            return Err(Error::config("quantizer", &config.quantizer, "one id a position"));
        }
        let pointwise = |name: &str, inputs: i64, outputs: i64| {
            let init = layers::init::torch_default(inputs);
            let conv = nn::ConvConfig { ws_init: init, bs_init: init, ..Default::default() };
            nn::conv3d(path / name / "conv", inputs, outputs, 1, conv)
        };
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::new(&(path / "encoder"), n_hiddens, n_res_layers, downsample)?,
            decoder: Decoder::new(&(path / "decoder"), n_hiddens, n_res_layers, downsample)?,
            pre_vq_conv: pointwise("pre_vq_conv", n_hiddens, embedding_dim),
            post_vq_conv: pointwise("post_vq_conv", embedding_dim, n_hiddens),
            codebook,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &VqVaeConfig {
        &self.config
    }

    /// Its bottleneck.
    pub fn quantizer(&self) -> &dyn Quantizer {
        self.codebook.as_ref()
    }

    /// The weight of the decoder's last layer, at which an adversarial loss is balanced.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// What the bottleneck sees of a video in [-0.5, 0.5]: `[B, t, h, w, D]`.
    ///
    /// # Errors
    /// The shape is one that cannot be encoded.
    pub fn features(&self, video: &Tensor, train: bool) -> Result<Tensor> {
        self.grid_shape(VideoShape::of(video)?)?;
        let features = self.pre_vq_conv.forward(&self.encoder.forward(video, train)?);
        Ok(features.permute([0, 2, 3, 4, 1]))
    }

    /// The video in [-0.5, 0.5], not clamped, of embeddings `[B, t, h, w, D]`.
    ///
    /// # Errors
    /// Another width.
    pub fn pixels(&self, embeddings: &Tensor, train: bool) -> Result<Tensor> {
        let size = embeddings.size();
        if size.len() != 5 || size[4] != self.config.embedding_dim || size.contains(&0) {
            let expected = format!("[B, t, h, w, {}]", self.config.embedding_dim);
            return Err(Error::shape("embeddings", &size, expected));
        }
        self.decoder.forward(&self.post_vq_conv.forward(&embeddings.permute([0, 4, 1, 2, 3])), train)
    }

    /// The mean squared error of a reconstruction over the constant that stands for the data's variance, 0-d.
    pub fn recon_loss(reconstruction: &Tensor, video: &Tensor) -> Tensor {
        reconstruction.mse_loss(video, Reduction::Mean) / DATA_VARIANCE
    }

    /// Reconstructs a video in [-0.5, 0.5].
    ///
    /// # Errors
    /// As [`VqVae::features`].
    pub fn forward(&self, video: &Tensor, mode: Mode) -> Result<VqVaeOutput> {
        let train = mode != Mode::Eval;
        let quantized = self.codebook.quantize(&self.features(video, train)?, mode)?;
        let reconstruction = self.pixels(&quantized.embeddings, train)?;
        let recon_loss = Self::recon_loss(&reconstruction, video);
        Ok(VqVaeOutput { reconstruction, recon_loss, quantized })
    }

    fn cannot_stream() -> Error {
        Error::unsupported(
            "VideoGPT's VQ-VAE",
            "stream",
            "its convolutions and its attention see the future; a causal tokenizer (causal-conv) can",
        )
    }
}

impl VideoTokenizer for VqVae {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        no_grad(|| {
            let features = self.features(&(video / 2.0), false)?;
            match self.codebook.quantize(&features, Mode::Eval)?.ids {
                Some(ids) => TokenGrid::new(ids),
                None => {
                    let because = "its bottleneck is continuous";
                    Err(Error::unsupported("VideoGPT's VQ-VAE", "encode to ids", because))
                }
            }
        })
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| {
            let pixels = self.pixels(&self.codebook.lookup(tokens.ids())?, false)?;
            Ok((pixels.to_kind(Kind::Float) * 2.0).clamp(-1.0, 1.0))
        })
    }

    fn vocabulary_size(&self) -> Option<i64> {
        self.codebook.codebook_size()
    }

    /// `time` counts every latent frame: the networks are not causal, and 4·k frames give k.
    fn compression(&self) -> Compression {
        let [time, height, width] = self.config.downsample;
        let bits = match self.codebook.codebook_size() {
            Some(size) => (size as f64).log2(),
            None => 32.0 * self.config.embedding_dim as f64,
        };
        Compression { time, height, width, bits_per_token: bits }
    }

    fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        if shape.channels != 3 {
            return Err(Error::input("channels", shape.channels.to_string(), "3"));
        }
        let [time, height, width] = self.config.downsample;
        let sizes =
            [("frames", shape.frames, time), ("height", shape.height, height), ("width", shape.width, width)];
        for (name, size, stride) in sizes {
            if size < 1 || size % stride != 0 {
                let padded = (size.max(1) + stride - 1) / stride * stride;
                let expected = format!("a multiple of {stride}: pad to {padded}");
                return Err(Error::input(name, size.to_string(), expected));
            }
        }
        let (frames, height, width) = (shape.frames / time, shape.height / height, shape.width / width);
        Ok(GridShape { frames, height, width })
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        Err(Self::cannot_stream())
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        Err(Self::cannot_stream())
    }
}
