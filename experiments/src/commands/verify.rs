//! `vireo verify`: golden cases as a table.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reference::verify;

use crate::cli::VerifyArgs;

/// Runs the cases, prints a row per case (per output where it fails, or with `--all`), and fails if any case does.
pub fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let mut files =
        verify::find_cases(&args.path).with_context(|| format!("cannot verify {}", args.path.display()))?;
    if let Some(prefix) = &args.entry {
        files.retain(|file| entry_of(file).is_some_and(|entry| entry.starts_with(prefix)));
        ensure!(
            !files.is_empty(),
            "no case in {} has an entry that begins with {prefix}",
            args.path.display()
        );
    }
    let bar = ProgressBar::new(files.len() as u64).with_style(
        ProgressStyle::with_template("{pos}/{len} {bar:30} {eta} left  {msg}").expect("a valid template"),
    );
    println!("{:<34} {:<34} {:<38} {:>10} {:>10}  result", "entry", "case", "output", "max abs", "max rel");
    let (mut passed, mut outputs, mut own) = (0, 0, 0);
    for file in &files {
        let report = verify::run_case(file);
        passed += usize::from(report.pass());
        own += report.by_own_tolerance();
        let mut lines = Vec::new();
        let mut row = |output: &str, abs: f64, rel: f64, result: &str| {
            lines.push(format!(
                "{:<34} {:<34} {:<38} {:>10.2e} {:>10.2e}  {result}",
                report.entry, report.case, output, abs, rel
            ));
        };
        match &report.result {
            Err(problem) => row("-", f64::NAN, f64::NAN, &format!("FAIL: {problem}")),
            Ok(checks) => {
                outputs += checks.len();
                let worst = |of: fn(&verify::Check) -> f64| checks.iter().map(of).fold(0.0, f64::max);
                let shown =
                    |check: &&verify::Check| args.all || !check.pass || check.general_missed_by.is_some();
                for check in checks.iter().filter(shown) {
                    row(&check.output, check.max_abs_error, check.max_rel_error, &check.verdict());
                }
                if report.pass() && !args.all {
                    let all = format!("all {}", checks.len());
                    row(&all, worst(|c| c.max_abs_error), worst(|c| c.max_rel_error), "pass");
                }
            }
        }
        bar.suspend(|| lines.iter().for_each(|line| println!("{line}")));
        bar.set_message(report.entry.clone());
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{passed} of {} cases pass ({outputs} outputs compared)", files.len());
    if own > 0 {
        println!(
            "{own} of the gradients pass by the tolerance that their case states for them, not by the general one"
        );
    }
    Ok(if passed == files.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The entry that a case file names; `None` where it cannot be read.
fn entry_of(json: &Path) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).ok()?).ok()?;
    Some(value.get("entry")?.as_str()?.to_string())
}
