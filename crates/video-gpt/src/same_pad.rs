//! Convolutions whose output is the input's size divided (or multiplied) by the stride.
//!
//! Where kernel − stride is odd the front gets the larger half of the padding, so that a kernel of 4 at stride 1 sees two
//! positions before and one behind.

use layers::init::torch_default;
use tch::{Tensor, nn};
use video_core::{Error, Result};

/// Zeros in front of and behind each axis.
fn paddings(kernel: [i64; 3], stride: [i64; 3]) -> [(i64, i64); 3] {
    std::array::from_fn(|axis| {
        let pad = kernel[axis] - stride[axis];
        let half = pad.div_euclid(2);
        (half + pad.rem_euclid(2), half)
    })
}

/// The padding as libtorch wants it: from the last axis to the first.
fn pad(x: &Tensor, paddings: [(i64, i64); 3]) -> Tensor {
    let [(t0, t1), (h0, h1), (w0, w1)] = paddings;
    x.constant_pad_nd([w0, w1, h0, h1, t0, t1])
}

/// What both convolutions are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamePadConfig {
    /// Kernel in time, height, width.
    pub kernel: [i64; 3],
    /// Stride in time, height, width.
    pub stride: [i64; 3],
    /// Whether there is a bias.
    pub bias: bool,
}

impl SamePadConfig {
    /// A kernel of one size on all axes, with stride 1 and a bias.
    pub fn cube(kernel: i64) -> Self {
        Self { kernel: [kernel; 3], stride: [1; 3], bias: true }
    }

    fn validate(&self, inputs: i64, outputs: i64) -> Result<()> {
        for (field, sizes) in [("kernel", self.kernel), ("stride", self.stride)] {
            if sizes.iter().any(|n| !(1..=64).contains(n)) {
                return Err(Error::config(field, sizes, "1 to 64 on each axis"));
            }
        }
        if inputs < 1 || outputs < 1 {
            return Err(Error::config("channels", (inputs, outputs), "at least 1 in and out"));
        }
        Ok(())
    }
}

fn check_input(x: &Tensor, channels: i64) -> Result<()> {
    let size = x.size();
    if size.len() != 5 || size[1] != channels || size.contains(&0) {
        return Err(Error::shape("input", &size, format!("[B, {channels}, T, H, W] with no empty axis")));
    }
    Ok(())
}

/// A 3D convolution. Variables: `weight` `[out, in, kT, kH, kW]`, `bias` `[out]`.
#[derive(Debug)]
pub struct SamePadConv3d {
    config: SamePadConfig,
    channels: i64,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl SamePadConv3d {
    /// With PyTorch's default initialisation.
    ///
    /// # Errors
    /// A size is out of range.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, config: SamePadConfig) -> Result<Self> {
        config.validate(inputs, outputs)?;
        let [t, h, w] = config.kernel;
        let init = torch_default(inputs * t * h * w);
        Ok(Self {
            config,
            channels: inputs,
            weight: path.var("weight", &[outputs, inputs, t, h, w], init),
            bias: config.bias.then(|| path.var("bias", &[outputs], init)),
        })
    }

    /// `[B, in, T, H, W]` to `[B, out, T/s, H/s, W/s]`; a size that the stride does not divide is rounded as by
    /// ⌊(n + padding − kernel)/stride⌋ + 1.
    ///
    /// # Errors
    /// Another number of axes or channels, or a clip that is smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.channels)?;
        let SamePadConfig { kernel, stride, .. } = self.config;
        let padding = paddings(kernel, stride);
        for (axis, (front, back)) in padding.iter().enumerate() {
            if x.size()[axis + 2] + front + back < kernel[axis] {
                return Err(Error::shape("input", &x.size(), format!("at least the kernel {kernel:?}")));
            }
        }
        // What is the same on both sides is left to the convolution, which needs no copy for it.
        let (x, inner) = if padding.iter().all(|(front, back)| front == back && *front >= 0) {
            (x.shallow_clone(), padding.map(|(front, _)| front))
        } else {
            (pad(x, padding), [0; 3])
        };
        Ok(x.conv3d(&self.weight, self.bias.as_ref(), stride, inner, [1; 3], 1))
    }
}

/// A transposed 3D convolution: its input is padded as [`SamePadConv3d`]'s would be, and kernel − 1 is cropped on both
/// sides of the result. Variables: `weight` `[in, out, kT, kH, kW]`, `bias` `[out]`.
#[derive(Debug)]
pub struct SamePadConvTranspose3d {
    config: SamePadConfig,
    channels: i64,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl SamePadConvTranspose3d {
    /// With PyTorch's default initialisation, whose fan-in is that of the output channels.
    ///
    /// # Errors
    /// A size is out of range.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, config: SamePadConfig) -> Result<Self> {
        config.validate(inputs, outputs)?;
        let [t, h, w] = config.kernel;
        let init = torch_default(outputs * t * h * w);
        Ok(Self {
            config,
            channels: inputs,
            weight: path.var("weight", &[inputs, outputs, t, h, w], init),
            bias: config.bias.then(|| path.var("bias", &[outputs], init)),
        })
    }

    /// `[in, out, kT, kH, kW]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[B, in, T, H, W]` to `[B, out, T·s, H·s, W·s]`, where the kernel is twice the stride or the stride 1.
    ///
    /// # Errors
    /// Another number of axes or channels, or nothing is left after the crop.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.channels)?;
        let SamePadConfig { kernel, stride, .. } = self.config;
        let padding = paddings(kernel, stride);
        for (axis, (front, back)) in padding.iter().enumerate() {
            let padded = x.size()[axis + 2] + front + back;
            if padded < 1 || (padded - 1) * stride[axis] + 1 < kernel[axis] {
                return Err(Error::shape("input", &x.size(), "more positions than the crop takes"));
            }
        }
        let crop = kernel.map(|k| k - 1);
        let x = pad(x, padding);
        Ok(x.conv_transpose3d(&self.weight, self.bias.as_ref(), stride, crop, [0; 3], 1, [1; 3]))
    }
}
