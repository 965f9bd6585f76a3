//! Condition videos: what is given of a clip, and what stands in for the rest before it is tokenized.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, GridShape, Result};

/// A part of every frame, by fractions, so that it means the same in pixels and in latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Region {
    /// The middle half of the rows.
    RectangleHorizontal,
    /// The middle half of the columns.
    RectangleVertical,
    /// Both.
    RectangleCentral,
    /// The upper half of the rows in the left half of the columns.
    QuarterTopleft,
    /// Half of the columns: a window that moves from left to right over the frames.
    DynamicVertical,
    /// That window, in the middle half of the rows.
    DynamicCentral,
}

/// What stands where nothing is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionPadding {
    /// The nearest given frame or pixel.
    Edge,
    /// Black.
    Constant,
    /// Between two given frames, their linear mixture.
    Interpolate,
}

/// What is given of a clip. Counts of latent frames must be those that the given frames are encoded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConditionTask {
    /// The true tokens of the first latent frames; the condition video is the clip itself.
    LatentFramePrediction {
        /// How many.
        cond_latent_frames: i64,
    },
    /// The first frames.
    FramePrediction {
        /// Frames.
        cond_frames: i64,
        /// Latent frames.
        cond_latent_frames: i64,
        /// Edge or constant.
        cond_padding: ConditionPadding,
    },
    /// Frames at both ends; the rest is interpolated.
    FrameInterpolation {
        /// Frames at each end.
        cond_frames: i64,
        /// Latent frames at each end.
        cond_latent_frames: i64,
    },
    /// A region; the rest is outside.
    Outpainting {
        /// What is given.
        cond_region: Region,
        /// Edge or constant; constant where the region moves.
        cond_padding: ConditionPadding,
    },
    /// All but a region, which is black.
    Inpainting {
        /// What is missing.
        cond_region: Region,
    },
}

/// A padded condition video, and where it holds what was given.
#[derive(Debug)]
pub struct ConditionVideo {
    /// `[B, C, T, H, W]`, to be tokenized.
    pub video: Tensor,
    /// bool `[T, H, W]`, broadcast from what varies: true where the pixel is given.
    pub pixels: Tensor,
    /// bool `[t, h, w]`: true where the token is a condition.
    pub latents: Tensor,
}

impl ConditionVideo {
    /// Of a clip `[B, C, T, H, W]` that is encoded to `grid`. `black` is the value of [`ConditionPadding::Constant`]: -1 for video
    /// in [-1, 1], 0 for [0, 1].
    ///
    /// # Errors
    /// More frames or less room than the clip or the grid has, or a padding that the task does not have.
    pub fn new(task: ConditionTask, video: &Tensor, grid: GridShape, black: f64) -> Result<Self> {
        let Ok((_, _, t, h, w)) = video.size5() else {
            return Err(Error::shape("video", &video.size(), "[B, C, T, H, W]"));
        };
        let (pixel_shape, latent_shape) = ([t, h, w], [grid.frames, grid.height, grid.width]);
        let (pixels, latents) = match task {
            ConditionTask::LatentFramePrediction { cond_latent_frames } => {
                check_latent_frames("cond_latent_frames", cond_latent_frames, grid.frames)?;
                (in_frames(pixel_shape, |_| false), in_frames(latent_shape, |f| f < cond_latent_frames))
            }
            ConditionTask::FramePrediction { cond_frames, cond_latent_frames, .. } => {
                check_frames("cond_frames", cond_frames, t)?;
                check_latent_frames("cond_latent_frames", cond_latent_frames, grid.frames)?;
                (
                    in_frames(pixel_shape, |f| f < cond_frames),
                    in_frames(latent_shape, |f| f < cond_latent_frames),
                )
            }
            ConditionTask::FrameInterpolation { cond_frames, cond_latent_frames } => {
                check_frames("cond_frames at each end", 2 * cond_frames, t)?;
                check_latent_frames("cond_latent_frames at each end", 2 * cond_latent_frames, grid.frames)?;
                let ends = |n: i64, given: i64| move |f: i64| f < given || f >= n - given;
                (
                    in_frames(pixel_shape, ends(t, cond_frames)),
                    in_frames(latent_shape, ends(grid.frames, cond_latent_frames)),
                )
            }
            ConditionTask::Outpainting { cond_region, .. } => {
                (in_region(cond_region, pixel_shape), in_region(cond_region, latent_shape))
            }
            ConditionTask::Inpainting { cond_region } => (
                in_region(cond_region, pixel_shape).logical_not(),
                in_region(cond_region, latent_shape).logical_not(),
            ),
        };
        let (pixels, latents) = (pixels.to_device(video.device()), latents.to_device(video.device()));
        let video = padded(task, video, &pixels, black)?;
        Ok(Self { video, pixels, latents })
    }
}

fn check_frames(field: &str, given: i64, of: i64) -> Result<()> {
    if given >= 1 && given < of {
        return Ok(());
    }
    Err(Error::config(field, given, format!("at least 1 and fewer than the clip's {of}")))
}

