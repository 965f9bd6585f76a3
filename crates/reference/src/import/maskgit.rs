//! MaskGIT (google-research): its tokenizer and transformer, both flax; the 3D tokenizer of MAGVIT, which is alike; and the
//! PyTorch port of the tokenizer (huggingface/open-muse).

use ::maskgit::vqgan::{Dimensions, NormKind, ResBlockConfig, Upsampling, VqganConfig};
use ::maskgit::{MaskGitConfig, MaskStrategy};
use quantizers::{QuantizerConfig, VqConfig};
use tch::{Kind, Tensor};
use video_core::GridShape;

use super::flax::{to_ours, transformer_name, vqgan_names};
use super::{ImportError, Imported, Model, Shapes};
use crate::weights::{Weights, WeightsError};

/// Codes of the published transformers, which their weights do not tell from classes.
const CODEBOOK_SIZE: i64 = 1024;

/// What a checkpoint holds below the prefix (`params/`, say) that stands in front of one of its tensors.
fn below(tensors: &Weights, anchor: &str) -> Result<Weights, ImportError> {
    let prefix = |name: &String| name.strip_suffix(anchor).map(str::to_string);
    let fits = |prefix: &String| prefix.is_empty() || prefix.ends_with('/');
    let prefix = tensors.keys().filter_map(prefix).find(fits);
    let prefix = prefix.ok_or_else(|| WeightsError::Missing(anchor.to_string()))?;
    let below = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(&prefix)?.to_string(), tensor.shallow_clone()))
    };
    Ok(tensors.iter().filter_map(below).collect())
}

/// The shape of a tensor of at least two axes, none of them empty.
fn shape(weights: &Weights, name: &str) -> Result<Vec<i64>, ImportError> {
    let size = weights.get(name).ok_or_else(|| WeightsError::Missing(name.to_string()))?.size();
    if size.len() < 2 || size.contains(&0) {
        return Err(ImportError::Malformed(format!("tensor {name} of shape {size:?}")));
    }
    Ok(size)
}

/// The width that a kernel gives.
fn outputs(weights: &Weights, name: &str) -> Result<i64, ImportError> {
    Ok(shape(weights, name)?.last().copied().unwrap_or(0))
}

/// How many modules of a kind there are.
fn count(weights: &Weights, module: &str) -> i64 {
    let there = |index: &i64| {
        let start = format!("{module}_{index}/");
        weights.range(start.clone()..).next().is_some_and(|(name, _)| name.starts_with(&start))
    };
    (0..1024).take_while(there).count() as i64
}

