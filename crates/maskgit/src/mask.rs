//! What is masked, and what stands there instead: MaskGIT's random positions and MAGVIT's COMMIT with its relatives.

mod block;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

pub use block::{BlockDraws, BlockShape, block_scores, frame_by_frame_scores};

/// The id that stands at masked positions. Negative ids count from the end of the word table, so this is its last row.
pub const MASK: i64 = -1;

/// How condition tokens enter a masked grid (MAGVIT, section 3.2). In configs: `"cond->input"`, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionMode {
    /// COMMIT: a masked position inside the condition region holds the condition token, which is to be refined.
    #[serde(rename = "cond->input")]
    ConditionToInput,
    /// The region is never masked; the true tokens stand there.
    #[serde(rename = "input->input")]
    InputToInput,
    /// The region is never masked; the condition tokens stand there, and are the targets there.
    #[serde(rename = "cond->cond")]
    ConditionToCondition,
}

impl ConditionMode {
    /// Whether positions of the region can be masked.
    fn masks_region(self) -> bool {
        self == Self::ConditionToInput
    }
}

/// Which positions the loss counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightMode {
    /// All that can be masked: predict, refine and reconstruct.
    #[default]
    #[serde(rename = "mask+refine+recons")]
    All,
    /// Masked ones only: predict and refine.
    #[serde(rename = "mask+refine")]
    Masked,
}

/// Tokens that condition a grid, and where they stand.
#[derive(Debug)]
pub struct RegionCondition {
    /// Ids int64 `[B, t, h, w]` of the padded condition video; not read outside the region, and not with
    /// [`ConditionMode::InputToInput`].
    pub ids: Tensor,
    /// bool, broadcasts to `[B, t, h, w]`: true inside the condition region.
    pub region: Tensor,
}

impl RegionCondition {
    /// Checks that it fits grids of shape `[B, t, h, w]`.
    ///
    /// # Errors
    /// Ids of another shape or kind, a region that is not bool or does not broadcast to the grids.
    pub fn check(&self, grids: &[i64]) -> Result<()> {
        if self.ids.size() != grids || self.ids.kind() != Kind::Int64 {
            return Err(Error::shape("condition ids", &self.ids.size(), format!("int64 {grids:?}")));
        }
        let region = self.region.size();
        let fits = region.iter().rev().zip(grids.iter().rev()).all(|(&a, &b)| a == b || a == 1);
        if self.region.kind() != Kind::Bool || region.len() > grids.len() || !fits {
            return Err(Error::shape("condition region", &region, format!("bool, broadcast to {grids:?}")));
        }
        Ok(())
    }
}

/// A grid of which something is masked. All `[B, t, h, w]`, int64 but for the weights.
#[derive(Debug)]
pub struct MaskedTokens {
    /// What the model reads.
    pub inputs: Tensor,
    /// What it reads without its condition, for guidance.
    pub uncond_inputs: Tensor,
    /// 1 where a condition token stands for a mask.
    pub segment_ids: Tensor,
    /// What it is to predict.
    pub targets: Tensor,
    /// float: the loss counts this position.
    pub weights: Tensor,
}

impl MaskedTokens {
    /// Nothing masked, weight 0: how prefix tokens enter a sequence. `uncond_inputs` is what stands there without condition.
    pub fn nothing_masked(ids: &Tensor, uncond_inputs: Option<&Tensor>) -> Self {
        Self {
            inputs: ids.shallow_clone(),
            uncond_inputs: uncond_inputs.unwrap_or(ids).shallow_clone(),
            segment_ids: ids.zeros_like(),
            targets: ids.shallow_clone(),
            weights: ids.zeros_like().to_kind(Kind::Float),
        }
    }

    /// All masked, with condition tokens in their region; every position has weight 1.
    pub fn all_masked(ids: &Tensor, condition: Option<&RegionCondition>) -> Self {
        let masks = ids.full_like(MASK);
        let inputs = match condition {
            Some(RegionCondition { ids, region }) => ids.where_self(region, &masks),
            None => masks.shallow_clone(),
        };
        Self {
            inputs,
            uncond_inputs: masks,
            segment_ids: ids.zeros_like(),
            targets: ids.shallow_clone(),
            weights: ids.ones_like().to_kind(Kind::Float),
        }
    }

    /// Sequences `[B, L]` of parts with any axes behind the first, one behind another.
    pub fn concatenate(parts: &[Self]) -> Self {
        let flat = |part: fn(&Self) -> &Tensor| {
            Tensor::cat(&parts.iter().map(|p| part(p).flatten(1, -1)).collect::<Vec<_>>(), 1)
        };
        Self {
            inputs: flat(|p| &p.inputs),
            uncond_inputs: flat(|p| &p.uncond_inputs),
            segment_ids: flat(|p| &p.segment_ids),
            targets: flat(|p| &p.targets),
            weights: flat(|p| &p.weights),
        }
    }
}

/// How [`mask_by_score`] masks.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaskRule<'a> {
    /// The condition and how it enters.
    pub condition: Option<(ConditionMode, &'a RegionCondition)>,
    /// Which positions the loss counts.
    pub weights: WeightMode,
    /// Masked positions of each sample at least; one always is.
    pub at_least: i64,
    /// Masked positions at most: one number for the batch, or one a sample.
    pub at_most: Option<&'a [i64]>,
}

