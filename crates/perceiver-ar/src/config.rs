//! [`PerceiverArConfig`]: the fields of the published configurations, by their names.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

/// What tells the network where its inputs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEncodingType {
    /// A vector of a table for each axis, added to the inputs.
    Absolute,
    /// Queries and keys are rotated, in every attention.
    #[default]
    Rotary,
}

/// What the tables of absolute positions hold at first, or for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEncoding {
    /// Sines, then cosines, of wavelengths from 2π to 10000 · 2π.
    #[default]
    Sinusoidal,
    /// Sines, then cosines, of multiples of π on [-1, 1].
    Fourier,
    /// The row's number, for debugging.
    Linear,
    /// Normal draws, to be learnt.
    Random,
}

/// Where the latents start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitialQuery {
    /// A linear map of the inputs at the latents' positions.
    #[default]
    None,
    /// The same, and layers behind it.
    Mlp,
    /// A learnt table.
    Learned,
}

/// A nonlinearity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0)².
    #[default]
    SqRelu,
    /// GELU by tanh.
    Gelu,
}

/// Whose width the cross-attention's queries, keys and values have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionShape {
    /// The inputs', `input_embed_dim`.
    #[default]
    Kv,
    /// The latents', `num_z_channels`.
    Q,
}

/// Configuration of [`PerceiverAr`](crate::PerceiverAr); the defaults are the published base configuration, over bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerceiverArConfig {
    /// V, ids, the three reserved ones among them.
    pub num_classes: i64,
    /// Rows of the table of each position axis; -1: `max_context_length`.
    pub input_idx_size: Vec<i64>,
    /// T, inputs at most. One more is taken, as samplers put a start in front.
    pub max_context_length: i64,
    /// How positions enter.
    pub position_encoding_type: PositionEncodingType,
    /// The tables of absolute positions.
    pub position_encoding: PositionEncoding,
    /// Whether those tables are trained.
    pub learnable_position_embeddings: bool,
    /// Positions come with the data (1-based); otherwise they count back from the last input.
    pub use_positions_from_data: bool,
    /// Positions that count back are negative, so that they grow to the right. Nothing where they do not rotate.
    pub use_negative_rotary_positions: bool,
    /// Share of a head's channels that are rotated, in (0, 1].
    pub fraction_to_rotate: f64,
    /// Share of the heads that are rotated.
    pub fraction_heads_to_rotate: f64,
    /// The longest wavelength of rotations over 2π, at least `max_context_length`; one less suffices with
    /// `initial_query_offsetting`, which adds one.
    pub max_wavelength: i64,
    /// E, width of the inputs.
    pub input_embed_dim: i64,
    /// C, width of the latents.
    pub num_z_channels: i64,
    /// Z, latents; another number may be asked for in a call.
    pub z_index_dim: i64,
    /// K, latents that share a position.
    pub num_latents_per_position: i64,
    /// L, layers of self-attention.
    pub num_transformers_per_block: i64,
    /// Heads of cross-attentions.
    pub num_cross_attend_heads: i64,
    /// Heads of self-attentions.
    pub num_transformer_heads: i64,
    /// The MLP's hidden width over the latents', behind cross-attentions.
    pub cross_attend_widening_factor: i64,
    /// The same behind self-attentions.
    pub transformer_widening_factor: i64,
    /// The MLPs' nonlinearity.
    pub activation_name: Activation,
    /// Whether the latents look at the inputs before the first layer.
    pub include_initial_cross_attention: bool,
    /// Numbers of layers after which they look again.
    pub additional_cross_attend_after_layers: Vec<i64>,
    /// Whose width cross-attentions have.
    pub cross_attention_shape_for_attn: AttentionShape,
    /// Heads of a cross-attention that are computed together in the reference; only the share of rotated heads depends on
    /// it, as it is taken in each group. 0: all.
    pub cross_attention_head_group_size: i64,
    /// Whether cross-attentions add to the latents.
    pub encoder_use_query_residual: bool,
    /// Where the latents start.
    pub initial_query_embed_style: InitialQuery,
    /// Layers behind the linear map, of [`InitialQuery::Mlp`].
    pub initial_query_embed_num_layers: i64,
    /// Their nonlinearity.
    pub initial_query_embed_activation_name: Activation,
    /// A learnt query is one row for all latents.
    pub share_learned_initial_query: bool,
    /// Latents stand one position on, at that which they predict. Rotary only.
    pub initial_query_offsetting: bool,
    /// Dropout behind attentions and MLPs, in training.
    pub dropout_prob: f64,
    /// Share of the latents that others do not see, in training.
    pub latent_dropout_prob: f64,
    /// Share of the inputs that no latent sees, in training: the paper's cross-attend dropout.
    pub encoder_dropout_prob: f64,
    /// P, inputs that are drawn and kept in training. 0: all.
    pub train_input_positions: i64,
}

