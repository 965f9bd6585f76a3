//! The second stage of a run: a generator on the tokens of the first, trained, judged and sampled.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use metrics::psnr::psnr;
use metrics::ssim::ssim;
use metrics::usage::CodebookUsage;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use training::{Checkpoint, Objective, Part, StepLoss, Trainer};
use video_core::{Condition, ConditionKind, SampleOptions, TokenGrid, VideoShape, seeds};
use video_data::Clip;

use crate::config::{GeneratorRun, RunConfig};
use crate::files;
use crate::generator::{GENERATOR_FILE, Generator, GeneratorConfig, LoadedGenerator, Sampled, save};
use crate::pipeline::{PSNR, SSIM, held_out_clips, numbers};
use crate::token_cache::{CachedTokens, TokenBatch, TokenCache};
use crate::tokenizer::{LoadedTokenizer, Tokenizer};

/// The folder of a run in which its generator is trained.
pub const GENERATOR_FOLDER: &str = "generator";

/// What is measured of a generator, as it stands in `generation.json` and in the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// Training steps behind the weights.
    pub step: u64,
    /// Cross-entropy of held-out tokens as the model is trained to predict them, in bits per token.
    pub bits_per_token: f64,
    /// Of autoregressive generators, whose `bits_per_token` are exact (raster order, time first): the same bits over the RGB
    /// values of the clip. The likelihood is that of the tokens, not of the pixels: a lossy code, as long as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_dimension: Option<f64>,
    /// Half the sum of differences between the histograms of sampled and held-out ids: 0 equal, 1 disjoint.
    pub histogram_distance: f64,
    /// The same between two halves of the held-out clips: what a perfect generator would get.
    pub histogram_floor: f64,
    /// Forward passes for a sample.
    pub sampling_steps: usize,
    /// Seconds for a sample, in a batch of `clips`.
    pub seconds_per_clip: f64,
    /// Clips that were sampled, and that were continued.
    pub clips: usize,
    /// Continuation of held-out clips, if the model was trained for it.
    pub prediction: Option<Prediction>,
    /// FVD of what was sampled and continued, with its conventions in the name.
    #[serde(default)]
    pub extra: Vec<(String, f64)>,
    /// What was not computed, and why.
    #[serde(default)]
    pub absent: Vec<(String, String)>,
}

/// Held-out clips continued from their first frames. All figures are of the frames after these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// Frames that were given.
    pub given: i64,
    /// Frames that were made.
    pub made: i64,
    /// PSNR, dB.
    pub psnr: f64,
    /// SSIM.
    pub ssim: f64,
    /// PSNR of repeating the last given frame, dB.
    pub copy_psnr: f64,
    /// SSIM of repeating the last given frame.
    pub copy_ssim: f64,
    /// PSNR of the tokenizer's reconstruction of these frames, dB: more is out of reach.
    pub tokenizer_psnr: f64,
    /// PSNR frame by frame, dB.
    pub psnr_by_frame: Vec<f64>,
    /// PSNR of repeating the last given frame, frame by frame, dB.
    pub copy_psnr_by_frame: Vec<f64>,
}

impl Generation {
    /// The file's name within a run's folder.
    pub const FILE: &'static str = "generation.json";

    /// Reads `generation.json` of a run; `None` if there is none.
    ///
    /// # Errors
    /// The file is malformed.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(Self::FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?))
    }
}

/// A generator's loss on cached tokens.
struct GeneratorObjective {
    generator: Generator,
    variables: nn::VarStore,
    seed: u64,
}

impl Objective for GeneratorObjective {
    type Batch = TokenBatch;

    fn parts(&self) -> Vec<Part<'_>> {
        vec![Part::new("generator", &self.variables)]
    }

    fn loss(&mut self, _part: usize, batch: &TokenBatch, step: u64) -> video_core::Result<StepLoss> {
        let seed = seeds::derive(self.seed, seeds::Stream::Step, step);
        let [loss, _] = self.generator.losses(batch, self.variables.device(), seed)?;
        Ok(StepLoss::new(loss))
    }
}

