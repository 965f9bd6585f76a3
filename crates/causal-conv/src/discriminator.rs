//! The discriminator of the video tokenizer: StyleGAN's, over video, with blur pooling (MAGVIT-v2, arXiv 2310.05737,
//! appendix A; MAGVIT, arXiv 2212.05199, appendix B).

use std::f64::consts::SQRT_2;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{Error, Result, VideoShape};

use crate::blur::BlurPool3d;
use crate::conv::channels_last_variable;
use crate::time::PadMode;

/// Slope of every LeakyReLU.
const SLOPE: f64 = 0.2;

/// Configuration of [`VideoDiscriminator`]; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VideoDiscriminatorConfig {
    /// Width F of the first convolution.
    pub filters: i64,
    /// Width of each block, in units of F. Each block halves time, height and width.
    pub channel_multipliers: Vec<i64>,
    /// Taps of the blur before each halving.
    pub blur_size: i64,
    /// What the blur sees beyond the border.
    pub blur_border: PadMode,
}

impl Default for VideoDiscriminatorConfig {
    fn default() -> Self {
        Self {
            filters: 128,
            channel_multipliers: vec![2, 4, 4, 4, 4],
            blur_size: 3,
            blur_border: PadMode::Reflect,
        }
    }
}

impl VideoDiscriminatorConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.filters < 1 {
            return Err(Error::config("filters", self.filters, "at least 1"));
        }
        if self.channel_multipliers.is_empty() || self.channel_multipliers.iter().any(|&m| m < 1) {
            let expected = "at least one block, each with a factor of at least 1";
            return Err(Error::config("channel_multipliers", &self.channel_multipliers, expected));
        }
        self.blur().map(|_| ())
    }

    fn blur(&self) -> Result<BlurPool3d> {
        BlurPool3d::new(self.blur_size, 2, self.blur_border)
    }
}

/// A convolution (five axes of weight) or a linear layer (two), Xavier-uniform for ReLU at first, its bias zero.
#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer {
    fn new(path: nn::Path, size: &[i64], bias: bool) -> Self {
        let volume: i64 = size[2..].iter().product();
        let bound = SQRT_2 * (6.0 / ((size[0] + size[1]) * volume) as f64).sqrt();
        let init = nn::Init::Uniform { lo: -bound, up: bound };
        let weight = match size.len() {
            5 => channels_last_variable(&path, size, init),
            _ => path.var("weight", size, init),
        };
        Self { weight, bias: bias.then(|| path.zeros("bias", &size[..1])) }
    }

    /// Zeros beyond the border, same size.
    fn conv(&self, x: &Tensor) -> Tensor {
        let pad = self.weight.size()[2] / 2;
        x.conv3d(&self.weight, self.bias.as_ref(), [1; 3], [pad; 3], [1; 3], 1)
    }

    fn linear(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// Half the size: two convolutions with a blur between them, beside a blurred and projected skip.
#[derive(Debug)]
struct ResBlockDown {
    conv1: Layer,
    /// Of the skip.
    conv2: Layer,
    conv3: Layer,
}

impl ResBlockDown {
    fn new(path: nn::Path, inputs: i64, outputs: i64) -> Self {
        Self {
            conv1: Layer::new(&path / "conv1", &[inputs, inputs, 3, 3, 3], true),
            conv2: Layer::new(&path / "conv2", &[outputs, inputs, 1, 1, 1], false),
            conv3: Layer::new(&path / "conv3", &[outputs, inputs, 3, 3, 3], true),
        }
    }

    fn run(&self, x: &Tensor, blur: &BlurPool3d) -> Tensor {
        let h = blur.run(&leaky(&self.conv1.conv(x)));
        let h = leaky(&self.conv3.conv(&h));
        (self.conv2.conv(&blur.run(x)) + h) / SQRT_2
    }
}

/// LeakyReLU of the slope that these discriminators have (`tch` binds the operator with another one only).
pub(crate) fn leaky(x: &Tensor) -> Tensor {
    x.prelu(&Tensor::full([1], SLOPE, (x.kind(), x.device())))
}

/// One logit per clip, for clips of one size: a convolution, halving residual blocks, a convolution, two linear layers.
/// No norms; not causal.
///
/// Variables, by the names of O2-MAGVIT2: `conv_in`, `res_blocks.{i}.{conv1, conv2, conv3}` (conv2 is the skip's),
/// `conv_out`, `linear0`, `linear1`.
#[derive(Debug)]
pub struct VideoDiscriminator {
    conv_in: Layer,
    blocks: Vec<ResBlockDown>,
    blur: BlurPool3d,
    conv_out: Layer,
    linear0: Layer,
    linear1: Layer,
    /// Channels, frames, height, width.
    clip: [i64; 4],
}

impl VideoDiscriminator {
    /// For clips of `shape` (in any number).
    ///
    /// # Errors
    /// A field of the config is out of range, or the shape has an empty axis.
    pub fn new(path: &nn::Path, config: &VideoDiscriminatorConfig, shape: VideoShape) -> Result<Self> {
        config.validate()?;
        let [_, clip @ ..] = shape.to_array();
        if clip.iter().any(|&n| n < 1) {
            return Err(Error::shape("discriminator's clip", &clip, "[C, T, H, W] with no empty axis"));
        }
        let blur = config.blur()?;
        let mut width = config.filters;
        let conv_in = Layer::new(path / "conv_in", &[width, clip[0], 3, 3, 3], true);
        let mut blocks = Vec::new();
        let mut positions = [clip[1], clip[2], clip[3]];
        for (i, multiplier) in config.channel_multipliers.iter().enumerate() {
            let outputs = config.filters * multiplier;
            blocks.push(ResBlockDown::new(path / "res_blocks" / i, width, outputs));
            positions = positions.map(|n| blur.pooled(n));
            width = outputs;
        }
        let flat = width * positions.iter().product::<i64>();
        Ok(Self {
            conv_in,
            blocks,
            blur,
            conv_out: Layer::new(path / "conv_out", &[width, width, 3, 3, 3], true),
            linear0: Layer::new(path / "linear0", &[width, flat], true),
            linear1: Layer::new(path / "linear1", &[1, width], true),
            clip,
        })
    }

    /// `[B, C, T, H, W]` to logits `[B, 1]`, high where the clip looks real.
    ///
    /// # Errors
    /// Clips of another size than the one it was built for.
    pub fn forward(&self, video: &Tensor) -> Result<Tensor> {
        let size = video.size();
        if size.len() != 5 || size[0] < 1 || size[1..] != self.clip {
            let [c, t, h, w] = self.clip;
            let expected = format!("[B, {c}, {t}, {h}, {w}], the clips that the discriminator was built for");
            return Err(Error::shape("discriminator input", &size, expected));
        }
        let mut x = leaky(&self.conv_in.conv(&torch_ext::channels_last_3d(video)));
        for block in &self.blocks {
            x = block.run(&x, &self.blur);
        }
        let x = leaky(&self.conv_out.conv(&x)).flatten(1, -1);
        Ok(self.linear1.linear(&leaky(&self.linear0.linear(&x))))
    }
}
