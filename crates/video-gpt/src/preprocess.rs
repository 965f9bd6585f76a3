//! Pixels as VideoGPT's data sets give them.

use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// Frames uint8 `[T, H, W, 3]` to a clip `[3, T, R, R]` in [-0.5, 0.5]: the first `sequence_length` frames, the shorter
/// side scaled to `resolution` R (bilinear, half-pixel centres, no antialiasing), the centre cut out.
///
/// # Errors
/// Another shape or kind, fewer frames than asked for, a resolution that is out of range.
pub fn preprocess(frames: &Tensor, resolution: i64, sequence_length: Option<i64>) -> Result<Tensor> {
    let size = frames.size();
    if size.len() != 4 || size[3] != 3 || size.contains(&0) || frames.kind() != Kind::Uint8 {
        return Err(Error::shape("frames", &size, "uint8 [T, H, W, 3] with no empty axis"));
    }
    if !(1..=1 << 14).contains(&resolution) {
        return Err(Error::config("resolution", resolution, "1 to 16384"));
    }
    let length = sequence_length.unwrap_or(size[0]);
    if !(1..=size[0]).contains(&length) {
        return Err(Error::config("sequence_length", length, format!("1 to {}, the frames", size[0])));
    }
    let video = frames.narrow(0, 0, length).permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
    let (height, width) = (size[1], size[2]);
    // As the reference rounds: a ratio first, then up.
    let scale = resolution as f64 / height.min(width) as f64;
    let scaled = |side: i64| (side as f64 * scale).ceil() as i64;
    let (height, width) =
        if height < width { (resolution, scaled(width)) } else { (scaled(height), resolution) };
    let video = video.upsample_bilinear2d([height, width], false, None, None);
    let centre = |side: i64| (side - resolution) / 2;
    let video = video.narrow(2, centre(height), resolution).narrow(3, centre(width), resolution);
    Ok(video.permute([1, 0, 2, 3]).contiguous() - 0.5)
}
