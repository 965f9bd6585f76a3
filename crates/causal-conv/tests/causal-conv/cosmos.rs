//! The Cosmos tokenizers: published sizes, patches, causality, streaming, errors.

use std::collections::BTreeMap;

use causal_conv::cosmos::{CosmosBottleneck, CosmosConfig, CosmosNet, CosmosTokenizer, PatchMethod, Patcher};
use proptest::prelude::*;
use quantizers::{LfqConfig, QuantizerConfig};
use tch::{Device, Tensor, nn, no_grad};
use video_core::{Error, TokenGrid, VideoTokenizer};

use crate::{distance, noise};

fn small(net: CosmosNet) -> CosmosConfig {
    CosmosConfig {
        channels: 4,
        channels_mult: vec![1, 2],
        num_res_blocks: 1,
        attn_resolutions: vec![8],
        resolution: 16,
        patch_size: 2,
        spatial_compression: 4,
        temporal_compression: if net == CosmosNet::Base { 4 } else { 2 },
        z_channels: 5,
        encoder: net,
        decoder: net,
        bottleneck: CosmosBottleneck::Discrete {
            embedding_dim: 6,
            quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(6)),
        },
        ..CosmosConfig::cv8x8x8()
    }
}

/// A tokenizer whose every weight is drawn wide, so that no part of it is mute.
fn build(config: &CosmosConfig) -> (nn::VarStore, CosmosTokenizer) {
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = CosmosTokenizer::new(&variables.root(), config).unwrap();
    no_grad(|| {
        for (seed, (_, mut variable)) in BTreeMap::from_iter(variables.variables()).into_iter().enumerate() {
            let fan_in = variable.size().iter().skip(1).product::<i64>() as f64;
            variable.copy_(&(noise(&variable.size(), seed as u64) * (1.0 / fan_in.sqrt())));
        }
    });
    (variables, tokenizer)
}

#[test]
fn published_sizes() {
    for (config, parameters) in [
        (CosmosConfig::cv4x8x8(), 90_176_448),
        (CosmosConfig::cv8x8x8(), 112_472_512),
        (CosmosConfig::cv8x16x16(), 112_472_512),
        (CosmosConfig::dv4x8x8(), 112_472_182),
        (CosmosConfig::dv8x8x8(), 112_472_182),
        (CosmosConfig::dv8x16x16(), 112_472_182),
    ] {
        let variables = nn::VarStore::new(Device::Cpu);
        CosmosTokenizer::new(&variables.root(), &config).unwrap();
        let count: usize = variables.variables().values().map(Tensor::numel).sum();
        assert_eq!(count, parameters, "{config:?}");
    }
}

#[test]
fn base_networks_stream_and_factorized_ones_say_why_not() {
    let (_variables, tokenizer) = build(&small(CosmosNet::Base));
    let video = noise(&[1, 3, 13, 16, 24], 3).tanh();
    let tokens = tokenizer.encode(&video).unwrap();
    let whole = tokenizer.decode(&tokens).unwrap();
    assert_eq!(whole.size(), video.size());
    for plan in [vec![13], vec![1, 4, 4, 4], vec![1, 8, 4], vec![3, 3, 3, 4], vec![1; 13]] {
        let mut encoder = tokenizer.stream_encoder().unwrap();
        let mut decoder = tokenizer.stream_decoder().unwrap();
        let (mut grids, mut frames, mut start) = (Vec::new(), Vec::new(), 0);
        for &chunk in &plan {
            if let Some(grid) = encoder.push(&video.narrow(2, start, chunk)).unwrap() {
                frames.push(decoder.push(&grid).unwrap());
                grids.push(grid);
            }
            start += chunk;
        }
        encoder.finish().unwrap();
        assert_eq!(TokenGrid::cat_time(&grids).unwrap().ids(), tokens.ids(), "{plan:?}");
        assert!(distance(&Tensor::cat(&frames, 2), &whole) < 1e-5, "{plan:?}");
    }

    let (_variables, factorized) = build(&small(CosmosNet::Factorized));
    let refusal = factorized.stream_encoder().err().unwrap();
    assert!(
        matches!(refusal, Error::Unsupported { .. }) && refusal.to_string().contains("attention along time")
    );
    let (_variables, grouped) = build(&CosmosConfig { num_groups: 2, ..small(CosmosNet::Base) });
    assert!(grouped.stream_decoder().err().unwrap().to_string().contains("num_groups = 1"));
}

