//! Perceiver AR over grids of tokens, behind the workspace's contract.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use crate::config::{PerceiverArConfig, PositionEncoding, PositionEncodingType};
use crate::data::count_positions;
use crate::loss::{LossConfig, cross_entropy};
use crate::model::{PerceiverAr, Sequence, TrainDraws};
use crate::sampler::{Sampler, Scheme};
use crate::sequence::{RESERVED, SOS};

/// What tells the model where in a grid a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridPositions {
    /// Rotations by the number in the raster.
    Rotary,
    /// A Fourier table over the raster.
    Fourier,
    /// Learnt vectors of frame, row and column, summed.
    #[default]
    Axes,
}

/// Configuration of [`PerceiverArGenerator`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerceiverArGeneratorConfig {
    /// The tokenizer's codes.
    pub n_codes: i64,
    /// The grid of a clip.
    pub grid: GridShape,
    /// Classes; each takes the place of the start. 0: none.
    pub num_classes: i64,
    /// Z, latents: at most the grid's tokens.
    pub num_latents: i64,
    /// Width of inputs and latents.
    pub hidden_dim: i64,
    /// Heads of all attentions.
    pub heads: i64,
    /// Layers of self-attention.
    pub layers: i64,
    /// The MLPs' hidden width over `hidden_dim`.
    pub widening_factor: i64,
    /// Where tokens are.
    pub positions: GridPositions,
    /// Dropout behind attentions and MLPs.
    pub dropout: f64,
    /// Share of the inputs that are hidden in a training step.
    pub input_dropout: f64,
    /// Weight of the squared logarithm of the softmax' denominator.
    pub z_loss: f64,
    /// How samples are computed. None: strided, Z latents remembered and half of them after each time they are full.
    pub sampling: Option<Scheme>,
}

impl Default for PerceiverArGeneratorConfig {
    fn default() -> Self {
        Self {
            n_codes: 1024,
            grid: GridShape { frames: 4, height: 16, width: 16 },
            num_classes: 0,
            num_latents: 256,
            hidden_dim: 512,
            heads: 8,
            layers: 8,
            widening_factor: 4,
            positions: GridPositions::default(),
            dropout: 0.1,
            input_dropout: 0.0,
            z_loss: 1e-4,
            sampling: None,
        }
    }
}

impl PerceiverArGeneratorConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let GridShape { frames, height, width } = self.grid;
        if [frames, height, width].iter().any(|n| !(1..=1 << 12).contains(n)) || self.grid.tokens() > 1 << 23
        {
            return Err(Error::config("grid", self.grid, "at least 1 on each axis and at most 2^23 tokens"));
        }
        for (field, value, least) in [("n_codes", self.n_codes, 1), ("num_classes", self.num_classes, 0)] {
            if !(least..=1 << 23).contains(&value) {
                return Err(Error::config(field, value, format!("{least} to 2^23")));
            }
        }
        if !(1..=self.grid.tokens()).contains(&self.num_latents) {
            let expected = format!("1 to {}, the grid's tokens", self.grid.tokens());
            return Err(Error::config("num_latents", self.num_latents, expected));
        }
        if !(self.z_loss >= 0.0 && self.z_loss.is_finite()) {
            return Err(Error::config("z_loss", self.z_loss, "a number of at least 0"));
        }
        if let Some(Scheme::Strided { latents, refill, prompt }) = self.sampling
            && (latents < 2 || !(1..latents).contains(&refill) || !(1..=latents).contains(&prompt))
        {
            let expected = "at least 2 latents, of which refill leaves one free and prompt is a part";
            return Err(Error::config("sampling", self.sampling, expected));
        }
        self.model().validate()
    }

    fn model(&self) -> PerceiverArConfig {
        let GridShape { frames, height, width } = self.grid;
        let tokens = self.grid.tokens();
        let (position_encoding_type, position_encoding, input_idx_size) = match self.positions {
            GridPositions::Rotary => (PositionEncodingType::Rotary, PositionEncoding::Sinusoidal, vec![-1]),
            // Positions count from 1, and the start and every token has one.
            GridPositions::Fourier => {
                (PositionEncodingType::Absolute, PositionEncoding::Fourier, vec![tokens + 2])
            }
            GridPositions::Axes => {
                let rows = vec![frames + 1, height + 1, width + 1];
                (PositionEncodingType::Absolute, PositionEncoding::Random, rows)
            }
        };
        PerceiverArConfig {
            num_classes: RESERVED + self.n_codes + self.num_classes,
            input_idx_size,
            max_context_length: tokens,
            position_encoding_type,
            position_encoding,
            learnable_position_embeddings: self.positions == GridPositions::Axes,
            use_positions_from_data: true,
            max_wavelength: tokens,
            input_embed_dim: self.hidden_dim,
            num_z_channels: self.hidden_dim,
            z_index_dim: self.num_latents,
            num_transformers_per_block: self.layers,
            num_cross_attend_heads: self.heads,
            num_transformer_heads: self.heads,
            cross_attend_widening_factor: self.widening_factor,
            transformer_widening_factor: self.widening_factor,
            dropout_prob: self.dropout,
            encoder_dropout_prob: self.input_dropout,
            ..PerceiverArConfig::default()
        }
    }

    fn scheme(&self) -> Scheme {
        self.sampling.unwrap_or_else(|| {
            let latents = self.num_latents.max(2);
            Scheme::Strided { latents, refill: latents / 2, prompt: latents / 2 }
        })
    }
}

