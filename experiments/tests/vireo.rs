//! The binary `vireo` with real files: the pipeline, token files, bad input, interrupted runs.

#[path = "vireo/autoregressive.rs"]
mod autoregressive;
#[path = "vireo/bad_input.rs"]
mod bad_input;
#[path = "vireo/coding.rs"]
mod coding;
#[path = "vireo/generation.rs"]
mod generation;
#[path = "vireo/runs.rs"]
mod runs;
#[path = "vireo/streaming.rs"]
mod streaming;
#[path = "vireo/var.rs"]
mod var;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use assert_cmd::Command;
use tch::Tensor;
use video_data::worlds::shapes::{Scene, ShapesConfig};

/// A tokenizer and a run so small that training takes a second: 4×4×4, 2^6 codes.
const TINY: &str = r#"
name = "tiny"

[data]
source = "shapes"
clip = { frames = 5, size = 16 }

[loader]
batch_size = 2

[tokenizer]
kind = "magvit2"
filters = 8
channel_multipliers = [1, 1, 2]
num_res_blocks = 1
temporal_downsample = [true, true]
num_groups = 4

[tokenizer.quantizer]
kind = "lfq"
bits = 6

[train]
steps = 6
learning_rate = 1e-3
checkpoint_every = 2
log_every = 1

[evaluation]
clips = 3
clips_while_training = 1
samples = 2
"#;

/// The binary, on one thread: tests run side by side.
fn vireo() -> Command {
    let mut command = Command::cargo_bin("vireo").unwrap();
    command.args(["--threads", "1"]);
    command
}

/// A folder with `tiny.toml`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    folder
}

/// A finished run, made once.
static TRAINED: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = workplace();
    vireo().current_dir(folder.path()).args(["run", "tiny.toml"]).assert().success();
    let run = folder.path().join("runs/tiny");
    (folder, run)
});

/// The folder of a finished run.
fn trained() -> &'static Path {
    &TRAINED.1
}

/// A video of `frames` frames of the moving shapes, `[3, T, H, W]` in [-1, 1].
fn shapes(frames: i64, height: usize, width: usize) -> Tensor {
    let scene = Scene::new(&ShapesConfig::default(), 7, 0);
    let bytes: Vec<u8> = (0..frames as usize).flat_map(|t| scene.render(t as f64, height, width)).collect();
    let video = Tensor::from_slice(&bytes).view([frames, height as i64, width as i64, 3]);
    video.permute([3, 0, 1, 2]).to_kind(tch::Kind::Float) / 127.5 - 1.0
}

/// Writes such a video.
fn write_video(path: &Path, frames: i64, height: usize, width: usize) {
    video_data::write_mp4(path, &shapes(frames, height, width), 8.0).unwrap();
}

/// Standard error of a command that must fail: one line that begins with "error:".
fn failure(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it should have failed: {text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one line beginning with error: expected in\n{text}");
    lines[0].to_string()
}

/// Files below a folder, sorted.
fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
