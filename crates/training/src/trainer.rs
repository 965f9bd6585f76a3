//! The loop.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tch::Device;
use torch_ext::autocast_bf16;
use video_core::seeds::{Stream, seed_torch};

use crate::checkpoint::{Checkpoint, RngPolicy, State, save};
use crate::files::make_folder;
use crate::interrupt::Listening;
use crate::lock::FolderLock;
use crate::metrics_file::MetricsFile;
use crate::part_state::PartState;
use crate::progress::Progress;
use crate::scalars::{StepScalars, Watch};
use crate::tensorboard::EventFile;
use crate::{Batches, Objective, Result, TrainConfig};

/// A run's folder, locked to this process: `metrics.jsonl`, `tensorboard/`, `checkpoints/`.
#[derive(Debug)]
pub struct Trainer {
    folder: PathBuf,
    config: TrainConfig,
    model: Value,
    _lock: FolderLock,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps done in all.
    pub step: u64,
    /// Stopped by Ctrl-C or SIGTERM before the last step. A command should then exit with status 130.
    pub interrupted: bool,
    /// The last checkpoint's folder.
    pub checkpoint: PathBuf,
    /// The last evaluation, empty if there was none.
    pub evaluation: Vec<(String, f64)>,
    /// Share of this process' training time spent waiting for data, 0 to 1.
    pub waiting_share: f64,
    /// This process' training time, seconds.
    pub seconds: f64,
}

impl Trainer {
    /// Takes a folder for a run, making it if need be.
    ///
    /// # Errors
    /// A bad config, [`Error::Locked`](crate::Error::Locked), [`Error::Write`](crate::Error::Write).
    pub fn new(folder: impl AsRef<Path>, config: TrainConfig) -> Result<Self> {
        config.validate().map_err(|error| error.within("train"))?;
        let folder = folder.as_ref().to_path_buf();
        make_folder(&folder)?;
        let lock = FolderLock::take(&folder)?;
        Ok(Self { folder, config, model: Value::Null, _lock: lock })
    }

    /// The config of model and data (not of the training), kept in checkpoints. Resuming under another one is an error
    /// that names the first field that differs.
    #[must_use]
    pub fn describe(self, model: Value) -> Self {
        Self { model, ..self }
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Trains until [`TrainConfig::steps`] are done, from the folder's latest checkpoint on if it has one.
    ///
    /// `evaluate` runs every [`TrainConfig::eval_every`] steps and at the end, outside autograd, with the averaged
    /// weights in place; its scalars are logged under their names. The weights at the start are the caller's: seed them
    /// ([`Stream::Init`]), so that a run killed before its first checkpoint starts as it did.
    ///
    /// # Errors
    /// The objective's, the data's and the evaluation's own; [`Error::NotFinite`](crate::Error::NotFinite); a checkpoint that does not fit
    /// ([`Error::Mismatch`](crate::Error::Mismatch), [`Error::ConfigChanged`](crate::Error::ConfigChanged), [`Error::CutShort`](crate::Error::CutShort)); [`Error::Write`](crate::Error::Write).
    pub fn train<O: Objective>(
        &mut self,
        objective: &mut O,
        batches: &mut impl Batches<Batch = O::Batch>,
        mut evaluate: impl FnMut(&mut O, u64) -> video_core::Result<Vec<(String, f64)>>,
    ) -> Result<Outcome> {
        let config = self.config.clone();
        let mut run = Run::start(self, objective, batches)?;
        let listening = Listening::start();
        let mut progress = Progress::new(run.step, config.steps);
        while run.step < config.steps && !listening.stop_requested() {
            let scalars = match run.take_step(objective, batches) {
                // Ctrl-C reaches decoders in child processes too; their end is then no news.
                Err(_) if listening.stop_requested() => break,
                scalars => scalars?,
            };
            run.watch.push(scalars);
            let step = run.step;
            let last = step == config.steps;
            let due = |every: u64| last || every > 0 && step.is_multiple_of(every);
            let (logs, evaluates, saves) =
                (step == 1 || due(config.log_every), due(config.eval_every), due(config.checkpoint_every));
            if logs || evaluates || saves {
                run.check_finite()?;
            }
            if logs {
                run.log_step(&mut progress)?;
            }
            if evaluates {
                run.evaluate(objective, &mut evaluate)?;
            }
            if saves {
                run.save()?;
            }
            progress.tick(run.step);
        }
        progress.finish();
        run.finish(config.steps)
    }
}

/// The state of a running loop.
struct Run<'a> {
    trainer: &'a Trainer,
    parts: Vec<PartState>,
    device: Device,
    /// Steps done.
    step: u64,
    /// Batches used.
    position: u64,
    watch: Watch,
    evaluation: Vec<(String, f64)>,
    saved: Option<(u64, PathBuf)>,
    metrics: MetricsFile,
    events: EventFile,
    clock: Clock,
}

