//! Encode + decode, and a training step, of a MAGVIT-v2 tokenizer against the same network as the references write it: contiguous tensors,
//! `F.pad` on every side before every convolution, norms with time folded into the batch by a copy.
//!
//! Both have the same weights and must agree within 1e-4. The table that is printed first takes all its numbers in turns,
//! so that whatever else the machine does falls on all of them; criterion then measures each by itself.
//!
//! The machine's rate of matrix products is measured in two ways: libtorch's `matmul`, and oneDNN's product as a convolution
//! of kernel 1, which on some processors is twice as fast; the table states the share of both.
//!
//! `cargo bench -p benches --bench causal_conv`

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use causal_conv::magvit2::{Magvit2, Magvit2Config};
use criterion::{BenchmarkId, Criterion, Throughput};
use quantizers::{LfqConfig, Mode, QuantizerConfig};
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::{VideoShape, VideoTokenizer};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Rows and columns of the matrices.
const SGEMM: i64 = 2048;
const ROUNDS: usize = 5;
const TRAIN: Mode = Mode::Train { step: 0 };

/// Widths 64, 128, 128; two residual blocks a level; 4×4×4 (time × height × width), 2^10 codes.
fn config() -> Magvit2Config {
    Magvit2Config {
        filters: 64,
        channel_multipliers: vec![1, 2, 2],
        num_res_blocks: 2,
        temporal_downsample: vec![true, true],
        quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(10)),
        ..Magvit2Config::paper_128()
    }
}

/// The network as the references write it, on the tokenizer's weights.
struct AsReferences<'a> {
    weights: HashMap<String, Tensor>,
    config: Magvit2Config,
    tokenizer: &'a Magvit2,
}

impl<'a> AsReferences<'a> {
    fn new(variables: &nn::VarStore, config: Magvit2Config, tokenizer: &'a Magvit2) -> Self {
        let leaf = |w: Tensor| w.detach().contiguous().set_requires_grad(true);
        let weights = variables.variables().into_iter().map(|(name, w)| (name, leaf(w))).collect();
        Self { weights, config, tokenizer }
    }

    fn conv(&self, path: &str, x: &Tensor, stride: [i64; 3]) -> Tensor {
        let weight = &self.weights[&format!("{path}.weight")];
        let [t, space] = [weight.size()[2] - 1, weight.size()[3] / 2];
        let padded = x.pad([space, space, space, space, t, 0], "constant", 0.0);
        padded.conv3d(weight, self.weights.get(&format!("{path}.bias")), stride, 0, 1, 1)
    }

    fn norm(&self, path: &str, x: &Tensor) -> Tensor {
        let (b, c, t, h, w) = x.size5().unwrap();
        let [weight, bias] = ["weight", "bias"].map(|leaf| self.weights.get(&format!("{path}.{leaf}")));
        x.transpose(1, 2)
            .reshape([b * t, c, h, w])
            .group_norm(self.config.num_groups, weight, bias, 1e-5, true)
            .reshape([b, t, c, h, w])
            .transpose(1, 2)
    }

    fn linear(&self, path: &str, x: &Tensor) -> Tensor {
        let (weight, bias) =
            (&self.weights[&format!("{path}.weight")], &self.weights[&format!("{path}.bias")]);
        x.permute([0, 2, 3, 4, 1]).linear(weight, Some(bias)).permute([0, 4, 1, 2, 3])
    }

    fn blocks(&self, path: &str, mut x: Tensor) -> Tensor {
        for j in 0..self.config.num_res_blocks {
            let path = format!("{path}.block_{j}");
            let h = self.conv(
                &format!("{path}.conv_0"),
                &self.norm(&format!("{path}.norm_0"), &x).silu(),
                [1; 3],
            );
            let h = self.conv(
                &format!("{path}.conv_1"),
                &self.norm(&format!("{path}.norm_1"), &h).silu(),
                [1; 3],
            );
            let shortcut = format!("{path}.conv_shortcut");
            let projects = self.weights.contains_key(&format!("{shortcut}.weight"));
            x = if projects { self.conv(&shortcut, &x, [1; 3]) + h } else { x + h };
        }
        x
    }

