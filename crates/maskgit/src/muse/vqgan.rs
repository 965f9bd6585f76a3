//! The tokenizer of muse-maskgit-pytorch: strided convolutions, a few residual blocks at the bottom, LFQ.

use layers::init::torch_default;
use quantizers::{BitOrder, Lfq, LfqConfig, Mode, Quantized, Quantizer};
use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Tensor, no_grad};
use video_core::{Error, Result, TokenGrid};

/// Slope of the leaky ReLU.
const SLOPE: f64 = 0.1;

/// Configuration of [`MuseVqgan`]; the defaults are the reference's, of width 256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuseVqganConfig {
    /// Width behind the first convolution.
    pub dim: i64,
    /// Halvings; the i-th has width dim · 2^i.
    pub layers: i64,
    /// A power of two.
    pub codebook_size: i64,
    /// Groups of the norms.
    pub resnet_groups: i64,
    /// Residual blocks behind the last halving.
    pub num_resnet_blocks: i64,
}

impl Default for MuseVqganConfig {
    fn default() -> Self {
        Self { dim: 256, layers: 4, codebook_size: 65536, resnet_groups: 16, num_resnet_blocks: 1 }
    }
}

impl MuseVqganConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1 << 16).contains(&self.dim) {
            return Err(Error::config("dim", self.dim, "1 to 65536"));
        }
        if !(1..=10).contains(&self.layers) {
            return Err(Error::config("layers", self.layers, "1 to 10"));
        }
        if self.codebook_size < 2 || self.codebook_size.count_ones() != 1 {
            return Err(Error::config("codebook_size", self.codebook_size, "a power of two"));
        }
        if self.resnet_groups < 1 || self.dim % self.resnet_groups != 0 {
            let expected = format!("a divisor of dim = {}", self.dim);
            return Err(Error::config("resnet_groups", self.resnet_groups, expected));
        }
        if !(0..=1 << 10).contains(&self.num_resnet_blocks) {
            return Err(Error::config("num_resnet_blocks", self.num_resnet_blocks, "0 to 1024"));
        }
        Ok(())
    }

    /// Widths in front of each halving and behind the last.
    fn widths(&self) -> Vec<i64> {
        std::iter::once(self.dim).chain((0..self.layers).map(|i| self.dim << i)).collect()
    }
}

