//! Checkpoints: `checkpoints/step-00001000/{tensors.safetensors, state.json}` and a file `checkpoints/latest` that names
//! the last complete one. A folder appears by a rename, so a killed run never leaves half a checkpoint in a good name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;

use crate::files::{cannot_write, is_temporary, make_folder, sync, write_whole, write_whole_folder};
use crate::weights::{damaged, load_weights, read, write_tensors};
use crate::{Error, Result, TrainConfig};

pub(crate) const FORMAT: u32 = 1;
const TENSORS: &str = "tensors.safetensors";
const STATE: &str = "state.json";

/// Everything of a run that is not a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub format: u32,
    /// Steps done.
    pub step: u64,
    /// Batches used.
    pub position: u64,
    pub rng: RngPolicy,
    pub train: TrainConfig,
    /// What the run was described as: model and data.
    pub model: Value,
    /// EMA updates of each part.
    pub ema_updates: BTreeMap<String, u64>,
    /// The last evaluation. `None` where a value was not finite, which JSON cannot say.
    pub evaluation: Vec<(String, Option<f64>)>,
}

/// Where a step's random draws come from, which is all there is to save of the generators.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RngPolicy {
    /// libtorch is seeded from (seed, stream, step) before each step and each evaluation.
    SeededPerStep,
}

/// Which tensors of a part: the first word of their names in the file is the part, the second this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Group {
    Variables,
    Ema,
    ExpAvg,
    ExpAvgSq,
    Step,
    Momentum,
}

impl Group {
    pub const ALL: [Self; 6] =
        [Self::Variables, Self::Ema, Self::ExpAvg, Self::ExpAvgSq, Self::Step, Self::Momentum];

    fn word(self) -> &'static str {
        match self {
            Self::Variables => "variables",
            Self::Ema => "ema",
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::Step => "step",
            Self::Momentum => "momentum",
        }
    }

    /// `generator/exp_avg/` before the variable's name.
    pub fn prefix(self, part: &str) -> String {
        format!("{part}/{}/", self.word())
    }
}

/// A checkpoint read from disk, on the CPU.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    pub(crate) state: State,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// The latest complete checkpoint of a run's folder, `None` if there is none.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn latest(run: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let folder = run.as_ref().join("checkpoints");
        if let Ok(name) = fs::read_to_string(folder.join("latest")) {
            let named = folder.join(name.trim());
            if !name.trim().is_empty() && named.is_dir() {
                return Ok(Some(named));
            }
        }
        // Killed between the first checkpoint's rename and its pointer.
        Ok(step_folders(&folder)?.pop())
    }

    /// Reads a checkpoint's folder.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::CutShort`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let state_path = path.join(STATE);
        let text = read(&state_path, "a checkpoint's state")?;
        let state: State = serde_json::from_slice(&text).map_err(|error| damaged(&state_path, error))?;
        if state.format != FORMAT {
            let problem = format!("its format is {}, this version reads {FORMAT}", state.format);
            return Err(damaged(&state_path, problem));
        }
        let tensors = load_weights(path.join(TENSORS))?.tensors;
        Ok(Self { path: path.into(), state, tensors })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// What [`Trainer::describe`](crate::Trainer::describe) was given.
    pub fn model_config(&self) -> &Value {
        &self.state.model
    }

    /// One part's variables by name; with `ema`, the averages in place of the trained ones where there are any.
    ///
    /// # Errors
    /// [`Error::Missing`] if the checkpoint has no such part.
    pub fn weights(&self, part: &str, ema: bool) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = self.group(part, Group::Variables);
        if weights.is_empty() {
            let path = self.path.join(TENSORS);
            return Err(Error::Missing { path, what: format!("variables of a part named {part}") });
        }
        if ema {
            weights.extend(self.group(part, Group::Ema));
        }
        Ok(weights)
    }

    /// The tensors of one group of a part, by the names of the variables.
    pub(crate) fn group(&self, part: &str, group: Group) -> BTreeMap<String, Tensor> {
        let prefix = group.prefix(part);
        self.tensors
            .range(prefix.clone()..)
            .map_while(|(name, tensor)| {
                name.strip_prefix(&prefix).map(|name| (name.to_string(), tensor.shallow_clone()))
            })
            .collect()
    }

    /// Refuses to go on under another config.
    pub(crate) fn check_configs(&self, train: &TrainConfig, model: &Value) -> Result<()> {
        let as_json = |config: &TrainConfig| {
            let mut value = serde_json::to_value(config).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, _| !TrainConfig::FREE_TO_CHANGE.contains(&name.as_str()));
            }
            value
        };
        let difference = first_difference("train", &as_json(&self.state.train), &as_json(train))
            .or_else(|| first_difference("", &self.state.model, model));
        difference.map_or(Ok(()), |(field, saved, now)| {
            Err(Error::ConfigChanged { path: self.path.clone(), field, saved, now })
        })
    }
}

/// Writes `checkpoints/step-N`, points `latest` at it and removes all but the last `keep`.
pub(crate) fn save(
    run: &Path,
    state: &State,
    tensors: &BTreeMap<String, Tensor>,
    keep: usize,
) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    make_folder(&folder)?;
    let name = format!("step-{:08}", state.step);
    let path = folder.join(&name);
    write_whole_folder(&path, |temporary| {
        let file = temporary.join(TENSORS);
        write_tensors(&file, tensors, None)?;
        sync(&file)?;
        let file = temporary.join(STATE);
        let text = serde_json::to_string_pretty(state).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&file, text + "\n")).map_err(cannot_write(&file))?;
        sync(&file)
    })?;
    let latest = folder.join("latest");
    write_whole(&latest, |temporary| {
        fs::write(temporary, format!("{name}\n")).map_err(cannot_write(temporary))
    })?;
    remove_old(&folder, keep)?;
    Ok(path)
}

/// Removes all but the last checkpoints, and what killed processes left.
fn remove_old(folder: &Path, keep: usize) -> Result<()> {
    let mut old = step_folders(folder)?;
    old.truncate(old.len().saturating_sub(keep));
    for path in old {
        fs::remove_dir_all(&path).map_err(cannot_write(&path))?;
    }
    for entry in fs::read_dir(folder).map_err(cannot_write(folder))?.flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(cannot_write(&path))?;
        }
    }
    Ok(())
}

/// The complete checkpoints in order of their steps.
fn step_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(video_core::Error::io(folder, error).into()),
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The first place where two JSON values differ, below a name: its path and both values.
pub fn first_difference(field: &str, saved: &Value, now: &Value) -> Option<(String, String, String)> {
    match (saved, now) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let inner = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                let at = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                first_difference(&inner, &at(a), &at(b))
            })
        }
        (a, b) if a == b => None,
        (a, b) => Some((field.into(), a.to_string(), b.to_string())),
    }
}
