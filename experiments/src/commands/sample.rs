//! `vireo sample`: clips from a run's generator.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};
use video_core::sampling::Filter;
use video_core::{Condition, SampleOptions, TokenGrid};
use video_data::{DecodeOptions, Fit, Size, is_image, read_image, read_video};

use crate::cli::SampleArgs;
use crate::generator::LoadedGenerator;
use crate::media::Output;
use crate::tokenizer::{LoadedTokenizer, device};

/// Draws tokens, decodes them, and writes the clips beside each other.
pub fn sample(args: &SampleArgs) -> Result<()> {
    let checkpoint = &args.checkpoint;
    let loaded = LoadedTokenizer::open(&checkpoint.checkpoint, device(&checkpoint.device)?)?;
    let LoadedGenerator { generator, config } = LoadedGenerator::open(&checkpoint.checkpoint, &loaded)?;
    let (latent, compression) = (config.latent()?, loaded.tokenizer.compression());
    let frames = compression.frames(latent.frames);
    let (height, width) = (latent.height * compression.height, args.count * latent.width * compression.width);
    let mut output = Output::create(&args.output, frames, height, width, args.frame_rate)?;
    let class = args.class.map(|class| Tensor::full([args.count], class, (tch::Kind::Int64, loaded.device)));
    let condition =
        Condition { first_frames: first_frames(args, &loaded, &latent)?, class, ..Condition::default() };
    let options = SampleOptions {
        batch: args.count,
        seed: args.seed,
        filter: Filter { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        guidance: args.guidance,
    };
    let started = Instant::now();
    let sampled = generator.sample_in_steps(&condition, &options)?;
    let seconds = started.elapsed().as_secs_f64();
    let video = loaded.tokenizer.decode(&sampled.tokens)?.to_device(Device::Cpu);
    output.push(&Tensor::cat(&video.split(1, 0), 4))?;
    output.finish()?;
    println!(
        "{}: {} clips of {} frames, {} steps, {seconds:.2} s",
        args.output.display(),
        args.count,
        video.size()[2],
        sampled.steps
    );
    Ok(())
}

/// The tokens of the frames to continue, once per clip.
fn first_frames(
    args: &SampleArgs,
    loaded: &LoadedTokenizer,
    grid: &video_core::GridShape,
) -> Result<Option<TokenGrid>> {
    let Some(path) = &args.first_frames else { return Ok(None) };
    let compression = loaded.tokenizer.compression();
    let size = Some(Size {
        height: grid.height * compression.height,
        width: grid.width * compression.width,
        fit: Fit::Cover,
    });
    let video = if is_image(path) {
        read_image(path, size)?
    } else {
        read_video(path, &DecodeOptions { max_frames: Some(args.frames), size, ..DecodeOptions::default() })?
    };
    let frames = video.size()[2];
    ensure!(
        frames as u64 == args.frames,
        "{}: {frames} frames, but --frames {} are to be given",
        path.display(),
        args.frames
    );
    let tokens = loaded.tokenizer.encode(&video.to_device(loaded.device)).with_context(|| {
        format!("--frames {frames}: the tokenizer takes 1 + k·{} frames", compression.time)
    })?;
    let ids = tokens.ids().repeat([args.count, 1, 1, 1]);
    Ok(Some(TokenGrid::new(ids)?))
}
