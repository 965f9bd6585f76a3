//! MAGVIT's sequences, transformer and decoding (entries `magvit.tokens`, `magvit.transformer.*`, `magvit.loss`,
//! `magvit.sampling`, `magvit.decode`).

use std::collections::BTreeMap;

use ::maskgit::magvit::{
    ConditionPadding, GridDecodeNoise, GridDecodeOptions, GridPrompt, MagvitTokens, Region, SpecialToken,
    decode_grid,
};
use ::maskgit::mask::{BlockShape, ConditionMode, MaskRule, MaskedTokens, RegionCondition, mask_by_score};
use ::maskgit::{
    BidirectionalTransformer, Columns, Logits, MaskSchedule, TrainingSequence, TransformerConfig,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use video_core::sampling::Filter;

use super::Driver;
use super::maskgit::{all_rows, split_config};
use super::maskgit_flax::load;
use super::maskgit_masks::{
    MaskFunction, Placement, Weights, config_error, mask_outputs, region_condition, scores, single,
};
use crate::case::{Case, CaseError, Outputs};
use crate::import::flax::transformer_name;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("magvit.tokens", tokens),
    ("magvit.transformer.forward", forward),
    ("magvit.loss", loss),
    ("magvit.sampling", sampling),
    ("magvit.decode", decode),
];

/// The model's part of a config.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    codebook_size: i64,
    num_classes: i64,
    latent_shape: [i64; 3],
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    multi_task: bool,
    use_condition_segment: bool,
    tasks: Vec<String>,
    task_configs: BTreeMap<String, TaskConfig>,
    max_position_embeddings: i64,
    vocab_size: i64,
    #[serde(default)]
    condition_mode: Option<Placement>,
    #[serde(default)]
    weight_mode: Option<Weights>,
    #[serde(default)]
    bug_patches: BTreeMap<String, bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TaskConfig {
    class_conditional: Option<bool>,
    condition_mode: Option<Placement>,
    weight_mode: Option<Weights>,
    mask_block_shape: Option<BlockShape>,
    cond_latent_frames: Option<i64>,
    // They tell how the condition video is made, which the case gives tokenized.
    #[serde(rename = "cond_region")]
    _cond_region: Option<Region>,
    #[serde(rename = "cond_frames")]
    _cond_frames: Option<i64>,
    #[serde(rename = "cond_padding")]
    _cond_padding: Option<ConditionPadding>,
}

/// What a task means for a sequence.
struct Task<'a> {
    token: SpecialToken,
    config: Option<&'a TaskConfig>,
    class_conditional: bool,
    /// Latent frames in front of the grid.
    prefix_frames: Option<i64>,
    /// How the condition enters the grid.
    condition_mode: Option<ConditionMode>,
}

impl Model {
    fn tokens(&self) -> MagvitTokens {
        MagvitTokens {
            codebook_size: self.codebook_size,
            num_classes: self.num_classes,
            multi_task: self.multi_task,
        }
    }

    fn config(&self) -> Result<TransformerConfig, CaseError> {
        let num_special = self.tokens().num_special();
        if self.vocab_size != self.codebook_size + num_special {
            return Err(config_error(format!("vocab_size {}", self.vocab_size)));
        }
        Ok(TransformerConfig {
            codebook_size: self.codebook_size,
            num_special,
            factors: Vec::new(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.max_position_embeddings,
            num_segments: if self.use_condition_segment { 2 } else { 0 },
            dropout: 0.1,
        })
    }

    fn task(&self, name: &str) -> Result<Task<'_>, CaseError> {
        if !self.tasks.iter().any(|task| task == name) {
            return Err(config_error(format!("task {name} is not one of the tasks")));
        }
        let config = self.task_configs.get(name);
        let own = config.and_then(|c| c.condition_mode);
        let commit = Placement::Grid(ConditionMode::ConditionToInput);
        let given = own.or(self.condition_mode).unwrap_or(commit).in_grid();
        let is = |prefix: &str| name.starts_with(prefix);
        let (token, condition_mode) = if is("full_generation") {
            (SpecialToken::FullGeneration, None)
        } else if is("latent_frame_prediction") {
            (SpecialToken::FullGeneration, Some(ConditionMode::ConditionToCondition))
        } else if is("frame_prediction") {
            (SpecialToken::FramePrediction, given)
        } else if is("frame_interpolation") {
            (SpecialToken::FrameInterpolation, given)
        } else if is("inpainting") && self.bug_patches.get("inpainting_token") == Some(&true) {
            (SpecialToken::Inpainting, given)
        } else if is("outpainting") || is("inpainting") {
            (SpecialToken::Outpainting, given)
        } else {
            return Err(config_error(format!("task {name}")));
        };
        // Only the task of this very name, by its own config, has its condition in front.
        let prefixed = name == "frame_prediction" && matches!(own, Some(Placement::Prefix(_)));
        let latent_frames = config.and_then(|c| c.cond_latent_frames).unwrap_or(1);
        Ok(Task {
            token,
            config,
            // Generation is by class where nothing is said of it.
            class_conditional: match config {
                Some(config) => config.class_conditional.unwrap_or(false),
                None => is("full_generation"),
            },
            prefix_frames: prefixed.then_some(latent_frames),
            condition_mode,
        })
    }

