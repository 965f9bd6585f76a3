//! The transformers of huggingface/open-muse. Ours have their names; their heads and norms show in no shape, so that the
//! config comes from the `config.json` that is published beside the weights.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::Kind;
use video_core::Error;

use super::{ImportError, Imported, Model};
use crate::weights::Weights;

/// The keys of a published config that ours knows. The reference leaves keys that it does not know aside, and of those that ours
/// does not know only one changes what a model computes.
///
/// # Errors
/// That key is set, or one has another type.
pub(crate) fn config<C: Default + Serialize + DeserializeOwned>(
    published: Map<String, Value>,
) -> video_core::Result<C> {
    let problem = |e: serde_json::Error| Error::input("config.json", e.to_string(), "one of open-muse");
    if published.get("use_conv_in_out") == Some(&Value::Bool(true)) {
        return Err(Error::unsupported(
            "open-muse's transformer",
            "embed and predict by convolutions (use_conv_in_out)",
            "the U-ViT does; import its weights as open-muse-uvit",
        ));
    }
    let known = serde_json::to_value(C::default()).map_err(problem)?;
    let ours: Map<String, Value> =
        published.into_iter().filter(|(key, _)| known.get(key).is_some()).collect();
    serde_json::from_value(ours.into()).map_err(problem)
}

/// The text of a published `config.json`, read.
fn published<C: Default + Serialize + DeserializeOwned>(json: Option<&str>) -> Result<C, ImportError> {
    let problem = |what: String| ImportError::Malformed(format!("config.json: {what}"));
    let json = json.ok_or_else(|| problem("is missing beside the weights".into()))?;
    Ok(config(serde_json::from_str(json).map_err(|e| problem(e.to_string()))?)?)
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
    Ok(Imported::of(Model::OpenMuse(published(json)?), as_float(tensors)))
}

/// The U-ViT.
pub(super) fn import_uvit(tensors: &Weights, json: Option<&str>) -> Result<Imported, ImportError> {
    Ok(Imported::of(Model::OpenMuseUvit(published(json)?), as_float(tensors)))
}
