//! The loop as a whole: what a killed, stopped, poisoned or crowded run leaves behind.

#[path = "training/processes.rs"]
mod processes;
#[path = "training/schedules.rs"]
mod schedules;
#[path = "training/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, nn};
use toy::{Points, ToyGan, config, evaluate, train};
use training::{
    Batches, Checkpoint, Error, Objective, Part, StepLoss, TrainConfig, Trainer, copy_into, load_weights,
    save_weights, variables,
};

/// The lines of a run's metrics without what depends on the clock.
pub fn metrics(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let parse = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("timing").expect("every line has a timing");
        line
    };
    text.lines().map(parse).collect()
}

/// The bytes of a run's last tensors.
pub fn tensors(folder: &Path) -> Vec<u8> {
    fs::read(Checkpoint::latest(folder).unwrap().unwrap().join("tensors.safetensors")).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// libtorch's random generator belongs to the process: tests that train take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_run_in_two_pieces_equals_one_in_one_piece() {
    let _turn = turn();
    let (whole, pieces) = (folder(), folder());
    let outcome = train(whole.path(), config(30), 0).unwrap();
    assert_eq!((outcome.step, outcome.interrupted), (30, false));
    assert_eq!(outcome.evaluation[0].0, "error");
    // A loop that fails at step 17, as a crash would, leaves the checkpoint of step 14.
    let mut gan = ToyGan::new(16);
    let mut points = FailsAt(Points::new(8), 2 * 17);
    let error =
        Trainer::new(pieces.path(), config(30)).unwrap().train(&mut gan, &mut points, evaluate).unwrap_err();
    assert!(error.to_string().contains("no more"), "{error}");
    assert!(Checkpoint::latest(pieces.path()).unwrap().unwrap().ends_with("step-00000014"));
    train(pieces.path(), config(30), 0).unwrap();
    assert!(tensors(whole.path()) == tensors(pieces.path()));
    assert_eq!(metrics(whole.path()), metrics(pieces.path()));
    // Steps 1, every 3rd of 30; evaluations at 10, 20, 30.
    assert_eq!(metrics(whole.path()).len(), 11 + 3);
    // A finished run has nothing to do, and still knows its result.
    let again = train(whole.path(), config(30), 0).unwrap();
    assert_eq!((again.step, again.evaluation), (30, outcome.evaluation));
    assert_eq!(fs::read_dir(whole.path().join("checkpoints")).unwrap().count(), 2 + 1, "two and `latest`");
}

struct FailsAt(Points, u64);

impl Batches for FailsAt {
    type Batch = Tensor;

    fn next(&mut self) -> video_core::Result<Tensor> {
        if self.0.position() == self.1 {
            return Err(video_core::Error::input("points", "no more", "more"));
        }
        self.0.next()
    }

    fn position(&self) -> u64 {
        self.0.position()
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.0.seek(position)
    }
}

#[test]
fn data_that_end_on_ctrl_c_are_no_error_and_half_a_step_leaves_no_trace() {
    let _turn = turn();
    let (whole, stopped) = (folder(), folder());
    let mut points = StopsAt(FailsAt(Points::new(8), 2 * 17 + 1));
    let mut trainer = Trainer::new(stopped.path(), config(30)).unwrap();
    let outcome = trainer.train(&mut ToyGan::new(16), &mut points, evaluate).unwrap();
    assert_eq!((outcome.step, outcome.interrupted), (17, true));
    drop(trainer);
    train(stopped.path(), config(30), 0).unwrap();
    train(whole.path(), config(30), 0).unwrap();
    assert!(tensors(whole.path()) == tensors(stopped.path()));
    assert_eq!(metrics(whole.path()), metrics(stopped.path()));
}

/// The signal that ends a decoder in a child process asks the loop to stop, too.
struct StopsAt(FailsAt);

impl Batches for StopsAt {
    type Batch = Tensor;

    fn next(&mut self) -> video_core::Result<Tensor> {
        self.0.next().inspect_err(|_| training::request_stop())
    }

    fn position(&self) -> u64 {
        self.0.position()
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.0.seek(position)
    }
}

/// A linear map without noise.
struct Linear {
    store: nn::VarStore,
    layer: nn::Linear,
}

impl Linear {
    fn new() -> Self {
        video_core::seeds::seed_torch(1, video_core::seeds::Stream::Init, 0);
        let store = nn::VarStore::new(Device::Cpu);
        let layer = nn::linear(store.root(), 4, 4, Default::default());
        Self { store, layer }
    }
}

impl Objective for Linear {
    type Batch = Tensor;

