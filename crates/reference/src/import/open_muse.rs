//! The transformers of huggingface/open-muse. Ours have their names; their heads and norms show in no shape, so that the
//! config comes from the `config.json` that is published beside the weights.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::Kind;

use super::{ImportError, Imported, Model};
use crate::weights::Weights;

/// The keys of a published config that ours knows.
fn config<C: Default + Serialize + DeserializeOwned>(json: Option<&str>) -> Result<C, ImportError> {
    let problem = |what: String| ImportError::Malformed(format!("config.json: {what}"));
    let json = json.ok_or_else(|| problem("is missing beside the weights".into()))?;
    let published: Map<String, Value> = serde_json::from_str(json).map_err(|e| problem(e.to_string()))?;
    let known = serde_json::to_value(C::default()).map_err(|e| problem(e.to_string()))?;
    let ours: Map<String, Value> =
        published.into_iter().filter(|(key, _)| known.get(key).is_some()).collect();
    serde_json::from_value(ours.into()).map_err(|e| problem(e.to_string()))
}

fn as_float(tensors: &Weights) -> Weights {
    let float = |tensor: &tch::Tensor| match tensor.is_floating_point() {
        true => tensor.to_kind(Kind::Float),
        false => tensor.shallow_clone(),
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), float(tensor))).collect()
}

/// The first one, of classes or text.
pub(super) fn import(tensors: &Weights, json: Option<&str>) -> Result<Imported, ImportError> {
    Ok(Imported::of(Model::OpenMuse(config(json)?), as_float(tensors)))
}

/// The U-ViT.
pub(super) fn import_uvit(tensors: &Weights, json: Option<&str>) -> Result<Imported, ImportError> {
    Ok(Imported::of(Model::OpenMuseUvit(config(json)?), as_float(tensors)))
}