fn conv(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> nn::Conv2D {
    let init = torch_default(inputs * kernel * kernel);
    let padding = if stride == 1 { kernel / 2 } else { 1 };
    let config = nn::ConvConfig { padding, stride, ws_init: init, bs_init: init, ..Default::default() };
    nn::conv2d(path, inputs, outputs, kernel, config)
}

fn leaky(x: &Tensor) -> Tensor {
    x.maximum(&(x * SLOPE))
}

/// Two convolutions, each with an activation and a norm, a pointwise one, and the input. Variables `net.{i}` by the
/// reference's positions.
#[derive(Debug)]
struct ResBlock {
    conv1: nn::Conv2D,
    norm1: nn::GroupNorm,
    conv2: nn::Conv2D,
    norm2: nn::GroupNorm,
    out: nn::Conv2D,
    /// The decoder's blocks gate before the norm; the encoder's are leaky behind it.
    gated: bool,
}

impl ResBlock {
    fn new(path: &nn::Path, width: i64, groups: i64, gated: bool) -> Self {
        let net = path / "net";
        let (norm1, conv2, norm2) = if gated { (2, 3, 5) } else { (1, 3, 4) };
        let inner = if gated { 2 * width } else { width };
        let norm = |at: i64| nn::group_norm(&net / at, groups, width, Default::default());
        Self {
            conv1: conv(&(&net / 0), width, inner, 3, 1),
            norm1: norm(norm1),
            conv2: conv(&(&net / conv2), width, inner, 3, 1),
            norm2: norm(norm2),
            out: conv(&(&net / 6), width, width, 1, 1),
            gated,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let half = |x: &Tensor, conv: &nn::Conv2D, norm: &nn::GroupNorm| {
            let h = conv.forward(x);
            if self.gated { norm.forward(&h.glu(1)) } else { leaky(&norm.forward(&h)) }
        };
        let h = half(x, &self.conv1, &self.norm1);
        let h = half(&h, &self.conv2, &self.norm2);
        self.out.forward(&h) + x
    }
}

/// Encoder, LFQ and decoder of images `[N, 3, H, W]`. Variables have the reference's names: `enc_dec.encoders.{i}`,
/// `enc_dec.decoders.{i}`, `quantizer`.
#[derive(Debug)]
pub struct MuseVqgan {
    config: MuseVqganConfig,
    conv_in: nn::Conv2D,
    down: Vec<nn::Conv2D>,
    encoder_blocks: Vec<ResBlock>,
    quantizer: Lfq,
    decoder_blocks: Vec<ResBlock>,
    up: Vec<nn::ConvTranspose2D>,
    conv_out: nn::Conv2D,
}

impl MuseVqgan {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &MuseVqganConfig) -> Result<Self> {
        config.validate()?;
        let widths = config.widths();
        let deepest = widths[widths.len() - 1];
        let (encoders, decoders) = (path / "enc_dec" / "encoders", path / "enc_dec" / "decoders");
        let (layers, blocks) = (config.layers, config.num_resnet_blocks);
        let block = |path: nn::Path, gated: bool| ResBlock::new(&path, deepest, config.resnet_groups, gated);
        let level = |i: i64| (widths[i as usize], widths[i as usize + 1]);
        let up = |i: i64| {
            let (shallow, deep) = level(layers - 1 - i);
            let init = torch_default(shallow * 16);
            let config = nn::ConvTransposeConfig {
                stride: 2,
                padding: 1,
                ws_init: init,
                bs_init: init,
                ..Default::default()
            };
            nn::conv_transpose2d(&decoders / (blocks + i) / 0, deep, shallow, 4, config)
        };
        Ok(Self {
            conv_in: conv(&(&encoders / 0), 3, config.dim, 5, 1),
            down: (0..layers)
                .map(|i| conv(&(&encoders / (i + 1) / 0), level(i).0, level(i).1, 4, 2))
                .collect(),
            encoder_blocks: (0..blocks).map(|i| block(&encoders / (layers + 1 + i), false)).collect(),
            quantizer: Lfq::new(
                &(path / "quantizer"),
                deepest,
                LfqConfig {
                    bits: i64::from(config.codebook_size.ilog2()),
                    bit_order: BitOrder::MsbFirst,
                    diversity_gamma: 4.0,
                    ..LfqConfig::default()
                },
            )?,
            decoder_blocks: (0..blocks).map(|i| block(&decoders / i, true)).collect(),
            up: (0..layers).map(up).collect(),
            conv_out: conv(&(&decoders / (blocks + layers)), config.dim, 3, 1, 1),
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &MuseVqganConfig {
        &self.config
    }

    /// Features `[N, D, h, w]` of images. An odd last row or column leaves no trace of its own in a halving.
    ///
    /// # Errors
    /// Images of another number of channels, or of a side below 2^layers.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        let (size, stride) = (images.size(), 1 << self.config.layers);
        if size.len() != 4 || size[0] < 1 || size[1] != 3 || size[2..].iter().any(|&side| side < stride) {
            return Err(Error::shape("images", &size, format!("[N, 3, H, W], sides of at least {stride}")));
        }
        let x = self.conv_in.forward(images);
        let x = self.down.iter().fold(x, |x, down| leaky(&down.forward(&x)));
        Ok(self.encoder_blocks.iter().fold(x, |x, block| block.forward(&x)))
    }

    /// Quantizes features `[N, D, h, w]`; embeddings come as `[N, h, w, D]`.
    ///
    /// # Errors
    /// Another width.
    pub fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        self.quantizer.quantize(&features.permute([0, 2, 3, 1]), mode)
    }

    /// Images, not clipped, of embeddings `[N, h, w, D]`.
    pub fn pixels(&self, embeddings: &Tensor) -> Tensor {
        let x = embeddings.permute([0, 3, 1, 2]);
        let x = self.decoder_blocks.iter().fold(x, |x, block| block.forward(&x));
        self.conv_out.forward(&self.up.iter().fold(x, |x, up| leaky(&up.forward(&x))))
    }

    /// Ids `[N, 1, h, w]` of images whose sides 2^layers divides: others would come back smaller.
    ///
    /// # Errors
    /// Other sizes.
    pub fn encode(&self, images: &Tensor) -> Result<TokenGrid> {
        let (size, stride) = (images.size(), 1 << self.config.layers);
        if size.iter().skip(2).any(|side| side % stride != 0) {
            return Err(Error::shape("images", &size, format!("[N, 3, H, W], multiples of {stride}")));
        }
        let ids = no_grad(|| self.quantize(&self.features(images)?, Mode::Eval))?.ids;
        TokenGrid::new(ids.expect("LFQ is discrete").unsqueeze(1))
    }

    /// Images of ids `[N, 1, h, w]`, not clipped.
    ///
    /// # Errors
    /// An id outside the codebook, more than one frame.
    pub fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        if tokens.shape().frames != 1 {
            return Err(Error::shape("token grid", &tokens.ids().size(), "[N, 1, h, w]: images"));
        }
        no_grad(|| Ok(self.pixels(&self.quantizer.lookup(&tokens.ids().squeeze_dim(1))?)))
    }
}