    fn parts(&self) -> Vec<Part<'_>> {
        vec![Part::new("model", &self.store)]
    }

    fn loss(&mut self, _part: usize, x: &Tensor, _step: u64) -> video_core::Result<StepLoss> {
        Ok(StepLoss::new((x.apply(&self.layer) - x).square().mean(Kind::Float)))
    }
}

#[test]
fn accumulation_equals_a_big_batch() {
    let _turn = turn();
    let run = |size, gradient_accumulation| {
        let dir = folder();
        let mut model = Linear::new();
        let config = TrainConfig {
            steps: 12,
            learning_rate: 1e-2,
            clip_norm: Some(0.1),
            gradient_accumulation,
            ..TrainConfig::default()
        };
        let mut trainer = Trainer::new(dir.path(), config).unwrap();
        trainer.train(&mut model, &mut Points::new(size), |_, _| Ok(vec![])).unwrap();
        (model.layer.ws.detach(), metrics(dir.path()))
    };
    let ((big, big_log), (small, small_log)) = (run(12, 1), run(3, 4));
    assert!((big - small).abs().max().double_value(&[]) < 1e-4);
    let loss = |log: &[Value]| log.last().unwrap()["scalars"]["model.total"].as_f64().unwrap();
    assert!((loss(&big_log) - loss(&small_log)).abs() < 1e-4);
}

#[test]
fn evaluation_sees_the_averages_and_training_does_not() {
    let _turn = turn();
    let dir = folder();
    let mut gan = ToyGan::new(16);
    let mut seen = Tensor::new();
    let mut trainer = Trainer::new(dir.path(), config(20)).unwrap();
    let outcome = trainer
        .train(&mut gan, &mut Points::new(8), |gan, _| {
            seen = gan.generator.variables()["outer.weight"].detach().copy();
            Ok(vec![("perfect".into(), f64::INFINITY)])
        })
        .unwrap();
    let checkpoint = Checkpoint::load(&outcome.checkpoint).unwrap();
    let average = &checkpoint.weights("generator", true).unwrap()["outer.weight"];
    let trained = &checkpoint.weights("generator", false).unwrap()["outer.weight"];
    assert!(seen.equal(average) && !seen.equal(trained));
    assert!(gan.generator.variables()["outer.weight"].detach().equal(trained), "the weights are back");
    assert_eq!(checkpoint.weights("discriminator", true).unwrap().len(), 3, "buffers are weights too");
    assert!(checkpoint.weights("encoder", true).unwrap_err().to_string().contains("encoder"));
    assert_eq!(metrics(dir.path()).last().unwrap()["scalars"]["perfect"], Value::Null);
}

#[test]
fn a_loss_that_is_not_a_number_stops_with_the_state_before_it() {
    let _turn = turn();
    let (dir, sound) = (folder(), folder());
    let mut gan = ToyGan::new(16);
    gan.poisoned = Some(11);
    let mut trainer = Trainer::new(dir.path(), config(30)).unwrap();
    let error = trainer.train(&mut gan, &mut Points::new(8), evaluate).unwrap_err();
    let Error::NotFinite { step: 11, scalar, value, position: 22, saved: Some(saved) } = &error else {
        panic!("{error}");
    };
    assert_eq!(scalar, "generator.mse");
    assert!(value.is_nan() && saved.ends_with("step-00000011") && !error.to_string().contains('\n'));
    drop(trainer);
    // What was saved is what a sound run has after 11 steps: going on from it equals that run.
    train(dir.path(), config(30), 0).unwrap();
    train(sound.path(), config(30), 0).unwrap();
    assert!(tensors(dir.path()) == tensors(sound.path()));
    assert_eq!(metrics(dir.path()), metrics(sound.path()));
}

#[test]
fn two_runs_cannot_share_a_folder() {
    let dir = folder();
    let first = Trainer::new(dir.path(), config(5)).unwrap();
    let error = Trainer::new(dir.path(), config(5)).unwrap_err();
    assert!(matches!(&error, Error::Locked { pid: Some(pid), .. } if *pid == std::process::id()), "{error}");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    drop(first);
    Trainer::new(dir.path(), config(5)).unwrap();
}