    fn encode(&self, video: &Tensor) -> Tensor {
        let levels = self.config.channel_multipliers.len();
        let mut x = self.conv("encoder.conv_in", video, [1; 3]);
        for i in 0..levels {
            x = self.blocks(&format!("encoder.level_{i}"), x);
            if i + 1 < levels {
                x = self.conv(&format!("encoder.level_{i}.downsample"), &x, [2; 3]);
            }
        }
        x = self.blocks("encoder.mid", x);
        self.conv("encoder.conv_out", &self.norm("encoder.norm_out", &x).silu(), [1; 3])
    }

    fn decode(&self, latent: &Tensor) -> Tensor {
        let mut condition = latent.contiguous();
        let mut x = self.blocks("decoder.mid", self.conv("decoder.conv_in", &condition, [1; 3]));
        for i in (0..self.config.channel_multipliers.len()).rev() {
            let path = format!("decoder.level_{i}");
            let scale = self.linear(&format!("{path}.norm.gamma"), &condition) + 1.0;
            x = self.norm(&format!("{path}.norm"), &x) * scale
                + self.linear(&format!("{path}.norm.beta"), &condition);
            x = self.blocks(&path, x);
            if i > 0 {
                x = self.conv(&format!("{path}.upsample"), &x, [1; 3]);
                let (b, c, t, h, w) = x.size5().unwrap();
                x = x.reshape([b, 2, 2, 2, c / 8, t, h, w]).permute([0, 4, 5, 1, 6, 2, 7, 3]).reshape([
                    b,
                    c / 8,
                    2 * t,
                    2 * h,
                    2 * w,
                ]);
                x = x.narrow(2, 1, 2 * t - 1);
                condition = condition.upsample_nearest3d([2 * t, 2 * h, 2 * w], None, None, None);
                condition = condition.narrow(2, 1, 2 * t - 1);
            }
        }
        self.conv("decoder.conv_out", &self.norm("decoder.norm_out", &x).silu(), [1; 3])
    }

    fn round_trip(&self, video: &Tensor) -> Tensor {
        let features = self.encode(video).permute([0, 2, 3, 4, 1]);
        let ids = self.tokenizer.quantizer().quantize(&features, Mode::Eval).unwrap().ids.unwrap();
        let latent = self.tokenizer.quantizer().lookup(&ids).unwrap().permute([0, 4, 1, 2, 3]);
        self.decode(&latent).clamp(-1.0, 1.0)
    }

    /// Reconstruction, and the quantizer's losses.
    fn forward(&self, video: &Tensor) -> (Tensor, Tensor) {
        let features = self.encode(video).permute([0, 2, 3, 4, 1]);
        let quantized = self.tokenizer.quantizer().quantize(&features, TRAIN).unwrap();
        (self.decode(&quantized.embeddings.permute([0, 4, 1, 2, 3])), quantized.loss())
    }
}

/// The gradients of the squared error and of the quantizer's losses for some of the weights.
fn gradients(
    video: &Tensor,
    (reconstruction, quantizer): (Tensor, Tensor),
    weights: &[Tensor],
) -> Vec<Tensor> {
    let loss = (reconstruction - video).square().mean(Kind::Float) + quantizer;
    Tensor::run_backward(&[loss], weights, false, false)
}

fn round_trip(tokenizer: &Magvit2, video: &Tensor) -> Tensor {
    tokenizer.decode(&tokenizer.encode(video).unwrap()).unwrap()
}

