//! Named tensors from outside, and the strict way they enter a model.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor, nn};

/// Named tensors, as a checkpoint holds them.
pub type Weights = BTreeMap<String, Tensor>;

/// Why weights could not be read or put into a model.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
    /// The file is not safetensors, or is cut short.
    #[error("not a whole safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor's element type is not supported.
    #[error("tensor {name} has element type {dtype}, which is not supported")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// The model has a tensor that the weights lack.
    #[error("the weights have no tensor {0}, which the model needs: is this checkpoint of the same config?")]
    Missing(String),
    /// The weights have a tensor that the model does not know.
    #[error("the weights hold {0}, which the model does not have: is this checkpoint of the same config?")]
    Unexpected(String),
    /// One tensor, two shapes.
    #[error(
        "tensor {name}: the weights have shape {found:?}, the model {expected:?}: is this checkpoint of the same config?"
    )]
    Shape {
        /// The tensor, by the model's name.
        name: String,
        /// Its shape in the weights.
        found: Vec<i64>,
        /// Its shape in the model.
        expected: Vec<i64>,
    },
}

impl From<WeightsError> for crate::case::CaseError {
    fn from(error: WeightsError) -> Self {
        Self::Component(video_core::Error::input("weights", error.to_string(), "weights that fit the config"))
    }
}

/// Reads all tensors of a safetensors file. uint8 stays uint8.
///
/// # Errors
/// The file is missing, cut short or no safetensors.
pub fn read_safetensors(path: &Path) -> Result<Weights, WeightsError> {
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let mut weights = Weights::new();
    for (name, view) in file.tensors() {
        use safetensors::Dtype;
        let kind = match view.dtype() {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            Dtype::I16 => Kind::Int16,
            Dtype::I8 => Kind::Int8,
            Dtype::U8 => Kind::Uint8,
            Dtype::BOOL => Kind::Bool,
            other => return Err(WeightsError::Dtype { name, dtype: format!("{other:?}") }),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = if shape.contains(&0) {
            Tensor::empty(&shape, (kind, tch::Device::Cpu))
        } else {
            Tensor::from_data_size(view.data(), &shape, kind)
        };
        weights.insert(name, tensor);
    }
    Ok(weights)
}

/// Copies weights into a model's variables, name by name: all of them, and nothing else.
///
/// # Errors
/// The first tensor that is missing, too many or of another shape. The model is unchanged then.
pub fn load_into(variables: &nn::VarStore, weights: &Weights) -> Result<(), WeightsError> {
    let ours: BTreeMap<String, Tensor> = variables.variables().into_iter().collect();
    for (name, variable) in &ours {
        let found = weights.get(name).ok_or_else(|| WeightsError::Missing(name.clone()))?;
        if found.size() != variable.size() {
            return Err(WeightsError::Shape {
                name: name.clone(),
                found: found.size(),
                expected: variable.size(),
            });
        }
    }
    if let Some(name) = weights.keys().find(|name| !ours.contains_key(*name)) {
        return Err(WeightsError::Unexpected(name.clone()));
    }
    tch::no_grad(|| {
        for (name, mut variable) in ours {
            variable.copy_(&weights[&name]);
        }
    });
    Ok(())
}
