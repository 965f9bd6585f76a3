//! open-muse's transformers (entries `openmuse.*` but those of its tokenizer). Ours have its names.

use ::maskgit::MaskSchedule;
use ::maskgit::open_muse::{
    GuidanceSchedule, OpenMuseConfig, OpenMuseDecoded, OpenMuseNoise, OpenMusePrompt, OpenMuseSampling,
    OpenMuseTransformer, OpenMuseUVit, Temperatures, UVitConditions, UVitConfig, mask_by_random_topk,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn};

use super::Driver;
use super::maskgit::split_config;
use crate::case::{Case, CaseError, Outputs};
use crate::import::open_muse;
use crate::weights::load_into;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("openmuse.schedule", schedule),
    ("openmuse.mask_by_random_topk", mask),
    ("openmuse.transformer.forward", forward),
    ("openmuse.transformer.generate2", generate),
    ("openmuse.uvit.forward", uvit_forward),
    ("openmuse.uvit.generate2", uvit_generate),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    method: String,
    kwargs: Sigmoid,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sigmoid {
    start: f32,
    end: f32,
    tau: f32,
    clip_min: f32,
}

impl Default for Sigmoid {
    fn default() -> Self {
        Self { start: -3.0, end: 3.0, tau: 1.0, clip_min: 1e-6 }
    }
}

fn schedule(case: &Case) -> Result<Outputs, CaseError> {
    let Schedule { method, kwargs: Sigmoid { start, end, tau, clip_min } } = case.config()?;
    let schedule = match method.as_str() {
        "sigmoid" => MaskSchedule::Sigmoid { start, end, tau },
        word => word.parse().map_err(|e: video_core::Error| CaseError::Config(e.to_string()))?,
    };
    let times = Vec::<f32>::try_from(case.input("t")?)?;
    let ratios: Vec<f32> = times
        .into_iter()
        .map(|t| {
            let ratio = schedule.unclamped(t, 1);
            // The cosine alone is not clamped.
            if schedule == MaskSchedule::Cosine { ratio } else { ratio.clamp(clip_min, 1.0) }
        })
        .collect();
    let mut outputs = Outputs::new();
    outputs.out("mask_ratio", &Tensor::from_slice(&ratios));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    temperature: f64,
}

fn mask(case: &Case) -> Result<Outputs, CaseError> {
    let given: Mask = case.config()?;
    let known = case.input("known")?.to_kind(Kind::Bool);
    let counts = case.input("mask_len")?.squeeze_dim(-1).to_kind(Kind::Int64);
    let (p, noise) = (case.input("probs")?, case.input("gumbel")?);
    let mut outputs = Outputs::new();
    outputs.out("masking", &mask_by_random_topk(&p, &known, &counts, given.temperature, &noise));
    Ok(outputs)
}

fn load<M>(
    case: &Case,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<(M, nn::VarStore), CaseError> {
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    load_into(&store, &case.weights())?;
    Ok((model, store))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    label_smoothing: Option<f64>,
    #[serde(rename = "grads")]
    _grads: Option<Vec<String>>,
}

fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let (given, published): (Forward, _) = split_config(case, &["label_smoothing", "grads"])?;
    let config: OpenMuseConfig = open_muse::config(published)?;
    let (model, store) = load(case, |path| OpenMuseTransformer::new(path, &config))?;
    let (ids, states) = (case.input("input_ids")?, case.optional_input("encoder_hidden_states"));
    let mut outputs = Outputs::new();
    outputs.out("logits", &model.logits(&model.hidden(&ids, states.as_ref())?));
    if let Some(labels) = case.optional_input("labels") {
        let loss = model.loss(&ids, states.as_ref(), &labels, given.label_smoothing.unwrap_or(0.0))?;
        loss.backward();
        outputs.out("loss", &loss);
        let variables = store.variables();
        for name in case.gradient_names() {
            let variable = variables.get(&name).ok_or_else(|| CaseError::Missing(name.clone()))?;
            outputs.grad(&name, &variable.grad());
        }
    }
    Ok(outputs)
}

/// The case's noise; zeros where it has none.
fn noise(case: &Case, steps: i64, batch: i64, tokens: i64, codes: i64) -> OpenMuseNoise {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    OpenMuseNoise {
        sample: case.optional_input("gumbel_sample").unwrap_or_else(|| zeros(&[steps, batch, tokens, codes])),
        choice: case.optional_input("gumbel_choice").unwrap_or_else(|| zeros(&[steps, batch, tokens])),
    }
}

fn all_masked(case: &Case, batch: i64, tokens: i64, mask_id: i64) -> Tensor {
    case.optional_input("input_ids")
        .unwrap_or_else(|| Tensor::full([batch, tokens], mask_id, (Kind::Int64, Device::Cpu)))
}

