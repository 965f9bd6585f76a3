//! What a Cosmos tokenizer is made of.

use quantizers::{FsqConfig, QuantizerConfig};
use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use super::PatchMethod;
use crate::conv::positive;

/// Which of the two families of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CosmosNet {
    /// 3×3×3 convolutions, patches of one frame, attention within frames. Every level but the last halves time, height and
    /// width; the last halves time.
    Base,
    /// 1×3×3 and 3×1×1 convolutions, patches of several frames, attention within frames and along time.
    #[default]
    Factorized,
}

/// What stands between encoder and decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(clippy::large_enum_variant)] // A config is built once: a box would only be in its users' way.
pub enum CosmosBottleneck {
    /// The features themselves (CV, formulation AE).
    Autoencoder {
        /// Channels of the latent.
        latent_channels: i64,
    },
    /// A Gaussian with a mean and a log-variance per channel (CV, formulation VAE).
    Variational {
        /// Channels of the latent; the features have twice as many.
        latent_channels: i64,
    },
    /// A quantizer with one id per position (DV: FSQ).
    Discrete {
        /// Channels of the features that are quantized.
        embedding_dim: i64,
        /// The quantizer.
        quantizer: QuantizerConfig,
    },
}

impl CosmosBottleneck {
    /// Channels that the decoder's side takes.
    pub fn latent_channels(&self) -> i64 {
        match *self {
            Self::Autoencoder { latent_channels } | Self::Variational { latent_channels } => latent_channels,
            Self::Discrete { embedding_dim, .. } => embedding_dim,
        }
    }

    /// How many numbers the encoder's side gives for each that the decoder's side takes (z_factor).
    pub fn factor(&self) -> i64 {
        if matches!(self, Self::Variational { .. }) { 2 } else { 1 }
    }
}

/// Configuration of [`CosmosTokenizer`](super::CosmosTokenizer); field names are those of the published configurations,
/// the default is [`CosmosConfig::cv8x8x8`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosmosConfig {
    /// Colour channels of the video.
    pub in_channels: i64,
    /// Width of the network; level i has `channels`·`channels_mult[i]`.
    pub channels: i64,
    /// One factor per level, from the finest to the coarsest.
    pub channels_mult: Vec<i64>,
    /// The decoder's factors where they are not the encoder's: the reference's continuous tokenizers of 4× in time have
    /// `[2, 4]` here, whatever `channels_mult` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_channels_mult: Option<Vec<i64>>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub num_res_blocks: i64,
    /// Heights, counted from `resolution` in full, at which residual blocks are followed by attention.
    pub attn_resolutions: Vec<i64>,
    /// The height that `attn_resolutions` refers to. It does not bind the video's.
    pub resolution: i64,
    /// Pixels of a patch along each axis.
    pub patch_size: i64,
    /// How patches become channels.
    pub patch_method: PatchMethod,
    /// Pixel rows and columns per latent row and column.
    pub spatial_compression: i64,
    /// Frames per latent frame after the first.
    pub temporal_compression: i64,
    /// Channels at the ends of encoder and decoder.
    pub z_channels: i64,
    /// Groups of the group norms of a [`CosmosNet::Base`] network. 1 normalises each frame by itself; with more, the
    /// statistics are those of the whole clip, and the network is NOT causal. Factorized networks always have 1.
    pub num_groups: i64,
    /// Whether a factorized decoder upsamples time in its first levels, instead of in its second and following ones.
    pub legacy_mode: bool,
    /// The encoder's family.
    pub encoder: CosmosNet,
    /// The decoder's family.
    pub decoder: CosmosNet,
    /// What stands between them.
    pub bottleneck: CosmosBottleneck,
}

impl Default for CosmosConfig {
    fn default() -> Self {
        Self::cv8x8x8()
    }
}

impl CosmosConfig {
    /// A published shape: factorized networks of width 128·(2, 4, 4), Haar patches of 4.
    fn published(temporal: i64, spatial: i64, bottleneck: CosmosBottleneck) -> Self {
        let continuous = matches!(bottleneck, CosmosBottleneck::Autoencoder { .. });
        Self {
            in_channels: 3,
            channels: 128,
            channels_mult: vec![2, 4, 4],
            decoder_channels_mult: (continuous && temporal == 4).then(|| vec![2, 4]),
            num_res_blocks: 2,
            attn_resolutions: vec![32],
            resolution: 1024,
            patch_size: 4,
            patch_method: PatchMethod::Haar,
            spatial_compression: spatial,
            temporal_compression: temporal,
            z_channels: 16,
            num_groups: 1,
            legacy_mode: false,
            encoder: CosmosNet::Factorized,
            decoder: CosmosNet::Factorized,
            bottleneck,
        }
    }

    fn continuous(temporal: i64, spatial: i64) -> Self {
        Self::published(temporal, spatial, CosmosBottleneck::Autoencoder { latent_channels: 16 })
    }

    /// Continuous, 4×8×8 (time × height × width).
    pub fn cv4x8x8() -> Self {
        Self::continuous(4, 8)
    }

    /// Continuous, 8×8×8.
    pub fn cv8x8x8() -> Self {
        Self::continuous(8, 8)
    }

    /// Continuous, 8×16×16.
    pub fn cv8x16x16() -> Self {
        Self::continuous(8, 16)
    }

