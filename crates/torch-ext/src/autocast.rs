//! Mixed precision in bfloat16; `tch::autocast` knows float16 only, which needs loss scaling.

use std::cell::Cell;

use tch::Device;

use crate::{Error, ffi, rng::device_code};

/// Runs `body` with libtorch's autocast to bfloat16 on the device's type: matrix products and convolutions compute
/// in bfloat16, reductions and losses in float32, weights stay as they are. The backward pass belongs outside.
///
/// # Errors
/// The device is neither the CPU nor a CUDA one; `body` did not run then.
pub fn autocast_bf16<T>(device: Device, body: impl FnOnce() -> T) -> Result<T, Error> {
    let (device_type, _) = device_code(device)?;
    let mut scope = Scope { device_type, was_enabled: 0, previous_dtype: 0 };
    // SAFETY: both places are valid for the call.
    ffi::check(unsafe {
        ffi::vireo_autocast_enter(device_type, &mut scope.was_enabled, &mut scope.previous_dtype)
    })?;
    DEPTH.set(DEPTH.get() + 1);
    // The guard exists only once autocast is on, and leaves it also when `body` panics.
    let _leave_at_the_end = Leave(scope);
    Ok(body())
}

/// Whether this thread runs within [`autocast_bf16`].
pub fn autocasts() -> bool {
    DEPTH.get() > 0
}

thread_local! {
    /// How many calls of [`autocast_bf16`] this thread is within.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// What to put back.
struct Scope {
    device_type: i32,
    was_enabled: i32,
    previous_dtype: i32,
}

struct Leave(Scope);

impl Drop for Leave {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        let Scope { device_type, was_enabled, previous_dtype } = self.0;
        // SAFETY: plain numbers, of an autocast scope that this thread entered.
        let left = ffi::check(unsafe { ffi::vireo_autocast_leave(device_type, was_enabled, previous_dtype) });
        debug_assert!(left.is_ok(), "{left:?}");
    }
}
