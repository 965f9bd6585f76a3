//! The autoregressive prior over a grid of tokens.

mod block;
mod decoder;

use serde::{Deserialize, Serialize};
use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor, no_grad};
use video_core::{Error, GridShape, Result, TokenGrid};

pub use decoder::GptDecoder;

use self::block::Block;
use crate::layer_norm::{LayerNorm, check_class};
use crate::position::{PositionEmbedding, RightShift};
use crate::resnet::{ResNet, ResNetConfig};
use crate::sparse::SparseLayout;
use layers::Linear;

/// Which positions see which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionType {
    /// Each sees all up to itself.
    #[default]
    Full,
    /// Each sees some of those. There is no attention dropout then.
    Sparse(SparseLayout),
}

/// The frames that a frame-conditional model is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrameConfig {
    /// Frames, n.
    pub n_cond_frames: i64,
    /// Height and width in pixels, multiples of the network's strides.
    pub size: [i64; 2],
    /// What looks at them.
    pub resnet: ResNetConfig,
}

impl Default for FrameConfig {
    fn default() -> Self {
        Self { n_cond_frames: 1, size: [64, 64], resnet: ResNetConfig::default() }
    }
}

impl FrameConfig {
    /// The grid of features.
    fn grid(&self) -> GridShape {
        let [time, height, width] = self.resnet.stride;
        GridShape {
            frames: self.n_cond_frames / time,
            height: self.size[0] / height,
            width: self.size[1] / width,
        }
    }

    fn validate(&self) -> Result<()> {
        self.resnet.validate().map_err(|error| error.within("resnet"))?;
        let [time, height, width] = self.resnet.stride;
        if !(1..=1 << 12).contains(&self.n_cond_frames) || self.n_cond_frames % time != 0 {
            let expected = format!("1 to 4096, a multiple of {time}");
            return Err(Error::config("n_cond_frames", self.n_cond_frames, expected));
        }
        for (size, stride) in self.size.into_iter().zip([height, width]) {
            if !(1..=1 << 14).contains(&size) || size % stride != 0 {
                return Err(Error::config("size", self.size, format!("multiples of {height} and {width}")));
            }
        }
        if self.resnet.resnet_dim % 3 != 0 {
            let expected = "a multiple of 3, a third for each axis of the positions";
            return Err(Error::config("resnet.resnet_dim", self.resnet.resnet_dim, expected));
        }
        Ok(())
    }
}

/// Configuration of [`VideoGpt`]; the defaults are those of the scripts, unconditional, on a grid of 4 × 32 × 32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GptConfig {
    /// K, the tokenizer's codes.
    pub n_codes: i64,
    /// Width of the vectors that stand for codes.
    pub embedding_dim: i64,
    /// Those vectors are given ([`VideoGpt::set_embeddings`]) and not trained: the published models' are the VQ-VAE's codes.
    pub frozen_embeddings: bool,
    /// The grid of a clip.
    pub grid: GridShape,
    /// C, a multiple of 3.
    pub hidden_dim: i64,
    /// Heads.
    pub heads: i64,
    /// Layers, L.
    pub layers: i64,
    /// Dropout behind each sub-layer, in training.
    pub dropout: f64,
    /// Dropout of self-attention's weights, in training.
    pub attn_dropout: f64,
    /// What the self-attention sees.
    pub attn_type: AttentionType,
    /// Classes of a class-conditional model.
    pub class_cond_dim: Option<i64>,
    /// Frames of a frame-conditional model.
    pub frames: Option<FrameConfig>,
}

impl Default for GptConfig {
    fn default() -> Self {
        Self {
            n_codes: 2048,
            embedding_dim: 256,
            frozen_embeddings: false,
            grid: GridShape { frames: 4, height: 32, width: 32 },
            hidden_dim: 576,
            heads: 4,
            layers: 8,
            dropout: 0.2,
            attn_dropout: 0.3,
            attn_type: AttentionType::Full,
            class_cond_dim: None,
            frames: None,
        }
    }
}

impl GptConfig {
    /// `ucf101_uncond_gpt`: unconditional, sparse attention, on the codes of `ucf101_stride4x4x4`.
    pub fn ucf101_uncond() -> Self {
        Self {
            frozen_embeddings: true,
            attn_type: AttentionType::Sparse(SparseLayout::default()),
            ..Self::default()
        }
    }

