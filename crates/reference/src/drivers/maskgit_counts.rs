//! How many parameters the published models have (entry `maskgit.config.param_count`).

use ::maskgit::magvit::MagvitTokens;
use ::maskgit::vqgan::{StyleDiscriminator, StyleDiscriminatorConfig, Vqgan};
use ::maskgit::{BidirectionalTransformer, TransformerConfig};
use serde::Deserialize;
use tch::{Tensor, nn};

use super::Driver;
use super::maskgit_vqgan::{Vqvae2d, Vqvae3d, one_output};
use crate::case::{Case, CaseError, Outputs};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[("maskgit.config.param_count", param_count)];

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Published {
    MaskgitTransformer {
        codebook_size: i64,
        num_class: i64,
        vocab_size: i64,
        hidden_size: i64,
        num_hidden_layers: i64,
        num_attention_heads: i64,
        intermediate_size: i64,
        max_position_embeddings: i64,
    },
    MagvitTransformer {
        vocab_size: i64,
        hidden_size: i64,
        num_hidden_layers: i64,
        num_attention_heads: i64,
        intermediate_size: i64,
        max_position_embeddings: i64,
        use_condition_segment: bool,
    },
    MaskgitVqgan {
        vqvae: Vqvae2d,
    },
    MagvitVqgan3d {
        vqvae: Vqvae3d,
    },
    Discriminator2d {
        image_size: i64,
        channel_multiplier: i64,
        // Blurs have no parameters.
        #[serde(rename = "blur_resample")]
        _blur_resample: Option<bool>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParamCount {
    models: Vec<Published>,
}

fn count<M>(build: impl FnOnce(&nn::Path) -> video_core::Result<M>) -> Result<i64, CaseError> {
    let store = nn::VarStore::new(tch::Device::Cpu);
    build(&store.root())?;
    Ok(store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum())
}

/// All layers of a transformer are alike: what one and two make is enough to know of all, and takes less memory.
fn count_transformer(config: &TransformerConfig) -> Result<i64, CaseError> {
    let with = |num_hidden_layers: i64| {
        count(|path| {
            BidirectionalTransformer::new(path, &TransformerConfig { num_hidden_layers, ..config.clone() })
        })
    };
    let (one, two) = (with(1)?, with(2)?);
    Ok(one + (config.num_hidden_layers - 1) * (two - one))
}

fn param_count(case: &Case) -> Result<Outputs, CaseError> {
    let ParamCount { models } = case.config()?;
    let counts = models
        .into_iter()
        .map(|model| match model {
            Published::MaskgitTransformer {
                codebook_size,
                num_class,
                vocab_size,
                hidden_size,
                num_hidden_layers,
                num_attention_heads,
                intermediate_size,
                max_position_embeddings,
            } => {
                if vocab_size != codebook_size + num_class + 1 {
                    return Err(CaseError::Config(format!("vocab_size {vocab_size}")));
                }
                count_transformer(&TransformerConfig {
                    codebook_size,
                    num_special: num_class + 1,
                    hidden_size,
                    num_hidden_layers,
                    num_attention_heads,
                    intermediate_size,
                    max_position_embeddings,
                    ..TransformerConfig::default()
                })
            }
            Published::MagvitTransformer {
                vocab_size,
                hidden_size,
                num_hidden_layers,
                num_attention_heads,
                intermediate_size,
                max_position_embeddings,
                use_condition_segment,
            } => {
                // How the vocabulary divides into codes and others does not matter here.
                let tokens =
                    MagvitTokens { codebook_size: vocab_size - 2, num_classes: 0, multi_task: false };
                count_transformer(&TransformerConfig {
                    codebook_size: tokens.codebook_size,
                    num_special: tokens.num_special(),
                    hidden_size,
                    num_hidden_layers,
                    num_attention_heads,
                    intermediate_size,
                    max_position_embeddings,
                    num_segments: if use_condition_segment { 2 } else { 0 },
                    ..TransformerConfig::default()
                })
            }
            Published::MaskgitVqgan { vqvae } => count(|path| Vqgan::new(path, &vqvae.config())),
            Published::MagvitVqgan3d { vqvae } => count(|path| Vqgan::new(path, &vqvae.config())),
            Published::Discriminator2d { image_size, channel_multiplier, .. } => count(|path| {
                let config = StyleDiscriminatorConfig { image_size, channel_multiplier, blur_resample: true };
                StyleDiscriminator::new(path, config)
            }),
        })
        .collect::<Result<Vec<i64>, CaseError>>()?;
    Ok(one_output("param_count", &Tensor::from_slice(&counts)))
}
