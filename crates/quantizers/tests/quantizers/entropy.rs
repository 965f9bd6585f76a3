//! LFQ's factorised entropies against sums over all codes.

use proptest::prelude::*;
use quantizers::bits::unpack_bits;
use quantizers::*;
use tch::{Device, Kind, Tensor};
use video_core::Error;

use crate::seeded;

const EPSILON: f64 = 1e-5;

/// p(k|x), `[c, N, 2^d]`, of features `[c, N, d]` by its definition, a softmax over all codes.
fn assignments(x: &Tensor, slope: f64, order: BitOrder) -> Tensor {
    let bits = x.size()[2];
    let ids = Tensor::arange(1 << bits, (Kind::Int64, Device::Cpu));
    let codes = unpack_bits(&ids, bits, order).to_kind(x.kind()) * 2.0 - 1.0;
    (x.matmul(&codes.tr()) * (slope / 2.0)).softmax(-1, x.kind())
}

fn negated_log(p: &Tensor, log: EntropyLog) -> Tensor {
    let safe = match log {
        EntropyLog::Exact => p.clamp_min(1e-37),
        EntropyLog::Added => p + EPSILON,
        EntropyLog::Clamp => p.clamp_min(EPSILON),
    };
    -(p * safe.log())
}

/// Both entropies over all codes. The logarithm with an addend is exact for the single token.
fn by_definition(x: &Tensor, slope: f64, log: EntropyLog) -> (Tensor, Tensor) {
    let p = assignments(x, slope, BitOrder::MsbFirst);
    let per_token = if log == EntropyLog::Clamp { log } else { EntropyLog::Exact };
    let (codebooks, tokens) = (p.size()[0], p.size()[1]);
    let per_sample = negated_log(&p, per_token).sum(x.kind()) / (codebooks * tokens) as f64;
    let mean = p.mean_dim([1i64].as_slice(), false, x.kind());
    (per_sample, negated_log(&mean, log).sum(x.kind()) / codebooks as f64)
}

/// Values and gradients of both, within `tolerance` absolutely and, for gradients, relative to the largest or 1e-3.
fn compare(shape: [i64; 3], std: f64, slope: f64, log: EntropyLog, kind: Kind, tolerance: f64) {
    let x = (Tensor::randn(shape, (kind, Device::Cpu)) * std).set_requires_grad(true);
    let ours = code_entropies(&x, slope, log).unwrap();
    let theirs = by_definition(&x, slope, log);
    for (what, ours, theirs) in
        [("per sample", &ours.per_sample, &theirs.0), ("batch", &ours.batch, &theirs.1)]
    {
        let apart = (ours - theirs).abs().double_value(&[]);
        assert!(apart <= tolerance, "{what} of {shape:?}, std {std}, {log:?}: {apart:e} apart");
        let gradient = |value: &Tensor| Tensor::run_backward(&[value], &[&x], true, false).remove(0);
        let (a, b) = (gradient(ours), gradient(theirs));
        let apart = ((&a - &b).abs().max() / b.abs().max().clamp_min(1e-3)).double_value(&[]);
        assert!(apart <= tolerance, "gradient {what} of {shape:?}, std {std}, {log:?}: {apart:e} apart");
    }
}

#[test]
fn entropies_equal_those_over_all_codes() {
    let _alone = seeded(0);
    for log in [EntropyLog::Exact, EntropyLog::Added, EntropyLog::Clamp] {
        for (bits, tokens) in [(1, 5), (2, 7), (5, 20), (8, 48), (10, 24)] {
            for std in [0.002, 0.02, 0.3] {
                compare([1, tokens, bits], std, 400.0, log, Kind::Double, 1e-9);
            }
        }
        compare([3, 16, 6], 0.01, 400.0, log, Kind::Double, 1e-9);
        compare([1, 64, 10], 0.01, 400.0, log, Kind::Float, 1e-4);
        compare([1, 24, 12], 0.01, 400.0, log, Kind::Float, 1e-4);
    }
}

