//! Features to images.

use tch::nn::Module;
use tch::{Tensor, nn};
use video_core::Result;

use super::OpenMagvit2Config;
use super::blocks::{AdaptiveGroupNorm, ResBlock, Upsampler, check_code, check_images, conv, group_norm};
use super::encoder::res_blocks;

/// One level: where there is one a norm under the code's control, residual blocks, then the way to the next finer level.
#[derive(Debug)]
struct Level {
    adaptive: Option<AdaptiveGroupNorm>,
    blocks: Vec<ResBlock>,
    upsample: Option<Upsampler>,
}

/// Features to images: levels of residual blocks, each twice as fine as the one before.
///
/// Variables, by the names of the reference: `conv_in`, `mid_block.{j}`, `adaptive.{i}.{gamma, beta}`,
/// `up.{i}.block.{j}`, `up.{i}.upsample.conv1` (level 0 is the finest), `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Decoder {
    conv_in: nn::Conv2D,
    mid: Vec<ResBlock>,
    /// From the coarsest to the finest.
    levels: Vec<Level>,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
    z_channels: i64,
    adaptive: bool,
}

impl Decoder {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &OpenMagvit2Config) -> Result<Self> {
        config.validate()?;
        let widths = config.widths();
        let top = widths[widths.len() - 1];
        let level = |i: usize| -> Result<Level> {
            let up = path / "up" / i;
            let before = widths.get(i + 1).copied().unwrap_or(top);
            let norm = path / "adaptive" / i;
            Ok(Level {
                adaptive: config
                    .adaptive_norm
                    .then(|| AdaptiveGroupNorm::new(&norm, before, config.z_channels, config.num_groups))
                    .transpose()?,
                blocks: res_blocks(&up / "block", before, widths[i], config)?,
                upsample: (i > 0).then(|| Upsampler::new(&(&up / "upsample"), widths[i])),
            })
        };
        Ok(Self {
            conv_in: conv(path / "conv_in", [config.z_channels, top], 3, 1, true),
            mid: res_blocks(path / "mid_block", top, top, config)?,
            levels: (0..widths.len()).rev().map(level).collect::<Result<_>>()?,
            norm_out: group_norm(path / "norm_out", config.num_groups, widths[0], true)?,
            conv_out: conv(path / "conv_out", [widths[0], config.out_ch], 3, 1, true),
            z_channels: config.z_channels,
            adaptive: config.adaptive_norm,
        })
    }

    /// The quantizer's features `[N, K, H', W']` to images `[N, C, H, W]`, not clamped. All layers compute in the order in
    /// memory that the features have: channels-last ones are faster.
    ///
    /// # Errors
    /// Another number of axes or channels; a single position where there are adaptive norms, which take its variance.
    pub fn forward(&self, code: &Tensor) -> Result<Tensor> {
        self.check(code)?;
        Ok(self.run(code))
    }

    /// Refuses what [`Decoder::forward`] does.
    pub(super) fn check(&self, code: &Tensor) -> Result<()> {
        if self.adaptive {
            check_code(code, self.z_channels)
        } else {
            check_images("code", code, self.z_channels)
        }
    }

    pub(super) fn run(&self, code: &Tensor) -> Tensor {
        let mut x = self.mid.iter().fold(self.conv_in.forward(code), |x, block| block.run(&x));
        for level in &self.levels {
            if let Some(adaptive) = &level.adaptive {
                x = adaptive.run(&x, code);
            }
            x = level.blocks.iter().fold(x, |x, block| block.run(&x));
            if let Some(upsample) = &level.upsample {
                x = upsample.run(&x);
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x).silu())
    }

    /// The last convolution's weight.
    pub fn last_layer(&self) -> &Tensor {
        &self.conv_out.ws
    }
}
