//! Sampling one token after another.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::memory::{Memory, MemoryKind};
use crate::model::{PerceiverAr, Sequence};
use crate::sequence::RESERVED;

/// What removed logits become.
const REMOVED: f64 = -1e30;

/// Sequences whose ids take turns: each position may have ids of one range only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Modality {
    /// Bytes of red, green, blue, in ranges of 256.
    #[serde(rename = "image")]
    Image,
    /// 24 codebooks of 1024.
    #[serde(rename = "soundstream_12kbps")]
    Soundstream12kbps,
    /// 44 codebooks of 1024.
    #[serde(rename = "soundstream_22kbps")]
    Soundstream22kbps,
}

impl Modality {
    /// How many ranges, and of what size.
    fn ranges(self) -> (i64, i64) {
        match self {
            Self::Image => (3, 256),
            Self::Soundstream12kbps => (24, 1024),
            Self::Soundstream22kbps => (44, 1024),
        }
    }
}

/// Logits `[B, V]` of position `index` (the start is 0), filtered as the reference does: what the modality excludes goes,
/// then what is less likely than the most likely ids that make up `top_p`, then all are divided by the temperature. What
/// goes becomes −1e30, before the division.
///
/// # Errors
/// A vocabulary that is not the modality's, an index before the first token, a `top_p` or a temperature out of range.
pub fn process_logits(
    logits: &Tensor,
    index: i64,
    top_p: f64,
    temperature: f64,
    modality: Option<Modality>,
) -> Result<Tensor> {
    let size = logits.size();
    let vocabulary = size.last().copied().unwrap_or(0);
    if size.len() != 2 || vocabulary < 1 {
        return Err(Error::shape("logits", &size, "[B, V]"));
    }
    if !(0.0..=1.0).contains(&top_p) {
        return Err(Error::config("top_p", top_p, "a number in [0, 1]"));
    }
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Error::config("temperature", temperature, "a number of at least 0"));
    }
    let mut logits = logits.shallow_clone();
    if let Some(modality) = modality {
        let (ranges, range) = modality.ranges();
        if vocabulary != RESERVED + ranges * range || index < 1 {
            let expected = format!("{} ids, at an index of at least 1", RESERVED + ranges * range);
            return Err(Error::input("logits", format!("{vocabulary} ids at {index}"), expected));
        }
        let first = RESERVED + (index - 1) % ranges * range;
        let id = Tensor::arange(vocabulary, (Kind::Int64, logits.device()));
        let of_turn = id.ge(first).logical_and(&id.lt(first + range));
        logits = logits.masked_fill(&of_turn.logical_or(&id.lt(RESERVED)).logical_not(), REMOVED);
    }
    if top_p < 1.0 {
        let (sorted, _) = logits.sort(-1, false);
        let mass = sorted.softmax(-1, Kind::Float).cumsum(-1, Kind::Float);
        let crossing = mass.ge(1.0 - top_p).to_kind(Kind::Int64).argmax(-1, true);
        let threshold = sorted.gather(-1, &crossing, false);
        logits = logits.masked_fill(&logits.lt_tensor(&threshold), REMOVED);
    }
    Ok(logits / temperature.max(1e-12))
}

/// How a [`Sampler`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// The whole buffer, padding included, for every token: exact, and slow.
    Recompute,
    /// One latent a token onto what is remembered, until `latents` are remembered; then the last `refill` are computed anew
    /// from all tokens, and what is remembered starts from them. Tokens just after the prompt have only `prompt` latents.
    ///
    /// A token's latent then sees as many latents before it as are remembered, `refill` to `latents`, where training gave it
    /// up to Z: samples differ from those of `recompute`, unless the histories agree.
    Strided {
        /// Latents that are remembered at most.
        latents: i64,
        /// Latents after they are computed anew.
        refill: i64,
        /// Latents that the prompt gets.
        prompt: i64,
    },
}

impl Scheme {
    /// The reference's: half of the latents are computed anew, and the prompt gets one.
    pub fn reference(latents: i64) -> Self {
        Self::Strided { latents, refill: latents / 2, prompt: 1 }
    }
}

/// A batch of sequences that is being filled from left to right: take [`Sampler::logits`], choose ids, [`Sampler::write`]
/// them, until [`Sampler::is_done`].
#[derive(Debug)]
pub struct Sampler<'a> {
    model: &'a PerceiverAr,
    scheme: Scheme,
    /// int64 `[B, N]`
    events: Tensor,
    /// int64 `[B, N, D]`
    positions: Option<Tensor>,
    at: i64,
    memory: Option<Memory>,
}

