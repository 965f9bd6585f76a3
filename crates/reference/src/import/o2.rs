//! O2-MAGVIT2 (cofe-ai).

use causal_conv::magvit2::Magvit2Config;
use quantizers::{LfqConfig, QuantizerConfig};

use super::{ImportError, Imported, Model, Shapes, gcd};
use crate::weights::Weights;

/// Encoder and decoder, and what their shapes tell.
///
/// The reference numbers tokens with channel 0 as the most significant bit; ours has it least significant, so that the same
/// weights give the same signs under other ids.
pub(super) fn import(tensors: &Weights) -> Result<Imported, ImportError> {
    let first = "encoder.conv_first.conv.weight";
    let shapes = Shapes::below(tensors, first)?;
    let [first_width, in_channels, ..] = shapes.of::<5>(first)?;
    let levels =
        1 + shapes.count(|i| format!("encoder.conv_downsample_blocks.conv_downsample_{i}.conv.weight"));
    let mut widths = Vec::with_capacity(levels);
    for level in 0..levels {
        // The first block of a level makes its width.
        let block = format!("encoder.res_blocks.res_block_{level}.res_block_{level}_0.conv_0.conv.weight");
        widths.push(shapes.of::<5>(&block)?[0]);
    }
    let filters = widths.iter().fold(first_width, |a, &b| gcd(a, b));
    let mut temporal_downsample = Vec::with_capacity(levels - 1);
    for transition in 0..levels - 1 {
        // The decoder counts its transitions from the coarsest; each gives a block of 1×2×2 or of 2×2×2 pixels.
        let upsample = levels - 2 - transition;
        let name = format!("decoder.conv_upsample_blocks.conv_upsample_{upsample}.conv1.conv.weight");
        let [outputs, inputs, ..] = shapes.of::<5>(&name)?;
        temporal_downsample.push(outputs == 8 * inputs);
    }
    let mut shortcuts = shapes.names().filter(|name| name.ends_with(".conv_shortcut.conv.weight"));
    let conv_shortcut = match shortcuts.next() {
        Some(name) => shapes.of::<5>(name)?[4] == 3,
        None => false,
    };
    let bits = shapes.of::<5>("encoder.conv_last.conv.weight")?[0];
    let blocks = shapes
        .count(|j| format!("encoder.res_blocks.res_block_final.res_block_final_{j}.conv_0.conv.weight"));
    let config = Magvit2Config {
        in_channels,
        filters,
        channel_multipliers: widths.iter().map(|width| width / filters).collect(),
        num_res_blocks: blocks as i64,
        temporal_downsample,
        // 32 in every published model; narrow ones have what divides them.
        num_groups: gcd(32, filters),
        conv_shortcut,
        quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(bits)),
        ..Magvit2Config::paper_128()
    };
    let tensors = shapes.rename(&["encoder.", "decoder."], |name| from_o2(name, levels));
    Ok(Imported::of(Model::Magvit2(config), tensors))
}

/// Our name of a tensor of an O2-MAGVIT2 checkpoint (without the prefix `tokenizer.`), for a network of so many levels.
/// `None`: no part of encoder or decoder.
pub(crate) fn from_o2(name: &str, levels: usize) -> Option<String> {
    let (part, rest) = name.split_once('.')?;
    match part {
        "encoder" | "decoder" => Some(format!("{part}.{}", from_o2_part(rest, part == "decoder", levels)?)),
        _ => None,
    }
}

/// [`from_o2`] inside the encoder or the decoder.
pub(crate) fn from_o2_part(name: &str, is_decoder: bool, levels: usize) -> Option<String> {
    // Every convolution and norm of the reference stands in a wrapper.
    let name = name.replace(".conv1.conv.", ".").replace(".conv.", ".").replace(".norm_fn.", ".");
    let words: Vec<&str> = name.split('.').collect();
    let number = |word: &str| word.rsplit('_').next()?.parse::<usize>().ok();
    // The encoder counts levels from the finest, the decoder from the coarsest.
    let level = |word: &str| {
        let index = number(word)?;
        if is_decoder { (levels - 1).checked_sub(index) } else { Some(index) }
    };
    Some(match words[..] {
        ["conv_first", leaf] => format!("conv_in.{leaf}"),
        ["conv_last", leaf] => format!("conv_out.{leaf}"),
        ["final_norm", leaf] => format!("norm_out.{leaf}"),
        ["res_blocks", "res_block_pre" | "res_block_final", block, layer, leaf] => {
            format!("mid.block_{}.{layer}.{leaf}", number(block)?)
        }
        // Blocks after the first are named after level 0 in every level of the encoder: only the last number counts.
        ["res_blocks", at, block, layer, leaf] => {
            format!("level_{}.block_{}.{layer}.{leaf}", level(at)?, number(block)?)
        }
        ["conv_downsample_blocks", at, leaf] => format!("level_{}.downsample.{leaf}", level(at)?),
        ["conv_upsample_blocks", at, leaf] => format!("level_{}.upsample.{leaf}", level(at)?),
        ["cond_norm_layers", at, linear, leaf] => format!("level_{}.norm.{linear}.{leaf}", level(at)?),
        _ => return None,
    })
}
