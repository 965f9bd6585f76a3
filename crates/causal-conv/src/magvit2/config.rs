//! What a MAGVIT-v2 tokenizer is made of.

use quantizers::{LfqConfig, QuantizerConfig};
use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use crate::patcher::{PatchMethod, Patcher};
use crate::time::ClipStart;

/// Configuration of [`Magvit2`](super::Magvit2); the defaults are the paper's, [`Magvit2Config::paper_128`].
///
/// The network has one level per entry of `channel_multipliers` and one transition between each two of them. The two lists
/// of flags say which transitions halve time and which halve height and width: time is compressed 2^(number of `true`s)
/// times, height and width likewise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Magvit2Config {
    /// Colour channels of the video.
    pub in_channels: i64,
    /// Pixels of a patch along time, height and width: in front of the network, a [Haar transform](crate::cosmos::Patcher) makes
    /// channels of patches, behind it they become pixels again, and every level works on p³ times fewer positions. 1 in the
    /// paper; the idea is that of Cosmos (arXiv 2501.03575, section 3.1).
    pub patch_size: i64,
    /// Width F of the network; level i has F·`channel_multipliers[i]` channels.
    pub filters: i64,
    /// One factor per level, from the finest to the coarsest.
    pub channel_multipliers: Vec<i64>,
    /// Residual blocks per level.
    pub num_res_blocks: i64,
    /// For each transition from a level to the next coarser, whether time is halved.
    pub temporal_downsample: Vec<bool>,
    /// For each transition, whether height and width are halved; empty: all do.
    pub spatial_downsample: Vec<bool>,
    /// Groups of every group norm; divides every width.
    pub num_groups: i64,
    /// Whether the skip of a residual block that changes the width is a 3×3×3 convolution instead of 1×1×1.
    pub conv_shortcut: bool,
    /// What every causal convolution sees in front of a clip. Zeros are the paper's; copies of the first frame keep what stands
    /// still the same token from the first latent frame on, which a generator is glad of, and clips longer than those of
    /// training need nothing new.
    pub clip_start: ClipStart,
    /// Channels K between encoder and quantizer; where absent, what the quantizer needs (its bits, for LFQ).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z_channels: Option<i64>,
    /// The bottleneck.
    pub quantizer: QuantizerConfig,
}

impl Default for Magvit2Config {
    fn default() -> Self {
        Self::paper_128()
    }
}

impl Magvit2Config {
    /// The paper's video tokenizer for 17×128×128: 5×16×16 tokens of 2^18 codes, 4×8×8 (time × height × width).
    pub fn paper_128() -> Self {
        Self {
            in_channels: 3,
            patch_size: 1,
            filters: 128,
            channel_multipliers: vec![1, 2, 2, 4],
            num_res_blocks: 4,
            temporal_downsample: vec![false, true, true],
            spatial_downsample: Vec::new(),
            num_groups: 32,
            conv_shortcut: false,
            clip_start: ClipStart::Zeros,
            z_channels: None,
            quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(18)),
        }
    }

    /// O2-MAGVIT2's released tokenizer for 17×256×256: 5×16×16 tokens of 2^18 codes, 4×16×16.
    pub fn o2_256() -> Self {
        Self {
            channel_multipliers: vec![1, 1, 2, 2, 4],
            temporal_downsample: vec![false, false, true, true],
            ..Self::paper_128()
        }
    }

    /// Checks every field but the quantizer's width, which [`Magvit2Config::latent_channels`] tells.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("filters", self.filters),
            ("num_res_blocks", self.num_res_blocks),
            ("num_groups", self.num_groups),
        ] {
            if value < 1 {
                return Err(Error::config(field, value, "at least 1"));
            }
        }
        if self.channel_multipliers.is_empty() || self.channel_multipliers.iter().any(|&m| m < 1) {
            let expected = "at least one level, each with a factor of at least 1";
            return Err(Error::config("channel_multipliers", &self.channel_multipliers, expected));
        }
        if self.clip_start == ClipStart::AsSpace {
            return Err(Error::config("clip_start", "as_space", "zeros or first_frame"));
        }
        PatchMethod::Haar.check_size(self.patch_size)?;
        let transitions = self.channel_multipliers.len() - 1;
        let between = format!("{transitions} flags, one per transition between two of channel_multipliers");
        if self.temporal_downsample.len() != transitions {
            return Err(Error::config("temporal_downsample", &self.temporal_downsample, between));
        }
        if !self.spatial_downsample.is_empty() && self.spatial_downsample.len() != transitions {
            let expected = format!("{between}, or none");
            return Err(Error::config("spatial_downsample", &self.spatial_downsample, expected));
        }
        if let Some(width) = self.widths().into_iter().find(|width| width % self.num_groups != 0) {
            let expected = format!("a divisor of every level's width, filters × multiplier ({width})");
            return Err(Error::config("num_groups", self.num_groups, expected));
        }
        self.quantizer.validate().map_err(|error| error.within("quantizer"))?;
        self.latent_channels().map(|_| ())
    }

    /// K, the channels between encoder and quantizer.
    ///
    /// # Errors
    /// `z_channels` is absent and the quantizer takes any width, or it is below 1.
    pub fn latent_channels(&self) -> Result<i64> {
        match self.z_channels.or_else(|| self.quantizer.dim()) {
            Some(channels) if channels >= 1 => Ok(channels),
            channels => Err(Error::config(
                "z_channels",
                channels,
                "the latent's width, at least 1, as this quantizer takes any width",
            )),
        }
    }

    /// Frames, pixel rows and pixel columns per latent position.
    pub fn factors(&self) -> [i64; 3] {
        let product =
            |axis: usize| (0..self.transitions()).map(|level| self.factors_at(level)[axis]).product::<i64>();
        [0, 1, 2].map(|axis| self.patch_size * product(axis))
    }

    /// What makes patches of pixels.
    pub(super) fn patcher(&self) -> Result<Patcher> {
        Patcher::new(PatchMethod::Haar, self.patch_size, true)
    }

    /// The width of each level, from the finest to the coarsest.
    pub(crate) fn widths(&self) -> Vec<i64> {
        self.channel_multipliers.iter().map(|multiplier| self.filters * multiplier).collect()
    }

    /// The number of transitions between levels.
    pub(crate) fn transitions(&self) -> usize {
        self.channel_multipliers.len() - 1
    }

    /// What the transition from a level to the next coarser divides time, height and width by.
    pub(crate) fn factors_at(&self, level: usize) -> [i64; 3] {
        let factor = |halves: bool| if halves { 2 } else { 1 };
        let space = factor(self.spatial_downsample.get(level).copied().unwrap_or(true));
        [factor(self.temporal_downsample[level]), space, space]
    }
}
