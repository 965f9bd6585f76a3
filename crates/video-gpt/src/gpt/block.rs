//! One layer of the prior.

use layers::{AttentionOptions, KvCache, Linear};
use tch::{Tensor, nn};
use video_core::Result;

use super::GptConfig;
use crate::attention::{AttentionWidths, MultiHeadAttention};
use crate::layer_norm::LayerNorm;

/// Keys `[B, H, M, d_k]` and values `[B, H, M, d_v]`.
pub(super) type KeysValues = (Tensor, Tensor);

/// Causal self-attention, cross-attention to frames where there are any, an MLP: each behind its norm, each added.
#[derive(Debug)]
pub(super) struct Block {
    pre_attn_norm: LayerNorm,
    attn: MultiHeadAttention,
    cross: Option<(LayerNorm, MultiHeadAttention)>,
    pre_fc_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
    attn_dropout: f64,
}

impl Block {
    pub(super) fn new(path: &nn::Path, config: &GptConfig) -> Result<Self> {
        let width = config.hidden_dim;
        let norm = |name: &str| LayerNorm::new(&(path / name), width, config.class_cond_dim);
        let attention = |name: &str, context: i64| {
            let widths =
                AttentionWidths { query: width, context, heads: config.heads, layers: config.layers };
            MultiHeadAttention::new(&(path / name), widths)
        };
        let cross = match &config.frames {
            None => None,
            Some(frames) => Some((norm("pre_enc_norm")?, attention("enc_attn", frames.resnet.resnet_dim)?)),
        };
        let mlp = path / "fc_block";
        Ok(Self {
            pre_attn_norm: norm("pre_attn_norm")?,
            attn: attention("attn", width)?,
            cross,
            pre_fc_norm: norm("pre_fc_norm")?,
            fc1: Linear::new(&(&mlp / 0), width, 4 * width, true),
            fc2: Linear::new(&(&mlp / 2), 4 * width, width, true),
            dropout: config.dropout,
            attn_dropout: config.attn_dropout,
        })
    }

    /// What the cross-attention looks among.
    pub(super) fn keys_values(&self, context: &Tensor) -> Option<KeysValues> {
        self.cross.as_ref().map(|(_, attention)| attention.keys_values(context))
    }

    /// `[B, S, C]` to the same shape. `mask`: bool `[S, S]`, otherwise each position sees all up to itself.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        context: Option<&KeysValues>,
        class: Option<&Tensor>,
        mask: Option<&Tensor>,
        train: bool,
    ) -> Tensor {
        let h = self.pre_attn_norm.apply(x, class);
        let options = AttentionOptions {
            dropout: if train && mask.is_none() { self.attn_dropout } else { 0.0 },
            causal: mask.is_none(),
            scale: None,
        };
        let x = x + self.attn.forward(&h, mask, options).dropout(self.dropout, train);
        self.rest(x, context, class, train)
    }

    /// The same for further positions `[B, n, C]` behind those in the cache; `mask`: bool `[n, positions so far]`.
    pub(super) fn forward_cached(
        &self,
        x: &Tensor,
        context: Option<&KeysValues>,
        class: Option<&Tensor>,
        mask: Option<&Tensor>,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let h = self.pre_attn_norm.apply(x, class);
        let x = x + self.attn.forward_cached(&h, mask, cache)?;
        Ok(self.rest(x, context, class, false))
    }

    /// What follows the self-attention.
    fn rest(&self, x: Tensor, context: Option<&KeysValues>, class: Option<&Tensor>, train: bool) -> Tensor {
        let x = match (&self.cross, context) {
            (Some((norm, attention)), Some(context)) => {
                let h = norm.apply(&x, class);
                let seen = attention.attend(&h, context, None, AttentionOptions::default());
                x + seen.dropout(self.dropout, train)
            }
            _ => x,
        };
        let h = self.fc1.forward(&self.pre_fc_norm.apply(&x, class));
        // The sigmoid form of GELU.
        let h = &h * (&h * 1.702).sigmoid();
        x + self.fc2.forward(&h).dropout(self.dropout, train)
    }
}
