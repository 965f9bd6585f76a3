//! MaskGIT's parallel decoding (section 3.2): the whole grid in a few steps, the surest tokens first.

use tch::{Kind, Tensor, no_grad};
use video_core::sampling::{Filter, gumbel_like};
use video_core::{Error, Result};

use crate::mask::{MASK, annealed_confidence, below_cut};
use crate::schedule::MaskSchedule;
use crate::transformer::BidirectionalTransformer;
use crate::vocabulary::Columns;

/// How [`decode`] goes about it; the defaults are MaskGIT's.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// T. The papers use 8 to 12.
    pub steps: i64,
    /// The step to start with; editing starts at 2 or so, as much is known.
    pub start_step: i64,
    /// How many are masked after each step.
    pub schedule: MaskSchedule,
    /// Scale of the noise on the confidence in the first step; it falls to 0 in the last.
    pub choice_temperature: f64,
    /// What is done to logits before an id is drawn.
    pub filter: Filter,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            steps: 12,
            start_step: 0,
            schedule: MaskSchedule::Cosine,
            choice_temperature: 4.5,
            filter: Filter::default(),
        }
    }
}

impl DecodeOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.steps) {
            return Err(Error::config("steps", self.steps, "1 to 2^20"));
        }
        if !(0..self.steps).contains(&self.start_step) {
            return Err(Error::config("start_step", self.start_step, format!("0 to {}", self.steps - 1)));
        }
        if !(self.choice_temperature >= 0.0 && self.choice_temperature.is_finite()) {
            return Err(Error::config("choice_temperature", self.choice_temperature, "at least 0"));
        }
        self.filter.validate()
    }
}

/// Gumbel noise for every draw of a decoding. Where it is not given, it comes from torch's global generator.
#[derive(Debug)]
pub struct DecodeNoise {
    /// `[T, B, L, K]`, added to the logits of the i-th pass.
    pub sample: Tensor,
    /// `[T, B, L]`, added to the confidence after the i-th pass.
    pub choice: Tensor,
}

/// A decoding and how it came about.
#[derive(Debug)]
pub struct Decoded {
    /// int64 `[B, L]`: nothing is masked.
    pub ids: Tensor,
    /// After each pass, `[B, L]`: all positions filled.
    pub sampled: Vec<Tensor>,
    /// After each pass, `[B, L]`: the unsure ones masked again, the input of the next pass.
    pub next_inputs: Vec<Tensor>,
}

/// Fills the masked positions ([`MASK`]) of ids `[B, L]`. Only they go through the head.
///
/// With more steps than masked tokens, the surplus steps draw one of them anew.
///
/// # Errors
/// Options out of range, ids that the model does not take.
pub fn decode(
    model: &BidirectionalTransformer,
    ids: &Tensor,
    options: &DecodeOptions,
    noise: Option<&DecodeNoise>,
) -> Result<Decoded> {
    options.validate()?;
    no_grad(|| {
        let mut inputs = ids.shallow_clone();
        let mut unknown = inputs.eq(MASK);
        let at_first = counts_of(&unknown);
        let mut left = at_first.clone();
        let (mut sampled, mut next_inputs) = (Vec::new(), Vec::new());
        for (pass, step) in (options.start_step..options.steps).enumerate() {
            let pass = pass as i64;
            let rows = unknown.reshape([-1]).nonzero().squeeze_dim(-1);
            let hidden = model.hidden(&inputs, None, false)?;
            let logits = model.logits(&hidden, &rows, Columns::Codes)?;
            let given: Option<Vec<Tensor>> =
                noise.map(|noise| vec![noise.sample.get(pass).flatten(0, 1).index_select(0, &rows)]);
            let draws = logits.draw(&options.filter, given.as_deref());
            let full = scattered(&inputs, &rows, &draws.ids);

            let progress = (step + 1) as f32 / options.steps as f32;
            let temperature = options.choice_temperature * (1.0 - f64::from(progress));
            let certain = Tensor::full(inputs.size(), f64::INFINITY, (Kind::Float, inputs.device()));
            let log_p = scattered(&certain, &rows, &draws.log_probabilities);
            let perturbation = match noise {
                Some(noise) => noise.choice.get(pass),
                None => gumbel_like(&log_p),
            };
            let confidence = annealed_confidence(&log_p, temperature, &perturbation);
            for (left, &first) in left.iter_mut().zip(&at_first) {
                // A sample with nothing to fill masks nothing.
                *left = if first == 0 { 0 } else { options.schedule.count(progress, first, *left)? };
            }
            let counts = Tensor::from_slice(&left).to_device(ids.device());
            unknown = below_cut(&confidence, &counts).logical_and(&unknown);
            inputs = full.masked_fill(&unknown, MASK);
            left = counts_of(&unknown);
            sampled.push(full);
            next_inputs.push(inputs.shallow_clone());
        }
        let ids = sampled.last().expect("at least one step").shallow_clone();
        Ok(Decoded { ids, sampled, next_inputs })
    })
}

/// True positions of each sample of `[B, ...]`.
pub(crate) fn counts_of(mask: &Tensor) -> Vec<i64> {
    let counts = mask.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    (0..mask.size()[0]).map(|sample| counts.int64_value(&[sample])).collect()
}

/// A copy of `base` with `values` `[M]` at the positions `rows` `[M]` of all its elements.
pub(crate) fn scattered(base: &Tensor, rows: &Tensor, values: &Tensor) -> Tensor {
    base.reshape([-1]).index_copy(0, rows, values).reshape(base.size())
}
