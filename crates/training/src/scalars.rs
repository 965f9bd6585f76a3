//! A step's scalars stay on the device until somebody needs them: reading one back makes the CPU wait for a GPU.

use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result, StepLoss};

/// One step's scalars, averaged over its micro-batches, in the order in which they came.
#[derive(Debug)]
pub(crate) struct StepScalars {
    step: u64,
    position: u64,
    named: Vec<(String, Tensor)>,
}

/// The first scalar that is no finite number.
#[derive(Debug)]
pub(crate) struct Bad {
    step: u64,
    position: u64,
    scalar: String,
    value: f64,
}

impl Bad {
    pub fn into_error(self, saved: Option<&(u64, PathBuf)>) -> Error {
        let Self { step, position, scalar, value } = self;
        Error::NotFinite { step, scalar, value, position, saved: saved.map(|(_, path)| path.clone()) }
    }
}

impl StepScalars {
    pub fn new(step: u64, position: u64) -> Self {
        Self { step, position, named: Vec::new() }
    }

    /// Adds one micro-batch's share of a part's loss.
    pub fn add(&mut self, part: &str, loss: &StepLoss, micro_batches: u64) -> Result<()> {
        let total = ("total".to_string(), loss.total.detach());
        for (name, value) in loss.scalars.iter().chain([&total]) {
            let name = format!("{part}.{name}");
            if value.numel() != 1 {
                return Err(video_core::Error::shape(name, &value.size(), "a 0-d tensor").into());
            }
            let share = value.detach().reshape([0i64; 0]) / micro_batches as f64;
            match self.named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += share,
                None => self.named.push((name, share)),
            }
        }
        Ok(())
    }

    /// Adds the norm of a part's gradients.
    pub fn gradient_norm(&mut self, part: &str, norm: Tensor) {
        self.named.push((format!("{part}.gradient_norm"), norm));
    }

    /// All values, read back in one go.
    pub fn values(&self) -> Result<Vec<(String, f64)>> {
        if self.named.is_empty() {
            return Ok(Vec::new());
        }
        let doubles: Vec<_> = self.named.iter().map(|(_, value)| value.to_kind(Kind::Double)).collect();
        let values = Vec::<f64>::try_from(Tensor::f_stack(&doubles, 0)?.to_device(Device::Cpu))?;
        Ok(self.named.iter().map(|(name, _)| name.clone()).zip(values).collect())
    }

    /// The culprit, if a total or the norm of a gradient is not finite: of the scalars that are not, the first one.
    pub fn first_bad(&self) -> Result<Option<Bad>> {
        let values = self.values()?;
        let stops = |name: &str| name.ends_with(".total") || name.ends_with(".gradient_norm");
        if values.iter().all(|(name, value)| value.is_finite() || !stops(name)) {
            return Ok(None);
        }
        let (step, position) = (self.step, self.position);
        let culprit = values.into_iter().find(|(_, value)| !value.is_finite());
        Ok(culprit.map(|(scalar, value)| Bad { step, position, scalar, value }))
    }
}

/// The steps whose scalars nobody has looked at yet, and the last one that was looked at.
#[derive(Debug, Default)]
pub(crate) struct Watch(Vec<StepScalars>);

impl Watch {
    pub fn push(&mut self, scalars: StepScalars) {
        self.0.push(scalars);
    }

    pub fn last(&self) -> Option<&StepScalars> {
        self.0.last()
    }

    /// Looks at all of them, the earliest first, and keeps the last for the log.
    pub fn first_bad(&mut self) -> Result<Option<Bad>> {
        for scalars in &self.0 {
            if let Some(bad) = scalars.first_bad()? {
                return Ok(Some(bad));
            }
        }
        self.0.drain(..self.0.len().saturating_sub(1));
        Ok(None)
    }
}
