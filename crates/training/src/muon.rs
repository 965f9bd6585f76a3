//! Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum whose every matrix is replaced by the nearest one with
//! equal singular values.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use crate::MuonConfig;

/// The odd polynomial a·x + b·x³ + c·x⁵ that is applied to the singular values, and how often: it takes all but the
/// smallest near 1.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;

/// The optimizer: weights of two axes and more, and their momentum. A convolution's kernel is a matrix with a row per
/// output channel.
pub(crate) struct Muon {
    config: MuonConfig,
    weights: Vec<Tensor>,
    /// By the order of the weights, in their shapes.
    momentum: Vec<Tensor>,
    /// Weights of the same rows and columns, which are worked on together.
    groups: Vec<Vec<usize>>,
}

impl Muon {
    /// Without momentum.
    pub fn new(weights: Vec<Tensor>, config: MuonConfig) -> Self {
        let momentum = weights.iter().map(|weight| weight.zeros_like().detach()).collect();
        let mut groups: BTreeMap<[i64; 2], Vec<usize>> = BTreeMap::new();
        for (index, weight) in weights.iter().enumerate() {
            let rows = weight.size()[0];
            groups.entry([rows, weight.numel() as i64 / rows.max(1)]).or_default().push(index);
        }
        Self { config, weights, momentum, groups: groups.into_values().collect() }
    }

    /// The live momentum, by the order of the weights.
    pub fn momentum(&self) -> &[Tensor] {
        &self.momentum
    }

    /// One step over the weights that have a gradient. `schedule`: the share of the peak learning rate.
    pub fn step(&mut self, schedule: f64, weight_decay: f64) {
        let MuonConfig { learning_rate, momentum: kept, .. } = self.config;
        let rate = learning_rate * schedule;
        no_grad(|| {
            for group in &self.groups {
                let group: Vec<usize> =
                    group.iter().copied().filter(|&i| self.weights[i].grad().defined()).collect();
                if group.is_empty() {
                    continue;
                }
                let ahead: Vec<Tensor> = group
                    .iter()
                    .map(|&i| {
                        let gradient = self.weights[i].grad();
                        let _ = self.momentum[i].lerp_(&gradient, 1.0 - kept);
                        // Nesterov's: where the momentum will be after another such gradient.
                        gradient.lerp(&self.momentum[i], kept).flatten(1, -1)
                    })
                    .collect();
                let updates = orthogonal(&Tensor::stack(&ahead, 0));
                for (&i, update) in group.iter().zip(updates.unbind(0)) {
                    let mut weight = self.weights[i].shallow_clone();
                    let size = weight.size();
                    let _ = weight.g_mul_scalar_(1.0 - rate * weight_decay);
                    let _ = weight.g_sub_(&(update.reshape(size) * rate));
                }
            }
        });
    }
}

/// Of matrices `[N, rows, columns]`: those with the same singular vectors whose singular values are all near 1, times
/// √(rows / columns) where there are more rows, so that outputs change as much whatever the shape.
///
/// The polynomial of X is a polynomial of the smaller of X Xᵀ and Xᵀ X times X, so that the iterations are products of small
/// matrices: those of a 3×3×3 kernel take a fifth of the products that iterating X itself takes.
fn orthogonal(matrices: &Tensor) -> Tensor {
    let size = matrices.size();
    let (rows, columns) = (size[1], size[2]);
    let wide = if rows > columns { matrices.transpose(1, 2) } else { matrices.shallow_clone() };
    let norm = wide.norm_scalaropt_dim(2.0, [1i64, 2], true).clamp_min(1e-7);
    let wide = (wide / norm).to_kind(Kind::Float);
    let mut gram = wide.bmm(&wide.transpose(1, 2));
    let identity = Tensor::eye(rows.min(columns), (Kind::Float, matrices.device()));
    let mut product: Option<Tensor> = None;
    let [a, b, c] = COEFFICIENTS;
    for iteration in 0..ITERATIONS {
        let step = &identity * a + &gram * b + gram.bmm(&gram) * c;
        if iteration + 1 < ITERATIONS {
            gram = step.bmm(&gram).bmm(&step);
        }
        product = Some(match product {
            None => step,
            Some(product) => step.bmm(&product),
        });
    }
    let wide = product.expect("there are iterations").bmm(&wide).to_kind(matrices.kind());
    if rows > columns { wide.transpose(1, 2) * (rows as f64 / columns as f64).sqrt() } else { wide }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn singular_values_come_near_one() {
        for [rows, columns] in [[6, 40], [40, 6]] {
            let update = orthogonal(&Tensor::randn([3, rows, columns], (Kind::Float, Device::Cpu)));
            let update = update / (rows as f64 / columns as f64).max(1.0).sqrt();
            let turned = update.transpose(1, 2);
            let gram = if rows > columns { turned.bmm(&update) } else { update.bmm(&turned) };
            let values = gram.linalg_eigvalsh("L").sqrt();
            assert!(values.min().double_value(&[]) > 0.5, "{values}");
            assert!(values.max().double_value(&[]) < 1.3, "{values}");
        }
    }

    #[test]
    fn it_is_the_iteration_of_the_matrix_itself() {
        let matrix = Tensor::randn([1, 5, 12], (Kind::Double, Device::Cpu));
        let [a, b, c] = COEFFICIENTS;
        let mut x = &matrix / matrix.norm();
        for _ in 0..ITERATIONS {
            let gram = x.bmm(&x.transpose(1, 2));
            x = &x * a + (&gram * b + gram.bmm(&gram) * c).bmm(&x);
        }
        assert!((orthogonal(&matrix) - x).abs().max().double_value(&[]) < 1e-3);
    }
}
