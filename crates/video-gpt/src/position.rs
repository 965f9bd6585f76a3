//! Learnt positions in space and time, and the shift by one token.

use tch::nn::{self, Init};
use tch::{Tensor, no_grad};
use video_core::{Error, GridShape, Result};

/// One learnt vector for each frame, row and column, a third of the channels each. Variables: `emb.d_0`, `emb.d_1`,
/// `emb.d_2` `[positions, C/3]`.
#[derive(Debug)]
pub struct PositionEmbedding {
    tables: [Tensor; 3],
}

impl PositionEmbedding {
    /// For grids of one shape; 0.01 times standard normals.
    ///
    /// # Errors
    /// The width is not a multiple of 3, or the grid is empty.
    pub fn new(path: &nn::Path, grid: GridShape, width: i64) -> Result<Self> {
        if width < 3 || width % 3 != 0 {
            return Err(Error::config("hidden_dim", width, "a multiple of 3, a third for each axis"));
        }
        let sizes = [grid.frames, grid.height, grid.width];
        if sizes.iter().any(|n| !(1..=1 << 16).contains(n)) {
            return Err(Error::config("grid", grid, "1 to 65536 on each axis"));
        }
        let path = path / "emb";
        let init = Init::Randn { mean: 0.0, stdev: 0.01 };
        let names = ["d_0", "d_1", "d_2"];
        Ok(Self { tables: std::array::from_fn(|i| path.var(names[i], &[sizes[i], width / 3], init)) })
    }

    /// The embeddings of all positions in raster order, `[T·H·W, C]`.
    pub fn all(&self) -> Tensor {
        let sizes: [i64; 3] = std::array::from_fn(|axis| self.tables[axis].size()[0]);
        let thirds: Vec<Tensor> = self
            .tables
            .iter()
            .enumerate()
            .map(|(axis, table)| {
                let mut shape = [1, 1, 1, table.size()[1]];
                shape[axis] = sizes[axis];
                table.view(shape).expand([sizes[0], sizes[1], sizes[2], table.size()[1]], false)
            })
            .collect();
        Tensor::cat(&thirds, -1).flatten(0, 2)
    }
}

/// A learnt vector in front of a sequence, whose last token goes. Variable: `sos` `[C]`.
#[derive(Debug)]
pub struct RightShift {
    sos: Tensor,
}

impl RightShift {
    /// Normal, of standard deviation 0.02.
    pub fn new(path: &nn::Path, width: i64) -> Self {
        Self { sos: path.var("sos", &[width], Init::Randn { mean: 0.0, stdev: 0.02 }) }
    }

    /// The vector for a batch, `[B, 1, C]`.
    pub fn start(&self, batch: i64) -> Tensor {
        self.sos.view([1, 1, -1]).expand([batch, 1, -1], false)
    }

    /// `[B, N, C]` to the same shape.
    ///
    /// # Panics
    /// Another width.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kept = x.narrow(1, 0, x.size()[1] - 1);
        Tensor::cat(&[self.start(x.size()[0]), kept], 1)
    }
}

/// Copies rows into a variable that is not trained.
pub(crate) fn set(variable: &Tensor, values: &Tensor) {
    no_grad(|| variable.shallow_clone().copy_(values));
}