impl<'a> Run<'a> {
    /// From the latest checkpoint, or from the weights as they are.
    fn start<O: Objective>(
        trainer: &'a Trainer,
        objective: &O,
        batches: &mut impl Batches<Batch = O::Batch>,
    ) -> Result<Self> {
        let config = &trainer.config;
        let mut parts: Vec<_> = objective.parts().iter().map(|part| PartState::new(part, config)).collect();
        if let Some(unknown) = config.parts.keys().find(|name| parts.iter().all(|part| part.name != **name)) {
            let known: Vec<_> = parts.iter().map(|part| part.name).collect();
            let expected = format!("one of {}", known.join(", "));
            return Err(video_core::Error::config("train.parts", unknown, expected).into());
        }
        let (mut step, mut evaluation, mut saved) = (0, Vec::new(), None);
        if let Some(path) = Checkpoint::latest(&trainer.folder)? {
            let checkpoint = Checkpoint::load(&path)?;
            for part in &parts {
                part.check_variables(&checkpoint)?;
            }
            checkpoint.check_configs(config, &trainer.model)?;
            for part in &mut parts {
                part.restore(&checkpoint)?;
            }
            let state = checkpoint.state;
            batches.seek(state.position)?;
            step = state.step;
            evaluation =
                state.evaluation.into_iter().map(|(name, x)| (name, x.unwrap_or(f64::NAN))).collect();
            tracing::info!("resuming after step {step} from {}", path.display());
            saved = Some((step, path));
        }
        Ok(Self {
            trainer,
            device: parts.first().map_or(Device::Cpu, PartState::device),
            parts,
            step,
            position: batches.position(),
            watch: Watch::default(),
            evaluation,
            saved,
            metrics: MetricsFile::open(&trainer.folder, step)?,
            events: EventFile::create(&trainer.folder, step)?,
            clock: Clock::start(step),
        })
    }

    /// One optimizer step of every active part. If data or losses fail, the state is that of before the step.
    fn take_step<O: Objective>(
        &mut self,
        objective: &mut O,
        batches: &mut impl Batches<Batch = O::Batch>,
    ) -> Result<StepScalars> {
        let step = self.step;
        let active: Vec<usize> = (0..self.parts.len()).filter(|&part| objective.active(part, step)).collect();
        let buffers: Vec<_> = self.parts.iter().map(PartState::copy_buffers).collect();
        let answer = self.gradients(&active, objective, batches);
        self.parts.iter().for_each(|part| part.require_gradients(true));
        // On the CPU reading a scalar costs nothing, so a bad loss is seen before it reaches the weights.
        let bad = match &answer {
            Ok(scalars) if !self.device.is_cuda() => scalars.first_bad()?,
            _ => None,
        };
        if bad.is_some() || answer.is_err() {
            for (part, copies) in self.parts.iter().zip(&buffers) {
                part.restore_buffers(copies);
            }
        }
        if let Some(bad) = bad {
            self.save()?;
            return Err(bad.into_error(self.saved.as_ref()));
        }
        let scalars = answer?;
        for &index in &active {
            let part = &mut self.parts[index];
            let config = &self.trainer.config;
            part.step(config.learning_rate_at(part.name, step), config.schedule_at(part.name, step))?;
        }
        objective.after_step(step)?;
        self.step += 1;
        self.position = batches.position();
        Ok(scalars)
    }

