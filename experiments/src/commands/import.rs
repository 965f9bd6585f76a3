//! `vireo import`: a published checkpoint as a tokenizer or a generator of ours.

use anyhow::{Context, Result, ensure};
use reference::import::Model;
use tch::{Device, nn};

use crate::cli::ImportArgs;
use crate::generator::{self, GeneratorConfig};
use crate::tokenizer::{self, LoadedTokenizer, TokenizerConfig};

/// Reads the checkpoint, renames and reshapes its tensors, and writes a file that every verb takes.
pub fn import(args: &ImportArgs) -> Result<()> {
    let system = &args.system;
    ensure!(
        args.output.extension().is_some_and(|extension| extension == "safetensors"),
        "{}: expected a name that ends in .safetensors",
        args.output.display()
    );
    let context = || format!("cannot import {}", args.input.display());
    let tensors = reference::import::read_checkpoint(&args.input).with_context(context)?;
    // Some systems say in words what their shapes do not tell.
    let published = std::fs::read_to_string(args.input.with_file_name("config.json")).ok();
    let imported =
        reference::import::import_with(system, &tensors, published.as_deref()).with_context(context)?;
    let words = serde_json::to_value(&imported.model)?;
    // The enums share their form; what one writes the others read.
    let next = match serde_json::from_value::<TokenizerConfig>(words.clone()) {
        Ok(config) => {
            ensure!(args.tokenizer.is_none(), "{system} is no generator: leave --tokenizer out");
            tokenizer::save(&args.output, &config, &imported.tensors)?;
            format!("vireo describe {0}; vireo reconstruct VIDEO --checkpoint {0}", args.output.display())
        }
        Err(_) => match serde_json::from_value::<GeneratorConfig>(words.clone()) {
            Ok(config) => {
                let tokenizer = args.tokenizer.as_ref().with_context(|| {
                    format!("{system} is a generator: name the imported tokenizer on whose tokens it was trained with --tokenizer FILE")
                })?;
                let loaded = LoadedTokenizer::open(tokenizer, Device::Cpu)?;
                config.build(&nn::VarStore::new(Device::Cpu).root(), &loaded.tokenizer)?;
                config.check_vocabulary(loaded.vocabulary_size()?)?;
                generator::save(&args.output, &config, &loaded.fingerprint, None, &imported.tensors)?;
                format!(
                    "vireo sample --checkpoint FOLDER, where FOLDER holds it as {} and its tokenizer as {}",
                    generator::GENERATOR_FILE,
                    tokenizer::WEIGHTS_FILE
                )
            }
            // No verb takes it; a program does.
            Err(_) => {
                training::save_weights(&args.output, &imported.tensors, &words.to_string())?;
                format!("it from Rust: {}", kind(&imported.model))
            }
        },
    };
    let parameters: usize = imported.tensors.values().map(tch::Tensor::numel).sum();
    println!(
        "{}: {system}, {}: {} tensors, {:.1} million numbers. Try: {next}",
        args.output.display(),
        imported.taken,
        imported.tensors.len(),
        parameters as f64 / 1e6
    );
    Ok(())
}

/// Where a model is that no verb takes.
fn kind(model: &Model) -> &'static str {
    match model {
        Model::OpenMuse(_) => "maskgit::open_muse::OpenMuseTransformer",
        Model::OpenMuseUvit(_) => "maskgit::open_muse::OpenMuseUVit",
        _ => "the crate of its system",
    }
}
