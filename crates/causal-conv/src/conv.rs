//! Convolution of video that never looks ahead in time.

use layers::FrameGroupNorm;
use layers::init::torch_default;
use tch::{Device, Kind, Tensor, nn};
use video_core::{Error, Result};

use crate::time::{ClipStart, PadMode, Past, TimeContext, TimePadding, TimeWindow};

/// The shape of a [`CausalConv3d`]. Axes are time, height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CausalConv3dConfig {
    /// Kernel size; odd in height and width.
    pub kernel: [i64; 3],
    /// Stride.
    pub stride: [i64; 3],
    /// Dilation.
    pub dilation: [i64; 3],
    /// Pixels of padding on both sides in height and in width.
    pub space_padding: [i64; 2],
    /// What stands in the padding in space.
    pub pad_mode: PadMode,
    /// How many frames stand in front.
    pub time_padding: TimePadding,
    /// What these frames are.
    pub clip_start: ClipStart,
    /// Whether there is a bias.
    pub bias: bool,
}

impl CausalConv3dConfig {
    /// A kernel with stride 1, zeros as padding (k/2 in space) and a bias.
    pub fn new(kernel: [i64; 3]) -> Self {
        Self {
            kernel,
            stride: [1; 3],
            dilation: [1; 3],
            space_padding: [kernel[1] / 2, kernel[2] / 2],
            pad_mode: PadMode::Constant,
            time_padding: TimePadding::Full,
            clip_start: ClipStart::Zeros,
            bias: true,
        }
    }

    /// The same with another stride.
    #[must_use]
    pub fn with_stride(self, stride: [i64; 3]) -> Self {
        Self { stride, ..self }
    }

    /// The same without a bias.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    fn validate(&self, inputs: i64, outputs: i64) -> Result<()> {
        positive("channels", &[inputs, outputs])?;
        positive("kernel", &self.kernel)?;
        positive("stride", &self.stride)?;
        positive("dilation", &self.dilation)?;
        if self.kernel[1..].iter().any(|k| k % 2 == 0) {
            return Err(Error::config("kernel", self.kernel, "odd sizes in height and width"));
        }
        if self.space_padding.iter().any(|&pad| pad < 0) {
            return Err(Error::config("space_padding", self.space_padding, "numbers of at least 0"));
        }
        Ok(())
    }

    fn window(&self) -> TimeWindow {
        TimeWindow {
            kernel: self.kernel[0],
            stride: self.stride[0],
            dilation: self.dilation[0],
            padding: self.time_padding,
        }
    }

    /// What stands in the padding of time and of space, for a clip of so many frames.
    fn pad_modes(&self, frames: i64) -> [PadMode; 2] {
        match self.clip_start {
            ClipStart::Zeros => [PadMode::Constant, self.pad_mode],
            ClipStart::FirstFrame => [PadMode::Replicate, self.pad_mode],
            ClipStart::AsSpace if self.window().start_padding() >= frames => [PadMode::Constant; 2],
            ClipStart::AsSpace => [self.pad_mode; 2],
        }
    }
}

/// Refuses a list with a number below 1.
pub(crate) fn positive(field: &str, values: &[i64]) -> Result<()> {
    if values.iter().any(|&value| value < 1) {
        return Err(Error::config(field, values, "numbers of at least 1"));
    }
    Ok(())
}

/// A convolution over `[B, C, T, H, W]` whose output at one time sees input of that time and before only: all of the time
/// padding stands in front.
///
/// Channels-last input gives channels-last output, which is how libtorch's CPU kernels run fastest: only time is padded
/// by a copy, space by the convolution itself (but for the modes other than [`PadMode::Constant`]).
///
/// Variables: `weight` `[out, in, kt, kh, kw]`, `bias` `[out]`, with PyTorch's default initialisation.
#[derive(Debug)]
pub struct CausalConv3d {
    config: CausalConv3dConfig,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CausalConv3d {
    /// From `inputs` to `outputs` channels.
    ///
    /// # Errors
    /// A number below 1, or an even kernel in height or width.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, config: CausalConv3dConfig) -> Result<Self> {
        config.validate(inputs, outputs)?;
        let [kt, kh, kw] = config.kernel;
        let init = torch_default(inputs * kt * kh * kw);
        let weight = channels_last_variable(path, &[outputs, inputs, kt, kh, kw], init);
        Ok(Self { config, weight, bias: config.bias.then(|| path.var("bias", &[outputs], init)) })
    }

