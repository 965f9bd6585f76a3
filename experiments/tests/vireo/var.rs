//! VAR through the pipeline: images and clips, imported checkpoints, bad input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tch::{Device, Tensor, nn};
use var_next_scale::{MultiScaleVqConfig, Var, VarConfig, Vqvae, VqvaeConfig};

use crate::{failure, files_in, shapes, vireo, write_video};

/// Images of 16 × 16 pixels as pyramids of 1 + 4 + 16 tokens, and a transformer with ten classes, of which the shapes have three.
const IMAGES: &str = r#"
name = "images"
[data]
source = "shapes"
clip = { frames = 1, size = 16 }
[loader]
batch_size = 2
[tokenizer]
kind = "var_vqvae"
ch = 8
ch_mult = [1, 1, 2]
num_res_blocks = 1
norm_num_groups = 4
quantizer = { vocab_size = 32, z_channels = 4, v_patch_nums = [1, 2, 4] }
[train]
steps = 2
[evaluation]
clips = 3
clips_while_training = 1
samples = 2
[generator]
clips = 6
batch_size = 2
[generator.model]
kind = "var"
vocab_size = 32
z_channels = 4
num_classes = 10
depth = 2
embed_dim = 16
num_heads = 2
patch_nums = [1, 2, 4]
[generator.train]
steps = 2
[generator.evaluation]
clips = 3
samples = 2
"#;

/// Clips of 5 frames as an image's pyramid and one of two latent frames, and a transformer without classes.
const CLIPS: &str = r#"
name = "clips"
[data]
source = "shapes"
clip = { frames = 5, size = 16 }
[loader]
batch_size = 2
[tokenizer]
kind = "space_time_vqvae"
patch_size = 2
filters = 8
channel_multipliers = [1, 1]
num_res_blocks = 1
temporal_downsample = [false]
num_groups = 4
quantizer = { vocab_size = 32, z_channels = 4, v_patch_nums = [1, 2, 4] }
chunk_scales = [[1, 2, 2], [2, 4, 4]]
[train]
steps = 2
[evaluation]
clips = 3
clips_while_training = 1
samples = 1
[generator]
clips = 6
batch_size = 2
[generator.model]
kind = "space_time_var"
chunk_scales = [[1, 2, 2], [2, 4, 4]]
max_chunks = 1
[generator.model.transformer]
vocab_size = 32
z_channels = 4
num_classes = 0
depth = 2
embed_dim = 16
num_heads = 2
patch_nums = [1, 2, 4]
[generator.train]
steps = 2
[generator.evaluation]
clips = 3
samples = 1
"#;

fn place(name: &str, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), config).unwrap();
    folder
}

fn finished(name: &str, config: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = place("config.toml", config);
    vireo().current_dir(folder.path()).args(["run", "config.toml"]).assert().success();
    let run = folder.path().join("runs").join(name);
    (folder, run)
}

static IMAGE_RUN: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| finished("images", IMAGES));
static CLIP_RUN: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| finished("clips", CLIPS));

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `vireo VERB ... --checkpoint RUN`, writing into a folder.
fn with(verb: &str, run: &Path, arguments: &[&str], folder: &Path) -> assert_cmd::Command {
    let mut command = vireo();
    command.current_dir(folder).arg(verb).args(arguments).arg("--checkpoint").arg(run);
    command
}

#[test]
fn images_are_tokenized_generated_and_shown_from_coarse_to_fine() {
    let (folder, run) = (IMAGE_RUN.0.path(), &IMAGE_RUN.1);
    let evaluation = json(&run.join("evaluation.json"));
    assert_eq!(evaluation["tokens_per_clip"], 1 + 4 + 16);
    // 21 ids of 5 bits for 16 × 16 pixels.
    assert!((evaluation["bits_per_pixel"].as_f64().unwrap() - 105.0 / 256.0).abs() < 1e-9);
    let generation = json(&run.join("generation.json"));
    assert_eq!(generation["sampling_steps"], 3);
    assert!(generation["prediction"].is_null());
    let samples = files_in(&run.join("samples"));
    for name in ["generated-00.gif", "scales-00.gif", "scales-01.gif"] {
        assert!(samples.contains(&name.to_string()), "{name} is missing in {samples:?}");
    }
    assert!(std::fs::read_to_string(run.join("report.html")).unwrap().contains("From coarse to fine"));
    // The tokenizer codes single pictures, and its token file holds all scales.
    video_data::write_png(&folder.join("one.png"), &shapes(1, 16, 16).squeeze_dim(1)).unwrap();
    with("reconstruct", run, &["one.png"], folder).assert().success();
    assert_eq!(json(&folder.join("one.reconstruction.json"))["tokens"], 21);
    with("encode", run, &["one.png"], folder).assert().success();
    with("decode", run, &["one.vtok", "-o", "back.png"], folder).assert().success();
    with("sample", run, &["--class", "9", "--guidance", "2", "--count", "2", "-o", "drawn.png"], folder)
        .assert()
        .success();
    assert_eq!(video_data::read_image(&folder.join("drawn.png"), None).unwrap().size(), [1, 3, 1, 16, 32]);
    // In- and out-painting, and with a class, editing: the same part of the latent is kept whatever the seed.
    let edit = |name: &str, rectangle: [&str; 2], seed: &str| {
        let mut arguments =
            vec!["--edit", "one.png", "--count", "1", "--class", "3", "--seed", seed, "-o", name];
        arguments.extend(rectangle);
        let said = with("sample", run, &arguments, folder).assert().success();
        assert!(String::from_utf8_lossy(&said.get_output().stdout).contains("3 steps"));
        video_data::read_image(&folder.join(name), None).unwrap()
    };
    for rectangle in [["--renew", "0,0,8,16"], ["--keep", "0,0,8,16"]] {
        assert!(edit("a.png", rectangle, "0") == edit("b.png", rectangle, "0"), "the same seed");
        assert!(
            edit("a.png", rectangle, "0") != edit("b.png", rectangle, "1"),
            "{rectangle:?} kept everything"
        );
    }
}

