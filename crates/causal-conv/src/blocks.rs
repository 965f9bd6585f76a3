//! The blocks of the MAGVIT-v2 tokenizer (arXiv 2310.05737, figure 2 and appendix A).

use layers::{FrameGroupNorm, Linear};
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::conv::{CausalConv3d, CausalConv3dConfig};
use crate::space_to_depth::unfold_blocks;
use crate::time::{ClipStart, Past};

/// Epsilon of every group norm here.
pub(crate) const EPS: f64 = 1e-5;

/// Refuses what is no video of so many channels.
pub(crate) fn check_channels(what: &str, x: &Tensor, channels: i64) -> Result<()> {
    let size = x.size();
    if size.len() != 5 || size[1] != channels || size.contains(&0) {
        let expected = format!("[B, {channels}, T, H, W] with no empty axis");
        return Err(Error::shape(what, &size, expected));
    }
    Ok(())
}

/// Refuses numbers of another kind or on another device than the model's.
pub(crate) fn check_element(what: &str, x: &Tensor, model: &Tensor) -> Result<()> {
    if x.kind() != model.kind() || x.device() != model.device() {
        return Err(Error::input(
            what,
            format!("{:?} numbers on {:?}", x.kind(), x.device()),
            format!("the model's, {:?} on {:?}", model.kind(), model.device()),
        ));
    }
    Ok(())
}

/// Twice (group norm per frame, SiLU, causal 3×3×3 convolution without bias), around a skip: the identity, or a
/// convolution without bias where the width changes.
///
/// Variables: `norm_0`, `conv_0`, `norm_1`, `conv_1`, and `conv_shortcut` where the width changes.
#[derive(Debug)]
pub struct ResBlock {
    norm_0: FrameGroupNorm,
    conv_0: CausalConv3d,
    norm_1: FrameGroupNorm,
    conv_1: CausalConv3d,
    shortcut: Option<CausalConv3d>,
    inputs: i64,
}

impl ResBlock {
    /// From `inputs` to `outputs` channels. `conv_shortcut`: the skip's convolution is 3×3×3 instead of 1×1×1. `clip_start`:
    /// what the convolutions see in front of a clip.
    ///
    /// # Errors
    /// `num_groups` does not divide both widths.
    pub fn new(
        path: &nn::Path,
        inputs: i64,
        outputs: i64,
        num_groups: i64,
        conv_shortcut: bool,
        clip_start: ClipStart,
    ) -> Result<Self> {
        let conv =
            |kernel| CausalConv3dConfig { clip_start, ..CausalConv3dConfig::new(kernel).without_bias() };
        let (conv3, skip) = (conv([3; 3]), conv(if conv_shortcut { [3; 3] } else { [1; 3] }));
        Ok(Self {
            norm_0: FrameGroupNorm::new(&(path / "norm_0"), num_groups, inputs, EPS)?,
            conv_0: CausalConv3d::new(&(path / "conv_0"), inputs, outputs, conv3)?,
            norm_1: FrameGroupNorm::new(&(path / "norm_1"), num_groups, outputs, EPS)?,
            conv_1: CausalConv3d::new(&(path / "conv_1"), outputs, outputs, conv3)?,
            shortcut: (inputs != outputs)
                .then(|| CausalConv3d::new(&(path / "conv_shortcut"), inputs, outputs, skip))
                .transpose()?,
            inputs,
        })
    }

    /// `[B, in, T, H, W]` to `[B, out, T, H, W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("ResBlock input", x, self.inputs)?;
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(crate) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let h = self.conv_0.run_normed(&self.norm_0, x, past);
        let mut h = self.conv_1.run_normed(&self.norm_1, &h, past);
        let projected = self.shortcut.as_ref().map(|shortcut| shortcut.run(x, past));
        let skip = projected.as_ref().unwrap_or(x);
        if h.requires_grad() || skip.requires_grad() { h + skip } else { h.g_add_(skip) }
    }
}

/// Group norm per frame whose scale and shift come from a condition at the same position:
/// y = norm(x) · (1 + W_g c + b_g) + W_b c + b_b.
///
/// Variables: `gamma` and `beta`, linear layers from the condition's width to the input's.
#[derive(Debug)]
pub struct AdaptiveGroupNorm {
    norm: FrameGroupNorm,
    gamma: Linear,
    beta: Linear,
    channels: i64,
    condition: i64,
}

impl AdaptiveGroupNorm {
    /// For `channels` of input and `condition` channels of condition.
    ///
    /// # Errors
    /// `num_groups` does not divide `channels`.
    pub fn new(path: &nn::Path, channels: i64, condition: i64, num_groups: i64) -> Result<Self> {
        Ok(Self {
            norm: FrameGroupNorm::without_affine(num_groups, channels, EPS)?,
            gamma: Linear::new(&(path / "gamma"), condition, channels, true),
            beta: Linear::new(&(path / "beta"), condition, channels, true),
            channels,
            condition,
        })
    }

