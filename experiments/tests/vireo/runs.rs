//! Runs as a whole: finished, continued, interrupted.

use std::path::Path;
use std::time::{Duration, Instant};

use predicates::prelude::*;

use crate::{failure, files_in, trained, vireo, workplace};

#[test]
fn a_run_leaves_weights_evaluation_samples_and_a_report_that_needs_nothing_else() {
    let files = files_in(trained());
    for name in [
        "checkpoints",
        "config.toml",
        "evaluation.json",
        "metrics.jsonl",
        "report.html",
        "samples",
        "tokenizer.safetensors",
    ] {
        assert!(files.contains(&name.to_string()), "{name} is missing in {files:?}");
    }
    let report = std::fs::read_to_string(trained().join("report.html")).unwrap();
    for part in [
        "<svg",
        "data:image/gif;base64,",
        "PSNR",
        "SSIM",
        "Codes hit",
        "LPIPS",
        "not computed",
        "filters = 8",
    ] {
        assert!(report.contains(part), "the report lacks {part}");
    }
    let outside = report.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://"), "the report fetches something");
    let evaluation: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(trained().join("evaluation.json")).unwrap()).unwrap();
    assert_eq!(evaluation["clips"], 3);
    assert_eq!(evaluation["tokens_per_clip"], 2 * 4 * 4);
    assert!(evaluation["psnr"].as_f64().unwrap() > 5.0);
}

#[test]
fn a_finished_run_is_not_trained_again() {
    let run = trained();
    let before = std::fs::metadata(run.join("tokenizer.safetensors")).unwrap().modified().unwrap();
    let folder = run.parent().unwrap().parent().unwrap();
    vireo()
        .current_dir(folder)
        .args(["run", "tiny.toml"])
        .assert()
        .success()
        .stderr(predicate::str::contains("finished already"));
    assert_eq!(std::fs::metadata(run.join("tokenizer.safetensors")).unwrap().modified().unwrap(), before);
}

#[test]
fn resuming_under_another_config_names_the_first_tensor_or_field_that_differs() {
    let folder = workplace();
    let train = |set: &str| {
        let mut command = vireo();
        command.current_dir(folder.path()).args(["train", "tiny.toml", "--set", set]);
        command
    };
    train("train.steps=2").assert().success();
    let message = failure(&mut train("tokenizer.quantizer.bits=7"));
    for part in ["decoder.conv_in.weight", "[16, 6, 3, 3, 3]", "[16, 7, 3, 3, 3]"] {
        assert!(message.contains(part), "{message}");
    }
    let message = failure(&mut train("objective.distance=\"l1\""));
    assert!(message.contains("objective.distance") && message.contains("mse"), "{message}");
}

/// The scalars of `metrics.jsonl`, without the times.
pub(crate) fn scalars(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {} {}", row["step"], row["split"], row["scalars"])
        })
        .collect()
}

#[test]
fn a_killed_run_continues_to_the_same_bits() {
    let (whole, killed) = (workplace(), workplace());
    let arguments =
        ["train", "tiny.toml", "--set", "train.steps=12", "--set", "train.ema={decay=0.9,warmup=false}"];
    vireo().current_dir(whole.path()).args(arguments).assert().success();

    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("vireo"))
        .args(["--threads", "1"])
        .args(arguments)
        .current_dir(killed.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let run = killed.path().join("runs/tiny");
    let start = Instant::now();
    // Killed as soon as a few steps are logged: before the end, and between two checkpoints as like as not.
    while std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count()) < 5 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was logged within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("tokenizer.safetensors").exists(), "the run had ended before it was killed");

    vireo().current_dir(killed.path()).args(arguments).assert().success();
    let weights = |folder: &Path| std::fs::read(folder.join("runs/tiny/tokenizer.safetensors")).unwrap();
    assert!(weights(whole.path()) == weights(killed.path()), "the weights differ");
    assert_eq!(scalars(&whole.path().join("runs/tiny")), scalars(&run));
}

#[test]
fn evaluation_can_be_repeated_on_other_data() {
    vireo()
        .args(["eval", "--dry-run", "--set", "evaluation.clips=2"])
        .arg(trained())
        .assert()
        .success()
        .stdout(predicate::str::contains("2 held-out clips"));
}

#[test]
fn describe_doctor_and_verify_answer() {
    vireo()
        .arg("describe")
        .arg(trained())
        .assert()
        .success()
        .stdout(predicate::str::contains("4×4×4").and(predicate::str::contains("64 ids")));
    vireo().arg("doctor").assert().success().stdout(predicate::str::contains("libtorch"));

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/reference/golden/quantizers");
    vireo()
        .arg("verify")
        .arg(&golden)
        .assert()
        .success()
        .stdout(predicate::str::is_match(r"(\d+) of \d+ cases pass").unwrap());
    let folder = tempfile::tempdir().unwrap();
    assert!(failure(vireo().arg("verify").arg(folder.path())).contains("no golden case"));
}

#[test]
fn a_case_that_is_off_fails_the_verification() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/reference/golden/quantizers");
    let json = std::fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(json.file_name().unwrap());
    std::fs::copy(&json, &copy).unwrap();
    // Without its tensors.
    vireo().arg("verify").arg(&copy).assert().failure().stdout(predicate::str::contains("FAIL"));
}
