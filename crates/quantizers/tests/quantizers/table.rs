//! What holds for all quantizers with ids, and what VQ's buffers do.

use proptest::prelude::*;
use quantizers::*;
use tch::{Device, Kind, Tensor, nn};
use video_core::Error;

use crate::seeded;

const TRAIN: Mode = Mode::Train { step: 0 };

fn small(config: VqConfig) -> VqConfig {
    VqConfig { codebook_size: 12, ..config }
}

/// Every kind, small, for features of width 8.
fn kinds() -> Vec<QuantizerConfig> {
    let lucidrains = VqConfig { heads: 2, codebook_dim: Some(3), ..small(VqConfig::lucidrains()) };
    let vq = [
        small(VqConfig::video_gpt()),
        small(VqConfig::mask_git()),
        small(VqConfig::vqgan()),
        VqConfig { codebook_dim: Some(4), ..small(VqConfig::teco()) },
        VqConfig { separate_codebook_per_head: true, ..lucidrains.clone() },
        VqConfig {
            similarity: Similarity::Cosine,
            init: CodebookInit::KMeans { iterations: 3 },
            diversity_weight: 0.1,
            orthogonal_weight: 0.1,
            ..lucidrains
        },
        VqConfig {
            similarity: Similarity::CosineFeatures,
            sample_temperature: Some(0.5),
            softmax_gradient: true,
            ..small(VqConfig::mask_git())
        },
        VqConfig { similarity: Similarity::CosineSearch, joint_loss: true, ..small(VqConfig::vqgan()) },
    ];
    let gumbel = GumbelConfig { codebook_size: 12, ..GumbelConfig::default() };
    let logits = GumbelConfig {
        codebook_size: 12,
        codebook_dim: Some(5),
        form: GumbelForm::VQGAN,
        temperature: TemperatureSchedule::VQGAN,
    };
    let residual = ResidualVqConfig {
        num_quantizers: 3,
        codebook_dim: Some(5),
        stage: small(VqConfig::lucidrains()),
        ..ResidualVqConfig::default()
    };
    let shared = ResidualVqConfig { shared_codebook: true, ..residual.clone() };
    let mut all: Vec<QuantizerConfig> = vq.map(QuantizerConfig::Vq).into();
    all.extend([
        QuantizerConfig::Gumbel(gumbel),
        QuantizerConfig::Gumbel(logits),
        QuantizerConfig::SimVq(SimVqConfig { codebook_size: 12, ..SimVqConfig::default() }),
        QuantizerConfig::Ibq(IbqConfig { codebook_size: 12, ..IbqConfig::default() }),
        QuantizerConfig::ResidualVq(residual),
        QuantizerConfig::ResidualVq(shared),
    ]);
    all.extend(crate::free::kinds());
    all
}

pub(crate) fn features(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

pub(crate) fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.size(), b.size(), "{what}");
    assert!(a.allclose(b, 1e-5, 1e-5, false), "{what}: {}", (a - b).abs().max());
}

fn state(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    let mut state: Vec<_> =
        store.variables().into_iter().map(|(name, t)| (name, t.detach().copy())).collect();
    state.sort_by(|a, b| a.0.cmp(&b.0));
    state
}

pub(crate) fn field_of(error: Error) -> String {
    match error {
        Error::Config { field, .. } => field,
        other => panic!("no config error: {other}"),
    }
}

