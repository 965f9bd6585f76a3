//! `cargo run -p reference --example verify -- PATH`: what `vireo verify` does, without the rest of the binary.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "crates/reference/golden".into());
    let reports = reference::verify::verify(Path::new(&path), |done, total, report| {
        let mark = if report.pass() { "pass" } else { "FAIL" };
        println!("{done:>3}/{total} {mark} {} {}", report.entry, report.case);
        match &report.result {
            Err(problem) => println!("        {problem}"),
            Ok(checks) => {
                for check in checks.iter().filter(|check| !check.pass) {
                    println!(
                        "        {} abs {:.2e} rel {:.2e} {:?}",
                        check.output, check.max_abs_error, check.max_rel_error, check.problem
                    );
                }
            }
        }
    })?;
    println!("{} of {} cases pass", reports.iter().filter(|r| r.pass()).count(), reports.len());
    Ok(())
}