impl<'a> Sampler<'a> {
    /// Starts from events int64 `[B, N]`, of which the first `start` are given, and the positions int64 `[B, N, D]` of all of
    /// them.
    ///
    /// # Errors
    /// No event is given or more than the context holds, a scheme that the model cannot serve or that makes no progress.
    pub fn new(
        model: &'a PerceiverAr,
        events: &Tensor,
        positions: Option<&Tensor>,
        start: i64,
        scheme: Scheme,
    ) -> Result<Self> {
        let size = events.size();
        let most = model.config().max_context_length + 1;
        if size.len() != 2 || size[0] < 1 || size[1] > most || events.kind() != Kind::Int64 {
            let expected = format!("int64 [B, N] with N at most {most}, the context and a start");
            return Err(Error::shape("events", &size, expected));
        }
        if !(1..=size[1]).contains(&start) {
            let expected = format!("1 to {}: a start, and a prompt within the context", size[1]);
            return Err(Error::input("prompt", format!("{start} events"), expected));
        }
        let memory = match scheme {
            Scheme::Recompute => None,
            Scheme::Strided { latents, refill, prompt } => {
                for (field, value, most) in [("refill", refill, latents - 1), ("prompt", prompt, latents)] {
                    if !(1..=most).contains(&value) {
                        return Err(Error::config(field, value, format!("1 to {most}")));
                    }
                }
                Some(model.memory(Self::kind(size[1], latents))?)
            }
        };
        let positions = positions.map(Tensor::shallow_clone);
        Ok(Self { model, scheme, events: events.copy(), positions, at: start, memory })
    }

    fn kind(events: i64, latents: i64) -> MemoryKind {
        MemoryKind::FixedSize { inputs: (events - 1).max(1), latents }
    }

    /// The number of the event that comes next.
    pub fn position(&self) -> i64 {
        self.at
    }

    /// Whether all events are there.
    pub fn is_done(&self) -> bool {
        self.at >= self.events.size()[1]
    }

    /// The events so far, padding behind them: int64 `[B, N]`.
    pub fn events(&self) -> &Tensor {
        &self.events
    }

    /// The logits `[B, V]` of the next event, without gradients.
    ///
    /// # Errors
    /// All events are there, or the model refuses the sequence.
    pub fn logits(&mut self) -> Result<Tensor> {
        if self.is_done() {
            return Err(Error::input("sampler", "all events are there", "fewer than the buffer holds"));
        }
        let Scheme::Strided { latents, refill, prompt } = self.scheme else {
            let sequence = Sequence { ids: &self.events, positions: self.positions.as_ref() };
            let logits = tch::no_grad(|| self.model.forward(sequence, None, None))?.logits;
            return Ok(logits.select(1, -1));
        };
        let mut memory = match self.memory.take() {
            Some(memory) => memory,
            None => self.model.memory(Self::kind(self.events.size()[1], latents))?,
        };
        // Which events are fed, and how many latents they get.
        let (first, count) = if memory.inputs() == 0 {
            (0, prompt)
        } else if memory.latents_are_full() {
            memory = self.model.memory(memory.kind())?;
            (0, refill)
        } else {
            (memory.inputs(), 1)
        };
        let new = self.at - first;
        let ids = self.events.narrow(1, first, new);
        let positions = self.positions.as_ref().map(|positions| positions.narrow(1, first, new));
        let sequence = Sequence { ids: &ids, positions: positions.as_ref() };
        let logits = self.model.push(&mut memory, sequence, count.min(new))?;
        self.memory = Some(memory);
        Ok(logits.select(1, -1))
    }

    /// Writes the next event, int64 `[B]`.
    ///
    /// # Errors
    /// All events are there, or another shape.
    pub fn write(&mut self, ids: &Tensor) -> Result<()> {
        if self.is_done() || ids.size() != [self.events.size()[0]] || ids.kind() != Kind::Int64 {
            let expected = format!("int64 [{}], while the buffer has room", self.events.size()[0]);
            return Err(Error::shape("ids", &ids.size(), expected));
        }
        self.events.select(1, self.at).copy_(ids);
        self.at += 1;
        Ok(())
    }
}
