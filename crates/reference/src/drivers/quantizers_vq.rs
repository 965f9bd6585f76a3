//! Quantizers with a table (entries `quantizers.vq.*` and kin), each loaded by the names of its reference.

mod lucidrains;
mod others;

use std::collections::BTreeMap;

use quantizers::{
    EntropyLossConfig, EntropyTarget, IdRemap, Mode, Quantized, Quantizer, Similarity, UnknownId, Vq,
    VqConfig, VqExtras, VqProjection, affinity_entropy, assignment_perplexity,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("quantizers.vq.forward", lucidrains::vq_forward),
    ("quantizers.vq.ema_update", lucidrains::vq_steps),
    ("quantizers.vq.cosine", lucidrains::vq_steps),
    ("quantizers.vq.dead_code", lucidrains::vq_steps),
    ("quantizers.vq.kmeans_init", lucidrains::vq_k_means),
    ("quantizers.vq.rotation_trick", lucidrains::rotation_trick),
    ("quantizers.residual_vq", lucidrains::residual_vq),
    ("quantizers.google.vq", google_vq),
    ("quantizers.google.entropy_loss", google_entropy),
    ("quantizers.google.perplexity", google_perplexity),
    ("quantizers.taming.vq", taming_vq),
    ("quantizers.videogpt.codebook", videogpt),
    ("quantizers.teco.codebook", teco),
    ("quantizers.teco.vqgan_quantizer", teco_vqgan),
    ("quantizers.gumbel.maskgit", others::gumbel_maskgit),
    ("quantizers.gumbel.taming", others::gumbel_taming),
    ("quantizers.gumbel.temperature_schedule", others::gumbel_schedule),
    ("quantizers.simvq.forward", others::simvq),
    ("quantizers.ibq", others::ibq),
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

fn alias(x: &Tensor) -> Tensor {
    x.shallow_clone()
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
            init_order: case.optional_input("init_perm"),
            init_noise: case.optional_input("init_noise"),
            restart_order: case.optional_input(&format!("perm{step}")),
            restart_noise: case.optional_input(&format!("noise{step}")),
            ..VqExtras::default()
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
