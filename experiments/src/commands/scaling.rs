//! `vireo scaling`: how the loss of next-scale prediction falls with its size and with the computation of its training.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use maud::{DOCTYPE, PreEscaped, html};
use serde::Serialize;

use crate::cli::ScalingArgs;
use crate::config::RunConfig;
use crate::generation::{GENERATOR_FOLDER, Generation};
use crate::plots::{self, Series};
use crate::scaling::{PowerLaw, frontier};
use crate::{files, pipeline, report};

/// One width.
#[derive(Serialize)]
struct Row {
    width: i64,
    /// N, the numbers in the matrices of the blocks.
    parameters: i64,
    /// Tokens trained on.
    tokens: u64,
    /// 6 · N · tokens.
    flops: f64,
    /// Held-out loss at the end.
    bits_per_token: f64,
    /// (FLOPs, bits per token) at each evaluation during training.
    curve: Vec<(f64, f64)>,
}

#[derive(Serialize)]
struct Study {
    rows: Vec<Row>,
    by_parameters: PowerLaw,
    by_compute: PowerLaw,
    /// Of the evaluations of all widths those with the least loss for their FLOPs: what the second law goes through.
    frontier: Vec<(f64, f64)>,
}

/// Trains the widths, each a run of its own with one tokenizer, and writes `scaling.json`, `scaling.html` and two plots.
pub fn scaling(args: &ScalingArgs) -> Result<()> {
    let config = RunConfig::load(&args.run.config, &args.run.overrides)?;
    let runs = &args.run.runs;
    let generator =
        config.generator.clone().context("vireo scaling needs a config with a [generator] table")?;
    ensure!(args.widths.len() > 1, "--widths: expected at least two");
    let models =
        args.widths.iter().map(|&width| generator.model.with_width(width)).collect::<Result<Vec<_>>>()?;
    let folder = runs.join(&config.name);
    if config.tokenizer_from.is_none() {
        pipeline::run(&RunConfig { generator: None, ..config.clone() }, runs)?;
    }
    let mut rows = Vec::new();
    for (&width, model) in args.widths.iter().zip(models) {
        println!("width {width}:");
        let mut of_width = config.clone();
        of_width.name = format!("{}-{width}", config.name);
        of_width.tokenizer_from.get_or_insert_with(|| folder.clone());
        let mut generator = generator.clone();
        generator.model = model;
        let tokens = generator.batch_size as u64 * generator.model.grid()?.tokens() as u64;
        let transformer = generator.model.next_scale_transformer().context("a next-scale transformer")?;
        let parameters = transformer.block_weights();
        let steps = generator.train.steps;
        of_width.generator = Some(generator);
        pipeline::run(&of_width, runs)?;
        let run = runs.join(&of_width.name);
        let generation = Generation::read(&run)?.context("the run was not evaluated")?;
        let flops = |tokens: u64| 6.0 * parameters as f64 * tokens as f64;
        let curve = evaluations(&run.join(GENERATOR_FOLDER))?;
        rows.push(Row {
            width,
            parameters,
            tokens: tokens * steps,
            flops: flops(tokens * steps),
            bits_per_token: generation.bits_per_token,
            curve: curve.into_iter().map(|(step, bits)| (flops(tokens * step), bits)).collect(),
        });
    }
    let ends: Vec<(f64, f64)> = rows.iter().map(|row| (row.parameters as f64, row.bits_per_token)).collect();
    let all: Vec<(f64, f64)> = rows.iter().flat_map(|row| row.curve.iter().copied()).collect();
    let frontier = frontier(&all);
    let study =
        Study { by_parameters: PowerLaw::fit(&ends)?, by_compute: PowerLaw::fit(&frontier)?, frontier, rows };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    write(&study, &config.name, &folder)
}

/// Prints the table and the laws, and writes them with their plots.
fn write(study: &Study, name: &str, folder: &Path) -> Result<()> {
    let heads = ["width", "N", "tokens", "FLOPs, 6 · N · tokens", "bits per held-out token"];
    let cells: Vec<[String; 5]> = study
        .rows
        .iter()
        .map(|row| {
            [
                row.width.to_string(),
                row.parameters.to_string(),
                row.tokens.to_string(),
                format!("{:.3e}", row.flops),
                format!("{:.4}", row.bits_per_token),
            ]
        })
        .collect();
    println!("| {} |\n|{}", heads.join(" | "), " ---: |".repeat(heads.len()));
    cells.iter().for_each(|row| println!("| {} |", row.join(" | ")));
    let laws = [
        format!("by size: {}", study.by_parameters.describe("N")),
        format!("by computation: {}", study.by_compute.describe("FLOPs")),
    ];
    laws.iter().for_each(|law| println!("{law}"));

    let ends = Series {
        name: "after training".into(),
        points: study.rows.iter().map(|row| (row.parameters as f64, row.bits_per_token)).collect(),
    };
    let by_parameters =
        plots::power_law("Loss by size", ["numbers in the blocks, N", "bits per token"], &[ends], |n| {
            study.by_parameters.at(n)
        })?;
    let curves: Vec<Series> = study
        .rows
        .iter()
        .map(|row| Series { name: format!("width {}", row.width), points: row.curve.clone() })
        .collect();
    let labels = ["FLOPs of training, 6 · N · tokens", "bits per token"];
    let by_compute =
        plots::power_law("Loss by computation", labels, &curves, |flops| study.by_compute.at(flops))?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Vireo: " (name) }
                style { (PreEscaped(report::STYLE)) }
            }
            body {
                h1 { (name) }
                p.subtitle { "One transformer at several widths: the loss of held-out tokens." }
                table {
                    thead { tr { @for head in heads { th { (head) } } } }
                    tbody { @for row in &cells { tr { @for cell in row { td { (cell) } } } } }
                }
                @for law in &laws { p { (law) } }
                p.note {
                    "N are the numbers in the matrices of the blocks. The first law goes through the ends of training, the second \
                     through the evaluations with the least loss for their FLOPs."
                }
                div.plots {
                    div.plot { (PreEscaped(&by_parameters)) }
                    div.plot { (PreEscaped(&by_compute)) }
                }
            }
        }
    };
    files::write_whole(&folder.join("scaling.json"), serde_json::to_string_pretty(study)?.as_bytes())?;
    files::write_whole(&folder.join("scaling-size.svg"), by_parameters.as_bytes())?;
    files::write_whole(&folder.join("scaling-compute.svg"), by_compute.as_bytes())?;
    let target = folder.join("scaling.html");
    files::write_whole(&target, page.into_string().as_bytes())?;
    println!("report: {}", target.display());
    Ok(())
}

/// (step, bits per token) of the evaluations that a folder's `metrics.jsonl` tells.
fn evaluations(folder: &Path) -> Result<Vec<(u64, f64)>> {
    let rows = report::training_log(folder)?;
    let of_row =
        |row: &serde_json::Value| Some((row["step"].as_u64()?, row["scalars"]["bits_per_token"].as_f64()?));
    Ok(rows.iter().filter_map(of_row).collect())
}
