//! The text-conditioned transformer, and critics on it.

use layers::Linear;
use serde::{Deserialize, Serialize};
use tch::nn::Init;
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

use super::blocks::{FeedForward, MuseAttention, ScaleNorm};

/// Configuration of [`MuseTransformer`]; the defaults are those of the reference's example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuseConfig {
    /// V, the tokenizer's codes.
    pub num_tokens: i64,
    /// N, the longest sequence.
    pub seq_len: i64,
    /// D.
    pub dim: i64,
    /// Blocks.
    pub depth: i64,
    /// Heads.
    pub heads: i64,
    /// Width of a head.
    pub dim_head: i64,
    /// Of `dim`, 3/2 of the width inside the feed-forward.
    pub ff_mult: f64,
    /// E, width of the text embeddings.
    pub text_dim: i64,
    /// Whether the hidden states of an earlier pass enter.
    pub self_cond: bool,
}

impl Default for MuseConfig {
    fn default() -> Self {
        Self {
            num_tokens: 65536,
            seq_len: 256,
            dim: 512,
            depth: 8,
            heads: 8,
            dim_head: 64,
            ff_mult: 4.0,
            text_dim: 512,
            self_cond: false,
        }
    }
}

impl MuseConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("num_tokens", self.num_tokens),
            ("seq_len", self.seq_len),
            ("dim", self.dim),
            ("depth", self.depth),
            ("text_dim", self.text_dim),
        ] {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::config(field, value, "1 to 2^24"));
            }
        }
        Ok(())
    }
}

/// What a sequence is conditioned on.
#[derive(Clone, Copy, Debug)]
pub struct MuseContext<'a> {
    /// Text embeddings `[B, L, E]`: rows of zeros are padding.
    pub text: &'a Tensor,
    /// bool `[B]`: false where the text is dropped. None: no text is.
    pub keep_text: Option<&'a Tensor>,
    /// Tokens of the coarser grid, int64 `[B, ...]`, always seen.
    pub low_resolution: Option<&'a Tensor>,
    /// Hidden states `[B, N, D]` of an earlier pass; zeros where not given. Not read without [`MuseConfig::self_cond`].
    pub self_cond: Option<&'a Tensor>,
}

impl<'a> MuseContext<'a> {
    /// Text alone.
    pub fn of_text(text: &'a Tensor) -> Self {
        Self { text, keep_text: None, low_resolution: None, self_cond: None }
    }
}

#[derive(Debug)]
struct Block {
    self_attention: MuseAttention,
    cross_attention: MuseAttention,
    feed_forward: FeedForward,
}

/// Tokens and text to hidden states, and those to logits. Variables: `token_emb` `[V + 1, D]` (a critic's: `[V, D]`), `pos_emb`
/// `[N, D]`, `text_embed_proj` where E ≠ D, `self_cond` (see [`FeedForward`]), `blocks.{i}.{self_attention, cross_attention,
/// feed_forward}`, `norm.gamma`, `to_logits`.
#[derive(Debug)]
pub struct MuseTransformer {
    config: MuseConfig,
    token_emb: Tensor,
    pos_emb: Tensor,
    text_embed_proj: Option<Linear>,
    self_cond: FeedForward,
    blocks: Vec<Block>,
    norm: ScaleNorm,
    to_logits: Linear,
}

