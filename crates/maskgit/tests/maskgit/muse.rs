use maskgit::muse::{
    Critic, CriticConfig, Muse, MuseConfig, MuseContext, MuseDraws, MuseGeneratorConfig, MuseLoss, MusePair,
    MusePairConfig, MuseSampling, MuseTransformer, MuseVqgan, MuseVqganConfig, generate, masked_counts,
    muse_loss,
};
use proptest::prelude::*;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};
use video_core::sampling::Filter;
use video_core::{Condition, GridShape, SampleOptions, TokenGenerator, TokenGrid};

use crate::distance;

fn tiny() -> MuseConfig {
    MuseConfig {
        num_tokens: 12,
        seq_len: 9,
        dim: 24,
        depth: 2,
        heads: 2,
        dim_head: 12,
        text_dim: 6,
        self_cond: true,
        ..MuseConfig::default()
    }
}

fn texts(count: i64) -> Tensor {
    Tensor::randn([count, 3, 6], (Kind::Float, Device::Cpu))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn counts_start_with_all_and_end_with_one(tokens in 1i64..5000, steps in 2i64..40) {
        let counts = masked_counts(tokens, steps).unwrap();
        prop_assert_eq!(counts[0], tokens);
        prop_assert_eq!(*counts.last().unwrap(), 1);
        prop_assert!(counts.windows(2).all(|pair| pair[1] <= pair[0]));
    }
}

#[test]
fn a_generator_and_its_critic_learn_what_a_text_says() {
    let _alone = crate::alone();
    tch::manual_seed(3);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = MuseTransformer::new(&(variables.root() / "transformer"), &tiny()).unwrap();
    let critic = MuseTransformer::critic(
        &(variables.root() / "critic"),
        &MuseConfig { depth: 1, self_cond: false, ..tiny() },
    )
    .unwrap();
    let critic = Critic::Separate(Box::new(critic));
    // One word for each clip.
    let text = Tensor::eye(6, (Kind::Float, Device::Cpu)).narrow(0, 0, 4).unsqueeze(1);
    let ids = Tensor::arange(4, (Kind::Int64, Device::Cpu)).unsqueeze(-1) * 3;
    let ids = ids.expand([4, 9], false).contiguous();
    let context = MuseContext::of_text(&text);
    let options = MuseLoss { cond_drop_prob: 0.1, no_mask_token_prob: 0.1, ..MuseLoss::default() };
    let mut optimizer = nn::Adam::default().build(&variables, 3e-3).unwrap();
    for _ in 0..150 {
        let draws = MuseDraws::draw(&ids, 12, true);
        let loss = muse_loss(&model, Some(&critic), &ids, &context, &options, &draws).unwrap();
        optimizer.backward_step(&loss);
    }
    for critic in [None, Some(&critic)] {
        let options = MuseSampling { timesteps: 5, ..MuseSampling::default() };
        let sampled = generate(&model, critic, &context, 9, &options, None).unwrap().ids;
        let right = sampled.eq_tensor(&ids).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!(right > 0.9, "{right}");
    }
}

#[test]
fn padding_and_dropped_text_are_not_seen_but_coarse_tokens_are() {
    let _alone = crate::alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let model = MuseTransformer::new(&variables.root(), &tiny()).unwrap();
    let ids = Tensor::randint(13, [2, 9], (Kind::Int64, Device::Cpu));
    let text = texts(2);
    let padded = text.constant_pad_nd([0, 0, 0, 4]);
    let embed = |context: &MuseContext<'_>| model.embed(&ids, context).unwrap();
    let plain = embed(&MuseContext::of_text(&text));
    assert!(distance(&plain, &embed(&MuseContext::of_text(&padded))) < 1e-5);

    let none = Tensor::zeros([2], (Kind::Bool, Device::Cpu));
    let other = texts(2);
    let dropped = |text| MuseContext { keep_text: Some(&none), ..MuseContext::of_text(text) };
    assert!(distance(&embed(&dropped(&text)), &embed(&dropped(&other))) < 1e-6);
    let coarse = Tensor::randint(12, [2, 2, 2], (Kind::Int64, Device::Cpu));
    let with_coarse = MuseContext { low_resolution: Some(&coarse), ..dropped(&text) };
    assert!(distance(&embed(&dropped(&text)), &embed(&with_coarse)) > 1e-3);
    let zeros = Tensor::zeros([2, 9, 24], (Kind::Float, Device::Cpu));
    let with_zeros = MuseContext { self_cond: Some(&zeros), ..MuseContext::of_text(&text) };
    assert!(distance(&plain, &embed(&with_zeros)) < 1e-6);
}

#[test]
fn images_become_ids_and_images_again() {
    let _alone = crate::alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let config =
        MuseVqganConfig { dim: 8, layers: 2, codebook_size: 64, resnet_groups: 4, num_resnet_blocks: 2 };
    let model = MuseVqgan::new(&variables.root(), &config).unwrap();
    let images = Tensor::rand([2, 3, 8, 12], (Kind::Float, Device::Cpu));
    let tokens = model.encode(&images).unwrap();
    assert_eq!(tokens.ids().size(), [2, 1, 2, 3]);
    tokens.check_vocabulary(64).unwrap();
    assert_eq!(model.decode(&tokens).unwrap().size(), images.size());
    assert!(model.encode(&images.narrow(3, 0, 10)).is_err());
    assert!(MuseVqganConfig { codebook_size: 100, ..config }.validate().is_err());
}

