//! Blur pooling, discriminators, GAN losses.

use causal_conv::gan::{
    AdaptiveRule, Adversary, Discriminator, DiscriminatorConfig, GanConfig, GanLoss, GradientPenalty, Lecam,
    LecamConfig, LecamRule, LossConvention, PenaltyKind, adaptive_weight, discriminator_loss, generator_loss,
    gradient_penalty,
};
use causal_conv::{
    BlurPool3d, PadMode, PatchDiscriminator, PatchDiscriminatorConfig, VideoDiscriminator,
    VideoDiscriminatorConfig,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, nn};
use video_core::{Error, VideoShape};

use crate::{distance, noise};

const CLIP: VideoShape = VideoShape { batch: 2, channels: 3, frames: 5, height: 16, width: 12 };

fn clip(seed: u64) -> Tensor {
    noise(&CLIP.to_array(), seed)
}

fn small() -> GanConfig {
    let discriminator =
        VideoDiscriminatorConfig { filters: 2, channel_multipliers: vec![2, 3], ..Default::default() };
    GanConfig { discriminator: DiscriminatorConfig::Video3d(discriminator), ..GanConfig::default() }
}

fn small_patches() -> GanConfig {
    let discriminator = PatchDiscriminatorConfig { filters: 2, num_layers: 2 };
    GanConfig { discriminator: DiscriminatorConfig::Patch2d(discriminator), ..GanConfig::open_magvit2() }
}

