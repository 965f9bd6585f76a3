//! The discriminator of both tokenizers' training, for images: StyleGAN2's without its minibatch statistics.

use serde::{Deserialize, Serialize};
use tch::nn::Init;
use tch::{Tensor, nn};
use video_core::{Error, Result};

use super::blocks::downsample_average;
use super::config::ConvPadding;
use super::conv::{pad, same_padding};

const SLOPE: f64 = 0.2;

fn leaky(x: &Tensor) -> Tensor {
    x.maximum(&(x * SLOPE))
}

/// A binomial filter of each channel, then a stride, with zeros beyond the border as flax's SAME has them.
#[derive(Clone, Debug)]
pub struct BlurPool2d {
    taps: Vec<f64>,
    strides: [i64; 2],
}

impl BlurPool2d {
    /// Of 3 to 7 taps (1 2 1, 1 3 3 1, ...).
    ///
    /// # Errors
    /// A size or a stride out of range.
    pub fn new(filter_size: i64, strides: [i64; 2]) -> Result<Self> {
        if !(3..=7).contains(&filter_size) {
            return Err(Error::config("filter_size", filter_size, "3 to 7"));
        }
        if strides.iter().any(|&s| s < 1) {
            return Err(Error::config("strides", strides, "at least 1"));
        }
        let mut taps = vec![1.0];
        for n in 1..filter_size {
            taps.push(taps[n as usize - 1] * (filter_size - n) as f64 / n as f64);
        }
        let sum: f64 = taps.iter().sum();
        Ok(Self { taps: taps.into_iter().map(|tap| tap / sum).collect(), strides })
    }

    /// `[N, C, H, W]` to `[N, C, ⌈H/s⌉, ⌈W/s⌉]`.
    ///
    /// # Panics
    /// Not four axes.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (_, channels, height, width) = x.size4().expect("images have four axes");
        let k = self.taps.len() as i64;
        let pads = [same_padding(height, k, self.strides[0]), same_padding(width, k, self.strides[1])];
        let taps = Tensor::from_slice(&self.taps).to_kind(x.kind()).to_device(x.device());
        let filter = taps.unsqueeze(-1) * &taps;
        let filter = filter.expand([channels, 1, k, k], false).contiguous();
        pad(x, &pads, ConvPadding::Same).conv2d(
            &filter,
            None::<&Tensor>,
            self.strides,
            [0, 0],
            [1, 1],
            channels,
        )
    }
}

/// A convolution with Xavier's initialisation. Variables: `weight`, `bias`.
fn xavier_conv(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64, bias: bool) -> nn::Conv2D {
    let bound = (6.0 / ((inputs + outputs) * kernel * kernel) as f64).sqrt();
    let config = nn::ConvConfig {
        padding: kernel / 2,
        bias,
        ws_init: Init::Uniform { lo: -bound, up: bound },
        bs_init: Init::Const(0.0),
        ..Default::default()
    };
    nn::conv2d(path, inputs, outputs, kernel, config)
}

/// A residual block that halves. Variables: `conv1`, `skip`, `conv2`.
#[derive(Debug)]
pub struct DiscriminatorBlock {
    conv1: nn::Conv2D,
    skip: nn::Conv2D,
    conv2: nn::Conv2D,
    blur: Option<BlurPool2d>,
}

impl DiscriminatorBlock {
    /// From `inputs` channels to `outputs`; halving after a blur, or by the mean of 2 × 2 pixels.
    ///
    /// # Errors
    /// A width below 1.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, blur_resample: bool) -> Result<Self> {
        if let Some(width) = [inputs, outputs].into_iter().find(|&width| width < 1) {
            return Err(Error::config("width", width, "at least 1"));
        }
        Ok(Self {
            conv1: xavier_conv(&(path / "conv1"), inputs, inputs, 3, true),
            skip: xavier_conv(&(path / "skip"), inputs, outputs, 1, false),
            conv2: xavier_conv(&(path / "conv2"), inputs, outputs, 3, true),
            blur: if blur_resample { Some(BlurPool2d::new(4, [2, 2])?) } else { None },
        })
    }

    /// `[N, in, H, W]` to `[N, out, ⌈H/2⌉, ⌈W/2⌉]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let halve = |x: &Tensor| match &self.blur {
            Some(blur) => blur.forward(x),
            None => downsample_average(x, false),
        };
        let main = halve(&leaky(&x.apply(&self.conv1)));
        let main = leaky(&main.apply(&self.conv2));
        (halve(x).apply(&self.skip) + main) / 2f64.sqrt()
    }
}

