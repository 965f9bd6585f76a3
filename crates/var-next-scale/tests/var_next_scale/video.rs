use tch::{Device, Kind, Tensor, nn, no_grad};
use var_next_scale::video::{
    SpaceTimePyramid, SpaceTimeVar, SpaceTimeVarConfig, SpaceTimeVqvae, SpaceTimeVqvaeConfig,
};
use var_next_scale::{MultiScaleVq, Var, VarSampling};
use video_core::sampling::Filter;
use video_core::{
    Condition, ConditionKind, GridShape, SampleOptions, TokenGenerator, TokenGrid, VideoTokenizer,
};

use crate::tokenizer::quantizer_config;
use crate::transformer::var_config;
use crate::{alone, distance, message, rand};

/// 21 tokens of the image, then 1 + 8 + 32 tokens of each two latent frames.
const CHUNK_SCALES: [[i64; 3]; 3] = [[1, 1, 1], [2, 2, 2], [2, 4, 4]];

fn tokenizer_config() -> SpaceTimeVqvaeConfig {
    SpaceTimeVqvaeConfig {
        patch_size: 1,
        filters: 8,
        channel_multipliers: vec![1, 2],
        num_res_blocks: 1,
        temporal_downsample: vec![true],
        num_groups: 4,
        quantizer: quantizer_config(),
        chunk_scales: CHUNK_SCALES.to_vec(),
    }
}

fn tokenizer() -> (nn::VarStore, SpaceTimeVqvae) {
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = SpaceTimeVqvae::new(&variables.root(), &tokenizer_config()).unwrap();
    (variables, tokenizer)
}

fn generator_config() -> SpaceTimeVarConfig {
    SpaceTimeVarConfig { transformer: var_config(), chunk_scales: CHUNK_SCALES.to_vec(), max_chunks: 3 }
}

/// A generator whose every weight counts.
fn generator() -> (nn::VarStore, SpaceTimeVar) {
    let codes = nn::VarStore::new(Device::Cpu);
    let quantizer = MultiScaleVq::new(&codes.root(), &quantizer_config()).unwrap();
    let variables = nn::VarStore::new(Device::Cpu);
    let generator = SpaceTimeVar::new(&variables.root(), &generator_config(), quantizer.frozen()).unwrap();
    no_grad(|| {
        for (_, mut variable) in variables.variables() {
            let noise = variable.randn_like() * 0.3;
            let _ = variable.g_add_(&noise);
        }
    });
    (variables, generator)
}

fn ids(batch: i64, chunks: i64) -> Tensor {
    Tensor::randint(32, [batch, 21 + 41 * chunks], (Kind::Int64, Device::Cpu))
}

fn grid(ids: &Tensor) -> TokenGrid {
    TokenGrid::new(ids.unsqueeze(1).unsqueeze(1)).unwrap()
}

#[test]
fn tokens_of_a_chunk_know_no_later_frame_and_the_first_are_the_image_s() {
    let _alone = alone();
    let (_variables, tokenizer) = tokenizer();
    // Two chunks of two latent frames of two frames each.
    let video = rand(&[2, 3, 9, 8, 8]);
    let tokens = tokenizer.encode(&video).unwrap();
    assert_eq!(tokens.ids().size(), [2, 1, 1, 21 + 2 * 41]);
    for (frames, length) in [(1, 21), (5, 62)] {
        let shorter = tokenizer.encode(&video.narrow(2, 0, frames)).unwrap();
        assert_eq!(shorter.ids(), &tokens.ids().narrow(3, 0, length), "{frames} frames");
        // Nor does what is decoded.
        let all = tokenizer.decode(&tokens).unwrap();
        assert!(distance(&tokenizer.decode(&shorter).unwrap(), &all.narrow(2, 0, frames)) < 1e-5);
    }
    // Frames that change behind a chunk change nothing of it; those in it do.
    for (frame, from, changes) in [(5, 0, false), (5, 62, true), (1, 0, false), (1, 21, true), (0, 0, true)] {
        let other = video.copy();
        other.narrow(2, frame, 1).copy_(&(-video.narrow(2, frame, 1)));
        let length = if from == 0 { if frame == 5 { 62 } else { 21 } } else { 41 };
        let part = |tokens: &TokenGrid| tokens.ids().narrow(3, from, length);
        let same = part(&tokenizer.encode(&other).unwrap()) == part(&tokens);
        assert_eq!(same, !changes, "frame {frame}, tokens from {from}");
    }
}

