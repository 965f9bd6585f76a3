//! The second stage: generators of tokens, trained, judged and sampled.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use predicates::prelude::*;
use tch::{Device, Tensor, nn};
use text_encoder::{T5Config, T5Encoder};

use crate::{TINY, failure, files_in, runs::scalars, vireo, write_video};

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
            && message.contains("tokenizer.quantizer.bits = 6")
            && message.contains("the config has 7"),
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

/// A tokenizer of whole words that ends texts with `</s>`.
const WORDS: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": { "type": "WhitespaceSplit" },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
        "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } }
    },
    "decoder": null,
    "model": { "type": "WordLevel", "unk_token": "<unk>", "vocab": { "<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "disc": 5 } }
}"#;

/// The folder of a T5 of random weights.
fn write_t5(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = T5Config {
        vocab_size: 6,
        d_model: 16,
        d_kv: 4,
        d_ff: 24,
        num_layers: 1,
        num_heads: 2,
        ..T5Config::v1_1_small()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    T5Encoder::new(&variables.root(), &config).unwrap();
    std::fs::write(folder.join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), WORDS).unwrap();
    let tensors: Vec<(String, Tensor)> = variables.variables().into_iter().collect();
    Tensor::write_safetensors(&tensors, folder.join("model.safetensors")).unwrap();
}

/// Muse in the place of MaskGIT.
const MUSE: &str = r#"
[generator]
clips = 6
batch_size = 2
text = { encoder = "t5", max_tokens = 24 }

[generator.model]
kind = "muse"
grid = { frames = 2, height = 4, width = 4 }
sampling = { timesteps = 3 }
transformer = { num_tokens = 64, seq_len = 32, dim = 16, depth = 1, heads = 2, dim_head = 8, text_dim = 16 }

[generator.train]
steps = 4
learning_rate = 1e-3

[generator.evaluation]
clips = 3
samples = 1
"#;

/// A failed `vireo sample` of a run.
fn no_sample(run: &Path, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    failure(vireo().current_dir(folder.path()).arg("sample").arg("-c").arg(run).args(arguments))
}

#[test]
fn text_conditions_muse() {
    let folder = tempfile::tempdir().unwrap();
    write_t5(&folder.path().join("t5"));
    std::fs::write(folder.path().join("tiny.toml"), format!("{TINY}{MUSE}")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = vireo();
        command.current_dir(folder.path()).args(["run", "tiny.toml"]).args(arguments);
        command
    };
    let message = failure(&mut run(&["--set", "generator.model.transformer.text_dim=8"]));
    assert!(message.contains("text_dim = 8") && message.contains("gives 16"), "{message}");
    run(&[]).assert().success();
    assert!(json(&folder.path().join("runs/tiny/generation.json"))["bits_per_token"].as_f64().unwrap() > 1.0);

    let sample = |arguments: &[&str]| {
        let mut command = vireo();
        command
            .current_dir(folder.path())
            .args(["sample", "-c", "runs/tiny", "--count", "2"])
            .args(arguments);
        command
    };
    sample(&["--text", "a red disc", "--guidance", "3", "-o", "text.gif"])
        .assert()
        .success()
        .stdout(predicate::str::contains("3 steps"));
    sample(&["-o", "none.gif"]).assert().success();
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("text.gif") != bytes("none.gif"), "the text changes nothing");

    let message = failure(&mut sample(&["--text", &"red ".repeat(24)]));
    assert!(message.contains("25 tokens") && message.contains("at most 24"), "{message}");
    let message = failure(&mut sample(&["--class", "1"]));
    assert!(message.contains("Class") && message.contains("[Text]"), "{message}");
    // Another encoder's embeddings mean nothing to this generator.
    write_t5(&folder.path().join("other"));
    let message = failure(&mut sample(&["--text", "a red disc", "--text-encoder", "other"]));
    assert!(message.contains("was trained with the text encoder") && message.contains("other"), "{message}");
}

