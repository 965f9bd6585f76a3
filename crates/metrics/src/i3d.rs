//! I3D, the inflated Inception of "Quo Vadis, Action Recognition?" (Carreira and Zisserman, arXiv 1705.07750), RGB stream.
//!
//! FVD compares its 400 Kinetics logits, before the softmax. The network is for evaluation alone: batch norms use their
//! running statistics, weights take no gradient. Padding is TensorFlow's "SAME", computed from the size at hand; pools pad
//! with zeros.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::range;
use crate::weights::NamedTensors;

/// A variant of I3D.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct I3dConfig {
    /// Classes: 400 (Kinetics-400), or 600.
    pub num_classes: i64,
    /// Kernel of the last average pool, (time, height, width).
    pub avg_pool_kernel: [i64; 3],
    /// Epsilon of the batch norms: 1e-5 goes with the weights that FVD uses; the port of piergiaj has 1e-3.
    pub bn_eps: f64,
    /// What every channel count inside is divided by: 1 for published weights, more for small networks in tests.
    pub width_div: i64,
}

impl Default for I3dConfig {
    fn default() -> Self {
        Self { num_classes: 400, avg_pool_kernel: [2, 7, 7], bn_eps: 1e-5, width_div: 1 }
    }
}

impl I3dConfig {
    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// No class, an empty pool kernel, an epsilon that is not positive, a `width_div` that leaves no channel.
    pub fn validate(&self) -> Result<()> {
        if self.num_classes < 1 {
            return Err(Error::config("num_classes", self.num_classes, "at least 1"));
        }
        if self.avg_pool_kernel.iter().any(|&size| size < 1) {
            return Err(Error::config("avg_pool_kernel", self.avg_pool_kernel, "three positive sizes"));
        }
        if !(self.bn_eps > 0.0 && self.bn_eps.is_finite()) {
            return Err(Error::config("bn_eps", self.bn_eps, "a positive number"));
        }
        if !(1..=16).contains(&self.width_div) {
            return Err(Error::config("width_div", self.width_div, "1 to 16"));
        }
        Ok(())
    }

    /// The tensors that the weights must hold, with their shapes.
    ///
    /// # Errors
    /// An invalid config.
    pub fn tensors(&self) -> Result<Vec<(String, Vec<i64>)>> {
        let mut expected = Vec::new();
        I3d::build(*self, &mut |name, shape| {
            expected.push((name.to_string(), shape.to_vec()));
            Ok(Tensor::new())
        })?;
        Ok(expected)
    }
}

/// Gives a tensor for a name and a shape.
type Source<'a> = &'a mut dyn FnMut(&str, &[i64]) -> Result<Tensor>;

/// Zeros around an input `[B, C, T, H, W]` such that a window of `kernel` and `stride` covers ceil(size / stride) positions
/// per axis; where they are odd in number, the end gets one more.
fn pad_same(x: &Tensor, kernel: [i64; 3], stride: [i64; 3]) -> Tensor {
    let size = x.size();
    let mut padding = [0i64; 6];
    for axis in 0..3 {
        let rest = size[axis + 2] % stride[axis];
        let total = (kernel[axis] - if rest == 0 { stride[axis] } else { rest }).max(0);
        // libtorch lists the last axis first.
        padding[2 * (2 - axis)] = total / 2;
        padding[2 * (2 - axis) + 1] = total - total / 2;
    }
    if padding == [0; 6] { x.shallow_clone() } else { x.constant_pad_nd(padding) }
}

/// Maximum over windows with "SAME" padding of zeros, on `[B, C, T, H, W]`. A window of negative values at the border thus
/// gives zero; inside I3D nothing is negative.
///
/// # Errors
/// Not five axes, or a kernel or stride that is not positive.
pub fn max_pool_same(x: &Tensor, kernel: [i64; 3], stride: [i64; 3]) -> Result<Tensor> {
    check_features(x, None)?;
    check_window(kernel, stride)?;
    Ok(pool(x, kernel, stride))
}

fn pool(x: &Tensor, kernel: [i64; 3], stride: [i64; 3]) -> Tensor {
    pad_same(x, kernel, stride).max_pool3d(kernel, stride, [0, 0, 0], [1, 1, 1], false)
}

fn check_features(x: &Tensor, channels: Option<i64>) -> Result<()> {
    let size = x.size();
    if size.len() != 5 || size.contains(&0) || channels.is_some_and(|channels| channels != size[1]) {
        let channels = channels.map_or("C".into(), |channels| channels.to_string());
        return Err(Error::shape("features", &size, format!("[B, {channels}, T, H, W] with no empty axis")));
    }
    Ok(())
}

