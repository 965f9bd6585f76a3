//! Entries after vector-quantize-pytorch: `quantizers.vq.*` and `quantizers.residual_vq`.

use quantizers::{
    CodebookInit, CodebookUpdate, DeadCodeRestart, Estimator, Mode, QuantizeDropout, Quantizer, ResidualVq,
    ResidualVqConfig, Similarity, Vq, VqConfig, VqExtras, rotate_to,
};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::{
    Loaded, TRAIN, alias, backward, config_error, dot, first, ids_of, input_grad, last, load, one, or_zero,
    yes,
};
use crate::case::{Case, CaseError, Outputs};

/// Arguments of lucidrains' `VectorQuantize`, and of the case around it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lucid {
    dim: i64,
    codebook_size: i64,
    codebook_dim: Option<i64>,
    #[serde(default = "one_head")]
    heads: i64,
    #[serde(default)]
    separate_codebook_per_head: bool,
    #[serde(default = "yes")]
    train: bool,
    steps: Option<usize>,
    #[serde(default = "lucid_decay")]
    decay: f64,
    #[serde(default = "lucid_eps")]
    eps: f64,
    #[serde(default)]
    threshold_ema_dead_code: f64,
    reset_cluster_size: Option<f64>,
    rotation_trick: Option<bool>,
    #[serde(default)]
    straight_through: bool,
    #[serde(default)]
    stochastic_sample_codes: bool,
    #[serde(default = "one")]
    sample_codebook_temp: f64,
    #[serde(default)]
    use_cosine_sim: bool,
    #[serde(default)]
    learnable_codebook: bool,
    ema_update: Option<bool>,
    #[serde(default = "one")]
    commitment_weight: f64,
    #[serde(default)]
    orthogonal_reg_weight: f64,
    #[serde(default)]
    orthogonal_reg_active_codes_only: bool,
    #[serde(default)]
    codebook_diversity_loss_weight: f64,
    #[serde(default = "hundred")]
    codebook_diversity_temperature: f64,
    #[serde(default = "yes")]
    channel_last: bool,
    #[serde(default)]
    accept_image_fmap: bool,
    #[serde(default)]
    accept_3d_fmap: bool,
    #[serde(default)]
    kmeans_init: bool,
    #[serde(default = "lucid_iterations")]
    kmeans_iters: u32,
}

fn one_head() -> i64 {
    1
}

fn lucid_decay() -> f64 {
    0.8
}

fn lucid_eps() -> f64 {
    1e-5
}

fn hundred() -> f64 {
    100.0
}

fn lucid_iterations() -> u32 {
    10
}

impl Lucid {
    fn vq(&self) -> Result<VqConfig, CaseError> {
        let ema = self.ema_update.unwrap_or(!self.learnable_codebook);
        if ema && self.learnable_codebook {
            return Err(config_error("ema_update and learnable_codebook exclude each other"));
        }
        if !ema && self.threshold_ema_dead_code > 0.0 {
            return Err(config_error("threshold_ema_dead_code without ema_update"));
        }
        let code_dim = self.codebook_dim.unwrap_or(self.dim);
        let rotation = self.rotation_trick.unwrap_or(self.dim > 1 && !self.straight_through);
        // Of a choice that is not drawn the temperature reaches softmax gradients alone, and those reach nothing.
        let drawn = self.stochastic_sample_codes && self.sample_codebook_temp > 0.0;
        let similarity = if self.use_cosine_sim { Similarity::UnitFeatures } else { Similarity::Euclidean };
        let init = if self.kmeans_init {
            CodebookInit::KMeans { iterations: self.kmeans_iters }
        } else {
            CodebookInit::Kaiming
        };
        Ok(VqConfig {
            codebook_size: self.codebook_size,
            codebook_dim: Some(code_dim),
            heads: self.heads,
            separate_codebook_per_head: self.separate_codebook_per_head,
            similarity,
            update: if ema { CodebookUpdate::Ema } else { CodebookUpdate::Gradient },
            ema_decay: self.decay,
            ema_eps: self.eps,
            dead_code_threshold: self.threshold_ema_dead_code,
            dead_code_restart: self
                .reset_cluster_size
                .map_or(DeadCodeRestart::ResetCount, DeadCodeRestart::ResetCountTo),
            init,
            estimator: if rotation { Estimator::RotationTrick } else { Estimator::StraightThrough },
            sample_temperature: drawn.then_some(self.sample_codebook_temp),
            softmax_gradient: self.straight_through,
            commitment_weight: self.commitment_weight,
            // With neither, the codes stay: no loss reaches them.
            codebook_weight: 0.0,
            joint_loss: self.learnable_codebook,
            orthogonal_weight: self.orthogonal_reg_weight,
            orthogonal_active_codes_only: self.orthogonal_reg_active_codes_only,
            diversity_weight: self.codebook_diversity_loss_weight,
            diversity_temperature: self.codebook_diversity_temperature,
            ..VqConfig::lucidrains()
        })
    }

