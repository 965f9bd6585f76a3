//! Features to video.

use layers::FrameGroupNorm;
use tch::{Tensor, nn};
use video_core::Result;

use super::Magvit2Config;
use crate::blocks::{AdaptiveGroupNorm, EPS, ResBlock, Upsample, check_channels};
use crate::conv::{CausalConv3d, CausalConv3dConfig};
use crate::patcher::Patcher;
use crate::time::{Past, frame_size};

/// One level: a norm under the code's control, residual blocks, then the way to the next finer level.
#[derive(Debug)]
struct Level {
    norm: AdaptiveGroupNorm,
    blocks: Vec<ResBlock>,
    upsample: Option<Upsample>,
}

/// Features to video: levels of residual blocks, each twice as fine as the one before, each starting with a norm whose
/// scale and shift come from the features that the decoder was given.
///
/// Variables: `conv_in`, `mid.block_{j}`, `level_{i}.norm`, `level_{i}.block_{j}`, `level_{i}.upsample` (level 0 is the
/// finest), `norm_out`, `conv_out`.
#[derive(Debug)]
pub struct Decoder {
    conv_in: CausalConv3d,
    mid: Vec<ResBlock>,
    /// From the coarsest to the finest.
    levels: Vec<Level>,
    norm_out: FrameGroupNorm,
    conv_out: CausalConv3d,
    patcher: Patcher,
    latent_channels: i64,
}

impl Decoder {
    /// From [`Magvit2Config::latent_channels`] features to video of `config.in_channels`.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &Magvit2Config) -> Result<Self> {
        config.validate()?;
        let latent_channels = config.latent_channels()?;
        let widths = config.widths();
        let top = widths[widths.len() - 1];
        let block = |path: nn::Path, inputs: i64, outputs: i64| {
            ResBlock::new(&path, inputs, outputs, config.num_groups, config.conv_shortcut, config.clip_start)
        };
        let level = |i: usize| -> Result<Level> {
            let path = path / format!("level_{i}");
            let (width, before) = (widths[i], widths.get(i + 1).copied().unwrap_or(top));
            let norm = &path / "norm";
            let blocks = (0..config.num_res_blocks)
                .map(|j| block(&path / format!("block_{j}"), if j == 0 { before } else { width }, width));
            Ok(Level {
                norm: AdaptiveGroupNorm::new(&norm, before, latent_channels, config.num_groups)?,
                blocks: blocks.collect::<Result<_>>()?,
                upsample: (i > 0)
                    .then(|| {
                        Upsample::new(
                            &(&path / "upsample"),
                            width,
                            config.factors_at(i - 1),
                            config.clip_start,
                        )
                    })
                    .transpose()?,
            })
        };
        let mid = path / "mid";
        let patcher = config.patcher()?;
        let colours = config.in_channels * patcher.volume();
        let conv3 = CausalConv3dConfig { clip_start: config.clip_start, ..CausalConv3dConfig::new([3; 3]) };
        Ok(Self {
            conv_in: CausalConv3d::new(&(path / "conv_in"), latent_channels, top, conv3)?,
            mid: (0..config.num_res_blocks)
                .map(|j| block(&mid / format!("block_{j}"), top, top))
                .collect::<Result<_>>()?,
            levels: (0..widths.len()).rev().map(level).collect::<Result<_>>()?,
            norm_out: FrameGroupNorm::new(&(path / "norm_out"), config.num_groups, widths[0], EPS)?,
            conv_out: CausalConv3d::new(&(path / "conv_out"), widths[0], colours, conv3)?,
            patcher,
            latent_channels,
        })
    }

    /// Features `[B, K, T', H', W']` to video `[B, C, T, H, W]`, not clamped; 1 + k latent frames become 1 + s·k.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        check_channels("features", features, self.latent_channels)?;
        let with_gradients = features.requires_grad() || self.conv_out.learns();
        Ok(self.run(features, &mut Past::of_clip(with_gradients)))
    }

    /// The last convolution's weight.
    pub fn last_layer(&self) -> &Tensor {
        self.conv_out.weight()
    }

    /// One chunk of latent frames.
    pub(crate) fn run(&self, features: &Tensor, past: &mut Past) -> Tensor {
        let features = torch_ext::channels_last_3d(features);
        let width = self.conv_in.weight().size()[0];
        let x = past.in_pieces(&features, 1, width * frame_size(&features), |piece, past| {
            let mut x = self.conv_in.run(piece, past);
            for block in &self.mid {
                x = block.run(&x, past);
            }
            x
        });
        let patches = self.refine(&self.levels, &x, &features, past);
        let video = self.patcher.run_back(&patches, past);
        past.end_chunk();
        video
    }

    /// What the given levels, the last of all, make of `x` under a condition of as many frames.
    fn refine(&self, levels: &[Level], x: &Tensor, condition: &Tensor, past: &mut Past) -> Tensor {
        let Some((level, finer)) = levels.split_first() else {
            return self.conv_out.run_normed(&self.norm_out, x, past);
        };
        let mut start = 0;
        past.in_pieces(x, 1, x.size()[1] * frame_size(x), |piece, past| {
            let frames = piece.size()[2];
            let condition = condition.narrow(2, start, frames);
            start += frames;
            let mut x = level.norm.run(piece, &condition);
            for block in &level.blocks {
                x = block.run(&x, past);
            }
            let Some(upsample) = &level.upsample else { return self.refine(finer, &x, &condition, past) };
            let starts_clip = past.starts_clip();
            let condition = upsample.repeat_frames(&condition, starts_clip);
            self.refine(finer, &upsample.run(&x, past), &condition, past)
        })
    }
}
