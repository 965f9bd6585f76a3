//! The second stage: generators of tokens, trained, judged and sampled.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use predicates::prelude::*;

use crate::{TINY, failure, files_in, vireo};

/// A generator on the tokens of the tiny tokenizer: classes and first frames.
const GENERATOR: &str = r#"
[generator]
clips = 6
batch_size = 2

[generator.model]
kind = "maskgit"
codebook_size = 64
grid = { frames = 2, height = 4, width = 4 }
num_classes = 3
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
first_frames = { probability = 0.5, max = 1 }
steps = 3

[generator.train]
steps = 4
learning_rate = 1e-3
checkpoint_every = 2
log_every = 1

[generator.evaluation]
clips = 3
samples = 1
"#;

/// A folder with `tiny.toml`, now of both stages.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), format!("{TINY}{GENERATOR}")).unwrap();
    folder
}

/// A finished run of both stages, made once.
static GENERATED: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = workplace();
    vireo().current_dir(folder.path()).args(["run", "tiny.toml"]).assert().success();
    let run = folder.path().join("runs/tiny");
    (folder, run)
});

/// The folder of that run.
fn generated() -> &'static Path {
    &GENERATED.1
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_run_with_a_generator_leaves_its_figures_and_samples() {
    let files = files_in(generated());
    for name in ["generation.json", "generator", "generator.safetensors", "tokens.safetensors"] {
        assert!(files.contains(&name.to_string()), "{name} is missing in {files:?}");
    }
    let samples = files_in(&generated().join("samples"));
    for name in ["generated-00.gif", "continued-00.gif"] {
        assert!(samples.contains(&name.to_string()), "{name} is missing in {samples:?}");
    }
    let generation = json(&generated().join("generation.json"));
    assert_eq!((&generation["step"], &generation["sampling_steps"]), (&4.into(), &3.into()));
    let bits = generation["bits_per_token"].as_f64().unwrap();
    assert!(bits > 1.0 && bits < 12.0, "{bits}");
    assert_eq!(
        (&generation["prediction"]["given"], &generation["prediction"]["made"]),
        (&1.into(), &4.into())
    );
    vireo().arg("compare").arg(generated()).assert().success().stdout(
        predicate::str::contains("bits per token").and(predicate::str::contains("| tiny |").count(2)),
    );
}

#[test]
fn a_run_can_take_the_tokenizer_of_another() {
    let folder = generated().parent().unwrap().parent().unwrap();
    let taken = |set: &[&str]| {
        let mut command = vireo();
        command.current_dir(folder).args(["run", "tiny.toml", "--set", "tokenizer_from=tiny"]);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command
    };
    taken(&["name=commit", "generator.model.masking={kind=\"commit\"}"])
        .assert()
        .success()
        .stderr(predicate::str::contains("took the tokenizer of"));
    let run = generated().with_file_name("commit");
    let weights = |run: &Path| std::fs::read(run.join("tokenizer.safetensors")).unwrap();
    assert!(weights(&run) == weights(generated()));
    assert!(!run.join("checkpoints").exists(), "a tokenizer was trained");
    assert_eq!(json(&run.join("generation.json"))["step"], 4);

    let message = failure(&mut taken(&[
        "name=other",
        "tokenizer.quantizer.bits=7",
        "generator.model.codebook_size=128",
    ]));
    assert!(
        message.contains("tokenizer_from")
            && message.contains("\"bits\":6")
            && message.contains("\"bits\":7"),
        "{message}"
    );
}

#[test]
fn vqgans_are_tokenizers_like_others() {
    let folder = tempfile::tempdir().unwrap();
    let (head, rest) = TINY.split_once("[tokenizer]").unwrap();
    let train = &rest[rest.find("[train]").unwrap()..];
    let block = "norm = \"layer\", activation = \"relu\", padding = \"same\", conv_shortcut = false, shortcut_of_output = false";
    for (name, quantizer, dimensions, more, grid) in [
        ("vq", "kind = \"vq\"\ncodebook_size = 32", "image", "", [5, 8, 8]),
        (
            "gumbel",
            "kind = \"gumbel\"\ncodebook_size = 32",
            "video",
            "temporal_downsample = [true]",
            [2, 8, 8],
        ),
    ] {
        let frames = if dimensions == "video" { 4 } else { 5 };
        let head = head
            .replace("frames = 5", &format!("frames = {frames}"))
            .replace("\"tiny\"", &format!("\"{name}\""));
        let text = format!(
            "{head}\n[tokenizer]\nkind = \"vqgan\"\nfilters = 8\nembedding_dim = 8\nchannel_multipliers = [1, 2]\n\
             num_enc_res_blocks = 1\nnum_dec_res_blocks = 1\n{more}\nblock = {{ dimensions = \"{dimensions}\", {block} }}\n\
             [tokenizer.quantizer]\n{quantizer}\n{train}"
        );
        std::fs::write(folder.path().join("vqgan.toml"), text).unwrap();
        vireo().current_dir(folder.path()).args(["run", "vqgan.toml"]).assert().success();
        let run = folder.path().join("runs").join(name);
        assert_eq!(json(&run.join("evaluation.json"))["tokens_per_clip"], grid.iter().product::<i64>());
        vireo().arg("describe").arg(&run).assert().success().stdout(predicate::str::contains("32 ids"));
    }
}
