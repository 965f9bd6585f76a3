//! Frames as tensors; padding a video to sizes that a tokenizer takes, and cropping it back.

use rand::{Rng, RngExt};
use tch::{Kind, Tensor};

use crate::{ClipSize, Error, Result};

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

/// The part of each frame that a clip shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    top: i64,
    left: i64,
    height: i64,
    width: i64,
}

impl Window {
    /// All of it.
    pub fn whole((height, width): (i64, i64)) -> Self {
        Self { top: 0, left: 0, height, width }
    }

    /// A window of a size anywhere within frames of another, or all of them. The config has seen to it that it fits.
    pub fn draw((height, width): (i64, i64), crop: Option<ClipSize>, rng: &mut impl Rng) -> Self {
        let Some(crop) = crop else { return Self::whole((height, width)) };
        let (rows, columns) = crop.height_width();
        let top = rng.random_range(0..=height - rows);
        Self { top, left: rng.random_range(0..=width - columns), height: rows, width: columns }
    }
}

/// A window of frames `[T, H, W, 3]` as a tensor `[3, T, h, w]`, mirrored left to right if wanted. Plain loops: libtorch
/// would start its own threads beside each of the loader's.
pub(crate) fn planar(bytes: &[u8], (height, width): (i64, i64), window: Window, flip: bool) -> Tensor {
    let (row, frame) = (3 * width as usize, 3 * (height * width) as usize);
    let (first, end) = (3 * window.left as usize, 3 * (window.left + window.width) as usize);
    let mut planes = Vec::with_capacity(bytes.len() / frame * 3 * (window.height * window.width) as usize);
    for c in 0..3 {
        for frame in bytes.chunks_exact(frame) {
            for row in frame.chunks_exact(row).skip(window.top as usize).take(window.height as usize) {
                let values = row[first..end].chunks_exact(3).map(|pixel| pixel[c]);
                if flip {
                    planes.extend(values.rev());
                } else {
                    planes.extend(values);
                }
            }
        }
    }
    Tensor::from_slice(&planes).view([3, -1, window.height, window.width])
}