    /// `bair_gpt`: given one frame of 64 × 64, sparse attention, on the codes of `bair_stride4x2x2`.
    pub fn bair() -> Self {
        Self { frames: Some(FrameConfig::default()), ..Self::ucf101_uncond() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let GridShape { frames, height, width } = self.grid;
        if [frames, height, width].iter().any(|n| !(1..=1 << 12).contains(n)) || self.grid.tokens() > 1 << 20
        {
            return Err(Error::config("grid", self.grid, "at least 1 on each axis and at most 2^20 tokens"));
        }
        for (field, value, most) in [
            ("n_codes", self.n_codes, 1 << 24),
            ("embedding_dim", self.embedding_dim, 1 << 16),
            ("hidden_dim", self.hidden_dim, 1 << 16),
            ("heads", self.heads, self.hidden_dim),
            ("layers", self.layers, 1 << 12),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::config(field, value, format!("1 to {most}")));
            }
        }
        if self.hidden_dim % 3 != 0 {
            return Err(Error::config(
                "hidden_dim",
                self.hidden_dim,
                "a multiple of 3, a third for each axis",
            ));
        }
        for (field, share) in [("dropout", self.dropout), ("attn_dropout", self.attn_dropout)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::config(field, share, "a number in [0, 1)"));
            }
        }
        if let Some(classes) = self.class_cond_dim.filter(|n| !(1..=1 << 20).contains(n)) {
            return Err(Error::config("class_cond_dim", classes, "1 to 2^20, or none"));
        }
        if let Some(frames) = &self.frames {
            frames.validate().map_err(|error| error.within("frames"))?;
            if self.heads > frames.resnet.resnet_dim {
                let expected = format!("at most resnet_dim = {}", frames.resnet.resnet_dim);
                return Err(Error::config("heads", self.heads, expected));
            }
        }
        if let AttentionType::Sparse(layout) = self.attn_type {
            layout.block_shape(self.grid).map_err(|error| error.within("attn_type.sparse"))?;
        }
        Ok(())
    }
}

/// What a batch of clips is made under, as tensors.
#[derive(Clone, Copy, Debug, Default)]
pub struct GptCondition<'a> {
    /// int64 `[B]`, for a class-conditional model.
    pub class: Option<&'a Tensor>,
    /// The first frames `[B, 3, n, H, W]` in [-0.5, 0.5], for a frame-conditional model.
    pub frames: Option<&'a Tensor>,
}

/// The prior (Yan et al., arXiv 2104.10157, section 3.2): tokens in raster order, time first, each predicted from all
/// before it. It is a [`video_core::TokenGenerator`].
///
/// Variables are named as in the published checkpoints, beside `embeddings` `[K, D]`: `fc_in`, `attn_stack`, `norm`,
/// `fc_out`, `resnet`, `cond_pos_embd`.
#[derive(Debug)]
pub struct VideoGpt {
    pub(crate) config: GptConfig,
    pub(crate) device: Device,
    embeddings: Tensor,
    fc_in: Linear,
    right_shift: RightShift,
    pos_embd: PositionEmbedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    fc_out: Linear,
    frames: Option<(ResNet, PositionEmbedding)>,
    /// bool `[S, S]`, where attention is sparse.
    mask: Option<Tensor>,
}

