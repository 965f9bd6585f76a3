//! Published checkpoints: their files, and the maps from their names and layouts to ours.

mod checkpoint;
pub(crate) mod cosmos;
pub(crate) mod flax;
pub(crate) mod maskgit;
pub(crate) mod o2;
mod open;
pub(crate) mod open_muse;
mod pickle;
mod shapes;
pub(crate) mod var;
pub(crate) mod video_gpt;

use ::maskgit::open_muse::{OpenMuseConfig, OpenMuseTransformer, OpenMuseUVit, UVitConfig};
use ::maskgit::vqgan::{Vqgan, VqganConfig};
use ::maskgit::{MaskGit, MaskGitConfig};
use ::video_gpt::{GptConfig, VideoGpt, VqVae, VqVaeConfig};
use causal_conv::cosmos::{CosmosConfig, CosmosTokenizer};
use causal_conv::magvit2::{Magvit2, Magvit2Config};
use causal_conv::open_magvit2::{OpenMagvit2, OpenMagvit2Config};
use serde::{Deserialize, Serialize};
use tch::{Device, TchError, nn};
use var_next_scale::{Var, VarConfig, Vqvae, VqvaeConfig};

pub use checkpoint::read_checkpoint;
use shapes::{Shapes, gcd};

use crate::weights::{Weights, WeightsError, load_into};

/// Why a checkpoint cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The pickle format before PyTorch 1.6.
    #[error(
        "the file is in the format from before PyTorch 1.6, which cannot be read without running it: save it again with a \
         newer PyTorch, torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
    )]
    Legacy,
    /// The pickle names a function or a type that is not known to be harmless.
    #[error(
        "the file names {0}, which this reader refuses to call: save its weights alone, \
         torch.save({{'state_dict': model.state_dict()}}, NEW_FILE)"
    )]
    Global(String),
    /// The file is cut short or its bytes were changed.
    #[error("the file is damaged or cut short: {0}")]
    Damaged(String),
    /// The archive lacks a file.
    #[error("the archive has no {0}: is it cut short?")]
    Entry(String),
    /// The file is whole but says something that cannot be.
    #[error("not a checkpoint that this reader understands: {0}")]
    Malformed(String),
    /// As another variant, and which tensor it is about.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// The tensor, by its name in the file.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Box<ImportError>,
    },
    /// No such system.
    #[error("no system {0:?} to import from: it is one of {known}", known = names())]
    System(String),
    /// Names or shapes are not those of the system.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model refuses the config that the shapes tell.
    #[error(transparent)]
    Model(#[from] video_core::Error),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl ImportError {
    fn of_tensor(self, name: &str) -> Self {
        Self::Tensor { name: name.into(), source: Box::new(self) }
    }
}

/// A model of this workspace, by its config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Model {
    /// The MAGVIT-v2 video tokenizer.
    Magvit2(Magvit2Config),
    /// The Open-MAGVIT2 tokenizer of images.
    #[serde(rename = "open_magvit2")]
    OpenMagvit2(OpenMagvit2Config),
    /// A Cosmos tokenizer.
    Cosmos(CosmosConfig),
    /// VAR's tokenizer of images.
    VarVqvae(VqvaeConfig),
    /// VAR's transformer.
    Var(VarConfig),
    /// VideoGPT's VQ-VAE.
    VideoGptVqVae(VqVaeConfig),
    /// VideoGPT's prior.
    VideoGpt(GptConfig),
    /// The tokenizer of MaskGIT or MAGVIT.
    Vqgan(VqganConfig),
    /// MaskGIT's transformer.
    Maskgit(MaskGitConfig),
    /// open-muse's first transformer.
    OpenMuse(OpenMuseConfig),
    /// open-muse's U-ViT.
    OpenMuseUvit(UVitConfig),
}

