//! Blur pooling: a low-pass filter before a stride, so that the stride does not alias (Zhang 2019, arXiv 1904.11486).

use tch::Tensor;
use video_core::{Error, Result};

use crate::time::PadMode;

/// Largest filter: its binomial coefficients still fit a double exactly.
const MAX_SIZE: i64 = 48;

/// A binomial filter along time, height and width, then a stride on all three. Not causal.
///
/// The filter is the outer product of the binomial coefficients (1 2 1 for size 3, 1 3 3 1 for 4, ...), normalised to a
/// sum of 1, of each channel for itself. ⌊(size−1)/2⌋ positions of border stand before the input and ⌈(size−1)/2⌉ behind
/// it, so that n positions become ⌈n/stride⌉.
#[derive(Clone, Debug)]
pub struct BlurPool3d {
    taps: Vec<f64>,
    stride: i64,
    border: PadMode,
}

impl BlurPool3d {
    /// A filter of any size; [`PadMode`] says what is beyond the border. [`PadMode::Reflect`] mirrors as often as the
    /// filter needs it; of a single position there is nothing to mirror, and it is repeated.
    ///
    /// # Errors
    /// A size or a stride out of range.
    pub fn new(size: i64, stride: i64, border: PadMode) -> Result<Self> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(Error::config("blur_size", size, format!("1 to {MAX_SIZE}")));
        }
        if stride < 1 {
            return Err(Error::config("stride", stride, "at least 1"));
        }
        let mut taps = vec![1.0];
        for n in 1..size {
            taps.push(taps[n as usize - 1] * (size - n) as f64 / n as f64);
        }
        let sum: f64 = taps.iter().sum();
        taps.iter_mut().for_each(|tap| *tap /= sum);
        Ok(Self { taps, stride, border })
    }

    /// `[B, C, T, H, W]` to `[B, C, ⌈T/stride⌉, ⌈H/stride⌉, ⌈W/stride⌉]`. Channels-last stays channels-last.
    ///
    /// # Errors
    /// Not five axes, or an empty one.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim() != 5 || x.size().contains(&0) {
            return Err(Error::shape("BlurPool3d input", &x.size(), "[B, C, T, H, W] with no empty axis"));
        }
        Ok(self.run(x))
    }

    /// [`BlurPool3d::forward`] of a proven shape.
    ///
    /// Along one axis, filter, border and stride together are one matrix with few rows, so the whole is three products
    /// of matrices that take the numbers in the order in which channels-last video has them.
    pub(crate) fn run(&self, x: &Tensor) -> Tensor {
        let (b, c, t, h, w) = x.size5().expect("a video has five axes");
        let [to, ho, wo] = [t, h, w].map(|n| self.pooled(n));
        let x = x.permute([0, 2, 3, 4, 1]);
        let x = self.matrix(w, &x).matmul(&x.reshape([b * t * h, w, c]));
        let x = self.matrix(h, &x).matmul(&x.reshape([b * t, h, wo * c]));
        let x = self.matrix(t, &x).matmul(&x.reshape([b, t, ho * wo * c]));
        x.reshape([b, to, ho, wo, c]).permute([0, 4, 1, 2, 3])
    }

    /// Positions left of so many.
    pub(crate) fn pooled(&self, positions: i64) -> i64 {
        (positions - 1) / self.stride + 1
    }

    /// The map of one axis, `[⌈n/stride⌉, n]`, of the kind and on the device of `like`.
    fn matrix(&self, n: i64, like: &Tensor) -> Tensor {
        let rows = self.pooled(n);
        let before = (self.taps.len() as i64 - 1) / 2;
        let mut values = vec![0.0; (rows * n) as usize];
        for row in 0..rows {
            for (k, tap) in self.taps.iter().enumerate() {
                if let Some(position) = self.source(row * self.stride + k as i64 - before, n) {
                    values[(row * n + position) as usize] += tap;
                }
            }
        }
        Tensor::from_slice(&values).view([rows, n]).to_kind(like.kind()).to_device(like.device())
    }

    /// Which of `n` positions stands at one that may lie beyond the border; `None`: a zero.
    fn source(&self, position: i64, n: i64) -> Option<i64> {
        match self.border {
            _ if (0..n).contains(&position) => Some(position),
            PadMode::Constant => None,
            PadMode::Replicate => Some(position.clamp(0, n - 1)),
            PadMode::Reflect if n == 1 => Some(0),
            PadMode::Reflect => {
                let period = 2 * (n - 1);
                let at = position.rem_euclid(period);
                Some(at.min(period - at))
            }
        }
    }
}
