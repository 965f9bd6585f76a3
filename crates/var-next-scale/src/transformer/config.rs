//! Configuration of the transformer, and the published sizes.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use crate::scales::Pyramid;

/// How weights start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Standard deviation of linear layers and embeddings; absent: √(1 / 3C).
    pub std: Option<f64>,
    /// Factor on the head's weight.
    pub head: f64,
    /// Factor on what makes scales and shifts.
    pub adaln: f64,
    /// Factor on what makes γ, the weight of each residual branch.
    pub adaln_gamma: f64,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { std: None, head: 0.02, adaln: 0.5, adaln_gamma: 1e-3 }
    }
}

/// Configuration of [`Var`](crate::Var), in the words of the published code; the defaults are d16's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VarConfig {
    /// V, the tokenizer's codes.
    pub vocab_size: i64,
    /// z, the width of a code.
    pub z_channels: i64,
    /// Classes; 0 for a model without any.
    pub num_classes: i64,
    /// Blocks.
    pub depth: i64,
    /// C, the width.
    pub embed_dim: i64,
    /// Heads of the attention.
    pub num_heads: i64,
    /// Width inside the MLPs as a multiple of C.
    pub mlp_ratio: f64,
    /// ε of the norms.
    pub norm_eps: f64,
    /// All blocks share the layer that makes their six modulations of the class; each adds its own constants.
    pub shared_aln: bool,
    /// Queries and keys are normalised, with a learnt scale for each head.
    pub attn_l2_norm: bool,
    /// Share of samples that are trained without their class, for guidance.
    pub cond_drop_rate: f64,
    /// Share of samples that skip a residual branch in training: at the last block, rising from 0 at the first.
    pub drop_path_rate: f64,
    /// ε of the loss.
    pub label_smoothing: f64,
    /// The sides of the scales, from coarse to fine; the last is the latent's.
    pub patch_nums: Vec<i64>,
    /// How weights start.
    pub init: InitConfig,
}

const PATCH_NUMS_256: [i64; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
const PATCH_NUMS_512: [i64; 10] = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32];

impl Default for VarConfig {
    fn default() -> Self {
        Self::published(16, &PATCH_NUMS_256, false, 1e-3)
    }
}

impl VarConfig {
    fn published(depth: i64, patch_nums: &[i64], shared_aln: bool, adaln_gamma: f64) -> Self {
        Self {
            vocab_size: 4096,
            z_channels: 32,
            num_classes: 1000,
            depth,
            embed_dim: 64 * depth,
            num_heads: depth,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            shared_aln,
            attn_l2_norm: true,
            cond_drop_rate: 0.1,
            drop_path_rate: 0.1 * depth as f64 / 24.0,
            label_smoothing: 0.0,
            patch_nums: patch_nums.to_vec(),
            init: InitConfig { adaln_gamma, ..InitConfig::default() },
        }
    }

    /// VAR-d16, 256 × 256 pixels, 310 million parameters.
    pub fn var_d16() -> Self {
        Self::published(16, &PATCH_NUMS_256, false, 1e-3)
    }

    /// VAR-d20, 256 × 256 pixels, 601 million parameters.
    pub fn var_d20() -> Self {
        Self::published(20, &PATCH_NUMS_256, false, 1e-3)
    }

    /// VAR-d24, 256 × 256 pixels, 1.03 billion parameters.
    pub fn var_d24() -> Self {
        Self::published(24, &PATCH_NUMS_256, false, 1e-4)
    }

    /// VAR-d30, 256 × 256 pixels, 2.01 billion parameters.
    pub fn var_d30() -> Self {
        Self::published(30, &PATCH_NUMS_256, false, 1e-5)
    }

