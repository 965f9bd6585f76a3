//! Quantizers with a table (entries `quantizers.vq.*` and kin), each loaded by the names of its reference.

use std::collections::BTreeMap;

use quantizers::{
    CodebookInit, CodebookUpdate, DeadCodeRestart, EntropyLossConfig, EntropyTarget, Estimator, GumbelConfig,
    GumbelForm, GumbelVq, Ibq, IbqConfig, IdRemap, Mode, Quantized, Quantizer, ResidualVq, ResidualVqConfig,
    SimVq, SimVqConfig, Similarity, TemperatureSchedule, UnknownId, Vq, VqConfig, VqExtras, VqProjection,
    affinity_entropy, assignment_perplexity, rotate_to,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("quantizers.vq.forward", vq_forward),
    ("quantizers.vq.ema_update", vq_steps),
    ("quantizers.vq.cosine", vq_steps),
    ("quantizers.vq.dead_code", vq_steps),
    ("quantizers.vq.kmeans_init", vq_k_means),
    ("quantizers.vq.rotation_trick", rotation_trick),
    ("quantizers.residual_vq", residual_vq),
    ("quantizers.google.vq", google_vq),
    ("quantizers.google.entropy_loss", google_entropy),
    ("quantizers.google.perplexity", google_perplexity),
    ("quantizers.taming.vq", taming_vq),
    ("quantizers.videogpt.codebook", videogpt),
    ("quantizers.teco.codebook", teco),
    ("quantizers.teco.vqgan_quantizer", teco_vqgan),
    ("quantizers.gumbel.maskgit", gumbel_maskgit),
    ("quantizers.gumbel.taming", gumbel_taming),
    ("quantizers.gumbel.temperature_schedule", gumbel_schedule),
    ("quantizers.simvq.forward", simvq),
    ("quantizers.ibq", ibq),
];

const TRAIN: Mode = Mode::Train { step: 0 };

/// A model under the names of its reference.
struct Loaded<M> {
    model: M,
    variables: BTreeMap<String, Tensor>,
}

/// Builds a model and loads the weights of a case, each renamed and reshaped by `map`; those it has no name for are not
/// part of our model.
fn load<M>(
    case: &Case,
    map: impl Fn(&str, &Tensor) -> Option<(String, Tensor)>,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<Loaded<M>, CaseError> {
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    let weights: Weights = case.weights().iter().filter_map(|(name, tensor)| map(name, tensor)).collect();
    if !weights.is_empty() {
        load_into(&store, &weights)?;
    }
    Ok(Loaded { model, variables: store.variables().into_iter().collect() })
}

impl<M> Loaded<M> {
    fn variable(&self, name: &str) -> Result<&Tensor, CaseError> {
        self.variables.get(name).ok_or_else(|| CaseError::Missing(name.into()))
    }

    fn grad(&self, name: &str) -> Result<Tensor, CaseError> {
        let variable = self.variable(name)?;
        let grad = variable.grad();
        Ok(if grad.defined() { grad } else { variable.zeros_like() })
    }
}

fn same(name: &str, tensor: &Tensor) -> Option<(String, Tensor)> {
    Some((name.into(), tensor.shallow_clone()))
}

/// A table `[K, D]` as ours, `[1, K, D]`.
fn one_table(_: &str, tensor: &Tensor) -> Option<(String, Tensor)> {
    Some(("embed".into(), tensor.unsqueeze(0)))
}

/// sum(a · b).
fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum(Kind::Float)
}

/// Axis 1 to the end.
fn last(x: &Tensor) -> Tensor {
    x.movedim_int(1, -1)
}

/// The end to axis 1.
fn first(x: &Tensor) -> Tensor {
    x.movedim_int(-1, 1)
}

fn ids_of(quantized: &Quantized) -> Result<&Tensor, CaseError> {
    quantized.ids.as_ref().ok_or_else(|| CaseError::Missing("ids".into()))
}

/// A named loss, weight applied; 0 where the config has none.
fn loss_of(quantized: &Quantized, name: &str) -> Tensor {
    let found = quantized.losses.iter().find(|(known, _)| *known == name);
    found.map_or_else(|| Tensor::from(0f32), |(_, loss)| loss.shallow_clone())
}

