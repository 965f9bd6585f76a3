//! A generator of tokens by its config: built, saved with that config and its tokenizer's fingerprint, and loaded again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use maskgit::mask::{ConditionMode, MASK, RegionCondition};
use maskgit::muse::{Muse, MuseDecoded, MuseGeneratorConfig, MuseLoss, MusePair, MusePairConfig};
use maskgit::{MaskGit, MaskGitConfig, MaskStrategy};
use perceiver_ar::{PerceiverArGenerator, PerceiverArGeneratorConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use var_next_scale::video::{SpaceTimeVar, SpaceTimeVarConfig};
use var_next_scale::{MultiScaleVq, VarConfig, VarGenerator};
use video_core::{Condition, ConditionKind, GridShape, SampleOptions, TokenGenerator, TokenGrid};
use video_gpt::{GptCondition, GptConfig, VideoGpt};

use crate::text::TextConfig;
use crate::token_cache::TokenBatch;
use crate::tokenizer::{LoadedTokenizer, Tokenizer};

/// Which generator, and its config: `kind = "maskgit"` and its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // One per process, as the models.
pub enum GeneratorConfig {
    /// Masked tokens, decoded in parallel: MaskGIT on images, MAGVIT's form on clips.
    Maskgit(MaskGitConfig),
    /// Next-scale prediction of images.
    Var(VarConfig),
    /// Next-scale prediction of clips, over pyramids that grow in space and time.
    SpaceTimeVar(SpaceTimeVarConfig),
    /// Muse's base model: masked tokens given text.
    Muse(MuseGeneratorConfig),
    /// Muse's base and super-resolution models, on the tokens of small and of whole clips.
    MusePair(MusePairConfig),
    /// VideoGPT's prior: token by token in raster order, time first.
    VideoGpt(GptConfig),
    /// Perceiver AR: the same order, a context of any length.
    PerceiverAr(PerceiverArGeneratorConfig),
}

impl GeneratorConfig {
    /// Builds the generator with fresh weights, for the tokens of a tokenizer on the same device.
    ///
    /// # Errors
    /// A field that the generator refuses, a tokenizer that it does not fit.
    pub fn build(&self, path: &nn::Path, tokenizer: &Tokenizer) -> Result<Generator> {
        let quantizer = || {
            let quantizer = tokenizer.pyramid_quantizer().map(MultiScaleVq::frozen);
            let expected =
                "\"var_vqvae\" or \"space_time_vqvae\": next-scale prediction needs their pyramids";
            quantizer.ok_or_else(|| video_core::Error::config("tokenizer.kind", "one of one scale", expected))
        };
        let generator = match self {
            Self::Maskgit(config) => MaskGit::new(path, config).map(Generator::Maskgit),
            Self::Var(config) => {
                quantizer().and_then(|q| VarGenerator::new(path, config, q)).map(Generator::Var)
            }
            Self::SpaceTimeVar(config) => {
                quantizer().and_then(|q| SpaceTimeVar::new(path, config, q)).map(Generator::SpaceTimeVar)
            }
            Self::Muse(config) => Muse::new(path, config).map(Generator::Muse),
            Self::MusePair(config) => MusePair::new(path, config).map(Generator::MusePair),
            Self::VideoGpt(config) => VideoGpt::new(path, config).map(Generator::VideoGpt),
            Self::PerceiverAr(config) => PerceiverArGenerator::new(path, config).map(Generator::PerceiverAr),
        };
        Ok(generator.map_err(|error| error.within("generator.model"))?)
    }

    /// The same network without dropout and label smoothing, so that its loss is a likelihood; of masked tokens MaskGIT's random
    /// masks.
    #[must_use]
    pub fn plain(&self) -> Self {
        match self {
            Self::Maskgit(config) => Self::Maskgit(MaskGitConfig {
                dropout: 0.0,
                label_smoothing: 0.0,
                class_dropout: 0.0,
                // Whatever it was trained with, so that figures compare.
                masking: MaskStrategy::default(),
                ..config.clone()
            }),
            Self::Var(config) => Self::Var(plain_var(config)),
            Self::SpaceTimeVar(config) => Self::SpaceTimeVar(SpaceTimeVarConfig {
                transformer: plain_var(&config.transformer),
                ..config.clone()
            }),
            Self::Muse(config) => Self::Muse(plain_muse(config)),
            Self::MusePair(config) => Self::MusePair(MusePairConfig {
                base: plain_muse(&config.base),
                super_resolution: plain_muse(&config.super_resolution),
            }),
            Self::VideoGpt(config) => {
                Self::VideoGpt(GptConfig { dropout: 0.0, attn_dropout: 0.0, ..config.clone() })
            }
            Self::PerceiverAr(config) => Self::PerceiverAr(PerceiverArGeneratorConfig {
                dropout: 0.0,
                input_dropout: 0.0,
                z_loss: 0.0,
                ..config.clone()
            }),
        }
    }

    /// The same generator at another width, of heads as wide as before.
    ///
    /// # Errors
    /// A width that is no multiple of a head's; a generator of another kind than next-scale prediction.
    pub fn with_width(&self, width: i64) -> Result<Self> {
        let widened = |config: &VarConfig| {
            let head = config.embed_dim / config.num_heads.max(1);
            ensure!(
                width > 0 && head > 0 && width % head == 0,
                "width {width}: expected a multiple of {head}, the width of a head (embed_dim / num_heads)"
            );
            Ok(VarConfig { embed_dim: width, num_heads: width / head, ..config.clone() })
        };
        match self {
            Self::Var(config) => Ok(Self::Var(widened(config)?)),
            Self::SpaceTimeVar(config) => Ok(Self::SpaceTimeVar(SpaceTimeVarConfig {
                transformer: widened(&config.transformer)?,
                ..config.clone()
            })),
            _ => bail!(
                "generator.model.kind: expected \"var\" or \"space_time_var\", whose scaling is studied here"
            ),
        }
    }

    /// The transformer of next-scale prediction.
    pub fn next_scale_transformer(&self) -> Option<&VarConfig> {
        match self {
            Self::Var(config) => Some(config),
            Self::SpaceTimeVar(config) => Some(&config.transformer),
            _ => None,
        }
    }

    /// The grid of a clip's tokens; of pyramids all scales in a row.
    ///
    /// # Errors
    /// Scales that make no pyramid.
    pub fn grid(&self) -> Result<GridShape> {
        let row = |tokens| GridShape { frames: 1, height: 1, width: tokens };
        Ok(match self {
            Self::Maskgit(config) => config.grid,
            Self::Muse(config) => config.grid,
            Self::MusePair(config) => config.super_resolution.grid,
            Self::VideoGpt(config) => config.grid,
            Self::PerceiverAr(config) => config.grid,
            Self::Var(config) => row(config.pyramid()?.tokens()),
            Self::SpaceTimeVar(config) => row(config.pyramid()?.tokens(config.max_chunks)),
        })
    }

    /// The latent frames, rows and columns of a clip.
    ///
    /// # Errors
    /// As [`GeneratorConfig::grid`].
    pub fn latent(&self) -> Result<GridShape> {
        Ok(match self {
            Self::Maskgit(config) => config.grid,
            Self::Muse(config) => config.grid,
            Self::MusePair(config) => config.super_resolution.grid,
            Self::VideoGpt(config) => config.grid,
            Self::PerceiverAr(config) => config.grid,
            Self::Var(config) => config.pyramid()?.last(),
            Self::SpaceTimeVar(config) => {
                let pyramid = config.pyramid()?;
                let frames = 1 + config.max_chunks * pyramid.chunk_frames();
                GridShape { frames, ..pyramid.image.last() }
            }
        })
    }

    /// The tokens of a clip's first latent frames.
    ///
    /// # Errors
    /// More frames than there are; of pyramids a number that is not one and whole chunks.
    pub fn first_frames(&self, tokens: &TokenGrid, latents: i64) -> Result<TokenGrid> {
        match self {
            Self::SpaceTimeVar(config) => {
                let pyramid = config.pyramid()?;
                let length = pyramid.tokens(pyramid.chunks_of_frames(latents)?);
                ensure!(
                    length <= tokens.shape().width,
                    "{latents} latent frames given: the clip has {}",
                    self.latent()?.frames
                );
                Ok(TokenGrid::new(tokens.ids().narrow(3, 0, length))?)
            }
            _ => Ok(tokens.time_slice(0, latents)?),
        }
    }

    /// The grid of the same clips in small, for a generator that works from coarse to fine grids.
    pub fn coarse_grid(&self) -> Option<GridShape> {
        match self {
            Self::MusePair(config) => Some(config.base.grid),
            _ => None,
        }
    }

    /// How many classes there are; 0 where classes are no condition.
    pub fn num_classes(&self) -> i64 {
        match self {
            Self::Maskgit(config) => config.num_classes,
            Self::Muse(_) | Self::MusePair(_) => 0,
            Self::VideoGpt(config) => config.class_cond_dim.unwrap_or(0),
            Self::PerceiverAr(config) => config.num_classes,
            Self::Var(config) => config.num_classes,
            Self::SpaceTimeVar(config) => config.transformer.num_classes,
        }
    }

    /// Refuses a text encoder of another width, or one that the generator has no use for.
    ///
    /// # Errors
    /// Both sides are named.
    pub fn check_text(&self, text: &TextConfig) -> Result<()> {
        let (field, ours) = match self {
            Self::Muse(config) => ("transformer.text_dim", config.transformer.text_dim),
            Self::MusePair(config) => ("base.transformer.text_dim", config.base.transformer.text_dim),
            _ => bail!("generator.text: this generator takes no text; kind = \"muse\" does"),
        };
        let theirs = text.dim()?;
        ensure!(
            ours == theirs,
            "generator.model.{field} = {ours}, but the text encoder at {} gives {theirs} numbers a token: make them equal",
            text.encoder.display()
        );
        Ok(())
    }

    /// Refuses a tokenizer of another vocabulary.
    ///
    /// # Errors
    /// Both sides are named.
    pub fn check_vocabulary(&self, vocabulary_size: i64) -> Result<()> {
        let (field, codes) = match self {
            Self::Maskgit(config) => ("codebook_size", config.codebook_size),
            Self::Muse(config) => ("transformer.num_tokens", config.transformer.num_tokens),
            Self::MusePair(config) => ("base.transformer.num_tokens", config.base.transformer.num_tokens),
            Self::Var(config) => ("vocab_size", config.vocab_size),
            Self::SpaceTimeVar(config) => ("transformer.vocab_size", config.transformer.vocab_size),
            Self::VideoGpt(config) => ("n_codes", config.n_codes),
            Self::PerceiverAr(config) => ("n_codes", config.n_codes),
        };
        ensure!(
            codes == vocabulary_size,
            "generator.model.{field} = {codes}, but the tokenizer has {vocabulary_size} codes: make them equal"
        );
        Ok(())
    }

    /// Refuses a tokenizer of another vocabulary, or one that gives another grid for clips of this shape.
    ///
    /// # Errors
    /// Both sides are named.
    pub fn check_tokenizer(&self, vocabulary_size: i64, grid: GridShape) -> Result<()> {
        self.check_vocabulary(vocabulary_size)?;
        let (ours, GridShape { frames, height, width }) = (self.grid()?, grid);
        let write = match self {
            Self::Var(_) => "patch_nums must be the tokenizer's v_patch_nums".into(),
            Self::SpaceTimeVar(_) => {
                "patch_nums, chunk_scales and max_chunks must be those of its clips".into()
            }
            _ => format!("write grid = {{ frames = {frames}, height = {height}, width = {width} }}"),
        };
        ensure!(
            ours == grid,
            "generator.model: its grid is {}×{}×{}, but the tokenizer makes {frames}×{height}×{width} tokens of a clip: {write}",
            ours.frames,
            ours.height,
            ours.width
        );
        Ok(())
    }
}

/// The same model with all texts, no critic and, unless sampling needs them, no tokens that are predicted where they stand.
fn plain_muse(config: &MuseGeneratorConfig) -> MuseGeneratorConfig {
    let no_mask_token_prob = match config.sampling.can_remask_prev_masked {
        true => config.loss.no_mask_token_prob,
        false => 0.0,
    };
    let loss = MuseLoss { cond_drop_prob: 0.0, critic_loss_weight: 0.0, no_mask_token_prob, ..config.loss };
    MuseGeneratorConfig { loss, ..config.clone() }
}

/// The same transformer with nothing dropped and nothing smoothed.
fn plain_var(config: &VarConfig) -> VarConfig {
    VarConfig { cond_drop_rate: 0.0, drop_path_rate: 0.0, label_smoothing: 0.0, ..config.clone() }
}

/// Any generator of the workspace.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // As with tokenizers.
pub enum Generator {
    /// MaskGIT and MAGVIT.
    Maskgit(MaskGit),
    /// VAR, of images.
    Var(VarGenerator),
    /// VAR over space-time pyramids.
    SpaceTimeVar(SpaceTimeVar),
    /// Muse.
    Muse(Muse),
    /// Muse's two models.
    MusePair(MusePair),
    /// VideoGPT's prior.
    VideoGpt(VideoGpt),
    /// Perceiver AR.
    PerceiverAr(PerceiverArGenerator),
}

impl std::ops::Deref for Generator {
    type Target = dyn TokenGenerator;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Maskgit(generator) => generator,
            Self::Var(generator) => generator,
            Self::SpaceTimeVar(generator) => generator,
            Self::Muse(generator) => generator,
            Self::MusePair(generator) => generator,
            Self::VideoGpt(generator) => generator,
            Self::PerceiverAr(generator) => generator,
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

impl Sampled {
    /// Of the ids and what the model read in each step: a token is decided after the last step that read a mask in its place.
    fn of(ids: Tensor, inputs: &[Tensor], mask: i64) -> Result<Self> {
        let decided = inputs.iter().enumerate().fold(ids.full_like(-1), |decided, (step, input)| {
            decided.masked_fill(&input.eq(mask), step as i64)
        });
        Ok(Self { tokens: TokenGrid::new(ids)?, steps: inputs.len(), decided })
    }

    /// Of pyramids, all scales in a row, of which each is decided in a step.
    fn of_scales(tokens: TokenGrid, lengths: &[i64]) -> Self {
        let device = tokens.ids().device();
        let steps = Tensor::arange(lengths.len() as i64, (Kind::Int64, device));
        let of_token =
            steps.repeat_interleave_self_tensor(&Tensor::from_slice(lengths).to_device(device), 0, None);
        let decided = of_token.expand_as(tokens.ids()).contiguous();
        Self { tokens, steps: lengths.len(), decided }
    }

    /// Of a Muse.
    fn of_muse(generator: &Muse, decoded: &MuseDecoded) -> Result<Self> {
        let GridShape { frames, height, width } = generator.config().grid;
        let grid = |ids: &Tensor| ids.view([-1, frames, height, width]);
        let inputs: Vec<Tensor> = decoded.inputs.iter().map(grid).collect();
        Self::of(grid(&decoded.ids), &inputs, generator.transformer().mask_id())
    }
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
                Sampled::of(decoded.ids, &decoded.inputs, MASK)
            }
            Self::Var(generator) => {
                let lengths = generator.model().pyramid().lengths();
                self.sample_scales(&lengths, condition, options)
            }
            Self::SpaceTimeVar(generator) => {
                let lengths = generator.pyramid().lengths(generator.config().max_chunks);
                self.sample_scales(&lengths, condition, options)
            }
            Self::Muse(generator) => {
                let decoded = generator.sample_above(None, condition, options)?;
                Sampled::of_muse(generator, &decoded)
            }
            Self::MusePair(generator) => {
                let [coarse, fine] = generator.sample_both(condition, options)?;
                let fine = Sampled::of_muse(generator.super_resolution(), &fine)?;
                let before = coarse.inputs.len();
                let decided = fine.decided + before as i64;
                Ok(Sampled { steps: before + fine.steps, decided, ..fine })
            }
            Self::VideoGpt(generator) => self.sample_raster(generator.config().grid, condition, options),
            Self::PerceiverAr(generator) => self.sample_raster(generator.config().grid, condition, options),
        }
    }

    /// Draws what a region of given tokens leaves open: interpolation, in- and outpainting. Of the condition, the class
    /// counts. VAR's region is of its latent's size, `[1, 1, h, w]`.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`]; a generator that only continues.
    pub fn sample_in_region(
        &self,
        region: &RegionCondition,
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<Sampled> {
        match self {
            Self::Maskgit(generator) => {
                condition.check_served("MaskGit", generator.serves())?;
                let region = Some((ConditionMode::InputToInput, region));
                let decoded = generator.sample_in_region(region, condition.class.as_ref(), options)?;
                Sampled::of(decoded.ids, &decoded.inputs, MASK)
            }
            Self::Var(generator) => {
                let image = TokenGrid::new(region.ids.shallow_clone())?;
                let mask = region.region.squeeze_dim(0).squeeze_dim(0);
                let tokens = generator.sample_edit(&image, &mask, condition, options)?;
                Ok(Sampled::of_scales(tokens, &generator.model().pyramid().lengths()))
            }
            _ => {
                bail!("this generator fills in no region of a clip; kind = \"maskgit\" and kind = \"var\" do")
            }
        }
    }

    /// The training loss of a batch, and its nats per token, 0-d both.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`].
    pub fn losses(&self, batch: &TokenBatch, device: Device, seed: u64) -> video_core::Result<[Tensor; 2]> {
        let (tokens, condition) = (batch.tokens.to_device(device), self.condition(batch, device));
        let (Self::MusePair(pair), Some(coarse)) = (self, &batch.coarse) else {
            let loss = self.loss(&tokens, &condition, seed)?;
            return Ok([loss.shallow_clone(), loss]);
        };
        let counts = [coarse.shape().tokens(), tokens.shape().tokens()].map(|count| count as f64);
        let [base, fine] = pair.losses(&coarse.to_device(device), &tokens, &condition, seed)?;
        let mean = (&base * counts[0] + &fine * counts[1]) / (counts[0] + counts[1]);
        Ok([base + fine, mean])
    }

    /// What a batch says of its clips, as far as the generator serves it.
    pub fn condition(&self, batch: &TokenBatch, device: Device) -> Condition {
        let served = |kind: ConditionKind| self.serves().contains(&kind);
        let class = batch.classes.as_ref().filter(|_| served(ConditionKind::Class));
        let text = batch.text.as_ref().filter(|_| served(ConditionKind::Text));
        Condition {
            class: class.map(|classes| classes.to_device(device)),
            text: text.map(|(states, mask)| (states.to_device(device), mask.to_device(device))),
            ..Condition::default()
        }
    }

    /// Samples token by token in raster order, time first: one forward pass, and one step, for each that is not given.
    fn sample_raster(
        &self,
        grid: GridShape,
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<Sampled> {
        let tokens = self.sample(condition, grid, options)?;
        let given = condition.first_frames.as_ref().map_or(0, |first| first.shape().tokens());
        let steps = grid.tokens() - given;
        let order = Tensor::arange(grid.tokens(), (Kind::Int64, tokens.ids().device())) - given;
        let decided = order.clamp_min(-1).view([1, grid.frames, grid.height, grid.width]);
        let decided = decided.expand_as(tokens.ids()).contiguous();
        Ok(Sampled { tokens, steps: steps as usize, decided })
    }

    /// Exact −ln p of each clip's tokens, float64 `[B]`; `None` where the generator gives no likelihood of a clip.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`].
    pub fn exact_nats(
        &self,
        tokens: &TokenGrid,
        condition: &Condition,
    ) -> video_core::Result<Option<Tensor>> {
        match self {
            Self::VideoGpt(generator) => {
                let class = condition.class.as_ref();
                generator.nats(tokens, GptCondition { class, frames: None }).map(Some)
            }
            Self::PerceiverAr(generator) => generator.nats(tokens, condition).map(Some),
            _ => Ok(None),
        }
    }

    /// Samples a row of scales of these lengths: one step decides a scale.
    fn sample_scales(
        &self,
        lengths: &[i64],
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<Sampled> {
        let shape = GridShape { frames: 1, height: 1, width: lengths.iter().sum() };
        let sampled = Sampled::of_scales(self.sample(condition, shape, options)?, lengths);
        let given = condition.first_frames.as_ref().map_or(0, |first| first.shape().width);
        let _ = sampled.decided.narrow(3, 0, given).fill_(-1);
        Ok(sampled)
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
    /// Whose embeddings of captions it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<TrainedText>,
}

/// The text encoder that a generator was trained with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainedText {
    /// Where it was, and its limit.
    pub config: TextConfig,
    /// Of its files.
    pub fingerprint: String,
}

/// Saves a generator's weights with its config, whole or not at all.
///
/// # Errors
/// The folder cannot be written, the disk is full.
pub fn save(
    target: &Path,
    config: &GeneratorConfig,
    tokenizer: &str,
    text: Option<&TextConfig>,
    weights: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let text = match text {
        Some(text) => Some(TrainedText { config: text.clone(), fingerprint: text.fingerprint()? }),
        None => None,
    };
    let description = Description { generator: config.clone(), tokenizer: tokenizer.into(), text };
    Ok(training::save_weights(target, weights, &serde_json::to_string(&description)?)?)
}

/// A generator with the weights of a file, without dropout and label smoothing.
#[derive(Debug)]
pub struct LoadedGenerator {
    /// Ready to sample.
    pub generator: Generator,
    /// Its config.
    pub config: GeneratorConfig,
    /// Its text encoder, if it was trained with texts.
    pub text: Option<TrainedText>,
}

impl LoadedGenerator {
    /// Loads a run's generator (a folder) or a weights file.
    ///
    /// # Errors
    /// Missing, cut short, of another config, or trained on the tokens of another tokenizer than the given one.
    pub fn open(checkpoint: &Path, tokenizer: &LoadedTokenizer) -> Result<Self> {
        Self::open_as(checkpoint, tokenizer, None)
    }

    /// [`LoadedGenerator::open`] with another config over the same weights, as one with other sampling steps; `None`: the config
    /// that it was trained with.
    ///
    /// # Errors
    /// As [`LoadedGenerator::open`]; a config of other weights.
    pub fn open_as(
        checkpoint: &Path,
        tokenizer: &LoadedTokenizer,
        config: Option<&GeneratorConfig>,
    ) -> Result<Self> {
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
        let config = config.unwrap_or(&description.generator).plain();
        let mut variables = nn::VarStore::new(tokenizer.device);
        let generator = config.build(&variables.root(), &tokenizer.tokenizer)?;
        training::copy_into(&variables, &weights.tensors, &path)?;
        variables.freeze();
        Ok(Self { generator, config, text: description.text })
    }
}
