//! Cosmos tokenizers (entries `cosmos.*`).

use causal_conv::cosmos::{
    Attention, AttentionAxes, CosmosBottleneck, CosmosConfig, CosmosNet, CosmosTokenizer, Decoder,
    Downsample, Encoder, HybridDownsample, HybridUpsample, PatchMethod, Patcher, ResBlock, Upsample,
};
use causal_conv::{CausalConv3d, CausalConv3dConfig, ClipStart, PadMode, TimePadding};
use quantizers::{FsqConfig, Mode, Quantizer, QuantizerConfig};
use serde::Deserialize;
use serde_json::Value;
use tch::{Tensor, nn, no_grad};

use super::Driver;
use super::magvit2::{Loaded, input};
use crate::case::{Case, CaseError, Outputs};
use crate::import::cosmos::our_name;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("cosmos.causal_conv3d", causal_conv3d),
    ("cosmos.downsample_base", downsample_base),
    ("cosmos.downsample_hybrid", downsample_hybrid),
    ("cosmos.upsample_base", upsample_base),
    ("cosmos.upsample_hybrid", upsample_hybrid),
    ("cosmos.resblock", resblock),
    ("cosmos.attention", attention),
    ("cosmos.patcher", patcher),
    ("cosmos.encoder", encoder),
    ("cosmos.decoder", decoder),
    ("cosmos.tokenizer", tokenizer),
];

fn rename(name: &str) -> Option<String> {
    Some(our_name(name))
}

fn one() -> i64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conv {
    chan_in: i64,
    chan_out: i64,
    kernel_size: [i64; 3],
    pad_mode: PadMode,
    stride: i64,
    time_stride: i64,
    #[serde(default = "one")]
    dilation: i64,
    time_dilation: i64,
    padding: i64,
    input_shape: Vec<i64>,
}

