//! What turns gradients into steps: AdamW, or Muon for the inner weights and AdamW for all others.

use std::collections::BTreeMap;

use tch::{Device, Tensor};
use torch_ext::{AdamW, AdamWState};

use crate::muon::Muon;
use crate::{Result, TrainConfig};

/// The optimizers of one part.
pub(crate) struct Optimizer {
    params: Vec<(String, Tensor)>,
    adamw: AdamW,
    /// With the names of its weights.
    muon: Option<(Vec<String>, Muon)>,
    weight_decay: f64,
}

impl Optimizer {
    pub fn new(params: Vec<(String, Tensor)>, config: &TrainConfig, part: &str) -> Self {
        let settings = config.adamw(part);
        let clones = || params.iter().map(|(name, param)| (name.clone(), param.shallow_clone()));
        let (inner, others): (Vec<_>, Vec<_>) = match config.muon(part) {
            Some(muon) => clones().partition(|(name, param)| muon.takes(name, param)),
            None => (Vec::new(), clones().collect()),
        };
        let muon = config.muon(part).map(|config| {
            let (names, weights) = inner.into_iter().unzip();
            (names, Muon::new(weights, config.clone()))
        });
        Self { params, adamw: AdamW::new(others, settings), muon, weight_decay: settings.weight_decay }
    }

    /// All parameters by name, in an order that stays.
    pub fn params(&self) -> &[(String, Tensor)] {
        &self.params
    }

    pub fn device(&self) -> Device {
        self.params.first().map_or(Device::Cpu, |(_, param)| param.device())
    }

    /// The gradients of those parameters that have one.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.params.iter().map(|(_, param)| param.grad()).filter(Tensor::defined).collect()
    }

    pub fn zero_grad(&self) {
        torch_ext::clear_gradients(self.params.iter().map(|(_, param)| param));
    }

    /// `schedule`: what `learning_rate` is a share of the peak.
    pub fn step(&mut self, learning_rate: f64, schedule: f64) -> Result<()> {
        if let Some((_, muon)) = &mut self.muon {
            muon.step(schedule, self.weight_decay);
        }
        Ok(self.adamw.step(learning_rate)?)
    }

    /// Live tensors of AdamW's state by the names of the parameters.
    pub fn adamw_state(&self, pick: fn(&AdamWState) -> &Tensor) -> BTreeMap<String, Tensor> {
        self.adamw.state().iter().map(|state| (state.name.clone(), pick(state).shallow_clone())).collect()
    }

    /// Muon's live momentum by the names of the parameters.
    pub fn momentum(&self) -> BTreeMap<String, Tensor> {
        let of = |(names, muon): &(Vec<String>, Muon)| -> Vec<(String, Tensor)> {
            names.iter().cloned().zip(muon.momentum().iter().map(Tensor::shallow_clone)).collect()
        };
        self.muon.iter().flat_map(of).collect()
    }
}
