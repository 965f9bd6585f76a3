//! Synthetic worlds, made in-process from a seed, with the truth behind every frame.

pub mod maze;
pub mod shapes;

use video_core::seeds::{self, Stream};

use crate::frames::planar;
use crate::{Clip, ClipSource, DataConfig, Result, Split};

/// Frames per second that the shapes' speeds are meant for.
const SHAPES_FRAME_RATE: f64 = 8.0;

/// Held-out scenes are the same for all runs.
const HELD_OUT_SEED: u64 = 0;

/// Whether a data set's name is that of a world.
pub(crate) fn is_world(source: &str) -> bool {
    matches!(source, "shapes" | "maze")
}

/// Endless clips of a world.
pub(crate) struct World {
    config: DataConfig,
    seed: u64,
}

impl World {
    pub fn new(config: &DataConfig, split: Split, seed: u64) -> Self {
        let seed = match split {
            Split::Train => seeds::derive(seed, Stream::Data, 0),
            Split::HeldOut => seeds::derive(HELD_OUT_SEED, Stream::Eval, 0),
        };
        Self { config: config.clone(), seed }
    }
}

impl ClipSource for World {
    fn len(&self) -> Option<u64> {
        None
    }

    fn clip(&self, index: u64) -> Result<Clip> {
        let (height, width) = self.config.clip.size.height_width();
        let (rows, columns, frames) = (height as usize, width as usize, self.config.clip.frames as usize);
        let (bytes, actions): (Vec<u8>, _) = if self.config.source == "maze" {
            let walk = maze::Walk::new(self.seed, index, frames);
            let bytes = walk.poses.iter().flat_map(|&pose| walk.maze.render(pose, rows, columns)).collect();
            let actions: Vec<i64> = walk.actions.iter().map(|&action| action as i64).collect();
            (bytes, Some(tch::Tensor::from_slice(&actions)))
        } else {
            let rate = self.config.clip.frame_rate.unwrap_or(SHAPES_FRAME_RATE);
            let scene = shapes::Scene::new(self.seed, index).slowed(rate / SHAPES_FRAME_RATE);
            ((0..frames).flat_map(|frame| scene.render(frame, rows, columns)).collect(), None)
        };
        Ok(Clip {
            video: planar(&bytes, self.config.clip.frames, height, width, false),
            name: format!("{} {index}", self.config.source),
            class: None,
            actions,
            caption: None,
        })
    }
}
