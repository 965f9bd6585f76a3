//! The contract of a generator of token grids.

use tch::Tensor;

use crate::{GridShape, Result, TokenGrid, sampling::Filter};

/// What a generator may be told about the clip to make. All given parts hold together.
#[derive(Debug, Default)]
pub struct Condition {
    /// Tokens of the first latent frames, `[B, t, H', W']`: continue from here.
    pub first_frames: Option<TokenGrid>,
    /// Class labels, int64 `[B]`.
    pub class: Option<Tensor>,
    /// Text embeddings, float `[B, L, D]`, and their mask, bool `[B, L]` (true where there is text).
    pub text: Option<(Tensor, Tensor)>,
    /// Actions, one per frame transition, int64 `[B, T - 1]` or float `[B, T - 1, A]`.
    pub actions: Option<Tensor>,
    /// Audio tokens, int64 `[B, L]`.
    pub audio: Option<Tensor>,
}

/// The parts of a [`Condition`], by name: what a generator states that it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionKind {
    /// [`Condition::first_frames`]
    FirstFrames,
    /// [`Condition::class`]
    Class,
    /// [`Condition::text`]
    Text,
    /// [`Condition::actions`]
    Actions,
    /// [`Condition::audio`]
    Audio,
}

impl Condition {
    /// The kinds that are given.
    pub fn kinds(&self) -> Vec<ConditionKind> {
        [
            (self.first_frames.is_some(), ConditionKind::FirstFrames),
            (self.class.is_some(), ConditionKind::Class),
            (self.text.is_some(), ConditionKind::Text),
            (self.actions.is_some(), ConditionKind::Actions),
            (self.audio.is_some(), ConditionKind::Audio),
        ]
        .into_iter()
        .filter_map(|(given, kind)| given.then_some(kind))
        .collect()
    }

    /// Refuses a condition with a part that the generator does not serve.
    ///
    /// # Errors
    /// Names the generator, the part, and what it does serve.
    pub fn check_served(&self, generator: &str, served: &[ConditionKind]) -> Result<()> {
        match self.kinds().into_iter().find(|kind| !served.contains(kind)) {
            None => Ok(()),
            Some(kind) => Err(crate::Error::unsupported(
                generator,
                format!("use the condition {kind:?}"),
                format!("it was built for {served:?}"),
            )),
        }
    }
}

/// How to draw a sample.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Clips to make.
    pub batch: i64,
    /// Seed of every draw.
    pub seed: u64,
    /// What is done to the logits before a draw.
    pub filter: Filter,
    /// Weight of classifier-free guidance; 1 is none.
    pub guidance: f64,
}

/// A model of token grids. See `docs/how-to-add-a-generator.md`.
pub trait TokenGenerator {
    /// The mean loss of a batch, 0-d, with gradients: nats per token unless the implementor says otherwise.
    ///
    /// # Errors
    /// Ids outside the vocabulary, a grid of another size than the model was built for, a condition that it does not serve.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor>;

    /// Draws grids of the given shape, without gradients.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`].
    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid>;

    /// The conditions that the model was built for.
    fn serves(&self) -> &[ConditionKind];

    /// How many ids there are.
    fn vocabulary_size(&self) -> i64;
}
