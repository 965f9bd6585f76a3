//! φ: the convolutions that mend what enlarging a coarse map loses (arXiv 2404.02905, section 3.3, φ_k).

use layers::{fold_time, init::torch_default, unfold_time};
use tch::{Tensor, nn};

/// Below this the ratio counts as none, and φ is the identity.
pub(crate) const NO_RATIO: f64 = 1e-6;

/// φ(h) = (1 − r) h + r conv(h), a 3 × 3 convolution of each frame. Variables: `weight` `[z, z, 3, 3]`, `bias` `[z]`; none
/// where r is 0.
#[derive(Debug)]
pub struct Phi {
    ratio: f64,
    conv: Option<(Tensor, Tensor)>,
}

impl Phi {
    /// Of `channels` and r = |`quant_resi`|.
    pub fn new(path: &nn::Path, channels: i64, quant_resi: f64) -> Self {
        let ratio = quant_resi.abs();
        let init = torch_default(channels * 9);
        let conv =
            || (path.var("weight", &[channels, channels, 3, 3], init), path.var("bias", &[channels], init));
        Self { ratio, conv: (ratio > NO_RATIO).then(conv) }
    }

    /// `[B, z, T, H, W]` to the same shape.
    pub fn forward(&self, h: &Tensor) -> Tensor {
        let Some((weight, bias)) = &self.conv else { return h.shallow_clone() };
        let mended = fold_time(h).conv2d(weight, Some(bias), [1, 1], [1, 1], [1, 1], 1);
        h * (1.0 - self.ratio) + unfold_time(&mended, h.size()[0]) * self.ratio
    }

    fn frozen(&self) -> Self {
        let conv = self.conv.as_ref().map(|(weight, bias)| (weight.detach(), bias.detach()));
        Self { ratio: self.ratio, conv }
    }
}

/// How many φ there are and which scale uses which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhiSharing {
    /// One for every scale of the config.
    PerScale(usize),
    /// One.
    Single,
    /// So many, spread over the scales.
    Partial(usize),
}

impl PhiSharing {
    fn count(self) -> usize {
        match self {
            Self::Single => 1,
            Self::PerScale(count) | Self::Partial(count) => count,
        }
    }

    /// The φ of scale k of S: the nearest of evenly spread ticks to k / (S − 1). Some scales lie halfway between two ticks,
    /// where the rounding of numpy's float64 decides; this rounds in the same places.
    pub fn index(self, scale: usize, scales: usize) -> usize {
        let count = self.count();
        if count == 1 {
            return 0;
        }
        let position = if scales > 1 { scale as f64 / (scales - 1) as f64 } else { 0.0 };
        let margin = if count == 4 { 1.0 / 3.0 / count as f64 } else { 1.0 / 2.0 / count as f64 };
        let (start, stop) = (margin, 1.0 - margin);
        let step = (stop - start) / (count - 1) as f64;
        let tick = |j: usize| if j + 1 == count { stop } else { j as f64 * step + start };
        let distances = (0..count).map(|j| (tick(j) - position).abs());
        let first_least =
            |best: (usize, f64), (j, distance)| if distance < best.1 { (j, distance) } else { best };
        distances.enumerate().fold((0, f64::INFINITY), first_least).0
    }
}

/// All φ of a quantizer.
#[derive(Debug)]
pub(crate) struct PhiTable {
    sharing: PhiSharing,
    phis: Vec<Phi>,
}

impl PhiTable {
    /// Variables: `qresi` of a single φ, `qresi_ls.{j}` of partly shared ones, `{j}` of one a scale.
    pub fn new(path: &nn::Path, channels: i64, quant_resi: f64, sharing: PhiSharing) -> Self {
        let place = |j: usize| match sharing {
            PhiSharing::Single => path / "qresi",
            PhiSharing::Partial(_) => path / "qresi_ls" / j,
            PhiSharing::PerScale(_) => path / j,
        };
        let phis = (0..sharing.count()).map(|j| Phi::new(&place(j), channels, quant_resi)).collect();
        Self { sharing, phis }
    }

    pub fn of(&self, scale: usize, scales: usize) -> &Phi {
        &self.phis[self.sharing.index(scale, scales)]
    }

    pub fn frozen(&self) -> Self {
        Self { sharing: self.sharing, phis: self.phis.iter().map(Phi::frozen).collect() }
    }
}
