//! How training masks grids: the three strategies that the roadmap compares, interchangeable by config.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::mask::{
    BlockDraws, BlockShape, ConditionMode, MaskRule, MaskedTokens, RegionCondition, WeightMode, block_scores,
    mask_by_score,
};
use crate::schedule::MaskSchedule;

/// Sides of the blocks that [`MaskStrategy::Multiscale`] draws from.
const SIDES: [i64; 3] = [1, 2, 4];

/// What is masked in a training step. In configs `{ kind = "maskgit" }`, `{ kind = "commit" }`, `{ kind = "multiscale" }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum MaskStrategy {
    /// MaskGIT: a ratio for each sample, positions at random; the loss counts masked positions.
    Maskgit {
        /// The ratio of a uniform draw.
        #[serde(default)]
        schedule: MaskSchedule,
        /// Ratios below are raised to it.
        #[serde(default)]
        min_masking_rate: f32,
    },
    /// MAGVIT's masked language model: one ratio for the batch; condition tokens stand for masks inside their region; the
    /// loss counts all positions that can be masked.
    Commit {
        /// The ratio of a uniform draw.
        #[serde(default)]
        schedule: MaskSchedule,
        /// Tokens that are masked together, `[t, h, w]`.
        #[serde(default = "single")]
        block: BlockShape,
    },
    /// Muse's mask of several scales, on a single grid: as MaskGIT's, in blocks whose side is drawn from 1, 2 and 4 in each
    /// step.
    Multiscale {
        /// The ratio of a uniform draw.
        #[serde(default)]
        schedule: MaskSchedule,
    },
}

fn single() -> BlockShape {
    [1; 3]
}

impl Default for MaskStrategy {
    fn default() -> Self {
        Self::Maskgit { schedule: MaskSchedule::default(), min_masking_rate: 0.0 }
    }
}

impl MaskStrategy {
    /// Checks every field against the grid `[t, h, w]`.
    ///
    /// # Errors
    /// A rate outside [0, 1], or a block that does not divide the grid.
    pub fn validate(&self, grid: [i64; 3]) -> Result<()> {
        match self {
            Self::Maskgit { min_masking_rate, .. } if !(0.0..=1.0).contains(min_masking_rate) => {
                Err(Error::config("min_masking_rate", min_masking_rate, "a number in [0, 1]"))
            }
            Self::Commit { block, .. } if block.iter().zip(grid).any(|(&b, n)| b < 1 || n % b != 0) => {
                Err(Error::config("block", block, format!("a block that divides the grid {grid:?}")))
            }
            _ => Ok(()),
        }
    }

    /// The way in which a given region enters where the caller names none.
    pub fn condition_mode(&self) -> ConditionMode {
        match self {
            Self::Commit { .. } => ConditionMode::ConditionToInput,
            Self::Maskgit { .. } | Self::Multiscale { .. } => ConditionMode::InputToInput,
        }
    }

    /// Masks ids `[B, t, h, w]` for a step, with draws from torch's global generator.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn mask(
        &self,
        ids: &Tensor,
        condition: Option<(ConditionMode, &RegionCondition)>,
    ) -> Result<MaskedTokens> {
        let batch = ids.size()[0];
        let tokens = ids.numel() as i64 / batch;
        let ratios = |schedule: &MaskSchedule, count: i64, least: f32| -> Result<Vec<f32>> {
            let draws = Vec::<f32>::try_from(Tensor::rand([count], (Kind::Float, tch::Device::Cpu)))?;
            draws.into_iter().map(|u| Ok(schedule.ratio(u, tokens)?.max(least))).collect()
        };
        let scores = Tensor::rand(ids.size(), (Kind::Float, ids.device()));
        let (ratios, weights, block) = match self {
            Self::Maskgit { schedule, min_masking_rate } => {
                (ratios(schedule, batch, *min_masking_rate)?, WeightMode::Masked, single())
            }
            Self::Commit { schedule, block } => (ratios(schedule, 1, 0.0)?, WeightMode::All, *block),
            Self::Multiscale { schedule } => {
                (ratios(schedule, batch, 0.0)?, WeightMode::Masked, drawn_block(&ids.size()[1..]))
            }
        };
        let scores = block_scores(&scores, block, &BlockDraws::draw(&scores, block))?;
        mask_by_score(ids, &scores, &ratios, MaskRule { condition, weights, at_least: 1, at_most: None })
    }
}

/// A block of a drawn side, or of the largest sides below it that divide the grid.
fn drawn_block(grid: &[i64]) -> BlockShape {
    let draw = Tensor::randint(SIDES.len() as i64, [1], (Kind::Int64, tch::Device::Cpu)).int64_value(&[0]);
    let side = |n: i64| {
        let fits = SIDES[..=draw as usize].iter().rev().find(|&&side| n % side == 0);
        fits.copied().unwrap_or(1)
    };
    [side(grid[0]), side(grid[1]), side(grid[2])]
}