fn check_window(kernel: [i64; 3], stride: [i64; 3]) -> Result<()> {
    for (field, values) in [("kernel", kernel), ("stride", stride)] {
        if values.iter().any(|&size| size < 1) {
            return Err(Error::config(field, values, "three positive sizes"));
        }
    }
    Ok(())
}

/// What a [`Unit`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct UnitConfig {
    /// Input channels.
    pub in_channels: i64,
    /// Output channels.
    pub out_channels: i64,
    /// Kernel, (time, height, width).
    pub kernel: [i64; 3],
    /// Stride, likewise.
    pub stride: [i64; 3],
    /// Whether batch norm and ReLU follow.
    pub batch_norm_relu: bool,
    /// Whether the convolution has a bias.
    pub bias: bool,
    /// Epsilon of the batch norm.
    pub bn_eps: f64,
}

/// Convolution, batch norm, ReLU.
#[derive(Debug)]
pub struct Unit {
    config: UnitConfig,
    weight: Tensor,
    bias: Option<Tensor>,
    /// Scale, shift, running mean, running variance.
    norm: Option<[Tensor; 4]>,
}

impl Unit {
    /// From `conv3d.{weight, bias}` and `bn.{weight, bias, running_mean, running_var}`.
    ///
    /// # Errors
    /// A kernel, stride or channel count that is not positive; a tensor that is missing or misshapen.
    pub fn new(config: UnitConfig, weights: &NamedTensors, device: Device) -> Result<Self> {
        check_window(config.kernel, config.stride)?;
        if config.in_channels < 1 || config.out_channels < 1 {
            let channels = [config.in_channels, config.out_channels];
            return Err(Error::config("channels", channels, "positive counts"));
        }
        Self::build(config, "", &mut |name, shape| weights.get(name, shape, device))
    }

    fn build(config: UnitConfig, prefix: &str, get: Source) -> Result<Self> {
        let (input, output) = (config.in_channels, config.out_channels);
        let [time, height, width] = config.kernel;
        let weight = get(&format!("{prefix}conv3d.weight"), &[output, input, time, height, width])?;
        let bias = match config.bias {
            true => Some(get(&format!("{prefix}conv3d.bias"), &[output])?),
            false => None,
        };
        let mut norm = |name: &str| get(&format!("{prefix}bn.{name}"), &[output]);
        let norm = match config.batch_norm_relu {
            true => Some([norm("weight")?, norm("bias")?, norm("running_mean")?, norm("running_var")?]),
            false => None,
        };
        Ok(Self { config, weight, bias, norm })
    }

    /// Features `[B, C, T, H, W]` to `[B, C', ceil(T/s), ceil(H/s), ceil(W/s)]`.
    ///
    /// # Errors
    /// Another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_features(x, Some(self.config.in_channels))?;
        Ok(self.apply(x))
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let padded = pad_same(x, self.config.kernel, self.config.stride);
        let y = padded.conv3d(&self.weight, self.bias.as_ref(), self.config.stride, [0; 3], [1; 3], 1);
        match &self.norm {
            None => y,
            Some([weight, bias, mean, variance]) => {
                let (weight, bias) = (Some(weight), Some(bias));
                y.batch_norm(weight, bias, Some(mean), Some(variance), false, 0.0, self.config.bn_eps, false)
                    .relu()
            }
        }
    }
}

/// An Inception block: four branches side by side.
#[derive(Debug)]
pub struct Mixed {
    in_channels: i64,
    b0: Unit,
    b1a: Unit,
    b1b: Unit,
    b2a: Unit,
    b2b: Unit,
    b3b: Unit,
}

impl Mixed {
    /// From `{b0, b1a, b1b, b2a, b2b, b3b}.(as a unit's)`. `channels` as in the paper: of the 1×1×1 branch, of each 3×3×3
    /// branch its reduction and its output, and of the branch behind the pool.
    ///
    /// # Errors
    /// A channel count that is not positive; a tensor that is missing or misshapen.
    pub fn new(
        in_channels: i64,
        channels: [i64; 6],
        bn_eps: f64,
        weights: &NamedTensors,
        device: Device,
    ) -> Result<Self> {
        if in_channels < 1 || channels.iter().any(|&count| count < 1) {
            return Err(Error::config("out_channels", channels, "positive counts"));
        }
        Self::build(in_channels, channels, bn_eps, "", &mut |name, shape| weights.get(name, shape, device))
    }

