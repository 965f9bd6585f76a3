//! The synthetic worlds: what they show is what they say.

use std::collections::HashSet;

use proptest::prelude::*;
use tch::{Kind, Tensor};
use video_data::worlds::FRAME_RATE;
use video_data::worlds::maze::{Action, Walk};
use video_data::worlds::shapes::{Colours, Scene, ShapesConfig};
use video_data::{ClipConfig, ClipSize, DataConfig, Error, Split, open};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_walk_is_what_its_actions_make_of_it(seed: u64, index in 0u64..1000, frames in 1usize..300) {
        let walk = Walk::new(seed, index, frames);
        prop_assert_eq!((walk.poses.len(), walk.actions.len()), (frames, frames - 1));
        for (pair, &action) in walk.poses.windows(2).zip(&walk.actions) {
            let next = walk.maze.step(pair[0], action);
            prop_assert!((next.x - pair[1].x).abs() < 1e-9 && (next.y - pair[1].y).abs() < 1e-9);
            prop_assert_eq!(next.heading, pair[1].heading);
            prop_assert!(walk.maze.is_free(next.x as usize, next.y as usize));
            // Nothing stops the walker: it knows the way.
            prop_assert!(action != Action::Forward || (next.x - pair[0].x).hypot(next.y - pair[0].y) > 0.2);
        }
        let longer = Walk::new(seed, index, frames + 50);
        prop_assert_eq!(&longer.poses[..frames], &walk.poses[..]);
    }

    #[test]
    fn nobody_gets_into_a_wall(seed: u64, actions in prop::collection::vec(0..Action::COUNT, 0..300)) {
        let walk = Walk::new(seed, 0, 1);
        let mut pose = walk.poses[0];
        for number in actions {
            pose = walk.maze.step(pose, Action::from_number(number).unwrap());
            prop_assert!(walk.maze.is_free(pose.x as usize, pose.y as usize));
        }
        prop_assert_eq!(walk.maze.render(pose, 6, 8).len(), 6 * 8 * 3);
    }
}

#[test]
fn places_are_seen_again() {
    let again = (0..20).filter(|&index| {
        let poses = Walk::new(3, index, 400).poses;
        (40..400).any(|late| {
            (0..late - 40).any(|early| {
                let (a, b) = (poses[early], poses[late]);
                a.heading == b.heading && (a.x - b.x).abs() + (a.y - b.y).abs() < 1e-9
            })
        })
    });
    assert!(again.count() >= 18);
}

#[test]
fn the_maze_has_actions_and_shapes_have_none() {
    let clip = |source: &str, split, seed, index| {
        open(&DataConfig::new(source, ClipConfig::square(6, 24)), split, seed).unwrap().clip(index).unwrap()
    };
    let maze = clip("maze", Split::Train, 0, 5);
    assert_eq!(maze.actions.as_ref().unwrap().size(), [5]);
    assert_eq!(maze.actions.as_ref().unwrap().kind(), Kind::Int64);
    for source in ["shapes", "maze"] {
        let one = clip(source, Split::Train, 0, 5);
        assert_eq!(one.video.size(), [3, 6, 24, 24]);
        assert_eq!(one.video, clip(source, Split::Train, 0, 5).video);
        assert_ne!(one.video, clip(source, Split::Train, 0, 6).video);
        assert_ne!(one.video, clip(source, Split::Train, 1, 5).video);
        let held_out = clip(source, Split::HeldOut, 0, 5);
        assert_ne!(one.video, held_out.video);
        assert_eq!(held_out.video, clip(source, Split::HeldOut, 1, 5).video);
        let spread = one.video.to_kind(Kind::Float).std(false).double_value(&[]);
        assert!(spread > 15.0, "{source}: {spread}");
    }
    assert!(clip("shapes", Split::Train, 0, 5).actions.is_none());
}

#[test]
fn shapes_are_sampled_at_the_frame_rate() {
    let clip = |frames, rate| {
        let clip = ClipConfig { frame_rate: rate, ..ClipConfig::square(frames, 24) };
        open(&DataConfig::new("shapes", clip), Split::HeldOut, 0).unwrap().clip(1).unwrap().video
    };
    let usual: Tensor = clip(5, None);
    assert_eq!(usual, clip(5, Some(FRAME_RATE)));
    // Twice as dense: every other frame is one of the usual ones, and those in between are none.
    let dense = clip(9, Some(2.0 * FRAME_RATE));
    for frame in 0..4 {
        assert_eq!(dense.select(1, 2 * frame), usual.select(1, frame));
        assert_ne!(dense.select(1, 2 * frame + 1), usual.select(1, frame));
        assert_ne!(dense.select(1, 2 * frame + 1), usual.select(1, frame + 1));
    }
    assert_eq!(clip(3, Some(0.5 * FRAME_RATE)).select(1, 2), usual.select(1, 4));
    // Half-way in time is half-way in space.
    let scene = Scene::new(&ShapesConfig::default(), 1, 2);
    assert!((2..=4).contains(&scene.shapes.len()));
    let ((a, _), (b, _), (c, _)) =
        (scene.shapes[0].centre(0.0), scene.shapes[0].centre(0.5), scene.shapes[0].centre(1.0));
    assert!((a + c - 2.0 * b).abs() < 1e-12 && a != c);
}

