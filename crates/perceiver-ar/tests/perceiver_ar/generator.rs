use perceiver_ar::{GridPositions, PerceiverArGenerator, PerceiverArGeneratorConfig, Scheme};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};
use video_core::sampling::Filter;
use video_core::{Condition, ConditionKind, Error, GridShape, SampleOptions, TokenGenerator, TokenGrid};

const GRID: GridShape = GridShape { frames: 2, height: 3, width: 4 };
const CODES: i64 = 7;

fn tiny() -> PerceiverArGeneratorConfig {
    PerceiverArGeneratorConfig {
        n_codes: CODES,
        grid: GRID,
        num_classes: 3,
        num_latents: 7,
        hidden_dim: 24,
        heads: 2,
        layers: 2,
        dropout: 0.0,
        ..PerceiverArGeneratorConfig::default()
    }
}

fn build(config: &PerceiverArGeneratorConfig) -> (nn::VarStore, PerceiverArGenerator) {
    tch::manual_seed(4);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = PerceiverArGenerator::new(&variables.root(), config).unwrap();
    (variables, model)
}

fn options(batch: i64, seed: u64) -> SampleOptions {
    SampleOptions { batch, seed, filter: Filter::default(), guidance: 1.0 }
}

#[test]
fn a_simple_world_is_learnt_whatever_the_positions() {
    let _alone = crate::alone();
    for positions in [GridPositions::Axes, GridPositions::Rotary, GridPositions::Fourier] {
        let (variables, model) = build(&PerceiverArGeneratorConfig { positions, ..tiny() });
        assert_eq!(model.serves(), [ConditionKind::FirstFrames, ConditionKind::Class]);
        let mut optimizer = nn::Adam::default().build(&variables, 1e-2).unwrap();
        let class = Tensor::arange(3, (Kind::Int64, Device::Cpu));
        // Every position of a clip has the id 2·class + frame.
        let frames = Tensor::arange(2, (Kind::Int64, Device::Cpu)).view([1, 2, 1, 1]);
        let ids = (class.view([-1, 1, 1, 1]) * 2 + frames).expand([3, 2, 3, 4], false).contiguous();
        let tokens = TokenGrid::new(ids).unwrap();
        let condition = || Condition { class: Some(class.shallow_clone()), ..Default::default() };
        for step in 0..150 {
            optimizer.backward_step(&model.loss(&tokens, &condition(), step).unwrap());
        }
        let nats = model.nats(&tokens, &condition()).unwrap() / GRID.tokens();
        assert!(nats.max().double_value(&[]) < 0.2, "{positions:?} {nats:?}");
        if positions == GridPositions::Rotary {
            // Relative positions count 12 tokens too vaguely for a greedy draw to change frames in time.
            continue;
        }
        let greedy = Filter { temperature: 0.0, ..Filter::default() };
        let greedy = SampleOptions { filter: greedy, ..options(3, 1) };
        let sampled = model.sample(&condition(), GRID, &greedy).unwrap();
        let right = sampled.ids().eq_tensor(tokens.ids()).to_kind(Kind::Float).mean(Kind::Float);
        assert!(right.double_value(&[]) > 0.95, "{positions:?} {right:?}");
    }
}

#[test]
fn likelihoods_sum_to_one() {
    let _alone = crate::alone();
    let grid = GridShape { frames: 1, height: 1, width: 3 };
    let config = PerceiverArGeneratorConfig { n_codes: 2, num_classes: 0, grid, num_latents: 2, ..tiny() };
    let (variables, model) = build(&config);
    tch::no_grad(|| drop(variables.variables()["logits.weight"].shallow_clone().normal_(0.0, 0.3)));
    // Ids that are no codes take what the codes leave.
    tch::no_grad(|| drop(variables.variables()["logits.bias"].narrow(0, 0, 3).fill_(-30.0)));
    let all = Tensor::arange(8, (Kind::Int64, Device::Cpu));
    let bits: Vec<Tensor> =
        [4, 2, 1].iter().map(|&bit: &i64| all.floor_divide_scalar(bit).remainder(2)).collect();
    let tokens = TokenGrid::new(Tensor::stack(&bits, 1).view([8, 1, 1, 3])).unwrap();
    let nats = model.nats(&tokens, &Condition::default()).unwrap();
    let sum = (-nats).exp().sum(Kind::Double).double_value(&[]);
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

#[test]
fn prompts_are_kept_and_seeds_decide_the_rest() {
    let _alone = crate::alone();
    for sampling in [None, Some(Scheme::Recompute), Some(Scheme::reference(4))] {
        let (_variables, model) = build(&PerceiverArGeneratorConfig { sampling, ..tiny() });
        let first = TokenGrid::new(Tensor::randint(CODES, [2, 1, 3, 4], (Kind::Int64, Device::Cpu))).unwrap();
        let condition = Condition { first_frames: Some(first.clone()), ..Default::default() };
        let sample = |seed| model.sample(&condition, GRID, &options(2, seed)).unwrap();
        let (a, b) = (sample(7), sample(8));
        a.check_vocabulary(CODES).unwrap();
        assert_eq!(a.time_slice(0, 1).unwrap().ids(), first.ids());
        assert_eq!(a.ids(), sample(7).ids());
        assert_ne!(a.ids(), b.ids());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let _alone = crate::alone();
    let path = nn::VarStore::new(Device::Cpu);
    for (config, field) in [
        (PerceiverArGeneratorConfig { n_codes: 0, ..tiny() }, "n_codes"),
        (PerceiverArGeneratorConfig { num_latents: GRID.tokens() + 1, ..tiny() }, "num_latents"),
        (PerceiverArGeneratorConfig { grid: GridShape { width: 0, ..GRID }, ..tiny() }, "grid"),
        (PerceiverArGeneratorConfig { sampling: Some(Scheme::reference(1)), ..tiny() }, "sampling"),
        (PerceiverArGeneratorConfig { z_loss: -1.0, ..tiny() }, "z_loss"),
    ] {
        let refused = PerceiverArGenerator::new(&path.root(), &config).unwrap_err();
        assert!(matches!(&refused, Error::Config { field: found, .. } if found == field), "{refused}");
    }
    let (_variables, model) = build(&PerceiverArGeneratorConfig { num_classes: 0, ..tiny() });
    let none = Condition::default;
    let grid = |id: i64| TokenGrid::new(Tensor::full([1, 2, 3, 4], id, (Kind::Int64, Device::Cpu))).unwrap();
    assert!(model.loss(&grid(CODES), &none(), 0).is_err());
    assert!(model.loss(&grid(0).time_slice(0, 1).unwrap(), &none(), 0).is_err());
    let class = Condition { class: Some(Tensor::zeros([1], (Kind::Int64, Device::Cpu))), ..none() };
    assert!(matches!(model.loss(&grid(0), &class, 0), Err(Error::Unsupported { .. })));
    let all = Condition { first_frames: Some(grid(0)), ..none() };
    assert!(model.sample(&all, GRID, &options(1, 0)).is_err());
    assert!(model.sample(&none(), GRID, &options(0, 0)).is_err());
    assert!(model.sample(&none(), GRID, &SampleOptions { guidance: 2.0, ..options(1, 0) }).is_err());
}
