//! MAGVIT's decoding: a prefix in front of the grid, and a condition region whose tokens are refined.

use tch::{Kind, Tensor, no_grad};
use video_core::sampling::{Filter, gumbel_like};
use video_core::{Error, Result};

use crate::decode::{DecodeOptions, counts_of, scattered};
use crate::mask::{
    ConditionMode, MaskRule, MaskedTokens, RegionCondition, WeightMode, annealed_confidence, mask_by_score,
};
use crate::schedule::MaskSchedule;
use crate::transformer::BidirectionalTransformer;
use crate::vocabulary::{Columns, Logits};

/// How [`decode_grid`] goes about it; the defaults are MAGVIT's.
#[derive(Clone, Debug, PartialEq)]
pub struct GridDecodeOptions {
    /// T.
    pub steps: i64,
    /// How many of all tokens of the grid are masked after each step.
    pub schedule: MaskSchedule,
    /// Scale of the noise on the confidence in the first step; it falls to 0 in the last.
    pub choice_temperature: f64,
    /// What is done to logits before an id is drawn.
    pub filter: Filter,
    /// s of l + s (l − l_uncond); 0 is none, and saves the pass without condition.
    pub guidance_scale: f64,
}

impl Default for GridDecodeOptions {
    fn default() -> Self {
        Self {
            steps: 12,
            schedule: MaskSchedule::Cosine,
            choice_temperature: 4.5,
            filter: Filter::default(),
            guidance_scale: 0.0,
        }
    }
}

impl GridDecodeOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !self.guidance_scale.is_finite() {
            return Err(Error::config("guidance_scale", self.guidance_scale, "a finite number"));
        }
        DecodeOptions {
            steps: self.steps,
            start_step: 0,
            schedule: self.schedule.clone(),
            choice_temperature: self.choice_temperature,
            filter: self.filter,
        }
        .validate()
    }
}

/// What a grid is decoded from.
#[derive(Debug)]
pub struct GridPrompt<'a> {
    /// Sequences `[B, P]` in front of the grid.
    pub prefix: &'a MaskedTokens,
    /// int64 `[B, t, h, w]`: read only where [`ConditionMode::InputToInput`] keeps them; any ids elsewhere.
    pub ids: &'a Tensor,
    /// Condition tokens and how they enter.
    pub condition: Option<(ConditionMode, &'a RegionCondition)>,
}

/// Gumbel noise for every draw of a decoding.
#[derive(Debug)]
pub struct GridDecodeNoise {
    /// `[T, B, t, h, w, K]`, added to the logits.
    pub sample: Tensor,
    /// `[T, B, t, h, w]`, added to the confidence.
    pub choice: Tensor,
}

/// A decoding and how it came about; all int64 `[B, t, h, w]`.
#[derive(Debug)]
pub struct GridDecoded {
    /// The grid: nothing is masked.
    pub ids: Tensor,
    /// What the model read in each step.
    pub inputs: Vec<Tensor>,
    /// The filled grid after each step.
    pub sampled: Vec<Tensor>,
}

/// Decodes a grid. Only masked positions and, with [`ConditionMode::ConditionToInput`], those that hold a condition token yet to
/// be refined go through the head.
///
/// One difference from the reference: where a single token is left before the last step, it is drawn again. The reference
/// masks everything then.
///
/// # Errors
/// Options out of range, shapes or ids that the model does not take.
pub fn decode_grid(
    model: &BidirectionalTransformer,
    prompt: &GridPrompt<'_>,
    options: &GridDecodeOptions,
    noise: Option<&GridDecodeNoise>,
) -> Result<GridDecoded> {
    options.validate()?;
    let ids = prompt.ids;
    if ids.dim() != 4
        || ids.size().contains(&0)
        || prompt.prefix.inputs.dim() != 2
        || prompt.prefix.inputs.size()[0] != ids.size()[0]
    {
        return Err(Error::shape("grid", &ids.size(), "[B, t, h, w], with a prefix [B, P]"));
    }
    no_grad(|| {
        let tokens = ids.numel() as i64 / ids.size()[0];
        let rule =
            MaskRule { condition: prompt.condition, weights: WeightMode::Masked, at_least: 1, at_most: None };
        let never = Tensor::zeros(ids.size(), (Kind::Float, ids.device()));
        let mut masked = mask_by_score(ids, &never, &[1.0], rule)?;
        let (mut inputs, mut sampled) = (Vec::new(), Vec::new());
        for step in 0..options.steps {
            let unknown = masked.weights.gt(0.0);
            let rows = unknown.reshape([-1]).nonzero().squeeze_dim(-1);
            let logits = guided_logits(model, prompt.prefix, &masked, &rows, options.guidance_scale)?;
            let given: Option<Vec<Tensor>> =
                noise.map(|noise| vec![noise.sample.get(step).flatten(0, -2).index_select(0, &rows)]);
            let draws = logits.draw(&options.filter, given.as_deref());
            let full = scattered(&masked.inputs, &rows, &draws.ids);

            let progress = (step + 1) as f32 / options.steps as f32;
            let temperature = options.choice_temperature * (1.0 - f64::from(progress));
            let certain = Tensor::full(ids.size(), f64::INFINITY, (Kind::Float, ids.device()));
            let log_p = scattered(&certain, &rows, &draws.log_probabilities);
            let perturbation = match noise {
                Some(noise) => noise.choice.get(step),
                None => gumbel_like(&log_p),
            };
            let confidence = annealed_confidence(&log_p, temperature, &perturbation);
            let ratio = options.schedule.ratio(progress, tokens)?;
            let fewer: Vec<i64> = counts_of(&unknown).iter().map(|n| n - 1).collect();
            inputs.push(masked.inputs);
            let rule = MaskRule { at_most: Some(&fewer), ..rule };
            masked = mask_by_score(&full, &confidence, &[ratio], rule)?;
            sampled.push(full);
        }
        let ids = sampled.last().expect("at least one step").shallow_clone();
        Ok(GridDecoded { ids, inputs, sampled })
    })
}

/// The logits at `rows` of the grid's B·N positions.
fn guided_logits(
    model: &BidirectionalTransformer,
    prefix: &MaskedTokens,
    grid: &MaskedTokens,
    rows: &Tensor,
    guidance_scale: f64,
) -> Result<Logits> {
    let join =
        |prefix: &Tensor, grid: &Tensor| Tensor::cat(&[prefix.shallow_clone(), grid.flatten(1, -1)], 1);
    let prefix_len = prefix.inputs.size()[1];
    let tokens = grid.inputs.flatten(1, -1).size()[1];
    // Row b·N + n of the grids is row b·(P + N) + P + n of the sequences.
    let samples = rows.divide_scalar_mode(tokens, "floor");
    let rows = rows + (samples + 1) * prefix_len;
    let segments = join(&prefix.segment_ids, &grid.segment_ids);
    let logits = |prefix: &Tensor, grid: &Tensor| {
        let hidden = model.hidden(&join(prefix, grid), Some(&segments), false)?;
        model.logits(&hidden, &rows, Columns::Codes)
    };
    let conditional = logits(&prefix.inputs, &grid.inputs)?;
    if guidance_scale == 0.0 {
        return Ok(conditional);
    }
    let unconditional = logits(&prefix.uncond_inputs, &grid.uncond_inputs)?;
    Ok(conditional.guided(&unconditional, guidance_scale))
}
