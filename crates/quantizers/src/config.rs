//! Any quantizer, as a word in a config file.

use serde::{Deserialize, Serialize};
use tch::nn;
use video_core::Result;

use crate::{Lfq, LfqConfig, Quantizer};

/// Which quantizer, and its configuration: `{ kind = "lfq", bits = 10 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum QuantizerConfig {
    /// Lookup-free quantization; `spherical = true` is BSQ.
    Lfq(LfqConfig),
}

impl QuantizerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Lfq(config) => config.validate(),
        }
    }

    /// The feature width at which this quantizer needs no projection; `None` where any width will do.
    pub fn dim(&self) -> Option<i64> {
        match self {
            Self::Lfq(config) => Some(config.code_dim()),
        }
    }

    /// Builds the quantizer for features of width `dim`, its parameters under `path`.
    ///
    /// # Errors
    /// A field is out of range, or the quantizer does not take features of this width.
    pub fn build(&self, path: &nn::Path, dim: i64) -> Result<Box<dyn Quantizer>> {
        Ok(match self {
            Self::Lfq(config) => Box::new(Lfq::new(path, dim, config.clone())?),
        })
    }
}
