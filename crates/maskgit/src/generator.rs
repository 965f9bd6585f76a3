//! A masked generator of token grids behind the workspace's contract.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use crate::magvit::{GridDecodeOptions, GridDecoded, GridPrompt, MagvitTokens, SpecialToken, decode_grid};
use crate::mask::{ConditionMode, MaskedTokens, RegionCondition};
use crate::schedule::MaskSchedule;
use crate::strategy::MaskStrategy;
use crate::transformer::{BidirectionalTransformer, TrainingSequence, TransformerConfig};
use crate::vocabulary::Columns;

/// Configuration of [`MaskGit`]; the defaults are MAGVIT-B's, on a grid of 4 × 16 × 16 and MaskGIT's masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskGitConfig {
    /// K, the tokenizer's codes.
    pub codebook_size: i64,
    /// Digits of a code that are embedded and predicted apart, the first the least significant; empty: codes are whole.
    pub factors: Vec<i64>,
    /// C, or 0.
    pub num_classes: i64,
    /// The grid of a clip; one frame for images.
    pub grid: GridShape,
    /// D.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// H.
    pub num_attention_heads: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Dropout in training.
    pub dropout: f64,
    /// Whether condition tokens that stand for masks are told from tokens by an embedding.
    pub condition_segment: bool,
    /// What is masked in training.
    pub masking: MaskStrategy,
    /// ε of the loss.
    pub label_smoothing: f64,
    /// Share of samples that are trained without their class, for guidance.
    pub class_dropout: f64,
    /// Training on the continuation of given latent frames. None: the model does not serve them.
    pub first_frames: Option<FirstFrames>,
    /// Decoding steps, T.
    pub steps: i64,
    /// How many are masked after each step.
    pub mask_schedule: MaskSchedule,
    /// Scale of the noise on the confidence in the first step.
    pub choice_temperature: f64,
}

/// How often, and how many, first latent frames are given in training steps whose condition does not say, and how given ones
/// are continued.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirstFrames {
    /// Share of the steps.
    pub probability: f64,
    /// As many at most; the number is uniform.
    pub max: i64,
    /// Decoding steps of a continuation; the model's where absent. A few come nearer to what happens next, as every token is then
    /// the likeliest of its own; more agree with each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<i64>,
}

impl Default for FirstFrames {
    fn default() -> Self {
        Self { probability: 0.5, max: 1, steps: None }
    }
}

impl Default for MaskGitConfig {
    fn default() -> Self {
        Self {
            codebook_size: 1024,
            factors: Vec::new(),
            num_classes: 0,
            grid: GridShape { frames: 4, height: 16, width: 16 },
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            dropout: 0.1,
            condition_segment: false,
            masking: MaskStrategy::default(),
            label_smoothing: 0.1,
            class_dropout: 0.1,
            first_frames: None,
            steps: 12,
            mask_schedule: MaskSchedule::Cosine,
            choice_temperature: 4.5,
        }
    }
}

impl MaskGitConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let GridShape { frames, height, width } = self.grid;
        if [frames, height, width].iter().any(|n| !(1..=1 << 12).contains(n)) {
            return Err(Error::config("grid", self.grid, "1 to 4096 frames, rows and columns"));
        }
        if !(0..=1 << 24).contains(&self.num_classes) {
            return Err(Error::config("num_classes", self.num_classes, "0 to 2^24"));
        }
        for (field, share) in
            [("label_smoothing", self.label_smoothing), ("class_dropout", self.class_dropout)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(field, share, "a number in [0, 1]"));
            }
        }
        if let Some(first) = self.first_frames {
            if !(0.0..=1.0).contains(&first.probability) {
                return Err(Error::config("first_frames.probability", first.probability, "in [0, 1]"));
            }
            if first.max < 1 || first.max >= frames {
                let expected = format!("at least 1 and fewer than the grid's {frames}");
                return Err(Error::config("first_frames.max", first.max, expected));
            }
        }
        self.masking.validate([frames, height, width]).map_err(|error| error.within("masking"))?;
        self.decoding(self.steps, 0.0, Default::default()).validate()?;
        if let Some(steps) = self.first_frames.and_then(|first| first.steps) {
            let decoding = self.decoding(steps, 0.0, Default::default());
            decoding.validate().map_err(|error| error.within("first_frames"))?;
        }
        self.transformer().validate()
    }

    fn tokens(&self) -> MagvitTokens {
        MagvitTokens { codebook_size: self.codebook_size, num_classes: self.num_classes, multi_task: false }
    }

    fn transformer(&self) -> TransformerConfig {
        TransformerConfig {
            codebook_size: self.codebook_size,
            num_special: self.tokens().num_special(),
            factors: self.factors.clone(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.tokens().prefix_len() + self.grid.tokens(),
            num_segments: if self.condition_segment { 2 } else { 0 },
            dropout: self.dropout,
        }
    }

    fn decoding(
        &self,
        steps: i64,
        guidance_scale: f64,
        filter: video_core::sampling::Filter,
    ) -> GridDecodeOptions {
        GridDecodeOptions {
            steps,
            schedule: self.mask_schedule.clone(),
            choice_temperature: self.choice_temperature,
            filter,
            guidance_scale,
        }
    }
}

