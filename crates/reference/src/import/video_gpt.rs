//! VideoGPT (wilson1yan): the VQ-VAE's and the prior's state dicts.

use quantizers::{QuantizerConfig, VqConfig};
use tch::{Device, Kind, Tensor};
use video_core::GridShape;
use video_gpt::{AttentionType, FrameConfig, GptConfig, ResNetConfig, SparseLayout, VqVaeConfig};

use super::checkpoint::HYPER_PARAMETERS;
use super::{ImportError, Imported, Model, Shapes};
use crate::weights::Weights;

/// An argument of the script that trained the checkpoint, where the file tells it.
fn argument(tensors: &Weights, name: &str) -> Option<Vec<i64>> {
    let tensor = tensors.get(&format!("{HYPER_PARAMETERS}.args.{name}"))?;
    Vec::try_from(tensor.reshape([-1])).ok()
}

/// A checkpoint's VQ-VAE, its own or that inside a prior's, and what its shapes tell. The strides they do not, as kernels are
/// 4 wide on every axis, but a VQ-VAE's own file has them among its arguments; `named` are those of the system.
pub(super) fn import_vqvae(tensors: &Weights, named: Option<[i64; 3]>) -> Result<Imported, ImportError> {
    let told = argument(tensors, "downsample").and_then(|strides| <[i64; 3]>::try_from(strides).ok());
    let downsample = match (named, told) {
        (Some(named), Some(told)) if named != told => {
            return Err(ImportError::Malformed(format!(
                "its own arguments say downsample = {told:?}, the system's are {named:?}: import it as videogpt-vqvae"
            )));
        }
        (Some(strides), _) | (None, Some(strides)) => strides,
        (None, None) => {
            return Err(ImportError::Malformed(
                "it has no hyper_parameters that tell its downsample: import it as one of videogpt-stride.."
                    .into(),
            ));
        }
    };
    let first = "encoder.convs.0.conv.weight";
    let shapes = Shapes::below(tensors, first)?;
    let [codebook_size, embedding_dim] = shapes.of::<2>("codebook.embeddings")?;
    let config = VqVaeConfig {
        n_hiddens: shapes.of::<5>(first)?[0],
        n_res_layers: shapes.count(|i| format!("encoder.res_stack.{i}.block.0.weight")) as i64,
        embedding_dim,
        downsample,
        quantizer: QuantizerConfig::Vq(VqConfig { codebook_size, ..VqConfig::video_gpt() }),
    };
    let parts = ["encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook."];
    let own = shapes.rename(&parts, |name| Some(name.to_string()));
    Ok(Imported::of(Model::VideoGptVqVae(config), vqvae_tensors(&own, "")))
}

