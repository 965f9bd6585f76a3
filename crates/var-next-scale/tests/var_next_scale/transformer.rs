use tch::{Device, Kind, Tensor, nn};
use var_next_scale::recipe::{LrDecay, LrSchedule, ProgressSchedule, decays};
use var_next_scale::sampling::filter_logits;
use var_next_scale::{
    Edit, EditBox, EditKind, MultiScaleVq, Progress, VarConfig, VarGenerator, VarPrompt, VarSampling,
    edit_mask, next_scale_loss,
};
use video_core::sampling::Filter;
use video_core::{Condition, GridShape, SampleOptions, TokenGenerator, TokenGrid};

use crate::tokenizer::quantizer_config;
use crate::{alone, distance, message};

pub fn var_config() -> VarConfig {
    VarConfig {
        vocab_size: 32,
        z_channels: 6,
        num_classes: 5,
        depth: 2,
        embed_dim: 16,
        num_heads: 2,
        drop_path_rate: 0.1,
        patch_nums: vec![1, 2, 4],
        ..VarConfig::default()
    }
}

fn build(config: &VarConfig) -> (nn::VarStore, VarGenerator) {
    let tokenizer = nn::VarStore::new(Device::Cpu);
    let quantizer = MultiScaleVq::new(&tokenizer.root(), &quantizer_config()).unwrap();
    let variables = nn::VarStore::new(Device::Cpu);
    let generator = VarGenerator::new(&variables.root(), config, quantizer.frozen()).unwrap();
    // At the start all logits are nearly alike and modulations nearly nothing: make every weight count.
    tch::no_grad(|| {
        for (_, mut variable) in variables.variables() {
            let noise = variable.randn_like() * 0.3;
            let _ = variable.g_add_(&noise);
        }
    });
    (variables, generator)
}

fn ids(batch: i64) -> Tensor {
    Tensor::randint(32, [batch, 21], (Kind::Int64, Device::Cpu))
}

fn labels(labels: &[i64]) -> Tensor {
    Tensor::from_slice(labels)
}

#[test]
fn published_sizes_have_the_published_numbers_of_parameters() {
    for (config, parameters) in [
        (VarConfig::var_d16(), 310_283_520),
        (VarConfig::var_d20(), 600_917_136),
        (VarConfig::var_d24(), 1_033_399_360),
        (VarConfig::var_d30(), 2_010_020_356),
        (VarConfig::var_d36(), 2_353_893_904),
        (VarConfig { shared_aln: false, ..VarConfig::var_d36() }, 3_468_647_440),
    ] {
        config.validate().unwrap();
        assert_eq!(config.parameters(), parameters, "depth {}", config.depth);
        if !config.shared_aln {
            assert_eq!(config.block_weights(), 73_728 * config.depth.pow(3), "the paper's count");
        }
    }
    // The formula is that of the network.
    let _alone = alone();
    for (shared_aln, attn_l2_norm) in [(false, true), (true, false)] {
        let config = VarConfig { shared_aln, attn_l2_norm, ..var_config() };
        let (variables, _) = build(&config);
        let built: i64 = variables.trainable_variables().iter().map(|v| v.numel() as i64).sum();
        assert_eq!(config.parameters(), built);
    }
}

#[test]
fn a_scale_sees_itself_and_coarser_ones_alone() {
    let _alone = alone();
    let (_variables, generator) = build(&var_config());
    let classes = labels(&[1, 5]);
    let first = ids(2);
    let logits = generator.logits(&first, &classes, 3, false).unwrap();
    for (changed, from) in [(0, 1), (1, 5), (4, 5), (5, 21), (20, 21)] {
        let other = first.copy();
        let _ = other.narrow(1, changed, 1).g_add_scalar_(7).remainder_(32);
        let again = generator.logits(&other, &classes, 3, false).unwrap();
        let moved = (&again - &logits).abs().amax([0i64, 2].as_slice(), false);
        let seen = moved.narrow(0, 0, from).max().double_value(&[]);
        assert_eq!(seen, 0.0, "token {changed}");
        if from < 21 {
            assert!(moved.narrow(0, from, 21 - from).max().double_value(&[]) > 1e-4, "token {changed}");
        }
    }
    // The first scales alone give what they give among all.
    let two = generator.logits(&first, &classes, 2, false).unwrap();
    assert!(distance(&two, &logits.narrow(1, 0, 5)) < 1e-5);
    let one = generator.logits(&first, &classes, 1, false).unwrap();
    assert!(distance(&one, &logits.narrow(1, 0, 1)) < 1e-5);
}

