//! Quantizers without a table, the KL bottleneck, and ids as numbers.

use proptest::prelude::*;
use quantizers::bits::{join_id, pack_bits, pack_ids, split_id, unpack_bits, unpack_ids};
use quantizers::*;
use tch::{Device, Kind, Tensor, nn};
use video_core::Error;

use crate::seeded;
use crate::table::{assert_close, features, field_of};

const TRAIN: Mode = Mode::Train { step: 0 };

/// The kinds with ids, small, with and without projections at width 8.
pub(crate) fn kinds() -> Vec<QuantizerConfig> {
    let lfq = LfqConfig::with_bits;
    let fsq = |levels: &[i64]| FsqConfig { levels: levels.into(), ..FsqConfig::default() };
    let residual = |form| ResidualFsqConfig { num_quantizers: 3, form, ..ResidualFsqConfig::default() };
    let lfq_stages = |stage| ResidualLfqConfig { num_quantizers: 3, stage, ..ResidualLfqConfig::default() };
    let mut all: Vec<QuantizerConfig> = [
        lfq(8),
        LfqConfig { num_codebooks: 2, bit_order: BitOrder::MsbFirst, warmup_steps: 2, ..lfq(4) },
        LfqConfig { soft_clamp: Some(2.0), codebook_scale: 0.5, entropy_log: EntropyLog::Clamp, ..lfq(5) },
        LfqConfig { num_codebooks: 2, batch_average: BatchAverage::Joint, ..LfqConfig::bsq(3) },
        LfqConfig { entropy_weight: 0.0, ..lfq(40) },
        LfqConfig { frac_per_sample_entropy: 0.5, entropy_log: EntropyLog::Added, ..lfq(8) },
    ]
    .map(QuantizerConfig::Lfq)
    .into();
    all.extend(
        [
            fsq(&[8, 5, 5]),
            FsqConfig { num_codebooks: 2, ..fsq(&[7, 6, 5, 2]) },
            FsqConfig { symmetric: true, ..fsq(&[2, 3, 4]) },
            FsqConfig { hard_clamp: true, ..fsq(&[4, 3]) },
            FsqConfig { symmetric: true, hard_clamp: true, ..fsq(&[5; 8]) },
        ]
        .map(QuantizerConfig::Fsq),
    );
    all.extend(
        [ResidualFsqForm::Clamped, ResidualFsqForm::Tanh, ResidualFsqForm::Plain]
            .map(|form| QuantizerConfig::ResidualFsq(residual(form))),
    );
    all.extend(
        [lfq_stages(lfq(8)), lfq_stages(LfqConfig { soft_clamp: Some(1.0), ..LfqConfig::bsq(5) })]
            .map(QuantizerConfig::ResidualLfq),
    );
    all
}

fn lfq(config: LfqConfig) -> Lfq {
    Lfq::new(&nn::VarStore::new(Device::Cpu).root(), config.code_dim(), config).unwrap()
}

fn fsq(config: FsqConfig) -> Fsq {
    Fsq::new(&nn::VarStore::new(Device::Cpu).root(), config.code_dim(), config).unwrap()
}

