//! `vireo compare`: runs beside each other.

use std::path::PathBuf;

use anyhow::Result;

use crate::evaluation::Evaluation;
use crate::generation::Generation;

/// Prints a Markdown table with a line per run, the best PSNR first; and one of the generators, where there are some, the
/// fewest bits first.
///
/// # Errors
/// A folder that is no evaluated run.
pub fn compare(runs: &[PathBuf]) -> Result<()> {
    let mut rows = runs
        .iter()
        .map(|run| {
            let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
            Ok((name, Evaluation::read(run)?, Generation::read(run)?))
        })
        .collect::<Result<Vec<_>>>()?;
    rows.sort_by(|(_, a, _), (_, b, _)| b.psnr.total_cmp(&a.psnr));
    println!(
        "| run | compression | ratio to RGB | PSNR, dB | over mean colour, dB | SSIM | codes in use | perplexity | steps |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, e, _) in &rows {
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
    let mut generators: Vec<(&String, &Generation)> =
        rows.iter().filter_map(|(name, _, generation)| Some((name, generation.as_ref()?))).collect();
    if generators.is_empty() {
        return Ok(());
    }
    generators.sort_by(|(_, a), (_, b)| a.bits_per_token.total_cmp(&b.bits_per_token));
    println!(
        "\n| run | bits per token | histogram distance | continued: PSNR, dB | over the last frame, dB | SSIM | steps of sampling | seconds a clip | steps |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, g) in generators {
        let continued = g.prediction.as_ref().map_or("– | – | –".into(), |p| {
            format!("{:.2} | {:+.2} | {:.3}", p.psnr, p.psnr - p.copy_psnr, p.ssim)
        });
        println!(
            "| {name} | {:.3} | {:.3} | {continued} | {} | {:.3} | {} |",
            g.bits_per_token, g.histogram_distance, g.sampling_steps, g.seconds_per_clip, g.step
        );
    }
    Ok(())
}