#[test]
fn samples_follow_class_first_frames_both_ends_and_regions() {
    let folder = tempfile::tempdir().unwrap();
    write_video(&folder.path().join("clip.mp4"), 9, 16, 16);
    let sample = |arguments: &[&str]| {
        let name = arguments.first().map_or("plain", |flag| flag.trim_start_matches('-'));
        let mut command = vireo();
        command.current_dir(folder.path()).args(["sample", "--count", "2", "-o"]).arg(format!("{name}.gif"));
        command
            .arg("-c")
            .arg(generated())
            .args(arguments)
            .assert()
            .success()
            .stdout(predicate::str::contains("2 clips of 5 frames, 3 steps"));
        std::fs::read(folder.path().join(format!("{name}.gif"))).unwrap()
    };
    let plain = sample(&[]);
    assert!(plain == sample(&[]), "the same seed gave another clip");
    assert!(plain != sample(&["--seed", "1"]));
    // So few steps of training leave the class almost without effect.
    assert!(plain != sample(&["--class", "2", "--guidance", "1e6"]));
    assert!(plain != sample(&["--first-frames", "clip.mp4"]));
    assert!(plain != sample(&["--edit", "clip.mp4", "--keep", "0,0,16,8"]));
    assert!(plain != sample(&["--edit", "clip.mp4", "--renew", "4,4,8,8"]));

    let run = generated();
    let clip = folder.path().join("clip.mp4");
    let clip = clip.to_str().unwrap();
    for (arguments, parts) in [
        (&["--text", "a red disc"][..], &["Text", "[FirstFrames, Class]"][..]),
        (&["--class", "3"], &["class labels", "0..3"]),
        (&["--first-frames", clip, "--last-frames", clip], &["1 of 2 latent frames at each end"]),
        (&["--first-frames", clip, "--frames", "3"], &["--frames 3", "1 + k·4"]),
        (&["--edit", clip, "--keep", "0,0,3,3"], &["--keep 0,0,3,3", "0 of 16 tokens"]),
        (&["--edit", clip, "--renew", "8,8,9,1"], &["--renew", "inside the clip's 16×16"]),
        (&["--temperature=-1"], &["temperature"]),
    ] {
        let message = no_sample(run, arguments);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn both_ends_are_given_where_there_is_something_between() {
    let folder = workplace();
    let arguments =
        ["run", "tiny.toml", "--set", "data.clip.frames=9", "--set", "generator.model.grid.frames=3"];
    vireo().current_dir(folder.path()).args(arguments).assert().success();
    write_video(&folder.path().join("clip.mp4"), 9, 16, 16);
    let ends = ["--first-frames", "clip.mp4", "--last-frames", "clip.mp4"];
    vireo()
        .current_dir(folder.path())
        .args(["sample", "-c", "runs/tiny"])
        .args(ends)
        .assert()
        .success()
        .stdout(predicate::str::contains("clips of 9 frames"));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_trained() {
    let folder = workplace();
    for (set, parts) in [
        ("generator.model.codebook_size=32", &["codebook_size = 32", "64 codes"][..]),
        ("generator.model.grid.frames=3", &["3×4×4", "2×4×4"]),
        (
            "generator.model.masking={kind=\"maskgit\",min_masking_rate=1.5}",
            &["min_masking_rate", "1.5", "[0, 1]"],
        ),
        ("generator.model.num_classes=1", &["num_classes = 1", "has class"]),
        ("data.source=\"maze\"", &["num_classes = 3", "has no class"]),
        ("generator.text={encoder=\"t5\"}", &["generator.text", "muse"]),
        ("generator.evaluation.given_frames=2", &["given_frames = 2", "fewer than the grid's 2"]),
    ] {
        let message = failure(vireo().current_dir(folder.path()).args(["run", "tiny.toml", "--set", set]));
        assert!(parts.iter().all(|part| message.contains(part)), "{set}: {message}");
    }
    assert!(!folder.path().join("runs").exists(), "something was trained");
}

#[test]
fn a_generator_knows_its_tokenizer() {
    let folder = workplace();
    let train = ["train", "tiny.toml", "--set", "seed=5", "--set", "train.steps=1"];
    vireo().current_dir(folder.path()).args(train).assert().success();
    let run = folder.path().join("runs/tiny");
    std::fs::copy(generated().join("generator.safetensors"), run.join("generator.safetensors")).unwrap();
    let message = no_sample(&run, &[]);
    assert!(message.contains("was trained on the tokens of the tokenizer"), "{message}");
    std::fs::remove_file(run.join("generator.safetensors")).unwrap();
    assert!(no_sample(&run, &[]).contains("[generator] table"));
}

#[test]
fn a_killed_generator_continues_to_the_same_bits() {
    let (whole, killed) = (workplace(), workplace());
    let arguments = ["run", "tiny.toml", "--set", "generator.train.steps=40"];
    vireo().current_dir(whole.path()).args(arguments).assert().success();

    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("vireo"))
        .args(["--threads", "1"])
        .args(arguments)
        .current_dir(killed.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let run = killed.path().join("runs/tiny");
    let log = run.join("generator/metrics.jsonl");
    let start = Instant::now();
    while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 5 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was logged within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("generator.safetensors").exists(), "the run had ended before it was killed");

    vireo().current_dir(killed.path()).args(arguments).assert().success();
    let weights = |folder: &Path| std::fs::read(folder.join("runs/tiny/generator.safetensors")).unwrap();
    assert!(weights(whole.path()) == weights(killed.path()), "the weights differ");
    assert_eq!(scalars(&whole.path().join("runs/tiny/generator")), scalars(&run.join("generator")));
}

/// Muse's two models: the clips of 8 pixels a side, and those of 16.
const MUSE_PAIR: &str = r#"
[generator]
clips = 6
batch_size = 2

[generator.model]
kind = "muse_pair"

[generator.model.base]
grid = { frames = 2, height = 2, width = 2 }
sampling = { timesteps = 3 }
transformer = { num_tokens = 64, seq_len = 8, dim = 16, depth = 1, heads = 2, dim_head = 8, text_dim = 16 }

[generator.model.super_resolution]
grid = { frames = 2, height = 4, width = 4 }
low_resolution = { frames = 2, height = 2, width = 2 }
sampling = { timesteps = 2 }
transformer = { num_tokens = 64, seq_len = 32, dim = 16, depth = 1, heads = 2, dim_head = 8, text_dim = 16 }

[generator.train]
steps = 4
learning_rate = 1e-3

[generator.evaluation]
clips = 3
samples = 1
"#;

#[test]
fn muse_goes_from_a_coarse_grid_to_a_fine_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), format!("{TINY}{MUSE_PAIR}")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = vireo();
        command.current_dir(folder.path()).args(["run", "tiny.toml"]).args(arguments);
        command
    };
    let low = "generator.model.super_resolution.low_resolution.frames=1";
    let message = failure(&mut run(&["--set", low]));
    assert!(message.contains("low_resolution") && message.contains("the base's grid"), "{message}");
    run(&[]).assert().success();
    let generation = json(&folder.path().join("runs/tiny/generation.json"));
    assert_eq!(generation["sampling_steps"], 3 + 2);
    assert!(generation["bits_per_token"].as_f64().unwrap() > 1.0);
    let mut sample = vireo();
    sample.current_dir(folder.path()).args(["sample", "-c", "runs/tiny"]);
    sample.assert().success().stdout(predicate::str::contains("4 clips of 5 frames, 5 steps"));
    // It was trained without texts.
    assert!(failure(sample.args(["--text", "a red disc"])).contains("[generator.text]"));
}

