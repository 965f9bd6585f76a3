//! The network.

use layers::init::truncated_normal;
use layers::{KvCache, Linear};
use tch::nn::{self, Init, Module};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::attention::{
    AttentionWidths, CrossAttentionLayer, LayerConfig, Rotations, SelfAttentionLayer, activate, additive,
    layer_norm, linear,
};
use crate::config::{InitialQuery, PerceiverArConfig, PositionEncoding};
use crate::memory::Memory;
use crate::position::{Rotary, RotaryConfig, fourier_table, sinusoidal_table, terminal_relative_positions};
use crate::sequence::{PAD, masks};

/// Ids and, where the model wants them, positions.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// int64 `[B, T]`, padding behind the tokens.
    pub ids: &'a Tensor,
    /// int64 `[B, T, D]`, for `use_positions_from_data`; not read otherwise.
    pub positions: Option<&'a Tensor>,
}

/// What is drawn for a training step; [`TrainDraws::draw`] draws it.
#[derive(Debug, Default)]
pub struct TrainDraws {
    /// bool `[B, Z]`: latents that others see. None: all.
    pub latent_keep: Option<Tensor>,
    /// bool `[B, T]`, or `[B, P]` of the inputs that were kept: inputs that latents see. None: all.
    pub encoder_keep: Option<Tensor>,
    /// int64 `[B, T]` or `[T]`: the order of which the first P inputs are kept, where the config says how many.
    pub permutation: Option<Tensor>,
}

impl TrainDraws {
    /// Draws from torch's generator for sequences `[B, T]` and Z latents.
    pub fn draw(config: &PerceiverArConfig, batch: i64, slots: i64, latents: i64, device: Device) -> Self {
        let options = (Kind::Float, device);
        let keep = |n: i64, drop: f64| (drop > 0.0).then(|| Tensor::rand([batch, n], options).ge(drop));
        let kept = config.train_input_positions;
        let inputs = if kept > 0 { kept.min(slots) } else { slots };
        Self {
            latent_keep: keep(latents, config.latent_dropout_prob),
            encoder_keep: keep(inputs, config.encoder_dropout_prob),
            permutation: (kept > 0).then(|| Tensor::rand([batch, slots], options).argsort(-1, false)),
        }
    }
}

/// What the network says of a batch.
#[derive(Debug)]
pub struct Predictions {
    /// `[B, Z/K, V]`: of the token behind each latent position.
    pub logits: Tensor,
    /// int64 `[B, Z/K]`: the slot of each latent position; -1 where the sequence has none left, whose logits mean nothing.
    pub last_steps: Tensor,
    /// bool `[B, 1, Z, T]`, as it was used; none for one latent, but where inputs are dropped.
    pub encoder_mask: Option<Tensor>,
    /// bool `[B, 1, Z, Z]`, as it was used; none for one latent.
    pub processor_mask: Option<Tensor>,
}

/// Perceiver AR (Hawthorne et al., arXiv 2202.07765).
///
/// Variables: `embed` `[V, E]`, `position_{d}` `[rows, E]` (absolute), `z_linear`, `query_layers.{i}`, `q_embed_learned`,
/// `z_pos_enc` `[K, C]` (K > 1), `cross.{i}` (the initial one first), `layers.{i}`, `norm`, `logits`.
#[derive(Debug)]
pub struct PerceiverAr {
    pub(crate) config: PerceiverArConfig,
    pub(crate) device: Device,
    embed: Tensor,
    tables: Vec<Tensor>,
    z_linear: Option<Linear>,
    query_layers: Vec<Linear>,
    q_embed_learned: Option<Tensor>,
    z_pos_enc: Option<Tensor>,
    cross: Vec<CrossAttentionLayer>,
    layers: Vec<SelfAttentionLayer>,
    norm: nn::LayerNorm,
    logits: Linear,
    pub(crate) cross_rotary: Option<Rotary>,
    pub(crate) self_rotary: Option<Rotary>,
}

/// Inputs and latents on their way into the attentions.
struct Prepared {
    /// `[B, T, E]`
    inputs: Tensor,
    /// `[B, Z, C]`
    latents: Tensor,
    /// int64 `[B, T]` and `[B, Z]`, for rotations.
    places: Option<(Tensor, Tensor)>,
}

