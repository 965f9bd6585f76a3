//! Shapes, filters and seeds.

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use video_core::{
    Compression, TokenGrid, VideoShape,
    sampling::{Filter, gumbel_like},
    seeds,
};

fn video(frames: i64, height: i64, width: i64) -> VideoShape {
    VideoShape { batch: 1, channels: 3, frames, height, width }
}

proptest! {
    #[test]
    fn frames_round_trip_through_the_grid(time in 1i64..9, k in 0i64..50, extra in 0i64..9) {
        let compression = Compression { time, height: 4, width: 4, bits_per_token: 10.0 };
        let frames = 1 + k * time;
        let grid = compression.grid_shape(video(frames, 8, 12)).unwrap();
        prop_assert_eq!(grid.frames, 1 + k);
        prop_assert_eq!(compression.frames(grid.frames), frames);
        let any = frames + extra;
        prop_assert!(compression.crop_frames(any) <= any && any <= compression.pad_frames(any));
        prop_assert!(compression.pad_frames(any) - compression.crop_frames(any) <= time);
        prop_assert!(compression.grid_shape(video(compression.pad_frames(any), 8, 12)).is_ok());
    }

    #[test]
    fn filters_keep_the_most_likely_id_and_drop_mass_from_the_tail(seed in 0i64..1000, k in 1i64..12, p in 0.05f64..1.0) {
        tch::manual_seed(seed);
        let logits = Tensor::randn([3, 11], (Kind::Float, Device::Cpu)) * 3.0;
        let filtered = Filter { temperature: 0.7, top_k: Some(k), top_p: Some(p) }.apply(&logits);
        prop_assert_eq!(Vec::<i64>::try_from(filtered.argmax(-1, false)).unwrap(), Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap());
        let kept = filtered.isfinite().sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64);
        prop_assert!(kept.max().int64_value(&[]) <= k);
        let probabilities = (logits / 0.7).softmax(-1, Kind::Float);
        let top_p_only = Filter { temperature: 0.7, top_k: None, top_p: Some(p) };
        let kept_mass = (probabilities * top_p_only.apply(&filtered).isfinite()).sum(Kind::Float).double_value(&[]);
        prop_assert!(kept_mass <= 3.0001);
    }
}

#[test]
fn nucleus_is_the_smallest_set_that_reaches_p() {
    let logits = Tensor::from_slice(&[0.5f32, 0.3, 0.15, 0.05]).log();
    let kept = |p| {
        let filter = Filter { top_p: Some(p), ..Filter::default() };
        filter.apply(&logits).isfinite().sum(Kind::Int64).int64_value(&[])
    };
    assert_eq!([kept(0.4), kept(0.6), kept(0.9), kept(0.99)], [1, 2, 3, 4]);
}

#[test]
fn draws_follow_the_distribution() {
    tch::manual_seed(0);
    let logits = Tensor::from_slice(&[0.6f32, 0.3, 0.1]).log().repeat([20_000, 1]);
    let ids = Filter::default().sample(&logits);
    for (id, expected) in [(0, 0.6), (1, 0.3), (2, 0.1)] {
        let share = ids.eq(id).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((share - expected).abs() < 0.015, "id {id}: {share}");
    }
    let greedy = Filter { temperature: 0.0, ..Filter::default() };
    assert_eq!(greedy.sample(&logits).max().int64_value(&[]), 0);
}

#[test]
fn gumbel_noise_is_finite_in_any_precision() {
    tch::manual_seed(0);
    for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
        let noise = gumbel_like(&Tensor::zeros([1 << 20], (kind, Device::Cpu)));
        assert_eq!(noise.kind(), kind);
        let noise = noise.to_kind(Kind::Double);
        assert_eq!(noise.isfinite().all().int64_value(&[]), 1, "{kind:?}");
        // Euler's constant, and π / √6.
        assert!((noise.mean(Kind::Double).double_value(&[]) - 0.5772).abs() < 0.01);
        assert!((noise.std(true).double_value(&[]) - 1.2825).abs() < 0.01);
    }
}

#[test]
fn errors_say_what_would_fit() {
    let compression = Compression { time: 4, height: 8, width: 8, bits_per_token: 10.0 };
    let error = compression.grid_shape(video(7, 64, 64)).unwrap_err().to_string();
    assert!(error.contains("crop to 5 or pad to 9"), "{error}");
    let error = compression.grid_shape(video(5, 60, 64)).unwrap_err().to_string();
    assert!(error.contains("height") && error.contains("pad to 64"), "{error}");
    let grid = TokenGrid::new(Tensor::from_slice(&[0i64, 7]).view([1, 1, 1, 2])).unwrap();
    assert!(grid.check_vocabulary(8).is_ok());
    assert!(grid.check_vocabulary(7).unwrap_err().to_string().contains("id 7"));
    assert!(TokenGrid::new(Tensor::from_slice(&[0i64])).is_err());
    assert!(
        Filter { top_p: Some(0.0), ..Filter::default() }
            .validate()
            .unwrap_err()
            .to_string()
            .contains("top_p")
    );
}

#[test]
fn seeds_differ_by_stream_and_step() {
    let mut all: Vec<u64> = (0..1000)
        .flat_map(|step| {
            [seeds::Stream::Data, seeds::Stream::Step].map(|stream| seeds::derive(7, stream, step))
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 2000);
}
