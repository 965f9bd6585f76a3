//! Features to video.

use tch::{Tensor, nn};
use video_core::Result;

use super::blocks::{Blocks, Conv, Middle, Norm};
use super::resample::{HybridUpsample, Upsample, repeat_time};
use super::{CosmosConfig, CosmosNet, Patcher};
use crate::blocks::check_channels;
use crate::time::Past;

#[derive(Debug)]
enum Up {
    Base(Upsample),
    Hybrid(Box<HybridUpsample>),
    /// The finest level of a base network: time alone.
    RepeatTime,
    Stay,
}

/// Features to video: a middle, levels of residual blocks each finer than the one before, and patches.
///
/// Variables: `conv_in`, `mid.{block_1,attn_1,block_2}`, `up.{i}.block.{j}`, `up.{i}.attn.{j}`, `up.{i}.upsample`,
/// `norm_out`, `conv_out`, as in [`Encoder`](super::Encoder); level 0 is the finest.
#[derive(Debug)]
pub struct Decoder {
    conv_in: Conv,
    middle: Middle,
    /// From the coarsest to the finest.
    levels: Vec<(Blocks, Up)>,
    norm_out: Norm,
    conv_out: Conv,
    patcher: Patcher,
    z_channels: i64,
}

impl Decoder {
    /// From `config.z_channels` features.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &CosmosConfig) -> Result<Self> {
        config.validate()?;
        let net = config.decoder;
        let groups = net.groups(config);
        let patcher = Patcher::new(config.patch_method, config.patch_size, net == CosmosNet::Factorized)?;
        let widths: Vec<i64> = config.decoder_mult().iter().map(|factor| config.channels * factor).collect();
        let top = widths[widths.len() - 1];
        let level = |i: usize| -> Result<_> {
            let path = path / "up" / i;
            let inputs = if i + 1 == widths.len() { top } else { widths[i + 1] };
            let attention = config.decoder_attends(i);
            let count = config.num_res_blocks + 1;
            let blocks = Blocks::new(&path, net, [inputs, widths[i]], count, attention, groups)?;
            let up = match net {
                CosmosNet::Base if i == 0 => Up::RepeatTime,
                CosmosNet::Factorized if i == 0 => Up::Stay,
                CosmosNet::Base => Up::Base(Upsample::new(&(&path / "upsample"), widths[i])?),
                CosmosNet::Factorized => {
                    let [time, space] = config.doubles(widths.len() - 1 - i);
                    Up::Hybrid(Box::new(HybridUpsample::new(&(&path / "upsample"), widths[i], time, space)?))
                }
            };
            Ok((blocks, up))
        };
        Ok(Self {
            conv_in: Conv::new(path / "conv_in", net, config.z_channels, top)?,
            middle: Middle::new(path / "mid", net, top, groups)?,
            levels: (0..widths.len()).rev().map(level).collect::<Result<_>>()?,
            norm_out: Norm::new(path / "norm_out", groups, widths[0])?,
            conv_out: Conv::new(path / "conv_out", net, widths[0], config.in_channels * patcher.volume())?,
            patcher,
            z_channels: config.z_channels,
        })
    }

    /// Features `[B, z, T', H', W']` to video `[B, C, T, H, W]`, not clamped; 1 + k frames become 1 + s·k.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        check_channels("features", features, self.z_channels)?;
        Ok(self.run(features, &mut Past::WholeClip))
    }

    /// The weight of the last convolution.
    pub fn last_layer(&self) -> &Tensor {
        self.conv_out.last_weight()
    }

    /// The next features of a clip.
    pub(super) fn run(&self, features: &Tensor, past: &mut Past) -> Tensor {
        let x = self.conv_in.run(&torch_ext::channels_last_3d(features), past);
        let mut x = self.middle.run(&x, past);
        for (blocks, up) in &self.levels {
            x = blocks.run(&x, past);
            x = match up {
                Up::Base(up) => up.run(&x, past),
                Up::Hybrid(up) => up.run(&x, past),
                Up::RepeatTime => repeat_time(&x, past),
                Up::Stay => x,
            };
        }
        let patches = self.conv_out.run(&self.norm_out.run_silu(&x), past);
        let video = self.patcher.run_back(&patches, past);
        past.end_chunk();
        video
    }
}