#[test]
fn an_image_is_the_first_frame_and_the_future_does_not_reach_the_past() {
    for net in [CosmosNet::Base, CosmosNet::Factorized] {
        let (_variables, tokenizer) = build(&small(net));
        let video = noise(&[1, 3, 9, 16, 16], 5).tanh();
        let latent = no_grad(|| tokenizer.encode_features(&video)).unwrap();
        let image = no_grad(|| tokenizer.encode_features(&video.narrow(2, 0, 1))).unwrap();
        assert!(distance(&image, &latent.narrow(2, 0, 1)) < 1e-5, "{net:?}");

        let changed = Tensor::cat(&[video.narrow(2, 0, 5), video.narrow(2, 5, 4) * -1.0], 2);
        let other = no_grad(|| tokenizer.encode_features(&changed)).unwrap();
        let before = 1 + 4 / tokenizer.compression().time;
        assert!(distance(&other.narrow(2, 0, before), &latent.narrow(2, 0, before)) < 1e-5, "{net:?}");
        assert!(distance(&other, &latent) > 1e-3, "{net:?}");
    }
}

#[test]
fn configs_and_videos_that_cannot_be_are_refused() {
    let root = nn::VarStore::new(Device::Cpu);
    let refused = |config: CosmosConfig| CosmosTokenizer::new(&root.root(), &config).unwrap_err().to_string();
    let config = || small(CosmosNet::Factorized);
    assert!(refused(CosmosConfig { channels: 0, ..config() }).contains("channels"));
    assert!(refused(CosmosConfig { patch_size: 3, ..config() }).contains("power of two"));
    assert!(refused(CosmosConfig { channels_mult: vec![], ..config() }).contains("channels_mult"));
    assert!(refused(CosmosConfig { spatial_compression: 64, ..config() }).contains("encoder"));
    assert!(refused(CosmosConfig { temporal_compression: 4, ..config() }).contains("decoder"));

    let continuous =
        CosmosConfig { bottleneck: CosmosBottleneck::Variational { latent_channels: 7 }, ..config() };
    let (_variables, tokenizer) = build(&continuous);
    let video = noise(&[1, 3, 3, 16, 16], 1);
    assert!(matches!(tokenizer.encode(&video), Err(Error::Unsupported { .. })));
    assert_eq!(tokenizer.encode_features(&video).unwrap().size(), [1, 7, 2, 4, 4]);
    assert_eq!(tokenizer.posterior(&video).unwrap().1.size(), [1, 7, 2, 4, 4]);
    assert!(tokenizer.encode_features(&noise(&[1, 3, 4, 16, 16], 1)).is_err());
    assert!(tokenizer.encode_features(&noise(&[1, 3, 3, 18, 16], 1)).is_err());
    assert!(tokenizer.encode_features(&noise(&[1, 4, 3, 16, 16], 1)).is_err());
    assert!(tokenizer.decode_features(&noise(&[1, 5, 2, 4, 4], 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn patches_go_back(method in prop_oneof![Just(PatchMethod::Haar), Just(PatchMethod::Rearrange)],
                       log_size in 0_u32..3, in_time: bool, k in 0_i64..3, seed: u64) {
        let p = 1 << log_size;
        let patcher = Patcher::new(method, p, in_time).unwrap();
        let video = noise(&[2, 3, 1 + k * p, 2 * p, p], seed);
        let patches = patcher.patch(&video).unwrap();
        let frames = if in_time { 1 + k } else { 1 + k * p };
        prop_assert_eq!(patches.size(), [2, 3 * patcher.volume(), frames, 2, 1]);
        prop_assert!(distance(&patcher.unpatch(&patches).unwrap(), &video) < 1e-5);
    }
}
