//! Fréchet video distance (Unterthiner et al., "Towards Accurate Generative Models of Video", arXiv 1812.01717).
//!
//! Clips are brought to I3D's input size, I3D gives 400 logits a clip, and the Fréchet distance compares the logits of two
//! sets. How clips are brought to that size differs between the implementations and moves the value: print the
//! [`Preprocessing`] with it, and the number of clips, their frames and their resolution.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::frechet::{Frechet, FrechetRule, Moments, frechet};
use crate::i3d::I3d;
use crate::range;

/// Height and width that I3D takes.
pub const I3D_RESOLUTION: i64 = 224;

/// How a clip becomes I3D's input. Bilinear without antialiasing in each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessing {
    /// StyleGAN-V, common_metrics: shorter side to 224, centre crop; values as they are.
    #[default]
    #[serde(rename = "styleganv")]
    StyleganV,
    /// VideoGPT: the same after truncation to 8 bits.
    Videogpt,
    /// TECO: straight to 224 × 224, whatever the aspect ratio.
    Tf2,
    /// The original FVD, FDM: truncated to 8 bits, then straight to 224 × 224 by TensorFlow 1's rule, which leaves out
    /// the half-pixel shift.
    Tf1Legacy,
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StyleganV => "styleganv",
            Self::Videogpt => "videogpt",
            Self::Tf2 => "tf2",
            Self::Tf1Legacy => "tf1_legacy",
        })
    }
}

impl Preprocessing {
    /// Video `[B, C, T, H, W]` in [-1, 1], gray or colour, to I3D's input `[B, 3, T, 224, 224]` in [-1, 1].
    ///
    /// # Errors
    /// Another shape, neither 1 nor 3 channels, values outside the range.
    pub fn prepare(self, video: &Tensor) -> Result<Tensor> {
        range::check_video("video", video, -1.0, 1.0)?;
        let mut unit = (video.detach().to_kind(Kind::Float).clamp(-1.0, 1.0) + 1.0) * 0.5;
        if self.truncates() {
            // A clip read from 8-bit pixels comes back from [-1, 1] up to 1e-5 levels too low, and truncation would take a
            // whole level off. A thousandth of a level more keeps it what it was.
            unit = (unit + 1e-3 / 255.0).clamp_max(1.0);
        }
        self.prepare_unit(&unit, I3D_RESOLUTION)
    }

    /// The same for values in [0, 1] and another size.
    ///
    /// # Errors
    /// As [`Preprocessing::prepare`]; a resolution that is not positive.
    pub fn prepare_unit(self, video: &Tensor, resolution: i64) -> Result<Tensor> {
        let shape = range::check_video("video", video, 0.0, 1.0)?;
        if !matches!(shape.channels, 1 | 3) {
            return Err(Error::shape("video", &video.size(), "1 or 3 channels: [B, C, T, H, W]"));
        }
        if !(1..=4096).contains(&resolution) {
            return Err(Error::config("resolution", resolution, "1 to 4096 pixels"));
        }
        let video = video.detach().to_kind(Kind::Float);
        let video = if self.truncates() { (video * 255.0).floor() / 255.0 } else { video };
        // Frames as images, each with its channels.
        let frames = video.transpose(1, 2).reshape([-1, shape.channels, shape.height, shape.width]);
        let frames = match self {
            Self::StyleganV | Self::Videogpt => resize_and_crop(&frames, resolution),
            Self::Tf2 => frames.upsample_bilinear2d([resolution; 2], false, None, None),
            Self::Tf1Legacy => resize_legacy(&resize_legacy(&frames, 2, resolution), 3, resolution),
        };
        let video = frames
            .view([shape.batch, shape.frames, shape.channels, resolution, resolution])
            .transpose(1, 2)
            .expand([shape.batch, 3, shape.frames, resolution, resolution], false);
        Ok((video - 0.5) * 2.0)
    }

    fn truncates(self) -> bool {
        matches!(self, Self::Videogpt | Self::Tf1Legacy)
    }
}

