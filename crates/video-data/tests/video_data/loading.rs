//! The loader: the n-th batch is the n-th batch, whatever else happens.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tch::{Kind, Tensor};
use video_data::{
    Batch, Clip, ClipConfig, ClipSize, ClipSource, DataConfig, Error, Loader, LoaderConfig, Result, Split,
    open, write_mp4,
};

use crate::{config, ramp};

fn loader(source: &Arc<dyn ClipSource>, workers: usize, position: u64) -> Loader {
    Loader::new(source.clone(), LoaderConfig { batch_size: 2, workers, prefetch: 3, seed: 7 }, position)
        .unwrap()
}

fn same(a: &[Batch], b: &[Batch]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.video == b.video && a.names == b.names && a.position == b.position && a.actions == b.actions
        })
}

fn take(loader: &mut Loader, count: usize) -> Vec<Batch> {
    (0..count).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn batches_depend_on_their_number_alone() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..3i64 {
        let video = ramp(14 + 3 * number, 16, 16 + 8 * number);
        write_mp4(&folder.path().join(format!("{number}.mp4")), &video, 10.0).unwrap();
    }
    let mut files = config(folder.path(), 3, 16);
    files.clip.buckets = vec![[16, 32]];
    files.flip = true;
    let lazy = DataConfig { memory: 0, ..files.clone() };
    let world = |name: &str| DataConfig::new(name, ClipConfig::square(3, 16));
    let cropped =
        |config: &DataConfig| DataConfig { train_crop: Some(ClipSize::Rectangle([8, 12])), ..config.clone() };
    let crops = [cropped(&world("shapes")), cropped(&files)];
    for config in [world("shapes"), world("maze"), files, lazy].into_iter().chain(crops) {
        let source: Arc<dyn ClipSource> = Arc::from(open(&config, Split::Train, 7).unwrap());
        let mut one = loader(&source, 1, 0);
        let batches = take(&mut one, 8);
        assert!(same(&batches, &take(&mut loader(&source, 3, 0), 8)), "{}", config.source);
        // Saved and restored in a new process, and gone back to in the same one.
        assert_eq!(one.position(), 8);
        assert!(same(&batches[5..], &take(&mut loader(&source, 2, 5), 3)), "{}", config.source);
        one.seek(2);
        assert!(same(&batches[2..6], &take(&mut one, 4)), "{}", config.source);
        // Opened anew, the source is the same.
        let again: Arc<dyn ClipSource> = Arc::from(open(&config, Split::Train, 7).unwrap());
        assert!(same(&batches, &take(&mut loader(&again, 2, 0), 8)), "{}", config.source);
        for batch in &batches {
            assert_eq!(batch.video.size()[..3], [2, 3, 3]);
            assert!(config.train_crop.is_none() || batch.video.size()[3..] == [8, 12]);
            assert_eq!(batch.video.kind(), Kind::Float);
            assert_eq!(batch.actions.is_some(), config.source == "maze");
            assert!(batch.video.abs().max().double_value(&[]) <= 1.0);
        }
    }
}

#[test]
fn training_windows_are_slices_of_the_whole_clip() {
    let folder = tempfile::tempdir().unwrap();
    let noise = Tensor::rand([3, 8, 20, 28], (Kind::Float, tch::Device::Cpu)) * 2.0 - 1.0;
    write_mp4(&folder.path().join("noise.mp4"), &noise, 10.0).unwrap();
    let file = DataConfig {
        clip: ClipConfig { size: ClipSize::Rectangle([20, 28]), ..ClipConfig::square(4, 1) },
        ..config(folder.path(), 4, 1)
    };
    // All that is trained on is one clip, so that its time cannot vary.
    let file = DataConfig { held_out: 0.5, ..file };
    let world = |name: &str| DataConfig {
        clip: ClipConfig { size: ClipSize::Rectangle([20, 28]), ..ClipConfig::square(4, 1) },
        ..DataConfig::new(name, ClipConfig::square(4, 1))
    };
    let (rows, columns) = (9, 13);
    for config in [world("shapes"), world("maze"), file] {
        let config = DataConfig { train_crop: Some(ClipSize::Rectangle([rows, columns])), ..config };
        let train = open(&config, Split::Train, 0).unwrap();
        let whole = train.clip(0).unwrap().video;
        assert_eq!(whole.size(), [3, 4, 20, 28]);
        let slice = |top, left| whole.narrow(2, top, rows).narrow(3, left, columns);
        let mut places = BTreeSet::new();
        for seed in 0..16 {
            let window = train.varied(0, seed).unwrap().video;
            assert_eq!(window, train.varied(0, seed).unwrap().video);
            let place = (0..=20 - rows)
                .flat_map(|top| (0..=28 - columns).map(move |left| (top, left)))
                .find(|&(top, left)| window == slice(top, left));
            places.insert(place.expect("a slice of the whole clip"));
        }
        assert!(places.len() > 8, "{}: {places:?}", config.source);
        let held_out = open(&config, Split::HeldOut, 0).unwrap();
        assert_eq!(held_out.varied(0, 1).unwrap().video, held_out.clip(0).unwrap().video);
        assert_eq!(held_out.clip(0).unwrap().video.size(), [3, 4, 20, 28]);
        // As large as the clip: the clip.
        let all = DataConfig { train_crop: Some(config.clip.size), ..config.clone() };
        assert_eq!(open(&all, Split::Train, 0).unwrap().varied(0, 5).unwrap().video, whole);
    }
}

