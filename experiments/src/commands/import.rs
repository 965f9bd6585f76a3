//! `vireo import`: a published checkpoint as a tokenizer of ours.

use anyhow::{Context, Result, ensure};

use crate::cli::ImportArgs;
use crate::tokenizer::{self, TokenizerConfig};

/// Reads the checkpoint, renames and reshapes its tensors, and writes a tokenizer file that every verb takes.
pub fn import(args: &ImportArgs) -> Result<()> {
    let system = &args.system;
    ensure!(
        args.output.extension().is_some_and(|extension| extension == "safetensors"),
        "{}: expected a name that ends in .safetensors",
        args.output.display()
    );
    let context = || format!("cannot import {}", args.input.display());
    let tensors = reference::import::read_checkpoint(&args.input).with_context(context)?;
    let imported = reference::import::import(system, &tensors).with_context(context)?;
    // The two enums share their form; what one writes the other reads.
    let config: TokenizerConfig = serde_json::from_value(serde_json::to_value(&imported.model)?)?;
    tokenizer::save(&args.output, &config, &imported.tensors)?;
    let parameters: usize = imported.tensors.values().map(tch::Tensor::numel).sum();
    println!(
        "{}: {system}, {}: {} tensors, {:.1} million numbers. Try: vireo describe {0}; vireo reconstruct VIDEO --checkpoint {0}",
        args.output.display(),
        imported.taken,
        imported.tensors.len(),
        parameters as f64 / 1e6
    );
    Ok(())
}
