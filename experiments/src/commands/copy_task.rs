//! `vireo copy-task`: Perceiver AR learns to repeat a sequence backwards, of which its latents see nothing but their own half.

use std::path::Path;

use anyhow::{Result, ensure};
use perceiver_ar::{
    LossConfig, PerceiverAr, PerceiverArConfig, Sequence, TrainDraws, copy_task, cross_entropy,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use training::{Batches, Objective, Part, StepLoss, TrainConfig, Trainer};
use video_core::seeds;

use crate::cli::RunArgs;
use crate::{files, tokenizer, toml_file};

/// A copy task, and the network that learns it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyTaskConfig {
    /// The run's folder is named so.
    name: String,
    /// Every random draw comes from this seed.
    #[serde(default)]
    seed: u64,
    /// auto, cpu, cuda or cuda:N.
    device: String,
    /// Ids of the data.
    alphabet: i64,
    /// What is trained on, one after the other; the last goes on to the end and is what is tested.
    stages: Vec<Stage>,
    /// Held-out sequences.
    held_out: i64,
    /// The network. Its latents are half of the last stage's length.
    model: PerceiverArConfig,
    /// Steps, optimizer, schedule, checkpoints.
    train: TrainConfig,
}

/// Sequences of a time of the training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    /// Steps that it lasts.
    steps: u64,
    /// Tokens of a sequence, the copied half among them.
    length: i64,
    /// Sequences of a step.
    batch: i64,
}

impl CopyTaskConfig {
    fn validate(&self) -> Result<()> {
        self.model.validate().map_err(|error| error.within("model"))?;
        let most = self.model.num_classes - perceiver_ar::RESERVED;
        ensure!((2..=most).contains(&self.alphabet), "alphabet = {}: expected 2 to {most}", self.alphabet);
        ensure!(self.held_out > 0, "held_out = 0: expected at least 1");
        ensure!(!self.stages.is_empty(), "stages: expected at least one");
        let length = self.length();
        for stage in &self.stages {
            let fits = stage.length % 2 == 0 && (2..=length).contains(&stage.length) && stage.batch > 0;
            ensure!(
                fits,
                "stages: {stage:?}: expected an even length of 2 to {length}, the last stage's, and a batch"
            );
        }
        ensure!(
            self.model.z_index_dim == length / 2 && self.model.max_context_length >= length,
            "model: z_index_dim = {}, max_context_length = {}: expected {} latents, one for each copied token, and a context of at least {length}",
            self.model.z_index_dim,
            self.model.max_context_length,
            length / 2
        );
        ensure!(self.model.use_positions_from_data, "model.use_positions_from_data: expected true");
        Ok(())
    }

    /// Tokens of the sequences that are tested.
    fn length(&self) -> i64 {
        self.stages.last().map_or(0, |stage| stage.length)
    }

    fn stage(&self, step: u64) -> &Stage {
        let mut end = 0;
        let at = self.stages.iter().position(|stage| {
            end += stage.steps;
            step < end
        });
        &self.stages[at.unwrap_or(self.stages.len() - 1)]
    }

    /// Draws sequences from a seed. Short ones have the positions around the middle of the long ones', so that the sum of the
    /// positions of a token and of its copy is the same in all.
    fn draw(
        &self,
        stage: &Stage,
        stream: seeds::Stream,
        number: u64,
        device: Device,
    ) -> video_core::Result<Copies> {
        let Stage { length, batch, .. } = *stage;
        tch::manual_seed(seeds::derive(self.seed, stream, number) as i64);
        let ids = (perceiver_ar::RESERVED, perceiver_ar::RESERVED + self.alphabet);
        let half = Tensor::randint_low(ids.0, ids.1, [batch, length / 2], (Kind::Int64, Device::Cpu));
        let events = copy_task(&half.to_device(device), true)?;
        // The end is not a copy: it is not asked for.
        Ok(Copies {
            ids: events.ids.narrow(1, 0, length),
            positions: events.positions.narrow(1, 0, length) + (self.length() - length) / 2,
            targets: events.ids.narrow(1, 1, length),
        })
    }
}

/// A batch of sequences: int64 `[B, T]`, positions `[B, T, 1]`.
struct Copies {
    ids: Tensor,
    positions: Tensor,
    targets: Tensor,
}

