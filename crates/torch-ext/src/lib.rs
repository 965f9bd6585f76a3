//! What libtorch has and `tch` does not bind, behind a safe API.
//!
//! `tch` covers libtorch's operators, but not memory formats, the fused optimizer kernels, the multi-tensor
//! (`_foreach_*`) kernels, bfloat16 autocast and the state of the random generator. This crate adds those through a C++ shim, and
//! convolutions of video that are faster than libtorch's on a CPU. No C++ exception crosses into Rust: each becomes [`Error`] with libtorch's message.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::MemoryFormat;
//!
//! # fn main() -> Result<(), torch_ext::Error> {
//! let video = Tensor::zeros([1, 8, 4, 16, 16], (Kind::Float, Device::Cpu));
//! let video = torch_ext::contiguous(&video, MemoryFormat::ChannelsLast3d)?;
//! assert_eq!(video.stride()[1], 1); // the channels of one pixel now lie side by side
//! # Ok(())
//! # }
//! ```

mod adamw;
mod autocast;
mod ffi;
mod foreach;
mod memory_format;
mod processor;
mod rng;
mod winograd;

pub use adamw::{AdamW, AdamWConfig, AdamWState, clear_gradients};
pub use autocast::{autocast_bf16, autocasts};
pub use foreach::{global_norm, lerp_, scale_};
pub use memory_format::{MemoryFormat, channels_last, channels_last_3d, contiguous, is_contiguous};
pub use processor::{has_slow_matmul, multiplies_bf16};
pub use rng::{rng_state, set_rng_state};
pub use winograd::{winograd_causal_conv3d, winograd_conv3d};

/// The version of the libtorch in use, such as `2.13.0`.
pub fn torch_version() -> &'static str {
    ffi::torch_version()
}

/// Ends the process at once, whatever its other threads do. [`std::process::exit`] runs the destructors of libtorch's statics first,
/// on which a thread that still computes crashes.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: it takes nothing and does not return.
    unsafe { ffi::vireo_exit(status) }
}

/// A C++ exception that libtorch raised, or arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libtorch's own message, without its stack trace.
    #[error("libtorch: {0}")]
    Torch(String),
    /// Lists or shapes that should agree and do not.
    #[error("{0}")]
    Mismatch(String),
}
