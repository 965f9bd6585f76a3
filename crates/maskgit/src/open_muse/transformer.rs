//! The first transformer: pre-norm BERT, with a class in front or cross-attention to text.
//!
//! Reference: open-muse `muse/modeling_transformer.py`.

use layers::Linear;
use serde::{Deserialize, Serialize};
use tch::nn;
use tch::{Kind, Reduction, Tensor};
use video_core::{Error, Result};

use super::blocks::{
    Attention, Norm, NormStyle, OpenMuseNorm, check_heads, check_ids, check_sizes, check_states, linear,
    normal,
};
use super::sampling::{OpenMuseDecoded, OpenMuseNoise, OpenMuseSampling, parallel_decode};

/// Configuration of [`OpenMuseTransformer`], by the keys of the published `config.json`; the defaults are the reference's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenMuseConfig {
    /// Rows of the table; the last is the mask.
    pub vocab_size: i64,
    /// K.
    pub codebook_size: i64,
    /// Tokens of an image.
    pub num_vq_tokens: i64,
    /// Longest sequence.
    pub max_position_embeddings: i64,
    /// Width.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads.
    pub num_attention_heads: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Which norm; the MLPs have layer norm always.
    pub norm_type: OpenMuseNorm,
    /// ε of all norms.
    pub layer_norm_eps: f64,
    /// Norms behind attention and inside the MLPs, too.
    pub use_normformer: bool,
    /// A norm behind the last layer.
    pub use_encoder_layernorm: bool,
    /// A dense layer in front of the logits.
    pub use_mlm_layer: bool,
    /// A norm between the two.
    pub use_mlm_layernorm: bool,
    /// Biases in linear layers and norms.
    pub use_bias: bool,
    /// Cross-attention to text.
    pub add_cross_attention: bool,
    /// Width of the text states.
    pub encoder_hidden_size: i64,
    /// Whether text states are projected and normalised before.
    pub project_encoder_hidden_states: bool,
    /// Logits for the codes only.
    pub use_codebook_size_for_output: bool,
}

impl Default for OpenMuseConfig {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            codebook_size: 1024,
            num_vq_tokens: 256,
            max_position_embeddings: 256,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            norm_type: OpenMuseNorm::LayerNorm,
            layer_norm_eps: 1e-5,
            use_normformer: true,
            use_encoder_layernorm: true,
            use_mlm_layer: true,
            use_mlm_layernorm: true,
            use_bias: false,
            add_cross_attention: false,
            encoder_hidden_size: 1024,
            project_encoder_hidden_states: false,
            use_codebook_size_for_output: false,
        }
    }
}

impl OpenMuseConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("codebook_size", self.codebook_size),
            ("num_vq_tokens", self.num_vq_tokens),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("encoder_hidden_size", self.encoder_hidden_size),
        ])?;
        if self.vocab_size <= self.codebook_size || self.vocab_size > 1 << 24 {
            let expected = format!("more than codebook_size = {}, for the mask", self.codebook_size);
            return Err(Error::config("vocab_size", self.vocab_size, expected));
        }
        if self.max_position_embeddings < self.num_vq_tokens || self.max_position_embeddings > 1 << 24 {
            let expected = format!("at least num_vq_tokens = {}", self.num_vq_tokens);
            return Err(Error::config("max_position_embeddings", self.max_position_embeddings, expected));
        }
        check_heads("num_attention_heads", self.num_attention_heads, self.hidden_size)
    }

    fn norm(&self) -> NormStyle {
        NormStyle { kind: self.norm_type, eps: self.layer_norm_eps, bias: self.use_bias, affine: true }
    }

    /// Rows of the head.
    pub fn output_size(&self) -> i64 {
        if self.use_codebook_size_for_output { self.codebook_size } else { self.vocab_size }
    }
}

#[derive(Debug)]
struct FeedForward {
    pre_norm: Norm,
    wi_0: Linear,
    wi_1: Linear,
    mid_norm: Option<Norm>,
    wo: Linear,
}