#[test]
fn clips_are_generated_and_continued_from_their_first_frame() {
    let (folder, run) = (CLIP_RUN.0.path(), &CLIP_RUN.1);
    assert_eq!(json(&run.join("evaluation.json"))["tokens_per_clip"], 21 + 4 + 32);
    let generation = json(&run.join("generation.json"));
    assert_eq!(generation["sampling_steps"], 3 + 2);
    assert_eq!(generation["prediction"]["given"], 1);
    assert_eq!(generation["prediction"]["made"], 4);
    write_video(&folder.join("start.mp4"), 3, 16, 16);
    let given = |count: &'static str| ["--first-frames", "start.mp4", "--frames", count];
    with("sample", run, &given("1"), folder).assert().success();
    assert!(folder.join("samples.gif").exists());
    let message = failure(&mut with("sample", run, &given("3"), folder));
    assert!(message.contains("1 + n·2 latent frames"), "{message}");
}

#[test]
fn streams_classes_guidance_and_frames_that_cannot_be_served_are_refused() {
    let (images, clips) = (&IMAGE_RUN.1, &CLIP_RUN.1);
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    write_video(&place.join("clip.mp4"), 5, 16, 16);
    let refused = |verb: &str, run: &Path, arguments: &[&str], parts: &[&str]| {
        let message = failure(&mut with(verb, run, arguments, place));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    refused("sample", images, &["--class", "10"], &["class", "10", "0 to 9"]);
    refused("sample", clips, &["--class", "0"], &["Class"]);
    refused("sample", clips, &["--guidance", "2"], &["no classes", "guidance 1"]);
    refused("sample", images, &["--first-frames", "clip.mp4"], &["FirstFrames"]);
    refused("encode", clips, &["clip.mp4"], &["SpaceTimeVqvae", "stream"]);
    refused("reconstruct", images, &["clip.mp4"], &["Vqvae", "5 frames", "images"]);
    refused("encode", images, &["clip.mp4", "--size", "32x32"], &["32×32", "--size 16x16"]);
    assert_eq!(files_in(place), ["clip.mp4"], "nothing half-written");
}

#[test]
fn configs_whose_parts_do_not_fit_are_refused_before_anything_is_trained() {
    let folder = place("config.toml", IMAGES);
    std::fs::write(folder.path().join("clips.toml"), CLIPS).unwrap();
    let refused = |config: &str, set: &str, parts: &[&str]| {
        let mut command = vireo();
        command.current_dir(folder.path()).args(["run", config, "--set", set]);
        let message = failure(&mut command);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let refused_image = |set: &str, parts: &[&str]| refused("config.toml", set, parts);
    refused_image("tokenizer.quantizer.v_patch_nums=[1,2,3]", &["v_patch_nums = [1, 2, 3]", "side 4"]);
    refused_image("tokenizer.quantizer.v_patch_nums=[1,4,2]", &["v_patch_nums = [1, 4, 2]"]);
    refused_image("generator.model.patch_nums=[1,3,4]", &["patch_nums"]);
    refused_image("generator.model.vocab_size=64", &["vocab_size = 64", "32 codes"]);
    refused_image("data.clip.frames=5", &["Vqvae", "5 frames"]);
    let clips = |set: &str, parts: &[&str]| refused("clips.toml", set, parts);
    clips("generator.model.max_chunks=2", &["max_chunks"]);
    clips("generator.evaluation.given_frames=2", &["1 + n·2 latent frames"]);
    clips("data.clip.frames=7", &["1 + n·2 latent frames"]);
    let one_scale = r#"tokenizer={kind="magvit2",filters=8,channel_multipliers=[1,1],num_res_blocks=1,temporal_downsample=[true],num_groups=4,quantizer={kind="lfq",bits=5}}"#;
    clips(one_scale, &["generator.model"]);
    assert!(!folder.path().join("runs").exists(), "no run of a config that means nothing");
}

/// State dicts with the names and shapes of the published files, at a small width.
fn published(vqvae: &Path, transformer: &Path) {
    let quantizer = MultiScaleVqConfig { vocab_size: 64, z_channels: 8, ..MultiScaleVqConfig::default() };
    let config =
        VqvaeConfig { ch: 8, num_res_blocks: 1, norm_num_groups: 8, quantizer, ..VqvaeConfig::default() };
    let variables = nn::VarStore::new(Device::Cpu);
    Vqvae::new(&variables.root(), &config).unwrap();
    let tensors: BTreeMap<String, Tensor> = variables.variables().into_iter().collect();
    training::save_weights(vqvae, &tensors, "{}").unwrap();
    let config = VarConfig {
        vocab_size: 64,
        z_channels: 8,
        num_classes: 10,
        depth: 1,
        embed_dim: 16,
        num_heads: 2,
        ..VarConfig::var_d16()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    Var::new(&variables.root(), &config).unwrap();
    let tensors: BTreeMap<String, Tensor> = variables.variables().into_iter().collect();
    training::save_weights(transformer, &tensors, "{}").unwrap();
}

#[test]
fn imported_checkpoints_are_described_reconstruct_and_sample() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    published(&place.join("vae.safetensors"), &place.join("var.safetensors"));
    let import = ["import", "var-vqvae-256", "vae.safetensors", "-o", "tokenizer.safetensors"];
    vireo().current_dir(place).args(import).assert().success();
    let described = vireo().current_dir(place).args(["describe", "tokenizer.safetensors"]).assert().success();
    let text = String::from_utf8_lossy(&described.get_output().stdout).into_owned();
    for part in ["1×16×16 (time", "64 ids, 6.00 bits", "1×256×256 → 1×1×680 = 680 tokens"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    video_data::write_png(&place.join("one.png"), &shapes(1, 256, 256).squeeze_dim(1)).unwrap();
    let tokenizer = place.join("tokenizer.safetensors");
    with("reconstruct", &tokenizer, &["one.png"], place).assert().success();
    assert_eq!(json(&place.join("one.reconstruction.json"))["tokens"], 680);
    with("encode", &tokenizer, &["one.png"], place).assert().success();
    with("decode", &tokenizer, &["one.vtok", "-o", "back.png"], place).assert().success();

    let mut import = vireo();
    import.current_dir(place).args(["import", "var", "var.safetensors", "-o", "generator.safetensors"]);
    assert!(failure(&mut import).contains("--tokenizer"));
    import.args(["--tokenizer", "tokenizer.safetensors"]).assert().success();
    let draw = ["--class", "3", "--guidance", "1.5", "--count", "1", "-o", "drawn.png"];
    with("sample", place, &draw, place).assert().success();
    assert_eq!(video_data::read_image(&place.join("drawn.png"), None).unwrap().size(), [1, 3, 1, 256, 256]);
    let refused = failure(&mut with("sample", place, &["--class", "10", "-o", "none.png"], place));
    assert!(refused.contains("0 to 9"), "{refused}");
}

#[test]
fn scaling_trains_the_widths_with_one_tokenizer_and_fits_laws() {
    let folder = place("config.toml", IMAGES);
    let scaling = |widths: &str| {
        let mut command = vireo();
        command.current_dir(folder.path()).args(["scaling", "config.toml", "--widths", widths]);
        command.args(["--set", "generator.train.steps=3", "--set", "generator.train.eval_every=1"]);
        command
    };
    for (widths, part) in [("16", "at least two"), ("16,20", "multiple of 8")] {
        let message = failure(&mut scaling(widths));
        assert!(message.contains(part), "{message}");
    }
    assert!(!folder.path().join("runs").exists());
    let output = scaling("8,16").assert().success();
    let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    // 18 · 2 · 8², and 3 steps of 2 · 21 tokens.
    assert!(text.contains("| 8 | 2304 | 126 | 1.742e6 |"), "{text}");
    assert!(text.contains("by size: L = (") && text.contains("by computation: L = ("), "{text}");
    let run = folder.path().join("runs/images");
    let study = json(&run.join("scaling.json"));
    assert_eq!(study["rows"][1]["curve"].as_array().unwrap().len(), 3);
    for name in ["scaling-size.svg", "scaling-compute.svg", "scaling.html"] {
        assert!(std::fs::read_to_string(run.join(name)).unwrap().contains("<svg"), "{name}");
    }
    assert!(folder.path().join("runs/images-16/report.html").exists());
}
