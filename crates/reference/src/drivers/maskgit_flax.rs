//! Loading the golden cases of MaskGIT and MAGVIT, by the names and layouts of their flax checkpoints.

use tch::{Tensor, nn};

use crate::case::{Case, CaseError, Outputs};
use crate::import::flax::{is_attention, to_ours};
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

/// Weights of half a VQGAN that was built alone, by the names that they have in the whole.
pub(super) fn as_half(weights: &Weights, half: &str) -> Weights {
    weights.iter().map(|(name, tensor)| (format!("{half}/{name}"), tensor.shallow_clone())).collect()
}
