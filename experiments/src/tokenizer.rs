//! A tokenizer by its config: built, saved with that config, and loaded again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use causal_conv::cosmos::{CosmosConfig, CosmosTokenizer};
use causal_conv::magvit2::{Magvit2, Magvit2Config, Magvit2Output};
use causal_conv::open_magvit2::{OpenMagvit2, OpenMagvit2Config};
use maskgit::vqgan::{Vqgan, VqganConfig};
use quantizers::{Mode, Quantized, Usage};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};
use var_next_scale::video::{SpaceTimeVqvae, SpaceTimeVqvaeConfig};
use var_next_scale::{MultiScaleVq, Vqvae, VqvaeConfig};
use video_core::{GridShape, TokenGrid, VideoShape, VideoTokenizer};
use video_gpt::{VqVae, VqVaeConfig};

/// Which tokenizer, and its config: `kind = "magvit2"` and its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TokenizerConfig {
    /// The causal 3D-convolutional tokenizer of MAGVIT-v2.
    Magvit2(Magvit2Config),
    /// The frame-wise tokenizer of Open-MAGVIT2.
    #[serde(rename = "open_magvit2")]
    OpenMagvit2(OpenMagvit2Config),
    /// A Cosmos tokenizer.
    Cosmos(CosmosConfig),
    /// The VQGAN of MaskGIT (frame by frame) or MAGVIT (3D).
    Vqgan(VqganConfig),
    /// VAR's tokenizer of images, whose tokens are pyramids: clips of one frame.
    VarVqvae(VqvaeConfig),
    /// A causal tokenizer of videos whose tokens are space-time pyramids.
    SpaceTimeVqvae(SpaceTimeVqvaeConfig),
    /// VideoGPT's VQ-VAE: 3D convolutions and axial attention. Its own reconstruction loss, the squared error of pixels in
    /// [-0.5, 0.5] over 0.06, is `objective.reconstruction_weight` = 1 / 0.24.
    VideoGptVqVae(VqVaeConfig),
}

impl TokenizerConfig {
    /// Builds the tokenizer with fresh weights.
    ///
    /// # Errors
    /// A field that the tokenizer refuses.
    pub fn build(&self, path: &nn::Path) -> Result<Tokenizer> {
        let tokenizer = match self {
            Self::Magvit2(config) => Magvit2::new(path, config).map(Tokenizer::Magvit2),
            Self::OpenMagvit2(config) => OpenMagvit2::new(path, config).map(Tokenizer::OpenMagvit2),
            Self::Cosmos(config) => CosmosTokenizer::new(path, config).map(Tokenizer::Cosmos),
            Self::Vqgan(config) => Vqgan::new(path, config).map(Tokenizer::Vqgan),
            Self::VarVqvae(config) => Vqvae::new(path, config).map(Tokenizer::VarVqvae),
            Self::SpaceTimeVqvae(config) => SpaceTimeVqvae::new(path, config).map(Tokenizer::SpaceTimeVqvae),
            Self::VideoGptVqVae(config) => VqVae::new(path, config).map(Tokenizer::VideoGptVqVae),
        };
        Ok(tokenizer.map_err(|error| error.within("tokenizer"))?)
    }
}

/// Any tokenizer of the workspace.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One per process: a box would only be in its users' way.
pub enum Tokenizer {
    /// MAGVIT-v2.
    Magvit2(Magvit2),
    /// Open-MAGVIT2.
    OpenMagvit2(OpenMagvit2),
    /// Cosmos.
    Cosmos(CosmosTokenizer),
    /// MaskGIT's and MAGVIT's VQGAN.
    Vqgan(Vqgan),
    /// VAR's, of images.
    VarVqvae(Vqvae),
    /// Of space-time pyramids.
    SpaceTimeVqvae(SpaceTimeVqvae),
    /// VideoGPT's.
    VideoGptVqVae(VqVae),
}

impl std::ops::Deref for Tokenizer {
    type Target = dyn VideoTokenizer;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Magvit2(tokenizer) => tokenizer,
            Self::OpenMagvit2(tokenizer) => tokenizer,
            Self::Cosmos(tokenizer) => tokenizer,
            Self::Vqgan(tokenizer) => tokenizer,
            Self::VarVqvae(tokenizer) => tokenizer,
            Self::SpaceTimeVqvae(tokenizer) => tokenizer,
            Self::VideoGptVqVae(tokenizer) => tokenizer,
        }
    }
}