/// A published MaskGIT in small: 1024 codes, three classes, pixels as 2×2 tokens; in flax's names and layouts.
fn write_published_maskgit(folder: &Path) {
    let write = |name: &str, shapes: &[(String, Vec<i64>)]| {
        tch::manual_seed(3);
        let random = |shape: &[i64]| Tensor::randn(shape, tch::kind::FLOAT_CPU) * 0.2;
        let tensors: Vec<(String, Tensor)> =
            shapes.iter().map(|(name, shape)| (format!("params/{name}"), random(shape))).collect();
        Tensor::write_safetensors(&tensors, folder.join(name)).unwrap();
    };
    let mut vqgan = vec![
        ("encoder/Conv_0/kernel".to_string(), vec![3, 3, 3, 8]),
        ("encoder/Conv_1/kernel".into(), vec![1, 1, 8, 4]),
        ("encoder/Conv_1/bias".into(), vec![4]),
        ("decoder/Conv_0/kernel".into(), vec![3, 3, 4, 8]),
        ("decoder/Conv_0/bias".into(), vec![8]),
        ("decoder/Conv_1/kernel".into(), vec![3, 3, 8, 3]),
        ("decoder/Conv_1/bias".into(), vec![3]),
        ("quantizer/codebook".into(), vec![1024, 4]),
    ];
    let norm = |name: String| ["scale", "bias"].map(|leaf| (format!("{name}/{leaf}"), vec![8]));
    for half in ["encoder", "decoder"] {
        vqgan.extend(norm(format!("{half}/LayerNorm_0")));
        for part in [format!("{half}/ResBlock_0"), format!("{half}/ResBlock_1")] {
            for index in 0..2 {
                vqgan.extend(norm(format!("{part}/LayerNorm_{index}")));
                vqgan.push((format!("{part}/Conv_{index}/kernel"), vec![3, 3, 8, 8]));
            }
        }
    }
    write("vqgan.safetensors", &vqgan);

    let layer = "TransformerLayer_0";
    let mut transformer = vec![
        ("Embed_0/word_embeddings/embedding".to_string(), vec![1024 + 3 + 1, 8]),
        ("Embed_0/position_embeddings/embedding".into(), vec![1 + 4, 8]),
        (format!("{layer}/Attention_0/self_attention/out/kernel"), vec![2, 4, 8]),
        (format!("{layer}/Attention_0/self_attention/out/bias"), vec![8]),
        (format!("{layer}/Mlp_0/intermediate_output/kernel"), vec![8, 16]),
        (format!("{layer}/Mlp_0/intermediate_output/bias"), vec![16]),
        (format!("{layer}/Mlp_0/layer_output/kernel"), vec![16, 8]),
        (format!("{layer}/Mlp_0/layer_output/bias"), vec![8]),
        ("MlmLayer_0/mlm_dense/kernel".into(), vec![8, 8]),
        ("MlmLayer_0/mlm_dense/bias".into(), vec![8]),
        ("MlmLayer_0/mlm_bias/bias".into(), vec![1024 + 3 + 1]),
    ];
    for part in ["query", "key", "value"] {
        transformer.push((format!("{layer}/Attention_0/self_attention/{part}/kernel"), vec![8, 2, 4]));
        transformer.push((format!("{layer}/Attention_0/self_attention/{part}/bias"), vec![2, 4]));
    }
    for name in ["Embed_0/embeddings_ln", "MlmLayer_0/mlm_ln"] {
        transformer.extend(norm(name.into()));
    }
    for name in ["Attention_0/attention_output_ln", "Mlp_0/layer_output_ln"] {
        transformer.extend(norm(format!("{layer}/{name}")));
    }
    write("maskgit.safetensors", &transformer);
}

#[test]
fn a_published_maskgit_is_imported_and_sampled() {
    let folder = tempfile::tempdir().unwrap();
    write_published_maskgit(folder.path());
    std::fs::create_dir(folder.path().join("imagenet")).unwrap();
    let import = |arguments: &[&str]| {
        let mut command = vireo();
        command.current_dir(folder.path()).arg("import").args(arguments);
        command
    };
    import(&["maskgit-vqgan", "vqgan.safetensors", "-o", "imagenet/tokenizer.safetensors"])
        .assert()
        .success();
    let generator = ["maskgit", "maskgit.safetensors", "-o", "imagenet/generator.safetensors"];
    assert!(failure(&mut import(&generator)).contains("--tokenizer"));
    import(&generator).args(["--tokenizer", "imagenet"]).assert().success();
    let sample = |class: &str| {
        let mut command = vireo();
        command
            .current_dir(folder.path())
            .args(["sample", "-c", "imagenet", "-o", "out.png", "--class", class]);
        command
    };
    sample("2").assert().success().stdout(predicate::str::contains("12 steps"));
    assert!(failure(&mut sample("3")).contains("0..3"));
}
