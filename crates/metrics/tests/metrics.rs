//! Properties of the metrics, and what they refuse. Their numbers are checked against the references' in the crate
//! `reference`.

#[path = "metrics/distances.rs"]
mod distances;
#[path = "metrics/fidelity.rs"]
mod fidelity;
#[path = "metrics/networks.rs"]
mod networks;

use tch::{Device, Kind, Tensor};

/// Numbers in [0, 1) that depend on the seed alone.
fn noise(shape: &[i64], seed: u64) -> Tensor {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut next = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let numbers: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| next()).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// A video `[B, C, T, H, W]` in [-1, 1).
fn video(shape: [i64; 5], seed: u64) -> Tensor {
    noise(&shape, seed) * 2.0 - 1.0
}

fn number(tensor: &Tensor) -> f64 {
    tensor.to_device(Device::Cpu).to_kind(Kind::Double).double_value(&[])
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

/// The message of an error that must be there.
fn refusal<T: std::fmt::Debug>(result: video_core::Result<T>) -> String {
    result.unwrap_err().to_string()
}
