//! The shim against plain libtorch operators.

use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWConfig, AdamWState, MemoryFormat};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Tests share torch's generator: those that draw run one at a time, as one compares draws.
fn alone() -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    DRAWS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    a.size() == b.size() && (a - b).abs().max().double_value(&[]) <= tolerance
}

#[test]
fn channels_last_keeps_values_and_gradients() {
    let _alone = alone();
    let x = Tensor::randn([2, 3, 4, 5, 6], CPU).set_requires_grad(true);
    let y = torch_ext::channels_last_3d(&x);
    assert_eq!(y.stride(), [360, 1, 90, 18, 3]);
    assert!(torch_ext::is_contiguous(&y, MemoryFormat::ChannelsLast3d).unwrap());
    assert!(close(&x, &y, 0.0));
    (&y * &y).sum(Kind::Float).backward();
    assert!(close(&x.grad(), &(&x * 2.0).detach(), 1e-6));
}

#[test]
fn a_format_of_another_rank_is_an_error_with_torchs_message() {
    let error = torch_ext::contiguous(&Tensor::zeros([2, 3], CPU), MemoryFormat::ChannelsLast3d).unwrap_err();
    assert!(error.to_string().contains("rank 5"), "{error}");
}

#[test]
fn fused_adamw_equals_the_formula() {
    let _alone = alone();
    let config = AdamWConfig { beta1: 0.8, beta2: 0.95, weight_decay: 0.1, eps: 1e-6 };
    let param = Tensor::randn([7, 5], CPU).set_requires_grad(true);
    let idle = Tensor::randn([3], CPU).set_requires_grad(true);
    let idle_before = idle.detach().copy();
    let mut expected = param.detach().copy();
    let (mut m, mut v) = (expected.zeros_like(), expected.zeros_like());
    let named = [("w".to_string(), param.shallow_clone()), ("idle".to_string(), idle.shallow_clone())];
    let mut adam = AdamW::new(named, config);
    for step in 1..=4 {
        adam.zero_grad();
        (param.sin() * f64::from(step)).sum(Kind::Float).backward();
        let grad = param.grad().copy();
        let lr = 0.01 * f64::from(step);
        adam.step(lr).unwrap();
        m = &m * 0.8 + &grad * 0.2;
        v = &v * 0.95 + grad.square() * 0.05;
        let (c1, c2) = (1.0 - 0.8f64.powi(step), 1.0 - 0.95f64.powi(step));
        expected = &expected * (1.0 - lr * 0.1) - (&m / c1) / ((&v / c2).sqrt() + 1e-6) * lr;
        assert!(close(&param.detach(), &expected, 1e-5), "step {step}");
    }
    assert!(close(&idle.detach(), &idle_before, 0.0), "a parameter without gradient stays");
}

#[test]
fn zero_grad_forgets_the_gradient() {
    let _alone = alone();
    let param = Tensor::randn([3], CPU).set_requires_grad(true);
    let mut adam = AdamW::new([("w".to_string(), param.shallow_clone())], AdamWConfig::default());
    param.sum(Kind::Float).backward();
    assert!(param.grad().defined());
    adam.zero_grad();
    assert!(!param.grad().defined());
    let before = param.detach().copy();
    adam.step(0.1).unwrap();
    assert!(close(&param.detach(), &before, 0.0), "no decay without a gradient");
}

#[test]
fn autocast_multiplies_in_bfloat16_and_ends_with_its_scope() {
    let _alone = alone();
    let x = Tensor::randn([4, 4], CPU);
    let inside = torch_ext::autocast_bf16(Device::Cpu, || x.matmul(&x)).unwrap();
    assert_eq!(inside.kind(), Kind::BFloat16);
    assert_eq!(x.matmul(&x).kind(), Kind::Float);
    assert!(torch_ext::autocast_bf16(Device::Mps, || ()).is_err());
}

