//! The three classification networks whose features LPIPS compares, up to their last tap.

use tch::{Kind, Tensor};
use video_core::Result;

use super::Net;

/// One step of a network, in the order of torchvision's `features`; every convolution is followed by a ReLU.
#[derive(Clone, Copy)]
enum Step {
    /// Index in `features`, output channels, kernel, stride, padding.
    Conv(usize, i64, i64, i64, i64),
    /// Index in `features`, channels of the squeeze and of each expand convolution.
    Fire(usize, i64, i64),
    /// Kernel, whether a last window may leave the input; stride 2.
    Pool(i64, bool),
    /// The features here are compared.
    Tap,
}

const ALEX: &[Step] = &[
    Step::Conv(0, 64, 11, 4, 2),
    Step::Tap,
    Step::Pool(3, false),
    Step::Conv(3, 192, 5, 1, 2),
    Step::Tap,
    Step::Pool(3, false),
    Step::Conv(6, 384, 3, 1, 1),
    Step::Tap,
    Step::Conv(8, 256, 3, 1, 1),
    Step::Tap,
    Step::Conv(10, 256, 3, 1, 1),
    Step::Tap,
];

const VGG: &[Step] = &[
    Step::Conv(0, 64, 3, 1, 1),
    Step::Conv(2, 64, 3, 1, 1),
    Step::Tap,
    Step::Pool(2, false),
    Step::Conv(5, 128, 3, 1, 1),
    Step::Conv(7, 128, 3, 1, 1),
    Step::Tap,
    Step::Pool(2, false),
    Step::Conv(10, 256, 3, 1, 1),
    Step::Conv(12, 256, 3, 1, 1),
    Step::Conv(14, 256, 3, 1, 1),
    Step::Tap,
    Step::Pool(2, false),
    Step::Conv(17, 512, 3, 1, 1),
    Step::Conv(19, 512, 3, 1, 1),
    Step::Conv(21, 512, 3, 1, 1),
    Step::Tap,
    Step::Pool(2, false),
    Step::Conv(24, 512, 3, 1, 1),
    Step::Conv(26, 512, 3, 1, 1),
    Step::Conv(28, 512, 3, 1, 1),
    Step::Tap,
];

const SQUEEZE: &[Step] = &[
    Step::Conv(0, 64, 3, 2, 0),
    Step::Tap,
    Step::Pool(3, true),
    Step::Fire(3, 16, 64),
    Step::Fire(4, 16, 64),
    Step::Tap,
    Step::Pool(3, true),
    Step::Fire(6, 32, 128),
    Step::Fire(7, 32, 128),
    Step::Tap,
    Step::Pool(3, true),
    Step::Fire(9, 48, 192),
    Step::Tap,
    Step::Fire(10, 48, 192),
    Step::Tap,
    Step::Fire(11, 64, 256),
    Step::Tap,
    Step::Fire(12, 64, 256),
    Step::Tap,
];

struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    fn forward_relu(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), self.stride, self.padding, 1, 1).relu()
    }
}

enum Layer {
    Conv(Conv),
    Fire { squeeze: Conv, expand1x1: Conv, expand3x3: Conv },
    Pool { kernel: i64, ceil_mode: bool },
    Tap,
}

/// A network without its classifier.
pub(super) struct Backbone {
    layers: Vec<Layer>,
    /// Channels at each tap.
    pub(super) taps: Vec<i64>,
}

impl Backbone {
    /// Builds it from whatever gives a tensor for a name and a shape.
    pub(super) fn build(
        net: Net,
        width_div: i64,
        get: &mut dyn FnMut(String, Vec<i64>) -> Result<Tensor>,
    ) -> Result<Self> {
        let steps = match net {
            Net::Alex => ALEX,
            Net::Vgg => VGG,
            Net::Squeeze => SQUEEZE,
        };
        let mut conv =
            |name: String, input: i64, output: i64, kernel: i64, stride: i64, padding: i64| -> Result<Conv> {
                let weight = get(format!("features.{name}.weight"), vec![output, input, kernel, kernel])?;
                let bias = get(format!("features.{name}.bias"), vec![output])?;
                Ok(Conv { weight, bias, stride, padding })
            };
        let (mut layers, mut taps, mut channels) = (Vec::new(), Vec::new(), 3);
        for &step in steps {
            layers.push(match step {
                Step::Conv(index, output, kernel, stride, padding) => {
                    let output = output / width_div;
                    let layer = conv(index.to_string(), channels, output, kernel, stride, padding)?;
                    channels = output;
                    Layer::Conv(layer)
                }
                Step::Fire(index, squeeze, expand) => {
                    let (inner, expand) = (squeeze / width_div, expand / width_div);
                    let layer = Layer::Fire {
                        squeeze: conv(format!("{index}.squeeze"), channels, inner, 1, 1, 0)?,
                        expand1x1: conv(format!("{index}.expand1x1"), inner, expand, 1, 1, 0)?,
                        expand3x3: conv(format!("{index}.expand3x3"), inner, expand, 3, 1, 1)?,
                    };
                    channels = 2 * expand;
                    layer
                }
                Step::Pool(kernel, ceil_mode) => Layer::Pool { kernel, ceil_mode },
                Step::Tap => {
                    taps.push(channels);
                    Layer::Tap
                }
            });
        }
        Ok(Self { layers, taps })
    }

    /// The features at the taps, each `[N, C, h, w]`, float32.
    pub(super) fn features(&self, images: &Tensor) -> Vec<Tensor> {
        let mut x = images.shallow_clone();
        let mut taps = Vec::with_capacity(self.taps.len());
        for layer in &self.layers {
            x = match layer {
                Layer::Conv(conv) => conv.forward_relu(&x),
                Layer::Fire { squeeze, expand1x1, expand3x3 } => {
                    let inner = squeeze.forward_relu(&x);
                    Tensor::cat(&[expand1x1.forward_relu(&inner), expand3x3.forward_relu(&inner)], 1)
                }
                Layer::Pool { kernel, ceil_mode } => {
                    x.max_pool2d([*kernel; 2], [2, 2], [0, 0], [1, 1], *ceil_mode)
                }
                Layer::Tap => {
                    taps.push(x.to_kind(Kind::Float));
                    x
                }
            };
        }
        taps
    }
}
