//! Multi-head attention as VideoGPT writes it, and its axial form.

use layers::{AttentionOptions, KvCache, Linear, attention, merge_heads, split_heads};
use tch::nn::{self, Init};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// The widths of a [`MultiHeadAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWidths {
    /// Of queries and output.
    pub query: i64,
    /// Of what is attended to.
    pub context: i64,
    /// Heads; they divide both widths, remainders are left out.
    pub heads: i64,
    /// Layers of the network, for the output's initialisation.
    pub layers: i64,
}

/// Multi-head attention whose values have the context's width: d_k = query / heads, d_v = context / heads. Variables:
/// `w_qs.weight`, `w_ks.weight`, `w_vs.weight`, `fc.weight`, `fc.bias`.
#[derive(Debug)]
pub struct MultiHeadAttention {
    heads: i64,
    w_qs: Linear,
    w_ks: Linear,
    w_vs: Linear,
    fc: Linear,
}

impl MultiHeadAttention {
    /// Builds it; normal weights of standard deviation 1/√inputs, and 1/√(inputs · layers) on the way out.
    ///
    /// # Errors
    /// No head, or more heads than channels.
    pub fn new(path: &nn::Path, widths: AttentionWidths) -> Result<Self> {
        let AttentionWidths { query, context, heads, layers } = widths;
        if heads < 1 || heads > query.min(context) {
            return Err(Error::config("heads", heads, format!("1 to {}", query.min(context))));
        }
        let (d_k, d_v) = (query / heads, context / heads);
        let linear = |name: &str, inputs: i64, outputs: i64| {
            let init = Init::Randn { mean: 0.0, stdev: 1.0 / (inputs as f64).sqrt() };
            Linear::with_init(&(path / name), inputs, outputs, init, None)
        };
        let out = Init::Randn { mean: 0.0, stdev: 1.0 / ((query * layers.max(1)) as f64).sqrt() };
        let fc_bias = layers::init::torch_default(heads * d_v);
        Ok(Self {
            heads,
            w_qs: linear("w_qs", query, heads * d_k),
            w_ks: linear("w_ks", context, heads * d_k),
            w_vs: linear("w_vs", context, heads * d_v),
            fc: Linear::with_init(&(path / "fc"), heads * d_v, query, out, Some(fc_bias)),
        })
    }

    /// Keys `[B, H, M, d_k]` and values `[B, H, M, d_v]` of a context `[B, M, context]`.
    ///
    /// # Panics
    /// Another width.
    pub fn keys_values(&self, context: &Tensor) -> (Tensor, Tensor) {
        (
            split_heads(&self.w_ks.forward(context), self.heads),
            split_heads(&self.w_vs.forward(context), self.heads),
        )
    }

    /// What queries `[B, N, query]` find among keys and values: `[B, N, query]`. For `mask`, see [`attention`].
    ///
    /// # Panics
    /// Another width.
    pub fn attend(
        &self,
        x: &Tensor,
        (keys, values): &(Tensor, Tensor),
        mask: Option<&Tensor>,
        options: AttentionOptions,
    ) -> Tensor {
        let q = split_heads(&self.w_qs.forward(x), self.heads);
        self.fc.forward(&merge_heads(&attention(&q, keys, values, mask, options)))
    }

    /// Self-attention of `[B, N, query]`.
    ///
    /// # Panics
    /// Another width, or a context of another width than the queries'.
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>, options: AttentionOptions) -> Tensor {
        self.attend(x, &self.keys_values(x), mask, options)
    }

    /// Self-attention of further positions `[B, n, query]` to those in the cache and to each other: each sees all up to
    /// itself, of which `mask`, bool `[n, positions so far]`, may leave out some.
    ///
    /// # Errors
    /// The cache was begun with another batch size, or is full.
    pub fn forward_cached(&self, x: &Tensor, mask: Option<&Tensor>, cache: &mut KvCache) -> Result<Tensor> {
        let before = cache.len();
        let (k, v) = self.keys_values(x);
        let held = cache.append(&k, &v)?;
        let n = x.size()[1];
        let causal;
        let mask = match mask {
            Some(mask) => Some(mask),
            None if n == 1 => None,
            None => {
                causal = causal_rows(before, n, x);
                Some(&causal)
            }
        };
        Ok(self.attend(x, &held, mask, AttentionOptions::default()))
    }
}

/// Rows `start .. start + n` of a lower triangle, up to the last of them: bool `[n, start + n]`.
fn causal_rows(start: i64, n: i64, like: &Tensor) -> Tensor {
    Tensor::ones([n, start + n], (Kind::Bool, like.device())).tril(start)
}

/// The sum of three attentions, along width, height and time, each over one line of positions at a time. Variables under
/// `attn_w`, `attn_h`, `attn_t`.
#[derive(Debug)]
pub struct AxialAttention {
    along: [MultiHeadAttention; 3],
}

impl AxialAttention {
    /// Builds it.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::new`].
    pub fn new(path: &nn::Path, width: i64, heads: i64) -> Result<Self> {
        let widths = AttentionWidths { query: width, context: width, heads, layers: 1 };
        let along = |name: &str| MultiHeadAttention::new(&(path / name), widths);
        Ok(Self { along: [along("attn_t")?, along("attn_h")?, along("attn_w")?] })
    }

    /// `[B, C, T, H, W]` to the same shape.
    ///
    /// # Panics
    /// Another number of axes or channels.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.permute([0, 2, 3, 4, 1]);
        let along = |axis: i64| {
            // The axis becomes the sequence, all others the batch.
            let lines = x.transpose(axis, 3);
            let attention = &self.along[axis as usize - 1];
            let seen = attention.forward(&lines.flatten(0, 2), None, AttentionOptions::default());
            seen.view(lines.size().as_slice()).transpose(axis, 3)
        };
        (along(3) + along(2) + along(1)).permute([0, 4, 1, 2, 3])
    }
}
