//! `metrics.jsonl`: one JSON object a line.
//!
//! A training line is `{"step", "split": "train", "scalars": {"part.name": x}, "learning_rate": {"part": x},
//! "timing": {"seconds", "steps_per_second", "waiting_share"}}`, an evaluation's `{"step", "split": "eval", "scalars",
//! "timing": {"seconds"}}`. `step` counts the steps done. All but `timing` is the same in every repetition of a run. A
//! value that is no finite number is null.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::files::{cannot_write, write_whole};

/// The open file.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens a run's file for more lines after `step` steps. Later lines, and one that a killed process left
    /// unfinished, are cut: the run takes those steps again.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|error| video_core::Error::io(&path, error))?;
            let kept: String = text.split_inclusive('\n').filter(|line| belongs_before(line, step)).collect();
            if kept != text {
                write_whole(&path, |temporary| fs::write(temporary, &kept).map_err(cannot_write(temporary)))?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(cannot_write(&path))?;
        Ok(Self { path, file })
    }

    /// Adds a line.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        // One call, so that a kill leaves at most the last line unfinished.
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(cannot_write(&self.path))
    }

    /// Waits until all lines are on the disk, so that none is missing before a checkpoint.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(cannot_write(&self.path))
    }
}

fn belongs_before(line: &str, step: u64) -> bool {
    let parsed: Option<Value> = line.strip_suffix('\n').and_then(|line| serde_json::from_str(line).ok());
    parsed.and_then(|line| line["step"].as_u64()).is_some_and(|of_line| of_line <= step)
}
