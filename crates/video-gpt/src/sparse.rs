//! The strided block layout of sparse attention (Child et al., arXiv 1904.10509), on grids, as a mask.
//!
//! Dense attention with this mask gives what block-sparse kernels give.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, GridShape, Result};

/// Which blocks of tokens, in raster order, see which. The default is that of the published models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseLayout {
    /// Tokens of a block.
    pub block: i64,
    /// Blocks before its own that each sees (and, where it may, as many less one behind).
    pub num_local_blocks: i64,
}

impl Default for SparseLayout {
    fn default() -> Self {
        Self { block: 32, num_local_blocks: 4 }
    }
}

impl SparseLayout {
    /// The grid of blocks: the last axes of the token grid are joined until they hold more than a block.
    ///
    /// # Errors
    /// The blocks do not divide the grid, or a field is out of range.
    pub fn block_shape(&self, grid: GridShape) -> Result<Vec<i64>> {
        if self.num_local_blocks < 1 {
            return Err(Error::config("num_local_blocks", self.num_local_blocks, "at least 1"));
        }
        let axes = [grid.frames, grid.height, grid.width];
        let mut first = axes.len();
        let mut joined = 1;
        while first > 0 && joined <= self.block {
            first -= 1;
            joined *= axes[first];
        }
        if self.block < 1 || joined % self.block != 0 {
            let expected = format!("a divisor of {joined}, the tokens of the innermost axes of {axes:?}");
            return Err(Error::config("block", self.block, expected));
        }
        let mut shape = axes[..first].to_vec();
        shape.push(joined / self.block);
        Ok(shape)
    }

    /// Which block (row) sees which (column): bool `[blocks, blocks]`.
    ///
    /// # Errors
    /// As [`SparseLayout::block_shape`].
    pub fn block_layout(&self, grid: GridShape, causal: bool) -> Result<Tensor> {
        let shape = self.block_shape(grid)?;
        let blocks: i64 = shape.iter().product();
        let index = Tensor::arange(blocks, (Kind::Int64, Device::Cpu));
        let (row, column) = (index.unsqueeze(1), index.unsqueeze(0));
        let distance = &column - &row;
        let ahead = if causal { 0 } else { self.num_local_blocks - 1 };
        let mut layout = distance.ge(-self.num_local_blocks).logical_and(&distance.le(ahead));
        // Blocks that differ on one axis only; along the last axis there is none but the local.
        let mut stride = blocks;
        for &size in &shape[..shape.len() - 1] {
            stride /= size;
            let place = |block: &Tensor| block.floor_divide_scalar(stride).remainder(size);
            let elsewhere = &index - place(&index) * stride;
            let same_line = elsewhere.unsqueeze(1).eq_tensor(&elsewhere.unsqueeze(0));
            let line = if causal { same_line.logical_and(&distance.le(0)) } else { same_line };
            layout = layout.logical_or(&line);
        }
        Ok(layout)
    }

    /// Which token (row) sees which (column): bool `[S, S]`.
    ///
    /// # Errors
    /// As [`SparseLayout::block_shape`].
    pub fn mask(&self, grid: GridShape, causal: bool) -> Result<Tensor> {
        let layout = self.block_layout(grid, causal)?;
        let repeat = |x: &Tensor, axis: i64| x.repeat_interleave_self_int(self.block, axis, None);
        let mask = repeat(&repeat(&layout, 0), 1);
        Ok(if causal { mask.tril(0) } else { mask })
    }
}
