//! `cargo run -p reference --example verify -- PATH`: what `vireo verify` does, without the rest of the binary.

use std::path::Path;
use std::process::ExitCode;

use reference::verify::{summary_table, verify};

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "crates/reference/golden".into());
    let reports = verify(Path::new(&path), |done, total, report| {
        let mark = if report.pass() { "pass" } else { "FAIL" };
        println!("{done:>3}/{total} {mark} {} {}", report.entry, report.case);
        match &report.result {
            Err(problem) => println!("        {problem}"),
            Ok(checks) => {
                for check in checks.iter().filter(|check| !check.pass || check.general_missed_by.is_some()) {
                    println!(
                        "        {} abs {:.2e} rel {:.2e} {}",
                        check.output,
                        check.max_abs_error,
                        check.max_rel_error,
                        check.verdict()
                    );
                }
            }
        }
    });
    match reports {
        Ok(reports) => {
            print!("\n{}", summary_table(&reports));
            if reports.iter().all(|report| report.pass()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("cannot verify {path}: {error}");
            ExitCode::FAILURE
        }
    }
}
