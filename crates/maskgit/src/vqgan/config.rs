//! Configuration of the tokenizers.

use quantizers::{QuantizerConfig, VqConfig};
use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

/// What a network convolves over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimensions {
    /// Height and width: `[N, C, H, W]`; frames of a video one by one.
    Image,
    /// Time, too: `[B, C, T, H, W]`. Not causal.
    Video,
}

impl Dimensions {
    /// How many axes those are.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Image => 2,
            Self::Video => 3,
        }
    }
}

/// What is between convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Group norm, 32 groups, ε 1e-6.
    Group,
    /// Layer norm over channels, ε 1e-6.
    Layer,
    /// Nothing.
    None,
}

/// The nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x σ(x).
    Swish,
}

/// What is beyond the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvPadding {
    /// Zeros, so many that n positions become ⌈n/stride⌉, the smaller half in front.
    Same,
    /// Zeros, ⌊(k−1)/2⌋ in front and ⌊k/2⌋ behind. So the ones below.
    Constant,
    /// The border's value.
    Edge,
    /// Mirrored at the border's value.
    Reflect,
    /// Mirrored behind the border's value.
    Symmetric,
    /// From the other side.
    Wrap,
}

/// How the decoder grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upsampling {
    /// Each position repeated, then a convolution.
    NearestConv,
    /// A transposed convolution, kernel 4.
    Deconv,
}

/// What a residual block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResBlockConfig {
    /// Image or video.
    pub dimensions: Dimensions,
    /// Between convolutions.
    pub norm: NormKind,
    /// The nonlinearity.
    pub activation: Activation,
    /// Beyond the border.
    pub padding: ConvPadding,
    /// The shortcut of a block that changes the width has a kernel of 3, not 1.
    pub conv_shortcut: bool,
    /// That shortcut reads the output of the block's convolutions instead of its input, so that there is no connection
    /// around them: an overwritten variable of MaskGIT's code, on which its weights depend.
    pub shortcut_of_output: bool,
}

/// Configuration of [`Vqgan`](super::Vqgan); the defaults are MaskGIT's f16 tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VqganConfig {
    /// The bottleneck.
    pub quantizer: QuantizerConfig,
    /// Width of the features that are quantized.
    pub embedding_dim: i64,
    /// Width of the first level.
    pub filters: i64,
    /// Of `filters`, the width of each level. Between two levels, height and width are halved.
    pub channel_multipliers: Vec<i64>,
    /// Video only: which halvings halve time, too.
    pub temporal_downsample: Vec<bool>,
    /// Residual blocks of a level of the encoder, and behind its last.
    pub num_enc_res_blocks: i64,
    /// The decoder's.
    pub num_dec_res_blocks: i64,
    /// Halving by a convolution (kernel 4, stride 2) instead of an average.
    pub conv_downsample: bool,
    /// Halving by an average keeps an odd last row or column, as the average of what there is of it; PyTorch's port of MaskGIT
    /// leaves it out.
    pub keep_odd: bool,
    /// How the decoder grows.
    pub upsample: Upsampling,
    /// What blocks are made of.
    pub block: ResBlockConfig,
}

impl Default for VqganConfig {
    fn default() -> Self {
        Self {
            quantizer: QuantizerConfig::Vq(VqConfig::mask_git()),
            embedding_dim: 256,
            filters: 128,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            temporal_downsample: Vec::new(),
            num_enc_res_blocks: 2,
            num_dec_res_blocks: 2,
            conv_downsample: false,
            keep_odd: true,
            upsample: Upsampling::NearestConv,
            block: ResBlockConfig {
                dimensions: Dimensions::Image,
                norm: NormKind::Group,
                activation: Activation::Swish,
                padding: ConvPadding::Same,
                conv_shortcut: false,
                shortcut_of_output: true,
            },
        }
    }
}

impl VqganConfig {
    /// MAGVIT's 3D tokenizer for 16 × 128 × 128 (`filters` 64: B, 128: L).
    pub fn magvit(filters: i64) -> Self {
        let image = Self::default();
        Self {
            filters,
            channel_multipliers: vec![1, 2, 2, 4],
            temporal_downsample: vec![true, true, false],
            block: ResBlockConfig { dimensions: Dimensions::Video, shortcut_of_output: false, ..image.block },
            ..image
        }
    }

    /// Checks every field but the quantizer's, which checks itself.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [("embedding_dim", self.embedding_dim), ("filters", self.filters)] {
            if !(1..=1 << 20).contains(&value) {
                return Err(Error::config(field, value, "1 to 2^20"));
            }
        }
        let levels = &self.channel_multipliers;
        if levels.is_empty() || levels.len() > 16 || levels.iter().any(|m| !(1..=1 << 10).contains(m)) {
            return Err(Error::config("channel_multipliers", levels, "1 to 16 numbers in 1..=1024"));
        }
        for (field, value) in
            [("num_enc_res_blocks", self.num_enc_res_blocks), ("num_dec_res_blocks", self.num_dec_res_blocks)]
        {
            if !(0..=1 << 10).contains(&value) {
                return Err(Error::config(field, value, "0 to 1024"));
            }
        }
        let halvings = match self.block.dimensions {
            Dimensions::Image => 0,
            Dimensions::Video => levels.len() - 1,
        };
        if self.temporal_downsample.len() != halvings {
            return Err(Error::config(
                "temporal_downsample",
                &self.temporal_downsample,
                format!("{halvings} flags, one for each halving of a video network"),
            ));
        }
        if self.upsample == Upsampling::Deconv && self.block.padding != ConvPadding::Same {
            return Err(Error::config("upsample", self.upsample, "nearest_conv with this padding"));
        }
        if self.block.norm == NormKind::Group
            && let Some(width) =
                levels.iter().map(|m| m * self.filters).find(|width| width % super::conv::GROUPS != 0)
        {
            return Err(Error::config(
                "filters",
                self.filters,
                format!("widths that 32 groups divide; a level has {width}"),
            ));
        }
        Ok(())
    }

    /// Whether the halving behind a level halves time.
    pub(crate) fn halves_time(&self, level: usize) -> bool {
        self.temporal_downsample.get(level) == Some(&true)
    }

    /// Frames, rows and columns of one latent position.
    pub fn strides(&self) -> [i64; 3] {
        let time = self.temporal_downsample.iter().filter(|&&halves| halves).count();
        let space = 1 << (self.channel_multipliers.len() - 1);
        [1 << time, space, space]
    }
}
