//! Initialisers.

use tch::nn::{self, Init};
use tch::{Tensor, no_grad};

/// What PyTorch gives the weights and biases of its linear and convolution layers: uniform in ±1/√fan_in, where
/// `fan_in` is the number of inputs that one output sums over (channels × kernel size).
///
/// `tch`'s own default draws weights √6 times wider.
pub fn torch_default(fan_in: i64) -> Init {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// A variable of normal draws of mean 0, drawn again beyond ±`cut` standard deviations, times `std`.
///
/// Flax and JAX cut at `cut` = 2, so that the real standard deviation is 0.88 `std`. PyTorch's `trunc_normal_` cuts at ±2
/// whatever `std` is, which for the usual 0.02 is not at all.
pub fn truncated_normal(path: &nn::Path, name: &str, shape: &[i64], std: f64, cut: f64) -> Tensor {
    // The inverse of the normal distribution function, √2 erfinv(2Φ − 1), maps uniform draws within ±(2Φ(cut) − 1) to the
    // normal ones within ±cut.
    let edge = Tensor::from(cut / std::f64::consts::SQRT_2).erf().double_value(&[]);
    let mut variable = path.var(name, shape, Init::Uniform { lo: -edge, up: edge });
    no_grad(|| {
        let draws = variable.erfinv() * std::f64::consts::SQRT_2;
        variable.copy_(&(draws.clamp(-cut, cut) * std));
    });
    variable
}
