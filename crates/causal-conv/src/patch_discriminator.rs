//! PatchGAN's discriminator (Isola et al., arXiv 1611.07004), as Open-MAGVIT2 and VQGAN use it: one logit per patch of a
//! frame.

use layers::fold_time;
use layers::init::torch_default;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::blocks::check_channels;
use crate::discriminator::leaky;

/// Share of a batch's statistics that enters the running ones.
const MOMENTUM: f64 = 0.1;
const EPS: f64 = 1e-5;

/// Configuration of [`PatchDiscriminator`]; the defaults are Open-MAGVIT2's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatchDiscriminatorConfig {
    /// Width of the first convolution.
    pub filters: i64,
    /// Convolutions with stride 2; two without follow. Their n-th, from 0, has `filters`·min(2^n, 8) channels.
    pub num_layers: i64,
}

impl Default for PatchDiscriminatorConfig {
    fn default() -> Self {
        Self { filters: 64, num_layers: 3 }
    }
}

impl PatchDiscriminatorConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.filters < 1 {
            return Err(Error::config("filters", self.filters, "at least 1"));
        }
        if !(1..=16).contains(&self.num_layers) {
            return Err(Error::config("num_layers", self.num_layers, "1 to 16"));
        }
        Ok(())
    }
}

/// Batch norm over frames and positions.
#[derive(Debug)]
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    fn new(path: nn::Path, channels: i64) -> Self {
        let size = [channels];
        Self {
            weight: path.var("weight", &size, nn::Init::Randn { mean: 1.0, stdev: 0.02 }),
            bias: path.zeros("bias", &size),
            running_mean: path.zeros_no_train("running_mean", &size),
            running_var: path.ones_no_train("running_var", &size),
        }
    }

    fn run(&self, x: &Tensor, train: bool) -> Tensor {
        let [weight, bias] = [Some(&self.weight), Some(&self.bias)];
        let [mean, var] = [Some(&self.running_mean), Some(&self.running_var)];
        x.batch_norm(weight, bias, mean, var, train, MOMENTUM, EPS, true)
    }
}

/// A 4×4 convolution with one pixel of zeros around, where it has one a batch norm, and LeakyReLU but after the last.
#[derive(Debug)]
struct Stage {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    norm: Option<BatchNorm>,
    last: bool,
}

impl Stage {
    fn run(&self, x: &Tensor, train: bool) -> Tensor {
        let mut x = x.conv2d(&self.weight, self.bias.as_ref(), [self.stride; 2], [1; 2], [1; 2], 1);
        if let Some(norm) = &self.norm {
            x = norm.run(&x, train);
        }
        if self.last { x } else { leaky(&x) }
    }
}

/// A logit for each patch of each frame, every frame for itself (but for the batch norm's statistics in training).
///
/// Variables, by the names of Open-MAGVIT2: `main.{n}`, where n also counts the LeakyReLUs.
#[derive(Debug)]
pub struct PatchDiscriminator {
    stages: Vec<Stage>,
    channels: i64,
}

impl PatchDiscriminator {
    /// For frames of so many channels, of any size from [`PatchDiscriminator::smallest_frame`] on.
    ///
    /// # Errors
    /// A field of the config or the number of channels is out of range.
    pub fn new(path: &nn::Path, config: &PatchDiscriminatorConfig, channels: i64) -> Result<Self> {
        config.validate()?;
        if channels < 1 {
            return Err(Error::config("channels", channels, "at least 1"));
        }
        let main = path / "main";
        let mut number = 0;
        let mut inputs = channels;
        let mut stages = Vec::new();
        for n in 0..config.num_layers + 2 {
            let (first, last) = (n == 0, n == config.num_layers + 1);
            let outputs = if last { 1 } else { config.filters * (1 << n.min(3)) };
            let conv = &main / number;
            let init = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
            let bias = first || last;
            stages.push(Stage {
                weight: conv.var("weight", &[outputs, inputs, 4, 4], init),
                bias: bias.then(|| conv.var("bias", &[outputs], torch_default(16 * inputs))),
                stride: if n < config.num_layers { 2 } else { 1 },
                norm: (!bias).then(|| BatchNorm::new(&main / (number + 1), outputs)),
                last,
            });
            // The convolution, its norm and its LeakyReLU.
            number += if bias { 2 } else { 3 };
            inputs = outputs;
        }
        Ok(Self { stages, channels })
    }

    /// Height and width of the smallest frame that gives a logit.
    pub fn smallest_frame(&self) -> i64 {
        self.stages.iter().rev().fold(1, |size, stage| (size - 1) * stage.stride + 2)
    }

    /// `[B, C, T, H, W]` to logits `[B·T, 1, h, w]`, high where the patch looks real. `train`: batch norm uses the batch's
    /// statistics and adds them to the running ones, which it uses otherwise.
    ///
    /// # Errors
    /// Another number of axes or channels, or frames that are too small.
    pub fn forward(&self, video: &Tensor, train: bool) -> Result<Tensor> {
        check_channels("discriminator input", video, self.channels)?;
        let (size, smallest) = (video.size(), self.smallest_frame());
        if size[3].min(size[4]) < smallest {
            let expected =
                format!("at least {smallest}×{smallest} pixels; for smaller frames, fewer num_layers");
            return Err(Error::shape("discriminator input", &size, expected));
        }
        let x = torch_ext::channels_last(&fold_time(video));
        Ok(self.stages.iter().fold(x, |x, stage| stage.run(&x, train)))
    }
}
