//! Clips in and out, on files that the writers make and on damaged ones.

#[path = "video_data/files.rs"]
mod files;
#[path = "video_data/loading.rs"]
mod loading;
#[path = "video_data/sets.rs"]
mod sets;
#[path = "video_data/worlds.rs"]
mod worlds;

use std::path::Path;

use tch::{Device, Kind, Tensor};
use video_data::{Clip, ClipConfig, DataConfig};

/// A picture that gets brighter to the right and from frame to frame, `[3, T, H, W]`.
fn ramp(frames: i64, height: i64, width: i64) -> Tensor {
    let x = Tensor::linspace(-0.8, 0.8, width, (Kind::Float, Device::Cpu)).view([1, 1, 1, width]);
    let t = Tensor::linspace(-0.2, 0.2, frames, (Kind::Float, Device::Cpu)).view([1, frames, 1, 1]);
    (x + t).expand([3, frames, height, width], false)
}

/// Frame t is grey and as bright as 5 t of 255, `[3, T, H, W]`: frames can be told apart.
fn steps(frames: i64, height: i64, width: i64) -> Tensor {
    let levels = Tensor::arange(frames, (Kind::Float, Device::Cpu)) * (5.0 / 127.5) - 1.0;
    levels.view([1, frames, 1, 1]).expand([3, frames, height, width], false).contiguous()
}

/// Which frames of [`steps`] a clip shows.
fn shown(clip: &Clip) -> Vec<i64> {
    let levels = clip.video.to_kind(Kind::Float).mean_dim([0i64, 2, 3].as_slice(), false, Kind::Float);
    Vec::<f32>::try_from(levels).unwrap().iter().map(|level| (level / 5.0).round() as i64).collect()
}

fn config(source: &Path, frames: i64, side: i64) -> DataConfig {
    DataConfig {
        held_out: 0.25,
        ..DataConfig::new(source.display().to_string(), ClipConfig::square(frames, side))
    }
}
