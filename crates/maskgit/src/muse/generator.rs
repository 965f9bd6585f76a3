//! Muse behind the workspace's contract.

use layers::Linear;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use super::generate::{MuseDecoded, MuseSampling, generate};
use super::train::{MuseDraws, MuseLoss, muse_loss};
use super::transformer::{Critic, MuseConfig, MuseContext, MuseTransformer};

/// Which critic is trained with a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CriticConfig {
    /// A transformer of its own, of this depth.
    Separate {
        /// Blocks.
        depth: i64,
    },
    /// A linear map of the generator's hidden states.
    OfGenerator,
}

/// Configuration of [`Muse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MuseGeneratorConfig {
    /// The network; its `seq_len` must be the grid's tokens.
    pub transformer: MuseConfig,
    /// The grid that is made: one frame for images.
    pub grid: GridShape,
    /// Super-resolution: the grid of the same codes that is given.
    #[serde(default)]
    pub low_resolution: Option<GridShape>,
    /// Whether a critic says what is masked again in sampling.
    #[serde(default)]
    pub critic: Option<CriticConfig>,
    /// Training.
    #[serde(default)]
    pub loss: MuseLoss,
    /// Sampling; its temperature and scale give way to those of [`SampleOptions`].
    #[serde(default)]
    pub sampling: MuseSampling,
}

impl MuseGeneratorConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.transformer.validate().map_err(|error| error.within("transformer"))?;
        for grid in [Some(self.grid), self.low_resolution].into_iter().flatten() {
            if [grid.frames, grid.height, grid.width].iter().any(|n| !(1..=1 << 12).contains(n)) {
                return Err(Error::config("grid", grid, "1 to 4096 frames, rows and columns"));
            }
        }
        if self.transformer.seq_len != self.grid.tokens() {
            return Err(Error::config(
                "transformer.seq_len",
                self.transformer.seq_len,
                format!("{}, the tokens of the grid", self.grid.tokens()),
            ));
        }
        if self.sampling.can_remask_prev_masked && self.loss.no_mask_token_prob == 0.0 {
            return Err(Error::config(
                "sampling.can_remask_prev_masked",
                true,
                "false, or loss.no_mask_token_prob above 0, which trains for it",
            ));
        }
        self.sampling.validate().map_err(|error| error.within("sampling"))
    }
}

/// A text-conditioned generator, base or super-resolution. Variables under `transformer` and `token_critic`.
#[derive(Debug)]
pub struct Muse {
    config: MuseGeneratorConfig,
    transformer: MuseTransformer,
    critic: Option<Critic>,
    device: Device,
}