/// Refuses a generator that does not fit the run's tokenizer, before anything is trained.
///
/// # Errors
/// Vocabulary or grid differ; more frames given than a clip has.
pub fn check(config: &RunConfig, generator: &GeneratorRun) -> Result<()> {
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = config.tokenizer.build(&variables.root())?;
    let vocabulary =
        tokenizer.vocabulary_size().context("a generator needs a tokenizer with discrete codes")?;
    let (height, width) = config.data.clip.size.height_width();
    let shape = VideoShape { height, width, ..config.clip_shape() };
    generator.model.check_tokenizer(vocabulary, tokenizer.grid_shape(shape)?)?;
    generator.model.build(&variables.root(), &tokenizer)?;
    if let Some(coarse) = generator.model.coarse_grid() {
        let fine = generator.model.latent()?;
        let (height, width) = (height * coarse.height / fine.height, width * coarse.width / fine.width);
        let small = VideoShape { height, width, ..shape };
        let made = tokenizer.grid_shape(small)?;
        ensure!(
            made == coarse,
            "generator.model.base.grid = {coarse:?}, but the tokenizer makes {made:?} of clips of {height}×{width} pixels"
        );
    }
    check_conditions(config, generator)?;
    ensure!(generator.clips > 0, "generator.clips = 0: expected at least 1");
    ensure!(generator.batch_size > 0, "generator.batch_size = 0: expected at least 1");
    ensure!(generator.evaluation.clips > 0, "generator.evaluation.clips = 0: expected at least 1");
    let (grid, tokens) = (generator.model.grid()?, (Kind::Int64, Device::Cpu));
    let clip = TokenGrid::new(Tensor::zeros([1, grid.frames, grid.height, grid.width], tokens))?;
    let (given, frames) = (generator.evaluation.given_frames, generator.model.latent()?.frames);
    ensure!(
        (1..frames.max(2)).contains(&given),
        "generator.evaluation.given_frames = {given}: expected at least 1 and fewer than the grid's {frames}"
    );
    generator.model.first_frames(&clip, given)?;
    Ok(())
}

/// Refuses a class or a text as condition where the clips have none.
fn check_conditions(config: &RunConfig, generator: &GeneratorRun) -> Result<()> {
    if let Some(text) = &generator.text {
        generator.model.check_text(text)?;
    }
    let classes = generator.model.num_classes();
    if classes == 0 && generator.text.is_none() {
        return Ok(());
    }
    let source = &config.data.source;
    // A few tell what all are like; the token cache sees the rest.
    for clip in held_out_clips(config, 16)? {
        if classes > 0 {
            let class = clip.class.with_context(|| {
                format!(
                    "generator.model.num_classes = {classes}, but {:?} of {source:?} has no class",
                    clip.name
                )
            })?;
            ensure!(
                (0..classes).contains(&class),
                "generator.model.num_classes = {classes}, but {:?} of {source:?} has class {class}: expected more than {class}",
                clip.name
            );
        }
        if generator.text.is_some() && clip.caption.is_none() {
            bail!("generator.text is given, but {:?} of {source:?} has no caption", clip.name);
        }
    }
    Ok(())
}

/// Trains a run's generator; gives the number of steps behind the weights.
///
/// # Errors
/// As [`crate::pipeline::train`].
pub fn train(config: &RunConfig, generator: &GeneratorRun, run: &Path) -> Result<u64> {
    let loaded = LoadedTokenizer::open(run, crate::tokenizer::device(&config.device)?)?;
    let folder = run.join(GENERATOR_FOLDER);
    let mut description = serde_json::json!({
        "tokenizer": loaded.fingerprint,
        "data": serde_json::to_value(&config.data)?,
        "generator": serde_json::to_value(&generator.model)?,
        "clips": generator.clips,
        "batch_size": generator.batch_size,
    });
    if let Some(text) = &generator.text {
        description["text"] = text.fingerprint()?.into();
    }
    if run.join(GENERATOR_FILE).exists()
        && let Some(latest) = Checkpoint::latest(&folder)?
    {
        let checkpoint = Checkpoint::load(&latest)?;
        if checkpoint.step() == generator.train.steps && checkpoint.model_config() == &description {
            eprintln!("the generator is trained already: {} steps", checkpoint.step());
            return Ok(checkpoint.step());
        }
    }
    seeds::seed_torch(config.seed, seeds::Stream::Init, 1);
    let variables = nn::VarStore::new(loaded.device);
    let built = generator.model.build(&variables.root(), &loaded.tokenizer)?;
    let cache = TokenCache::open_or_make(config, generator, &loaded, run)?;
    let (classes, most) = (generator.model.num_classes(), cache.largest_class());
    ensure!(
        classes == 0 || most.is_some_and(|most| most < classes),
        "generator.model.num_classes = {classes}, but the training clips have {}",
        most.map_or("no classes".into(), |most| format!("class {most}: expected more than {most}"))
    );
    let clips = held_out_clips(config, generator.evaluation.clips)?;
    let held_out = TokenBatch::of_clips(&clips, generator, &loaded)?;
    let plain = generator.model.plain();
    let mut objective = GeneratorObjective { generator: built, variables, seed: config.seed };
    let mut batches =
        CachedTokens { cache, batch_size: generator.batch_size, seed: config.seed, position: 0 };
    let mut train_config = generator.train.clone();
    train_config.seed = config.seed;
    let mut trainer = Trainer::new(&folder, train_config)?.describe(description);
    let outcome = trainer.train(&mut objective, &mut batches, |objective, _step| {
        let bits = plain_bits(&plain, &objective.variables, &loaded.tokenizer, &held_out)
            .map_err(|e| video_core::Error::input("evaluation", e.to_string(), "held-out tokens"))?;
        Ok(vec![("bits_per_token".to_string(), bits)])
    })?;
    crate::pipeline::leave_if_interrupted(&outcome, generator.train.steps);
    eprintln!("trained the generator for {} steps in {:.0} s", outcome.step, outcome.seconds);
    let weights = Checkpoint::load(&outcome.checkpoint)?.weights("generator", true)?;
    save(
        &run.join(GENERATOR_FILE),
        &generator.model,
        &loaded.fingerprint,
        generator.text.as_ref(),
        &weights,
    )?;
    Ok(outcome.step)
}

