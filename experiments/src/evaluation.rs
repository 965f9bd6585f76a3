//! What is measured of a tokenizer on held-out clips, as it stands in `evaluation.json` and in the report.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use video_core::Compression;

/// The evaluation of one tokenizer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// Training steps behind the weights.
    pub step: u64,
    /// Held-out clips.
    pub clips: usize,
    /// Frames of each clip.
    pub frames: i64,
    /// Rows of each clip.
    pub height: i64,
    /// Columns of each clip.
    pub width: i64,
    /// Strides and bits per token.
    pub compression: Compression,
    /// Tokens of one clip.
    pub tokens_per_clip: i64,
    /// Bits of tokens per pixel.
    pub bits_per_pixel: f64,
    /// 24-bit RGB bits for each bit of tokens.
    pub ratio_to_rgb24: f64,
    /// Mean over clips of the mean over frames, dB.
    pub psnr: f64,
    /// Mean over clips of the mean over frames.
    pub ssim: f64,
    /// PSNR of predicting each clip's mean colour, dB: what a tokenizer that learnt nothing reaches.
    pub mean_colour_psnr: f64,
    /// Ids of the vocabulary; `None` for a continuous bottleneck.
    pub vocabulary_size: Option<i64>,
    /// Share of the vocabulary that the held-out clips hit.
    pub used_share: Option<f64>,
    /// exp of the entropy of the id histogram.
    pub perplexity: Option<f64>,
    /// Metrics that were not computed, and why.
    pub absent: Vec<(String, String)>,
    /// Further metrics by name (LPIPS, FVD), with their conventions in the name.
    pub extra: Vec<(String, f64)>,
    /// PSNR and SSIM of each clip.
    pub per_clip: Vec<ClipScore>,
}

/// One held-out clip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClipScore {
    /// Its name in the data set.
    pub name: String,
    /// dB, mean over frames.
    pub psnr: f64,
    /// Mean over frames.
    pub ssim: f64,
}

impl Evaluation {
    /// The file's name within a run's folder.
    pub const FILE: &'static str = "evaluation.json";

    /// Reads `evaluation.json` of a run.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(Self::FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{} is missing: `vireo eval {}` makes it", path.display(), run.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
    }
}