fn number(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

fn loss(quantized: &Quantized, name: &str) -> f64 {
    number(&quantized.losses.iter().find(|(known, _)| *known == name).expect("such a loss").1)
}

#[test]
fn bits_weigh_what_their_order_says() {
    let bits = Tensor::from_slice(&[1i64, 1, 0, 0]);
    assert_eq!(pack_bits(&bits, BitOrder::LsbFirst).int64_value(&[]), 3);
    assert_eq!(pack_bits(&bits, BitOrder::MsbFirst).int64_value(&[]), 12);
    let id = Tensor::from_slice(&[0b01101i64]);
    let parts = |order| {
        let parts = split_id(&id, &[2, 3], order).unwrap();
        parts.iter().map(|part| part.int64_value(&[0])).collect::<Vec<_>>()
    };
    assert_eq!(parts(BitOrder::LsbFirst), [0b01, 0b011]);
    assert_eq!(parts(BitOrder::MsbFirst), [0b01, 0b101]);
    // The first id changes fastest.
    assert_eq!(pack_ids(&Tensor::from_slice(&[2i64, 1, 3]), &[3, 2, 4]).unwrap().int64_value(&[]), 23);
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    let ids = Tensor::from_slice(&[3i64, 0]);
    assert!(pack_ids(&ids, &[3, 2]).is_err());
    assert!(pack_ids(&ids, &[4]).is_err());
    assert!(pack_ids(&ids, &[1 << 40, 1 << 40]).is_err());
    assert!(unpack_ids(&Tensor::from_slice(&[6i64]), &[3, 2]).is_err());
    assert!(split_id(&ids, &[], BitOrder::LsbFirst).is_err());
    assert!(split_id(&ids, &[40, 40], BitOrder::LsbFirst).is_err());
    assert!(join_id(&[ids.shallow_clone()], &[2, 2], BitOrder::LsbFirst).is_err());
    assert!(join_id(&[ids.shallow_clone(), ids], &[1, 2], BitOrder::LsbFirst).is_err());
    let small = lfq(LfqConfig::with_bits(3));
    for wrong in [Tensor::from_slice(&[8i64]), Tensor::from_slice(&[-1i64]), Tensor::from_slice(&[1.0f32])] {
        assert!(matches!(small.lookup(&wrong), Err(Error::Input { .. })));
    }
}

#[test]
fn the_entropy_weight_falls_to_its_value() {
    let warmup = EntropyWarmup::default();
    let factors = [0, 1000, 2000, 9000].map(|step| warmup.factor(step));
    assert_eq!(factors, [3.0, 2.0, 1.0, 1.0]);
    assert_eq!(EntropyWarmup::OFF.factor(0), 1.0);

    let _alone = seeded(0);
    let lfq = lfq(LfqConfig::with_bits(6));
    let x = features(&[50, 6]) * 0.01;
    let at = |step| lfq.quantize(&x, Mode::Train { step }).unwrap();
    let (first, last) = (at(0), at(2000));
    assert!((loss(&first, "entropy") / loss(&last, "entropy") - 3.0).abs() < 1e-5);
    assert_eq!(loss(&first, "commitment"), loss(&last, "commitment"));
}

#[test]
fn a_warm_up_goes_from_features_to_codes() {
    let _alone = seeded(0);
    for spherical in [false, true] {
        let config =
            LfqConfig { warmup_steps: 100, spherical, codebook_scale: 0.7, ..LfqConfig::with_bits(6) };
        let plain = lfq(LfqConfig { warmup_steps: 0, ..config.clone() });
        let value = config.code_value();
        let warming = lfq(config);
        let x = features(&[20, 6]);
        let soft = if spherical {
            &x / x.norm_scalaropt_dim(2.0, [-1i64], true) * 0.7
        } else {
            (&x / value).tanh() * value
        };
        let at = |lfq: &Lfq, step| lfq.quantize(&x, Mode::Train { step }).unwrap();
        let codes = at(&plain, 0).embeddings;
        assert_close(&at(&warming, 0).embeddings, &soft, "start");
        assert_close(&at(&warming, 50).embeddings, &((&soft + &codes) / 2.0), "middle");
        for step in [100, 5000] {
            assert!(at(&warming, step).embeddings.equal(&codes), "step {step}");
        }
        // Ids, losses and evaluation know nothing of it.
        assert!(at(&warming, 3).ids.unwrap().equal(&at(&plain, 3).ids.unwrap()));
        assert_eq!(number(&at(&warming, 3).loss()), number(&at(&plain, 3).loss()));
        let eval = |lfq: &Lfq| lfq.quantize(&x, Mode::Eval).unwrap().embeddings;
        assert!(eval(&warming).equal(&eval(&plain)));
    }
}

#[test]
fn a_share_of_the_tokens_is_chosen_by_rank() {
    let _alone = seeded(0);
    let half = lfq(LfqConfig { frac_per_sample_entropy: 0.5, ..LfqConfig::with_bits(4) });
    let x = features(&[4, 4]) * 0.01;
    let noise = Tensor::from_slice(&[0.9f32, 0.1, 0.8, 0.2]);
    let (_, terms) = half.quantize_parts(&x, TRAIN, Some(&noise)).unwrap();
    let all = lfq(LfqConfig::with_bits(4));
    // Kept is the token at whose place argsort has a small number: argsort(noise) = [1, 3, 2, 0].
    let kept = x.index_select(0, &Tensor::from_slice(&[0i64, 3]));
    let (_, expected) = all.quantize_parts(&kept, TRAIN, None).unwrap();
    let batch = |terms: Option<LfqTerms>| number(&terms.unwrap().entropies.unwrap().batch);
    assert!((batch(terms) - batch(expected)).abs() < 1e-6);
    assert!(matches!(half.quantize_parts(&x, TRAIN, Some(&noise.narrow(0, 0, 3))), Err(Error::Shape { .. })));
}

#[test]
fn the_gradient_of_a_sign_is_the_gradient_of_what_it_is_taken_of() {
    let _alone = seeded(0);
    let config = LfqConfig { entropy_weight: 0.0, commitment_weight: 0.0, ..LfqConfig::with_bits(5) };
    let x = features(&[7, 5]).set_requires_grad(true);
    let g = features(&[7, 5]);
    (lfq(config).quantize(&x, TRAIN).unwrap().embeddings * &g).sum(Kind::Float).backward();
    assert!(x.grad().equal(&g));
}

#[test]
fn residual_stages_refine() {
    let _alone = seeded(0);
    let store = nn::VarStore::new(Device::Cpu);
    // How far from what many stages give.
    let errors = |config: &dyn Fn(i64) -> QuantizerConfig| {
        let x = features(&[200, 4]).clamp(-1.0, 1.0);
        let of_stages = |stages| {
            let quantizer = config(stages).build(&store.root(), 4).unwrap();
            quantizer.quantize(&x, Mode::Eval).unwrap().embeddings
        };
        let limit = of_stages(10);
        [1, 2, 4].map(|stages| number(&of_stages(stages).mse_loss(&limit, tch::Reduction::Mean)))
    };
    let fsq = errors(&|num_quantizers| {
        QuantizerConfig::ResidualFsq(ResidualFsqConfig { num_quantizers, ..ResidualFsqConfig::default() })
    });
    let lfq = errors(&|num_quantizers| {
        let stage = LfqConfig::with_bits(4);
        QuantizerConfig::ResidualLfq(ResidualLfqConfig { num_quantizers, stage, ..Default::default() })
    });
    for [one, two, four] in [fsq, lfq] {
        assert!(two < 0.7 * one && four < 0.3 * two, "{one} {two} {four}");
    }
    // As many stages, as many times the gradient: each is straight-through.
    let config = ResidualLfqConfig {
        num_quantizers: 3,
        stage: LfqConfig { entropy_weight: 0.0, commitment_weight: 0.0, ..LfqConfig::with_bits(4) },
        quantize_dropout: Some(QuantizeDropout::default()),
    };
    let residual = ResidualLfq::new(&store.root(), 4, config).unwrap();
    for last in 0..3 {
        let x = features(&[2, 4]).set_requires_grad(true);
        let (out, _) = residual.quantize_stages(&x, TRAIN, Some(last)).unwrap();
        out.embeddings.sum(Kind::Float).backward();
        assert!(x.grad().equal(&x.full_like((last + 1) as f64)));
        let ids = out.ids.unwrap();
        assert_eq!(ids.lt(0).sum(Kind::Int64).int64_value(&[]), 2 * (2 - last));
        assert_close(&residual.lookup(&ids).unwrap(), &out.embeddings, "a prefix of the stages");
    }
    assert!(residual.quantize_stages(&features(&[2, 4]), TRAIN, Some(3)).is_err());
}

#[test]
fn the_published_sets_of_levels_have_their_sizes() {
    for (bits, size) in [(8, 240), (10, 1000), (12, 4375), (14, 15360), (16, 64000)] {
        assert_eq!(FsqConfig::with_bits(bits).unwrap().codebook_size(), size);
    }
    assert_eq!(FsqConfig::default(), FsqConfig::with_bits(16).unwrap());
    assert!(FsqConfig::with_bits(9).is_err());
}

#[test]
fn ids_stay_in_the_vocabulary_whatever_the_features() {
    let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0];
    let x = Tensor::from_slice(&wild).unsqueeze(-1).repeat([1, 8]);
    for config in kinds() {
        let quantizer = config.build(&nn::VarStore::new(Device::Cpu).root(), 8).unwrap();
        let ids = quantizer.quantize(&x, Mode::Eval).unwrap().ids.unwrap();
        assert!(quantizer.lookup(&ids).is_ok(), "{config:?}");
    }
}