#[test]
fn conditions_that_do_not_fit_are_refused() {
    let _alone = crate::alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let model = MuseTransformer::new(&variables.root(), &tiny()).unwrap();
    let ids = Tensor::zeros([2, 9], (Kind::Int64, Device::Cpu));
    let wide = Tensor::zeros([2, 3, 7], (Kind::Float, Device::Cpu));
    let error = model.embed(&ids, &MuseContext::of_text(&wide)).unwrap_err().to_string();
    assert!(error.contains("[2, 3, 7]") && error.contains("[2, L, 6]"), "{error}");
    let text = texts(2);
    let context = MuseContext::of_text(&text);
    assert!(model.embed(&(&ids + 13), &context).is_err());
    assert!(model.embed(&Tensor::zeros([2, 10], (Kind::Int64, Device::Cpu)), &context).is_err());
    assert!(generate(&model, None, &context, 10, &MuseSampling::default(), None).is_err());
    let options = MuseSampling { topk_filter_thres: 1.0, ..MuseSampling::default() };
    assert!(generate(&model, None, &context, 9, &options, None).is_err());
    assert!(MuseConfig { dim: 0, ..tiny() }.validate().is_err());
}

#[test]
fn base_and_super_resolution_are_generators() {
    let _alone = crate::alone();
    let (coarse, fine) =
        (GridShape { frames: 2, height: 2, width: 2 }, GridShape { frames: 2, height: 4, width: 4 });
    let config = |grid: GridShape| MuseGeneratorConfig {
        transformer: MuseConfig { seq_len: grid.tokens(), ..tiny() },
        grid,
        low_resolution: None,
        critic: Some(CriticConfig::OfGenerator),
        loss: MuseLoss::default(),
        sampling: MuseSampling { timesteps: 3, ..MuseSampling::default() },
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let base = Muse::new(&(variables.root() / "base"), &config(coarse)).unwrap();
    let above = MuseGeneratorConfig {
        low_resolution: Some(coarse),
        critic: Some(CriticConfig::Separate { depth: 1 }),
        ..config(fine)
    };
    let above = Muse::new(&(variables.root() / "above"), &above).unwrap();

    let mask = Tensor::ones([2, 3], (Kind::Bool, Device::Cpu));
    let condition = Condition { text: Some((texts(2), mask)), ..Condition::default() };
    let options = SampleOptions { batch: 2, seed: 5, filter: Filter::default(), guidance: 3.0 };
    let low = base.sample(&condition, coarse, &options).unwrap();
    assert_eq!(low.ids(), base.sample(&condition, coarse, &options).unwrap().ids());
    let high = above.sample_above(Some(&low), &condition, &options).unwrap().ids;
    let high = TokenGrid::new(high.view([2, 2, 4, 4])).unwrap();
    base.loss(&low, &Condition::default(), 1).unwrap().backward();
    // Text of zeros, as padding is, must not spoil gradients.
    for (name, variable) in
        variables.variables().into_iter().filter(|(name, _)| name.starts_with("base.transformer"))
    {
        let grad = variable.grad();
        let finite = !grad.defined() || grad.isfinite().all().int64_value(&[]) == 1;
        assert!(finite, "the gradient of {name} is not finite");
    }
    above.loss_above(&high, Some(&low), &condition, 1).unwrap().backward();

    let error = above.sample(&condition, fine, &options).unwrap_err().to_string();
    assert!(error.contains("not given") && error.contains("sample_above"), "{error}");
    assert!(base.loss_above(&low, Some(&low), &condition, 1).is_err());
    assert!(base.loss(&high, &condition, 1).is_err());
    let top_k = SampleOptions { filter: Filter { top_k: Some(2), ..Filter::default() }, ..options };
    assert!(base.sample(&condition, coarse, &top_k).is_err());
    let first = Condition { first_frames: Some(low.clone()), ..Condition::default() };
    assert!(base.loss(&low, &first, 1).unwrap_err().to_string().contains("FirstFrames"));
    assert!(MuseGeneratorConfig { grid: fine, ..config(coarse) }.validate().is_err());

    // Both as one.
    let both = MusePairConfig {
        base: config(coarse),
        super_resolution: MuseGeneratorConfig { low_resolution: Some(coarse), ..config(fine) },
    };
    let pair = MusePair::new(&(variables.root() / "pair"), &both).unwrap();
    let [base, above] = pair.losses(&low, &high, &condition, 1).unwrap();
    assert_eq!(base.double_value(&[]), pair.base().loss(&low, &condition, 1).unwrap().double_value(&[]));
    (base + above).backward();
    let options = SampleOptions { filter: Filter::default(), ..options };
    let made = pair.sample(&condition, fine, &options).unwrap();
    assert_eq!(made.ids(), pair.sample(&condition, fine, &options).unwrap().ids());
    assert!(pair.sample(&condition, coarse, &options).is_err());
    assert!(pair.loss(&high, &condition, 1).unwrap_err().to_string().contains("coarse"));
    let apart = MusePairConfig { super_resolution: config(fine), ..both };
    assert!(apart.validate().unwrap_err().to_string().contains("super_resolution.low_resolution"));
}
