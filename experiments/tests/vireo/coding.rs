//! Videos and images to token files and back.

use std::path::Path;

use predicates::prelude::*;
use tch::{Kind, Tensor};
use video_data::DecodeOptions;

use crate::{failure, files_in, trained, vireo, write_video};

fn encode(input: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = vireo();
    command.arg("encode").arg(input).arg("--checkpoint").arg(trained()).args(more);
    command
}

/// All ids of a token file.
fn ids(path: &Path) -> Tensor {
    let mut reader = experiments::token_file::Reader::open(path).unwrap();
    let grid = reader.next(i64::MAX).unwrap().unwrap();
    grid.into_ids()
}

#[test]
fn a_video_comes_back_with_its_frames_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    // 11 frames want one more for 1 + 4k... they want two; 18×22 wants 20×24.
    write_video(&video, 11, 18, 22);
    let message = failure(&mut encode(&video, &[]));
    assert!(
        message.contains("11 frames") && message.contains("--pad") && message.contains("13"),
        "{message}"
    );
    assert_eq!(files_in(folder.path()), ["clip.mp4"], "nothing half-written");

    encode(&video, &["--pad"]).assert().success().stdout(predicate::str::contains("11 frames of 18×22"));
    let tokens = folder.path().join("clip.vtok");
    assert_eq!(ids(&tokens).size(), [1, 4, 5, 6]);
    // 120 ids of 6 bits are 90 bytes; the rest is the header and the checksum.
    assert!(std::fs::metadata(&tokens).unwrap().len() < 90 + 600);

    let back = folder.path().join("back.mp4");
    vireo()
        .arg("decode")
        .arg(&tokens)
        .arg("-o")
        .arg(&back)
        .arg("--checkpoint")
        .arg(trained())
        .assert()
        .success();
    let decoded = video_data::read_video(&back, &DecodeOptions::default()).unwrap();
    assert_eq!(decoded.size(), [1, 3, 11, 18, 22]);
}

#[test]
fn an_image_is_a_clip_of_one_frame_with_the_tokens_of_a_videos_first() {
    let folder = tempfile::tempdir().unwrap();
    let (video, image) = (folder.path().join("clip.mp4"), folder.path().join("first.png"));
    write_video(&video, 5, 16, 24);
    let frames = video_data::read_video(&video, &DecodeOptions::default()).unwrap();
    video_data::write_png(&image, &frames.get(0).select(1, 0)).unwrap();
    encode(&video, &[]).assert().success();
    encode(&image, &[]).assert().success();
    let (of_video, of_image) =
        (ids(&folder.path().join("clip.vtok")), ids(&folder.path().join("first.vtok")));
    assert_eq!(of_image.size(), [1, 1, 4, 6]);
    assert!(of_image.equal(&of_video.narrow(1, 0, 1)));

    vireo()
        .arg("decode")
        .arg(folder.path().join("first.vtok"))
        .arg("--checkpoint")
        .arg(trained())
        .assert()
        .success();
    assert_eq!(video_data::read_image(&image, None).unwrap().size(), [1, 3, 1, 16, 24]);
}

#[test]
fn reconstruct_writes_a_side_by_side_and_its_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 9, 16, 16);
    let target = folder.path().join("pair.mp4");
    vireo()
        .arg("reconstruct")
        .arg(&video)
        .arg("-o")
        .arg(&target)
        .arg("--checkpoint")
        .arg(trained())
        .assert()
        .success()
        .stdout(predicate::str::contains("PSNR"));
    assert_eq!(video_data::read_video(&target, &DecodeOptions::default()).unwrap().size(), [1, 3, 9, 16, 32]);
    let metrics: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("pair.json")).unwrap()).unwrap();
    assert_eq!(metrics["frames"], 9);
    assert_eq!(metrics["tokens"], 3 * 4 * 4);
    assert!(metrics["psnr"].as_f64().unwrap() > 5.0);

    // The left half is the original, but for the video codec.
    let original = video_data::read_video(&video, &DecodeOptions::default()).unwrap();
    let left = video_data::read_video(&target, &DecodeOptions::default()).unwrap().narrow(4, 0, 16);
    assert!((original - left).abs().mean(Kind::Double).double_value(&[]) < 0.08);
}

#[test]
fn shared_clips_and_images_reconstruct() {
    let media = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/media");
    let folder = tempfile::tempdir().unwrap();
    for (name, size) in [("arm_wrestling_340x256.mp4", [340, 256]), ("images/000000052507.jpg", [0, 0])] {
        let input = media.join(name);
        if !input.exists() {
            continue; // A clone alone has no such folder.
        }
        let target = folder.path().join(if size[0] > 0 { "pair.mp4" } else { "pair.png" });
        let mut command = vireo();
        command.arg("reconstruct").arg(&input).arg("-o").arg(&target).arg("--checkpoint").arg(trained());
        if size[0] > 0 {
            command.args(["--frames", "7"]); // Two more are made and taken away again: nothing of them is kept.
        } else {
            command.args(["--size", "64x64"]);
        }
        command.assert().success();
        assert!(target.exists());
    }
}