/// Few given frames may be encoded to all latent ones there are: those are refined, not made.
fn check_latent_frames(field: &str, given: i64, of: i64) -> Result<()> {
    if (1..=of).contains(&given) {
        return Ok(());
    }
    Err(Error::config(field, given, format!("at least 1 and at most the grid's {of}")))
}

fn padded(task: ConditionTask, video: &Tensor, given: &Tensor, black: f64) -> Result<Tensor> {
    let constant = || Ok(video.masked_fill(&given.logical_not(), black));
    match task {
        ConditionTask::LatentFramePrediction { .. } => Ok(video.shallow_clone()),
        ConditionTask::FramePrediction { cond_frames, cond_padding, .. } => match cond_padding {
            ConditionPadding::Edge => Ok(clamped(video, 2, 0..cond_frames)),
            ConditionPadding::Constant => constant(),
            ConditionPadding::Interpolate => Err(no_padding(cond_padding, "edge or constant")),
        },
        ConditionTask::FrameInterpolation { cond_frames, .. } => Ok(interpolated(video, cond_frames)),
        ConditionTask::Inpainting { .. } => constant(),
        ConditionTask::Outpainting { cond_region, cond_padding } => {
            match (cond_padding, fixed_window(cond_region, video.size()[3], video.size()[4])) {
                (ConditionPadding::Edge, Some((rows, columns))) => {
                    Ok(clamped(&clamped(video, 3, rows), 4, columns))
                }
                (ConditionPadding::Constant, _) => constant(),
                (_, Some(_)) => Err(no_padding(cond_padding, "edge or constant")),
                (_, None) => Err(no_padding(cond_padding, "constant, as the region moves")),
            }
        }
    }
}

fn no_padding(padding: ConditionPadding, expected: &str) -> Error {
    Error::config("cond_padding", padding, expected)
}

/// Along one axis, what lies outside a range replaced by the nearest inside.
fn clamped(video: &Tensor, axis: i64, range: Range<i64>) -> Tensor {
    let index = Tensor::arange(video.size()[axis as usize], (Kind::Int64, video.device()));
    video.index_select(axis, &index.clamp(range.start, range.end - 1))
}

/// Frames between the two inner given ones, by their mixture.
fn interpolated(video: &Tensor, given: i64) -> Tensor {
    let frames = video.size()[2];
    let (first, last) = (video.narrow(2, given - 1, 1), video.narrow(2, frames - given, 1));
    let between = frames - 2 * given;
    let fractions = Tensor::arange_start(1, between + 1, (video.kind(), video.device())) / (between + 1);
    let middle = &first + (last - &first) * fractions.view([1, 1, -1, 1, 1]);
    Tensor::cat(&[video.narrow(2, 0, given), middle, video.narrow(2, frames - given, given)], 2)
}

/// bool `[T, H, W]` by frame.
fn in_frames(shape: [i64; 3], given: impl Fn(i64) -> bool) -> Tensor {
    let frames: Vec<bool> = (0..shape[0]).map(given).collect();
    Tensor::from_slice(&frames).view([-1, 1, 1]).expand(shape, false)
}

/// Rows and columns of a region that does not move.
fn fixed_window(region: Region, height: i64, width: i64) -> Option<(Range<i64>, Range<i64>)> {
    let middle = |n: i64| n / 4..n * 3 / 4;
    match region {
        Region::RectangleHorizontal => Some((middle(height), 0..width)),
        Region::RectangleVertical => Some((0..height, middle(width))),
        Region::RectangleCentral => Some((middle(height), middle(width))),
        Region::QuarterTopleft => Some((0..height / 2, 0..width / 2)),
        Region::DynamicVertical | Region::DynamicCentral => None,
    }
}

/// bool `[T, H, W]`: inside the region.
fn in_region(region: Region, [frames, height, width]: [i64; 3]) -> Tensor {
    let within = |n: i64, range: Range<i64>| {
        Tensor::from_slice(&(0..n).map(|i| range.contains(&i)).collect::<Vec<bool>>())
    };
    let inside = match fixed_window(region, height, width) {
        Some((rows, columns)) => {
            within(height, rows).view([1, -1, 1]).logical_and(&within(width, columns).view([1, 1, -1]))
        }
        None => {
            let columns: Vec<Tensor> = (0..frames)
                .map(|frame| {
                    // Halves round to the even start, as numpy's do.
                    let share = if frames > 1 { frame as f32 / (frames - 1) as f32 } else { 0.0 };
                    let start = (share * (width / 2) as f32).round_ties_even() as i64;
                    within(width, start..start + width / 2)
                })
                .collect();
            let columns = Tensor::stack(&columns, 0).unsqueeze(1);
            let rows = if region == Region::DynamicCentral { height / 4..height * 3 / 4 } else { 0..height };
            columns.logical_and(&within(height, rows).view([1, -1, 1]))
        }
    };
    inside.to_device(Device::Cpu).expand([frames, height, width], false)
}
