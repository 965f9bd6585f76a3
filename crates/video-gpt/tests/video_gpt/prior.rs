use proptest::prelude::*;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::sampling::Filter;
use video_core::{Condition, ConditionKind, Error, GridShape, SampleOptions, TokenGenerator, TokenGrid};
use video_gpt::{
    AttentionType, FrameConfig, GptCondition, GptConfig, LayerNorm, ResNetConfig, SparseLayout, VideoGpt,
};

const GRID: GridShape = GridShape { frames: 2, height: 3, width: 4 };
const CODES: i64 = 11;

fn tiny() -> GptConfig {
    GptConfig {
        n_codes: CODES,
        embedding_dim: 6,
        grid: GRID,
        hidden_dim: 24,
        heads: 2,
        layers: 2,
        dropout: 0.0,
        attn_dropout: 0.0,
        ..GptConfig::default()
    }
}

fn with_frames() -> GptConfig {
    let resnet =
        ResNetConfig { width_multiplier: 0.0625, layers: [1; 4], resnet_dim: 6, ..ResNetConfig::default() };
    GptConfig { frames: Some(FrameConfig { n_cond_frames: 1, size: [8, 8], resnet }), ..tiny() }
}

fn sparse() -> GptConfig {
    let layout = SparseLayout { block: 4, num_local_blocks: 1 };
    GptConfig { attn_type: AttentionType::Sparse(layout), ..tiny() }
}

/// Every form of the model.
fn forms() -> [GptConfig; 4] {
    [tiny(), GptConfig { class_cond_dim: Some(3), ..tiny() }, with_frames(), sparse()]
}

/// A model whose head is not zero, as it is at first.
fn build(config: &GptConfig) -> (nn::VarStore, VideoGpt) {
    tch::manual_seed(5);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = VideoGpt::new(&variables.root(), config).unwrap();
    no_grad(|| drop(variables.variables()["fc_out.weight"].shallow_clone().normal_(0.0, 0.5)));
    (variables, model)
}

fn random_tokens(batch: i64) -> TokenGrid {
    let GridShape { frames, height, width } = GRID;
    TokenGrid::new(Tensor::randint(CODES, [batch, frames, height, width], (Kind::Int64, Device::Cpu)))
        .unwrap()
}

/// What a model of this form is given for a batch.
struct Given {
    class: Option<Tensor>,
    frames: Option<Tensor>,
}

impl Given {
    fn new(config: &GptConfig, batch: i64) -> Self {
        let frames = config.frames.as_ref().map(|frames| {
            let [height, width] = frames.size;
            Tensor::rand([batch, 3, frames.n_cond_frames, height, width], (Kind::Float, Device::Cpu)) - 0.5
        });
        let class = config.class_cond_dim.map(|n| Tensor::randint(n, [batch], (Kind::Int64, Device::Cpu)));
        Self { class, frames }
    }

    fn condition(&self) -> GptCondition<'_> {
        GptCondition { class: self.class.as_ref(), frames: self.frames.as_ref() }
    }
}

