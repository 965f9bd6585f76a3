//! MaskGIT's schedules, transformer and decoding (entries `maskgit.*` but those of its tokenizer).

use ::maskgit::mask::{annealed_confidence, below_cut};
use ::maskgit::{
    BidirectionalTransformer, Columns, DecodeNoise, DecodeOptions, MaskSchedule, TrainingSequence,
    TransformerConfig, TransformerLayer, decode as parallel_decode,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use super::Driver;
use super::maskgit_flax::load;
use crate::case::{Case, CaseError, Outputs};
use crate::import::flax::transformer_name;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("maskgit.schedule", schedule),
    ("maskgit.mask_counts", mask_counts),
    ("maskgit.mask_by_random_topk", mask_by_random_topk),
    ("maskgit.transformer_layer", transformer_layer),
    ("maskgit.transformer.forward", forward),
    ("maskgit.loss", loss),
    ("maskgit.decode", decode),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    method: MaskSchedule,
    total_unknown: i64,
}

fn schedule(case: &Case) -> Result<Outputs, CaseError> {
    let config: Schedule = case.config()?;
    let progress = Vec::<f32>::try_from(case.input("ratio")?)?;
    let ratios = progress
        .into_iter()
        .map(|r| config.method.ratio(r, config.total_unknown))
        .collect::<video_core::Result<Vec<f32>>>()?;
    let mut outputs = Outputs::new();
    outputs.out("mask_ratio", &Tensor::from_slice(&ratios));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    method: MaskSchedule,
    total_unknown: i64,
    num_iter: i64,
}

fn mask_counts(case: &Case) -> Result<Outputs, CaseError> {
    let config: Counts = case.config()?;
    let mut outputs = Outputs::new();
    outputs
        .out("mask_len", &Tensor::from_slice(&config.method.counts(config.total_unknown, config.num_iter)?));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Confidence {
    temperature: f64,
}

fn mask_by_random_topk(case: &Case) -> Result<Outputs, CaseError> {
    let config: Confidence = case.config()?;
    let known = case.input("known")?.to_kind(Kind::Bool);
    let log_p = case.input("probs")?.log().masked_fill(&known, f64::INFINITY);
    let confidence = annealed_confidence(&log_p, config.temperature, &case.input("gumbel")?);
    let counts = case.input("mask_len")?.squeeze_dim(-1).to_kind(Kind::Int64);
    let mut outputs = Outputs::new();
    outputs.out("masking", &below_cut(&confidence, &counts));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    hidden_size: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
}

fn transformer_layer(case: &Case) -> Result<Outputs, CaseError> {
    let config: Layer = case.config()?;
    let config = TransformerConfig {
        hidden_size: config.hidden_size,
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        ..TransformerConfig::default()
    };
    let loaded = load(&case.weights(), transformer_name, |path| TransformerLayer::new(path, &config))?;
    let mut outputs = Outputs::new();
    outputs.out("y", &loaded.model.forward(&case.input("x")?, false));
    Ok(outputs)
}

/// The model's part of a config.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    codebook_size: i64,
    num_class: i64,
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    max_position_embeddings: i64,
    #[serde(default = "last")]
    mask_token_id: i64,
}

fn last() -> i64 {
    ::maskgit::mask::MASK
}

