//! Group norm with the statistics of one frame.

use tch::{Tensor, nn};
use video_core::{Error, Result};

/// Group norm of `[B, C, T, H, W]` whose mean and variance are those of one frame: time is folded into the batch, so no
/// frame knows of another and a causal network stays causal.
///
/// Variables: `weight` `[C]` and `bias` `[C]`, or none ([`FrameGroupNorm::without_affine`]).
#[derive(Debug)]
pub struct FrameGroupNorm {
    groups: i64,
    eps: f64,
    affine: Option<(Tensor, Tensor)>,
}

impl FrameGroupNorm {
    /// With a learnt scale (ones at first) and shift (zeros).
    ///
    /// # Errors
    /// `groups` does not divide `channels`.
    pub fn new(path: &nn::Path, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        let affine = Some((path.ones("weight", &[channels]), path.zeros("bias", &[channels])));
        Ok(Self { affine, ..Self::without_affine(groups, channels, eps)? })
    }

    /// Normalisation alone.
    ///
    /// # Errors
    /// `groups` does not divide `channels`.
    pub fn without_affine(groups: i64, channels: i64, eps: f64) -> Result<Self> {
        if groups < 1 || channels % groups != 0 {
            return Err(Error::config(
                "num_groups",
                groups,
                format!("a divisor of the layer's width {channels}"),
            ));
        }
        Ok(Self { groups, eps, affine: None })
    }

    /// `[B, C, T, H, W]` to the same shape; channels-last stays channels-last.
    ///
    /// # Panics
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = match &self.affine {
            Some((weight, bias)) => (Some(weight), Some(bias)),
            None => (None, None),
        };
        let normed = fold_time(x).group_norm(self.groups, weight, bias, self.eps, true);
        unfold_time(&normed, x.size()[0])
    }
}

/// `[B, C, T, H, W]` as `[B·T, C, H, W]`: a view in channels-last order where the video lies in channels-last order.
pub fn fold_time(x: &Tensor) -> Tensor {
    if x.size()[2] == 1 {
        // The general form would give a single frame strides by which kernels do not know it for channels-last.
        return x.squeeze_dim(2);
    }
    x.transpose(1, 2).flatten(0, 1)
}

/// The inverse of [`fold_time`]: `[B·T, C, H, W]` as `[B, C, T, H, W]`, a view.
pub fn unfold_time(x: &Tensor, batch: i64) -> Tensor {
    let frames = x.size()[0] / batch;
    x.unflatten(0, [batch, frames]).transpose(1, 2)
}
