//! Names and layouts of the flax checkpoints of MaskGIT and MAGVIT.

use tch::{Kind, Tensor, nn};

use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// A model with a case's weights, and what they are called there.
pub(super) struct Loaded<M> {
    pub(super) model: M,
    store: nn::VarStore,
    names: Vec<(String, String)>,
}

/// Builds a model and loads `weights`: `rename` gives our names, [`to_ours`] our layouts.
pub(super) fn load<M>(
    weights: &Weights,
    rename: impl Fn(&str) -> String,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<Loaded<M>, CaseError> {
    let store = nn::VarStore::new(tch::Device::Cpu);
    let model = build(&store.root())?;
    let ours = weights.iter().map(|(name, tensor)| (rename(name), to_ours(name, tensor))).collect();
    load_into(&store, &ours)?;
    let names = weights.keys().map(|name| (name.clone(), rename(name))).collect();
    Ok(Loaded { model, store, names })
}

impl<M> Loaded<M> {
    /// The gradients that the case lists, of what was differentiated just now, in its layouts.
    pub(super) fn gradients(&self, case: &Case, outputs: &mut Outputs) -> Result<(), CaseError> {
        let variables = self.store.variables();
        for theirs in case.gradient_names() {
            let variable = self
                .names
                .iter()
                .find(|(name, _)| *name == theirs)
                .and_then(|(_, ours)| variables.get(ours))
                .ok_or_else(|| CaseError::Missing(theirs.clone()))?;
            let grad = variable.grad();
            let grad = if grad.defined() { grad } else { variable.zeros_like() };
            let shape = case.tensor(&format!("grad/{theirs}"))?.size();
            outputs.grad(&theirs, &to_theirs(&theirs, &grad, &shape));
        }
        Ok(())
    }
}

fn is_attention(name: &str) -> bool {
    name.contains("self_attention/")
}

/// Axes of a flax kernel `[..., in, out]` in PyTorch's order `[out, in, ...]`.
fn kernel_axes(dims: i64) -> Vec<i64> {
    [vec![dims - 1, dims - 2], (0..dims - 2).collect()].concat()
}

/// A flax tensor in our layout.
pub(super) fn to_ours(name: &str, tensor: &Tensor) -> Tensor {
    let tensor = tensor.to_kind(Kind::Float);
    if is_attention(name) {
        return match name.rsplit('/').next() {
            Some("bias") => tensor.reshape([-1]),
            _ if name.contains("/out/") => tensor.flatten(0, 1).tr(),
            _ => tensor.flatten(1, 2).tr(),
        };
    }
    if !name.ends_with("/kernel") {
        return tensor;
    }
    if name.contains("ConvTranspose") {
        // Flax does not flip the kernel of a transposed convolution, PyTorch does; and it keeps [in, out].
        let dims = tensor.dim() as i64;
        let axes: Vec<i64> = [vec![dims - 2, dims - 1], (0..dims - 2).collect()].concat();
        let flipped: Vec<i64> = (0..dims - 2).collect();
        return tensor.flip(flipped).permute(axes).contiguous();
    }
    tensor.permute(kernel_axes(tensor.dim() as i64)).contiguous()
}

/// One of our tensors in flax's layout.
fn to_theirs(name: &str, tensor: &Tensor, shape: &[i64]) -> Tensor {
    if is_attention(name) {
        return if name.ends_with("/bias") { tensor.reshape(shape) } else { tensor.tr().reshape(shape) };
    }
    if !name.ends_with("/kernel") {
        return tensor.shallow_clone();
    }
    let dims = tensor.dim() as i64;
    let axes: Vec<i64> = [(2..dims).collect(), vec![1, 0]].concat();
    tensor.permute(axes)
}

/// Our name of a tensor of the transformer: `Embed_0`, `TransformerLayer_i`, `MlmLayer_0`, each also with `Bert` in front.
pub(super) fn transformer_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').map(|part| part.strip_prefix("Bert").unwrap_or(part)).collect();
    let leaf = match parts.last() {
        Some(&"kernel" | &"scale") => "weight",
        Some(&leaf) => leaf,
        None => "",
    };
    let (layer, rest) = match parts[0].strip_prefix("TransformerLayer_").or(parts[0].strip_prefix("Layer_")) {
        Some(index) => (format!("layers.{index}."), &parts[1..]),
        None => (String::new(), &parts[..]),
    };
    let ours = match rest[..rest.len() - 1] {
        ["Embed_0", "word_embeddings"] => return "vocabulary.word".into(),
        ["Embed_0", "position_embeddings"] => return "position".into(),
        ["Embed_0", "segment_embeddings"] => return "segment".into(),
        ["MlmLayer_0", "mlm_bias"] => return "vocabulary.bias".into(),
        ["Embed_0", "embeddings_ln"] => "norm",
        ["MlmLayer_0", "mlm_dense"] => "vocabulary.dense",
        ["MlmLayer_0", "mlm_ln"] => "vocabulary.norm",
        ["Attention_0", "self_attention", part] => part,
        ["Attention_0", "attention_output_ln"] => "attention_norm",
        ["Mlp_0", "intermediate_output"] => "up",
        ["Mlp_0", "layer_output"] => "down",
        ["Mlp_0", "layer_output_ln"] => "mlp_norm",
        _ => return name.into(),
    };
    format!("{layer}{ours}.{leaf}")
}
