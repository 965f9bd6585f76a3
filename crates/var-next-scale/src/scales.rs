//! Lists of scales, the order of their tokens, and what each may attend to.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use video_core::{Error, GridShape, Result};

/// The scales of one pyramid, from coarse to fine. Their tokens are laid one scale after another, each in the order
/// (t, y, x). The last scale is the latent's own size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pyramid(Vec<GridShape>);

impl Pyramid {
    /// Square maps of one latent frame with these sides: VAR's `patch_nums`.
    ///
    /// # Errors
    /// As [`Pyramid::new`]; the field is called `patch_nums`.
    pub fn square(patch_nums: &[i64]) -> Result<Self> {
        let scales = patch_nums.iter().map(|&side| GridShape { frames: 1, height: side, width: side });
        Self::new("patch_nums", scales.collect())
    }

    /// Any scales. `field` is what an error calls them.
    ///
    /// # Errors
    /// No scale, an empty one or one beyond 1024 along an axis, or a last one that is not the largest along every axis.
    pub fn new(field: &str, scales: Vec<GridShape>) -> Result<Self> {
        let axes = |scale: &GridShape| [scale.frames, scale.height, scale.width];
        let possible = scales.iter().flat_map(axes).all(|n| (1..=1024).contains(&n));
        let fits = |last: &GridShape| {
            scales.iter().all(|scale| axes(scale).iter().zip(axes(last)).all(|(&n, most)| n <= most))
        };
        if !possible || !scales.last().is_some_and(fits) {
            let expected = "sizes from 1 to 1024 that end at the largest, the latent's own size";
            let given: Vec<[i64; 3]> = scales.iter().map(axes).collect();
            return Err(Error::config(field, given, expected));
        }
        Ok(Self(scales))
    }

    /// The scales.
    pub fn scales(&self) -> &[GridShape] {
        &self.0
    }

    /// S.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: there is at least one scale.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The finest scale: the latent's size.
    pub fn last(&self) -> GridShape {
        self.0[self.0.len() - 1]
    }

    /// Tokens of each scale.
    pub fn lengths(&self) -> Vec<i64> {
        self.0.iter().map(|scale| scale.tokens()).collect()
    }

    /// L, the tokens of all scales.
    pub fn tokens(&self) -> i64 {
        self.lengths().iter().sum()
    }

    /// Where each scale's tokens lie.
    pub fn ranges(&self) -> Vec<Range<i64>> {
        ranges(&self.lengths())
    }

    /// Tokens of the first `scales` scales.
    pub fn tokens_of(&self, scales: usize) -> i64 {
        self.0[..scales].iter().map(|scale| scale.tokens()).sum()
    }

    /// The scale of every position, int64 `[L]`.
    pub fn levels(&self, device: Device) -> Tensor {
        levels(&self.lengths(), device)
    }

    /// How far along scale k is, from 0 at the first to 1 at the last; 0 of a single scale.
    pub fn ratio(&self, scale: usize) -> f64 {
        if self.len() == 1 { 0.0 } else { scale as f64 / (self.len() - 1) as f64 }
    }

    /// Ids `[B, L]` as one map `[B, t·h·w]` a scale, views.
    ///
    /// # Errors
    /// Another number of tokens.
    pub fn split(&self, ids: &Tensor) -> Result<Vec<Tensor>> {
        match ids.size()[..] {
            [_, length] if length == self.tokens() => Ok(ids.split_with_sizes(self.lengths().as_slice(), 1)),
            _ => Err(Error::shape("token ids", &ids.size(), format!("[B, {}]", self.tokens()))),
        }
    }
}

/// Where runs of these lengths lie, one behind another.
pub(crate) fn ranges(lengths: &[i64]) -> Vec<Range<i64>> {
    let mut end = 0;
    let range = |&length: &i64| {
        end += length;
        end - length..end
    };
    lengths.iter().map(range).collect()
}

/// The number of the run that each position lies in.
pub(crate) fn levels(lengths: &[i64], device: Device) -> Tensor {
    let runs = Tensor::arange(lengths.len() as i64, (Kind::Int64, device));
    let lengths = Tensor::from_slice(lengths).to_device(device);
    runs.repeat_interleave_self_tensor(&lengths, 0, None)
}

/// The block-causal mask of runs of these lengths, bool `[L, L]`: a position (row) sees all of its own run and of those
/// before (arXiv 2404.02905, section 3.2).
pub fn block_causal_mask(lengths: &[i64], device: Device) -> Tensor {
    let levels = levels(lengths, device);
    levels.unsqueeze(1).ge_tensor(&levels.unsqueeze(0))
}
