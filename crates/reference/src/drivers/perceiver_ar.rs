//! Perceiver AR (entries `perceiver_ar.*`).

mod data;

use ::perceiver_ar::{
    Activation, Attention, AttentionShape, AttentionWidths, CrossAttentionLayer, InitialQuery, LayerConfig,
    LossConfig, MemoryKind, PerceiverAr, PerceiverArConfig, PositionEncodingType, Rotary, RotaryConfig,
    Rotations, Sampler, Scheme, SelfAttentionLayer, Sequence, TrainDraws, shift, shift_positions,
};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor, nn, no_grad};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("perceiver_ar.position.sinusoidal", data::sinusoidal),
    ("perceiver_ar.position.fourier", data::fourier),
    ("perceiver_ar.position.terminal_relative", data::terminal_relative),
    ("perceiver_ar.rotary", data::rotary),
    ("perceiver_ar.masks", data::masks),
    ("perceiver_ar.attention", attention),
    ("perceiver_ar.attention_block", attention_block),
    ("perceiver_ar.forward", forward),
    ("perceiver_ar.cross_entropy", data::cross_entropy),
    ("perceiver_ar.loss", loss),
    ("perceiver_ar.eval", eval),
    ("perceiver_ar.cached_step", cached_step),
    ("perceiver_ar.process_logits", data::process_logits),
    ("perceiver_ar.sample", sample),
    ("perceiver_ar.copy_task", data::copy_task),
    ("perceiver_ar.crops", data::crops),
    ("perceiver_ar.block_eval", data::block_eval),
    ("perceiver_ar.image_events", data::image_events),
];

/// Our name of a tensor of the reference, whose first layer of a kind has no number; `query_layers` is how many linear
/// layers come before the first of all latents.
fn our_name(name: &str, query_layers: usize) -> Option<String> {
    let name = name.strip_prefix("perceiver_ar/").unwrap_or(name);
    let name = name.strip_prefix("~/").unwrap_or(name);
    let words: Vec<&str> = name.split('/').collect();
    let numbered = |word: &str, kind: &str| -> Option<usize> {
        match word.strip_prefix(kind)? {
            "" => Some(0),
            rest => rest.strip_prefix('_')?.parse().ok(),
        }
    };
    let leaf = |leaf: &str| match leaf {
        "w" | "scale" => Some("weight"),
        "b" | "offset" => Some("bias"),
        _ => None,
    };
    Some(match *words.as_slice() {
        ["embed", "embeddings"] => "embed".into(),
        [embed, "embeddings"] => format!("position_{}", numbered(embed, "embed")?.checked_sub(1)?),
        ["q_embed_learned"] | ["q_embed_learned", _] => "q_embed_learned".into(),
        ["z_pos_enc", "pos_embs"] => "z_pos_enc".into(),
        ["layer_norm", part] => format!("norm.{}", leaf(part)?),
        ["logits", part] => format!("logits.{}", leaf(part)?),
        [linear, part] => {
            let number = numbered(linear, "linear")?;
            let part = leaf(part)?;
            if number == query_layers {
                format!("z_linear.{part}")
            } else {
                format!("query_layers.{number}.{part}")
            }
        }
        [layer, ref rest @ ..] => {
            let (layer, is_cross) = match numbered(layer, "cross_attention") {
                Some(number) => (format!("cross.{number}"), true),
                None => (format!("layers.{}", numbered(layer, "self_attention")?), false),
            };
            format!("{layer}.{}", layer_name(rest, is_cross)?)
        }
        [] => return None,
    })
}

/// The same inside a layer.
fn layer_name(words: &[&str], is_cross: bool) -> Option<String> {
    let leaf = |leaf: &str| match leaf {
        "w" | "scale" => Some("weight"),
        "b" | "offset" => Some("bias"),
        _ => None,
    };
    let part = match (words, is_cross) {
        (["attention", linear, _], _) => format!("attention.{}", projection(linear)?),
        (["dense", "linear", _], _) => "mlp.up".into(),
        (["dense", "linear_1", _], _) => "mlp.down".into(),
        (["layer_norm", _], true) => "norm_q".into(),
        (["layer_norm_1", _], true) => "norm_kv".into(),
        (["layer_norm_2", _], true) | (["layer_norm_1", _], false) => "norm_mlp".into(),
        (["layer_norm", _], false) => "norm".into(),
        _ => return None,
    };
    Some(format!("{part}.{}", leaf(words.last()?)?))
}

