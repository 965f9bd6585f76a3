//! The transformer of images and videos.

use std::cell::OnceCell;

use layers::Linear;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Init};
use tch::{Kind, Tensor, no_grad};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use super::scales::SpaceTimePyramid;
use crate::generator::{check_fit, check_guidance, classes_or_none, serves, with_unconditional};
use crate::loss::token_losses;
use crate::pyramid_run::{Given, PyramidRun, Sampled};
use crate::quantizer::{MultiScaleVq, as_sequence, check_vocabulary};
use crate::resample::area;
use crate::sampling::VarSampling;
use crate::scales::{Pyramid, block_causal_mask};
use crate::transformer::{Conditioning, Var, VarConfig, linear};

/// Configuration of [`SpaceTimeVar`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpaceTimeVarConfig {
    /// The transformer, and the scales of the first latent frame.
    pub transformer: VarConfig,
    /// The scales (t, h, w) of each further chunk of latent frames: the tokenizer's.
    pub chunk_scales: Vec<[i64; 3]>,
    /// Chunks of the longest clip.
    pub max_chunks: i64,
}

impl Default for SpaceTimeVarConfig {
    fn default() -> Self {
        let chunk_scales = super::tokenizer::default_chunk_scales();
        Self { transformer: VarConfig::var_d16(), chunk_scales, max_chunks: 4 }
    }
}

impl SpaceTimeVarConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.transformer.validate().map_err(|error| error.within("transformer"))?;
        if !(1..=1 << 12).contains(&self.max_chunks) {
            return Err(Error::config("max_chunks", self.max_chunks, "1 to 4096"));
        }
        self.pyramid().map(drop)
    }

    /// The scales.
    ///
    /// # Errors
    /// As [`SpaceTimePyramid::new`].
    pub fn pyramid(&self) -> Result<SpaceTimePyramid> {
        SpaceTimePyramid::new(&self.transformer.patch_nums, &self.chunk_scales)
    }
}

/// What chunks add to the transformer of images.
#[derive(Debug)]
struct ChunkInputs {
    /// From the sum of the pyramid before, z, to C.
    before: Linear,
    /// `[1, l₀, C]`
    start: Tensor,
    /// `[1, L₁, C]`
    positions: Tensor,
    /// `[S₁, C]`
    levels: Tensor,
    /// `[max_chunks, C]`
    index: Tensor,
}

/// A generator of images and of videos of any number of chunks up to a limit. Token grids are 1 × 1 × L, as
/// [`SpaceTimeVqvae`](super::SpaceTimeVqvae) gives them. It serves first frames, as the tokens of the image and any number of
/// whole chunks, and classes where it has some.
///
/// Variables: those of [`Var`], and under `chunk` `before_embed`, `pos_start`, `pos_1LC`, `lvl_embed.weight`, `index_embed.weight`.
#[derive(Debug)]
pub struct SpaceTimeVar {
    config: SpaceTimeVarConfig,
    pyramid: SpaceTimePyramid,
    model: Var,
    chunk: ChunkInputs,
    quantizer: MultiScaleVq,
    serves: Vec<ConditionKind>,
    /// Of the longest clip, made when it is first needed. Sampling never needs it.
    mask: OnceCell<Tensor>,
}