    /// The clipped gradients of the active parts, and the scalars on the way.
    fn gradients<O: Objective>(
        &mut self,
        active: &[usize],
        objective: &mut O,
        batches: &mut impl Batches<Batch = O::Batch>,
    ) -> Result<StepScalars> {
        let (config, step) = (&self.trainer.config, self.step);
        let mut scalars = StepScalars::new(step, batches.position());
        seed_torch(config.seed, Stream::Step, step);
        self.parts.iter().for_each(PartState::zero_grad);
        for _ in 0..config.gradient_accumulation {
            let asked = Instant::now();
            let batch = batches.next()?;
            self.clock.waited(asked.elapsed());
            for &index in active {
                for (other, part) in self.parts.iter().enumerate() {
                    part.require_gradients(other == index);
                }
                let part = &self.parts[index];
                let loss = if config.bf16.on(part.device()) {
                    autocast_bf16(part.device(), || objective.loss(index, &batch, step))
                        .map_err(video_core::Error::from)??
                } else {
                    objective.loss(index, &batch, step)?
                };
                scalars.add(part.name, &loss, config.gradient_accumulation)?;
                (loss.total / config.gradient_accumulation as f64).f_backward()?;
            }
        }
        for part in active.iter().map(|&index| &self.parts[index]) {
            if let Some(norm) = part.clip()? {
                scalars.gradient_norm(part.name, norm);
            }
        }
        Ok(scalars)
    }

    /// Reads back what has gathered since the last check.
    fn check_finite(&mut self) -> Result<()> {
        match self.watch.first_bad()? {
            Some(bad) => Err(bad.into_error(self.saved.as_ref())),
            None => Ok(()),
        }
    }

    /// Logs the last step.
    fn log_step(&mut self, progress: &mut Progress) -> Result<()> {
        let Some(last) = self.watch.last() else { return Ok(()) };
        let scalars = last.values()?;
        let rates: Vec<(String, f64)> = self
            .parts
            .iter()
            .map(|part| {
                let rate = self.trainer.config.learning_rate_at(part.name, self.step - 1);
                (format!("{}.learning_rate", part.name), rate)
            })
            .collect();
        let (rate, share) = self.clock.lap(self.step);
        self.metrics.write(&json!({
            "step": self.step,
            "split": "train",
            "scalars": object(scalars.iter().chain(&rates)),
            "timing": { "seconds": self.clock.seconds(), "steps_per_second": rate, "waiting_share": share },
        }))?;
        let timing = [("steps_per_second", rate), ("waiting_share", share)];
        let named = scalars.iter().chain(&rates).map(|(name, x)| (name.as_str(), *x));
        self.events.scalars(self.step, named.chain(timing))?;
        progress.losses(scalars.iter().filter_map(|(name, x)| Some((name.strip_suffix(".total")?, *x))));
        Ok(())
    }

