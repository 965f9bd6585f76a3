//! What can stop a training run, each as one line that says what and how to mend it.

use std::path::PathBuf;

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can stop a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A config, a shape or an input that a component refuses, or libtorch's own error.
    #[error(transparent)]
    Core(#[from] video_core::Error),
    /// A loss or a gradient is not a number any more.
    #[error(
        "{scalar} is {value} at step {step} (batch {position}); {}",
        match saved {
            Some(path) => format!("the state before it is in {}; lower the learning rate or clip gradients", path.display()),
            None => "no state was saved before it; lower the learning rate or clip gradients".into(),
        }
    )]
    NotFinite {
        /// The step, counted from 0.
        step: u64,
        /// The offending scalar, `part.name`.
        scalar: String,
        /// Its value.
        value: f64,
        /// The position of the step's first batch.
        position: u64,
        /// The last checkpoint with sound weights: on the CPU that of just before the step.
        saved: Option<PathBuf>,
    },
    /// Another process trains in the folder.
    #[error(
        "{} is in use by another run{}: wait for it, stop it, or name another folder",
        folder.display(),
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The run's folder.
        folder: PathBuf,
        /// The other process, where it is known.
        pid: Option<u32>,
    },
    /// A file or folder that should be there is not.
    #[error("{} is missing: {what}", path.display())]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What it should have been.
        what: String,
    },
    /// A file that was cut short or otherwise damaged.
    #[error("{} is cut short or damaged ({problem}): delete it and use an older one", path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
        /// What the reader stumbled over.
        problem: String,
    },
    /// Saved tensors that are not those of the model.
    #[error(
        "{} does not fit the model: tensor {tensor} {} in the file and {} in the model; use the config it was made with",
        path.display(), shape_words(saved), shape_words(model)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The first tensor, by name, that differs.
        tensor: String,
        /// Its shape in the file, where it is there.
        saved: Option<Vec<i64>>,
        /// Its shape in the model, where it is there.
        model: Option<Vec<i64>>,
    },
    /// A run that is resumed under another config.
    #[error(
        "{} was written with {field} = {saved}, now it is {now}: restore the value, or train in another folder",
        path.display()
    )]
    ConfigChanged {
        /// The checkpoint.
        path: PathBuf,
        /// The first field that differs, dotted.
        field: String,
        /// Its value in the checkpoint.
        saved: String,
        /// Its value now.
        now: String,
    },
    /// A file could not be written. What was there before is untouched, nothing is half-written.
    #[error("cannot write {}: {source}; free space or choose a writable folder, then start again", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Core(error.into())
    }
}

impl From<torch_ext::Error> for Error {
    fn from(error: torch_ext::Error) -> Self {
        Self::Core(error.into())
    }
}

fn shape_words(shape: &Option<Vec<i64>>) -> String {
    shape.as_ref().map_or_else(|| "is absent".into(), |shape| format!("has shape {shape:?}"))
}