/// A masked generator: sequences `[class, or the absent class][grid]`. Variables: see [`BidirectionalTransformer`].
///
/// Through [`TokenGenerator`] it serves classes and first frames, whose tokens are taken as they are (a causal tokenizer's
/// first frames do not depend on later ones). Condition videos, COMMIT's and others', go through
/// [`MaskGit::loss_in_region`] and [`MaskGit::sample_in_region`].
#[derive(Debug)]
pub struct MaskGit {
    config: MaskGitConfig,
    transformer: BidirectionalTransformer,
    serves: Vec<ConditionKind>,
    device: Device,
}

impl MaskGit {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &MaskGitConfig) -> Result<Self> {
        config.validate()?;
        let transformer = BidirectionalTransformer::new(path, &config.transformer())?;
        let GridShape { frames, height, width } = config.grid;
        transformer.start_grid_positions(config.tokens().prefix_len(), [frames, height, width]);
        let mut serves = Vec::new();
        if config.first_frames.is_some() {
            serves.push(ConditionKind::FirstFrames);
        }
        if config.num_classes > 0 {
            serves.push(ConditionKind::Class);
        }
        Ok(Self { config: config.clone(), transformer, serves, device: path.device() })
    }

    /// Its configuration.
    pub fn config(&self) -> &MaskGitConfig {
        &self.config
    }

    /// Its network.
    pub fn transformer(&self) -> &BidirectionalTransformer {
        &self.transformer
    }

    /// The training loss, 0-d, of grids with condition tokens in a region: prediction, interpolation, in- and outpainting.
    /// `class` int64 `[B]`.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`]; a region that does not fit.
    pub fn loss_in_region(
        &self,
        tokens: &TokenGrid,
        region: Option<(ConditionMode, &RegionCondition)>,
        class: Option<&Tensor>,
        seed: u64,
    ) -> Result<Tensor> {
        tch::manual_seed(seed as i64);
        self.step_loss(tokens, region, class)
    }

    /// [`MaskGit::loss_in_region`] with torch's generator as it is.
    fn step_loss(
        &self,
        tokens: &TokenGrid,
        region: Option<(ConditionMode, &RegionCondition)>,
        class: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.check_grid(tokens.shape())?;
        tokens.check_vocabulary(self.config.codebook_size)?;
        self.check_region(region, tokens.batch())?;
        let prefix = self.prefix(tokens.batch(), class)?;
        let prefix = self.with_class_dropout(prefix);
        let grid = self.config.masking.mask(tokens.ids(), region)?;
        let sequence = MaskedTokens::concatenate(&[prefix, grid]);
        let sequence = TrainingSequence {
            inputs: &sequence.inputs,
            segment_ids: Some(&sequence.segment_ids),
            targets: &sequence.targets,
            weights: &sequence.weights,
        };
        self.transformer.loss(&sequence, Columns::Codes, self.config.label_smoothing, true)
    }

    /// Decodes grids with condition tokens in a region, and tells how. With [`ConditionMode::InputToInput`] the region's ids
    /// are kept.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`]; a region that does not fit.
    pub fn sample_in_region(
        &self,
        region: Option<(ConditionMode, &RegionCondition)>,
        class: Option<&Tensor>,
        options: &SampleOptions,
    ) -> Result<GridDecoded> {
        self.decode(region, class, options, self.config.steps)
    }

    fn decode(
        &self,
        region: Option<(ConditionMode, &RegionCondition)>,
        class: Option<&Tensor>,
        options: &SampleOptions,
        steps: i64,
    ) -> Result<GridDecoded> {
        if options.batch < 1 {
            return Err(Error::config("batch", options.batch, "at least 1"));
        }
        options.filter.validate()?;
        self.check_region(region, options.batch)?;
        tch::manual_seed(options.seed as i64);
        let GridShape { frames, height, width } = self.config.grid;
        let ids = match region {
            Some((ConditionMode::InputToInput, condition)) => condition.ids.shallow_clone(),
            _ => Tensor::zeros([options.batch, frames, height, width], (Kind::Int64, self.device)),
        };
        let prefix = self.prefix(options.batch, class)?;
        let prompt = GridPrompt { prefix: &prefix, ids: &ids, condition: region };
        let decoding = self.config.decoding(steps, options.guidance - 1.0, options.filter);
        decode_grid(&self.transformer, &prompt, &decoding, None)
    }

    /// [`TokenGenerator::sample`] on the grid of the config, with what the model read and wrote in each step.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`].
    pub fn sample_in_steps(&self, condition: &Condition, options: &SampleOptions) -> Result<GridDecoded> {
        condition.check_served("MaskGit", &self.serves)?;
        let given = match &condition.first_frames {
            None => None,
            Some(first) => {
                self.check_first_frames(first, options.batch)?;
                let frames = first.shape().frames;
                let rest = [0, 0, 0, 0, 0, self.config.grid.frames - frames];
                Some(self.first_frames(&first.ids().to_device(self.device).constant_pad_nd(rest), frames))
            }
        };
        // The given tokens are exact: they are kept, not refined.
        let region = given.as_ref().map(|given| (ConditionMode::InputToInput, given));
        let of_continuations = self.config.first_frames.and_then(|first| first.steps);
        let steps = of_continuations.filter(|_| region.is_some()).unwrap_or(self.config.steps);
        self.decode(region, condition.class.as_ref(), options, steps)
    }

    fn prefix(&self, batch: i64, class: Option<&Tensor>) -> Result<MaskedTokens> {
        let task = SpecialToken::FullGeneration;
        let class = class.map(|class| class.to_device(self.device));
        self.config.tokens().prefix(batch, self.device, task, task, class.as_ref())
    }

    fn with_class_dropout(&self, prefix: MaskedTokens) -> MaskedTokens {
        let dropped = Tensor::rand(prefix.inputs.size(), (Kind::Float, prefix.inputs.device()))
            .lt(self.config.class_dropout);
        MaskedTokens { inputs: prefix.uncond_inputs.where_self(&dropped, &prefix.inputs), ..prefix }
    }

    fn check_grid(&self, shape: GridShape) -> Result<()> {
        if shape == self.config.grid {
            return Ok(());
        }
        let GridShape { frames, height, width } = shape;
        let expected = format!("{:?}, the grid that the model was built for", self.config.grid);
        Err(Error::shape("token grid", &[frames, height, width], expected))
    }

    fn check_region(&self, region: Option<(ConditionMode, &RegionCondition)>, batch: i64) -> Result<()> {
        let Some((_, condition)) = region else { return Ok(()) };
        let GridShape { frames, height, width } = self.config.grid;
        condition.check(&[batch, frames, height, width])?;
        TokenGrid::new(condition.ids.shallow_clone())?.check_vocabulary(self.config.codebook_size)?;
        Ok(())
    }

    /// The first frames of a grid as a region of their own ids.
    fn first_frames(&self, ids: &Tensor, frames: i64) -> RegionCondition {
        let index = Tensor::arange(self.config.grid.frames, (Kind::Int64, ids.device()));
        RegionCondition { ids: ids.shallow_clone(), region: index.lt(frames).view([1, -1, 1, 1]) }
    }
}