    /// VAR-d36-s, 512 × 512 pixels, 2.35 billion parameters.
    pub fn var_d36() -> Self {
        Self::published(36, &PATCH_NUMS_512, true, 5e-6)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value, least, most) in [
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            ("z_channels", self.z_channels, 1, 1 << 24),
            ("num_classes", self.num_classes, 0, 1 << 24),
            ("depth", self.depth, 1, 512),
            ("embed_dim", self.embed_dim, 1, 1 << 20),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::config(field, value, format!("{least} to {most}")));
            }
        }
        if self.num_heads < 1 || self.embed_dim % self.num_heads != 0 {
            let expected = format!("a divisor of embed_dim = {}", self.embed_dim);
            return Err(Error::config("num_heads", self.num_heads, expected));
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0 && self.hidden() >= 1) {
            return Err(Error::config("mlp_ratio", self.mlp_ratio, "above 0 and at most 64"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(Error::config("norm_eps", self.norm_eps, "between 0 and 1"));
        }
        for (field, share) in
            [("cond_drop_rate", self.cond_drop_rate), ("label_smoothing", self.label_smoothing)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(field, share, "a number in [0, 1]"));
            }
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return Err(Error::config("drop_path_rate", self.drop_path_rate, "a number in [0, 1)"));
        }
        // The published initialiser cuts at ±2, which nothing reaches below this.
        if let Some(std) = self.init.std.filter(|std| !(*std > 0.0 && *std <= 0.4)) {
            return Err(Error::config("init.std", std, "above 0 and at most 0.4, or none for √(1 / 3C)"));
        }
        for (field, factor) in [
            ("init.head", self.init.head),
            ("init.adaln", self.init.adaln),
            ("init.adaln_gamma", self.init.adaln_gamma),
        ] {
            if !(factor >= 0.0 && factor.is_finite()) {
                return Err(Error::config(field, factor, "a number of at least 0"));
            }
        }
        self.pyramid().map(drop)
    }

    /// The scales.
    ///
    /// # Errors
    /// `patch_nums` is empty or does not end at its largest.
    pub fn pyramid(&self) -> Result<Pyramid> {
        Pyramid::square(&self.patch_nums)
    }

    /// Width inside the MLPs.
    pub(crate) fn hidden(&self) -> i64 {
        (self.embed_dim as f64 * self.mlp_ratio).round_ties_even() as i64
    }

    /// Standard deviation of linear layers and embeddings at the start.
    pub(crate) fn std(&self) -> f64 {
        self.init.std.unwrap_or_else(|| self.position_std())
    }

    /// Standard deviation of position embeddings at the start.
    pub(crate) fn position_std(&self) -> f64 {
        (1.0 / (3.0 * self.embed_dim as f64)).sqrt()
    }

    /// Numbers that are trained, without building the network.
    pub fn parameters(&self) -> i64 {
        let (c, hidden) = (self.embed_dim, self.hidden());
        let linear = |inputs: i64, outputs: i64| inputs * outputs + outputs;
        let scales: i64 = self.patch_nums.iter().map(|side| side * side).sum();
        let first = self.patch_nums.first().map_or(0, |side| side * side);
        let tables = self.num_classes + 1 + first + scales + self.patch_nums.len() as i64;
        let heads = if self.attn_l2_norm { self.num_heads } else { 0 };
        let attention = 3 * c * c + 2 * c + linear(c, c) + heads;
        let modulation = linear(c, 6 * c);
        let own = if self.shared_aln { 6 * c } else { modulation };
        let block = attention + linear(c, hidden) + linear(hidden, c) + own;
        let shared = if self.shared_aln { modulation } else { 0 };
        let head = linear(c, 2 * c) + linear(c, self.vocab_size);
        linear(self.z_channels, c) + tables * c + self.depth * block + shared + head
    }

    /// Numbers in the matrices of the blocks, which is what laws of scaling are stated in: 18 · depth · C² with an MLP of four
    /// times the width (arXiv 2404.02905, section 3.2): 4 for attention, 8 for the MLP, 6 for the modulation.
    pub fn block_weights(&self) -> i64 {
        let (c, modulation) = (self.embed_dim, 6 * self.embed_dim * self.embed_dim);
        let own = if self.shared_aln { 0 } else { modulation };
        let shared = if self.shared_aln { modulation } else { 0 };
        self.depth * (4 * c * c + 2 * c * self.hidden() + own) + shared
    }

    /// Bytes of the keys and values of `tokens` positions of `batch` samples in float32: 2 · depth · C numbers a position;
    /// with guidance each sample counts twice.
    pub fn cache_bytes(&self, batch: i64, tokens: i64, guided: bool) -> i64 {
        let samples = if guided { 2 * batch } else { batch };
        2 * self.depth * self.embed_dim * tokens * samples * 4
    }
}