#[test]
fn damaged_and_foreign_checkpoints_are_named() {
    let _turn = turn();
    let dir = folder();
    let outcome = train(dir.path(), config(10), 0).unwrap();
    let other = |gan: &mut ToyGan, config, model| {
        let mut trainer = Trainer::new(dir.path(), config).unwrap().describe(model);
        trainer.train(gan, &mut Points::new(8), evaluate).unwrap_err().to_string()
    };
    // Another width: the first tensor by name, with both shapes.
    let error = other(&mut ToyGan::new(12), config(12), Value::Null);
    assert!(
        error.contains("tensor inner.bias") && error.contains("[16]") && error.contains("[12]"),
        "{error}"
    );
    // Another learning rate; another description; more steps are welcome.
    let error = other(&mut ToyGan::new(16), TrainConfig { learning_rate: 0.02, ..config(12) }, Value::Null);
    assert!(error.contains("train.learning_rate = 0.01, now it is 0.02"), "{error}");
    let error = other(&mut ToyGan::new(16), config(12), json!({ "clip": { "size": 32 } }));
    assert!(error.contains("null") && error.contains("32"), "{error}");
    train(dir.path(), config(12), 0).unwrap();
    // Cut short at every kind of place, in both files.
    let last = Checkpoint::latest(dir.path()).unwrap().unwrap();
    for name in ["tensors.safetensors", "state.json"] {
        let file = last.join(name);
        let bytes = fs::read(&file).unwrap();
        for length in [0, 5, 100, bytes.len() - 3] {
            fs::write(&file, &bytes[..length]).unwrap();
            let error = train(dir.path(), config(14), 0).unwrap_err();
            assert!(matches!(error, Error::CutShort { .. }), "{error}");
        }
        fs::remove_file(&file).unwrap();
        assert!(matches!(Checkpoint::load(&last), Err(Error::Missing { .. })));
        fs::write(&file, &bytes).unwrap();
    }
    // As the message says: with the damaged one deleted, the one before serves.
    fs::remove_dir_all(&last).unwrap();
    assert_eq!(Checkpoint::latest(dir.path()).unwrap(), Some(outcome.checkpoint));
    assert_eq!(train(dir.path(), config(14), 0).unwrap().step, 14);
}

#[test]
fn what_cannot_be_written_is_one_line_and_leaves_nothing() {
    let _turn = turn();
    let dir = folder();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Trainer::new(dir.path().join("file/run"), config(5)).unwrap_err();
    assert!(matches!(error, Error::Write { .. }) && !error.to_string().contains('\n'), "{error}");
    // A folder in the place of the checkpoints' list.
    let run = dir.path().join("run");
    fs::create_dir_all(run.join("checkpoints/latest")).unwrap();
    let error = train(&run, config(5), 0).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
    let names: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".tmp")), "{names:?}");
}

#[test]
fn overrides_of_an_unknown_part_are_refused() {
    let _turn = turn();
    let dir = folder();
    let mut config = config(5);
    config.parts.insert("discriminater".into(), Default::default());
    let error = train(dir.path(), config, 0).unwrap_err().to_string();
    assert!(error.contains("discriminater") && error.contains("generator, discriminator"), "{error}");
}

#[test]
fn model_files_round_trip_and_name_what_does_not_fit() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let store = nn::VarStore::new(Device::Cpu);
    let mut weight = store.root().randn_standard("weight", &[2, 3]);
    let _ = store.root().zeros_no_train("count", &[]);
    let mut saved = variables(&store);
    saved.insert("mask".into(), Tensor::from_slice(&[true, false]));
    saved.insert("half".into(), Tensor::from_slice(&[1.5f32]).to_kind(Kind::BFloat16));
    save_weights(&path, &saved, r#"{"bits": 10}"#).unwrap();
    let before = weight.detach().copy();
    let _ = tch::no_grad(|| weight.fill_(0.0));
    let mut loaded = load_weights(&path).unwrap();
    assert_eq!(loaded.config, r#"{"bits": 10}"#);
    assert_eq!(loaded.tensors["mask"].kind(), Kind::Bool);
    assert_eq!(loaded.tensors["half"].double_value(&[0]), 1.5);
    let error = copy_into(&store, &loaded.tensors, &path).unwrap_err().to_string();
    assert!(error.contains("half has shape [1] in the file and is absent in the model"), "{error}");
    loaded.tensors.remove("half");
    loaded.tensors.remove("mask");
    copy_into(&store, &loaded.tensors, &path).unwrap();
    assert!(weight.detach().equal(&before));
    loaded.tensors.insert("weight".into(), before.tr());
    let error = copy_into(&store, &loaded.tensors, &path).unwrap_err().to_string();
    assert!(
        error.contains("weight has shape [3, 2] in the file and has shape [2, 3] in the model"),
        "{error}"
    );
    assert!(matches!(load_weights(dir.path().join("none")), Err(Error::Missing { .. })));
    save_weights(&path, &BTreeMap::new(), "").unwrap();
    assert!(load_weights(&path).unwrap().tensors.is_empty());
}