fn projection(linear: &str) -> Option<&'static str> {
    match linear {
        "linear" => Some("q"),
        "linear_1" => Some("k"),
        "linear_2" => Some("v"),
        "linear_3" => Some("out"),
        _ => None,
    }
}

/// Kernels of haiku's linear layers are `[in, out]`.
fn our_layout(name: &str, tensor: &Tensor) -> Tensor {
    if name.ends_with("/w") { tensor.transpose(0, 1) } else { tensor.shallow_clone() }
}

/// A model with the case's weights, and its variables.
fn load<M>(
    case: &Case,
    rename: impl Fn(&str) -> Option<String>,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<(M, nn::VarStore), CaseError> {
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    let weights: Weights = case
        .weights()
        .iter()
        .map(|(name, tensor)| (rename(name).unwrap_or_else(|| name.clone()), our_layout(name, tensor)))
        .collect();
    load_into(&store, &weights)?;
    Ok((model, store))
}

/// Chunks only bound memory in the reference; all scores of ours are fused.
fn without_chunks(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        for chunked in ["chunked_cross_attention", "chunked_cross_query_size", "chunked_cross_key_size"] {
            map.shift_remove(chunked);
        }
        // Cases are without dropout, and do not say so.
        map.entry("dropout_prob").or_insert(Value::from(0.0));
    }
    config
}

fn query_layers(config: &PerceiverArConfig) -> usize {
    match config.initial_query_embed_style {
        InitialQuery::Mlp => config.initial_query_embed_num_layers as usize,
        _ => 0,
    }
}

/// The model of a case's `model`.
struct Loaded {
    model: PerceiverAr,
    store: nn::VarStore,
    query_layers: usize,
}