#[test]
fn cached_logits_are_the_taught_ones_with_guidance_in_between() {
    let _alone = alone();
    for (shared_aln, attn_l2_norm, cfg) in [(false, true, 1.5), (true, false, 0.0)] {
        let (_variables, generator) = build(&VarConfig { shared_aln, attn_l2_norm, ..var_config() });
        let classes = labels(&[1, 3]);
        let options = VarSampling { cfg, filter: Filter::default(), more_smooth: false };
        let mut seen = Vec::new();
        let sampled = generator
            .sample_pyramid(&classes, options, &VarPrompt::default(), &mut |step| {
                seen.push(step.logits.shallow_clone());
            })
            .unwrap();
        let ids = Tensor::cat(&sampled.ids, 1);
        let cond = generator.logits(&ids, &classes, 3, false).unwrap();
        let none = classes.full_like(5);
        let uncond = generator.logits(&ids, &none, 3, false).unwrap();
        for (scale, (start, length)) in [(0, 1), (1, 4), (5, 16)].into_iter().enumerate() {
            let t = cfg * scale as f64 / 2.0;
            let guided = &cond * (1.0 + t) - &uncond * t;
            assert!(distance(&seen[scale], &guided.narrow(1, start, length)) < 1e-4);
        }
        let maps = generator.quantizer().embed(&sampled.ids, generator.quantizer().pyramid()).unwrap();
        let sums = generator.quantizer().f_hats(&maps, generator.quantizer().pyramid()).unwrap();
        assert!(distance(&sums[2], &sampled.f_hat) < 1e-5);
    }
}

#[test]
fn given_tokens_are_kept_where_the_mask_says_so() {
    let _alone = alone();
    let (_variables, generator) = build(&var_config());
    let pyramid = generator.model().pyramid();
    let rectangle = EditBox { top: 0.5, left: 0.0, bottom: 1.0, right: 0.5 };
    for kind in [EditKind::Inside, EditKind::Outside] {
        let mask = edit_mask(rectangle, kind, pyramid).unwrap();
        let new = if kind == EditKind::Inside { 4.0 } else { 12.0 };
        assert_eq!(mask.sum(Kind::Float).double_value(&[]), 16.0 - new);
        let given = pyramid.split(&ids(2)).unwrap();
        let edit = Edit::new(given.iter().map(Tensor::copy).collect(), &mask, pyramid).unwrap();
        let prompt = VarPrompt { edit: Some(&edit), noise: None };
        let options = VarSampling { cfg: 3.0, filter: Filter::default(), more_smooth: false };
        let sampled = generator.sample_pyramid(&labels(&[5, 2]), options, &prompt, &mut |_| ()).unwrap();
        for ((sampled, given), keep) in sampled.ids.iter().zip(&given).zip(&edit.keep) {
            let kept = |ids: &Tensor| ids.masked_select(&keep.expand_as(ids));
            assert_eq!(kept(sampled), kept(given));
        }
        assert!(bool::try_from(edit.keep[0].all()).unwrap());
        assert!(!bool::try_from(edit.keep[2].all()).unwrap());
    }
    assert!(edit_mask(EditBox { top: 0.6, ..rectangle }, EditKind::Inside, pyramid).is_ok());
    assert!(edit_mask(EditBox { bottom: 1.5, ..rectangle }, EditKind::Inside, pyramid).is_err());
    assert!(edit_mask(EditBox { left: 0.9, ..rectangle }, EditKind::Inside, pyramid).is_err());
}

