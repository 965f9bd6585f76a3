//! A golden case as it lies on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use crate::weights::{self, Weights};

/// Why a case could not be run. A wrong number is no error, but a failed [`Check`](crate::verify::Check).
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A file is missing, cut short or not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The case's config has a key or a value that the driver does not support.
    #[error("config not supported: {0}")]
    Config(String),
    /// The case lacks a tensor that the driver reads.
    #[error("the case has no tensor {0}")]
    Missing(String),
    /// The component under test refused.
    #[error(transparent)]
    Component(#[from] video_core::Error),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

/// How near an output must come: |ours − theirs| ≤ atol + rtol·|theirs|, elementwise.
#[derive(Clone, Debug, Deserialize)]
pub struct Expectation {
    /// What the output is, in words.
    #[serde(default)]
    pub meaning: String,
    /// Relative tolerance.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
}

#[derive(Deserialize)]
struct Header {
    system: String,
    entry: String,
    config: serde_json::Value,
    outputs: BTreeMap<String, Expectation>,
    /// Tolerances measured for single gradients, by parameter; in some systems a remark in words.
    #[serde(default)]
    gradients: serde_json::Value,
    #[serde(default)]
    notes: String,
}

/// One golden case.
#[derive(Debug)]
pub struct Case {
    /// File name without its extension.
    pub name: String,
    /// The folder's system (`quantizers`, `magvit2`, ...).
    pub system: String,
    /// The dotted name of what is run.
    pub entry: String,
    /// Everything that varies between the cases of an entry.
    pub config: serde_json::Value,
    /// The outputs to compare and their tolerances.
    pub outputs: BTreeMap<String, Expectation>,
    /// The tolerances that the case states for single gradients beside those in `outputs`, by the key there
    /// (`grad/conv.weight`).
    pub gradients: BTreeMap<String, Expectation>,
    /// The reference's remarks (where injected noise enters, traps).
    pub notes: String,
    tensors: BTreeMap<String, Tensor>,
}

impl Case {
    /// Reads `<case>.json` and the `.safetensors` beside it.
    ///
    /// # Errors
    /// Either file is missing, cut short or malformed.
    pub fn load(json: &Path) -> Result<Self, CaseError> {
        let file_error =
            |path: &Path, problem: String| CaseError::File { path: path.display().to_string(), problem };
        let text = std::fs::read_to_string(json).map_err(|e| file_error(json, e.to_string()))?;
        let header: Header = serde_json::from_str(&text).map_err(|e| file_error(json, e.to_string()))?;
        let path: PathBuf = json.with_extension("safetensors");
        let tensors = weights::read_safetensors(&path).map_err(|e| file_error(&path, e.to_string()))?;
        let mut gradients = BTreeMap::new();
        // Some systems say one thing of all gradients here, which stand in the outputs each with its tolerance.
        let stated = header.gradients.as_object().into_iter().flatten();
        for (name, stated) in stated.filter(|(_, stated)| stated.is_object()) {
            let stated = Expectation::deserialize(stated)
                .map_err(|e| file_error(json, format!("the tolerance of the gradient {name}: {e}")))?;
            gradients.insert(format!("grad/{name}"), stated);
        }
        Ok(Self {
            name: json.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            system: header.system,
            entry: header.entry,
            config: header.config,
            outputs: header.outputs,
            gradients,
            notes: header.notes,
            tensors,
        })
    }

    /// The config as a driver's own struct. Give it `deny_unknown_fields`: a key that is not understood must fail.
    ///
    /// # Errors
    /// Names the unknown or malformed key.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, CaseError> {
        serde_json::from_value(self.config.clone()).map_err(|e| CaseError::Config(e.to_string()))
    }

    /// The tensor under a full key (`out/ids`).
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, key: &str) -> Result<Tensor, CaseError> {
        self.tensors.get(key).map(Tensor::shallow_clone).ok_or_else(|| CaseError::Missing(key.into()))
    }

    /// `in/<name>`.
    ///
    /// # Errors
    /// There is none.
    pub fn input(&self, name: &str) -> Result<Tensor, CaseError> {
        self.tensor(&format!("in/{name}"))
    }

    /// `in/<name>` as a copy that gathers gradients.
    ///
    /// # Errors
    /// There is none.
    pub fn input_with_grad(&self, name: &str) -> Result<Tensor, CaseError> {
        Ok(self.input(name)?.copy().set_requires_grad(true))
    }

    /// `in/<name>` if the case has it.
    pub fn optional_input(&self, name: &str) -> Option<Tensor> {
        self.input(name).ok()
    }

    /// All `param/<reference name>` tensors, without the prefix: what a checkpoint of the reference would hold.
    pub fn weights(&self) -> Weights {
        self.tensors
            .iter()
            .filter_map(|(key, tensor)| {
                Some((key.strip_prefix("param/")?.to_string(), tensor.shallow_clone()))
            })
            .collect()
    }

    /// The names behind `grad/` that the case lists.
    pub fn gradient_names(&self) -> Vec<String> {
        self.outputs.keys().filter_map(|key| Some(key.strip_prefix("grad/")?.to_string())).collect()
    }

    /// Compares one output with the reference's: within the tolerance of `outputs` or, a gradient that misses it, within
    /// its own where the case states one.
    pub fn compare(
        &self,
        key: &str,
        expectation: &Expectation,
        ours: Option<&Tensor>,
    ) -> crate::verify::Check {
        crate::verify::Check::new(key, expectation, self.gradients.get(key), self.tensors.get(key), ours)
    }
}

/// What a driver returns: tensors under the case's full keys (`out/y`, `grad/conv.weight`).
#[derive(Debug, Default)]
pub struct Outputs(BTreeMap<String, Tensor>);

impl Outputs {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `out/<name>`.
    pub fn out(&mut self, name: impl AsRef<str>, tensor: &Tensor) -> &mut Self {
        self.0.insert(format!("out/{}", name.as_ref()), tensor.detach());
        self
    }

    /// Adds a number as `out/<name>`, a 0-d tensor.
    pub fn number(&mut self, name: impl AsRef<str>, value: f64) -> &mut Self {
        self.out(name, &Tensor::from(value).to_kind(Kind::Double))
    }

    /// Adds `grad/<name>`.
    pub fn grad(&mut self, name: impl AsRef<str>, tensor: &Tensor) -> &mut Self {
        self.0.insert(format!("grad/{}", name.as_ref()), tensor.detach());
        self
    }

    /// The tensor under a full key.
    pub fn get(&self, key: &str) -> Option<&Tensor> {
        self.0.get(key)
    }
}