#[test]
fn every_kind_trains_and_looks_up_what_it_evaluates() {
    let _alone = seeded(0);
    for config in kinds() {
        let store = nn::VarStore::new(Device::Cpu);
        let quantizer = config.build(&store.root(), 8).unwrap();
        for step in 0..3 {
            let x = features(&[2, 3, 2, 8]).set_requires_grad(true);
            let out = quantizer.quantize(&x, Mode::Train { step }).unwrap();
            assert_eq!(out.embeddings.size(), x.size());
            (out.embeddings.square().sum(Kind::Float) + out.loss()).backward();
            let size = x.grad().abs().sum(Kind::Float).double_value(&[]);
            assert!(size > 0.0 && size.is_finite(), "{config:?}");
        }
        for (name, variable) in store.variables() {
            assert!(bool::try_from(variable.isfinite().all()).unwrap(), "{name} of {config:?}");
        }

        let before = state(&store);
        let out = quantizer.quantize(&features(&[2, 3, 2, 8]), Mode::Eval).unwrap();
        for ((name, old), (_, new)) in before.iter().zip(state(&store)) {
            assert!(old.equal(&new), "evaluation changed {name} of {config:?}");
        }
        assert!(out.losses.is_empty());
        let ids = out.ids.unwrap();
        let size = quantizer.codebook_size().unwrap();
        assert!(ids.min().int64_value(&[]) >= 0 && ids.max().int64_value(&[]) < size);
        let mut expected = vec![2, 3, 2];
        expected.extend((quantizer.num_ids() > 1).then(|| quantizer.num_ids()));
        assert_eq!(ids.size(), expected);
        assert_close(&quantizer.lookup(&ids).unwrap(), &out.embeddings, &format!("{config:?}"));
        assert!(matches!(quantizer.lookup(&(ids + size)), Err(Error::Input { .. })));
        assert!(matches!(quantizer.quantize(&features(&[2, 7]), Mode::Eval), Err(Error::Shape { .. })));
        let none = quantizer.quantize(&features(&[0, 3, 8]), TRAIN).unwrap();
        assert_eq!(none.loss().double_value(&[]), 0.0);
    }
}

#[test]
fn configs_survive_toml() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct File {
        quantizer: QuantizerConfig,
    }
    for quantizer in kinds() {
        let text = toml::to_string(&File { quantizer: quantizer.clone() }).unwrap();
        assert_eq!(toml::from_str::<File>(&text).unwrap().quantizer, quantizer, "{text}");
    }
    let read = |text: &str| toml::from_str::<File>(text).map(|file| file.quantizer);
    let words = read("quantizer = { kind = \"vq\", codebook_size = 64, init = \"kaiming\" }").unwrap();
    let config = VqConfig { codebook_size: 64, init: CodebookInit::Kaiming, ..VqConfig::default() };
    assert_eq!(words, QuantizerConfig::Vq(config));
    for kind in ["lfq", "fsq", "gumbel", "simvq", "ibq", "residual_vq", "residual_fsq", "residual_lfq", "kl"]
    {
        assert!(read(&format!("quantizer = {{ kind = \"{kind}\" }}")).is_ok(), "{kind}");
        assert!(read(&format!("quantizer = {{ kind = \"{kind}\", colour = 1 }}")).is_err(), "{kind}");
    }
}

#[test]
fn bad_configs_name_the_field() {
    let _alone = seeded(0);
    let vq = VqConfig::default;
    let residual = ResidualVqConfig::default;
    let gumbel = GumbelConfig::default;
    let cases: Vec<(QuantizerConfig, &str)> = vec![
        (QuantizerConfig::Vq(VqConfig { codebook_size: 0, ..vq() }), "codebook_size"),
        (QuantizerConfig::Vq(VqConfig { ema_decay: 1.0, ..vq() }), "ema_decay"),
        (QuantizerConfig::Vq(VqConfig { heads: 3, ..vq() }), "heads"),
        (QuantizerConfig::Vq(VqConfig { joint_loss: true, ..vq() }), "joint_loss"),
        (QuantizerConfig::Vq(VqConfig { commitment_weight: f64::NAN, ..vq() }), "commitment_weight"),
        (
            QuantizerConfig::Vq(VqConfig { init: CodebookInit::KMeans { iterations: 0 }, ..vq() }),
            "init.k_means.iterations",
        ),
        (
            QuantizerConfig::Vq(VqConfig {
                entropy: EntropyLossConfig { temperature: 0.0, ..EntropyLossConfig::default() },
                ..vq()
            }),
            "entropy.temperature",
        ),
        (
            QuantizerConfig::Gumbel(GumbelConfig {
                temperature: TemperatureSchedule { decay_steps: 0, ..TemperatureSchedule::default() },
                ..gumbel()
            }),
            "temperature.decay_steps",
        ),
        (QuantizerConfig::Ibq(IbqConfig { beta: -1.0, ..IbqConfig::default() }), "beta"),
        (
            QuantizerConfig::SimVq(SimVqConfig { frozen_codebook_dim: Some(0), ..SimVqConfig::default() }),
            "frozen_codebook_dim",
        ),
        (
            QuantizerConfig::ResidualVq(ResidualVqConfig {
                quantize_dropout: Some(QuantizeDropout { cutoff_index: 8, multiple_of: 1 }),
                ..residual()
            }),
            "quantize_dropout.cutoff_index",
        ),
        (
            QuantizerConfig::ResidualVq(ResidualVqConfig {
                stage: VqConfig { ema_eps: 0.0, ..vq() },
                ..residual()
            }),
            "stage.ema_eps",
        ),
    ];
    let store = nn::VarStore::new(Device::Cpu);
    for (config, field) in cases {
        assert_eq!(field_of(config.build(&store.root(), 8).unwrap_err()), field);
    }
}

