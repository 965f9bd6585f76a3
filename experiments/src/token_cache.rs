//! The tokens of many training clips, made once and kept on disk: what a generator is trained on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use layers::{fold_time, unfold_time};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};
use training::Batches;
use video_core::{GridShape, TokenGrid, seeds};
use video_data::{Clip, Loader, LoaderConfig, Split};

use crate::config::{GeneratorRun, RunConfig};
use crate::text::Captions;
use crate::tokenizer::LoadedTokenizer;

/// The file of a run.
pub const CACHE_FILE: &str = "tokens.safetensors";

/// Tokens of clips.
#[derive(Debug)]
pub struct TokenCache {
    /// int32 `[N, T', H', W']`.
    ids: Tensor,
    /// The same of the clips in small, for a generator that works from coarse to fine.
    coarse: Option<Tensor>,
    /// int64 `[N]`, where every clip has a class.
    classes: Option<Tensor>,
    /// Where the run names a text encoder.
    captions: Option<Captions>,
}

impl TokenCache {
    /// Reads a run's cache; makes it where it is missing, or was made of other clips or by another tokenizer.
    ///
    /// # Errors
    /// Clips that cannot be read, a disk that is full.
    pub fn open_or_make(
        config: &RunConfig,
        generator: &GeneratorRun,
        loaded: &LoadedTokenizer,
        run: &Path,
    ) -> Result<Self> {
        let path = run.join(CACHE_FILE);
        let made_of = serde_json::json!({
            "coarse": generator.model.coarse_grid(),
            "tokenizer": loaded.fingerprint,
            "data": serde_json::to_value(&config.data)?,
            "clips": generator.clips,
            "seed": config.seed,
            "text": generator.text.as_ref().map(|text| Ok::<_, anyhow::Error>((text.fingerprint()?, text.max_tokens))).transpose()?,
        })
        .to_string();
        // A run that takes its tokenizer of another can take its tokens, too.
        let other = config.tokenizer_from.as_ref();
        let other = other.map(|from| if from.exists() { from.clone() } else { run.with_file_name(from) });
        for path in [Some(path.clone()), other.map(|other| other.join(CACHE_FILE))].into_iter().flatten() {
            if let Some(cache) = Self::read(&path, &made_of, generator.text.is_some()) {
                return Ok(cache);
            }
        }
        let cache = Self::make(config, generator, loaded)?;
        let mut tensors = BTreeMap::from([("ids".to_string(), cache.ids.shallow_clone())]);
        tensors
            .extend(cache.classes.as_ref().map(|classes| ("classes".to_string(), classes.shallow_clone())));
        tensors.extend(cache.coarse.as_ref().map(|coarse| ("coarse".to_string(), coarse.shallow_clone())));
        tensors.extend(cache.captions.iter().flat_map(Captions::to_tensors));
        training::save_weights(&path, &tensors, &made_of)?;
        Ok(cache)
    }

    /// A cache that was made so; `None` if there is no such.
    fn read(path: &Path, made_of: &str, captions: bool) -> Option<Self> {
        let mut saved = training::load_weights(path).ok().filter(|saved| saved.config == made_of)?;
        let ids = saved.tensors.remove("ids")?;
        let (classes, coarse) = (saved.tensors.remove("classes"), saved.tensors.remove("coarse"));
        let read = Captions::from_tensors(&mut saved.tensors);
        (read.is_some() == captions).then_some(Self { ids, coarse, classes, captions: read })
    }

    /// The largest class of a clip, where every clip has one.
    pub fn largest_class(&self) -> Option<i64> {
        self.classes.as_ref().map(|classes| classes.max().int64_value(&[]))
    }

    fn make(config: &RunConfig, generator: &GeneratorRun, loaded: &LoadedTokenizer) -> Result<Self> {
        let source = Arc::from(video_data::open(&config.data, Split::Train, config.seed)?);
        let settings = &config.loader;
        let loader = LoaderConfig {
            batch_size: settings.batch_size,
            workers: settings.workers,
            prefetch: settings.prefetch,
            seed: config.seed,
        };
        let mut loader = Loader::new(source, loader, 0)?;
        let bar = ProgressBar::new(generator.clips as u64).with_style(ProgressStyle::with_template(
            "tokens of clips {bar:30} {pos}/{len} {per_sec}, {eta} left",
        )?);
        let (mut ids, mut coarse) = (Vec::new(), Vec::new());
        let (mut classes, mut captions) = (Vec::new(), Vec::new());
        let mut clips = 0;
        while clips < generator.clips {
            let batch = loader.next()?;
            let video = batch.video.to_device(loaded.device);
            let tokens = loaded.tokenizer.encode(&video)?;
            let cached = |tokens: &TokenGrid| tokens.ids().to_device(tch::Device::Cpu).to_kind(Kind::Int);
            if let Some(grid) = generator.model.coarse_grid() {
                coarse.push(cached(&coarse_tokens(&video, grid, loaded)?));
            }
            clips += tokens.batch() as usize;
            bar.set_position(clips.min(generator.clips) as u64);
            ids.push(cached(&tokens));
            classes.extend(batch.classes);
            if generator.text.is_some() {
                let Some(texts) = batch.captions else {
                    bail!("{}: clips without a caption", config.data.source)
                };
                captions.extend(texts);
            }
        }
        bar.finish_and_clear();
        let count = generator.clips as i64;
        let classes = (classes.len() == ids.len()).then(|| Tensor::cat(&classes, 0).narrow(0, 0, count));
        let ids =
            Tensor::f_cat(&ids, 0).context("clips of several sizes have token grids of several sizes")?;
        captions.truncate(generator.clips);
        let captions = match &generator.text {
            Some(text) => Some(Captions::embed(&captions, &text.open(loaded.device)?)?),
            None => None,
        };
        let coarse = (!coarse.is_empty()).then(|| Tensor::cat(&coarse, 0).narrow(0, 0, count));
        Ok(Self { ids: ids.narrow(0, 0, count), coarse, classes, captions })
    }
}

