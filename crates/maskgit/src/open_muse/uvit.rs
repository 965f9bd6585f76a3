//! The U-ViT: convolutional blocks around a transformer, modulated by pooled text and by numbers about the image.
//!
//! Reference: open-muse `muse/modeling_transformer_v2.py`.

use layers::Linear;
use serde::{Deserialize, Deserializer, Serialize};
use tch::nn::{self, Init, Module};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use super::blocks::{
    Norm, NormStyle, OpenMuseNorm, check_heads, check_ids, check_sizes, check_states, linear, normal,
};
use super::sampling::{OpenMuseDecoded, OpenMuseNoise, OpenMuseSampling, parallel_decode};
use super::uvit_blocks::{Layer, Side};

/// Configuration of [`OpenMuseUVit`], by the keys of the published `config.json`; the defaults are those of aMUSEd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UVitConfig {
    /// Width of the transformer.
    pub hidden_size: i64,
    /// Biases in linear layers, convolutions and norms.
    pub use_bias: bool,
    /// Width of the pooled text.
    pub cond_embed_dim: i64,
    /// Channels that encode one number.
    pub micro_cond_encode_dim: i64,
    /// Of all five.
    pub micro_cond_embed_dim: i64,
    /// Width of the text states.
    pub encoder_hidden_size: i64,
    /// Rows of the table; the last is the mask.
    pub vocab_size: i64,
    /// K.
    pub codebook_size: i64,
    /// Width of the embeddings.
    pub in_channels: i64,
    /// Width of the convolutional blocks: one number.
    pub block_out_channels: [i64; 1],
    /// Convolutional blocks on each side.
    pub num_res_blocks: i64,
    /// Whether the transformer works at half the resolution.
    pub force_down_up_sample: bool,
    /// Heads between the convolutions: a number, in older configs a list of one.
    #[serde(deserialize_with = "number_or_list")]
    pub block_num_heads: i64,
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
    /// Whether norms have weights.
    pub ln_elementwise_affine: bool,
}

fn number_or_list<'de, D: Deserializer<'de>>(heads: D) -> std::result::Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Heads {
        Number(i64),
        List([i64; 1]),
    }
    Ok(match Heads::deserialize(heads)? {
        Heads::Number(heads) | Heads::List([heads]) => heads,
    })
}

impl Default for UVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            use_bias: false,
            cond_embed_dim: 768,
            micro_cond_encode_dim: 256,
            micro_cond_embed_dim: 1280,
            encoder_hidden_size: 768,
            vocab_size: 8256,
            codebook_size: 8192,
            in_channels: 768,
            block_out_channels: [768],
            num_res_blocks: 3,
            force_down_up_sample: false,
            block_num_heads: 12,
            num_hidden_layers: 22,
            num_attention_heads: 16,
            intermediate_size: 2816,
            norm_type: OpenMuseNorm::RmsNorm,
            layer_norm_eps: 1e-6,
            ln_elementwise_affine: true,
        }
    }
}

impl UVitConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("cond_embed_dim", self.cond_embed_dim),
            ("encoder_hidden_size", self.encoder_hidden_size),
            ("codebook_size", self.codebook_size),
            ("in_channels", self.in_channels),
            ("block_out_channels", self.block_out_channels[0]),
            ("num_res_blocks", self.num_res_blocks),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
        ])?;
        if self.micro_cond_encode_dim < 2 || self.micro_cond_embed_dim % self.micro_cond_encode_dim != 0 {
            return Err(Error::config(
                "micro_cond_encode_dim",
                self.micro_cond_encode_dim,
                format!("at least 2, and a divisor of micro_cond_embed_dim = {}", self.micro_cond_embed_dim),
            ));
        }
        if self.vocab_size <= self.codebook_size || self.vocab_size > 1 << 24 {
            let expected = format!("more than codebook_size = {}, for the mask", self.codebook_size);
            return Err(Error::config("vocab_size", self.vocab_size, expected));
        }
        check_heads("num_attention_heads", self.num_attention_heads, self.hidden_size)?;
        check_heads("block_num_heads", self.block_num_heads, self.block_out_channels[0])
    }

    pub(super) fn norm(&self) -> NormStyle {
        NormStyle {
            kind: self.norm_type,
            eps: self.layer_norm_eps,
            bias: self.use_bias,
            affine: self.ln_elementwise_affine,
        }
    }
}

/// What an image is conditioned on.
#[derive(Debug)]
pub struct UVitConditions {
    /// Text states `[B, L, E]`.
    pub states: Tensor,
    /// Pooled text `[B, C]`.
    pub pooled: Tensor,
    /// Numbers `[B, n]`, raw: original width and height, crop from top and left, aesthetic score.
    pub micro: Tensor,
}