    /// 64,000 codes: FSQ of 8, 8, 8, 5, 5 and 5 levels.
    fn discrete(temporal: i64, spatial: i64) -> Self {
        let quantizer =
            QuantizerConfig::Fsq(FsqConfig { levels: vec![8, 8, 8, 5, 5, 5], ..FsqConfig::default() });
        Self::published(temporal, spatial, CosmosBottleneck::Discrete { embedding_dim: 6, quantizer })
    }

    /// Discrete, 4×8×8 (time × height × width).
    pub fn dv4x8x8() -> Self {
        Self::discrete(4, 8)
    }

    /// Discrete, 8×8×8.
    pub fn dv8x8x8() -> Self {
        Self::discrete(8, 8)
    }

    /// Discrete, 8×16×16.
    pub fn dv8x16x16() -> Self {
        Self::discrete(8, 16)
    }

    /// Checks every field but whether encoder and decoder compress as much as the config says, which the tokenizer checks.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        positive("in_channels", &[self.in_channels])?;
        positive("channels", &[self.channels])?;
        positive("num_res_blocks", &[self.num_res_blocks])?;
        positive("resolution", &[self.resolution])?;
        positive("patch_size", &[self.patch_size])?;
        positive("spatial_compression", &[self.spatial_compression])?;
        positive("temporal_compression", &[self.temporal_compression])?;
        positive("z_channels", &[self.z_channels])?;
        positive("num_groups", &[self.num_groups])?;
        positive("bottleneck.latent_channels", &[self.bottleneck.latent_channels()])?;
        for (field, factors) in
            [("channels_mult", &self.channels_mult), ("decoder_channels_mult", self.decoder_mult())]
        {
            if factors.is_empty() || factors.len() > 16 {
                return Err(Error::config(field, factors, "1 to 16 factors, one per level"));
            }
            positive(field, factors)?;
        }
        self.patch_method.check_size(self.patch_size)
    }

    /// The decoder's width factors.
    pub fn decoder_mult(&self) -> &Vec<i64> {
        self.decoder_channels_mult.as_ref().unwrap_or(&self.channels_mult)
    }

    /// Strides of the encoder in time, height and width.
    pub fn encoder_factors(&self) -> [i64; 3] {
        let transitions = self.channels_mult.len() - 1;
        match self.encoder {
            CosmosNet::Base => self.base_factors(transitions),
            CosmosNet::Factorized => self.patched((0..transitions).map(|level| self.halves(level))),
        }
    }

    /// Strides of the decoder in time, height and width.
    pub fn decoder_factors(&self) -> [i64; 3] {
        let transitions = self.decoder_mult().len() - 1;
        match self.decoder {
            CosmosNet::Base => self.base_factors(transitions),
            CosmosNet::Factorized => self.patched((0..transitions).map(|step| self.doubles(step))),
        }
    }

    /// Whether the encoder's residual blocks of a level are followed by attention. The reference counts the height as
    /// halved at every transition, whether that one halves space or not.
    pub(super) fn encoder_attends(&self, level: usize) -> bool {
        self.attn_resolutions.contains(&((self.resolution / self.patch_size) >> level))
    }

    /// Likewise in the decoder, where the coarsest height is rounded down and doubled from there.
    pub(super) fn decoder_attends(&self, level: usize) -> bool {
        let last = self.decoder_mult().len() - 1;
        let coarsest = (self.resolution / self.patch_size) >> last;
        self.attn_resolutions.contains(&(coarsest << (last - level)))
    }

    /// Whether a factorized encoder halves [time, space] after a level.
    pub(super) fn halves(&self, level: usize) -> [bool; 2] {
        let [time, space] = self.steps();
        [(level as i64) < time, (level as i64) < space]
    }

    /// Whether a factorized decoder doubles [time, space] in its transition number `step`, counted from the coarsest.
    pub(super) fn doubles(&self, step: usize) -> [bool; 2] {
        let [time, space] = self.steps();
        let step = step as i64;
        let in_time = if self.legacy_mode { step < time } else { 0 < step && step < time + 1 };
        [in_time, in_time || (step < space && space > time)]
    }

    /// Halvings of time and of space beside those of the patches.
    fn steps(&self) -> [i64; 2] {
        let log2 = |value: i64| i64::from(value.max(1).ilog2());
        let patch = log2(self.patch_size);
        [log2(self.temporal_compression) - patch, log2(self.spatial_compression) - patch]
    }

    fn base_factors(&self, transitions: usize) -> [i64; 3] {
        let space = self.patch_size << transitions;
        [2 << transitions, space, space]
    }

    fn patched(&self, halvings: impl Iterator<Item = [bool; 2]>) -> [i64; 3] {
        halvings.fold([self.patch_size; 3], |[t, h, w], [time, space]| {
            [t << i64::from(time), h << i64::from(space), w << i64::from(space)]
        })
    }

    /// Refuses encoder or decoder strides other than the config's compression.
    pub(super) fn check_compression(&self) -> Result<()> {
        let promised = [self.temporal_compression, self.spatial_compression, self.spatial_compression];
        for (part, found) in [("encoder", self.encoder_factors()), ("decoder", self.decoder_factors())] {
            if found != promised {
                return Err(Error::config(
                    "temporal_compression × spatial_compression²",
                    promised,
                    format!("{found:?}, which this {part} does: change them, the patch size or the levels"),
                ));
            }
        }
        Ok(())
    }
}

impl CosmosNet {
    /// Groups of this network's norms.
    pub(super) fn groups(self, config: &CosmosConfig) -> i64 {
        if self == Self::Factorized { 1 } else { config.num_groups }
    }
}
