use maskgit::magvit::{ConditionPadding, ConditionTask, ConditionVideo, Region};
use maskgit::mask::{ConditionMode, MaskRule, RegionCondition, mask_by_score};
use maskgit::{FirstFrames, MaskGit, MaskGitConfig, MaskSchedule, MaskStrategy};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};
use video_core::sampling::Filter;
use video_core::{Condition, ConditionKind, GridShape, SampleOptions, TokenGenerator, TokenGrid};

const GRID: GridShape = GridShape { frames: 3, height: 4, width: 4 };

fn tiny() -> MaskGitConfig {
    MaskGitConfig {
        codebook_size: 16,
        num_classes: 3,
        grid: GRID,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 64,
        dropout: 0.0,
        label_smoothing: 0.0,
        first_frames: Some(FirstFrames { probability: 0.5, max: 2, steps: None }),
        steps: 6,
        ..MaskGitConfig::default()
    }
}

fn build(config: &MaskGitConfig) -> (nn::VarStore, MaskGit) {
    let variables = nn::VarStore::new(Device::Cpu);
    let model = MaskGit::new(&variables.root(), config).unwrap();
    (variables, model)
}

fn options(batch: i64) -> SampleOptions {
    SampleOptions { batch, seed: 7, filter: Filter::default(), guidance: 1.0 }
}

/// Every position of a clip has the id 5·class + frame.
fn plain_clips(classes: &Tensor) -> TokenGrid {
    let frames = Tensor::arange(3, (Kind::Int64, Device::Cpu)).view([1, 3, 1, 1]);
    let ids = classes.view([-1, 1, 1, 1]) * 5 + frames;
    TokenGrid::new(ids.expand([classes.size()[0], 3, 4, 4], false).contiguous()).unwrap()
}

fn strategies() -> [MaskStrategy; 3] {
    let schedule = MaskSchedule::Cosine;
    [
        MaskStrategy::default(),
        MaskStrategy::Commit { schedule: schedule.clone(), block: [1, 2, 2] },
        MaskStrategy::Multiscale { schedule },
    ]
}

#[test]
fn every_strategy_and_vocabulary_learns_a_simple_world() {
    let _alone = crate::alone();
    for (masking, factors) in strategies().into_iter().zip([vec![], vec![4, 4], vec![]]) {
        tch::manual_seed(1);
        let (variables, model) = build(&MaskGitConfig { masking, factors, ..tiny() });
        let mut optimizer = nn::Adam::default().build(&variables, 3e-3).unwrap();
        let classes = Tensor::arange(3, (Kind::Int64, Device::Cpu)).repeat([4]);
        let tokens = plain_clips(&classes);
        let condition = || Condition { class: Some(classes.shallow_clone()), ..Default::default() };
        for step in 0..120 {
            optimizer.backward_step(&model.loss(&tokens, &condition(), step).unwrap());
        }
        let sampled =
            model.sample(&condition(), GRID, &SampleOptions { guidance: 1.5, ..options(12) }).unwrap();
        let right = sampled.ids().eq_tensor(tokens.ids()).to_kind(Kind::Float).mean(Kind::Float);
        assert!(right.double_value(&[]) > 0.95, "{right:?}");
    }
}

#[test]
fn given_frames_stay_and_seeds_decide_the_rest() {
    let _alone = crate::alone();
    let (_variables, model) = build(&tiny());
    assert_eq!(model.serves(), [ConditionKind::FirstFrames, ConditionKind::Class]);
    let first = TokenGrid::new(Tensor::randint(16, [2, 2, 4, 4], (Kind::Int64, Device::Cpu))).unwrap();
    let condition = Condition { first_frames: Some(first.clone()), ..Default::default() };
    let sample =
        |seed| model.sample(&condition, GRID, &SampleOptions { seed, ..options(2) }).unwrap().into_ids();
    let (a, b) = (sample(7), sample(8));
    assert_eq!(&a.narrow(1, 0, 2), first.ids());
    assert_eq!(a, sample(7));
    assert_ne!(a, b);
}

#[test]
fn continuations_have_steps_of_their_own() {
    let _alone = crate::alone();
    let with = |steps| MaskGitConfig {
        first_frames: Some(FirstFrames { probability: 0.5, max: 2, steps }),
        ..tiny()
    };
    let (_variables, model) = build(&with(Some(2)));
    let first = TokenGrid::new(Tensor::randint(16, [2, 1, 4, 4], (Kind::Int64, Device::Cpu))).unwrap();
    let first = Condition { first_frames: Some(first), ..Default::default() };
    let steps = |condition| model.sample_in_steps(condition, &options(2)).unwrap().sampled.len();
    assert_eq!((steps(&first), steps(&Condition::default())), (2, 6));
    let error = with(Some(0)).validate().unwrap_err().to_string();
    assert!(error.contains("first_frames.steps"), "{error}");
}

