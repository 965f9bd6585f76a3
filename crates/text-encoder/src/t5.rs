//! T5's encoder. Variables have the names of the published checkpoints.
//!
//! Reference: huggingface/transformers `models/t5/modeling_t5.py`.

use layers::{AttentionOptions, Linear, RmsNorm, attention, merge_heads, split_heads};
use serde::{Deserialize, Serialize};
use tch::nn::Init;
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

/// What stands between the two ends of the MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForward {
    /// relu(W x): T5, whose published configs do not say so.
    #[default]
    Relu,
    /// gelu(W₀ x) · W₁ x, the tanh approximation: T5 v1.1 and Flan-T5.
    GatedGelu,
    /// silu(W₀ x) · W₁ x: UL2.
    GatedSilu,
}

/// Configuration of [`T5Encoder`], by the keys of the published `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Config {
    /// Rows of the embedding table.
    pub vocab_size: i64,
    /// Width.
    pub d_model: i64,
    /// Width of a head; heads together need not have `d_model`.
    pub d_kv: i64,
    /// Width inside the MLPs.
    pub d_ff: i64,
    /// Blocks.
    pub num_layers: i64,
    /// Heads.
    pub num_heads: i64,
    /// Distances that are told apart, both directions together.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: i64,
    /// From here on, distances are one.
    #[serde(default = "distance")]
    pub relative_attention_max_distance: i64,
    /// The MLP.
    #[serde(default)]
    pub feed_forward_proj: FeedForward,
    /// ε of the norms.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// Not used: the encoder is frozen.
    #[serde(default)]
    pub dropout_rate: f64,
}

fn buckets() -> i64 {
    32
}

fn distance() -> i64 {
    128
}

fn epsilon() -> f64 {
    1e-6
}

impl T5Config {
    fn v1_1(d_model: i64, d_ff: i64, num_heads: i64, num_layers: i64) -> Self {
        Self {
            vocab_size: 32128,
            d_model,
            d_kv: 64,
            d_ff,
            num_layers,
            num_heads,
            relative_attention_num_buckets: buckets(),
            relative_attention_max_distance: distance(),
            feed_forward_proj: FeedForward::GatedGelu,
            layer_norm_epsilon: epsilon(),
            dropout_rate: 0.1,
        }
    }

    /// T5 v1.1 and Flan-T5, small.
    pub fn v1_1_small() -> Self {
        Self::v1_1(512, 1024, 6, 8)
    }

    /// Base.
    pub fn v1_1_base() -> Self {
        Self::v1_1(768, 2048, 12, 12)
    }

    /// Large.
    pub fn v1_1_large() -> Self {
        Self::v1_1(1024, 2816, 16, 24)
    }

    /// XL: VideoPoet's.
    pub fn v1_1_xl() -> Self {
        Self::v1_1(2048, 5120, 32, 24)
    }

    /// XXL: Muse's.
    pub fn v1_1_xxl() -> Self {
        Self::v1_1(4096, 10240, 64, 24)
    }

    /// Of a published `config.json`, whose other keys (the decoder's, training's) are left aside.
    ///
    /// # Errors
    /// Not JSON, not an object, or a key that is missing or has another type.
    pub fn from_published(json: &str) -> Result<Self> {
        let parse_error = |e: serde_json::Error| Error::input("config.json", e.to_string(), "a T5 config");
        let all: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).map_err(parse_error)?;
        let serde_json::Value::Object(known) =
            serde_json::to_value(Self::v1_1_small()).map_err(parse_error)?
        else {
            unreachable!("a struct is an object");
        };
        let ours: serde_json::Map<_, _> =
            all.into_iter().filter(|(key, _)| known.contains_key(key)).collect();
        serde_json::from_value(ours.into()).map_err(parse_error)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("relative_attention_max_distance", self.relative_attention_max_distance),
        ] {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::config(field, value, "1 to 2^24"));
            }
        }
        let buckets = self.relative_attention_num_buckets;
        if !(4..=1 << 16).contains(&buckets) {
            return Err(Error::config("relative_attention_num_buckets", buckets, "4 to 65536"));
        }
        if self.relative_attention_max_distance <= buckets / 4 {
            return Err(Error::config(
                "relative_attention_max_distance",
                self.relative_attention_max_distance,
                format!("more than {}, the distances that have buckets of their own", buckets / 4),
            ));
        }
        if !(self.layer_norm_epsilon >= 0.0 && self.layer_norm_epsilon.is_finite()) {
            return Err(Error::config("layer_norm_epsilon", self.layer_norm_epsilon, "at least 0"));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: RmsNorm,
    feed_forward: FeedForward,
    /// One, or the gate's and the linear one.
    wi: Vec<Linear>,
    wo: Linear,
    heads: i64,
}

