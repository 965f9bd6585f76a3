//! MaskGIT with its head at masked positions and fused attention, against the same network as the reference writes it; and
//! parallel decoding against one token at a time.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use maskgit::mask::{MASK, MaskRule, mask_by_score};
use maskgit::{
    BidirectionalTransformer, Columns, DecodeOptions, MaskSchedule, TrainingSequence, TransformerConfig,
    decode,
};
use tch::{Device, Kind, Tensor, nn, no_grad};

/// Images of 16×16 tokens in a batch, of a small network with a tokenizer's usual vocabulary.
const IMAGES: i64 = 2;
/// Clips of 3×16×16 tokens in a batch, of a network that trains in minutes on a CPU.
const CLIPS: i64 = 8;

/// A small network of width `hidden_size` over so many positions and codes.
fn config(positions: i64, codebook_size: i64, hidden_size: i64) -> TransformerConfig {
    TransformerConfig {
        codebook_size,
        num_special: 1,
        factors: Vec::new(),
        hidden_size,
        num_hidden_layers: 4,
        num_attention_heads: hidden_size / 32,
        intermediate_size: 4 * hidden_size,
        max_position_embeddings: positions,
        num_segments: 0,
        dropout: 0.0,
    }
}

/// The network as published: scores of attention as a tensor, logits at all positions.
struct AsPublished {
    weights: HashMap<String, Tensor>,
    config: TransformerConfig,
}

impl AsPublished {
    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[name]
    }

    fn linear(&self, x: &Tensor, name: &str) -> Tensor {
        x.matmul(&self.weight(&format!("{name}.weight")).tr()) + self.weight(&format!("{name}.bias"))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let (weight, bias) = (self.weight(&format!("{name}.weight")), self.weight(&format!("{name}.bias")));
        x.layer_norm([self.config.hidden_size], Some(weight), Some(bias), 1e-12, true)
    }

    /// `[B, N, V]`.
    fn logits(&self, ids: &Tensor) -> Tensor {
        let word = self.weight("vocabulary.word");
        let ids = ids.remainder(self.config.vocab_size());
        let x = Tensor::embedding(word, &ids, -1, false, false) + self.weight("position");
        let mut x = self.norm(&x, "norm");
        let heads = self.config.num_attention_heads;
        for layer in 0..self.config.num_hidden_layers {
            let at = |name: &str| format!("layers.{layer}.{name}");
            let split = |name: &str| self.linear(&x, &at(name)).unflatten(-1, [heads, -1]).transpose(1, 2);
            let (q, k, v) = (split("query"), split("key"), split("value"));
            let scale = ((self.config.hidden_size / heads) as f64).sqrt();
            let p = (q / scale).matmul(&k.transpose(-2, -1)).softmax(-1, Kind::Float);
            let seen = p.matmul(&v).transpose(1, 2).flatten(-2, -1);
            let a = self.norm(&(&x + self.linear(&seen, &at("out"))), &at("attention_norm"));
            let mlp = self.linear(&self.linear(&a, &at("up")).gelu("tanh"), &at("down"));
            x = self.norm(&(a + mlp), &at("mlp_norm"));
        }
        let h = self.norm(&self.linear(&x, "vocabulary.dense").gelu("tanh"), "vocabulary.norm");
        h.matmul(&word.tr()) + self.weight("vocabulary.bias")
    }

    /// Smoothed targets as a tensor of the logits' size.
    fn loss(&self, inputs: &Tensor, targets: &Tensor, weights: &Tensor) -> Tensor {
        let logits = self.logits(inputs);
        let vocabulary = self.config.vocab_size();
        let smooth = targets.one_hot(vocabulary).to_kind(Kind::Float) * 0.9 + 0.1 / vocabulary as f64;
        let sum = |x: Tensor, axis: i64| x.sum_dim_intlist([axis].as_slice(), false, Kind::Float);
        let cross_entropy = -sum(smooth * logits.log_softmax(-1, Kind::Float), -1);
        (sum(cross_entropy * weights, 1) / sum(weights.shallow_clone(), 1)).mean(Kind::Float)
    }

    fn decode(&self, ids: &Tensor, steps: i64) -> Tensor {
        let gumbel = |like: &Tensor| -(-like.rand_like().log()).log();
        let mut ids = ids.shallow_clone();
        let counts = MaskSchedule::Cosine.counts(ids.size()[1], steps).expect("a step");
        let mut full = ids.shallow_clone();
        for count in counts {
            let logits = self.logits(&ids).narrow(-1, 0, self.config.codebook_size);
            let unknown = ids.eq(MASK);
            full = (&logits + gumbel(&logits)).argmax(-1, false).where_self(&unknown, &ids);
            let p = logits.softmax(-1, Kind::Float).gather(-1, &full.unsqueeze(-1), false).squeeze_dim(-1);
            let p = p.masked_fill(&unknown.logical_not(), f64::INFINITY);
            let confidence = p.log() + gumbel(&p);
            let (sorted, _) = confidence.sort(-1, false);
            ids = full.masked_fill(&confidence.lt_tensor(&sorted.narrow(1, count, 1)), MASK);
        }
        full
    }
}