    /// `[B, C, T, H, W]` and the condition `[B, K, T, H, W]` to `[B, C, T, H, W]`.
    ///
    /// # Errors
    /// Other channels, or sizes that differ between the two.
    pub fn forward(&self, x: &Tensor, condition: &Tensor) -> Result<Tensor> {
        check_channels("AdaptiveGroupNorm input", x, self.channels)?;
        check_channels("AdaptiveGroupNorm condition", condition, self.condition)?;
        if x.size()[2..] != condition.size()[2..] || x.size()[0] != condition.size()[0] {
            let expected = format!("batch, time, height and width of the input {:?}", x.size());
            return Err(Error::shape("AdaptiveGroupNorm condition", &condition.size(), expected));
        }
        Ok(self.run(x, condition))
    }

    /// Of a condition with the input's frames, but fewer rows and columns: each position of it stands for a block of the
    /// input. The linear layers see one position at a time, so they run before that.
    pub(crate) fn run(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        let (b, c, t, h, w) = x.size5().expect("a video has five axes");
        let (rows, columns) = (condition.size()[3], condition.size()[4]);
        let condition = condition.permute([0, 2, 3, 4, 1]);
        let spread = |linear: &Linear| linear.forward(&condition).reshape([b, t, rows, 1, columns, 1, c]);
        let normed = self.norm.forward(x).permute([0, 2, 3, 4, 1]).reshape([
            b,
            t,
            rows,
            h / rows,
            columns,
            w / columns,
            c,
        ]);
        let (scale, shift) = (spread(&self.gamma) + 1.0, spread(&self.beta));
        let y = if scale.requires_grad() || normed.requires_grad() {
            normed * scale + shift
        } else {
            let mut normed = normed;
            normed.g_mul_(&scale).g_add_(&shift)
        };
        y.reshape([b, t, h, w, c]).permute([0, 4, 1, 2, 3])
    }
}

/// Halves what it is told to: a causal 3×3×3 convolution with strides, same width.
///
/// Variables: `weight`, `bias`.
#[derive(Debug)]
pub struct Downsample {
    conv: CausalConv3d,
}

impl Downsample {
    /// `factors`: strides in time, height, width. `clip_start`: what stands in front of a clip.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64, factors: [i64; 3], clip_start: ClipStart) -> Result<Self> {
        let config =
            CausalConv3dConfig { clip_start, ..CausalConv3dConfig::new([3; 3]).with_stride(factors) };
        Ok(Self { conv: CausalConv3d::new(path, channels, channels, config)? })
    }

    /// `[B, C, T, H, W]` to `[B, C, ⌈T/st⌉, ⌈H/sh⌉, ⌈W/sw⌉]`; 1 + st·k frames become 1 + k.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x)
    }

    pub(crate) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        self.conv.run(x, past)
    }
}

/// The way back: a causal 3×3×3 convolution to a block of pixels per position ([`depth_to_space`](crate::depth_to_space)),
/// without the first st−1 frames of the clip: 1 + k frames become 1 + st·k.
///
/// Variables: `weight`, `bias`.
#[derive(Debug)]
pub struct Upsample {
    conv: CausalConv3d,
    factors: [i64; 3],
    channels: i64,
}

impl Upsample {
    /// `factors`: of time, height, width. `clip_start`: what stands in front of a clip.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64, factors: [i64; 3], clip_start: ClipStart) -> Result<Self> {
        let outputs = channels * factors.iter().product::<i64>();
        let config = CausalConv3dConfig { clip_start, ..CausalConv3dConfig::new([3; 3]) };
        let conv = CausalConv3d::new(path, channels, outputs, config)?;
        Ok(Self { conv, factors, channels })
    }

    /// `[B, C, T, H, W]` to `[B, C, 1 + st·(T−1), sh·H, sw·W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("Upsample input", x, self.channels)?;
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(crate) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let starts_clip = past.starts_clip();
        let shuffled = unfold_blocks(&self.conv.run(x, past), self.factors);
        torch_ext::channels_last_3d(&trim(&shuffled, self.factors[0], starts_clip))
    }

    /// Something at coarser positions, with as many frames in as the output of the layer.
    pub(crate) fn repeat_frames(&self, x: &Tensor, starts_clip: bool) -> Tensor {
        trim(&repeat(x, [self.factors[0], 1, 1]), self.factors[0], starts_clip)
    }
}

/// Nearest-neighbour upsampling of `[B, C, T, H, W]`, channels last.
pub(crate) fn repeat(x: &Tensor, [ft, fh, fw]: [i64; 3]) -> Tensor {
    let (b, c, t, h, w) = x.size5().expect("a video has five axes");
    x.permute([0, 2, 3, 4, 1])
        .reshape([b, t, 1, h, 1, w, 1, c])
        .expand([b, t, ft, h, fh, w, fw, c], true)
        .reshape([b, t * ft, h * fh, w * fw, c])
        .permute([0, 4, 1, 2, 3])
}

/// Without the first `factor` − 1 frames, if the clip starts here: the first frame stands for itself alone.
pub(crate) fn trim(x: &Tensor, factor: i64, starts_clip: bool) -> Tensor {
    let drop = if starts_clip { factor - 1 } else { 0 };
    x.narrow(2, drop, x.size()[2] - drop)
}
