//! The U-ViT's blocks.

use layers::Linear;
use tch::nn::{self, Init, Module};
use tch::{Kind, Tensor};

use super::blocks::{Attention, Norm, NormStyle, OpenMuseNorm, linear, normal};
use super::uvit::UVitConfig;

/// x (1 + scale) + shift by the condition. Variables: `mapper`.
#[derive(Debug)]
pub(super) struct Modulation {
    mapper: Linear,
}

impl Modulation {
    pub(super) fn new(path: &nn::Path, width: i64, config: &UVitConfig) -> Self {
        let zero = Init::Const(0.0);
        let bias = config.use_bias.then_some(zero);
        let path = &(path / "mapper");
        Self { mapper: Linear::with_init(path, config.hidden_size, 2 * width, zero, bias) }
    }

    /// `[B, C, H, W]` or `[B, N, D]`.
    pub(super) fn forward(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        let parts = self.mapper.forward(&condition.silu()).chunk(2, 1);
        let [scale, shift] = [0, 1].map(|i: usize| match x.dim() {
            4 => parts[i].unsqueeze(-1).unsqueeze(-1),
            _ => parts[i].unsqueeze(1),
        });
        x * (scale + 1.0) + shift
    }
}

/// Depthwise convolution, a wide MLP with global response normalization, modulation.
#[derive(Debug)]
pub(super) struct ResBlock {
    depthwise: nn::Conv2D,
    norm: Norm,
    widen: Linear,
    gamma: Tensor,
    beta: Tensor,
    narrow: Linear,
    modulation: Modulation,
}

impl ResBlock {
    pub(super) fn new(path: &nn::Path, config: &UVitConfig) -> Self {
        let [width] = config.block_out_channels;
        let channelwise = path / "channelwise";
        let response = &channelwise / 2;
        let depthwise = nn::ConvConfig {
            padding: 1,
            groups: width,
            bias: config.use_bias,
            ws_init: normal(),
            bs_init: Init::Const(0.0),
            ..Default::default()
        };
        Self {
            depthwise: nn::conv2d(path / "depthwise", width, width, 3, depthwise),
            norm: Norm::new(&(path / "norm" / "norm"), width, config.norm()),
            widen: linear(&(&channelwise / 0), width, 4 * width, config.use_bias),
            gamma: response.zeros("gamma", &[1, 1, 1, 4 * width]),
            beta: response.zeros("beta", &[1, 1, 1, 4 * width]),
            narrow: linear(&(&channelwise / 4), 4 * width, width, config.use_bias),
            modulation: Modulation::new(&(path / "adaLN_modulation"), width, config),
        }
    }

    pub(super) fn forward(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        let h = self.norm.forward_2d(&self.depthwise.forward(x)).permute([0, 2, 3, 1]);
        let h = self.widen.forward(&h).gelu("none");
        let norms = h.square().sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float).sqrt();
        let response = &norms / (norms.mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-6);
        let h = &self.gamma * (&h * response) + &self.beta + &h;
        let h = self.narrow.forward(&h).permute([0, 3, 1, 2]);
        self.modulation.forward(&(h + x), condition)
    }
}

/// Two cross-attentions to the text, the first of which the reference calls attention.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    kv_mapper: Option<Linear>,
    attentions: [(Norm, Attention); 2],
}

impl AttentionBlock {
    pub(super) fn new(path: &nn::Path, config: &UVitConfig) -> Self {
        let [width] = config.block_out_channels;
        let (heads, bias) = (config.block_num_heads, config.use_bias);
        let attention = |norm: &str, name: &str| {
            let norm = Norm::new(&(path / norm), width, config.norm());
            (norm, Attention::new(&(path / name), width, width, heads, bias))
        };
        Self {
            kv_mapper: (width != config.hidden_size)
                .then(|| linear(&(path / "kv_mapper"), config.hidden_size, width, bias)),
            attentions: [
                attention("attn_layer_norm", "attention"),
                attention("crossattn_layer_norm", "crossattention"),
            ],
        }
    }

    pub(super) fn forward(&self, x: &Tensor, states: &Tensor) -> Tensor {
        let size = x.size();
        let states =
            self.kv_mapper.as_ref().map_or(states.shallow_clone(), |map| map.forward(&states.silu()));
        let x = x.flatten(2, 3).transpose(1, 2);
        let x = self
            .attentions
            .iter()
            .fold(x, |x, (norm, attention)| attention.forward(&norm.forward(&x), &states) + x);
        x.transpose(1, 2).reshape(size)
    }
}

/// One side's convolutional blocks.
#[derive(Debug)]
pub(super) struct Side(Vec<(ResBlock, AttentionBlock)>);

impl Side {
    pub(super) fn new(path: &nn::Path, config: &UVitConfig) -> Self {
        let block = |r: i64| {
            let res = ResBlock::new(&(path / "res_blocks" / r), config);
            (res, AttentionBlock::new(&(path / "attention_blocks" / r), config))
        };
        Self((0..config.num_res_blocks).map(block).collect())
    }

    pub(super) fn forward(&self, x: Tensor, condition: &Tensor, states: &Tensor) -> Tensor {
        self.0.iter().fold(x, |x, (res, attention)| attention.forward(&res.forward(&x, condition), states))
    }
}

/// A pre-norm layer whose norms' outputs are modulated. The reference hands the residual on; the sums are the same.
#[derive(Debug)]
pub(super) struct Layer {
    norms: [(Norm, Modulation); 3],
    attention: Attention,
    cross_attention: Attention,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Layer {
    pub(super) fn new(path: &nn::Path, config: &UVitConfig) -> Self {
        let (width, bias) = (config.hidden_size, config.use_bias);
        let ffn = path / "ffn";
        let normed = |norm: nn::Path, modulation: nn::Path, style: NormStyle| {
            (Norm::new(&norm, width, style), Modulation::new(&modulation, width, config))
        };
        let attention =
            |name: &str| Attention::new(&(path / name), width, width, config.num_attention_heads, bias);
        let layer_norm = NormStyle { kind: OpenMuseNorm::LayerNorm, ..config.norm() };
        Self {
            norms: [
                normed(path / "attn_layer_norm", path / "self_attn_adaLN_modulation", config.norm()),
                normed(path / "crossattn_layer_norm", path / "cross_attn_adaLN_modulation", config.norm()),
                normed(&ffn / "pre_mlp_layer_norm", &ffn / "adaLN_modulation", layer_norm),
            ],
            attention: attention("attention"),
            cross_attention: attention("crossattention"),
            wi_0: linear(&(&ffn / "wi_0"), width, config.intermediate_size, bias),
            wi_1: linear(&(&ffn / "wi_1"), width, config.intermediate_size, bias),
            wo: linear(&(&ffn / "wo"), config.intermediate_size, width, bias),
        }
    }

    pub(super) fn forward(&self, x: &Tensor, condition: &Tensor, states: &Tensor) -> Tensor {
        let normed = |at: usize, x: &Tensor| {
            let (norm, modulation) = &self.norms[at];
            modulation.forward(&norm.forward(x), condition)
        };
        let h = normed(0, x);
        let x = x + self.attention.forward(&h, &h);
        let x = &x + self.cross_attention.forward(&normed(1, &x), states);
        let h = normed(2, &x);
        &x + self.wo.forward(&(self.wi_0.forward(&h).gelu("none") * self.wi_1.forward(&h)))
    }
}
