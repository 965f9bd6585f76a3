//! Convolution of sequences that never looks ahead.

use layers::init::torch_default;
use tch::{Tensor, nn};
use video_core::{Error, Result};

use crate::conv::positive;
use crate::time::{PadMode, TimeContext, TimePadding, TimeWindow};

/// The shape of a [`CausalConv1d`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CausalConv1dConfig {
    /// Kernel size.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Dilation.
    pub dilation: i64,
    /// How many steps stand in front of the sequence.
    pub time_padding: TimePadding,
    /// Whether there is a bias.
    pub bias: bool,
}

impl CausalConv1dConfig {
    /// A kernel with stride 1, zero padding and a bias.
    pub fn new(kernel: i64) -> Self {
        Self { kernel, stride: 1, dilation: 1, time_padding: TimePadding::Full, bias: true }
    }

    fn window(&self) -> TimeWindow {
        TimeWindow {
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            padding: self.time_padding,
        }
    }
}

/// A convolution over `[B, C, T]` (features over time, audio) whose output at one time sees input of that time and before
/// only. Zeros stand in front of the sequence.
///
/// Variables: `weight` `[out, in, k]`, `bias` `[out]`, with PyTorch's default initialisation.
#[derive(Debug)]
pub struct CausalConv1d {
    config: CausalConv1dConfig,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CausalConv1d {
    /// From `inputs` to `outputs` channels.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, config: CausalConv1dConfig) -> Result<Self> {
        positive("channels", &[inputs, outputs])?;
        positive("kernel", &[config.kernel])?;
        positive("stride", &[config.stride])?;
        positive("dilation", &[config.dilation])?;
        let init = torch_default(inputs * config.kernel);
        Ok(Self {
            config,
            weight: path.var("weight", &[outputs, inputs, config.kernel], init),
            bias: config.bias.then(|| path.var("bias", &[outputs], init)),
        })
    }

    /// The whole sequence `[B, in, T]` to `[B, out, T']`: T' = ⌈T / stride⌉ with [`TimePadding::Full`].
    ///
    /// # Errors
    /// Another number of axes or channels, or a sequence too short for the stride.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        Ok(self.convolve(&self.config.window().extend(x, PadMode::Constant, None)))
    }

    /// The next steps of a sequence. The outputs of all chunks, joined, are those of the whole sequence.
    ///
    /// # Errors
    /// As [`CausalConv1d::forward`]; or the chunk does not end where a window ends, see
    /// [`CausalConv3d::forward_chunk`](crate::CausalConv3d::forward_chunk).
    pub fn forward_chunk(&self, x: &Tensor, context: &mut TimeContext) -> Result<Tensor> {
        self.check(x)?;
        self.config.window().check_chunk(x, context)?;
        Ok(self.convolve(&self.config.window().extend(x, PadMode::Constant, Some(context))))
    }

    fn convolve(&self, padded: &Tensor) -> Tensor {
        padded.conv1d(&self.weight, self.bias.as_ref(), self.config.stride, 0, self.config.dilation, 1)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let size = x.size();
        let inputs = self.weight.size()[1];
        let window = self.config.window();
        let needed = match window.padding {
            TimePadding::Full => 1,
            TimePadding::LessStride => self.config.stride,
        };
        if size.len() != 3 || size[0] < 1 || size[1] != inputs || size[2] < needed {
            return Err(Error::shape("CausalConv1d input", &size, format!("[B, {inputs}, T ≥ {needed}]")));
        }
        Ok(())
    }
}
