//! What both transformers are made of.

use layers::{AttentionOptions, Linear, RmsNorm, attention, merge_heads, split_heads};
use serde::{Deserialize, Serialize};
use tch::nn::{self, Init};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// Standard deviation of all matrices at the start. The reference cuts its draws at ±2, which at this deviation is not at
/// all.
const INIT_STD: f64 = 0.02;

/// Which norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenMuseNorm {
    /// Layer norm.
    #[default]
    LayerNorm,
    /// Root-mean-square norm.
    RmsNorm,
}

/// How every norm of a model is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormStyle {
    pub(super) kind: OpenMuseNorm,
    pub(super) eps: f64,
    pub(super) bias: bool,
    pub(super) affine: bool,
}

#[derive(Debug)]
pub(super) enum Norm {
    Layer { width: i64, eps: f64, weight: Option<Tensor>, bias: Option<Tensor> },
    Rms(RmsNorm),
}

impl Norm {
    pub(super) fn new(path: &nn::Path, width: i64, style: NormStyle) -> Self {
        match style.kind {
            OpenMuseNorm::RmsNorm if style.affine => Self::Rms(RmsNorm::new(path, width, style.eps)),
            OpenMuseNorm::RmsNorm => Self::Rms(RmsNorm::without_affine(style.eps)),
            OpenMuseNorm::LayerNorm => Self::Layer {
                width,
                eps: style.eps,
                weight: style.affine.then(|| path.ones("weight", &[width])),
                bias: (style.affine && style.bias).then(|| path.zeros("bias", &[width])),
            },
        }
    }

    /// Over the last axis.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer { width, eps, weight, bias } => {
                x.layer_norm([*width], weight.as_ref(), bias.as_ref(), *eps, true)
            }
        }
    }

    /// Over the channels of `[B, C, H, W]`.
    pub(super) fn forward_2d(&self, x: &Tensor) -> Tensor {
        self.forward(&x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
    }
}

pub(super) fn normal() -> Init {
    Init::Randn { mean: 0.0, stdev: INIT_STD }
}

pub(super) fn linear(path: &nn::Path, inputs: i64, outputs: i64, bias: bool) -> Linear {
    Linear::with_init(path, inputs, outputs, normal(), bias.then_some(Init::Const(0.0)))
}

/// Attention to itself or to a context. Variables: `query`, `key`, `value`, `out`.
#[derive(Debug)]
pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: i64,
}

impl Attention {
    pub(super) fn new(path: &nn::Path, width: i64, context: i64, heads: i64, bias: bool) -> Self {
        Self {
            query: linear(&(path / "query"), width, width, bias),
            key: linear(&(path / "key"), context, width, bias),
            value: linear(&(path / "value"), context, width, bias),
            out: linear(&(path / "out"), width, width, bias),
            heads,
        }
    }

    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let heads = |linear: &Linear, x: &Tensor| split_heads(&linear.forward(x), self.heads);
        let (q, k, v) = (heads(&self.query, x), heads(&self.key, context), heads(&self.value, context));
        self.out.forward(&merge_heads(&attention(&q, &k, &v, None, AttentionOptions::default())))
    }
}

/// Heads that divide a width.
pub(super) fn check_heads(field: &str, heads: i64, width: i64) -> Result<()> {
    if heads >= 1 && width % heads == 0 {
        return Ok(());
    }
    Err(Error::config(field, heads, format!("a divisor of {width}")))
}

/// Sizes of at least 1.
pub(super) fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, value)| !(1..=1 << 24).contains(value)) {
        None => Ok(()),
        Some((field, value)) => Err(Error::config(*field, value, "1 to 2^24")),
    }
}

/// Refuses ids `[B, N]` without a row.
pub(super) fn check_ids(ids: &Tensor, rows: i64, longest: i64) -> Result<()> {
    if ids.dim() != 2 || ids.size().contains(&0) || ids.size()[1] > longest || ids.kind() != Kind::Int64 {
        let expected = format!("int64 [B, N] with N at most {longest}");
        return Err(Error::shape("token sequence", &ids.size(), expected));
    }
    let [least, most] = [ids.min(), ids.max()].map(|id| id.int64_value(&[]));
    if least < 0 || most >= rows {
        return Err(Error::input("token ids", format!("{least} to {most}"), format!("ids in 0..{rows}")));
    }
    Ok(())
}

/// Refuses text states that are not `[B, L, E]`.
pub(super) fn check_states(states: &Tensor, batch: i64, width: i64) -> Result<()> {
    let size = states.size();
    if size.len() == 3 && size[0] == batch && size[1] > 0 && size[2] == width {
        return Ok(());
    }
    Err(Error::shape("encoder_hidden_states", &size, format!("[{batch}, L, {width}]")))
}