#[test]
fn the_tokenizer_trains_on_images_and_videos() {
    let _alone = alone();
    let (variables, tokenizer) = tokenizer();
    for frames in [1, 5] {
        let video = rand(&[1, 3, frames, 8, 8]);
        let output = tokenizer.forward(&video, true).unwrap();
        assert_eq!(output.reconstruction.size(), video.size());
        assert_eq!(output.ids.len(), if frames == 1 { 3 } else { 6 });
        (output.vq_loss + (output.reconstruction - video).square().mean(Kind::Float)).backward();
    }
    let weight = &variables.variables()["encoder.conv_out.weight"];
    assert!(weight.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
}

#[test]
fn videos_are_decoded_from_coarse_to_fine() {
    let _alone = alone();
    let config = SpaceTimeVqvaeConfig {
        patch_size: 2,
        channel_multipliers: vec![1],
        temporal_downsample: Vec::new(),
        chunk_scales: vec![[1, 2, 2], [2, 4, 4]],
        ..tokenizer_config()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = SpaceTimeVqvae::new(&variables.root(), &config).unwrap();
    let tokens = tokenizer.encode(&rand(&[1, 3, 5, 8, 8])).unwrap();
    assert_eq!(tokens.ids().size(), [1, 1, 1, 21 + 36]);
    let stages = tokenizer.videos_by_scale(&tokens).unwrap();
    assert_eq!(stages.len(), 3, "as many as the longer pyramid has");
    assert_eq!(stages[2], tokenizer.decode(&tokens).unwrap());
    assert!(distance(&stages[0], &stages[1]) > 0.0 && distance(&stages[1], &stages[2]) > 0.0);
}

#[test]
fn the_image_part_is_var_itself() {
    let _alone = alone();
    let (variables, generator) = generator();
    let own = nn::VarStore::new(Device::Cpu);
    let image = Var::new(&own.root(), &var_config()).unwrap();
    no_grad(|| {
        for (name, mut variable) in own.variables() {
            variable.copy_(&variables.variables()[&name]);
        }
    });
    let clip = ids(2, 2);
    let classes = Tensor::from_slice(&[1i64, 5]);
    let still = clip.narrow(1, 0, 21);
    let alone = generator.logits(&still, &classes, false).unwrap();
    let among = generator.logits(&clip, &classes, false).unwrap().narrow(1, 0, 21);
    assert!(distance(&alone, &among) < 1e-5);
    let maps = image.pyramid().split(&still).unwrap();
    let inputs = generator.quantizer().var_input(&maps, image.pyramid(), 3).unwrap();
    assert!(distance(&image.forward(&classes, &inputs, 3, false).unwrap(), &alone) < 1e-5);
}

#[test]
fn predictions_at_a_scale_know_no_token_of_it_or_behind() {
    let _alone = alone();
    let (_variables, generator) = generator();
    let clip = ids(1, 2);
    let classes = Tensor::from_slice(&[2i64]);
    let logits = generator.logits(&clip, &classes, false).unwrap();
    let mut start = 0;
    for length in generator.pyramid().lengths(2) {
        let end = start + length;
        let other = clip.copy();
        let _ = other.narrow(1, start, 1).g_add_scalar_(7).remainder_(32);
        let moved = (generator.logits(&other, &classes, false).unwrap() - &logits).abs();
        let moved = moved.amax([0i64, 2].as_slice(), false);
        assert_eq!(moved.narrow(0, 0, end).max().double_value(&[]), 0.0, "token {start}");
        if end < clip.size()[1] {
            let next = moved.narrow(0, end, 1).max().double_value(&[]);
            assert!(next > 0.0, "token {start} is not seen from {end}");
        }
        start = end;
    }
}

#[test]
fn cached_samples_are_the_likeliest_of_taught_logits() {
    let _alone = alone();
    let (_variables, generator) = generator();
    let classes = Tensor::from_slice(&[0i64, 3]);
    for cfg in [0.0, 2.0] {
        let filter = Filter { temperature: 0.0, ..Filter::default() };
        let options = VarSampling { cfg, filter, more_smooth: false };
        let ids = generator.sample_clip(&classes, 2, options, None).unwrap();
        let cond = generator.logits(&ids, &classes, false).unwrap();
        let uncond = generator.logits(&ids, &classes.full_like(5), false).unwrap();
        let mut guided = Vec::new();
        let mut start = 0;
        for (at, length) in generator.pyramid().lengths(2).into_iter().enumerate() {
            let t = cfg * (at % 3) as f64 / 2.0;
            let part = |x: &Tensor| x.narrow(1, start, length);
            guided.push(part(&cond) * (1.0 + t) - part(&uncond) * t);
            start += length;
        }
        assert_eq!(Tensor::cat(&guided, 1).argmax(-1, false), ids, "cfg {cfg}");
        // Continued from its own beginning, it goes on as before.
        for length in [21, 62, 103] {
            let given = ids.narrow(1, 0, length);
            let again = generator.sample_clip(&classes, 2, options, Some(&given)).unwrap();
            assert_eq!(again, ids, "{length} tokens given, cfg {cfg}");
        }
    }
}

#[test]
fn clips_go_through_the_contract_of_generators() {
    let _alone = alone();
    let (_variables, generator) = generator();
    assert_eq!(generator.serves(), [ConditionKind::Class, ConditionKind::FirstFrames]);
    let clip = ids(2, 1);
    let options = SampleOptions { batch: 2, seed: 1, filter: Filter::default(), guidance: 1.5 };
    let shape = GridShape { frames: 1, height: 1, width: 62 };
    let first = || Some(grid(&clip.narrow(1, 0, 21)));
    let condition = Condition {
        first_frames: first(),
        class: Some(Tensor::from_slice(&[0i64, 1])),
        ..Condition::default()
    };
    generator.loss(&grid(&clip), &condition, 0).unwrap().backward();
    generator.loss(&grid(&clip.narrow(1, 0, 21)), &Condition::default(), 0).unwrap().backward();
    let sampled = generator.sample(&condition, shape, &options).unwrap();
    assert_eq!(sampled.ids().narrow(3, 0, 21), *first().unwrap().ids());
    assert_eq!(sampled.shape(), shape);

    let odd = GridShape { width: 50, ..shape };
    assert!(message(generator.sample(&condition, odd, &options).unwrap_err()).contains("21 + n·41"));
    let long = GridShape { width: 21 + 4 * 41, ..shape };
    assert!(message(generator.sample(&condition, long, &options).unwrap_err()).contains("max_chunks"));
    let classes = Condition { class: Some(Tensor::from_slice(&[0i64, 5])), ..Condition::default() };
    assert!(message(generator.sample(&classes, shape, &options).unwrap_err()).contains("class: 5"));
    let half = Condition { first_frames: Some(grid(&clip.narrow(1, 0, 30))), ..Condition::default() };
    assert!(generator.sample(&half, shape, &options).is_err());
    assert!(generator.loss(&grid(&clip.narrow(1, 0, 21)), &condition, 0).is_err());
}

#[test]
fn scales_that_do_not_fit_are_refused_by_name() {
    let _alone = alone();
    let refused = |scales: &[[i64; 3]]| message(SpaceTimePyramid::new(&[1, 2, 4], scales).unwrap_err());
    assert!(refused(&[[1, 1, 1], [2, 4, 2]]).contains("chunk_scales"));
    assert!(refused(&[[4, 1, 1], [2, 4, 4]]).contains("chunk_scales"));
    assert!(refused(&[]).contains("chunk_scales"));
    let (_variables, tokenizer) = tokenizer();
    let error = |shape: &[i64]| message(tokenizer.encode(&rand(shape)).unwrap_err());
    assert!(error(&[1, 3, 3, 8, 8]).contains("1 + n·2 latent frames"));
    assert!(error(&[1, 3, 5, 16, 16]).contains("v_patch_nums"));
    assert!(error(&[1, 3, 4, 8, 8]).contains("4 frames"));
    let config = SpaceTimeVarConfig { max_chunks: 0, ..generator_config() };
    assert!(message(config.validate().unwrap_err()).contains("max_chunks = 0"));
    SpaceTimeVqvaeConfig::default().validate().unwrap();
    SpaceTimeVarConfig::default().validate().unwrap();
}