    /// The prefix of the case's task, and the condition of its grid.
    fn prompt(
        &self,
        case: &Case,
        task: &Task<'_>,
        batch: i64,
    ) -> Result<(MaskedTokens, Option<(ConditionMode, RegionCondition)>), CaseError> {
        let labels = if task.class_conditional { Some(case.input("label")?.view([-1])) } else { None };
        let uncond_task = if self.tasks.iter().any(|task| task.starts_with("full_generation")) {
            SpecialToken::FullGeneration
        } else {
            task.token
        };
        let prefix = self.tokens().prefix(batch, Device::Cpu, task.token, uncond_task, labels.as_ref())?;
        let prefix = match task.prefix_frames {
            Some(frames) => {
                let ids = case.input("cond_inputs")?.narrow(1, 0, frames);
                MaskedTokens::concatenate(&[prefix, MagvitTokens::frame_prefix(&ids)])
            }
            None => prefix,
        };
        let Some(mode) = task.condition_mode else { return Ok((prefix, None)) };
        let condition = region_condition(case)?.ok_or_else(|| CaseError::Missing("in/cond_mask".into()))?;
        Ok((prefix, Some((mode, condition))))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskName {
    task: String,
}

fn tokens(case: &Case) -> Result<Outputs, CaseError> {
    let (TaskName { task }, model): (_, Model) = split_config(case, &["task"])?;
    let task = model.task(&task)?;
    let ids = case.input("inputs")?;
    let (prefix, condition) = model.prompt(case, &task, ids.size()[0])?;
    let ratios = Vec::<f32>::try_from(case.input("mask_ratio")?)?;
    let rule = MaskRule {
        condition: condition.as_ref().map(|(mode, condition)| (*mode, condition)),
        weights: Weights::mode(task.config.and_then(|c| c.weight_mode).or(model.weight_mode)),
        at_least: 1,
        at_most: None,
    };
    let block = task.config.and_then(|c| c.mask_block_shape).unwrap_or(single());
    let scores = scores(case, MaskFunction::RandomBlock, block)?;
    let grid = mask_by_score(&ids, &scores, &ratios, rule)?;
    Ok(mask_outputs(&MaskedTokens::concatenate(&[prefix, grid])))
}

fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let config = case.config::<Model>()?.config()?;
    let (ids, segments) = (case.input("input_ids")?, case.input("segment_ids")?);
    let model =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &config))?.model;
    let hidden = model.hidden(&ids, Some(&segments), false)?;
    let logits = model.logits(&hidden, &all_rows(&ids), Columns::All)?;
    let size = ids.size();
    let mut outputs = Outputs::new();
    outputs.out("logits", &logits.factors()[0].view([size[0], size[1], config.vocab_size()]));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    label_smoothing: f64,
    #[serde(rename = "grads")]
    _grads: Vec<String>,
}

