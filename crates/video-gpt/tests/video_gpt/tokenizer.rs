use proptest::prelude::*;
use quantizers::{LfqConfig, Mode, QuantizerConfig, VqConfig};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};
use video_core::{Error, TokenGrid, VideoShape, VideoTokenizer};
use video_gpt::{SamePadConfig, SamePadConv3d, SamePadConvTranspose3d, VqVae, VqVaeConfig, preprocess};

fn tiny() -> VqVaeConfig {
    VqVaeConfig {
        n_hiddens: 16,
        n_res_layers: 1,
        embedding_dim: 8,
        downsample: [2, 4, 4],
        quantizer: QuantizerConfig::Vq(VqConfig { codebook_size: 32, ..VqConfig::video_gpt() }),
    }
}

fn build(config: &VqVaeConfig) -> (nn::VarStore, VqVae) {
    let variables = nn::VarStore::new(Device::Cpu);
    let model = VqVae::new(&variables.root(), config).unwrap();
    (variables, model)
}

fn video(shape: [i64; 5]) -> Tensor {
    Tensor::rand(shape, (Kind::Float, Device::Cpu)) * 2.0 - 1.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn sizes_are_divided_and_multiplied_by_the_strides(
        stride in prop::array::uniform3(1i64..3),
        grid in prop::array::uniform3(2i64..5),
    ) {
        let config = SamePadConfig { stride, ..SamePadConfig::cube(4) };
        let variables = nn::VarStore::new(Device::Cpu);
        let down = SamePadConv3d::new(&(variables.root() / "down"), 2, 3, config).unwrap();
        let up = SamePadConvTranspose3d::new(&(variables.root() / "up"), 3, 2, config).unwrap();
        let size: [i64; 3] = std::array::from_fn(|axis| grid[axis] * stride[axis]);
        let x = video([1, 2, size[0], size[1], size[2]]);
        let y = down.forward(&x).unwrap();
        prop_assert_eq!(&y.size()[2..], grid);
        prop_assert_eq!(up.forward(&y).unwrap().size(), x.size());
    }
}

#[test]
fn every_stride_and_bottleneck_codes_a_clip() {
    let _alone = crate::alone();
    let lfq = QuantizerConfig::Lfq(LfqConfig::with_bits(8));
    let configs = [
        (tiny(), [2, 8, 12]),
        (VqVaeConfig { downsample: [1, 2, 2], ..tiny() }, [3, 6, 4]),
        (VqVaeConfig { downsample: [4, 1, 2], ..tiny() }, [4, 3, 4]),
        (VqVaeConfig { quantizer: lfq, ..tiny() }, [2, 4, 4]),
    ];
    for (config, [frames, height, width]) in configs {
        let (_variables, model) = build(&config);
        let shape = VideoShape { batch: 2, channels: 3, frames, height, width };
        let clip = video(shape.to_array());
        let tokens = model.encode(&clip).unwrap();
        assert_eq!(tokens.shape(), model.grid_shape(shape).unwrap());
        tokens.check_vocabulary(model.vocabulary_size().unwrap()).unwrap();
        let decoded = model.decode(&tokens).unwrap();
        assert_eq!(decoded.size(), clip.size());
        assert!(decoded.abs().max().double_value(&[]) <= 1.0);
        assert!(matches!(model.stream_encoder().err(), Some(Error::Unsupported { .. })));
        assert!(matches!(model.stream_decoder().err(), Some(Error::Unsupported { .. })));
    }
}

#[test]
fn a_training_step_makes_the_codes_and_lowers_the_loss() {
    let _alone = crate::alone();
    tch::manual_seed(0);
    let (variables, model) = build(&tiny());
    let mut optimizer = nn::Adam::default().build(&variables, 3e-3).unwrap();
    let clip = video([4, 3, 4, 8, 8]).avg_pool3d([1, 4, 4], [1, 4, 4], [0; 3], false, true, None);
    let clip = clip.upsample_nearest3d([4, 8, 8], None, None, None) / 2.0;
    let mut losses = Vec::new();
    for step in 0..25 {
        let output = model.forward(&clip, Mode::Train { step }).unwrap();
        losses.push(output.recon_loss.double_value(&[]));
        optimizer.backward_step(&output.loss());
    }
    assert!(losses[24] < 0.8 * losses[0], "{losses:?}");
    assert_eq!(variables.variables()["codebook.initted"].double_value(&[0]), 1.0);
}

#[test]
fn the_published_sizes_have_the_published_number_of_parameters() {
    let _alone = crate::alone();
    let count = |variables: &nn::VarStore, part: &str, trained: bool| -> i64 {
        let named = variables.variables().into_iter();
        let counted = named.filter(|(name, v)| name.starts_with(part) && v.requires_grad() == trained);
        counted.map(|(_, v)| v.numel() as i64).sum()
    };
    let (variables, _model) = build(&VqVaeConfig::bair_stride4x2x2());
    assert_eq!(count(&variables, "", true), 21_141_619);
    assert_eq!(count(&variables, "encoder.", true), 11_286_960);
    assert_eq!(count(&variables, "decoder.", true), 9_731_283);
    // Without the flag that the codes are made.
    assert_eq!(count(&variables, "codebook.", false) - 1, 1_050_624);
}

#[test]
fn what_cannot_be_is_refused() {
    let _alone = crate::alone();
    let path = nn::VarStore::new(Device::Cpu);
    for (config, field) in [
        (VqVaeConfig { n_hiddens: 1, ..tiny() }, "n_hiddens"),
        (VqVaeConfig { n_res_layers: -1, ..tiny() }, "n_res_layers"),
        (VqVaeConfig { embedding_dim: 0, ..tiny() }, "embedding_dim"),
        (VqVaeConfig { downsample: [1; 3], ..tiny() }, "downsample"),
        (VqVaeConfig { downsample: [2, 3, 2], ..tiny() }, "downsample"),
    ] {
        let refused = VqVae::new(&path.root(), &config).unwrap_err();
        assert!(matches!(&refused, Error::Config { field: found, .. } if found == field), "{refused}");
    }
    let (_variables, model) = build(&tiny());
    for shape in [[1, 3, 3, 8, 8], [1, 3, 2, 6, 8], [1, 1, 2, 8, 8]] {
        assert!(model.encode(&video(shape)).is_err());
    }
    assert!(model.encode(&video([1, 3, 2, 8, 8]).squeeze_dim(0)).is_err());
    let beyond = TokenGrid::new(Tensor::full([1, 1, 2, 2], 32, (Kind::Int64, Device::Cpu))).unwrap();
    assert!(model.decode(&beyond).is_err());
    let frames = Tensor::zeros([3, 4, 5, 3], (Kind::Uint8, Device::Cpu));
    assert!(preprocess(&frames, 4, Some(4)).is_err());
    assert!(preprocess(&frames, 0, None).is_err());
    assert!(preprocess(&frames.to_kind(Kind::Float), 4, None).is_err());
}
