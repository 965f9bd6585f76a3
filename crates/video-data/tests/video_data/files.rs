//! Reading and writing single files.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use video_data::{
    DecodeOptions, Error, Fit, Size, VideoReader, VideoWriter, crop_video, ffmpeg_path, is_image, pad_video,
    probe, read_image, read_video, write_gif, write_mp4, write_png,
};

use crate::{ramp, steps};

fn media(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/media").join(name);
    path.exists().then_some(path)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn mp4_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ramp.mp4");
    let video = ramp(12, 48, 64);
    write_mp4(&path, &video, 10.0).unwrap();
    let info = probe(&path).unwrap();
    assert_eq!((info.width, info.height, info.frame_rate), (64, 48, 10.0));
    let back = read_video(&path, &DecodeOptions::default()).unwrap();
    assert_eq!(back.size(), [1, 3, 12, 48, 64]);
    let error = (back.squeeze_dim(0) - &video).abs().mean(Kind::Float).double_value(&[]);
    assert!(error < 0.02, "{error}");
    // Odd sizes are padded, as H.264 wants even ones.
    write_mp4(&path, &ramp(3, 15, 17), 10.0).unwrap();
    assert_eq!(read_video(&path, &DecodeOptions::default()).unwrap().size(), [1, 3, 3, 16, 18]);
    assert_eq!(names(folder.path()), ["ramp.mp4"]);
}

#[test]
fn seeking_and_other_frame_rates_give_the_frames_of_those_times() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steps.mp4");
    write_mp4(&path, &steps(24, 32, 48), 10.0).unwrap();
    let read = |start_seconds, frame_rate, max_frames| -> Vec<i64> {
        let size = Some(Size { height: 16, width: 16, fit: Fit::Cover });
        let options = DecodeOptions { start_seconds, frame_rate, max_frames, size };
        let video = (read_video(&path, &options).unwrap() + 1.0) * (127.5 / 5.0);
        assert_eq!(video.size()[3..], [16, 16]);
        let levels = video.mean_dim([0i64, 1, 3, 4].as_slice(), false, Kind::Float);
        Vec::<f32>::try_from(levels).unwrap().iter().map(|level| level.round() as i64).collect()
    };
    assert_eq!(read(0.0, None, None), (0..24).collect::<Vec<_>>());
    assert_eq!(read(1.2, None, Some(3)), [12, 13, 14]);
    let halved = read(0.0, Some(5.0), None);
    assert_eq!(halved.len(), 12);
    assert!(halved.windows(2).all(|pair| pair[1] - pair[0] == 2), "{halved:?}");
    let doubled = read(0.0, Some(20.0), None);
    assert!(
        (47..=48).contains(&doubled.len()) && doubled.windows(2).all(|pair| pair[1] - pair[0] <= 1),
        "{doubled:?}"
    );
}

#[test]
fn a_covering_fit_cuts_and_a_stretch_keeps_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.mp4");
    write_mp4(&path, &ramp(2, 32, 96), 10.0).unwrap();
    let range = |fit| {
        let options =
            DecodeOptions { size: Some(Size { height: 32, width: 32, fit }), ..DecodeOptions::default() };
        let video = read_video(&path, &options).unwrap();
        video.max().double_value(&[]) - video.min().double_value(&[])
    };
    // The middle third of a ramp has a third of its contrast.
    let (cover, stretch) = (range(Fit::Cover), range(Fit::Stretch));
    assert!(cover < 0.5 * stretch, "{cover} {stretch}");
}

