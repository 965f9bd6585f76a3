//! The rotation trick (Fifty et al., arXiv 2410.06424).

use tch::Tensor;

use crate::codebook::normalize;

const EPS: f64 = 1e-6;

/// The value of `quantized`, reached by rotating and scaling `x` (both `[..., D]`): the gradient of the output arrives at
/// `x` rotated and scaled alike, so that features keep their angle to it. Nothing goes to `quantized`.
pub fn rotate_to(x: &Tensor, quantized: &Tensor) -> Tensor {
    let (u, v, w, scale) = tch::no_grad(|| {
        let norm = |t: &Tensor| t.norm_scalaropt_dim(2.0, [-1i64], true);
        let (u, v) = (normalize(x, EPS), normalize(quantized, EPS));
        let w = normalize(&(&u + &v), EPS);
        (u, v, w, norm(quantized) / norm(x).clamp_min(EPS))
    });
    let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist([-1i64].as_slice(), true, a.kind());
    // The reflections' composition I − 2wwᵀ + 2vuᵀ takes u to v.
    (x - dot(x, &w) * &w * 2.0 + dot(x, &u) * &v * 2.0) * scale
}