/// A tokenizer, of images or of videos.
pub(super) fn import_vqgan(tensors: &Weights) -> Result<Imported, ImportError> {
    let first = "encoder/Conv_0/kernel";
    let mut weights = below(tensors, first)?;
    weights
        .retain(|name, _| ["encoder/", "decoder/", "quantizer/"].iter().any(|part| name.starts_with(part)));
    let codes = shape(&weights, "quantizer/codebook")?;
    let deconv = count(&weights, "decoder/ConvTranspose");
    let levels = if deconv > 0 { deconv + 1 } else { count(&weights, "decoder/Conv") - 1 };
    let blocks = |half: &str| count(&weights, &format!("{half}/ResBlock")) / (levels + 1).max(1);
    let filters = outputs(&weights, first)?;
    let per_level = blocks("encoder");
    let mut channel_multipliers = Vec::new();
    for level in 0..levels {
        let last = level * per_level + per_level - 1;
        channel_multipliers
            .push(outputs(&weights, &format!("encoder/ResBlock_{last}/Conv_1/kernel"))? / filters);
    }
    let video = shape(&weights, first)?.len() == 5;
    let published = if video { VqganConfig::magvit(filters) } else { VqganConfig::default() };
    let shortcut = weights
        .iter()
        .find(|(name, _)| name.contains("/ResBlock_") && name.ends_with("/Conv_2/kernel"))
        .map(|(_, kernel)| kernel.size());
    let has = |module: &str| weights.keys().any(|name| name.starts_with(module));
    let norms = (has("encoder/LayerNorm_"), has("encoder/GroupNorm_"));
    let block = ResBlockConfig {
        norm: match norms {
            (true, _) => NormKind::Layer,
            (false, true) => NormKind::Group,
            (false, false) => NormKind::None,
        },
        conv_shortcut: shortcut.as_ref().is_some_and(|size| size[0] == 3),
        // A shortcut from the block's input has another width there.
        shortcut_of_output: shortcut.map_or(published.block.shortcut_of_output, |size| {
            size.len() >= 2 && size[size.len() - 1] == size[size.len() - 2]
        }),
        dimensions: if video { Dimensions::Video } else { Dimensions::Image },
        ..published.block
    };
    let config = VqganConfig {
        quantizer: vq(codes[0]),
        embedding_dim: codes[1],
        filters,
        channel_multipliers,
        // As published: the first two halvings halve time.
        temporal_downsample: if video {
            (0..levels - 1).map(|level| level < 2).collect()
        } else {
            Vec::new()
        },
        num_enc_res_blocks: per_level,
        num_dec_res_blocks: blocks("decoder"),
        conv_downsample: count(&weights, "encoder/Conv") > 2,
        keep_odd: published.keep_odd,
        upsample: if deconv > 0 { Upsampling::Deconv } else { Upsampling::NearestConv },
        block,
    };
    config.validate()?;
    let name = vqgan_names(&weights);
    let ours = weights.iter().map(|(theirs, tensor)| {
        let tensor = to_ours(theirs, tensor);
        // A VQ's table has an axis of codebooks in front.
        let tensor = if theirs == "quantizer/codebook" { tensor.unsqueeze(0) } else { tensor };
        (name(theirs), tensor)
    });
    Ok(Imported::of(Model::Vqgan(config), ours.collect()))
}

fn vq(codebook_size: i64) -> QuantizerConfig {
    QuantizerConfig::Vq(VqConfig { codebook_size, ..VqConfig::mask_git() })
}

/// The transformer, of images with classes.
///
/// Ours has a row for the absent class, of which this one knows nothing: the mean of the classes' rows stands there.
pub(super) fn import_transformer(tensors: &Weights) -> Result<Imported, ImportError> {
    let word = "Embed_0/word_embeddings/embedding";
    let mut weights = below(tensors, word)?;
    weights.retain(|name, _| {
        ["Embed_0/", "TransformerLayer_", "MlmLayer_0/"].iter().any(|part| name.starts_with(part))
    });
    let [rows, hidden_size] = shape(&weights, word)?[..] else {
        return Err(ImportError::Malformed(format!("tensor {word} is no table")));
    };
    let num_classes = rows - CODEBOOK_SIZE - 1;
    if num_classes < 1 {
        return Err(ImportError::Malformed(format!(
            "{word} has {rows} rows, expected {CODEBOOK_SIZE} codes, classes and a mask"
        )));
    }
    let positions = shape(&weights, "Embed_0/position_embeddings/embedding")?[0];
    let side = ((positions - 1).max(1) as f64).sqrt().round() as i64;
    if side * side + 1 != positions {
        return Err(ImportError::Malformed(format!(
            "{positions} positions: expected one and those of a square"
        )));
    }
    let query = shape(&weights, "TransformerLayer_0/Attention_0/self_attention/query/kernel")?;
    let config = MaskGitConfig {
        codebook_size: CODEBOOK_SIZE,
        num_classes,
        grid: GridShape { frames: 1, height: side, width: side },
        hidden_size,
        num_hidden_layers: count(&weights, "TransformerLayer"),
        num_attention_heads: query[1],
        intermediate_size: outputs(&weights, "TransformerLayer_0/Mlp_0/intermediate_output/kernel")?,
        masking: MaskStrategy::default(),
        // It was never trained without a class.
        class_dropout: 0.0,
        ..MaskGitConfig::default()
    };
    config.validate()?;
    let absent = |tensor: &Tensor| {
        let classes = tensor.narrow(0, CODEBOOK_SIZE, num_classes);
        let mean = classes.mean_dim([0i64].as_slice(), true, Kind::Float);
        Tensor::cat(&[tensor.narrow(0, 0, rows - 1), mean, tensor.narrow(0, rows - 1, 1)], 0)
    };
    let ours = weights.iter().map(|(theirs, tensor)| {
        let (name, tensor) = (transformer_name(theirs), to_ours(theirs, tensor));
        let by_id = ["vocabulary.word", "vocabulary.bias"].contains(&name.as_str());
        let tensor = if by_id && tensor.size()[0] == rows { absent(&tensor) } else { tensor };
        (name, tensor)
    });
    Ok(Imported::of(Model::Maskgit(config), ours.collect()))
}