impl Muse {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &MuseGeneratorConfig) -> Result<Self> {
        config.validate()?;
        let at = path / "token_critic";
        let critic = match config.critic {
            None => None,
            Some(CriticConfig::OfGenerator) => {
                Some(Critic::OfGenerator(Linear::new(&(&at / "to_pred"), config.transformer.dim, 1, true)))
            }
            Some(CriticConfig::Separate { depth }) => {
                let config = MuseConfig { depth, self_cond: false, ..config.transformer.clone() };
                Some(Critic::Separate(Box::new(MuseTransformer::critic(&at, &config)?)))
            }
        };
        let transformer = MuseTransformer::new(&(path / "transformer"), &config.transformer)?;
        Ok(Self { config: config.clone(), transformer, critic, device: path.device() })
    }

    /// Its configuration.
    pub fn config(&self) -> &MuseGeneratorConfig {
        &self.config
    }

    /// Its network.
    pub fn transformer(&self) -> &MuseTransformer {
        &self.transformer
    }

    /// [`TokenGenerator::loss`] given the tokens of the coarse grid.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`]; a coarse grid that is missing, or not of the config.
    pub fn loss_above(
        &self,
        tokens: &TokenGrid,
        low_resolution: Option<&TokenGrid>,
        condition: &Condition,
        seed: u64,
    ) -> Result<Tensor> {
        condition.check_served("Muse", self.serves())?;
        check_grid("token grid", tokens.shape(), self.config.grid)?;
        tokens.check_vocabulary(self.vocabulary_size())?;
        self.check_low_resolution(low_resolution, tokens.batch())?;
        let text = self.text(condition, tokens.batch())?;
        tch::manual_seed(seed as i64);
        let ids = tokens.ids().flatten(1, -1);
        let draws = MuseDraws::draw(&ids, self.config.transformer.num_tokens, self.critic.is_some());
        let context = self.context(&text, low_resolution);
        muse_loss(&self.transformer, self.critic.as_ref(), &ids, &context, &self.config.loss, &draws)
    }

    /// [`TokenGenerator::sample`] given the tokens of the coarse grid, and how it came about.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`]; a coarse grid that is missing, or not of the config.
    pub fn sample_above(
        &self,
        low_resolution: Option<&TokenGrid>,
        condition: &Condition,
        options: &SampleOptions,
    ) -> Result<MuseDecoded> {
        condition.check_served("Muse", self.serves())?;
        options.filter.validate()?;
        if options.batch < 1 {
            return Err(Error::config("batch", options.batch, "at least 1"));
        }
        if options.filter.top_k.is_some() || options.filter.top_p.is_some() {
            return Err(Error::unsupported(
                "Muse",
                "filter by top_k or top_p",
                "it keeps the share 1 − sampling.topk_filter_thres of the logits",
            ));
        }
        self.check_low_resolution(low_resolution, options.batch)?;
        let text = self.text(condition, options.batch)?;
        tch::manual_seed(options.seed as i64);
        let sampling = MuseSampling {
            temperature: options.filter.temperature,
            cond_scale: options.guidance,
            ..self.config.sampling
        };
        let context = self.context(&text, low_resolution);
        let tokens = self.config.grid.tokens();
        generate(&self.transformer, self.critic.as_ref(), &context, tokens, &sampling, None)
    }

    fn context<'a>(&self, text: &'a Tensor, low_resolution: Option<&'a TokenGrid>) -> MuseContext<'a> {
        MuseContext { low_resolution: low_resolution.map(TokenGrid::ids), ..MuseContext::of_text(text) }
    }

    /// Text embeddings with zeros at padding; zeros alone where there is no text.
    fn text(&self, condition: &Condition, batch: i64) -> Result<Tensor> {
        let Some((states, mask)) = &condition.text else {
            let shape = [batch, 1, self.config.transformer.text_dim];
            return Ok(Tensor::zeros(shape, (Kind::Float, self.device)));
        };
        if states.dim() != 3 || mask.size() != states.size()[..2] || mask.kind() != Kind::Bool {
            return Err(Error::shape("text mask", &mask.size(), "bool [B, L] for embeddings [B, L, E]"));
        }
        Ok(states.masked_fill(&mask.logical_not().unsqueeze(-1), 0.0).to_device(self.device))
    }

    fn check_low_resolution(&self, given: Option<&TokenGrid>, batch: i64) -> Result<()> {
        match (given, self.config.low_resolution) {
            (None, None) => Ok(()),
            (Some(grid), Some(shape)) if grid.batch() == batch => {
                check_grid("low-resolution grid", grid.shape(), shape)?;
                grid.check_vocabulary(self.vocabulary_size())
            }
            (given, expected) => Err(Error::input(
                "low-resolution tokens",
                given.map_or("not given".into(), |grid| format!("{:?}", grid.ids().size())),
                expected.map_or("none: the model is a base model".into(), |shape| {
                    format!("{batch} of {shape:?}, through loss_above and sample_above")
                }),
            )),
        }
    }
}

fn check_grid(what: &str, given: GridShape, expected: GridShape) -> Result<()> {
    if given == expected {
        return Ok(());
    }
    let expected = format!("{expected:?}, the grid that the model was built for");
    Err(Error::shape(what, &[given.frames, given.height, given.width], expected))
}

impl TokenGenerator for Muse {
    /// Nats per masked token, and the critic's loss beside it. Without a text, as with one that is dropped.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        self.loss_above(tokens, None, condition, seed)
    }

    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        check_grid("token grid", shape, self.config.grid)?;
        let ids = self.sample_above(None, condition, options)?.ids;
        TokenGrid::new(ids.view([options.batch, shape.frames, shape.height, shape.width]))
    }

    fn serves(&self) -> &[ConditionKind] {
        &[ConditionKind::Text]
    }

    fn vocabulary_size(&self) -> i64 {
        self.config.transformer.num_tokens
    }
}