fn decoded_outputs(decoded: &OpenMuseDecoded, class: Option<&Tensor>) -> Outputs {
    let inputs: Vec<Tensor> = decoded
        .inputs
        .iter()
        .map(|ids| match class {
            Some(class) => Tensor::cat(&[class, ids], 1),
            None => ids.shallow_clone(),
        })
        .collect();
    let mut outputs = Outputs::new();
    outputs.out("ids", &decoded.ids).out("model_input_ids", &Tensor::stack(&inputs, 1));
    outputs
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    timesteps: i64,
    temperature: f64,
    guidance_scale: f64,
}

fn generate(case: &Case) -> Result<Outputs, CaseError> {
    let own = ["timesteps", "temperature", "guidance_scale"];
    let (given, published): (Generate, _) = split_config(case, &own)?;
    let config: OpenMuseConfig = open_muse::config(published)?;
    let (model, _store) = load(case, |path| OpenMuseTransformer::new(path, &config))?;
    let (tokens, codes) = (config.num_vq_tokens, config.codebook_size);
    let states = case.optional_input("encoder_hidden_states");
    let class = case.optional_input("class_ids");
    let batch = match (&states, &class) {
        (Some(states), _) => states.size()[0],
        (None, Some(class)) => class.size()[0],
        (None, None) => case.input("batch_like")?.size()[0],
    };
    let unconditional = case.optional_input("negative_embeds");
    let noise = noise(case, given.timesteps, batch, tokens, codes);
    let ids = all_masked(case, batch, tokens, model.mask_id());
    let prompt = OpenMusePrompt {
        ids: &ids,
        class: class.as_ref(),
        states: states.as_ref(),
        unconditional: unconditional.as_ref(),
    };
    let options = OpenMuseSampling {
        timesteps: given.timesteps,
        temperatures: Temperatures::Compounding(given.temperature),
        guidance_scale: given.guidance_scale,
        guidance_schedule: GuidanceSchedule::Constant,
    };
    let decoded = model.generate(&prompt, &options, Some(&noise))?;
    let class = class.map(|class| class.unsqueeze(-1) + codes);
    Ok(decoded_outputs(&decoded, class.as_ref()))
}

fn uvit_forward(case: &Case) -> Result<Outputs, CaseError> {
    let config: UVitConfig = open_muse::config(case.config()?)?;
    let (model, _store) = load(case, |path| OpenMuseUVit::new(path, &config))?;
    let conditions = UVitConditions {
        states: case.input("encoder_hidden_states")?,
        pooled: case.input("cond_embeds")?,
        micro: case.input("micro_conds")?,
    };
    let mut outputs = Outputs::new();
    outputs.out("logits", &model.logits(&model.hidden(&case.input("input_ids")?, &conditions)?));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UVitGenerate {
    timesteps: i64,
    temperature: UVitTemperature,
    guidance_scale: f64,
    guidance_schedule: Option<GuidanceSchedule>,
    seq_len: i64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UVitTemperature {
    Pair(f64, f64),
    First(f64),
}

/// A tensor of one sample for the whole batch.
fn repeated(x: &Tensor, batch: i64) -> Tensor {
    let mut size = x.size();
    size[0] = batch;
    x.expand(size, false)
}

fn uvit_generate(case: &Case) -> Result<Outputs, CaseError> {
    let own = ["timesteps", "temperature", "guidance_scale", "guidance_schedule", "seq_len"];
    let (given, published): (UVitGenerate, _) = split_config(case, &own)?;
    let config: UVitConfig = open_muse::config(published)?;
    let (model, _store) = load(case, |path| OpenMuseUVit::new(path, &config))?;
    let states = case.input("encoder_hidden_states")?;
    let batch = states.size()[0];
    let micro = repeated(&case.input("micro_conds")?, batch);
    let conditions =
        UVitConditions { states, pooled: case.input("cond_embeds")?, micro: micro.shallow_clone() };
    let first_of = |names: [&str; 2]| -> Result<Tensor, CaseError> {
        case.input(names[0]).or_else(|_| case.input(names[1])).map(|x| repeated(&x, batch))
    };
    let unconditional = UVitConditions {
        states: first_of(["negative_embeds", "empty_embeds"])?,
        pooled: first_of(["negative_cond_embeds", "empty_cond_embeds"])?,
        micro,
    };
    let temperatures = match given.temperature {
        UVitTemperature::Pair(first, last) => Temperatures::Linear(first, last),
        UVitTemperature::First(first) => Temperatures::to_almost_zero(first),
    };
    let options = OpenMuseSampling {
        timesteps: given.timesteps,
        temperatures,
        guidance_scale: given.guidance_scale,
        guidance_schedule: given.guidance_schedule.unwrap_or_default(),
    };
    let noise = noise(case, given.timesteps, batch, given.seq_len, config.codebook_size);
    let ids = all_masked(case, batch, given.seq_len, model.mask_id());
    let decoded = model.generate(&ids, &conditions, &unconditional, &options, Some(&noise))?;
    Ok(decoded_outputs(&decoded, None))
}
