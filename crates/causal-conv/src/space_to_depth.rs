//! Blocks of pixels as channels, and back.

use tch::Tensor;
use video_core::{Error, Result};

/// Channels to pixels: `[B, bt·bh·bw·C, T, H, W]` to `[B, C, bt·T, bh·H, bw·W]` for `block = [bt, bh, bw]`.
///
/// The channel index splits as (bt, bh, bw, C): the position in the block is the slow part and the channels of one pixel
/// stay together, the order of MAGVIT-v2 (NOT that of torch's `pixel_shuffle`). Channels-last order in, channels-last out.
///
/// # Errors
/// Not five axes, or the block's size does not divide the channels.
pub fn depth_to_space(x: &Tensor, block: [i64; 3]) -> Result<Tensor> {
    let size = x.size();
    let volume: i64 = block.iter().product();
    if size.len() != 5 || volume < 1 || block.iter().any(|&b| b < 1) || size[1] % volume != 0 {
        let expected = format!("[B, {volume}·C, T, H, W] for blocks {block:?} of at least 1");
        return Err(Error::shape("depth_to_space input", &size, expected));
    }
    Ok(unfold_blocks(x, block))
}

/// [`depth_to_space`] of a proven shape.
pub(crate) fn unfold_blocks(x: &Tensor, [bt, bh, bw]: [i64; 3]) -> Tensor {
    let (b, c, t, h, w) = x.size5().expect("a video has five axes");
    let channels = c / (bt * bh * bw);
    x.permute([0, 2, 3, 4, 1])
        .reshape([b, t, h, w, bt, bh, bw, channels])
        .permute([0, 1, 4, 2, 5, 3, 6, 7])
        .reshape([b, t * bt, h * bh, w * bw, channels])
        .permute([0, 4, 1, 2, 3])
}

/// Pixels to channels, the inverse of [`depth_to_space`]: `[B, C, bt·T, bh·H, bw·W]` to `[B, bt·bh·bw·C, T, H, W]`.
///
/// # Errors
/// Not five axes, or the block does not divide the size.
pub fn space_to_depth(x: &Tensor, block: [i64; 3]) -> Result<Tensor> {
    let size = x.size();
    let divides = |axis: usize| block[axis] > 0 && size[axis + 2] % block[axis] == 0;
    if size.len() != 5 || !(0..3).all(divides) {
        let expected = format!("[B, C, T, H, W] with T, H, W that {block:?} divide");
        return Err(Error::shape("space_to_depth input", &size, expected));
    }
    let [bt, bh, bw] = block;
    let (t, h, w) = (size[2] / bt, size[3] / bh, size[4] / bw);
    Ok(x.permute([0, 2, 3, 4, 1])
        .reshape([size[0], t, bt, h, bh, w, bw, size[1]])
        .permute([0, 1, 3, 5, 2, 4, 6, 7])
        .reshape([size[0], t, h, w, bt * bh * bw * size[1]])
        .permute([0, 4, 1, 2, 3]))
}
