//! A linear layer with PyTorch's initialisation.

use tch::Tensor;
use tch::nn::{self, Init};

use crate::init::{torch_default, truncated_normal};

/// y = x Wᵀ + b on the last axis. Variables: `weight` `[out, in]`, `bias` `[out]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With PyTorch's default initialisation.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, bias: bool) -> Self {
        let init = torch_default(inputs);
        Self {
            weight: path.var("weight", &[outputs, inputs], init),
            bias: bias.then(|| path.var("bias", &[outputs], init)),
        }
    }

    /// With weights of any initialisation; biases have PyTorch's default.
    pub fn with_init(path: &nn::Path, inputs: i64, outputs: i64, bias: bool, init: Init) -> Self {
        Self {
            weight: path.var("weight", &[outputs, inputs], init),
            bias: bias.then(|| path.var("bias", &[outputs], torch_default(inputs))),
        }
    }

    /// With weights of a normal distribution cut at two standard deviations ([`truncated_normal`]) and biases 0, as BERT
    /// and its descendants start.
    pub fn truncated_normal(path: &nn::Path, inputs: i64, outputs: i64, bias: bool, std: f64) -> Self {
        Self {
            weight: truncated_normal(path, "weight", &[outputs, inputs], std, 2.0),
            bias: bias.then(|| path.zeros("bias", &[outputs])),
        }
    }

    /// `[..., in]` to `[..., out]`.
    ///
    /// # Panics
    /// The last axis is not `in`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