    /// The whole clip `[B, in, T, H, W]` to `[B, out, T', H', W']`: T' = ⌈T / st⌉ with [`TimePadding::Full`].
    ///
    /// # Errors
    /// Another number of axes or channels, or an input too small for the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        Ok(self.run(x, &mut Past::WholeClip))
    }

    /// The next frames of a clip. The outputs of all chunks, joined, are those of the whole clip.
    ///
    /// # Errors
    /// As [`CausalConv3d::forward`]; or the chunk does not end where a window ends: the first must have 1 + k·st frames
    /// (k·st with [`TimePadding::LessStride`]) and later ones k·st; or the layer is one of [`ClipStart::AsSpace`].
    pub fn forward_chunk(&self, x: &Tensor, context: &mut TimeContext) -> Result<Tensor> {
        self.check(x)?;
        if self.config.clip_start == ClipStart::AsSpace && self.config.pad_mode != PadMode::Constant {
            let because = "its start depends on the clip's length; use ClipStart::Zeros or FirstFrame";
            return Err(Error::unsupported("CausalConv3d", "stream with ClipStart::AsSpace", because));
        }
        self.config.window().check_chunk(x, context)?;
        Ok(self.apply(x, Some(context)))
    }

    /// As [`CausalConv3d::forward`], inside a network that has checked its input.
    pub(crate) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        self.apply(x, past.context())
    }

    /// Of SiLU(norm(x)), the way in which the blocks of MAGVIT-v2 use a convolution.
    pub(crate) fn run_normed(&self, norm: &FrameGroupNorm, x: &Tensor, past: &mut Past) -> Tensor {
        let normed = norm.forward(x);
        if normed.requires_grad() {
            return self.run(&normed.silu(), past);
        }
        let [in_time, in_space] = self.config.pad_modes(x.size()[2]);
        let context = past.context();
        let kernel = self.kernel(x.size()[2], in_time, context.as_deref());
        self.convolve(&self.config.window().extend_silu(normed, in_time, context), &kernel, in_space)
    }

    /// Whether its outputs carry gradients, whatever its input.
    pub(crate) fn learns(&self) -> bool {
        records_gradients(&self.weight)
    }

    /// The variable `weight`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    fn apply(&self, x: &Tensor, context: Option<&mut TimeContext>) -> Tensor {
        let [in_time, in_space] = self.config.pad_modes(x.size()[2]);
        if context.is_none()
            && let Some(y) = self.whole_clip(x, [in_time, in_space])
        {
            return y;
        }
        let kernel = self.kernel(x.size()[2], in_time, context.as_deref());
        self.convolve(&self.config.window().extend(x, in_time, context), &kernel, in_space)
    }

    /// Of a whole clip, without a copy of it behind its padding, with gradients or without; none where that is not faster.
    fn whole_clip(&self, x: &Tensor, [in_time, in_space]: [PadMode; 2]) -> Option<Tensor> {
        let CausalConv3dConfig { stride, dilation, time_padding, space_padding, .. } = self.config;
        let applies = (stride, dilation) == ([1; 3], [1; 3])
            && time_padding == TimePadding::Full
            && in_time != PadMode::Reflect
            && in_space == PadMode::Constant;
        if !applies {
            return None;
        }
        let repeat_first = in_time == PadMode::Replicate;
        torch_ext::winograd_causal_conv3d(x, &self.weight, self.bias.as_ref(), space_padding, repeat_first)
    }

    /// What a chunk is convolved with. Of the window of a clip's first frame alone all other frames are zeros or copies of it,
    /// so that a kernel of one frame does: a third of the work for an image, or for the first piece of a clip.
    fn kernel(&self, frames: i64, in_time: PadMode, context: Option<&TimeContext>) -> Tensor {
        let alone = frames == 1
            && self.config.time_padding == TimePadding::Full
            && context.is_none_or(TimeContext::starts_clip);
        match in_time {
            PadMode::Constant if alone => self.weight.narrow(2, self.config.kernel[0] - 1, 1),
            PadMode::Replicate if alone => self.weight.sum_dim_intlist(2, true, self.weight.kind()),
            _ => self.weight.shallow_clone(),
        }
    }

    /// Of the input behind the frames before it, of which a kernel of one frame sees the last.
    fn convolve(&self, extended: &Tensor, kernel: &Tensor, pad_mode: PadMode) -> Tensor {
        let CausalConv3dConfig { stride, dilation, space_padding: [h, w], .. } = self.config;
        let run =
            |x: &Tensor, [h, w]: [i64; 2]| conv3d(x, kernel, self.bias.as_ref(), stride, [0, h, w], dilation);
        let unseen = if kernel.size()[2] < self.config.kernel[0] { extended.size()[2] - 1 } else { 0 };
        let extended = &extended.narrow(2, unseen, extended.size()[2] - unseen);
        if pad_mode == PadMode::Constant || (h, w) == (0, 0) {
            return run(extended, [h, w]);
        }
        let padded = extended.pad([w, w, h, h, 0, 0], pad_mode.name(), None);
        run(&torch_ext::channels_last_3d(&padded), [0, 0])
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let size = x.size();
        let inputs = self.weight.size()[1];
        if size.len() != 5 || size[1] != inputs || size.contains(&0) {
            return Err(Error::shape(
                "CausalConv3d input",
                &size,
                format!("[B, {inputs}, T, H, W] with no empty axis"),
            ));
        }
        let space = self.config.space_padding;
        if self.config.pad_mode == PadMode::Reflect && (size[3] <= space[0] || size[4] <= space[1]) {
            return Err(Error::shape(
                "CausalConv3d input",
                &size,
                format!("height > {} and width > {}, which the mirror needs", space[0], space[1]),
            ));
        }
        let needed = self.config.dilation[0] * (self.config.kernel[0] - 1) + 1;
        if size[2] + self.config.window().start_padding() < needed {
            return Err(Error::shape(
                "CausalConv3d input",
                &size,
                format!("at least {} frames", self.config.stride[0]),
            ));
        }
        Ok(())
    }
}

