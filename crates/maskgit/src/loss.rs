//! The training loss: smoothed cross-entropy at weighted positions.

use tch::{Kind, Tensor};

/// Per sample the weighted mean, over positions, of the smoothed cross-entropy; then the mean over samples, so that a
/// sample with few masked tokens weighs as much as one with many. 0-d, in nats.
///
/// `cross_entropy` `[M]` is that of the rows (of B·L) in `rows` `[M]`; the others have weight 0. `weights` `[B, L]`. A sample
/// without weight gives 0.
pub fn weighted_mean(cross_entropy: &Tensor, rows: &Tensor, weights: &Tensor) -> Tensor {
    let kept = weights.reshape([-1]).index_select(0, rows);
    let totals = weights.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).clamp_min(1e-8);
    let samples = rows.divide_scalar_mode(weights.size()[1], "floor");
    let sums = Tensor::zeros([weights.size()[0]], (Kind::Float, weights.device())).index_add(
        0,
        &samples,
        &(cross_entropy * kept),
    );
    (sums / totals).mean(Kind::Float)
}

/// −Σ t ln softmax(logits) of each row, `[M]`, where t is 1 − ε at the target with ε spread over all columns, the target's
/// too. Logits `[M, V]`, targets int64 `[M]`.
pub fn smoothed_cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Tensor {
    logits.to_kind(Kind::Float).cross_entropy_loss(
        targets,
        None::<&Tensor>,
        tch::Reduction::None,
        -100,
        label_smoothing,
    )
}
