//! Properties of VideoGPT's tokenizer and prior.

#[path = "video_gpt/prior.rs"]
mod prior;
#[path = "video_gpt/tokenizer.rs"]
mod tokenizer;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Tensor;

/// Tests share torch's generator: those that draw run one at a time, as some compare draws.
fn alone() -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    // More threads would wait for each other at tensors of this size.
    tch::set_num_threads(1);
    DRAWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest difference, in units of the largest value where that is above 1: rounding grows with what is computed.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    largest(&(a - b)) / largest(b).max(1.0)
}
