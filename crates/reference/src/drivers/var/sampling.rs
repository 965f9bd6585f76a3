//! Sampling (`var.sample.*`).

use ::var_next_scale::sampling::{filter_logits, smooth_factor, smooth_temperature};
use ::var_next_scale::{
    Edit, EditBox, EditKind, Pyramid, VarConfig, VarGenerator, VarPrompt, VarSampling, Vqvae, edit_mask,
};
use serde::Deserialize;
use tch::{Kind, Tensor};
use video_core::sampling::Filter;

use super::transformer::TRANSFORMER;
use super::vqvae::vqvae_config;
use super::{Config, load, series};
use crate::case::{Case, CaseError, Outputs};

/// A case's limits as ours: 0 is none.
fn limits(top_k: i64, top_p: f64) -> Filter {
    let top_p = (top_p > 0.0).then_some(top_p);
    Filter { top_k: (top_k > 0).then_some(top_k), top_p, ..Filter::default() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    top_k: i64,
    top_p: f64,
    #[serde(rename = "batch")]
    _batch: i64,
    #[serde(rename = "l")]
    _l: i64,
    #[serde(rename = "vocab_size")]
    _vocab_size: i64,
    #[serde(rename = "scale")]
    _scale: f64,
    #[serde(rename = "ties")]
    _ties: bool,
}

pub(super) fn filter(case: &Case) -> Result<Outputs, CaseError> {
    let given: Limits = case.config()?;
    let filtered = filter_logits(&case.input("logits")?, &limits(given.top_k, given.top_p));
    let mut outputs = Outputs::new();
    outputs.out("kept", &filtered.ne(f64::NEG_INFINITY)).out("probs", &filtered.softmax(-1, Kind::Float));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CfgSchedule {
    cfg: f64,
    patch_nums: Vec<i64>,
}

pub(super) fn cfg_schedule(case: &Case) -> Result<Outputs, CaseError> {
    let CfgSchedule { cfg, patch_nums } = case.config()?;
    let pyramid = Pyramid::square(&patch_nums)?;
    let sampling = VarSampling { cfg, ..VarSampling::default() };
    let each = |of: &dyn Fn(f64) -> f64| {
        Tensor::from_slice(&(0..pyramid.len()).map(|k| of(pyramid.ratio(k))).collect::<Vec<_>>())
    };
    let mut outputs = Outputs::new();
    outputs
        .out("t", &each(&|ratio| sampling.guidance(ratio)))
        .out("gumbel_tau", &each(&smooth_temperature))
        .out("logit_mul", &each(&smooth_factor));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    #[serde(rename = "B")]
    batch: i64,
    label_int: Option<i64>,
    #[serde(rename = "image_hw")]
    _image_hw: [i64; 2],
    cfg: f64,
    top_k: i64,
    top_p: f64,
    more_smooth: bool,
    edit: Option<EditConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditConfig {
    box_y0_x0_y1_x1: [f64; 4],
    inpainting: bool,
}

pub(super) fn sample(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let tokenizer_config = vqvae_config(&mut config)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    let given: Sample = config.rest()?;
    let tokenizer = load(case, "vae.", |path| Vqvae::new(path, &tokenizer_config))?.model;
    let quantizer = tokenizer.quantizer().frozen();
    let generator = load(case, "var.", |path| VarGenerator::new(path, &own, quantizer))?.model;
    let pyramid = generator.model().pyramid();
    let classes = match given.label_int {
        None => case.input("label")?,
        Some(label) => {
            let class = if label < 0 { generator.model().no_class() } else { label };
            Tensor::full([given.batch], class, (Kind::Int64, tch::Device::Cpu))
        }
    };
    let mut outputs = Outputs::new();
    let edit = match given.edit {
        None => None,
        Some(EditConfig { box_y0_x0_y1_x1: [top, left, bottom, right], inpainting }) => {
            let kind = if inpainting { EditKind::Inside } else { EditKind::Outside };
            let mask = edit_mask(EditBox { top, left, bottom, right }, kind, pyramid)?;
            let ids = tokenizer.encode_images(&case.input("img")?)?.ids;
            outputs.out("edit_mask", &mask).out("img_idx", &Tensor::cat(&ids, 1));
            let edit = Edit::new(ids, &mask, pyramid)?;
            outputs.out("keep_masks", &Tensor::cat(&edit.keep, 0));
            Some(edit)
        }
    };
    let noise = series(case, if given.more_smooth { "gumbel" } else { "exp_noise" });
    let prompt = VarPrompt { edit: edit.as_ref(), noise: (!noise.is_empty()).then_some(noise.as_slice()) };
    let sampling = VarSampling {
        cfg: given.cfg,
        filter: limits(given.top_k, given.top_p),
        more_smooth: given.more_smooth,
    };
    let (mut ids, mut logits) = (Vec::new(), Vec::new());
    let sampled = generator.sample_pyramid(&classes, sampling, &prompt, &mut |step| {
        ids.push(step.drawn.shallow_clone());
        logits.push(step.logits.shallow_clone());
    })?;
    let f_hat = sampled.f_hat.squeeze_dim(2);
    outputs
        .out("idx", &Tensor::cat(&ids, 1))
        .out("guided_logits", &Tensor::cat(&logits, 1))
        .out("f_hat", &f_hat)
        .out("image", &((tokenizer.fhat_to_images(&f_hat)? + 1.0) * 0.5));
    Ok(outputs)
}