impl Default for PerceiverArConfig {
    fn default() -> Self {
        Self {
            num_classes: 259,
            input_idx_size: vec![-1],
            max_context_length: 1024,
            position_encoding_type: PositionEncodingType::default(),
            position_encoding: PositionEncoding::default(),
            learnable_position_embeddings: false,
            use_positions_from_data: false,
            use_negative_rotary_positions: false,
            fraction_to_rotate: 0.5,
            fraction_heads_to_rotate: 1.0,
            max_wavelength: 1024,
            input_embed_dim: 1024,
            num_z_channels: 1024,
            z_index_dim: 1024,
            num_latents_per_position: 1,
            num_transformers_per_block: 12,
            num_cross_attend_heads: 16,
            num_transformer_heads: 16,
            cross_attend_widening_factor: 4,
            transformer_widening_factor: 4,
            activation_name: Activation::default(),
            include_initial_cross_attention: true,
            additional_cross_attend_after_layers: Vec::new(),
            cross_attention_shape_for_attn: AttentionShape::default(),
            cross_attention_head_group_size: 0,
            encoder_use_query_residual: true,
            initial_query_embed_style: InitialQuery::default(),
            initial_query_embed_num_layers: 2,
            initial_query_embed_activation_name: Activation::default(),
            share_learned_initial_query: false,
            initial_query_offsetting: false,
            dropout_prob: 0.1,
            latent_dropout_prob: 0.0,
            encoder_dropout_prob: 0.0,
            train_input_positions: 0,
        }
    }
}

impl PerceiverArConfig {
    /// `random_mirrored_131072`, the published copy task: 131,072 inputs, 1,024 latents, 6 layers.
    pub fn random_mirrored_131072() -> Self {
        Self {
            input_idx_size: vec![131_073],
            max_context_length: 131_072,
            position_encoding_type: PositionEncodingType::Absolute,
            use_positions_from_data: true,
            cross_attention_head_group_size: 4,
            max_wavelength: 131_072,
            num_transformers_per_block: 6,
            ..Self::default()
        }
    }

    /// `imagenet_w_positions`: 64 × 64 pixels byte by byte, 1,024 latents, 60 layers.
    pub fn imagenet_w_positions() -> Self {
        Self {
            input_idx_size: vec![66, 66, 5],
            max_context_length: 12_416,
            position_encoding_type: PositionEncodingType::Absolute,
            position_encoding: PositionEncoding::Random,
            learnable_position_embeddings: true,
            use_positions_from_data: true,
            max_wavelength: 12_416,
            num_transformers_per_block: 60,
            ..Self::default()
        }
    }

    /// Rows of each axis' table.
    pub(crate) fn table_rows(&self) -> Vec<i64> {
        let rows = |&rows: &i64| if rows == -1 { self.max_context_length } else { rows };
        self.input_idx_size.iter().map(rows).collect()
    }

    /// Width of queries, keys and values of cross-attentions.
    pub(crate) fn cross_width(&self) -> i64 {
        match self.cross_attention_shape_for_attn {
            AttentionShape::Kv => self.input_embed_dim,
            AttentionShape::Q => self.num_z_channels,
        }
    }

    /// The longest wavelength of rotations over 2π: latents that stand one position on need one more.
    pub(crate) fn longest_wavelength(&self) -> i64 {
        self.max_wavelength.saturating_add(i64::from(self.initial_query_offsetting))
    }

    /// Whether positions rotate.
    pub(crate) fn is_rotary(&self) -> bool {
        self.position_encoding_type == PositionEncodingType::Rotary
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_positions()?;
        self.validate_queries()
    }

