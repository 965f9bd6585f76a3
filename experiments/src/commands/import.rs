//! `vireo import`: a published checkpoint as a tokenizer or a generator of ours.

use anyhow::{Context, Result, ensure};
use tch::{Device, nn};

use crate::cli::ImportArgs;
use crate::generator::{self, GeneratorConfig};
use crate::tokenizer::{self, LoadedTokenizer, TokenizerConfig};

/// Reads the checkpoint, renames and reshapes its tensors, and writes a tokenizer file that every verb takes, or a generator's,
/// which knows its tokenizer.
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
    // The enums of models share their form; what one writes the others read.
    let model = serde_json::to_value(&imported.model)?;
    let usage = match &args.tokenizer {
        None => {
            let config: TokenizerConfig = serde_json::from_value(model).with_context(|| {
                format!("{system} is a generator: name the imported tokenizer on whose tokens it was trained with --tokenizer FILE")
            })?;
            tokenizer::save(&args.output, &config, &imported.tensors)?;
            format!("vireo describe {0}; vireo reconstruct VIDEO --checkpoint {0}", args.output.display())
        }
        Some(path) => {
            let config: GeneratorConfig = serde_json::from_value(model)
                .with_context(|| format!("{system} is no generator: leave --tokenizer out"))?;
            let loaded = LoadedTokenizer::open(path, Device::Cpu)?;
            config.build(&nn::VarStore::new(Device::Cpu).root(), &loaded.tokenizer)?;
            generator::save(&args.output, &config, &loaded.fingerprint, None, &imported.tensors)?;
            format!(
                "vireo sample --checkpoint FOLDER, where FOLDER holds it as {} and its tokenizer as {}",
                generator::GENERATOR_FILE,
                tokenizer::WEIGHTS_FILE
            )
        }
    };
    let parameters: usize = imported.tensors.values().map(tch::Tensor::numel).sum();
    println!(
        "{}: {system}, {}: {} tensors, {:.1} million numbers. Try: {usage}",
        args.output.display(),
        imported.taken,
        imported.tensors.len(),
        parameters as f64 / 1e6
    );
    Ok(())
}