/// The PyTorch port of the tokenizer, whose blocks are numbered by level.
pub(super) fn import_port(tensors: &Weights) -> Result<Imported, ImportError> {
    let shapes = Shapes::below(tensors, "encoder.conv_in.weight")?;
    let [filters, ..] = shapes.of::<4>("encoder.conv_in.weight")?;
    let levels = shapes.count(|i| format!("encoder.down.{i}.block.0.conv1.weight"));
    let per_level = shapes.count(|j| format!("encoder.down.0.block.{j}.conv1.weight"));
    let mut channel_multipliers = Vec::new();
    for level in 0..levels {
        let name = format!("encoder.down.{level}.block.0.conv2.weight");
        channel_multipliers.push(shapes.of::<4>(&name)?[0] / filters);
    }
    let [codebook_size, embedding_dim] = shapes.of::<2>("quantize.embedding.weight")?;
    let config = VqganConfig {
        quantizer: vq(codebook_size),
        embedding_dim,
        filters,
        channel_multipliers,
        num_enc_res_blocks: per_level as i64,
        num_dec_res_blocks: shapes.count(|j| format!("decoder.up.0.block.{j}.conv1.weight")) as i64,
        keep_odd: false,
        ..VqganConfig::default()
    };
    config.validate()?;
    let name = port_names(&config);
    let mut ours = shapes.rename(&["encoder.", "decoder.", "quantize."], |theirs| Some(name(theirs)));
    if let Some(table) = ours.get_mut("quantizer.embed") {
        *table = table.unsqueeze(0);
    }
    Ok(Imported::of(Model::Vqgan(config), ours))
}

/// Our names of the port's tensors.
pub(crate) fn port_names(config: &VqganConfig) -> impl Fn(&str) -> String + use<> {
    let levels = config.channel_multipliers.len() as i64;
    let (encoder, decoder) = (config.num_enc_res_blocks, config.num_dec_res_blocks);
    move |name| {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |at: usize| parts.get(at).and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
        let block = |half: &str, index: i64, rest: &[&str]| {
            format!("{half}.blocks.{index}.{}", rest.join(".")).replace("nin_shortcut", "shortcut")
        };
        match parts[..] {
            ["quantize", "embedding", "weight"] => "quantizer.embed".into(),
            ["encoder", "down", _, "block", _, ..] => {
                block("encoder", number(2) * encoder + number(4), &parts[5..])
            }
            ["encoder", "mid", _, ..] => block("encoder", levels * encoder + number(2), &parts[3..]),
            ["decoder", "mid", _, ..] => block("decoder", number(2), &parts[3..]),
            ["decoder", "up", _, "block", _, ..] => {
                block("decoder", (levels - number(2)) * decoder + number(4), &parts[5..])
            }
            ["decoder", "up", _, "upsample_conv", leaf] => {
                format!("decoder.up.{}.{leaf}", levels - 1 - number(2))
            }
            _ => name.into(),
        }
    }
}