/// The fastest of so many rounds of each contender, in seconds. They take turns, so that whatever else the machine does falls on
/// all of them.
fn fastest<const N: usize>(rounds: usize, contenders: [&dyn Fn(); N]) -> [f64; N] {
    let mut times = [f64::INFINITY; N];
    // The first round warms up.
    for round in 0..=rounds {
        for (best, contender) in times.iter_mut().zip(contenders) {
            let start = Instant::now();
            contender();
            let time = start.elapsed().as_secs_f64();
            *best = if round > 0 { best.min(time) } else { *best };
        }
    }
    times
}

fn bench(criterion: &mut Criterion) {
    println!("{} threads, the fastest of several rounds in turns", tch::get_num_threads());
    println!(
        "| tokens | what | against | that, ms | Vireo, ms | ratio |\n| --- | --- | --- | ---: | ---: | ---: |"
    );
    compare(criterion, "16×16 of 8192 codes", &config(16 * 16, 8192, 256), IMAGES);
    compare(criterion, "3×16×16 of 1024 codes", &config(3 * 16 * 16, 1024, 128), CLIPS);
}

/// Both forms of a network, in a table and in a group of benches.
fn compare(criterion: &mut Criterion, name: &str, config: &TransformerConfig, batch: i64) {
    tch::manual_seed(0);
    let tokens = config.max_position_embeddings;
    let variables = nn::VarStore::new(Device::Cpu);
    let model = BidirectionalTransformer::new(&variables.root(), config).expect("the config is valid");
    let published = AsPublished { weights: variables.variables(), config: config.clone() };

    let options = (Kind::Int64, Device::Cpu);
    let ids = Tensor::randint(config.codebook_size, [batch, 1, 1, tokens], options);
    let scores = ids.to_kind(Kind::Float).rand_like();
    // The mean ratio of the cosine schedule.
    let masked = mask_by_score(&ids, &scores, &[0.637], MaskRule::default()).expect("shapes fit");
    let (inputs, targets) = (masked.inputs.flatten(1, -1), ids.flatten(1, -1));
    let weights = inputs.eq(MASK).to_kind(Kind::Float);
    let sequence =
        TrainingSequence { inputs: &inputs, segment_ids: None, targets: &targets, weights: &weights };
    let ours = || model.loss(&sequence, Columns::All, 0.1, true).expect("shapes fit");
    let theirs = || published.loss(&inputs, &targets, &weights);
    let difference = (ours() - theirs()).abs().double_value(&[]);
    assert!(difference < 1e-3, "the two networks differ by {difference}");

    let parameters = variables.trainable_variables();
    let backward = |loss: Tensor| Tensor::run_backward(&[loss], &parameters, false, false);
    let nothing = Tensor::full([batch, tokens], MASK, options);
    let sample = |steps: i64, schedule: MaskSchedule| {
        let options = DecodeOptions { steps, schedule, ..DecodeOptions::default() };
        decode(&model, &nothing, &options, None).expect("ids fit").ids
    };
    // As many steps as tokens: one is decided in each.
    let one_by_one = || sample(tokens, MaskSchedule::Uniform);
    let sample = |steps: i64| sample(steps, MaskSchedule::Cosine);
    let theirs_sampled = || no_grad(|| published.decode(&nothing, 12));

    let row = |what: &str, against: &str, [slow, fast]: [f64; 2]| {
        let ratio = slow / fast;
        println!("| {name} | {what} | {against} | {:.0} | {:.0} | {ratio:.2} |", 1e3 * slow, 1e3 * fast);
    };
    let step: [&dyn Fn(); 2] =
        [&|| drop(black_box(backward(theirs()))), &|| drop(black_box(backward(ours())))];
    row("training step", "as published", fastest(6, step));
    let twelve: [&dyn Fn(); 2] = [&|| drop(black_box(theirs_sampled())), &|| drop(black_box(sample(12)))];
    row("12 steps of sampling", "as published", fastest(3, twelve));
    // 256 passes take long enough.
    if tokens <= 256 {
        let eight: [&dyn Fn(); 2] = [&|| drop(black_box(one_by_one())), &|| drop(black_box(sample(8)))];
        row("8 steps of sampling", "one token a step", fastest(1, eight));
    }

    let mut group = criterion.benchmark_group(format!("maskgit, {name}"));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group.bench_function("training step", |b| b.iter(|| black_box(backward(ours()))));
    group.bench_function("training step, as published", |b| b.iter(|| black_box(backward(theirs()))));
    group.bench_function("12 steps", |b| b.iter(|| black_box(sample(12))));
    group.bench_function("12 steps, as published", |b| b.iter(|| black_box(theirs_sampled())));
    if tokens <= 256 {
        group.bench_function("8 steps", |b| b.iter(|| black_box(sample(8))));
        group.bench_function("one token a step", |b| b.iter(|| black_box(one_by_one())));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