#[test]
fn quantizers_decide_in_full_precision() {
    let _alone = seeded(0);
    for kind in [Kind::Half, Kind::BFloat16] {
        let x = features(&[30, 6]).to_kind(kind);
        let lfq = lfq(LfqConfig::with_bits(6));
        let out = tch::autocast(true, || lfq.quantize(&x, TRAIN)).unwrap();
        assert_eq!(out.embeddings.kind(), kind);
        assert!(number(&out.loss()).is_finite());
        let full = lfq.quantize(&x.to_kind(Kind::Float), TRAIN).unwrap();
        assert_eq!(number(&out.loss()), number(&full.loss()));
    }
}

#[test]
fn the_kl_bottleneck_samples_in_training_and_is_its_mean_in_evaluation() {
    let _alone = seeded(0);
    let store = nn::VarStore::new(Device::Cpu);
    let config = KlConfig { latent_dim: 3, kl_weight: 0.5 };
    let kl = Kl::new(&store.root(), 8, config).unwrap();
    let x = features(&[2, 5, 4, 4, 8]).set_requires_grad(true);
    let eval = kl.quantize(&x, Mode::Eval).unwrap();
    assert!(eval.ids.is_none() && eval.usage.is_none() && eval.losses.is_empty());
    let posterior = kl.posterior(&x).unwrap();
    assert_eq!(posterior.mean.size(), [2, 5, 4, 4, 3]);
    assert_close(&eval.embeddings, &kl.embed(&posterior.mean).unwrap(), "the mean");

    let train = kl.quantize(&x, TRAIN).unwrap();
    assert_eq!(train.embeddings.size(), x.size());
    assert!(!train.embeddings.allclose(&eval.embeddings, 1e-3, 1e-3, false));
    assert!((loss(&train, "kl") - 0.5 * number(&posterior.kl().mean(Kind::Float))).abs() < 1e-5);
    (train.embeddings.square().sum(Kind::Float) + train.loss()).backward();
    for (name, variable) in store.variables() {
        assert!(number(&variable.grad().abs().sum(Kind::Float)) > 0.0, "{name}");
    }
    assert!(matches!(kl.lookup(&Tensor::from_slice(&[0i64])), Err(Error::Unsupported { .. })));
    assert_eq!((kl.codebook_size(), Quantizer::dim(&kl)), (None, 8));
    assert_eq!(number(&kl.quantize(&features(&[0, 8]), TRAIN).unwrap().loss()), 0.0);
}

