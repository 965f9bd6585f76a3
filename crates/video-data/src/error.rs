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
    #[error("ffmpeg was not found: run ./bootstrap.sh once, install ffmpeg, or set VIREO_FFMPEG to its path")]
    NoFfmpeg,
    /// ffmpeg finds no video in the file, or breaks off; or it is no image.
    #[error("{path}: {problem}")]
    Unreadable {
        /// The file; of a shard's member, the shard and behind it the member.
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
    /// None of the files or clips that were tried can be read.
    #[error("none of {} {what} can be read: {}", failures.len(), list(failures))]
    AllUnreadable {
        /// Files or clips, and of which data set.
        what: String,
        /// Each of them with its reason.
        failures: Vec<Failure>,
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

/// A file or clip that was left out of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The file; of a shard's member, the shard and behind it the member.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The first few, in one line.
fn list(failures: &[Failure]) -> String {
    const SHOWN: usize = 8;
    let mut text = failures.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if failures.len() > SHOWN {
        text += &format!("; and {} more", failures.len() - SHOWN);
    }
    text
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl Failure {
    pub(crate) fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { name: path.display().to_string(), reason: reason.into() }
    }

    /// An error with the path apart that its text begins with.
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::Unreadable { path, problem } => Self::new(path, problem),
            Error::Missing(path) => Self::new(path, "it does not exist"),
            other => Self::new(Path::new("clip"), other.to_string()),
        }
    }
}

impl Error {
    /// Whether one file is to blame, so that a data set can do without it.
    pub(crate) fn is_of_one_file(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Unreadable { .. })
    }

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
