//! Properties of the shared blocks.

use layers::{AttentionOptions, attention, init, merge_heads, split_heads};
use tch::{Device, Kind, Tensor, nn};

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn attention_is_the_softmax_of_the_scores_times_the_values() {
    let (q, k, v) = (randn(&[2, 3, 5, 4]), randn(&[2, 3, 7, 4]), randn(&[2, 3, 7, 4]));
    let seen = randn(&[2, 1, 5, 7]).gt(-1.0);
    let scores = q.matmul(&k.transpose(-2, -1)) * 0.3;
    let expected =
        scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Float).matmul(&v);
    let options = AttentionOptions { scale: Some(0.3), ..Default::default() };
    assert!(distance(&attention(&q, &k, &v, Some(&seen), options), &expected) < 1e-5);
}

#[test]
fn heads_split_and_merge() {
    let x = randn(&[2, 5, 12]);
    assert_eq!(split_heads(&x, 3).size(), [2, 3, 5, 4]);
    assert_eq!(merge_heads(&split_heads(&x, 3)), x);
}

#[test]
fn a_truncated_normal_keeps_its_bounds_and_its_spread() {
    let variables = nn::VarStore::new(Device::Cpu);
    let x = init::truncated_normal(&variables.root(), "x", &[100_000], 0.02, 2.0);
    assert!(x.abs().max().double_value(&[]) <= 0.04 + 1e-6);
    assert!((x.std(true).double_value(&[]) - 0.0176).abs() < 2e-4);
    assert!(x.mean(Kind::Float).double_value(&[]).abs() < 3e-4);
}