/// Held-out cross-entropy of a network under training, without its dropout and label smoothing.
fn plain_bits(
    plain: &GeneratorConfig,
    trained: &nn::VarStore,
    tokenizer: &Tokenizer,
    held_out: &TokenBatch,
) -> Result<f64> {
    let mut variables = nn::VarStore::new(trained.device());
    let generator = plain.build(&variables.root(), tokenizer)?;
    variables.copy(trained)?;
    bits_per_token(&generator, held_out, trained.device())
}

/// Exact where the generator gives the likelihood of a clip, else the mean over a few draws of what the loss masks.
fn bits_per_token(generator: &Generator, held_out: &TokenBatch, device: Device) -> Result<f64> {
    let condition = generator.condition(held_out, device);
    if let Some(nats) = generator.exact_nats(&held_out.tokens.to_device(device), &condition)? {
        let tokens = held_out.tokens.shape().tokens() as f64;
        return Ok(nats.mean(Kind::Double).double_value(&[]) / tokens / std::f64::consts::LN_2);
    }
    const DRAWS: u64 = 4;
    let mut sum = 0.0;
    for seed in 0..DRAWS {
        let [_, nats] = tch::no_grad(|| generator.losses(held_out, device, seed))?;
        sum += f64::try_from(nats)?;
    }
    Ok(sum / DRAWS as f64 / std::f64::consts::LN_2)
}

/// Judges a run's generator: `generation.json`, and samples and continuations in `samples/`.
///
/// # Errors
/// Files are missing or cannot be written.
pub fn evaluate(config: &RunConfig, generator: &GeneratorRun, run: &Path, step: u64) -> Result<Generation> {
    let samples = run.join("samples");
    std::fs::create_dir_all(&samples)
        .with_context(|| format!("cannot make the folder {}", samples.display()))?;
    let generation = measure(config, generator, run, step, Some(&samples))?;
    files::write_whole(&run.join(Generation::FILE), serde_json::to_string_pretty(&generation)?.as_bytes())?;
    Ok(generation)
}