    fn load(&self, case: &Case) -> Result<Loaded<Vq>, CaseError> {
        let config = self.vq()?;
        let ema = config.update == CodebookUpdate::Ema;
        load(case, |name, tensor| lucid_name(name, tensor, ema), |path| Vq::new(path, self.dim, config))
    }

    fn mode(&self) -> Mode {
        if self.train { TRAIN } else { Mode::Eval }
    }

    /// Where each of the reference's tokens of one codebook stands among ours, for features `x`: heads that share a codebook
    /// lie behind the batch there, behind the positions here.
    fn token_order(&self, x: &Tensor) -> Tensor {
        let heads = if self.separate_codebook_per_head { 1 } else { self.heads };
        let tokens = x.numel() as i64 / self.dim;
        let ours = Tensor::arange(tokens * heads, (Kind::Int64, x.device()));
        ours.view([x.size()[0], -1, heads]).transpose(1, 2).reshape([-1])
    }

    /// A permutation of the reference's tokens, if the case has it, as one of ours.
    fn order(&self, case: &Case, name: &str, x: &Tensor) -> Option<Tensor> {
        Some(self.token_order(x).take(&case.optional_input(name)?))
    }

    /// Noise for each pair of a token and a code, if the case has it, as `[c, N, K]`.
    fn sample_noise(&self, case: &Case, x: &Tensor, codebooks: i64) -> Option<Tensor> {
        let noise = case.optional_input("gumbel")?.reshape([codebooks, -1, self.codebook_size]);
        Some(noise.index_select(1, &self.token_order(x).argsort(0, false)))
    }

    /// Whether channels are axis 1.
    fn channels_first(&self) -> bool {
        !self.channel_last || self.accept_image_fmap || self.accept_3d_fmap
    }

    /// The features, channels last.
    fn read(&self, x: &Tensor) -> Tensor {
        if self.channels_first() { last(x) } else { alias(x) }
    }

    /// The inverse of [`Lucid::read`].
    fn write(&self, x: &Tensor) -> Tensor {
        if self.channels_first() { first(x) } else { alias(x) }
    }
}

/// The reference holds EMA buffers without EMA too, and its flag of an init from data without such an init.
fn lucid_name(name: &str, tensor: &Tensor, ema: bool) -> Option<(String, Tensor)> {
    let ours = name.replace("_codebook.", "");
    let buffer = ours.ends_with("embed_avg") || ours.ends_with("cluster_size");
    if ours.ends_with("initted") || (buffer && !ema) {
        return None;
    }
    Some((ours, tensor.shallow_clone()))
}

/// A piece of lucidrains' state after a step. Buffers that we do not have do not change.
fn lucid_state<M>(case: &Case, loaded: &Loaded<M>, name: &str, ours: &str) -> Result<Tensor, CaseError> {
    match loaded.variables.get(ours) {
        Some(variable) => Ok(variable.copy()),
        None => case.tensor(&format!("param/{name}")),
    }
}