#[test]
fn the_contract_of_generators_holds() {
    let _alone = alone();
    let (_variables, generator) = build(&var_config());
    let shape = GridShape { frames: 1, height: 1, width: 21 };
    let tokens = TokenGrid::new(ids(3).view([3, 1, 1, 21])).unwrap();
    let condition = Condition { class: Some(labels(&[0, 4, 2])), ..Condition::default() };
    let loss = |seed| generator.loss(&tokens, &condition, seed).unwrap();
    assert_eq!(loss(3), loss(3));
    loss(3).backward();
    let filter = Filter { top_k: Some(8), top_p: Some(0.9), ..Filter::default() };
    let options = SampleOptions { batch: 3, seed: 7, filter, guidance: 2.0 };
    let sample = || generator.sample(&condition, shape, &options).unwrap();
    assert_eq!(sample().ids(), sample().ids());
    assert_eq!(sample().shape(), shape);
    sample().check_vocabulary(32).unwrap();
    // Smooth samples are of the same form.
    let smooth = VarSampling { more_smooth: true, ..VarSampling::default() };
    let sampled =
        generator.sample_pyramid(&labels(&[1]), smooth, &VarPrompt::default(), &mut |_| ()).unwrap();
    assert_eq!(sampled.f_hat.size(), [1, 6, 1, 4, 4]);

    let of = |class: i64| Condition { class: Some(labels(&[class, 0, 0])), ..Condition::default() };
    for class in [-1, 5] {
        let error = generator.sample(&of(class), shape, &options).unwrap_err();
        assert!(message(error).contains(&format!("class: {class}; expected 0 to 4")));
        assert!(generator.loss(&tokens, &of(class), 0).is_err());
    }
    let text = Tensor::zeros([3, 1, 1], (Kind::Float, Device::Cpu));
    let text = Condition { text: Some((text.shallow_clone(), text)), ..Condition::default() };
    assert!(generator.loss(&tokens, &text, 0).is_err());
    let square = GridShape { frames: 1, height: 4, width: 4 };
    assert!(message(generator.sample(&condition, square, &options).unwrap_err()).contains("[1, 1, 21]"));
}

#[test]
fn an_unconditional_model_is_not_guided() {
    let _alone = alone();
    let (_variables, generator) = build(&VarConfig { num_classes: 0, ..var_config() });
    assert!(generator.serves().is_empty());
    let shape = GridShape { frames: 1, height: 1, width: 21 };
    let options = SampleOptions { batch: 1, seed: 0, filter: Filter::default(), guidance: 1.5 };
    let error = generator.sample(&Condition::default(), shape, &options).unwrap_err();
    assert!(message(error).contains("cfg = 0.5"));
    let options = SampleOptions { guidance: 1.0, ..options };
    generator.sample(&Condition::default(), shape, &options).unwrap();
}

#[test]
fn configs_that_do_not_fit_are_refused_by_name() {
    let _alone = crate::alone();
    let tokenizer = nn::VarStore::new(Device::Cpu);
    let variables = nn::VarStore::new(Device::Cpu);
    let refused = |config: VarConfig, word: &str| {
        let quantizer = MultiScaleVq::new(&tokenizer.root(), &quantizer_config()).unwrap();
        let error = VarGenerator::new(&variables.root(), &config, quantizer).unwrap_err();
        let message = message(error);
        assert!(message.contains(word), "{message}");
    };
    refused(VarConfig { patch_nums: vec![1, 2, 3], ..var_config() }, "patch_nums = [1, 2, 3]");
    refused(VarConfig { patch_nums: vec![1, 4, 2], ..var_config() }, "patch_nums");
    refused(VarConfig { vocab_size: 31, ..var_config() }, "vocab_size = 31");
    refused(VarConfig { num_heads: 3, ..var_config() }, "num_heads = 3");
    refused(VarConfig { mlp_ratio: 0.0, ..var_config() }, "mlp_ratio");
    refused(VarConfig { drop_path_rate: 1.0, ..var_config() }, "drop_path_rate");
    refused(VarConfig { cond_drop_rate: -0.1, ..var_config() }, "cond_drop_rate");
}