impl SpaceTimeVar {
    /// Builds it over a trained tokenizer's quantizer ([`MultiScaleVq::frozen`]).
    ///
    /// # Errors
    /// A field of the config is out of range, or is not the quantizer's.
    pub fn new(path: &nn::Path, config: &SpaceTimeVarConfig, quantizer: MultiScaleVq) -> Result<Self> {
        config.validate()?;
        check_fit(&config.transformer, quantizer.config()).map_err(|error| error.within("transformer"))?;
        let (pyramid, width) = (config.pyramid()?, config.transformer.embed_dim);
        let below = path / "chunk";
        let positions = Init::Randn { mean: 0.0, stdev: config.transformer.position_std() };
        let table = Init::Randn { mean: 0.0, stdev: config.transformer.std() };
        let scales = pyramid.chunk.len() as i64;
        let chunk = ChunkInputs {
            before: linear(
                &(&below / "before_embed"),
                config.transformer.z_channels,
                width,
                config.transformer.std(),
            ),
            start: below.var("pos_start", &[1, pyramid.chunk.lengths()[0], width], positions),
            positions: below.var("pos_1LC", &[1, pyramid.chunk.tokens(), width], positions),
            levels: (&below / "lvl_embed").var("weight", &[scales, width], table),
            index: (&below / "index_embed").var("weight", &[config.max_chunks, width], table),
        };
        let mut serves = serves(&config.transformer);
        serves.push(ConditionKind::FirstFrames);
        Ok(Self {
            model: Var::new(path, &config.transformer)?,
            config: config.clone(),
            mask: OnceCell::new(),
            pyramid,
            chunk,
            quantizer,
            serves,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &SpaceTimeVarConfig {
        &self.config
    }

    /// Its scales.
    pub fn pyramid(&self) -> &SpaceTimePyramid {
        &self.pyramid
    }

    /// The codebook and φ.
    pub fn quantizer(&self) -> &MultiScaleVq {
        &self.quantizer
    }

    /// The transformer of the image's part.
    pub fn model(&self) -> &Var {
        &self.model
    }

    /// Logits `[B, L, V]` of all positions, taught with the ids `[B, L]` of an image and any number of chunks. `classes` int64
    /// `[B]`, the number of classes standing for none.
    ///
    /// # Errors
    /// Another number of ids, an id or a class out of range.
    pub fn logits(&self, ids: &Tensor, classes: &Tensor, train: bool) -> Result<Tensor> {
        let chunks = self.check_ids(ids)?;
        self.model.check_classes(classes)?;
        if classes.size()[0] != ids.size()[0] {
            return Err(Error::shape("classes", &classes.size(), format!("int64 [{}]", ids.size()[0])));
        }
        let condition = self.model.conditioning(classes);
        let x = Tensor::cat(&self.inputs(ids, chunks, &condition)?, 1);
        let length = x.size()[1];
        let lengths = || self.pyramid.lengths(self.config.max_chunks);
        let mask = self.mask.get_or_init(|| block_causal_mask(&lengths(), self.model.device()));
        let mask = mask.narrow(0, 0, length).narrow(1, 0, length);
        let h = self.model.run(x, &condition, &mask, train)?;
        Ok(self.model.logits(&h, &condition))
    }

    /// What goes in at every scale, in order.
    fn inputs(&self, ids: &Tensor, chunks: i64, condition: &Conditioning) -> Result<Vec<Tensor>> {
        let SpaceTimePyramid { image, chunk } = &self.pyramid;
        let mut inputs = vec![self.model.start(condition)];
        let first = ids.narrow(1, 0, image.tokens());
        let (sums, mut f_hat) = no_grad(|| self.sums(&first, image))?;
        let embed = |(scale, sum): (usize, &Tensor)| self.model.embed_scale(scale + 1, sum);
        inputs.extend(sums.iter().enumerate().map(embed));
        for index in 0..chunks {
            let range = self.pyramid.chunk_range(index);
            inputs.push(self.chunk_start(index, &f_hat, condition));
            let part = ids.narrow(1, range.start, range.end - range.start);
            let (sums, sum) = no_grad(|| self.sums(&part, chunk))?;
            let embed =
                |(scale, sum): (usize, &Tensor)| self.embed_chunk_scale(index, scale + 1, sum, &f_hat);
            inputs.extend(sums.iter().enumerate().map(embed));
            f_hat = sum;
        }
        Ok(inputs)
    }

    /// Of the ids `[B, L]` of one pyramid: the sum before each scale but the first, at that scale's size, `[B, n, z]`, and the
    /// sum of all.
    fn sums(&self, ids: &Tensor, pyramid: &Pyramid) -> Result<(Vec<Tensor>, Tensor)> {
        let maps = self.quantizer.embed(&pyramid.split(ids)?, pyramid)?;
        let sums = self.quantizer.f_hats(&maps, pyramid)?;
        let at_next = |(sum, &shape)| as_sequence(&area(sum, shape));
        let inputs = sums.iter().zip(&pyramid.scales()[1..]).map(at_next).collect();
        Ok((inputs, sums[sums.len() - 1].shallow_clone()))
    }

    /// What goes in at the first scale of a chunk, `[B, l₀, C]`: the class, and the sum of the pyramid before.
    fn chunk_start(&self, index: i64, before: &Tensor, condition: &Conditioning) -> Tensor {
        let copies = condition.class.size()[0] / before.size()[0];
        let known = self.embed_before(0, before).repeat([copies, 1, 1]);
        condition.class.unsqueeze(1) + &self.chunk.start + known + self.places(index, 0)
    }

    /// What goes in at a later scale of a chunk: its sum so far, `[B, n, z]`, and that of the pyramid before.
    fn embed_chunk_scale(&self, index: i64, scale: usize, input: &Tensor, before: &Tensor) -> Tensor {
        self.model.embed_codes(input) + self.embed_before(scale, before) + self.places(index, scale)
    }

    /// The sum of the pyramid before, `[B, z, t, H, W]`, at the size of a chunk's scale. Only so do the tokens of its finest
    /// scale reach the network.
    fn embed_before(&self, scale: usize, before: &Tensor) -> Tensor {
        let before = area(before, self.pyramid.chunk.scales()[scale]);
        self.chunk.before.forward(&as_sequence(&before))
    }

    /// Level, position and chunk embeddings of one scale, `[1, n, C]`.
    fn places(&self, index: i64, scale: usize) -> Tensor {
        let range = &self.pyramid.chunk.ranges()[scale];
        let positions = self.chunk.positions.narrow(1, range.start, range.end - range.start);
        positions + self.chunk.levels.get(scale as i64) + self.chunk.index.get(index)
    }

    /// Refuses what are no ids of a clip; tells its chunks.
    fn check_ids(&self, ids: &Tensor) -> Result<i64> {
        if ids.dim() != 2 || ids.numel() == 0 || ids.kind() != Kind::Int64 {
            return Err(Error::shape("token ids", &ids.size(), "int64 [B, L]"));
        }
        check_vocabulary(ids, self.config.transformer.vocab_size)?;
        self.check_length(ids.size()[1])
    }

    fn check_length(&self, tokens: i64) -> Result<i64> {
        let chunks = self.pyramid.chunks_of_tokens(tokens)?;
        if chunks > self.config.max_chunks {
            let expected = format!("at most {} (max_chunks)", self.config.max_chunks);
            return Err(Error::input("token grid", format!("{chunks} chunks"), expected));
        }
        Ok(chunks)
    }

    /// Samples a clip of `chunks` chunks behind the image; ids `[B, L]`. `given` ids `[B, L']` are the image's and those of
    /// whole chunks, and are kept. Keys and values of all scales are cached; no mask is made.
    ///
    /// # Errors
    /// A class out of range, guidance of a model without classes, given ids of no whole pyramids or more than are asked for.
    pub fn sample_clip(
        &self,
        classes: &Tensor,
        chunks: i64,
        options: VarSampling,
        given: Option<&Tensor>,
    ) -> Result<Tensor> {
        options.validate()?;
        check_guidance(&self.config.transformer, options.cfg)?;
        self.model.check_classes(classes)?;
        if !(0..=self.config.max_chunks).contains(&chunks) {
            let expected = format!("0 to {} (max_chunks)", self.config.max_chunks);
            return Err(Error::input("chunks", format!("{chunks} chunks"), expected));
        }
        let tokens = self.pyramid.tokens(chunks);
        let batch = classes.size()[0];
        if let Some(given) = given {
            self.check_ids(given)?;
            if given.size()[0] != batch || given.size()[1] > tokens {
                let expected = format!("[{batch}, n] with n at most {tokens}");
                return Err(Error::shape("given ids", &given.size(), expected));
            }
        }
        no_grad(|| {
            let condition = self.model.conditioning(&with_unconditional(&self.model, classes, options.cfg));
            let mut caches = self.model.caches(tokens);
            let mut ids = Vec::new();
            let mut before: Option<Tensor> = None;
            for part in 0..=chunks {
                let (pyramid, start, length) = match &before {
                    None => (&self.pyramid.image, self.model.start(&condition), self.pyramid.image.tokens()),
                    Some(f_hat) => {
                        let start = self.chunk_start(part - 1, f_hat, &condition);
                        (&self.pyramid.chunk, start, self.pyramid.chunk.tokens())
                    }
                };
                let offset = if part == 0 { 0 } else { self.pyramid.tokens(part - 1) };
                let known = given.filter(|given| offset < given.size()[1]);
                let maps = known.map(|known| pyramid.split(&known.narrow(1, offset, length))).transpose()?;
                let run = PyramidRun {
                    model: &self.model,
                    quantizer: &self.quantizer,
                    pyramid,
                    condition: &condition,
                    batch,
                    options,
                    given: maps.as_ref().map(|maps| Given { ids: maps, keep: None }),
                    noise: None,
                };
                let embed = |scale: usize, input: &Tensor| match &before {
                    None => self.model.embed_scale(scale, input),
                    Some(before) => self.embed_chunk_scale(part - 1, scale, input, before),
                };
                let Sampled { ids: maps, f_hat } = run.run(start, &embed, &mut caches, &mut |_| ())?;
                ids.extend(maps);
                before = Some(f_hat);
            }
            Ok(Tensor::cat(&ids, 1))
        })
    }

    /// The ids `[B, L']` of given first frames.
    fn first_frames(&self, condition: &Condition, batch: i64) -> Result<Option<Tensor>> {
        let Some(first) = &condition.first_frames else { return Ok(None) };
        let size = first.ids().size();
        if size[0] != batch || size[1] != 1 || size[2] != 1 {
            let expected = format!("[{batch}, 1, 1, L'], all scales in a row");
            return Err(Error::shape("first frames", &size, expected));
        }
        let ids = first.ids().flatten(1, -1).to_device(self.model.device());
        self.check_ids(&ids)?;
        Ok(Some(ids))
    }

    fn check_grid(&self, shape: GridShape) -> Result<i64> {
        if shape.frames != 1 || shape.height != 1 {
            let given = [shape.frames, shape.height, shape.width];
            return Err(Error::shape("token grid", &given, "[1, 1, L], all scales in a row"));
        }
        self.check_length(shape.width)
    }
}

impl TokenGenerator for SpaceTimeVar {
    /// Nats per token, smoothing included. Given first frames are not counted; the rest is what `tokens` says.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        condition.check_served("SpaceTimeVar", &self.serves)?;
        self.check_grid(tokens.shape())?;
        let batch = tokens.batch();
        let given = self.first_frames(condition, batch)?.map_or(0, |ids| ids.size()[1]);
        let ids = tokens.ids().flatten(1, -1).to_device(self.model.device());
        let length = ids.size()[1];
        if given >= length {
            let expected = format!("fewer than the grid's {length}");
            return Err(Error::input("first frames", format!("{given} tokens"), expected));
        }
        let classes = classes_or_none(&self.model, batch, condition.class.as_ref())?;
        tch::manual_seed(seed as i64);
        let draws = Tensor::rand([batch], (Kind::Float, self.model.device()));
        let classes = self.model.drop_classes(&classes, &draws);
        let logits = self.logits(&ids, &classes, true)?.narrow(1, given, length - given);
        let targets = ids.narrow(1, given, length - given);
        Ok(token_losses(&logits, &targets, self.config.transformer.label_smoothing).mean(Kind::Float))
    }

    /// Guidance g is `cfg` = g − 1 at the last scale of each pyramid.
    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        condition.check_served("SpaceTimeVar", &self.serves)?;
        let chunks = self.check_grid(shape)?;
        if options.batch < 1 {
            return Err(Error::config("batch", options.batch, "at least 1"));
        }
        let classes = classes_or_none(&self.model, options.batch, condition.class.as_ref())?;
        let given = self.first_frames(condition, options.batch)?;
        tch::manual_seed(options.seed as i64);
        let sampling =
            VarSampling { cfg: options.guidance - 1.0, filter: options.filter, more_smooth: false };
        let ids = self.sample_clip(&classes, chunks, sampling, given.as_ref())?;
        TokenGrid::new(ids.unsqueeze(1).unsqueeze(1))
    }

    fn serves(&self) -> &[ConditionKind] {
        &self.serves
    }

    fn vocabulary_size(&self) -> i64 {
        self.config.transformer.vocab_size
    }
}