/// The tokens of videos `[B, 3, T, H, W]` that are scaled down so that they have this grid.
fn coarse_tokens(video: &Tensor, grid: GridShape, loaded: &LoadedTokenizer) -> Result<TokenGrid> {
    let compression = loaded.tokenizer.compression();
    let size = [grid.height * compression.height, grid.width * compression.width];
    let small = unfold_time(&fold_time(video).adaptive_avg_pool2d(size), video.size()[0]);
    Ok(loaded.tokenizer.encode(&small)?)
}

/// The tokens of some clips and what is known of these.
pub struct TokenBatch {
    /// The tokens.
    pub tokens: TokenGrid,
    /// The tokens of the clips in small, for a generator that works from coarse to fine.
    pub coarse: Option<TokenGrid>,
    /// int64 `[B]`.
    pub classes: Option<Tensor>,
    /// The captions' embeddings `[B, L, D]` and their mask, bool `[B, L]`.
    pub text: Option<(Tensor, Tensor)>,
}

impl TokenBatch {
    /// Of clips as they are, in their order.
    ///
    /// # Errors
    /// Clips of several sizes, or without a caption where the run has a text encoder.
    pub fn of_clips(clips: &[Clip], generator: &GeneratorRun, loaded: &LoadedTokenizer) -> Result<Self> {
        let (mut ids, mut coarse) = (Vec::new(), Vec::new());
        for clip in clips {
            let video = clip.to_float().unsqueeze(0).to_device(loaded.device);
            ids.push(loaded.tokenizer.encode(&video)?.ids().shallow_clone());
            if let Some(grid) = generator.model.coarse_grid() {
                coarse.push(coarse_tokens(&video, grid, loaded)?.ids().shallow_clone());
            }
        }
        let coarse = (!coarse.is_empty()).then(|| TokenGrid::new(Tensor::cat(&coarse, 0))).transpose()?;
        let classes: Option<Vec<i64>> = clips.iter().map(|clip| clip.class).collect();
        let text = match &generator.text {
            None => None,
            Some(text) => {
                let captions: Option<Vec<String>> = clips.iter().map(|clip| clip.caption.clone()).collect();
                let captions = captions.context("clips without a caption")?;
                let all: Vec<i64> = (0..clips.len() as i64).collect();
                Some(Captions::embed(&captions, &text.open(loaded.device)?)?.of(&all))
            }
        };
        Ok(Self {
            tokens: TokenGrid::new(Tensor::f_cat(&ids, 0).context("clips of several sizes")?)?,
            coarse,
            classes: classes.map(|classes| Tensor::from_slice(&classes)),
            text,
        })
    }
}

/// Random batches of a cache; the n-th depends on n and the seed only.
pub struct CachedTokens {
    /// What is drawn from.
    pub cache: TokenCache,
    /// Clips of a batch.
    pub batch_size: usize,
    /// The run's.
    pub seed: u64,
    /// Batches handed out.
    pub position: u64,
}

impl Batches for CachedTokens {
    type Batch = TokenBatch;

    fn next(&mut self) -> video_core::Result<TokenBatch> {
        let seed = seeds::derive(self.seed, seeds::Stream::Data, self.position);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count = self.cache.ids.size()[0];
        let rows: Vec<i64> = (0..self.batch_size).map(|_| rng.random_range(0..count)).collect();
        let text = self.cache.captions.as_ref().map(|captions| captions.of(&rows));
        let rows = Tensor::from_slice(&rows);
        self.position += 1;
        let of = |ids: &Tensor| TokenGrid::new(ids.index_select(0, &rows).to_kind(Kind::Int64));
        let tokens = of(&self.cache.ids)?;
        let coarse = self.cache.coarse.as_ref().map(of).transpose()?;
        let classes = self.cache.classes.as_ref().map(|all| all.index_select(0, &rows));
        Ok(TokenBatch { tokens, coarse, classes, text })
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn seek(&mut self, position: u64) -> video_core::Result<()> {
        self.position = position;
        Ok(())
    }
}