#[test]
fn filters_keep_ties_and_the_likeliest() {
    let logits = Tensor::from_slice(&[1f32, 3.0, 3.0, 2.0, 3.0]);
    let kept = |filter: &Filter| {
        Vec::<bool>::try_from(filter_logits(&logits, filter).ne(f64::NEG_INFINITY)).unwrap()
    };
    let three = [false, true, true, false, true];
    assert_eq!(kept(&Filter { top_k: Some(2), ..Filter::default() }), three);
    assert_eq!(kept(&Filter { temperature: 0.0, ..Filter::default() }), three);
    assert_eq!(kept(&Filter { top_k: Some(9), ..Filter::default() }), [true; 5]);
    let one = kept(&Filter { top_p: Some(1e-6), ..Filter::default() });
    assert_eq!(one.iter().filter(|kept| **kept).count(), 1);
}

#[test]
fn progressive_training_weighs_the_new_scale() {
    let _alone = alone();
    let (_variables, generator) = build(&var_config());
    let pyramid = generator.model().pyramid();
    let ids = ids(2);
    let logits = generator.logits(&ids, &labels(&[0, 1]), 2, false).unwrap();
    let targets = ids.narrow(1, 0, 5);
    let loss = |weight| {
        let progress = Some(Progress { last_scale: 1, weight });
        next_scale_loss(&logits, &targets, pyramid, 0.0, progress).unwrap().double_value(&[])
    };
    let first = next_scale_loss(
        &logits.narrow(1, 0, 1),
        &targets.narrow(1, 0, 1),
        pyramid,
        0.0,
        Some(Progress { last_scale: 0, weight: 1.0 }),
    );
    let first = first.unwrap().double_value(&[]);
    assert!((loss(0.5) - (loss(1.0) + first) / 2.0).abs() < 1e-5);
    assert!((loss(0.0) - first).abs() < 1e-5);
    let progress = Some(Progress { last_scale: 1, weight: 0.5 });
    generator.progressive_loss(&ids, None, progress, 0).unwrap().backward();
    let schedule = ProgressSchedule { pg0: 1, pg: 0.5, wp_it: 10, max_it: 100 };
    assert_eq!([0, 10, 49, 50, 99].map(|it| schedule.last_scale(it, 4)), [1, 1, 3, 3, 3]);
}

#[test]
fn the_recipe_warms_up_and_ends_where_it_should() {
    for decay in ["cos", "lin", "lin0", "lin00", "lin0.3", "exp"] {
        let decay: LrDecay = decay.parse().unwrap();
        let schedule = LrSchedule { decay, peak_lr: 2.0, wp_it: 10, max_it: 100, wp0: 0.1, wpe: 0.01 };
        assert!((schedule.lr(0) - 0.2).abs() < 1e-12);
        assert!((schedule.lr(10) - 2.0).abs() < 1e-12);
        assert!((schedule.lr(99) - 0.02).abs() < 1e-12);
        assert!((schedule.weight_decay(0, 0.05, 0.08) - 0.05).abs() < 1e-12);
        assert!((schedule.weight_decay(99, 0.05, 0.08) - 0.08).abs() < 1e-12);
    }
    assert!("lin2".parse::<LrDecay>().is_err() && "line".parse::<LrDecay>().is_err());
    assert!(decays("blocks.0.attn.mat_qkv.weight", 2) && decays("class_emb.weight", 2));
    assert!(!decays("lvl_embed.weight", 2) && !decays("head.bias", 1) && !decays("pos_1LC", 3));
}
