//! What the loop keeps for one part of the objective: its parameters, moments and averages.

use std::collections::BTreeMap;

use tch::{Device, Tensor};
use torch_ext::{global_norm, lerp_, scale_};

use crate::checkpoint::{Checkpoint, Group};
use crate::optimizer::Optimizer;
use crate::weights::{check_fit, copy_tensors, variables};
use crate::{EmaConfig, Part, Result, TrainConfig};

/// One part under training.
pub(crate) struct PartState {
    pub name: &'static str,
    variables: BTreeMap<String, Tensor>,
    /// The variables that are not optimised. They change in forward passes.
    buffers: Vec<Tensor>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    clip_norm: Option<f64>,
}

struct Ema {
    config: EmaConfig,
    /// By the order of the optimizer's parameters.
    averages: Vec<Tensor>,
    updates: u64,
}

impl PartState {
    pub fn new(part: &Part<'_>, config: &TrainConfig) -> Self {
        let variables = variables(part.variables);
        let (trainable, buffers): (Vec<_>, Vec<_>) =
            variables.iter().partition(|(_, tensor)| tensor.requires_grad());
        let named = trainable.iter().map(|(name, tensor)| ((*name).clone(), tensor.shallow_clone()));
        let optimizer = Optimizer::new(named.collect(), config, part.name);
        let averages = || optimizer.params().iter().map(|(_, param)| param.detach().copy()).collect();
        let ema =
            config.ema.filter(|_| part.ema).map(|config| Ema { config, averages: averages(), updates: 0 });
        let buffers = buffers.into_iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        Self { name: part.name, buffers, optimizer, ema, clip_norm: config.clip_norm(part.name), variables }
    }

    pub fn device(&self) -> Device {
        self.optimizer.device()
    }

    /// Whether the loss that is computed next is this part's.
    pub fn require_gradients(&self, required: bool) {
        for (_, param) in self.optimizer.params() {
            let _ = param.set_requires_grad(required);
        }
    }

    pub fn zero_grad(&self) {
        self.optimizer.zero_grad();
    }

    /// Clips the gradients and returns the norm that they had, 0-d; `None` if no parameter has any.
    pub fn clip(&self) -> Result<Option<Tensor>> {
        let gradients = self.optimizer.gradients();
        if gradients.is_empty() {
            return Ok(None);
        }
        let norm = global_norm(&gradients)?;
        if let Some(largest) = self.clip_norm {
            // The factor stays on the device: no waiting for the norm.
            scale_(&gradients, &(largest / (&norm + 1e-6)).clamp_max(1.0))?;
        }
        Ok(Some(norm))
    }

    /// The optimizer's step, and the average's. `schedule`: what `learning_rate` is a share of the peak.
    pub fn step(&mut self, learning_rate: f64, schedule: f64) -> Result<()> {
        self.optimizer.step(learning_rate, schedule)?;
        if let Some(ema) = &mut self.ema {
            ema.updates += 1;
            let params: Vec<_> =
                self.optimizer.params().iter().map(|(_, param)| param.shallow_clone()).collect();
            lerp_(&ema.averages, &params, 1.0 - ema.config.decay_at(ema.updates))?;
        }
        Ok(())
    }

    /// Exchanges the weights and their averages; a second call puts them back.
    pub fn swap_ema(&mut self) {
        let Some(ema) = &mut self.ema else { return };
        tch::no_grad(|| {
            for ((_, param), average) in self.optimizer.params().iter().zip(&mut ema.averages) {
                let weights = param.detach().copy();
                param.shallow_clone().copy_(average);
                average.copy_(&weights);
            }
        });
    }

    /// Copies of what a forward pass may change.
    pub fn copy_buffers(&self) -> Vec<Tensor> {
        self.buffers.iter().map(|tensor| tensor.detach().copy()).collect()
    }

    /// Puts [`PartState::copy_buffers`]'s copies back.
    pub fn restore_buffers(&self, copies: &[Tensor]) {
        tch::no_grad(|| {
            for (buffer, copy) in self.buffers.iter().zip(copies) {
                buffer.shallow_clone().copy_(copy);
            }
        });
    }

    pub fn ema_updates(&self) -> u64 {
        self.ema.as_ref().map_or(0, |ema| ema.updates)
    }

    /// The live tensors that a checkpoint holds, by their names in the file.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut named: Vec<(String, Tensor)> = Vec::new();
        for group in Group::ALL {
            let tensors = self.group(group).into_iter();
            named.extend(tensors.map(|(name, tensor)| (group.prefix(self.name) + &name, tensor)));
        }
        named
    }

    /// The live tensors of one group by the names of the variables.
    fn group(&self, group: Group) -> BTreeMap<String, Tensor> {
        match group {
            Group::Variables => {
                self.variables.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
            }
            Group::Ema => {
                let averages = self.ema.iter().flat_map(|ema| &ema.averages);
                let names = self.optimizer.params().iter().map(|(name, _)| name.clone());
                names.zip(averages.map(Tensor::shallow_clone)).collect()
            }
            Group::ExpAvg => self.optimizer.adamw_state(|state| &state.exp_avg),
            Group::ExpAvgSq => self.optimizer.adamw_state(|state| &state.exp_avg_sq),
            Group::Step => self.optimizer.adamw_state(|state| &state.step),
            Group::Momentum => self.optimizer.momentum(),
        }
    }

    /// Whether a checkpoint's variables are this part's.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) with the first tensor that differs.
    pub fn check_variables(&self, checkpoint: &Checkpoint) -> Result<()> {
        check_fit(&self.variables, &checkpoint.group(self.name, Group::Variables), checkpoint.path())
    }

    /// Puts a checkpoint's tensors back.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) with the first tensor that differs.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for group in Group::ALL {
            copy_tensors(&self.group(group), &checkpoint.group(self.name, group), checkpoint.path())?;
        }
        if let Some(ema) = &mut self.ema {
            ema.updates = checkpoint.state.ema_updates.get(self.name).copied().unwrap_or(0);
        }
        Ok(())
    }
}
