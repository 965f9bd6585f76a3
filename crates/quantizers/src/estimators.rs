//! Gradients through a discrete choice, and small pieces that the quantizers share.

use tch::{Kind, Reduction, Tensor};
use video_core::{Error, Result};

/// Straight-through: the value of `quantized`, the gradient of `x`.
pub fn straight_through(x: &Tensor, quantized: &Tensor) -> Tensor {
    x + (quantized - x).detach()
}

/// Mean squared error over all elements.
pub(crate) fn mse(a: &Tensor, b: &Tensor) -> Tensor {
    a.mse_loss(b, Reduction::Mean)
}

/// Quantizers decide in float32 (or float64 where the features are) whatever the ambient precision: entropies of
/// half-precision features overflow.
pub(crate) fn full_precision<T>(features: &Tensor, run: impl FnOnce(&Tensor) -> T) -> T {
    let features = match features.kind() {
        Kind::Double => features.shallow_clone(),
        _ => features.to_kind(Kind::Float),
    };
    tch::autocast(false, || run(&features))
}

/// Refuses features whose last axis is not `dim`.
pub(crate) fn check_features(features: &Tensor, dim: i64) -> Result<()> {
    match features.size().last() {
        Some(width) if *width == dim => Ok(()),
        _ => Err(Error::shape("features", &features.size(), format!("[..., {dim}], channel-last"))),
    }
}