/// The figures of a run's generator under a config; samples and continuations go to a folder if one is named.
///
/// # Errors
/// Files are missing or cannot be written; the config has other weights than the run.
pub fn measure(
    config: &RunConfig,
    generator: &GeneratorRun,
    run: &Path,
    step: u64,
    samples: Option<&Path>,
) -> Result<Generation> {
    let loaded = LoadedTokenizer::open(run, crate::tokenizer::device(&config.device)?)?;
    let LoadedGenerator { generator: model, .. } =
        LoadedGenerator::open_as(run, &loaded, Some(&generator.model))?;
    let settings = &generator.evaluation;
    let clips = held_out_clips(config, settings.clips)?;
    let held_out = TokenBatch::of_clips(&clips, generator, &loaded)?;
    let tokens = &held_out.tokens;
    let options = SampleOptions {
        batch: clips.len() as i64,
        seed: seeds::derive(config.seed, seeds::Stream::Sample, 0),
        filter: settings.filter,
        guidance: settings.guidance,
    };
    let started = Instant::now();
    let sampled = model.sample_in_steps(&model.condition(&held_out, loaded.device), &options)?;
    let seconds = started.elapsed().as_secs_f64();
    let generated = loaded.tokenizer.decode(&sampled.tokens)?.to_device(Device::Cpu);
    if let Some(folder) = samples {
        write_samples(&loaded, &sampled, &generated, settings.samples.min(clips.len()), folder)?;
    }
    let originals: Vec<Tensor> = clips.iter().map(Clip::to_float).collect();
    let (mut extra, mut absent) = (Vec::new(), Vec::new());
    let mut judge = |name: &str, made: &Tensor| {
        let made = made.unbind(0);
        crate::pretrained::measure_fvd(
            config,
            loaded.device,
            name,
            &originals,
            &made,
            &mut extra,
            &mut absent,
        )
    };
    judge("FVD of samples", &generated)?;

    let prediction = if model.serves().contains(&ConditionKind::FirstFrames) {
        let predicted = predict(&model, &loaded, &originals, &held_out, generator, &options)?;
        judge("FVD of continuations", &predicted.video)?;
        for (index, clip) in originals.iter().enumerate().take(settings.samples) {
            let Some(folder) = samples else { break };
            let pair = [clip.shallow_clone(), predicted.video.get(index as i64)];
            let path = folder.join(format!("continued-{index:02}.gif"));
            video_data::write_gif(&path, &Tensor::cat(&pair, 3), 8.0)?;
        }
        Some(predicted.figures)
    } else {
        None
    };

    let half = tokens.batch() / 2;
    let histogram = |ids: &Tensor| -> Result<Tensor> {
        let mut usage = CodebookUsage::new(model.vocabulary_size())?;
        usage.add(ids)?;
        Ok(usage.histogram()?.to_kind(Kind::Double) / ids.numel() as f64)
    };
    let distance = |a: &Tensor, b: &Tensor| -> Result<f64> {
        Ok(f64::try_from((histogram(a)? - histogram(b)?).abs().sum(Kind::Double) * 0.5)?)
    };
    let (first, second) =
        (tokens.ids().narrow(0, 0, half), tokens.ids().narrow(0, half, tokens.batch() - half));
    let bits = bits_per_token(&model, &held_out, loaded.device)?;
    let exact = matches!(&model, Generator::VideoGpt(_) | Generator::PerceiverAr(_));
    let values = originals.first().map(|clip| clip.numel() as f64);
    let bits_per_dimension = values.filter(|_| exact).map(|n| bits * tokens.shape().tokens() as f64 / n);
    Ok(Generation {
        step,
        bits_per_token: bits,
        bits_per_dimension,
        histogram_distance: distance(sampled.tokens.ids(), tokens.ids())?,
        histogram_floor: if half > 0 { distance(&first, &second)? } else { f64::NAN },
        sampling_steps: sampled.steps,
        seconds_per_clip: seconds / clips.len() as f64,
        clips: clips.len(),
        prediction,
        extra,
        absent,
    })
}

/// Generated clips beside the order in which their tokens were decided, or, of a generator that goes from coarse to fine, with a
/// row of its stages.
fn write_samples(
    loaded: &LoadedTokenizer,
    sampled: &Sampled,
    video: &Tensor,
    count: usize,
    folder: &Path,
) -> Result<()> {
    let stages = loaded.tokenizer.coarse_to_fine(&sampled.tokens)?;
    for index in 0..count {
        let clip = video.get(index as i64);
        let path = folder.join(format!("generated-{index:02}.gif"));
        if let Some(stages) = &stages {
            let row: Vec<Tensor> = stages.iter().map(|stage| stage.get(index as i64)).collect();
            let row = Tensor::cat(&row, 3).to_device(Device::Cpu);
            video_data::write_gif(&folder.join(format!("scales-{index:02}.gif")), &row, 8.0)?;
            video_data::write_gif(&path, &clip, 8.0)?;
            continue;
        }
        let order = order_picture(&sampled.decided.get(index as i64), sampled.steps, &clip, loaded);
        video_data::write_gif(&path, &Tensor::cat(&[clip, order], 3), 8.0)?;
    }
    Ok(())
}

struct Predicted {
    figures: Prediction,
    /// `[B, 3, T, H, W]`, given frames included.
    video: Tensor,
}