fn options(batch: i64, seed: u64) -> SampleOptions {
    SampleOptions { batch, seed, filter: Filter::default(), guidance: 1.0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn cached_is_uncached_in_any_pieces(form in 0usize..4, cuts in prop::collection::vec(1i64..9, 1..9)) {
        let _alone = crate::alone();
        let config = &forms()[form];
        let (_variables, model) = build(config);
        let (tokens, given) = (random_tokens(2), Given::new(config, 2));
        let whole = no_grad(|| model.forward(&tokens, given.condition(), false)).unwrap().flatten(1, 3);
        let ids = tokens.ids().flatten(1, 3);
        let mut decoder = model.decoder(2, given.condition()).unwrap();
        let mut pieces = Vec::new();
        let last = GRID.tokens() - 1;
        for n in cuts.iter().cycle() {
            let at = decoder.position();
            if at == last {
                break;
            }
            pieces.push(decoder.push(&ids.narrow(1, at, (*n).min(last - at))).unwrap());
        }
        let cached = Tensor::cat(&pieces, 1);
        prop_assert_eq!(cached.size(), whole.size());
        let difference = crate::distance(&cached, &whole);
        prop_assert!(difference < 1e-5, "{}", difference);
    }
}

#[test]
fn no_logits_see_their_own_token_or_later_ones() {
    let _alone = crate::alone();
    for config in forms() {
        let (_variables, model) = build(&config);
        let (tokens, given) = (random_tokens(1), Given::new(&config, 1));
        let logits = |tokens: &TokenGrid| {
            no_grad(|| model.forward(tokens, given.condition(), false)).unwrap().flatten(1, 3)
        };
        let before = logits(&tokens);
        for changed in [0, 7, GRID.tokens() - 1] {
            let ids = tokens.ids().copy();
            let token = ids.view(-1).get(changed);
            token.shallow_clone().copy_(&(&token + 1).remainder(CODES));
            let difference = (logits(&TokenGrid::new(ids).unwrap()) - &before).abs().amax([0, 2], false);
            let (seen, unseen) = (difference.narrow(0, changed + 1, GRID.tokens() - changed - 1), difference);
            assert_eq!(unseen.narrow(0, 0, changed + 1).max().double_value(&[]), 0.0);
            assert!(seen.numel() == 0 || seen.max().double_value(&[]) > 1e-6);
        }
    }
}

#[test]
fn greedy_samples_are_their_own_most_likely_continuation() {
    let _alone = crate::alone();
    for config in forms() {
        let (_variables, model) = build(&config);
        let given = Given::new(&config, 2);
        let greedy = Filter { temperature: 0.0, ..Filter::default() };
        let options = SampleOptions { filter: greedy, ..options(2, 0) };
        let tokens = model.sample_under(given.condition(), None, &options).unwrap();
        let logits = no_grad(|| model.forward(&tokens, given.condition(), false)).unwrap();
        assert_eq!(&logits.argmax(-1, false), tokens.ids());
    }
}

#[test]
fn a_simple_world_is_learnt_and_prompts_are_kept() {
    let _alone = crate::alone();
    tch::manual_seed(2);
    let variables = nn::VarStore::new(Device::Cpu);
    let config = GptConfig { class_cond_dim: Some(3), dropout: 0.05, ..tiny() };
    let model = VideoGpt::new(&variables.root(), &config).unwrap();
    assert_eq!(model.serves(), [ConditionKind::FirstFrames, ConditionKind::Class]);
    assert_eq!(model.vocabulary_size(), CODES);
    let mut optimizer = nn::Adam::default().build(&variables, 1e-2).unwrap();
    let class = Tensor::arange(3, (Kind::Int64, Device::Cpu));
    // Every position of a clip has the id 2·class + frame.
    let frames = Tensor::arange(2, (Kind::Int64, Device::Cpu)).view([1, 2, 1, 1]);
    let ids = (class.view([-1, 1, 1, 1]) * 2 + frames).expand([3, 2, 3, 4], false).contiguous();
    let tokens = TokenGrid::new(ids).unwrap();
    let condition = || Condition { class: Some(class.shallow_clone()), ..Default::default() };
    for step in 0..120 {
        optimizer.backward_step(&model.loss(&tokens, &condition(), step).unwrap());
    }
    let sampled = model.sample(&condition(), GRID, &options(3, 1)).unwrap();
    let right = sampled.ids().eq_tensor(tokens.ids()).to_kind(Kind::Float).mean(Kind::Float);
    assert!(right.double_value(&[]) > 0.9, "{right:?}");

    let first = TokenGrid::new(Tensor::randint(CODES, [3, 1, 3, 4], (Kind::Int64, Device::Cpu))).unwrap();
    let prompted = Condition { first_frames: Some(first.clone()), ..condition() };
    let sample = |seed| model.sample(&prompted, GRID, &options(3, seed)).unwrap();
    assert_eq!(sample(3).time_slice(0, 1).unwrap().ids(), first.ids());
    assert_eq!(sample(3).ids(), sample(3).ids());
}

#[test]
fn the_first_loss_is_that_of_knowing_nothing() {
    let _alone = crate::alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let model = VideoGpt::new(&variables.root(), &GptConfig { dropout: 0.2, ..tiny() }).unwrap();
    let loss = model.loss(&random_tokens(2), &Condition::default(), 0).unwrap().double_value(&[]);
    assert!((loss - (CODES as f64).ln()).abs() < 1e-5, "{loss}");
}

#[test]
fn the_published_sizes_have_the_published_number_of_parameters() {
    let _alone = crate::alone();
    let count = |config: &GptConfig| -> usize {
        let variables = nn::VarStore::new(Device::Cpu);
        let _model = VideoGpt::new(&variables.root(), config).unwrap();
        variables.trainable_variables().iter().map(Tensor::numel).sum()
    };
    assert_eq!(count(&GptConfig::ucf101_uncond()), 33_238_464);
    assert_eq!(count(&GptConfig::bair()), 72_471_920);
    let classes = GptConfig { class_cond_dim: Some(101), ..GptConfig::ucf101_uncond() };
    assert_eq!(count(&classes), 35_196_864);
}

#[test]
fn likelihoods_sum_to_one_and_their_mean_is_the_loss() {
    let _alone = crate::alone();
    let grid = GridShape { frames: 1, height: 1, width: 3 };
    let (_variables, model) = build(&GptConfig { n_codes: 2, grid, ..tiny() });
    let all = Tensor::arange(8, (Kind::Int64, Device::Cpu));
    let bits: Vec<Tensor> = [4, 2, 1].map(|bit: i64| all.floor_divide_scalar(bit).remainder(2)).into();
    let tokens = TokenGrid::new(Tensor::stack(&bits, 1).view([8, 1, 1, 3])).unwrap();
    let nats = model.nats(&tokens, GptCondition::default()).unwrap();
    let sum = (-&nats).exp().sum(Kind::Double).double_value(&[]);
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let loss = model.cross_entropy(&tokens, GptCondition::default(), false).unwrap().double_value(&[]);
    assert!((nats.mean(Kind::Double).double_value(&[]) / 3.0 - loss).abs() < 1e-5);
}

#[test]
fn constants_are_normalised_to_nothing() {
    let _alone = crate::alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let norm = LayerNorm::new(&variables.root(), 4, None).unwrap();
    let constant = Tensor::ones([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let y = norm.forward(&constant, None).unwrap();
    assert_eq!(y.abs().max().double_value(&[]), 0.0);
    y.sum(Kind::Float).backward();
    assert!(constant.grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let _alone = crate::alone();
    let path = nn::VarStore::new(Device::Cpu);
    let frames = FrameConfig { size: [8, 6], ..FrameConfig::default() };
    let layout = SparseLayout { block: 5, num_local_blocks: 1 };
    for (config, field) in [
        (GptConfig { n_codes: 0, ..tiny() }, "n_codes"),
        (GptConfig { hidden_dim: 25, ..tiny() }, "hidden_dim"),
        (GptConfig { heads: 25, ..tiny() }, "heads"),
        (GptConfig { dropout: 1.0, ..tiny() }, "dropout"),
        (GptConfig { class_cond_dim: Some(0), ..tiny() }, "class_cond_dim"),
        (GptConfig { grid: GridShape { frames: 0, ..GRID }, ..tiny() }, "grid"),
        (GptConfig { frames: Some(frames), ..tiny() }, "frames.size"),
        (GptConfig { attn_type: AttentionType::Sparse(layout), ..tiny() }, "attn_type.sparse.block"),
    ] {
        let refused = VideoGpt::new(&path.root(), &config).unwrap_err();
        assert!(matches!(&refused, Error::Config { field: found, .. } if found == field), "{refused}");
    }

    let (_variables, model) = build(&tiny());
    let none = Condition::default;
    let beyond = TokenGrid::new(Tensor::full([1, 2, 3, 4], CODES, (Kind::Int64, Device::Cpu))).unwrap();
    assert!(model.loss(&beyond, &none(), 0).is_err());
    assert!(model.loss(&random_tokens(1).time_slice(0, 1).unwrap(), &none(), 0).is_err());
    let class = Condition { class: Some(Tensor::zeros([1], (Kind::Int64, Device::Cpu))), ..none() };
    assert!(matches!(model.loss(&random_tokens(1), &class, 0), Err(Error::Unsupported { .. })));
    assert!(model.sample(&none(), GRID, &options(0, 0)).is_err());
    assert!(model.sample(&none(), GRID, &SampleOptions { guidance: 2.0, ..options(1, 0) }).is_err());
    let all = Condition { first_frames: Some(random_tokens(1)), ..none() };
    assert!(model.sample(&all, GRID, &options(1, 0)).is_err());

    // A prompt longer than the context, another batch than the cache's, ids outside the vocabulary.
    let ids = |batch: i64, n: i64, id: i64| Tensor::full([batch, n], id, (Kind::Int64, Device::Cpu));
    let mut decoder = model.decoder(2, GptCondition::default()).unwrap();
    assert!(matches!(decoder.push(&ids(2, GRID.tokens(), 0)), Err(Error::Input { .. })));
    assert!(matches!(decoder.push(&ids(2, 1, CODES)), Err(Error::Input { .. })));
    drop(decoder.push(&ids(2, 3, 0)).unwrap());
    assert!(matches!(decoder.push(&ids(3, 1, 0)), Err(Error::Shape { .. })));
    assert!(decoder.push(&ids(2, 0, 0)).is_err());
    assert_eq!(decoder.position(), 3);

    let (_variables, model) = build(&with_frames());
    assert!(matches!(model.loss(&random_tokens(1), &none(), 0), Err(Error::Unsupported { .. })));
    assert!(model.decoder(1, GptCondition::default()).is_err());
    let (_variables, model) = build(&GptConfig { class_cond_dim: Some(3), ..tiny() });
    assert!(model.loss(&random_tokens(1), &none(), 0).is_err());
    let third = Condition { class: Some(Tensor::full([1], 3, (Kind::Int64, Device::Cpu))), ..none() };
    assert!(model.loss(&random_tokens(1), &third, 0).is_err());
}
