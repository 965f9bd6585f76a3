//! Linear layers.

use tch::nn::{self, Init};
use tch::{Kind, Tensor};

use crate::init::{torch_default, truncated_normal};

/// Rows from which a product on a CPU may go to the convolution kernels, and multiplications (rows × inputs × outputs). Below,
/// rearranging the weights for them costs more than they save (docs/performance.md has the measurements).
const CONVOLUTION_ROWS: i64 = 128;
const CONVOLUTION_PRODUCTS: i64 = 1 << 23;

/// y = x Wᵀ + b on the last axis: `[..., in]`, `[out, in]` and `[out]` to `[..., out]`.
///
/// Where libtorch's matrix products run below the processor's speed ([`torch_ext::has_slow_matmul`]), large ones in float32 are
/// computed as convolutions of size 1, whose kernels come from another library: up to twice as fast, forward and backward.
///
/// # Panics
/// The shapes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (outputs, inputs) = weight.size2().expect("a matrix of weights");
    let rows = x.numel() as i64 / inputs.max(1);
    let as_convolution = rows >= CONVOLUTION_ROWS
        && rows * inputs * outputs >= CONVOLUTION_PRODUCTS
        && x.kind() == Kind::Float
        && torch_ext::has_slow_matmul(x.device())
        && !torch_ext::autocasts();
    if as_convolution { linear_as_convolution(x, weight, bias) } else { x.linear(weight, bias) }
}

fn linear_as_convolution(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (outputs, inputs) = weight.size2().expect("a matrix of weights");
    let mut shape = x.size();
    assert_eq!(shape.last(), Some(&inputs), "{shape:?} on weights of {outputs} × {inputs}");
    // Rows in memory are a channels-last picture of one column.
    let picture = x.reshape([1, -1, 1, inputs]).permute([0, 3, 1, 2]);
    let y = picture.conv2d(&weight.view([outputs, inputs, 1, 1]), bias, 1, 0, 1, 1);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_of_size_one_is_the_product() {
        let randn =
            |shape: &[i64]| Tensor::randn(shape, (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
        let (x, weight, some_bias) = (randn(&[2, 3, 7]), randn(&[5, 7]), randn(&[5]));
        for bias in [None, Some(&some_bias)] {
            let [ours, theirs] = [linear_as_convolution(&x, &weight, bias), x.linear(&weight, bias)];
            assert_eq!(ours.size(), [2, 3, 5]);
            let gradients =
                |y: &Tensor| Tensor::run_backward(&[y.cos().sum(Kind::Double)], &[&x, &weight], true, false);
            let close = |a: &Tensor, b: &Tensor| a.allclose(b, 1e-10, 1e-10, false);
            assert!(close(&ours, &theirs));
            assert!(gradients(&ours).iter().zip(&gradients(&theirs)).all(|(a, b)| close(a, b)));
        }
    }
}
