//! The pipeline: training, evaluation on held-out clips, report; each stage only if its output is not there already.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use metrics::psnr::{PsnrConvention, mean_colour_psnr, psnr};
use metrics::ssim::{SsimConvention, ssim};
use metrics::usage::CodebookUsage;
use tch::{Device, Tensor};
use training::{Batches, Checkpoint, Outcome, Trainer};
use video_core::{VideoShape, seeds};
use video_data::{Batch, Clip, ClipSource, Loader, LoaderConfig, Split};

use crate::config::RunConfig;
use crate::evaluation::{ClipScore, Evaluation};
use crate::generation::{self, Generation};
use crate::objective::TokenizerObjective;
use crate::tokenizer::{self, LoadedTokenizer, Tokenizer, WEIGHTS_FILE, device, save};
use crate::{files, report};

/// The file of a run that holds its resolved config.
pub const CONFIG_FILE: &str = "config.toml";

/// All stages. Finished ones are skipped when their output is there and the config did not change.
///
/// # Errors
/// Whatever a stage cannot do; what was finished stays, and running again continues.
pub fn run(config: &RunConfig, runs: &Path) -> Result<()> {
    let run = runs.join(&config.name);
    let trained = train(config, runs)?;
    let evaluated = Evaluation::read(&run).is_ok_and(|evaluation| evaluation.step == trained);
    if !evaluated {
        evaluate(config, &run, trained)?;
    } else {
        eprintln!("evaluation is there already");
    }
    let evaluation = Evaluation::read(&run)?;
    if let Some((config, generator)) = config.second_stage() {
        let trained = generation::train(&config, &generator, &run)?;
        if Generation::read(&run)?.is_none_or(|generation| generation.step != trained) {
            generation::evaluate(&config, &generator, &run, trained)?;
        }
    }
    print_summary(&evaluation);
    if let Some(generation) = Generation::read(&run)? {
        generation::print_summary(&generation);
    }
    println!("report: {}", report::write(&run)?.display());
    Ok(())
}

