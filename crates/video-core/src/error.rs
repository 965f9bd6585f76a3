//! One error type for the libraries: each variant says what was wrong, with which value, and what was expected.

use std::fmt::Debug;

/// What the libraries of the workspace return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something from outside (a config, a shape, a file) that a component cannot work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a config has a value that the component refuses.
    #[error("{field} = {value}: expected {expected}")]
    Config {
        /// The field, dotted as in the TOML file where that is known (`quantizer.bits`).
        field: String,
        /// The value as it was given.
        value: String,
        /// What would have been accepted, and how to mend it.
        expected: String,
    },
    /// A tensor has a shape that the component refuses.
    #[error("{what} has shape {actual:?}: expected {expected}")]
    Shape {
        /// Which tensor.
        what: String,
        /// Its shape.
        actual: Vec<i64>,
        /// What would have been accepted, and how to mend it.
        expected: String,
    },
    /// A value inside a tensor, or a call out of order, that the component refuses.
    #[error("{what}: {problem}; expected {expected}")]
    Input {
        /// Which input.
        what: String,
        /// What is wrong with it.
        problem: String,
        /// What would have been accepted, and how to mend it.
        expected: String,
    },
    /// The component cannot do this at all, in any configuration or in the present one.
    #[error("{component} cannot {action}: {because}")]
    Unsupported {
        /// Which component.
        component: String,
        /// What was asked of it.
        action: String,
        /// Why not, and what can.
        because: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The shim over libtorch refused an operation.
    #[error(transparent)]
    TorchExt(#[from] torch_ext::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A config field's error.
    pub fn config(field: impl Into<String>, value: impl Debug, expected: impl Into<String>) -> Self {
        Self::Config { field: field.into(), value: format!("{value:?}"), expected: expected.into() }
    }

    /// A tensor shape's error.
    pub fn shape(what: impl Into<String>, actual: &[i64], expected: impl Into<String>) -> Self {
        Self::Shape { what: what.into(), actual: actual.to_vec(), expected: expected.into() }
    }

    /// An input value's error.
    pub fn input(what: impl Into<String>, problem: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Input { what: what.into(), problem: problem.into(), expected: expected.into() }
    }

    /// What a component cannot do.
    pub fn unsupported(
        component: impl Into<String>,
        action: impl Into<String>,
        because: impl Into<String>,
    ) -> Self {
        Self::Unsupported { component: component.into(), action: action.into(), because: because.into() }
    }

    /// A file's error.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }

    /// The same error with a config's name in front of its field: `bits` becomes `quantizer.bits`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        match self {
            Self::Config { field, value, expected } => {
                Self::Config { field: format!("{parent}.{field}"), value, expected }
            }
            other => other,
        }
    }
}
