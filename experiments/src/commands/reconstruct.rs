//! `vireo reconstruct`: what does the tokenizer make of this video?

use std::time::Instant;

use anyhow::{Result, bail};
use metrics::psnr::psnr_per_frame;
use metrics::ssim::ssim_per_frame;
use serde_json::json;
use tch::Tensor;

use crate::cli::ReconstructArgs;
use crate::media::{Input, Output};
use crate::pipeline::{PSNR, SSIM, numbers};
use crate::tokenizer::{LoadedTokenizer, device};

/// Encodes and decodes in a stream, writes original and reconstruction side by side, and their metrics as JSON beside it.
pub fn reconstruct(args: &ReconstructArgs) -> Result<()> {
    let loaded = LoadedTokenizer::open(&args.checkpoint.checkpoint, device(&args.checkpoint.device)?)?;
    let compression = loaded.tokenizer.compression();
    let vocabulary_size = loaded.vocabulary_size()?;
    let mut input =
        Input::open(&args.input, &args.read, compression, loaded.device)?.padded_after_first_stride();
    loaded.tokenizer.picture_grid(input.padded_height, input.padded_width)?;
    let stem = args.input.file_stem().unwrap_or_default().to_string_lossy();
    let extension = if input.is_image { "png" } else { "mp4" };
    let target = args.output.clone().unwrap_or_else(|| format!("{stem}.reconstruction.{extension}").into());
    let (height, width) = (input.height, input.width);
    let frames = if input.is_image { 1 } else { i64::MAX };
    let mut output = Output::create(&target, frames, height, 2 * width, input.frame_rate)?;
    let mut encoder = loaded.tokenizer.stream_encoder()?;
    let mut decoder = loaded.tokenizer.stream_decoder()?;
    let mut used = metrics::usage::CodebookUsage::new(vocabulary_size)?;
    let mut scores = Scores::default();
    // Originals that wait for their reconstruction: at most a chunk and a stride.
    let mut waiting: Option<Tensor> = None;
    let start = Instant::now();
    while let Some(chunk) = input.next_chunk()? {
        waiting = Some(match waiting {
            Some(before) => Tensor::cat(&[before, chunk.shallow_clone()], 2),
            None => chunk.shallow_clone(),
        });
        let Some(grid) = encoder.push(&chunk)? else { continue };
        used.add(grid.ids())?;
        let decoded = decoder.push(&grid)?;
        let Some(all) = waiting.take() else { bail!("the decoder gave frames before the encoder took any") };
        let t = decoded.size()[2];
        let originals = all.narrow(2, 0, t);
        waiting = (all.size()[2] > t).then(|| all.narrow(2, t, all.size()[2] - t));
        // Frames that only pad the clip are neither shown nor scored.
        let shown = t.min(input.frames - scores.frames());
        if shown < 1 {
            continue;
        }
        let crop = |video: &Tensor| video_data::crop_video(video, shown, height, width);
        let (originals, decoded) = (crop(&originals)?, crop(&decoded)?);
        scores.add(&originals, &decoded)?;
        output.push(&Tensor::cat(&[originals, decoded], 4))?;
    }
    encoder.finish()?;
    output.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let shape = video_core::VideoShape {
        batch: 1,
        channels: 3,
        frames: compression.pad_frames(input.frames),
        height: input.padded_height,
        width: input.padded_width,
    };
    let grid = loaded.tokenizer.grid_shape(shape)?;
    let figures = metrics::compression::figures_of_grid(&compression, shape, grid);
    let summary = json!({
        "input": args.input.display().to_string(),
        "frames": input.frames, "height": height, "width": width,
        "psnr": scores.psnr(), "psnr_convention": PSNR.to_string(),
        "ssim": scores.ssim(), "ssim_convention": SSIM.to_string(),
        "tokens": figures.tokens, "bits_per_pixel": figures.bits_per_pixel,
        "ratio_to_rgb24": figures.ratio_to_rgb24,
        "codes_used": used.used_share() * vocabulary_size as f64, "vocabulary_size": vocabulary_size,
        "frames_per_second": input.frames as f64 / seconds,
    });
    let json_path = target.with_extension("json");
    crate::files::write_whole(&json_path, serde_json::to_string_pretty(&summary)?.as_bytes())?;
    println!(
        "{} (metrics in {}): PSNR {:.2} dB, SSIM {}, {} tokens, {:.4} bits per pixel, {:.0} codes of {vocabulary_size} used, {:.1} frames/s",
        target.display(),
        json_path.display(),
        scores.psnr(),
        scores.ssim().map_or("not computed: smaller than its window".into(), |s| format!("{s:.4}")),
        figures.tokens,
        figures.bits_per_pixel,
        used.used_share() * vocabulary_size as f64,
        input.frames as f64 / seconds
    );
    Ok(())
}

/// Scores of the frames so far.
#[derive(Default)]
struct Scores {
    psnr: Vec<f64>,
    ssim: Vec<f64>,
}

impl Scores {
    fn add(&mut self, originals: &Tensor, decoded: &Tensor) -> Result<()> {
        self.psnr.extend(numbers(&psnr_per_frame(decoded, originals, PSNR)?)?);
        let size = originals.size();
        if size[3].min(size[4]) >= SSIM.window_size() {
            self.ssim.extend(numbers(&ssim_per_frame(decoded, originals, SSIM)?)?);
        }
        Ok(())
    }

    fn frames(&self) -> i64 {
        self.psnr.len() as i64
    }

    fn psnr(&self) -> f64 {
        self.psnr.iter().sum::<f64>() / self.psnr.len() as f64
    }

    fn ssim(&self) -> Option<f64> {
        (!self.ssim.is_empty()).then(|| self.ssim.iter().sum::<f64>() / self.ssim.len() as f64)
    }
}