impl MuseTransformer {
    /// The generator: a row for the mask behind the codes, a logit for each code.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &MuseConfig) -> Result<Self> {
        Self::with_rows(path, config, config.num_tokens + 1, config.num_tokens)
    }

    /// A critic: no mask, one logit for each position, high where the token is wrong.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn critic(path: &nn::Path, config: &MuseConfig) -> Result<Self> {
        Self::with_rows(path, config, config.num_tokens, 1)
    }

    fn with_rows(path: &nn::Path, config: &MuseConfig, rows: i64, outputs: i64) -> Result<Self> {
        config.validate()?;
        let &MuseConfig { dim, heads, dim_head, ff_mult, text_dim, .. } = config;
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let blocks = (0..config.depth)
            .map(|i| {
                let path = path / "blocks" / i;
                let attention = |name: &str| MuseAttention::new(&(&path / name), dim, heads, dim_head);
                Ok(Block {
                    self_attention: attention("self_attention")?,
                    cross_attention: attention("cross_attention")?,
                    feed_forward: FeedForward::new(&(&path / "feed_forward"), dim, ff_mult)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            token_emb: path.var("token_emb", &[rows, dim], normal),
            pos_emb: path.var("pos_emb", &[config.seq_len, dim], normal),
            text_embed_proj: (text_dim != dim)
                .then(|| Linear::new(&(path / "text_embed_proj"), text_dim, dim, false)),
            // Its parameters are there even where it is off, as in published weights; its width is not configured.
            self_cond: FeedForward::new(&(path / "self_cond"), dim, 4.0)?,
            blocks,
            norm: ScaleNorm::new(&(path / "norm"), dim),
            to_logits: Linear::new(&(path / "to_logits"), dim, outputs, false),
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &MuseConfig {
        &self.config
    }

    /// The mask's id, V.
    pub fn mask_id(&self) -> i64 {
        self.config.num_tokens
    }

    /// Hidden states `[B, N, D]` of ids `[B, N]`, behind the last norm.
    ///
    /// # Errors
    /// A sequence that is too long, ids without a row, conditions that do not fit.
    pub fn embed(&self, ids: &Tensor, context: &MuseContext<'_>) -> Result<Tensor> {
        self.check(ids, context)?;
        let (context_rows, seen) = self.context(context);
        let positions = self.pos_emb.narrow(0, 0, ids.size()[1]);
        let mut x = Tensor::embedding(&self.token_emb, ids, -1, false, false) + positions;
        // Without biases, the feed-forward of zeros is zero: nothing is added where nothing is given.
        if let Some(earlier) = context.self_cond.filter(|_| self.config.self_cond) {
            x += self.self_cond.forward(earlier);
        }
        for block in &self.blocks {
            x = block.self_attention.forward(&x, None) + x;
            x = block.cross_attention.forward(&x, Some((&context_rows, &seen))) + x;
            x = block.feed_forward.forward(&x) + x;
        }
        Ok(self.norm.forward(&x))
    }

    /// Logits `[..., V]` (of a critic `[..., 1]`) of hidden states `[..., D]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.to_logits.forward(hidden)
    }

    /// null + scale · (cond − null) of the logits at `rows` (int64 `[M]` of B·N), `[M, V]`, and the hidden states with the
    /// condition. A scale of 1 saves the pass without text. Tokens of the coarser grid stay in both passes.
    ///
    /// # Errors
    /// As [`MuseTransformer::embed`].
    pub fn guided_logits(
        &self,
        ids: &Tensor,
        context: &MuseContext<'_>,
        rows: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let at_rows = |hidden: &Tensor| self.logits(&hidden.flatten(0, 1).index_select(0, rows));
        let hidden = self.embed(ids, context)?;
        let conditional = at_rows(&hidden);
        if scale == 1.0 {
            return Ok((conditional, hidden));
        }
        let dropped = Tensor::zeros([ids.size()[0]], (Kind::Bool, ids.device()));
        let null = at_rows(&self.embed(ids, &MuseContext { keep_text: Some(&dropped), ..*context })?);
        Ok((&null + (conditional - &null) * scale, hidden))
    }

    /// Rows that are attended to, `[B, M, D]`, and which of them are seen, bool `[B, M]`.
    fn context(&self, context: &MuseContext<'_>) -> (Tensor, Tensor) {
        let mut seen = context.text.ne(0.0).any_dim(-1, false);
        if let Some(keep) = context.keep_text {
            seen = seen.logical_and(&keep.unsqueeze(-1));
        }
        let text = match &self.text_embed_proj {
            Some(project) => project.forward(context.text),
            None => context.text.shallow_clone(),
        };
        let Some(ids) = context.low_resolution else { return (text, seen) };
        let ids = ids.flatten(1, -1);
        let rows = Tensor::embedding(&self.token_emb, &ids, -1, false, false);
        (Tensor::cat(&[text, rows], 1), Tensor::cat(&[seen, ids.ones_like().to_kind(Kind::Bool)], 1))
    }

    fn check(&self, ids: &Tensor, context: &MuseContext<'_>) -> Result<()> {
        let longest = self.config.seq_len;
        if ids.dim() != 2 || ids.size().contains(&0) || ids.size()[1] > longest || ids.kind() != Kind::Int64 {
            let expected = format!("int64 [B, N] with N at most seq_len = {longest}");
            return Err(Error::shape("token sequence", &ids.size(), expected));
        }
        let (batch, tokens) = (ids.size()[0], ids.size()[1]);
        let rows = self.token_emb.size()[0];
        for ids in [Some(ids), context.low_resolution].into_iter().flatten() {
            let [least, most] = [ids.min(), ids.max()].map(|id| id.int64_value(&[]));
            if least < 0 || most >= rows {
                return Err(Error::input("token ids", format!("{least} to {most}"), format!("0..{rows}")));
            }
        }
        let text = context.text.size();
        if text.len() != 3 || text[0] != batch || text[1] < 1 || text[2] != self.config.text_dim {
            let expected =
                format!("[{batch}, L, {}], as the encoder of the config gives", self.config.text_dim);
            return Err(Error::shape("text embeddings", &text, expected));
        }
        if let Some(keep) = context.keep_text.filter(|keep| keep.size() != [batch]) {
            return Err(Error::shape("keep_text", &keep.size(), format!("[{batch}]")));
        }
        if let Some(low) = context.low_resolution.filter(|low| low.dim() < 2 || low.size()[0] != batch) {
            return Err(Error::shape("low-resolution ids", &low.size(), format!("[{batch}, ...]")));
        }
        let hidden = [batch, tokens, self.config.dim];
        if let Some(given) = context.self_cond.filter(|given| given.size() != hidden) {
            return Err(Error::shape("self-conditioning", &given.size(), format!("{hidden:?}")));
        }
        Ok(())
    }
}

/// What judges tokens: high scores where they look wrong.
#[derive(Debug)]
pub enum Critic {
    /// A transformer of its own ([`MuseTransformer::critic`]).
    Separate(Box<MuseTransformer>),
    /// A linear map of the generator's hidden states: `[D]` to one score.
    OfGenerator(Linear),
}

impl Critic {
    /// Scores `[B, N]` of ids `[B, N]`, with gradients.
    ///
    /// # Errors
    /// As [`MuseTransformer::embed`].
    pub fn scores(
        &self,
        generator: &MuseTransformer,
        ids: &Tensor,
        context: &MuseContext<'_>,
    ) -> Result<Tensor> {
        let scores = match self {
            Self::Separate(critic) => critic.logits(&critic.embed(ids, context)?),
            Self::OfGenerator(linear) => linear.forward(&generator.embed(ids, context)?),
        };
        Ok(scores.squeeze_dim(-1))
    }

    /// Scores `[B, N]` with guidance, which changes nothing for a critic on the generator's hidden states.
    ///
    /// # Errors
    /// As [`MuseTransformer::embed`].
    pub fn guided_scores(
        &self,
        generator: &MuseTransformer,
        ids: &Tensor,
        context: &MuseContext<'_>,
        scale: f64,
    ) -> Result<Tensor> {
        match self {
            Self::Separate(critic) => {
                let all = Tensor::arange(ids.numel() as i64, (Kind::Int64, ids.device()));
                Ok(critic.guided_logits(ids, context, &all, scale)?.0.view_as(ids))
            }
            Self::OfGenerator(_) => self.scores(generator, ids, context),
        }
    }
}