/// The shorter side to `resolution`, the other in proportion and rounded up, then the middle.
fn resize_and_crop(frames: &Tensor, resolution: i64) -> Tensor {
    let (height, width) = (frames.size()[2], frames.size()[3]);
    let scale = resolution as f64 / height.min(width) as f64;
    let longer = |side: i64| (side as f64 * scale).ceil() as i64;
    let (height, width) =
        if height < width { (resolution, longer(width)) } else { (longer(height), resolution) };
    frames
        .upsample_bilinear2d([height, width], false, None, None)
        .narrow(2, (height - resolution) / 2, resolution)
        .narrow(3, (width - resolution) / 2, resolution)
}

/// Bilinear along one axis with source = destination · in / out.
fn resize_legacy(frames: &Tensor, axis: i64, resolution: i64) -> Tensor {
    let size = frames.size()[axis as usize];
    let options = (Kind::Double, frames.device());
    let source = Tensor::arange(resolution, options) * (size as f64 / resolution as f64);
    let lower = source.floor().clamp(0.0, (size - 1) as f64);
    let upper = (&lower + 1.0).clamp_max((size - 1) as f64);
    let mut shape = [1i64; 4];
    shape[axis as usize] = resolution;
    let weight = (source - &lower).to_kind(Kind::Float).view(shape);
    let lower = frames.index_select(axis, &lower.to_kind(Kind::Int64));
    let upper = frames.index_select(axis, &upper.to_kind(Kind::Int64));
    &lower + (upper - &lower) * weight
}

/// I3D's features of a set of clips, gathered one by one: memory does not grow with the set.
#[derive(Debug)]
pub struct ClipFeatures {
    preprocessing: Preprocessing,
    moments: Moments,
}

impl ClipFeatures {
    /// No clip yet.
    ///
    /// # Errors
    /// None for a network that could be built.
    pub fn new(i3d: &I3d, preprocessing: Preprocessing) -> Result<Self> {
        Ok(Self { preprocessing, moments: Moments::new(i3d.config().num_classes)? })
    }

    /// Adds a clip `[C, T, H, W]` in [-1, 1] with C = 1 or 3 and T ≥ 9.
    ///
    /// # Errors
    /// Another shape, values outside the range.
    pub fn add(&mut self, i3d: &I3d, clip: &Tensor) -> Result<()> {
        if clip.dim() != 4 {
            return Err(Error::shape("clip", &clip.size(), "[C, T, H, W]"));
        }
        let input = self.preprocessing.prepare(&clip.unsqueeze(0).to_device(i3d.device()))?;
        self.moments.add(&i3d.logits(&input)?)
    }

    /// Clips so far.
    pub fn clips(&self) -> i64 {
        self.moments.count()
    }

    /// Mean and covariance of the features.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The distance to another set.
    ///
    /// # Errors
    /// The other set was prepared differently; sets as for [`frechet`].
    pub fn distance(&self, other: &Self, rule: FrechetRule) -> Result<Frechet> {
        if self.preprocessing != other.preprocessing {
            return Err(Error::input(
                "features",
                format!("sets prepared as {} and as {}", self.preprocessing, other.preprocessing),
                "one convention for both",
            ));
        }
        frechet(&self.moments, &other.moments, rule)
    }
}

/// FVD of two sets of clips `[C, T, H, W]` in [-1, 1], by the rule [`FrechetRule::SqrtmFloat64`].
///
/// # Errors
/// An empty set; a clip as for [`ClipFeatures::add`].
pub fn fvd(
    i3d: &I3d,
    originals: &[Tensor],
    reconstructions: &[Tensor],
    preprocessing: Preprocessing,
) -> Result<f64> {
    let gather = |clips: &[Tensor]| -> Result<ClipFeatures> {
        let mut features = ClipFeatures::new(i3d, preprocessing)?;
        clips.iter().try_for_each(|clip| features.add(i3d, clip))?;
        Ok(features)
    };
    let originals = gather(originals)?;
    Ok(gather(reconstructions)?.distance(&originals, FrechetRule::default())?.distance)
}
