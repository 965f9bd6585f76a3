//! Video to features.

use tch::{Tensor, nn};
use video_core::Result;

use super::blocks::{Blocks, Conv, Middle, Norm};
use super::resample::{Downsample, HybridDownsample, average_time};
use super::{CosmosConfig, CosmosNet, Patcher};
use crate::time::Past;

#[derive(Debug)]
enum Down {
    Base(Downsample),
    Hybrid(Box<HybridDownsample>),
    /// The last level of a base network: time alone.
    AverageTime,
    Stay,
}

/// Video to features: patches, levels of residual blocks each coarser than the one before, and a middle.
///
/// Variables, named like the reference's but for its wrappers: `conv_in`, `down.{i}.block.{j}`, `down.{i}.attn.{j}`,
/// `down.{i}.downsample`, `mid.{block_1,attn_1,block_2}`, `norm_out`, `conv_out`. In a factorized network each convolution
/// and each attention is a pair, `0` and `1`.
#[derive(Debug)]
pub struct Encoder {
    patcher: Patcher,
    conv_in: Conv,
    levels: Vec<(Blocks, Down)>,
    middle: Middle,
    norm_out: Norm,
    conv_out: Conv,
    config: CosmosConfig,
}

impl Encoder {
    /// For video of `config.in_channels`, to `z_channels` features per number of the bottleneck.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &CosmosConfig) -> Result<Self> {
        config.validate()?;
        let net = config.encoder;
        let groups = net.groups(config);
        let patcher = Patcher::new(config.patch_method, config.patch_size, net == CosmosNet::Factorized)?;
        let widths: Vec<i64> = config.channels_mult.iter().map(|factor| config.channels * factor).collect();
        let (last, top) = (widths.len() - 1, widths[widths.len() - 1]);
        let level = |i: usize| -> Result<_> {
            let path = path / "down" / i;
            let inputs = if i == 0 { config.channels } else { widths[i - 1] };
            let attention = config.encoder_attends(i);
            let blocks =
                Blocks::new(&path, net, [inputs, widths[i]], config.num_res_blocks, attention, groups)?;
            let down = match net {
                CosmosNet::Base if i == last => Down::AverageTime,
                CosmosNet::Factorized if i == last => Down::Stay,
                CosmosNet::Base => Down::Base(Downsample::new(&(&path / "downsample"), widths[i])?),
                CosmosNet::Factorized => {
                    let [time, space] = config.halves(i);
                    Down::Hybrid(Box::new(HybridDownsample::new(
                        &(&path / "downsample"),
                        widths[i],
                        time,
                        space,
                    )?))
                }
            };
            Ok((blocks, down))
        };
        let outputs = config.bottleneck.factor() * config.z_channels;
        Ok(Self {
            patcher,
            conv_in: Conv::new(
                path / "conv_in",
                net,
                config.in_channels * patcher.volume(),
                config.channels,
            )?,
            levels: (0..widths.len()).map(level).collect::<Result<_>>()?,
            middle: Middle::new(path / "mid", net, top, groups)?,
            norm_out: Norm::new(path / "norm_out", groups, top)?,
            conv_out: Conv::new(path / "conv_out", net, top, outputs)?,
            config: config.clone(),
        })
    }

    /// Video `[B, C, T, H, W]` to features `[B, z, T', H', W']`; 1 + s·k frames become 1 + k.
    ///
    /// # Errors
    /// A shape that [`CosmosConfig::encoder_factors`] do not divide so.
    pub fn forward(&self, video: &Tensor) -> Result<Tensor> {
        super::check_video(video, &self.config, self.config.encoder_factors())?;
        Ok(self.run(video, &mut Past::WholeClip))
    }

    /// One chunk of a clip that the strides fit.
    pub(super) fn run(&self, video: &Tensor, past: &mut Past) -> Tensor {
        let patches = torch_ext::channels_last_3d(&self.patcher.run(video, past));
        let mut x = self.conv_in.run(&patches, past);
        for (blocks, down) in &self.levels {
            x = blocks.run(&x, past);
            x = match down {
                Down::Base(down) => down.run(&x, past),
                Down::Hybrid(down) => down.run(&x, past),
                Down::AverageTime => average_time(&x, past),
                Down::Stay => x,
            };
        }
        let x = self.middle.run(&x, past);
        let features = self.conv_out.run(&self.norm_out.run_silu(&x), past);
        past.end_chunk();
        features
    }
}
