//! The tokenizers of MaskGIT and MAGVIT and their discriminator (entries `maskgit.vqgan.*`, `maskgit.discriminator.*`,
//! `magvit.vqgan3d.*`, `magvit.resample`).

use ::maskgit::vqgan::{
    Activation, BlurPool2d, ConvPadding, Decoder, Dimensions, DiscriminatorBlock, Encoder, NormKind,
    ResBlock, ResBlockConfig, Upsampling, VqganConfig, downsample_average, upsample_nearest,
};
use quantizers::{
    EntropyLossConfig, EntropyTarget, GumbelConfig, GumbelVq, Mode, Quantized, Quantizer, QuantizerConfig,
    Vq, VqConfig,
};
use serde::Deserialize;
use tch::{Kind, Tensor, nn};

use super::Driver;
use super::maskgit_flax::{as_half, load};
use crate::case::{Case, CaseError, Outputs};
use crate::import::flax::vqgan_names;
use crate::weights::Weights;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("maskgit.vqgan.downsample", downsample),
    ("maskgit.vqgan.resblock", resblock),
    ("maskgit.vqgan.encode", encode),
    ("maskgit.vqgan.decode", decode),
    ("maskgit.vqgan.train", train),
    ("maskgit.discriminator.blur_pool", blur_pool),
    ("maskgit.discriminator.resblock", discriminator_block),
    ("magvit.vqgan3d.encode", encode_video),
    ("magvit.vqgan3d.decode", decode_video),
    ("magvit.resample", resample),
];

/// Channels last to second.
fn first(x: &Tensor) -> Tensor {
    x.movedim_int(-1, 1)
}

/// Channels second to last.
fn last(x: &Tensor) -> Tensor {
    x.movedim_int(1, -1)
}

pub(super) fn one_output(name: &str, tensor: &Tensor) -> Outputs {
    let mut outputs = Outputs::new();
    outputs.out(name, tensor);
    outputs
}

#[derive(Clone, Copy, Deserialize)]
enum Norm {
    #[serde(rename = "GN")]
    Group,
    #[serde(rename = "LN")]
    Layer,
}

fn norm_kind(norm: Option<Norm>) -> NormKind {
    match norm {
        Some(Norm::Group) => NormKind::Group,
        Some(Norm::Layer) => NormKind::Layer,
        None => NormKind::None,
    }
}

fn yes() -> bool {
    true
}

/// The 2D tokenizer's config.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vqvae2d {
    quantizer: QuantizerKind,
    codebook_size: i64,
    entropy_loss_ratio: f64,
    entropy_temperature: f64,
    entropy_loss_type: EntropyTarget,
    commitment_cost: f64,
    filters: i64,
    num_res_blocks: i64,
    channel_multipliers: Vec<i64>,
    embedding_dim: i64,
    conv_downsample: bool,
    norm_type: Norm,
    activation_fn: Activation,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum QuantizerKind {
    Vq,
    Gumbel,
}

impl Vqvae2d {
    fn vq(&self) -> VqConfig {
        VqConfig {
            codebook_size: self.codebook_size,
            commitment_weight: self.commitment_cost,
            entropy: EntropyLossConfig {
                weight: self.entropy_loss_ratio,
                temperature: self.entropy_temperature,
                target: self.entropy_loss_type,
                ..EntropyLossConfig::default()
            },
            ..VqConfig::mask_git()
        }
    }

    fn gumbel(&self) -> GumbelConfig {
        GumbelConfig { codebook_size: self.codebook_size, ..GumbelConfig::default() }
    }

    pub(super) fn config(&self) -> VqganConfig {
        VqganConfig {
            quantizer: match self.quantizer {
                QuantizerKind::Vq => QuantizerConfig::Vq(self.vq()),
                QuantizerKind::Gumbel => QuantizerConfig::Gumbel(self.gumbel()),
            },
            embedding_dim: self.embedding_dim,
            filters: self.filters,
            channel_multipliers: self.channel_multipliers.clone(),
            num_enc_res_blocks: self.num_res_blocks,
            num_dec_res_blocks: self.num_res_blocks,
            conv_downsample: self.conv_downsample,
            block: ResBlockConfig {
                norm: norm_kind(Some(self.norm_type)),
                activation: self.activation_fn,
                ..VqganConfig::default().block
            },
            ..VqganConfig::default()
        }
    }

