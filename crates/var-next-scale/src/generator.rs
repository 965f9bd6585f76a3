//! VAR behind the workspace's contract of generators.

use tch::{Kind, Tensor, nn, no_grad};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use crate::edit::Edit;
use crate::loss::{Progress, next_scale_loss};
use crate::pyramid_run::{Given, PyramidRun, Sampled, ScaleStep};
use crate::quantizer::{MultiScaleVq, MultiScaleVqConfig};
use crate::sampling::VarSampling;
use crate::transformer::{Var, VarConfig};

/// The transformer and the codes that it predicts. Token grids are 1 × 1 × L, all scales in a row, as
/// [`Vqvae`](crate::Vqvae) gives them.
///
/// Variables: those of [`Var`]; the codebook and φ belong to the tokenizer.
#[derive(Debug)]
pub struct VarGenerator {
    model: Var,
    quantizer: MultiScaleVq,
    serves: Vec<ConditionKind>,
}

/// Everything that a sample of [`VarGenerator::sample_pyramid`] may be given.
#[derive(Debug, Default)]
pub struct VarPrompt<'a> {
    /// Ids of an image to edit, and where they are kept.
    pub edit: Option<&'a Edit>,
    /// For each scale a tensor `[B, n, V]` of standard exponential draws, of standard Gumbel draws with `more_smooth`; drawn
    /// from torch's generator where absent.
    pub noise: Option<&'a [Tensor]>,
}

impl VarGenerator {
    /// Builds it over a trained tokenizer's quantizer ([`MultiScaleVq::frozen`]).
    ///
    /// # Errors
    /// A field of the config is out of range, or is not the quantizer's: `vocab_size`, `z_channels`, `patch_nums`.
    pub fn new(path: &nn::Path, config: &VarConfig, quantizer: MultiScaleVq) -> Result<Self> {
        check_fit(config, quantizer.config())?;
        Ok(Self { model: Var::new(path, config)?, quantizer, serves: serves(config) })
    }

    /// The transformer.
    pub fn model(&self) -> &Var {
        &self.model
    }

    /// The codebook and φ.
    pub fn quantizer(&self) -> &MultiScaleVq {
        &self.quantizer
    }

    /// Logits `[B, L', V]`, taught with ids `[B, L]` (or those of the first scales), of the first `scales` scales. See
    /// [`Var::forward`].
    ///
    /// # Errors
    /// Another number of ids, an id or a class out of range.
    pub fn logits(&self, ids: &Tensor, classes: &Tensor, scales: usize, train: bool) -> Result<Tensor> {
        let pyramid = self.model.pyramid();
        let maps = pyramid.split(ids)?;
        let inputs = no_grad(|| self.quantizer.var_input(&maps, pyramid, scales))?;
        self.model.forward(classes, &inputs, scales, train)
    }

    /// The training loss, 0-d, of ids `[B, L]`, with progressive training where that is asked for. Classes int64 `[B]` are
    /// dropped at the config's rate.
    ///
    /// # Errors
    /// As [`VarGenerator::logits`].
    pub fn progressive_loss(
        &self,
        ids: &Tensor,
        classes: Option<&Tensor>,
        progress: Option<Progress>,
        seed: u64,
    ) -> Result<Tensor> {
        let pyramid = self.model.pyramid();
        let scales = progress.map_or(pyramid.len(), |p| (p.last_scale + 1).min(pyramid.len()));
        let classes = self.classes(ids.size()[0], classes)?;
        tch::manual_seed(seed as i64);
        let draws = Tensor::rand(classes.size(), (Kind::Float, classes.device()));
        let classes = self.model.drop_classes(&classes, &draws);
        let logits = self.logits(ids, &classes, scales, true)?;
        let targets = ids.narrow(1, 0, pyramid.tokens_of(scales));
        next_scale_loss(&logits, &targets, pyramid, self.model.config().label_smoothing, progress)
    }

