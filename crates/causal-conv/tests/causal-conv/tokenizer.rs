//! The MAGVIT-v2 tokenizer: causality, images, streaming, errors.

use std::collections::BTreeMap;

use causal_conv::ClipStart;
use causal_conv::magvit2::{Magvit2, Magvit2Config};
use proptest::prelude::*;
use quantizers::{LfqConfig, Mode, QuantizerConfig};
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::{TokenGrid, VideoShape, VideoTokenizer};

use crate::{distance, noise};

fn small(temporal: &[bool], spatial: &[bool]) -> Magvit2Config {
    Magvit2Config {
        filters: 4,
        channel_multipliers: (0..=temporal.len() as i64).map(|level| 1 + level.min(1)).collect(),
        num_res_blocks: 1,
        temporal_downsample: temporal.to_vec(),
        spatial_downsample: spatial.to_vec(),
        num_groups: 2,
        quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(6)),
        ..Magvit2Config::paper_128()
    }
}

/// A tokenizer whose every weight is drawn wide, so that no part of it is mute.
fn build(config: &Magvit2Config) -> (nn::VarStore, Magvit2) {
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Magvit2::new(&variables.root(), config).unwrap();
    no_grad(|| {
        for (seed, (_, mut variable)) in BTreeMap::from_iter(variables.variables()).into_iter().enumerate() {
            let fan_in = variable.size().iter().skip(1).product::<i64>() as f64;
            variable.copy_(&(noise(&variable.size(), seed as u64) * (1.0 / fan_in.sqrt())));
        }
    });
    (variables, tokenizer)
}

/// Feeds a clip in chunks of the given sizes, then its tokens likewise.
fn stream(tokenizer: &Magvit2, video: &Tensor, plan: &[i64]) -> (TokenGrid, Tensor) {
    let mut encoder = tokenizer.stream_encoder().unwrap();
    let mut decoder = tokenizer.stream_decoder().unwrap();
    let (mut grids, mut frames, mut start) = (Vec::new(), Vec::new(), 0);
    for &chunk in plan {
        if let Some(grid) = encoder.push(&video.narrow(2, start, chunk)).unwrap() {
            frames.push(decoder.push(&grid).unwrap());
            grids.push(grid);
        }
        start += chunk;
    }
    encoder.finish().unwrap();
    (TokenGrid::cat_time(&grids).unwrap(), Tensor::cat(&frames, 2))
}

