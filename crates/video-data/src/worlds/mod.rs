//! Synthetic worlds, made in-process from a seed, with the truth behind every frame.

pub mod maze;
pub mod shapes;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use video_core::seeds::{self, Stream};

use crate::frames::{Window, planar};
use crate::{Clip, ClipSource, DataConfig, Result, Split};

/// Frames per second of the worlds, unless `clip.frame_rate` says otherwise.
pub const FRAME_RATE: f64 = 8.0;

/// Held-out scenes are the same for all runs.
const HELD_OUT_SEED: u64 = 0;

/// Whether a data set's name is that of a world.
pub(crate) fn is_world(source: &str) -> bool {
    matches!(source, "shapes" | "maze")
}

/// Endless clips of a world.
pub(crate) struct World {
    config: DataConfig,
    split: Split,
    seed: u64,
}

impl World {
    pub fn new(config: &DataConfig, split: Split, seed: u64) -> Self {
        let seed = match split {
            Split::Train => seeds::derive(seed, Stream::Data, 0),
            Split::HeldOut => seeds::derive(HELD_OUT_SEED, Stream::Eval, 0),
        };
        Self { config: config.clone(), split, seed }
    }

    fn frame(&self) -> (i64, i64) {
        self.config.clip.size.height_width()
    }

    fn shown(&self, index: u64, window: Window) -> Clip {
        let (height, width) = self.frame();
        let (rows, columns, frames) = (height as usize, width as usize, self.config.clip.frames as usize);
        let (bytes, actions, seen): (Vec<u8>, _, _) = if self.config.source == "maze" {
            let walk = maze::Walk::new(self.seed, index, frames);
            let bytes = walk.poses.iter().flat_map(|&pose| walk.maze.render(pose, rows, columns)).collect();
            let actions: Vec<i64> = walk.actions.iter().map(|&action| action as i64).collect();
            (bytes, Some(tch::Tensor::from_slice(&actions)), None)
        } else {
            let scene = shapes::Scene::new(&self.config.shapes, self.seed, index);
            let rate = self.config.clip.frame_rate.unwrap_or(FRAME_RATE);
            let time = |frame: usize| frame as f64 * FRAME_RATE / rate;
            let bytes = (0..frames).flat_map(|frame| scene.render(time(frame), rows, columns)).collect();
            (bytes, None, Some((scene.class(), scene.caption())))
        };
        let (class, caption) = seen.unzip();
        Clip {
            video: planar(&bytes, (height, width), window, false),
            name: format!("{} {index}", self.config.source),
            class,
            actions,
            caption,
        }
    }
}

impl ClipSource for World {
    fn len(&self) -> Option<u64> {
        None
    }

    fn clip(&self, index: u64) -> Result<Clip> {
        Ok(self.shown(index, Window::whole(self.frame())))
    }

    fn varied(&self, index: u64, seed: u64) -> Result<Clip> {
        if self.split == Split::HeldOut {
            return self.clip(index);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(self.shown(index, Window::draw(self.frame(), self.config.train_crop, &mut rng)))
    }
}