impl Copies {
    fn sequence(&self) -> Sequence<'_> {
        Sequence { ids: &self.ids, positions: Some(&self.positions) }
    }

    /// As many as there are copied tokens.
    fn latents(&self) -> i64 {
        self.ids.size()[1] / 2
    }
}

/// Batches; the n-th depends on n and the seed only.
struct Drawn<'a> {
    config: &'a CopyTaskConfig,
    device: Device,
    position: u64,
}

impl Batches for Drawn<'_> {
    type Batch = Copies;

    fn next(&mut self) -> video_core::Result<Copies> {
        let stage = self.config.stage(self.position);
        let copies = self.config.draw(stage, seeds::Stream::Data, self.position, self.device)?;
        self.position += 1;
        Ok(copies)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.position = position;
        Ok(())
    }
}

/// The network, and the loss of the copied half.
struct CopyObjective {
    model: PerceiverAr,
    variables: nn::VarStore,
}

impl Objective for CopyObjective {
    type Batch = Copies;

    fn parts(&self) -> Vec<Part<'_>> {
        vec![Part::new("model", &self.variables)]
    }

    fn loss(&mut self, _part: usize, batch: &Copies, _step: u64) -> video_core::Result<StepLoss> {
        let latents = batch.latents();
        let train = TrainDraws::default();
        let logits = self.model.forward(batch.sequence(), Some(latents), Some(&train))?.logits;
        let targets = batch.targets.narrow(1, latents, latents);
        let weights = targets.ones_like().to_kind(Kind::Float);
        let plain = LossConfig { label_smoothing: 0.0, z_loss: 0.0 };
        let loss = cross_entropy(&logits, &targets, &weights, plain)?.loss.mean(Kind::Float);
        let hits = logits.argmax(-1, false).eq_tensor(&targets).to_kind(Kind::Float).mean(Kind::Float);
        Ok(StepLoss::new(loss).with("accuracy", &hits))
    }
}

impl CopyObjective {
    /// Share of held-out copied tokens that are the likeliest given all before them, and their nats.
    fn test(&self, config: &CopyTaskConfig) -> video_core::Result<(f64, f64)> {
        let (mut correct, mut count, mut nats) = (0, 0, 0.0);
        for number in 0..config.held_out as u64 {
            let stage = Stage { steps: 1, length: config.length(), batch: 1 };
            let copies = config.draw(&stage, seeds::Stream::Sample, number, self.variables.device())?;
            let sums = self.model.evaluate(copies.sequence(), &copies.targets, copies.latents())?;
            (correct, count, nats) = (correct + sums.correct, count + sums.count, nats + sums.nats);
        }
        Ok((correct as f64 / count as f64, nats / count as f64))
    }
}

/// Trains on copies, continuing where it was stopped, and tells the accuracy on held-out ones.
pub fn run(args: &RunArgs) -> Result<()> {
    let config: CopyTaskConfig = toml_file::load(&args.config, &args.overrides)?;
    config.validate()?;
    let device = tokenizer::device(&config.device)?;
    let folder = args.runs.join(Path::new(&config.name));
    seeds::seed_torch(config.seed, seeds::Stream::Init, 0);
    let variables = nn::VarStore::new(device);
    let model = PerceiverAr::new(&variables.root(), &config.model)?;
    let mut objective = CopyObjective { model, variables };
    let mut batches = Drawn { config: &config, device, position: 0 };
    let train = TrainConfig { seed: config.seed, ..config.train.clone() };
    let task =
        serde_json::json!({ "model": config.model, "alphabet": config.alphabet, "stages": config.stages });
    let mut trainer = Trainer::new(&folder, train)?.describe(task);
    files::write_whole(&folder.join("config.toml"), toml::to_string_pretty(&config)?.as_bytes())?;
    let outcome = trainer.train(&mut objective, &mut batches, |objective, _step| {
        let (accuracy, nats) = objective.test(&config)?;
        Ok(vec![("accuracy".into(), accuracy), ("nats".into(), nats)])
    })?;
    crate::pipeline::leave_if_interrupted(&outcome, config.train.steps);
    let (accuracy, nats) = objective.test(&config)?;
    let length = config.length();
    println!(
        "{} held-out sequences of {length} tokens, {} latents: {:.2} % of the {} copied tokens right, {nats:.4} nats a token; {} steps, {:.0} s of training in this process",
        config.held_out,
        length / 2,
        accuracy * 100.0,
        config.held_out * length / 2,
        outcome.step,
        outcome.seconds
    );
    Ok(())
}
