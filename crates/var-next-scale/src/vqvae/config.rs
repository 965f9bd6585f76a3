//! Configuration of the image tokenizer.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use crate::quantizer::MultiScaleVqConfig;

/// Configuration of [`Vqvae`](crate::Vqvae); the defaults are the published `vae_ch160v4096z32`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VqvaeConfig {
    /// Width of the first level.
    pub ch: i64,
    /// Width of each level as a multiple of `ch`; every level but the last halves the size.
    pub ch_mult: Vec<i64>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub num_res_blocks: i64,
    /// Groups of every group norm.
    pub norm_num_groups: i64,
    /// Kernel of the convolutions around the quantizer, odd.
    pub quant_conv_ks: i64,
    /// The quantizer, whose `z_channels` is the latent's width.
    pub quantizer: MultiScaleVqConfig,
}

impl Default for VqvaeConfig {
    fn default() -> Self {
        Self {
            ch: 160,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            norm_num_groups: 32,
            quant_conv_ks: 3,
            quantizer: MultiScaleVqConfig::default(),
        }
    }
}

/// Numbers that are trained, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqvaeParameters {
    /// Of the encoder.
    pub encoder: i64,
    /// Of the decoder.
    pub decoder: i64,
    /// Of the codebook and all φ.
    pub quantizer: i64,
    /// Of the convolutions around the quantizer.
    pub quant_convs: i64,
}

impl VqvaeParameters {
    /// Of the whole tokenizer.
    pub fn total(&self) -> i64 {
        self.encoder + self.decoder + self.quantizer + self.quant_convs
    }
}

impl VqvaeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let small = |value: i64, most: i64| (1..=most).contains(&value);
        if !small(self.ch, 1 << 16) {
            return Err(Error::config("ch", self.ch, "1 to 65536"));
        }
        if !(1..=10).contains(&self.ch_mult.len()) || !self.ch_mult.iter().all(|&m| small(m, 1 << 8)) {
            return Err(Error::config("ch_mult", &self.ch_mult, "1 to 10 multiples from 1 to 256"));
        }
        if !small(self.num_res_blocks, 64) {
            return Err(Error::config("num_res_blocks", self.num_res_blocks, "1 to 64"));
        }
        let divides = |width: i64| width % self.norm_num_groups == 0;
        if self.norm_num_groups < 1 || !divides(self.ch) {
            let expected = format!("a divisor of the width {}", self.ch);
            return Err(Error::config("norm_num_groups", self.norm_num_groups, expected));
        }
        if !small(self.quant_conv_ks, 31) || self.quant_conv_ks % 2 == 0 {
            return Err(Error::config("quant_conv_ks", self.quant_conv_ks, "an odd number from 1 to 31"));
        }
        self.quantizer.validate().map_err(|error| error.within("quantizer"))
    }

    /// Pixels along one side of a latent position.
    pub fn factor(&self) -> i64 {
        1 << (self.ch_mult.len() - 1)
    }

    /// Width of each level.
    pub(crate) fn widths(&self) -> Vec<i64> {
        self.ch_mult.iter().map(|multiple| multiple * self.ch).collect()
    }

    /// Numbers that are trained, without building the network.
    pub fn parameters(&self) -> VqvaeParameters {
        let (widths, z) = (self.widths(), self.quantizer.z_channels);
        let conv = |inputs: i64, outputs: i64, kernel: i64| inputs * outputs * kernel * kernel + outputs;
        let norm = |width: i64| 2 * width;
        let block = |inputs: i64, outputs: i64| {
            let shortcut = if inputs == outputs { 0 } else { conv(inputs, outputs, 1) };
            norm(inputs) + conv(inputs, outputs, 3) + norm(outputs) + conv(outputs, outputs, 3) + shortcut
        };
        let attention = |width: i64| norm(width) + conv(width, 3 * width, 1) + conv(width, width, 1);
        let last = widths.len() - 1;
        let deepest = widths[last];
        let middle = 2 * block(deepest, deepest) + attention(deepest);
        // A level's blocks, from the width that comes in, with attention at the deepest.
        let level = |level: usize, inputs: i64, blocks: i64| {
            let width = widths[level];
            let attend = if level == last { blocks * attention(width) } else { 0 };
            block(inputs, width) + (blocks - 1) * block(width, width) + attend
        };
        let mut encoder = conv(3, self.ch, 3) + middle + norm(deepest) + conv(deepest, z, 3);
        let mut decoder = conv(z, deepest, 3) + middle + norm(widths[0]) + conv(widths[0], 3, 3);
        let (mut down, mut up) = (self.ch, deepest);
        for index in 0..widths.len() {
            encoder += level(index, down, self.num_res_blocks);
            decoder += level(last - index, up, self.num_res_blocks + 1);
            (down, up) = (widths[index], widths[last - index]);
            if index < last {
                encoder += conv(down, down, 3);
                decoder += conv(up, up, 3);
            }
        }
        VqvaeParameters {
            encoder,
            decoder,
            quantizer: self.quantizer.parameters(),
            quant_convs: 2 * conv(z, z, self.quant_conv_ks),
        }
    }
}
