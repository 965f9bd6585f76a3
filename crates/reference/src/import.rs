//! Published checkpoints: their files, and the maps from their names and layouts to ours.

mod checkpoint;
pub(crate) mod cosmos;
mod pickle;

use tch::TchError;

pub use checkpoint::read_checkpoint;

use crate::weights::WeightsError;

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

/// The systems whose checkpoints can be imported, each with a line on what it is.
pub const SYSTEMS: &[(&str, &str)] =
    &[("cosmos", "NVIDIA Cosmos tokenizers, continuous (CV) and discrete (DV): the autoencoder.jit of each")];

fn names() -> String {
    SYSTEMS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