/// Clips of which every third is unreadable, or all; slow if wanted.
struct Brittle {
    all: bool,
    panics: bool,
    pause: Duration,
}

impl ClipSource for Brittle {
    fn len(&self) -> Option<u64> {
        Some(9)
    }

    fn clip(&self, index: u64) -> Result<Clip> {
        std::thread::sleep(self.pause);
        if self.all || index.is_multiple_of(3) {
            assert!(!self.panics, "a decoder's bug");
            let path = PathBuf::from(format!("{index}.mp4"));
            return Err(Error::Unreadable { path, problem: "it is damaged".into() });
        }
        let video = Tensor::full([3, 1, 2, 2], index as i64, (Kind::Uint8, tch::Device::Cpu));
        Ok(Clip { video, name: index.to_string(), class: Some(index as i64), actions: None, caption: None })
    }

    fn buckets(&self) -> Vec<Range<u64>> {
        vec![0..4, 4..9]
    }
}

#[test]
fn unreadable_clips_are_replaced_and_counted() {
    for panics in [false, true] {
        let source: Arc<dyn ClipSource> = Arc::new(Brittle { all: false, panics, pause: Duration::ZERO });
        let mut one = loader(&source, 1, 0);
        let batches = take(&mut one, 20);
        assert_eq!(one.skipped(), 3, "{:?}", one.failures());
        assert!(same(&batches, &take(&mut loader(&source, 3, 0), 20)));
        for batch in &batches {
            let classes = Vec::<i64>::try_from(batch.classes.as_ref().unwrap()).unwrap();
            assert!(classes.iter().all(|class| class % 3 != 0));
            assert!(classes.iter().all(|&class| class < 4) || classes.iter().all(|&class| class >= 4));
        }
    }
}

#[test]
fn a_source_that_is_all_damaged_is_an_error() {
    let source: Arc<dyn ClipSource> = Arc::new(Brittle { all: true, panics: false, pause: Duration::ZERO });
    let error = loader(&source, 2, 0).next().unwrap_err();
    assert!(matches!(&error, Error::AllUnreadable { failures, .. } if failures.len() == 16), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    let config = LoaderConfig { batch_size: 0, workers: 1, prefetch: 1, seed: 0 };
    assert!(matches!(Loader::new(source, config, 0).unwrap_err(), Error::Config { .. }));
}

#[test]
fn waiting_is_measured() {
    let slow: Arc<dyn ClipSource> =
        Arc::new(Brittle { all: false, panics: false, pause: Duration::from_millis(10) });
    let mut starved = loader(&slow, 1, 0);
    assert_eq!(starved.waiting_share(), 0.0);
    take(&mut starved, 5);
    assert!(starved.waiting_share() > 0.5 && starved.waited() >= Duration::from_millis(80));
    let fast: Arc<dyn ClipSource> = Arc::new(Brittle { all: false, panics: false, pause: Duration::ZERO });
    let mut fed = loader(&fast, 1, 0);
    for _ in 0..10 {
        fed.next().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fed.waiting_share() < 0.5, "{}", fed.waiting_share());
}