impl Model {
    /// Builds the model under `path`.
    fn build(&self, path: &nn::Path) -> video_core::Result<()> {
        match self {
            Self::Magvit2(config) => Magvit2::new(path, config).map(drop),
            Self::OpenMagvit2(config) => OpenMagvit2::new(path, config).map(drop),
            Self::Cosmos(config) => CosmosTokenizer::new(path, config).map(drop),
            Self::VarVqvae(config) => Vqvae::new(path, config).map(drop),
            Self::Var(config) => Var::new(path, config).map(drop),
            Self::VideoGptVqVae(config) => VqVae::new(path, config).map(drop),
            Self::VideoGpt(config) => VideoGpt::new(path, config).map(drop),
            Self::Vqgan(config) => Vqgan::new(path, config).map(drop),
            Self::Maskgit(config) => MaskGit::new(path, config).map(drop),
            Self::OpenMuse(config) => OpenMuseTransformer::new(path, config).map(drop),
            Self::OpenMuseUvit(config) => OpenMuseUVit::new(path, config).map(drop),
        }
    }
}

/// A checkpoint in our terms.
#[derive(Debug)]
pub struct Imported {
    /// The model.
    pub model: Model,
    /// All of its tensors and nothing else, by the names of its variables, floating-point ones as float32.
    pub tensors: Weights,
    /// Which tensors of the file were taken, in words: some files hold a model twice, as it was and as a moving average.
    pub taken: String,
}

impl Imported {
    /// Of a file that holds the model once.
    fn of(model: Model, tensors: Weights) -> Self {
        Self { model, tensors, taken: "the weights".into() }
    }
}

/// Turns a system's map into the tensors of a checkpoint, given the `config.json` beside it if there is one.
type Import = fn(&Weights, Option<&str>) -> Result<Imported, ImportError>;

/// A family of published checkpoints.
#[derive(Debug)]
pub struct System {
    /// What [`import`] calls it.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    import: Import,
}