impl TokenGenerator for MaskGit {
    /// Nats per masked token (per token and digit-wise summed where the vocabulary is factorised), smoothing included. Given
    /// first frames are not masked; the rest of the grid is what `tokens` says.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        condition.check_served("MaskGit", &self.serves)?;
        self.check_grid(tokens.shape())?;
        tch::manual_seed(seed as i64);
        let frames = match (&condition.first_frames, self.config.first_frames) {
            (Some(first), _) => {
                self.check_first_frames(first, tokens.batch())?;
                first.shape().frames
            }
            (None, Some(FirstFrames { probability, max, .. })) => {
                let draw = Tensor::rand([1], (Kind::Double, Device::Cpu)).double_value(&[0]);
                let count = Tensor::randint_low(1, max + 1, [1], (Kind::Int64, Device::Cpu));
                if draw < probability { count.int64_value(&[0]) } else { 0 }
            }
            (None, None) => 0,
        };
        let given = (frames > 0).then(|| self.first_frames(tokens.ids(), frames));
        let region = given.as_ref().map(|given| (self.config.masking.condition_mode(), given));
        self.step_loss(tokens, region, condition.class.as_ref())
    }

    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        self.check_grid(shape)?;
        TokenGrid::new(self.sample_in_steps(condition, options)?.ids)
    }

    fn serves(&self) -> &[ConditionKind] {
        &self.serves
    }

    fn vocabulary_size(&self) -> i64 {
        self.config.codebook_size
    }
}

impl MaskGit {
    fn check_first_frames(&self, first: &TokenGrid, batch: i64) -> Result<()> {
        let GridShape { frames, height, width } = self.config.grid;
        let given = first.shape();
        if first.batch() != batch || (given.height, given.width) != (height, width) || given.frames >= frames
        {
            return Err(Error::shape(
                "first frames",
                &first.ids().size(),
                format!("[{batch}, t, {height}, {width}] with t < {frames}"),
            ));
        }
        first.check_vocabulary(self.config.codebook_size)
    }
}
