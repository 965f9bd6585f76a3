//! `vireo sample`: clips from a run's generator.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use maskgit::mask::RegionCondition;
use tch::{Device, Kind, Tensor};
use video_core::sampling::Filter;
use video_core::{Condition, GridShape, SampleOptions, TokenGrid};
use video_data::{DecodeOptions, Fit, Size, is_image, read_image, read_video};

use crate::cli::SampleArgs;
use crate::generator::{LoadedGenerator, TrainedText};
use crate::media::Output;
use crate::text::TextConfig;
use crate::tokenizer::{LoadedTokenizer, device};

/// Draws tokens, decodes them, and writes the clips beside each other.
pub fn sample(args: &SampleArgs) -> Result<()> {
    let checkpoint = &args.checkpoint;
    let loaded = LoadedTokenizer::open(&checkpoint.checkpoint, device(&checkpoint.device)?)?;
    let LoadedGenerator { generator, config, text } = LoadedGenerator::open(&checkpoint.checkpoint, &loaded)?;
    let (latent, compression) = (config.latent()?, loaded.tokenizer.compression());
    let frames = loaded.tokenizer.frames(latent.frames);
    let (height, width) = (latent.height * compression.height, args.count * latent.width * compression.width);
    let mut output = Output::create(&args.output, frames, height, width, args.frame_rate)?;
    let text = match &args.text {
        None => None,
        Some(words) => {
            // What the generator does not serve needs no encoder to be refused.
            let asked = Condition {
                text: Some((
                    Tensor::zeros([1, 1, 1], tch::kind::FLOAT_CPU),
                    Tensor::ones([1, 1], (Kind::Bool, Device::Cpu)),
                )),
                ..Condition::default()
            };
            asked.check_served("the generator", generator.serves())?;
            Some(embedded(words, args, text.as_ref(), loaded.device)?)
        }
    };
    let clip = Clip { args, loaded: &loaded, grid: latent };
    let region = clip.region()?;
    let class = args.class.map(|class| Tensor::full([args.count], class, (Kind::Int64, loaded.device)));
    let first_frames = if region.is_none() { clip.first_frames()? } else { None };
    let condition = Condition { first_frames, class, text, ..Condition::default() };
    let options = SampleOptions {
        batch: args.count,
        seed: args.seed,
        filter: Filter { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        guidance: args.guidance,
    };
    let started = Instant::now();
    let sampled = match &region {
        None => generator.sample_in_steps(&condition, &options)?,
        Some(region) => generator.sample_in_region(region, &condition, &options)?,
    };
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

/// The embeddings of the text, once per clip, by the encoder that the generator was trained with.
fn embedded(
    words: &str,
    args: &SampleArgs,
    trained: Option<&TrainedText>,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let trained = trained.with_context(|| {
        format!(
            "--text {words:?}: this generator was trained without texts; [generator.text] trains with them"
        )
    })?;
    let encoder = args.text_encoder.clone().unwrap_or_else(|| trained.config.encoder.clone());
    let text = TextConfig { encoder, ..trained.config.clone() };
    let encoder = text.open(device).context("--text-encoder names another folder")?;
    let fingerprint = text.fingerprint()?;
    ensure!(
        fingerprint == trained.fingerprint,
        "the generator was trained with the text encoder {}, but {} is {fingerprint}: name the former with --text-encoder",
        trained.fingerprint,
        text.encoder.display()
    );
    let (states, mask) = encoder.encode(&[words]).context("--text")?;
    Ok((states.repeat([args.count, 1, 1]), mask.repeat([args.count, 1])))
}

/// What of a clip is given.
struct Clip<'a> {
    args: &'a SampleArgs,
    loaded: &'a LoadedTokenizer,
    grid: GridShape,
}

impl Clip<'_> {
    /// A video `[1, 3, t, H, W]` in the size of the generator's clips.
    fn read(&self, path: &Path, max_frames: Option<u64>) -> Result<Tensor> {
        let compression = self.loaded.tokenizer.compression();
        let size = Some(Size {
            height: self.grid.height * compression.height,
            width: self.grid.width * compression.width,
            fit: Fit::Cover,
        });
        Ok(if is_image(path) {
            read_image(path, size)?
        } else {
            read_video(path, &DecodeOptions { max_frames, size, ..DecodeOptions::default() })?
        })
    }

    /// The frames that `--first-frames` gives, of which there must be `--frames`.
    fn first(&self, path: &Path) -> Result<Tensor> {
        let video = self.read(path, Some(self.args.frames))?;
        let frames = video.size()[2];
        ensure!(
            frames as u64 == self.args.frames,
            "{}: {frames} frames, but --frames {} are to be given",
            path.display(),
            self.args.frames
        );
        Ok(video)
    }

    fn tokens(&self, video: &Tensor) -> Result<TokenGrid> {
        self.loaded.tokenizer.encode(&video.to_device(self.loaded.device)).with_context(|| {
            let time = self.loaded.tokenizer.compression().time;
            format!("--frames {}: the tokenizer takes 1 + k·{time} frames", self.args.frames)
        })
    }

    /// The tokens of the frames to continue, once per clip.
    fn first_frames(&self) -> Result<Option<TokenGrid>> {
        let Some(path) = &self.args.first_frames else { return Ok(None) };
        let tokens = self.tokens(&self.first(path)?)?;
        Ok(Some(self.once_per_clip(tokens.ids())?))
    }

    fn once_per_clip(&self, ids: &Tensor) -> Result<TokenGrid> {
        Ok(TokenGrid::new(ids.repeat([self.args.count, 1, 1, 1]))?)
    }

    /// Tokens of a clip and which of them are given, for interpolation, in- and outpainting.
    fn region(&self) -> Result<Option<RegionCondition>> {
        let (video, region) = match (&self.args.first_frames, &self.args.last_frames, &self.args.edit) {
            (Some(first), Some(last), _) => self.ends(first, last)?,
            (_, _, Some(video)) => self.edited(video)?,
            _ => return Ok(None),
        };
        let ids = self.once_per_clip(self.tokens(&video)?.ids())?.ids().shallow_clone();
        Ok(Some(RegionCondition { ids, region: region.to_device(self.loaded.device) }))
    }

    /// Both ends of a clip and between them their mixture; as many latent frames are given at the end as at the beginning.
    fn ends(&self, first: &Path, last: &Path) -> Result<(Tensor, Tensor)> {
        let tokenizer = &self.loaded.tokenizer;
        let first = self.first(first)?;
        let latents = self.tokens(&first)?.shape().frames;
        let all = self.grid.frames;
        ensure!(
            2 * latents < all,
            "--frames {}: that gives {latents} of {all} latent frames at each end, which leaves nothing between them",
            self.args.frames
        );
        let (frames, wanted) =
            (tokenizer.frames(all), tokenizer.frames(all) - tokenizer.frames(all - latents));
        let mut end = self.read(last, None)?;
        if is_image(last) {
            end = end.repeat([1, 1, wanted, 1, 1]);
        }
        let found = end.size()[2];
        ensure!(
            found >= wanted,
            "{}: {found} frames, but the last {latents} latent frames stand for {wanted}",
            last.display()
        );
        let end = end.narrow(2, found - wanted, wanted);
        let (before, between) = (first.size()[2], frames - first.size()[2] - wanted);
        let shares = Tensor::arange_start(1, between + 1, tch::kind::FLOAT_CPU) / (between + 1);
        let (from, to) = (first.narrow(2, before - 1, 1), end.narrow(2, 0, 1));
        let mixture = &from + (to - &from) * shares.view([1, 1, -1, 1, 1]);
        let given: Vec<bool> = (0..all).map(|t| t < latents || t >= all - latents).collect();
        Ok((Tensor::cat(&[first, mixture, end], 2), Tensor::from_slice(&given).view([1, -1, 1, 1])))
    }

    /// A clip in which a rectangle is kept and the rest is to be made, or the other way round. Only tokens all of whose
    /// pixels are given are.
    fn edited(&self, path: &Path) -> Result<(Tensor, Tensor)> {
        let frames = self.loaded.tokenizer.frames(self.grid.frames);
        let video = self.read(path, Some(frames as u64))?;
        ensure!(
            video.size()[2] == frames,
            "{}: {} frames, but the generator makes clips of {frames}",
            path.display(),
            video.size()[2]
        );
        let (flag, text, keep) = match (&self.args.keep, &self.args.renew) {
            (Some(text), _) => ("--keep", text, true),
            (None, text) => ("--renew", text.as_ref().expect("the command line asks for one"), false),
        };
        let (height, width) = (video.size()[3], video.size()[4]);
        let [x, y, columns, rows] = rectangle(text, height, width).with_context(|| flag.to_string())?;
        let compression = self.loaded.tokenizer.compression();
        let along = |cells: i64, stride: i64, from: i64, size: i64| -> Tensor {
            let (first, end) = match keep {
                true => ((from + stride - 1) / stride, (from + size) / stride),
                false => (from / stride, (from + size + stride - 1) / stride),
            };
            Tensor::from_slice(&(0..cells).map(|cell| (first..end).contains(&cell)).collect::<Vec<_>>())
        };
        let inside = along(self.grid.height, compression.height, y, rows).unsqueeze(1).logical_and(&along(
            self.grid.width,
            compression.width,
            x,
            columns,
        ));
        let given = if keep { inside } else { inside.logical_not() };
        let count = given.sum(Kind::Int64).int64_value(&[]);
        ensure!(
            count > 0 && count < given.numel() as i64,
            "{flag} {text}: {count} of {} tokens of {}×{} pixels would be given: expected some, and not all",
            given.numel(),
            compression.height,
            compression.width
        );
        // What is not given must not shine through: the nearest given pixels stand in its place, or the given ones' mean colour.
        let index = |size: i64, from: i64, length: i64| {
            Tensor::arange(size, (Kind::Int64, Device::Cpu)).clamp(from, from + length - 1)
        };
        let padded = if keep {
            let inner = video.index_select(3, &index(height, y, rows));
            inner.index_select(4, &index(width, x, columns))
        } else {
            let padded = video.copy();
            let hidden = padded.narrow(3, y, rows).narrow(4, x, columns);
            let sum = |pixels: &Tensor| pixels.sum_dim_intlist([2i64, 3, 4].as_slice(), true, Kind::Float);
            let given = frames * (height * width - rows * columns);
            let mean = (sum(&video) - sum(&hidden)) / given;
            hidden.shallow_clone().copy_(&mean.expand_as(&hidden));
            padded
        };
        Ok((padded, given.view([1, 1, self.grid.height, self.grid.width])))
    }
}

/// `X,Y,WIDTH,HEIGHT` on the command line, inside a frame.
fn rectangle(text: &str, height: i64, width: i64) -> Result<[i64; 4]> {
    let numbers: Option<Vec<i64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let inside = |&[x, y, w, h]: &[i64; 4]| {
        x >= 0 && y >= 0 && w > 0 && h > 0 && w <= width && h <= height && x <= width - w && y <= height - h
    };
    numbers.and_then(|numbers| <[i64; 4]>::try_from(numbers).ok()).filter(inside).with_context(|| {
        format!("{text}: expected X,Y,WIDTH,HEIGHT in pixels, inside the clip's {width}×{height}")
    })
}
