//! The MAGVIT-v2 video tokenizer as in the paper (entries `magvit2.*` but those of its 2D relatives and losses).
//!
//! Whole networks come from O2-MAGVIT2, single convolutions from magvit2-pytorch and VidTok.

use causal_conv::magvit2::{Decoder, Encoder, Magvit2, Magvit2Config};
use causal_conv::{
    AdaptiveGroupNorm, CausalConv3d, CausalConv3dConfig, CausalConvTranspose3d, ClipStart, Downsample,
    PadMode, ResBlock, TimeContext, TimePadding, Upsample,
};
use quantizers::{BitOrder, LfqConfig, QuantizerConfig};
use serde::Deserialize;
use tch::{Device, Tensor, nn, no_grad};
use video_core::VideoTokenizer;

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::import::o2::{from_o2, from_o2_part};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("magvit2.causal_conv3d", causal_conv3d),
    ("magvit2.causal_conv_transpose3d", causal_conv_transpose3d),
    ("magvit2.resblock", resblock),
    ("magvit2.downsample", downsample),
    ("magvit2.upsample", upsample),
    ("magvit2.adaptive_group_norm", adaptive_group_norm),
    ("magvit2.encoder", encoder),
    ("magvit2.decoder", decoder),
    ("magvit2.tokenizer", tokenizer),
    ("vidtok.causal_conv3d", vidtok_causal_conv3d),
];

/// Our name of a tensor of a single layer: the reference's wrappers go.
fn from_wrapped(name: &str) -> Option<String> {
    let name = format!(".{name}");
    let name = name.replace(".down.", ".").replace(".up.conv1.", ".");
    let name = name.replace(".conv.", ".").replace(".norm_fn.", ".");
    Some(name.trim_start_matches('.').to_string())
}

/// A model with the case's weights, and its variables by the names of the reference.
pub(super) struct Loaded<M> {
    pub(super) model: M,
    variables: Weights,
}

impl<M> Loaded<M> {
    pub(super) fn new(
        case: &Case,
        rename: impl Fn(&str) -> Option<String>,
        build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
    ) -> Result<Self, CaseError> {
        let variables = nn::VarStore::new(Device::Cpu);
        let model = build(&variables.root())?;
        let ours = |theirs: &str| rename(theirs).unwrap_or_else(|| theirs.to_string());
        let weights = case.weights();
        load_into(&variables, &weights.iter().map(|(name, w)| (ours(name), w.shallow_clone())).collect())?;
        let mut by_name = variables.variables();
        let variables = weights.into_keys().filter_map(|name| {
            let variable = by_name.remove(&ours(&name))?;
            Some((name, variable))
        });
        Ok(Self { model, variables: variables.collect() })
    }

    /// `out/y` and, behind the cotangent `in/cot`, the gradients that the case lists.
    pub(super) fn outputs(&self, case: &Case, y: &Tensor) -> Result<Outputs, CaseError> {
        let mut outputs = Outputs::new();
        outputs.out("y", y);
        // A layer that does nothing has no weights to differentiate.
        if y.requires_grad() {
            (y * case.input("cot")?).sum(y.kind()).backward();
        }
        self.gradients(case, &mut outputs)?;
        Ok(outputs)
    }

    /// The gradients that the case lists, of what was differentiated just now.
    pub(super) fn gradients(&self, case: &Case, outputs: &mut Outputs) -> Result<(), CaseError> {
        for name in case.gradient_names() {
            let variable = self.variable(&name)?;
            let grad = variable.grad();
            outputs.grad(&name, &if grad.defined() { grad } else { variable.zeros_like() });
        }
        Ok(())
    }

