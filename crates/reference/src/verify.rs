//! Running folders of golden cases.

use std::collections::BTreeMap;
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
    /// Of a gradient that passes by its own tolerance alone: by how much it exceeds the general one of `outputs`, the largest
    /// |ours − theirs| − atol − rtol·|theirs|.
    pub general_missed_by: Option<f64>,
    /// What is wrong when they cannot be compared (missing output, other shape).
    pub problem: Option<String>,
}

impl Check {
    /// `own`: the tolerance that the case states for this gradient alone.
    pub(crate) fn new(
        key: &str,
        general: &Expectation,
        own: Option<&Expectation>,
        theirs: Option<&Tensor>,
        ours: Option<&Tensor>,
    ) -> Self {
        let mut check = Self {
            output: key.into(),
            max_abs_error: f64::NAN,
            max_rel_error: f64::NAN,
            pass: false,
            general_missed_by: None,
            problem: None,
        };
        let (theirs, ours) = match (theirs, ours) {
            (Some(theirs), Some(ours)) => (theirs, ours),
            (None, _) => {
                check.problem = Some("the case lists it but holds no such tensor".into());
                return check;
            }
            (_, None) => {
                check.problem = Some("the driver gives no such output".into());
                return check;
            }
        };
        if ours.size() != theirs.size() && !(ours.numel() == 1 && theirs.numel() == 1) {
            check.problem = Some(format!("shape {:?}, the reference has {:?}", ours.size(), theirs.size()));
            return check;
        }
        let ours = ours.to_kind(Kind::Double).contiguous().view(-1);
        let theirs = theirs.to_kind(Kind::Double).contiguous().view(-1);
        if ours.numel() == 0 {
            (check.max_abs_error, check.max_rel_error, check.pass) = (0.0, 0.0, true);
            return check;
        }
        // Equal infinities have no distance; NaN is equal to nothing, ours or theirs.
        let error = (&ours - &theirs).abs().where_scalarother(&ours.eq_tensor(&theirs).logical_not(), 0.0);
        let relative = (&error / theirs.abs()).where_scalarother(&theirs.ne(0.0), 0.0);
        check.max_abs_error = error.max().double_value(&[]);
        check.max_rel_error = relative.max().double_value(&[]);
        let size = theirs.abs().where_scalarother(&theirs.isfinite(), 0.0);
        let excess = |tolerance: &Expectation| {
            let excess = &error - (&size * tolerance.rtol + tolerance.atol);
            // What is not within a finite distance is not within any.
            excess.where_scalarother(&error.isfinite(), f64::INFINITY).max().double_value(&[])
        };
        let missed = excess(general);
        check.pass = missed <= 0.0;
        if !check.pass && missed.is_finite() && own.is_some_and(|own| excess(own) <= 0.0) {
            check.pass = true;
            check.general_missed_by = Some(missed);
        }
        check
    }

    /// The verdict in words.
    pub fn verdict(&self) -> String {
        match (&self.problem, self.general_missed_by) {
            (Some(problem), _) => format!("FAIL: {problem}"),
            (None, Some(missed)) => {
                format!("pass: within the gradient's own tolerance; general one missed by {missed:.1e}")
            }
            (None, None) => if self.pass { "pass" } else { "FAIL" }.into(),
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

    /// How many outputs pass by a gradient's own tolerance alone.
    pub fn by_own_tolerance(&self) -> usize {
        let checks = self.result.as_deref().unwrap_or_default();
        checks.iter().filter(|check| check.general_missed_by.is_some()).count()
    }
}

/// What came of the cases of one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntrySummary {
    /// How many cases were run, or could not be.
    pub cases: usize,
    /// How many of them pass.
    pub passed: usize,
    /// How many outputs pass by a gradient's own tolerance alone.
    pub by_own_tolerance: usize,
}

impl EntrySummary {
    /// Counts one more case.
    fn add(&mut self, report: &CaseReport) {
        self.cases += 1;
        self.passed += usize::from(report.pass());
        self.by_own_tolerance += report.by_own_tolerance();
    }
}

/// The reports counted by entry.
pub fn summary(reports: &[CaseReport]) -> BTreeMap<&str, EntrySummary> {
    let mut entries: BTreeMap<&str, EntrySummary> = BTreeMap::new();
    for report in reports {
        entries.entry(&report.entry).or_default().add(report);
    }
    entries
}

/// [`summary`] as a table, a line per entry and one for all of them.
pub fn summary_table(reports: &[CaseReport]) -> String {
    let mut all = EntrySummary::default();
    reports.iter().for_each(|report| all.add(report));
    let mut table = format!("{:<44} {:>6} {:>6} {:>6}\n", "entry", "cases", "pass", "fail");
    for (entry, count) in summary(reports).into_iter().chain([("all", all.clone())]) {
        let failed = count.cases - count.passed;
        table += &format!("{entry:<44} {:>6} {:>6} {failed:>6}\n", count.cases, count.passed);
    }
    if all.by_own_tolerance > 0 {
        let (count, are) = (all.by_own_tolerance, if all.by_own_tolerance == 1 { "is" } else { "are" });
        table += &format!(
            "{count} of the gradients that pass {are} within the tolerance that the case states for the gradient, not within \
             the general one\n"
        );
    }
    table
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
            Ok(Ok(_)) if case.outputs.is_empty() => Err("the case lists no outputs".into()),
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
