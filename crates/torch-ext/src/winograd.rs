//! Fast convolutions of video with kernels that are 3×3 in space.
//!
//! Winograd's minimal filtering (Lavin and Gray 2015, section 4) takes 4/9 of the definition's products in space, F(2×2, 3×3), and
//! for kernels of three frames 2/3 of those in time too, F(2, 3). The result differs by about 1e-6 of the largest output.

use tch::{Device, Kind, Tensor};

use crate::ffi;

/// Tiles of 2×2 pixels in all frames from which on the transformed kernel pays.
const FEWEST_TILES: i64 = 128;

/// The convolution of `[B, in, T, H, W]` with `[out, in, kt, 3, 3]` and a bias `[out]`, of stride 1, with zeros around each frame
/// (`[rows, columns]` on both sides) and none in time: `[B, out, T - kt + 1, H', W']`, channels-last.
///
/// None where it does not apply: with gradients, off the CPU, on processors without AVX2, for other kinds and kernels, for
/// channels that do not fill the processor's registers, and for so little work that the definition is as fast.
pub fn winograd_conv3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: [i64; 2],
) -> Option<Tensor> {
    if x.requires_grad() || !pays(x, weight, 0, padding) {
        return None;
    }
    let bias = bias.map_or(std::ptr::null_mut(), ffi::raw);
    let run = |out| {
        // SAFETY: the pointers are valid for the call, or null for the bias, which the shim allows.
        unsafe { ffi::vireo_winograd(ffi::raw(x), ffi::raw(weight), bias, padding[0], padding[1], out) }
    };
    ffi::returning_tensor(run).ok()
}

/// The same for whole clips, causally, with gradients (of first and of higher order): kt - 1 frames stand in front of each clip,
/// zeros or, if `repeat_first`, copies of its first frame: `[B, out, T, H', W']`.
///
/// None as for [`winograd_conv3d`], but for gradients; for kernels of other than one or three frames, paddings beyond 2, and
/// under autocast.
pub fn winograd_causal_conv3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: [i64; 2],
    repeat_first: bool,
) -> Option<Tensor> {
    if !pays(x, weight, weight.size().get(2)? - 1, padding) {
        return None;
    }
    let bias = bias.map_or(std::ptr::null_mut(), ffi::raw);
    let (x, weight) = (ffi::raw(x), ffi::raw(weight));
    let run = |out| {
        // SAFETY: as above.
        unsafe {
            ffi::vireo_winograd_causal(x, weight, bias, padding[0], padding[1], repeat_first.into(), out)
        }
    };
    ffi::returning_tensor(run).ok()
}

/// Whether the method applies to clips behind so many frames of padding, and is faster than the definition.
fn pays(x: &Tensor, weight: &Tensor, frames_before: i64, padding: [i64; 2]) -> bool {
    // SAFETY: it only asks the processor.
    let lanes = unsafe { ffi::vireo_winograd_channels() };
    let (&[batch, inputs, frames, height, width], &[outputs, _, kernel_frames, 3, 3]) =
        (x.size().as_slice(), weight.size().as_slice())
    else {
        return false;
    };
    let tiles = |pixels: i64, pad: i64| (pixels + 2 * pad - 1) / 2;
    let frames = frames_before + frames - kernel_frames + 1;
    let work = batch * frames * tiles(height, padding[0]) * tiles(width, padding[1]);
    let here = |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Float;
    let fills = lanes > 0 && inputs % lanes == 0 && outputs % lanes == 0;
    fills && work >= FEWEST_TILES && here(x) && here(weight)
}
