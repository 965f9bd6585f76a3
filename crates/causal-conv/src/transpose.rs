//! Transposed convolutions that never look ahead: each input step writes into its own output steps and later ones.

use layers::init::torch_default;
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::conv::{channels_last_variable, positive};

/// A transposed convolution over `[B, C, T, H, W]` that multiplies the number of frames by its time stride. What it
/// writes past T·stride is dropped, so that output frame t sees input frames ≤ t / stride.
///
/// Variables: `weight` `[in, out, kt, kh, kw]`, `bias` `[out]`, with PyTorch's default initialisation.
#[derive(Debug)]
pub struct CausalConvTranspose3d {
    weight: Tensor,
    bias: Tensor,
    time_stride: i64,
}

impl CausalConvTranspose3d {
    /// From `inputs` to `outputs` channels; `kernel` is time, height, width.
    ///
    /// # Errors
    /// A number below 1, an even kernel in height or width, or a time kernel shorter than the time stride (some output
    /// frames would see nothing).
    pub fn new(
        path: &nn::Path,
        inputs: i64,
        outputs: i64,
        kernel: [i64; 3],
        time_stride: i64,
    ) -> Result<Self> {
        positive("channels", &[inputs, outputs])?;
        positive("kernel", &kernel)?;
        check_stride(kernel[0], time_stride)?;
        let [kt, kh, kw] = kernel;
        if kh % 2 == 0 || kw % 2 == 0 {
            return Err(Error::config("kernel", kernel, "odd sizes in height and width"));
        }
        let init = torch_default(outputs * kt * kh * kw);
        Ok(Self {
            weight: channels_last_variable(path, &[inputs, outputs, kt, kh, kw], init),
            bias: path.var("bias", &[outputs], init),
            time_stride,
        })
    }

    /// `[B, in, T, H, W]` to `[B, out, T·stride, H, W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (size, weight) = (x.size(), self.weight.size());
        if size.len() != 5 || size[1] != weight[0] || size.contains(&0) {
            let expected = format!("[B, {}, T, H, W] with no empty axis", weight[0]);
            return Err(Error::shape("CausalConvTranspose3d input", &size, expected));
        }
        let out = x.conv_transpose3d(
            &self.weight,
            Some(&self.bias),
            [self.time_stride, 1, 1],
            [0, weight[3] / 2, weight[4] / 2],
            0,
            1,
            1,
        );
        Ok(out.narrow(2, 0, size[2] * self.time_stride))
    }
}

/// A transposed convolution over `[B, C, T]` that multiplies the number of steps by its stride; see
/// [`CausalConvTranspose3d`].
///
/// Variables: `weight` `[in, out, k]`, `bias` `[out]`, with PyTorch's default initialisation.
#[derive(Debug)]
pub struct CausalConvTranspose1d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

impl CausalConvTranspose1d {
    /// From `inputs` to `outputs` channels.
    ///
    /// # Errors
    /// A number below 1, or a kernel shorter than the stride.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Result<Self> {
        positive("channels", &[inputs, outputs])?;
        positive("kernel", &[kernel])?;
        check_stride(kernel, stride)?;
        let init = torch_default(outputs * kernel);
        Ok(Self {
            weight: path.var("weight", &[inputs, outputs, kernel], init),
            bias: path.var("bias", &[outputs], init),
            stride,
        })
    }

    /// `[B, in, T]` to `[B, out, T·stride]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (size, weight) = (x.size(), self.weight.size());
        if size.len() != 3 || size[1] != weight[0] || size.contains(&0) {
            let expected = format!("[B, {}, T] with no empty axis", weight[0]);
            return Err(Error::shape("CausalConvTranspose1d input", &size, expected));
        }
        let out = x.conv_transpose1d(&self.weight, Some(&self.bias), self.stride, 0, 0, 1, 1);
        Ok(out.narrow(2, 0, size[2] * self.stride))
    }
}

fn check_stride(kernel: i64, stride: i64) -> Result<()> {
    if stride < 1 || kernel < stride {
        return Err(Error::config("stride", stride, format!("1 to the kernel's {kernel} in time")));
    }
    Ok(())
}