#[test]
fn gaussians_have_their_moments() {
    let _alone = seeded(0);
    // Mean 2, variance 9; a log-variance beyond all sense is clamped.
    let moments = Tensor::from_slice(&[2.0f32, 0.0, 9f32.ln(), 1e9]).repeat([20_000, 1]);
    let gaussian = Gaussian::from_moments(&moments).unwrap();
    assert_eq!(number(&gaussian.log_variance.select(1, 1).max()), 20.0);
    let sample = gaussian.sample().select(1, 0);
    assert!((number(&sample.mean(Kind::Float)) - 2.0).abs() < 0.1);
    assert!((number(&sample.std(true)) - 3.0).abs() < 0.1);
    let unit = Gaussian::from_moments(&Tensor::zeros([1, 6], (Kind::Float, Device::Cpu))).unwrap();
    assert_eq!(number(&unit.kl().get(0)), 0.0);
    let shifted = Gaussian::from_moments(&Tensor::from_slice(&[2.0f32, 9f32.ln()])).unwrap();
    assert!((number(&shifted.kl()) - 0.5 * (4.0 + 9.0 - 1.0 - 9f64.ln())).abs() < 1e-5);
    assert!(Gaussian::from_moments(&Tensor::zeros([3], (Kind::Float, Device::Cpu))).is_err());
}

