use maskgit::MaskSchedule;
use maskgit::mask::{MASK, MaskRule, mask_by_score};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn schedules() -> impl Strategy<Value = MaskSchedule> {
    prop_oneof![
        Just(MaskSchedule::Uniform),
        Just(MaskSchedule::Cosine),
        Just(MaskSchedule::Log),
        Just(MaskSchedule::Exp),
        Just(MaskSchedule::Sigmoid { start: -3.0, end: 3.0, tau: 0.7 }),
        Just(MaskSchedule::Poly(vec![-1.0, 0.0, 1.0])),
        (0.2f32..5.0).prop_map(MaskSchedule::Pow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_schedule_falls_from_all_to_nothing(schedule in schedules(), tokens in 2i64..5000) {
        let ratio = |r: f32| schedule.ratio(r, tokens).unwrap();
        prop_assert!(ratio(0.0) >= 1.0 - 1.0 / tokens as f32 - 1e-5);
        prop_assert!(ratio(1.0) <= 2e-6);
        let mut last = f32::INFINITY;
        for step in 0..=64 {
            let now = ratio(step as f32 / 64.0);
            prop_assert!((1e-6..=1.0).contains(&now) && now <= last + 1e-6);
            last = now;
        }
    }

    #[test]
    fn counts_fall_by_one_at_least_until_one_is_left(schedule in schedules(), tokens in 1i64..2000, steps in 1i64..40) {
        let counts = schedule.counts(tokens, steps).unwrap();
        prop_assert_eq!(counts.len() as i64, steps);
        prop_assert_eq!(*counts.last().unwrap(), 1);
        for pair in counts.windows(2) {
            prop_assert!(pair[1] < pair[0] || pair == [1, 1]);
        }
    }

    #[test]
    fn a_schedule_is_the_word_that_it_prints(schedule in schedules()) {
        prop_assert_eq!(schedule.to_string().parse::<MaskSchedule>().unwrap(), schedule);
    }

    #[test]
    fn exactly_the_share_is_masked(batch in 1i64..4, side in 1i64..6, ratio in 0.0f32..1.0) {
        let _alone = crate::alone();
        let ids = Tensor::randint(50, [batch, 2, side, side], (Kind::Int64, Device::Cpu));
        let scores = ids.to_kind(Kind::Float).rand_like();
        let masked = mask_by_score(&ids, &scores, &[ratio], MaskRule::default()).unwrap();
        let expected = ((2 * side * side) as f32 * ratio.max(1e-6)).floor().max(1.0) as i64;
        for sample in 0..batch {
            let count = masked.inputs.get(sample).eq(MASK).sum(Kind::Int64).int64_value(&[]);
            prop_assert_eq!(count, expected);
        }
        let kept = masked.inputs.ne(MASK);
        prop_assert_eq!(masked.inputs.masked_select(&kept), ids.masked_select(&kept));
        prop_assert_eq!(&masked.targets, &ids);
    }
}

#[test]
fn bad_words_and_numbers_are_refused() {
    for word in
        ["cosin", "pow", "pow-1", "pow0", "poly:", "poly:1,x", "pownan", "sigmoid:1", "sigmoid:3,-3,1"]
    {
        assert!(word.parse::<MaskSchedule>().is_err(), "{word}");
    }
    assert!(MaskSchedule::Cosine.ratio(1.5, 4).is_err());
    assert!(MaskSchedule::Cosine.ratio(0.5, 0).is_err());
    assert!(MaskSchedule::Cosine.counts(4, 0).is_err());
    let ids = Tensor::zeros([1, 1, 2, 2], (Kind::Int64, Device::Cpu));
    let scores = ids.to_kind(Kind::Float);
    assert!(mask_by_score(&ids, &scores, &[1.5], MaskRule::default()).is_err());
    assert!(mask_by_score(&ids, &scores, &[0.5; 3], MaskRule::default()).is_err());
}