/// Whether what comes of a variable carries gradients: it takes them, and they are not switched off.
fn records_gradients(variable: &Tensor) -> bool {
    // What is computed from it asks for gradients where these are recorded, and only there (a mere view asks always).
    variable.as_strided([1], [1], None).neg().requires_grad()
}

/// `Tensor::conv3d`, but without gradients by faster kernels on CPU: Winograd's where they apply; else always oneDNN's where
/// libtorch has them, instead of its own, up to 20 times slower ones for a batch of one clip of few channels, frames or rows.
fn conv3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: [i64; 3],
    padding: [i64; 3],
    dilation: [i64; 3],
) -> Tensor {
    if !x.requires_grad()
        && !records_gradients(weight)
        && x.device() == Device::Cpu
        && x.kind() == Kind::Float
    {
        if stride == [1; 3]
            && dilation == [1; 3]
            && padding[0] == 0
            && let Some(y) = torch_ext::winograd_conv3d(x, weight, bias, [padding[1], padding[2]])
        {
            return y;
        }
        // Refused where libtorch was built without oneDNN, and by it where it does not know the machine or the kind.
        if let Ok(y) = x.f_mkldnn_convolution(weight, bias, padding, stride, dilation, 1) {
            return y;
        }
    }
    x.conv3d(weight, bias, stride, padding, dilation, 1)
}

/// A variable of a convolution over video, whose numbers lie channels-last, like those of the video that it meets: the
/// kernels need no copy of it then. Its shape is PyTorch's.
pub(crate) fn channels_last_variable(path: &nn::Path, size: &[i64], init: nn::Init) -> Tensor {
    let mut weight = path.var("weight", size, init);
    tch::no_grad(|| weight.set_data(&torch_ext::channels_last_3d(&weight)));
    weight
}