    /// Samples one pyramid for each of `classes`, int64 `[B]`, the number of classes standing for none, and shows every scale
    /// to `observe` as it is made. Keys and values are cached; no mask is made.
    ///
    /// # Errors
    /// A class out of range, guidance of a model without classes, an edit or noise of other shapes.
    pub fn sample_pyramid(
        &self,
        classes: &Tensor,
        options: VarSampling,
        prompt: &VarPrompt<'_>,
        observe: &mut dyn FnMut(&ScaleStep<'_>),
    ) -> Result<Sampled> {
        options.validate()?;
        check_guidance(self.model.config(), options.cfg)?;
        self.model.check_classes(classes)?;
        let pyramid = self.model.pyramid();
        let batch = classes.size()[0];
        if let Some(edit) = prompt.edit {
            self.check_edit(edit, batch)?;
        }
        if let Some(noise) = prompt.noise {
            check_noise(noise, batch, &pyramid.lengths(), self.model.config().vocab_size)?;
        }
        no_grad(|| {
            let condition = self.model.conditioning(&with_unconditional(&self.model, classes, options.cfg));
            let run = PyramidRun {
                model: &self.model,
                quantizer: &self.quantizer,
                pyramid,
                condition: &condition,
                batch,
                options,
                given: prompt.edit.map(|edit| Given { ids: &edit.ids, keep: Some(&edit.keep) }),
                noise: prompt.noise,
            };
            let embed = |scale: usize, input: &Tensor| self.model.embed_scale(scale, input);
            let mut caches = self.model.caches(pyramid.tokens());
            run.run(self.model.start(&condition), &embed, &mut caches, observe)
        })
    }

    /// Makes the part of an image anew that a mask leaves open ([`Edit::new`]): in- and out-painting, and with a class
    /// class-conditional editing. The image is ids of all scales in a row, int64 `[B, 1, 1, L]`, the mask `[h, w]` of the last
    /// scale's size, 1 where tokens are kept.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`]; ids of another shape, or another number of images than `options.batch`; a mask of another size.
    pub fn sample_edit(
        &self,
        image: &TokenGrid,
        mask: &Tensor,
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<TokenGrid> {
        self.check_grid(image.shape())?;
        let (pyramid, device) = (self.model.pyramid(), self.model.device());
        let ids = image.ids().flatten(1, -1).to_device(device);
        let edit = Edit::new(pyramid.split(&ids)?, &mask.to_device(device), pyramid)?;
        self.sample_prompted(&VarPrompt { edit: Some(&edit), noise: None }, condition, options)
    }

    fn sample_prompted(
        &self,
        prompt: &VarPrompt<'_>,
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<TokenGrid> {
        condition.check_served("VAR", &self.serves)?;
        if options.batch < 1 {
            return Err(Error::config("batch", options.batch, "at least 1"));
        }
        let classes = self.classes(options.batch, condition.class.as_ref())?;
        tch::manual_seed(options.seed as i64);
        let sampling =
            VarSampling { cfg: options.guidance - 1.0, filter: options.filter, more_smooth: false };
        let sampled = self.sample_pyramid(&classes, sampling, prompt, &mut |_| ())?;
        TokenGrid::new(Tensor::cat(&sampled.ids, 1).unsqueeze(1).unsqueeze(1))
    }

    /// Classes `[batch]` of a condition, or none.
    fn classes(&self, batch: i64, classes: Option<&Tensor>) -> Result<Tensor> {
        classes_or_none(&self.model, batch, classes)
    }

    fn check_edit(&self, edit: &Edit, batch: i64) -> Result<()> {
        self.quantizer.embed(&edit.ids, self.model.pyramid())?;
        let lengths = self.model.pyramid().lengths();
        if edit.ids.len() != lengths.len() || edit.ids.iter().any(|ids| ids.size()[0] != batch) {
            let problem = format!("{} maps", edit.ids.len());
            return Err(Error::input("ids to edit", problem, format!("{} of batch {batch}", lengths.len())));
        }
        let fits = |(keep, &length): (&Tensor, &i64)| keep.size() == [length] && keep.kind() == Kind::Bool;
        if edit.keep.len() != lengths.len() || !edit.keep.iter().zip(&lengths).all(fits) {
            let expected = format!("bool maps of {lengths:?} tokens");
            return Err(Error::input("edit masks", "others", expected));
        }
        Ok(())
    }

    fn check_grid(&self, shape: GridShape) -> Result<()> {
        let length = self.model.pyramid().tokens();
        if (shape.frames, shape.height, shape.width) == (1, 1, length) {
            return Ok(());
        }
        let given = [shape.frames, shape.height, shape.width];
        Err(Error::shape("token grid", &given, format!("[1, 1, {length}], all scales in a row")))
    }
}

/// What a model serves.
pub(crate) fn serves(config: &VarConfig) -> Vec<ConditionKind> {
    if config.num_classes > 0 { vec![ConditionKind::Class] } else { Vec::new() }
}

/// Refuses a transformer and a quantizer that are not of one kind.
pub(crate) fn check_fit(config: &VarConfig, quantizer: &MultiScaleVqConfig) -> Result<()> {
    config.validate()?;
    for (field, ours, theirs) in [
        ("vocab_size", config.vocab_size, quantizer.vocab_size),
        ("z_channels", config.z_channels, quantizer.z_channels),
    ] {
        if ours != theirs {
            return Err(Error::config(field, ours, format!("the quantizer's {theirs}")));
        }
    }
    if config.patch_nums != quantizer.v_patch_nums {
        let expected = format!("the tokenizer's {:?}, which end at its latent size", quantizer.v_patch_nums);
        return Err(Error::config("patch_nums", &config.patch_nums, expected));
    }
    Ok(())
}

/// Refuses guidance of a model that knows no classes.
pub(crate) fn check_guidance(config: &VarConfig, cfg: f64) -> Result<()> {
    if cfg != 0.0 && config.num_classes == 0 {
        let because = "it has no classes (num_classes = 0): set cfg to 0, which is guidance 1";
        return Err(Error::unsupported("VAR", format!("be guided with cfg = {cfg}"), because));
    }
    Ok(())
}

/// Class labels `[batch]` of a condition; where none are given, the class that stands for none.
pub(crate) fn classes_or_none(model: &Var, batch: i64, classes: Option<&Tensor>) -> Result<Tensor> {
    let Some(classes) = classes else {
        return Ok(Tensor::full([batch], model.no_class(), (Kind::Int64, model.device())));
    };
    if classes.size() != [batch] || classes.kind() != Kind::Int64 {
        return Err(Error::shape("classes", &classes.size(), format!("int64 [{batch}]")));
    }
    let count = model.config().num_classes;
    for class in [classes.min(), classes.max()] {
        let class = class.int64_value(&[]);
        if !(0..count).contains(&class) {
            return Err(Error::input("class", format!("{class}"), format!("0 to {}", count - 1)));
        }
    }
    Ok(classes.to_device(model.device()))
}

/// Classes `[B]`, and with guidance the same number of none behind them.
pub(crate) fn with_unconditional(model: &Var, classes: &Tensor, cfg: f64) -> Tensor {
    if cfg == 0.0 {
        return classes.shallow_clone();
    }
    Tensor::cat(&[classes, &classes.full_like(model.no_class())], 0)
}

fn check_noise(noise: &[Tensor], batch: i64, lengths: &[i64], vocabulary: i64) -> Result<()> {
    let fits = |(noise, &length): (&Tensor, &i64)| noise.size() == [batch, length, vocabulary];
    if noise.len() != lengths.len() || !noise.iter().zip(lengths).all(fits) {
        let expected = format!("[{batch}, n, {vocabulary}] a scale, n = {lengths:?}");
        return Err(Error::input("noise", format!("{} tensors", noise.len()), expected));
    }
    Ok(())
}

impl TokenGenerator for VarGenerator {
    /// Nats per token, smoothing included.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        condition.check_served("VAR", &self.serves)?;
        self.check_grid(tokens.shape())?;
        tokens.check_vocabulary(self.model.config().vocab_size)?;
        let ids = tokens.ids().flatten(1, -1).to_device(self.model.device());
        self.progressive_loss(&ids, condition.class.as_ref(), None, seed)
    }

    /// Guidance g is `cfg` = g − 1: the ramp ends at g times the logits with class.
    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        self.check_grid(shape)?;
        self.sample_prompted(&VarPrompt::default(), condition, options)
    }

    fn serves(&self) -> &[ConditionKind] {
        &self.serves
    }

    fn vocabulary_size(&self) -> i64 {
        self.model.config().vocab_size
    }
}