/// A checkpoint's prior, and what its shapes tell: all but the heads, which are among its arguments; where a file has none,
/// 4 as in every published one.
pub(super) fn import_gpt(tensors: &Weights) -> Result<Imported, ImportError> {
    let shapes = Shapes::below(tensors, "fc_in.weight")?;
    let [n_codes, _] = shapes.of::<2>("vqvae.codebook.embeddings")?;
    let [hidden_dim, embedding_dim] = shapes.of::<2>("fc_in.weight")?;
    let position =
        |table: &str, axis: i64| Ok::<i64, ImportError>(shapes.of::<2>(&format!("{table}.emb.d_{axis}"))?[0]);
    let grid = |table: &str| {
        let [frames, height, width] = [position(table, 0)?, position(table, 1)?, position(table, 2)?];
        Ok::<GridShape, ImportError>(GridShape { frames, height, width })
    };
    // Sparse attention has no buffer for its mask, as the full one has.
    let full = shapes.get("attn_stack.attn_nets.0.attn.attn.mask").is_some();
    let class_cond_dim = match shapes.get("norm.w.weight") {
        Some(_) => Some(shapes.of::<2>("norm.w.weight")?[1]),
        None => None,
    };
    let frames = match shapes.get("resnet.stem.0.weight") {
        None => None,
        Some(_) => {
            let seen = grid("cond_pos_embd")?;
            let group = |group: usize| {
                1 + shapes.count(|j| format!("resnet.group{group}.blocks.{j}.conv1.weight")) as i64
            };
            let resnet = ResNetConfig {
                width_multiplier: shapes.of::<5>("resnet.stem.0.weight")?[0] as f64 / 64.0,
                layers: [group(1), group(2), group(3), group(4)],
                resnet_dim: shapes.of::<5>("resnet.group4.start_block.conv1.weight")?[0],
                ..ResNetConfig::default()
            };
            let [time, height, width] = resnet.stride;
            Some(FrameConfig {
                n_cond_frames: seen.frames * time,
                size: [seen.height * height, seen.width * width],
                resnet,
            })
        }
    };
    let config = GptConfig {
        n_codes,
        embedding_dim,
        frozen_embeddings: true,
        grid: grid("attn_stack.pos_embd")?,
        hidden_dim,
        heads: argument(tensors, "heads").and_then(|heads| heads.first().copied()).unwrap_or(4),
        layers: shapes.count(|l| format!("attn_stack.attn_nets.{l}.attn.w_qs.weight")) as i64,
        attn_type: if full { AttentionType::Full } else { AttentionType::Sparse(SparseLayout::default()) },
        class_cond_dim,
        frames,
        ..GptConfig::default()
    };
    let parts = ["vqvae.codebook.", "fc_in.", "fc_out.", "attn_stack.", "norm.", "resnet.", "cond_pos_embd."];
    let own = shapes.rename(&parts, |name| Some(name.to_string()));
    Ok(Imported::of(Model::VideoGpt(config), gpt_tensors(&own)))
}

/// The VQ-VAE's tensors below a prefix by our names. Only its codebook is called otherwise, and has an axis more. What a
/// checkpoint does not say is that its codes are made; what weights alone do not hold are the averages behind the codes.
pub(crate) fn vqvae_tensors(tensors: &Weights, prefix: &str) -> Weights {
    let parts = ["encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv."];
    let mut ours = Weights::new();
    for (name, tensor) in tensors {
        let Some(name) = name.strip_prefix(prefix) else { continue };
        let name = match name {
            "codebook.embeddings" => "codebook.embed",
            "codebook.N" => "codebook.cluster_size",
            "codebook.z_avg" => "codebook.embed_avg",
            _ if name.ends_with(".num_batches_tracked") => continue,
            _ if parts.iter().any(|part| name.starts_with(part)) => {
                ours.insert(name.to_string(), tensor.shallow_clone());
                continue;
            }
            _ => continue,
        };
        ours.insert(name.to_string(), tensor.unsqueeze(0));
    }
    if let Some(codes) = ours.get("codebook.embed").map(Tensor::shallow_clone) {
        let counts = Tensor::ones(&codes.size()[..2], (Kind::Float, Device::Cpu));
        ours.entry("codebook.cluster_size".into()).or_insert(counts);
        ours.entry("codebook.embed_avg".into()).or_insert(codes);
    }
    ours.insert("codebook.initted".into(), Tensor::ones([1], (Kind::Float, Device::Cpu)));
    ours
}

/// The prior's tensors by our names: the VQ-VAE's codes become the embeddings, the rest of it and the causal masks, which
/// are buffers, go.
pub(crate) fn gpt_tensors(tensors: &Weights) -> Weights {
    let named = tensors.iter().filter_map(|(name, tensor)| {
        let name = match name.strip_prefix("vqvae.") {
            Some("codebook.embeddings") => "embeddings",
            Some(_) => return None,
            None if name.ends_with(".attn.mask") => return None,
            None => name,
        };
        Some((name.to_string(), tensor.shallow_clone()))
    });
    named.collect()
}