fn causal_conv3d(case: &Case) -> Result<Outputs, CaseError> {
    let config: Conv = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let conv = CausalConv3dConfig {
        stride: [config.time_stride, config.stride, config.stride],
        dilation: [config.time_dilation, config.dilation, config.dilation],
        space_padding: [config.padding; 2],
        pad_mode: config.pad_mode,
        time_padding: TimePadding::LessStride,
        clip_start: ClipStart::FirstFrame,
        ..CausalConv3dConfig::new(config.kernel_size)
    };
    let loaded =
        Loaded::new(case, rename, |path| CausalConv3d::new(path, config.chan_in, config.chan_out, conv))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resample {
    channels: i64,
    input_shape: Vec<i64>,
}

fn downsample_base(case: &Case) -> Result<Outputs, CaseError> {
    let config: Resample = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| Downsample::new(path, config.channels))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn upsample_base(case: &Case) -> Result<Outputs, CaseError> {
    let config: Resample = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| Upsample::new(path, config.channels))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HybridDown {
    channels: i64,
    spatial_down: bool,
    temporal_down: bool,
    input_shape: Vec<i64>,
}

fn downsample_hybrid(case: &Case) -> Result<Outputs, CaseError> {
    let config: HybridDown = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| {
        HybridDownsample::new(path, config.channels, config.temporal_down, config.spatial_down)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HybridUp {
    channels: i64,
    spatial_up: bool,
    temporal_up: bool,
    input_shape: Vec<i64>,
}

fn upsample_hybrid(case: &Case) -> Result<Outputs, CaseError> {
    let config: HybridUp = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| {
        HybridUpsample::new(path, config.channels, config.temporal_up, config.spatial_up)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    kind: CosmosNet,
    in_channels: i64,
    out_channels: i64,
    num_groups: i64,
    input_shape: Vec<i64>,
}

fn resblock(case: &Case) -> Result<Outputs, CaseError> {
    let config: Block = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| {
        ResBlock::new(path, config.kind, config.in_channels, config.out_channels, config.num_groups)
    })?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum AttentionKind {
    Spatial,
    Temporal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attending {
    kind: AttentionKind,
    channels: i64,
    num_groups: i64,
    input_shape: Vec<i64>,
}

fn attention(case: &Case) -> Result<Outputs, CaseError> {
    let config: Attending = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let axes = match config.kind {
        AttentionKind::Spatial => AttentionAxes::Space,
        AttentionKind::Temporal => AttentionAxes::Time,
    };
    let loaded =
        Loaded::new(case, rename, |path| Attention::new(path, axes, config.channels, config.num_groups))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patching {
    ndim: i64,
    patch_size: i64,
    patch_method: PatchMethod,
    input_shape: Vec<i64>,
}

fn patcher(case: &Case) -> Result<Outputs, CaseError> {
    let config: Patching = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let patcher = Patcher::new(config.patch_method, config.patch_size, config.ndim == 3)?;
    let mut outputs = Outputs::new();
    match config.ndim {
        3 => {
            let y = patcher.patch(&x)?;
            outputs.out("y", &y).out("back", &patcher.unpatch(&y)?);
        }
        // Images are videos of one frame.
        2 => {
            let y = patcher.patch(&x.unsqueeze(2))?;
            outputs.out("y", &y.squeeze_dim(2)).out("back", &patcher.unpatch(&y)?.squeeze_dim(2));
        }
        other => return Err(CaseError::Config(format!("ndim = {other}: 2 or 3"))),
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Net {
    Base,
    Factorized,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    kind: Net,
    channels: i64,
    channels_mult: Vec<i64>,
    num_res_blocks: i64,
    attn_resolutions: Vec<i64>,
    resolution: i64,
    z_channels: i64,
    patch_size: i64,
    patch_method: PatchMethod,
    spatial_compression: i64,
    temporal_compression: i64,
    num_groups: i64,
    #[serde(default)]
    legacy_mode: bool,
    input_shape: Vec<i64>,
}

impl Network {
    fn ours(&self) -> CosmosConfig {
        let net = match self.kind {
            Net::Base => CosmosNet::Base,
            Net::Factorized => CosmosNet::Factorized,
        };
        CosmosConfig {
            in_channels: 3,
            channels: self.channels,
            channels_mult: self.channels_mult.clone(),
            decoder_channels_mult: None,
            num_res_blocks: self.num_res_blocks,
            attn_resolutions: self.attn_resolutions.clone(),
            resolution: self.resolution,
            patch_size: self.patch_size,
            patch_method: self.patch_method,
            spatial_compression: self.spatial_compression,
            temporal_compression: self.temporal_compression,
            z_channels: self.z_channels,
            num_groups: self.num_groups,
            legacy_mode: self.legacy_mode,
            encoder: net,
            decoder: net,
            bottleneck: CosmosBottleneck::Autoencoder { latent_channels: self.z_channels },
        }
    }
}

fn encoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| Encoder::new(path, &config.ours()))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn decoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, rename, |path| Decoder::new(path, &config.ours()))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
enum Bottleneck {
    #[serde(rename = "CV")]
    Continuous,
    #[serde(rename = "DV")]
    Discrete,
}

/// What the config of a tokenizer holds beside that of its networks.
#[derive(Deserialize)]
struct Tokenizer {
    kind: Bottleneck,
    kind_net: Value,
    #[serde(default)]
    latent_channels: Option<i64>,
    #[serde(default)]
    levels: Option<Vec<i64>>,
}

/// A tokenizer, or its parts.
enum Model {
    Whole(Box<CosmosTokenizer>),
    Parts(Box<Parts>),
}

/// The parts of a tokenizer whose decoder does not undo the encoder's strides, or whose strides are not those that the config
/// says. The reference builds such tokenizers; ours refuses them.
struct Parts {
    encoder: Encoder,
    quant_conv: CausalConv3d,
    quantizer: Option<Box<dyn Quantizer>>,
    post_quant_conv: CausalConv3d,
    decoder: Decoder,
}

impl Model {
    fn new(path: &nn::Path, config: &CosmosConfig) -> video_core::Result<Self> {
        let (time, space) = (config.temporal_compression, config.spatial_compression);
        let promised = [time, space, space];
        if config.encoder_factors() == promised && config.decoder_factors() == promised {
            return Ok(Self::Whole(Box::new(CosmosTokenizer::new(path, config)?)));
        }
        let latent = config.bottleneck.latent_channels();
        let conv = |name: &str, inputs, outputs| {
            CausalConv3d::new(&(path / name), inputs, outputs, CausalConv3dConfig::new([1; 3]))
        };
        let quantizer = match &config.bottleneck {
            CosmosBottleneck::Discrete { embedding_dim, quantizer } => {
                Some(quantizer.build(&(path / "quantizer"), *embedding_dim)?)
            }
            _ => None,
        };
        Ok(Self::Parts(Box::new(Parts {
            encoder: Encoder::new(&(path / "encoder"), config)?,
            quant_conv: conv("quant_conv", config.z_channels, latent)?,
            quantizer,
            post_quant_conv: conv("post_quant_conv", latent, config.z_channels)?,
            decoder: Decoder::new(&(path / "decoder"), config)?,
        })))
    }

    fn encode_features(&self, video: &Tensor) -> video_core::Result<Tensor> {
        match self {
            Self::Whole(tokenizer) => tokenizer.encode_features(video),
            Self::Parts(parts) => parts.quant_conv.forward(&parts.encoder.forward(video)?),
        }
    }

    fn quantizer(&self) -> Option<&dyn Quantizer> {
        match self {
            Self::Whole(tokenizer) => tokenizer.quantizer(),
            Self::Parts(parts) => parts.quantizer.as_deref(),
        }
    }

    fn decode_features(&self, latent: &Tensor) -> video_core::Result<Tensor> {
        match self {
            Self::Whole(tokenizer) => tokenizer.decode_features(latent),
            Self::Parts(parts) => parts.decoder.forward(&parts.post_quant_conv.forward(latent)?),
        }
    }
}

fn tokenizer(case: &Case) -> Result<Outputs, CaseError> {
    let own: Tokenizer = case.config()?;
    let mut shared = case.config.clone();
    if let Some(map) = shared.as_object_mut() {
        map.retain(|key, _| !["kind_net", "latent_channels", "levels"].contains(&key.as_str()));
        map.insert("kind".into(), own.kind_net);
    }
    let network: Network = serde_json::from_value(shared).map_err(|e| CaseError::Config(e.to_string()))?;
    let x = input(case, "x", &network.input_shape)?;
    let mut config = network.ours();
    config.bottleneck = match (own.kind, own.latent_channels, own.levels) {
        (Bottleneck::Continuous, Some(latent_channels), None) => {
            config.decoder_channels_mult = (config.temporal_compression == 4).then(|| vec![2, 4]);
            CosmosBottleneck::Autoencoder { latent_channels }
        }
        (Bottleneck::Discrete, None, Some(levels)) => {
            let embedding_dim = levels.len() as i64;
            let quantizer = QuantizerConfig::Fsq(FsqConfig { levels, ..FsqConfig::default() });
            CosmosBottleneck::Discrete { embedding_dim, quantizer }
        }
        _ => return Err(CaseError::Config("CV has latent_channels, DV has levels".into())),
    };
    let loaded = Loaded::new(case, rename, |path| Model::new(path, &config))?;
    let model = &loaded.model;
    no_grad(|| {
        let features = model.encode_features(&x)?;
        let mut outputs = Outputs::new();
        let latent = match model.quantizer() {
            None => features,
            Some(quantizer) => {
                let quantized = quantizer.quantize(&features.movedim_int(1, -1), Mode::Eval)?;
                let ids = quantized.ids.ok_or_else(|| CaseError::Missing("ids".into()))?;
                outputs.out("pre_quant", &features).out("ids", &ids);
                quantized.embeddings.movedim_int(-1, 1)
            }
        };
        outputs.out("latent", &latent).out("recon", &model.decode_features(&latent)?);
        Ok(outputs)
    })
}
