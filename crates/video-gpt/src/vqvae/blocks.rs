//! The networks of the VQ-VAE. Variables are named as in the published checkpoints.

use layers::init::torch_default;
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};
use video_core::{Error, Result};

use crate::attention::AxialAttention;
use crate::same_pad::{SamePadConfig, SamePadConv3d, SamePadConvTranspose3d};

/// Heads of the axial attention.
const HEADS: i64 = 2;

/// A convolution of all three axes without bias, padded by half its odd kernel.
fn conv(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64) -> nn::Conv3D {
    let config = nn::ConvConfig {
        padding: kernel / 2,
        bias: false,
        ws_init: torch_default(inputs * kernel.pow(3)),
        ..Default::default()
    };
    nn::conv3d(path, inputs, outputs, kernel, config)
}

fn batch_norm(path: nn::Path, width: i64) -> nn::BatchNorm {
    let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
    nn::batch_norm3d(path, width, config)
}

/// x + (batch norm, ReLU, conv to half the width, batch norm, ReLU, 1×1×1 conv back, batch norm, ReLU, axial attention).
/// Variables under `block.{0, 2.conv, 3, 5.conv, 6, 8}`.
#[derive(Debug)]
pub struct AttentionResidualBlock {
    norms: [nn::BatchNorm; 3],
    convs: [nn::Conv3D; 2],
    attention: AxialAttention,
}

impl AttentionResidualBlock {
    /// Builds it for features of this width.
    ///
    /// # Errors
    /// Fewer than two channels, or fewer than heads.
    pub fn new(path: &nn::Path, width: i64, heads: i64) -> Result<Self> {
        if width < 2 {
            return Err(Error::config("n_hiddens", width, "at least 2"));
        }
        let path = path / "block";
        let half = width / 2;
        Ok(Self {
            norms: [batch_norm(&path / 0, width), batch_norm(&path / 3, half), batch_norm(&path / 6, width)],
            convs: [conv(&(&path / 2 / "conv"), width, half, 3), conv(&(&path / 5 / "conv"), half, width, 1)],
            attention: AxialAttention::new(&(&path / 8), width, heads)?,
        })
    }

    /// `[B, C, T, H, W]` to the same shape. In training, the statistics are the batch's and move the running ones.
    ///
    /// # Panics
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let h = self.convs[0].forward(&self.norms[0].forward_t(x, train).relu());
        let h = self.convs[1].forward(&self.norms[1].forward_t(&h, train).relu());
        x + self.attention.forward(&self.norms[2].forward_t(&h, train).relu())
    }
}

/// Residual blocks, a batch norm, ReLU. Variables: `{i}` of each block, `{number of blocks}` of the norm.
#[derive(Debug)]
struct ResidualStack {
    blocks: Vec<AttentionResidualBlock>,
    norm: nn::BatchNorm,
}

impl ResidualStack {
    fn new(path: &nn::Path, width: i64, layers: i64) -> Result<Self> {
        let block = |i: i64| AttentionResidualBlock::new(&(path / i), width, HEADS);
        Ok(Self {
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: batch_norm(path / layers, width),
        })
    }

    fn forward(&self, x: Tensor, train: bool) -> Tensor {
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, train));
        self.norm.forward_t(&x, train).relu()
    }
}

/// The strides of the layers: an axis that shrinks less does it first.
fn strides(downsample: [i64; 3]) -> Vec<[i64; 3]> {
    let halvings = downsample.map(|factor| factor.max(1).ilog2());
    let layers = halvings.into_iter().max().unwrap_or(0);
    (0..layers).map(|layer| halvings.map(|n| if n > layer { 2 } else { 1 })).collect()
}

/// Video to features. Variables under `convs.{i}.conv`, `conv_last.conv`, `res_stack`.
#[derive(Debug)]
pub struct Encoder {
    convs: Vec<SamePadConv3d>,
    conv_last: SamePadConv3d,
    res_stack: ResidualStack,
}

impl Encoder {
    /// Builds it.
    ///
    /// # Errors
    /// Fewer than two channels.
    pub fn new(path: &nn::Path, width: i64, layers: i64, downsample: [i64; 3]) -> Result<Self> {
        let conv = |(i, stride): (usize, &[i64; 3])| {
            let config = SamePadConfig { stride: *stride, ..SamePadConfig::cube(4) };
            let inputs = if i == 0 { 3 } else { width };
            SamePadConv3d::new(&(path / "convs" / i / "conv"), inputs, width, config)
        };
        Ok(Self {
            convs: strides(downsample).iter().enumerate().map(conv).collect::<Result<_>>()?,
            conv_last: SamePadConv3d::new(
                &(path / "conv_last" / "conv"),
                width,
                width,
                SamePadConfig::cube(3),
            )?,
            res_stack: ResidualStack::new(&(path / "res_stack"), width, layers)?,
        })
    }

    /// `[B, 3, T, H, W]` to `[B, n, t, h, w]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, video: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = torch_ext::channels_last_3d(video);
        for conv in &self.convs {
            x = conv.forward(&x)?.relu();
        }
        Ok(self.res_stack.forward(self.conv_last.forward(&x)?, train))
    }
}

/// Features to video. Variables under `res_stack`, `convts.{i}.convt`.
#[derive(Debug)]
pub struct Decoder {
    res_stack: ResidualStack,
    convts: Vec<SamePadConvTranspose3d>,
}

impl Decoder {
    /// Builds it.
    ///
    /// # Errors
    /// Fewer than two channels.
    pub fn new(path: &nn::Path, width: i64, layers: i64, upsample: [i64; 3]) -> Result<Self> {
        let strides = strides(upsample);
        let last = strides.len().saturating_sub(1);
        let convt = |(i, stride): (usize, &[i64; 3])| {
            let config = SamePadConfig { stride: *stride, ..SamePadConfig::cube(4) };
            let outputs = if i == last { 3 } else { width };
            SamePadConvTranspose3d::new(&(path / "convts" / i / "convt"), width, outputs, config)
        };
        Ok(Self {
            res_stack: ResidualStack::new(&(path / "res_stack"), width, layers)?,
            convts: strides.iter().enumerate().map(convt).collect::<Result<_>>()?,
        })
    }

    /// The weight of the last layer.
    pub(super) fn last_layer(&self) -> &Tensor {
        // `downsample` of a valid config has a layer at least.
        self.convts[self.convts.len() - 1].weight()
    }

    /// `[B, n, t, h, w]` to `[B, 3, T, H, W]`, not clamped.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.res_stack.forward(torch_ext::channels_last_3d(features), train);
        for (i, convt) in self.convts.iter().enumerate() {
            x = convt.forward(&x)?;
            if i + 1 < self.convts.len() {
                x = x.relu();
            }
        }
        Ok(x)
    }
}
