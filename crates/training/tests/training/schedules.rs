//! Schedules and the config's own checks.

use proptest::prelude::*;
use training::{EmaConfig, Schedule, TrainConfig};

fn any_schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        Just(Schedule::Constant {}),
        Just(Schedule::Cosine {}),
        (0.0..0.9).prop_map(|hold| Schedule::Linear { hold }),
        (0.0..0.9).prop_map(|hold| Schedule::Exponential { hold }),
        (1.0..1e4).prop_map(|timescale| Schedule::InverseSqrt { timescale }),
        (0.1..1.0, 1u64..50, 1u64..50)
            .prop_map(|(gamma, a, b)| Schedule::Step { milestones: vec![a, a + b], gamma }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_schedule_rises_to_its_peak_and_falls_to_its_end(
        schedule in any_schedule(), steps in 1u64..200, warmup_steps in 0u64..50, warmup_start in 0.0f64..1.0,
    ) {
        let config = TrainConfig {
            steps, warmup_steps, warmup_start, schedule,
            learning_rate: 1e-2, min_learning_rate: 1e-4, ..TrainConfig::default()
        };
        config.validate().unwrap();
        let rate = |step| config.learning_rate_at("model", step);
        for step in 0..steps + warmup_steps + 10 {
            prop_assert!((0.0..=1e-2 + 1e-12).contains(&rate(step)));
            if step + 1 < warmup_steps {
                prop_assert!(rate(step + 1) >= rate(step));
            } else if step >= warmup_steps {
                prop_assert!(rate(step + 1) <= rate(step) + 1e-12 && rate(step) >= 1e-4 - 1e-12);
            }
        }
        if warmup_steps > 0 {
            prop_assert!((rate(0) - 1e-2 * warmup_start).abs() < 1e-12);
        }
        let reaches_end = matches!(
            config.schedule,
            Schedule::Cosine {} | Schedule::Linear { .. } | Schedule::Exponential { .. }
        );
        if reaches_end {
            prop_assert!((rate(warmup_steps + steps) - 1e-4).abs() < 1e-12);
        }
        let written = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<TrainConfig>(&written).unwrap(), config);
    }

    #[test]
    fn the_averages_decay_warms_up_to_its_value(decay in 0.0f64..1.0, update in 1u64..100_000) {
        let warm = EmaConfig { decay, warmup: true };
        prop_assert!(warm.decay_at(update) <= decay);
        prop_assert!(warm.decay_at(update) <= warm.decay_at(update + 1));
        prop_assert_eq!(EmaConfig { decay, warmup: false }.decay_at(update), decay);
    }
}

#[test]
fn known_points() {
    let base = TrainConfig { steps: 110, warmup_steps: 10, learning_rate: 1.0, ..TrainConfig::default() };
    let at =
        |schedule: Schedule, step| TrainConfig { schedule, ..base.clone() }.learning_rate_at("model", step);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    close(at(Schedule::Cosine {}, 5), 0.5);
    close(at(Schedule::Cosine {}, 60), 0.5);
    close(at(Schedule::Linear { hold: 0.2 }, 29), 1.0);
    close(at(Schedule::Linear { hold: 0.2 }, 70), 0.5);
    close(at(Schedule::Step { milestones: vec![50, 80], gamma: 0.1 }, 80), 0.01);
    close(at(Schedule::InverseSqrt { timescale: 10.0 }, 40), 0.5);
    // TECO's cosine over steps 5,000 to 995,000 of a million.
    let teco = TrainConfig {
        steps: 1_000_000,
        warmup_steps: 5000,
        decay_steps: Some(990_000),
        ..TrainConfig::default()
    };
    close(teco.learning_rate_at("model", 0), 0.0);
    close(teco.learning_rate_at("model", 500_000), 0.5e-4);
    close(teco.learning_rate_at("model", 999_000), 0.0);
}

#[test]
fn bad_values_are_named() {
    let field = |text: &str| {
        let config: TrainConfig = serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())
    };
    for (text, names) in [
        (r#"{"steps": 0}"#, "steps = 0"),
        (r#"{"beta2": 1}"#, "beta2 = 1"),
        (r#"{"learning_rate": -1}"#, "learning_rate = -1"),
        (r#"{"min_learning_rate": 1}"#, "min_learning_rate = 1"),
        (r#"{"ema": {"decay": 2}}"#, "ema.decay = 2"),
        (r#"{"clip_norm": 0}"#, "clip_norm = 0"),
        (r#"{"schedule": {"kind": "linear", "hold": 1}}"#, "schedule.hold = 1"),
        (r#"{"schedule": {"kind": "step", "milestones": [3, 2], "gamma": 1}}"#, "schedule.milestones"),
        (r#"{"schedule": {"kind": "exponential"}}"#, "min_learning_rate = 0"),
        (r#"{"schedule": {"kind": "constant", "hold": 1}}"#, "hold"),
        (r#"{"parts": {"critic": {"eps": 0}}}"#, "parts.critic.eps = 0"),
        (r#"{"epochs": 3}"#, "epochs"),
    ] {
        let error = field(text).unwrap_err();
        assert!(error.contains(names), "{text}: {error}");
    }
    assert!(
        field(r#"{"schedule": {"kind": "cosine"}, "parts": {"critic": {"learning_rate": 1e-3}}}"#).is_ok()
    );
}
