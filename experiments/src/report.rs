//! `report.html`: one self-contained page per run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::evaluation::Evaluation;
use crate::generation::{GENERATOR_FOLDER, Generation};
use crate::plots::{self, Series};

/// What pages look like.
pub(crate) const STYLE: &str = include_str!("report.css");

/// The panels of a report's plots: a title, an axis, and the scalars of `metrics.jsonl` that belong together.
const PANELS: [(&str, &str, &[&str]); 7] = [
    ("Loss", "loss", &["tokenizer.reconstruction", "tokenizer.total", "tokenizer.perceptual"]),
    (
        "Quantizer losses",
        "weighted loss",
        &["tokenizer.entropy", "tokenizer.commitment", "tokenizer.codebook", "tokenizer.kl"],
    ),
    ("Adversarial training", "loss", &["tokenizer.gan", "discriminator.total", "discriminator.lecam"]),
    ("Generator's loss", "loss", &["generator.total"]),
    ("Held-out tokens", "bits per token", &["bits_per_token"]),
    ("Held-out PSNR", "dB", &["psnr"]),
    ("Codebook use", "share of codes", &["tokenizer.used_share", "used_share"]),
];

/// Writes `report.html` from what lies in a run's folder, and returns its path.
///
/// # Errors
/// The run was not evaluated yet, or its files cannot be read or written.
pub fn write(run: &Path) -> Result<PathBuf> {
    let evaluation = Evaluation::read(run)?;
    let config_path = run.join("config.toml");
    let config = std::fs::read_to_string(&config_path)
        .with_context(|| format!("cannot read {}", config_path.display()))?;
    let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
    let log = training_log(run)?;
    let plots = plots_of(&log)?;
    let samples = samples_of(run, "clip-")?;
    let generation = Generation::read(run)?;
    let generator_log = training_log(&run.join(GENERATOR_FOLDER))?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Vireo: " (name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (name) }
                    p.subtitle {
                        (evaluation.frames) "×" (evaluation.height) "×" (evaluation.width) " clips to "
                        (evaluation.tokens_per_clip) " tokens each, after " (evaluation.step) " steps"
                    }
                }
                (headline(&evaluation))
                section {
                    h2 { "Original and reconstruction" }
                    p.note { "Held-out clips; in each pair the original is on the left." }
                    @if samples.is_empty() { p.note { "No samples were written." } }
                    (gallery(&samples))
                }
                section {
                    h2 { "Held-out clips" }
                    (figures(&evaluation))
                    details {
                        summary { "Each of the " (evaluation.clips) " clips" }
                        (per_clip(&evaluation))
                    }
                }
                section {
                    h2 { "Training" }
                    @if plots.is_empty() { p.note { "No training was logged in this folder." } }
                    @if let Some(pace) = pace_of(&log) { p.note { (pace) } }
                    div.plots { @for svg in &plots { div.plot { (PreEscaped(svg)) } } }
                }
                @if let Some(generation) = &generation { (generated(run, generation, &generator_log)?) }
                section { h2 { "Configuration" } details open { summary { "config.toml, resolved" } pre { (config) } } }
            }
        }
    };
    let target = run.join("report.html");
    crate::files::write_whole(&target, page.into_string().as_bytes())?;
    Ok(target)
}

/// Moving pictures beside each other.
fn gallery(samples: &[(String, String)]) -> Markup {
    html! {
        div.samples {
            @for (caption, data) in samples {
                figure { img src=(data) alt=(caption); figcaption { (caption) } }
            }
        }
    }
}

