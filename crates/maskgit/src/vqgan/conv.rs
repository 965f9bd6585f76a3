//! Convolutions and norms over two or three axes, with flax's padding and initialisation.

use layers::init::truncated_normal;
use tch::{Tensor, nn};

use super::config::{Activation, ConvPadding, NormKind};

/// Groups of every group norm.
pub(crate) const GROUPS: i64 = 32;

/// ε of every norm.
const EPS: f64 = 1e-6;

/// What a normal distribution cut at two standard deviations leaves of the deviation.
const CUT_STD: f64 = 0.879_625_661_034_239_8;

/// A convolution. Variables: `weight` `[out, in, ...]`, `bias` `[out]`.
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: Vec<i64>,
    padding: ConvPadding,
}

impl Conv {
    /// Of one kernel size along as many axes as there are strides. Lecun normal.
    pub(crate) fn new(
        path: &nn::Path,
        channels: (i64, i64),
        kernel: i64,
        stride: &[i64],
        bias: bool,
        padding: ConvPadding,
    ) -> Self {
        let (inputs, outputs) = channels;
        let kernel = vec![kernel; stride.len()];
        let fan_in = inputs * kernel.iter().product::<i64>();
        let std = (1.0 / fan_in as f64).sqrt() / CUT_STD;
        let shape = [vec![outputs, inputs], kernel].concat();
        Self {
            weight: truncated_normal(path, "weight", &shape, std, 2.0),
            bias: bias.then(|| path.zeros("bias", &[outputs])),
            stride: stride.to_vec(),
            padding,
        }
    }

    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let kernel = &self.weight.size()[2..];
        let pads: Vec<(i64, i64)> = kernel
            .iter()
            .zip(&self.stride)
            .zip(&x.size()[2..])
            .map(|((&k, &s), &n)| match self.padding {
                ConvPadding::Same => same_padding(n, k, s),
                _ => ((k - 1) / 2, k / 2),
            })
            .collect();
        let zeros = matches!(self.padding, ConvPadding::Same | ConvPadding::Constant);
        let ones = vec![1; kernel.len()];
        let convolve = |x: &Tensor, padding: &[i64]| {
            // Not `convolution` for both: on CPUs, autocast knows these only.
            let (w, bias, stride) = (&self.weight, self.bias.as_ref(), self.stride.as_slice());
            if kernel.len() == 2 {
                x.conv2d(w, bias, stride, padding, &ones, 1)
            } else {
                x.conv3d(w, bias, stride, padding, &ones, 1)
            }
        };
        if zeros && pads.iter().all(|(front, back)| front == back) {
            let padding: Vec<i64> = pads.iter().map(|&(front, _)| front).collect();
            return convolve(x, &padding);
        }
        convolve(&pad(x, &pads, self.padding), &vec![0; kernel.len()])
    }
}

/// Zeros before and behind n positions, so that ⌈n/s⌉ come out.
pub(crate) fn same_padding(n: i64, k: i64, s: i64) -> (i64, i64) {
    let total = (((n + s - 1) / s - 1) * s + k - n).max(0);
    (total / 2, total - total / 2)
}

/// `x` `[B, C, ...]` with so many positions before and behind each axis.
pub(crate) fn pad(x: &Tensor, pads: &[(i64, i64)], padding: ConvPadding) -> Tensor {
    if matches!(padding, ConvPadding::Same | ConvPadding::Constant) {
        // libtorch wants the last axis first.
        let flat: Vec<i64> = pads.iter().rev().flat_map(|&(front, back)| [front, back]).collect();
        return x.constant_pad_nd(flat);
    }
    let mut x = x.shallow_clone();
    for (axis, &(front, back)) in pads.iter().enumerate() {
        let n = x.size()[axis + 2];
        let index: Vec<i64> = (-front..n + back).map(|at| source(at, n, padding)).collect();
        x = x.index_select(axis as i64 + 2, &Tensor::from_slice(&index).to_device(x.device()));
    }
    x
}

/// Which of n positions stands at one beyond the border.
fn source(at: i64, n: i64, padding: ConvPadding) -> i64 {
    match padding {
        ConvPadding::Wrap => at.rem_euclid(n),
        ConvPadding::Symmetric => {
            let at = at.rem_euclid(2 * n);
            at.min(2 * n - 1 - at)
        }
        ConvPadding::Reflect if n > 1 => {
            let at = at.rem_euclid(2 * (n - 1));
            at.min(2 * (n - 1) - at)
        }
        _ => at.clamp(0, n - 1),
    }
}

/// A norm. Variables: `weight` `[C]`, `bias` `[C]`, but of [`NormKind::None`].
#[derive(Debug)]
pub(crate) struct Norm {
    kind: NormKind,
    affine: Option<(Tensor, Tensor)>,
}

impl Norm {
    pub(crate) fn new(path: &nn::Path, kind: NormKind, channels: i64) -> Self {
        let affine = (kind != NormKind::None)
            .then(|| (path.ones("weight", &[channels]), path.zeros("bias", &[channels])));
        Self { kind, affine }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let Some((weight, bias)) = &self.affine else { return x.shallow_clone() };
        if self.kind == NormKind::Group {
            return x.group_norm(GROUPS, Some(weight), Some(bias), EPS, true);
        }
        let x = x.movedim_int(1, -1);
        x.layer_norm(weight.size(), Some(weight), Some(bias), EPS, true).movedim_int(-1, 1)
    }
}

impl Activation {
    pub(crate) fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Swish => x.silu(),
        }
    }
}

/// A transposed convolution of kernel 4 as flax has it: n positions become n · stride. Variables: `weight`
/// `[in, out, 4, ...]`, flipped against flax's, and `bias`.
#[derive(Debug)]
pub(crate) struct ConvTranspose {
    weight: Tensor,
    bias: Tensor,
    stride: Vec<i64>,
}

impl ConvTranspose {
    pub(crate) fn new(path: &nn::Path, channels: i64, stride: &[i64]) -> Self {
        let kernel = vec![4; stride.len()];
        let fan_in = channels * kernel.iter().product::<i64>();
        let std = (1.0 / fan_in as f64).sqrt() / CUT_STD;
        let shape = [vec![channels, channels], kernel].concat();
        Self {
            weight: truncated_normal(path, "weight", &shape, std, 2.0),
            bias: path.zeros("bias", &[channels]),
            stride: stride.to_vec(),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let axes = self.stride.len();
        let (ones, zeros) = (vec![1; axes], vec![0; axes]);
        let (w, bias, stride) = (&self.weight, Some(&self.bias), self.stride.as_slice());
        let y = if ones.len() == 2 {
            x.conv_transpose2d(w, bias, stride, &ones, &zeros, 1, &ones)
        } else {
            x.conv_transpose3d(w, bias, stride, &ones, &zeros, 1, &ones)
        };
        // Without a stride, one position too many comes out; flax leaves off the last.
        let sizes = x.size();
        let expected = sizes[2..].iter().zip(&self.stride).map(|(n, s)| n * s);
        expected.enumerate().fold(y, |y, (axis, n)| y.narrow(axis as i64 + 2, 0, n))
    }
}

/// Kernel sizes and strides of an axis triple or pair: time first where there is time.
pub(crate) fn strides(axes: usize, time: bool) -> Vec<i64> {
    let space = vec![2; 2];
    if axes == 2 { space } else { [vec![if time { 2 } else { 1 }], space].concat() }
}