impl Tokenizer {
    /// Video `[B, 3, T, H, W]` through the whole model, with gradients where they are enabled.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn forward(&self, video: &Tensor, mode: Mode) -> video_core::Result<Magvit2Output> {
        match self {
            Self::Magvit2(tokenizer) => tokenizer.forward(video, mode),
            Self::OpenMagvit2(tokenizer) => tokenizer.forward(video, mode),
            Self::Cosmos(tokenizer) => tokenizer.forward(video, mode),
            Self::Vqgan(tokenizer) => {
                let (reconstruction, quantized) = tokenizer.forward(video, mode)?;
                Ok(Magvit2Output { reconstruction, quantized })
            }
            Self::VarVqvae(tokenizer) => {
                tokenizer.grid_shape(VideoShape::of(video)?)?;
                let output = tokenizer.forward(&video.squeeze_dim(2), mode != Mode::Eval)?;
                let q = output.quantized;
                let quantized = pyramid_quantized(tokenizer.quantizer(), &q.f_hat, q.vq_loss, &q.ids);
                Ok(Magvit2Output { reconstruction: output.reconstruction.unsqueeze(2), quantized })
            }
            Self::SpaceTimeVqvae(tokenizer) => {
                let o = tokenizer.forward(video, mode != Mode::Eval)?;
                let quantized = pyramid_quantized(tokenizer.quantizer(), &o.f_hat, o.vq_loss, &o.ids);
                Ok(Magvit2Output { reconstruction: o.reconstruction, quantized })
            }
            Self::VideoGptVqVae(tokenizer) => {
                let output = tokenizer.forward(&(video / 2.0), mode)?;
                Ok(Magvit2Output { reconstruction: output.reconstruction * 2.0, quantized: output.quantized })
            }
        }
    }

    /// The weight at which a GAN's adaptive weight compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        match self {
            Self::Magvit2(tokenizer) => tokenizer.last_layer(),
            Self::OpenMagvit2(tokenizer) => tokenizer.last_layer(),
            Self::Cosmos(tokenizer) => tokenizer.last_layer(),
            Self::Vqgan(tokenizer) => tokenizer.last_layer(),
            Self::VarVqvae(tokenizer) => tokenizer.last_layer(),
            Self::SpaceTimeVqvae(tokenizer) => tokenizer.last_layer(),
            Self::VideoGptVqVae(tokenizer) => tokenizer.last_layer(),
        }
    }

    /// The frames of a clip that its first latent frames stand for. A tokenizer that is not causal has no latent frame for
    /// the first frame alone.
    pub fn frames(&self, latent_frames: i64) -> i64 {
        let compression = self.compression();
        let (height, width) = (compression.height, compression.width);
        let frames = compression.frames(latent_frames);
        if self.pyramid_quantizer().is_some() {
            return frames;
        }
        let shape = VideoShape { batch: 1, channels: 3, frames, height, width };
        match self.grid_shape(shape) {
            Ok(GridShape { frames: latents, .. }) if latents == latent_frames => frames,
            _ => latent_frames * compression.time,
        }
    }

    /// The quantizer of a tokenizer whose tokens are pyramids: a next-scale generator needs its codes.
    pub fn pyramid_quantizer(&self) -> Option<&MultiScaleVq> {
        match self {
            Self::VarVqvae(tokenizer) => Some(tokenizer.quantizer()),
            Self::SpaceTimeVqvae(tokenizer) => Some(tokenizer.quantizer()),
            _ => None,
        }
    }

    /// The latent frames, rows and columns of a clip with one pyramid of each kind; `None` for tokenizers of one scale.
    pub fn pyramid_size(&self) -> Option<[i64; 3]> {
        let chunk = match self {
            Self::SpaceTimeVqvae(tokenizer) => tokenizer.pyramid().chunk_frames(),
            _ => 0,
        };
        let last = self.pyramid_quantizer()?.pyramid().last();
        Some([1 + chunk, last.height, last.width])
    }

    /// The grid of one picture.
    ///
    /// # Errors
    /// A size that the tokenizer does not take; of pyramids, which have one, it is named.
    pub fn picture_grid(&self, height: i64, width: i64) -> Result<GridShape> {
        let grid = self.grid_shape(VideoShape { batch: 1, channels: 3, frames: 1, height, width });
        let compression = self.compression();
        match (grid, self.pyramid_size()) {
            (Err(error), Some([_, rows, columns])) => Err(error).with_context(|| {
                let (rows, columns) = (rows * compression.height, columns * compression.width);
                format!("{height}×{width} pixels: this tokenizer takes {rows}×{columns}, give --size {rows}x{columns}")
            }),
            (grid, _) => Ok(grid?),
        }
    }

    /// What a grid of pyramids looks like after its first scale, its first two, and so on: videos `[B, 3, T, H, W]`. `None` for
    /// tokenizers of one scale.
    ///
    /// # Errors
    /// As [`VideoTokenizer::decode`].
    pub fn coarse_to_fine(&self, tokens: &TokenGrid) -> video_core::Result<Option<Vec<Tensor>>> {
        match self {
            Self::VarVqvae(tokenizer) => tokenizer.videos_by_scale(tokens).map(Some),
            Self::SpaceTimeVqvae(tokenizer) => tokenizer.videos_by_scale(tokens).map(Some),
            _ => Ok(None),
        }
    }

    /// What comes back of a video `[B, 3, T, H, W]`, clamped, without gradients; and its tokens, unless the bottleneck is
    /// continuous.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn reconstruct(&self, video: &Tensor) -> video_core::Result<(Tensor, Option<TokenGrid>)> {
        if self.vocabulary_size().is_some() {
            let grid = self.encode(video)?;
            return Ok((self.decode(&grid)?, Some(grid)));
        }
        let video = tch::no_grad(|| self.forward(video, Mode::Eval))?.reconstruction;
        Ok((video.clamp(-1.0, 1.0), None))
    }
}

