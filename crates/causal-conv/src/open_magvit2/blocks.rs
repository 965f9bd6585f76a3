//! The blocks of Open-MAGVIT2, on images `[N, C, H, W]`.

use layers::Linear;
use layers::init::torch_default;
use tch::nn::Module;
use tch::{Tensor, nn};
use torch_ext::MemoryFormat;
use video_core::{Error, Result};

use crate::space_to_depth::unfold_blocks;

/// Epsilon of every norm here.
const EPS: f64 = 1e-6;

/// A convolution of an odd kernel that keeps the size, but for its stride.
pub(super) fn conv(
    path: nn::Path,
    [inputs, outputs]: [i64; 2],
    kernel: i64,
    stride: i64,
    bias: bool,
) -> nn::Conv2D {
    let init = torch_default(inputs * kernel * kernel);
    let padding = kernel / 2;
    let config = nn::ConvConfig { stride, padding, bias, ws_init: init, bs_init: init, ..Default::default() };
    nn::conv2d(path, inputs, outputs, kernel, config)
}

pub(super) fn group_norm(path: nn::Path, groups: i64, channels: i64, affine: bool) -> Result<nn::GroupNorm> {
    if groups < 1 || channels % groups != 0 {
        return Err(Error::config("num_groups", groups, format!("a divisor of the width {channels}")));
    }
    Ok(nn::group_norm(path, groups, channels, nn::GroupNormConfig { eps: EPS, affine, ..Default::default() }))
}

/// Refuses what are no images of so many channels.
pub(super) fn check_images(what: &str, x: &Tensor, channels: i64) -> Result<()> {
    let size = x.size();
    if size.len() != 4 || size[1] != channels || size.contains(&0) {
        let expected = format!("[N, {channels}, H, W] with no empty axis");
        return Err(Error::shape(what, &size, expected));
    }
    Ok(())
}

/// The shape of a [`ResBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResBlockConfig {
    /// Channels that go in.
    pub inputs: i64,
    /// Channels that come out.
    pub outputs: i64,
    /// Groups of both norms.
    pub num_groups: i64,
    /// The skip of a block that changes the width is a 3×3 convolution instead of 1×1.
    pub conv_shortcut: bool,
    /// Whether there is a norm in front; not behind an [`AdaptiveGroupNorm`] in an early form of the network.
    pub first_norm: bool,
}

impl ResBlockConfig {
    /// As the tokenizer has them.
    pub fn new(inputs: i64, outputs: i64, num_groups: i64) -> Self {
        Self { inputs, outputs, num_groups, conv_shortcut: false, first_norm: true }
    }
}

/// Twice (group norm, SiLU, 3×3 convolution without bias), around a skip: the identity, or a convolution without bias
/// where the width changes.
///
/// Variables: `norm1`, `conv1`, `norm2`, `conv2`, and `nin_shortcut` (1×1) or `conv_shortcut` (3×3) where the width
/// changes.
#[derive(Debug)]
pub struct ResBlock {
    norm1: Option<nn::GroupNorm>,
    conv1: nn::Conv2D,
    norm2: nn::GroupNorm,
    conv2: nn::Conv2D,
    shortcut: Option<nn::Conv2D>,
    inputs: i64,
}

impl ResBlock {
    /// With fresh weights.
    ///
    /// # Errors
    /// `num_groups` does not divide a width that is normed.
    pub fn new(path: &nn::Path, config: ResBlockConfig) -> Result<Self> {
        let ResBlockConfig { inputs, outputs, num_groups, conv_shortcut, first_norm } = config;
        let (name, kernel) = if conv_shortcut { ("conv_shortcut", 3) } else { ("nin_shortcut", 1) };
        Ok(Self {
            norm1: first_norm.then(|| group_norm(path / "norm1", num_groups, inputs, true)).transpose()?,
            conv1: conv(path / "conv1", [inputs, outputs], 3, 1, false),
            norm2: group_norm(path / "norm2", num_groups, outputs, true)?,
            conv2: conv(path / "conv2", [outputs, outputs], 3, 1, false),
            shortcut: (inputs != outputs).then(|| conv(path / name, [inputs, outputs], kernel, 1, false)),
            inputs,
        })
    }

