//! What every quantizer with a table shares: the search for the nearest code, sums over the features of each code, and
//! first tables made of data.
//!
//! Several tables side by side are one tensor `[c, K, D]`; the features that each of them serves are `[c, N, D]`.

use tch::{Kind, Tensor};

/// Scores of the search are held for at most so many pairs of a feature and a code at once (64 MiB of float32).
const PAIRS_AT_ONCE: i64 = 1 << 24;

/// What the search maximises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// −|x − e|².
    Euclidean,
    /// x·e.
    Dot,
}

/// x / max(|x|, eps) over the last axis.
pub(crate) fn normalize(x: &Tensor, eps: f64) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(eps)
}

/// |x − e|² of every pair, `[c, N, K]`, from one GEMM. Differentiable; rounding may leave a tiny negative number.
pub(crate) fn squared_distances(x: &Tensor, table: &Tensor) -> Tensor {
    let norms = squared_norms(x) + squared_norms(table).transpose(-2, -1);
    norms.baddbmm(x, &table.transpose(-2, -1), 1.0, -2.0)
}

/// `[..., 1]`.
fn squared_norms(rows: &Tensor) -> Tensor {
    rows.square().sum_dim_intlist([-1i64].as_slice(), true, rows.kind())
}

/// The best code of each feature, int64 `[c, N]`: the first of several that are as good. No gradient. Needs memory for
/// a part of the N × K scores only, never for N × K × D.
pub(crate) fn nearest(x: &Tensor, table: &Tensor, metric: Metric) -> Tensor {
    tch::no_grad(|| {
        let columns = table.transpose(-2, -1);
        // |x|² is the same for all codes of one feature.
        let norms = squared_norms(table).transpose(-2, -1);
        let at_once = (PAIRS_AT_ONCE / (table.size()[0] * table.size()[1]).max(1)).max(1);
        let ids: Vec<Tensor> = x
            .split(at_once, 1)
            .iter()
            .map(|part| match metric {
                Metric::Euclidean => norms.baddbmm(part, &columns, 1.0, -2.0).argmin(-1, false),
                Metric::Dot => part.bmm(&columns).argmax(-1, false),
            })
            .collect();
        Tensor::cat(&ids, 1)
    })
}

/// The codes `[c, N, D]` of ids `[c, N]`. Differentiable in the table.
pub(crate) fn take(table: &Tensor, ids: &Tensor) -> Tensor {
    let (codebooks, size) = (table.size()[0], table.size()[1]);
    let rows = table.flatten(0, 1).index_select(0, &flat_ids(ids, size).reshape([-1]));
    rows.view([codebooks, ids.size()[1], table.size()[2]])
}

/// Ids `[c, N]` as rows of the tables laid one after another.
fn flat_ids(ids: &Tensor, size: i64) -> Tensor {
    let first = Tensor::arange(ids.size()[0], (Kind::Int64, ids.device())) * size;
    ids + first.unsqueeze(-1)
}

/// How many features `[c, N, D]` chose each code, `[c, K]`, and their sums, `[c, K, D]`.
pub(crate) fn counts_and_sums(x: &Tensor, ids: &Tensor, size: i64) -> (Tensor, Tensor) {
    let (codebooks, width) = (x.size()[0], x.size()[2]);
    let rows = flat_ids(ids, size).reshape([-1]);
    let options = (x.kind(), x.device());
    let ones = Tensor::ones([rows.size()[0]], options);
    let counts = Tensor::zeros([codebooks * size], options).index_add(0, &rows, &ones);
    let sums = Tensor::zeros([codebooks * size, width], options).index_add(0, &rows, &x.reshape([-1, width]));
    (counts.view([codebooks, size]), sums.view([codebooks, size, width]))
}

/// An order of N things, drawn from torch's global generator.
pub(crate) fn random_order(n: i64, like: &Tensor) -> Tensor {
    Tensor::randperm(n, (Kind::Int64, like.device()))
}

/// Rows `[c, size, D]` of features `[c, N, D]`: those that come first in `order`; it starts over where N < `size`.
pub(crate) fn first_rows(x: &Tensor, order: &Tensor, size: i64) -> Tensor {
    let n = order.size()[0];
    let chosen = if n >= size {
        order.narrow(0, 0, size)
    } else {
        order.index_select(0, &Tensor::arange(size, (Kind::Int64, order.device())).remainder(n))
    };
    x.index_select(1, &chosen)
}

/// At least `size` rows (VideoGPT): enough features stay as they are, too few are repeated, every copy with noise of
/// standard deviation 0.01/√D. `noise`: standard normals `[rows, D]`, drawn where not given.
pub(crate) fn tile_rows(x: &Tensor, size: i64, noise: Option<&Tensor>) -> Tensor {
    let (n, width) = (x.size()[1], x.size()[2]);
    if n >= size {
        return x.shallow_clone();
    }
    let tiled = x.repeat([1, (size + n - 1) / n, 1]);
    let noise = noise.map_or_else(|| tiled.randn_like(), Tensor::shallow_clone);
    tiled + noise * (0.01 / (width as f64).sqrt())
}

/// Lloyd's algorithm: the means `[c, K, D]` and how many features each had in the last iteration, `[c, K]`. It starts
/// from the first K features in `order`; a mean without features stays where it is. With [`Metric::Dot`] means are kept
/// on the unit sphere.
pub(crate) fn k_means(
    x: &Tensor,
    size: i64,
    iterations: u32,
    metric: Metric,
    order: &Tensor,
) -> (Tensor, Tensor) {
    let mut means = first_rows(x, order, size);
    let mut counts = Tensor::zeros([x.size()[0], size], (x.kind(), x.device()));
    for _ in 0..iterations {
        let sums;
        (counts, sums) = counts_and_sums(x, &nearest(x, &means, metric), size);
        let moved = sums / counts.clamp_min(1.0).unsqueeze(-1);
        let moved = if metric == Metric::Dot { normalize(&moved, 1e-6) } else { moved };
        means = moved.where_self(&counts.gt(0.0).unsqueeze(-1), &means);
    }
    (means, counts)
}