    fn build(in_channels: i64, channels: [i64; 6], bn_eps: f64, prefix: &str, get: Source) -> Result<Self> {
        let mut unit = |name: &str, in_channels: i64, out_channels: i64, size: i64| {
            let config = norm_unit(in_channels, out_channels, [size; 3], [1; 3], bn_eps);
            Unit::build(config, &format!("{prefix}{name}."), get)
        };
        let [c0, c1, c2, c3, c4, c5] = channels;
        Ok(Self {
            in_channels,
            b0: unit("b0", in_channels, c0, 1)?,
            b1a: unit("b1a", in_channels, c1, 1)?,
            b1b: unit("b1b", c1, c2, 3)?,
            b2a: unit("b2a", in_channels, c3, 1)?,
            b2b: unit("b2b", c3, c4, 3)?,
            b3b: unit("b3b", in_channels, c5, 1)?,
        })
    }

    /// Features `[B, C, T, H, W]` to as many positions, the branches' channels one after another.
    ///
    /// # Errors
    /// Another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_features(x, Some(self.in_channels))?;
        Ok(self.apply(x))
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let branches = [
            self.b0.apply(x),
            self.b1b.apply(&self.b1a.apply(x)),
            self.b2b.apply(&self.b2a.apply(x)),
            self.b3b.apply(&pool(x, [3; 3], [1; 3])),
        ];
        Tensor::cat(&branches, 1)
    }
}

fn norm_unit(
    in_channels: i64,
    out_channels: i64,
    kernel: [i64; 3],
    stride: [i64; 3],
    bn_eps: f64,
) -> UnitConfig {
    UnitConfig { in_channels, out_channels, kernel, stride, batch_norm_relu: true, bias: false, bn_eps }
}

/// One step of the published network.
enum Step {
    /// Output channels, kernel, stride.
    Unit(i64, i64, i64),
    /// Kernel, stride.
    Pool([i64; 3], [i64; 3]),
    /// Channels of the branches.
    Mixed([i64; 6]),
}

const STEPS: &[(&str, Step)] = &[
    ("Conv3d_1a_7x7", Step::Unit(64, 7, 2)),
    ("MaxPool3d_2a_3x3", Step::Pool([1, 3, 3], [1, 2, 2])),
    ("Conv3d_2b_1x1", Step::Unit(64, 1, 1)),
    ("Conv3d_2c_3x3", Step::Unit(192, 3, 1)),
    ("MaxPool3d_3a_3x3", Step::Pool([1, 3, 3], [1, 2, 2])),
    ("Mixed_3b", Step::Mixed([64, 96, 128, 16, 32, 32])),
    ("Mixed_3c", Step::Mixed([128, 128, 192, 32, 96, 64])),
    ("MaxPool3d_4a_3x3", Step::Pool([3; 3], [2; 3])),
    ("Mixed_4b", Step::Mixed([192, 96, 208, 16, 48, 64])),
    ("Mixed_4c", Step::Mixed([160, 112, 224, 24, 64, 64])),
    ("Mixed_4d", Step::Mixed([128, 128, 256, 24, 64, 64])),
    ("Mixed_4e", Step::Mixed([112, 144, 288, 32, 64, 64])),
    ("Mixed_4f", Step::Mixed([256, 160, 320, 32, 128, 128])),
    ("MaxPool3d_5a_2x2", Step::Pool([2; 3], [2; 3])),
    ("Mixed_5b", Step::Mixed([256, 160, 320, 32, 128, 128])),
    ("Mixed_5c", Step::Mixed([384, 192, 384, 48, 128, 128])),
];

enum Layer {
    Unit(Unit),
    Pool([i64; 3], [i64; 3]),
    Mixed(Box<Mixed>),
}

/// The network, with its weights.
pub struct I3d {
    config: I3dConfig,
    layers: Vec<(&'static str, Layer)>,
    logits: Unit,
    device: Device,
}

impl fmt::Debug for I3d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I3d")
            .field("config", &self.config)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl I3d {
    /// The published network from a safetensors file by the names of [`I3dConfig::tensors`]; 400 classes, or the 600 of the
    /// file's `logits.conv3d.bias`.
    ///
    /// # Errors
    /// The file is missing or cut short; the first tensor that is missing, misshapen (with both shapes) or of another
    /// network.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let weights = NamedTensors::read(path)?;
        let num_classes = if weights.shape("logits.conv3d.bias") == Some(vec![600]) { 600 } else { 400 };
        Self::new(I3dConfig { num_classes, ..I3dConfig::default() }, &weights, device)
    }

    /// Any variant from tensors by the names of [`I3dConfig::tensors`].
    ///
    /// # Errors
    /// An invalid config; tensors as for [`I3d::load`].
    pub fn new(config: I3dConfig, weights: &NamedTensors, device: Device) -> Result<Self> {
        let mut network = Self::build(config, &mut |name, shape| weights.get(name, shape, device))?;
        weights.refuse_others(&config.tensors()?, |name| !name.ends_with(".num_batches_tracked"))?;
        network.device = device;
        Ok(network)
    }

