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
        return tensor.reshape(shape);
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

/// Our names of a VQGAN's tensors. The last convolution of each half is its output, so all names are needed.
pub(super) fn vqgan_names(weights: &Weights) -> impl Fn(&str) -> String + use<> {
    let last = |half: &str| {
        let index = |name: &String| {
            let rest = name.strip_prefix(half)?.strip_prefix("Conv_")?;
            rest.split('/').next()?.parse::<i64>().ok()
        };
        weights.keys().filter_map(index).max()
    };
    let halves = ["encoder/", "decoder/"].map(|half| (half, last(half)));
    move |name| {
        if name == "quantizer/codebook" {
            return "quantizer.embed".into();
        }
        let half = |(half, last): &(&'static str, Option<i64>)| name.strip_prefix(half).zip(*last);
        let (half_name, (rest, last)) = match halves.iter().find_map(|h| Some((h.0, half(h)?))) {
            Some(found) => found,
            None => return name.into(),
        };
        let prefix = half_name.replace('/', ".");
        let parts: Vec<&str> = rest.split('/').collect();
        let leaf = if parts.last() == Some(&"bias") { "bias" } else { "weight" };
        let (kind, index) = parts[0].rsplit_once('_').unwrap_or((parts[0], "0"));
        let index: i64 = index.parse().unwrap_or(0);
        let ours = match (kind, index) {
            ("ResBlock", _) => {
                let part = match parts.get(1).copied().unwrap_or("") {
                    "Conv_0" => "conv1",
                    "Conv_1" => "conv2",
                    "Conv_2" => "shortcut",
                    norm if norm.ends_with("Norm_0") => "norm1",
                    _ => "norm2",
                };
                format!("blocks.{index}.{part}")
            }
            ("Conv", 0) => "conv_in".into(),
            ("Conv", i) if i == last => "conv_out".into(),
            ("Conv", i) if half_name == "encoder/" => format!("down.{}", i - 1),
            ("Conv", i) => format!("up.{}", i - 1),
            ("ConvTranspose", i) => format!("up.{i}"),
            _ => "norm_out".into(),
        };
        format!("{prefix}{ours}.{leaf}")
    }
}

/// Weights of half a VQGAN that was built alone, by the names that they have in the whole.
pub(super) fn as_half(weights: &Weights, half: &str) -> Weights {
    weights.iter().map(|(name, tensor)| (format!("{half}/{name}"), tensor.shallow_clone())).collect()
}
