//! Zero-shot in-painting, out-painting and class-conditional editing (arXiv 2404.02905, section 5.3): tokens of a given image
//! are kept where a mask says so, scale by scale.

use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::scales::Pyramid;

/// A rectangle in shares of height and width, 0 to 1 from the top left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EditBox {
    /// Upper edge.
    pub top: f64,
    /// Left edge.
    pub left: f64,
    /// Lower edge.
    pub bottom: f64,
    /// Right edge.
    pub right: f64,
}

/// What is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditKind {
    /// The inside of the box: in-painting, and with a class, class-conditional editing.
    Inside,
    /// What is around the box: out-painting.
    Outside,
}

/// Given ids, and where they are kept.
#[derive(Debug)]
pub struct Edit {
    /// Ids of each scale, int64 `[B, n]`.
    pub ids: Vec<Tensor>,
    /// Where they are kept at each scale, bool `[n]`.
    pub keep: Vec<Tensor>,
}

/// Where the latent of a pyramid's last size is kept, float `[h, w]`, 1 or 0. Edges are rounded to latent positions.
///
/// # Errors
/// An edge outside 0 to 1, or one that lies before its opposite.
pub fn edit_mask(edit: EditBox, kind: EditKind, pyramid: &Pyramid) -> Result<Tensor> {
    let EditBox { top, left, bottom, right } = edit;
    let share = |value: &f64| (0.0..=1.0).contains(value);
    if ![top, left, bottom, right].iter().all(share) || top > bottom || left > right {
        let expected = "edges from 0 to 1, top not below bottom, left not beyond right";
        return Err(Error::config("edit box", edit, expected));
    }
    let last = pyramid.last();
    let at = |share: f64, size: i64| (share * size as f64).round_ties_even() as i64;
    let (top, bottom) = (at(top, last.height), at(bottom, last.height));
    let (left, right) = (at(left, last.width), at(right, last.width));
    let (outside, inside) = match kind {
        EditKind::Inside => (1.0, 0.0),
        EditKind::Outside => (0.0, 1.0),
    };
    let mask = Tensor::full([last.height, last.width], outside, (Kind::Float, Device::Cpu));
    let _ = mask.narrow(0, top, bottom - top).narrow(1, left, right - left).fill_(inside);
    Ok(mask)
}

impl Edit {
    /// Keeps the ids of a given image `[B, n]` a scale where a mask `[h, w]` of the last scale's size is above a half at each
    /// scale's own size; scales of up to three tokens are kept whole.
    ///
    /// # Errors
    /// A mask of another size.
    pub fn new(ids: Vec<Tensor>, mask: &Tensor, pyramid: &Pyramid) -> Result<Self> {
        let last = pyramid.last();
        if mask.size() != [last.height, last.width] {
            let expected = format!("[{}, {}], the last scale's size", last.height, last.width);
            return Err(Error::shape("edit mask", &mask.size(), expected));
        }
        let mask = mask.to_kind(Kind::Float).unsqueeze(0).unsqueeze(0);
        let keep = pyramid.scales().iter().map(|scale| {
            if scale.tokens() <= 3 {
                return Tensor::ones([scale.tokens()], (Kind::Bool, mask.device()));
            }
            mask.upsample_bilinear2d([scale.height, scale.width], false, None, None).gt(0.5).flatten(0, -1)
        });
        Ok(Self { keep: keep.collect(), ids })
    }
}
