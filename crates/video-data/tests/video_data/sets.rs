//! Data sets of files: folders, pictures, shards, splits, sizes, and what is damaged.

use std::collections::BTreeSet;
use std::path::Path;

use video_data::{
    ClipConfig, ClipSource, DataConfig, Error, HeldOutBy, Split, open, spread_clips, write_mp4, write_png,
};

use crate::{config, ramp, shown, steps};

fn all(source: &dyn ClipSource) -> Vec<video_data::Clip> {
    (0..source.len().unwrap()).map(|index| source.clip(index).unwrap()).collect()
}

/// The files that a split's clips come from.
fn files_of(config: &DataConfig, split: Split) -> BTreeSet<String> {
    let source = open(config, split, 0).unwrap();
    all(&*source).into_iter().map(|clip| clip.name.split(" from ").next().unwrap().to_string()).collect()
}

#[test]
fn the_end_of_a_video_is_held_out_in_memory_or_not() {
    let folder = tempfile::tempdir().unwrap();
    write_mp4(&folder.path().join("steps.mp4"), &steps(40, 32, 48), 10.0).unwrap();
    for memory in [1024, 0] {
        let config = DataConfig { memory, ..config(folder.path(), 5, 16) };
        let held_out = open(&config, Split::HeldOut, 0).unwrap();
        let frames: Vec<Vec<i64>> = all(&*held_out).iter().map(shown).collect();
        assert_eq!(frames, [(30..35).collect::<Vec<_>>(), (35..40).collect()], "memory = {memory}");
        let train = open(&config, Split::Train, 0).unwrap();
        assert_eq!(train.len(), Some(6));
        let frames: Vec<Vec<i64>> = all(&*train).iter().map(shown).collect();
        assert_eq!(frames[4], (20..25).collect::<Vec<_>>(), "memory = {memory}");
        for seed in 0..12 {
            let frames = shown(&train.varied(seed % 6, seed).unwrap());
            assert!(frames[4] < 30 && frames.windows(2).all(|pair| pair[1] == pair[0] + 1), "{frames:?}");
            assert_eq!(shown(&held_out.varied(0, seed).unwrap())[0], 30);
        }
    }
    // At half the rate there are half as many frames, and one clip of each part.
    let mut config = config(folder.path(), 5, 16);
    config.clip.frame_rate = Some(5.0);
    for memory in [1024, 0] {
        config.memory = memory;
        let frames: Vec<i64> = shown(&open(&config, Split::HeldOut, 0).unwrap().clip(0).unwrap());
        assert!((29..=31).contains(&frames[0]), "{frames:?}");
        assert!(frames.windows(2).all(|pair| pair[1] == pair[0] + 2), "memory = {memory}: {frames:?}");
    }
}

#[test]
fn whole_files_are_held_out_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |number: usize| {
        let class = folder.path().join(["cats", "dogs"][number % 2]);
        std::fs::create_dir_all(&class).unwrap();
        write_png(&class.join(format!("{number}.png")), &ramp(1, 12, 12).select(1, 0)).unwrap();
    };
    (0..40).for_each(write);
    let config = config(folder.path(), 1, 12);
    let (train, held_out) = (files_of(&config, Split::Train), files_of(&config, Split::HeldOut));
    assert!(train.is_disjoint(&held_out) && train.len() + held_out.len() == 40);
    assert!((3..=18).contains(&held_out.len()), "{}", held_out.len());
    // Files stay on their side when others come.
    (40..60).for_each(write);
    assert!(files_of(&config, Split::HeldOut).is_superset(&held_out));
    assert!(files_of(&config, Split::Train).is_superset(&train));
    let source = open(&config, Split::Train, 0).unwrap();
    for clip in all(&*source) {
        assert_eq!(clip.class, Some(i64::from(clip.name.starts_with("dogs/"))), "{}", clip.name);
    }
}

