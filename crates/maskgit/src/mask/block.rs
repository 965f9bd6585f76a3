//! Scores that mask in blocks, or frame by frame (MAGVIT).

use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// The size of a block of tokens: frames, rows, columns.
pub type BlockShape = [i64; 3];

/// The draws of [`block_scores`].
#[derive(Debug)]
pub struct BlockDraws {
    /// A permutation, int64, of the block's offsets, which are numbered with columns fastest and frames slowest.
    pub offset_order: Tensor,
    /// Uniform in [0, 1), in the shape of the scores.
    pub tie_break: Tensor,
}

impl BlockDraws {
    /// From torch's global generator.
    pub fn draw(scores: &Tensor, block: BlockShape) -> Self {
        let offsets = block.iter().product::<i64>().max(1);
        Self {
            offset_order: Tensor::randperm(offsets, (Kind::Int64, scores.device())),
            tie_break: scores.rand_like(),
        }
    }
}

/// Scores `[B, t, h, w]` averaged over blocks, so that neighbours are masked together: at every offset of the block in turn,
/// in random order. A score of +∞ stays, and takes no part. Blocks of one token change nothing.
///
/// # Errors
/// The block does not divide the grid.
pub fn block_scores(scores: &Tensor, block: BlockShape, draws: &BlockDraws) -> Result<Tensor> {
    if block == [1; 3] {
        return Ok(scores.shallow_clone());
    }
    let size = scores.size();
    if size.len() != 4 || block.iter().zip(&size[1..]).any(|(&b, &n)| b < 1 || n % b != 0) {
        return Err(Error::shape(
            "token grid",
            &size,
            format!("[B, t, h, w] that blocks of {block:?} divide"),
        ));
    }
    let offsets = block.iter().product::<i64>();
    if draws.offset_order.size() != [offsets] || draws.tie_break.size() != size {
        return Err(Error::shape("block draws", &draws.offset_order.size(), format!("{offsets} offsets")));
    }
    let mut padded = scores.shallow_clone();
    for (axis, &b) in block.iter().enumerate() {
        let n = size[axis + 1];
        let index = Tensor::arange_start(1 - b, n + b - 1, (Kind::Int64, scores.device())).clamp(0, n - 1);
        padded = padded.index_select(axis as i64 + 1, &index);
    }
    // The steps below write into it.
    let mut padded = padded.copy();
    for step in 0..offsets {
        let offset = draws.offset_order.int64_value(&[step]);
        let at = [offset / (block[1] * block[2]), offset / block[2] % block[1], offset % block[2]];
        let mut window = padded.shallow_clone();
        for axis in 0..3 {
            window = window.narrow(axis as i64 + 1, at[axis], size[axis + 1]);
        }
        let pooled = pool_in_place(&window, block);
        window.copy_(&pooled);
    }
    for (axis, &b) in block.iter().enumerate() {
        padded = padded.narrow(axis as i64 + 1, b - 1, size[axis + 1]);
    }
    Ok(padded + &draws.tie_break * 1e-3)
}

/// Each block's finite scores replaced by their mean.
fn pool_in_place(scores: &Tensor, block: BlockShape) -> Tensor {
    let size = scores.size();
    let [bt, bh, bw] = block;
    let blocks = scores.reshape([size[0], size[1] / bt, bt, size[2] / bh, bh, size[3] / bw, bw]);
    let finite = blocks.isinf().logical_not();
    let sum = |x: &Tensor| x.sum_dim_intlist([2i64, 4, 6].as_slice(), true, Kind::Float);
    let mean = sum(&blocks.where_scalarother(&finite, 0.0)) / sum(&finite.to_kind(Kind::Float));
    mean.where_self(&finite, &blocks).reshape(size)
}

/// Scores `[B, t, h, w]` of which those of later frames are lower: later frames are masked first, hence decoded last.
pub fn frame_by_frame_scores(scores: &Tensor) -> Tensor {
    let axes = [1i64, 2, 3];
    let (least, most) = (scores.amin(axes, true), scores.amax(axes, true));
    let normalized = (scores - &least) / (most - &least + 1e-6);
    let frames = Tensor::arange(scores.size()[1], (Kind::Float, scores.device()));
    normalized - frames.view([1, -1, 1, 1])
}