#[test]
fn bad_configs_name_the_field() {
    let (lfq, fsq) = (LfqConfig::default, FsqConfig::default);
    let (fsqs, lfqs) = (ResidualFsqConfig::default, ResidualLfqConfig::default);
    let cases: Vec<(QuantizerConfig, &str)> = vec![
        (QuantizerConfig::Lfq(LfqConfig { bits: 0, ..lfq() }), "bits"),
        (QuantizerConfig::Lfq(LfqConfig { bits: 63, ..lfq() }), "bits"),
        (QuantizerConfig::Lfq(LfqConfig { bits: 25, ..lfq() }), "bits"),
        (QuantizerConfig::Lfq(LfqConfig { num_codebooks: 0, ..lfq() }), "num_codebooks"),
        (QuantizerConfig::Lfq(LfqConfig { inv_temperature: 0.0, ..lfq() }), "inv_temperature"),
        (QuantizerConfig::Lfq(LfqConfig { soft_clamp: Some(f64::INFINITY), ..lfq() }), "soft_clamp"),
        (QuantizerConfig::Lfq(LfqConfig { entropy_weight: f64::NAN, ..lfq() }), "entropy_weight"),
        (
            QuantizerConfig::Lfq(LfqConfig { frac_per_sample_entropy: 0.0, ..lfq() }),
            "frac_per_sample_entropy",
        ),
        (QuantizerConfig::Fsq(FsqConfig { levels: vec![], ..fsq() }), "levels"),
        (QuantizerConfig::Fsq(FsqConfig { levels: vec![8, 1], ..fsq() }), "levels"),
        (QuantizerConfig::Fsq(FsqConfig { levels: vec![1001], ..fsq() }), "levels"),
        (QuantizerConfig::Fsq(FsqConfig { levels: vec![1000; 7], ..fsq() }), "levels"),
        (QuantizerConfig::Fsq(FsqConfig { num_codebooks: -1, ..fsq() }), "num_codebooks"),
        (QuantizerConfig::ResidualFsq(ResidualFsqConfig { num_quantizers: 0, ..fsqs() }), "num_quantizers"),
        (QuantizerConfig::ResidualFsq(ResidualFsqConfig { num_quantizers: 40, ..fsqs() }), "num_quantizers"),
        (QuantizerConfig::ResidualFsq(ResidualFsqConfig { levels: vec![0], ..fsqs() }), "levels"),
        (
            QuantizerConfig::ResidualFsq(ResidualFsqConfig { soft_clamp: Some(vec![1.0]), ..fsqs() }),
            "soft_clamp",
        ),
        (QuantizerConfig::ResidualLfq(ResidualLfqConfig { num_quantizers: 65, ..lfqs() }), "num_quantizers"),
        (
            QuantizerConfig::ResidualLfq(ResidualLfqConfig {
                stage: LfqConfig { num_codebooks: 2, ..lfq() },
                ..lfqs()
            }),
            "stage.num_codebooks",
        ),
        (
            QuantizerConfig::ResidualLfq(ResidualLfqConfig {
                quantize_dropout: Some(QuantizeDropout { cutoff_index: 0, multiple_of: 0 }),
                ..lfqs()
            }),
            "quantize_dropout.multiple_of",
        ),
        (QuantizerConfig::Kl(KlConfig { latent_dim: 0, ..KlConfig::default() }), "latent_dim"),
        (QuantizerConfig::Kl(KlConfig { kl_weight: -1.0, ..KlConfig::default() }), "kl_weight"),
    ];
    let store = nn::VarStore::new(Device::Cpu);
    for (config, field) in cases {
        assert_eq!(field_of(config.validate().unwrap_err()), field);
        assert_eq!(field_of(config.build(&store.root(), 8).unwrap_err()), field);
    }
    assert!(QuantizerConfig::Kl(KlConfig::default()).build(&store.root(), 0).is_err());
}

/// Features that the plain or symmetric bound, with tanh or a clamp, brings to a digit.
fn feature_of_digit(digit: i64, level: i64, config: &FsqConfig) -> f64 {
    let level = level as f64;
    let inverse = |y: f64| if config.hard_clamp { y } else { y.clamp(-0.9999, 0.9999).atanh() };
    if config.symmetric {
        return inverse(2.0 * digit as f64 / (level - 1.0) - 1.0);
    }
    let half = (level - 1.0) * 1.001 / 2.0;
    let offset = if level % 2.0 == 0.0 { 0.5 } else { 0.0 };
    inverse((digit as f64 - (level / 2.0).floor() + offset) / half) - inverse(offset / half)
}