/// Tokens of a square grid to logits. Variables have the reference's names.
#[derive(Debug)]
pub struct OpenMuseUVit {
    config: UVitConfig,
    encoder_proj: (Linear, Norm),
    embeddings: Tensor,
    embed_norm: Norm,
    embed_conv: nn::Conv2D,
    cond_embed: [Linear; 2],
    down: Option<(Norm, nn::Conv2D)>,
    down_side: Side,
    to_hidden: (Norm, Linear),
    layers: Vec<Layer>,
    from_hidden: (Norm, Linear),
    up_side: Side,
    up: Option<(Norm, nn::ConvTranspose2D)>,
    head: (nn::Conv2D, Norm, nn::Conv2D),
}

impl OpenMuseUVit {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &UVitConfig) -> Result<Self> {
        config.validate()?;
        let ([width], hidden, bias) = (config.block_out_channels, config.hidden_size, config.use_bias);
        let norm = |path: nn::Path, width: i64| Norm::new(&path, width, config.norm());
        let conv = |path: nn::Path, i: i64, o: i64, kernel: i64, ws_init: Init| {
            let bs_init = Init::Const(0.0);
            let stride = kernel;
            nn::conv2d(
                path,
                i,
                o,
                kernel,
                nn::ConvConfig { stride, bias, ws_init, bs_init, ..Default::default() },
            )
        };
        let (embed, head) = (path / "embed", path / "mlm_layer");
        let (down, up) = (path / "down_blocks" / 0, path / "up_blocks" / 0);
        let table = Init::Randn { mean: 0.0, stdev: (1.0 / config.vocab_size as f64).sqrt() };
        let xavier = 0.02 * (6.0 / (config.in_channels + width) as f64).sqrt();
        let transposed = nn::ConvTransposeConfig {
            stride: 2,
            bias,
            ws_init: normal(),
            bs_init: Init::Const(0.0),
            ..Default::default()
        };
        let conditions = config.micro_cond_embed_dim + config.cond_embed_dim;
        let model = Self {
            encoder_proj: (
                linear(&(path / "encoder_proj"), config.encoder_hidden_size, hidden, bias),
                norm(path / "encoder_proj_layer_norm", hidden),
            ),
            embeddings: (&embed / "embeddings").var(
                "weight",
                &[config.vocab_size, config.in_channels],
                table,
            ),
            embed_norm: norm(&embed / "layer_norm", config.in_channels),
            embed_conv: conv(
                &embed / "conv",
                config.in_channels,
                width,
                1,
                Init::Uniform { lo: -xavier, up: xavier },
            ),
            cond_embed: [
                linear(&(path / "cond_embed" / 0), conditions, hidden, bias),
                linear(&(path / "cond_embed" / 2), hidden, hidden, bias),
            ],
            down: config.force_down_up_sample.then(|| {
                let at = &down / "downsample";
                (norm(&at / 0 / "norm", width), conv(&at / 1, width, width, 2, normal()))
            }),
            down_side: Side::new(&down, config),
            to_hidden: (
                norm(path / "project_to_hidden_norm", width),
                linear(&(path / "project_to_hidden"), width, hidden, bias),
            ),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(&(path / "transformer_layers" / i), config))
                .collect(),
            from_hidden: (
                norm(path / "project_from_hidden_norm", hidden),
                linear(&(path / "project_from_hidden"), hidden, width, bias),
            ),
            up_side: Side::new(&up, config),
            up: config.force_down_up_sample.then(|| {
                let at = &up / "upsample";
                let conv = nn::conv_transpose2d(&at / 1, width, width, 2, transposed);
                (norm(&at / 0 / "norm", width), conv)
            }),
            head: (
                conv(&head / "conv1", width, config.in_channels, 1, Init::Const(0.0)),
                norm(&head / "layer_norm" / "norm", config.in_channels),
                conv(&head / "conv2", config.in_channels, config.codebook_size, 1, normal()),
            ),
            config: config.clone(),
        };
        // The head starts as the codes' embeddings; it is not tied to them.
        tch::no_grad(|| {
            let codes = model.embeddings.narrow(0, 0, config.codebook_size);
            model.head.2.ws.shallow_clone().copy_(&codes.unsqueeze(-1).unsqueeze(-1));
        });
        Ok(model)
    }

    /// Its configuration.
    pub fn config(&self) -> &UVitConfig {
        &self.config
    }

    /// The mask's id: the last row.
    pub fn mask_id(&self) -> i64 {
        self.config.vocab_size - 1
    }

    /// States in front of the head, `[B, N, C]`, of ids `[B, N]` of a square grid.
    ///
    /// # Errors
    /// N is no square (with down-sampling: of an even side), ids without a row, conditions that do not fit.
    pub fn hidden(&self, ids: &Tensor, conditions: &UVitConditions) -> Result<Tensor> {
        check_ids(ids, self.config.vocab_size, 1 << 24)?;
        let (batch, tokens) = (ids.size()[0], ids.size()[1]);
        let side = (tokens as f64).sqrt().round() as i64;
        if side * side != tokens || (self.down.is_some() && side % 2 != 0) {
            return Err(Error::shape(
                "token sequence",
                &ids.size(),
                "a square grid, of an even side if halved",
            ));
        }
        self.check_conditions(conditions, batch)?;
        let states = self.encoder_proj.1.forward(&self.encoder_proj.0.forward(&conditions.states));
        let micro = sinusoids(&conditions.micro, self.config.micro_cond_encode_dim);
        let condition = Tensor::cat(&[conditions.pooled.shallow_clone(), micro], 1);
        let condition = self.cond_embed[1].forward(&self.cond_embed[0].forward(&condition).silu());

        let grid = ids.view([batch, side, side]);
        let x = self.embed_norm.forward(&Tensor::embedding(&self.embeddings, &grid, -1, false, false));
        let mut x = self.embed_conv.forward(&x.permute([0, 3, 1, 2]));
        if let Some((norm, conv)) = &self.down {
            x = conv.forward(&norm.forward_2d(&x));
        }
        let x = self.down_side.forward(x, &condition, &states);
        let size = x.size();
        let h = self.to_hidden.0.forward(&x.flatten(2, 3).transpose(1, 2));
        let h = self.to_hidden.1.forward(&h);
        let h = self.layers.iter().fold(h, |h, layer| layer.forward(&h, &condition, &states));
        let h = self.from_hidden.1.forward(&self.from_hidden.0.forward(&h));
        let mut x = self.up_side.forward(h.transpose(1, 2).reshape(size), &condition, &states);
        if let Some((norm, conv)) = &self.up {
            x = conv.forward(&norm.forward_2d(&x));
        }
        Ok(x.flatten(2, 3).transpose(1, 2))
    }

    /// Logits `[..., K]` of states `[..., C]`: the head's convolutions see one position each.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let pointwise = |conv: &nn::Conv2D, x: &Tensor| {
            layers::linear(x, &conv.ws.squeeze_dim(-1).squeeze_dim(-1), conv.bs.as_ref())
        };
        pointwise(&self.head.2, &self.head.1.forward(&pointwise(&self.head.0, hidden)))
    }

    /// Fills the positions of ids `[B, N]` that hold the mask; `unconditional` is the empty prompt's conditions, for guidance.
    ///
    /// # Errors
    /// As [`OpenMuseUVit::hidden`].
    pub fn generate(
        &self,
        ids: &Tensor,
        conditions: &UVitConditions,
        unconditional: &UVitConditions,
        options: &OpenMuseSampling,
        noise: Option<&OpenMuseNoise>,
    ) -> Result<OpenMuseDecoded> {
        let OpenMuseSampling { temperatures, timesteps, guidance_scale, .. } = *options;
        parallel_decode(ids, self.mask_id(), temperatures, timesteps, noise, |step, ids, rows| {
            let logits = |conditions: &UVitConditions| -> Result<Tensor> {
                let hidden = self.hidden(ids, conditions)?.flatten(0, 1).index_select(0, rows);
                Ok(self.logits(&hidden))
            };
            let conditional = logits(conditions)?;
            if guidance_scale > 0.0 {
                return Ok(options.guide(step, conditional, &logits(unconditional)?));
            }
            Ok(conditional)
        })
    }

    fn check_conditions(&self, conditions: &UVitConditions, batch: i64) -> Result<()> {
        check_states(&conditions.states, batch, self.config.encoder_hidden_size)?;
        let numbers = self.config.micro_cond_embed_dim / self.config.micro_cond_encode_dim;
        for (name, tensor, width) in [
            ("pooled text", &conditions.pooled, self.config.cond_embed_dim),
            ("micro conditions", &conditions.micro, numbers),
        ] {
            if tensor.size() != [batch, width] {
                return Err(Error::shape(name, &tensor.size(), format!("[{batch}, {width}]")));
            }
        }
        Ok(())
    }
}

/// Numbers `[B, n]` as cosines, then sines, of falling frequencies, `[B, n · dim]`.
fn sinusoids(numbers: &Tensor, dim: i64) -> Tensor {
    let half = dim / 2;
    let step = -(10_000f64.ln()) / half as f64;
    let frequencies = (Tensor::arange(half, (Kind::Float, numbers.device())) * step).exp();
    let angles = numbers.to_kind(Kind::Float).unsqueeze(-1) * frequencies;
    let waves = Tensor::cat(&[angles.cos(), angles.sin()], -1);
    let waves = if dim % 2 == 1 { waves.constant_pad_nd([0, 1]) } else { waves };
    waves.flatten(1, 2)
}