fn predict(
    model: &Generator,
    loaded: &LoadedTokenizer,
    originals: &[Tensor],
    held_out: &TokenBatch,
    generator: &GeneratorRun,
    options: &SampleOptions,
) -> Result<Predicted> {
    let settings = &generator.evaluation;
    let tokens = &held_out.tokens;
    let given_tokens = generator.model.first_frames(tokens, settings.given_frames)?;
    let condition =
        Condition { first_frames: Some(given_tokens), ..model.condition(held_out, loaded.device) };
    let options = SampleOptions { filter: settings.prediction_filter, ..options.clone() };
    let continued = model.sample(&condition, generator.model.grid()?, &options)?;
    let video = loaded.tokenizer.decode(&continued)?.to_device(Device::Cpu);
    let reconstruction = loaded.tokenizer.decode(tokens)?.to_device(Device::Cpu);
    let original = Tensor::stack(originals, 0);

    let given = loaded.tokenizer.frames(settings.given_frames);
    let made = original.size()[2] - given;
    let future = |video: &Tensor| video.narrow(2, given, made);
    let truth = future(&original);
    let copy = original.narrow(2, given - 1, 1).expand_as(&truth);
    let mean = |values: Tensor| -> Result<f64> {
        let values = numbers(&values)?;
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    };
    let by_frame = |video: &Tensor| -> Result<Vec<f64>> {
        (0..made).map(|t| mean(psnr(&video.narrow(2, t, 1), &truth.narrow(2, t, 1), PSNR)?)).collect()
    };
    let predicted = future(&video);
    let figures = Prediction {
        given,
        made,
        psnr: mean(psnr(&predicted, &truth, PSNR)?)?,
        ssim: mean(ssim(&predicted, &truth, SSIM)?)?,
        copy_psnr: mean(psnr(&copy, &truth, PSNR)?)?,
        copy_ssim: mean(ssim(&copy, &truth, SSIM)?)?,
        tokenizer_psnr: mean(psnr(&future(&reconstruction), &truth, PSNR)?)?,
        psnr_by_frame: by_frame(&predicted)?,
        copy_psnr_by_frame: by_frame(&copy)?,
    };
    Ok(Predicted { figures, video })
}

/// In which step each token was decided, as grey levels from black (first) to white (last), as large as the clip:
/// `[3, T, H, W]` in [-1, 1].
fn order_picture(decided: &Tensor, steps: usize, clip: &Tensor, loaded: &LoadedTokenizer) -> Tensor {
    let size = clip.size();
    let share = (decided.to_kind(Kind::Float) / (steps.max(2) - 1) as f64 * 2.0 - 1.0).clamp(-1.0, 1.0);
    // Every frame shows the map of its latent frame.
    let (first, stride) = (loaded.tokenizer.frames(1), loaded.tokenizer.compression().time);
    let latent = |t: i64| if t < first { 0 } else { 1 + (t - first) / stride };
    let frames: Vec<Tensor> = (0..size[1]).map(|t| share.get(latent(t))).collect();
    let maps = Tensor::stack(&frames, 0).unsqueeze(0).upsample_nearest2d([size[2], size[3]], None, None);
    maps.expand([3, -1, -1, -1], true).contiguous()
}

/// What `vireo run` prints.
pub fn print_summary(generation: &Generation) {
    println!(
        "generator: {:.2} bits per held-out token, histogram distance {:.3} (between held-out halves {:.3}), {} steps and {:.2} s per clip",
        generation.bits_per_token,
        generation.histogram_distance,
        generation.histogram_floor,
        generation.sampling_steps,
        generation.seconds_per_clip
    );
    if let Some(bits) = generation.bits_per_dimension {
        println!(
            "these bits are exact (raster order, time first); over the clip's RGB values {bits:.4} bits per dimension, of the tokens' lossy code"
        );
    }
    if let Some(p) = &generation.prediction {
        println!(
            "continuing {} frames by {}: PSNR {:.2} dB, repeating the last frame {:.2} dB ({:+.2}); SSIM {:.3} against {:.3}; the tokenizer alone {:.2} dB",
            p.given,
            p.made,
            p.psnr,
            p.copy_psnr,
            p.psnr - p.copy_psnr,
            p.ssim,
            p.copy_ssim,
            p.tokenizer_psnr
        );
    }
    for (name, value) in &generation.extra {
        println!("{name}: {value:.4}");
    }
}
