//! T5's encoder (entries `t5.*`).

use ::text_encoder::{T5Config, T5Encoder};
use tch::{Device, Kind, nn, no_grad};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::load_into;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[("t5.encoder.forward", forward)];

/// The weights load without a map: ours have the published names. So has the config, beside keys of the decoder and of
/// training.
fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let config = T5Config::from_published(&case.config.to_string())?;
    let variables = nn::VarStore::new(Device::Cpu);
    let encoder = T5Encoder::new(&variables.root(), &config)?;
    let mut weights = case.weights();
    if let Some(table) = weights.remove("encoder.embed_tokens.weight") {
        weights.entry("shared.weight".into()).or_insert(table);
    }
    load_into(&variables, &weights)?;
    let ids = case.input("input_ids")?;
    let mask = case.optional_input("attention_mask").unwrap_or_else(|| ids.ones_like()).to_kind(Kind::Bool);
    let states = no_grad(|| encoder.forward(&ids, &mask).map_err(CaseError::from))?;
    let mut outputs = Outputs::new();
    outputs.out("last_hidden_state", &states);
    Ok(outputs)
}
