use proptest::prelude::*;
use tch::{Device, Kind, Tensor, nn};
use var_next_scale::resample::{area, enlarge};
use var_next_scale::{MultiScaleVq, MultiScaleVqConfig, Pyramid, Vqvae, VqvaeConfig};
use video_core::{GridShape, VideoTokenizer};

use crate::{alone, distance, message, rand};

pub fn quantizer_config() -> MultiScaleVqConfig {
    MultiScaleVqConfig {
        vocab_size: 32,
        z_channels: 6,
        v_patch_nums: vec![1, 2, 4],
        ..MultiScaleVqConfig::default()
    }
}

pub fn vqvae_config() -> VqvaeConfig {
    VqvaeConfig {
        ch: 8,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        norm_num_groups: 4,
        quantizer: quantizer_config(),
        ..VqvaeConfig::default()
    }
}

fn shape(frames: i64, height: i64, width: i64) -> GridShape {
    GridShape { frames, height, width }
}

#[test]
fn the_sum_of_all_scales_is_what_the_ids_give_back() {
    let _alone = alone();
    for share_quant_resi in [0, 1, 2, 4] {
        let config = MultiScaleVqConfig { share_quant_resi, ..quantizer_config() };
        let variables = nn::VarStore::new(Device::Cpu);
        let quantizer = MultiScaleVq::new(&variables.root(), &config).unwrap();
        let f = rand(&[2, 6, 1, 4, 4]);
        let pyramid = quantizer.pyramid();
        let encoded = quantizer.encode(&f, pyramid, 3).unwrap();
        let maps = quantizer.embed(&encoded.ids, pyramid).unwrap();
        let sums = quantizer.f_hats(&maps, pyramid).unwrap();
        for (ours, theirs) in sums.iter().zip(&encoded.f_hat) {
            assert!(distance(ours, theirs) < 1e-5);
        }
        let trained = quantizer.train(&f, pyramid, false).unwrap();
        assert!(distance(&trained.f_hat, &encoded.f_hat[2]) < 1e-5);
        // The inputs of the transformer are those sums at the next scale's size.
        let input = quantizer.var_input(&encoded.ids, pyramid, 3).unwrap();
        let second = area(&encoded.f_hat[1], shape(1, 4, 4)).flatten(2, -1).transpose(1, 2);
        assert!(distance(&input.narrow(1, 4, 16), &second) < 1e-5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn constants_stay_what_they_are_through_both_ways(
        from in (1i64..4, 1i64..8, 1i64..8), to in (1i64..4, 1i64..8, 1i64..8)
    ) {
        let _alone = alone();
        let x = rand(&[2, 3, 1, 1, 1]).expand([2, 3, from.0, from.1, from.2], false);
        let to = shape(to.0, to.1, to.2);
        for y in [area(&x, to), enlarge(&x, to)] {
            prop_assert_eq!(&y.size()[2..], &[to.frames, to.height, to.width]);
            prop_assert!(distance(&y, &x.narrow(2, 0, 1).narrow(3, 0, 1).narrow(4, 0, 1).expand_as(&y)) < 1e-5);
        }
    }
}

#[test]
fn an_image_goes_through_the_contract_of_video_tokenizers() {
    let _alone = alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Vqvae::new(&variables.root(), &vqvae_config()).unwrap();
    let images = rand(&[2, 3, 8, 8]);
    let tokens = tokenizer.encode(&images.unsqueeze(2)).unwrap();
    assert_eq!(tokens.ids().size(), [2, 1, 1, 21]);
    let encoded = tokenizer.encode_images(&images).unwrap();
    let steps = tokenizer.images_by_scale(&encoded.ids, false).unwrap();
    assert_eq!(steps.len(), 3);
    assert!(distance(&tokenizer.decode(&tokens).unwrap().squeeze_dim(2), &steps[2]) < 1e-5);
    assert_eq!(tokenizer.videos_by_scale(&tokens).unwrap()[1], steps[1].unsqueeze(2));
    let own = tokenizer.images_by_scale(&encoded.ids, true).unwrap();
    assert_eq!(own.iter().map(|image| image.size()[3]).collect::<Vec<_>>(), [2, 4, 8]);
    // A stream has one frame.
    let (mut encoder, mut decoder) =
        (tokenizer.stream_encoder().unwrap(), tokenizer.stream_decoder().unwrap());
    assert_eq!(encoder.push(&images.unsqueeze(2)).unwrap().unwrap().ids(), tokens.ids());
    assert!(message(encoder.push(&images.unsqueeze(2)).unwrap_err()).contains("stream 2 frames"));
    encoder.finish().unwrap();
    assert_eq!(decoder.push(&tokens).unwrap(), tokenizer.decode(&tokens).unwrap());
    assert!(decoder.push(&tokens).is_err());
    assert_eq!(tokenizer.compression().bits_per_token, 5.0);
}

#[test]
fn parameter_counts_are_those_of_the_built_network() {
    let _alone = alone();
    for (share_quant_resi, quant_resi) in [(0, 0.5), (1, 0.5), (4, 0.0), (2, -0.5)] {
        let quantizer = MultiScaleVqConfig { share_quant_resi, quant_resi, ..quantizer_config() };
        let config = VqvaeConfig { quantizer, ch_mult: vec![1, 1, 3], num_res_blocks: 2, ..vqvae_config() };
        let variables = nn::VarStore::new(Device::Cpu);
        Vqvae::new(&variables.root(), &config).unwrap();
        let built: i64 = variables.trainable_variables().iter().map(|v| v.numel() as i64).sum();
        assert_eq!(config.parameters().total(), built);
    }
    let published = VqvaeConfig::default().parameters();
    assert_eq!(
        (published.encoder, published.decoder, published.quantizer, published.total()),
        (44_107_872, 64_653_923, 168_064, 108_948_355)
    );
}

#[test]
fn hits_are_counted_in_training_steps_that_ask_for_it() {
    let _alone = alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let quantizer = MultiScaleVq::new(&variables.root(), &quantizer_config()).unwrap();
    let f = rand(&[2, 6, 1, 4, 4]);
    quantizer.train(&f, quantizer.pyramid(), false).unwrap();
    assert_eq!(quantizer.hits().1, 0);
    quantizer.train(&f, quantizer.pyramid(), true).unwrap();
    let (hits, count) = quantizer.hits();
    assert_eq!(count, 3);
    let sums = Vec::<f32>::try_from(hits.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)).unwrap();
    // The first scale is copied; the others start from a tenth.
    assert!((sums[0] - 2.0).abs() < 1e-5 && (sums[1] - 0.8).abs() < 1e-5 && (sums[2] - 3.2).abs() < 1e-5);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let _alone = alone();
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Vqvae::new(&variables.root(), &vqvae_config()).unwrap();
    let quantizer = tokenizer.quantizer();
    // Scales that do not end at the latent's size.
    let error = tokenizer.encode(&rand(&[1, 3, 1, 16, 16])).unwrap_err();
    assert!(message(error).contains("v_patch_nums = [1, 2, 4]: expected"));
    let error = quantizer.encode(&rand(&[1, 6, 1, 5, 5]), quantizer.pyramid(), 3).unwrap_err();
    assert!(message(error).contains("patch_nums"));
    let unsorted = MultiScaleVqConfig { v_patch_nums: vec![1, 4, 2], ..quantizer_config() };
    assert!(message(unsorted.validate().unwrap_err()).contains("v_patch_nums = [1, 4, 2]"));
    assert!(Pyramid::square(&[]).is_err());
    // A video, a size that the levels do not halve, an id that there is not.
    assert!(message(tokenizer.encode(&rand(&[1, 3, 2, 8, 8])).unwrap_err()).contains("frames"));
    assert!(tokenizer.encode(&rand(&[1, 3, 1, 9, 8])).is_err());
    let ids = [1, 4, 16].map(|n| Tensor::full([1, n], 32, (Kind::Int64, Device::Cpu)));
    assert!(message(quantizer.embed(&ids, quantizer.pyramid()).unwrap_err()).contains("id 32"));
    for bad in [
        "vocab_size = 0",
        "quant_resi = 2.0",
        "beta = -1.0",
        "eini = nan",
        "v_patch_nums = []",
        "unknown = 1",
    ] {
        let config = toml::from_str::<MultiScaleVqConfig>(bad).map(|config| config.validate());
        assert!(!matches!(config, Ok(Ok(()))), "{bad}");
    }
    for bad in ["ch = 100", "ch_mult = []", "num_res_blocks = 0", "quant_conv_ks = 2", "norm_num_groups = 0"]
    {
        let config = toml::from_str::<VqvaeConfig>(bad).unwrap();
        assert!(config.validate().is_err(), "{bad}");
    }
}
