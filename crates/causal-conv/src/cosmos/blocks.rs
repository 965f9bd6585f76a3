//! Norm, convolution, residual block and attention.

use layers::{FrameGroupNorm, fold_time, unfold_time};
use tch::{Tensor, nn};
use video_core::{Error, Result};

use super::CosmosNet;
use crate::blocks::check_channels;
use crate::conv::{CausalConv3d, CausalConv3dConfig};
use crate::time::{ClipStart, Past, TimePadding};

const EPS: f64 = 1e-6;

/// The convolution of Cosmos: copies of the first frame in front, zeros around.
pub(super) fn conv_config(kernel: [i64; 3]) -> CausalConv3dConfig {
    CausalConv3dConfig {
        time_padding: TimePadding::LessStride,
        clip_start: ClipStart::FirstFrame,
        ..CausalConv3dConfig::new(kernel)
    }
}

/// Group norm: of each frame with one group, of the whole clip with more.
#[derive(Debug)]
pub(super) enum Norm {
    PerFrame(FrameGroupNorm),
    PerClip { groups: i64, weight: Tensor, bias: Tensor },
}

impl Norm {
    pub fn new(path: nn::Path, groups: i64, channels: i64) -> Result<Self> {
        if groups == 1 {
            return Ok(Self::PerFrame(FrameGroupNorm::new(&path, groups, channels, EPS)?));
        }
        // It refuses the same groups.
        FrameGroupNorm::without_affine(groups, channels, EPS)?;
        let (weight, bias) = (path.ones("weight", &[channels]), path.zeros("bias", &[channels]));
        Ok(Self::PerClip { groups, weight, bias })
    }

    pub fn run(&self, x: &Tensor) -> Tensor {
        match self {
            Self::PerFrame(norm) => norm.forward(x),
            Self::PerClip { groups, weight, bias } => {
                x.group_norm(*groups, Some(weight), Some(bias), EPS, true)
            }
        }
    }

    pub fn run_silu(&self, x: &Tensor) -> Tensor {
        let mut normed = self.run(x);
        // In place where no gradient will ask for the argument.
        if normed.requires_grad() { normed.silu() } else { normed.silu_() }
    }
}

/// A 3×3×3 convolution, in a factorized network a 1×3×3 and a 3×1×1 one after the other.
#[derive(Debug)]
pub(super) struct Conv(Vec<CausalConv3d>);

impl Conv {
    pub fn new(path: nn::Path, net: CosmosNet, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self(match net {
            CosmosNet::Base => vec![CausalConv3d::new(&path, inputs, outputs, conv_config([3; 3]))?],
            CosmosNet::Factorized => vec![
                CausalConv3d::new(&(&path / 0), inputs, outputs, conv_config([1, 3, 3]))?,
                CausalConv3d::new(&(&path / 1), outputs, outputs, conv_config([3, 1, 1]))?,
            ],
        }))
    }

    pub fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, conv| conv.run(&x, past))
    }

    pub fn last_weight(&self) -> &Tensor {
        self.0[self.0.len() - 1].weight()
    }
}

/// Twice (group norm, SiLU, convolution), around a skip that is a 1×1×1 convolution where the width changes.
///
/// Variables: `norm1`, `conv1`, `norm2`, `conv2` (with `0` and `1` below them in a factorized block), and `nin_shortcut`
/// where the width changes.
#[derive(Debug)]
pub struct ResBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<CausalConv3d>,
    inputs: i64,
}

impl ResBlock {
    /// From `inputs` to `outputs` channels. In a factorized block the first norm has one group whatever `num_groups` is.
    ///
    /// # Errors
    /// `num_groups` does not divide a width.
    pub fn new(path: &nn::Path, net: CosmosNet, inputs: i64, outputs: i64, num_groups: i64) -> Result<Self> {
        let first_groups = if net == CosmosNet::Factorized { 1 } else { num_groups };
        Ok(Self {
            norm1: Norm::new(path / "norm1", first_groups, inputs)?,
            conv1: Conv::new(path / "conv1", net, inputs, outputs)?,
            norm2: Norm::new(path / "norm2", num_groups, outputs)?,
            conv2: Conv::new(path / "conv2", net, outputs, outputs)?,
            shortcut: (inputs != outputs)
                .then(|| CausalConv3d::new(&(path / "nin_shortcut"), inputs, outputs, conv_config([1; 3])))
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

    pub(super) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let h = self.conv1.run(&self.norm1.run_silu(x), past);
        let h = self.conv2.run(&self.norm2.run_silu(&h), past);
        match &self.shortcut {
            Some(shortcut) => shortcut.run(x, past) + h,
            None => x + h,
        }
    }
}

/// What a position attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionAxes {
    /// All positions of its frame.
    Space,
    /// Its own place in this frame and the frames before.
    Time,
}

/// Attention with one head of the input's width, added to its input.
///
/// Variables: `norm`, and the 1×1×1 convolutions `q`, `k`, `v`, `proj_out`.
#[derive(Debug)]
pub struct Attention {
    norm: Norm,
    q: CausalConv3d,
    k: CausalConv3d,
    v: CausalConv3d,
    proj_out: CausalConv3d,
    axes: AttentionAxes,
    channels: i64,
}

impl Attention {
    /// For `channels` of input.
    ///
    /// # Errors
    /// `num_groups` does not divide `channels`.
    pub fn new(path: &nn::Path, axes: AttentionAxes, channels: i64, num_groups: i64) -> Result<Self> {
        if channels < 1 {
            return Err(Error::config("channels", channels, "at least 1"));
        }
        let conv = |name: &str| CausalConv3d::new(&(path / name), channels, channels, conv_config([1; 3]));
        Ok(Self {
            norm: Norm::new(path / "norm", num_groups, channels)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
            axes,
            channels,
        })
    }

