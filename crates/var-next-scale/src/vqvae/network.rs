//! Encoder and decoder.

use tch::Tensor;
use tch::nn::{self, Module};
use video_core::Result;

use super::blocks::{Downsample, Level, Middle, Upsample, conv, group_norm};
use super::config::VqvaeConfig;

/// Pixels to features. Variables: `conv_in`; `down.{l}.block.{b}` and, at the deepest level, `down.{l}.attn.{b}`;
/// `down.{l}.downsample` but at the deepest; `mid.{block_1, attn_1, block_2}`, `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Encoder {
    conv_in: nn::Conv2D,
    down: Vec<(Level, Option<Downsample>)>,
    middle: Middle,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
}

impl Encoder {
    /// Of three channels.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &VqvaeConfig) -> Result<Self> {
        config.validate()?;
        let (widths, groups) = (config.widths(), config.norm_num_groups);
        let last = widths.len() - 1;
        let deepest = widths[last];
        let level = |l: usize| {
            let path = path / "down" / l;
            let inputs = if l == 0 { config.ch } else { widths[l - 1] };
            let channels = [inputs, widths[l]];
            let blocks = Level::new(&path, channels, config.num_res_blocks, groups, l == last)?;
            Ok((blocks, (l < last).then(|| Downsample::new(&(path / "downsample"), widths[l]))))
        };
        Ok(Self {
            conv_in: conv(path / "conv_in", 3, config.ch, 3),
            down: (0..widths.len()).map(level).collect::<Result<_>>()?,
            middle: Middle::new(&(path / "mid"), deepest, groups)?,
            norm_out: group_norm(path / "norm_out", groups, deepest)?,
            conv_out: conv(path / "conv_out", deepest, config.quantizer.z_channels, 3),
        })
    }

    /// `[B, 3, H, W]` to `[B, z, h, w]`.
    pub fn forward(&self, image: &Tensor) -> Tensor {
        let x = self.down.iter().fold(self.conv_in.forward(image), |x, (level, downsample)| {
            let x = level.forward(&x);
            downsample.as_ref().map_or_else(|| x.shallow_clone(), |down| down.forward(&x))
        });
        self.conv_out.forward(&self.norm_out.forward(&self.middle.forward(&x)).silu())
    }
}

/// Features to pixels. Variables as the encoder's, with `up.{l}` and `up.{l}.upsample`; the deepest level runs first.
#[derive(Debug)]
pub struct Decoder {
    conv_in: nn::Conv2D,
    middle: Middle,
    /// In order of use.
    up: Vec<(Level, Option<Upsample>)>,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
}

impl Decoder {
    /// To three channels.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &VqvaeConfig) -> Result<Self> {
        config.validate()?;
        let (widths, groups) = (config.widths(), config.norm_num_groups);
        let last = widths.len() - 1;
        let deepest = widths[last];
        let level = |l: usize| {
            let path = path / "up" / l;
            let channels = [widths[(l + 1).min(last)], widths[l]];
            let blocks = Level::new(&path, channels, config.num_res_blocks + 1, groups, l == last)?;
            Ok((blocks, (l > 0).then(|| Upsample::new(&(path / "upsample"), widths[l]))))
        };
        Ok(Self {
            conv_in: conv(path / "conv_in", config.quantizer.z_channels, deepest, 3),
            middle: Middle::new(&(path / "mid"), deepest, groups)?,
            up: (0..widths.len()).rev().map(level).collect::<Result<_>>()?,
            norm_out: group_norm(path / "norm_out", groups, widths[0])?,
            conv_out: conv(path / "conv_out", widths[0], 3, 3),
        })
    }

    /// `[B, z, h, w]` to `[B, 3, H, W]`, not clamped.
    pub fn forward(&self, features: &Tensor) -> Tensor {
        let x = self.middle.forward(&self.conv_in.forward(features));
        let x = self.up.iter().fold(x, |x, (level, upsample)| {
            let x = level.forward(&x);
            upsample.as_ref().map_or_else(|| x.shallow_clone(), |up| up.forward(&x))
        });
        self.conv_out.forward(&self.norm_out.forward(&x).silu())
    }

    /// The weight of the last convolution, at which the adaptive weight of a GAN loss compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        &self.conv_out.ws
    }
}