/// Perceiver AR as a generator over any tokenizer's grid: a start (or the class), then all tokens in raster order, time
/// first; ids are 3 more than the codes. Any context is one model's: all tokens so far, up to the whole grid.
#[derive(Debug)]
pub struct PerceiverArGenerator {
    config: PerceiverArGeneratorConfig,
    model: PerceiverAr,
    serves: Vec<ConditionKind>,
    device: Device,
}

impl PerceiverArGenerator {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &PerceiverArGeneratorConfig) -> Result<Self> {
        config.validate()?;
        let mut serves = vec![ConditionKind::FirstFrames];
        if config.num_classes > 0 {
            serves.push(ConditionKind::Class);
        }
        let model = PerceiverAr::new(path, &config.model())?;
        Ok(Self { config: config.clone(), model, serves, device: path.device() })
    }

    /// Its configuration.
    pub fn config(&self) -> &PerceiverArGeneratorConfig {
        &self.config
    }

    /// Its network.
    pub fn model(&self) -> &PerceiverAr {
        &self.model
    }

    /// −ln p of each clip, exact, float64 `[B]`: every token given all before it, in windows of Z latents.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`].
    pub fn nats(&self, tokens: &TokenGrid, condition: &Condition) -> Result<Tensor> {
        let (events, positions) = self.events(tokens, condition)?;
        let (total, latents) = (self.config.grid.tokens(), self.config.num_latents);
        let mut sum = Tensor::zeros([tokens.batch()], (Kind::Double, self.device));
        let mut done = 0;
        while done < total {
            // The first window is the short one, so that all others have every latent's worth of targets.
            let block = if done == 0 && total % latents != 0 { total % latents } else { latents };
            done += block;
            let (ids, targets) = (events.narrow(1, 0, done), events.narrow(1, 1, done));
            let places = positions.narrow(1, 0, done);
            let sequence = Sequence { ids: &ids, positions: Some(&places) };
            let (nats, _) = self.model.target_nats(sequence, &targets, Some(block), block)?;
            sum += nats.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        }
        Ok(sum)
    }

    /// Events int64 `[B, S + 1]` and their positions `[B, S + 1, D]`.
    fn events(&self, tokens: &TokenGrid, condition: &Condition) -> Result<(Tensor, Tensor)> {
        condition.check_served("Perceiver AR", &self.serves)?;
        self.check_grid(tokens.shape())?;
        tokens.check_vocabulary(self.config.n_codes)?;
        let start = self.start(condition.class.as_ref(), tokens.batch())?;
        let ids = tokens.ids().to_device(self.device).flatten(1, 3) + RESERVED;
        Ok((Tensor::cat(&[start, ids], 1), self.positions(tokens.batch())))
    }

    /// The event in front, int64 `[B, 1]`.
    fn start(&self, class: Option<&Tensor>, batch: i64) -> Result<Tensor> {
        let classes = self.config.num_classes;
        match class {
            None => Ok(Tensor::full([batch, 1], SOS, (Kind::Int64, self.device))),
            Some(class) => {
                if class.size() != [batch] || class.kind() != Kind::Int64 {
                    return Err(Error::shape("class", &class.size(), format!("int64 [{batch}]")));
                }
                let [least, most] = [class.min(), class.max()].map(|id| id.int64_value(&[]));
                if least < 0 || most >= classes {
                    return Err(Error::input("class", format!("{least} to {most}"), format!("0..{classes}")));
                }
                Ok((class.to_device(self.device) + RESERVED + self.config.n_codes).unsqueeze(1))
            }
        }
    }

    /// int64 `[B, S + 1, D]`.
    fn positions(&self, batch: i64) -> Tensor {
        let GridShape { frames, height, width } = self.config.grid;
        if self.config.positions != GridPositions::Axes {
            return count_positions(batch, self.config.grid.tokens() + 1, self.device);
        }
        let options = (Kind::Int64, self.device);
        let axis = |n: i64, shape: [i64; 3]| {
            let places = Tensor::arange_start(1, n + 1, options).view(shape);
            places.expand([frames, height, width], false)
        };
        let places = [axis(frames, [-1, 1, 1]), axis(height, [1, -1, 1]), axis(width, [1, 1, -1])];
        let grid = Tensor::stack(&places, -1).view([1, -1, 3]);
        Tensor::cat(&[Tensor::zeros([1, 1, 3], options), grid], 1).repeat([batch, 1, 1])
    }

    fn check_grid(&self, shape: GridShape) -> Result<()> {
        if shape == self.config.grid {
            return Ok(());
        }
        let GridShape { frames, height, width } = shape;
        let expected = format!("{:?}, the grid that the model was built for", self.config.grid);
        Err(Error::shape("token grid", &[frames, height, width], expected))
    }
}

