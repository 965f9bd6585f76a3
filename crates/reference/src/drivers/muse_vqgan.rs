//! Tokenizers beside Muse's transformers (entries `muse.vqgan.*`, `openmuse.maskgit_vqgan.*`).

use ::maskgit::muse::{MuseVqgan, MuseVqganConfig};
use ::maskgit::vqgan::{Decoder, Encoder, VqganConfig};
use quantizers::{Mode, Quantized, Quantizer, QuantizerConfig, VqConfig};
use serde::Deserialize;
use tch::{Device, Tensor, nn, no_grad};
use video_core::TokenGrid;

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::import::maskgit::port_names;
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("muse.vqgan.encode", muse_encode),
    ("muse.vqgan.decode", muse_decode),
    ("openmuse.maskgit_vqgan.encode", open_encode),
    ("openmuse.maskgit_vqgan.decode", open_decode),
];

fn ids_of(quantized: &Quantized) -> Result<&Tensor, CaseError> {
    quantized.ids.as_ref().ok_or_else(|| CaseError::Missing("ids".into()))
}

/// Ours has the reference's names; the buffer of bit weights is none of its tensors.
fn load_muse(case: &Case) -> Result<MuseVqgan, CaseError> {
    let config: MuseVqganConfig = case.config()?;
    let store = nn::VarStore::new(Device::Cpu);
    let model = MuseVqgan::new(&store.root(), &config)?;
    let mut weights = case.weights();
    weights.remove("quantizer.mask");
    load_into(&store, &weights)?;
    Ok(model)
}

fn muse_encode(case: &Case) -> Result<Outputs, CaseError> {
    let model = load_muse(case)?;
    let features = no_grad(|| model.features(&case.input("image")?).map_err(CaseError::from))?;
    let quantized = model.quantize(&features, Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs
        .out("features", &features)
        .out("ids", ids_of(&quantized)?)
        .out("quantized", &quantized.embeddings.permute([0, 3, 1, 2]));
    Ok(outputs)
}

fn muse_decode(case: &Case) -> Result<Outputs, CaseError> {
    let image = load_muse(case)?.decode(&TokenGrid::new(case.input("ids")?.unsqueeze(1))?)?;
    let mut outputs = Outputs::new();
    outputs.out("image", &image);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    #[serde(rename = "resolution")]
    _resolution: i64,
    num_channels: i64,
    hidden_channels: i64,
    channel_mult: Vec<i64>,
    num_res_blocks: i64,
    z_channels: i64,
    num_embeddings: i64,
    quantized_embed_dim: i64,
    // Read by no part of encoding or decoding.
    #[serde(rename = "attn_resolutions")]
    _attn_resolutions: Option<serde_json::Value>,
    #[serde(rename = "dropout")]
    _dropout: Option<f64>,
    #[serde(rename = "resample_with_conv")]
    _resample_with_conv: Option<bool>,
    #[serde(rename = "commitment_cost")]
    _commitment_cost: Option<f64>,
}

impl Open {
    fn config(&self) -> Result<VqganConfig, CaseError> {
        if self.num_channels != 3 || self.z_channels != self.quantized_embed_dim {
            return Err(CaseError::Config("other than 3 channels, or a projection of the codes".into()));
        }
        Ok(VqganConfig {
            quantizer: QuantizerConfig::Vq(VqConfig {
                codebook_size: self.num_embeddings,
                ..VqConfig::mask_git()
            }),
            embedding_dim: self.z_channels,
            filters: self.hidden_channels,
            channel_multipliers: self.channel_mult.clone(),
            num_enc_res_blocks: self.num_res_blocks,
            num_dec_res_blocks: self.num_res_blocks,
            keep_odd: false,
            ..VqganConfig::default()
        })
    }

    fn load<M>(
        &self,
        case: &Case,
        build: impl FnOnce(&nn::Path, &VqganConfig) -> video_core::Result<M>,
    ) -> Result<(M, Box<dyn Quantizer>), CaseError> {
        let config = self.config()?;
        let our_name = port_names(&config);
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let half = build(&root, &config)?;
        let quantizer = config.quantizer.build(&(&root / "quantizer"), config.embedding_dim)?;
        let weights: Weights = case
            .weights()
            .into_iter()
            .map(|(name, tensor)| {
                // A VQ's table has an axis of codebooks in front.
                let tensor = if name.starts_with("quantize.") { tensor.unsqueeze(0) } else { tensor };
                (our_name(&name), tensor)
            })
            .collect();
        load_into(&store, &weights)?;
        Ok((half, quantizer))
    }
}

fn open_encode(case: &Case) -> Result<Outputs, CaseError> {
    let given: Open = case.config()?;
    let (encoder, quantizer) = given.load(case, |path, config| Encoder::new(&(path / "encoder"), config))?;
    let image = case.input("image")?;
    let features = no_grad(|| encoder.forward(&image));
    let quantized = quantizer.quantize(&features.permute([0, 2, 3, 1]), Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs
        .out("features", &features)
        .out("ids", &ids_of(&quantized)?.flatten(1, -1))
        .out("quantized", &quantized.embeddings.permute([0, 3, 1, 2]));
    Ok(outputs)
}

fn open_decode(case: &Case) -> Result<Outputs, CaseError> {
    let given: Open = case.config()?;
    let (decoder, quantizer) = given.load(case, |path, config| Decoder::new(&(path / "decoder"), config))?;
    let ids = case.input("ids")?;
    let side = (ids.size()[1] as f64).sqrt() as i64;
    let embeddings = quantizer.lookup(&ids.view([-1, side, side]))?;
    let image = no_grad(|| decoder.forward(&embeddings.permute([0, 3, 1, 2])));
    let mut outputs = Outputs::new();
    outputs.out("image", &image);
    Ok(outputs)
}
