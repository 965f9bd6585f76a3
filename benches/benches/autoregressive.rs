//! Tokens one after another: VideoGPT with cached keys and values against recomputing, Perceiver AR's cost of a token with a
//! memory of fixed size, and of a training step as the context grows.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use perceiver_ar::{
    LossConfig, MemoryKind, PerceiverAr, PerceiverArConfig, Sequence, TrainDraws, count_positions,
};
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::{GridShape, TokenGrid};
use video_gpt::{GptCondition, GptConfig, VideoGpt};

const CODES: i64 = 1024;
const WIDTH: i64 = 192;
const LAYERS: i64 = 4;

fn random_ids(shape: &[i64]) -> Tensor {
    Tensor::randint_low(3, CODES, shape, (Kind::Int64, Device::Cpu))
}

/// A prior over a grid of `frames` × 16 × 16.
fn prior(frames: i64) -> GptConfig {
    GptConfig {
        n_codes: CODES,
        grid: GridShape { frames, height: 16, width: 16 },
        hidden_dim: WIDTH,
        layers: LAYERS,
        dropout: 0.0,
        attn_dropout: 0.0,
        ..GptConfig::default()
    }
}

fn cached_sampling(criterion: &mut Criterion) {
    tch::manual_seed(0);
    // The matrices of one token are too small to be shared out.
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = VideoGpt::new(&variables.root(), &prior(4)).expect("the config is valid");
    let ids = random_ids(&[1, 4, 16, 16]);
    let tokens = TokenGrid::new(ids.shallow_clone()).expect("a grid");
    let flat = ids.flatten(1, 3);
    let whole = || no_grad(|| model.forward(&tokens, GptCondition::default(), false)).expect("a grid");

    let mut group = criterion.benchmark_group("VideoGPT, a token of 1024");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("recomputed", |b| b.iter(|| black_box(whole())));
    group.bench_function("cached", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                // The last 64 tokens, where the cache is fullest.
                let mut decoder = model.decoder(1, GptCondition::default()).expect("a batch");
                drop(decoder.push(&flat.narrow(1, 0, 959)).expect("a prompt"));
                let start = Instant::now();
                for _ in 0..left.min(64) {
                    let next = flat.narrow(1, decoder.position(), 1);
                    drop(black_box(decoder.push(&next).expect("a token")));
                }
                spent += start.elapsed();
                left -= left.min(64);
            }
            spent
        })
    });
    group.finish();
    tch::set_num_threads(threads);
}

/// A small Perceiver AR with rotary positions.
fn perceiver(context: i64, latents: i64) -> PerceiverArConfig {
    PerceiverArConfig {
        num_classes: CODES,
        max_context_length: context,
        max_wavelength: context,
        use_positions_from_data: true,
        input_embed_dim: WIDTH,
        num_z_channels: WIDTH,
        z_index_dim: latents,
        num_transformers_per_block: LAYERS,
        num_cross_attend_heads: 4,
        num_transformer_heads: 4,
        dropout_prob: 0.0,
        ..PerceiverArConfig::default()
    }
}

fn fixed_size_memory(criterion: &mut Criterion) {
    tch::manual_seed(0);
    // The matrices of one token are too small to be shared out.
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = PerceiverAr::new(&variables.root(), &perceiver(1 << 17, 256)).expect("the config is valid");
    let mut group =
        criterion.benchmark_group("Perceiver AR, a token with a memory of 1024 inputs and 256 latents");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for position in [2_048, 8_192, 32_768] {
        let kind = MemoryKind::FixedSize { inputs: 1024, latents: 256 };
        let mut memory = model.memory(kind).expect("positions come with the data");
        let mut at = 0;
        let mut push = |new: i64, latents: i64| {
            let ids = random_ids(&[1, new]);
            let positions = count_positions(1, new, Device::Cpu) + at;
            at += new;
            let sequence = Sequence { ids: &ids, positions: Some(&positions) };
            model.push(&mut memory, sequence, latents).expect("a token")
        };
        for _ in 0..position / 256 {
            drop(push(256, 256));
        }
        group.bench_function(BenchmarkId::from_parameter(position), |b| b.iter(|| black_box(push(1, 1))));
    }
    group.finish();
    tch::set_num_threads(threads);
}

/// The greatest memory that this process held, in MiB, where the system tells.
fn peak_memory() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok()? / 1024)
}

fn tell_memory(what: &str) {
    if let Some(peak) = peak_memory() {
        eprintln!("{what}: at most {peak} MiB so far");
    }
}

fn growing_context(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("training step");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    for context in [4_096, 8_192, 16_384, 32_768, 65_536] {
        tch::manual_seed(0);
        let variables = nn::VarStore::new(Device::Cpu);
        let model =
            PerceiverAr::new(&variables.root(), &perceiver(context, 256)).expect("the config is valid");
        let (ids, targets) = (random_ids(&[1, context]), random_ids(&[1, context]));
        let positions = count_positions(1, context, Device::Cpu);
        let sequence = Sequence { ids: &ids, positions: Some(&positions) };
        let parameters = variables.trainable_variables();
        let step = || {
            let loss = model
                .training_loss(sequence, &targets, &TrainDraws::default(), LossConfig::default())
                .expect("a sequence");
            Tensor::run_backward(&[loss.total], &parameters, false, false)
        };
        group.bench_function(BenchmarkId::new("Perceiver AR, 256 latents", context), |b| {
            b.iter(|| black_box(step()));
            tell_memory(&format!("Perceiver AR, context {context}"));
        });
    }
    for frames in [16, 32] {
        let step = decoder_only_step(frames);
        group.bench_function(BenchmarkId::new("VideoGPT", frames * 256), |b| {
            b.iter(|| black_box(step()));
            tell_memory(&format!("VideoGPT, context {}", frames * 256));
        });
    }
    group.finish();
    // Criterion wants ten steps; of those that take minutes, one.
    for frames in [64, 128] {
        let step = decoder_only_step(frames);
        let start = Instant::now();
        drop(black_box(step()));
        let context = frames * 256;
        eprintln!("VideoGPT, context {context}: one step in {:.1} s", start.elapsed().as_secs_f64());
        tell_memory(&format!("VideoGPT, context {context}"));
    }
}

/// A training step of VideoGPT's prior over `frames` × 16 × 16 tokens, with all its gradients.
fn decoder_only_step(frames: i64) -> impl Fn() -> Vec<Tensor> {
    tch::manual_seed(0);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = VideoGpt::new(&variables.root(), &prior(frames)).expect("the config is valid");
    let tokens = TokenGrid::new(random_ids(&[1, frames, 16, 16])).expect("a grid");
    move || {
        let loss =
            model.cross_entropy(&tokens, GptCondition::default(), true).expect("a grid of the model's");
        Tensor::run_backward(&[loss], &variables.trainable_variables(), false, false)
    }
}

criterion_group!(benches, cached_sampling, fixed_size_memory, growing_context);
criterion_main!(benches);
