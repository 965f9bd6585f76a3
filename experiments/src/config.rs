//! The config of a run, as its TOML file says it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use causal_conv::gan::GanConfig;
use serde::{Deserialize, Serialize};
use training::TrainConfig;
use video_core::VideoShape;
use video_core::sampling::Filter;
use video_data::{ClipConfig, DataConfig, Split};

use crate::generator::GeneratorConfig;
use crate::text::TextConfig;
use crate::tokenizer::TokenizerConfig;
use crate::toml_file;

/// A run: data, tokenizer, what it is trained for, how, and how it is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run's folder is named so.
    pub name: String,
    /// Every random draw comes from this seed.
    #[serde(default)]
    pub seed: u64,
    /// `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// The clips.
    pub data: DataConfig,
    /// Clips of a training step, and how they are loaded.
    #[serde(default)]
    pub loader: LoaderSettings,
    /// The tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Takes a trained tokenizer instead of training one: another run (its name, or its folder) or a tokenizer's file. It must
    /// be of the config above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_from: Option<PathBuf>,
    /// The losses.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// Steps, optimizer, schedule, checkpoints.
    pub train: TrainConfig,
    /// Held-out evaluation.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// The second stage, trained on the tokens of the first; a tokenizer alone if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorRun>,
}

/// The generator of a run: on which tokens, how, and how it is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorRun {
    /// Training clips whose tokens are made and kept.
    pub clips: usize,
    /// Their frames, size and frame rate, if they are not the tokenizer's: longer, or of faster motion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipConfig>,
    /// Token grids of a training step.
    pub batch_size: usize,
    /// The generator.
    pub model: GeneratorConfig,
    /// The encoder of the clips' captions, for a generator that text conditions. Without it, such a one is trained without text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// Steps, optimizer, schedule, checkpoints.
    pub train: TrainConfig,
    /// How it is judged.
    #[serde(default)]
    pub evaluation: GenerationConfig,
}

/// How a generator is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Clips that are generated, and held-out clips that are continued.
    pub clips: usize,
    /// Latent frames that are given where a clip is continued.
    pub given_frames: i64,
    /// What is done to the logits before a draw.
    pub filter: Filter,
    /// The same where a clip is continued: there the likeliest continuation is wanted.
    pub prediction_filter: Filter,
    /// Weight of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Clips of each kind that go into the report.
    pub samples: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            clips: 32,
            given_frames: 1,
            filter: Filter::default(),
            prediction_filter: Filter::default(),
            guidance: 1.0,
            samples: 8,
        }
    }
}

fn auto() -> String {
    "auto".into()
}

/// How training clips are loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderSettings {
    /// Clips of a training step.
    pub batch_size: usize,
    /// Threads that decode and make clips.
    pub workers: usize,
    /// Batches made ahead.
    pub prefetch: usize,
}

impl Default for LoaderSettings {
    fn default() -> Self {
        Self { batch_size: 8, workers: 1, prefetch: 4 }
    }
}

/// The distance between a clip and its reconstruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Mean absolute error.
    L1,
    /// Mean squared error (MAGVIT-v2).
    Mse,
}

/// What a tokenizer is trained for. The defaults are a plain autoencoder; MAGVIT-v2's weights stand in
/// `experiments/configs/magvit2-paper.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// The distance.
    pub distance: Distance,
    /// Its weight.
    pub reconstruction_weight: f64,
    /// LPIPS on frames, where weights are named.
    pub perceptual: Option<PerceptualConfig>,
    /// The adversarial part.
    pub gan: Option<GanConfig>,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { distance: Distance::Mse, reconstruction_weight: 1.0, perceptual: None, gan: None }
    }
}

/// LPIPS: a net and its published weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerceptualConfig {
    /// The network.
    pub net: metrics::lpips::Net,
    /// Backbone weights (safetensors, torchvision's names).
    pub backbone: String,
    /// LPIPS heads (safetensors).
    pub heads: String,
    /// Weight in the loss; 0 makes it a metric only.
    #[serde(default)]
    pub weight: f64,
}

/// How the held-out clips are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Held-out clips of the evaluation after training.
    pub clips: usize,
    /// Held-out clips of the short evaluations during training.
    pub clips_while_training: usize,
    /// Clips whose original and reconstruction go into the report.
    pub samples: usize,
    /// I3D weights (safetensors) for FVD.
    pub i3d: Option<String>,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { clips: 128, clips_while_training: 32, samples: 8, i3d: None }
    }
}

impl RunConfig {
    /// Reads a run's TOML file.
    ///
    /// # Errors
    /// One line: file, line, key, what was expected, the nearest valid key.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let config: Self = toml_file::load(path, overrides)?;
        let plain = !config.name.is_empty()
            && !config.name.starts_with('.')
            && config.name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
        ensure!(
            plain,
            "{}: name = {:?}: expected letters, digits, '-', '_' and '.': it names the run's folder",
            path.display(),
            config.name
        );
        ensure!(
            config.loader.batch_size > 0,
            "{}: loader.batch_size = 0: expected at least 1",
            path.display()
        );
        ensure!(config.evaluation.clips > 0, "{}: evaluation.clips = 0: expected at least 1", path.display());
        Ok(config)
    }

    /// The second stage, if there is one, and the config whose clips are those of the second stage.
    pub fn second_stage(&self) -> Option<(Self, GeneratorRun)> {
        let generator = self.generator.clone()?;
        let mut config = self.clone();
        if let Some(clip) = &generator.clip {
            config.data.clip = clip.clone();
        }
        Some((config, generator))
    }

    /// The shape of a batch of training clips.
    pub fn clip_shape(&self) -> VideoShape {
        let (height, width) = self.data.sizes(Split::Train)[0];
        VideoShape {
            batch: self.loader.batch_size as i64,
            channels: 3,
            frames: self.data.clip.frames,
            height,
            width,
        }
    }

    /// As TOML: what a run's folder keeps.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }
}
