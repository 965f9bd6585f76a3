//! Linear layers.

use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor};

use crate::init::{torch_default, truncated_normal};

/// Rows from which a product on a CPU goes to the convolution kernels, and multiplications (rows × inputs × outputs). Below,
/// rearranging the weights for them costs more than they save (docs/performance.md has the measurements).
const CONVOLUTION_ROWS: i64 = 128;
const CONVOLUTION_PRODUCTS: i64 = 1 << 23;

/// y = x Wᵀ + b on the last axis: `[..., in]`, `[out, in]` and `[out]` to `[..., out]`.
///
/// On CPUs large products in float32 run as convolutions of size 1: libtorch hands those to oneDNN, whose kernels are up to twice as
/// fast, forward and backward, as the matrix products of the BLAS library on processors that it is not made for.
///
/// # Panics
/// The shapes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (outputs, inputs) = weight.size2().expect("a matrix of weights");
    let rows = x.numel() as i64 / inputs.max(1);
    let as_convolution = rows >= CONVOLUTION_ROWS
        && rows * inputs * outputs >= CONVOLUTION_PRODUCTS
        && x.device() == Device::Cpu
        && x.kind() == Kind::Float
        && !torch_ext::autocasts();
    if !as_convolution {
        return x.linear(weight, bias);
    }
    let mut shape = x.size();
    assert_eq!(shape.last(), Some(&inputs), "{shape:?} on weights of {outputs} × {inputs}");
    // Rows in memory are a channels-last picture of one column.
    let picture = x.reshape([1, rows, 1, inputs]).permute([0, 3, 1, 2]);
    let kernel = weight.view([outputs, inputs, 1, 1]);
    let y = picture.conv2d(&kernel, bias, 1, 0, 1, 1);
    *shape.last_mut().expect("it has a last axis") = outputs;
    y.permute([0, 2, 3, 1]).reshape(shape)
}

/// y = x Wᵀ + b on the last axis, by [`linear`]. Variables: `weight` `[out, in]`, `bias` `[out]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With PyTorch's default initialisation.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64, bias: bool) -> Self {
        let init = torch_default(inputs);
        Self::with_init(path, inputs, outputs, init, bias.then_some(init))
    }

    /// With weights and biases, where there are some, of any initialisation.
    pub fn with_init(path: &nn::Path, inputs: i64, outputs: i64, weight: Init, bias: Option<Init>) -> Self {
        Self {
            weight: path.var("weight", &[outputs, inputs], weight),
            bias: bias.map(|bias| path.var("bias", &[outputs], bias)),
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

    /// `[out, in]`
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[..., in]` to `[..., out]`.
    ///
    /// # Panics
    /// The last axis is not `in`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }
}