fn or_zero(term: Option<Tensor>) -> Tensor {
    term.unwrap_or_else(|| Tensor::from(0f32))
}

/// Backward where there is anything to differentiate.
fn backward(objective: &Tensor) {
    if objective.requires_grad() {
        objective.backward();
    }
}

/// The gradient of an input; 0 where none arrived.
fn input_grad(x: &Tensor) -> Tensor {
    let grad = x.grad();
    if grad.defined() { grad } else { x.zeros_like() }
}

fn config_error(problem: impl Into<String>) -> CaseError {
    CaseError::Config(problem.into())
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn quarter() -> f64 {
    0.25
}

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
        if ema == self.learnable_codebook {
            return Err(config_error("either ema_update or learnable_codebook, and not both"));
        }
        let code_dim = self.codebook_dim.unwrap_or(self.dim);
        let rotation = self.rotation_trick.unwrap_or(code_dim > 1 && !self.straight_through);
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
            softmax_gradient: self.straight_through,
            commitment_weight: self.commitment_weight,
            joint_loss: !ema,
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

fn vq_forward(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let loaded = config.load(case)?;
    let x = case.input_with_grad("x")?;
    let map = config.accept_image_fmap || config.accept_3d_fmap;
    let (to_last, to_first) =
        if map { (last as fn(&_) -> _, first as fn(&_) -> _) } else { (alias as _, alias as _) };
    let extras = VqExtras { mask: case.optional_input("mask").map(|mask| mask.ne(0)), ..VqExtras::default() };
    let (quantized, terms) = loaded.model.quantize_with(&to_last(&x), config.mode(), &extras)?;
    let output = to_first(&quantized.embeddings);
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
    outputs.out("codes", &to_first(&codes));
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

fn alias(x: &Tensor) -> Tensor {
    x.shallow_clone()
}

/// Several training steps in a row.
fn vq_steps(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let steps = config.steps.unwrap_or(3);
    let loaded = config.load(case)?;
    let mut outputs = Outputs::new();
    for step in 0..steps {
        let extras =
            VqExtras { restart_order: case.optional_input(&format!("perm{step}")), ..VqExtras::default() };
        let x = case.input(&format!("x{step}"))?;
        let (quantized, _) = loaded.model.quantize_with(&x, config.mode(), &extras)?;
        outputs.out(format!("quantized{step}"), &quantized.embeddings);
        outputs.out(format!("ids{step}"), ids_of(&quantized)?);
        outputs.out(format!("loss{step}"), &quantized.loss());
        for name in ["embed", "embed_avg", "cluster_size"] {
            let state = loaded.variable(name)?.copy();
            outputs.out(format!("after{}/{name}", step + 1), &state);
        }
    }
    Ok(outputs)
}

fn vq_k_means(case: &Case) -> Result<Outputs, CaseError> {
    let config: Lucid = case.config()?;
    let loaded = config.load(case)?;
    let perm = case.optional_input("perm");
    let extras = VqExtras {
        init_order: perm,
        restart_order: case.optional_input("expire_perm"),
        ..VqExtras::default()
    };
    let (quantized, _) = loaded.model.quantize_with(&case.input("x")?, TRAIN, &extras)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized.embeddings).out("ids", ids_of(&quantized)?);
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

fn rotation_trick(case: &Case) -> Result<Outputs, CaseError> {
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

/// Arguments of lucidrains' `ResidualVQ`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Residual {
    dim: i64,
    num_quantizers: i64,
    codebook_size: i64,
    codebook_dim: Option<i64>,
    #[serde(default)]
    shared_codebook: bool,
    #[serde(default = "yes")]
    train: bool,
    #[serde(default = "lucid_decay")]
    decay: f64,
    #[serde(default = "lucid_eps")]
    eps: f64,
    #[serde(default)]
    threshold_ema_dead_code: f64,
    #[serde(default = "yes")]
    rotation_trick: bool,
    #[serde(default)]
    use_cosine_sim: bool,
    #[serde(default = "one")]
    commitment_weight: f64,
    #[serde(default)]
    quantize_dropout: bool,
    #[serde(default)]
    quantize_dropout_cutoff_index: i64,
    #[serde(default = "one_head")]
    quantize_dropout_multiple_of: i64,
    dropout_index: Option<i64>,
}

fn residual_vq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Residual = case.config()?;
    let rotation = given.rotation_trick;
    let config = ResidualVqConfig {
        num_quantizers: given.num_quantizers,
        codebook_dim: given.codebook_dim,
        shared_codebook: given.shared_codebook,
        quantize_dropout: given.quantize_dropout,
        quantize_dropout_cutoff_index: given.quantize_dropout_cutoff_index,
        quantize_dropout_multiple_of: given.quantize_dropout_multiple_of,
        stage: VqConfig {
            codebook_size: given.codebook_size,
            similarity: if given.use_cosine_sim { Similarity::UnitFeatures } else { Similarity::Euclidean },
            ema_decay: given.decay,
            ema_eps: given.eps,
            dead_code_threshold: given.threshold_ema_dead_code,
            estimator: if rotation { Estimator::RotationTrick } else { Estimator::StraightThrough },
            commitment_weight: given.commitment_weight,
            ..VqConfig::lucidrains()
        },
    };
    let last_stage = given.dropout_index.map(|drawn| config.last_kept(drawn));
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
        |name, tensor| lucid_name(name, tensor, true).map(|(_, tensor)| (ours(name), tensor)),
        |path| ResidualVq::new(path, given.dim, config),
    )?;
    let x = case.input_with_grad("x")?;
    let mode = if given.train { TRAIN } else { Mode::Eval };
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
            outputs.out(format!("after/{name}"), loaded.variable(&ours(name))?);
        }
    }
    for name in case.gradient_names() {
        let grad = if name == "x" { input_grad(&x) } else { loaded.grad(&ours(&name))? };
        outputs.grad(&name, &grad);
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum GoogleVariant {
    Maskgit,
    Magvit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Google {
    variant: GoogleVariant,
    codebook_size: i64,
    commitment_cost: f64,
    entropy_loss_ratio: f64,
    #[serde(default = "hundredth")]
    entropy_temperature: f64,
    #[serde(default)]
    entropy_loss_type: EntropyTarget,
    #[serde(default)]
    latent_normalize: bool,
    #[serde(default = "one")]
    embedding_loss_ratio: f64,
    #[serde(default = "one")]
    sample_minimization_weight: f64,
    #[serde(default = "one")]
    batch_maximization_weight: f64,
}

fn hundredth() -> f64 {
    0.01
}

fn google_vq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Google = case.config()?;
    let plain = !given.latent_normalize && given.embedding_loss_ratio == 1.0;
    if matches!(given.variant, GoogleVariant::Maskgit) && !plain {
        return Err(config_error("latent_normalize and embedding_loss_ratio are MAGVIT's"));
    }
    let config = VqConfig {
        codebook_size: given.codebook_size,
        similarity: if given.latent_normalize { Similarity::CosineFeatures } else { Similarity::Euclidean },
        commitment_weight: given.commitment_cost,
        codebook_weight: given.embedding_loss_ratio,
        entropy: EntropyLossConfig {
            weight: given.entropy_loss_ratio,
            temperature: given.entropy_temperature,
            target: given.entropy_loss_type,
            per_sample_weight: given.sample_minimization_weight,
            batch_weight: given.batch_maximization_weight,
        },
        ..VqConfig::mask_git()
    };
    let x = case.input_with_grad("x")?;
    let dim = x.size().last().copied().unwrap_or(0);
    let loaded = load(case, one_table, |path| Vq::new(path, dim, config))?;
    let train = loaded.model.quantize(&x, TRAIN)?;
    (dot(&train.embeddings, &case.input("g")?) + train.loss()).backward();
    let eval = loaded.model.quantize(&x, Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &train.embeddings).out("ids", ids_of(&train)?).out("loss", &train.loss());
    outputs.out("e_latent_loss", &loss_of(&train, "commitment"));
    outputs.out("q_latent_loss", &loss_of(&train, "codebook"));
    outputs.out("entropy_loss", &loss_of(&train, "entropy"));
    outputs.out("eval_quantized", &eval.embeddings).out("decoded", &loaded.model.lookup(ids_of(&eval)?)?);
    outputs.grad("x", &x.grad()).grad("codebook", &loaded.grad("embed")?.squeeze_dim(0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GoogleEntropy {
    loss_type: EntropyTarget,
    temperature: f64,
    #[serde(default = "one")]
    sample_minimization_weight: f64,
    #[serde(default = "one")]
    batch_maximization_weight: f64,
}

fn google_entropy(case: &Case) -> Result<Outputs, CaseError> {
    let given: GoogleEntropy = case.config()?;
    let config = EntropyLossConfig {
        weight: 1.0,
        temperature: given.temperature,
        target: given.loss_type,
        per_sample_weight: given.sample_minimization_weight,
        batch_weight: given.batch_maximization_weight,
    };
    config.validate()?;
    let affinity = case.input_with_grad("affinity")?;
    let entropy = affinity_entropy(&affinity, &config);
    entropy.loss.backward();
    let mut outputs = Outputs::new();
    outputs.out("loss", &entropy.loss).out("sample_entropy", &entropy.per_sample);
    outputs.out("avg_entropy", &entropy.batch).grad("affinity", &affinity.grad());
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GooglePerplexity {
    codebook_size: i64,
}

fn google_perplexity(case: &Case) -> Result<Outputs, CaseError> {
    let given: GooglePerplexity = case.config()?;
    let encodings = case.input("encodings")?;
    if encodings.size().last() != Some(&given.codebook_size) {
        return Err(config_error(format!("codebook_size = {} is not the encodings'", given.codebook_size)));
    }
    let mut outputs = Outputs::new();
    outputs.out("perplexity", &assignment_perplexity(&encodings, 1e-5));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Unknown {
    Word(UnknownId),
    Position(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Taming {
    variant: TamingVariant,
    n_e: i64,
    e_dim: i64,
    #[serde(default = "quarter")]
    beta: f64,
    #[serde(default = "yes")]
    legacy: bool,
    #[serde(default)]
    sane_index_shape: bool,
    #[serde(default)]
    l2_normalize: bool,
    unknown_index: Option<Unknown>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum TamingVariant {
    Taming,
    IbqRepo,
}

fn taming_vq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Taming = case.config()?;
    if matches!(given.variant, TamingVariant::Taming) && given.l2_normalize {
        return Err(config_error("l2_normalize is the IBQ repository's"));
    }
    let config = VqConfig {
        codebook_size: given.n_e,
        similarity: if given.l2_normalize { Similarity::CosineSearch } else { Similarity::Euclidean },
        commitment_weight: if given.legacy { 1.0 } else { given.beta },
        codebook_weight: if given.legacy { given.beta } else { 1.0 },
        ..VqConfig::vqgan()
    };
    let loaded = load(case, one_table, |path| Vq::new(path, given.e_dim, config))?;
    let z = case.input_with_grad("z")?;
    let quantized = loaded.model.quantize(&last(&z), TRAIN)?;
    let output = first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();

    let ids = ids_of(&quantized)?;
    let remapped;
    let (shown, to_decode) = match case.optional_input("used") {
        None if given.sane_index_shape => (ids.shallow_clone(), ids.shallow_clone()),
        None => (ids.reshape([-1]), ids.shallow_clone()),
        Some(used) => {
            let unknown = match given.unknown_index {
                None => UnknownId::Random,
                Some(Unknown::Word(word)) => word,
                Some(Unknown::Position(at)) => UnknownId::Fixed(at),
            };
            let used = Vec::<i64>::try_from(&used)?;
            remapped = IdRemap::new(&used, unknown)?;
            let positions = remapped.to_used(ids);
            let decoded = remapped.to_all(&positions)?;
            let shown = if given.sane_index_shape { positions } else { positions.reshape([-1, 1]) };
            (shown, decoded)
        }
    };
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", &shown).out("loss", &quantized.loss());
    outputs.out("decoded", &first(&loaded.model.lookup(&to_decode)?));
    outputs.grad("z", &z.grad()).grad("embedding.weight", &loaded.grad("embed")?.squeeze_dim(0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VideoGpt {
    n_codes: i64,
    embedding_dim: i64,
    steps: usize,
    need_init: bool,
    #[serde(default)]
    no_random_restart: bool,
    #[serde(default = "one")]
    restart_thres: f64,
}

fn videogpt(case: &Case) -> Result<Outputs, CaseError> {
    let given: VideoGpt = case.config()?;
    let config = VqConfig {
        codebook_size: given.n_codes,
        dead_code_threshold: if given.no_random_restart { 0.0 } else { given.restart_thres },
        ..VqConfig::video_gpt()
    };
    let mut weights = case.weights();
    let store = nn::VarStore::new(Device::Cpu);
    let model = Vq::new(&store.root(), given.embedding_dim, config)?;
    if !given.need_init {
        // A checkpoint does not say that its codes are made.
        weights.insert("initted".into(), Tensor::ones([1], (Kind::Float, Device::Cpu)));
        let renamed = weights.iter().map(|(name, tensor)| match name.as_str() {
            "embeddings" => ("embed".to_string(), tensor.unsqueeze(0)),
            "z_avg" => ("embed_avg".into(), tensor.unsqueeze(0)),
            "N" => ("cluster_size".into(), tensor.unsqueeze(0)),
            _ => (name.clone(), tensor.shallow_clone()),
        });
        load_into(&store, &renamed.collect())?;
    }
    let variables = store.variables();
    let mut outputs = Outputs::new();
    for step in 0..given.steps {
        let z = case.input_with_grad(&format!("z{step}"))?;
        let extras = VqExtras {
            mask: None,
            init_order: case.optional_input("init_perm"),
            init_noise: case.optional_input("init_noise"),
            restart_order: case.optional_input(&format!("perm{step}")),
            restart_noise: case.optional_input(&format!("noise{step}")),
        };
        let (quantized, _) = model.quantize_with(&last(&z), TRAIN, &extras)?;
        let output = first(&quantized.embeddings);
        (dot(&output, &case.input("g")?) + quantized.loss()).backward();
        outputs.out(format!("embeddings{step}"), &output);
        outputs.out(format!("encodings{step}"), ids_of(&quantized)?);
        outputs.out(format!("commitment_loss{step}"), &quantized.loss());
        if let Some(usage) = &quantized.usage {
            outputs.out(format!("perplexity{step}"), &usage.perplexity);
        }
        outputs.grad(format!("z{step}"), &z.grad());
        for (theirs, ours) in [("embeddings", "embed"), ("z_avg", "embed_avg"), ("N", "cluster_size")] {
            let state = variables[ours].squeeze_dim(0).copy();
            outputs.out(format!("after{}/{theirs}", step + 1), &state);
        }
    }
    let eval = model.quantize(&last(&case.input("z_eval")?), Mode::Eval)?;
    outputs.out("eval_embeddings", &first(&eval.embeddings)).out("eval_encodings", ids_of(&eval)?);
    outputs.out("lookup", &model.lookup(ids_of(&eval)?)?);
    if let Some(usage) = &eval.usage {
        outputs.out("eval_perplexity", &usage.perplexity);
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Teco {
    n_codes: i64,
    proj_dim: i64,
    embedding_dim: i64,
    in_dim: i64,
}

fn teco(case: &Case) -> Result<Outputs, CaseError> {
    let given: Teco = case.config()?;
    let config = VqConfig {
        codebook_size: given.n_codes,
        codebook_dim: Some(given.proj_dim),
        projection: VqProjection::Unbiased,
        ..VqConfig::teco()
    };
    // Kernels of flax are [in, out].
    let map = |name: &str, tensor: &Tensor| match name {
        "codebook" => Some(("embed".to_string(), tensor.unsqueeze(0))),
        "Dense_0/kernel" => Some(("project_in.weight".into(), tensor.transpose(0, 1))),
        "Dense_1/kernel" => Some(("project_out.weight".into(), tensor.transpose(0, 1))),
        _ => same(name, tensor),
    };
    let loaded =
        load(case, map, |path| Vq::with_output_dim(path, given.in_dim, given.embedding_dim, config))?;
    let z = case.input_with_grad("z")?;
    let quantized = loaded.model.quantize(&z, TRAIN)?;
    (dot(&quantized.embeddings, &case.input("g")?) + quantized.loss()).backward();
    let mut outputs = Outputs::new();
    outputs.out("embeddings", &quantized.embeddings).out("encodings", ids_of(&quantized)?);
    outputs.out("commitment_loss", &loss_of(&quantized, "commitment"));
    outputs.out("codebook_loss", &loss_of(&quantized, "codebook"));
    if let Some(usage) = &quantized.usage {
        outputs.out("perplexity", &usage.perplexity);
    }
    outputs.out("lookup", &loaded.model.lookup(&case.input("lookup_ids")?)?);
    outputs.grad("z", &z.grad()).grad("codebook", &loaded.grad("embed")?.squeeze_dim(0));
    outputs.grad("Dense_0/kernel", &loaded.grad("project_in.weight")?.transpose(0, 1));
    outputs.grad("Dense_1/kernel", &loaded.grad("project_out.weight")?.transpose(0, 1));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TecoVqgan {
    n_e: i64,
    e_dim: i64,
}

fn teco_vqgan(case: &Case) -> Result<Outputs, CaseError> {
    let given: TecoVqgan = case.config()?;
    let config = VqConfig { codebook_size: given.n_e, ..VqConfig::vqgan() };
    let loaded = load(case, one_table, |path| Vq::new(path, given.e_dim, config))?;
    let quantized = loaded.model.quantize(&case.input("z")?, Mode::Eval)?;
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized.embeddings).out("ids", ids);
    outputs.out("decoded", &loaded.model.lookup(ids)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelMaskgit {
    codebook_size: i64,
    tau: f64,
}

fn gumbel_maskgit(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelMaskgit = case.config()?;
    let config = GumbelConfig { codebook_size: given.codebook_size, ..GumbelConfig::default() };
    let x = case.input_with_grad("x")?;
    let dim = x.size().last().copied().unwrap_or(0);
    let loaded = load(
        case,
        |_, tensor| Some(("embed".into(), tensor.shallow_clone())),
        |path| GumbelVq::new(path, dim, config),
    )?;
    let noise = case.input("gumbel")?;
    let (train, terms) = loaded.model.quantize_with(&x, true, given.tau, Some(&noise))?;
    let encodings = terms.ok_or_else(|| CaseError::Missing("encodings".into()))?.encodings;
    (dot(&train.embeddings, &case.input("g")?) + dot(&encodings, &case.input("ge")?)).backward();
    let eval = loaded.model.quantize(&x, Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &train.embeddings).out("encodings", &encodings).out("ids", ids_of(&train)?);
    outputs.out("eval_quantized", &eval.embeddings).out("eval_ids", ids_of(&eval)?);
    outputs.out("decoded", &loaded.model.lookup(ids_of(&eval)?)?);
    outputs.grad("x", &x.grad()).grad("codebook", &loaded.grad("embed")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelTaming {
    num_hiddens: i64,
    embedding_dim: i64,
    n_embed: i64,
    straight_through: bool,
    kl_weight: f64,
    temp: f64,
    train: bool,
}

fn gumbel_taming(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelTaming = case.config()?;
    let config = GumbelConfig {
        codebook_size: given.n_embed,
        codebook_dim: Some(given.embedding_dim),
        form: GumbelForm::Logits {
            straight_through: given.straight_through,
            kl_weight: given.kl_weight,
            sample_in_eval: true,
        },
        temperature: TemperatureSchedule::constant(given.temp),
    };
    // The 1×1 convolution is a linear map.
    let map = |name: &str, tensor: &Tensor| match name {
        "proj.weight" => Some((name.to_string(), tensor.flatten(1, -1))),
        "embed.weight" => Some(("embed".into(), tensor.shallow_clone())),
        _ => same(name, tensor),
    };
    let loaded = load(case, map, |path| {
        GumbelVq::with_output_dim(path, given.num_hiddens, given.embedding_dim, config)
    })?;
    let z = case.input_with_grad("z")?;
    let noise = last(&case.input("gumbel")?);
    let (quantized, terms) = loaded.model.quantize_with(&last(&z), given.train, given.temp, Some(&noise))?;
    let terms = terms.ok_or_else(|| CaseError::Missing("logits".into()))?;
    let output = first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", ids).out("kl", &loss_of(&quantized, "kl"));
    outputs.out("logits", &first(&terms.logits)).out("decoded", &first(&loaded.model.lookup(ids)?));
    outputs.grad("z", &z.grad()).grad("embed.weight", &loaded.grad("embed")?);
    outputs.grad("proj.weight", &loaded.grad("proj.weight")?.unsqueeze(-1).unsqueeze(-1));
    outputs.grad("proj.bias", &loaded.grad("proj.bias")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelSchedule {
    warm_up_steps: u64,
    lr_min: f64,
    lr_max: f64,
    lr_start: f64,
    max_decay_steps: u64,
}

fn gumbel_schedule(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelSchedule = case.config()?;
    let schedule = TemperatureSchedule {
        start: given.lr_start,
        max: given.lr_max,
        min: given.lr_min,
        warm_up_steps: given.warm_up_steps,
        decay_steps: given.max_decay_steps,
    };
    schedule.validate()?;
    let steps = Vec::<i64>::try_from(&case.input("steps")?)?;
    let tau: Vec<f64> = steps.iter().map(|step| schedule.at(step.unsigned_abs())).collect();
    let mut outputs = Outputs::new();
    outputs.out("tau", &Tensor::from_slice(&tau));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sim {
    dim: i64,
    codebook_size: i64,
    #[serde(default)]
    channel_first: bool,
    #[serde(default = "yes")]
    rotation_trick: bool,
    #[serde(default = "quarter")]
    input_to_quantize_commit_loss_weight: f64,
    #[serde(default = "one")]
    commitment_weight: f64,
    frozen_codebook_dim: Option<i64>,
}

fn simvq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Sim = case.config()?;
    let rotation = given.rotation_trick;
    let config = SimVqConfig {
        codebook_size: given.codebook_size,
        frozen_codebook_dim: given.frozen_codebook_dim,
        estimator: if rotation { Estimator::RotationTrick } else { Estimator::StraightThrough },
        commitment_weight: given.commitment_weight,
        input_to_quantize_commit_loss_weight: given.input_to_quantize_commit_loss_weight,
    };
    let loaded = load(case, same, |path| SimVq::new(path, given.dim, config))?;
    let x = case.input_with_grad("x")?;
    let (features, to_first) =
        if given.channel_first { (last(&x), first as fn(&_) -> _) } else { (alias(&x), alias as _) };
    let quantized = loaded.model.quantize(&features, TRAIN)?;
    let output = to_first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", ids).out("loss", &quantized.loss());
    outputs.out("decoded", &to_first(&loaded.model.lookup(ids)?));
    outputs.grad("x", &x.grad()).grad("code_transform.weight", &loaded.grad("code_transform.weight")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IbqGiven {
    n_e: i64,
    e_dim: i64,
    #[serde(default = "quarter")]
    beta: f64,
    #[serde(default)]
    use_entropy_loss: bool,
    #[serde(default = "hundredth")]
    entropy_temperature: f64,
    #[serde(default)]
    entropy_loss_type: EntropyTarget,
    #[serde(default = "one")]
    sample_minimization_weight: f64,
    #[serde(default = "one")]
    batch_maximization_weight: f64,
    #[serde(default)]
    entropy_loss_weight: f64,
}

fn ibq(case: &Case) -> Result<Outputs, CaseError> {
    let given: IbqGiven = case.config()?;
    let config = IbqConfig {
        codebook_size: given.n_e,
        beta: given.beta,
        entropy: EntropyLossConfig {
            weight: if given.use_entropy_loss { given.entropy_loss_weight } else { 0.0 },
            temperature: given.entropy_temperature,
            target: given.entropy_loss_type,
            per_sample_weight: given.sample_minimization_weight,
            batch_weight: given.batch_maximization_weight,
        },
        ..IbqConfig::default()
    };
    let loaded = load(
        case,
        |_, tensor| Some(("embedding".into(), tensor.shallow_clone())),
        |path| Ibq::new(path, given.e_dim, config),
    )?;
    let z = case.input_with_grad("z")?;
    let (quantized, terms) = loaded.model.quantize_parts(&last(&z), TRAIN)?;
    let terms = terms.ok_or_else(|| CaseError::Missing("quant_loss".into()))?;
    let output = first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", &ids.reshape([-1])).out("quant_loss", &terms.quant);
    if let Some(entropy) = &terms.entropy {
        outputs.out("entropy_loss", &entropy.loss).out("sample_entropy", &entropy.per_sample);
        outputs.out("avg_entropy", &entropy.batch);
    }
    outputs.out("decoded", &first(&loaded.model.lookup(ids)?));
    outputs.grad("z", &z.grad()).grad("embedding.weight", &loaded.grad("embedding")?);
    Ok(outputs)
}
