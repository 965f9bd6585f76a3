//! The bidirectional transformer of MaskGIT (Chang et al., arXiv 2202.04200) and MAGVIT (Yu et al., arXiv 2212.05199): BERT
//! with post-norm blocks and a head tied to the word table.
//!
//! Reference: google-research/maskgit `nets/maskgit_transformer.py`, google-research/magvit `models/simplified_bert.py`.

use layers::init::truncated_normal;
use layers::{AttentionOptions, Linear, attention, merge_heads, split_heads};
use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::loss::weighted_mean;
use crate::vocabulary::{Columns, INIT_STD, Logits, Vocabulary, layer_norm};

/// Configuration of [`BidirectionalTransformer`]; the defaults are MaskGIT's for 16 × 16 tokens of ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// K, the tokenizer's codes.
    pub codebook_size: i64,
    /// S, ids behind the codes: classes, tasks, and the mask as the last.
    pub num_special: i64,
    /// Digits of a code that are embedded and predicted apart, the first the least significant: `[512, 512]` for 2^18 codes.
    /// Empty: codes are whole.
    pub factors: Vec<i64>,
    /// D.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// H.
    pub num_attention_heads: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// L, the longest sequence, prefix included.
    pub max_position_embeddings: i64,
    /// Kinds of tokens with an embedding of their own; 0 for none.
    pub num_segments: i64,
    /// Dropout of hidden states and of attention in training.
    pub dropout: f64,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            codebook_size: 1024,
            num_special: 1001,
            factors: Vec::new(),
            hidden_size: 768,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            intermediate_size: 3072,
            max_position_embeddings: 257,
            num_segments: 0,
            dropout: 0.1,
        }
    }
}

impl TransformerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value, most) in [
            ("num_special", self.num_special, 1 << 30),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::config(field, value, format!("1 to {most}")));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(Error::config(
                "num_attention_heads",
                self.num_attention_heads,
                format!("a divisor of hidden_size = {}", self.hidden_size),
            ));
        }
        if !(0..=1 << 20).contains(&self.num_segments) {
            return Err(Error::config("num_segments", self.num_segments, "0 to 2^20"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", self.dropout, "at least 0 and below 1"));
        }
        Ok(())
    }

    /// K + S, the rows of the word table.
    pub fn vocab_size(&self) -> i64 {
        self.codebook_size + self.num_special
    }
}

/// One post-norm block. Variables: `query`, `key`, `value`, `out` (linears), `attention_norm`, `up`, `down`, `mlp_norm`.
#[derive(Debug)]
pub struct TransformerLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attention_norm: nn::LayerNorm,
    up: Linear,
    down: Linear,
    mlp_norm: nn::LayerNorm,
    heads: i64,
    dropout: f64,
}

impl TransformerLayer {
    /// Of width `hidden_size`.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &TransformerConfig) -> Result<Self> {
        config.validate()?;
        let width = config.hidden_size;
        let linear =
            |name: &str, i: i64, o: i64| Linear::truncated_normal(&(path / name), i, o, true, INIT_STD);
        Ok(Self {
            query: linear("query", width, width),
            key: linear("key", width, width),
            value: linear("value", width, width),
            out: linear("out", width, width),
            attention_norm: layer_norm(&(path / "attention_norm"), width),
            up: linear("up", width, config.intermediate_size),
            down: linear("down", config.intermediate_size, width),
            mlp_norm: layer_norm(&(path / "mlp_norm"), width),
            heads: config.num_attention_heads,
            dropout: config.dropout,
        })
    }

    /// `[B, L, D]` to the same shape; every position sees all.
    ///
    /// # Panics
    /// Another width.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let dropout = if train { self.dropout } else { 0.0 };
        let heads = |linear: &Linear| split_heads(&linear.forward(x), self.heads);
        let (q, k, v) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let seen = attention(&q, &k, &v, None, AttentionOptions { dropout, ..Default::default() });
        let attended = self.out.forward(&merge_heads(&seen)).dropout(dropout, train);
        let a = self.attention_norm.forward(&(x + attended));
        let mlp = self.down.forward(&self.up.forward(&a).gelu("tanh")).dropout(dropout, train);
        self.mlp_norm.forward(&(a + mlp))
    }
}