    /// A variable by its name in the reference.
    pub(super) fn variable(&self, name: &str) -> Result<&Tensor, CaseError> {
        self.variables.get(name).ok_or_else(|| CaseError::Missing(name.to_string()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LucidConv {
    chan_in: i64,
    chan_out: i64,
    kernel_size: [i64; 3],
    stride: i64,
    dilation: i64,
    pad_mode: PadMode,
    input_shape: Vec<i64>,
}

fn causal_conv3d(case: &Case) -> Result<Outputs, CaseError> {
    let config: LucidConv = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let conv = CausalConv3dConfig {
        stride: [config.stride, 1, 1],
        dilation: [config.dilation, 1, 1],
        pad_mode: config.pad_mode,
        time_padding: TimePadding::LessStride,
        clip_start: ClipStart::AsSpace,
        ..CausalConv3dConfig::new(config.kernel_size)
    };
    let loaded = Loaded::new(case, from_wrapped, |path| {
        CausalConv3d::new(path, config.chan_in, config.chan_out, conv)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LucidTransposed {
    chan_in: i64,
    chan_out: i64,
    kernel_size: [i64; 3],
    time_stride: i64,
    input_shape: Vec<i64>,
}

fn causal_conv_transpose3d(case: &Case) -> Result<Outputs, CaseError> {
    let LucidTransposed { chan_in, chan_out, kernel_size, time_stride, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    let loaded = Loaded::new(case, from_wrapped, |path| {
        CausalConvTranspose3d::new(path, chan_in, chan_out, kernel_size, time_stride)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResBlockConfig {
    chan_in: i64,
    chan_out: i64,
    use_conv_shortcut: bool,
    num_groups: i64,
    input_shape: Vec<i64>,
}

fn resblock(case: &Case) -> Result<Outputs, CaseError> {
    let config: ResBlockConfig = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, from_wrapped, |path| {
        ResBlock::new(
            path,
            config.chan_in,
            config.chan_out,
            config.num_groups,
            config.use_conv_shortcut,
            ClipStart::Zeros,
        )
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resample {
    dim: i64,
    t_stride: i64,
    input_shape: Vec<i64>,
}

fn downsample(case: &Case) -> Result<Outputs, CaseError> {
    let Resample { dim, t_stride, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    let loaded = Loaded::new(case, from_wrapped, |path| {
        Downsample::new(path, dim, [t_stride, 2, 2], ClipStart::Zeros)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn upsample(case: &Case) -> Result<Outputs, CaseError> {
    let Resample { dim, t_stride, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    let loaded =
        Loaded::new(case, from_wrapped, |path| Upsample::new(path, dim, [t_stride, 2, 2], ClipStart::Zeros))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaptiveNorm {
    dim: i64,
    emb_dim: i64,
    num_groups: i64,
    input_shape: Vec<i64>,
}

fn adaptive_group_norm(case: &Case) -> Result<Outputs, CaseError> {
    let AdaptiveNorm { dim, emb_dim, num_groups, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    let loaded =
        Loaded::new(case, from_wrapped, |path| AdaptiveGroupNorm::new(path, dim, emb_dim, num_groups))?;
    loaded.outputs(case, &loaded.model.forward(&x, &case.input("emb")?)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    filters: i64,
    z_channels: i64,
    num_res_blocks: i64,
    temporal_downsample: Vec<bool>,
    channel_multipliers: Vec<i64>,
    num_groups: i64,
    input_shape: Vec<i64>,
}

impl Network {
    /// Our config: the reference's ids have channel 0 as their most significant bit.
    fn ours(&self) -> Magvit2Config {
        let lfq = LfqConfig { bit_order: BitOrder::MsbFirst, ..LfqConfig::with_bits(self.z_channels) };
        Magvit2Config {
            filters: self.filters,
            channel_multipliers: self.channel_multipliers.clone(),
            num_res_blocks: self.num_res_blocks,
            temporal_downsample: self.temporal_downsample.clone(),
            num_groups: self.num_groups,
            quantizer: QuantizerConfig::Lfq(lfq),
            ..Magvit2Config::paper_128()
        }
    }
}

fn encoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let levels = config.channel_multipliers.len();
    let rename = |name: &str| from_o2_part(name, false, levels);
    let loaded = Loaded::new(case, rename, |path| Encoder::new(path, &config.ours()))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn decoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let levels = config.channel_multipliers.len();
    let rename = |name: &str| from_o2_part(name, true, levels);
    let loaded = Loaded::new(case, rename, |path| Decoder::new(path, &config.ours()))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn tokenizer(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let levels = config.channel_multipliers.len();
    let loaded =
        Loaded::new(case, |name: &str| from_o2(name, levels), |path| Magvit2::new(path, &config.ours()))?;
    let model = &loaded.model;
    no_grad(|| {
        let tokens = model.encode(&x)?;
        let codes = model.quantizer().lookup(tokens.ids())?.permute([0, 4, 1, 2, 3]);
        let mut outputs = Outputs::new();
        outputs.out("z", &model.encode_features(&x)?);
        outputs.out("ids", tokens.ids());
        outputs.out("quantized", &codes);
        outputs.out("recon", &model.decode_features(&codes)?);
        Ok(outputs)
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VidTokConv {
    chan_in: i64,
    chan_out: i64,
    kernel_size: [i64; 3],
    stride: [i64; 3],
    dilation: [i64; 3],
    pad_mode: PadMode,
    chunks: Vec<i64>,
    input_shape: Vec<i64>,
}

fn vidtok_causal_conv3d(case: &Case) -> Result<Outputs, CaseError> {
    let config: VidTokConv = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    if config.chunks.iter().any(|&frames| frames < 1) || config.chunks.iter().sum::<i64>() != x.size()[2] {
        return Err(CaseError::Config(format!("chunks {:?}: not the clip's frames", config.chunks)));
    }
    // The padding of space shrinks with the stride as that of time does, and the larger half is behind.
    let sides = |axis: usize| {
        let pad = config.dilation[axis] * (config.kernel_size[axis] - 1) + 1 - config.stride[axis];
        [pad.div_euclid(2), pad - pad.div_euclid(2)]
    };
    let ([top, bottom], [left, right]) = (sides(1), sides(2));
    let x = x.f_pad([left, right, top, bottom, 0, 0], config.pad_mode.name(), None)?;
    let conv = CausalConv3dConfig {
        stride: config.stride,
        dilation: config.dilation,
        space_padding: [0; 2],
        time_padding: TimePadding::LessStride,
        clip_start: ClipStart::FirstFrame,
        ..CausalConv3dConfig::new(config.kernel_size)
    };
    let loaded = Loaded::new(case, from_wrapped, |path| {
        CausalConv3d::new(path, config.chan_in, config.chan_out, conv)
    })?;
    let mut context = TimeContext::new();
    let mut start = 0;
    let mut chunks = Vec::new();
    for frames in config.chunks {
        chunks.push(loaded.model.forward_chunk(&x.narrow(2, start, frames), &mut context)?);
        start += frames;
    }
    let mut outputs = Outputs::new();
    outputs.out("y_full", &loaded.model.forward(&x)?);
    outputs.out("y_stream", &Tensor::cat(&chunks, 2));
    Ok(outputs)
}

/// `in/<name>`, of the shape that the config states.
pub(super) fn input(case: &Case, name: &str, shape: &[i64]) -> Result<Tensor, CaseError> {
    let x = case.input(name)?;
    if x.size() == shape {
        Ok(x)
    } else {
        Err(CaseError::Config(format!("input_shape {shape:?}, but in/{name} has {:?}", x.size())))
    }
}
