//! VAR (entries `var.*`). Our names are those of its checkpoints.

mod quantizer;
mod sampling;
mod training;
mod transformer;
mod vqvae;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use tch::{Device, Tensor, nn};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::import::var::our_tensors;
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("var.quant.phi_index", quantizer::phi_index),
    ("var.quant.phi", quantizer::phi),
    ("var.quant.resample", quantizer::resample),
    ("var.quant.encode", quantizer::encode),
    ("var.quant.embed_to_fhat", quantizer::embed_to_fhat),
    ("var.quant.idx_to_var_input", quantizer::var_input),
    ("var.quant.next_input", quantizer::next_input),
    ("var.quant.train_forward", quantizer::train_forward),
    ("var.vqvae.layer", vqvae::layer),
    ("var.vqvae.encode", vqvae::encode),
    ("var.vqvae.reconstruct", vqvae::reconstruct),
    ("var.vqvae.train_forward", vqvae::train_forward),
    ("var.transformer.mask", transformer::mask),
    ("var.transformer.attention", transformer::attention),
    ("var.transformer.block", transformer::block),
    ("var.transformer.head", transformer::head),
    ("var.transformer.forward", transformer::forward),
    ("var.transformer.loss", transformer::loss),
    ("var.init.stats", transformer::init_stats),
    ("var.config.param_count", transformer::param_count),
    ("var.infinity.multiscale_bsq", transformer::multiscale_bsq),
    ("var.train.lr_schedule", training::lr_schedule),
    ("var.train.prog_schedule", training::prog_schedule),
    ("var.train.param_groups", training::param_groups),
    ("var.train.step", training::step),
    ("var.sample.filter", sampling::filter),
    ("var.sample.cfg_schedule", sampling::cfg_schedule),
    ("var.sample.greedy", sampling::sample),
    ("var.sample.noise", sampling::sample),
    ("var.sample.more_smooth", sampling::sample),
    ("var.sample.edit_greedy", sampling::sample),
];

/// The keys of a quantizer.
const QUANTIZER: &[&str] = &[
    "vocab_size",
    "z_channels",
    "using_znorm",
    "beta",
    "default_qresi_counts",
    "quant_resi",
    "share_quant_resi",
    "v_patch_nums",
];

/// A case's config, taken apart: one flat table of several components.
struct Config {
    all: serde_json::Map<String, serde_json::Value>,
    used: Vec<&'static str>,
}

impl Config {
    fn of(case: &Case) -> Result<Self, CaseError> {
        match case.config.clone() {
            serde_json::Value::Object(all) => Ok(Self { all, used: Vec::new() }),
            _ => Err(CaseError::Config("not an object".into())),
        }
    }

    /// One component's keys; another may share some of them.
    fn part<T: DeserializeOwned>(&mut self, keys: &[&'static str]) -> Result<T, CaseError> {
        self.used.extend(keys);
        let chosen = self.all.iter().filter(|(key, _)| keys.contains(&key.as_str()));
        parse(chosen.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// The keys that no component took.
    fn rest<T: DeserializeOwned>(self) -> Result<T, CaseError> {
        parse(self.all.into_iter().filter(|(key, _)| !self.used.contains(&key.as_str())).collect())
    }
}

fn parse<T: DeserializeOwned>(map: serde_json::Map<String, serde_json::Value>) -> Result<T, CaseError> {
    serde_json::from_value(map.into()).map_err(|e| CaseError::Config(e.to_string()))
}

/// A model and its variables by name.
struct Loaded<M> {
    model: M,
    store: nn::VarStore,
}

/// Builds a model and loads the weights below a prefix as those of a checkpoint.
fn load<M>(
    case: &Case,
    prefix: &str,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<Loaded<M>, CaseError> {
    let below = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor));
    let weights: Weights = case.weights().into_iter().filter_map(below).collect();
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    load_into(&store, &our_tensors(&weights))?;
    Ok(Loaded { model, store })
}

impl<M> Loaded<M> {
    /// Adds the gradients of the named variables, as `name` and `suffix`; zeros where none came.
    fn gradients(&self, names: &[String], suffix: &str, outputs: &mut Outputs) {
        let variables: BTreeMap<String, Tensor> = self.store.variables().into_iter().collect();
        for name in names {
            let Some(variable) = variables.get(name) else { continue };
            let gradient = variable.grad();
            let gradient = if gradient.defined() { gradient } else { variable.zeros_like() };
            // A copy: the next step's gradient is added in place.
            outputs.grad(format!("{name}{suffix}"), &gradient.copy());
        }
    }
}

/// The inputs `{name}_0`, `{name}_1`, ...
fn series(case: &Case, name: &str) -> Vec<Tensor> {
    (0..).map_while(|k| case.optional_input(&format!("{name}_{k}"))).collect()
}

/// Outputs `{name}_0`, `{name}_1`, ...
fn out_series<'a>(outputs: &mut Outputs, name: &str, tensors: impl IntoIterator<Item = &'a Tensor>) {
    for (k, tensor) in tensors.into_iter().enumerate() {
        outputs.out(format!("{name}_{k}"), tensor);
    }
}

/// How many scales a case's `prog_si` leaves of `all`; negative leaves all.
fn scales_up_to(prog_si: i64, all: usize) -> usize {
    usize::try_from(prog_si).map_or(all, |last| last + 1)
}