#[test]
fn saved_adamw_state_continues_bit_equal() {
    let _alone = alone();
    let start = Tensor::randn([6, 4], CPU);
    let run = |interrupted: bool| {
        let param = start.copy().set_requires_grad(true);
        let named = || [("w".to_string(), param.shallow_clone())];
        let mut adam = AdamW::new(named(), AdamWConfig::default());
        for step in 0..6 {
            if interrupted && step == 3 {
                let saved = &adam.state()[0];
                let copy = AdamWState {
                    name: "w".into(),
                    exp_avg: saved.exp_avg.copy(),
                    exp_avg_sq: saved.exp_avg_sq.copy(),
                    step: saved.step.copy(),
                };
                let mut holder = Some(copy);
                adam = AdamW::new(named(), AdamWConfig::default());
                adam.load_state(|_| holder.take()).unwrap();
            }
            adam.zero_grad();
            (&param * &param).sum(Kind::Float).backward();
            adam.step(0.05).unwrap();
        }
        param.detach()
    };
    assert!(close(&run(false), &run(true), 0.0));
}

#[test]
fn loading_state_of_another_shape_names_the_parameter() {
    let param = Tensor::zeros([2], CPU).set_requires_grad(true);
    let mut adam = AdamW::new([("bias".to_string(), param)], AdamWConfig::default());
    let wrong = || AdamWState {
        name: "bias".into(),
        exp_avg: Tensor::zeros([3], CPU),
        exp_avg_sq: Tensor::zeros([3], CPU),
        step: Tensor::zeros([], CPU),
    };
    let error = adam.load_state(|_| Some(wrong())).unwrap_err().to_string();
    assert!(error.contains("bias") && error.contains("[3]") && error.contains("[2]"), "{error}");
}

