//! `vireo encode` and `vireo decode`: a video to a token file and back, in constant memory.

use std::time::Instant;

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{DecodeArgs, EncodeArgs};
use crate::media::{Input, Output};
use crate::token_file::{Header, Reader, Writer, bits_for};
use crate::tokenizer::{LoadedTokenizer, device};

/// Latent frames decoded at a time.
const CHUNK_LATENTS: i64 = 4;

/// Writes the token file of a video or an image.
pub fn encode(args: &EncodeArgs) -> Result<()> {
    let loaded = LoadedTokenizer::open(&args.checkpoint.checkpoint, device(&args.checkpoint.device)?)?;
    let compression = loaded.tokenizer.compression();
    let vocabulary_size = loaded.vocabulary_size()?;
    let mut input = Input::open(&args.input, &args.read, compression, loaded.device)?;
    let grid = loaded.tokenizer.picture_grid(input.padded_height, input.padded_width)?;
    let target = args.output.clone().unwrap_or_else(|| args.input.with_extension("vtok"));
    let header = Header {
        vocabulary_size,
        bits: bits_for(vocabulary_size),
        grid_height: grid.height,
        grid_width: grid.width,
        compression,
        height: input.height,
        width: input.width,
        frame_rate: input.frame_rate,
        tokenizer: loaded.fingerprint.clone(),
    };
    let mut writer = Writer::create(&target, header)?;
    let mut encoder = loaded.tokenizer.stream_encoder()?;
    let start = Instant::now();
    while let Some(frames) = input.next_chunk()? {
        if let Some(grid) = encoder.push(&frames)? {
            writer.push(&grid)?;
        }
    }
    encoder.finish()?;
    writer.finish(input.frames as u64)?;
    let bytes = std::fs::metadata(&target)?.len();
    let raw = input.frames * input.height * input.width * 3;
    println!(
        "{}: {} frames of {}×{} in {bytes} bytes, 1/{:.0} of 24-bit RGB, {:.1} frames/s",
        target.display(),
        input.frames,
        input.height,
        input.width,
        raw as f64 / bytes as f64,
        input.frames as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Writes the video or image of a token file.
pub fn decode(args: &DecodeArgs) -> Result<()> {
    let mut reader = Reader::open(&args.input)?;
    let loaded = LoadedTokenizer::open(&args.checkpoint.checkpoint, device(&args.checkpoint.device)?)?;
    ensure!(
        reader.header.tokenizer == loaded.fingerprint,
        "{} was encoded by the tokenizer {}, {} is {}: its ids mean nothing to another. Name the right one with --checkpoint",
        args.input.display(),
        reader.header.tokenizer,
        args.checkpoint.checkpoint.display(),
        loaded.fingerprint
    );
    let extension = if reader.frames == 1 { "png" } else { "mp4" };
    let target = args.output.clone().unwrap_or_else(|| args.input.with_extension(extension));
    let Header { height, width, frame_rate, .. } = reader.header;
    let mut output = Output::create(&target, reader.frames, height, width, frame_rate)?;
    let mut decoder = loaded.tokenizer.stream_decoder()?;
    let bar = ProgressBar::new(reader.latent_frames as u64).with_style(
        ProgressStyle::with_template("{pos}/{len} latent frames {bar:30} {per_sec}, {eta} left")
            .expect("a valid template"),
    );
    let start = Instant::now();
    while let Some(grid) = reader.next(CHUNK_LATENTS)? {
        let latents = grid.shape().frames as u64;
        output.push(&decoder.push(&grid.to_device(loaded.device))?)?;
        bar.inc(latents);
    }
    bar.finish_and_clear();
    output.finish()?;
    println!(
        "{}: {} frames of {height}×{width}, {:.1} frames/s",
        target.display(),
        reader.frames,
        reader.frames as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}
