use perceiver_ar::{
    CropConfig, Events, ImageOrdering, LossConfig, Modality, PAD, Rotary, RotaryConfig, block_windows,
    copy_task, count_positions, cross_entropy, image_events, process_logits, random_copy_task,
    sequence_length, shift,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn document(length: i64) -> Events {
    let ids = Tensor::arange_start(3, 3 + length, (Kind::Int64, Device::Cpu));
    Events { ids, positions: count_positions(1, length, Device::Cpu).squeeze_dim(0) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn blocks_score_every_target_once(length in 2i64..30, slots in 1i64..9, block in 1i64..9, batch in 1i64..4) {
        prop_assume!(block <= slots);
        let (windows, targets) = block_windows(&document(length), slots, block, batch).unwrap();
        prop_assert_eq!(windows.ids.size()[0] % batch, 0);
        let mut scored = Vec::new();
        for row in 0..windows.ids.size()[0] {
            let targets = Vec::<i64>::try_from(targets.get(row)).unwrap();
            let seen: Vec<i64> = targets.into_iter().filter(|&id| id != PAD).collect();
            scored.extend(seen[seen.len().saturating_sub(block as usize)..].iter().copied());
        }
        let all: Vec<i64> = (4..3 + length).collect();
        // The first window is the short one, and its block is whole.
        prop_assert_eq!(scored, all);
    }

    #[test]
    fn crops_end_on_events_and_hold_enough(length in 3i64..20, slots in 2i64..12, min_crop in 0i64..6) {
        let config = CropConfig { slots, min_crop, include_sos: true };
        let windows = config.all_crops(&document(length), 1).unwrap();
        prop_assert_eq!(windows.ids.size()[0], config.starts(length).unwrap());
        let lengths = Vec::<i64>::try_from(sequence_length(&windows.ids)).unwrap();
        let ends = Vec::<i64>::try_from(windows.ends).unwrap();
        for (row, (&n, &end)) in lengths.iter().zip(&ends).enumerate() {
            prop_assert!(n >= min_crop.max(2).min(length).min(slots) && n <= slots);
            let last = windows.ids.int64_value(&[row as i64, n - 1]);
            prop_assert_eq!(last, 2 + end);
        }
        prop_assert_eq!(ends[0], length);
    }
}

#[test]
fn the_second_half_mirrors_the_first() {
    let _alone = crate::alone();
    let events = random_copy_task(3, 12, true, Device::Cpu).unwrap();
    let body = events.ids.narrow(1, 1, 10);
    assert_eq!(body.flip([1]), body);
    assert!(random_copy_task(3, 11, true, Device::Cpu).is_err());
    assert!(copy_task(&Tensor::zeros([1, 2], (Kind::Int64, Device::Cpu)), true).is_err());
    let (inputs, targets) = shift(&events.ids);
    // The last token is a target alone.
    assert_eq!(inputs.narrow(1, 1, 10), targets.narrow(1, 0, 10));
}

#[test]
fn planar_images_hold_the_bytes_of_rasters() {
    let _alone = crate::alone();
    let image = Tensor::randint(256, [4, 5, 3], (Kind::Uint8, Device::Cpu));
    let raster = image_events(&image, ImageOrdering::PixelRaster, false).unwrap();
    let planar = image_events(&image, ImageOrdering::Planar, false).unwrap();
    assert_eq!(raster.ids.view([4, 5, 3]).permute([2, 0, 1]).reshape([-1]), planar.ids);
    assert!(image_events(&image.to_kind(Kind::Float), ImageOrdering::Planar, false).is_err());
}

#[test]
fn rotations_are_relative_and_reversible() {
    let _alone = crate::alone();
    let config = RotaryConfig {
        heads: 2,
        head_dim: 8,
        head_group_size: 0,
        fraction_to_rotate: 0.75,
        fraction_heads_to_rotate: 1.0,
        max_wavelength: 100,
    };
    let rotary = Rotary::new(&config, Device::Cpu).unwrap();
    let x = Tensor::randn([1, 2, 5, 8], (Kind::Float, Device::Cpu));
    let places = Tensor::arange(5, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let turned = rotary.rotate(&x, &places);
    assert!(rotary.rotate(&turned, &-&places).allclose(&x, 1e-4, 1e-5, false));
    let scores = |shift: i64| {
        let turned = rotary.rotate(&x, &(&places + shift));
        turned.matmul(&turned.transpose(-2, -1))
    };
    assert!(scores(0).allclose(&scores(17), 1e-4, 1e-4, false));
    assert!(Rotary::new(&RotaryConfig { head_group_size: 3, ..config }, Device::Cpu).is_err());
}

#[test]
fn smoothed_losses_are_least_where_they_are_smoothed_to() {
    let config = LossConfig { label_smoothing: 0.1, z_loss: 0.0 };
    let target = Tensor::from_slice(&[1_i64]);
    let best = Tensor::from_slice(&[0.05_f32.ln(), 0.9_f32.ln(), 0.05_f32.ln()]).view([1, 3]);
    let weights = Tensor::ones([1], (Kind::Float, Device::Cpu));
    let loss =
        |logits: &Tensor| cross_entropy(logits, &target, &weights, config).unwrap().loss.double_value(&[0]);
    assert!(loss(&best).abs() < 1e-5);
    assert!(loss(&(&best * 2.0)) > 0.01);
    assert!(cross_entropy(&best, &(&target + 2), &weights, config).is_err());
    assert!(cross_entropy(&best, &target.view([1, 1]), &weights, config).is_err());
}

#[test]
fn filters_leave_the_modality_and_the_likely() {
    let logits = Tensor::zeros([1, 771], (Kind::Float, Device::Cpu));
    let kept = |logits: &Tensor| Vec::<i64>::try_from(logits.gt(-1e20).nonzero().select(1, 1)).unwrap();
    let image = process_logits(&logits, 2, 1.0, 1.0, Some(Modality::Image)).unwrap();
    assert_eq!(kept(&image), (0..3).chain(259..515).collect::<Vec<_>>());
    let logits = Tensor::from_slice(&[2f32, 1.0, 0.0, -5.0]).view([1, 4]);
    assert_eq!(kept(&process_logits(&logits, 1, 0.5, 1.0, None).unwrap()), [0]);
    assert_eq!(kept(&process_logits(&logits, 1, 0.9, 1.0, None).unwrap()), [0, 1]);
    assert!(process_logits(&logits, 1, 1.5, 1.0, None).is_err());
    assert!(process_logits(&logits, 1, 1.0, 1.0, Some(Modality::Image)).is_err());
}