/// The systems whose checkpoints can be imported.
pub const SYSTEMS: &[System] = &[
    System {
        name: "o2-magvit2",
        about: "O2-MAGVIT2 video tokenizer (cofe-ai), 4×16×16, 2^18 codes",
        import: |tensors, _| o2::import(tensors),
    },
    System {
        name: "open-magvit2",
        about: "Open-MAGVIT2 image tokenizer (TencentARC), 128 or 256 pixels to 16×16, 2^18 codes",
        import: |tensors, _| open::import(tensors, OpenMagvit2Config::large_256()),
    },
    System {
        name: "1x-magvit2",
        about: "1X's fork of Open-MAGVIT2 (1xgpt), 256 pixels to 16×16, 2^18 codes",
        import: |tensors, _| open::import(tensors, OpenMagvit2Config::one_x()),
    },
    System {
        name: "cosmos-cv4x8x8",
        about: "Cosmos continuous video tokenizer (NVIDIA), 4×8×8: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::cv4x8x8()),
    },
    System {
        name: "cosmos-cv8x8x8",
        about: "Cosmos continuous video tokenizer (NVIDIA), 8×8×8: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::cv8x8x8()),
    },
    System {
        name: "cosmos-cv8x16x16",
        about: "Cosmos continuous video tokenizer (NVIDIA), 8×16×16: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::cv8x16x16()),
    },
    System {
        name: "cosmos-dv4x8x8",
        about: "Cosmos discrete video tokenizer (NVIDIA), 4×8×8, 64,000 codes: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::dv4x8x8()),
    },
    System {
        name: "cosmos-dv8x8x8",
        about: "Cosmos discrete video tokenizer (NVIDIA), 8×8×8, 64,000 codes: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::dv8x8x8()),
    },
    System {
        name: "cosmos-dv8x16x16",
        about: "Cosmos discrete video tokenizer (NVIDIA), 8×16×16, 64,000 codes: autoencoder.jit",
        import: |tensors, _| cosmos::import(tensors, CosmosConfig::dv8x16x16()),
    },
    System {
        name: "var-vqvae-256",
        about: "VAR's tokenizer of images of 256 pixels a side (FoundationVision): vae_ch160v4096z32.pth",
        import: |tensors, _| var::import_vqvae(tensors, &VarConfig::var_d16().patch_nums),
    },
    System {
        name: "var-vqvae-512",
        about: "the same file for images of 512 pixels a side",
        import: |tensors, _| var::import_vqvae(tensors, &VarConfig::var_d36().patch_nums),
    },
    System {
        name: "var-vqvae-1024",
        about: "the same file for images of 1024 pixels a side",
        import: |tensors, _| var::import_vqvae(tensors, &var::PATCH_NUMS_1024),
    },
    System {
        name: "var",
        about: "VAR's transformer (FoundationVision), any size: var_d16.pth to var_d36.pth",
        import: |tensors, _| var::import_transformer(tensors),
    },
    System {
        name: "videogpt-stride4x2x2",
        about: "VideoGPT's VQ-VAE, 4×2×2 (BAIR), also out of a prior's checkpoint",
        import: |tensors, _| video_gpt::import_vqvae(tensors, Some([4, 2, 2])),
    },
    System {
        name: "videogpt-stride4x4x4",
        about: "VideoGPT's VQ-VAE, 4×4×4 (UCF-101, Kinetics), also out of a prior's checkpoint",
        import: |tensors, _| video_gpt::import_vqvae(tensors, Some([4, 4, 4])),
    },
    System {
        name: "videogpt-stride2x4x4",
        about: "VideoGPT's VQ-VAE, 2×4×4 (Kinetics), also out of a prior's checkpoint",
        import: |tensors, _| video_gpt::import_vqvae(tensors, Some([2, 4, 4])),
    },
    System {
        name: "videogpt-vqvae",
        about: "VideoGPT's VQ-VAE of any strides, out of its own checkpoint, whose arguments tell them",
        import: |tensors, _| video_gpt::import_vqvae(tensors, None),
    },
    System {
        name: "videogpt-gpt",
        about: "VideoGPT's prior over those tokens",
        import: |tensors, _| video_gpt::import_gpt(tensors),
    },
    System {
        name: "maskgit-vqgan",
        about: "MaskGIT's tokenizer of images (google-research), 16×16, 1024 codes: flax",
        import: |tensors, _| maskgit::import_vqgan(tensors),
    },
    System {
        name: "maskgit",
        about: "MaskGIT's transformer (google-research) of 256 or 512 pixels, 1000 classes: flax",
        import: |tensors, _| maskgit::import_transformer(tensors),
    },
    System {
        name: "magvit-vqgan",
        about: "MAGVIT's 3D tokenizer (google-research), 4×8×8, 1024 codes: flax",
        import: |tensors, _| maskgit::import_vqgan(tensors),
    },
    System {
        name: "open-muse-vqgan",
        about: "the PyTorch port of MaskGIT's tokenizer (huggingface/open-muse)",
        import: |tensors, _| maskgit::import_port(tensors),
    },
    System {
        name: "open-muse",
        about: "open-muse's first transformer (huggingface), with its config.json",
        import: open_muse::import,
    },
    System {
        name: "open-muse-uvit",
        about: "open-muse's U-ViT (huggingface), with its config.json",
        import: open_muse::import_uvit,
    },
];

fn names() -> String {
    SYSTEMS.iter().map(|system| system.name).collect::<Vec<_>>().join(", ")
}

/// The tensors of a published checkpoint as those of our model, whose config is read off their shapes where they tell it.
///
/// Parts that a tokenizer does not need (discriminators, losses, optimizers) are left out. Ids have the first channel as the
/// least significant digit, but for 1X's tokenizer, whose order (the most significant one first) that of its data sets is.
///
/// # Errors
/// No such system, or the first tensor of encoder, decoder or bottleneck that is missing, unexpected or of another shape.
pub fn import(system: &str, tensors: &Weights) -> Result<Imported, ImportError> {
    import_with(system, tensors, None)
}

/// [`import`], given the text of the `config.json` that was published beside the weights, if there is one. open-muse's
/// transformers need it.
///
/// # Errors
/// As [`import`]; a config that is missing or has a key of another type.
pub fn import_with(system: &str, tensors: &Weights, config: Option<&str>) -> Result<Imported, ImportError> {
    let system = SYSTEMS
        .iter()
        .find(|known| known.name == system)
        .ok_or_else(|| ImportError::System(system.to_string()))?;
    let imported = (system.import)(tensors, config)?;
    let variables = nn::VarStore::new(Device::Cpu);
    imported.model.build(&variables.root())?;
    load_into(&variables, &imported.tensors)?;
    Ok(imported)
}