#[test]
fn restarts_revive_dead_codes() {
    let _alone = seeded(1);
    for restart in [DeadCodeRestart::KeepCount, DeadCodeRestart::ResetCount] {
        let store = nn::VarStore::new(Device::Cpu);
        // All codes but the first lie far away from every feature.
        let config = VqConfig {
            codebook_size: 16,
            init: CodebookInit::Normal { std: 0.1 },
            ema_decay: 0.5,
            dead_code_threshold: 0.5,
            dead_code_restart: restart,
            ..VqConfig::default()
        };
        let vq = Vq::new(&store.root(), 4, config).unwrap();
        let far = store.variables()["embed"].narrow(1, 1, 15);
        let _ = tch::no_grad(|| far.shallow_clone().fill_(100.0));
        let x = features(&[64, 4]);
        let share = |mode| vq.quantize(&x, mode).unwrap().usage.unwrap().used_share.double_value(&[]);
        assert!(share(Mode::Eval) < 0.1);
        for _ in 0..6 {
            share(TRAIN);
        }
        assert!(share(Mode::Eval) > 0.8, "{restart:?}");
    }
}

#[test]
fn an_init_from_data_happens_once_and_the_same_under_a_seed() {
    let _alone = seeded(0);
    for init in [CodebookInit::Data, CodebookInit::KMeans { iterations: 5 }] {
        let config = VqConfig { codebook_size: 6, init, ..VqConfig::default() };
        tch::manual_seed(2);
        let (x, y) = (features(&[40, 3]), features(&[40, 3]) + 50.0);
        let made = || {
            let store = nn::VarStore::new(Device::Cpu);
            let vq = Vq::new(&store.root(), 3, config.clone()).unwrap();
            tch::manual_seed(3);
            vq.quantize(&x, TRAIN).unwrap();
            (store, vq)
        };
        let ((store, vq), (_, again)) = (made(), made());
        assert!(vq.codebook().equal(&again.codebook()), "{init:?}");
        assert_eq!(store.variables()["initted"].double_value(&[0]), 1.0);
        // A second first batch would move all codes to 50.
        vq.quantize(&y, TRAIN).unwrap();
        assert!(vq.codebook().min().double_value(&[]) < 10.0, "{init:?}");
    }
}

#[test]
fn buffers_are_held_and_not_trained() {
    let _alone = seeded(0);
    let store = nn::VarStore::new(Device::Cpu);
    Vq::new(&store.root(), 4, small(VqConfig::default())).unwrap();
    let mut names: Vec<String> = store.variables().into_keys().collect();
    names.sort();
    assert_eq!(names, ["cluster_size", "embed", "embed_avg", "initted"]);
    assert!(store.trainable_variables().is_empty());
    let store = nn::VarStore::new(Device::Cpu);
    Vq::new(&store.root(), 4, small(VqConfig::mask_git())).unwrap();
    assert_eq!(store.trainable_variables().len(), 1);
}