    fn validate_sizes(&self) -> Result<()> {
        const WIDE: i64 = 1 << 16;
        for (field, value, least, most) in [
            ("num_classes", self.num_classes, 4, 1 << 24),
            ("max_context_length", self.max_context_length, 1, 1 << 24),
            ("input_embed_dim", self.input_embed_dim, 1, WIDE),
            ("num_z_channels", self.num_z_channels, 1, WIDE),
            ("z_index_dim", self.z_index_dim, 1, self.max_context_length * self.num_latents_per_position),
            ("num_latents_per_position", self.num_latents_per_position, 1, 1 << 10),
            ("num_transformers_per_block", self.num_transformers_per_block, 0, 1 << 10),
            ("num_cross_attend_heads", self.num_cross_attend_heads, 1, WIDE),
            ("num_transformer_heads", self.num_transformer_heads, 1, WIDE),
            ("cross_attend_widening_factor", self.cross_attend_widening_factor, 1, 1 << 8),
            ("transformer_widening_factor", self.transformer_widening_factor, 1, 1 << 8),
            ("initial_query_embed_num_layers", self.initial_query_embed_num_layers, 0, 1 << 10),
            ("train_input_positions", self.train_input_positions, 0, self.max_context_length),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::config(field, value, format!("{least} to {most}")));
            }
        }
        if self.z_index_dim % self.num_latents_per_position != 0 {
            let expected =
                format!("a multiple of num_latents_per_position = {}", self.num_latents_per_position);
            return Err(Error::config("z_index_dim", self.z_index_dim, expected));
        }
        for (field, heads, width) in [
            ("num_cross_attend_heads", self.num_cross_attend_heads, self.cross_width()),
            ("num_transformer_heads", self.num_transformer_heads, self.num_z_channels),
        ] {
            if width % heads != 0 {
                return Err(Error::config(field, heads, format!("a divisor of the width {width}")));
            }
        }
        let group = self.cross_attention_head_group_size;
        if group < 0 || (group > 0 && self.num_cross_attend_heads % group != 0) {
            let expected = format!("0, or a divisor of the {} heads", self.num_cross_attend_heads);
            return Err(Error::config("cross_attention_head_group_size", group, expected));
        }
        for (field, share) in [
            ("dropout_prob", self.dropout_prob),
            ("latent_dropout_prob", self.latent_dropout_prob),
            ("encoder_dropout_prob", self.encoder_dropout_prob),
        ] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::config(field, share, "a number in [0, 1)"));
            }
        }
        Ok(())
    }

    fn validate_positions(&self) -> Result<()> {
        let axes = &self.input_idx_size;
        if axes.is_empty()
            || axes.len() > 8
            || axes.iter().any(|&rows| rows != -1 && !(1..=1 << 24).contains(&rows))
        {
            let expected = "1 to 8 axes of 1 to 2^24 rows each, or -1";
            return Err(Error::config("input_idx_size", axes, expected));
        }
        if !self.is_rotary() {
            if self.use_positions_from_data && axes.contains(&-1) {
                let expected = "numbers of rows, as the positions come with the data";
                return Err(Error::config("input_idx_size", axes, expected));
            }
            if !self.use_positions_from_data && axes.len() != 1 {
                return Err(Error::config("input_idx_size", axes, "one axis, as positions count back"));
            }
            return Ok(());
        }
        if self.use_positions_from_data && axes.len() != 1 {
            return Err(Error::config("input_idx_size", axes, "one axis, as positions rotate"));
        }
        if !(self.fraction_to_rotate > 0.0 && self.fraction_to_rotate <= 1.0) {
            return Err(Error::config("fraction_to_rotate", self.fraction_to_rotate, "a number in (0, 1]"));
        }
        if !(0.0..=1.0).contains(&self.fraction_heads_to_rotate) {
            let expected = "a number in [0, 1]";
            return Err(Error::config("fraction_heads_to_rotate", self.fraction_heads_to_rotate, expected));
        }
        let longest = self.longest_wavelength();
        if longest < self.max_context_length {
            let expected = format!("at least {}", self.max_context_length - (longest - self.max_wavelength));
            return Err(Error::config("max_wavelength", self.max_wavelength, expected));
        }
        Ok(())
    }

    fn validate_queries(&self) -> Result<()> {
        if self.initial_query_offsetting && !self.is_rotary() {
            return Err(Error::config("initial_query_offsetting", true, "false, as positions are absolute"));
        }
        let layers = self.num_transformers_per_block;
        let after = &self.additional_cross_attend_after_layers;
        let twice = |(i, layer): (usize, &i64)| after[..i].contains(layer);
        if after.iter().any(|layer| !(0..layers).contains(layer)) || after.iter().enumerate().any(twice) {
            let expected = format!("different numbers in 0..{layers}");
            return Err(Error::config("additional_cross_attend_after_layers", after, expected));
        }
        Ok(())
    }
}
