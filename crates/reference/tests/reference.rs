//! The vendored golden cases (a small part of the full set, so that a clone alone tests parity) and, where a folder with
//! the full set is named or stands beside the checkout, all of its supported systems.

#[path = "reference/checkpoints.rs"]
mod checkpoints;
#[path = "reference/imports.rs"]
mod imports;
#[path = "reference/masked.rs"]
mod masked;
#[path = "reference/robust.rs"]
mod robust;

use std::path::{Path, PathBuf};

use reference::verify::verify;

/// The systems whose drivers are complete.
const SYSTEMS: &[&str] = &[
    "magvit2",
    "maskgit",
    "metrics",
    "muse",
    "perceiver-ar",
    "quantizers",
    "text-encoder",
    "var",
    "video-gpt",
];

/// Where the full set of cases is, if it is anywhere.
fn full_set() -> PathBuf {
    std::env::var_os("VIREO_GOLDEN")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"))
}

fn assert_all_pass(path: &Path) {
    let reports = verify(path, |_, _, _| ()).unwrap();
    let failures: Vec<String> = reports
        .iter()
        .filter(|report| !report.pass())
        .map(|report| match &report.result {
            Err(problem) => format!("{} {}: {problem}", report.entry, report.case),
            Ok(checks) => {
                let bad: Vec<String> = checks
                    .iter()
                    .filter(|check| !check.pass)
                    .map(|check| {
                        format!(
                            "{} abs {:.2e} {}",
                            check.output,
                            check.max_abs_error,
                            check.problem.clone().unwrap_or_default()
                        )
                    })
                    .collect();
                format!("{} {}: {}", report.entry, report.case, bad.join(", "))
            }
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        reports.len(),
        failures.join("\n")
    );
}

#[test]
fn vendored_cases_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for system in SYSTEMS {
        assert_all_pass(&root.join(system));
    }
}

#[test]
fn the_full_set_passes_where_it_is_there() {
    let root = full_set();
    for system in SYSTEMS {
        if root.join(system).is_dir() {
            assert_all_pass(&root.join(system));
        } else {
            eprintln!("no {} in {}: the vendored cases alone were checked", system, root.display());
        }
    }
}
