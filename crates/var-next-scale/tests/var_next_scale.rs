//! Properties of next-scale prediction.

#[path = "var_next_scale/bitwise.rs"]
mod bitwise;
#[path = "var_next_scale/tokenizer.rs"]
mod tokenizer;
#[path = "var_next_scale/transformer.rs"]
mod transformer;
#[path = "var_next_scale/video.rs"]
mod video;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

/// Tests share torch's generator: those that draw run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1);
    DRAWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest difference, in units of the largest value where that is above 1: rounding grows with what is computed.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    largest(&(a - b)) / largest(b).max(1.0)
}

fn rand(shape: &[i64]) -> Tensor {
    Tensor::rand(shape, (Kind::Float, Device::Cpu)) * 2.0 - 1.0
}

fn message(error: video_core::Error) -> String {
    error.to_string()
}
