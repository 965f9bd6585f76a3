//! Whatever is wrong with what comes from outside: one line that says what and how to mend it, and nothing half-written.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{TINY, failure, files_in, trained, vireo, workplace, write_video};

fn encode(input: &Path) -> assert_cmd::Command {
    let mut command = vireo();
    command.arg("encode").arg(input).arg("--checkpoint").arg(trained());
    command
}

#[test]
fn a_video_that_is_missing_truncated_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    assert!(failure(&mut encode(&file("absent.mp4"))).contains("absent.mp4 does not exist"));

    std::fs::write(file("text.mp4"), "this is no video\n".repeat(100)).unwrap();
    assert!(failure(&mut encode(&file("text.mp4"))).contains("text.mp4"));

    write_video(&file("whole.mp4"), 17, 64, 64);
    let bytes = std::fs::read(file("whole.mp4")).unwrap();
    std::fs::write(file("cut.mp4"), &bytes[..bytes.len() * 2 / 3]).unwrap();
    assert!(failure(&mut encode(&file("cut.mp4"))).contains("cut.mp4"));
    assert_eq!(files_in(folder.path()), ["cut.mp4", "text.mp4", "whole.mp4"], "nothing half-written");

    std::fs::write(file("empty.png"), "").unwrap();
    assert!(failure(&mut encode(&file("empty.png"))).contains("empty.png"));
    let corrupted = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/media/corrupted_1280x720.mp4");
    if corrupted.exists() {
        let mut command = encode(&corrupted);
        command.arg("-o").arg(file("corrupted.vtok"));
        assert!(failure(&mut command).contains("corrupted_1280x720.mp4"));
        assert!(!file("corrupted.vtok").exists());
    }
}

#[test]
fn a_config_that_is_malformed_or_has_an_unknown_key() {
    let folder = workplace();
    let run = |text: &str| {
        std::fs::write(folder.path().join("bad.toml"), text).unwrap();
        let mut command = vireo();
        command.current_dir(folder.path()).args(["run", "bad.toml"]);
        failure(&mut command)
    };
    let malformed = run(&TINY.replace("steps = 6", "steps = "));
    assert!(malformed.contains("bad.toml, line 24"), "{malformed}");
    let unknown = run(&TINY.replace("num_res_blocks = 1", "num_res_block = 1"));
    assert!(unknown.contains("line 15") && unknown.contains("num_res_block"), "{unknown}");
    assert!(unknown.contains("Did you mean `num_res_blocks`?"), "{unknown}");
    let kind = run(&TINY.replace("kind = \"lfq\"", "kind = \"lqf\""));
    assert!(
        kind.contains("line 20, tokenizer.quantizer.kind") && kind.contains("Did you mean `lfq`?"),
        "{kind}"
    );
    let value = run(&TINY.replace("bits = 6", "bits = 600"));
    assert!(value.contains("bits") && value.contains("600"), "{value}");
    let clip = run(&TINY.replace("frames = 5", "frames = 6"));
    assert!(clip.contains("frames") && clip.contains("1 + k·4"), "{clip}");
    let source = run(&TINY.replace("\"shapes\"", "\"no/such/folder\""));
    assert!(source.contains("no/such/folder"), "{source}");
    assert!(!folder.path().join("runs").exists(), "no run of a config that means nothing");
}

#[test]
fn a_checkpoint_that_is_missing_cut_short_or_of_another_config() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 5, 16, 16);
    let with =
        |checkpoint: &Path| failure(vireo().arg("encode").arg(&video).arg("--checkpoint").arg(checkpoint));

    assert!(with(&folder.path().join("absent.safetensors")).contains("train one first"));

    let good = trained().join("tokenizer.safetensors");
    let bytes = std::fs::read(&good).unwrap();
    let cut = folder.path().join("cut.safetensors");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(with(&cut).contains("cut.safetensors"));

    let weights = training::load_weights(&good).unwrap();
    let other = folder.path().join("other.safetensors");
    let tensors: BTreeMap<_, _> = weights.tensors;
    training::save_weights(&other, &tensors, &weights.config.replace("\"filters\":8", "\"filters\":16"))
        .unwrap();
    let message = with(&other);
    assert!(
        message.contains("decoder.conv_in") && message.contains('[') && message.contains("16"),
        "{message}"
    );
}