#[test]
fn a_vocabulary_of_two_to_the_eighteen_has_exact_entropies() {
    let _alone = seeded(1);
    // Undecided tokens use all codes evenly; a decided one has one code.
    let undecided = Tensor::zeros([1, 4, 18], (Kind::Float, Device::Cpu));
    let entropies = code_entropies(&undecided, 400.0, EntropyLog::Exact).unwrap();
    let all = 18.0 * std::f64::consts::LN_2;
    assert!((entropies.per_sample.double_value(&[]) - all).abs() < 1e-4);
    assert!((entropies.batch.double_value(&[]) - all).abs() < 1e-4);
    // The clamped logarithm is at its ceiling there, and sends no gradient.
    let ceiling = code_entropies(&undecided, 400.0, EntropyLog::Added).unwrap().batch;
    assert!((ceiling.double_value(&[]) - 11.190).abs() < 1e-3);

    let x = (Tensor::randn([1, 4, 18], (Kind::Float, Device::Cpu)) + 3.0).set_requires_grad(true);
    let decided = code_entropies(&x, 400.0, EntropyLog::Exact).unwrap();
    (&decided.per_sample + &decided.batch).backward();
    assert!(bool::try_from(x.grad().isfinite().all()).unwrap());
    assert!(decided.per_sample.double_value(&[]).abs() < 1e-3);
}

#[test]
fn entropies_refuse_other_shapes() {
    let options = (Kind::Float, Device::Cpu);
    for shape in [vec![4, 3], vec![1, 0, 3], vec![1, 4, 0], vec![1, 4, MAX_ENTROPY_BITS + 1]] {
        let x = Tensor::zeros(&shape, options);
        assert!(
            matches!(code_entropies(&x, 400.0, EntropyLog::Exact), Err(Error::Shape { .. })),
            "{shape:?}"
        );
        assert!(
            matches!(code_marginal(&x, 400.0, BitOrder::LsbFirst), Err(Error::Shape { .. })),
            "{shape:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_mean_assignment_is_that_of_the_ids(
        bits in 1i64..9, tokens in 1i64..20, codebooks in 1i64..4, seed in 0i64..1000, lsb in any::<bool>(),
    ) {
        let _alone = seeded(seed);
        let order = if lsb { BitOrder::LsbFirst } else { BitOrder::MsbFirst };
        let x = Tensor::randn([codebooks, tokens, bits], (Kind::Double, Device::Cpu)) * 0.01;
        let m = code_marginal(&x, 400.0, order).unwrap();
        let expected = assignments(&x, 400.0, order).mean_dim([1i64].as_slice(), false, Kind::Double);
        prop_assert_eq!(m.size(), [codebooks, 1 << bits]);
        prop_assert!(m.allclose(&expected, 1e-9, 1e-12, false));
        // Of features that are sure, the histogram of the ids.
        let sure = x.sign();
        let config = LfqConfig { bits, bit_order: order, ..LfqConfig::default() };
        let lfq = Lfq::new(&tch::nn::VarStore::new(Device::Cpu).root(), bits, config).unwrap();
        let ids = lfq.quantize(&sure.get(0), Mode::Eval).unwrap().ids.unwrap();
        let counts = ids.bincount::<Tensor>(None, 1 << bits).to_kind(Kind::Double) / tokens as f64;
        let m = code_marginal(&sure, 400.0, order).unwrap().get(0);
        prop_assert!(m.allclose(&counts, 1e-3, 1e-3, false));
    }

    #[test]
    fn mixing_never_lowers_entropy(bits in 1i64..12, tokens in 1i64..30, std in 0.001f64..1.0, seed in 0i64..1000) {
        let _alone = seeded(seed);
        let x = Tensor::randn([1, tokens, bits], (Kind::Double, Device::Cpu)) * std;
        let CodeEntropies { per_sample, batch } = code_entropies(&x, 400.0, EntropyLog::Exact).unwrap();
        let (low, high) = (per_sample.double_value(&[]), batch.double_value(&[]));
        prop_assert!(low >= 0.0 && low <= high + 1e-9);
        prop_assert!(high <= bits as f64 * std::f64::consts::LN_2 + 1e-9);
    }
}
