//! Padding a video to sizes that a tokenizer takes, and cropping it back.

use tch::{Kind, Tensor};

use crate::{Error, Result};

fn size5(video: &Tensor) -> Result<[i64; 5]> {
    let size = video.size();
    <[i64; 5]>::try_from(size.as_slice())
        .map_err(|_| Error::Shape { actual: size, expected: "[B, C, T, H, W]".into() })
}

/// A video `[B, C, T, H, W]` with its last frame, last row and last column repeated up to the given sizes.
///
/// # Errors
/// The video is larger than that, or has not five axes.
pub fn pad_video(video: &Tensor, frames: i64, height: i64, width: i64) -> Result<Tensor> {
    let [_, _, t, h, w] = size5(video)?;
    if t > frames || h > height || w > width || t < 1 || h < 1 || w < 1 {
        return Err(Error::Shape {
            actual: video.size(),
            expected: format!("at most {frames} frames of {height}×{width}, and none empty"),
        });
    }
    let mut padded = video.shallow_clone();
    for (axis, (from, to)) in [(2, (t, frames)), (3, (h, height)), (4, (w, width))] {
        if to > from {
            let index = Tensor::arange(to, (Kind::Int64, video.device())).clamp_max(from - 1);
            padded = padded.index_select(axis, &index);
        }
    }
    Ok(padded)
}

/// The first `frames` frames and the upper left `height` × `width` of a video `[B, C, T, H, W]`.
///
/// # Errors
/// The video is smaller than that, or has not five axes.
pub fn crop_video(video: &Tensor, frames: i64, height: i64, width: i64) -> Result<Tensor> {
    let [_, _, t, h, w] = size5(video)?;
    if t < frames || h < height || w < width || frames < 1 || height < 1 || width < 1 {
        return Err(Error::Shape {
            actual: video.size(),
            expected: format!("at least {frames} frames of {height}×{width}"),
        });
    }
    Ok(video.narrow(2, 0, frames).narrow(3, 0, height).narrow(4, 0, width))
}

/// Bytes `[T, H, W, 3]` as a tensor `[3, T, H, W]`, mirrored left to right if wanted.
pub(crate) fn planar(bytes: &[u8], frames: i64, height: i64, width: i64, flip: bool) -> Tensor {
    let width_usize = width.max(1) as usize;
    let mut planes = vec![0u8; bytes.len()];
    for (c, plane) in planes.chunks_exact_mut((bytes.len() / 3).max(1)).enumerate() {
        for (row, pixels) in plane.chunks_exact_mut(width_usize).zip(bytes.chunks_exact(3 * width_usize)) {
            for (value, pixel) in row.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = pixel[c];
            }
            if flip {
                row.reverse();
            }
        }
    }
    Tensor::from_slice(&planes).view([3, frames, height, width])
}