    /// The case's weights; a VQ's table has an axis of codebooks in front.
    fn weights(&self, case: &Case) -> Weights {
        let mut weights = case.weights();
        if self.quantizer == QuantizerKind::Vq
            && let Some(table) = weights.get_mut("quantizer/codebook")
        {
            *table = table.unsqueeze(0);
        }
        weights
    }

    /// The quantizer, as it stands in the whole tokenizer.
    fn quantizer(&self, path: &nn::Path) -> video_core::Result<Box<dyn Quantizer>> {
        self.config().quantizer.build(&(path / "quantizer"), self.embedding_dim)
    }
}

fn ids_of(quantized: &Quantized) -> Result<&Tensor, CaseError> {
    quantized.ids.as_ref().ok_or_else(|| CaseError::Missing("ids".into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn downsample(case: &Case) -> Result<Outputs, CaseError> {
    case.config::<Nothing>()?;
    Ok(one_output("y", &last(&downsample_average(&first(&case.input("x")?), false))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    in_channels: i64,
    filters: i64,
    norm_type: Norm,
    activation_fn: Activation,
    use_conv_shortcut: bool,
}

fn resblock(case: &Case) -> Result<Outputs, CaseError> {
    let given: Block = case.config()?;
    let config = ResBlockConfig {
        norm: norm_kind(Some(given.norm_type)),
        activation: given.activation_fn,
        conv_shortcut: given.use_conv_shortcut,
        ..VqganConfig::default().block
    };
    let rename = |name: &str| {
        let (part, leaf) = name.split_once('/').unwrap_or((name, ""));
        let part = match part {
            "Conv_0" => "conv1",
            "Conv_1" => "conv2",
            "Conv_2" => "shortcut",
            norm if norm.ends_with("Norm_0") => "norm1",
            _ => "norm2",
        };
        format!("{part}.{}", if leaf == "bias" { "bias" } else { "weight" })
    };
    let loaded =
        load(&case.weights(), rename, |path| ResBlock::new(path, config, given.in_channels, given.filters))?;
    Ok(one_output("y", &last(&loaded.model.forward(&first(&case.input("x")?)))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    vqvae: Vqvae2d,
}

fn encode(case: &Case) -> Result<Outputs, CaseError> {
    let Whole { vqvae } = case.config()?;
    let weights = vqvae.weights(case);
    let (encoder, quantizer) = load(&weights, vqgan_names(&weights), |path| {
        Ok((Encoder::new(&(path / "encoder"), &vqvae.config())?, vqvae.quantizer(path)?))
    })?
    .model;
    let features = last(&encoder.forward(&first(&case.input("image")?)));
    let quantized = quantizer.quantize(&features, Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs
        .out("features", &features)
        .out("ids", ids_of(&quantized)?)
        .out("quantized", &quantized.embeddings);
    Ok(outputs)
}

fn decode(case: &Case) -> Result<Outputs, CaseError> {
    let Whole { vqvae } = case.config()?;
    let weights = vqvae.weights(case);
    let (decoder, quantizer) = load(&weights, vqgan_names(&weights), |path| {
        Ok((Decoder::new(&(path / "decoder"), &vqvae.config())?, vqvae.quantizer(path)?))
    })?
    .model;
    let embeddings = quantizer.lookup(&case.input("ids")?)?;
    Ok(one_output("image", &last(&decoder.forward(&first(&embeddings)))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    vqvae: Vqvae2d,
    tau: f64,
    #[serde(rename = "grads")]
    _grads: Vec<String>,
}

/// Either quantizer, with what its training step takes.
enum TrainQuantizer {
    Vq(Box<Vq>),
    Gumbel(Box<GumbelVq>),
}

fn train(case: &Case) -> Result<Outputs, CaseError> {
    let Train { vqvae, tau, .. } = case.config()?;
    let config = vqvae.config();
    let weights = vqvae.weights(case);
    let loaded = load(&weights, vqgan_names(&weights), |path| {
        let at = path / "quantizer";
        let quantizer = match vqvae.quantizer {
            QuantizerKind::Vq => TrainQuantizer::Vq(Box::new(Vq::new(&at, vqvae.embedding_dim, vqvae.vq())?)),
            QuantizerKind::Gumbel => {
                TrainQuantizer::Gumbel(Box::new(GumbelVq::new(&at, vqvae.embedding_dim, vqvae.gumbel())?))
            }
        };
        let encoder = Encoder::new(&(path / "encoder"), &config)?;
        Ok((encoder, quantizer, Decoder::new(&(path / "decoder"), &config)?))
    })?;
    let (encoder, quantizer, decoder) = &loaded.model;
    let image = first(&case.input("image")?);
    let features = last(&encoder.forward(&image));
    let quantized = match quantizer {
        TrainQuantizer::Vq(vq) => vq.quantize(&features, Mode::Train { step: 0 })?,
        TrainQuantizer::Gumbel(gumbel) => {
            gumbel.quantize_with(&features, true, tau, case.optional_input("gumbel").as_ref())?.0
        }
    };
    let reconstruction = decoder.forward(&first(&quantized.embeddings));
    let l2 = (&reconstruction - image).square().mean(Kind::Float);
    let loss = &l2 + quantized.loss();
    loss.backward();
    let mut outputs = Outputs::new();
    outputs
        .out("loss", &loss)
        .out("l2_loss", &l2)
        .out("reconstruction", &last(&reconstruction))
        .out("quantized", &quantized.embeddings)
        .out("ids", ids_of(&quantized)?)
        .out("quantizer_loss", &quantized.loss());
    for (ours, theirs) in
        [("commitment", "e_latent_loss"), ("codebook", "q_latent_loss"), ("entropy", "entropy_loss")]
    {
        match quantized.losses.iter().find(|(name, _)| *name == ours) {
            Some((_, term)) => outputs.out(theirs, term),
            // The reference lists a term of weight 0, too.
            None => outputs.number(theirs, 0.0),
        };
    }
    loaded.gradients(case, &mut outputs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blur {
    filter_size: i64,
    strides: [i64; 2],
}

fn blur_pool(case: &Case) -> Result<Outputs, CaseError> {
    let given: Blur = case.config()?;
    let blur = BlurPool2d::new(given.filter_size, given.strides)?;
    Ok(one_output("y", &last(&blur.forward(&first(&case.input("x")?)))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StyleBlock {
    in_channels: i64,
    filters: i64,
    blur_resample: bool,
}

fn discriminator_block(case: &Case) -> Result<Outputs, CaseError> {
    let given: StyleBlock = case.config()?;
    let rename = |name: &str| {
        let name = name.replace("Conv_0/", "conv1.").replace("Conv_1/", "skip.").replace("Conv_2/", "conv2.");
        name.replace("kernel", "weight")
    };
    let loaded = load(&case.weights(), rename, |path| {
        DiscriminatorBlock::new(path, given.in_channels, given.filters, given.blur_resample)
    })?;
    Ok(one_output("y", &last(&loaded.model.forward(&first(&case.input("x")?)))))
}

/// The 3D tokenizer's config.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vqvae3d {
    #[serde(default = "magvit_codes")]
    codebook_size: i64,
    filters: i64,
    num_enc_res_blocks: i64,
    num_dec_res_blocks: i64,
    channel_multipliers: Vec<i64>,
    temporal_downsample: TemporalDownsample,
    embedding_dim: i64,
    conv_downsample: bool,
    norm_type: Option<Norm>,
    activation_fn: Activation,
    #[serde(default)]
    custom_conv_padding: Option<Padding>,
    #[serde(default)]
    upsample: Option<UpsampleKind>,
    // Which blocks are computed twice to save memory.
    #[serde(rename = "num_enc_remat_blocks")]
    _num_enc_remat_blocks: Option<i64>,
    #[serde(rename = "num_dec_remat_blocks")]
    _num_dec_remat_blocks: Option<i64>,
}

fn magvit_codes() -> i64 {
    1024
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemporalDownsample {
    First(usize),
    Each(Vec<bool>),
}

/// What numpy calls ways to pad.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Padding {
    Constant,
    Edge,
    #[serde(alias = "reflect_even")]
    Reflect,
    #[serde(alias = "symmetric_even")]
    Symmetric,
    Wrap,
}

#[derive(Clone, Copy, Deserialize)]
enum UpsampleKind {
    #[serde(rename = "nearest+conv")]
    NearestConv,
    #[serde(rename = "deconv")]
    Deconv,
}

impl Vqvae3d {
    pub(super) fn config(&self) -> VqganConfig {
        let halvings = self.channel_multipliers.len().saturating_sub(1);
        VqganConfig {
            quantizer: QuantizerConfig::Vq(VqConfig {
                codebook_size: self.codebook_size,
                ..VqConfig::mask_git()
            }),
            embedding_dim: self.embedding_dim,
            filters: self.filters,
            channel_multipliers: self.channel_multipliers.clone(),
            temporal_downsample: match &self.temporal_downsample {
                TemporalDownsample::First(n) => (0..halvings).map(|level| level < *n).collect(),
                TemporalDownsample::Each(each) => each.clone(),
            },
            num_enc_res_blocks: self.num_enc_res_blocks,
            num_dec_res_blocks: self.num_dec_res_blocks,
            conv_downsample: self.conv_downsample,
            keep_odd: true,
            upsample: match self.upsample {
                Some(UpsampleKind::Deconv) => Upsampling::Deconv,
                Some(UpsampleKind::NearestConv) | None => Upsampling::NearestConv,
            },
            block: ResBlockConfig {
                dimensions: Dimensions::Video,
                norm: norm_kind(self.norm_type),
                activation: self.activation_fn,
                padding: match self.custom_conv_padding {
                    None => ConvPadding::Same,
                    Some(Padding::Constant) => ConvPadding::Constant,
                    Some(Padding::Edge) => ConvPadding::Edge,
                    Some(Padding::Reflect) => ConvPadding::Reflect,
                    Some(Padding::Symmetric) => ConvPadding::Symmetric,
                    Some(Padding::Wrap) => ConvPadding::Wrap,
                },
                conv_shortcut: false,
                shortcut_of_output: false,
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole3d {
    vqvae: Vqvae3d,
}

fn encode_video(case: &Case) -> Result<Outputs, CaseError> {
    let config = case.config::<Whole3d>()?.vqvae.config();
    let weights = as_half(&case.weights(), "encoder");
    let encoder =
        load(&weights, vqgan_names(&weights), |path| Encoder::new(&(path / "encoder"), &config))?.model;
    Ok(one_output("features", &last(&encoder.forward(&first(&case.input("video")?)))))
}

fn decode_video(case: &Case) -> Result<Outputs, CaseError> {
    let config = case.config::<Whole3d>()?.vqvae.config();
    let weights = as_half(&case.weights(), "decoder");
    let decoder =
        load(&weights, vqgan_names(&weights), |path| Decoder::new(&(path / "decoder"), &config))?.model;
    Ok(one_output("video", &last(&decoder.forward(&first(&case.input("latents")?)))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resample {
    function: ResampleFunction,
    #[serde(default = "yes")]
    temporal: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResampleFunction {
    Downsample,
    Upsample,
}

fn resample(case: &Case) -> Result<Outputs, CaseError> {
    let given: Resample = case.config()?;
    let x = first(&case.input("x")?);
    let y = match given.function {
        ResampleFunction::Downsample => downsample_average(&x, given.temporal),
        ResampleFunction::Upsample => upsample_nearest(&x, given.temporal),
    };
    Ok(one_output("y", &last(&y)))
}
