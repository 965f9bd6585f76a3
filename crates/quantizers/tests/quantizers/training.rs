//! What LFQ's warm-up and its entropy loss are for: a small autoencoder with a small budget.

use quantizers::*;
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

use crate::seeded;

const BITS: i64 = 8;
const STEPS: u64 = 300;

/// Three layers.
fn network(path: nn::Path, widths: [i64; 4]) -> nn::Sequential {
    let layer = |i: usize| nn::linear(&path / i, widths[i], widths[i + 1], Default::default());
    let gelu = |x: &Tensor| x.gelu("none");
    nn::seq().add(layer(0)).add_fn(gelu).add(layer(1)).add_fn(gelu).add(layer(2))
}

/// Mean squared error and share of the codes in use after training on points of a four-dimensional surface.
fn trained(config: LfqConfig) -> (f64, f64) {
    tch::manual_seed(0);
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let (encoder, decoder) =
        (network(&root / "encoder", [32, 64, 64, BITS]), network(&root / "decoder", [BITS, 64, 64, 32]));
    let lfq = Lfq::new(&(&root / "quantizer"), BITS, config).unwrap();
    let directions = Tensor::randn([4, 32], (Kind::Float, Device::Cpu));
    let points =
        |n: i64| (Tensor::rand([n, 4], (Kind::Float, Device::Cpu)) * 2.0 - 1.0).matmul(&directions).sin();
    let pass = |x: &Tensor, mode| {
        let quantized = lfq.quantize(&encoder.forward(x), mode).unwrap();
        (decoder.forward(&quantized.embeddings).mse_loss(x, Reduction::Mean), quantized)
    };
    let mut optimizer = nn::AdamW::default().build(&store, 2e-3).unwrap();
    for step in 0..STEPS {
        let (error, quantized) = pass(&points(128), Mode::Train { step });
        optimizer.backward_step(&(error + quantized.loss()));
    }
    let (error, quantized) = pass(&points(4096), Mode::Eval);
    (error.double_value(&[]), quantized.usage.unwrap().used_share.double_value(&[]))
}

#[test]
fn a_warm_up_and_the_entropy_loss_pay_within_a_small_budget() {
    let _alone = seeded(0);
    let bare = LfqConfig { entropy_weight: 0.0, ..LfqConfig::with_bits(BITS) };
    let recipe = LfqConfig {
        entropy_weight: 0.02,
        entropy_warmup: EntropyWarmup { start_factor: 3.0, steps: STEPS / 2 },
        warmup_steps: STEPS / 3,
        ..LfqConfig::with_bits(BITS)
    };
    let ((bare_error, bare_use), (error, used)) = (trained(bare), trained(recipe));
    assert!(error < 0.95 * bare_error, "error {error} after a warm-up, {bare_error} without");
    assert!(used > 1.25 * bare_use, "{used} of the codes in use, {bare_use} without the recipe");
}