impl Model {
    fn config(&self) -> Result<TransformerConfig, CaseError> {
        if self.vocab_size != self.codebook_size + self.num_class + 1 {
            return Err(CaseError::Config(format!(
                "vocab_size {}: expected codes, classes and mask",
                self.vocab_size
            )));
        }
        if self.mask_token_id != last() {
            return Err(CaseError::Config(format!("mask_token_id {}: expected -1", self.mask_token_id)));
        }
        Ok(TransformerConfig {
            codebook_size: self.codebook_size,
            num_special: self.num_class + 1,
            factors: Vec::new(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.max_position_embeddings,
            num_segments: 0,
            dropout: 0.1,
        })
    }
}

/// A config of two parts: the keys `own` for the one, all others for the other.
pub(super) fn split_config<A: DeserializeOwned, B: DeserializeOwned>(
    case: &Case,
    own: &[&str],
) -> Result<(A, B), CaseError> {
    let serde_json::Value::Object(all) = case.config.clone() else {
        return Err(CaseError::Config("not an object".into()));
    };
    let (ours, rest): (serde_json::Map<_, _>, serde_json::Map<_, _>) =
        all.into_iter().partition(|(key, _)| own.contains(&key.as_str()));
    let parse_error = |e: serde_json::Error| CaseError::Config(e.to_string());
    let ours = serde_json::from_value(ours.into()).map_err(parse_error)?;
    Ok((ours, serde_json::from_value(rest.into()).map_err(parse_error)?))
}

/// The numbers of all positions of ids `[B, L]`.
pub(super) fn all_rows(ids: &Tensor) -> Tensor {
    Tensor::arange(ids.numel() as i64, (Kind::Int64, ids.device()))
}

fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let config = case.config::<Model>()?.config()?;
    let ids = case.input("input_ids")?;
    let model =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &config))?.model;
    let logits = model.logits(&model.hidden(&ids, None, false)?, &all_rows(&ids), Columns::All)?;
    let size = ids.size();
    let mut outputs = Outputs::new();
    outputs.out("logits", &logits.factors()[0].view([size[0], size[1], config.vocab_size()]));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    label_smoothing: f64,
    logits_over: LogitsOver,
    #[serde(rename = "grads")]
    _grads: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum LogitsOver {
    Full,
    Codebook,
}

fn loss(case: &Case) -> Result<Outputs, CaseError> {
    let (config, model): (Loss, Model) = split_config(case, &["label_smoothing", "logits_over", "grads"])?;
    let model_config = model.config()?;
    let loaded =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &model_config))?;
    let columns = match config.logits_over {
        LogitsOver::Full => Columns::All,
        LogitsOver::Codebook => Columns::Codes,
    };
    let (inputs, targets, weights) =
        (case.input("input_ids")?, case.input("labels")?, case.input("weights")?);
    let sequence =
        TrainingSequence { inputs: &inputs, segment_ids: None, targets: &targets, weights: &weights };
    let loss = loaded.model.loss(&sequence, columns, config.label_smoothing, false)?;
    loss.backward();
    let mut outputs = Outputs::new();
    outputs.out("loss", &loss);
    loaded.gradients(case, &mut outputs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    num_iter: i64,
    start_iter: i64,
    choice_temperature: f64,
    mask_scheduling_method: MaskSchedule,
}

fn decode(case: &Case) -> Result<Outputs, CaseError> {
    let own = ["num_iter", "start_iter", "choice_temperature", "mask_scheduling_method"];
    let (config, model): (Decode, Model) = split_config(case, &own)?;
    let model_config = model.config()?;
    let model =
        load(&case.weights(), transformer_name, |path| BidirectionalTransformer::new(path, &model_config))?
            .model;
    let ids = case.input("input_ids")?;
    let options = DecodeOptions {
        steps: config.num_iter,
        start_step: config.start_iter,
        schedule: config.mask_scheduling_method,
        choice_temperature: config.choice_temperature,
        ..DecodeOptions::default()
    };
    let size = ids.size();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, ids.device()));
    let noise = DecodeNoise {
        sample: case
            .optional_input("gumbel_sample")
            .unwrap_or_else(|| zeros(&[config.num_iter, size[0], size[1], model_config.codebook_size])),
        choice: case
            .optional_input("gumbel_choice")
            .unwrap_or_else(|| zeros(&[config.num_iter, size[0], size[1]])),
    };
    let decoded = parallel_decode(&model, &ids, &options, Some(&noise))?;
    // The reference returns a row a step; those before the first are the input.
    let mut sampled: Vec<Tensor> = (0..config.start_iter).map(|_| ids.shallow_clone()).collect();
    sampled.extend(decoded.sampled);
    let mut outputs = Outputs::new();
    outputs
        .out("sampled_ids", &Tensor::stack(&sampled, 1))
        .out("next_input_ids", &Tensor::stack(&decoded.next_inputs, 1))
        .out("final_ids", &decoded.ids);
    Ok(outputs)
}