/// Tokens of a sequence to logits at any of its positions. Variables: `vocabulary` (see [`Vocabulary`]), `position`
/// `[L, D]`, `segment` `[2, D]` where there are segments, `norm`, `layers.{i}` (see [`TransformerLayer`]).
#[derive(Debug)]
pub struct BidirectionalTransformer {
    config: TransformerConfig,
    vocabulary: Vocabulary,
    position: Tensor,
    segment: Option<Tensor>,
    norm: nn::LayerNorm,
    layers: Vec<TransformerLayer>,
}

/// What a training step of sequences is told.
#[derive(Debug)]
pub struct TrainingSequence<'a> {
    /// int64 `[B, L]`: masked ids.
    pub inputs: &'a Tensor,
    /// int64 `[B, L]`: not read where the model has no segments.
    pub segment_ids: Option<&'a Tensor>,
    /// int64 `[B, L]`: true ids; not read where the weight is 0.
    pub targets: &'a Tensor,
    /// float `[B, L]`.
    pub weights: &'a Tensor,
}

impl BidirectionalTransformer {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &TransformerConfig) -> Result<Self> {
        config.validate()?;
        let width = config.hidden_size;
        let table = |name: &str, rows: i64| truncated_normal(path, name, &[rows, width], INIT_STD, 2.0);
        let vocabulary = Vocabulary::new(
            &(path / "vocabulary"),
            config.codebook_size,
            config.num_special,
            &config.factors,
            width,
        )?;
        let position = table("position", config.max_position_embeddings);
        let segment = (config.num_segments > 0).then(|| table("segment", config.num_segments));
        let layers = (0..config.num_hidden_layers)
            .map(|i| TransformerLayer::new(&(path / "layers" / i), config))
            .collect::<Result<_>>()?;
        let norm = layer_norm(&(path / "norm"), width);
        Ok(Self { config: config.clone(), vocabulary, position, segment, norm, layers })
    }

    /// Starts the positions of a grid of `[frames, height, width]` tokens that follows `first` others: a third of the width for
    /// each axis holds sines and cosines of the coordinate, from a period of 2π up to thirty times that, louder than the words.
    /// Places that are near each other are then alike before the first step, and a small network finds the same place in another
    /// frame within a few hundred steps (docs/quickstart.md). Afterwards every position learns by itself.
    pub(crate) fn start_grid_positions(&self, first: i64, grid: [i64; 3]) {
        const PERIODS: f64 = 30.0;
        const LOUDNESS: f64 = 4.0;
        let waves = self.config.hidden_size / 6;
        let options = (Kind::Float, self.position.device());
        let turns = (Tensor::arange(waves, options) * (-PERIODS.ln() / waves.max(1) as f64)).exp();
        let [frames, height, width] = grid;
        let axes: Vec<Tensor> = grid
            .iter()
            .enumerate()
            .map(|(axis, &size)| {
                let angles = Tensor::arange(size, options).unsqueeze(1) * &turns;
                // Of sines and cosines, √2 makes the standard deviation that of the words.
                let table =
                    Tensor::cat(&[angles.sin(), angles.cos()], 1) * (LOUDNESS * INIT_STD * 2f64.sqrt());
                let mut shape = [1, 1, 1, -1];
                shape[axis] = size;
                table.view(shape).expand([frames, height, width, 2 * waves], false)
            })
            .collect();
        let start = Tensor::cat(&axes, -1).view([-1, 6 * waves]);
        let rows = self.position.narrow(0, first, start.size()[0]);
        tch::no_grad(|| rows.narrow(1, 0, 6 * waves).copy_(&start));
    }

    /// Its configuration.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Its ids.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Hidden states `[B, L, D]` of ids `[B, L]` and, where the model has them, segments `[B, L]` (0 where not given).
    ///
    /// # Errors
    /// A sequence that is too long, ids without a row, segments of another shape or kind.
    pub fn hidden(&self, ids: &Tensor, segments: Option<&Tensor>, train: bool) -> Result<Tensor> {
        self.check_sequence(ids)?;
        let mut x = self.vocabulary.embed(ids) + self.position.narrow(0, 0, ids.size()[1]);
        if let Some(table) = &self.segment {
            let zeros;
            let segments = match segments {
                Some(segments) => segments,
                None => {
                    zeros = ids.zeros_like();
                    &zeros
                }
            };
            self.check_segments(segments, ids)?;
            x += Tensor::embedding(table, segments, -1, false, false);
        }
        let x = self.norm.forward(&x).dropout(self.config.dropout, train);
        Ok(self.layers.iter().fold(x, |x, layer| layer.forward(&x, train)))
    }

    /// The head's logits at `rows` (int64 `[M]`, numbers of positions among B·L) of hidden states `[B, L, D]`: what is not asked
    /// for is not computed.
    ///
    /// # Errors
    /// As [`Vocabulary::logits`].
    pub fn logits(&self, hidden: &Tensor, rows: &Tensor, columns: Columns) -> Result<Logits> {
        self.vocabulary.logits(&hidden.flatten(0, 1).index_select(0, rows), columns)
    }

    /// The loss of a step, 0-d: per sample the weighted mean of the smoothed cross-entropy, then the mean over samples. Only
    /// positions with weight go through the head.
    ///
    /// # Errors
    /// As [`BidirectionalTransformer::hidden`]; targets or weights of another shape, targets that the softmax has no
    /// column for.
    pub fn loss(
        &self,
        sequence: &TrainingSequence<'_>,
        columns: Columns,
        label_smoothing: f64,
        train: bool,
    ) -> Result<Tensor> {
        let TrainingSequence { inputs, segment_ids, targets, weights } = *sequence;
        for (name, tensor) in [("targets", targets), ("weights", weights)] {
            if tensor.size() != inputs.size() {
                let expected = format!("that of the inputs, {:?}", inputs.size());
                return Err(Error::shape(name, &tensor.size(), expected));
            }
        }
        if !(0.0..=1.0).contains(&label_smoothing) {
            return Err(Error::config("label_smoothing", label_smoothing, "a number in [0, 1]"));
        }
        let rows = weights.reshape([-1]).nonzero().squeeze_dim(-1);
        if rows.numel() == 0 {
            return Err(Error::input("weights", "all are 0", "at least one position that the loss counts"));
        }
        let targets = targets.reshape([-1]).index_select(0, &rows);
        let size = match columns {
            Columns::Codes => self.config.codebook_size,
            Columns::All => self.config.vocab_size(),
        };
        let [least, most] = [targets.min(), targets.max()].map(|id| id.int64_value(&[]));
        if least < 0 || most >= size {
            return Err(Error::input(
                "targets",
                format!("ids {least} to {most}"),
                format!("ids in 0..{size}"),
            ));
        }
        let hidden = self.hidden(inputs, segment_ids, train)?;
        let cross_entropy = self.logits(&hidden, &rows, columns)?.cross_entropy(&targets, label_smoothing);
        Ok(weighted_mean(&cross_entropy, &rows, weights))
    }

    fn check_sequence(&self, ids: &Tensor) -> Result<()> {
        let longest = self.config.max_position_embeddings;
        if ids.dim() != 2 || ids.size().contains(&0) || ids.size()[1] > longest {
            return Err(Error::shape(
                "token sequence",
                &ids.size(),
                format!("[B, L] with L at most max_position_embeddings = {longest}"),
            ));
        }
        if ids.kind() != Kind::Int64 {
            return Err(Error::input("token sequence", format!("kind {:?}", ids.kind()), "int64"));
        }
        self.vocabulary.check_ids(ids)
    }

    fn check_segments(&self, segments: &Tensor, ids: &Tensor) -> Result<()> {
        if segments.size() != ids.size() || segments.kind() != Kind::Int64 {
            let expected = format!("int64 {:?}, as the ids", ids.size());
            return Err(Error::shape("segment ids", &segments.size(), expected));
        }
        let [least, most] = [segments.min(), segments.max()].map(|id| id.int64_value(&[]));
        if least < 0 || most >= self.config.num_segments {
            let expected = format!("0..{}", self.config.num_segments);
            return Err(Error::input("segment ids", format!("{least} to {most}"), expected));
        }
        Ok(())
    }
}