/// Masks that are added to scores.
#[derive(Default)]
struct Additive {
    encoder: Option<Tensor>,
    processor: Option<Tensor>,
}

impl PerceiverAr {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &PerceiverArConfig) -> Result<Self> {
        config.validate()?;
        let (wide, width) = (config.input_embed_dim, config.num_z_channels);
        let device = path.device();
        let mut tables = Vec::new();
        if !config.is_rotary() {
            for (axis, rows) in config.table_rows().into_iter().enumerate() {
                tables.push(position_table(path, &format!("position_{axis}"), rows, config)?);
            }
        }
        let learned = config.initial_query_embed_style == InitialQuery::Learned;
        let rows = if config.share_learned_initial_query { 1 } else { config.z_index_dim };
        let small = |name: &str, rows: i64| truncated_normal(path, name, &[rows, width], 0.02, 2.0);
        let query_layers = match config.initial_query_embed_style {
            InitialQuery::Mlp => config.initial_query_embed_num_layers,
            _ => 0,
        };
        let attended = config.cross_width();
        let cross_widths = AttentionWidths {
            query: width,
            key_value: wide,
            qk: attended,
            v: attended,
            output: width,
            heads: config.num_cross_attend_heads,
        };
        let layer = |widening_factor: i64| LayerConfig {
            widening_factor,
            activation: config.activation_name,
            dropout: config.dropout_prob,
        };
        let crosses = usize::from(config.include_initial_cross_attention)
            + config.additional_cross_attend_after_layers.len();
        let cross = |i: usize| {
            let told = layer(config.cross_attend_widening_factor);
            let residual = config.encoder_use_query_residual;
            CrossAttentionLayer::new(&(path / "cross" / i), cross_widths, residual, told)
        };
        let layers = |i: i64| {
            let told = layer(config.transformer_widening_factor);
            SelfAttentionLayer::new(&(path / "layers" / i), width, config.num_transformer_heads, told)
        };
        let rotary = |heads: i64, head_dim: i64, head_group_size: i64| {
            let rotary = RotaryConfig {
                heads,
                head_dim,
                head_group_size,
                fraction_to_rotate: config.fraction_to_rotate,
                fraction_heads_to_rotate: config.fraction_heads_to_rotate,
                max_wavelength: config.longest_wavelength(),
            };
            if config.is_rotary() { Rotary::new(&rotary, device).map(Some) } else { Ok(None) }
        };
        let (heads, group) = (config.num_cross_attend_heads, config.cross_attention_head_group_size);
        let cross_rotary = rotary(heads, attended / heads, group)?;
        let heads = config.num_transformer_heads;
        Ok(Self {
            embed: truncated_normal(path, "embed", &[config.num_classes, wide], 1.0, 2.0),
            tables,
            z_linear: (!learned).then(|| linear(&(path / "z_linear"), wide, width)),
            query_layers: (0..query_layers)
                .map(|i| linear(&(path / "query_layers" / i), width, width))
                .collect(),
            q_embed_learned: learned.then(|| small("q_embed_learned", rows)),
            z_pos_enc: (config.num_latents_per_position > 1)
                .then(|| small("z_pos_enc", config.num_latents_per_position)),
            cross: (0..crosses).map(cross).collect::<Result<_>>()?,
            layers: (0..config.num_transformers_per_block).map(layers).collect::<Result<_>>()?,
            norm: layer_norm(path / "norm", width),
            // The first loss is exactly ln V.
            logits: zero_linear(&(path / "logits"), width, config.num_classes),
            cross_rotary,
            self_rotary: rotary(heads, width / heads, 0)?,
            config: config.clone(),
            device,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &PerceiverArConfig {
        &self.config
    }

    /// The logits of Z latents (`z_index_dim`, if `latents` says nothing else) on the last positions of each sequence.
    /// `train`: a training step, with dropout from torch's generator.
    ///
    /// # Errors
    /// Sequences that are too long, ids outside the vocabulary, positions that are missing or have no row, more latents
    /// than slots, draws of other shapes.
    pub fn forward(
        &self,
        sequence: Sequence<'_>,
        latents: Option<i64>,
        train: Option<&TrainDraws>,
    ) -> Result<Predictions> {
        let config = &self.config;
        self.check_sequence(sequence)?;
        let ids = &sequence.ids.to_device(self.device);
        let latents = latents.unwrap_or(config.z_index_dim);
        let per_position = config.num_latents_per_position;
        let (batch, slots) = (ids.size()[0], ids.size()[1]);
        if let Some(TrainDraws { latent_keep, permutation, .. }) = train {
            check_draw("latent_keep", latent_keep.as_ref(), &[&[batch, latents]])?;
            check_draw("permutation", permutation.as_ref(), &[&[batch, slots], &[slots]])?;
        }
        let keep = train.and_then(|draws| draws.latent_keep.as_ref()).map(|keep| keep.to_device(self.device));
        // The reference counts latents, not their positions.
        if latents > slots {
            let expected = format!("at most the {slots} input slots");
            return Err(Error::config("z_index_dim", latents, expected));
        }
        let seen = masks(ids, latents, per_position, keep.as_ref())?;
        // One latent alone has no mask and sits on the last slot, padding or not.
        let (mut encoder_mask, processor_mask, last_steps) = if latents == 1 {
            (None, None, seen.last_steps.full_like(slots - 1))
        } else {
            (Some(seen.encoder), Some(seen.processor), seen.last_steps)
        };
        let positions = self.positions(ids, sequence.positions)?;
        let mut prepared = self.prepare(ids, &positions, &last_steps, latents)?;
        if let Some(draws) = train {
            if let Some(permutation) = &draws.permutation {
                let kept = self.kept_inputs(ids, permutation);
                prepared.inputs = rows(&prepared.inputs, &kept);
                prepared.places = prepared.places.map(|(inputs, z)| (inputs.gather(1, &kept, false), z));
                encoder_mask = encoder_mask.map(|mask| {
                    let index = kept.view([batch, 1, 1, -1]).expand([-1, -1, latents, -1], false);
                    mask.gather(3, &index, false)
                });
            }
            if let Some(keep) = &draws.encoder_keep {
                let inputs = prepared.inputs.size()[1];
                check_draw("encoder_keep", Some(keep), &[&[batch, inputs]])?;
                let keep = keep.to_device(self.device).view([batch, 1, 1, inputs]);
                encoder_mask = Some(encoder_mask.map_or_else(
                    || keep.expand([-1, -1, latents, -1], false),
                    |mask| mask.logical_and(&keep),
                ));
            }
        }
        let added = Additive {
            encoder: encoder_mask.as_ref().map(additive),
            processor: processor_mask.as_ref().map(additive),
        };
        let logits = self.run(prepared, &added, None, train.is_some())?;
        Ok(Predictions { logits, last_steps, encoder_mask, processor_mask })
    }

    /// Takes further inputs `[B, n]`, without padding, behind those in the memory, and gives the logits `[B, z, V]` of
    /// `latents` z on the last of them. Each sees all that is in the memory and the inputs up to its own; earlier latents as
    /// well. Without gradients.
    ///
    /// Fed with one latent an input from the first latent on, whatever the pieces, these are the logits of
    /// [`PerceiverAr::forward`] with as many latents, until something drops out of the memory.
    ///
    /// # Errors
    /// As [`PerceiverAr::forward`]; another batch size than the memory's, more inputs or latents than it holds.
    pub fn push(&self, memory: &mut Memory, sequence: Sequence<'_>, latents: i64) -> Result<Tensor> {
        self.check_sequence(sequence)?;
        let ids = &sequence.ids.to_device(self.device);
        let (batch, new) = (ids.size()[0], ids.size()[1]);
        if !(1..=new).contains(&latents) {
            return Err(Error::config("latents", latents, format!("1 to the {new} inputs")));
        }
        memory.check(batch, new, latents)?;
        tch::no_grad(|| {
            let positions = self.positions(ids, sequence.positions)?;
            let options = (Kind::Int64, self.device);
            let last_steps =
                Tensor::arange_start(new - latents, new, options).expand([batch, latents], false);
            let prepared = self.prepare(ids, &positions, &last_steps, latents)?;
            memory.remember(prepared.places.as_ref(), batch, new, latents);
            // The last latent sees everything, each one before it one less.
            let rows = |total: i64| {
                let seen = Tensor::ones([latents, total], (Kind::Bool, self.device)).tril(total - latents);
                (latents > 1).then(|| additive(&seen))
            };
            let added = Additive { encoder: rows(memory.inputs()), processor: rows(memory.latents()) };
            self.run(prepared, &added, Some(memory), false)
        })
    }

    /// The attentions and the head: `[B, Z/K, V]`.
    fn run(
        &self,
        prepared: Prepared,
        masks: &Additive,
        mut memory: Option<&mut Memory>,
        train: bool,
    ) -> Result<Tensor> {
        let Prepared { inputs, latents: mut x, places } = prepared;
        let config = &self.config;
        let mut crosses = self.cross.iter().enumerate();
        let mut look = |x: &Tensor, memory: Option<&mut Memory>| -> Result<Option<Tensor>> {
            let Some((i, layer)) = crosses.next() else { return Ok(None) };
            let turned = places.as_ref().zip(self.cross_rotary.as_ref());
            let turned = turned.map(|((key, query), rotary)| Rotations { rotary, query, key });
            let cache: Option<&mut KvCache> = memory.map(|memory| &mut memory.cross[i]);
            layer.forward(x, &inputs, masks.encoder.as_ref(), turned, cache, train).map(Some)
        };
        if config.include_initial_cross_attention {
            x = look(&x, memory.as_deref_mut())?.unwrap_or(x);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let turned = places.as_ref().zip(self.self_rotary.as_ref());
            let turned = turned.map(|((_, place), rotary)| Rotations { rotary, query: place, key: place });
            let cache = memory.as_deref_mut().map(|memory| &mut memory.layers[i]);
            x = layer.forward(&x, masks.processor.as_ref(), turned, cache, train)?;
            if config.additional_cross_attend_after_layers.contains(&(i as i64)) {
                x = look(&x, memory.as_deref_mut())?.unwrap_or(x);
            }
        }
        let x = self.norm.forward(&x);
        let per_position = config.num_latents_per_position;
        let x = if per_position > 1 {
            x.unflatten(1, [-1, per_position]).mean_dim([2i64].as_slice(), false, Kind::Float)
        } else {
            x
        };
        Ok(self.logits.forward(&x))
    }

    /// Embeds the inputs and makes the first latents of those at `last_steps` `[B, Z/K]`.
    fn prepare(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        last_steps: &Tensor,
        latents: i64,
    ) -> Result<Prepared> {
        let config = &self.config;
        let (batch, slots) = (ids.size()[0], ids.size()[1]);
        let look_up = |table: &Tensor, ids: &Tensor| Tensor::embedding(table, ids, -1, false, false);
        let mut inputs = look_up(&self.embed, ids);
        for (table, axis) in self.tables.iter().zip(0..) {
            inputs += look_up(table, &positions.select(2, axis));
        }
        // An invalid latent reads the last slot.
        let steps = last_steps.remainder(slots);
        let per_position = config.num_latents_per_position;
        let z = match (&self.z_linear, &self.q_embed_learned) {
            (Some(linear), _) => {
                linear.forward(&rows(&inputs, &steps)).repeat_interleave_self_int(per_position, 1, None)
            }
            (None, Some(table)) if config.share_learned_initial_query || latents == config.z_index_dim => {
                table.expand([batch, latents, -1], false)
            }
            _ => {
                let expected = format!("{}, as each latent has learnt its own start", config.z_index_dim);
                return Err(Error::config("latents", latents, expected));
            }
        };
        let mut z = match &self.z_pos_enc {
            Some(encoding) => z + encoding.repeat([latents / per_position, 1]),
            None => z,
        };
        for layer in &self.query_layers {
            z = activate(config.initial_query_embed_activation_name, &layer.forward(&z));
        }
        let places = config.is_rotary().then(|| {
            let inputs = positions.select(2, 0);
            let z = inputs.gather(1, &steps, false).repeat_interleave_self_int(per_position, 1, None);
            let z = z + i64::from(config.initial_query_offsetting);
            (inputs, z)
        });
        Ok(Prepared { inputs, latents: z, places })
    }

    /// int64 `[B, T, D]`: given, or counted back.
    fn positions(&self, ids: &Tensor, given: Option<&Tensor>) -> Result<Tensor> {
        let config = &self.config;
        if !config.use_positions_from_data {
            let back = terminal_relative_positions(ids).unsqueeze(2);
            if config.is_rotary() && config.use_negative_rotary_positions {
                return Ok(-back);
            }
            // Only padding of a sequence that is one too long has no row.
            return Ok(if config.is_rotary() { back } else { back.clamp_max(config.table_rows()[0] - 1) });
        }
        let axes = config.input_idx_size.len() as i64;
        let expected = [ids.size()[0], ids.size()[1], axes];
        let Some(positions) = given else {
            let wanted = format!("int64 {expected:?}, as the model takes positions from the data");
            return Err(Error::input("positions", "none are given", wanted));
        };
        if positions.size() != expected || positions.kind() != Kind::Int64 {
            return Err(Error::shape("positions", &positions.size(), format!("int64 {expected:?}")));
        }
        for (axis, rows) in config.table_rows().into_iter().enumerate().filter(|_| !config.is_rotary()) {
            let column = positions.select(2, axis as i64);
            let [least, most] = [column.min(), column.max()].map(|place| place.int64_value(&[]));
            if least < 0 || most >= rows {
                let problem = format!("{least} to {most} on axis {axis}");
                return Err(Error::input("positions", problem, format!("0..{rows}")));
            }
        }
        Ok(positions.to_device(self.device))
    }

    /// Which inputs a training step keeps, int64 `[B, P]`: the first of an order, padding last.
    fn kept_inputs(&self, ids: &Tensor, permutation: &Tensor) -> Tensor {
        let (batch, slots) = (ids.size()[0], ids.size()[1]);
        let kept = self.config.train_input_positions.min(slots);
        let order = permutation.to_device(self.device).expand([batch, slots], false).narrow(1, 0, kept);
        let padding = ids.gather(1, &order, false).eq(PAD).to_kind(Kind::Int64);
        order.gather(1, &padding.argsort_stable(true, 1, false), false)
    }

    fn check_sequence(&self, sequence: Sequence<'_>) -> Result<()> {
        let (size, most) = (sequence.ids.size(), self.config.max_context_length + 1);
        if size.len() != 2 || size.contains(&0) || size[1] > most || sequence.ids.kind() != Kind::Int64 {
            let expected = format!("int64 [B, T] with T at most {most}, the context and a start");
            return Err(Error::shape("token ids", &size, expected));
        }
        let [least, most] = [sequence.ids.min(), sequence.ids.max()].map(|id| id.int64_value(&[]));
        if least < 0 || most >= self.config.num_classes {
            let expected = format!("ids in 0..{}", self.config.num_classes);
            return Err(Error::input("token ids", format!("{least} to {most}"), expected));
        }
        Ok(())
    }
}

/// Rows int64 `[B, n]` of `[B, T, C]`.
fn rows(x: &Tensor, index: &Tensor) -> Tensor {
    x.gather(1, &index.unsqueeze(-1).expand([-1, -1, x.size()[2]], false), false)
}

fn check_draw(name: &str, draw: Option<&Tensor>, shapes: &[&[i64]]) -> Result<()> {
    match draw {
        Some(draw) if !shapes.contains(&draw.size().as_slice()) => {
            Err(Error::shape(name, &draw.size(), format!("one of {shapes:?}")))
        }
        _ => Ok(()),
    }
}

fn zero_linear(path: &nn::Path, inputs: i64, outputs: i64) -> Linear {
    Linear::truncated_normal(path, inputs, outputs, true, 0.0)
}

fn position_table(path: &nn::Path, name: &str, rows: i64, config: &PerceiverArConfig) -> Result<Tensor> {
    let width = config.input_embed_dim;
    let fit = |table: Tensor| table.constant_pad_nd([0, width - table.size()[1]]).to_device(path.device());
    let first = match config.position_encoding {
        PositionEncoding::Sinusoidal => fit(sinusoidal_table(rows, width, 1.0, 10_000.0)?),
        PositionEncoding::Fourier => fit(fourier_table(rows, width, false)?),
        PositionEncoding::Linear => {
            let numbers = Tensor::arange(rows, (Kind::Float, path.device()));
            numbers.unsqueeze(1).repeat([1, width])
        }
        PositionEncoding::Random if config.learnable_position_embeddings => {
            return Ok(truncated_normal(path, name, &[rows, width], 1.0, 2.0));
        }
        PositionEncoding::Random => {
            nn::init(Init::Randn { mean: 0.0, stdev: 1.0 }, &[rows, width], path.device())
        }
    };
    Ok(path.add(name, first, config.learnable_position_embeddings))
}