#[test]
fn a_folder_of_frames_is_a_video() {
    let folder = tempfile::tempdir().unwrap();
    let sequence = folder.path().join("walk");
    std::fs::create_dir(&sequence).unwrap();
    let video = steps(12, 16, 16);
    for frame in 0..12 {
        write_png(&sequence.join(format!("{frame}.png")), &video.select(1, frame)).unwrap();
    }
    for memory in [1024, 0] {
        let config = DataConfig { memory, ..config(folder.path(), 3, 16) };
        let source = open(&config, Split::Train, 0).unwrap();
        assert_eq!(source.len(), Some(3));
        assert_eq!(shown(&source.clip(2).unwrap()), [6, 7, 8]);
        assert_eq!(shown(&open(&config, Split::HeldOut, 0).unwrap().clip(0).unwrap()), [9, 10, 11]);
    }
    let error = open(&config(folder.path(), 13, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("clip.frames = 1"), "{error}");
}

#[test]
fn files_of_mixed_shapes_go_into_buckets() {
    let folder = tempfile::tempdir().unwrap();
    for (name, height, width) in [("wide", 32, 64), ("square", 40, 40), ("high", 64, 32), ("wider", 30, 90)] {
        write_mp4(&folder.path().join(format!("{name}.mp4")), &ramp(12, height, width), 10.0).unwrap();
    }
    let mut config = config(folder.path(), 3, 16);
    config.clip.buckets = vec![[12, 24], [24, 12]];
    let source = open(&config, Split::Train, 0).unwrap();
    let buckets = source.buckets();
    assert_eq!(buckets.len(), 3);
    for (bucket, size) in buckets.into_iter().zip([[16, 16], [12, 24], [24, 12]]) {
        for index in bucket {
            let clip = source.clip(index).unwrap();
            assert_eq!(clip.video.size()[2..], size, "{}", clip.name);
            assert_eq!(clip.name.starts_with("wide"), size == [12, 24], "{}", clip.name);
        }
    }
}

/// A tar shard of members.
fn shard(path: &Path, members: &[(&str, Vec<u8>)]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn shards_hold_videos_frames_and_labels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.mp4");
    write_mp4(&file, &steps(20, 16, 24), 10.0).unwrap();
    let video = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let picture = |frame: i64| {
        let file = folder.path().join("x.png");
        write_png(&file, &steps(20, 16, 16).select(1, frame)).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        bytes
    };
    let text = |text: &str| text.as_bytes().to_vec();
    shard(
        &folder.path().join("set-00.tar"),
        &[
            ("a.mp4", video.clone()),
            ("a.cls", text("7\n")),
            ("a.txt", text("grey\n")),
            ("b.json", text(r#"{ "label": 3, "actions": [0, 1, 2, 1, 0], "caption": "frames" }"#)),
            ("b.10.png", picture(11)),
            ("b.2.png", picture(3)),
            ("b.1.png", picture(2)),
            ("b.3.png", picture(4)),
            ("b.4.png", picture(5)),
            ("b.mask.png", picture(0)),
            ("b.5.png", picture(6)),
        ],
    );
    let bytes = |path: &str| std::fs::read(folder.path().join(path)).unwrap();
    shard(
        &folder.path().join("set-01.tar"),
        &[
            ("c.mp4", b"no video".to_vec()),
            ("d.cls", text("seven")),
            ("d.mp4", video.clone()),
            ("e.1.mp4", video.clone()),
            ("e.2.mp4", video.clone()),
        ],
    );
    let cut = bytes("set-00.tar");
    std::fs::write(folder.path().join("set-02.tar"), &cut[..1024]).unwrap();
    for memory in [1024, 0] {
        let source = folder.path().join("set-{00..02}.tar");
        let config = DataConfig { memory, held_out_by: Some(HeldOutBy::Time), ..config(&source, 3, 16) };
        let source = open(&config, Split::Train, 0).unwrap();
        let failures: Vec<String> = source.failures().iter().map(ToString::to_string).collect();
        assert_eq!(source.skipped(), 4, "{failures:?}");
        assert!(failures.iter().any(|f| f.contains("set-01.tar/e: two videos")), "{failures:?}");
        assert!(failures.iter().any(|f| f.contains("set-01.tar/c")), "{failures:?}");
        assert!(failures.iter().any(|f| f.contains("seven")), "{failures:?}");
        assert!(
            failures.iter().any(|f| f.contains("set-02.tar/a.mp4: the shard is cut short")),
            "{failures:?}"
        );
        let clips = all(&*source);
        assert_eq!(clips.len(), 6);
        assert_eq!((clips[0].class, clips[0].caption.as_deref()), (Some(7), Some("grey")));
        assert_eq!(shown(&clips[1]), [3, 4, 5]);
        let frames = &clips[5];
        assert_eq!((frames.class, frames.caption.as_deref()), (Some(3), Some("frames")));
        assert_eq!(shown(frames), [2, 3, 4]);
        assert_eq!(Vec::<i64>::try_from(frames.actions.as_ref().unwrap()).unwrap(), [0, 1]);
        let held_out = open(&config, Split::HeldOut, 0).unwrap();
        let last = held_out.clip(held_out.len().unwrap() - 1).unwrap();
        assert_eq!(shown(&last), [5, 6, 11]);
        assert_eq!(Vec::<i64>::try_from(last.actions.unwrap()).unwrap(), [1, 0]);
    }
    // Actions belong to the frames that the video has.
    shard(&folder.path().join("acts.tar"), &[("a.json", text(r#"{ "actions": [0, 1] }"#)), ("a.mp4", video)]);
    let mut acts = config(&folder.path().join("acts.tar"), 3, 16);
    acts.clip.frame_rate = Some(5.0);
    let error = open(&acts, Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "clip.frame_rate"), "{error}");
    std::fs::write(folder.path().join("no.tar"), [7u8; 2000]).unwrap();
    let error = open(&config(&folder.path().join("no.tar"), 3, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::AllUnreadable { .. }) && error.to_string().contains("damaged"), "{error}");
}

#[test]
fn damaged_files_are_counted_and_never_all() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.mp4"), "this is no video\n").unwrap();
    std::fs::write(folder.path().join("empty.mp4"), "").unwrap();
    let error = open(&config(folder.path(), 3, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::AllUnreadable { failures, .. } if failures.len() == 2), "{error}");
    let line = error.to_string();
    assert!(line.contains("none of 2") && line.contains("text.mp4") && line.contains("empty.mp4"), "{line}");
    assert!(!line.contains('\n'), "{line}");
    write_mp4(&folder.path().join("good.mp4"), &ramp(24, 32, 32), 10.0).unwrap();
    let source = open(&config(folder.path(), 3, 16), Split::Train, 0).unwrap();
    assert_eq!(source.skipped(), 2);
    assert!(source.failures().iter().any(|failure| failure.name.ends_with("text.mp4")));
    let (clips, failures) = spread_clips(&*source, 4).unwrap();
    assert_eq!((clips.len(), failures.len()), (4, 0));
    // Too short for a clip: left out and counted, or where all are, said so with the number.
    write_mp4(&folder.path().join("short.mp4"), &ramp(2, 32, 32), 10.0).unwrap();
    let source = open(&config(folder.path(), 3, 16), Split::Train, 0).unwrap();
    assert_eq!(source.skipped(), 3);
    assert!(source.failures().iter().any(|failure| failure.reason.contains("too short: 2 frames")));
    let error = open(&config(folder.path(), 50, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("at most 24"), "{error}");
    let error = open(&config(folder.path(), 15, 16), Split::HeldOut, 0).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("at least 30 frames"), "{error}");
    let one =
        DataConfig { held_out_by: Some(HeldOutBy::Name), ..config(&folder.path().join("good.mp4"), 3, 16) };
    assert_eq!(open(&one, Split::Train, 0).unwrap().len(), Some(8));
    let error = open(&one, Split::HeldOut, 0).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("or two files"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = open(&config(empty.path(), 3, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
    // A file whose name looks like an option or a protocol is a file.
    let odd = empty.path().join("-y concat:x, a'b.mp4");
    write_mp4(&odd, &ramp(12, 16, 16), 10.0).unwrap();
    assert_eq!(open(&config(&odd, 3, 16), Split::Train, 0).unwrap().len(), Some(3));
    assert_eq!(ClipConfig::square(3, 16).sizes(), [(16, 16)]);
}
