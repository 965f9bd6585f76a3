//! Multi-tensor kernels: one call for a whole parameter list instead of one per tensor.

use tch::Tensor;

use crate::{Error, ffi};

/// The 2-norm of all numbers of all tensors together, a 0-d tensor.
///
/// # Errors
/// The list is empty, or its tensors differ in device.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor, Error> {
    if tensors.is_empty() {
        return Err(Error::Mismatch("global_norm: the list of tensors is empty".into()));
    }
    let list = ffi::raw_list(tensors);
    // SAFETY: the list lives through the call.
    ffi::returning_tensor(|out| unsafe { ffi::vireo_global_norm(list.as_ptr(), list.len(), out) })
}

/// Multiplies every tensor in place by the 0-d tensor `factor`, outside autograd.
///
/// # Errors
/// libtorch's, on tensors of different devices.
pub fn scale_(tensors: &[Tensor], factor: &Tensor) -> Result<(), Error> {
    let list = ffi::raw_list(tensors);
    // SAFETY: the list lives through the call.
    ffi::check(unsafe { ffi::vireo_scale_in_place(list.as_ptr(), list.len(), ffi::raw(factor)) })
}

/// `target += weight * (source - target)` for each pair, in place and outside autograd: an exponential moving
/// average of decay `1 - weight`.
///
/// # Errors
/// The lists differ in length, or a pair in shape.
pub fn lerp_(targets: &[Tensor], sources: &[Tensor], weight: f64) -> Result<(), Error> {
    if targets.len() != sources.len() {
        return Err(Error::Mismatch(format!(
            "lerp_: {} targets for {} sources",
            targets.len(),
            sources.len()
        )));
    }
    let (to, from) = (ffi::raw_list(targets), ffi::raw_list(sources));
    // SAFETY: both lists live through the call and have the same length.
    ffi::check(unsafe { ffi::vireo_lerp_in_place(to.as_ptr(), from.as_ptr(), to.len(), weight) })
}
