//! How the codes of one call were used.

use tch::{Device, Kind, Tensor};

use crate::Usage;

/// Above this size the histogram is not laid out over all codes.
const DENSE_HISTOGRAM: i64 = 1 << 22;

impl Usage {
    /// Counts ids (int64, any shape; negative ids are not counted) of a codebook of `size` codes. Ids of several
    /// codebooks of one size are counted together.
    pub fn of(ids: &Tensor, size: i64) -> Self {
        tch::no_grad(|| {
            let ids = ids.reshape([-1]);
            let ids = ids.masked_select(&ids.ge(0));
            let counts = if size <= DENSE_HISTOGRAM {
                ids.bincount::<Tensor>(None, size)
            } else {
                let (sorted, _) = ids.sort(0, false);
                sorted.unique_consecutive(false, true, 0).2
            };
            let counts = counts.to_kind(Kind::Float);
            let share = &counts / counts.sum(Kind::Float).clamp_min(1.0);
            let perplexity = (-share.special_xlogy(&share).sum(Kind::Float)).exp();
            let used_share = counts.gt(0.0).to_kind(Kind::Float).sum(Kind::Float) / size as f64;
            Self { perplexity, used_share }
        })
    }

    /// No code at all was used: the neutral value for empty input.
    pub fn none(device: Device) -> Self {
        Self {
            perplexity: Tensor::ones([], (Kind::Float, device)),
            used_share: Tensor::zeros([], (Kind::Float, device)),
        }
    }
}