impl FeedForward {
    fn new(path: &nn::Path, config: &OpenMuseConfig) -> Self {
        let (width, inner, bias) = (config.hidden_size, config.intermediate_size, config.use_bias);
        // The first norm is a layer norm whatever the model's is.
        let layer_norm = NormStyle { kind: OpenMuseNorm::LayerNorm, ..config.norm() };
        Self {
            pre_norm: Norm::new(&(path / "pre_mlp_layer_norm"), width, layer_norm),
            wi_0: linear(&(path / "wi_0"), width, inner, bias),
            wi_1: linear(&(path / "wi_1"), width, inner, bias),
            mid_norm: config
                .use_normformer
                .then(|| Norm::new(&(path / "mid_mlp_layer_norm"), inner, config.norm())),
            wo: linear(&(path / "wo"), inner, width, bias),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.pre_norm.forward(x);
        let inner = self.wi_0.forward(&x).gelu("none") * self.wi_1.forward(&x);
        self.wo.forward(&self.mid_norm.as_ref().map_or(inner.shallow_clone(), |norm| norm.forward(&inner)))
    }
}

/// Attention between its norms.
#[derive(Debug)]
struct NormedAttention {
    norm: Norm,
    attention: Attention,
    post_norm: Option<Norm>,
}

impl NormedAttention {
    fn new(path: &nn::Path, config: &OpenMuseConfig, names: (&str, &str), context: i64) -> Self {
        let (norm, attention) = names;
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        Self {
            norm: Norm::new(&(path / norm), width, config.norm()),
            attention: Attention::new(&(path / attention), width, context, heads, config.use_bias),
            post_norm: config
                .use_normformer
                .then(|| Norm::new(&(path / format!("post_{norm}")), width, config.norm())),
        }
    }

    fn forward(&self, x: &Tensor, context: Option<&Tensor>) -> Tensor {
        let normed = self.norm.forward(x);
        let y = self.attention.forward(&normed, context.unwrap_or(&normed));
        x + self.post_norm.as_ref().map_or(y.shallow_clone(), |norm| norm.forward(&y))
    }
}

#[derive(Debug)]
struct Layer {
    attention: NormedAttention,
    cross_attention: Option<NormedAttention>,
    ffn: FeedForward,
}

/// What [`OpenMuseTransformer::generate`] starts from.
#[derive(Clone, Copy, Debug)]
pub struct OpenMusePrompt<'a> {
    /// int64 `[B, N]`: the mask's id where something is to be made.
    pub ids: &'a Tensor,
    /// Classes, int64 `[B]`.
    pub class: Option<&'a Tensor>,
    /// Text states `[B, L, E]`.
    pub states: Option<&'a Tensor>,
    /// What stands for the text without it, for guidance; zeros where not given.
    pub unconditional: Option<&'a Tensor>,
}

/// Tokens to logits. Variables have the reference's names.
#[derive(Debug)]
pub struct OpenMuseTransformer {
    config: OpenMuseConfig,
    words: Tensor,
    positions: Tensor,
    encoder_proj: Option<(Linear, Norm)>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    mlm: Option<(Linear, Option<Norm>)>,
    to_logits: Linear,
}