pub(super) fn vq_forward(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let loaded = config.load(case)?;
    let x = case.input_with_grad("x")?;
    let extras = VqExtras {
        mask: case.optional_input("mask").map(|mask| mask.ne(0)),
        sample_noise: config.sample_noise(case, &x, loaded.model.config().num_codebooks()),
        restart_order: config.order(case, "perm", &x),
        ..VqExtras::default()
    };
    let (quantized, terms) = loaded.model.quantize_with(&config.read(&x), config.mode(), &extras)?;
    let output = config.write(&quantized.embeddings);
    let ids = ids_of(&quantized)?;
    let loss = quantized.loss();
    backward(&(dot(&output, &case.input("g")?) + &loss));

    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", ids).out("loss", &loss);
    if let Some(terms) = terms {
        outputs.out("commit", &or_zero(terms.commitment));
        outputs.out("orthogonal", &or_zero(terms.orthogonality));
        outputs.out("diversity", &or_zero(terms.diversity));
    }
    let mut codes = loaded.model.codes(&ids.clamp_min(0))?;
    if config.heads > 1 && !config.separate_codebook_per_head {
        codes = codes.unflatten(-1, [config.heads, -1]);
    }
    outputs.out("codes", &config.write(&codes));
    for key in case.outputs.keys() {
        if let Some(name) = key.strip_prefix("out/after/") {
            let ours = name.replace("_codebook.", "");
            outputs.out(format!("after/{name}"), &lucid_state(case, &loaded, name, &ours)?);
        }
    }
    for name in case.gradient_names() {
        let grad = if name == "x" { input_grad(&x) } else { loaded.grad(&name.replace("_codebook.", ""))? };
        outputs.grad(&name, &grad);
    }
    Ok(outputs)
}

/// Several training steps in a row.
pub(super) fn vq_steps(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let steps = config.steps.unwrap_or(3);
    let loaded = config.load(case)?;
    let mut outputs = Outputs::new();
    for step in 0..steps {
        let x = case.input(&format!("x{step}"))?;
        let restart_order = config.order(case, &format!("perm{step}"), &x);
        let extras = VqExtras { restart_order, ..VqExtras::default() };
        let (quantized, _) = loaded.model.quantize_with(&config.read(&x), config.mode(), &extras)?;
        outputs.out(format!("quantized{step}"), &config.write(&quantized.embeddings));
        outputs.out(format!("ids{step}"), ids_of(&quantized)?);
        outputs.out(format!("loss{step}"), &quantized.loss());
        for name in ["embed", "embed_avg", "cluster_size"] {
            let state = lucid_state(case, &loaded, &format!("_codebook.{name}"), name)?;
            outputs.out(format!("after{}/{name}", step + 1), &state);
        }
    }
    Ok(outputs)
}

pub(super) fn vq_k_means(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let loaded = config.load(case)?;
    let x = case.input("x")?;
    let extras = VqExtras {
        init_order: config.order(case, "perm", &x),
        restart_order: config.order(case, "expire_perm", &x),
        ..VqExtras::default()
    };
    let (quantized, _) = loaded.model.quantize_with(&config.read(&x), TRAIN, &extras)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &config.write(&quantized.embeddings)).out("ids", ids_of(&quantized)?);
    outputs.out("loss", &quantized.loss());
    for name in ["embed", "embed_avg", "cluster_size"] {
        outputs.out(format!("after/{name}"), loaded.variable(name)?);
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    eps: f64,
}

pub(super) fn rotation_trick(case: &Case) -> Result<Outputs, CaseError> {
    let config: Rotation = case.config()?;
    if config.eps != 1e-6 {
        return Err(config_error(format!("eps = {}: only 1e-6", config.eps)));
    }
    let x = case.input_with_grad("src")?;
    let rotated = rotate_to(&x, &case.input("tgt")?);
    dot(&rotated, &case.input("g")?).backward();
    let mut outputs = Outputs::new();
    outputs.out("rotated", &rotated).grad("src", &x.grad());
    Ok(outputs)
}

