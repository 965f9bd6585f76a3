//! Video to features.

use layers::FrameGroupNorm;
use tch::{Tensor, nn};
use video_core::Result;

use super::Magvit2Config;
use crate::blocks::{Downsample, EPS, ResBlock, check_channels};
use crate::conv::{CausalConv3d, CausalConv3dConfig};
use crate::patcher::Patcher;
use crate::time::{Past, frame_size};

/// One level: residual blocks, then the way to the next coarser level.
#[derive(Debug)]
struct Level {
    blocks: Vec<ResBlock>,
    downsample: Option<Downsample>,
    width: i64,
    /// In time.
    stride: i64,
}

/// Video to features: levels of residual blocks, each half as fine as the one before.
///
/// Variables: `conv_in`, `level_{i}.block_{j}`, `level_{i}.downsample`, `mid.block_{j}`, `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Encoder {
    patcher: Patcher,
    conv_in: CausalConv3d,
    levels: Vec<Level>,
    mid: Vec<ResBlock>,
    norm_out: FrameGroupNorm,
    conv_out: CausalConv3d,
    in_channels: i64,
}

impl Encoder {
    /// For video of `config.in_channels`, to [`Magvit2Config::latent_channels`] features.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &Magvit2Config) -> Result<Self> {
        config.validate()?;
        let widths = config.widths();
        let top = widths[widths.len() - 1];
        let block = |path: nn::Path, inputs: i64, outputs: i64| {
            ResBlock::new(&path, inputs, outputs, config.num_groups, config.conv_shortcut, config.clip_start)
        };
        let level = |i: usize| -> Result<Level> {
            let path = path / format!("level_{i}");
            let (width, before) = (widths[i], widths[i.saturating_sub(1)]);
            let blocks = (0..config.num_res_blocks)
                .map(|j| block(&path / format!("block_{j}"), if j == 0 { before } else { width }, width));
            Ok(Level {
                blocks: blocks.collect::<Result<_>>()?,
                downsample: (i < config.transitions())
                    .then(|| {
                        Downsample::new(
                            &(&path / "downsample"),
                            width,
                            config.factors_at(i),
                            config.clip_start,
                        )
                    })
                    .transpose()?,
                width,
                stride: if i < config.transitions() { config.factors_at(i)[0] } else { 1 },
            })
        };
        let mid = path / "mid";
        let patcher = config.patcher()?;
        Ok(Self {
            patcher,
            conv_in: CausalConv3d::new(
                &(path / "conv_in"),
                config.in_channels * patcher.volume(),
                widths[0],
                CausalConv3dConfig { clip_start: config.clip_start, ..CausalConv3dConfig::new([3; 3]) },
            )?,
            levels: (0..widths.len()).map(level).collect::<Result<_>>()?,
            mid: (0..config.num_res_blocks)
                .map(|j| block(&mid / format!("block_{j}"), top, top))
                .collect::<Result<_>>()?,
            norm_out: FrameGroupNorm::new(&(path / "norm_out"), config.num_groups, top, EPS)?,
            conv_out: CausalConv3d::new(
                &(path / "conv_out"),
                top,
                config.latent_channels()?,
                CausalConv3dConfig::new([1; 3]),
            )?,
            in_channels: config.in_channels,
        })
    }

    /// `[B, C, T, H, W]` to features `[B, K, T', H', W']`; 1 + s·k frames become 1 + k.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, video: &Tensor) -> Result<Tensor> {
        check_channels("video", video, self.in_channels)?;
        let with_gradients = video.requires_grad() || self.conv_out.learns();
        Ok(self.run(video, &mut Past::of_clip(with_gradients)))
    }

    /// One chunk of a clip that the strides fit.
    pub(crate) fn run(&self, video: &Tensor, past: &mut Past) -> Tensor {
        let mut x = torch_ext::channels_last_3d(&self.patcher.run(video, past));
        for (i, level) in self.levels.iter().enumerate() {
            x = past.in_pieces(&x, level.stride, level.width * frame_size(&x), |piece, past| {
                let mut x = if i == 0 { self.conv_in.run(piece, past) } else { piece.shallow_clone() };
                for block in &level.blocks {
                    x = block.run(&x, past);
                }
                level.downsample.as_ref().map(|down| down.run(&x, past)).unwrap_or(x)
            });
        }
        x = past.in_pieces(&x, 1, x.size()[1] * frame_size(&x), |piece, past| {
            let mut x = piece.shallow_clone();
            for block in &self.mid {
                x = block.run(&x, past);
            }
            x
        });
        let features = self.conv_out.run_normed(&self.norm_out, &x, past);
        past.end_chunk();
        features
    }
}
