//! A generator of tokens by its config: built, saved with that config and its tokenizer's fingerprint, and loaded again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use maskgit::mask::MASK;
use maskgit::{MaskGit, MaskGitConfig};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};
use video_core::{Condition, GridShape, SampleOptions, TokenGenerator, TokenGrid};

use crate::tokenizer::LoadedTokenizer;

/// Which generator, and its config: `kind = "maskgit"` and its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GeneratorConfig {
    /// Masked tokens, decoded in parallel: MaskGIT on images, MAGVIT's form on clips.
    Maskgit(MaskGitConfig),
}

impl GeneratorConfig {
    /// Builds the generator with fresh weights.
    ///
    /// # Errors
    /// A field that the generator refuses.
    pub fn build(&self, path: &nn::Path) -> Result<Generator> {
        let generator = match self {
            Self::Maskgit(config) => MaskGit::new(path, config).map(Generator::Maskgit),
        };
        Ok(generator.map_err(|error| error.within("generator.model"))?)
    }

    /// The same network without dropout and label smoothing, so that its loss is a likelihood.
    #[must_use]
    pub fn plain(&self) -> Self {
        match self {
            Self::Maskgit(config) => Self::Maskgit(MaskGitConfig {
                dropout: 0.0,
                label_smoothing: 0.0,
                class_dropout: 0.0,
                ..config.clone()
            }),
        }
    }

    /// The grid of a clip.
    pub fn grid(&self) -> GridShape {
        match self {
            Self::Maskgit(config) => config.grid,
        }
    }

    /// Refuses a tokenizer of another vocabulary, or one that gives another grid for clips of this shape.
    ///
    /// # Errors
    /// Both sides are named.
    pub fn check_tokenizer(&self, vocabulary_size: i64, grid: GridShape) -> Result<()> {
        let Self::Maskgit(config) = self;
        ensure!(
            config.codebook_size == vocabulary_size,
            "generator.model.codebook_size = {}, but the tokenizer has {vocabulary_size} codes: make them equal",
            config.codebook_size
        );
        let GridShape { frames, height, width } = grid;
        ensure!(
            self.grid() == grid,
            "generator.model.grid = {:?}, but the tokenizer makes {frames}×{height}×{width} tokens of a clip: write \
             grid = {{ frames = {frames}, height = {height}, width = {width} }}",
            self.grid()
        );
        Ok(())
    }
}

/// Any generator of the workspace.
#[derive(Debug)]
pub enum Generator {
    /// MaskGIT and MAGVIT.
    Maskgit(MaskGit),
}

impl std::ops::Deref for Generator {
    type Target = dyn TokenGenerator;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Maskgit(generator) => generator,
        }
    }
}

/// Sampled tokens, and how they came about.
pub struct Sampled {
    /// The tokens.
    pub tokens: TokenGrid,
    /// Forward passes of the network.
    pub steps: usize,
    /// The step, from 0, after which each token stayed as it is: int64 like the tokens. Given tokens have -1.
    pub decided: Tensor,
}

impl Generator {
    /// Draws tokens, and tells in which order they were decided.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`].
    pub fn sample_in_steps(&self, condition: &Condition, options: &SampleOptions) -> Result<Sampled> {
        match self {
            Self::Maskgit(generator) => {
                let decoded = generator.sample_in_steps(condition, options)?;
                let steps = decoded.inputs.len();
                // A token is decided after the last step that read a mask in its place.
                let decided = decoded.inputs.iter().fold(decoded.ids.full_like(-1), |decided, input| {
                    decided + input.eq(MASK).to_kind(Kind::Int64)
                });
                Ok(Sampled { tokens: TokenGrid::new(decoded.ids)?, steps, decided })
            }
        }
    }
}

/// The file name of a run's generator.
pub const GENERATOR_FILE: &str = "generator.safetensors";

/// What a generator's file says of itself.
#[derive(Serialize, Deserialize)]
struct Description {
    generator: GeneratorConfig,
    /// The fingerprint of the tokenizer on whose tokens it was trained.
    tokenizer: String,
}

/// Saves a generator's weights with its config, whole or not at all.
///
/// # Errors
/// The folder cannot be written, the disk is full.
pub fn save(
    target: &Path,
    config: &GeneratorConfig,
    tokenizer: &str,
    weights: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let description = Description { generator: config.clone(), tokenizer: tokenizer.into() };
    Ok(training::save_weights(target, weights, &serde_json::to_string(&description)?)?)
}

/// A generator with the weights of a file, without dropout and label smoothing.
#[derive(Debug)]
pub struct LoadedGenerator {
    /// Ready to sample.
    pub generator: Generator,
    /// Its config.
    pub config: GeneratorConfig,
}

impl LoadedGenerator {
    /// Loads a run's generator (a folder) or a weights file.
    ///
    /// # Errors
    /// Missing, cut short, of another config, or trained on the tokens of another tokenizer than the given one.
    pub fn open(checkpoint: &Path, tokenizer: &LoadedTokenizer) -> Result<Self> {
        let path: PathBuf =
            if checkpoint.is_dir() { checkpoint.join(GENERATOR_FILE) } else { checkpoint.into() };
        if !path.exists() {
            bail!(
                "no generator at {}: run a config with a [generator] table, such as experiments/configs/quickstart.toml",
                path.display()
            );
        }
        let weights = training::load_weights(&path)?;
        let description: Description = serde_json::from_str(&weights.config)
            .with_context(|| format!("{}: its config is no generator's", path.display()))?;
        ensure!(
            description.tokenizer == tokenizer.fingerprint,
            "{} was trained on the tokens of the tokenizer {}, but the one at hand is {}: take them from one run",
            path.display(),
            description.tokenizer,
            tokenizer.fingerprint
        );
        let config = description.generator.plain();
        let mut variables = nn::VarStore::new(tokenizer.device);
        let generator = config.build(&variables.root())?;
        training::copy_into(&variables, &weights.tensors, &path)?;
        variables.freeze();
        Ok(Self { generator, config })
    }
}
