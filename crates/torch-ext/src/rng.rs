//! The state of libtorch's default random generators.

use tch::{Device, Tensor};

use crate::{Error, ffi};

/// c10::DeviceType's codes.
pub(crate) fn device_code(device: Device) -> Result<(i32, i32), Error> {
    match device {
        Device::Cpu => Ok((0, -1)),
        Device::Cuda(index) => Ok((1, index as i32)),
        other => Err(Error::Mismatch(format!("{other:?} has no random generator that Vireo saves"))),
    }
}

/// The state of a device's default generator, as bytes.
///
/// # Errors
/// The device is not there.
pub fn rng_state(device: Device) -> Result<Tensor, Error> {
    let (kind, index) = device_code(device)?;
    // SAFETY: `out` is valid for the call.
    ffi::returning_tensor(|out| unsafe { ffi::vireo_rng_state(kind, index, out) })
}

/// Puts a device's default generator into a state that [`rng_state`] gave.
///
/// # Errors
/// The device is not there, or the bytes are no state of its generator.
pub fn set_rng_state(device: Device, state: &Tensor) -> Result<(), Error> {
    let (kind, index) = device_code(device)?;
    // SAFETY: the state lives through the call.
    ffi::check(unsafe { ffi::vireo_set_rng_state(kind, index, ffi::raw(state)) })
}
