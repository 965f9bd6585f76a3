//! Properties of the quantizers.

#[path = "quantizers/entropy.rs"]
mod entropy;
#[path = "quantizers/free.rs"]
mod free;
#[path = "quantizers/table.rs"]
mod table;
#[path = "quantizers/training.rs"]
mod training;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seeds torch's generator, which all tests share, and keeps it from other tests for as long as the guard lives. Whatever
/// draws a random number takes it.
fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    // The tensors are small: threads would wait for each other.
    tch::set_num_threads(1);
    guard
}