#[test]
fn scenes_are_drawn_from_what_the_config_says() {
    let world = ShapesConfig {
        count: [1, 1],
        radius: [0.2, 0.3],
        contrast: [0.0, 0.0],
        background: [0.3, 0.3],
        colours: Colours::Named,
    };
    let mut colours = HashSet::new();
    for index in 0..100 {
        let scene = Scene::new(&world, 5, index);
        let [shape] = &scene.shapes[..] else { panic!("one shape") };
        assert!((0.2..=0.3).contains(&shape.radius) && shape.contrast == 0.0, "{shape:?}");
        colours.insert(shape.colour_name());
        // The shape's colour and the ground's, and what is between them at the edge.
        let picture = scene.render(3.0, 40, 40);
        let (ground, inside) = ([0.3; 3], shape.colour);
        let whole = |colour: [f64; 3]| colour.map(|value| (value * 255.0 + 0.5) as u8);
        let pure =
            picture.chunks(3).filter(|&pixel| pixel == whole(ground) || pixel == whole(inside)).count();
        assert!((1200..1600).contains(&pure), "{pure} of 1600");
    }
    assert_eq!(colours.len(), 7, "{colours:?}");
    let clip = |shapes| {
        let config = DataConfig { shapes, ..DataConfig::new("shapes", ClipConfig::square(3, 24)) };
        open(&config, Split::HeldOut, 0).unwrap().clip(4).unwrap()
    };
    let caption = clip(world.clone()).caption.unwrap();
    assert_eq!(caption.split(' ').filter(|&word| word == "a").count(), 1, "{caption}");
    assert_ne!(clip(world).video, clip(ShapesConfig::default()).video);
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let base = || DataConfig::new("shapes", ClipConfig::square(4, 16));
    let clip = || ClipConfig::square(4, 16);
    let scenes = |shapes| DataConfig { shapes, ..base() };
    let refused = [
        ("clip.size", DataConfig { clip: ClipConfig::square(4, 0), ..base() }),
        ("clip.frames", DataConfig { clip: ClipConfig::square(0, 16), ..base() }),
        (
            "clip.frame_rate",
            DataConfig { clip: ClipConfig { frame_rate: Some(f64::NAN), ..clip() }, ..base() },
        ),
        (
            "clip.frame_rate",
            DataConfig {
                source: "maze".into(),
                clip: ClipConfig { frame_rate: Some(5.0), ..clip() },
                ..base()
            },
        ),
        ("train_crop", DataConfig { train_crop: Some(ClipSize::Square(17)), ..base() }),
        ("train_crop", DataConfig { train_crop: Some(ClipSize::Rectangle([16, 0])), ..base() }),
        ("held_out", DataConfig { held_out: 1.0, ..base() }),
        ("shapes.count", scenes(ShapesConfig { count: [0, 2], ..Default::default() })),
        ("shapes.count", scenes(ShapesConfig { count: [3, 2], ..Default::default() })),
        ("shapes.radius", scenes(ShapesConfig { radius: [0.1, 0.5], ..Default::default() })),
        ("shapes.contrast", scenes(ShapesConfig { contrast: [f64::NAN, 0.5], ..Default::default() })),
        ("shapes.background", scenes(ShapesConfig { background: [-0.1, 0.5], ..Default::default() })),
        ("flip", DataConfig { source: "maze".into(), flip: true, ..base() }),
        ("clip.buckets", DataConfig { clip: ClipConfig { buckets: vec![[8, 16]], ..clip() }, ..base() }),
        ("source", DataConfig { source: "no such thing".into(), ..base() }),
    ];
    for (name, config) in refused {
        let error = open(&config, Split::Train, 0).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Config { field, .. } if field == name), "{name}: {error}");
        assert!(error.to_string().starts_with("data.") && !error.to_string().contains('\n'), "{error}");
    }
    let text = r#"{ "source": "maze", "train_crop": [16, 20], "clip": { "frames": 9, "size": [32, 48] } }"#;
    let config: DataConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.sizes(Split::HeldOut), [(32, 48)]);
    assert_eq!(config.sizes(Split::Train), [(16, 20)]);
    assert_eq!(config.held_out, 0.15);
    assert!(serde_json::from_str::<DataConfig>(&text.replace("source", "sauce")).is_err());
}

#[test]
fn the_documented_example_has_every_key() {
    let guide = include_str!("../../../../docs/data-sets.md");
    let example = guide.split("```toml\n[data]\n").nth(1).unwrap().split("```").next().unwrap();
    let config: DataConfig = toml::from_str(example).unwrap();
    config.validate().unwrap();
    let serde_json::Value::Object(keys) = serde_json::to_value(&config).unwrap() else { panic!("a table") };
    let documented: toml::Table = toml::from_str(example).unwrap();
    assert!(keys.iter().all(|(key, value)| !value.is_null() && documented.contains_key(key)), "{keys:?}");
}