impl Block {
    fn new(path: &nn::Path, config: &T5Config) -> Self {
        let inner = config.num_heads * config.d_kv;
        let (attention, mlp) = (path / "layer" / 0, path / "layer" / 1);
        let projection = &attention / "SelfAttention";
        let dense = &mlp / "DenseReluDense";
        let linear = |path: &nn::Path, name: &str, i: i64, o: i64| Linear::new(&(path / name), i, o, false);
        let names: &[&str] = match config.feed_forward_proj {
            FeedForward::Relu => &["wi"],
            FeedForward::GatedGelu | FeedForward::GatedSilu => &["wi_0", "wi_1"],
        };
        Self {
            q: linear(&projection, "q", config.d_model, inner),
            k: linear(&projection, "k", config.d_model, inner),
            v: linear(&projection, "v", config.d_model, inner),
            o: linear(&projection, "o", inner, config.d_model),
            feed_forward: config.feed_forward_proj,
            wi: names.iter().map(|name| linear(&dense, name, config.d_model, config.d_ff)).collect(),
            wo: linear(&dense, "wo", config.d_ff, config.d_model),
            attention_norm: RmsNorm::new(
                &(&attention / "layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
            ),
            mlp_norm: RmsNorm::new(&(&mlp / "layer_norm"), config.d_model, config.layer_norm_epsilon),
            heads: config.num_heads,
        }
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Tensor {
        let normed = self.attention_norm.forward(x);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|w| split_heads(&w.forward(&normed), self.heads));
        // T5 does not scale its scores.
        let options = AttentionOptions { scale: Some(1.0), ..Default::default() };
        let x = x + self.o.forward(&merge_heads(&attention(&q, &k, &v, Some(bias), options)));
        let normed = self.mlp_norm.forward(&x);
        let first = self.wi[0].forward(&normed);
        let activated = match self.feed_forward {
            FeedForward::Relu => first.relu(),
            FeedForward::GatedGelu => first.gelu("tanh"),
            FeedForward::GatedSilu => first.silu(),
        };
        let inner = match self.wi.get(1) {
            Some(linear) => activated * linear.forward(&normed),
            None => activated,
        };
        &x + self.wo.forward(&inner)
    }
}

/// Token ids to hidden states. Dropout is never applied.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    shared: Tensor,
    relative_attention_bias: Tensor,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
}

impl T5Encoder {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &T5Config) -> Result<Self> {
        config.validate()?;
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let encoder = path / "encoder";
        let blocks: Vec<Block> =
            (0..config.num_layers).map(|i| Block::new(&(&encoder / "block" / i), config)).collect();
        // The first block's table serves all.
        let bias = &encoder / "block" / 0 / "layer" / 0 / "SelfAttention" / "relative_attention_bias";
        Ok(Self {
            shared: (path / "shared").var("weight", &[config.vocab_size, config.d_model], normal),
            relative_attention_bias: bias.var(
                "weight",
                &[config.relative_attention_num_buckets, config.num_heads],
                normal,
            ),
            blocks,
            final_norm: RmsNorm::new(
                &(&encoder / "final_layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
            ),
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Hidden states `[B, N, D]` of ids int64 `[B, N]`. `mask` bool `[B, N]`: false at padding, which no position sees; its own
    /// states are computed all the same.
    ///
    /// # Errors
    /// Ids outside the vocabulary, a mask of another shape or kind.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        if ids.dim() != 2 || ids.size().contains(&0) || ids.kind() != Kind::Int64 {
            return Err(Error::shape("text ids", &ids.size(), "int64 [B, N] with no empty axis"));
        }
        if mask.size() != ids.size() || mask.kind() != Kind::Bool {
            return Err(Error::shape("text mask", &mask.size(), format!("bool {:?}", ids.size())));
        }
        let [least, most] = [ids.min(), ids.max()].map(|id| id.int64_value(&[]));
        if least < 0 || most >= self.config.vocab_size {
            return Err(Error::input(
                "text ids",
                format!("{least} to {most}"),
                format!("ids in 0..{}", self.config.vocab_size),
            ));
        }
        let x = Tensor::embedding(&self.shared, ids, -1, false, false);
        let padding = mask.logical_not().unsqueeze(1).unsqueeze(1);
        let bias = self.position_bias(ids.size()[1]).to_kind(x.kind());
        let bias = bias.masked_fill(&padding, f64::from(f32::MIN));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, &bias));
        Ok(self.final_norm.forward(&x))
    }

    /// `[1, H, N, N]`, added to every block's scores.
    fn position_bias(&self, tokens: i64) -> Tensor {
        let buckets: Vec<i64> = (0..tokens)
            .flat_map(|query| (0..tokens).map(move |key| key - query))
            .map(|relative| self.bucket(relative))
            .collect();
        let buckets = Tensor::from_slice(&buckets).to_device(self.shared.device());
        let bias = self.relative_attention_bias.index_select(0, &buckets);
        bias.view([tokens, tokens, -1]).permute([2, 0, 1]).unsqueeze(0)
    }

    /// The bucket of key position − query position: half of them for each direction; of a half, half for single distances and
    /// half for distances on a logarithmic scale.
    fn bucket(&self, relative: i64) -> i64 {
        let half = self.config.relative_attention_num_buckets / 2;
        let first = if relative > 0 { half } else { 0 };
        let (distance, exact) = (relative.abs(), half / 2);
        if distance < exact {
            return first + distance;
        }
        let furthest = self.config.relative_attention_max_distance as f32;
        let scale = (distance as f32 / exact as f32).ln() / (furthest / exact as f32).ln();
        first + (exact + (scale * (half - exact) as f32) as i64).min(half - 1)
    }
}