/// Masks the positions of `[B, t, h, w]` with the lowest scores: ⌊maskable · ratio⌋ of each sample, at least one.
///
/// `ratios`: one for the batch, or one a sample. A score of +∞ is never masked while another is left.
///
/// # Errors
/// Shapes that do not fit, ratios outside [0, 1].
pub fn mask_by_score(
    ids: &Tensor,
    scores: &Tensor,
    ratios: &[f32],
    rule: MaskRule<'_>,
) -> Result<MaskedTokens> {
    if ids.dim() < 2 || ids.size().contains(&0) {
        return Err(Error::shape("token grid", &ids.size(), "[B, ...] with no empty axis"));
    }
    if let Some((_, condition)) = rule.condition {
        condition.check(&ids.size())?;
    }
    let batch = ids.size()[0];
    if scores.size() != ids.size() {
        return Err(Error::shape(
            "mask scores",
            &scores.size(),
            format!("that of the ids, {:?}", ids.size()),
        ));
    }
    if ratios.len() != 1 && ratios.len() as i64 != batch {
        return Err(Error::input(
            "mask ratios",
            format!("{} of them", ratios.len()),
            format!("1 or {batch}"),
        ));
    }
    if let Some(ratio) = ratios.iter().find(|ratio| !(0.0..=1.0).contains(*ratio)) {
        return Err(Error::input("mask ratio", ratio.to_string(), "a number in [0, 1]"));
    }
    let region = rule.condition.map(|(_, condition)| condition.region.expand_as(ids));
    let fixed = rule.condition.filter(|(mode, _)| !mode.masks_region()).and(region.as_ref());
    let scores = match fixed {
        Some(region) => scores.masked_fill(region, f64::INFINITY),
        None => scores.shallow_clone(),
    };
    let targets = match rule.condition {
        Some((ConditionMode::ConditionToCondition, condition)) => {
            condition.ids.where_self(&condition.region, ids)
        }
        _ => ids.shallow_clone(),
    };

    let maskable = maskable_tokens(ids, fixed);
    let counts: Vec<i64> = maskable
        .iter()
        .enumerate()
        .map(|(sample, &maskable)| {
            let ratio = ratios[sample % ratios.len()].clamp(1e-6, 1.0);
            let wanted = (maskable as f32 * ratio).floor() as i64;
            let most = rule.at_most.map_or(maskable, |most| most[sample % most.len()]).min(maskable);
            wanted.max(rule.at_least).min(most).max(1)
        })
        .collect();
    let masked = lowest(&scores, &Tensor::from_slice(&counts).to_device(ids.device()));

    let masks = ids.full_like(MASK);
    let (stand_in, segment_ids) = match (rule.condition, &region) {
        (Some((ConditionMode::ConditionToInput, condition)), Some(region)) => {
            (condition.ids.where_self(region, &masks), masked.logical_and(region).to_kind(Kind::Int64))
        }
        _ => (masks.shallow_clone(), ids.zeros_like()),
    };
    let weights = match (rule.weights, fixed) {
        (WeightMode::Masked, _) => masked.to_kind(Kind::Float),
        (WeightMode::All, Some(region)) => region.logical_not().to_kind(Kind::Float),
        (WeightMode::All, None) => ids.ones_like().to_kind(Kind::Float),
    };
    Ok(MaskedTokens {
        inputs: stand_in.where_self(&masked, &targets),
        uncond_inputs: masks.where_self(&masked, &targets),
        segment_ids,
        targets,
        weights,
    })
}

/// How many positions of each sample can be masked.
fn maskable_tokens(ids: &Tensor, fixed: Option<&Tensor>) -> Vec<i64> {
    let batch = ids.size()[0];
    let tokens = ids.numel() as i64 / batch;
    match fixed {
        None => vec![tokens; batch as usize],
        Some(region) => {
            let fixed = region.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
            (0..batch).map(|sample| tokens - fixed.int64_value(&[sample])).collect()
        }
    }
}

/// bool in the shape of the scores `[B, ...]`: at or below the n-th lowest of its sample, n ≥ 1 from `counts` `[B]`. Exactly n
/// are, without ties.
pub fn lowest(scores: &Tensor, counts: &Tensor) -> Tensor {
    let flat = scores.flatten(1, -1);
    let (sorted, _) = flat.sort(-1, false);
    let cut = sorted.gather(1, &(counts.unsqueeze(-1) - 1), false);
    flat.le_tensor(&cut).reshape(scores.size())
}

/// bool `[B, N]`: strictly below the (n + 1)-th lowest of its sample, n from `counts` `[B]`: MaskGIT's cut. Exactly n are,
/// without ties; fewer with them.
pub fn below_cut(scores: &Tensor, counts: &Tensor) -> Tensor {
    let (sorted, _) = scores.sort(-1, false);
    let cut = sorted.gather(1, &counts.unsqueeze(-1), false);
    scores.lt_tensor(&cut)
}

/// ln p + temperature · noise: the confidence in tokens of probability p, made uncertain.
pub fn annealed_confidence(log_probabilities: &Tensor, temperature: f64, noise: &Tensor) -> Tensor {
    log_probabilities + noise * temperature
}
