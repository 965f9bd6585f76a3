//! Halving and doubling time and space.

use tch::{Tensor, nn};
use video_core::{Error, Result};

use super::blocks::conv_config;
use crate::blocks::{check_channels, repeat, trim};
use crate::conv::{CausalConv3d, CausalConv3dConfig};
use crate::time::{PadMode, Past, TimePadding, TimeWindow};

/// A convolution that halves: 1 + 2·k frames become 1 + k, the copies of the first frame in front included. Space is padded
/// before it.
fn halving(kernel: [i64; 3], stride: [i64; 3]) -> CausalConv3dConfig {
    CausalConv3dConfig {
        space_padding: [0; 2],
        time_padding: TimePadding::Full,
        ..conv_config(kernel).with_stride(stride)
    }
}

/// Zeros on the right and at the bottom.
fn pad_right_bottom(x: &Tensor) -> Tensor {
    x.constant_pad_nd([0, 1, 0, 1])
}

/// The mean of each two frames, the first frame alone in the first mean.
pub(super) fn average_time(x: &Tensor, past: &mut Past) -> Tensor {
    let window = TimeWindow { kernel: 2, stride: 2, dilation: 1, padding: TimePadding::Full };
    pool(&window.extend(x, PadMode::Replicate, past.context()), [2, 1, 1])
}

fn pool(x: &Tensor, kernel: [i64; 3]) -> Tensor {
    x.avg_pool3d(kernel, kernel, [0; 3], false, true, None)
}

/// Each frame twice, but the clip's first once: 1 + k frames become 1 + 2·k.
pub(super) fn repeat_time(x: &Tensor, past: &Past) -> Tensor {
    trim(&repeat(x, [2, 1, 1]), 2, past.starts_clip())
}

/// Halves time, height and width at once: a 3×3×3 convolution with stride 2 of the video with zeros on the right and at the
/// bottom.
///
/// Variables: those of the convolution, under `conv`.
#[derive(Debug)]
pub struct Downsample {
    conv: CausalConv3d,
    channels: i64,
}

impl Downsample {
    /// For `channels` of input.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64) -> Result<Self> {
        let conv = CausalConv3d::new(&(path / "conv"), channels, channels, halving([3; 3], [2; 3]))?;
        Ok(Self { conv, channels })
    }

    /// `[B, C, 1 + 2·k, H, W]` to `[B, C, 1 + k, ⌊H/2⌋, ⌊W/2⌋]`.
    ///
    /// # Errors
    /// Another number of axes or channels, or a height or width of 1.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("Downsample input", x, self.channels)?;
        let size = x.size();
        if size[3] < 2 || size[4] < 2 {
            return Err(Error::shape("Downsample input", &size, "a height and width of at least 2"));
        }
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(super) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        self.conv.run(&pad_right_bottom(x), past)
    }
}

/// Doubles time, height and width: neighbours repeated, a 3×3×3 convolution, then the clip's first frame dropped.
///
/// Variables: those of the convolution, under `conv`.
#[derive(Debug)]
pub struct Upsample {
    conv: CausalConv3d,
    channels: i64,
}

impl Upsample {
    /// For `channels` of input.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64) -> Result<Self> {
        let conv = CausalConv3d::new(&(path / "conv"), channels, channels, conv_config([3; 3]))?;
        Ok(Self { conv, channels })
    }

    /// `[B, C, 1 + k, H, W]` to `[B, C, 1 + 2·k, 2·H, 2·W]`.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("Upsample input", x, self.channels)?;
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(super) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let starts_clip = past.starts_clip();
        trim(&self.conv.run(&repeat(x, [2; 3]), past), 2, starts_clip)
    }
}

/// Halves space, then time, or one of them: each time the sum of a convolution with stride 2 and an average pool; a 1×1×1
/// convolution after them. It does nothing where neither is halved, but has its weights all the same.
///
/// Variables: `conv1` (1×3×3), `conv2` (3×1×1), `conv3` (1×1×1).
#[derive(Debug)]
pub struct HybridDownsample {
    convs: [CausalConv3d; 3],
    time: bool,
    space: bool,
    channels: i64,
}

impl HybridDownsample {
    /// For `channels` of input.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64, time: bool, space: bool) -> Result<Self> {
        let conv = |name: &str, config| CausalConv3d::new(&(path / name), channels, channels, config);
        let convs = [
            conv("conv1", halving([1, 3, 3], [1, 2, 2]))?,
            conv("conv2", halving([3, 1, 1], [2, 1, 1]))?,
            conv("conv3", conv_config([1; 3]))?,
        ];
        Ok(Self { convs, time, space, channels })
    }

    /// `[B, C, T, H, W]` to `[B, C, 1 + (T−1)/2, H/2, W/2]` where both are halved.
    ///
    /// # Errors
    /// Another number of axes or channels, or an odd height or width where space is halved.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("HybridDownsample input", x, self.channels)?;
        let size = x.size();
        if self.space && (size[3] % 2 != 0 || size[4] % 2 != 0) {
            // The average pool would have fewer columns than the convolution.
            return Err(Error::shape("HybridDownsample input", &size, "an even height and width"));
        }
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(super) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let mut x = x.shallow_clone();
        if self.space {
            let padded = pad_right_bottom(&x);
            x = self.convs[0].run(&padded, past) + pool(&padded, [1, 2, 2]);
        }
        if self.time {
            x = self.convs[1].run(&x, past) + average_time(&x, past);
        }
        if self.space || self.time { self.convs[2].run(&x, past) } else { x }
    }
}

/// Doubles time, then space, or one of them: each time neighbours repeated and a convolution added to them; a 1×1×1
/// convolution after them. It does nothing where neither is doubled, but has its weights all the same.
///
/// Variables: `conv1` (3×1×1), `conv2` (1×3×3), `conv3` (1×1×1).
#[derive(Debug)]
pub struct HybridUpsample {
    convs: [CausalConv3d; 3],
    time: bool,
    space: bool,
    channels: i64,
}

impl HybridUpsample {
    /// For `channels` of input.
    ///
    /// # Errors
    /// A number below 1.
    pub fn new(path: &nn::Path, channels: i64, time: bool, space: bool) -> Result<Self> {
        let conv =
            |name: &str, kernel| CausalConv3d::new(&(path / name), channels, channels, conv_config(kernel));
        let convs = [conv("conv1", [3, 1, 1])?, conv("conv2", [1, 3, 3])?, conv("conv3", [1; 3])?];
        Ok(Self { convs, time, space, channels })
    }

    /// `[B, C, T, H, W]` to `[B, C, 1 + 2·(T−1), 2·H, 2·W]` where both are doubled.
    ///
    /// # Errors
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels("HybridUpsample input", x, self.channels)?;
        Ok(self.run(x, &mut Past::WholeClip))
    }

    pub(super) fn run(&self, x: &Tensor, past: &mut Past) -> Tensor {
        let mut x = x.shallow_clone();
        if self.time {
            x = repeat_time(&x, past);
            x = self.convs[0].run(&x, past) + x;
        }
        if self.space {
            x = repeat(&x, [1, 2, 2]);
            x = self.convs[1].run(&x, past) + x;
        }
        if self.space || self.time { self.convs[2].run(&x, past) } else { x }
    }
}
