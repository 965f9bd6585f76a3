//! The raw declarations of `shim/shim.cpp`, and the one place that turns its messages into errors.

use std::ffi::{CStr, c_char, c_double, c_int};

use tch::Tensor;

use crate::Error;

/// The C++ side's `at::Tensor`, behind the pointer type that `tch` itself uses.
pub(crate) type RawTensor = *mut std::ffi::c_void;

unsafe extern "C" {
    fn vireo_free_message(message: *mut c_char);
    fn vireo_torch_version() -> *const c_char;
    pub(crate) fn vireo_contiguous(tensor: RawTensor, format: c_int, out: *mut RawTensor) -> *mut c_char;
    pub(crate) fn vireo_is_contiguous(tensor: RawTensor, format: c_int, out: *mut c_int) -> *mut c_char;
    pub(crate) fn vireo_fused_adamw(
        params: *const RawTensor,
        grads: *const RawTensor,
        exp_avgs: *const RawTensor,
        exp_avg_sqs: *const RawTensor,
        steps: *const RawTensor,
        count: usize,
        lr: c_double,
        beta1: c_double,
        beta2: c_double,
        weight_decay: c_double,
        eps: c_double,
    ) -> *mut c_char;
    pub(crate) fn vireo_clear_gradients(tensors: *const RawTensor, count: usize) -> *mut c_char;
    pub(crate) fn vireo_autocast_enter(
        device_type: c_int,
        was_enabled: *mut c_int,
        previous_dtype: *mut c_int,
    ) -> *mut c_char;
    pub(crate) fn vireo_autocast_leave(
        device_type: c_int,
        was_enabled: c_int,
        previous_dtype: c_int,
    ) -> *mut c_char;
    pub(crate) fn vireo_global_norm(
        tensors: *const RawTensor,
        count: usize,
        out: *mut RawTensor,
    ) -> *mut c_char;
    pub(crate) fn vireo_scale_in_place(
        tensors: *const RawTensor,
        count: usize,
        factor: RawTensor,
    ) -> *mut c_char;
    pub(crate) fn vireo_lerp_in_place(
        targets: *const RawTensor,
        sources: *const RawTensor,
        count: usize,
        weight: c_double,
    ) -> *mut c_char;
    pub(crate) fn vireo_rng_state(
        device_type: c_int,
        device_index: c_int,
        out: *mut RawTensor,
    ) -> *mut c_char;
    pub(crate) fn vireo_set_rng_state(
        device_type: c_int,
        device_index: c_int,
        state: RawTensor,
    ) -> *mut c_char;
    pub(crate) fn vireo_exit(status: c_int) -> !;
    pub(crate) fn vireo_winograd_channels() -> i64;
    pub(crate) fn vireo_winograd(
        input: RawTensor,
        weight: RawTensor,
        bias: RawTensor,
        pad_rows: i64,
        pad_columns: i64,
        out: *mut RawTensor,
    ) -> *mut c_char;
    pub(crate) fn vireo_winograd_causal(
        input: RawTensor,
        weight: RawTensor,
        bias: RawTensor,
        pad_rows: i64,
        pad_columns: i64,
        repeat_first: c_int,
        out: *mut RawTensor,
    ) -> *mut c_char;
}

/// Turns the shim's answer into a `Result`, and frees its message.
pub(crate) fn check(message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim answers with a NUL-terminated string from strdup that nobody else holds.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        vireo_free_message(message);
        text
    };
    Err(Error::Torch(text))
}

/// The pointer that the shim reads a tensor through. libtorch's tensors are reference-counted handles: the shim
/// may change what a handle points to, never the handle.
pub(crate) fn raw(tensor: &Tensor) -> RawTensor {
    tensor.as_ptr() as RawTensor
}

pub(crate) fn raw_list(tensors: &[Tensor]) -> Vec<RawTensor> {
    tensors.iter().map(raw).collect()
}

/// Calls `body` with the place where the shim puts a new tensor, and takes the tensor over.
pub(crate) fn returning_tensor(body: impl FnOnce(*mut RawTensor) -> *mut c_char) -> Result<Tensor, Error> {
    let mut out: RawTensor = std::ptr::null_mut();
    check(body(&mut out))?;
    // SAFETY: on success the shim has put a `new at::Tensor` there, which tch now owns and deletes.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// The version of the libtorch that the shim was compiled against.
pub(crate) fn torch_version() -> &'static str {
    // SAFETY: the shim gives a string literal.
    unsafe { CStr::from_ptr(vireo_torch_version()) }.to_str().unwrap_or("unknown")
}
