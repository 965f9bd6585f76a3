//! Residual blocks, encoder and decoder.

use tch::{Tensor, nn};
use video_core::{Error, Result};

use super::config::{NormKind, ResBlockConfig, Upsampling, VqganConfig};
use super::conv::{Conv, ConvTranspose, GROUPS, Norm, strides};

/// Two convolutions and a shortcut. Variables: `norm1`, `conv1`, `norm2`, `conv2`, and `shortcut` where the width changes.
#[derive(Debug)]
pub struct ResBlock {
    config: ResBlockConfig,
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl ResBlock {
    /// From `inputs` channels to `outputs`.
    ///
    /// # Errors
    /// A width below 1, or one that the groups do not divide.
    pub fn new(path: &nn::Path, config: ResBlockConfig, inputs: i64, outputs: i64) -> Result<Self> {
        for width in [inputs, outputs] {
            let grouped = config.norm == NormKind::Group;
            if width < 1 || (grouped && width % GROUPS != 0) {
                return Err(Error::config("width", width, "positive, and a multiple of 32 with group norm"));
            }
        }
        let ones = vec![1; config.dimensions.count()];
        let conv = |name: &str, inputs: i64, kernel: i64| {
            Conv::new(&(path / name), (inputs, outputs), kernel, &ones, false, config.padding)
        };
        let shortcut_inputs = if config.shortcut_of_output { outputs } else { inputs };
        let shortcut_kernel = if config.conv_shortcut { 3 } else { 1 };
        Ok(Self {
            config,
            norm1: Norm::new(&(path / "norm1"), config.norm, inputs),
            conv1: conv("conv1", inputs, 3),
            norm2: Norm::new(&(path / "norm2"), config.norm, outputs),
            conv2: conv("conv2", outputs, 3),
            shortcut: (inputs != outputs).then(|| conv("shortcut", shortcut_inputs, shortcut_kernel)),
        })
    }

    /// `[N, in, ...]` to `[N, out, ...]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let activation = self.config.activation;
        let h = self.conv1.forward(&activation.forward(&self.norm1.forward(x)));
        let h = self.conv2.forward(&activation.forward(&self.norm2.forward(&h)));
        match &self.shortcut {
            None => h + x,
            Some(shortcut) if self.config.shortcut_of_output => shortcut.forward(&h) + h,
            Some(shortcut) => shortcut.forward(x) + h,
        }
    }
}

/// The mean of 2 × 2 pixels, and of two frames with `time`, of `[N, C, H, W]` or `[B, C, T, H, W]`. An odd last position is
/// averaged with what there is.
pub fn downsample_average(x: &Tensor, time: bool) -> Tensor {
    average(x, time, true)
}

/// [`downsample_average`], or without an odd last position.
fn average(x: &Tensor, time: bool, keep_odd: bool) -> Tensor {
    if x.dim() == 4 {
        return x.avg_pool2d([2, 2], [2, 2], [0, 0], keep_odd, false, None);
    }
    // libtorch refuses an axis shorter than the kernel, though it would keep its last position.
    let axes = strides(3, time).into_iter().zip(x.size().split_off(2));
    let size: Vec<i64> = axes.map(|(stride, n)| if keep_odd { stride.min(n) } else { stride }).collect();
    x.avg_pool3d(&size, &size, [0, 0, 0], keep_odd, false, None)
}

/// Each pixel twice along both axes, and each frame twice with `time`.
pub fn upsample_nearest(x: &Tensor, time: bool) -> Tensor {
    let factors = strides(x.dim() - 2, time);
    let sizes: Vec<i64> = x.size()[2..].iter().zip(&factors).map(|(n, f)| n * f).collect();
    if x.dim() == 4 {
        x.upsample_nearest2d(&sizes, None, None)
    } else {
        x.upsample_nearest3d(&sizes, None, None, None)
    }
}

#[derive(Debug)]
enum Down {
    Average { time: bool },
    Conv(Conv),
}

