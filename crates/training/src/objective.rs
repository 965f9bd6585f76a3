//! What is trained, and on what: the two traits that a system and a data set bring.

use tch::{Tensor, nn};
use video_core::Result;

/// One model, or one side of a GAN, with an optimizer of its own.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its name in checkpoints, logs and [`TrainConfig::parts`](crate::TrainConfig::parts): `generator`,
    /// `discriminator`, `model`.
    pub name: &'static str,
    /// All its variables. The trainable ones are optimised; the others (running statistics, EMA codebooks, LeCAM's
    /// averages, queues) are only saved and restored. A name stands for the same tensor in every process.
    pub variables: &'a nn::VarStore,
    /// Whether an EMA of its trainable variables is kept when [`TrainConfig::ema`](crate::TrainConfig::ema) is on.
    pub ema: bool,
}

impl<'a> Part<'a> {
    /// A part whose weights are averaged when the config asks for it.
    pub fn new(name: &'static str, variables: &'a nn::VarStore) -> Self {
        Self { name, variables, ema: true }
    }

    /// A part without EMA, such as a discriminator.
    #[must_use]
    pub fn without_ema(self) -> Self {
        Self { ema: false, ..self }
    }
}

/// One part's loss at one step.
#[derive(Debug)]
pub struct StepLoss {
    /// What is minimised, 0-d.
    pub total: Tensor,
    /// What is logged beside it, 0-d each, as `part.name`. Left on the device: the loop reads them at log steps only.
    pub scalars: Vec<(String, Tensor)>,
}

impl StepLoss {
    /// A loss without other scalars.
    pub fn new(total: Tensor) -> Self {
        Self { total, scalars: Vec::new() }
    }

    /// Logs one more 0-d tensor, detached.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: &Tensor) -> Self {
        self.scalars.push((name.into(), value.detach()));
        self
    }
}

/// What is trained: one optimisation step's losses, part by part.
///
/// All losses of a step see the weights that the step began with: for each micro-batch the loop asks the active parts
/// in order, then every part takes its optimizer step. So a later part may use what an earlier one kept in `&mut self`
/// (a discriminator the reconstruction, detached). While one part's loss is computed the trainable variables of the
/// others do not require gradients: a generator's loss may run through the discriminator as it is.
pub trait Objective {
    /// What [`Batches::next`] gives.
    type Batch;

    /// The parts, the same at every call.
    fn parts(&self) -> Vec<Part<'_>>;

    /// The loss of `parts()[part]` at a step, counted from 0, for one micro-batch. Under
    /// [`TrainConfig::bf16`](crate::TrainConfig::bf16) this runs in autocast where the part's device has instructions for it.
    ///
    /// # Errors
    /// The objective's own; the run stops.
    fn loss(&mut self, part: usize, batch: &Self::Batch, step: u64) -> Result<StepLoss>;

    /// Whether a part is trained at a step. An idle part's weights, moments and EMA rest.
    fn active(&self, _part: usize, _step: u64) -> bool {
        true
    }

    /// Called after all optimizer steps of a step.
    ///
    /// # Errors
    /// The objective's own; the run stops.
    fn after_step(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }
}

/// Endless batches with a position. The n-th batch depends on n and the source's seed only.
pub trait Batches {
    /// What an [`Objective`] takes.
    type Batch;

    /// The next batch. The time spent in here is reported as waiting for data.
    ///
    /// # Errors
    /// The source's own; the run stops.
    fn next(&mut self) -> Result<Self::Batch>;

    /// Batches handed out so far.
    fn position(&self) -> u64;

    /// Goes to a position that [`Batches::position`] gave.
    ///
    /// # Errors
    /// The source's own.
    fn seek(&mut self, position: u64) -> Result<()>;
}