#[test]
fn padding_has_no_say() {
    let _alone = seeded(4);
    let config = VqConfig { heads: 2, ..small(VqConfig::lucidrains()) };
    let make = || {
        tch::manual_seed(5);
        let store = nn::VarStore::new(Device::Cpu);
        (Vq::new(&store.root(), 6, config.clone()).unwrap(), store)
    };
    let ((padded, _keep), (short, _too)) = (make(), make());
    let x = features(&[1, 5, 6]);
    let wide = Tensor::cat(&[&x, &(features(&[1, 3, 6]) * 100.0)], 1);
    let mask = Tensor::from_slice(&[true, true, true, true, true, false, false, false]).unsqueeze(0);
    let extras = VqExtras { mask: Some(mask), ..VqExtras::default() };
    let (with, _) = padded.quantize_with(&wide, TRAIN, &extras).unwrap();
    let without = short.quantize(&x, TRAIN).unwrap();
    assert_close(&with.embeddings.narrow(1, 0, 5), &without.embeddings, "embeddings");
    assert_close(&with.loss(), &without.loss(), "loss");
    assert_close(&padded.codebook(), &short.codebook(), "codes");
    assert_eq!(with.embeddings.narrow(1, 5, 3).abs().max().double_value(&[]), 0.0);
    assert_eq!(with.ids.unwrap().narrow(1, 5, 3).max().int64_value(&[]), -1);
}

#[test]
fn wrong_draws_are_refused() {
    let _alone = seeded(0);
    let store = nn::VarStore::new(Device::Cpu);
    let vq = Vq::new(&store.root(), 4, small(VqConfig::default())).unwrap();
    let order = Tensor::arange(3, (Kind::Int64, Device::Cpu));
    let extras = VqExtras { restart_order: Some(order), ..VqExtras::default() };
    assert!(matches!(vq.quantize_with(&features(&[20, 4]), TRAIN, &extras), Err(Error::Shape { .. })));
    let mask = Tensor::ones([3], (Kind::Bool, Device::Cpu));
    let extras = VqExtras { mask: Some(mask), ..VqExtras::default() };
    assert!(matches!(vq.quantize_with(&features(&[20, 4]), TRAIN, &extras), Err(Error::Shape { .. })));
}

#[test]
fn given_noise_draws_the_codes() {
    let _alone = seeded(0);
    let store = nn::VarStore::new(Device::Cpu);
    let config = VqConfig { sample_temperature: Some(1.0), ..small(VqConfig::lucidrains()) };
    let size = config.codebook_size;
    let vq = Vq::new(&store.root(), 4, config).unwrap();
    // Far more noise on one code than any distance outweighs.
    let noise = |tokens: i64| {
        let noise = Tensor::zeros([1, tokens, size], (Kind::Float, Device::Cpu));
        let _ = noise.select(2, 3).fill_(1e6);
        VqExtras { sample_noise: Some(noise), ..VqExtras::default() }
    };
    let (drawn, _) = vq.quantize_with(&features(&[20, 4]), TRAIN, &noise(20)).unwrap();
    assert!(drawn.ids.unwrap().eq(3).all().int64_value(&[]) == 1);
    let refused = vq.quantize_with(&features(&[20, 4]), TRAIN, &noise(19));
    assert!(matches!(refused, Err(Error::Shape { .. })));
}

#[test]
fn quantize_dropout_leaves_out_late_stages() {
    let _alone = seeded(6);
    let dropout = QuantizeDropout { cutoff_index: 1, multiple_of: 2 };
    let config = ResidualVqConfig {
        num_quantizers: 5,
        quantize_dropout: Some(dropout),
        stage: small(VqConfig::lucidrains()),
        ..ResidualVqConfig::default()
    };
    assert_eq!([0, 1, 2, 3, 4].map(|drawn| dropout.last_kept(drawn, 5)), [1, 1, 3, 3, 4]);
    let store = nn::VarStore::new(Device::Cpu);
    let rvq = ResidualVq::new(&store.root(), 4, config).unwrap();
    let x = features(&[3, 4]);
    for last in 0..5 {
        let (out, losses) = rvq.quantize_stages(&x, TRAIN, Some(last)).unwrap();
        let ids = out.ids.unwrap();
        let dropped = ids.lt(0).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(dropped, 3 * (4 - last));
        assert_eq!(losses.ne(0.0).sum(Kind::Int64).int64_value(&[]), last + 1);
        assert_eq!(rvq.lookup(&ids).unwrap().size(), [3, 4]);
    }
    for _ in 0..10 {
        let ids = rvq.quantize(&x, TRAIN).unwrap().ids.unwrap();
        let kept = ids.select(0, 0).ge(0).sum(Kind::Int64).int64_value(&[]);
        assert!([2, 4, 5].contains(&kept), "{kept}");
    }
}