impl Loaded {
    fn new(case: &Case, config: &Value) -> Result<Self, CaseError> {
        let config: PerceiverArConfig =
            serde_json::from_value(without_chunks(config)).map_err(|e| CaseError::Config(e.to_string()))?;
        let query_layers = query_layers(&config);
        let (model, store) =
            load(case, |name| our_name(name, query_layers), |path| PerceiverAr::new(path, &config))?;
        Ok(Self { model, store, query_layers })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attending {
    position_encoding_type: PositionEncodingType,
    fraction_to_rotate: f64,
    fraction_heads_to_rotate: f64,
    max_wavelength: i64,
    num_heads: i64,
    qk_channels: Option<i64>,
    v_channels: Option<i64>,
    output_channels: Option<i64>,
    head_group_size: i64,
    #[serde(rename = "use_chunked_attention")]
    _use_chunked_attention: bool,
    #[serde(rename = "query_chunk_size")]
    _query_chunk_size: i64,
    #[serde(rename = "key_chunk_size")]
    _key_chunk_size: i64,
}

/// What asks, what is asked, and the mask of both.
struct Asked {
    q: Tensor,
    kv: Tensor,
    mask: Option<Tensor>,
    positions: Option<(Tensor, Tensor)>,
}

impl Asked {
    fn new(case: &Case) -> Result<Self, CaseError> {
        let q = case.input("q")?;
        let kv = case.optional_input("kv").unwrap_or_else(|| q.shallow_clone());
        let positions = case.optional_input("q_positions").map(|positions| {
            let key = case.optional_input("kv_positions").unwrap_or_else(|| positions.shallow_clone());
            (positions, key)
        });
        // Scores of what is not seen are replaced by a number that swallows them.
        let mask = case.optional_input("mask").map(|mask| mask.eq(0).to_kind(Kind::Float) * -1e30);
        Ok(Self { q, kv, mask, positions })
    }

    fn rotations<'a>(&'a self, rotary: Option<&'a Rotary>) -> Result<Option<Rotations<'a>>, CaseError> {
        match (rotary, &self.positions) {
            (None, _) => Ok(None),
            (Some(rotary), Some((query, key))) => Ok(Some(Rotations { rotary, query, key })),
            (Some(_), None) => Err(CaseError::Missing("in/q_positions".into())),
        }
    }
}

fn width(x: &Tensor) -> i64 {
    x.size().last().copied().unwrap_or(0)
}

fn attention(case: &Case) -> Result<Outputs, CaseError> {
    let given: Attending = case.config()?;
    let asked = Asked::new(case)?;
    let qk = given.qk_channels.unwrap_or(width(&asked.q));
    let v = given.v_channels.unwrap_or(qk);
    let widths = AttentionWidths {
        query: width(&asked.q),
        key_value: width(&asked.kv),
        qk,
        v,
        output: given.output_channels.unwrap_or(v),
        heads: given.num_heads,
    };
    let rename = |name: &str| {
        let words: Vec<&str> = name.split('/').collect();
        match words[..] {
            [.., linear, "w"] => Some(format!("{}.weight", projection(linear)?)),
            [.., linear, "b"] => Some(format!("{}.bias", projection(linear)?)),
            _ => None,
        }
    };
    let (attention, _) = load(case, rename, |path| Attention::new(path, widths))?;
    let rotary = RotaryConfig {
        heads: given.num_heads,
        head_dim: qk / given.num_heads.max(1),
        head_group_size: given.head_group_size,
        fraction_to_rotate: given.fraction_to_rotate,
        fraction_heads_to_rotate: given.fraction_heads_to_rotate,
        max_wavelength: given.max_wavelength,
    };
    let rotary = rotary_of(given.position_encoding_type, &rotary)?;
    let y = attention.forward(
        &asked.q,
        &asked.kv,
        asked.mask.as_ref(),
        asked.rotations(rotary.as_ref())?,
        None,
    )?;
    let mut outputs = Outputs::new();
    outputs.out("y", &y);
    Ok(outputs)
}

fn rotary_of(kind: PositionEncodingType, config: &RotaryConfig) -> Result<Option<Rotary>, CaseError> {
    Ok(match kind {
        PositionEncodingType::Absolute => None,
        PositionEncodingType::Rotary => Some(Rotary::new(config, Device::Cpu)?),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum BlockKind {
    #[serde(rename = "self")]
    Itself,
    Cross,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    kind: BlockKind,
    position_encoding_type: PositionEncodingType,
    fraction_to_rotate: f64,
    fraction_heads_to_rotate: f64,
    max_wavelength: i64,
    widening_factor: i64,
    num_heads: i64,
    activation_name: Activation,
    shape_for_attn: AttentionShape,
    use_query_residual: bool,
    #[serde(default)]
    head_group_size: i64,
}

fn attention_block(case: &Case) -> Result<Outputs, CaseError> {
    let given: Block = case.config()?;
    let asked = Asked::new(case)?;
    let (query, key_value) = (width(&asked.q), width(&asked.kv));
    let told = LayerConfig {
        widening_factor: given.widening_factor,
        activation: given.activation_name,
        dropout: 0.0,
    };
    let attended = match (&given.kind, given.shape_for_attn) {
        (BlockKind::Itself, _) | (_, AttentionShape::Q) => query,
        (BlockKind::Cross, AttentionShape::Kv) => key_value,
    };
    let rotary = RotaryConfig {
        heads: given.num_heads,
        head_dim: attended / given.num_heads.max(1),
        // The reference groups the heads of cross-attentions only.
        head_group_size: if matches!(given.kind, BlockKind::Cross) { given.head_group_size } else { 0 },
        fraction_to_rotate: given.fraction_to_rotate,
        fraction_heads_to_rotate: given.fraction_heads_to_rotate,
        max_wavelength: given.max_wavelength,
    };
    let rotary = rotary_of(given.position_encoding_type, &rotary)?;
    let rotations = asked.rotations(rotary.as_ref())?;
    let rename = |name: &str| {
        let is_cross = matches!(given.kind, BlockKind::Cross);
        layer_name(&name.split('/').skip(1).collect::<Vec<_>>(), is_cross)
    };
    let mask = asked.mask.as_ref();
    let y = match given.kind {
        BlockKind::Itself => {
            let build = |path: &nn::Path| SelfAttentionLayer::new(path, query, given.num_heads, told);
            load(case, rename, build)?.0.forward(&asked.q, mask, rotations, None, false)?
        }
        BlockKind::Cross => {
            let widths = AttentionWidths {
                query,
                key_value,
                qk: attended,
                v: attended,
                output: query,
                heads: given.num_heads,
            };
            let build =
                |path: &nn::Path| CrossAttentionLayer::new(path, widths, given.use_query_residual, told);
            load(case, rename, build)?.0.forward(&asked.q, &asked.kv, mask, rotations, None, false)?
        }
    };
    let mut outputs = Outputs::new();
    outputs.out("y", &y);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    model: Value,
    is_training: bool,
    z_index_dim_override: Option<i64>,
}

/// The draws of a case; what it lacks is not dropped.
fn draws(case: &Case) -> TrainDraws {
    let bools = |name: &str| case.optional_input(name).map(|keep| keep.ne(0));
    TrainDraws {
        latent_keep: bools("latent_keep"),
        encoder_keep: bools("encoder_keep"),
        permutation: case.optional_input("permutation"),
    }
}

fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let given: Forward = case.config()?;
    let loaded = Loaded::new(case, &given.model)?;
    let draws = draws(case);
    let (ids, positions) = (case.input("events")?, case.optional_input("event_idxs"));
    let sequence = Sequence { ids: &ids, positions: positions.as_ref() };
    let train = given.is_training.then_some(&draws);
    let predictions = loaded.model.forward(sequence, given.z_index_dim_override, train)?;
    let mut outputs = Outputs::new();
    outputs.out("logits", &predictions.logits).out("latent_last_steps", &predictions.last_steps);
    for (name, mask) in
        [("encoder_mask", &predictions.encoder_mask), ("processor_mask", &predictions.processor_mask)]
    {
        if let Some(mask) = mask {
            outputs.out(name, mask);
        }
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LossGiven {
    model: Value,
    z_loss: f64,
    label_smoothing: f64,
    #[serde(rename = "grad_params")]
    _grad_params: Vec<String>,
    loss_output: String,
}

fn loss(case: &Case) -> Result<Outputs, CaseError> {
    let given: LossGiven = case.config()?;
    if given.loss_output != "loss" {
        return Err(CaseError::Config(format!("loss_output = {}: loss", given.loss_output)));
    }
    let loaded = Loaded::new(case, &given.model)?;
    let (inputs, targets) = shift(&case.input("events")?);
    let positions = case.optional_input("event_idxs").map(|positions| shift_positions(&positions));
    let sequence = Sequence { ids: &inputs, positions: positions.as_ref() };
    let config = LossConfig { label_smoothing: given.label_smoothing, z_loss: given.z_loss };
    let loss = loaded.model.training_loss(sequence, &targets, &draws(case), config)?;
    loss.total.backward();
    let mut outputs = Outputs::new();
    outputs.out("loss", &loss.total).out("z_loss", &loss.z_loss).out("num_events", &loss.num_events);
    outputs.out("loss_per_event", &(&loss.total / &loss.num_events));
    let variables = loaded.store.variables();
    let gradient = |variable: &Tensor| {
        let gradient = if variable.requires_grad() { variable.grad() } else { Tensor::new() };
        if gradient.defined() { gradient } else { variable.zeros_like() }
    };
    let squares: f64 =
        variables.values().map(|v| gradient(v).square().sum(Kind::Double).double_value(&[])).sum();
    outputs.number("grad_global_norm", squares.sqrt());
    for name in case.gradient_names() {
        let ours = our_name(&name, loaded.query_layers).unwrap_or_default();
        let variable = variables.get(&ours).ok_or_else(|| CaseError::Missing(name.clone()))?;
        outputs.grad(&name, &our_layout(&name, &gradient(variable)));
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eval {
    model: Value,
    eval_block_size: i64,
}

fn eval(case: &Case) -> Result<Outputs, CaseError> {
    let given: Eval = case.config()?;
    let loaded = Loaded::new(case, &given.model)?;
    // Windows of documents are still to be shifted, those of blocks are not.
    let (inputs, targets, positions) = match case.optional_input("events") {
        Some(events) => {
            let (inputs, targets) = shift(&events);
            (inputs, targets, case.optional_input("event_idxs").map(|places| shift_positions(&places)))
        }
        None => (case.input("inputs")?, case.input("targets")?, case.optional_input("input_idxs")),
    };
    let sequence = Sequence { ids: &inputs, positions: positions.as_ref() };
    let sums = loaded.model.evaluate(sequence, &targets, given.eval_block_size)?;
    let mut outputs = Outputs::new();
    outputs.number("loss_sum", sums.nats).number("correct", sums.correct as f64);
    outputs.number("num_examples", sums.count as f64).number("loss_bits", sums.bits());
    outputs.number("loss_mean", sums.nats / sums.count as f64);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum MemoryType {
    Kv,
    FixedSizeKv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CachedStep {
    model: Value,
    memory_type: MemoryType,
    max_context_length_memory: i64,
    z_index_dim_memory: i64,
}

fn cached_step(case: &Case) -> Result<Outputs, CaseError> {
    let given: CachedStep = case.config()?;
    let Loaded { model, .. } = Loaded::new(case, &given.model)?;
    let (events, positions) = (case.input("events")?, case.input("event_idxs")?);
    let (slots, latents) = (events.size()[1], model.config().z_index_dim);
    let kind = match given.memory_type {
        MemoryType::Kv => MemoryKind::Growing,
        MemoryType::FixedSizeKv => MemoryKind::FixedSize {
            inputs: given.max_context_length_memory,
            latents: given.z_index_dim_memory,
        },
    };
    let mut memory = model.memory(kind)?;
    let mut cached = Vec::new();
    let mut at = 0;
    while at < slots {
        let new = if at == 0 { slots - latents + 1 } else { 1 };
        let (ids, places) = (events.narrow(1, at, new), positions.narrow(1, at, new));
        cached.push(model.push(&mut memory, Sequence { ids: &ids, positions: Some(&places) }, 1)?);
        at += new;
    }
    let whole = Sequence { ids: &events, positions: Some(&positions) };
    let uncached = no_grad(|| model.forward(whole, Some(latents), None))?.logits;
    let mut outputs = Outputs::new();
    outputs.out("logits_cached", &Tensor::cat(&cached, 1)).out("logits_uncached", &uncached);
    let last = model.config().num_transformers_per_block as usize - 1;
    for (name, entries, size) in [
        ("first", model.remembered_inputs(&memory, 0), given.max_context_length_memory),
        ("last", model.remembered_latents(&memory, last), given.z_index_dim_memory),
    ] {
        let entries = entries.ok_or_else(|| CaseError::Missing(format!("memory_{name}")))?;
        let held = entries.keys.size()[1];
        // The reference's buffers are full of zeros at first.
        let empty = match given.memory_type {
            MemoryType::Kv => 0,
            MemoryType::FixedSizeKv => size - held,
        };
        let padded = |x: &Tensor| x.constant_pad_nd([0, 0, 0, 0, empty, 0]);
        outputs.out(format!("memory_{name}_k"), &padded(&entries.keys));
        outputs.out(format!("memory_{name}_v"), &padded(&entries.values));
        let filled = Tensor::ones([events.size()[0], held], (Kind::Float, Device::Cpu));
        outputs.out(format!("memory_{name}_mask"), &filled.constant_pad_nd([empty, 0]));
        if let Some(positions) = &entries.positions {
            let padded = positions.constant_pad_nd([empty, 0]);
            outputs.out(format!("memory_{name}_kv_positions"), &padded);
        }
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleGiven {
    model: Value,
    use_memory: bool,
    start_step: i64,
    num_events: i64,
    temperature: f64,
    top_p: f64,
    max_context_length_memory: i64,
    z_index_dim_memory: i64,
}

fn sample(case: &Case) -> Result<Outputs, CaseError> {
    let given: SampleGiven = case.config()?;
    // The reference draws only where both are positive, and filters only what it draws from.
    if given.temperature != 0.0 && given.top_p != 0.0 {
        return Err(CaseError::Config("temperature or top_p is 0: cases without draws are greedy".into()));
    }
    if given.use_memory && given.max_context_length_memory != given.num_events - 1 {
        let problem =
            format!("max_context_length_memory = {}: num_events - 1", given.max_context_length_memory);
        return Err(CaseError::Config(problem));
    }
    let Loaded { model, .. } = Loaded::new(case, &given.model)?;
    let events = case.input("events")?;
    let positions = ::perceiver_ar::count_positions(events.size()[0], given.num_events, Device::Cpu);
    let scheme =
        if given.use_memory { Scheme::reference(given.z_index_dim_memory) } else { Scheme::Recompute };
    let mut sampler = Sampler::new(&model, &events, Some(&positions), given.start_step, scheme)?;
    let mut steps = Vec::new();
    while !sampler.is_done() {
        let logits = sampler.logits()?;
        sampler.write(&logits.argmax(-1, false))?;
        steps.push(logits);
    }
    let mut outputs = Outputs::new();
    outputs.out("events", sampler.events()).out("step_logits", &Tensor::stack(&steps, 0));
    Ok(outputs)
}