fn random_ids(size: i64) -> Tensor {
    Tensor::randint(size, [3, 4], (Kind::Int64, Device::Cpu))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn packing_comes_back(
        bits in 1i64..63, cut in 0.0f64..1.0, sizes in prop::collection::vec(1i64..50, 1..6), seed in 0i64..1000,
        lsb in any::<bool>(),
    ) {
        let _alone = seeded(seed);
        let order = if lsb { BitOrder::LsbFirst } else { BitOrder::MsbFirst };
        let ids = random_ids(1 << bits);
        prop_assert!(pack_bits(&unpack_bits(&ids, bits, order), order).equal(&ids));
        let first = 1 + (cut * (bits - 1) as f64) as i64;
        if first < bits {
            let parts = [first, bits - first];
            let split = split_id(&ids, &parts, order).unwrap();
            prop_assert!(join_id(&split, &parts, order).unwrap().equal(&ids));
            // A part is the id of its own channels.
            let channels = unpack_bits(&ids, bits, order);
            prop_assert!(pack_bits(&channels.narrow(-1, 0, first), order).equal(&split[0]));
        }
        let packed = random_ids(sizes.iter().product());
        let unpacked = unpack_ids(&packed, &sizes).unwrap();
        prop_assert_eq!(unpacked.size(), [3, 4, sizes.len() as i64]);
        prop_assert!(pack_ids(&unpacked, &sizes).unwrap().equal(&packed));
    }

    #[test]
    fn every_lfq_id_comes_back(
        bits in 1i64..63, codebooks in 1i64..4, seed in 0i64..1000, lsb in any::<bool>(), spherical in any::<bool>(),
    ) {
        let _alone = seeded(seed);
        let bit_order = if lsb { BitOrder::LsbFirst } else { BitOrder::MsbFirst };
        let lfq = lfq(LfqConfig {
            bits, num_codebooks: codebooks, bit_order, spherical, entropy_weight: 0.0, ..LfqConfig::default()
        });
        let ids = Tensor::stack(&(0..codebooks).map(|_| random_ids(1 << bits)).collect::<Vec<_>>(), -1);
        let ids = if codebooks == 1 { ids.squeeze_dim(-1) } else { ids };
        let embeddings = lfq.lookup(&ids).unwrap();
        let again = lfq.quantize(&embeddings, Mode::Eval).unwrap();
        prop_assert!(again.ids.unwrap().equal(&ids));
        prop_assert!(again.embeddings.equal(&embeddings));
    }

    #[test]
    fn every_fsq_id_comes_back(
        levels in prop::collection::vec(2i64..12, 1..6), symmetric in any::<bool>(), hard_clamp in any::<bool>(),
        seed in 0i64..1000,
    ) {
        let _alone = seeded(seed);
        let config = FsqConfig { levels: levels.clone(), symmetric, hard_clamp, ..FsqConfig::default() };
        let fsq = fsq(config.clone());
        let size = config.codebook_size();
        let ids = random_ids(size);
        let digits = fsq.digits(&ids).unwrap();
        prop_assert!(pack_ids(&digits, &levels).unwrap().equal(&ids));
        let channels: Vec<Tensor> = levels.iter().enumerate().map(|(i, level)| {
            let digits = Vec::<i64>::try_from(digits.select(-1, i as i64).reshape([-1])).unwrap();
            let row: Vec<f64> = digits.iter().map(|&digit| feature_of_digit(digit, *level, &config)).collect();
            Tensor::from_slice(&row).to_kind(Kind::Float).reshape([3, 4])
        }).collect();
        let out = fsq.quantize(&Tensor::stack(&channels, -1), Mode::Eval).unwrap();
        prop_assert!(out.ids.unwrap().equal(&ids));
        prop_assert!(out.embeddings.equal(&fsq.lookup(&ids).unwrap()));
        prop_assert!(number(&out.embeddings.abs().max()) <= 1.0);
    }

    #[test]
    fn residual_ids_look_up_what_was_coded(form in 0usize..3, stages in 1i64..5, seed in 0i64..1000) {
        let _alone = seeded(seed);
        let form = [ResidualFsqForm::Clamped, ResidualFsqForm::Tanh, ResidualFsqForm::Plain][form];
        let config = ResidualFsqConfig { levels: vec![8, 5, 3], num_quantizers: stages, form, ..ResidualFsqConfig::default() };
        let store = nn::VarStore::new(Device::Cpu);
        let quantizer = ResidualFsq::new(&store.root(), 3, config).unwrap();
        let out = quantizer.quantize(&features(&[5, 3]), Mode::Eval).unwrap();
        let looked_up = quantizer.lookup(&out.ids.unwrap()).unwrap();
        prop_assert!(looked_up.allclose(&out.embeddings, 1e-5, 1e-6, false));
    }
}