/// The second stage: what the generator made, and how well.
fn generated(run: &Path, g: &Generation, log: &[serde_json::Value]) -> Result<Markup> {
    let continued = samples_of(run, "continued-")?;
    let scales = samples_of(run, "scales-")?;
    let mut rows: Vec<(String, String)> = vec![
        ("Cross-entropy of held-out tokens".into(), format!("{:.3} bits per token", g.bits_per_token)),
        (
            "Distance of id histograms, sampled against held out (0 equal, 1 disjoint)".into(),
            format!(
                "{:.3}; between halves of the held-out clips {:.3}",
                g.histogram_distance, g.histogram_floor
            ),
        ),
        ("Steps of a sample".into(), g.sampling_steps.to_string()),
        ("Time of a sample".into(), format!("{:.3} s, {} at a time", g.seconds_per_clip, g.clips)),
    ];
    if let Some(bits) = g.bits_per_dimension {
        let name = "The same bits, which are exact (raster order, time first), over the clip's RGB values: a lossy code";
        rows.insert(1, (name.into(), format!("{bits:.4} bits per dimension")));
    }
    let mut plots = plots_of(log)?;
    if let Some(p) = &g.prediction {
        let (given, made) = (p.given, p.made);
        rows.push((
            format!("PSNR of {made} frames continued from {given}"),
            format!(
                "{:.3} dB; repeating the last given frame {:.3} dB ({:+.2})",
                p.psnr,
                p.copy_psnr,
                p.psnr - p.copy_psnr
            ),
        ));
        rows.push(("SSIM of the same".into(), format!("{:.4}; repeating {:.4}", p.ssim, p.copy_ssim)));
        rows.push((
            "PSNR of the tokenizer's reconstruction of these frames".into(),
            format!("{:.3} dB: more is out of the generator's reach", p.tokenizer_psnr),
        ));
        let series = |name: &str, values: &[f64]| Series {
            name: name.into(),
            points: values.iter().zip(given..).map(|(&psnr, frame)| (frame as f64, psnr)).collect(),
        };
        let series =
            [series("continued", &p.psnr_by_frame), series("last frame repeated", &p.copy_psnr_by_frame)];
        plots.extend(plots::lines("PSNR of continued frames", ["frame", "dB"], &series)?);
    }
    rows.extend(g.extra.iter().map(|(name, value)| (name.clone(), format!("{value:.4}"))));
    Ok(html! {
        section {
            h2 { "Generated" }
            @if scales.is_empty() {
                p.note {
                    "On the left a sampled clip; on the right the step in which each token was decided, from black (first) to white (last)."
                }
            }
            (gallery(&samples_of(run, "generated-")?))
            @if !scales.is_empty() {
                h3 { "From coarse to fine" }
                p.note { "Each row is one sample, decoded after its first scale, its first two, and so on up to all." }
                (gallery(&scales))
            }
            @if let Some(p) = &g.prediction {
                h3 { "Continued" }
                p.note { "On the left a held-out clip; on the right the model's continuation of its first " (p.given) " frames." }
                (gallery(&continued))
            }
            (table(&rows, &g.absent))
            @if let Some(pace) = pace_of(log) { p.note { "Training: " (pace) } }
            div.plots { @for svg in &plots { div.plot { (PreEscaped(svg)) } } }
        }
    })
}

fn headline(evaluation: &Evaluation) -> Markup {
    let c = &evaluation.compression;
    html! {
        div.cards {
            div.card { b { (format!("{:.2} dB", evaluation.psnr)) } span { "PSNR, held out" } }
            div.card { b { (format!("{:+.1} dB", evaluation.psnr - evaluation.mean_colour_psnr)) } span { "over the mean colour" } }
            div.card { b { (format!("{:.3}", evaluation.ssim)) } span { "SSIM" } }
            @if let Some(share) = evaluation.used_share {
                div.card { b { (format!("{:.0} %", share * 100.0)) } span { "of the codebook in use" } }
            }
            div.card { b { (c.time) "×" (c.height) "×" (c.width) } span { "time × height × width" } }
            div.card { b { (format!("{:.0} : 1", evaluation.ratio_to_rgb24)) } span { "against 24-bit RGB" } }
        }
    }
}

