//! The prior behind the workspace's contract.

use tch::{Kind, Tensor, no_grad};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use crate::gpt::{GptCondition, VideoGpt};

const NAME: &str = "VideoGPT";

impl VideoGpt {
    /// The training loss, 0-d, nats per token, of a model that may be given frames in pixels. Dropout is drawn from `seed`.
    ///
    /// # Errors
    /// As [`VideoGpt::forward`].
    pub fn loss_under(&self, tokens: &TokenGrid, condition: GptCondition<'_>, seed: u64) -> Result<Tensor> {
        tch::manual_seed(seed as i64);
        self.cross_entropy(tokens, condition, true)
    }

    /// Draws grids token by token in raster order. `first_frames`: tokens of the first latent frames, which are kept.
    ///
    /// # Errors
    /// A condition that the model was not built for or that is missing; first frames that do not fit the grid, or leave
    /// nothing to draw; filters that mean nothing; guidance, as there is no model without the condition.
    pub fn sample_under(
        &self,
        condition: GptCondition<'_>,
        first_frames: Option<&TokenGrid>,
        options: &SampleOptions,
    ) -> Result<TokenGrid> {
        options.filter.validate()?;
        if options.guidance != 1.0 {
            let because = "it learns no unconditional model beside the conditional one: guidance = 1 is none";
            return Err(Error::unsupported(NAME, "use guidance", because));
        }
        let mut decoder = self.decoder(options.batch, condition)?;
        let GridShape { frames, height, width } = self.config.grid;
        let mut ids = match first_frames {
            None => Tensor::zeros([options.batch, 0], (Kind::Int64, self.device)),
            Some(first) => {
                let given = first.shape();
                if first.batch() != options.batch
                    || (given.height, given.width) != (height, width)
                    || given.frames >= frames
                {
                    let expected = format!("[{}, fewer than {frames}, {height}, {width}]", options.batch);
                    return Err(Error::shape("first frames", &first.ids().size(), expected));
                }
                first.ids().flatten(1, 3).to_device(self.device)
            }
        };
        tch::manual_seed(options.seed as i64);
        no_grad(|| {
            let mut fed = ids.shallow_clone();
            let mut drawn = Vec::new();
            for _ in ids.size()[1]..self.config.grid.tokens() {
                let logits = decoder.push(&fed)?;
                let last = logits.narrow(1, logits.size()[1] - 1, 1);
                fed = options.filter.sample(&last);
                drawn.push(fed.shallow_clone());
            }
            drawn.insert(0, ids.shallow_clone());
            ids = Tensor::cat(&drawn, 1);
            TokenGrid::new(ids.view([options.batch, frames, height, width]))
        })
    }

    /// The condition of a model that is given no pixels.
    fn tokens_only<'a>(&self, condition: &'a Condition) -> Result<GptCondition<'a>> {
        condition.check_served(NAME, self.serves())?;
        if self.config.frames.is_some() {
            return Err(Error::unsupported(
                NAME,
                "be given frames as tokens alone",
                "it was built for frames in pixels: loss_under and sample_under take them",
            ));
        }
        Ok(GptCondition { class: condition.class.as_ref(), frames: None })
    }
}

impl TokenGenerator for VideoGpt {
    /// Nats per token over the whole grid, given first frames among it, as they are the beginning of the raster anyway.
    fn loss(&self, tokens: &TokenGrid, condition: &Condition, seed: u64) -> Result<Tensor> {
        self.loss_under(tokens, self.tokens_only(condition)?, seed)
    }

    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        self.check_grid(shape)?;
        self.sample_under(self.tokens_only(condition)?, condition.first_frames.as_ref(), options)
    }

    fn serves(&self) -> &[ConditionKind] {
        match self.config.class_cond_dim {
            Some(_) => &[ConditionKind::FirstFrames, ConditionKind::Class],
            None => &[ConditionKind::FirstFrames],
        }
    }

    fn vocabulary_size(&self) -> i64 {
        self.config.n_codes
    }
}
