//! The entries of Perceiver AR that have no weights.

use ::perceiver_ar::{
    CropConfig, Events, ImageOrdering, LossConfig, Modality, Rotary, RotaryConfig, Windows, block_windows,
    copy_task as copy_events, cross_entropy as score, fourier_table, image_events as image_to_events,
    masks as latent_masks, process_logits as process, sequence_length, shift, sinusoidal_table,
    terminal_relative_positions, truncate,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::case::{Case, CaseError, Outputs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sinusoidal {
    size: i64,
    max_len: i64,
    min_scale: f64,
    max_scale: f64,
}

pub(super) fn sinusoidal(case: &Case) -> Result<Outputs, CaseError> {
    let given: Sinusoidal = case.config()?;
    let table = sinusoidal_table(given.max_len, given.size, given.min_scale, given.max_scale)?;
    let mut outputs = Outputs::new();
    outputs.out("table", &table);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fourier {
    size: i64,
    max_len: i64,
    concat_pos: bool,
}

pub(super) fn fourier(case: &Case) -> Result<Outputs, CaseError> {
    let given: Fourier = case.config()?;
    let mut outputs = Outputs::new();
    outputs.out("table", &fourier_table(given.max_len, given.size, given.concat_pos)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(super) fn terminal_relative(case: &Case) -> Result<Outputs, CaseError> {
    let Nothing {} = case.config()?;
    let events = case.input("events")?;
    let (inputs, targets) = shift(&events);
    let mut outputs = Outputs::new();
    outputs.out("sequence_length", &sequence_length(&events));
    outputs.out("positions", &terminal_relative_positions(&events)).out("truncated", &truncate(&events));
    outputs.out("shifted_inputs", &inputs).out("shifted_targets", &targets);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotating {
    fraction_to_rotate: f64,
    fraction_heads_to_rotate: f64,
    max_wavelength: i64,
}

pub(super) fn rotary(case: &Case) -> Result<Outputs, CaseError> {
    let given: Rotating = case.config()?;
    // Heads are the last axis but one in the reference.
    let x = case.input("x")?.transpose(1, 2);
    let rotary = Rotary::new(
        &RotaryConfig {
            heads: x.size()[1],
            head_dim: x.size()[3],
            head_group_size: 0,
            fraction_to_rotate: given.fraction_to_rotate,
            fraction_heads_to_rotate: given.fraction_heads_to_rotate,
            max_wavelength: given.max_wavelength,
        },
        Device::Cpu,
    )?;
    let mut outputs = Outputs::new();
    outputs.out("y", &rotary.rotate(&x, &case.input("positions")?).transpose(1, 2));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MaskGiven {
    z_index_dim: i64,
    latents_per_position: i64,
    is_training: bool,
}

pub(super) fn masks(case: &Case) -> Result<Outputs, CaseError> {
    let given: MaskGiven = case.config()?;
    let keep = case.optional_input("latent_keep").filter(|_| given.is_training).map(|keep| keep.ne(0));
    let seen =
        latent_masks(&case.input("events")?, given.z_index_dim, given.latents_per_position, keep.as_ref())?;
    let mut outputs = Outputs::new();
    outputs.out("latent_last_steps", &seen.last_steps);
    outputs.out("encoder_mask", &seen.encoder).out("processor_mask", &seen.processor);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scored {
    label_smoothing: f64,
    z_loss: f64,
}

pub(super) fn cross_entropy(case: &Case) -> Result<Outputs, CaseError> {
    let given: Scored = case.config()?;
    let (logits, weights) = (case.input_with_grad("logits")?, case.input("weights")?);
    let config = LossConfig { label_smoothing: given.label_smoothing, z_loss: given.z_loss };
    let scored = score(&logits, &case.input("targets")?, &weights, config)?;
    scored.loss.sum(Kind::Float).backward();
    let mut outputs = Outputs::new();
    outputs.out("loss", &scored.loss).out("z_loss", &scored.z_loss);
    outputs.out("weight_sum", &weights.sum(Kind::Float)).out("grad_logits", &logits.grad());
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Processing {
    index: i64,
    top_p: f64,
    temperature: f64,
    modality: Option<Modality>,
}

pub(super) fn process_logits(case: &Case) -> Result<Outputs, CaseError> {
    let given: Processing = case.config()?;
    let logits =
        process(&case.input("logits")?, given.index, given.top_p, given.temperature, given.modality)?;
    let mut outputs = Outputs::new();
    outputs.out("logits", &logits);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Copying {
    sequence_length: i64,
    include_sos: bool,
}

pub(super) fn copy_task(case: &Case) -> Result<Outputs, CaseError> {
    let given: Copying = case.config()?;
    let events = copy_events(&case.input("half")?, given.include_sos)?;
    if events.ids.size()[1] != given.sequence_length {
        return Err(CaseError::Config(format!(
            "sequence_length = {} is not the half's",
            given.sequence_length
        )));
    }
    let mut outputs = Outputs::new();
    outputs.out("events", &events.ids).out("event_idxs", &events.positions);
    Ok(outputs)
}

fn document(case: &Case) -> Result<Events, CaseError> {
    Ok(Events { ids: case.input("events")?, positions: case.input("event_idxs")? })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cropping {
    is_training: bool,
    max_context_length: i64,
    minimum_crop_length: i64,
    include_sos: bool,
    batch_size: i64,
    crop_starts: Option<Vec<i64>>,
}

pub(super) fn crops(case: &Case) -> Result<Outputs, CaseError> {
    let given: Cropping = case.config()?;
    let config = CropConfig {
        slots: given.max_context_length,
        min_crop: given.minimum_crop_length,
        include_sos: given.include_sos,
    };
    let document = document(case)?;
    let Windows { ids, positions, ends } = match (given.is_training, &given.crop_starts) {
        (true, Some(starts)) => config.crops(&document, starts)?,
        (false, None) => config.all_crops(&document, given.batch_size)?,
        _ => return Err(CaseError::Config("crop_starts in training, and none in evaluation".into())),
    };
    let mut outputs = Outputs::new();
    outputs.out("events", &ids).out("event_idxs", &positions).out("input_length", &ends);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockEval {
    max_context_length: i64,
    block_eval_window: i64,
    batch_size: i64,
}

pub(super) fn block_eval(case: &Case) -> Result<Outputs, CaseError> {
    let given: BlockEval = case.config()?;
    let (windows, targets) =
        block_windows(&document(case)?, given.max_context_length, given.block_eval_window, given.batch_size)?;
    // The number of each slot in the document: that of the window's last, counted back over its inputs.
    let inputs = windows.ids.ne(0).to_kind(Kind::Int64);
    let count = inputs.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64);
    let slot = Tensor::arange_start(1, given.max_context_length + 1, (Kind::Int64, Device::Cpu));
    let lengths = (windows.ends.unsqueeze(1) - count + slot) * inputs;
    let mut outputs = Outputs::new();
    outputs.out("inputs", &windows.ids).out("input_idxs", &windows.positions);
    outputs.out("input_lengths", &lengths).out("targets", &targets);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    resolution: i64,
    ordering: ImageOrdering,
    include_sos: bool,
}

pub(super) fn image_events(case: &Case) -> Result<Outputs, CaseError> {
    let given: Image = case.config()?;
    let image = case.input("image")?;
    if image.size() != [given.resolution, given.resolution, 3] {
        return Err(CaseError::Config(format!("resolution = {} is not the image's", given.resolution)));
    }
    let events = image_to_events(&image, given.ordering, given.include_sos)?;
    let mut outputs = Outputs::new();
    outputs.out("events", &events.ids).out("event_idxs", &events.positions);
    Ok(outputs)
}
