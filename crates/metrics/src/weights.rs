//! Tensors of a weights file, and the strict way they enter a network.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

/// Named tensors, and where they come from.
#[derive(Debug)]
pub struct NamedTensors {
    origin: String,
    tensors: BTreeMap<String, Tensor>,
}

impl NamedTensors {
    /// Tensors under their names; `origin` stands in error messages.
    pub fn new(origin: impl Into<String>, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { origin: origin.into(), tensors }
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// The file cannot be opened, is cut short, or is no safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let origin = path.display().to_string();
        let tensors = Tensor::read_safetensors(path).map_err(|error| {
            Error::input(
                format!("weights file {origin}"),
                match error {
                    tch::TchError::SafeTensorError { err, .. } => err.to_string(),
                    other => other.to_string(),
                },
                "a whole safetensors file (docs/metrics.md says how to make one)",
            )
        })?;
        Ok(Self { origin, tensors: tensors.into_iter().collect() })
    }

    /// A tensor by its name, in a shape that the network proves, as float32 that needs no gradient.
    ///
    /// # Errors
    /// There is none, its shape is another, or its values are not finite numbers.
    pub(crate) fn get(&self, name: &str, shape: &[i64], device: Device) -> Result<Tensor> {
        let what = || format!("tensor {name} of {}", self.origin);
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::input(what(), "missing", format!("a tensor of shape {shape:?}")));
        };
        if tensor.size() != shape {
            return Err(Error::shape(what(), &tensor.size(), format!("{shape:?}")));
        }
        let tensor = tensor.detach().to_kind(Kind::Float);
        if !bool::try_from(tensor.isfinite().all())? {
            return Err(Error::input(what(), "values that are not finite", "finite weights"));
        }
        Ok(tensor.to_device(device))
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Tensor::size)
    }

    /// Refuses names that `belongs` claims for the network and that the network did not ask for.
    ///
    /// # Errors
    /// Names the first one.
    pub(crate) fn refuse_others(
        &self,
        expected: &[(String, Vec<i64>)],
        belongs: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let unknown = |name: &&String| belongs(name) && !expected.iter().any(|(known, _)| known == *name);
        match self.tensors.keys().find(unknown) {
            None => Ok(()),
            Some(name) => Err(Error::input(
                format!("tensor {name} of {}", self.origin),
                "the network has no such tensor",
                "weights of this network and no other",
            )),
        }
    }
}