impl TokenGenerator for PerceiverArGenerator {
    /// Nats per target, with the z term, of Z tokens in a row: which, is drawn, so that all take part alike.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        let (events, positions) = self.events(tokens, condition)?;
        tch::manual_seed(seed as i64);
        let (total, latents) = (self.config.grid.tokens(), self.config.num_latents);
        // Ends beyond either side count as the side, or the outermost tokens would hardly be trained.
        let end = Tensor::randint_low(1, total + latents, [1], (Kind::Int64, Device::Cpu)).int64_value(&[0]);
        let end = end.clamp(latents, total);
        let (ids, targets) = (events.narrow(1, 0, end), events.narrow(1, 1 + end - latents, latents));
        let places = positions.narrow(1, 0, end);
        let sequence = Sequence { ids: &ids, positions: Some(&places) };
        let draws = TrainDraws::draw(self.model.config(), tokens.batch(), end, latents, self.device);
        let logits = self.model.forward(sequence, None, Some(&draws))?.logits;
        let config = LossConfig { label_smoothing: 0.0, z_loss: self.config.z_loss };
        let weights = targets.ones_like().to_kind(Kind::Float);
        Ok(cross_entropy(&logits, &targets, &weights, config)?.loss.mean(Kind::Float))
    }

    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        condition.check_served("Perceiver AR", &self.serves)?;
        self.check_grid(shape)?;
        options.filter.validate()?;
        let batch = options.batch;
        if batch < 1 {
            return Err(Error::config("batch", batch, "at least 1"));
        }
        if options.guidance != 1.0 {
            let because = "it learns no unconditional model beside the conditional one: guidance = 1 is none";
            return Err(Error::unsupported("Perceiver AR", "use guidance", because));
        }
        let mut known = vec![self.start(condition.class.as_ref(), batch)?];
        if let Some(first) = &condition.first_frames {
            let given = first.shape();
            let fits = (given.height, given.width) == (shape.height, shape.width);
            if first.batch() != batch || !fits || given.frames >= shape.frames {
                let expected =
                    format!("[{batch}, fewer than {}, {}, {}]", shape.frames, shape.height, shape.width);
                return Err(Error::shape("first frames", &first.ids().size(), expected));
            }
            first.check_vocabulary(self.config.n_codes)?;
            known.push(first.ids().to_device(self.device).flatten(1, 3) + RESERVED);
        }
        let known = Tensor::cat(&known, 1);
        let start = known.size()[1];
        let events = known.constant_pad_nd([0, shape.tokens() + 1 - start]);
        let positions = self.positions(batch);
        tch::manual_seed(options.seed as i64);
        let mut sampler = Sampler::new(&self.model, &events, Some(&positions), start, self.config.scheme())?;
        while !sampler.is_done() {
            // Codes alone are drawn: neither reserved ids nor classes.
            let logits = sampler.logits()?.narrow(1, RESERVED, self.config.n_codes);
            sampler.write(&(options.filter.sample(&logits) + RESERVED))?;
        }
        let ids = sampler.events().narrow(1, 1, shape.tokens()) - RESERVED;
        TokenGrid::new(ids.view([batch, shape.frames, shape.height, shape.width]))
    }

    fn serves(&self) -> &[ConditionKind] {
        &self.serves
    }

    fn vocabulary_size(&self) -> i64 {
        self.config.n_codes
    }
}
