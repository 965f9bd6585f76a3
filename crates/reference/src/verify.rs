//! Running folders of golden cases.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::case::{Case, Expectation};
use crate::drivers;

/// One output of one case, compared.
#[derive(Clone, Debug)]
pub struct Check {
    /// The key in the case (`out/y`).
    pub output: String,
    /// Largest |ours − theirs|; NaN where they cannot be compared.
    pub max_abs_error: f64,
    /// Largest |ours − theirs| / |theirs| over elements that are not zero; NaN where they cannot be compared.
    pub max_rel_error: f64,
    /// Whether every element is within tolerance.
    pub pass: bool,
    /// What is wrong when they cannot be compared (missing output, other shape).
    pub problem: Option<String>,
}

impl Check {
    pub(crate) fn new(
        key: &str,
        expectation: &Expectation,
        theirs: Option<&Tensor>,
        ours: Option<&Tensor>,
    ) -> Self {
        let incomparable = |problem: String| Self {
            output: key.into(),
            max_abs_error: f64::NAN,
            max_rel_error: f64::NAN,
            pass: false,
            problem: Some(problem),
        };
        let Some(theirs) = theirs else {
            return incomparable("the case lists it but holds no such tensor".into());
        };
        let Some(ours) = ours else { return incomparable("the driver gives no such output".into()) };
        if ours.size() != theirs.size() && !(ours.numel() == 1 && theirs.numel() == 1) {
            return incomparable(format!("shape {:?}, the reference has {:?}", ours.size(), theirs.size()));
        }
        let ours = ours.to_kind(Kind::Double).contiguous().view(-1);
        let theirs = theirs.to_kind(Kind::Double).contiguous().view(-1);
        if ours.numel() == 0 {
            return Self {
                output: key.into(),
                max_abs_error: 0.0,
                max_rel_error: 0.0,
                pass: true,
                problem: None,
            };
        }
        // Equal infinities have no distance; NaN is equal to nothing, ours or theirs.
        let error = (&ours - &theirs).abs().where_scalarother(&ours.eq_tensor(&theirs).logical_not(), 0.0);
        let allowed = theirs.abs() * expectation.rtol + expectation.atol;
        let pass = bool::try_from(error.le_tensor(&allowed).all()).unwrap_or(false);
        let relative = (&error / theirs.abs()).where_scalarother(&theirs.ne(0.0), 0.0);
        Self {
            output: key.into(),
            max_abs_error: error.max().double_value(&[]),
            max_rel_error: relative.max().double_value(&[]),
            pass,
            problem: None,
        }
    }
}

/// One case, run.
#[derive(Debug)]
pub struct CaseReport {
    /// The entry, or the file where it could not even be read.
    pub entry: String,
    /// The case's name.
    pub case: String,
    /// Its outputs compared, or why it could not be run.
    pub result: Result<Vec<Check>, String>,
}

impl CaseReport {
    /// Whether every output is within tolerance.
    pub fn pass(&self) -> bool {
        self.result.as_ref().is_ok_and(|checks| checks.iter().all(|check| check.pass))
    }
}

/// All case files at or below a path, sorted.
///
/// # Errors
/// The path cannot be read, or holds no case: never a silent success.
pub fn find_cases(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![path.to_path_buf()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        } else if !path.exists() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("{} does not exist", path.display()),
            ));
        }
    }
    if found.is_empty() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("{} holds no golden case (a .json beside a .safetensors)", path.display()),
        ));
    }
    found.sort();
    Ok(found)
}

/// Runs one case file. Whatever goes wrong is in the report: a panic of libtorch too.
pub fn run_case(json: &Path) -> CaseReport {
    let case = match Case::load(json) {
        Ok(case) => case,
        Err(error) => {
            let name = json.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return CaseReport { entry: "(unreadable)".into(), case: name, result: Err(error.to_string()) };
        }
    };
    let result = match drivers::find(&case.entry) {
        None => Err(format!("no driver for the entry {}", case.entry)),
        Some(driver) => match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| driver(&case))) {
            Ok(Ok(outputs)) => Ok(case
                .outputs
                .iter()
                .map(|(key, expectation)| case.compare(key, expectation, outputs.get(key)))
                .collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(format!(
                "panicked: {}",
                panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message")
            )),
        },
    };
    CaseReport { entry: case.entry, case: case.name, result }
}

/// Runs every case at or below a path, calling `progress` after each.
///
/// # Errors
/// The path cannot be read or holds no case.
pub fn verify(
    path: &Path,
    mut progress: impl FnMut(usize, usize, &CaseReport),
) -> std::io::Result<Vec<CaseReport>> {
    let files = find_cases(path)?;
    let total = files.len();
    let mut reports = Vec::with_capacity(total);
    for (done, file) in files.iter().enumerate() {
        let report = run_case(file);
        progress(done + 1, total, &report);
        reports.push(report);
    }
    Ok(reports)
}
