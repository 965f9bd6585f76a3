//! VideoGPT and Perceiver AR as second stages, the copy task.

use std::collections::BTreeMap;
use std::path::Path;

use predicates::prelude::*;
use tch::{Device, nn};
use video_gpt::{VqVae, VqVaeConfig};

use crate::{TINY, failure, vireo};

const RUN: &str = r#"
[generator]
clips = 6
batch_size = 2

[generator.train]
steps = 3
learning_rate = 1e-3
log_every = 1

[generator.evaluation]
clips = 2
samples = 1

[generator.model]
n_codes = 64
grid = { frames = 2, height = 4, width = 4 }
hidden_dim = 12
heads = 2
layers = 1
"#;

/// A folder with a config of both stages.
fn place(kind: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), format!("{TINY}{RUN}{kind}")).unwrap();
    folder
}

const VIDEO_GPT: &str = "kind = \"video_gpt\"\nembedding_dim = 8\n";
const PERCEIVER_AR: &str = "kind = \"perceiver_ar\"\nnum_latents = 12\n";

#[test]
fn both_run_and_tell_exact_bits() {
    for kind in [VIDEO_GPT, PERCEIVER_AR] {
        let folder = place(kind);
        let run = vireo().current_dir(folder.path()).args(["run", "tiny.toml"]).assert().success();
        let text = String::from_utf8_lossy(&run.get_output().stdout).into_owned();
        assert!(text.contains("bits per dimension"), "{text}");
        let run = folder.path().join("runs/tiny");
        let text = std::fs::read_to_string(run.join("generation.json")).unwrap();
        let generation: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |name: &str| generation[name].as_f64().unwrap();
        // 32 tokens, 3 · 5 · 16 · 16 values.
        assert!((number("bits_per_token") * 32.0 / 3840.0 - number("bits_per_dimension")).abs() < 1e-9);
        assert_eq!(number("sampling_steps"), 32.0);
        assert!(std::fs::read_to_string(run.join("report.html")).unwrap().contains("bits per dimension"));

        // `vireo eval` tells the same of the same clips, and takes settings of sampling.
        let told = |sets: &[&str]| {
            let eval = vireo().args(["eval", "--dry-run"]).args(sets).arg(&run).assert().success();
            String::from_utf8_lossy(&eval.get_output().stdout).into_owned()
        };
        let bits = format!("{:.2} bits per held-out token", number("bits_per_token"));
        assert!(told(&[]).contains(&bits), "{bits}");
        assert!(told(&["--set", "generator.evaluation.clips=1"]).contains("bits per dimension"));
        let mut wider = vireo();
        wider.args(["eval", "--dry-run", "--set", "generator.model.layers=2"]).arg(&run);
        let message = failure(&mut wider);
        assert!(message.contains("generator.safetensors"), "{message}");
    }
}

#[test]
fn a_generator_that_does_not_fit_its_tokenizer_is_refused_before_training() {
    for kind in [VIDEO_GPT, PERCEIVER_AR] {
        let folder = place(kind);
        for (set, parts) in [
            ("generator.model.n_codes=128", ["n_codes = 128", "64 codes"]),
            (
                "generator.model.grid={frames=2,height=4,width=8}",
                ["2×4×8", "grid = { frames = 2, height = 4, width = 4 }"],
            ),
        ] {
            let mut command = vireo();
            command.current_dir(folder.path()).args(["run", "tiny.toml", "--set", set]);
            let message = failure(&mut command);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            assert!(!folder.path().join("runs").exists());
        }
    }
    let folder = place(PERCEIVER_AR);
    let mut command = vireo();
    command.current_dir(folder.path()).args(["run", "tiny.toml", "--set", "generator.model.num_latents=33"]);
    let message = failure(&mut command);
    assert!(message.contains("num_latents") && message.contains("1 to 32"), "{message}");
}

#[test]
fn the_vq_vae_is_trained_with_its_averages_and_opened_again() {
    let tokenizer = r#"
name = "vq"
[data]
source = "shapes"
clip = { frames = 4, size = 16 }
[loader]
batch_size = 2
[tokenizer]
kind = "video_gpt_vq_vae"
n_hiddens = 8
n_res_layers = 1
embedding_dim = 4
[tokenizer.quantizer]
kind = "vq"
codebook_size = 16
[objective]
reconstruction_weight = 4.1667
[train]
steps = 3
learning_rate = 1e-3
[evaluation]
clips = 2
clips_while_training = 1
samples = 1
"#;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vq.toml"), tokenizer).unwrap();
    vireo().current_dir(folder.path()).args(["run", "vq.toml"]).assert().success();
    vireo()
        .arg("describe")
        .arg(folder.path().join("runs/vq"))
        .assert()
        .success()
        .stdout(predicate::str::contains("4×2×2").and(predicate::str::contains("16 ids")));
}

/// Writes a checkpoint with the published names.
fn published(path: &Path) {
    let config = VqVaeConfig { n_hiddens: 8, n_res_layers: 1, embedding_dim: 4, ..VqVaeConfig::default() };
    let variables = nn::VarStore::new(Device::Cpu);
    VqVae::new(&variables.root(), &config).unwrap();
    let named = variables.variables().into_iter().filter(|(name, _)| name != "codebook.initted");
    let tensors: BTreeMap<String, tch::Tensor> = named
        .map(|(name, tensor)| match name.as_str() {
            "codebook.embed" => ("codebook.embeddings".into(), tensor.squeeze_dim(0)),
            "codebook.cluster_size" => ("codebook.N".into(), tensor.squeeze_dim(0)),
            "codebook.embed_avg" => ("codebook.z_avg".into(), tensor.squeeze_dim(0)),
            _ => (name, tensor),
        })
        .collect();
    training::save_weights(path, &tensors, "{}").unwrap();
}

#[test]
fn an_imported_vq_vae_is_described() {
    let folder = tempfile::tempdir().unwrap();
    published(&folder.path().join("theirs.safetensors"));
    let import = ["import", "videogpt-stride4x2x2", "theirs.safetensors", "-o", "ours.safetensors"];
    vireo().current_dir(folder.path()).args(import).assert().success();
    vireo()
        .current_dir(folder.path())
        .args(["describe", "ours.safetensors"])
        .assert()
        .success()
        .stdout(predicate::str::contains("4×2×2").and(predicate::str::contains("2048 ids")));
}

#[test]
fn the_copy_task_trains_continues_and_is_tested() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/copy-task.toml");
    let copy = |steps: &str| {
        let mut command = vireo();
        command.current_dir(folder.path()).arg("copy-task").arg(&config);
        for set in [
            steps,
            "held_out=2",
            "model.z_index_dim=8",
            "stages=[{steps=1,length=8,batch=2},{steps=9,length=16,batch=2}]",
        ] {
            command.args(["--set", set]);
        }
        command
    };
    copy("train.steps=1").assert().success();
    copy("train.steps=2").assert().success().stdout(predicate::str::contains("16 copied tokens"));
    let message = failure(copy("train.steps=2").args(["--set", "model.z_index_dim=9"]));
    assert!(message.contains("z_index_dim = 9") && message.contains("8 latents"), "{message}");
}
