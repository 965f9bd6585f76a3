//! Initialisers.

use tch::nn::Init;

/// What PyTorch gives the weights and biases of its linear and convolution layers: uniform in ±1/√fan_in, where
/// `fan_in` is the number of inputs that one output sums over (channels × kernel size).
///
/// `tch`'s own default draws weights √6 times wider.
pub fn torch_default(fan_in: i64) -> Init {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
