//! What an Open-MAGVIT2 tokenizer is made of.

use quantizers::{BitOrder, EntropyWarmup, LfqConfig, QuantizerConfig};
use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

/// Configuration of [`OpenMagvit2`](super::OpenMagvit2), by the keys of the reference's `ddconfig`; the defaults are
/// [`OpenMagvit2Config::large_256`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenMagvit2Config {
    /// Width of the network; level i has `ch`·`ch_mult[i]` channels.
    pub ch: i64,
    /// Colour channels that come out.
    pub out_ch: i64,
    /// Colour channels that go in.
    pub in_channels: i64,
    /// Residual blocks per level.
    pub num_res_blocks: i64,
    /// Channels between encoder, quantizer and decoder.
    pub z_channels: i64,
    /// One factor per level, from the finest to the coarsest; between two levels height and width are halved.
    pub ch_mult: Vec<i64>,
    /// Pixels on a side of the images that it was trained on; the network takes any that its strides divide.
    pub resolution: i64,
    /// Twice the channels before a continuous bottleneck: the reference knows the key and has no such model. `false`.
    pub double_z: bool,
    /// Whether each level of the decoder starts with a norm under the code's control (not in 1X's fork).
    pub adaptive_norm: bool,
    /// Groups of every group norm; divides every width.
    pub num_groups: i64,
    /// The bottleneck; one id per position.
    pub quantizer: QuantizerConfig,
}

impl Default for OpenMagvit2Config {
    fn default() -> Self {
        Self::large_256()
    }
}

impl OpenMagvit2Config {
    /// `imagenet_256_L`: 256×256 pixels to 16×16 tokens of 2^18 codes.
    pub fn large_256() -> Self {
        // The reference adds 3·(1 − step/2000) times the entropy loss to it.
        let lfq = LfqConfig {
            entropy_warmup: EntropyWarmup { start_factor: 4.0, steps: 2000 },
            ..LfqConfig::with_bits(18)
        };
        Self {
            ch: 128,
            out_ch: 3,
            in_channels: 3,
            num_res_blocks: 4,
            z_channels: 18,
            ch_mult: vec![1, 1, 2, 2, 4],
            resolution: 256,
            double_z: false,
            adaptive_norm: true,
            num_groups: 32,
            quantizer: QuantizerConfig::Lfq(lfq),
        }
    }

    /// `imagenet_128_L`: 128×128 pixels to 16×16 tokens of 2^18 codes.
    pub fn large_128() -> Self {
        Self { ch_mult: vec![1, 2, 2, 4], resolution: 128, ..Self::large_256() }
    }

    /// 1X's fork, for its world model challenge: 256×256 pixels to 16×16 tokens of 2^18 codes, channel 0 as the most
    /// significant bit.
    pub fn one_x() -> Self {
        let lfq = LfqConfig { bit_order: BitOrder::MsbFirst, ..LfqConfig::with_bits(18) };
        Self {
            num_res_blocks: 2,
            adaptive_norm: false,
            quantizer: QuantizerConfig::Lfq(lfq),
            ..Self::large_256()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("ch", self.ch),
            ("out_ch", self.out_ch),
            ("in_channels", self.in_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("z_channels", self.z_channels),
            ("resolution", self.resolution),
            ("num_groups", self.num_groups),
        ] {
            if value < 1 {
                return Err(Error::config(field, value, "at least 1"));
            }
        }
        if self.ch_mult.is_empty() || self.ch_mult.len() > 16 || self.ch_mult.iter().any(|&m| m < 1) {
            return Err(Error::config(
                "ch_mult",
                &self.ch_mult,
                "1 to 16 levels, each with a factor of at least 1",
            ));
        }
        if self.double_z {
            return Err(Error::config("double_z", self.double_z, "false"));
        }
        if let Some(width) = self.widths().into_iter().find(|width| width % self.num_groups != 0) {
            let expected = format!("a divisor of every level's width, ch × factor ({width})");
            return Err(Error::config("num_groups", self.num_groups, expected));
        }
        self.quantizer.validate().map_err(|error| error.within("quantizer"))
    }

    /// Pixels on a side per latent position.
    pub fn stride(&self) -> i64 {
        1 << (self.ch_mult.len() - 1)
    }

    /// The width of each level, from the finest to the coarsest.
    pub(super) fn widths(&self) -> Vec<i64> {
        self.ch_mult.iter().map(|factor| self.ch * factor).collect()
    }
}
