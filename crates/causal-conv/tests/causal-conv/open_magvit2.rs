//! The Open-MAGVIT2 tokenizer.

use causal_conv::open_magvit2::{Decoder, Encoder, OpenMagvit2, OpenMagvit2Config};
use quantizers::{LfqConfig, Mode, QuantizerConfig};
use tch::{Device, Tensor, nn};
use video_core::{Error, TokenGrid, VideoTokenizer};

use crate::{distance, noise};

fn small() -> OpenMagvit2Config {
    OpenMagvit2Config {
        ch: 4,
        num_res_blocks: 1,
        z_channels: 5,
        ch_mult: vec![1, 2, 3],
        num_groups: 2,
        quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(5)),
        ..OpenMagvit2Config::large_128()
    }
}

fn build(config: &OpenMagvit2Config) -> (nn::VarStore, OpenMagvit2) {
    tch::manual_seed(1);
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = OpenMagvit2::new(&variables.root(), config).unwrap();
    (variables, tokenizer)
}

#[test]
fn frames_are_independent_and_streams_agree() {
    let (_variables, tokenizer) = build(&small());
    let video = noise(&[2, 3, 4, 8, 12], 1).tanh();
    let tokens = tokenizer.encode(&video).unwrap();
    assert_eq!(tokens.ids().size(), [2, 4, 2, 3]);
    let image = tokenizer.encode(&video.narrow(2, 2, 1)).unwrap();
    assert_eq!(image.ids(), &tokens.ids().narrow(1, 2, 1));

    let decoded = tokenizer.decode(&tokens).unwrap();
    let mut encoder = tokenizer.stream_encoder().unwrap();
    let mut decoder = tokenizer.stream_decoder().unwrap();
    let (mut grids, mut frames) = (vec![], vec![]);
    for (start, length) in [(0, 1), (1, 2), (3, 1)] {
        let grid = encoder.push(&video.narrow(2, start, length)).unwrap().unwrap();
        frames.push(decoder.push(&grid).unwrap());
        grids.push(grid);
    }
    encoder.finish().unwrap();
    assert_eq!(TokenGrid::cat_time(&grids).unwrap().ids(), tokens.ids());
    assert!(distance(&Tensor::cat(&frames, 2), &decoded) < 1e-5);
}

#[test]
fn training_reaches_every_variable() {
    for adaptive_norm in [true, false] {
        let (variables, tokenizer) = build(&OpenMagvit2Config { adaptive_norm, ..small() });
        let video = noise(&[2, 3, 1, 8, 8], 2).tanh();
        let output = tokenizer.forward(&video, Mode::Train { step: 0 }).unwrap();
        assert_eq!(output.reconstruction.size(), video.size());
        ((&output.reconstruction - video).square().mean(None) + output.quantized.loss()).backward();
        assert!(variables.trainable_variables().iter().all(|variable| variable.grad().defined()));
    }
}

#[test]
fn published_sizes() {
    for (config, encoder, decoder) in [
        (OpenMagvit2Config::large_128(), 48_422_162, 63_599_491),
        (OpenMagvit2Config::large_256(), 49_751_442, 65_376_387),
        (OpenMagvit2Config::one_x(), 24_964_498, 40_526_211),
    ] {
        let parameters = |build: &dyn Fn(&nn::Path)| -> usize {
            let variables = nn::VarStore::new(Device::Cpu);
            build(&variables.root());
            variables.trainable_variables().iter().map(|variable| variable.numel()).sum()
        };
        assert_eq!(parameters(&|path| drop(Encoder::new(path, &config).unwrap())), encoder);
        assert_eq!(parameters(&|path| drop(Decoder::new(path, &config).unwrap())), decoder);
    }
}

#[test]
fn bad_input_is_refused() {
    let (_variables, tokenizer) = build(&small());
    assert!(matches!(tokenizer.encode(&noise(&[1, 3, 1, 10, 8], 1)), Err(Error::Input { .. })));
    assert!(matches!(tokenizer.encode(&noise(&[1, 1, 1, 8, 8], 1)), Err(Error::Shape { .. })));
    let double = noise(&[1, 3, 1, 8, 8], 1).to_kind(tch::Kind::Double);
    assert!(matches!(tokenizer.encode(&double), Err(Error::Input { .. })));
    let ids = |id: i64, side: i64| {
        TokenGrid::new(Tensor::full([1, 1, side, side], id, (tch::Kind::Int64, Device::Cpu)))
    };
    assert!(matches!(tokenizer.decode(&ids(32, 2).unwrap()), Err(Error::Input { .. })));
    // One position has no variance for the adaptive norm.
    assert!(matches!(tokenizer.decode(&ids(1, 1).unwrap()), Err(Error::Shape { .. })));

    let refused = |config: OpenMagvit2Config| {
        let variables = nn::VarStore::new(Device::Cpu);
        OpenMagvit2::new(&variables.root(), &config).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(OpenMagvit2Config { num_groups: 3, ..small() }).starts_with("num_groups = 3"));
    assert!(refused(OpenMagvit2Config { double_z: true, ..small() }).starts_with("double_z = true"));
    assert!(refused(OpenMagvit2Config { ch_mult: vec![], ..small() }).starts_with("ch_mult = []"));
    let two = LfqConfig { num_codebooks: 2, ..LfqConfig::with_bits(3) };
    assert!(
        refused(OpenMagvit2Config { quantizer: QuantizerConfig::Lfq(two), ..small() })
            .starts_with("quantizer = ")
    );
}
