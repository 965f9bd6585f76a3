//! A GAN of a few hundred weights with everything that makes resuming hard: dropout noise, buffers that forward passes
//! change, a discriminator that starts late and uses the generator's own forward, EMA, accumulation.

use std::path::Path;

use tch::{Device, Kind, Tensor, nn};
use training::{
    Batches, EmaConfig, MuonConfig, Objective, Part, PartConfig, Schedule, StepLoss, TrainConfig,
};
use video_core::seeds::{Stream, derive, seed_torch};

pub const SEED: u64 = 7;

pub struct ToyGan {
    pub generator: nn::VarStore,
    pub discriminator: nn::VarStore,
    net: nn::Sequential,
    critic: nn::Linear,
    /// The critic's average answer: a buffer, as LeCAM's.
    average: Tensor,
    fake: Option<Tensor>,
    /// The loss becomes NaN at this step.
    pub poisoned: Option<u64>,
}

impl ToyGan {
    pub fn new(width: i64) -> Self {
        seed_torch(SEED, Stream::Init, 0);
        let generator = nn::VarStore::new(Device::Cpu);
        let root = generator.root();
        let net = nn::seq()
            .add(nn::linear(&root / "inner", 4, width, Default::default()))
            .add_fn(|x| x.relu().dropout(0.2, true))
            .add(nn::linear(&root / "outer", width, 4, Default::default()));
        let discriminator = nn::VarStore::new(Device::Cpu);
        let critic = nn::linear(discriminator.root() / "critic", 4, 1, Default::default());
        let average = discriminator.root().zeros_no_train("average", &[1]);
        Self { generator, discriminator, net, critic, average, fake: None, poisoned: None }
    }
}

impl Objective for ToyGan {
    type Batch = Tensor;

    fn parts(&self) -> Vec<Part<'_>> {
        vec![
            Part::new("generator", &self.generator),
            Part::new("discriminator", &self.discriminator).without_ema(),
        ]
    }

    fn active(&self, part: usize, step: u64) -> bool {
        part == 0 || step >= 5
    }

    fn loss(&mut self, part: usize, x: &Tensor, step: u64) -> video_core::Result<StepLoss> {
        if part == 0 {
            let fake = x.apply(&self.net);
            let mse = (&fake - x).square().mean(Kind::Float);
            let mse = if self.poisoned == Some(step) { mse * f64::NAN } else { mse };
            let adversarial = -fake.apply(&self.critic).mean(Kind::Float);
            assert!(!self.critic.ws.requires_grad(), "the other part's weights rest");
            self.fake = Some(fake.detach());
            return Ok(StepLoss::new(&mse + &adversarial * 0.1)
                .with("mse", &mse)
                .with("adversarial", &adversarial));
        }
        let fake = self.fake.take().ok_or_else(|| {
            video_core::Error::input("fake", "no forward of the generator", "the generator's loss first")
        })?;
        let (real, fake) = (x.apply(&self.critic), fake.apply(&self.critic));
        let mut average = self.average.shallow_clone();
        tch::no_grad(|| average.copy_(&(&average * 0.9 + real.mean(Kind::Float) * 0.1)));
        let hinge = (-&real + 1.0).relu().mean(Kind::Float) + (&fake + 1.0).relu().mean(Kind::Float);
        let lecam = (&fake - &average).square().mean(Kind::Float);
        Ok(StepLoss::new(hinge + lecam * 0.01))
    }
}

/// The n-th batch from n alone.
pub struct Points {
    position: u64,
    size: i64,
    /// What a batch takes to make.
    pub delay: std::time::Duration,
}

impl Points {
    pub fn new(size: i64) -> Self {
        Self { position: 0, size, delay: std::time::Duration::ZERO }
    }
}

impl Batches for Points {
    type Batch = Tensor;

    fn next(&mut self) -> video_core::Result<Tensor> {
        std::thread::sleep(self.delay);
        let numbers: Vec<f32> = (0..self.size * 4)
            .map(|i| {
                let bits = derive(SEED, Stream::Data, self.position * self.size as u64 * 4 + i as u64);
                (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        self.position += 1;
        Ok(Tensor::from_slice(&numbers).view([self.size, 4]))
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.position = position;
        Ok(())
    }
}

pub fn config(steps: u64) -> TrainConfig {
    // Of the generator's weights one is Muon's and one AdamW's.
    let muon = MuonConfig { except: vec!["outer".into()], ..MuonConfig::default() };
    TrainConfig {
        steps,
        seed: SEED,
        learning_rate: 1e-2,
        min_learning_rate: 1e-3,
        schedule: Schedule::Cosine {},
        warmup_steps: 5,
        weight_decay: 0.01,
        clip_norm: Some(0.5),
        gradient_accumulation: 2,
        ema: Some(EmaConfig { decay: 0.9, warmup: true }),
        parts: [
            ("generator".into(), PartConfig { muon: Some(muon), ..Default::default() }),
            ("discriminator".into(), PartConfig { beta1: Some(0.5), ..Default::default() }),
        ]
        .into(),
        checkpoint_every: 7,
        log_every: 3,
        eval_every: 10,
        ..TrainConfig::default()
    }
}

/// The mean error on fixed points: what `train` is given to evaluate with.
pub fn evaluate(gan: &mut ToyGan, _step: u64) -> video_core::Result<Vec<(String, f64)>> {
    let x = Points::new(16).next()?;
    let error = (x.apply(&gan.net) - &x).square().mean(Kind::Float).double_value(&[]);
    Ok(vec![("error".into(), error)])
}

/// Trains the toy in a folder, as a process of its own would.
pub fn train(folder: &Path, config: TrainConfig, delay_ms: u64) -> training::Result<training::Outcome> {
    let mut points = Points::new(8);
    points.delay = std::time::Duration::from_millis(delay_ms);
    training::Trainer::new(folder, config)?.train(&mut ToyGan::new(16), &mut points, evaluate)
}