/// What a quantizer of pyramids made of features: their sum `[B, z, T, H, W]`, its loss, and ids of every scale.
fn pyramid_quantized(quantizer: &MultiScaleVq, f_hat: &Tensor, loss: Tensor, ids: &[Tensor]) -> Quantized {
    let ids = Tensor::cat(&ids.iter().map(|ids| ids.flatten(0, -1)).collect::<Vec<_>>(), 0);
    Quantized {
        embeddings: f_hat.permute([0, 2, 3, 4, 1]),
        usage: Some(Usage::of(&ids, quantizer.config().vocab_size)),
        // Scales differ in size: there is no one grid of ids.
        ids: None,
        losses: vec![("codebook", loss)],
    }
}

/// The file name of a run's tokenizer.
pub const WEIGHTS_FILE: &str = "tokenizer.safetensors";

/// A tokenizer with the weights of a file.
#[derive(Debug)]
pub struct LoadedTokenizer {
    /// Ready to encode and decode.
    pub tokenizer: Tokenizer,
    /// Its config.
    pub config: TokenizerConfig,
    /// Of config and weights: what a token file names.
    pub fingerprint: String,
    /// Where it computes.
    pub device: Device,
}

/// Saves a tokenizer's weights with its config, whole or not at all.
///
/// # Errors
/// The folder cannot be written, the disk is full.
pub fn save(target: &Path, config: &TokenizerConfig, weights: &BTreeMap<String, Tensor>) -> Result<()> {
    Ok(training::save_weights(target, weights, &serde_json::to_string(config)?)?)
}

/// A tokenizer file's path, tensors and config; of a run's folder, its tokenizer's.
fn read(checkpoint: &Path) -> Result<(PathBuf, training::Weights, TokenizerConfig)> {
    let path: PathBuf = if checkpoint.is_dir() { checkpoint.join(WEIGHTS_FILE) } else { checkpoint.into() };
    if !path.exists() {
        bail!(
            "no tokenizer at {}: train one first (`vireo run experiments/configs/quickstart.toml`), or name another with --checkpoint",
            path.display()
        );
    }
    let weights = training::load_weights(&path)?;
    let config = serde_json::from_str(&weights.config).with_context(|| {
        format!(
            "{}: its config is no tokenizer's (`vireo import` turns published checkpoints into Vireo's)",
            path.display()
        )
    })?;
    Ok((path, weights, config))
}

/// The config of a tokenizer file, or of a run's tokenizer.
///
/// # Errors
/// Missing, cut short, no tokenizer of ours.
pub fn read_config(checkpoint: &Path) -> Result<TokenizerConfig> {
    Ok(read(checkpoint)?.2)
}

impl LoadedTokenizer {
    /// Loads a run's tokenizer (a folder) or a weights file.
    ///
    /// # Errors
    /// Missing, cut short, of another config (naming the first tensor that does not fit and both shapes).
    pub fn open(checkpoint: &Path, device: Device) -> Result<Self> {
        let (path, weights, config) = read(checkpoint)?;
        let fingerprint = fingerprint(&config, &weights.tensors)?;
        let mut variables = nn::VarStore::new(device);
        let tokenizer = config.build(&variables.root())?;
        training::copy_into(&variables, &weights.tensors, &path)?;
        variables.freeze();
        Ok(Self { tokenizer, config, fingerprint, device })
    }

    /// The vocabulary's size.
    ///
    /// # Errors
    /// The bottleneck is continuous: there are no ids.
    pub fn vocabulary_size(&self) -> Result<i64> {
        let size = self.tokenizer.vocabulary_size();
        size.context("this tokenizer's bottleneck is continuous: it has no token ids; take a checkpoint with a discrete quantizer")
    }
}

/// A short hash of config and weights.
fn fingerprint(config: &TokenizerConfig, weights: &BTreeMap<String, Tensor>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::to_string(config)?.as_bytes());
    for (name, tensor) in weights {
        hasher.update(name.as_bytes());
        let tensor = tensor.contiguous().to_device(Device::Cpu);
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex()[..16].to_string())
}

/// A device by its name on the command line or in a config: `auto`, `cpu`, `cuda`, `cuda:N`.
///
/// # Errors
/// Another name, or a GPU that is not there.
pub fn device(name: &str) -> Result<Device> {
    let index = match name {
        "auto" => return Ok(Device::cuda_if_available()),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => match name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => index,
            None => bail!("device {name}: expected auto, cpu, cuda or cuda:N"),
        },
    };
    let there = tch::Cuda::device_count().max(0) as usize;
    ensure!(
        index < there,
        "device {name}: {there} CUDA devices are visible to this libtorch; use cpu, or `./bootstrap.sh --cuda` for a CUDA build"
    );
    Ok(Device::Cuda(index))
}