    /// `[N, in, H, W]` to `[N, out, H, W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_images("ResBlock input", x, self.inputs)?;
        Ok(self.run(x))
    }

    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        let h = match &self.norm1 {
            Some(norm) => norm.forward(x).silu(),
            None => x.silu(),
        };
        let h = self.conv2.forward(&self.norm2.forward(&self.conv1.forward(&h)).silu());
        match &self.shortcut {
            Some(shortcut) => h + shortcut.forward(x),
            None => h + x,
        }
    }
}

/// A group norm whose scale and shift come from a code's statistics over the whole image: y = norm(x) · (W_g σ + b_g) +
/// (W_b μ + b_b), with μ the code's mean over its positions and σ = √(its unbiased variance + 10⁻⁶), per channel.
///
/// Variables: `gamma` and `beta`, linear layers from the code's width to the input's.
#[derive(Debug)]
pub struct AdaptiveGroupNorm {
    norm: nn::GroupNorm,
    gamma: Linear,
    beta: Linear,
    channels: i64,
    z_channels: i64,
}

impl AdaptiveGroupNorm {
    /// For `channels` of input and `z_channels` of code.
    ///
    /// # Errors
    /// `num_groups` does not divide `channels`.
    pub fn new(path: &nn::Path, channels: i64, z_channels: i64, num_groups: i64) -> Result<Self> {
        Ok(Self {
            norm: group_norm(path / "norm", num_groups, channels, false)?,
            gamma: Linear::new(&(path / "gamma"), z_channels, channels, true),
            beta: Linear::new(&(path / "beta"), z_channels, channels, true),
            channels,
            z_channels,
        })
    }

    /// `[N, C, H, W]` and the code `[N, K, h, w]` to `[N, C, H, W]`.
    ///
    /// # Errors
    /// Other channels, another batch, or a code of one position only, which has no variance.
    pub fn forward(&self, x: &Tensor, code: &Tensor) -> Result<Tensor> {
        check_images("AdaptiveGroupNorm input", x, self.channels)?;
        check_code(code, self.z_channels)?;
        if x.size()[0] != code.size()[0] {
            let expected = format!("a batch of {}, that of the input", x.size()[0]);
            return Err(Error::shape("code", &code.size(), expected));
        }
        Ok(self.run(x, code))
    }

    pub(super) fn run(&self, x: &Tensor, code: &Tensor) -> Tensor {
        let positions = code.flatten(2, -1);
        let deviation = (positions.var_dim(-1, true, false) + EPS).sqrt();
        let mean = positions.mean_dim(-1, false, None);
        let over_image = |y: Tensor| y.unsqueeze(-1).unsqueeze(-1);
        let shift = over_image(self.beta.forward(&mean));
        shift.addcmul(&self.norm.forward(x), &over_image(self.gamma.forward(&deviation)))
    }
}

/// Refuses a code that has no variance over its positions.
pub(super) fn check_code(code: &Tensor, channels: i64) -> Result<()> {
    check_images("code", code, channels)?;
    let size = code.size();
    if size[2] * size[3] < 2 {
        return Err(Error::shape(
            "code",
            &size,
            "at least two positions, whose variance the adaptive norm takes",
        ));
    }
    Ok(())
}

/// Twice the size: a 3×3 convolution to a block of 2×2 pixels per position, in the order of
/// [`depth_to_space`](crate::depth_to_space).
///
/// Variables: `conv1`.
#[derive(Debug)]
pub struct Upsampler {
    conv1: nn::Conv2D,
    channels: i64,
}

impl Upsampler {
    /// For so many channels, which stay.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        Self { conv1: conv(path / "conv1", [channels, 4 * channels], 3, 1, true), channels }
    }

    /// `[N, C, H, W]` to `[N, C, 2H, 2W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_images("Upsampler input", x, self.channels)?;
        Ok(self.run(x))
    }

    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        let shuffled = unfold_blocks(&self.conv1.forward(x).unsqueeze(2), [1, 2, 2]).squeeze_dim(2);
        // It lies channels-last now.
        match torch_ext::is_contiguous(x, MemoryFormat::ChannelsLast) {
            Ok(true) => shuffled,
            _ => shuffled.contiguous(),
        }
    }
}
