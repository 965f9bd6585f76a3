//! Cosmos tokenizers (NVIDIA).

use causal_conv::cosmos::{CosmosBottleneck, CosmosConfig, CosmosNet, PatchMethod};
use tch::Kind;

use super::{ImportError, Imported, Model, Shapes};
use crate::weights::Weights;

/// Tables that TorchScript files carry beside the weights.
const TABLES: [&str; 6] =
    ["wavelets", "_arange", "patch_size_buffer", "_levels", "_basis", "implicit_codebook"];

/// Our name of a tensor of a Cosmos checkpoint: every convolution and norm stands in a wrapper there.
pub(crate) fn our_name(name: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in name.split('.') {
        let wrapped = word == "norm" && words.last().is_some_and(|last| last.starts_with("norm"));
        if word != "conv3d" && !wrapped {
            words.push(word);
        }
    }
    words.join(".")
}

/// A checkpoint whose compression is that of `published`: shapes do not tell it, as levels that compress nothing have
/// the same weights. They tell all else.
pub(super) fn import(tensors: &Weights, published: CosmosConfig) -> Result<Imported, ImportError> {
    let shapes = Shapes::below(tensors, "encoder.norm_out.norm.weight")?;
    let encoder = net(&shapes, "encoder");
    let decoder = net(&shapes, "decoder");
    let [channels, patched, ..] = shapes.of::<5>(&conv("encoder.conv_in", encoder))?;
    let volume = patched / published.in_channels;
    let axes = if encoder == CosmosNet::Base { 2 } else { 3 };
    let patch_size = (1..=64).find(|size: &i64| size.pow(axes) >= volume).unwrap_or(1);
    let channels_mult = widths(&shapes, "encoder.down", encoder, channels)?;
    let decoder_mult = widths(&shapes, "decoder.up", decoder, channels)?;
    let z_channels = shapes.of::<5>(&conv("decoder.conv_in", decoder))?[1];
    let latent = shapes.of::<5>("post_quant_conv.conv3d.weight")?[1];
    let moments = shapes.of::<5>("quant_conv.conv3d.weight")?[0];
    let attends = |level: &usize| {
        let attention = format!("encoder.down.{level}.attn.0.");
        shapes.names().any(|name| name.starts_with(&attention))
    };
    let resolution = published.resolution;
    let attn_resolutions =
        (0..channels_mult.len()).filter(attends).map(|level| (resolution / patch_size) >> level).collect();
    let raw_patches = shapes
        .get("encoder.patcher3d.wavelets")
        .is_some_and(|taps| bool::try_from(taps.to_kind(Kind::Float).ge(0.99).all()).unwrap_or(false));
    let bottleneck = match published.bottleneck {
        CosmosBottleneck::Discrete { quantizer, .. } => {
            CosmosBottleneck::Discrete { embedding_dim: latent, quantizer }
        }
        _ if moments == 2 * latent => CosmosBottleneck::Variational { latent_channels: latent },
        _ => CosmosBottleneck::Autoencoder { latent_channels: latent },
    };
    let mut config = CosmosConfig {
        channels,
        num_res_blocks: shapes.count(|j| format!("encoder.down.0.block.{j}.norm1.norm.weight")) as i64,
        attn_resolutions,
        patch_size,
        patch_method: if raw_patches { PatchMethod::Rearrange } else { PatchMethod::Haar },
        z_channels,
        num_groups: if encoder == CosmosNet::Base || decoder == CosmosNet::Base { 32 } else { 1 },
        encoder,
        decoder,
        bottleneck,
        decoder_channels_mult: (decoder_mult != channels_mult).then_some(decoder_mult),
        channels_mult,
        ..published
    };
    // Only one of the two orders of upsampling undoes what the encoder does.
    config.validate()?;
    config.legacy_mode = config.decoder_factors() != config.encoder_factors();
    let parts = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
    let mut tensors = shapes.rename(&parts, |name| Some(our_name(name)));
    tensors.retain(|name, _| !TABLES.iter().any(|table| name.ends_with(table)));
    Ok(Imported::of(Model::Cosmos(config), tensors))
}

/// Which family of networks a part is of.
fn net(shapes: &Shapes, part: &str) -> CosmosNet {
    match shapes.get(&format!("{part}.conv_in.conv3d.weight")) {
        Some(_) => CosmosNet::Base,
        None => CosmosNet::Factorized,
    }
}

/// The weight of a convolution, in a factorized network of the first of its pair.
fn conv(path: &str, net: CosmosNet) -> String {
    match net {
        CosmosNet::Base => format!("{path}.conv3d.weight"),
        CosmosNet::Factorized => format!("{path}.0.conv3d.weight"),
    }
}

/// The width of each level, as multiples of the network's.
fn widths(shapes: &Shapes, part: &str, net: CosmosNet, channels: i64) -> Result<Vec<i64>, ImportError> {
    let first = |level: usize| conv(&format!("{part}.{level}.block.0.conv1"), net);
    (0..shapes.count(first)).map(|level| Ok(shapes.of::<5>(&first(level))?[0] / channels)).collect()
}