#[test]
fn token_files_that_are_damaged_or_of_another_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 5, 16, 16);
    encode(&video).assert().success();
    let tokens = folder.path().join("clip.vtok");
    let bytes = std::fs::read(&tokens).unwrap();
    let decode = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        failure(vireo().arg("decode").arg(&path).arg("--checkpoint").arg(trained()))
    };
    assert!(decode("cut.vtok", &bytes[..bytes.len() - 7]).contains("cut.vtok"));
    let mut changed = bytes.clone();
    let middle = bytes.len() - 40;
    changed[middle] ^= 1;
    assert!(decode("changed.vtok", &changed).contains("changed.vtok"));
    assert!(
        decode("none.vtok", b"no tokens at all, but some text that is longer than the header")
            .contains("none.vtok")
    );
    assert!(!folder.path().join("cut.mp4").exists());

    // The same network with other weights.
    let weights = training::load_weights(trained().join("tokenizer.safetensors")).unwrap();
    let other = folder.path().join("other.safetensors");
    let tensors = weights.tensors.iter().map(|(name, tensor)| (name.clone(), tensor * 2.0)).collect();
    training::save_weights(&other, &tensors, &weights.config).unwrap();
    let message = failure(vireo().arg("decode").arg(&tokens).arg("--checkpoint").arg(&other));
    assert!(message.contains("was encoded by the tokenizer"), "{message}");
}

#[test]
fn ffmpeg_that_is_absent() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 5, 16, 16);
    let mut command = encode(&video);
    command.env_remove("VIREO_FFMPEG").env("PATH", "").env("VIREO_CACHE", folder.path());
    let message = failure(&mut command);
    assert!(message.contains("ffmpeg was not found") && message.contains("VIREO_FFMPEG"), "{message}");
}

#[test]
fn folders_that_cannot_be_written() {
    let folder = workplace();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 5, 16, 16);
    std::fs::write(folder.path().join("file"), "").unwrap();
    let mut command = encode(&video);
    command.arg("-o").arg(folder.path().join("file/clip.vtok"));
    assert!(failure(&mut command).contains("file"));
    let mut command = vireo();
    command.current_dir(folder.path()).args(["run", "tiny.toml", "--runs", "file/runs"]);
    assert!(failure(&mut command).contains("file/runs"));
    let mut command = vireo();
    command
        .arg("reconstruct")
        .arg(&video)
        .arg("--checkpoint")
        .arg(trained())
        .arg("-o")
        .arg(folder.path().join("no/pair.mp4"));
    assert!(failure(&mut command).contains("pair.mp4"));
    let mut command = vireo();
    command
        .arg("reconstruct")
        .arg(&video)
        .arg("--checkpoint")
        .arg(trained())
        .arg("-o")
        .arg(folder.path().join("pair.txt"));
    assert!(failure(&mut command).contains(".mp4, .gif"));
}

/// A limit on the size of files stands for a full disk: each write beyond it fails.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 41, 128, 128);
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"])
        .arg(assert_cmd::cargo::cargo_bin("vireo"))
        .args(["--threads", "1", "encode"])
        .arg(&video)
        .arg("--checkpoint")
        .arg(trained())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{message}");
    assert!(message.contains("cannot write") && message.contains("clip.vtok"), "{message}");
    assert_eq!(files_in(folder.path()), ["clip.mp4"]);
}

#[test]
fn arguments_that_mean_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("clip.mp4");
    write_video(&video, 5, 16, 16);
    let with = |more: &[&str]| failure(encode(&video).args(more));
    assert!(with(&["--size", "big"]).contains("HEIGHTxWIDTH"));
    assert!(with(&["--start", "100"]).contains("--start"));
    assert!(with(&["--device", "tpu"]).contains("cuda:N"));
    assert!(with(&["--frames", "3"]).contains("--pad"));
    let set = failure(vireo().arg("eval").arg(trained()).args(["--set", "evaluation.clip=2"]));
    assert!(set.contains("evaluation.clip") && set.contains("Did you mean `clips`?"), "{set}");
    let import =
        failure(vireo().args(["import", "cosmos-cv4x8x8"]).arg(&video).args(["-o", "x.safetensors"]));
    assert!(import.contains("cannot import"), "{import}");
}