/// Configuration of [`StyleDiscriminator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StyleDiscriminatorConfig {
    /// Height and width: a power of two, 8 to 1024.
    pub image_size: i64,
    /// m: multiplies the widths above 32 × 32.
    pub channel_multiplier: i64,
    /// Halving after a blur.
    pub blur_resample: bool,
}

impl Default for StyleDiscriminatorConfig {
    fn default() -> Self {
        Self { image_size: 256, channel_multiplier: 1, blur_resample: true }
    }
}

impl StyleDiscriminatorConfig {
    fn width(&self, size: i64) -> i64 {
        if size <= 32 { 512 } else { 16384 / size * self.channel_multiplier }
    }
}

/// Images to a score each. Variables: `conv_in`, `blocks.{i}`, `conv_out`, `dense1`, `dense2`.
#[derive(Debug)]
pub struct StyleDiscriminator {
    config: StyleDiscriminatorConfig,
    conv_in: nn::Conv2D,
    blocks: Vec<DiscriminatorBlock>,
    conv_out: nn::Conv2D,
    dense1: nn::Linear,
    dense2: nn::Linear,
}

impl StyleDiscriminator {
    /// For images of the config's size.
    ///
    /// # Errors
    /// A size that is no power of two within 8 to 1024, a multiplier below 1.
    pub fn new(path: &nn::Path, config: StyleDiscriminatorConfig) -> Result<Self> {
        let size = config.image_size;
        if !(8..=1024).contains(&size) || size.count_ones() != 1 {
            return Err(Error::config("image_size", size, "a power of two, 8 to 1024"));
        }
        if !(1..=64).contains(&config.channel_multiplier) {
            return Err(Error::config("channel_multiplier", config.channel_multiplier, "1 to 64"));
        }
        let mut at = size;
        let mut blocks = Vec::new();
        while at > 4 {
            let path = path / "blocks" / blocks.len();
            let widths = (config.width(at), config.width(at / 2));
            blocks.push(DiscriminatorBlock::new(&path, widths.0, widths.1, config.blur_resample)?);
            at /= 2;
        }
        let dense = |name: &str, inputs: i64, outputs: i64| {
            let bound = (6.0 / (inputs + outputs) as f64).sqrt();
            let config = nn::LinearConfig {
                ws_init: Init::Uniform { lo: -bound, up: bound },
                bs_init: Some(Init::Const(0.0)),
                bias: true,
            };
            nn::linear(path / name, inputs, outputs, config)
        };
        Ok(Self {
            config,
            conv_in: xavier_conv(&(path / "conv_in"), 3, config.width(size), 3, true),
            blocks,
            conv_out: xavier_conv(&(path / "conv_out"), config.width(4), 512, 3, true),
            dense1: dense("dense1", 512 * 4 * 4, 512),
            dense2: dense("dense2", 512, 1),
        })
    }

    /// `[N, 3, S, S]` in [0, 1] to `[N]`.
    ///
    /// # Errors
    /// Images of another size.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let size = self.config.image_size;
        if images.dim() != 4 || images.size()[1..] != [3, size, size] {
            return Err(Error::shape("images", &images.size(), format!("[N, 3, {size}, {size}]")));
        }
        let x = leaky(&images.apply(&self.conv_in));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x));
        // Rows, columns, then channels, as flax flattens.
        let x = leaky(&x.apply(&self.conv_out)).permute([0, 2, 3, 1]).flatten(1, -1);
        Ok(leaky(&x.apply(&self.dense1)).apply(&self.dense2).squeeze_dim(-1))
    }
}
