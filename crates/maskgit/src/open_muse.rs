//! The transformers of huggingface/open-muse, by the names of its checkpoints: the first ([`OpenMuseTransformer`], class or
//! text) and the U-ViT ([`OpenMuseUVit`], whose weights are published as aMUSEd).

mod blocks;
mod sampling;
mod transformer;
mod uvit;
mod uvit_blocks;

pub use blocks::OpenMuseNorm;
pub use sampling::{
    GuidanceSchedule, OpenMuseDecoded, OpenMuseNoise, OpenMuseSampling, Temperatures, mask_by_random_topk,
    parallel_decode,
};
pub use transformer::{OpenMuseConfig, OpenMusePrompt, OpenMuseTransformer};
pub use uvit::{OpenMuseUVit, UVitConditions, UVitConfig};
