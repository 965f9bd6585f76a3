//! The multi-scale quantizer (`var.quant.*`).

use ::var_next_scale::phi::{Phi, PhiSharing};
use ::var_next_scale::{MultiScaleVq, MultiScaleVqConfig, Pyramid, resample as between};
use serde::Deserialize;
use tch::{Kind, Tensor};
use video_core::GridShape;

use super::{Config, Loaded, QUANTIZER, load, out_series, scales_up_to, series};
use crate::case::{Case, CaseError, Outputs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhiIndex {
    tables: Vec<(Mode, usize, usize)>,
    pad_to: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Shared,
    Partial,
    Nonshared,
}

pub(super) fn phi_index(case: &Case) -> Result<Outputs, CaseError> {
    let PhiIndex { tables, pad_to } = case.config()?;
    let rows: Vec<Tensor> = tables
        .iter()
        .map(|(mode, count, scales)| {
            let sharing = match mode {
                Mode::Shared => PhiSharing::Single,
                Mode::Partial => PhiSharing::Partial(*count),
                Mode::Nonshared => PhiSharing::PerScale(*count),
            };
            let mut row: Vec<i64> = (0..*scales).map(|k| sharing.index(k, *scales) as i64).collect();
            row.resize(pad_to, -1);
            Tensor::from_slice(&row)
        })
        .collect();
    let mut outputs = Outputs::new();
    outputs.out("index", &Tensor::stack(&rows, 0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhiConfig {
    z_channels: i64,
    quant_resi: f64,
    #[serde(rename = "shape")]
    _shape: [i64; 4],
}

pub(super) fn phi(case: &Case) -> Result<Outputs, CaseError> {
    let given: PhiConfig = case.config()?;
    let loaded = load(case, "", |path| Ok(Phi::new(path, given.z_channels, given.quant_resi)))?;
    let mut outputs = Outputs::new();
    outputs.out("y", &loaded.model.forward(&case.input("h")?.unsqueeze(2)).squeeze_dim(2));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resample {
    #[serde(rename = "shape")]
    _shape: [i64; 4],
    ops: Vec<(Way, [i64; 2])>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Area,
    Bicubic,
}

pub(super) fn resample(case: &Case) -> Result<Outputs, CaseError> {
    let given: Resample = case.config()?;
    let x = case.input("x")?.unsqueeze(2);
    let results: Vec<Tensor> = given
        .ops
        .iter()
        .map(|(way, [height, width])| {
            let to = GridShape { frames: 1, height: *height, width: *width };
            match way {
                Way::Area => between::area(&x, to),
                Way::Bicubic => between::enlarge(&x, to),
            }
            .squeeze_dim(2)
        })
        .collect();
    let mut outputs = Outputs::new();
    out_series(&mut outputs, "y", &results);
    Ok(outputs)
}

/// The quantizer of a case, and the keys that are not its own.
fn quantizer<T: serde::de::DeserializeOwned>(case: &Case) -> Result<(Loaded<MultiScaleVq>, T), CaseError> {
    let mut config = Config::of(case)?;
    let own: MultiScaleVqConfig = config.part(QUANTIZER)?;
    Ok((load(case, "", |path| MultiScaleVq::new(path, &own))?, config.rest()?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Encode {
    #[serde(rename = "batch")]
    _batch: i64,
    call_patch_hws: Option<Vec<Patches>>,
    #[serde(default = "off")]
    prog_si: i64,
}

fn off() -> i64 {
    -1
}

/// A scale of a call: the side of a square, or height and width.
#[derive(Deserialize)]
#[serde(untagged)]
enum Patches {
    Square(i64),
    Rectangle([i64; 2]),
}

impl Patches {
    fn shape(&self) -> GridShape {
        let [height, width] = match *self {
            Self::Square(side) => [side; 2],
            Self::Rectangle(sides) => sides,
        };
        GridShape { frames: 1, height, width }
    }
}

pub(super) fn encode(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, Encode) = quantizer(case)?;
    let scales = given
        .call_patch_hws
        .map(|scales| Pyramid::new("call_patch_hws", scales.iter().map(Patches::shape).collect()));
    let pyramid = scales.unwrap_or_else(|| Ok(loaded.model.pyramid().clone()))?;
    let scales = scales_up_to(given.prog_si, pyramid.len());
    let encoded = loaded.model.encode(&case.input("f")?.unsqueeze(2), &pyramid, scales)?;
    let mut outputs = Outputs::new();
    out_series(&mut outputs, "idx", &encoded.ids);
    let f_hat: Vec<Tensor> = encoded.f_hat.iter().map(|f_hat| f_hat.squeeze_dim(2)).collect();
    out_series(&mut outputs, "f_hat", &f_hat);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbedToFhat {
    #[serde(rename = "batch")]
    _batch: i64,
    all_to_max_scale: bool,
}

/// Code maps with a time axis.
fn maps(case: &Case) -> Vec<Tensor> {
    series(case, "h").iter().map(|h| h.unsqueeze(2)).collect()
}

pub(super) fn embed_to_fhat(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, EmbedToFhat) = quantizer(case)?;
    let (model, h) = (&loaded.model, maps(case));
    let f_hat = if given.all_to_max_scale {
        model.f_hats(&h, model.pyramid())?
    } else {
        model.f_hats_own_size(&h, model.pyramid())?
    };
    let mut outputs = Outputs::new();
    out_series(&mut outputs, "f_hat", &f_hat.iter().map(|f| f.squeeze_dim(2)).collect::<Vec<_>>());
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VarInput {
    #[serde(rename = "batch")]
    _batch: i64,
    prog_si: i64,
}

pub(super) fn var_input(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, VarInput) = quantizer(case)?;
    let pyramid = loaded.model.pyramid();
    let scales = scales_up_to(given.prog_si, pyramid.len());
    let mut outputs = Outputs::new();
    outputs.out("x_BLCv_wo_first_l", &loaded.model.var_input(&series(case, "idx"), pyramid, scales)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NextInput {
    #[serde(rename = "batch")]
    _batch: i64,
}

pub(super) fn next_input(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, _): (_, NextInput) = quantizer(case)?;
    let (pyramid, h) = (loaded.model.pyramid(), maps(case));
    let mut outputs = Outputs::new();
    let mut f_hat = between::enlarge(&h[0], pyramid.last()).zeros_like();
    for (k, h) in h.iter().enumerate() {
        let next;
        (f_hat, next) = loaded.model.next_input(k, pyramid, &f_hat, h);
        outputs.out(format!("f_hat_{k}"), &f_hat.squeeze_dim(2));
        outputs.out(format!("next_{k}"), &next.squeeze_dim(2));
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainForward {
    #[serde(rename = "batch")]
    _batch: i64,
    record_hits: bool,
    world_size: i64,
    steps: usize,
}

pub(super) fn train_forward(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, TrainForward) = quantizer(case)?;
    let mut outputs = Outputs::new();
    for step in 0..given.steps {
        for (_, variable) in loaded.store.variables() {
            let mut gradient = variable.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        let f = case.input_with_grad(&format!("f_{step}"))?;
        let model = &loaded.model;
        let quantized = model.train(&f.unsqueeze(2), model.pyramid(), given.record_hits)?;
        let f_hat = quantized.f_hat.squeeze_dim(2);
        let cotangent = case.input(&format!("g_{step}"))?;
        (&quantized.vq_loss + (&f_hat * cotangent).sum(Kind::Float)).backward();
        let size = f.size();
        outputs
            .out(format!("f_hat_st_{step}"), &f_hat)
            .out(format!("vq_loss_{step}"), &quantized.vq_loss)
            .out(format!("usages_{step}"), &model.usages(size[0] * size[2] * size[3], given.world_size))
            .out(format!("ema_vocab_hit_SV_{step}"), &model.hits().0.copy())
            .grad(format!("f_{step}"), &f.grad());
        let names: Vec<String> = loaded.store.variables().into_keys().collect();
        loaded.gradients(&names, &format!("_{step}"), &mut outputs);
    }
    outputs.out("record_hit", &Tensor::from(loaded.model.hits().1));
    Ok(outputs)
}
