//! What can go wrong with media, each as one line that says how to mend it.

use std::path::{Path, PathBuf};

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A file, a config or a program that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such file.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// ffmpeg is not installed.
    #[error(
        "ffmpeg was not found on PATH: run ./bootstrap.sh once, install ffmpeg, or set VIREO_FFMPEG to its path"
    )]
    NoFfmpeg,
    /// ffmpeg finds no video in the file, or breaks off.
    #[error("{path}: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as far as ffmpeg says.
        problem: String,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {path}: {problem}")]
    Unwritable {
        /// The target.
        path: PathBuf,
        /// The operating system's or ffmpeg's answer.
        problem: String,
    },
    /// A field of the data config has a value that is refused.
    #[error("data.{field} = {value}: expected {expected}")]
    Config {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// Every file of the data set is unreadable.
    #[error("none of the {count} files of {source_name} can be read; the first: {first}")]
    AllUnreadable {
        /// How many there are.
        count: usize,
        /// The data set.
        source_name: String,
        /// The first file's error.
        first: String,
    },
    /// A tensor has a shape that cannot be written or padded.
    #[error("a tensor of shape {actual:?}: expected {expected}")]
    Shape {
        /// Its shape.
        actual: Vec<i64>,
        /// What would have been accepted.
        expected: String,
    },
}

impl Error {
    pub(crate) fn config(field: &str, value: impl ToString, expected: &str) -> Self {
        Self::Config { field: field.into(), value: value.to_string(), expected: expected.into() }
    }

    pub(crate) fn unreadable(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unreadable { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn unwritable(path: &Path, problem: impl ToString) -> Self {
        Self::Unwritable { path: path.into(), problem: problem.to_string() }
    }
}