fn figures(e: &Evaluation) -> Markup {
    let mut rows: Vec<(String, String)> = vec![
        ("PSNR (per frame, then mean; capped at 100 dB)".into(), format!("{:.3} dB", e.psnr)),
        ("PSNR of each clip's mean colour".into(), format!("{:.3} dB", e.mean_colour_psnr)),
        ("SSIM (11×11 Gaussian, valid region)".into(), format!("{:.4}", e.ssim)),
        ("Clips × frames".into(), format!("{} × {}", e.clips, e.frames)),
        (
            "Compression (time × height × width)".into(),
            format!(
                "{}×{}×{}: {}× in time, {}× in space",
                e.compression.time,
                e.compression.height,
                e.compression.width,
                e.compression.time,
                e.compression.height * e.compression.width
            ),
        ),
        ("Bits per token".into(), format!("{:.2}", e.compression.bits_per_token)),
        ("Bits per pixel".into(), format!("{:.4}", e.bits_per_pixel)),
        ("Ratio to 24-bit RGB".into(), format!("{:.1} : 1", e.ratio_to_rgb24)),
    ];
    if let Some(size) = e.vocabulary_size {
        rows.push(("Vocabulary".into(), size.to_string()));
    }
    if let Some(share) = e.used_share {
        rows.push(("Codes hit at least once".into(), format!("{:.1} %", share * 100.0)));
    }
    if let Some(perplexity) = e.perplexity {
        rows.push(("Perplexity of the ids".into(), format!("{perplexity:.1}")));
    }
    rows.extend(e.extra.iter().map(|(name, value)| (name.clone(), format!("{value:.4}"))));
    table(&rows, &e.absent)
}

/// Figures by name, and those that were not computed.
fn table(rows: &[(String, String)], absent: &[(String, String)]) -> Markup {
    html! {
        table {
            tbody {
                @for (name, value) in rows { tr { th { (name) } td { (value) } } }
                @for (name, why) in absent { tr.absent { th { (name) } td { "not computed: " (why) } } }
            }
        }
    }
}

fn per_clip(e: &Evaluation) -> Markup {
    html! {
        table {
            thead { tr { th { "clip" } th { "PSNR, dB" } th { "SSIM" } } }
            tbody {
                @for clip in &e.per_clip {
                    tr { td { (clip.name) } td { (format!("{:.2}", clip.psnr)) } td { (format!("{:.4}", clip.ssim)) } }
                }
            }
        }
    }
}

/// The lines of `metrics.jsonl`; none if there is no such file.
pub(crate) fn training_log(run: &Path) -> Result<Vec<serde_json::Value>> {
    let path = run.join("metrics.jsonl");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), i + 1))
        })
        .collect()
}

/// How fast training went and how long it waited for data, in words; nothing if no step was logged.
fn pace_of(log: &[serde_json::Value]) -> Option<String> {
    let (mut steps, mut seconds, mut waited) = (0.0, 0.0, 0.0);
    for row in log.iter().filter(|row| row["split"] == "train") {
        let (step, timing) = (row["step"].as_f64()?, &row["timing"]);
        let took = (step - steps) / timing["steps_per_second"].as_f64()?;
        waited += took * timing["waiting_share"].as_f64()?;
        seconds += took;
        steps = step;
    }
    let (rate, share) = (steps / seconds, 100.0 * waited / seconds);
    (seconds > 0.0).then(|| {
        format!("{steps:.0} steps in {seconds:.0} s, {rate:.1} a second; {share:.1} % of the time waiting for data.")
    })
}

/// The SVG panels that the log has scalars for.
fn plots_of(rows: &[serde_json::Value]) -> Result<Vec<String>> {
    let mut drawn = Vec::new();
    for (title, axis, names) in PANELS {
        let series: Vec<Series> = names
            .iter()
            .map(|name| Series {
                name: (*name).into(),
                points: rows
                    .iter()
                    .filter_map(|row| {
                        Some((row.get("step")?.as_f64()?, row.get("scalars")?.get(*name)?.as_f64()?))
                    })
                    .collect(),
            })
            .filter(|series| series.points.len() > 1)
            .collect();
        drawn.extend(plots::lines(title, ["step", axis], &series)?);
    }
    Ok(drawn)
}

/// The GIFs of `samples/` whose names begin so, as (caption, data URI), sorted by name.
fn samples_of(run: &Path, kind: &str) -> Result<Vec<(String, String)>> {
    let folder = run.join("samples");
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gif"))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind)))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            let caption = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Ok((caption, format!("data:image/gif;base64,{data}")))
        })
        .collect()
}