#[test]
fn pictures_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ramp.png");
    let video = ramp(1, 20, 30);
    write_png(&path, &video.select(1, 0)).unwrap();
    let back = read_image(&path, None).unwrap().squeeze_dim(0);
    assert!((back - &video).abs().max().double_value(&[]) < 0.005);
    let small = read_image(&path, Some(Size { height: 8, width: 8, fit: Fit::Cover })).unwrap();
    assert_eq!(small.size(), [1, 3, 1, 8, 8]);
    write_gif(&folder.path().join("ramp.gif"), &ramp(4, 20, 30), 8.0).unwrap();
    let gif = read_video(&folder.path().join("ramp.gif"), &DecodeOptions::default()).unwrap();
    assert_eq!(gif.size(), [1, 3, 4, 20, 30]);
    assert_eq!(names(folder.path()), ["ramp.gif", "ramp.png"]);
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no such folder").join("x");
    let video = ramp(3, 16, 16);
    for error in [
        write_png(&nowhere, &video.select(1, 0)).unwrap_err(),
        write_gif(&nowhere, &video, 8.0).unwrap_err(),
        write_mp4(&nowhere, &video, 8.0).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unwritable { .. }) && !error.to_string().contains('\n'), "{error}");
    }
    let path = folder.path().join("x.mp4");
    std::fs::write(&path, "what was there").unwrap();
    let mut writer = VideoWriter::create(&path, 16, 16, 8.0).unwrap();
    writer.push(&video).unwrap();
    assert!(matches!(writer.push(&ramp(1, 8, 8)).unwrap_err(), Error::Shape { .. }));
    drop(writer);
    assert!(matches!(write_png(&path, &video).unwrap_err(), Error::Shape { .. }));
    for odd in [Tensor::from(1.0), ramp(2, 4, 4).narrow(3, 0, 0)] {
        assert!(matches!(write_gif(&path, &odd, 8.0).unwrap_err(), Error::Shape { .. }));
        assert!(matches!(write_mp4(&path, &odd, 8.0).unwrap_err(), Error::Shape { .. }));
    }
    assert_eq!(names(folder.path()), ["x.mp4"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
}

#[test]
fn turned_videos_and_pictures_are_read_upright() {
    let folder = tempfile::tempdir().unwrap();
    let (flat, turned) = (folder.path().join("flat.mp4"), folder.path().join("turned.mp4"));
    write_mp4(&flat, &ramp(3, 32, 64), 10.0).unwrap();
    let status = std::process::Command::new(ffmpeg_path().unwrap())
        .args(["-loglevel", "error", "-display_rotation", "90", "-i"])
        .arg(&flat)
        .args(["-c", "copy"])
        .arg(&turned)
        .status()
        .unwrap();
    assert!(status.success());
    let info = probe(&turned).unwrap();
    assert_eq!((info.width, info.height), (32, 64));
    let video = read_video(&turned, &DecodeOptions::default()).unwrap();
    assert_eq!(video.size(), [1, 3, 3, 64, 32]);
    // What got brighter to the right now does upwards.
    let mean = |row: i64| video.select(3, row).mean(Kind::Float).double_value(&[]);
    assert!(mean(4) > mean(60) + 0.8, "{} {}", mean(4), mean(60));
}

#[test]
fn damaged_files_are_one_line_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut bad = vec![
        file("text.mp4", b"this is no video\n"),
        file("empty.mp4", b""),
        file("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"),
        folder.path().to_path_buf(),
    ];
    let mut sound =
        b"RIFF\x24\x10\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data".to_vec();
    sound.extend(4096u32.to_le_bytes());
    sound.extend([128; 4096]);
    bad.push(file("sound.mp4", &sound));
    let error = probe(&bad[4]).unwrap_err();
    assert!(error.to_string().contains("no video, but sound"), "{error}");
    bad.extend(media("corrupted_1280x720.mp4"));
    for path in &bad {
        let error = read_video(path, &DecodeOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let missing = VideoReader::open(&folder.path().join("none.mp4"), &DecodeOptions::default()).unwrap_err();
    assert!(matches!(missing, Error::Missing(_)));
    // Cut short behind its index: the beginning can be read, the whole cannot, and never silently less.
    let noise = (Tensor::rand([3, 40, 64, 64], (Kind::Float, tch::Device::Cpu)) - 0.5) * 2.0;
    let whole = folder.path().join("whole.mp4");
    write_mp4(&whole, &noise, 10.0).unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    let cut = file("cut.mp4", &bytes[..bytes.len() / 2]);
    let error = read_video(&cut, &DecodeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("cut short after"), "{error}");
    let options = DecodeOptions { max_frames: Some(4), ..DecodeOptions::default() };
    assert_eq!(read_video(&cut, &options).unwrap().size(), [1, 3, 4, 64, 64]);
    let image = file("x.png", b"\x89PNG\r\n\x1a\nand no more");
    assert!(matches!(read_image(&image, None).unwrap_err(), Error::Unreadable { .. }));
}

#[test]
fn containers_of_all_kinds_are_read() {
    let sizes = [
        ("arm_wrestling_340x256.mp4", (256, 340)),
        ("basketball_320x240.avi", (240, 320)),
        ("pancake_426x240.mkv", (240, 426)),
    ];
    for (name, (height, width)) in sizes {
        let Some(path) = media(name) else { continue };
        let options = DecodeOptions { max_frames: Some(2), ..DecodeOptions::default() };
        assert_eq!(read_video(&path, &options).unwrap().size(), [1, 3, 2, height, width], "{name}");
    }
    for entry in media("images").iter().flat_map(|folder| folder.read_dir().unwrap()) {
        let path = entry.unwrap().path();
        if is_image(&path) {
            let size = Size { height: 24, width: 32, fit: Fit::Cover };
            assert_eq!(
                read_image(&path, Some(size)).unwrap().size(),
                [1, 3, 1, 24, 32],
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn padding_is_cropped_back() {
    let video = ramp(5, 6, 7).unsqueeze(0);
    let padded = pad_video(&video, 9, 8, 8).unwrap();
    assert_eq!(padded.size(), [1, 3, 9, 8, 8]);
    assert_eq!(padded.select(2, 8), padded.select(2, 4));
    assert_eq!(crop_video(&padded, 5, 6, 7).unwrap(), video);
    assert!(matches!(pad_video(&video, 4, 8, 8).unwrap_err(), Error::Shape { .. }));
    assert!(matches!(crop_video(&video, 6, 6, 7).unwrap_err(), Error::Shape { .. }));
}