fn close(a: &Tensor, b: f64) -> bool {
    (a.double_value(&[]) - b).abs() < 1e-5 * (1.0 + b.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn blur_keeps_constants_and_halves(size in 1i64..9, stride in 1i64..4, t in 1i64..7, h in 1i64..9, reflect: bool) {
        let border = if reflect { PadMode::Reflect } else { PadMode::Replicate };
        let blur = BlurPool3d::new(size, stride, border).unwrap();
        let x = Tensor::full([1, 2, t, h, 5], 0.75, (Kind::Float, Device::Cpu));
        let y = blur.forward(&x).unwrap();
        let pooled = |n: i64| (n + stride - 1) / stride;
        prop_assert_eq!(y.size(), [1, 2, pooled(t), pooled(h), pooled(5)]);
        prop_assert!(distance(&y, &Tensor::full_like(&y, 0.75)) < 1e-6);
    }

    #[test]
    fn losses_have_their_closed_forms(r in -3.0f64..3.0, f in -3.0f64..3.0) {
        let (real, fake) = (Tensor::from(r).view([1]), Tensor::from(f).view([1]));
        let softplus = |x: f64| x.exp().ln_1p();
        let hinge = (1.0 - r).max(0.0) + (1.0 + f).max(0.0);
        let entropy = softplus(-r) + softplus(f);
        use GanLoss::{Hinge, NonSaturating, Vanilla};
        use LossConvention::{Magvit, OpenMagvit2};
        for (loss, convention, expected) in [
            (Hinge, Magvit, hinge),
            (Hinge, OpenMagvit2, hinge / 2.0),
            (Vanilla, Magvit, entropy),
            (Vanilla, OpenMagvit2, entropy / 2.0),
            (NonSaturating, Magvit, entropy),
            (NonSaturating, OpenMagvit2, entropy),
        ] {
            prop_assert!(close(&discriminator_loss(loss, convention, &real, &fake).unwrap(), expected));
            let expected = if loss == NonSaturating { softplus(-f) } else { -f };
            prop_assert!(close(&generator_loss(loss, convention, &fake).unwrap(), expected));
        }
    }
}

#[test]
fn blur_of_an_impulse_is_the_filter() {
    let x = Tensor::zeros([1, 1, 5, 5, 5], (Kind::Double, Device::Cpu));
    let _ = x.get(0).get(0).get(2).get(2).get(2).fill_(1.0);
    let y = BlurPool3d::new(3, 1, PadMode::Constant).unwrap().forward(&x).unwrap();
    let taps = Tensor::from_slice(&[0.0, 0.25, 0.5, 0.25, 0.0]);
    let expected = taps.view([5, 1, 1]) * taps.view([5, 1]) * &taps;
    assert!(distance(&y.view([5, 5, 5]), &expected) < 1e-12);
}

#[test]
fn logits_of_a_sample_are_averaged_first_where_the_convention_says_so() {
    let fake = Tensor::from_slice(&[4.0f64, -4.0, 2.0, 2.0]).view([2, 2]);
    let loss = |convention| generator_loss(GanLoss::NonSaturating, convention, &fake).unwrap();
    let softplus = |x: f64| x.exp().ln_1p();
    assert!(close(&loss(LossConvention::OpenMagvit2), (softplus(0.0) + softplus(-2.0)) / 2.0));
    let each = (softplus(-4.0) + softplus(4.0) + 2.0 * softplus(-2.0)) / 4.0;
    assert!(close(&loss(LossConvention::Magvit), each));
}

#[test]
fn lecam_follows_its_rule_and_survives_saving() {
    let (real, fake) = (Tensor::from_slice(&[3.0f32, 1.0]), Tensor::from_slice(&[-1.0f32, -3.0]));
    let config = |rule| LecamConfig { decay: 0.5, rule, ..LecamConfig::default() };
    // At the first step the averages are zero before, and 1 and −1 after.
    for (rule, expected) in [
        (LecamRule::Magvit, 2.0 * 2.0 + 2.0 * 2.0),
        (LecamRule::O2Magvit2, 3.0 * 3.0 + 3.0 * 3.0),
        (LecamRule::OpenMagvit2, (4.0 * 4.0 + 2.0 * 2.0) / 2.0 + (2.0 * 2.0 + 4.0 * 4.0) / 2.0),
    ] {
        let variables = nn::VarStore::new(Device::Cpu);
        let mut lecam = Lecam::new(&variables.root(), config(rule)).unwrap();
        assert!(close(&lecam.step(&real, &fake).unwrap(), expected), "{rule:?}");
        assert!(close(lecam.averages()[0], 1.0) && close(lecam.averages()[1], -1.0));
        assert!(variables.trainable_variables().is_empty());

        let file = std::env::temp_dir().join(format!("lecam-{}-{rule:?}.safetensors", std::process::id()));
        variables.save(&file).unwrap();
        let mut restored = nn::VarStore::new(Device::Cpu);
        let mut again = Lecam::new(&restored.root(), config(rule)).unwrap();
        restored.load(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        let next = lecam.step(&fake, &real).unwrap();
        assert_eq!(again.step(&fake, &real).unwrap(), next);
    }
}

#[test]
fn penalty_of_a_linear_critic_is_its_weight() {
    let weight = Tensor::from_slice(&[3.0f64, 4.0]).set_requires_grad(true);
    let samples = noise(&[4, 2], 1).to_kind(Kind::Double).set_requires_grad(true);
    for (kind, center, expected, slope) in [
        (PenaltyKind::R1, 0.0, 25.0, 6.0),
        (PenaltyKind::R1Offset, 0.0, 25.000001, 6.0),
        (PenaltyKind::Norm, 0.0, 25.0, 6.0),
        (PenaltyKind::Norm, 1.0, 16.0, 4.8),
    ] {
        let logits = samples.matmul(&weight);
        let penalty = GradientPenalty { kind, center, ..GradientPenalty::default() };
        let term = gradient_penalty(&penalty, &samples, &logits).unwrap();
        assert!(close(&term, expected), "{kind:?}");
        // d ‖w‖² / dw = 2w, d (‖w‖ − 1)² / dw = 2 (‖w‖ − 1) w/‖w‖.
        let gradient = Tensor::run_backward(&[&term], &[&weight], false, false);
        assert!((gradient[0].double_value(&[0]) - slope).abs() < 1e-9, "{kind:?}");
    }
}

#[test]
fn penalties_train_both_discriminators_and_stay_finite() {
    for mut config in [small(), small_patches()] {
        for kind in [PenaltyKind::R1, PenaltyKind::R1Offset, PenaltyKind::Norm] {
            config.gradient_penalty = GradientPenalty { kind, every: 2, ..GradientPenalty::default() };
            let variables = nn::VarStore::new(Device::Cpu);
            let mut adversary = Adversary::new(&variables.root(), &config, CLIP).unwrap();
            assert!(adversary.discriminator_terms(&clip(1), &clip(2), 1).unwrap().gradient_penalty.is_none());
            // A constant clip has exact zeros, where square roots have no derivative.
            let terms = adversary.discriminator_terms(&clip(1), &clip(2).zeros_like(), 2).unwrap();
            assert!(terms.gradient_penalty.is_some_and(|term| term.double_value(&[]) > 0.0));
            terms.total.backward();
            for variable in variables.trainable_variables() {
                let gradient = variable.grad();
                assert!(gradient.defined() && bool::try_from(gradient.isfinite().all()).unwrap());
            }
        }
    }
}

#[test]
fn generator_terms_reach_the_generator_and_can_adapt() {
    for config in [small(), small_patches()] {
        let last = noise(&[3, 3, 1, 1, 1], 3).set_requires_grad(true);
        let generated = clip(1).conv3d(&last, None::<&Tensor>, [1; 3], [0; 3], [1; 3], 1);
        let fidelity = (&generated - clip(2)).square().mean(None);
        let variables = nn::VarStore::new(Device::Cpu);
        let config = GanConfig { adaptive: Some(AdaptiveRule::OpenMagvit2), generator_weight: 0.5, ..config };
        let adversary = Adversary::new(&variables.root(), &config, CLIP).unwrap();
        let terms = adversary.generator_terms(&generated, &fidelity, &last).unwrap();
        let norm =
            |loss: &Tensor| Tensor::run_backward(&[loss], &[&last], true, false)[0].norm().double_value(&[]);
        // The weighted GAN loss pulls at the last layer half as strongly as the reconstruction does, up to 10⁻⁴.
        let (gan, fidelity_norm) = (norm(&terms.gan), norm(&fidelity));
        assert!(close(&terms.weight, 0.5 * fidelity_norm / (gan + 1e-4)));
        assert!(!terms.weight.requires_grad());
        assert!(norm(&terms.total) > 0.0);
    }
}

#[test]
fn adaptive_weight_needs_a_gradient() {
    let last = noise(&[2], 1).set_requires_grad(true);
    let other = noise(&[2], 2).set_requires_grad(true);
    let (of_last, of_other) = (last.sum(None), other.sum(None));
    let weight =
        |fidelity: &Tensor, gan: &Tensor| adaptive_weight(AdaptiveRule::Magvit2Pytorch, fidelity, gan, &last);
    assert!(close(&weight(&of_last, &(&of_last * 2.0)).unwrap(), 0.5));
    assert!(matches!(weight(&of_other, &of_last), Err(Error::Input { .. })));
    assert!(matches!(weight(&of_last.detach(), &of_last), Err(Error::Input { .. })));
}

#[test]
fn frames_of_patches_are_judged_one_by_one() {
    let variables = nn::VarStore::new(Device::Cpu);
    let config = PatchDiscriminatorConfig { filters: 2, num_layers: 2 };
    let discriminator = PatchDiscriminator::new(&variables.root(), &config, 3).unwrap();
    let video = clip(1);
    let whole = discriminator.forward(&video, false).unwrap();
    let frame = discriminator.forward(&video.narrow(2, 1, 1), false).unwrap();
    assert_eq!(whole.size()[..2], [10, 1]);
    assert!(distance(&whole.unflatten(0, [2, 5]).select(1, 1), &frame) < 1e-5);
    // Evaluation leaves the running statistics alone, training does not.
    let mean = || variables.variables()["main.3.running_mean"].abs().sum(None).double_value(&[]);
    assert_eq!(mean(), 0.0);
    let _ = discriminator.forward(&video, true).unwrap();
    assert!(mean() > 0.0);
}

#[test]
fn published_sizes() {
    let parameters = |variables: &nn::VarStore| -> usize {
        variables.trainable_variables().iter().map(|variable| variable.numel()).sum()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    PatchDiscriminator::new(&variables.root(), &PatchDiscriminatorConfig::default(), 3).unwrap();
    assert_eq!(parameters(&variables), 2_765_633);
    for (size, expected) in [(128, 61_341_569), (256, 73_924_481)] {
        let shape = VideoShape { batch: 1, channels: 3, frames: 17, height: size, width: size };
        let variables = nn::VarStore::new(Device::Cpu);
        VideoDiscriminator::new(&variables.root(), &VideoDiscriminatorConfig::default(), shape).unwrap();
        assert_eq!(parameters(&variables), expected);
    }
}

#[test]
fn configs_are_checked() {
    let build = |config: &GanConfig| {
        let variables = nn::VarStore::new(Device::Cpu);
        Adversary::new(&variables.root(), config, CLIP).map(|_| ()).unwrap_err().to_string()
    };
    let refused = |change: &dyn Fn(&mut GanConfig)| {
        let mut config = small();
        change(&mut config);
        build(&config)
    };
    assert!(refused(&|c| c.generator_weight = f64::NAN).starts_with("generator_weight = NaN"));
    assert!(refused(&|c| c.lecam.decay = 1.5).starts_with("lecam.decay = 1.5"));
    assert!(refused(&|c| c.gradient_penalty.every = 0).starts_with("gradient_penalty.every = 0"));
    assert!(refused(&|c| c.gradient_penalty.center = 1.0).starts_with("gradient_penalty.center = 1.0"));
    let patches = DiscriminatorConfig::Patch2d(PatchDiscriminatorConfig { filters: 2, num_layers: 5 });
    assert!(refused(&|c| c.discriminator = patches.clone()).starts_with("discriminator.num_layers = 5"));
    let empty = VideoDiscriminatorConfig { channel_multipliers: vec![], ..Default::default() };
    assert!(
        refused(&|c| c.discriminator = DiscriminatorConfig::Video3d(empty.clone()))
            .starts_with("discriminator.channel_multipliers = []")
    );
    let config: Result<GanConfig, _> =
        serde_json::from_str(r#"{"discriminator": {"kind": "patch2d", "filters": 8}}"#);
    assert_eq!(
        config.unwrap().discriminator,
        DiscriminatorConfig::Patch2d(PatchDiscriminatorConfig { filters: 8, num_layers: 3 })
    );
    assert!(
        serde_json::from_str::<GanConfig>(r#"{"discriminator": {"kind": "patch2d", "filter": 8}}"#).is_err()
    );
    assert!(serde_json::from_str::<GanConfig>(r#"{"lecam": {"wieght": 1.0}}"#).is_err());
}

#[test]
fn shapes_are_checked() {
    let variables = nn::VarStore::new(Device::Cpu);
    let mut adversary = Adversary::new(&variables.root(), &small(), CLIP).unwrap();
    let shorter = clip(1).narrow(2, 0, 4);
    assert!(matches!(adversary.discriminator_terms(&shorter, &shorter, 0), Err(Error::Shape { .. })));
    assert!(matches!(adversary.discriminator_terms(&clip(1), &shorter, 0), Err(Error::Shape { .. })));
    assert!(matches!(
        Discriminator::forward(adversary.discriminator(), &Tensor::from(1.0), true),
        Err(Error::Shape { .. })
    ));
    let empty = Tensor::zeros([0, 1], (Kind::Float, Device::Cpu));
    let loss = discriminator_loss(GanLoss::Hinge, LossConvention::Magvit, &empty, &empty);
    assert!(matches!(loss, Err(Error::Shape { .. })));
    assert!(matches!(
        gradient_penalty(&GradientPenalty::default(), &clip(1), &clip(2)),
        Err(Error::Input { .. })
    ));
    assert!(BlurPool3d::new(0, 2, PadMode::Reflect).is_err());
    assert!(BlurPool3d::new(3, 2, PadMode::Reflect).unwrap().forward(&Tensor::from(1.0)).is_err());
}
