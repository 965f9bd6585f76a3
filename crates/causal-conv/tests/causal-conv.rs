//! What the crate promises, seen from outside.

#[path = "causal-conv/cosmos.rs"]
mod cosmos;
#[path = "causal-conv/gan.rs"]
mod gan;
#[path = "causal-conv/layers.rs"]
mod layers;
#[path = "causal-conv/open_magvit2.rs"]
mod open_magvit2;
#[path = "causal-conv/tokenizer.rs"]
mod tokenizer;

use tch::Tensor;
use video_core::seeds::{Stream, derive};

/// Uniform noise of variance 1 that depends on the seed alone: libtorch's generator is shared with other tests.
fn noise(size: &[i64], seed: u64) -> Tensor {
    let value = |at: u64| derive(seed, Stream::Sample, at) as f64 / u64::MAX as f64 - 0.5;
    let count = size.iter().product::<i64>() as u64;
    let values: Vec<f32> = (0..count).map(|at| (value(at) * 12f64.sqrt()) as f32).collect();
    Tensor::from_slice(&values).view(size)
}

/// Largest difference between two tensors of one shape.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    if a.numel() == 0 { 0.0 } else { (a - b).abs().max().double_value(&[]) }
}