fn loss(case: &Case) -> Result<Outputs, CaseError> {
    let (config, model): (Loss, Model) = split_config(case, &["label_smoothing", "grads"])?;
    let model_config = model.config()?;
    let loaded =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &model_config))?;
    let [inputs, segments, targets, weights] =
        ["input_ids", "segment_ids", "targets", "weights"].map(|name| case.input(name));
    let (inputs, segments, targets, weights) = (inputs?, segments?, targets?, weights?);
    let sequence = TrainingSequence {
        inputs: &inputs,
        segment_ids: Some(&segments),
        targets: &targets,
        weights: &weights,
    };
    let loss = loaded.model.loss(&sequence, Columns::Codes, config.label_smoothing, false)?;
    loss.backward();
    let mut outputs = Outputs::new();
    outputs.out("loss", &loss);
    loaded.gradients(case, &mut outputs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sampling {
    topk: i64,
    topp: f64,
    temperature: f64,
}

fn filter(topk: i64, topp: f64, temperature: f64) -> Filter {
    Filter { temperature, top_k: (topk > 0).then_some(topk), top_p: (topp > 0.0).then_some(topp) }
}

fn sampling(case: &Case) -> Result<Outputs, CaseError> {
    let config: Sampling = case.config()?;
    let (logits, mut noise) = (case.input("logits")?, case.input("gumbel")?);
    if config.topk > 0 {
        // The reference's noise j belongs to the j-th largest logit.
        let rank = logits.argsort(-1, true).argsort(-1, false);
        noise = noise.gather(-1, &rank, false);
    }
    let filter = filter(config.topk, config.topp, config.temperature);
    filter.validate()?;
    let mut size = logits.size();
    let draws = Logits::whole(logits.flatten(0, -2)).draw(&filter, Some(&[noise.flatten(0, -2)]));
    size.pop();
    let mut outputs = Outputs::new();
    outputs.out("tokens", &draws.ids.view(size.as_slice()));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    task: String,
    num_iter: i64,
    choice_temperature: f64,
    mask_scheduling_method: MaskSchedule,
    guidance_scale: f64,
    sampling_topk: i64,
    sampling_topp: f64,
}

fn decode(case: &Case) -> Result<Outputs, CaseError> {
    let own = [
        "task",
        "num_iter",
        "choice_temperature",
        "mask_scheduling_method",
        "guidance_scale",
        "sampling_topk",
        "sampling_topp",
    ];
    let (config, model): (Decode, Model) = split_config(case, &own)?;
    let model_config = model.config()?;
    let task = model.task(&config.task)?;
    if task.config.and_then(|c| c.mask_block_shape).is_some_and(|block| block != single()) {
        return Err(config_error("mask_block_shape in decoding"));
    }
    let batch = case.input("label").or_else(|_| case.input("cond_inputs"))?.size()[0];
    let (prefix, condition) = model.prompt(case, &task, batch)?;
    let [t, h, w] = model.latent_shape;
    let ids = case
        .optional_input("inputs")
        .unwrap_or_else(|| Tensor::zeros([batch, t, h, w], (Kind::Int64, Device::Cpu)));
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let noise = GridDecodeNoise {
        sample: case
            .optional_input("gumbel_sample")
            .unwrap_or_else(|| zeros(&[config.num_iter, batch, t, h, w, model.codebook_size])),
        choice: case
            .optional_input("gumbel_choice")
            .unwrap_or_else(|| zeros(&[config.num_iter, batch, t, h, w])),
    };
    let options = GridDecodeOptions {
        steps: config.num_iter,
        schedule: config.mask_scheduling_method,
        choice_temperature: config.choice_temperature,
        filter: filter(config.sampling_topk, config.sampling_topp, 1.0),
        guidance_scale: config.guidance_scale,
    };
    let network =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &model_config))?
            .model;
    let prompt = GridPrompt {
        prefix: &prefix,
        ids: &ids,
        condition: condition.as_ref().map(|(mode, condition)| (*mode, condition)),
    };
    let decoded = decode_grid(&network, &prompt, &options, Some(&noise))?;
    let mut outputs = Outputs::new();
    outputs
        .out("prefix_ids", &prefix.inputs)
        .out("model_input_ids", &Tensor::stack(&decoded.inputs, 1))
        .out("sampled_ids", &Tensor::stack(&decoded.sampled, 1))
        .out("final_ids", &decoded.ids);
    Ok(outputs)
}
