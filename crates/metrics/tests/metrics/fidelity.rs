//! PSNR, SSIM, codebook use, compression figures.

use metrics::compression::{bits_per_dimension, figures};
use metrics::psnr::{mean_colour, mean_colour_psnr, psnr_per_frame_up_to};
use metrics::ssim::ssim_per_frame_up_to;
use metrics::usage::CodebookUsage;
use metrics::{PsnrConvention, SsimConvention, psnr, psnr_per_frame, ssim, ssim_per_frame};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use video_core::{Compression, VideoShape};

use super::{number, numbers, refusal, video};

const PSNR: [PsnrConvention; 2] = [PsnrConvention::Cap100, PsnrConvention::Teco];
const SSIM: [SsimConvention; 4] = [
    SsimConvention::Teco,
    SsimConvention::Cv2Valid,
    SsimConvention::SkimageGaussian,
    SsimConvention::SkimageUniform7,
];

#[test]
fn identical_videos() {
    let video = video([2, 3, 2, 12, 13], 1);
    assert_eq!(numbers(&psnr(&video, &video, PsnrConvention::Cap100).unwrap()), [100.0, 100.0]);
    assert_eq!(numbers(&psnr(&video, &video, PsnrConvention::Teco).unwrap()), [f64::INFINITY; 2]);
    for convention in SSIM {
        for value in numbers(&ssim(&video, &video, convention).unwrap()) {
            assert!((value - 1.0).abs() < 1e-12, "{convention}: {value}");
        }
    }
}

#[test]
fn black_against_white() {
    let white = Tensor::ones([1, 3, 2, 16, 16], (Kind::Float, Device::Cpu));
    for convention in PSNR {
        assert!(number(&psnr(&-&white, &white, convention).unwrap()).abs() < 1e-12);
    }
    // The value that common_metrics prints in its demonstration.
    assert!((number(&ssim(&-&white, &white, SsimConvention::Cv2Valid).unwrap()) - 9.999e-5).abs() < 1e-8);
}

#[test]
fn a_known_error_has_a_known_psnr() {
    let half = Tensor::zeros([1, 3, 1, 4, 4], (Kind::Float, Device::Cpu));
    // 0.2 on [-1, 1] is 0.1 on [0, 1]: 20 dB.
    for convention in PSNR {
        assert!((number(&psnr(&(&half + 0.2), &half, convention).unwrap()) - 20.0).abs() < 1e-5);
    }
}

#[test]
fn psnr_is_a_mean_over_frames_not_of_errors() {
    let theirs = Tensor::zeros([1, 1, 2, 4, 4], (Kind::Double, Device::Cpu));
    let ours = Tensor::from_slice(&[0.2, 0.02]).view([1, 1, 2, 1, 1]).expand_as(&theirs);
    assert!((number(&psnr(&ours, &theirs, PsnrConvention::Teco).unwrap()) - 30.0).abs() < 1e-9);
    let per_frame = numbers(&psnr_per_frame(&ours, &theirs, PsnrConvention::Teco).unwrap().view(-1));
    assert!((per_frame[0] - 20.0).abs() < 1e-9 && (per_frame[1] - 40.0).abs() < 1e-9, "{per_frame:?}");
}

#[test]
fn the_mean_colour_is_the_best_single_colour() {
    let video = video([2, 3, 3, 8, 8], 2);
    let baseline = numbers(&mean_colour_psnr(&video, PsnrConvention::Teco).unwrap());
    assert_eq!(mean_colour(&video).size(), video.size());
    let gray = numbers(&psnr(&(mean_colour(&video) + 0.05), &video, PsnrConvention::Teco).unwrap());
    assert!(baseline.iter().zip(&gray).all(|(mean, other)| mean > other), "{baseline:?} {gray:?}");
}

#[test]
fn the_gaussian_conventions_are_one_and_the_uniform_another() {
    let (x, y) = (video([1, 3, 2, 20, 17], 3), video([1, 3, 2, 20, 17], 4));
    let values: Vec<f64> =
        SSIM.iter().map(|&convention| number(&ssim(&x, &y, convention).unwrap())).collect();
    assert!(values[0] == values[1] && values[1] == values[2] && values[2] != values[3], "{values:?}");
}

