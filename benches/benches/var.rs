//! VAR's sampling with cached keys and values against the taught forward pass over all 680 positions at each of ten scales,
//! as one would sample without a cache; and against that pass over the prefix alone. d16's shape at a quarter of its width:
//! 16 blocks, 16 heads, C = 256, guidance on, one image.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor, nn, no_grad};
use var_next_scale::sampling::{filter_logits, guided};
use var_next_scale::{MultiScaleVq, MultiScaleVqConfig, VarConfig, VarGenerator, VarPrompt, VarSampling};
use video_core::sampling::Filter;

const CFG: f64 = 1.5;

fn config() -> VarConfig {
    VarConfig { embed_dim: 256, ..VarConfig::var_d16() }
}

fn generator() -> (VarGenerator, nn::VarStore) {
    let tokenizer = nn::VarStore::new(Device::Cpu);
    let quantizer = MultiScaleVq::new(&tokenizer.root(), &MultiScaleVqConfig::default()).expect("a config");
    let variables = nn::VarStore::new(Device::Cpu);
    let generator = VarGenerator::new(&variables.root(), &config(), quantizer.frozen()).expect("a config");
    (generator, variables)
}

fn options() -> VarSampling {
    VarSampling { cfg: CFG, filter: Filter { temperature: 0.0, ..Filter::default() }, more_smooth: false }
}

/// All ids `[1, 680]`.
fn cached(generator: &VarGenerator) -> Tensor {
    let class = Tensor::from_slice(&[7i64]);
    let sampled = generator.sample_pyramid(&class, options(), &VarPrompt::default(), &mut |_| ());
    Tensor::cat(&sampled.expect("a sample").ids, 1)
}

/// The same ids from taught passes: over the whole sequence each time, or with `prefix` up to the scale in question.
fn uncached(generator: &VarGenerator, prefix: bool) -> Tensor {
    let pyramid = generator.model().pyramid();
    let classes = Tensor::from_slice(&[7i64, generator.model().no_class()]);
    let ids = Tensor::zeros([2, pyramid.tokens()], (Kind::Int64, Device::Cpu));
    no_grad(|| {
        for (scale, range) in pyramid.ranges().into_iter().enumerate() {
            let scales = if prefix { scale + 1 } else { pyramid.len() };
            let logits = generator.logits(&ids, &classes, scales, false).expect("logits");
            let logits = logits.narrow(1, range.start, range.end - range.start);
            let (cond, uncond) = (logits.narrow(0, 0, 1), logits.narrow(0, 1, 1));
            let logits = guided(&cond, &uncond, CFG * pyramid.ratio(scale));
            let chosen = filter_logits(&logits, &options().filter).argmax(-1, false);
            ids.narrow(1, range.start, range.end - range.start).copy_(&chosen.expand([2, -1], false));
        }
    });
    ids.narrow(0, 0, 1)
}

/// The fastest of several passes of each, in turns, so that what else the machine does disturbs all alike.
fn fastest(work: [&dyn Fn() -> Tensor; 3]) -> [f64; 3] {
    let mut best = [f64::INFINITY; 3];
    for _ in 0..5 {
        for (best, work) in best.iter_mut().zip(work) {
            let start = Instant::now();
            let _ = black_box(work());
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

fn sampling(criterion: &mut Criterion) {
    // On one thread: two would wait for each other at the coarse scales.
    tch::set_num_threads(1);
    let (generator, _variables) = generator();
    assert_eq!(cached(&generator), uncached(&generator, true), "the cache changes the ids");
    let times =
        fastest([&|| cached(&generator), &|| uncached(&generator, false), &|| uncached(&generator, true)]);
    let megabytes = config().cache_bytes(1, 680, true) as f64 / (1 << 20) as f64;
    println!(
        "680 tokens: cached {:.2} s, whole sequence each scale {:.2} s ({:.1} times), prefix each scale {:.2} s ({:.1} times); \
         keys and values {megabytes:.1} MiB",
        times[0],
        times[1],
        times[1] / times[0],
        times[2],
        times[2] / times[0],
    );
    let mut group = criterion.benchmark_group("var 680 tokens");
    group.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_millis(500));
    group.bench_function("cached", |b| b.iter(|| black_box(cached(&generator))));
    group.bench_function("prefix each scale", |b| b.iter(|| black_box(uncached(&generator, true))));
    group.bench_function("whole sequence each scale", |b| b.iter(|| black_box(uncached(&generator, false))));
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
