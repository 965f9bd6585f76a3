//! What each layer costs, from the config alone.

use video_core::{Compression, Result, VideoShape};

use super::Magvit2Config;

/// One line of [`Magvit2Config::layers`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Where its variables lie (`encoder.level_0.block_1`).
    pub name: String,
    /// Its output, `[B, C, T, H, W]`.
    pub output: [i64; 5],
    /// Numbers that it learns.
    pub parameters: i64,
    /// Multiplications (each with an addition) of its convolutions and linear layers.
    pub multiply_adds: i64,
}

impl Magvit2Config {
    /// The layers of encoder and decoder in the order in which they run, for video of the given shape. The quantizer is
    /// not among them.
    ///
    /// # Errors
    /// A field is out of range, or the shape does not fit the compression.
    pub fn layers(&self, shape: VideoShape) -> Result<Vec<LayerSummary>> {
        self.validate()?;
        let [time, height, width] = self.factors();
        Compression { time, height, width, bits_per_token: 0.0 }.grid_shape(shape)?;
        let latent_channels = self.latent_channels()?;
        let widths = self.widths();
        let top = widths[widths.len() - 1];

        let (patch, colours) = (self.patch_size, self.in_channels * self.patch_size.pow(3));
        let VideoShape { batch, frames, height, width, .. } = shape;
        let size = [batch, colours, 1 + (frames - 1) / patch, height / patch, width / patch];
        let mut walk = Walk { config: self, size, layers: Vec::new() };
        walk.conv("encoder.conv_in", [colours, widths[0]]);
        for (i, &width) in widths.iter().enumerate() {
            walk.blocks(&format!("encoder.level_{i}"), widths[i.saturating_sub(1)], width);
            if i < self.transitions() {
                let factors = self.factors_at(i);
                walk.size[2] = (walk.size[2] - 1) / factors[0] + 1;
                walk.size[3] /= factors[1];
                walk.size[4] /= factors[2];
                walk.conv(&format!("encoder.level_{i}.downsample"), [width, width]);
            }
        }
        walk.blocks("encoder.mid", top, top);
        walk.layer("encoder.norm_out", top, 2 * top, 0);
        let pointwise = top * latent_channels;
        walk.layer("encoder.conv_out", latent_channels, pointwise + latent_channels, pointwise);

        // Linear layers from the latent run on latent positions, however fine the level.
        let latent_positions = walk.positions();
        walk.conv("decoder.conv_in", [latent_channels, top]);
        walk.blocks("decoder.mid", top, top);
        let mut before = top;
        for (i, &width) in widths.iter().enumerate().rev() {
            let linear = 2 * before * latent_channels;
            walk.layer(&format!("decoder.level_{i}.norm"), before, linear + 2 * before, 0);
            walk.layers.last_mut().expect("just pushed").multiply_adds = linear * latent_positions;
            walk.blocks(&format!("decoder.level_{i}"), before, width);
            if i > 0 {
                let factors = self.factors_at(i - 1);
                let outputs = width * factors.iter().product::<i64>();
                walk.conv(&format!("decoder.level_{i}.upsample"), [width, outputs]);
                walk.size[2] = 1 + (walk.size[2] - 1) * factors[0];
                walk.size[3] *= factors[1];
                walk.size[4] *= factors[2];
                let output = [walk.size[0], width, walk.size[2], walk.size[3], walk.size[4]];
                walk.layers.last_mut().expect("just pushed").output = output;
            }
            before = width;
        }
        walk.layer("decoder.norm_out", widths[0], 2 * widths[0], 0);
        walk.conv("decoder.conv_out", [widths[0], colours]);
        Ok(walk.layers)
    }
}

struct Walk<'a> {
    config: &'a Magvit2Config,
    /// Of the video at this point; the channels are those of the input.
    size: [i64; 5],
    layers: Vec<LayerSummary>,
}

impl Walk<'_> {
    fn positions(&self) -> i64 {
        self.size[0] * self.size[2..].iter().product::<i64>()
    }

    fn layer(&mut self, name: &str, width: i64, parameters: i64, per_position: i64) {
        let [b, _, t, h, w] = self.size;
        let multiply_adds = per_position * self.positions();
        let output = [b, width, t, h, w];
        self.layers.push(LayerSummary { name: name.to_string(), output, parameters, multiply_adds });
    }

    /// A 3×3×3 convolution with bias.
    fn conv(&mut self, name: &str, [inputs, outputs]: [i64; 2]) {
        self.layer(name, outputs, 27 * inputs * outputs + outputs, 27 * inputs * outputs);
    }

    fn blocks(&mut self, path: &str, inputs: i64, width: i64) {
        let skip = if self.config.conv_shortcut { 27 } else { 1 };
        let mut inputs = inputs;
        for j in 0..self.config.num_res_blocks {
            let projection = if inputs == width { 0 } else { skip * inputs * width };
            let convolutions = 27 * (inputs * width + width * width) + projection;
            let norms = 2 * inputs + 2 * width;
            self.layer(&format!("{path}.block_{j}"), width, convolutions + norms, convolutions);
            inputs = width;
        }
    }
}
