//! LFQ's entropies, forward and backward, of 1,280 tokens: the factorised form against the distances to all codes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::{answer_peak_memory, peak_memory};
use criterion::Criterion;
use quantizers::bits::unpack_bits;
use quantizers::{BitOrder, EntropyLog, code_entropies};
use tch::{Device, Kind, Tensor};

/// 5 × 16 × 16: a clip of 17 × 128 × 128 at 4× in time and 8× in space.
const TOKENS: i64 = 1280;

/// 4 · inverse temperature, for codes of ±1.
const SLOPE: f64 = 400.0;

/// `[1280, bits]`, from near the decision to sure of it.
fn features(bits: i64) -> Tensor {
    tch::manual_seed(0);
    (Tensor::randn([TOKENS, bits], (Kind::Float, Device::Cpu)) * 0.05).set_requires_grad(true)
}

/// H_sample − H_batch in two products over half the bits each: the workspace's own form.
fn factorised(x: &Tensor) -> Tensor {
    let entropies = code_entropies(&x.unsqueeze(0), SLOPE, EntropyLog::Exact).expect("features fit");
    entropies.per_sample - entropies.batch
}

/// H_sample − H_batch over a tensor of tokens × codes.
fn over_all_codes(x: &Tensor) -> Tensor {
    let bits = x.size()[1];
    let ids = Tensor::arange(1 << bits, (Kind::Int64, Device::Cpu));
    let codes = unpack_bits(&ids, bits, BitOrder::MsbFirst).to_kind(Kind::Float) * 2.0 - 1.0;
    let distances = x.matmul(&codes.tr()) * -2.0;
    let p = (distances * (-SLOPE / 4.0)).softmax(-1, Kind::Float);
    let entropy = |p: &Tensor| -(p * p.clamp_min(1e-37).log()).sum(Kind::Float);
    let of_mean = entropy(&p.mean_dim([0i64].as_slice(), false, Kind::Float));
    entropy(&p) / TOKENS as f64 - of_mean
}

/// One of the two forms at a number of bits.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    bits: i64,
    entropy: fn(&Tensor) -> Tensor,
}

const WORKS: [Work; 3] = [
    Work { name: "all codes, 2^16", bits: 16, entropy: over_all_codes },
    Work { name: "factorised, 2^16", bits: 16, entropy: factorised },
    Work { name: "factorised, 2^18", bits: 18, entropy: factorised },
];

impl Work {
    /// Value and gradient.
    fn run(&self, x: &Tensor) -> (Tensor, Tensor) {
        let value = (self.entropy)(x);
        let gradient = Tensor::run_backward(&[&value], &[x], false, false);
        (value.detach(), gradient[0].shallow_clone())
    }
}

fn main() {
    let small = |entropy: fn(&Tensor) -> Tensor| {
        let _ = black_box(Work { name: "", bits: 4, entropy }.run(&features(4)));
    };
    answer_peak_memory(
        || WORKS.iter().for_each(|work| small(work.entropy)),
        |name| {
            let work = WORKS.iter().find(|work| work.name == name).expect("a known name");
            let _ = black_box(work.run(&features(work.bits)));
        },
    );

    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("lfq_entropy");
    let mut all_times = Vec::new();
    for work in &WORKS {
        let x = features(work.bits);
        let mut times = Vec::new();
        group.bench_function(work.name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    let start = Instant::now();
                    let _ = black_box(work.run(&x));
                    times.push(start.elapsed());
                    sum += times[times.len() - 1];
                }
                sum
            });
        });
        times.sort();
        all_times.push(times);
    }
    group.finish();
    criterion.final_summary();
    // A filter on the command line may have left some out.
    if all_times.iter().all(|times| !times.is_empty()) {
        report(&all_times);
    }
}

/// The table of docs/performance.md, from each work's sorted times. The ratio is of the fastest ones, which other processes
/// disturb least.
fn report(times: &[Vec<Duration>]) {
    let (all, half) = (&WORKS[0], &WORKS[1]);
    let x = features(all.bits);
    let ((value, gradient), (ours, our_gradient)) = (all.run(&x), half.run(&x));
    let apart = (value - ours).abs().double_value(&[]);
    let gradient_apart = ((&our_gradient - &gradient).norm() / gradient.norm()).double_value(&[]);
    let bytes = WORKS.map(|work| peak_memory(work.name));
    println!("\n| form | fastest, ms | median, ms | peak memory, MB |\n| --- | ---: | ---: | ---: |");
    for ((work, times), bytes) in WORKS.iter().zip(times).zip(bytes) {
        let (fastest, median) = (milliseconds(times[0]), milliseconds(times[times.len() / 2]));
        println!("| {} | {fastest:.1} | {median:.1} | {:.1} |", work.name, bytes as f64 / 1e6);
    }
    println!(
        "\n2^16 codes: {:.0}x faster, {:.0}x less memory; values {apart:.1e} apart, gradients {gradient_apart:.1e} \
         (relative)",
        milliseconds(times[0][0]) / milliseconds(times[1][0]),
        bytes[0] as f64 / bytes[1] as f64,
    );
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