/// What lucidrains' `ResidualVQ` takes beside the arguments of its stages.
#[derive(Deserialize)]
struct Residual {
    num_quantizers: i64,
    #[serde(default)]
    shared_codebook: bool,
    #[serde(default)]
    quantize_dropout: bool,
    #[serde(default)]
    quantize_dropout_cutoff_index: i64,
    #[serde(default = "one_head")]
    quantize_dropout_multiple_of: i64,
    dropout_index: Option<i64>,
}

/// The keys of [`Residual`].
const RESIDUAL_KEYS: [&str; 6] = [
    "num_quantizers",
    "shared_codebook",
    "quantize_dropout",
    "quantize_dropout_cutoff_index",
    "quantize_dropout_multiple_of",
    "dropout_index",
];

pub(super) fn residual_vq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Residual = case.config()?;
    let mut of_stages = case.config.clone();
    if let Some(map) = of_stages.as_object_mut() {
        map.retain(|key, _| !RESIDUAL_KEYS.contains(&key.as_str()));
    }
    let mut stage: Lucid = serde_json::from_value(of_stages).map_err(|e| config_error(e.to_string()))?;
    if stage.heads != 1 || stage.channels_first() {
        return Err(config_error("residual VQ has one head, and channels last"));
    }
    // Stages see projected features.
    let (dim, codebook_dim, train) = (stage.dim, stage.codebook_dim.take(), stage.train);
    stage.dim = codebook_dim.unwrap_or(dim);
    let stage = VqConfig { codebook_dim: None, ..stage.vq()? };
    let ema = stage.update == CodebookUpdate::Ema;
    let dropout = QuantizeDropout {
        cutoff_index: given.quantize_dropout_cutoff_index,
        multiple_of: given.quantize_dropout_multiple_of,
    };
    let config = ResidualVqConfig {
        num_quantizers: given.num_quantizers,
        codebook_dim,
        shared_codebook: given.shared_codebook,
        quantize_dropout: given.quantize_dropout.then_some(dropout),
        stage,
    };
    let last_stage = given.dropout_index.map(|drawn| dropout.last_kept(drawn, given.num_quantizers));
    // A shared codebook is in the reference's checkpoint once for each stage.
    let ours = |name: &str| {
        let name = name.replace("_codebook.", "");
        match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((_, leaf)) if given.shared_codebook => format!("layers.0.{leaf}"),
            _ => name,
        }
    };
    let loaded = load(
        case,
        |name, tensor| lucid_name(name, tensor, ema).map(|(_, tensor)| (ours(name), tensor)),
        |path| ResidualVq::new(path, dim, config),
    )?;
    let x = case.input_with_grad("x")?;
    let mode = if train { TRAIN } else { Mode::Eval };
    let (quantized, losses) = loaded.model.quantize_stages(&x, mode, last_stage)?;
    let ids = ids_of(&quantized)?;
    backward(&(dot(&quantized.embeddings, &case.input("g")?) + losses.sum(Kind::Float)));

    let mut outputs = Outputs::new();
    let with_stages = if given.num_quantizers == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    outputs.out("quantized", &quantized.embeddings).out("ids", &with_stages).out("losses", &losses);
    if case.outputs.contains_key("out/decoded") {
        outputs.out("decoded", &loaded.model.lookup(ids)?);
    }
    for key in case.outputs.keys() {
        if let Some(name) = key.strip_prefix("out/after/") {
            outputs.out(format!("after/{name}"), &lucid_state(case, &loaded, name, &ours(name))?);
        }
    }
    for name in case.gradient_names() {
        let grad = if name == "x" { input_grad(&x) } else { loaded.grad(&ours(&name))? };
        outputs.grad(&name, &grad);
    }
    Ok(outputs)
}
