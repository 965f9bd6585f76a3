//! `vireo compare`: runs beside each other.

use std::path::PathBuf;

use anyhow::Result;

use crate::evaluation::Evaluation;

/// Prints a Markdown table with a line per run, the best PSNR first.
///
/// # Errors
/// A folder that is no evaluated run.
pub fn compare(runs: &[PathBuf]) -> Result<()> {
    let mut rows = runs
        .iter()
        .map(|run| {
            let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
            Ok((name, Evaluation::read(run)?))
        })
        .collect::<Result<Vec<_>>>()?;
    rows.sort_by(|(_, a), (_, b)| b.psnr.total_cmp(&a.psnr));
    println!(
        "| run | compression | ratio to RGB | PSNR, dB | over mean colour, dB | SSIM | codes in use | perplexity | steps |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, e) in rows {
        let c = &e.compression;
        let share = e.used_share.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share));
        let perplexity = e.perplexity.map_or("–".into(), |perplexity| format!("{perplexity:.0}"));
        println!(
            "| {name} | {}×{}×{} | {:.0} : 1 | {:.2} | {:+.2} | {:.3} | {share} | {perplexity} | {} |",
            c.time,
            c.height,
            c.width,
            e.ratio_to_rgb24,
            e.psnr,
            e.psnr - e.mean_colour_psnr,
            e.ssim,
            e.step
        );
    }
    Ok(())
}
