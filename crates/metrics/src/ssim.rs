//! Structural similarity (Wang et al., 2004).
//!
//! Local means, variances and the covariance under a window; C1 = (0.01 R)², C2 = (0.03 R)²; the mean of
//! (2 m₁m₂ + C1)(2 c₁₂ + C2) / ((m₁² + m₂² + C1)(v₁ + v₂ + C2)) over positions, channels, then frames. All in float64.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::range;

/// Which window, which covariance. The three Gaussian conventions are one computation under the names by which papers
/// cite it: where scikit-image reflects the border it leaves just those positions out of the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SsimConvention {
    /// 11 × 11 Gaussian, sigma 1.5, biased covariance, valid region (TECO).
    #[default]
    Teco,
    /// The same (common_metrics, from OpenCV's filters).
    Cv2Valid,
    /// The same (scikit-image with `gaussian_weights`, sigma 1.5, `use_sample_covariance` off).
    SkimageGaussian,
    /// 7 × 7 mean, sample covariance, valid region (scikit-image's default). Its values differ.
    #[serde(rename = "skimage_uniform7")]
    SkimageUniform7,
}

impl fmt::Display for SsimConvention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Teco => "teco",
            Self::Cv2Valid => "cv2_valid",
            Self::SkimageGaussian => "skimage_gaussian",
            Self::SkimageUniform7 => "skimage_uniform7",
        })
    }
}

impl SsimConvention {
    /// The side of the window, in pixels: smaller frames are refused.
    pub fn window_size(self) -> i64 {
        match self {
            Self::Teco | Self::Cv2Valid | Self::SkimageGaussian => 11,
            Self::SkimageUniform7 => 7,
        }
    }

    /// The window along one axis, `[window_size]`; it is separable, and sums to 1.
    fn window(self, device: Device) -> Tensor {
        let size = self.window_size();
        match self {
            Self::Teco | Self::Cv2Valid | Self::SkimageGaussian => {
                let sigma = 1.5;
                let offset = Tensor::arange(size, (Kind::Double, device)) - (size / 2) as f64;
                let weight = (offset.square() * (-0.5 / (sigma * sigma))).exp();
                &weight / weight.sum(Kind::Double)
            }
            Self::SkimageUniform7 => Tensor::full([size], 1.0 / size as f64, (Kind::Double, device)),
        }
    }

    /// From the mean of squares about the mean to the (co)variance.
    fn covariance_factor(self) -> f64 {
        match self {
            Self::Teco | Self::Cv2Valid | Self::SkimageGaussian => 1.0,
            Self::SkimageUniform7 => 49.0 / 48.0,
        }
    }
}

/// SSIM of two videos `[B, C, T, H, W]` in [-1, 1]: the mean over frames, `[B]`, float64.
///
/// # Errors
/// Different shapes, not five axes, frames smaller than the window, values that are not finite or outside [-1, 1].
pub fn ssim(ours: &Tensor, theirs: &Tensor, convention: SsimConvention) -> Result<Tensor> {
    Ok(ssim_per_frame(ours, theirs, convention)?.mean_dim(1, false, Kind::Double))
}

/// SSIM of each frame of two videos `[B, C, T, H, W]` in [-1, 1]: `[B, T]`, float64.
///
/// # Errors
/// As [`ssim()`].
pub fn ssim_per_frame(ours: &Tensor, theirs: &Tensor, convention: SsimConvention) -> Result<Tensor> {
    let (ours, theirs) = range::comparable(ours, theirs, -1.0, 1.0)?;
    // The constants suppose values that start at zero.
    similarity(&((ours + 1.0) * 0.5), &((theirs + 1.0) * 0.5), 1.0, convention)
}

/// As [`ssim_per_frame`] for values in `0..=data_range`.
///
/// # Errors
/// As [`ssim()`], with that range; `data_range` is not positive.
pub fn ssim_per_frame_up_to(
    data_range: f64,
    ours: &Tensor,
    theirs: &Tensor,
    convention: SsimConvention,
) -> Result<Tensor> {
    if !(data_range > 0.0 && data_range.is_finite()) {
        return Err(Error::config("data_range", data_range, "a positive number"));
    }
    let (ours, theirs) = range::comparable(ours, theirs, 0.0, data_range)?;
    similarity(&ours, &theirs, data_range, convention)
}

fn similarity(ours: &Tensor, theirs: &Tensor, data_range: f64, convention: SsimConvention) -> Result<Tensor> {
    let size = ours.size();
    let window_size = convention.window_size();
    if size[3].min(size[4]) < window_size {
        return Err(Error::shape(
            "video",
            &size,
            format!("frames of at least {window_size} × {window_size} pixels, the window of {convention}"),
        ));
    }
    let window = convention.window(ours.device());
    // Clip by clip: the local statistics of a long batch need not be in memory at once.
    let clips: Vec<Tensor> = (0..size[0])
        .map(|clip| {
            let planes = |video: &Tensor| video.get(clip).reshape([-1, size[3], size[4]]);
            local_similarity(
                &planes(ours),
                &planes(theirs),
                &window,
                data_range,
                convention.covariance_factor(),
            )
            .view([size[1], size[2]])
            .mean_dim(0, false, Kind::Double)
        })
        .collect();
    Ok(Tensor::stack(&clips, 0))
}

/// From planes `[N, H, W]` to the mean similarity of each, `[N]`.
fn local_similarity(x: &Tensor, y: &Tensor, window: &Tensor, data_range: f64, factor: f64) -> Tensor {
    let mean = |plane: &Tensor| weighted_sums(&weighted_sums(plane, 1, window), 2, window);
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (squares, product) = (mean_x.square() + mean_y.square(), mean_x * mean_y);
    // Of the variances only the sum enters.
    let variances = (mean(&(x.square() + y.square())) - &squares) * factor;
    let covariance = (mean(&(x * y)) - &product) * factor;
    let c1 = (0.01 * data_range).powi(2);
    let c2 = (0.03 * data_range).powi(2);
    let map = (product * 2.0 + c1) * (covariance * 2.0 + c2) / ((squares + c1) * (variances + c2));
    map.mean_dim([1i64, 2].as_slice(), false, Kind::Double)
}

/// The window moved along an axis of planes, where it fits whole. As a sum of shifted planes: libtorch has no fast
/// convolution in float64.
fn weighted_sums(planes: &Tensor, axis: i64, window: &Tensor) -> Tensor {
    let size = window.size()[0];
    let positions = planes.size()[axis as usize] - size + 1;
    let mut sum = planes.narrow(axis, 0, positions) * window.get(0);
    for shift in 1..size {
        sum = sum.addcmul_(&planes.narrow(axis, shift, positions), &window.get(shift));
    }
    sum
}