#[test]
fn rng_state_round_trips() {
    let _alone = alone();
    let state = torch_ext::rng_state(Device::Cpu).unwrap();
    let first = Tensor::randn([16], CPU);
    torch_ext::set_rng_state(Device::Cpu, &state).unwrap();
    assert!(close(&first, &Tensor::randn([16], CPU), 0.0));
    assert!(torch_ext::set_rng_state(Device::Cpu, &Tensor::zeros([3], (Kind::Uint8, Device::Cpu))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn global_norm_and_scale_agree_with_one_flat_vector(sizes in prop::collection::vec(1i64..20, 1..5), factor in -2.0f64..2.0) {
        let _alone = alone();
        let tensors: Vec<Tensor> = sizes.iter().map(|&n| Tensor::randn([n], CPU)).collect();
        let flat = Tensor::cat(&tensors, 0);
        prop_assert!(close(&torch_ext::global_norm(&tensors).unwrap(), &flat.norm(), 1e-4));
        torch_ext::scale_(&tensors, &Tensor::from(factor).to_kind(Kind::Float)).unwrap();
        prop_assert!(close(&Tensor::cat(&tensors, 0), &(&flat * factor), 1e-5));
        let targets: Vec<Tensor> = tensors.iter().map(Tensor::zeros_like).collect();
        torch_ext::lerp_(&targets, &tensors, 0.25).unwrap();
        prop_assert!(close(&Tensor::cat(&targets, 0), &(&flat * factor * 0.25), 1e-5));
    }

    #[test]
    fn winograd_agrees_with_the_definition(
        (batch, frames, kernel_frames) in (1i64..3, 4i64..7, 1i64..5),
        (height, width) in (9i64..30, 9i64..30),
        (inputs, outputs) in (1i64..4, 1i64..4),
        padding in [0i64..3, 0i64..3],
        with_bias in any::<bool>(),
    ) {
        let _alone = alone();
        let x = torch_ext::channels_last_3d(&Tensor::randn([batch, 16 * inputs, frames, height, width], CPU));
        let weight = Tensor::randn([16 * outputs, 16 * inputs, kernel_frames, 3, 3], CPU) * 0.1;
        let bias = with_bias.then(|| Tensor::randn([16 * outputs], CPU));
        let Some(y) = torch_ext::winograd_conv3d(&x, &weight, bias.as_ref(), padding) else {
            // Too little work, or a processor that has not the instructions.
            return Ok(());
        };
        let expected = x.conv3d(&weight, bias.as_ref(), 1, [0, padding[0], padding[1]], 1, 1);
        prop_assert!(torch_ext::is_contiguous(&y, MemoryFormat::ChannelsLast3d).unwrap());
        prop_assert!(close(&y, &expected, 1e-4), "{:?} and {:?}", y.size(), expected.size());
    }
}

/// Whether this processor has what Winograd's convolutions need.
fn has_winograd() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// What the definition makes of a clip behind two frames, or none, of padding.
fn causal_by_definition(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: [i64; 2],
    repeat_first: bool,
) -> Tensor {
    let before = x.narrow(2, 0, 1).repeat([1, 1, weight.size()[2] - 1, 1, 1]);
    let before = if repeat_first { before } else { before.zeros_like() };
    Tensor::cat(&[&before, x], 2).conv3d(weight, bias, 1, [0, padding[0], padding[1]], 1, 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn causal_winograd_and_its_gradients_agree_with_the_definition(
        (batch, frames, three) in (1i64..4, 1i64..7, any::<bool>()),
        (height, width) in (16i64..30, 16i64..30),
        (inputs, outputs) in (1i64..4, 1i64..4),
        padding in [0i64..3, 0i64..3],
        (with_bias, repeat_first) in (any::<bool>(), any::<bool>()),
    ) {
        let _alone = alone();
        let leaf = |size: &[i64]| Tensor::randn(size, CPU).set_requires_grad(true);
        let x = leaf(&[batch, 16 * inputs, frames, height, width]);
        let weight = leaf(&[16 * outputs, 16 * inputs, if three { 3 } else { 1 }, 3, 3]);
        let bias = with_bias.then(|| leaf(&[16 * outputs]));
        let y = torch_ext::winograd_causal_conv3d(&x, &weight, bias.as_ref(), padding, repeat_first);
        prop_assert!(y.is_some() || !has_winograd() || batch * frames < 3, "too little work");
        let Some(y) = y else { return Ok(()) };
        let expected = causal_by_definition(&x, &weight, bias.as_ref(), padding, repeat_first);
        let relative = |a: &Tensor, b: &Tensor| a.size() == b.size()
            && (a - b).abs().max().double_value(&[]) <= 2e-5 * b.abs().max().double_value(&[]);
        prop_assert!(torch_ext::is_contiguous(&y, MemoryFormat::ChannelsLast3d).unwrap());
        prop_assert!(relative(&y.detach(), &expected.detach()));
        let inputs: Vec<&Tensor> = [&x, &weight].into_iter().chain(&bias).collect();
        let toward = Tensor::randn(y.size(), CPU);
        let gradients = |y: &Tensor| Tensor::run_backward(&[(y * &toward).sum(Kind::Float)], &inputs, true, false);
        for (name, (ours, theirs)) in
            ["x", "weight", "bias"].iter().zip(gradients(&y).iter().zip(gradients(&expected)))
        {
            prop_assert!(relative(&ours.detach(), &theirs.detach()), "{name}");
        }
    }
}

#[test]
fn causal_winograd_has_gradients_of_gradients() {
    let _alone = alone();
    for repeat_first in [false, true] {
        let x = Tensor::randn([2, 16, 3, 18, 18], CPU).set_requires_grad(true);
        let weight = Tensor::randn([16, 16, 3, 3, 3], CPU).set_requires_grad(true);
        let penalty = |y: &Tensor| {
            let slope = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&x], true, true).remove(0);
            let penalty = slope.square().sum(Kind::Float);
            Tensor::run_backward(&[penalty], &[&x, &weight], false, false)
        };
        let ours = torch_ext::winograd_causal_conv3d(&x, &weight, None, [1, 1], repeat_first);
        assert_eq!(ours.is_some(), has_winograd());
        let Some(ours) = ours else { return };
        let theirs = causal_by_definition(&x, &weight, None, [1, 1], repeat_first);
        for (ours, theirs) in penalty(&ours).iter().zip(penalty(&theirs)) {
            assert!(close(ours, &theirs, 2e-5 * theirs.abs().max().double_value(&[])));
        }
    }
}

#[test]
fn winograd_is_taken_where_it_pays_alone() {
    let _alone = alone();
    let [x, weight] = [[1i64, 32, 3, 32, 32], [32, 32, 3, 3, 3]].map(|size| Tensor::randn(size, CPU));
    let run = |x: &Tensor, weight: &Tensor| torch_ext::winograd_conv3d(x, weight, None, [1, 1]).is_some();
    assert_eq!(run(&x, &weight), has_winograd());
    assert!(!run(&x.to_kind(Kind::Double), &weight.to_kind(Kind::Double)));
    assert!(!run(&x.narrow(3, 0, 4), &weight), "few tiles");
    assert!(!run(&x.narrow(1, 0, 20), &weight.narrow(1, 0, 20)), "channels that fill no register");
    assert!(!run(&x.set_requires_grad(true), &weight), "gradients");
    assert!(!run(&x.zeros_like(), &weight.narrow(3, 0, 1)), "another kernel");
}