/// Pixels to features. Variables: `conv_in`, `blocks.{j}` in order of use (see [`ResBlock`]), `down.{i}` where halving is by
/// convolution, `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Encoder {
    config: VqganConfig,
    conv_in: Conv,
    blocks: Vec<ResBlock>,
    down: Vec<Down>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Encoder {
    /// Of three channels.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &VqganConfig) -> Result<Self> {
        config.validate()?;
        let (axes, padding) = (config.block.dimensions.count(), config.block.padding);
        let ones = vec![1; axes];
        let mut blocks = Blocks::new(&(path / "blocks"), config.block, config.filters);
        let mut down = Vec::new();
        for (level, multiplier) in config.channel_multipliers.iter().enumerate() {
            blocks.push(config.num_enc_res_blocks, config.filters * multiplier)?;
            if level + 1 == config.channel_multipliers.len() {
                break;
            }
            let time = config.halves_time(level);
            down.push(if config.conv_downsample {
                let path = path / "down" / level;
                let channels = (blocks.width, config.filters * multiplier);
                Down::Conv(Conv::new(&path, channels, 4, &strides(axes, time), true, padding))
            } else {
                Down::Average { time }
            });
            blocks.width = if config.conv_downsample { config.filters * multiplier } else { blocks.width };
        }
        let width = blocks.width;
        blocks.push(config.num_enc_res_blocks, width)?;
        Ok(Self {
            config: config.clone(),
            conv_in: Conv::new(&(path / "conv_in"), (3, config.filters), 3, &ones, false, padding),
            blocks: blocks.blocks,
            down,
            norm_out: Norm::new(&(path / "norm_out"), config.block.norm, width),
            conv_out: Conv::new(&(path / "conv_out"), (width, config.embedding_dim), 1, &ones, true, padding),
        })
    }

    /// `[N, 3, H, W]` to `[N, D, h, w]`, or `[B, 3, T, H, W]` to `[B, D, t, h, w]`; pixels in [0, 1].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut blocks = self.blocks.iter();
        let per_level = self.config.num_enc_res_blocks as usize;
        let mut run = |x: Tensor| blocks.by_ref().take(per_level).fold(x, |x, block| block.forward(&x));
        let mut x = self.conv_in.forward(x);
        for down in &self.down {
            x = run(x);
            x = match down {
                Down::Average { time } => average(&x, *time, self.config.keep_odd),
                Down::Conv(conv) => conv.forward(&x),
            };
        }
        let x = run(x);
        let x = run(x);
        self.conv_out.forward(&self.config.block.activation.forward(&self.norm_out.forward(&x)))
    }
}

/// Residual blocks one behind another.
struct Blocks<'a> {
    path: nn::Path<'a>,
    config: ResBlockConfig,
    blocks: Vec<ResBlock>,
    width: i64,
}

impl<'a> Blocks<'a> {
    fn new(path: &nn::Path<'a>, config: ResBlockConfig, width: i64) -> Self {
        Self { path: path.clone(), config, blocks: Vec::new(), width }
    }

    fn push(&mut self, count: i64, width: i64) -> Result<()> {
        for _ in 0..count {
            let path = &self.path / self.blocks.len();
            self.blocks.push(ResBlock::new(&path, self.config, self.width, width)?);
            self.width = width;
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Up {
    NearestConv { time: bool, conv: Conv },
    Deconv(ConvTranspose),
}

/// Features to pixels. Variables: `conv_in`, `blocks.{j}` in order of use, `up.{i}` from the deepest level, `norm_out`,
/// `conv_out`.
#[derive(Debug)]
pub struct Decoder {
    config: VqganConfig,
    conv_in: Conv,
    blocks: Vec<ResBlock>,
    up: Vec<Up>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Decoder {
    /// To three channels.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &VqganConfig) -> Result<Self> {
        config.validate()?;
        let (axes, padding) = (config.block.dimensions.count(), config.block.padding);
        let ones = vec![1; axes];
        let conv = |name: nn::Path, channels: (i64, i64)| Conv::new(&name, channels, 3, &ones, true, padding);
        let widths: Vec<i64> = config.channel_multipliers.iter().map(|m| m * config.filters).collect();
        let deepest = widths[widths.len() - 1];
        let mut blocks = Blocks::new(&(path / "blocks"), config.block, deepest);
        blocks.push(config.num_dec_res_blocks, deepest)?;
        let mut up = Vec::new();
        for level in (0..widths.len()).rev() {
            blocks.push(config.num_dec_res_blocks, widths[level])?;
            if level == 0 {
                break;
            }
            let time = config.halves_time(level - 1);
            let at = path / "up" / up.len();
            up.push(match config.upsample {
                Upsampling::NearestConv => {
                    Up::NearestConv { time, conv: conv(at, (blocks.width, widths[level])) }
                }
                Upsampling::Deconv => Up::Deconv(ConvTranspose::new(&at, blocks.width, &strides(axes, time))),
            });
        }
        Ok(Self {
            conv_in: conv(path / "conv_in", (config.embedding_dim, deepest)),
            norm_out: Norm::new(&(path / "norm_out"), config.block.norm, blocks.width),
            conv_out: conv(path / "conv_out", (blocks.width, 3)),
            config: config.clone(),
            blocks: blocks.blocks,
            up,
        })
    }

    /// The weight of the last convolution: a GAN's adaptive weight compares gradients there.
    pub fn last_layer(&self) -> &Tensor {
        self.conv_out.weight()
    }

    /// `[N, D, h, w]` to `[N, 3, H, W]`, or `[B, D, t, h, w]` to `[B, 3, T, H, W]`; not clipped.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut blocks = self.blocks.iter();
        let per_level = self.config.num_dec_res_blocks as usize;
        let mut run = |x: Tensor| blocks.by_ref().take(per_level).fold(x, |x, block| block.forward(&x));
        let mut x = run(self.conv_in.forward(x));
        for up in &self.up {
            x = run(x);
            x = match up {
                Up::NearestConv { time, conv } => conv.forward(&upsample_nearest(&x, *time)),
                Up::Deconv(conv) => conv.forward(&x),
            };
        }
        let x = run(x);
        self.conv_out.forward(&self.config.block.activation.forward(&self.norm_out.forward(&x)))
    }
}
