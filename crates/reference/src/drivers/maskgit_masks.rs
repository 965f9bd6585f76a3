//! MAGVIT's masks and condition videos (entries `magvit.mask`, `magvit.condition`).

use ::maskgit::magvit::{ConditionPadding, ConditionTask, ConditionVideo, Region};
use ::maskgit::mask::{
    BlockDraws, BlockShape, ConditionMode, MaskRule, MaskedTokens, RegionCondition, WeightMode, block_scores,
    frame_by_frame_scores, mask_by_score,
};
use serde::Deserialize;
use tch::{Kind, Tensor};
use video_core::GridShape;

use super::Driver;
use crate::case::{Case, CaseError, Outputs};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[("magvit.mask", mask), ("magvit.condition", condition)];

pub(super) fn config_error(problem: impl Into<String>) -> CaseError {
    CaseError::Config(problem.into())
}

/// `weight_mode`: a name, or a boolean, or nothing.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Weights {
    MaskedOnly(bool),
    Mode(WeightMode),
}

impl Weights {
    pub(super) fn mode(given: Option<Self>) -> WeightMode {
        match given {
            None | Some(Self::MaskedOnly(false)) => WeightMode::All,
            Some(Self::MaskedOnly(true)) => WeightMode::Masked,
            Some(Self::Mode(mode)) => mode,
        }
    }
}