/// The median time of each, run in turns.
fn in_turns<T, const N: usize>(contenders: [&dyn Fn() -> T; N]) -> [f64; N] {
    let mut times = [(); N].map(|()| Vec::new());
    for round in 0..=ROUNDS {
        for (times, contender) in times.iter_mut().zip(contenders) {
            let start = Instant::now();
            let _ = black_box(contender());
            // The first round warms up.
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn main() {
    tch::manual_seed(0);
    let config = config();
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Magvit2::new(&variables.root(), &config).unwrap();
    let reference = AsReferences::new(&variables, config.clone(), &tokenizer);
    let [a, b] = [(); 2].map(|()| Tensor::randn([SGEMM, SGEMM], FLOAT));
    let pixels = torch_ext::channels_last_3d(&Tensor::randn([1, SGEMM, 1, 32, SGEMM / 32], FLOAT));
    let kernel = torch_ext::channels_last_3d(&Tensor::randn([SGEMM, SGEMM, 1, 1, 1], FLOAT));
    let mut criterion =
        Criterion::default().sample_size(10).measurement_time(Duration::from_secs(15)).configure_from_args();

    println!("| training step on | contiguous, F.pad | Vireo | ratio |");
    println!("| --- | --- | --- | --- |");
    let named: Vec<(String, Tensor)> = variables.variables().into_iter().collect();
    let weights: Vec<Tensor> = named.iter().map(|(_, weight)| weight.shallow_clone()).collect();
    let their_weights: Vec<Tensor> =
        named.iter().map(|(name, _)| reference.weights[name].shallow_clone()).collect();
    for frames in [9, 17] {
        let video = Tensor::randn([1, 3, frames, 64, 64], FLOAT).tanh();
        let ours = || {
            let output = tokenizer.forward(&video, TRAIN).unwrap();
            gradients(&video, (output.reconstruction, output.quantized.loss()), &weights)
        };
        let theirs = || gradients(&video, reference.forward(&video), &their_weights);
        for ((a, b), (name, _)) in ours().iter().zip(theirs()).zip(&named) {
            let [error, norm] = [a - &b, b].map(|x| x.norm().double_value(&[]));
            assert!(error <= 2e-3 * norm + 1e-6, "the gradients of {name} differ by {error} of {norm}");
        }
        let [theirs, ours] = in_turns([&theirs as &dyn Fn() -> Vec<Tensor>, &ours]);
        println!("| {frames}×64×64 | {theirs:.2} s | {ours:.2} s | {:.2} |", theirs / ours);
    }

    no_grad(|| {
        println!("{} threads; products of {SGEMM}×{SGEMM} matrices", tch::get_num_threads());
        println!("| clip | contiguous, F.pad | channels-last | ratio | GFLOP/s | of matmul | of oneDNN |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for (frames, size) in [(9, 64), (17, 64), (9, 128), (17, 128)] {
            let shape = VideoShape { batch: 1, channels: 3, frames, height: size, width: size };
            let video = Tensor::randn(shape.to_array(), FLOAT).tanh();
            let [ours, theirs] = [round_trip(&tokenizer, &video), reference.round_trip(&video)];
            let error = (ours - theirs).abs().max().double_value(&[]);
            assert!(error < 1e-4, "the two networks differ by {error}");

            let [theirs, ours, matmul, onednn] = in_turns([
                &|| reference.round_trip(&video),
                &|| round_trip(&tokenizer, &video),
                &|| a.matmul(&b),
                &|| pixels.mkldnn_convolution(&kernel, None::<&Tensor>, [0; 3], [1; 3], [1; 3], 1),
            ]);
            let work = 2 * config.layers(shape).unwrap().iter().map(|layer| layer.multiply_adds).sum::<i64>();
            let rate = work as f64 / ours / 1e9;
            let [matmul, onednn] = [matmul, onednn].map(|time| 2.0 * (SGEMM as f64).powi(3) / time / 1e9);
            let fps = |seconds: f64| frames as f64 / seconds;
            println!(
                "| {frames}×{size}×{size} | {:.1} frames/s | {:.1} frames/s | {:.2} | {rate:.0} | {:.0} % of {matmul:.0} | {:.0} % of {onednn:.0} |",
                fps(theirs),
                fps(ours),
                theirs / ours,
                100.0 * rate / matmul,
                100.0 * rate / onednn
            );
        }

        let mut group = criterion.benchmark_group("causal_conv");
        for (frames, size) in [(9, 64), (9, 128)] {
            let video = Tensor::randn([1, 3, frames, size, size], FLOAT).tanh();
            let clip = format!("{frames}x{size}x{size}");
            group.throughput(Throughput::Elements(frames as u64));
            group.bench_function(BenchmarkId::new("contiguous", &clip), |bencher| {
                bencher.iter(|| reference.round_trip(&video));
            });
            group.bench_function(BenchmarkId::new("channels_last", &clip), |bencher| {
                bencher.iter(|| round_trip(&tokenizer, &video));
            });
        }
        group.finish();
    });
    criterion.final_summary();
}
