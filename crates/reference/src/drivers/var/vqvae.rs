//! The image tokenizer (`var.vqvae.*`).

use ::var_next_scale::vqvae::{AttnBlock, Downsample, ResBlock, Upsample};
use ::var_next_scale::{MultiScaleVqConfig, Vqvae, VqvaeConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use super::{Config, Loaded, QUANTIZER, load, out_series};
use crate::case::{Case, CaseError, Outputs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    kind: LayerKind,
    in_channels: i64,
    out_channels: i64,
    #[serde(rename = "shape")]
    _shape: [i64; 4],
    norm_num_groups: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerKind {
    Resnet,
    Attn,
    Down,
    Up,
}

pub(super) fn layer(case: &Case) -> Result<Outputs, CaseError> {
    let Layer { kind, in_channels, out_channels, norm_num_groups: groups, .. } = case.config()?;
    let x = case.input("x")?;
    let y = match kind {
        LayerKind::Resnet => {
            load(case, "", |path| ResBlock::new(path, in_channels, out_channels, groups))?.model.forward(&x)
        }
        LayerKind::Attn => {
            load(case, "", |path| AttnBlock::new(path, in_channels, groups))?.model.forward(&x)
        }
        LayerKind::Down => load(case, "", |path| Ok(Downsample::new(path, in_channels)))?.model.forward(&x),
        LayerKind::Up => load(case, "", |path| Ok(Upsample::new(path, in_channels)))?.model.forward(&x),
    };
    let mut outputs = Outputs::new();
    outputs.out("y", &y);
    Ok(outputs)
}

/// The keys of the autoencoder beside its quantizer's.
pub(super) const AUTOENCODER: &[&str] =
    &["ch", "ch_mult", "num_res_blocks", "norm_num_groups", "quant_conv_ks"];

/// The tokenizer's config out of a case's.
pub(super) fn vqvae_config(config: &mut Config) -> Result<VqvaeConfig, CaseError> {
    let quantizer: MultiScaleVqConfig = config.part(QUANTIZER)?;
    Ok(VqvaeConfig { quantizer, ..config.part(AUTOENCODER)? })
}

fn vqvae<T: DeserializeOwned>(case: &Case) -> Result<(Loaded<Vqvae>, T), CaseError> {
    let mut config = Config::of(case)?;
    let own = vqvae_config(&mut config)?;
    Ok((load(case, "", |path| Vqvae::new(path, &own))?, config.rest()?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Images {
    #[serde(rename = "image_hw")]
    _image_hw: [i64; 2],
    #[serde(rename = "batch")]
    _batch: i64,
    #[serde(default)]
    also_not_same_shape: bool,
    #[serde(default, rename = "grad_params")]
    _grad_params: Vec<String>,
}

pub(super) fn encode(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, _): (_, Images) = vqvae(case)?;
    let images = case.input("img")?;
    let mut outputs = Outputs::new();
    outputs
        .out("encoder", &loaded.model.encoder().forward(&images))
        .out("f", &loaded.model.features(&images)?);
    out_series(&mut outputs, "idx", &loaded.model.encode_images(&images)?.ids);
    Ok(outputs)
}

pub(super) fn reconstruct(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, given): (_, Images) = vqvae(case)?;
    let model = &loaded.model;
    let encoded = model.encode_images(&case.input("img")?)?;
    let mut outputs = Outputs::new();
    out_series(&mut outputs, "idx", &encoded.ids);
    out_series(&mut outputs, "rec", &model.images_by_scale(&encoded.ids, false)?);
    if given.also_not_same_shape {
        out_series(&mut outputs, "rec_own_size", &model.images_by_scale(&encoded.ids, true)?);
    }
    Ok(outputs)
}

pub(super) fn train_forward(case: &Case) -> Result<Outputs, CaseError> {
    let (loaded, _): (_, Images) = vqvae(case)?;
    let images = case.input("img")?;
    let output = loaded.model.forward(&images, false)?;
    let rec_mse = (&output.reconstruction - &images).square().mean(Kind::Float);
    let total: Tensor = &rec_mse + &output.quantized.vq_loss;
    total.backward();
    let latent = output.quantized.f_hat.size();
    let positions = latent[0] * latent[3] * latent[4];
    let mut outputs = Outputs::new();
    outputs
        .out("rec", &output.reconstruction)
        .out("vq_loss", &output.quantized.vq_loss)
        .out("rec_mse", &rec_mse)
        .out("total", &total)
        .out("usages", &loaded.model.quantizer().usages(positions, 1));
    loaded.gradients(&case.gradient_names(), "", &mut outputs);
    Ok(outputs)
}
