//! The blocks of the autoencoder, on images `[B, C, H, W]`: those of VQGAN (Esser et al., arXiv 2012.09841), every
//! convolution with a bias.

use layers::init::torch_default;
use layers::{AttentionOptions, attention};
use tch::nn::{self, Module};
use tch::{Tensor, nn::ConvConfig};
use video_core::{Error, Result};

/// ε of every norm.
const EPS: f64 = 1e-6;

/// A convolution of an odd kernel that keeps the size.
pub(super) fn conv(path: nn::Path, inputs: i64, outputs: i64, kernel: i64) -> nn::Conv2D {
    let init = torch_default(inputs * kernel * kernel);
    let config = ConvConfig { padding: kernel / 2, ws_init: init, bs_init: init, ..Default::default() };
    nn::conv2d(path, inputs, outputs, kernel, config)
}

pub(super) fn group_norm(path: nn::Path, groups: i64, channels: i64) -> Result<nn::GroupNorm> {
    if groups < 1 || channels < 1 || channels % groups != 0 {
        let expected = format!("a divisor of the width {channels}");
        return Err(Error::config("norm_num_groups", groups, expected));
    }
    Ok(nn::group_norm(path, groups, channels, nn::GroupNormConfig { eps: EPS, ..Default::default() }))
}

/// Twice (group norm, SiLU, 3 × 3 convolution), and the input added, through a 1 × 1 convolution where the width changes.
///
/// Variables: `norm1`, `conv1`, `norm2`, `conv2`, and `nin_shortcut` where the width changes.
#[derive(Debug)]
pub struct ResBlock {
    norm1: nn::GroupNorm,
    conv1: nn::Conv2D,
    norm2: nn::GroupNorm,
    conv2: nn::Conv2D,
    shortcut: Option<nn::Conv2D>,
}

impl ResBlock {
    /// From `inputs` channels to `outputs`.
    ///
    /// # Errors
    /// `groups` does not divide a width.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, groups: i64) -> Result<Self> {
        Ok(Self {
            norm1: group_norm(path / "norm1", groups, inputs)?,
            conv1: conv(path / "conv1", inputs, outputs, 3),
            norm2: group_norm(path / "norm2", groups, outputs)?,
            conv2: conv(path / "conv2", outputs, outputs, 3),
            shortcut: (inputs != outputs).then(|| conv(path / "nin_shortcut", inputs, outputs, 1)),
        })
    }

    /// `[B, in, H, W]` to `[B, out, H, W]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        let h = self.conv2.forward(&self.norm2.forward(&h).silu());
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x) + h,
            None => x + h,
        }
    }
}

/// Attention of one head among all positions of a map, added to its input. Variables: `norm`, and the 1 × 1 convolutions
/// `qkv` (queries, keys, values) and `proj_out`.
#[derive(Debug)]
pub struct AttnBlock {
    norm: nn::GroupNorm,
    qkv: nn::Conv2D,
    proj_out: nn::Conv2D,
}

impl AttnBlock {
    /// Of `channels`.
    ///
    /// # Errors
    /// `groups` does not divide the width.
    pub fn new(path: &nn::Path, channels: i64, groups: i64) -> Result<Self> {
        Ok(Self {
            norm: group_norm(path / "norm", groups, channels)?,
            qkv: conv(path / "qkv", channels, 3 * channels, 1),
            proj_out: conv(path / "proj_out", channels, channels, 1),
        })
    }

    /// `[B, C, H, W]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.qkv.forward(&self.norm.forward(x));
        // [B, 1, H·W, C] each.
        let [q, k, v] =
            [0, 1, 2].map(|part| qkv.chunk(3, 1)[part].flatten(2, 3).transpose(1, 2).unsqueeze(1));
        let attended = attention(&q, &k, &v, None, AttentionOptions::default());
        x + self.proj_out.forward(&attended.squeeze_dim(1).transpose(1, 2).reshape(x.size()))
    }
}

/// Halves the size by a 3 × 3 convolution with stride 2 over the map with a row of zeros below and a column at the right.
/// Variables: `conv`.
#[derive(Debug)]
pub struct Downsample(nn::Conv2D);

impl Downsample {
    /// Of `channels`.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        let init = torch_default(channels * 9);
        let config = ConvConfig { stride: 2, ws_init: init, bs_init: init, ..Default::default() };
        Self(nn::conv2d(path / "conv", channels, channels, 3, config))
    }

    /// `[B, C, H, W]` to `[B, C, H/2, W/2]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.0.forward(&x.constant_pad_nd([0, 1, 0, 1]))
    }
}

/// Doubles the size: each pixel four times, then a 3 × 3 convolution. Variables: `conv`.
#[derive(Debug)]
pub struct Upsample(nn::Conv2D);

impl Upsample {
    /// Of `channels`.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        Self(conv(path / "conv", channels, channels, 3))
    }

    /// `[B, C, H, W]` to `[B, C, 2H, 2W]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        self.0.forward(&x.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None))
    }
}

/// Block, attention, block: what lies between encoder levels and the bottleneck. Variables: `block_1`, `attn_1`, `block_2`.
#[derive(Debug)]
pub(super) struct Middle(ResBlock, AttnBlock, ResBlock);

impl Middle {
    pub fn new(path: &nn::Path, width: i64, groups: i64) -> Result<Self> {
        let block = |name: &str| ResBlock::new(&(path / name), width, width, groups);
        Ok(Self(block("block_1")?, AttnBlock::new(&(path / "attn_1"), width, groups)?, block("block_2")?))
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.2.forward(&self.1.forward(&self.0.forward(x)))
    }
}

/// The residual blocks of one level, at the deepest level each with attention behind it. Variables: `block.{b}`, `attn.{b}`.
#[derive(Debug)]
pub(super) struct Level(Vec<(ResBlock, Option<AttnBlock>)>);

impl Level {
    /// `channels` in and out.
    pub fn new(path: &nn::Path, channels: [i64; 2], blocks: i64, groups: i64, attends: bool) -> Result<Self> {
        let [mut inputs, outputs] = channels;
        let block = |b: i64| {
            let block = ResBlock::new(&(path / "block" / b), inputs, outputs, groups)?;
            inputs = outputs;
            let attention = || AttnBlock::new(&(path / "attn" / b), outputs, groups);
            Ok((block, attends.then(attention).transpose()?))
        };
        Ok(Self((0..blocks).map(block).collect::<Result<_>>()?))
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, (block, attention)| {
            let x = block.forward(&x);
            attention.as_ref().map_or_else(|| x.shallow_clone(), |attention| attention.forward(&x))
        })
    }
}
