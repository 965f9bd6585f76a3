//! Between the sizes of scales. All of `[B, C, T, H, W]`; an image has T = 1.

use layers::{fold_time, unfold_time};
use tch::Tensor;
use video_core::GridShape;

/// The size of the last three axes.
pub(crate) fn grid_of(x: &Tensor) -> GridShape {
    let size = x.size();
    GridShape { frames: size[2], height: size[3], width: size[4] }
}

/// Means over the cells of a coarser grid: cell i of m covers the positions ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉ of n along an axis
/// ("area", adaptive average pooling).
pub fn area(x: &Tensor, to: GridShape) -> Tensor {
    if grid_of(x) == to {
        return x.shallow_clone();
    }
    x.adaptive_avg_pool3d([to.frames, to.height, to.width])
}

/// Bicubic in space (half-pixel centres, a = −0.75, borders repeated), linear in time.
pub fn enlarge(x: &Tensor, to: GridShape) -> Tensor {
    let from = grid_of(x);
    let size = [to.height, to.width];
    let spatial = if [from.height, from.width] == size {
        x.shallow_clone()
    } else {
        unfold_time(&fold_time(x).upsample_bicubic2d(size, false, None, None), x.size()[0])
    };
    if from.frames == to.frames {
        return spatial;
    }
    spatial.upsample_trilinear3d([to.frames, to.height, to.width], false, None, None, None)
}
