//! A linear layer with PyTorch's initialisation.

use tch::{Tensor, nn};

use crate::init::torch_default;

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

    /// `[..., in]` to `[..., out]`.
    ///
    /// # Panics
    /// The last axis is not `in`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