#[test]
fn ranges_do_not_matter_once_named() {
    let (x, y) = (video([1, 3, 2, 12, 12], 5), video([1, 3, 2, 12, 12], 6));
    let bytes = |video: &Tensor| (video + 1.0) * 127.5;
    let pairs = [
        (
            psnr_per_frame(&x, &y, PsnrConvention::Teco),
            psnr_per_frame_up_to(255.0, &bytes(&x), &bytes(&y), PsnrConvention::Teco),
        ),
        (
            ssim_per_frame(&x, &y, SsimConvention::Teco),
            ssim_per_frame_up_to(255.0, &bytes(&x), &bytes(&y), SsimConvention::Teco),
        ),
    ];
    for (ours, theirs) in pairs {
        assert!(number(&(ours.unwrap() - theirs.unwrap()).abs().max()) < 1e-4);
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let good = video([1, 3, 2, 12, 12], 7);
    let convention = PsnrConvention::Cap100;
    let message = refusal(psnr(&((&good + 1.0) * 127.5), &good, convention));
    assert!(message.contains("ours") && message.contains("values in [-1, 1]"), "{message}");
    let message = refusal(psnr(&good, &good.g_mul_scalar(f64::NAN), convention));
    assert!(message.contains("theirs") && message.contains("NaN"), "{message}");
    let message = refusal(psnr(&good, &good.narrow(2, 0, 1), convention));
    assert!(message.contains("[1, 3, 1, 12, 12]") && message.contains("[1, 3, 2, 12, 12]"), "{message}");
    assert!(refusal(psnr(&good.get(0), &good.get(0), convention)).contains("[B, C, T, H, W]"));
    assert!(refusal(psnr(&good.to_kind(Kind::Int), &good, convention)).contains("float"));
    assert!(refusal(psnr_per_frame_up_to(0.0, &good, &good, convention)).contains("max_value"));
    let small = good.narrow(3, 0, 10);
    assert!(refusal(ssim(&small, &small, SsimConvention::Teco)).contains("11 × 11"));
    assert!(ssim(&small, &small, SsimConvention::SkimageUniform7).is_ok());
    assert!(refusal(ssim_per_frame_up_to(-1.0, &good, &good, SsimConvention::Teco)).contains("data_range"));
}

#[test]
fn a_uniform_codebook_has_full_perplexity() {
    let size = 1 << 18;
    let mut usage = CodebookUsage::new(size).unwrap();
    usage.add(&Tensor::arange(size, (Kind::Int64, Device::Cpu)).view([4, 64, 32, 32])).unwrap();
    assert_eq!(usage.used_share(), 1.0);
    assert!((usage.perplexity() / size as f64 - 1.0).abs() < 1e-9);
    assert_eq!((usage.used(), usage.tokens()), (size as u64, size as u64));
}

#[test]
fn a_vocabulary_may_be_far_larger_than_memory() {
    let mut usage = CodebookUsage::new(1 << 60).unwrap();
    usage.add(&Tensor::from_slice(&[(1i64 << 60) - 1, 0, 0, 0])).unwrap();
    assert_eq!(usage.used(), 2);
    assert_eq!(usage.counts().collect::<Vec<_>>(), [(0, 3), ((1 << 60) - 1, 1)]);
    assert!(usage.perplexity() < 2.0);
    assert!(usage.histogram().is_err());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    assert!(refusal(CodebookUsage::new(0)).contains("vocabulary_size"));
    let mut usage = CodebookUsage::new(8).unwrap();
    for bad in [8, -1] {
        assert!(refusal(usage.add(&Tensor::from_slice(&[3i64, bad]))).contains(&format!("id {bad}")));
    }
    assert!(refusal(usage.add(&Tensor::from_slice(&[0.5f32]))).contains("int64"));
    assert_eq!((usage.tokens(), usage.used()), (0, 0));
    assert_eq!(usage.perplexity(), 1.0);
}

#[test]
fn compression_figures_of_the_papers_grid() {
    let compression = Compression { time: 4, height: 8, width: 8, bits_per_token: 18.0 };
    let shape = VideoShape { batch: 3, channels: 3, frames: 17, height: 128, width: 128 };
    let figures = figures(&compression, shape).unwrap();
    assert_eq!((figures.tokens, figures.bits), (1280, 23040.0));
    assert!((figures.bits_per_pixel * figures.ratio_to_rgb24 - 24.0).abs() < 1e-12);
    assert!((figures.ratio_to_rgb24 - (17 * 128 * 128 * 24) as f64 / 23040.0).abs() < 1e-9);
    assert!((bits_per_dimension(8.0 * std::f64::consts::LN_2, 4).unwrap() - 2.0).abs() < 1e-12);
    assert!(bits_per_dimension(1.0, 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fidelity_is_symmetric_and_falls_with_noise(seed in 0u64..1000, height in 11i64..16, frames in 1i64..3) {
        let shape = [2, 3, frames, height, 12];
        let x = video(shape, seed);
        let noise = video(shape, seed + 1);
        let near = (&x * 0.9) + &noise * 0.05;
        let far = (&x * 0.5) + &noise * 0.5;
        for convention in PSNR {
            let there = psnr(&x, &near, convention).unwrap();
            prop_assert_eq!(numbers(&there), numbers(&psnr(&near, &x, convention).unwrap()));
            prop_assert!(number(&(there - psnr(&x, &far, convention).unwrap()).min()) > 0.0);
        }
        for convention in SSIM {
            let there = ssim(&x, &near, convention).unwrap();
            let back = ssim(&near, &x, convention).unwrap();
            prop_assert!(number(&(&there - back).abs().max()) < 1e-12);
            prop_assert!(number(&(there - ssim(&x, &far, convention).unwrap()).min()) > 0.0);
        }
    }

    #[test]
    fn usage_does_not_depend_on_batches(ids in proptest::collection::vec(0i64..50, 1..200), cut in 0usize..200) {
        let cut = cut.min(ids.len());
        let mut whole = CodebookUsage::new(50).unwrap();
        whole.add(&Tensor::from_slice(&ids)).unwrap();
        let mut parts = CodebookUsage::new(50).unwrap();
        parts.add(&Tensor::from_slice(&ids[cut..])).unwrap();
        parts.add(&Tensor::from_slice(&ids[..cut])).unwrap();
        prop_assert_eq!(&whole, &parts);
        prop_assert!(whole.perplexity() >= 1.0 - 1e-9 && whole.perplexity() <= whole.used() as f64 + 1e-9);
        prop_assert_eq!(whole.histogram().unwrap().sum(Kind::Int64).int64_value(&[]), ids.len() as i64);
    }
}
