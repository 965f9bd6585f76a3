//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) on libtorch's fused kernel, with its state in the open.

use tch::{Device, Kind, Tensor};

use crate::{Error, ffi};

/// Everything of AdamW but the learning rate, which changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Decoupled weight decay, multiplied by the learning rate. Zero makes it Adam.
    pub weight_decay: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, weight_decay: 0.01, eps: 1e-8 }
    }
}

/// One parameter's moments, by the parameter's name: what a checkpoint holds.
#[derive(Debug)]
pub struct AdamWState {
    /// The parameter's name.
    pub name: String,
    /// Mean of gradients, in the parameter's shape.
    pub exp_avg: Tensor,
    /// Mean of squared gradients, in the parameter's shape.
    pub exp_avg_sq: Tensor,
    /// Steps taken, a 0-d float tensor.
    pub step: Tensor,
}

/// The optimizer: named parameters and their moments.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    params: Vec<Tensor>,
    state: Vec<AdamWState>,
}

impl AdamW {
    /// An optimizer for the given named parameters, its moments zero. The order of the list does not matter.
    pub fn new(params: impl IntoIterator<Item = (String, Tensor)>, config: AdamWConfig) -> Self {
        let (params, state) = params
            .into_iter()
            .map(|(name, param)| {
                let state = AdamWState {
                    name,
                    exp_avg: param.zeros_like().detach(),
                    exp_avg_sq: param.zeros_like().detach(),
                    step: Tensor::zeros([], (Kind::Float, param.device())),
                };
                (param, state)
            })
            .unzip();
        Self { config, params, state }
    }

    /// The moments, to be saved. They are the live tensors: copy them before the next step if they are kept.
    pub fn state(&self) -> &[AdamWState] {
        &self.state
    }

    /// The parameters, in the order of [`AdamW::state`].
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// The gradients of those parameters that have one.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.params.iter().map(Tensor::grad).filter(Tensor::defined).collect()
    }

    /// Puts saved moments back; each parameter takes those of its name.
    ///
    /// # Errors
    /// `find` knows no moments for a parameter, or their shape is another. Nothing was changed then.
    pub fn load_state(&mut self, mut find: impl FnMut(&str) -> Option<AdamWState>) -> Result<(), Error> {
        let mut loaded = Vec::with_capacity(self.state.len());
        for (param, own) in self.params.iter().zip(&self.state) {
            let saved = find(&own.name).ok_or_else(|| {
                Error::Mismatch(format!("no optimizer state for the parameter {}", own.name))
            })?;
            if saved.exp_avg.size() != param.size() || saved.exp_avg_sq.size() != param.size() {
                return Err(Error::Mismatch(format!(
                    "optimizer state of {} has shape {:?}, the parameter {:?}",
                    own.name,
                    saved.exp_avg.size(),
                    param.size()
                )));
            }
            loaded.push(saved);
        }
        tch::no_grad(|| {
            for (own, saved) in self.state.iter_mut().zip(loaded) {
                own.exp_avg.copy_(&saved.exp_avg);
                own.exp_avg_sq.copy_(&saved.exp_avg_sq);
                own.step.copy_(&saved.step);
            }
        });
        Ok(())
    }

    /// Forgets all gradients (sets them to none, so that an unused parameter is not touched by the next step).
    /// `tch`'s own `zero_grad` writes zeros instead, which a moment's decay and the weight decay would act upon.
    pub fn zero_grad(&mut self) {
        clear_gradients(&self.params);
    }

    /// One step at the given learning rate over the parameters that have a gradient.
    ///
    /// # Errors
    /// libtorch's: a sparse gradient, mixed devices.
    pub fn step(&mut self, learning_rate: f64) -> Result<(), Error> {
        let mut lists: [Vec<Tensor>; 5] = Default::default();
        for (param, state) in self.params.iter().zip(&self.state) {
            let grad = param.grad();
            if !grad.defined() {
                continue;
            }
            // The fused kernel walks raw storage: gradient and moments must lie as the parameter does.
            let grad = if grad.stride() == param.stride() { grad } else { like(&grad, param) };
            for (list, tensor) in lists.iter_mut().zip([
                param.shallow_clone(),
                grad,
                state.exp_avg.shallow_clone(),
                state.exp_avg_sq.shallow_clone(),
                state.step.shallow_clone(),
            ]) {
                list.push(tensor);
            }
        }
        if lists[0].is_empty() {
            return Ok(());
        }
        let raw = lists.each_ref().map(|list| ffi::raw_list(list));
        let AdamWConfig { beta1, beta2, weight_decay, eps } = self.config;
        // SAFETY: five lists of one length, all alive through the call.
        ffi::check(unsafe {
            ffi::vireo_fused_adamw(
                raw[0].as_ptr(),
                raw[1].as_ptr(),
                raw[2].as_ptr(),
                raw[3].as_ptr(),
                raw[4].as_ptr(),
                raw[0].len(),
                learning_rate,
                beta1,
                beta2,
                weight_decay,
                eps,
            )
        })
    }

    /// The device of the first parameter, on which the moments live.
    pub fn device(&self) -> Device {
        self.params.first().map_or(Device::Cpu, Tensor::device)
    }
}

/// Sets the gradients of leaves to none.
pub fn clear_gradients<'a>(params: impl IntoIterator<Item = &'a Tensor>) {
    let list: Vec<_> = params.into_iter().map(ffi::raw).collect();
    // SAFETY: the tensors live through the call. Dropping a leaf's gradient cannot fail.
    let cleared = ffi::check(unsafe { ffi::vireo_clear_gradients(list.as_ptr(), list.len()) });
    debug_assert!(cleared.is_ok(), "{cleared:?}");
}

/// A copy of `source` that lies in memory as `target` does.
fn like(source: &Tensor, target: &Tensor) -> Tensor {
    let mut copy = target.empty_like().detach();
    copy.copy_(source);
    copy
}
