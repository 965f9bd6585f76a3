//! The training recipe (`var.train.*`).

use ::var_next_scale::recipe::{LrSchedule, ProgressSchedule, decays};
use ::var_next_scale::{Var, VarConfig, Vqvae, next_scale_loss};
use serde::Deserialize;
use tch::{Device, Tensor, nn};
use torch_ext::{AdamW, AdamWConfig, global_norm, scale_};

use super::transformer::{TRANSFORMER, progress};
use super::vqvae::vqvae_config;
use super::{Config, load, scales_up_to};
use crate::case::{Case, CaseError, Outputs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    sche_type: String,
    peak_lr: f64,
    wd: f64,
    wd_end: f64,
    wp_it: i64,
    max_it: i64,
    wp0: f64,
    wpe: f64,
}

/// The keys of a schedule.
const SCHEDULE: &[&str] = &["sche_type", "peak_lr", "wd", "wd_end", "wp_it", "max_it", "wp0", "wpe"];

impl Schedule {
    fn lr(&self) -> Result<LrSchedule, CaseError> {
        let Self { peak_lr, wp_it, max_it, wp0, wpe, .. } = *self;
        Ok(LrSchedule { decay: self.sche_type.parse()?, peak_lr, wp_it, max_it, wp0, wpe })
    }

    /// The weight decay at the end; 0 stands for that at the start.
    fn wd_end(&self) -> f64 {
        if self.wd_end == 0.0 { self.wd } else { self.wd_end }
    }
}

pub(super) fn lr_schedule(case: &Case) -> Result<Outputs, CaseError> {
    let given: Schedule = case.config()?;
    let schedule = given.lr()?;
    let iterations = Vec::<i64>::try_from(case.input("it")?)?;
    let rates: Vec<f64> = iterations.iter().map(|&it| schedule.lr(it)).collect();
    let decays: Vec<f64> = iterations
        .iter()
        .flat_map(|&it| [schedule.weight_decay(it, given.wd, given.wd_end()), 0.0])
        .collect();
    let mut outputs = Outputs::new();
    outputs.out("lr", &Tensor::from_slice(&rates)).out("wd", &Tensor::from_slice(&decays).view([-1, 2]));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Progressive {
    pg: f64,
    pg0: usize,
    patch_nums: Vec<i64>,
    wp_it: i64,
    max_it: i64,
}

pub(super) fn prog_schedule(case: &Case) -> Result<Outputs, CaseError> {
    let Progressive { pg, pg0, patch_nums, wp_it, max_it } = case.config()?;
    let schedule = ProgressSchedule { pg0, pg, wp_it, max_it };
    let last = |it: i64| if pg == 0.0 { -1 } else { schedule.last_scale(it, patch_nums.len()) as i64 };
    let scales: Vec<i64> = Vec::<i64>::try_from(case.input("it")?)?.into_iter().map(last).collect();
    let mut outputs = Outputs::new();
    outputs.out("prog_si", &Tensor::from_slice(&scales));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Groups {
    param_names: Vec<String>,
}

pub(super) fn param_groups(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    let names = config.rest::<Groups>()?.param_names;
    let store = nn::VarStore::new(Device::Cpu);
    Var::new(&store.root(), &own)?;
    let variables = store.variables();
    let (mut decay, mut counts) = (Vec::new(), Vec::new());
    for name in &names {
        let variable = variables.get(name).ok_or_else(|| CaseError::Missing(name.clone()))?;
        decay.push(i64::from(decays(name, variable.dim())));
        counts.push(variable.numel() as i64);
    }
    let mut outputs = Outputs::new();
    outputs.out("decay", &Tensor::from_slice(&decay)).out("numel", &Tensor::from_slice(&counts));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(rename = "batch")]
    _batch: i64,
    #[serde(rename = "image_hw")]
    _image_hw: [i64; 2],
    steps: usize,
    first_it: i64,
    watch_params: Vec<String>,
    grad_clip: f64,
    label_smooth: f64,
    prog_si: i64,
    prog_wp: f64,
}

pub(super) fn step(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let tokenizer_config = vqvae_config(&mut config)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    let recipe: Schedule = config.part(SCHEDULE)?;
    let given: Step = config.rest()?;
    let tokenizer = load(case, "vae.", |path| Vqvae::new(path, &tokenizer_config))?.model;
    let loaded = load(case, "var.", |path| Var::new(path, &own))?;
    let (model, pyramid, schedule) = (&loaded.model, loaded.model.pyramid(), recipe.lr()?);
    let scales = scales_up_to(given.prog_si, pyramid.len());
    let adam = AdamWConfig { beta1: 0.9, beta2: 0.95, weight_decay: 0.0, eps: 1e-8 };
    // AdamW's decay multiplies the weights before the step: done here, as it changes from step to step.
    let mut optimizer = AdamW::new(loaded.store.variables(), adam);
    let mut outputs = Outputs::new();
    for step in 0..given.steps {
        let ids = tokenizer.encode_images(&case.input(&format!("img_{step}"))?)?.ids;
        let inputs = tch::no_grad(|| tokenizer.quantizer().var_input(&ids, pyramid, scales))?;
        let targets = Tensor::cat(&ids[..scales], 1);
        let classes = model
            .drop_classes(&case.input(&format!("label_{step}"))?, &case.input(&format!("drop_u_{step}"))?);
        let logits = model.forward(&classes, &inputs, scales, false)?;
        let progress = progress(given.prog_si, given.prog_wp);
        let loss = next_scale_loss(&logits, &targets, pyramid, given.label_smooth, progress)?;
        loss.backward();
        let gradients = optimizer.gradients();
        let norm = global_norm(&gradients).map_err(video_core::Error::from)?;
        let factor = (Tensor::from(given.grad_clip as f32) / (&norm + 1e-6)).clamp_max(1.0);
        scale_(&gradients, &factor).map_err(video_core::Error::from)?;
        let iteration = given.first_it + step as i64;
        let rate = schedule.lr(iteration);
        let decay = schedule.weight_decay(iteration, recipe.wd, recipe.wd_end());
        tch::no_grad(|| {
            for (name, mut variable) in loaded.store.variables() {
                if decays(&name, variable.dim()) {
                    let _ = variable.g_mul_scalar_(1.0 - rate * decay);
                }
            }
        });
        optimizer.step(rate).map_err(video_core::Error::from)?;
        optimizer.zero_grad();
        outputs
            .out(format!("loss_{step}"), &loss)
            .out(format!("grad_norm_{step}"), &norm)
            .out(format!("idx_{step}"), &targets)
            .out(format!("x_BLCv_wo_first_l_{step}"), &inputs);
    }
    let variables = loaded.store.variables();
    for name in &given.watch_params {
        let variable = variables.get(name).ok_or_else(|| CaseError::Missing(name.clone()))?;
        outputs.out(format!("param_after/{name}"), variable);
    }
    Ok(outputs)
}