    /// Evaluates with the averaged weights and logs the answer.
    fn evaluate<O: Objective>(
        &mut self,
        objective: &mut O,
        evaluate: &mut impl FnMut(&mut O, u64) -> video_core::Result<Vec<(String, f64)>>,
    ) -> Result<()> {
        let started = Instant::now();
        seed_torch(self.trainer.config.seed, Stream::Eval, self.step);
        self.parts.iter_mut().for_each(PartState::swap_ema);
        let answer = tch::no_grad(|| evaluate(objective, self.step));
        self.parts.iter_mut().for_each(PartState::swap_ema);
        self.evaluation = answer?;
        self.clock.pause(started.elapsed());
        if self.evaluation.is_empty() {
            return Ok(());
        }
        self.metrics.write(&json!({
            "step": self.step,
            "split": "eval",
            "scalars": object(&self.evaluation),
            "timing": { "seconds": started.elapsed().as_secs_f64() },
        }))?;
        let tagged: Vec<_> = self.evaluation.iter().map(|(name, x)| (format!("eval.{name}"), *x)).collect();
        self.events.scalars(self.step, tagged.iter().map(|(name, x)| (name.as_str(), *x)))
    }

    /// Writes a checkpoint, unless that of this step is there already.
    fn save(&mut self) -> Result<()> {
        if self.saved.as_ref().is_some_and(|(step, _)| *step == self.step) {
            return Ok(());
        }
        self.metrics.sync()?;
        let state = State {
            format: crate::checkpoint::FORMAT,
            step: self.step,
            position: self.position,
            rng: RngPolicy::SeededPerStep,
            train: self.trainer.config.clone(),
            model: self.trainer.model.clone(),
            ema_updates: self.parts.iter().map(|part| (part.name.into(), part.ema_updates())).collect(),
            evaluation: self
                .evaluation
                .iter()
                .map(|(name, x)| (name.clone(), x.is_finite().then_some(*x)))
                .collect(),
        };
        let tensors = self.parts.iter().flat_map(PartState::tensors).collect();
        let keep = self.trainer.config.keep_checkpoints;
        let path = save(&self.trainer.folder, &state, &tensors, keep)?;
        self.saved = Some((self.step, path));
        Ok(())
    }

    /// Saves what an interruption left unsaved.
    fn finish(mut self, steps: u64) -> Result<Outcome> {
        self.check_finite()?;
        self.save()?;
        let interrupted = self.step < steps;
        let checkpoint = self.saved.map(|(_, path)| path).unwrap_or_default();
        if interrupted {
            tracing::warn!(
                "stopped after step {} of {steps}; start the same command again to go on from {}",
                self.step,
                checkpoint.display()
            );
        }
        Ok(Outcome {
            step: self.step,
            interrupted,
            checkpoint,
            evaluation: self.evaluation,
            waiting_share: self.clock.waiting_share(),
            seconds: self.clock.seconds(),
        })
    }
}

/// A JSON object of named numbers; what is not finite becomes null.
fn object<'s>(scalars: impl IntoIterator<Item = &'s (String, f64)>) -> Value {
    Value::Object(scalars.into_iter().map(|(name, x)| (name.clone(), json!(x))).collect::<Map<_, _>>())
}

/// Where this process' time goes.
struct Clock {
    started: Instant,
    waited: Duration,
    paused: Duration,
    /// At the last line: steps done, seconds trained, seconds waited.
    lap: (u64, f64, f64),
}

impl Clock {
    fn start(step: u64) -> Self {
        Self {
            started: Instant::now(),
            waited: Duration::ZERO,
            paused: Duration::ZERO,
            lap: (step, 0.0, 0.0),
        }
    }

    fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Leaves out time that was not training.
    fn pause(&mut self, time: Duration) {
        self.paused += time;
    }

    fn seconds(&self) -> f64 {
        (self.started.elapsed() - self.paused).as_secs_f64()
    }

    fn waiting_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.seconds().max(f64::MIN_POSITIVE)
    }

    /// Steps a second and the share of waiting since the last call.
    fn lap(&mut self, step: u64) -> (f64, f64) {
        let now = (step, self.seconds(), self.waited.as_secs_f64());
        let seconds = (now.1 - self.lap.1).max(f64::MIN_POSITIVE);
        let answer = ((step - self.lap.0) as f64 / seconds, (now.2 - self.lap.2) / seconds);
        self.lap = now;
        answer
    }
}