/// The training stage; gives the number of steps behind the weights.
///
/// # Errors
/// The config was changed since the run began, another process writes the folder, training stops on a NaN.
pub fn train(config: &RunConfig, runs: &Path) -> Result<u64> {
    let run = runs.join(&config.name);
    let device = device(&config.device)?;
    if let Some(from) = &config.tokenizer_from {
        return take_tokenizer(config, from, runs);
    }
    if run.join(WEIGHTS_FILE).exists()
        && let Some(latest) = Checkpoint::latest(&run)?
    {
        let checkpoint = Checkpoint::load(&latest)?;
        if checkpoint.step() == config.train.steps && checkpoint.model_config() == &model_description(config)?
        {
            eprintln!("training is finished already: {} steps", checkpoint.step());
            return Ok(checkpoint.step());
        }
    }
    if let Some((config, generator)) = config.second_stage() {
        generation::check(&config, &generator)?;
    }
    // All that the config may get wrong comes before the run's folder is made.
    seeds::seed_torch(config.seed, seeds::Stream::Init, 0);
    let mut objective = TokenizerObjective::new(config, device)?;
    check_sizes(config, &objective.tokenizer)?;
    let mut batches = open_batches(config)?;
    let held_out = held_out_clips(config, config.evaluation.clips_while_training)?;
    let mut train_config = config.train.clone();
    train_config.seed = config.seed;
    let mut trainer = Trainer::new(&run, train_config)?.describe(model_description(config)?);
    files::write_whole(&run.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
    let outcome = trainer.train(&mut objective, &mut batches, |objective, _step| {
        let scores = tch::no_grad(|| score(&objective.tokenizer, device, &held_out))
            .map_err(|e| video_core::Error::input("evaluation", e.to_string(), "held-out clips"))?;
        Ok(scores.logged())
    })?;
    batches.report_skipped();
    leave_if_interrupted(&outcome, config.train.steps);
    eprintln!(
        "trained {} steps in {:.0} s; {:.1} % of the time was spent waiting for data",
        outcome.step,
        outcome.seconds,
        outcome.waiting_share * 100.0
    );
    let weights = Checkpoint::load(&outcome.checkpoint)?.weights("tokenizer", true)?;
    save(&run.join(WEIGHTS_FILE), &config.tokenizer, &weights)?;
    Ok(outcome.step)
}

/// The tokenizer stage of a run that takes another's: a copy of it, and the number of steps behind it (0 for a bare file).
fn take_tokenizer(config: &RunConfig, from: &Path, runs: &Path) -> Result<u64> {
    if let Some((config, generator)) = config.second_stage() {
        generation::check(&config, &generator)?;
    }
    let from = if from.exists() { from.to_path_buf() } else { runs.join(from) };
    let source = if from.is_dir() { from.join(WEIGHTS_FILE) } else { from.clone() };
    let trained = tokenizer::read_config(&from).context("tokenizer_from")?;
    let (theirs, ours) = (serde_json::to_value(&trained)?, serde_json::to_value(&config.tokenizer)?);
    if let Some((field, theirs, ours)) = training::first_difference("tokenizer", &theirs, &ours) {
        bail!(
            "tokenizer_from: {} was trained with {field} = {theirs}, but the config has {ours}: take [tokenizer] from the run that trained it",
            source.display()
        );
    }
    let step = match Evaluation::read(&from) {
        Ok(evaluation) => evaluation.step,
        Err(_) => 0,
    };
    let run = runs.join(&config.name);
    std::fs::create_dir_all(&run).with_context(|| format!("cannot make the folder {}", run.display()))?;
    files::write_whole(&run.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
    let bytes = std::fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let target = run.join(WEIGHTS_FILE);
    if std::fs::read(&target).ok().as_ref() != Some(&bytes) {
        files::write_whole(&target, &bytes)?;
        // It was another tokenizer's.
        let _ = std::fs::remove_file(run.join(Evaluation::FILE));
    }
    eprintln!("took the tokenizer of {}", source.display());
    Ok(step)
}

/// Leaves the process after Ctrl-C.
pub(crate) fn leave_if_interrupted(outcome: &Outcome, steps: u64) {
    if outcome.interrupted {
        println!(
            "stopped after {} of {steps} steps; saved in {}. The same command continues",
            outcome.step,
            outcome.checkpoint.display()
        );
        std::process::exit(130);
    }
}

/// Refuses clips that the tokenizer's strides do not divide, before the first of them comes.
fn check_sizes(config: &RunConfig, tokenizer: &Tokenizer) -> Result<()> {
    for split in [Split::Train, Split::HeldOut] {
        for (height, width) in config.data.sizes(split) {
            let shape = VideoShape { height, width, ..config.clip_shape() };
            tokenizer.grid_shape(shape).map_err(|error| error.within("data.clip"))?;
        }
    }
    Ok(())
}

/// `vireo eval`: the evaluation of both stages again, with overrides of the run's config.
///
/// # Errors
/// The folder is no finished run; the overrides mean nothing.
pub fn eval(run: &Path, overrides: &[String], dry_run: bool) -> Result<()> {
    let path = run.join(CONFIG_FILE);
    if !path.exists() {
        bail!(
            "{} is no run's folder: {CONFIG_FILE} is missing; `vireo run CONFIG` makes runs",
            run.display()
        );
    }
    let config = RunConfig::load(&path, overrides)?;
    let step = match Checkpoint::latest(run)? {
        Some(latest) => Checkpoint::load(latest)?.step(),
        None if config.tokenizer_from.is_some() => Evaluation::read(run)?.step,
        None => bail!("{} holds no checkpoint", run.display()),
    };
    if dry_run {
        let loaded = LoadedTokenizer::open(run, device(&config.device)?)?;
        print_summary(&measure(&config, &loaded, step)?.0);
    } else {
        evaluate(&config, run, step)?;
        print_summary(&Evaluation::read(run)?);
    }
    if let (Some((config, generator)), Some(before)) = (config.second_stage(), Generation::read(run)?) {
        let generation = if dry_run {
            generation::measure(&config, &generator, run, before.step, None)?
        } else {
            generation::evaluate(&config, &generator, run, before.step)?
        };
        generation::print_summary(&generation);
    }
    if dry_run {
        return Ok(());
    }
    println!("report: {}", report::write(run)?.display());
    Ok(())
}

/// What must not change when a run is resumed.
fn model_description(config: &RunConfig) -> Result<serde_json::Value> {
    Ok(serde_json::json!({
        "data": serde_json::to_value(&config.data)?,
        "batch_size": config.loader.batch_size,
        "tokenizer": serde_json::to_value(&config.tokenizer)?,
        "objective": serde_json::to_value(&config.objective)?,
    }))
}

/// The loader, as the trainer wants it.
struct LoaderBatches {
    loader: Loader,
}

impl Batches for LoaderBatches {
    type Batch = Batch;

    fn next(&mut self) -> video_core::Result<Batch> {
        self.loader
            .next()
            .map_err(|e| video_core::Error::input("training data", e.to_string(), "readable clips"))
    }

    fn position(&self) -> u64 {
        self.loader.position()
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.loader.seek(position);
        Ok(())
    }
}

impl LoaderBatches {
    fn report_skipped(&self) {
        if self.loader.skipped() > 0 {
            eprintln!(
                "{} unreadable files were skipped; their names are in the warnings",
                self.loader.skipped()
            );
        }
    }
}

fn open_batches(config: &RunConfig) -> Result<LoaderBatches> {
    let source: Arc<dyn ClipSource> = Arc::from(video_data::open(&config.data, Split::Train, config.seed)?);
    let settings = &config.loader;
    let loader_config = LoaderConfig {
        batch_size: settings.batch_size,
        workers: settings.workers,
        prefetch: settings.prefetch,
        seed: config.seed,
    };
    Ok(LoaderBatches { loader: Loader::new(source, loader_config, 0)? })
}

/// Held-out clips, spread over all there are; always the same ones.
pub(crate) fn held_out_clips(config: &RunConfig, count: usize) -> Result<Vec<Clip>> {
    let source = video_data::open(&config.data, Split::HeldOut, config.seed)?;
    let (clips, unreadable) = video_data::spread_clips(source.as_ref(), count)?;
    if let Some(first) = unreadable.first() {
        eprintln!(
            "{} held-out clips cannot be read and are left out, the first of them {}: {}",
            unreadable.len(),
            first.name,
            first.reason
        );
    }
    Ok(clips)
}

/// The conventions in which everything here is scored.
pub(crate) const PSNR: PsnrConvention = PsnrConvention::Cap100;
/// As [`PSNR`].
pub(crate) const SSIM: SsimConvention = SsimConvention::Teco;

/// A tensor's numbers.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.to_device(Device::Cpu).to_kind(tch::Kind::Double).view(-1))?)
}

/// Clips of a forward pass during evaluation.
const EVAL_BATCH: usize = 8;

/// Raw scores of held-out clips.
struct Scores {
    psnr: Vec<f64>,
    ssim: Vec<f64>,
    mean_colour_psnr: Vec<f64>,
    codebook: Option<CodebookUsage>,
    reconstructions: Vec<Tensor>,
}

impl Scores {
    fn logged(&self) -> Vec<(String, f64)> {
        let mut scalars =
            vec![("psnr".to_string(), mean(&self.psnr)), ("ssim".to_string(), mean(&self.ssim))];
        if let Some(codebook) = &self.codebook {
            scalars.push(("used_share".into(), codebook.used_share()));
            scalars.push(("perplexity".into(), codebook.perplexity()));
        }
        scalars.retain(|(_, value)| value.is_finite());
        scalars
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Encodes and decodes clips `[3, T, H, W]` in [-1, 1] and scores the result.
fn score(tokenizer: &Tokenizer, device: Device, clips: &[Clip]) -> Result<Scores> {
    let mut scores = Scores {
        psnr: Vec::new(),
        ssim: Vec::new(),
        mean_colour_psnr: Vec::new(),
        codebook: tokenizer.vocabulary_size().map(CodebookUsage::new).transpose()?,
        reconstructions: Vec::new(),
    };
    // Clips of different buckets differ in size.
    let alike = clips.chunk_by(|a, b| a.video.size() == b.video.size());
    for group in alike.flat_map(|alike| alike.chunks(EVAL_BATCH)) {
        let videos: Vec<Tensor> = group.iter().map(Clip::to_float).collect();
        let video = Tensor::stack(&videos, 0).to_device(device);
        let (reconstruction, grid) = tokenizer.reconstruct(&video)?;
        if let (Some(codebook), Some(grid)) = (&mut scores.codebook, grid) {
            codebook.add(grid.ids())?;
        }
        scores.psnr.extend(numbers(&psnr(&reconstruction, &video, PSNR)?)?);
        scores.mean_colour_psnr.extend(numbers(&mean_colour_psnr(&video, PSNR)?)?);
        let size = video.size();
        if size[3].min(size[4]) >= SSIM.window_size() {
            scores.ssim.extend(numbers(&ssim(&reconstruction, &video, SSIM)?)?);
        }
        let reconstruction = reconstruction.to_device(Device::Cpu);
        scores.reconstructions.extend((0..size[0]).map(|i| reconstruction.get(i)));
    }
    Ok(scores)
}

/// The evaluation and the scores behind it.
fn measure(
    config: &RunConfig,
    loaded: &LoadedTokenizer,
    step: u64,
) -> Result<(Evaluation, Vec<Clip>, Scores)> {
    let clips = held_out_clips(config, config.evaluation.clips)?;
    let first = clips.first().context("the data set holds no clip that was held out: raise data.held_out")?;
    let size = first.to_float().size();
    let shape = VideoShape { batch: 1, channels: size[0], frames: size[1], height: size[2], width: size[3] };
    let scores = tch::no_grad(|| score(&loaded.tokenizer, loaded.device, &clips))?;
    let compression = loaded.tokenizer.compression();
    let grid = loaded.tokenizer.grid_shape(shape)?;
    let figures = metrics::compression::figures_of_grid(&compression, shape, grid);
    let mut extra = Vec::new();
    let mut absent = Vec::new();
    crate::pretrained::measure(
        config,
        loaded.device,
        &clips,
        &scores.reconstructions,
        &mut extra,
        &mut absent,
    )?;
    let evaluation = Evaluation {
        step,
        clips: clips.len(),
        frames: shape.frames,
        height: shape.height,
        width: shape.width,
        compression,
        tokens_per_clip: figures.tokens,
        bits_per_pixel: figures.bits_per_pixel,
        ratio_to_rgb24: figures.ratio_to_rgb24,
        psnr: mean(&scores.psnr),
        ssim: mean(&scores.ssim),
        mean_colour_psnr: mean(&scores.mean_colour_psnr),
        vocabulary_size: loaded.tokenizer.vocabulary_size(),
        used_share: scores.codebook.as_ref().map(CodebookUsage::used_share),
        perplexity: scores.codebook.as_ref().map(|codebook| codebook.perplexity()),
        absent,
        extra,
        per_clip: clips
            .iter()
            .enumerate()
            .map(|(i, clip)| ClipScore {
                name: clip.name.clone(),
                psnr: scores.psnr[i],
                ssim: scores.ssim.get(i).copied().unwrap_or(f64::NAN),
            })
            .collect(),
    };
    Ok((evaluation, clips, scores))
}

/// The evaluation stage: `evaluation.json` and `samples/`.
fn evaluate(config: &RunConfig, run: &Path, step: u64) -> Result<()> {
    let loaded = LoadedTokenizer::open(run, device(&config.device)?)?;
    let (evaluation, clips, scores) = measure(config, &loaded, step)?;
    let samples: PathBuf = run.join("samples");
    std::fs::create_dir_all(&samples)
        .with_context(|| format!("cannot make the folder {}", samples.display()))?;
    let shown = config.evaluation.samples.min(clips.len());
    for (index, (clip, reconstruction)) in clips.iter().zip(&scores.reconstructions).take(shown).enumerate() {
        let pair = Tensor::cat(&[clip.to_float(), reconstruction.shallow_clone()], 3);
        video_data::write_gif(&samples.join(format!("clip-{index:02}.gif")), &pair, 8.0)?;
    }
    files::write_whole(&run.join(Evaluation::FILE), serde_json::to_string_pretty(&evaluation)?.as_bytes())
}

fn print_summary(e: &Evaluation) {
    println!(
        "{} held-out clips: PSNR {:.2} dB (mean colour {:.2} dB), SSIM {:.4}, {:.1} : 1 against 24-bit RGB",
        e.clips, e.psnr, e.mean_colour_psnr, e.ssim, e.ratio_to_rgb24
    );
    if let (Some(size), Some(share), Some(perplexity)) = (e.vocabulary_size, e.used_share, e.perplexity) {
        println!("codebook: {:.1} % of {size} codes in use, perplexity {perplexity:.1}", share * 100.0);
    }
    for (name, value) in &e.extra {
        println!("{name}: {value:.4}");
    }
    for (name, why) in &e.absent {
        println!("{name}: not computed: {why}");
    }
}
