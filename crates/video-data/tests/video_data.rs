//! Clips in and out, on files that ffmpeg makes and on damaged ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::{Kind, Tensor};
use video_data::{
    ClipConfig, ClipSize, DataConfig, DecodeOptions, Error, Fit, Loader, LoaderConfig, Size, Split,
    VideoReader, open, read_image, read_video, write_gif, write_mp4, write_png,
};

fn ramp(frames: i64, height: i64, width: i64) -> Tensor {
    let x = Tensor::linspace(-0.8, 0.8, width, (Kind::Float, tch::Device::Cpu)).view([1, 1, 1, width]);
    let t = Tensor::linspace(-0.2, 0.2, frames, (Kind::Float, tch::Device::Cpu)).view([1, frames, 1, 1]);
    (x + t).expand([3, frames, height, width], false)
}

fn config(source: &Path, frames: i64, size: i64) -> DataConfig {
    let clip = ClipConfig { frames, size: ClipSize::Square(size), frame_rate: None };
    DataConfig { source: source.display().to_string(), clip, flip: false, held_out: 0.25 }
}

#[test]
fn mp4_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ramp.mp4");
    let video = ramp(12, 48, 64);
    write_mp4(&path, &video, 10.0).unwrap();
    let back = read_video(&path, &DecodeOptions::default()).unwrap();
    assert_eq!(back.size(), [1, 3, 12, 48, 64]);
    let error = (back.squeeze_dim(0) - &video).abs().mean(Kind::Float).double_value(&[]);
    assert!(error < 0.02, "{error}");
    let size = Some(Size { height: 32, width: 32, fit: Fit::Cover });
    let options = DecodeOptions { start_seconds: 0.5, frame_rate: Some(5.0), max_frames: Some(3), size };
    assert_eq!(read_video(&path, &options).unwrap().size(), [1, 3, 3, 32, 32]);
}

#[test]
fn pictures_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ramp.png");
    let video = ramp(1, 20, 30);
    write_png(&path, &video.select(1, 0)).unwrap();
    let back = read_image(&path, None).unwrap().squeeze_dim(0);
    assert!((back - &video).abs().max().double_value(&[]) < 0.005);
    write_gif(&folder.path().join("ramp.gif"), &ramp(4, 20, 30), 8.0).unwrap();
    let gif = read_video(&folder.path().join("ramp.gif"), &DecodeOptions::default()).unwrap();
    assert_eq!(gif.size(), [1, 3, 4, 20, 30]);
}

#[test]
fn damaged_files_are_one_line_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let text = file("text.mp4", b"this is no video\n");
    let empty = file("empty.mp4", b"");
    for path in [&text, &empty] {
        let error = VideoReader::open(path, &DecodeOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let missing = VideoReader::open(&folder.path().join("none.mp4"), &DecodeOptions::default()).unwrap_err();
    assert!(matches!(missing, Error::Missing(_)));
    let all = open(&config(folder.path(), 3, 16), Split::Train, 0).map(|_| ()).unwrap_err();
    assert!(matches!(all, Error::AllUnreadable { count: 2, .. }), "{all}");
    write_mp4(&folder.path().join("good.mp4"), &ramp(24, 32, 32), 10.0).unwrap();
    let source = open(&config(folder.path(), 3, 16), Split::Train, 0).unwrap();
    assert_eq!(source.skipped(), 2);
}

#[test]
fn batches_depend_on_their_number_alone() {
    let source: Arc<dyn video_data::ClipSource> =
        Arc::from(open(&config(Path::new("shapes"), 3, 16), Split::Train, 7).unwrap());
    let batches = |workers, position, count| -> Vec<Tensor> {
        let config = LoaderConfig { batch_size: 2, workers, prefetch: 3, seed: 7 };
        let mut loader = Loader::new(source.clone(), config, position).unwrap();
        (0..count).map(|_| loader.next().unwrap().video).collect()
    };
    let one = batches(1, 0, 6);
    assert_eq!(one, batches(3, 0, 6));
    assert_eq!(one[4..], batches(2, 4, 2));
}