#[test]
fn condition_videos_train_and_sample() {
    let _alone = crate::alone();
    let config = MaskGitConfig { masking: strategies()[1].clone(), condition_segment: true, ..tiny() };
    let (_variables, model) = build(&config);
    let video = Tensor::rand([2, 3, 9, 16, 16], (Kind::Float, Device::Cpu));
    let tasks = [
        ConditionTask::FrameInterpolation { cond_frames: 1, cond_latent_frames: 1 },
        ConditionTask::Inpainting { cond_region: Region::DynamicCentral },
        ConditionTask::Outpainting {
            cond_region: Region::RectangleVertical,
            cond_padding: ConditionPadding::Edge,
        },
    ];
    for task in tasks {
        let given = ConditionVideo::new(task, &video, GRID, -1.0).unwrap();
        let ids = Tensor::randint(16, [2, 3, 4, 4], (Kind::Int64, Device::Cpu));
        let tokens = TokenGrid::new(ids.copy()).unwrap();
        let condition = RegionCondition { ids, region: given.latents };
        for mode in [
            ConditionMode::ConditionToInput,
            ConditionMode::InputToInput,
            ConditionMode::ConditionToCondition,
        ] {
            let region = Some((mode, &condition));
            let loss = model.loss_in_region(&tokens, region, None, 3).unwrap();
            assert!(loss.double_value(&[]).is_finite());
            let decoded = model.sample_in_region(region, None, &options(2)).unwrap().ids;
            if mode != ConditionMode::ConditionToInput {
                let kept = condition.region.expand_as(&decoded);
                assert_eq!(decoded.masked_select(&kept), condition.ids.masked_select(&kept));
            }
        }
    }
}

#[test]
fn a_config_file_names_the_strategy() {
    let _alone = crate::alone();
    let config: MaskGitConfig = toml::from_str(
        "codebook_size = 262144\nfactors = [512, 512]\nmask_schedule = \"pow2.5\"\n\
         masking = { kind = \"commit\", schedule = \"cosine\" }\nfirst_frames = { max = 1 }",
    )
    .unwrap();
    config.validate().unwrap();
    assert_eq!(config.mask_schedule, MaskSchedule::Pow(2.5));
    assert!(toml::from_str::<MaskGitConfig>("masking = { kind = \"commit\", blocks = 2 }").is_err());
    assert!(toml::from_str::<MaskGitConfig>("mask_schedule = \"cos\"").is_err());
}

#[test]
fn what_the_model_was_not_built_for_is_refused() {
    let _alone = crate::alone();
    let (_variables, model) = build(&MaskGitConfig { first_frames: None, num_classes: 0, ..tiny() });
    let ids =
        |shape: [i64; 4]| TokenGrid::new(Tensor::randint(16, shape, (Kind::Int64, Device::Cpu))).unwrap();
    let tokens = ids([2, 3, 4, 4]);
    let none = Condition::default();
    let class =
        Condition { class: Some(Tensor::zeros([2], (Kind::Int64, Device::Cpu))), ..Default::default() };
    assert!(model.loss(&tokens, &class, 0).unwrap_err().to_string().contains("Class"));
    let first = Condition { first_frames: Some(ids([2, 1, 4, 4])), ..Default::default() };
    assert!(model.sample(&first, GRID, &options(2)).unwrap_err().to_string().contains("FirstFrames"));
    let other = GridShape { frames: 2, ..GRID };
    let error = model.sample(&none, other, &options(2)).unwrap_err().to_string();
    assert!(error.contains("[2, 4, 4]") && error.contains("frames: 3"), "{error}");
    assert!(model.loss(&ids([2, 2, 4, 4]), &none, 0).is_err());
    let outside = TokenGrid::new(tokens.ids() + 16).unwrap();
    assert!(model.loss(&outside, &none, 0).unwrap_err().to_string().contains("0..16"));

    let wide = RegionCondition {
        ids: tokens.ids().shallow_clone(),
        region: Tensor::ones([3, 4, 5], (Kind::Bool, Device::Cpu)),
    };
    let rule = MaskRule { condition: Some((ConditionMode::ConditionToInput, &wide)), ..MaskRule::default() };
    let scores = tokens.ids().to_kind(Kind::Float);
    let error = mask_by_score(tokens.ids(), &scores, &[0.5], rule).unwrap_err().to_string();
    assert!(error.contains("[3, 4, 5]") && error.contains("[2, 3, 4, 4]"), "{error}");
    let error = mask_by_score(tokens.ids(), &scores, &[1.5], MaskRule::default()).unwrap_err().to_string();
    assert!(error.contains("1.5") && error.contains("[0, 1]"), "{error}");

    let (_variables, model) = build(&tiny());
    let labels = |n: i64| Condition {
        class: Some(Tensor::full([2], n, (Kind::Int64, Device::Cpu))),
        ..Default::default()
    };
    assert!(model.loss(&tokens, &labels(3), 0).unwrap_err().to_string().contains("0..3"));
    let whole = Condition { first_frames: Some(tokens.clone()), ..Default::default() };
    assert!(model.sample(&whole, GRID, &options(2)).is_err());
    assert!(MaskGitConfig { steps: 0, ..tiny() }.validate().is_err());
    assert!(
        MaskGitConfig {
            masking: MaskStrategy::Commit { schedule: MaskSchedule::Cosine, block: [2, 1, 1] },
            ..tiny()
        }
        .validate()
        .unwrap_err()
        .to_string()
        .contains("masking.block")
    );
}