    fn build(config: I3dConfig, get: Source) -> Result<Self> {
        config.validate()?;
        let mut channels = 3;
        let mut layers = Vec::with_capacity(STEPS.len());
        for (name, step) in STEPS {
            let prefix = format!("{name}.");
            let layer = match step {
                Step::Unit(output, size, stride) => {
                    let output = output / config.width_div;
                    let unit = norm_unit(channels, output, [*size; 3], [*stride; 3], config.bn_eps);
                    channels = output;
                    Layer::Unit(Unit::build(unit, &prefix, get)?)
                }
                Step::Pool(kernel, stride) => Layer::Pool(*kernel, *stride),
                Step::Mixed(branches) => {
                    let branches = branches.map(|count| count / config.width_div);
                    let mixed = Mixed::build(channels, branches, config.bn_eps, &prefix, get)?;
                    channels = branches[0] + branches[2] + branches[4] + branches[5];
                    Layer::Mixed(Box::new(mixed))
                }
            };
            layers.push((*name, layer));
        }
        let logits = UnitConfig {
            batch_norm_relu: false,
            bias: true,
            ..norm_unit(channels, config.num_classes, [1; 3], [1; 3], config.bn_eps)
        };
        Ok(Self { config, layers, logits: Unit::build(logits, "logits.", get)?, device: Device::Cpu })
    }

    /// The variant.
    pub fn config(&self) -> &I3dConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Video `[B, 3, T, H, W]` in [-1, 1] to the features behind the average pool, `[B, 1024, T', H', W']`. `visit` sees
    /// the name and the output of each layer (`Mixed_4f`).
    ///
    /// # Errors
    /// Another shape, values outside the range, too few frames or pixels for the average pool (published: 9 frames,
    /// 193 × 193 pixels).
    pub fn features(&self, video: &Tensor, mut visit: impl FnMut(&str, &Tensor)) -> Result<Tensor> {
        let shape = range::check_video("video", video, -1.0, 1.0)?;
        if shape.channels != 3 {
            return Err(Error::shape("video", &video.size(), "3 channels: [B, 3, T, H, W]"));
        }
        let kernel = self.config.avg_pool_kernel;
        // The layers before the pool halve time three times and space five times, rounding up.
        let sizes = [(shape.frames, 8), (shape.height, 32), (shape.width, 32)];
        if sizes.iter().zip(kernel).any(|(&(size, stride), kernel)| (size + stride - 1) / stride < kernel) {
            let least = |axis: usize, stride: i64| (kernel[axis] - 1) * stride + 1;
            return Err(Error::shape(
                "video",
                &video.size(),
                format!(
                    "at least {} frames of {} × {} pixels for I3D",
                    least(0, 8),
                    least(1, 32),
                    least(2, 32)
                ),
            ));
        }
        Ok(tch::no_grad(|| {
            let mut x = video.to_device(self.device).to_kind(Kind::Float);
            for (name, layer) in &self.layers {
                x = match layer {
                    Layer::Unit(unit) => unit.apply(&x),
                    Layer::Pool(kernel, stride) => pool(&x, *kernel, *stride),
                    Layer::Mixed(mixed) => mixed.apply(&x),
                };
                visit(name, &x);
            }
            x.avg_pool3d(kernel, [1, 1, 1], [0, 0, 0], false, true, None)
        }))
    }

    /// Logits at each position of [`I3d::features`]: `[B, classes, T', H', W']`.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.logits.forward(features))
    }

    /// Video `[B, 3, T, H, W]` in [-1, 1] to its class scores before the softmax, the mean over time: `[B, classes]`. These
    /// are the features of FVD.
    ///
    /// # Errors
    /// As [`I3d::features`]; also more pixels than the average pool covers (published: above 224 × 224), where the
    /// references disagree. [`Preprocessing`](crate::fvd::Preprocessing) brings any video to 224 × 224.
    pub fn logits(&self, video: &Tensor) -> Result<Tensor> {
        let logits = self.classify(&self.features(video, |_, _| ())?)?;
        let size = logits.size();
        if size[3] != 1 || size[4] != 1 {
            let [_, height, width] = self.config.avg_pool_kernel;
            return Err(Error::shape(
                "video",
                &video.size(),
                format!("at most {} × {} pixels for I3D", height * 32, width * 32),
            ));
        }
        Ok(logits.mean_dim([2i64, 3, 4].as_slice(), false, Kind::Float))
    }
}
