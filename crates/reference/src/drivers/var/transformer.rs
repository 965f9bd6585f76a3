//! The transformer (`var.transformer.*`), its initialisation and the parameter counts.

use ::var_next_scale::bitwise::{MultiScaleBsq, MultiScaleBsqConfig};
use ::var_next_scale::transformer::{AdaLnBlock, AdaLnHead, Attend, InitConfig, SelfAttention};
use ::var_next_scale::{
    MultiScaleVqConfig, Progress, Pyramid, Var, VarConfig, VqvaeConfig, block_causal_mask, metrics,
    next_scale_loss,
};
use layers::KvCache;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor, nn};
use video_core::GridShape;

use super::{Config, Loaded, load, out_series, scales_up_to};
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The keys of a transformer.
pub(super) const TRANSFORMER: &[&str] = &[
    "vocab_size",
    "z_channels",
    "num_classes",
    "depth",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "norm_eps",
    "shared_aln",
    "cond_drop_rate",
    "attn_l2_norm",
    "patch_nums",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    patch_nums: Vec<i64>,
}

pub(super) fn mask(case: &Case) -> Result<Outputs, CaseError> {
    let pyramid = Pyramid::square(&case.config::<Mask>()?.patch_nums)?;
    let ranges: Vec<Tensor> =
        pyramid.ranges().iter().map(|range| Tensor::from_slice(&[range.start, range.end])).collect();
    let mut outputs = Outputs::new();
    outputs
        .out("allowed", &block_causal_mask(&pyramid.lengths(), Device::Cpu))
        .out("level", &pyramid.levels(Device::Cpu))
        .out("begin_end", &Tensor::stack(&ranges, 0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attention {
    embed_dim: i64,
    num_heads: i64,
    attn_l2_norm: bool,
    #[serde(rename = "patch_nums")]
    _patch_nums: Vec<i64>,
    masked: bool,
    chunks: Vec<i64>,
    #[serde(rename = "batch")]
    _batch: i64,
}

pub(super) fn attention(case: &Case) -> Result<Outputs, CaseError> {
    let given: Attention = case.config()?;
    let (width, heads) = (given.embed_dim, given.num_heads);
    let loaded =
        load(case, "", |path| Ok(SelfAttention::new(path, width, heads, given.attn_l2_norm, [0.02; 2])))?;
    let x = case.input("x")?;
    let length = x.size()[1];
    let all = || Tensor::ones([length, length], (Kind::Bool, Device::Cpu));
    let allowed = if given.masked { case.input("allowed")?.to_kind(Kind::Bool) } else { all() };
    let mut cache = KvCache::new(length);
    let steps = x.split_with_sizes(given.chunks.as_slice(), 1);
    let cached = tch::no_grad(|| {
        steps
            .iter()
            .map(|x| loaded.model.forward(x, Attend::Cached(&mut cache)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut outputs = Outputs::new();
    outputs
        .out("y", &loaded.model.forward(&x, Attend::Masked(&allowed))?)
        .out("y_cached", &Tensor::cat(&cached, 1));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    #[serde(rename = "batch")]
    _batch: i64,
}

/// The keys of one block.
const BLOCK: &[&str] =
    &["embed_dim", "num_heads", "mlp_ratio", "norm_eps", "shared_aln", "attn_l2_norm", "patch_nums"];

pub(super) fn block(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let own: VarConfig = config.part(BLOCK)?;
    own.validate()?;
    config.rest::<Batch>()?;
    let block = load(case, "", |path| Ok(AdaLnBlock::new(path, &own, 0)))?.model;
    let allowed = case.input("allowed")?.to_kind(Kind::Bool);
    let modulation = block.modulation(&case.input("cond")?);
    let mut outputs = Outputs::new();
    outputs.out("y", &block.forward(&case.input("x")?, &modulation, Attend::Masked(&allowed), false)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(rename = "batch")]
    _batch: i64,
    #[serde(rename = "input_scale")]
    _input_scale: f64,
}

pub(super) fn head(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    own.validate()?;
    config.rest::<Head>()?;
    let head = load(case, "", |path| Ok(AdaLnHead::new(path, &own)))?.model;
    let (h, class) = (case.input("h")?, case.input("cond")?);
    let mut outputs = Outputs::new();
    outputs.out("norm", &head.norm(&h, &class)).out("logits", &head.forward(&h, &class));
    Ok(outputs)
}

fn var<T: DeserializeOwned>(case: &Case) -> Result<(Loaded<Var>, T), CaseError> {
    let mut config = Config::of(case)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    Ok((load(case, "", |path| Var::new(path, &own))?, config.rest()?))
}

/// Taught logits of the first scales, with the case's draws for dropped classes.
fn taught(case: &Case, model: &Var, scales: usize) -> Result<Tensor, CaseError> {
    let classes = model.drop_classes(&case.input("label")?, &case.input("drop_u")?);
    Ok(model.forward(&classes, &case.input("x_BLCv_wo_first_l")?, scales, false)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    #[serde(rename = "batch")]
    _batch: i64,
    prog_si: i64,
}

pub(super) fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, Forward) = var(case)?;
    let scales = scales_up_to(given.prog_si, loaded.model.pyramid().len());
    let mut outputs = Outputs::new();
    outputs.out("logits", &taught(case, &loaded.model, scales)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    #[serde(rename = "batch")]
    _batch: i64,
    prog_si: i64,
    prog_wp: f64,
    label_smooth: f64,
    #[serde(rename = "grad_params")]
    _grad_params: Vec<String>,
}

/// A case's progress; negative is none.
pub(super) fn progress(prog_si: i64, prog_wp: f64) -> Option<Progress> {
    usize::try_from(prog_si).ok().map(|last_scale| Progress { last_scale, weight: prog_wp })
}

pub(super) fn loss(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, Loss) = var(case)?;
    let (model, targets) = (&loaded.model, case.input("gt")?);
    let scales = scales_up_to(given.prog_si, model.pyramid().len());
    let logits = taught(case, model, scales)?;
    let progress = progress(given.prog_si, given.prog_wp);
    let loss = next_scale_loss(&logits, &targets, model.pyramid(), given.label_smooth, progress)?;
    loss.backward();
    let logged = metrics(&logits, &targets, model.pyramid().lengths()[scales - 1]);
    let mut outputs = Outputs::new();
    outputs
        .out("logits", &logits)
        .out("loss", &loss)
        .out("val_mean", &logged.mean)
        .out("val_tail", &logged.tail)
        .out("acc", &logged.accuracy);
    loaded.gradients(&case.gradient_names(), "", &mut outputs);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Init {
    init_adaln: f64,
    init_adaln_gamma: f64,
    init_head: f64,
    init_std: f64,
    seed: i64,
    names: Vec<String>,
}

pub(super) fn init_stats(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let own: VarConfig = config.part(TRANSFORMER)?;
    let given: Init = config.rest()?;
    let init = InitConfig {
        std: (given.init_std >= 0.0).then_some(given.init_std),
        head: given.init_head,
        adaln: given.init_adaln,
        adaln_gamma: given.init_adaln_gamma,
    };
    tch::manual_seed(given.seed);
    let store = nn::VarStore::new(Device::Cpu);
    let width = own.embed_dim;
    Var::new(&store.root(), &VarConfig { init, ..own })?;
    let variables = store.variables();
    let (mut deviations, mut means) = (Vec::new(), Vec::new());
    for name in &given.names {
        let (plain, part) = name.split_once('[').unwrap_or((name, ""));
        let variable = variables.get(plain).ok_or_else(|| CaseError::Missing(name.clone()))?;
        // The first rows of a matrix, or of the six vectors, are those of the gammas.
        let gammas = if variable.dim() == 2 { 2 * width } else { 2 };
        let rows = || variable.reshape([3 * gammas, -1]);
        let values = match part {
            "gamma]" => rows().narrow(0, 0, gammas),
            "rest]" => rows().narrow(0, gammas, 2 * gammas),
            _ => variable.shallow_clone(),
        };
        let values = values.to_kind(Kind::Double);
        let constant = name.contains("scale_mul");
        deviations.push(values.std(false).double_value(&[]));
        means.push(if constant { values.mean(Kind::Double).double_value(&[]) } else { 0.0 });
    }
    let mut outputs = Outputs::new();
    outputs
        .out("std", &Tensor::from_slice(&deviations))
        .out("mean_of_constants", &Tensor::from_slice(&means));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParamCount {
    models: Vec<Published>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    depth: i64,
    shared_aln: bool,
    attn_l2_norm: bool,
    patch_nums: Vec<i64>,
    num_classes: i64,
    vocab_size: i64,
    z_channels: i64,
    ch: i64,
    share_quant_resi: usize,
}

pub(super) fn param_count(case: &Case) -> Result<Outputs, CaseError> {
    let rows: Vec<Tensor> = case
        .config::<ParamCount>()?
        .models
        .into_iter()
        .map(|model| {
            let quantizer = MultiScaleVqConfig {
                vocab_size: model.vocab_size,
                z_channels: model.z_channels,
                share_quant_resi: model.share_quant_resi,
                v_patch_nums: model.patch_nums.clone(),
                ..MultiScaleVqConfig::default()
            };
            let tokenizer = VqvaeConfig { ch: model.ch, quantizer, ..VqvaeConfig::default() }.parameters();
            let transformer = VarConfig {
                vocab_size: model.vocab_size,
                z_channels: model.z_channels,
                num_classes: model.num_classes,
                depth: model.depth,
                embed_dim: 64 * model.depth,
                num_heads: model.depth,
                shared_aln: model.shared_aln,
                attn_l2_norm: model.attn_l2_norm,
                patch_nums: model.patch_nums,
                ..VarConfig::default()
            };
            Tensor::from_slice(&[
                transformer.parameters(),
                tokenizer.total(),
                tokenizer.encoder,
                tokenizer.decoder,
                tokenizer.quantizer,
            ])
        })
        .collect();
    let mut outputs = Outputs::new();
    outputs.out("counts", &Tensor::stack(&rows, 0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bits {
    scale_schedule: Vec<[i64; 3]>,
    #[serde(rename = "batch")]
    _batch: i64,
}

pub(super) fn multiscale_bsq(case: &Case) -> Result<Outputs, CaseError> {
    let mut config = Config::of(case)?;
    let own: MultiScaleBsqConfig = config.part(&["dim", "ln_before_quant", "use_decay_factor"])?;
    let scales = config.rest::<Bits>()?.scale_schedule;
    let shape = |&[frames, height, width]: &[i64; 3]| GridShape { frames, height, width };
    let pyramid = Pyramid::new("scale_schedule", scales.iter().map(shape).collect())?;
    let one_frame = pyramid.last().frames == 1;
    let store = nn::VarStore::new(Device::Cpu);
    let quantizer = MultiScaleBsq::new(&store.root(), own, pyramid)?;
    // Beside the norm there is only a table of powers of two (`lfq.mask`).
    let weights: Weights = case
        .weights()
        .into_iter()
        .filter(|(name, _)| !name.ends_with("mask"))
        .map(|(name, tensor)| {
            let leaf = name.rsplit('.').next().unwrap_or(&name);
            (format!("layernorm.{leaf}"), tensor.reshape([-1]))
        })
        .collect();
    // A norm without weights in the case is as at the start.
    if !weights.is_empty() {
        load_into(&store, &weights)?;
    }
    let result = quantizer.quantize(&case.input("z")?)?;
    let quantized = if one_frame { result.quantized.squeeze_dim(2) } else { result.quantized };
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized);
    out_series(&mut outputs, "bits", &result.bits);
    out_series(&mut outputs, "var_input", &result.var_inputs);
    Ok(outputs)
}
