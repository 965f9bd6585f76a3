//! VideoGPT's layer norm.

use layers::init::torch_default;
use tch::nn::{self, Init};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// (x − mean) · (1e-5 + 1/√variance) over the last axis, in float32, then a gain and a shift: learnt ones, or a row of the
/// sample's class.
///
/// The small number is added behind the reciprocal root, as in the reference; a constant input gives 0, where the
/// reference gives NaN. Variables: `g`, `b` `[C]`; with classes `w.weight`, `wb.weight` `[C, classes]`.
#[derive(Debug)]
pub struct LayerNorm {
    width: i64,
    affine: Affine,
}

#[derive(Debug)]
enum Affine {
    Learnt { gain: Tensor, shift: Tensor },
    OfClass { classes: i64, gain: Tensor, shift: Tensor },
}

impl LayerNorm {
    /// Builds it: `classes` makes it conditional.
    ///
    /// # Errors
    /// No channel, or no class.
    pub fn new(path: &nn::Path, width: i64, classes: Option<i64>) -> Result<Self> {
        if width < 1 {
            return Err(Error::config("width", width, "at least 1"));
        }
        let affine = match classes {
            None => Affine::Learnt { gain: path.ones("g", &[width]), shift: path.zeros("b", &[width]) },
            Some(classes) if classes < 1 => {
                return Err(Error::config("class_cond_dim", classes, "at least 1, or none"));
            }
            Some(classes) => {
                let gain = Init::Const(1.0 / (classes as f64).sqrt());
                let var = |name: &str, init| (path / name).var("weight", &[width, classes], init);
                Affine::OfClass { classes, gain: var("w", gain), shift: var("wb", torch_default(classes)) }
            }
        };
        Ok(Self { width, affine })
    }

    /// `[B, ..., C]` to the same shape; `class`: int64 `[B]`.
    ///
    /// # Errors
    /// Another width; classes missing, unasked for, out of range or not one a sample.
    pub fn forward(&self, x: &Tensor, class: Option<&Tensor>) -> Result<Tensor> {
        if x.size().last() != Some(&self.width) {
            return Err(Error::shape("input", &x.size(), format!("[B, ..., {}]", self.width)));
        }
        let classes = match self.affine {
            Affine::Learnt { .. } => None,
            Affine::OfClass { classes, .. } => Some(classes),
        };
        check_class(class, classes, x.size()[0])?;
        Ok(self.apply(x, class))
    }

    /// [`LayerNorm::forward`] where the class is known to be right.
    pub(crate) fn apply(&self, x: &Tensor, class: Option<&Tensor>) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let (variance, mean) = wide.var_mean_correction([-1i64].as_slice(), 0, true);
        // Below this no variance of float32 numbers matters; it only keeps 0 · ∞ away.
        let scale = variance.clamp_min(1e-30).rsqrt() + 1e-5;
        let normed = (wide - mean) * scale;
        let normed = match (&self.affine, class) {
            (Affine::OfClass { gain, shift, .. }, Some(class)) => {
                let mut rows = vec![1; x.dim()];
                rows[0] = x.size()[0];
                rows[x.dim() - 1] = self.width;
                let of =
                    |table: &Tensor| table.index_select(1, class).transpose(0, 1).reshape(rows.as_slice());
                normed * (of(gain) + 1.0) + of(shift)
            }
            (Affine::Learnt { gain, shift }, _) => normed * gain + shift,
            // The model's door lets no sample without a class through.
            (Affine::OfClass { .. }, None) => normed,
        };
        normed.to_kind(x.kind())
    }
}

/// Refuses classes that a model with so many of them does not take for a batch.
pub(crate) fn check_class(class: Option<&Tensor>, classes: Option<i64>, batch: i64) -> Result<()> {
    match (class, classes) {
        (None, None) => Ok(()),
        (None, Some(classes)) => Err(Error::input(
            "class",
            "none is given",
            format!("one of 0..{classes} for each sample, as the model is class-conditional"),
        )),
        (Some(_), None) => {
            Err(Error::unsupported("VideoGPT", "use a class", "it was built without class_cond_dim"))
        }
        (Some(class), Some(classes)) => {
            if class.size() != [batch] || class.kind() != Kind::Int64 {
                let expected = format!("int64 [{batch}]");
                return Err(Error::shape("class", &class.size(), expected));
            }
            let [least, most] = [class.min(), class.max()].map(|id| id.int64_value(&[]));
            if least < 0 || most >= classes {
                return Err(Error::input(
                    "class",
                    format!("{least} to {most}"),
                    format!("ids in 0..{classes}"),
                ));
            }
            Ok(())
        }
    }
}
