//! `vireo describe`: layers, parameters, compression, tokens.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use tch::{Device, nn};
use video_core::VideoShape;

use crate::cli::DescribeArgs;
use crate::config::RunConfig;
use crate::tokenizer::{self, Tokenizer, TokenizerConfig};

/// Prints a tokenizer's modules with their parameters, and what it makes of a clip.
pub fn describe(args: &DescribeArgs) -> Result<()> {
    let (config, own_clip) = find(&args.what)?;
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = config.build(&variables.root())?;
    let clip = match &args.clip {
        Some(text) => Some(parse_clip(text)?),
        None => own_clip,
    };
    let shape = clip.unwrap_or_else(|| smallest_clip(&tokenizer));
    match &config {
        TokenizerConfig::Magvit2(config) => {
            println!("{:<34} {:>26} {:>14} {:>16}", "layer", "output C×T×H×W", "parameters", "multiply-adds");
            for layer in config.layers(shape)? {
                let [_, c, t, h, w] = layer.output;
                println!(
                    "{:<34} {:>26} {:>14} {:>16}",
                    layer.name,
                    format!("{c}×{t}×{h}×{w}"),
                    layer.parameters,
                    layer.multiply_adds
                );
            }
        }
        _ => print_modules(&variables),
    }
    let parameters: usize = variables.trainable_variables().iter().map(tch::Tensor::numel).sum();
    let grid = tokenizer.grid_shape(shape)?;
    let compression = tokenizer.compression();
    let figures = metrics::compression::figures_of_grid(&compression, shape, grid);
    println!("\nparameters    {parameters} ({:.1} million)", parameters as f64 / 1e6);
    println!(
        "compression   {}×{}×{} (time × height × width)",
        compression.time, compression.height, compression.width
    );
    match tokenizer.vocabulary_size() {
        Some(size) => println!("vocabulary    {size} ids, {:.2} bits a token", compression.bits_per_token),
        None => println!("bottleneck    continuous, {} bits a position", compression.bits_per_token),
    }
    println!(
        "clip          {}×{}×{} → {}×{}×{} = {} tokens",
        shape.frames, shape.height, shape.width, grid.frames, grid.height, grid.width, figures.tokens
    );
    println!(
        "bits/pixel    {:.4}; 24-bit RGB : tokens = {:.1} : 1",
        figures.bits_per_pixel, figures.ratio_to_rgb24
    );
    let latents = match tokenizer.pyramid_quantizer() {
        Some(_) => compression.grid_shape(shape)?.frames,
        None => grid.frames,
    };
    let per_second = grid.tokens() as f64 / latents as f64 * 24.0 / compression.time as f64;
    println!(
        "tokens/s      {per_second:.0} of video at {}×{} and 24 frames a second",
        shape.height, shape.width
    );
    Ok(())
}

/// A config, wherever it stands, and the clips that it was made for.
fn find(what: &Path) -> Result<(TokenizerConfig, Option<VideoShape>)> {
    let run_config = if what.is_dir() { what.join(crate::pipeline::CONFIG_FILE) } else { what.to_path_buf() };
    if run_config.extension().is_some_and(|extension| extension == "toml") {
        let config = RunConfig::load(&run_config, &[])?;
        let shape = config.clip_shape();
        return Ok((config.tokenizer, Some(shape)));
    }
    Ok((tokenizer::read_config(what)?, None))
}

/// One stride in time and 16 positions a side; of pyramids, what one of each kind codes.
fn smallest_clip(tokenizer: &Tokenizer) -> VideoShape {
    let compression = tokenizer.compression();
    let [latents, height, width] = tokenizer.pyramid_size().unwrap_or([2, 16, 16]);
    VideoShape {
        batch: 1,
        channels: 3,
        frames: tokenizer.frames(latents),
        height: height * compression.height,
        width: width * compression.width,
    }
}

/// `17x128x128` on the command line.
fn parse_clip(text: &str) -> Result<VideoShape> {
    let sizes: Option<Vec<i64>> =
        text.split(['x', '×']).map(|size| size.parse().ok().filter(|&n| n > 0)).collect();
    let sizes = sizes.and_then(|sizes| <[i64; 3]>::try_from(sizes).ok());
    let [frames, height, width] =
        sizes.with_context(|| format!("--clip {text}: expected FRAMESxHEIGHTxWIDTH, such as 17x128x128"))?;
    Ok(VideoShape { batch: 1, channels: 3, frames, height, width })
}

/// Parameters by module, two levels deep.
fn print_modules(variables: &nn::VarStore) {
    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    for (name, tensor) in variables.variables() {
        let module: Vec<&str> = name.split('.').take(3).collect();
        *modules.entry(module.join(".")).or_default() += tensor.numel();
    }
    println!("{:<50} {:>14}", "module", "parameters");
    for (name, count) in modules {
        println!("{name:<50} {count:>14}");
    }
}
