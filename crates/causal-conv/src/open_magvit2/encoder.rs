//! Images to features.

use tch::nn::Module;
use tch::{Tensor, nn};
use video_core::Result;

use super::OpenMagvit2Config;
use super::blocks::{ResBlock, ResBlockConfig, check_images, conv, group_norm};

/// One level: residual blocks, then the way to the next coarser level.
#[derive(Debug)]
struct Level {
    blocks: Vec<ResBlock>,
    downsample: Option<nn::Conv2D>,
}

/// Images to features: levels of residual blocks, each half as fine as the one before.
///
/// Variables, by the names of the reference: `conv_in`, `down.{i}.block.{j}`, `down.{i}.downsample`, `mid_block.{j}`,
/// `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Encoder {
    conv_in: nn::Conv2D,
    levels: Vec<Level>,
    mid: Vec<ResBlock>,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
    in_channels: i64,
}

impl Encoder {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &OpenMagvit2Config) -> Result<Self> {
        config.validate()?;
        let widths = config.widths();
        let top = widths[widths.len() - 1];
        let level = |i: usize| -> Result<Level> {
            let path = path / "down" / i;
            let before = if i == 0 { config.ch } else { widths[i - 1] };
            Ok(Level {
                blocks: res_blocks(&path / "block", before, widths[i], config)?,
                downsample: (i + 1 < widths.len())
                    .then(|| conv(&path / "downsample", [widths[i]; 2], 3, 2, true)),
            })
        };
        Ok(Self {
            conv_in: conv(path / "conv_in", [config.in_channels, config.ch], 3, 1, false),
            levels: (0..widths.len()).map(level).collect::<Result<_>>()?,
            mid: res_blocks(path / "mid_block", top, top, config)?,
            norm_out: group_norm(path / "norm_out", config.num_groups, top, true)?,
            conv_out: conv(path / "conv_out", [top, config.z_channels], 1, 1, true),
            in_channels: config.in_channels,
        })
    }

    /// `[N, C, H, W]` to features `[N, K, H', W']`, sizes that the stride does not divide rounded up. All layers compute in
    /// the order in memory that the images have: channels-last ones are faster.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        check_images("images", images, self.in_channels)?;
        Ok(self.run(images))
    }

    fn run(&self, images: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(images);
        for level in &self.levels {
            x = level.blocks.iter().fold(x, |x, block| block.run(&x));
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x);
            }
        }
        let x = self.mid.iter().fold(x, |x, block| block.run(&x));
        self.conv_out.forward(&self.norm_out.forward(&x).silu())
    }
}

/// The blocks of one level, under `path / j`; the first changes the width.
pub(super) fn res_blocks(
    path: nn::Path,
    inputs: i64,
    width: i64,
    config: &OpenMagvit2Config,
) -> Result<Vec<ResBlock>> {
    let block = |j| {
        let inputs = if j == 0 { inputs } else { width };
        ResBlock::new(&(&path / j), ResBlockConfig::new(inputs, width, config.num_groups))
    };
    (0..config.num_res_blocks).map(block).collect()
}
