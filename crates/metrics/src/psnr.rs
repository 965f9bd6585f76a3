//! Peak signal-to-noise ratio.
//!
//! Per frame 10 log10(R² / mse), the mean squared error over height, width and channels; then the mean over frames. This
//! is not the PSNR of the pooled error, which is lower.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::range;

/// What a frame without error counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PsnrConvention {
    /// Exactly 100 dB below a mean squared error of 1e-10 on [0, 1]; no cap above it (common_metrics).
    #[default]
    Cap100,
    /// Infinity (TECO).
    Teco,
}

impl fmt::Display for PsnrConvention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cap100 => "cap100",
            Self::Teco => "teco",
        })
    }
}

/// PSNR of two videos `[B, C, T, H, W]` in [-1, 1]: the mean over frames, `[B]`, in dB, float64.
///
/// # Errors
/// Different shapes, not five axes, values that are not finite or outside [-1, 1].
pub fn psnr(ours: &Tensor, theirs: &Tensor, convention: PsnrConvention) -> Result<Tensor> {
    Ok(psnr_per_frame(ours, theirs, convention)?.mean_dim(1, false, Kind::Double))
}

/// PSNR of each frame of two videos `[B, C, T, H, W]` in [-1, 1]: `[B, T]`, in dB, float64.
///
/// # Errors
/// As [`psnr()`].
pub fn psnr_per_frame(ours: &Tensor, theirs: &Tensor, convention: PsnrConvention) -> Result<Tensor> {
    let (ours, theirs) = range::comparable(ours, theirs, -1.0, 1.0)?;
    // On [0, 1], where the cap is defined, the error is half as large.
    Ok(decibels(&((ours - theirs) * 0.5), 1.0, convention))
}

/// As [`psnr_per_frame`] for values in `0..=max_value`.
///
/// # Errors
/// As [`psnr()`], with that range; `max_value` is not positive.
pub fn psnr_per_frame_up_to(
    max_value: f64,
    ours: &Tensor,
    theirs: &Tensor,
    convention: PsnrConvention,
) -> Result<Tensor> {
    if !(max_value > 0.0 && max_value.is_finite()) {
        return Err(Error::config("max_value", max_value, "a positive number"));
    }
    let (ours, theirs) = range::comparable(ours, theirs, 0.0, max_value)?;
    Ok(decibels(&(ours - theirs), max_value, convention))
}

/// Each clip's mean colour, in the shape of the video: the least that a reconstruction has to beat.
pub fn mean_colour(video: &Tensor) -> Tensor {
    video.mean_dim([2i64, 3, 4].as_slice(), true, video.kind()).expand_as(video)
}

/// PSNR of a video `[B, C, T, H, W]` in [-1, 1] when each clip is predicted by its mean colour: `[B]`, in dB.
///
/// # Errors
/// As [`psnr()`].
pub fn mean_colour_psnr(video: &Tensor, convention: PsnrConvention) -> Result<Tensor> {
    range::check_video("video", video, -1.0, 1.0)?;
    let video = video.to_kind(Kind::Double);
    psnr(&mean_colour(&video), &video, convention)
}

/// From differences `[B, C, T, H, W]` to `[B, T]`.
fn decibels(difference: &Tensor, max_value: f64, convention: PsnrConvention) -> Tensor {
    let mse = difference.square().mean_dim([1i64, 3, 4].as_slice(), false, Kind::Double);
    let decibels = (mse.reciprocal() * (max_value * max_value)).log10() * 10.0;
    match convention {
        PsnrConvention::Teco => decibels,
        PsnrConvention::Cap100 => decibels.masked_fill(&mse.lt(1e-10), 100.0),
    }
}