impl OpenMuseTransformer {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &OpenMuseConfig) -> Result<Self> {
        config.validate()?;
        let (width, bias) = (config.hidden_size, config.use_bias);
        let embed = path / "embed";
        let table = |name: &str, rows: i64| (&embed / name).var("weight", &[rows, width], normal());
        let encoder_proj = config.project_encoder_hidden_states.then(|| {
            let norm = Norm::new(&(path / "encoder_proj_layer_norm"), width, config.norm());
            (linear(&(path / "encoder_proj"), config.encoder_hidden_size, width, bias), norm)
        });
        let context = if encoder_proj.is_some() { width } else { config.encoder_hidden_size };
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = path / "transformer_layers" / i;
            let cross = ("crossattn_layer_norm", "crossattention");
            Layer {
                attention: NormedAttention::new(&path, config, ("attn_layer_norm", "attention"), width),
                cross_attention: config
                    .add_cross_attention
                    .then(|| NormedAttention::new(&path, config, cross, context)),
                ffn: FeedForward::new(&(&path / "ffn"), config),
            }
        });
        let head = path / "mlm_layer";
        let mlm = config.use_mlm_layer.then(|| {
            let norm = config.use_mlm_layernorm.then(|| Norm::new(&(&head / "mlm_ln"), width, config.norm()));
            (linear(&(&head / "mlm_dense"), width, width, bias), norm)
        });
        let logits = if mlm.is_some() { &head / "to_logits" } else { path / "to_logits" };
        Ok(Self {
            words: table("word_embeddings", config.vocab_size),
            positions: table("position_embeddings", config.max_position_embeddings),
            encoder_proj,
            layers: layers.collect(),
            norm: config
                .use_encoder_layernorm
                .then(|| Norm::new(&(path / "encoder_layer_norm"), width, config.norm())),
            mlm,
            to_logits: linear(&logits, width, config.output_size(), bias),
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &OpenMuseConfig {
        &self.config
    }

    /// The mask's id: the last row.
    pub fn mask_id(&self) -> i64 {
        self.config.vocab_size - 1
    }

    /// Hidden states `[B, N, D]` of ids `[B, N]` and text states `[B, L, E]`, of which padding is seen like text: no mask works
    /// in the reference.
    ///
    /// # Errors
    /// Ids without a row, too many of them, text that is missing or not served.
    pub fn hidden(&self, ids: &Tensor, states: Option<&Tensor>) -> Result<Tensor> {
        check_ids(ids, self.config.vocab_size, self.config.max_position_embeddings)?;
        if states.is_some() != self.config.add_cross_attention {
            return Err(Error::input(
                "encoder_hidden_states",
                if states.is_some() { "given" } else { "not given" },
                format!("as add_cross_attention = {} says", self.config.add_cross_attention),
            ));
        }
        if let Some(states) = states {
            check_states(states, ids.size()[0], self.config.encoder_hidden_size)?;
        }
        let states = states.map(|states| match &self.encoder_proj {
            Some((project, norm)) => norm.forward(&project.forward(states)),
            None => states.shallow_clone(),
        });
        let words = Tensor::embedding(&self.words, ids, -1, false, false);
        let mut x = words + self.positions.narrow(0, 0, ids.size()[1]);
        for layer in &self.layers {
            x = layer.attention.forward(&x, None);
            if let (Some(cross), Some(states)) = (&layer.cross_attention, &states) {
                x = cross.forward(&x, Some(states));
            }
            x = layer.ffn.forward(&x) + x;
        }
        Ok(self.norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x)))
    }

    /// Logits `[..., V]` of hidden states `[..., D]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let Some((dense, norm)) = &self.mlm else { return self.to_logits.forward(hidden) };
        let x = dense.forward(hidden).gelu("none");
        self.to_logits.forward(&norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x)))
    }

    /// Mean smoothed cross-entropy, 0-d, over positions whose label is not -100. Only they go through the head.
    ///
    /// # Errors
    /// As [`OpenMuseTransformer::hidden`]; labels of another shape, outside the head, or none.
    pub fn loss(
        &self,
        ids: &Tensor,
        states: Option<&Tensor>,
        labels: &Tensor,
        label_smoothing: f64,
    ) -> Result<Tensor> {
        if labels.size() != ids.size() || labels.kind() != Kind::Int64 {
            return Err(Error::shape("labels", &labels.size(), format!("int64 {:?}", ids.size())));
        }
        let rows = labels.reshape([-1]).ne(-100).nonzero().squeeze_dim(-1);
        let targets = labels.reshape([-1]).index_select(0, &rows);
        let size = self.config.output_size();
        if rows.numel() == 0 || targets.min().int64_value(&[]) < 0 || targets.max().int64_value(&[]) >= size {
            return Err(Error::input("labels", "none, or outside the head", format!("-100 or 0..{size}")));
        }
        let hidden = self.hidden(ids, states)?.flatten(0, 1).index_select(0, &rows);
        let logits = self.logits(&hidden);
        Ok(logits.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, label_smoothing))
    }

    /// Decodes grids. Guidance is for text only, as in the reference.
    ///
    /// # Errors
    /// As [`OpenMuseTransformer::hidden`].
    pub fn generate(
        &self,
        prompt: &OpenMusePrompt<'_>,
        options: &OpenMuseSampling,
        noise: Option<&OpenMuseNoise>,
    ) -> Result<OpenMuseDecoded> {
        let (codes, mask_id) = (self.config.codebook_size, self.mask_id());
        let batch = prompt.ids.size().first().copied();
        if let Some(class) =
            prompt.class.filter(|class| class.dim() != 1 || class.size().first().copied() != batch)
        {
            return Err(Error::shape("classes", &class.size(), "[B], one for each sequence"));
        }
        let class = prompt.class.map(|class| class.unsqueeze(-1) + codes);
        let unconditional = match (prompt.states, prompt.unconditional) {
            (Some(_), Some(given)) => Some(given.shallow_clone()),
            (Some(states), None) => Some(states.zeros_like()),
            (None, _) => None,
        };
        let OpenMuseSampling { temperatures, timesteps, guidance_scale, .. } = *options;
        parallel_decode(prompt.ids, mask_id, temperatures, timesteps, noise, |step, ids, rows| {
            let (input, rows) = match &class {
                // One position in front of each sample's.
                Some(class) => {
                    let sample = rows.divide_scalar_mode(ids.size()[1], "floor");
                    (Tensor::cat(&[class, ids], 1), rows + sample + 1)
                }
                None => (ids.shallow_clone(), rows.shallow_clone()),
            };
            let logits = |states: Option<&Tensor>| -> Result<Tensor> {
                let hidden = self.hidden(&input, states)?.flatten(0, 1).index_select(0, &rows);
                Ok(self.logits(&hidden).narrow(-1, 0, codes))
            };
            let conditional = logits(prompt.states)?;
            match &unconditional {
                Some(null) if guidance_scale > 0.0 => {
                    Ok(options.guide(step, conditional, &logits(Some(null))?))
                }
                _ => Ok(conditional),
            }
        })
    }
}