/// `condition_mode`: how the condition enters the grid, or `prefix`: it stands in front, and the grid has none.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(untagged)]
pub(super) enum Placement {
    Grid(ConditionMode),
    Prefix(Prefix),
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
pub(super) enum Prefix {
    #[serde(rename = "prefix")]
    Prefix,
}

impl Placement {
    pub(super) fn in_grid(self) -> Option<ConditionMode> {
        match self {
            Self::Grid(mode) => Some(mode),
            Self::Prefix(_) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    function: MaskFunction,
    #[serde(default)]
    condition_mode: Option<Placement>,
    #[serde(default)]
    weight_mode: Option<Weights>,
    #[serde(default)]
    num_masked_limits: (Option<i64>, Option<i64>),
    #[serde(default = "one")]
    condition_segment_id: i64,
    #[serde(default = "single")]
    block_shape: BlockShape,
    /// Of every position where all are masked.
    #[serde(default = "full_weight")]
    weight: f64,
}

fn full_weight() -> f64 {
    1.0
}

fn one() -> i64 {
    1
}

pub(super) fn single() -> BlockShape {
    [1; 3]
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
pub(super) enum MaskFunction {
    #[serde(rename = "no_mask")]
    No,
    #[serde(rename = "all_mask")]
    All,
    #[serde(rename = "random_mask")]
    Random,
    #[serde(rename = "random_block_mask")]
    RandomBlock,
    #[serde(rename = "frame_by_frame_mask")]
    FrameByFrame,
}

/// `in/cond_inputs` and `in/cond_mask`, where the case has them.
pub(super) fn region_condition(case: &Case) -> Result<Option<RegionCondition>, CaseError> {
    let Some(region) = case.optional_input("cond_mask") else { return Ok(None) };
    // With `input->input`, the one mode that does not read them, a case may leave the condition's ids out.
    let ids = case.input("cond_inputs").or_else(|_| case.input("inputs"))?;
    Ok(Some(RegionCondition { ids, region: region.to_kind(Kind::Bool) }))
}

/// The case's scores, as the mask function changes them.
pub(super) fn scores(case: &Case, function: MaskFunction, block: BlockShape) -> Result<Tensor, CaseError> {
    let mut scores = case.input("mask_score")?;
    if function == MaskFunction::FrameByFrame {
        scores = frame_by_frame_scores(&scores);
    }
    if function == MaskFunction::Random || block == single() {
        return Ok(scores);
    }
    let draws = BlockDraws { offset_order: case.input("offset_order")?, tie_break: case.input("tie_break")? };
    Ok(block_scores(&scores, block, &draws)?)
}

pub(super) fn mask_outputs(masked: &MaskedTokens) -> Outputs {
    let mut outputs = Outputs::new();
    outputs
        .out("masked_inputs", &masked.inputs)
        .out("uncond_masked_inputs", &masked.uncond_inputs)
        .out("segment_ids", &masked.segment_ids)
        .out("targets", &masked.targets)
        .out("weights", &masked.weights);
    outputs
}

fn mask(case: &Case) -> Result<Outputs, CaseError> {
    let config: Mask = case.config()?;
    let ids = case.input("inputs")?;
    let condition = region_condition(case)?;
    let masked = match config.function {
        MaskFunction::No => MaskedTokens::nothing_masked(&ids, case.optional_input("uncond_inputs").as_ref()),
        MaskFunction::All => {
            let masked = MaskedTokens::all_masked(&ids, condition.as_ref());
            MaskedTokens { weights: masked.weights * config.weight, ..masked }
        }
        random => {
            let ratios = Vec::<f32>::try_from(case.input("mask_ratio")?)?;
            let (least, most) = config.num_masked_limits;
            let most: Option<Vec<i64>> = most.map(|most| vec![most]);
            let mode = config.condition_mode.and_then(Placement::in_grid);
            let rule = MaskRule {
                condition: mode.zip(condition.as_ref()),
                weights: Weights::mode(config.weight_mode),
                at_least: least.unwrap_or(1),
                at_most: most.as_deref(),
            };
            if mode.is_some() && condition.is_none() {
                return Err(CaseError::Missing("in/cond_mask".into()));
            }
            mask_by_score(&ids, &scores(case, random, config.block_shape)?, &ratios, rule)?
        }
    };
    // Ours marks condition tokens with 1; the reference lets callers choose the number.
    let masked = MaskedTokens { segment_ids: masked.segment_ids * config.condition_segment_id, ..masked };
    Ok(mask_outputs(&masked))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    function: String,
    args: ConditionArgs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionArgs {
    latent_shape: [i64; 3],
    cond_frames: Option<i64>,
    cond_latent_frames: Option<i64>,
    cond_padding: Option<ConditionPadding>,
    cond_region: Option<Region>,
    #[serde(default)]
    prefix_condition: bool,
}

fn condition(case: &Case) -> Result<Outputs, CaseError> {
    let config: Condition = case.config()?;
    let args = config.args;
    let lacks = |field: &str| config_error(format!("{} needs {field}", config.function));
    let frames = args.cond_frames.ok_or_else(|| lacks("cond_frames"));
    let latent_frames = args.cond_latent_frames.ok_or_else(|| lacks("cond_latent_frames"));
    let padding = args.cond_padding.ok_or_else(|| lacks("cond_padding"));
    let region = args.cond_region.ok_or_else(|| lacks("cond_region"));
    let only = |allowed: ConditionPadding| match args.cond_padding {
        Some(given) if given != allowed => Err(config_error(format!("cond_padding {given:?}"))),
        _ => Ok(()),
    };
    let task = match config.function.as_str() {
        "latent_frame_prediction_cond" => {
            ConditionTask::LatentFramePrediction { cond_latent_frames: latent_frames? }
        }
        "frame_prediction_cond" => ConditionTask::FramePrediction {
            cond_frames: frames?,
            cond_latent_frames: latent_frames?,
            cond_padding: padding?,
        },
        "frame_interpolation_cond" => {
            only(ConditionPadding::Interpolate)?;
            ConditionTask::FrameInterpolation { cond_frames: frames?, cond_latent_frames: latent_frames? }
        }
        "outpainting_cond" => ConditionTask::Outpainting { cond_region: region?, cond_padding: padding? },
        "inpainting_cond" => {
            only(ConditionPadding::Constant)?;
            ConditionTask::Inpainting { cond_region: region? }
        }
        other => return Err(config_error(format!("function {other}"))),
    };
    let video = case.input("video")?.permute([0, 4, 1, 2, 3]);
    let [frames, height, width] = args.latent_shape;
    let grid = GridShape { frames, height, width };
    let condition = ConditionVideo::new(task, &video, grid, 0.0)?;
    let (pixels, latents) = if args.prefix_condition {
        (condition.pixels.zeros_like(), condition.latents.zeros_like())
    } else {
        (condition.pixels, condition.latents)
    };
    let size = video.size();
    let mut outputs = Outputs::new();
    outputs
        .out("video", &condition.video.permute([0, 2, 3, 4, 1]))
        .out("video_mask", &pixels.unsqueeze(-1).expand([size[0], size[2], size[3], size[4], 1], false))
        .out("latent_mask", &latents.expand([size[0], frames, height, width], false));
    Ok(outputs)
}