impl VideoGpt {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &GptConfig) -> Result<Self> {
        config.validate()?;
        let width = config.hidden_dim;
        let first = Tensor::randn([config.n_codes, config.embedding_dim], (Kind::Float, path.device()));
        let small = Init::Randn { mean: 0.0, stdev: 0.02 };
        let stack = path / "attn_stack";
        let frames = match &config.frames {
            None => None,
            Some(frames) => {
                let (grid, width) = (frames.grid(), frames.resnet.resnet_dim);
                let positions = PositionEmbedding::new(&(path / "cond_pos_embd"), grid, width)?;
                Some((ResNet::new(&(path / "resnet"), &frames.resnet)?, positions))
            }
        };
        let mask = match config.attn_type {
            AttentionType::Full => None,
            AttentionType::Sparse(layout) => Some(layout.mask(config.grid, true)?.to_device(path.device())),
        };
        Ok(Self {
            embeddings: path.add("embeddings", first, !config.frozen_embeddings),
            fc_in: Linear::with_init(&(path / "fc_in"), config.embedding_dim, width, small, None),
            right_shift: RightShift::new(&(&stack / "right_shift"), width),
            pos_embd: PositionEmbedding::new(&(&stack / "pos_embd"), config.grid, width)?,
            blocks: (0..config.layers)
                .map(|layer| Block::new(&(&stack / "attn_nets" / layer), config))
                .collect::<Result<_>>()?,
            norm: LayerNorm::new(&(path / "norm"), width, config.class_cond_dim)?,
            fc_out: Linear::with_init(&(path / "fc_out"), width, config.n_codes, Init::Const(0.0), None),
            frames,
            mask,
            config: config.clone(),
            device: path.device(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Sets the vectors that stand for codes, `[K, D]`: a tokenizer's codebook.
    ///
    /// # Errors
    /// Another shape.
    pub fn set_embeddings(&self, codes: &Tensor) -> Result<()> {
        if codes.size() != self.embeddings.size() {
            let expected = format!("{:?}", self.embeddings.size());
            return Err(Error::shape("codes", &codes.size(), expected));
        }
        crate::position::set(&self.embeddings, codes);
        Ok(())
    }

    /// Logits `[B, t, h, w, K]` of every token given those before it in raster order. Attention and residuals are dropped
    /// with torch's generator where `train` says so.
    ///
    /// # Errors
    /// A grid of another shape, ids outside the vocabulary, a condition that the model was not built for or that is missing.
    pub fn forward(&self, tokens: &TokenGrid, condition: GptCondition<'_>, train: bool) -> Result<Tensor> {
        self.check_grid(tokens.shape())?;
        tokens.check_vocabulary(self.config.n_codes)?;
        check_class(condition.class, self.config.class_cond_dim, tokens.batch())?;
        let context = self.context(condition.frames, tokens.batch())?;
        let x = self.right_shift.forward(&self.embed(&tokens.ids().flatten(1, 3))) + self.pos_embd.all();
        let x = self.blocks.iter().fold(x, |x, block| {
            let seen = context.as_ref().and_then(|context| block.keys_values(context));
            block.forward(&x, seen.as_ref(), condition.class, self.mask.as_ref(), train)
        });
        Ok(self.logits(&x, condition.class).view([
            tokens.batch(),
            self.config.grid.frames,
            self.config.grid.height,
            self.config.grid.width,
            self.config.n_codes,
        ]))
    }

    /// Mean cross entropy over all tokens, 0-d, in nats, with gradients.
    ///
    /// # Errors
    /// As [`VideoGpt::forward`].
    pub fn cross_entropy(
        &self,
        tokens: &TokenGrid,
        condition: GptCondition<'_>,
        train: bool,
    ) -> Result<Tensor> {
        let logits = self.forward(tokens, condition, train)?.flatten(0, 3);
        Ok(logits.cross_entropy_for_logits(&tokens.ids().flatten(0, 3)))
    }

    /// −ln p of each clip, exact, float64 `[B]`, without gradients.
    ///
    /// # Errors
    /// As [`VideoGpt::forward`].
    pub fn nats(&self, tokens: &TokenGrid, condition: GptCondition<'_>) -> Result<Tensor> {
        no_grad(|| {
            let logits = self.forward(tokens, condition, false)?;
            let targets = tokens.ids().to_device(self.device).unsqueeze(-1);
            let nats = logits.logsumexp([-1i64].as_slice(), true) - logits.gather(-1, &targets, false);
            Ok(nats.sum_dim_intlist([1i64, 2, 3, 4].as_slice(), false, Kind::Double))
        })
    }

    /// A decoder of `batch` clips under a condition.
    ///
    /// # Errors
    /// No clip, or a condition that the model was not built for or that is missing.
    pub fn decoder<'a>(&'a self, batch: i64, condition: GptCondition<'_>) -> Result<GptDecoder<'a>> {
        GptDecoder::new(self, batch, condition)
    }

    /// Ids to the width of the network, `[B, n, C]`.
    fn embed(&self, ids: &Tensor) -> Tensor {
        self.fc_in.forward(&Tensor::embedding(&self.embeddings, ids, -1, false, false))
    }

    /// The last norm and the head, `[B, n, K]`.
    fn logits(&self, x: &Tensor, class: Option<&Tensor>) -> Tensor {
        self.fc_out.forward(&self.norm.apply(x, class))
    }

    /// What the cross-attentions see, `[B, M, R]`.
    fn context(&self, frames: Option<&Tensor>, batch: i64) -> Result<Option<Tensor>> {
        match (&self.frames, &self.config.frames, frames) {
            (Some((resnet, positions)), Some(config), Some(frames)) => {
                let [height, width] = config.size;
                let expected = [batch, 3, config.n_cond_frames, height, width];
                if frames.size() != expected {
                    return Err(Error::shape("frames", &frames.size(), format!("{expected:?}")));
                }
                let features = resnet.forward(&frames.to_device(self.device))?;
                Ok(Some(features.flatten(1, 3) + positions.all()))
            }
            (Some(_), _, _) => Err(Error::input(
                "frames",
                "none are given",
                "the first frames in pixels, as the model is frame-conditional",
            )),
            (None, _, Some(_)) => {
                Err(Error::unsupported("VideoGPT", "use frames", "it was built without them"))
            }
            (None, _, None) => Ok(None),
        }
    }

    pub(crate) fn check_grid(&self, shape: GridShape) -> Result<()> {
        if shape == self.config.grid {
            return Ok(());
        }
        let GridShape { frames, height, width } = shape;
        let expected = format!("{:?}, the grid that the model was built for", self.config.grid);
        Err(Error::shape("token grid", &[frames, height, width], expected))
    }
}
