//! The checks at the door: two videos that can be compared.

use tch::{Kind, Tensor};
use video_core::{Error, Result, VideoShape};

/// Rounding in bfloat16 or half precision may leave the range by this much.
const SLACK: f64 = 8e-3;

/// Refuses a video that is not `[B, C, T, H, W]`, not float, not finite, or outside `low..=high`.
pub(crate) fn check_video(what: &str, video: &Tensor, low: f64, high: f64) -> Result<VideoShape> {
    let shape = VideoShape::of(video)
        .map_err(|_| Error::shape(what, &video.size(), "a video [B, C, T, H, W] with no empty axis"))?;
    check_values(what, video, low, high)?;
    Ok(shape)
}

/// Refuses values that are not float, not finite, or outside `low..=high`.
pub(crate) fn check_values(what: &str, values: &Tensor, low: f64, high: f64) -> Result<()> {
    if !matches!(values.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        return Err(Error::input(what, format!("kind {:?}", values.kind()), "a float tensor"));
    }
    let (least, most) = tch::no_grad(|| (values.min().double_value(&[]), values.max().double_value(&[])));
    // A NaN is the least and the most of its tensor, and fails both comparisons.
    if !(least >= low - SLACK && most <= high + SLACK) {
        return Err(Error::input(
            what,
            format!("values from {least} to {most}"),
            format!("values in [{low}, {high}]: scale originals, clamp reconstructions"),
        ));
    }
    Ok(())
}

/// Two videos of one shape in `low..=high`, in float64 and clamped to the range.
pub(crate) fn comparable(ours: &Tensor, theirs: &Tensor, low: f64, high: f64) -> Result<(Tensor, Tensor)> {
    check_video("ours", ours, low, high)?;
    check_video("theirs", theirs, low, high)?;
    check_same_shape(ours, theirs)?;
    let exact = |video: &Tensor| video.detach().to_kind(Kind::Double).clamp(low, high);
    Ok((exact(ours), exact(theirs).to_device(ours.device())))
}

/// Refuses two tensors of different shapes.
pub(crate) fn check_same_shape(ours: &Tensor, theirs: &Tensor) -> Result<()> {
    if ours.size() != theirs.size() {
        return Err(Error::shape("theirs", &theirs.size(), format!("the shape of ours, {:?}", ours.size())));
    }
    Ok(())
}