    /// `[B, C, T, H, W]` to the same shape.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("Attention input", x, self.channels)?;
        Ok(self.run(x))
    }

    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        let normed = self.norm.run(x);
        // 1×1×1 convolutions see one position: there is no past to keep.
        let project = |conv: &CausalConv3d, x: &Tensor| conv.run(x, &mut Past::WholeClip);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|conv| self.sequences(&project(conv, &normed)));
        let causal = self.axes == AttentionAxes::Time;
        let mixed =
            Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, causal, None, false);
        x + project(&self.proj_out, &self.video(&mixed, &x.size()))
    }

    /// `[B, C, T, H, W]` to `[sequences, 1, positions, C]`.
    fn sequences(&self, x: &Tensor) -> Tensor {
        match self.axes {
            AttentionAxes::Space => fold_time(x).flatten(2, 3).transpose(1, 2).unsqueeze(1),
            AttentionAxes::Time => x.permute([0, 3, 4, 2, 1]).flatten(0, 2).unsqueeze(1),
        }
    }

    /// The inverse of [`Attention::sequences`].
    fn video(&self, sequences: &Tensor, size: &[i64]) -> Tensor {
        let sequences = sequences.squeeze_dim(1);
        match self.axes {
            AttentionAxes::Space => unfold_time(&sequences.transpose(1, 2).unflatten(2, &size[3..]), size[0]),
            AttentionAxes::Time => {
                sequences.unflatten(0, [size[0], size[3], size[4]]).permute([0, 4, 3, 1, 2])
            }
        }
    }
}

/// Attention within frames and, in a factorized network, along time after it.
#[derive(Debug)]
pub(super) struct AttentionStack(Vec<Attention>);

impl AttentionStack {
    pub fn new(path: nn::Path, net: CosmosNet, channels: i64, num_groups: i64) -> Result<Self> {
        Ok(Self(match net {
            CosmosNet::Base => vec![Attention::new(&path, AttentionAxes::Space, channels, num_groups)?],
            CosmosNet::Factorized => vec![
                Attention::new(&(&path / 0), AttentionAxes::Space, channels, num_groups)?,
                Attention::new(&(&path / 1), AttentionAxes::Time, channels, num_groups)?,
            ],
        }))
    }

    pub fn run(&self, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, attention| attention.run(&x))
    }
}

/// Residual block, attention, residual block: the coarsest level of both networks.
#[derive(Debug)]
pub(super) struct Middle {
    block_1: ResBlock,
    attn_1: AttentionStack,
    block_2: ResBlock,
}

impl Middle {
    pub fn new(path: nn::Path, net: CosmosNet, channels: i64, num_groups: i64) -> Result<Self> {
        Ok(Self {
            block_1: ResBlock::new(&(&path / "block_1"), net, channels, channels, num_groups)?,
            attn_1: AttentionStack::new(&path / "attn_1", net, channels, num_groups)?,
            block_2: ResBlock::new(&(&path / "block_2"), net, channels, channels, num_groups)?,
        })
    }

    pub fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let x = self.attn_1.run(&self.block_1.run(x, past));
        self.block_2.run(&x, past)
    }
}

/// One level: residual blocks, each followed by attention where the level has it.
#[derive(Debug)]
pub(super) struct Blocks(Vec<(ResBlock, Option<AttentionStack>)>);

impl Blocks {
    /// Under `path`'s `block` and `attn`.
    pub fn new(
        path: &nn::Path,
        net: CosmosNet,
        [inputs, outputs]: [i64; 2],
        count: i64,
        attention: bool,
        num_groups: i64,
    ) -> Result<Self> {
        let block = |j: i64| -> Result<_> {
            let inputs = if j == 0 { inputs } else { outputs };
            let block = ResBlock::new(&(path / "block" / j), net, inputs, outputs, num_groups)?;
            let attention = attention
                .then(|| AttentionStack::new(path / "attn" / j, net, outputs, num_groups))
                .transpose()?;
            Ok((block, attention))
        };
        Ok(Self((0..count).map(block).collect::<Result<_>>()?))
    }

    pub fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, (block, attention)| {
            let x = block.run(&x, past);
            attention.as_ref().map(|attention| attention.run(&x)).unwrap_or(x)
        })
    }
}