#[test]
fn streams_equal_whole_clips() {
    let config = small(&[false, true, true], &[]);
    let (_variables, tokenizer) = build(&config);
    let video = noise(&[1, 3, 13, 16, 24], 7).tanh();
    let tokens = tokenizer.encode(&video).unwrap();
    let decoded = tokenizer.decode(&tokens).unwrap();
    assert!(tokens.ids().ne_tensor(&tokens.ids().flatten(0, -1).get(0)).any().int64_value(&[]) == 1);
    for plan in [&[13][..], &[1, 4, 4, 4], &[1, 8, 4], &[1, 12], &[1; 13], &[2, 3, 7, 1], &[9, 4], &[6, 6, 1]]
    {
        let (streamed, frames) = stream(&tokenizer, &video, plan);
        assert_eq!(streamed.ids(), tokens.ids(), "plan {plan:?}");
        let error = distance(&frames, &decoded);
        assert!(error < 1e-5, "plan {plan:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Any chunk plan, any compression: the tokens are those of the whole clip, the frames too within 1e-5.
    #[test]
    fn any_chunk_plan_is_as_good(
        flags in prop::collection::vec((any::<bool>(), any::<bool>()), 0..3),
        patch_size in prop::sample::select(vec![1, 2, 4]),
        clip_start in prop::sample::select(vec![ClipStart::Zeros, ClipStart::FirstFrame]),
        latents in 1i64..4,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        seed in 0u64..1000,
    ) {
        let (temporal, spatial): (Vec<bool>, Vec<bool>) = flags.into_iter().unzip();
        let (_variables, tokenizer) = build(&Magvit2Config { patch_size, clip_start, ..small(&temporal, &spatial) });
        let compression = tokenizer.compression();
        let frames = compression.frames(latents);
        let video = noise(&[1, 3, frames, compression.height * 2, compression.width * 3], seed).tanh();
        let tokens = tokenizer.encode(&video).unwrap();
        let mut ends: Vec<i64> = cuts.iter().map(|cut| cut.index(frames as usize) as i64).collect();
        ends.extend([0, frames]);
        ends.sort_unstable();
        ends.dedup();
        let plan: Vec<i64> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (streamed, decoded) = stream(&tokenizer, &video, &plan);
        prop_assert_eq!(streamed.ids(), tokens.ids());
        let error = distance(&decoded, &tokenizer.decode(&tokens).unwrap());
        prop_assert!(error < 1e-5, "plan {:?}: {}", plan, error);
    }

    /// A change of frame t leaves latent frames before ⌈t / stride⌉ as they are, to the bit.
    #[test]
    fn the_past_does_not_know_the_future(
        temporal in prop::collection::vec(any::<bool>(), 0..4),
        patch_size in prop::sample::select(vec![1, 2]),
        clip_start in prop::sample::select(vec![ClipStart::Zeros, ClipStart::FirstFrame]),
        latents in 1i64..4,
        place in any::<prop::sample::Index>(),
        seed in 0u64..1000,
    ) {
        let (_variables, tokenizer) = build(&Magvit2Config { patch_size, clip_start, ..small(&temporal, &[]) });
        let compression = tokenizer.compression();
        let frames = compression.frames(latents);
        let video = noise(&[1, 3, frames, compression.height, compression.width * 2], seed).tanh();
        let t = place.index(frames as usize) as i64;
        let changed = video.copy();
        changed.narrow(2, t, 1).copy_(&noise(&[1, 3, 1, video.size()[3], video.size()[4]], seed + 1));
        let features = |video: &Tensor| no_grad(|| tokenizer.encode_features(video)).unwrap();
        let (before, after) = (features(&video), features(&changed));
        let untouched = (t + compression.time - 1) / compression.time;
        prop_assert_eq!(before.narrow(2, 0, untouched), after.narrow(2, 0, untouched));
        prop_assert_ne!(before.narrow(2, untouched, 1), after.narrow(2, untouched, 1));
    }

    /// What `layers` tells is what is built.
    #[test]
    fn the_description_is_that_of_the_model(
        flags in prop::collection::vec((any::<bool>(), any::<bool>()), 0..4),
        patch_size in prop::sample::select(vec![1, 2]),
        num_res_blocks in 1i64..3,
        conv_shortcut in any::<bool>(),
    ) {
        let (temporal, spatial): (Vec<bool>, Vec<bool>) = flags.into_iter().unzip();
        let config = Magvit2Config { patch_size, num_res_blocks, conv_shortcut, ..small(&temporal, &spatial) };
        let (variables, tokenizer) = build(&config);
        let [time, height, width] = config.factors();
        let shape = VideoShape { batch: 2, channels: 3, frames: 1 + time, height, width: 2 * width };
        let layers = config.layers(shape).unwrap();
        let mut of_layer: BTreeMap<String, i64> = BTreeMap::new();
        for (name, variable) in variables.variables() {
            let layer = layers.iter().find(|layer| name.starts_with(&format!("{}.", layer.name)));
            prop_assert!(layer.is_some(), "{} stands in no layer", name);
            *of_layer.entry(layer.unwrap().name.clone()).or_default() += variable.numel() as i64;
        }
        for layer in &layers {
            prop_assert_eq!(of_layer.get(&layer.name).copied(), Some(layer.parameters), "{}", layer.name);
        }
        let features = no_grad(|| tokenizer.encode_features(&noise(&shape.to_array(), 0))).unwrap();
        let encoded = layers.iter().find(|layer| layer.name == "encoder.conv_out").unwrap();
        prop_assert_eq!(&features.size()[..], &encoded.output[..]);
        let patches = [height / patch_size, 2 * width / patch_size];
        let output = [2, 3 * patch_size.pow(3), 1 + time / patch_size, patches[0], patches[1]];
        prop_assert_eq!(layers.last().unwrap().output, output);
    }
}

/// With copies of the first frame in front, nothing tells the latent frames of a standing picture apart.
#[test]
fn what_stands_still_keeps_its_tokens() {
    for config in [small(&[true, true], &[]), Magvit2Config { patch_size: 4, ..small(&[], &[]) }] {
        let (mut variables, tokenizer) =
            build(&Magvit2Config { clip_start: ClipStart::FirstFrame, ..config.clone() });
        // In float64, as rounding is not what is asked for.
        variables.double();
        let picture = noise(&[1, 3, 1, 8, 12], 3).tanh().to_kind(Kind::Double);
        let features =
            no_grad(|| tokenizer.encode_features(&picture.expand([1, 3, 13, 8, 12], true))).unwrap();
        let error = distance(&features, &features.narrow(2, 0, 1).expand_as(&features));
        assert!(error < 1e-10, "{error}");
        let refused = Magvit2Config { clip_start: ClipStart::AsSpace, ..config }.validate().unwrap_err();
        assert!(refused.to_string().contains("zeros or first_frame"), "{refused}");
    }
}

#[test]
fn the_first_frame_is_an_image() {
    for config in [small(&[true, true], &[]), Magvit2Config { patch_size: 4, ..small(&[], &[]) }] {
        let (_variables, tokenizer) = build(&config);
        let video = noise(&[2, 3, 9, 8, 8], 3).tanh();
        let (image, clip) =
            (tokenizer.encode(&video.narrow(2, 0, 1)).unwrap(), tokenizer.encode(&video).unwrap());
        assert_eq!(image.ids(), clip.time_slice(0, 1).unwrap().ids());
        let decoded = tokenizer.decode(&clip).unwrap();
        assert_eq!(decoded.size(), video.size());
        let error = distance(&tokenizer.decode(&image).unwrap(), &decoded.narrow(2, 0, 1));
        assert!(error < 1e-5, "{error}");
    }
}

#[test]
fn published_sizes() {
    for (config, size, encoder, decoder) in [
        (Magvit2Config::paper_128(), 128, 144_865_426, 225_682_051),
        (Magvit2Config::o2_256(), 256, 148_848_914, 230_997_891),
    ] {
        let shape = VideoShape { batch: 1, channels: 3, frames: 17, height: size, width: size };
        let layers = config.layers(shape).unwrap();
        let sum = |part: &str| -> i64 {
            layers.iter().filter(|layer| layer.name.starts_with(part)).map(|layer| layer.parameters).sum()
        };
        assert_eq!((sum("encoder"), sum("decoder")), (encoder, decoder));
        let latent = layers.iter().find(|layer| layer.name == "encoder.conv_out").unwrap();
        assert_eq!(latent.output, [1, 18, 5, 16, 16]);
    }
}

#[test]
fn every_compression_from_4x4x4_to_8x8x8() {
    let (t, f) = (true, false);
    for (temporal, spatial, factors) in [
        (vec![t, t], vec![], [4, 4, 4]),
        (vec![t, t, t], vec![f, t, t], [8, 4, 4]),
        (vec![f, t, t], vec![], [4, 8, 8]),
        (vec![t, t, t], vec![], [8, 8, 8]),
    ] {
        let (_variables, tokenizer) = build(&small(&temporal, &spatial));
        let compression = tokenizer.compression();
        assert_eq!([compression.time, compression.height, compression.width], factors);
        let video = noise(&[1, 3, 1 + factors[0], 16, 16], 5).tanh();
        let tokens = tokenizer.encode(&video).unwrap();
        assert_eq!(tokens.ids().size(), [1, 2, 16 / factors[1], 16 / factors[2]]);
        assert_eq!(tokenizer.decode(&tokens).unwrap().size(), video.size());
    }
}

#[test]
fn training_reaches_every_weight() {
    let (variables, tokenizer) = build(&small(&[true], &[]));
    let video = noise(&[1, 3, 3, 8, 8], 1).tanh();
    let out = tokenizer.forward(&video, Mode::Train { step: 0 }).unwrap();
    ((&out.reconstruction - &video).square().mean(tch::Kind::Float) + out.quantized.loss()).backward();
    for (name, variable) in variables.variables() {
        assert!(variable.grad().defined(), "{name}");
        assert!(variable.grad().abs().sum(tch::Kind::Float).double_value(&[]) > 0.0, "{name}");
    }
    assert!(variables.variables()["decoder.conv_out.weight"].data_ptr() == tokenizer.last_layer().data_ptr());
}

#[test]
fn bad_input_is_named() {
    let (_variables, tokenizer) = build(&small(&[true, true], &[]));
    let refusal = |result: video_core::Result<TokenGrid>| result.unwrap_err().to_string();
    let encode = |size: &[i64]| refusal(tokenizer.encode(&noise(size, 0)));
    assert!(encode(&[1, 3, 4, 8, 8]).contains("crop to 1 or pad to 5"));
    assert!(encode(&[1, 3, 5, 8, 10]).contains("width: 10 pixels"));
    assert!(encode(&[1, 4, 5, 8, 8]).contains("3 channels"));
    assert!(encode(&[3, 5, 8, 8]).contains("[B, C, T, H, W]"));
    let bytes = Tensor::zeros([1, 3, 1, 8, 8], (tch::Kind::Uint8, Device::Cpu));
    assert!(refusal(tokenizer.encode(&bytes)).contains("Uint8"));
    let outside = TokenGrid::new(Tensor::full([1, 1, 2, 2], 64, (tch::Kind::Int64, Device::Cpu))).unwrap();
    assert!(tokenizer.decode(&outside).unwrap_err().to_string().contains("id 64"));

    let mut stream = tokenizer.stream_encoder().unwrap();
    stream.push(&noise(&[1, 3, 2, 8, 8], 0)).unwrap();
    assert!(stream.push(&noise(&[1, 3, 2, 8, 12], 0)).unwrap_err().to_string().contains("first chunk"));
    assert!(stream.finish().unwrap_err().to_string().contains("3 more are missing"));
    assert!(tokenizer.stream_encoder().unwrap().finish().unwrap_err().to_string().contains("1 more"));
}

#[test]
fn bad_fields_are_named() {
    let base = small(&[true, true], &[]);
    let refused = |field: &str, config: Magvit2Config| {
        let error = Magvit2::new(&nn::VarStore::new(Device::Cpu).root(), &config).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    refused("filters", Magvit2Config { filters: 0, ..base.clone() });
    refused("num_groups", Magvit2Config { num_groups: 3, ..base.clone() });
    refused("channel_multipliers", Magvit2Config { channel_multipliers: vec![], ..base.clone() });
    refused("temporal_downsample", Magvit2Config { temporal_downsample: vec![true], ..base.clone() });
    refused("spatial_downsample", Magvit2Config { spatial_downsample: vec![true], ..base.clone() });
    refused("z_channels", Magvit2Config { z_channels: Some(0), ..base.clone() });
    let bits = QuantizerConfig::Lfq(LfqConfig::with_bits(0));
    refused("quantizer.bits", Magvit2Config { quantizer: bits, ..base });
}