#[test]
fn remapped_ids_come_back() {
    let _alone = seeded(0);
    let ids = Tensor::from_slice(&[3i64, 9, 4, 0, 7]);
    let remap = |unknown| IdRemap::new(&[3, 4, 7], unknown).unwrap();
    let numbers = |t: &Tensor| Vec::<i64>::try_from(t).unwrap();
    let extra = remap(UnknownId::Extra).to_used(&ids);
    assert_eq!(numbers(&extra), [0, 3, 1, 3, 2]);
    assert_eq!(numbers(&remap(UnknownId::Extra).to_all(&extra).unwrap()), [3, 3, 4, 3, 7]);
    assert_eq!(numbers(&remap(UnknownId::Fixed(2)).to_used(&ids)), [0, 2, 1, 2, 2]);
    let random = numbers(&remap(UnknownId::Random).to_used(&ids));
    assert!(random.iter().all(|id| (0..3).contains(id)));
    assert!(IdRemap::new(&[4, 3], UnknownId::Extra).is_err());
    assert!(IdRemap::new(&[3, 4], UnknownId::Fixed(2)).is_err());
    assert!(remap(UnknownId::Random).to_all(&Tensor::from_slice(&[3i64])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_nearest_code_is_found(n in 1i64..40, size in 1i64..20, width in 1i64..6, seed in 0i64..1000) {
        let _alone = seeded(seed);
        let store = nn::VarStore::new(Device::Cpu);
        let config = VqConfig { codebook_size: size, ..VqConfig::vqgan() };
        let vq = Vq::new(&store.root(), width, config).unwrap();
        let x = features(&[n, width]);
        let out = vq.quantize(&x, Mode::Eval).unwrap();
        let all = x.unsqueeze(1) - vq.codebook();
        let best = all.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).amin([1i64].as_slice(), false);
        let found = (&x - &out.embeddings).square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        prop_assert!(found.allclose(&best, 1e-4, 1e-5, false));
    }

    #[test]
    fn the_rotation_trick_keeps_value_and_gradient_length(width in 2i64..9, seed in 0i64..1000) {
        let _alone = seeded(seed);
        let x = features(&[4, width]).set_requires_grad(true);
        let q = features(&[4, width]);
        let out = rotate_to(&x, &q);
        prop_assert!(out.allclose(&q, 1e-4, 1e-4, false));
        let g = features(&[4, width]);
        (&out * &g).sum(Kind::Float).backward();
        let norm = |t: &Tensor| t.norm_scalaropt_dim(2.0, [-1i64], false);
        let expected = norm(&g) * norm(&q) / norm(&x);
        prop_assert!(norm(&x.grad()).allclose(&expected, 1e-3, 1e-4, false));
    }

    #[test]
    fn the_temperature_stays_between_its_ends(warm in 0u64..50, fall in 1u64..500, step in 0u64..1000) {
        let schedule =
            TemperatureSchedule { start: 0.5, max: 1.0, min: 0.1, warm_up_steps: warm, decay_steps: warm + fall };
        schedule.validate().unwrap();
        let tau = schedule.at(step);
        prop_assert!((0.1..=1.0).contains(&tau));
        prop_assert!((schedule.at(warm) - 1.0).abs() < 1e-12 && (schedule.at(warm + fall) - 0.1).abs() < 1e-12);
    }
}
