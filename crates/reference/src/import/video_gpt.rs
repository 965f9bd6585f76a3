//! VideoGPT (wilson1yan): the VQ-VAE's and the prior's state dicts.

use tch::{Device, Kind, Tensor};

use crate::weights::Weights;

/// The codebook's tensors: theirs, ours.
const CODEBOOK: [(&str, &str); 3] = [("embeddings", "embed"), ("N", "cluster_size"), ("z_avg", "embed_avg")];

/// The VQ-VAE's tensors below a prefix by our names. Only its codebook is called otherwise, and has an axis more; a
/// checkpoint does not say that its codes are made, so we do.
pub(crate) fn vqvae_tensors(tensors: &Weights, prefix: &str) -> Weights {
    let parts = ["encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv."];
    let mut ours = Weights::new();
    for (name, tensor) in tensors {
        let Some(name) = name.strip_prefix(prefix) else { continue };
        if name.ends_with(".num_batches_tracked") {
            continue;
        }
        if let Some(part) = name.strip_prefix("codebook.") {
            let known = CODEBOOK.iter().find(|(theirs, _)| *theirs == part);
            let part = known.map_or(part, |(_, ours)| ours);
            ours.insert(format!("codebook.{part}"), tensor.unsqueeze(0));
        } else if parts.iter().any(|part| name.starts_with(part)) {
            ours.insert(name.to_string(), tensor.shallow_clone());
        }
    }
    ours.insert("codebook.initted".into(), Tensor::ones([1], (Kind::Float, Device::Cpu)));
    ours
}

/// The prior's tensors below a prefix by our names: the VQ-VAE's codes become the embeddings, the rest of it and the causal
/// masks, which are buffers, go.
pub(crate) fn gpt_tensors(tensors: &Weights, prefix: &str) -> Weights {
    let named = tensors.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?;
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
