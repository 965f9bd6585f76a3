//! Fréchet and kernel distances of features.

use metrics::frechet::{FrechetRule, Moments, frechet, frechet_distance};
use metrics::kernel::{Estimator, PolynomialKernel, kernel_distance, subset_kernel_distance};
use proptest::prelude::*;
use tch::{Kind, Tensor};

use super::{noise, number, refusal};

const RULES: [FrechetRule; 3] =
    [FrechetRule::SqrtmFloat64, FrechetRule::FidEpsFloat64, FrechetRule::SvdFloat32];

/// Four samples in the plane with a given mean and the covariance LLᵀ, exactly.
fn four(mean: [f64; 2], l: [[f64; 2]; 2]) -> Tensor {
    // Columns ±e₁, ±e₂ times √(3/2) have the identity as covariance with divisor 3.
    let r = 1.5f64.sqrt();
    let unit = Tensor::from_slice(&[r, 0.0, -r, 0.0, 0.0, r, 0.0, -r]).view([4, 2]);
    unit.matmul(&Tensor::from_slice(l.as_flattened()).view([2, 2]).transpose(0, 1))
        + Tensor::from_slice(&mean)
}

#[test]
fn two_gaussians_in_the_plane() {
    let (l1, l2) = ([[2.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [-3.0, 0.25]]);
    let (a, b) = (four([1.0, 2.0], l1), four([-2.0, 6.0], l2));
    let product = |l: [[f64; 2]; 2]| {
        let (p, q, r) = (l[0][0], l[1][0], l[1][1]);
        [[p * p, p * q], [p * q, q * q + r * r]]
    };
    let (c1, c2) = (product(l1), product(l2));
    let trace = |c: [[f64; 2]; 2]| c[0][0] + c[1][1];
    let determinant = |c: [[f64; 2]; 2]| c[0][0] * c[1][1] - c[0][1] * c[1][0];
    // For 2 × 2 matrices tr √M = √(tr M + 2 √det M).
    let trace_of_product: f64 = (0..2).flat_map(|i| (0..2).map(move |j| c1[i][j] * c2[j][i])).sum();
    let root = (trace_of_product + 2.0 * (determinant(c1) * determinant(c2)).sqrt()).sqrt();
    let expected = 9.0 + 16.0 + trace(c1) + trace(c2) - 2.0 * root;
    for rule in RULES {
        let found = frechet_distance(&a, &b, rule).unwrap();
        let tolerance = if rule == FrechetRule::SvdFloat32 { 1e-4 } else { 1e-9 };
        assert!((found.distance - expected).abs() < tolerance, "{rule}: {found:?}, expected {expected}");
        assert!((found.mean_term - 25.0).abs() < 1e-9);
        assert!((found.trace_term - trace(c1) - trace(c2)).abs() < 1e-9);
    }
}

#[test]
fn covariances_without_full_rank() {
    // Three samples of ten dimensions; a constant set, whose covariance is zero.
    let few = noise(&[3, 10], 1);
    let constant = Tensor::ones([5, 10], (Kind::Float, tch::Device::Cpu));
    for rule in [FrechetRule::SqrtmFloat64, FrechetRule::FidEpsFloat64] {
        assert!(frechet_distance(&few, &few, rule).unwrap().distance.abs() < 1e-6);
        let against = frechet_distance(&few, &constant, rule).unwrap();
        assert!((against.distance - against.mean_term - against.trace_term).abs() < 1e-9);
    }
}

#[test]
fn sets_that_have_no_distance() {
    let (one, two) = (noise(&[1, 4], 1), noise(&[2, 4], 2));
    let single = frechet_distance(&one, &two, FrechetRule::SqrtmFloat64).unwrap();
    assert_eq!(single.distance, single.mean_term);
    for rule in [FrechetRule::FidEpsFloat64, FrechetRule::SvdFloat32] {
        assert!(refusal(frechet_distance(&one, &two, rule)).contains("at least 2"));
    }
    let empty = Moments::new(4).unwrap();
    let full = Moments::of(&two).unwrap();
    assert!(refusal(frechet(&empty, &full, FrechetRule::SqrtmFloat64)).contains("0 and 2 samples"));
    assert!(refusal(frechet_distance(&two, &noise(&[2, 5], 3), FrechetRule::default())).contains("[4]"));
    assert!(refusal(Moments::of(&(&two / 0.0))).contains("finite"));
    assert!(refusal(Moments::of(&two.get(0))).contains("[N, D]"));
    assert!(Moments::new(0).is_err());
}

#[test]
fn kernel_distances_of_a_set_with_itself() {
    let (x, kernel) = (noise(&[12, 5], 1), PolynomialKernel::default());
    assert!(kernel_distance(&x, &x, &kernel, Estimator::Biased).unwrap().abs() < 1e-12);
    assert!(kernel_distance(&x, &x, &kernel, Estimator::UStatistic).unwrap().abs() < 1e-12);
    // Without its own diagonal, a set is nearer to itself than any unbiased estimate expects.
    assert!(kernel_distance(&x, &x, &kernel, Estimator::Unbiased).unwrap() < 0.0);
    let far = &x + 3.0;
    for estimator in [Estimator::Biased, Estimator::Unbiased, Estimator::UStatistic] {
        assert!(kernel_distance(&x, &far, &kernel, estimator).unwrap() > 1.0);
    }
}

#[test]
fn subsets_are_drawn_from_the_seed() {
    let (x, y) = (noise(&[30, 4], 1), noise(&[40, 4], 2) + 1.0);
    let first = subset_kernel_distance(&x, &y, 10, 8, 5).unwrap();
    assert_eq!(first, subset_kernel_distance(&x, &y, 10, 8, 5).unwrap());
    assert_ne!(first, subset_kernel_distance(&x, &y, 10, 8, 6).unwrap());
    assert!(first.mean > 0.0 && first.std > 0.0);
    // One subset that is the whole set is the plain estimate.
    let whole = subset_kernel_distance(&x, &y.narrow(0, 0, 30), 1, 30, 0).unwrap();
    let kernel = PolynomialKernel::default();
    let plain = kernel_distance(&x, &y.narrow(0, 0, 30), &kernel, Estimator::Unbiased).unwrap();
    assert!((whole.mean - plain).abs() < 1e-9 && whole.std == 0.0);
    assert!(refusal(subset_kernel_distance(&x, &y, 10, 31, 5)).contains("2 to 30"));
    assert!(refusal(subset_kernel_distance(&x, &y, 0, 8, 5)).contains("subsets"));
    assert!(refusal(kernel_distance(&x, &y, &kernel, Estimator::Biased)).contains("[30, 4]"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frechet_of_a_set_with_itself_is_zero_and_else_symmetric(seed in 0u64..1000, n in 2i64..20, d in 1i64..8) {
        let (a, b) = (noise(&[n, d], seed), noise(&[n + 3, d], seed + 1) * 2.0);
        for rule in RULES {
            let tolerance = if rule == FrechetRule::SvdFloat32 { 5e-2 } else { 1e-6 };
            prop_assert!(frechet_distance(&a, &a, rule).unwrap().distance.abs() < tolerance);
            let there = frechet_distance(&a, &b, rule).unwrap().distance;
            let back = frechet_distance(&b, &a, rule).unwrap().distance;
            prop_assert!((there - back).abs() < tolerance && there > -tolerance, "{} {} {}", rule, there, back);
        }
    }

    #[test]
    fn moments_do_not_depend_on_batches(seed in 0u64..1000, n in 2i64..20, cut in 1i64..19) {
        let features = noise(&[n, 5], seed) + 1000.0;
        let whole = Moments::of(&features).unwrap();
        let cut = cut.min(n - 1);
        let mut parts = Moments::of(&features.narrow(0, 0, cut)).unwrap();
        for row in cut..n {
            parts.add(&features.narrow(0, row, 1)).unwrap();
        }
        prop_assert_eq!(whole.count(), parts.count());
        prop_assert!(number(&(whole.mean() - parts.mean()).abs().max()) < 1e-9);
        prop_assert!(number(&(whole.covariance() - parts.covariance()).abs().max()) < 1e-9);
    }
}
