//! Kernel distances: the squared maximum mean discrepancy under a polynomial kernel.
//!
//! Of I3D features it is KVD, of Inception features KID (Bińkowski et al., 2018). Unlike a Fréchet distance, its unbiased
//! estimate does not depend on the number of samples.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// Which of the kernel's values enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Estimator {
    /// Without the diagonals within a set.
    #[default]
    #[serde(rename = "unbiased")]
    Unbiased,
    /// With them: never negative.
    #[serde(rename = "biased")]
    Biased,
    /// Without the diagonal between the sets either.
    #[serde(rename = "u-statistic")]
    UStatistic,
}

/// The kernel (gamma x·y + coef0)^degree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolynomialKernel {
    /// The power.
    pub degree: u32,
    /// The factor of the scalar product; 1/D where it is not given.
    pub gamma: Option<f64>,
    /// The constant.
    pub coef0: f64,
}

impl Default for PolynomialKernel {
    fn default() -> Self {
        Self { degree: 3, gamma: None, coef0: 1.0 }
    }
}

impl PolynomialKernel {
    fn between(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let gamma = self.gamma.unwrap_or(1.0 / x.size()[1] as f64);
        (x.matmul(&y.transpose(0, 1)) * gamma + self.coef0).pow_tensor_scalar(i64::from(self.degree))
    }
}

/// The squared discrepancy of two sets of features, both `[N, D]` with N ≥ 2.
///
/// # Errors
/// Other shapes, or values that are not finite.
pub fn kernel_distance(
    x: &Tensor,
    y: &Tensor,
    kernel: &PolynomialKernel,
    estimator: Estimator,
) -> Result<f64> {
    let (x, y) = (features("first features", x)?, features("second features", y)?);
    if x.size() != y.size() {
        return Err(Error::shape(
            "second features",
            &y.size(),
            format!("as many as the first, {:?}", x.size()),
        ));
    }
    Ok(discrepancy(&x, &y, kernel, estimator))
}

/// Mean and standard deviation of the unbiased distance over random subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubsetDistance {
    /// The mean.
    pub mean: f64,
    /// The standard deviation over the subsets (divisor: their number).
    pub std: f64,
}

/// KID and KVD as published: the unbiased distance, averaged over `subsets` (100) random subsets of `subset_size` (1000)
/// rows of each set. One seed gives one result.
///
/// # Errors
/// As [`kernel_distance`], but the sets may differ in size; no subset, or one larger than a set.
pub fn subset_kernel_distance(
    x: &Tensor,
    y: &Tensor,
    subsets: usize,
    subset_size: usize,
    seed: u64,
) -> Result<SubsetDistance> {
    let (x, y) = (features("first features", x)?, features("second features", y)?);
    if x.size()[1] != y.size()[1] {
        return Err(Error::shape("second features", &y.size(), format!("[N, {}]", x.size()[1])));
    }
    let smaller = x.size()[0].min(y.size()[0]) as usize;
    if subsets == 0 {
        return Err(Error::config("subsets", subsets, "at least 1"));
    }
    if !(2..=smaller).contains(&subset_size) {
        return Err(Error::config(
            "subset_size",
            subset_size,
            format!("2 to {smaller}, the rows of the smaller set"),
        ));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |set: &Tensor| {
        let rows = rand::seq::index::sample(&mut rng, set.size()[0] as usize, subset_size);
        let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        set.index_select(0, &Tensor::from_slice(&rows))
    };
    let kernel = PolynomialKernel::default();
    let distances: Vec<f64> =
        (0..subsets).map(|_| discrepancy(&draw(&x), &draw(&y), &kernel, Estimator::Unbiased)).collect();
    let mean = distances.iter().sum::<f64>() / subsets as f64;
    let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / subsets as f64;
    Ok(SubsetDistance { mean, std: variance.sqrt() })
}

fn features(what: &str, features: &Tensor) -> Result<Tensor> {
    let size = features.size();
    if size.len() != 2 || size[0] < 2 || size[1] < 1 {
        return Err(Error::shape(what, &size, "[N, D] with N ≥ 2"));
    }
    let features = features.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double);
    if !bool::try_from(features.isfinite().all())? {
        return Err(Error::input(what, "values that are not finite", "finite features"));
    }
    Ok(features)
}

fn discrepancy(x: &Tensor, y: &Tensor, kernel: &PolynomialKernel, estimator: Estimator) -> f64 {
    let n = x.size()[0] as f64;
    let sum = |values: &Tensor| values.sum(Kind::Double).double_value(&[]);
    let trace = |values: &Tensor| values.trace().double_value(&[]);
    let (within_x, within_y, across) = (kernel.between(x, x), kernel.between(y, y), kernel.between(x, y));
    let (all, pairs) = (n * n, n * (n - 1.0));
    let within_without_diagonal =
        (sum(&within_x) - trace(&within_x) + sum(&within_y) - trace(&within_y)) / pairs;
    match estimator {
        Estimator::Biased => (sum(&within_x) + sum(&within_y) - 2.0 * sum(&across)) / all,
        Estimator::Unbiased => within_without_diagonal - 2.0 * sum(&across) / all,
        Estimator::UStatistic => within_without_diagonal - 2.0 * (sum(&across) - trace(&across)) / pairs,
    }
}
