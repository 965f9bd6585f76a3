//! The 3D residual network that looks at the frames that a clip begins with.

use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use layers::init::torch_default;

/// Configuration of [`ResNet`]; the default is VideoGPT's ResNet-34, whose features are a quarter of the frames' size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Multiplies the widths 64, 128 and 256.
    pub width_multiplier: f64,
    /// Blocks of each group.
    pub layers: [i64; 4],
    /// Width of the features, R.
    pub resnet_dim: i64,
    /// Powers of two by which time, height and width shrink.
    pub stride: [i64; 3],
    /// The first convolution keeps the resolution; otherwise it is 7 wide, strided, and pooled.
    pub cifar_stem: bool,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self {
            width_multiplier: 1.0,
            layers: [3, 4, 6, 3],
            resnet_dim: 240,
            stride: [1, 4, 4],
            cifar_stem: true,
        }
    }
}

impl ResNetConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let widths = self.widths();
        if !(self.width_multiplier > 0.0 && self.width_multiplier <= 64.0) || widths.contains(&0) {
            return Err(Error::config("width_multiplier", self.width_multiplier, "1/64 to 64"));
        }
        if self.layers.iter().any(|n| !(1..=256).contains(n)) {
            return Err(Error::config("layers", self.layers, "1 to 256 blocks in each group"));
        }
        if !(1..=1 << 16).contains(&self.resnet_dim) {
            return Err(Error::config("resnet_dim", self.resnet_dim, "1 to 65536"));
        }
        let halvings = self.halvings(&mut |_| {});
        if self.stride.iter().any(|s| !(1..=64).contains(s) || s.count_ones() != 1) || halvings.is_none() {
            let expected = "powers of two that the stem and the three strided groups reach";
            return Err(Error::config("stride", self.stride, expected));
        }
        Ok(())
    }

    /// The widths of the groups but the last.
    fn widths(&self) -> [i64; 3] {
        [64.0, 128.0, 256.0].map(|width| (width * self.width_multiplier).floor().max(0.0) as i64)
    }

    /// Calls `each` with the stride of the stem and of groups 2 to 4; none if they do not reach the config's stride.
    fn halvings(&self, each: &mut dyn FnMut([i64; 3])) -> Option<()> {
        let mut left = self.stride.map(|s| i64::from(s.max(1).ilog2()));
        let mut next = |left: &mut [i64; 3]| {
            each(left.map(|n| if n > 0 { 2 } else { 1 }));
            *left = left.map(|n| n - 1);
        };
        if self.cifar_stem {
            next(&mut [0; 3]);
        } else {
            next(&mut left);
            // The pooling behind the stem halves height and width.
            left[1] -= 1;
            left[2] -= 1;
        }
        (0..3).for_each(|_| next(&mut left));
        left.iter().all(|&n| n <= 0).then_some(())
    }
}

/// A convolution without bias, padded by half its kernel.
fn conv(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64, stride: [i64; 3]) -> nn::Conv<[i64; 3]> {
    let config = nn::ConvConfigND::<[i64; 3]> {
        stride,
        padding: [kernel / 2; 3],
        dilation: [1; 3],
        groups: 1,
        bias: false,
        ws_init: torch_default(inputs * kernel.pow(3)),
        bs_init: nn::Init::Const(0.0),
        padding_mode: nn::PaddingMode::Zeros,
    };
    nn::conv(path, inputs, outputs, [kernel; 3], config)
}

/// Layer norm over the channels of `[B, C, T, H, W]`.
#[derive(Debug)]
struct ChannelNorm(nn::LayerNorm);

impl ChannelNorm {
    fn new(path: &nn::Path, width: i64) -> Self {
        Self(nn::layer_norm(path / "norm" / "norm", vec![width], Default::default()))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.0.forward(&x.permute([0, 2, 3, 4, 1])).permute([0, 4, 1, 2, 3])
    }
}

/// ReLU(twice conv, norm and ReLU, so one before the sum as well, + shortcut).
#[derive(Debug)]
struct ResidualBlock {
    shortcut: Option<(nn::Conv<[i64; 3]>, ChannelNorm)>,
    conv1: nn::Conv<[i64; 3]>,
    bnr1: ChannelNorm,
    conv2: nn::Conv<[i64; 3]>,
    bnr2: ChannelNorm,
}

impl ResidualBlock {
    fn new(path: &nn::Path, inputs: i64, outputs: i64, stride: Option<[i64; 3]>) -> Self {
        Self {
            shortcut: stride.map(|stride| {
                (
                    conv(&(path / "proj_conv"), inputs, outputs, 1, stride),
                    ChannelNorm::new(&(path / "proj_bnr"), outputs),
                )
            }),
            conv1: conv(&(path / "conv1"), inputs, outputs, 3, stride.unwrap_or([1; 3])),
            bnr1: ChannelNorm::new(&(path / "bnr1"), outputs),
            conv2: conv(&(path / "conv2"), outputs, outputs, 3, [1; 3]),
            bnr2: ChannelNorm::new(&(path / "bnr2"), outputs),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.bnr1.forward(&self.conv1.forward(x)).relu();
        let h = self.bnr2.forward(&self.conv2.forward(&h)).relu();
        match &self.shortcut {
            Some((conv, norm)) => (h + norm.forward(&conv.forward(x))).relu(),
            None => (h + x).relu(),
        }
    }
}

/// Frames to features. Variables are named as in the published checkpoints: `stem.0`, `stem.1.norm.norm`,
/// `group{1..4}.start_block`, `group{1..4}.blocks.{j}`.
#[derive(Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: nn::Conv<[i64; 3]>,
    stem_norm: ChannelNorm,
    blocks: Vec<ResidualBlock>,
}

impl ResNet {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &ResNetConfig) -> Result<Self> {
        config.validate()?;
        let mut strides = Vec::with_capacity(4);
        let _ = config.halvings(&mut |stride| strides.push(stride));
        let [narrow, middle, wide] = config.widths();
        let stem_kernel = if config.cifar_stem { 3 } else { 7 };
        let stem = conv(&(path / "stem" / 0), 3, narrow, stem_kernel, strides[0]);
        strides[0] = [1; 3];
        let widths = [narrow, middle, wide, config.resnet_dim];
        let mut blocks = Vec::new();
        let mut inputs = narrow;
        for (group, &width) in widths.iter().enumerate() {
            let path = path / format!("group{}", group + 1);
            blocks.push(ResidualBlock::new(&(&path / "start_block"), inputs, width, Some(strides[group])));
            for j in 0..config.layers[group] - 1 {
                blocks.push(ResidualBlock::new(&(&path / "blocks" / j), width, width, None));
            }
            inputs = width;
        }
        Ok(Self {
            config: config.clone(),
            stem,
            stem_norm: ChannelNorm::new(&(path / "stem" / 1), narrow),
            blocks,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }

    /// Frames `[B, 3, T, H, W]` to features, channels last, `[B, T/s, H/s, W/s, R]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, frames: &Tensor) -> Result<Tensor> {
        let size = frames.size();
        if size.len() != 5 || size[1] != 3 || size.contains(&0) {
            return Err(Error::shape("frames", &size, "[B, 3, T, H, W] with no empty axis"));
        }
        let x = torch_ext::channels_last_3d(&frames.to_kind(Kind::Float));
        let x = self.stem_norm.forward(&self.stem.forward(&x)).relu();
        let x =
            if self.config.cifar_stem { x } else { x.max_pool3d([3; 3], [1, 2, 2], [1; 3], [1; 3], false) };
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x));
        Ok(x.permute([0, 2, 3, 4, 1]))
    }
}
