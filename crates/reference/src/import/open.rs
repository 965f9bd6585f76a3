//! Open-MAGVIT2 (TencentARC), and 1X's fork of it.

use causal_conv::open_magvit2::OpenMagvit2Config;
use quantizers::{LfqConfig, QuantizerConfig};
use tch::Tensor;

use super::{ImportError, Imported, Model, Shapes, gcd};
use crate::weights::{Weights, WeightsError};

/// A tensor that every checkpoint has.
const FIRST: &str = "encoder.conv_in.weight";

/// The words of the names of encoder and decoder.
const WORDS: [&str; 22] = [
    "encoder",
    "decoder",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "conv1",
    "conv2",
    "norm_out",
    "norm1",
    "norm2",
    "nin_shortcut",
    "mid_block",
    "downsample",
    "down",
    "upsample",
    "up",
    "block",
    "adaptive",
    "gamma",
    "beta",
    "weight",
    "bias",
];

/// Encoder and decoder, and what their shapes tell; `published` tells the rest, such as the order of bits in an id.
///
/// A training run keeps a moving average of every weight (`model_ema.`), which is what its authors evaluate: where there are
/// any of encoder or decoder, they are taken and all others ignored.
pub(super) fn import(tensors: &Weights, published: OpenMagvit2Config) -> Result<Imported, ImportError> {
    let averages = averages(tensors)?;
    let (shapes, taken) = match &averages {
        Some(averages) => (Shapes::below(averages, FIRST)?, "the moving averages (model_ema)"),
        None => (Shapes::below(tensors, FIRST)?, "the weights themselves: the file has no moving averages"),
    };
    let [ch, in_channels, ..] = shapes.of::<4>(FIRST)?;
    let levels = shapes.count(|i| format!("encoder.down.{i}.block.0.conv1.weight"));
    let mut ch_mult = Vec::with_capacity(levels);
    for level in 0..levels {
        // The first block of a level makes its width.
        ch_mult.push(shapes.of::<4>(&format!("encoder.down.{level}.block.0.conv1.weight"))?[0] / ch);
    }
    let bits = shapes.of::<4>("encoder.conv_out.weight")?[0];
    let quantizer = match &published.quantizer {
        QuantizerConfig::Lfq(lfq) => {
            QuantizerConfig::Lfq(LfqConfig { bit_order: lfq.bit_order, ..LfqConfig::with_bits(bits) })
        }
        other => other.clone(),
    };
    let config = OpenMagvit2Config {
        ch,
        out_ch: shapes.of::<4>("decoder.conv_out.weight")?[0],
        in_channels,
        num_res_blocks: shapes.count(|j| format!("encoder.down.0.block.{j}.conv1.weight")) as i64,
        z_channels: bits,
        // Both published sizes come down to 16×16 positions.
        resolution: if levels == 0 { published.resolution } else { 16 << (levels - 1) },
        ch_mult,
        adaptive_norm: shapes.names().any(|name| name.starts_with("decoder.adaptive.")),
        // 32 in every published model; narrow ones have what divides them.
        num_groups: gcd(32, ch),
        quantizer,
        ..published
    };
    let tensors = shapes.rename(&["encoder.", "decoder."], |name| Some(name.to_string()));
    Ok(Imported { model: Model::OpenMagvit2(config), tensors, taken: taken.into() })
}

/// The moving averages of encoder and decoder under the names of what they average; `None` where there are none.
fn averages(tensors: &Weights) -> Result<Option<Weights>, ImportError> {
    let mut found = Weights::new();
    for (name, tensor) in tensors {
        let Some((_, joined)) = name.split_once("model_ema.") else { continue };
        if joined.starts_with("encoder") || joined.starts_with("decoder") {
            let dotted = with_dots(joined).ok_or_else(|| WeightsError::Unexpected(name.clone()))?;
            found.insert(dotted, Tensor::shallow_clone(tensor));
        }
    }
    Ok((!found.is_empty()).then_some(found))
}

/// `encoderdown0block1norm2weight` as `encoder.down.0.block.1.norm2.weight`: the averages are stored without dots. Names are
/// words and numbers in turn, and no word but the longest that fits leaves a name, so that there is one way to read them.
fn with_dots(mut joined: &str) -> Option<String> {
    let mut words = Vec::new();
    while !joined.is_empty() {
        let digits = joined.bytes().take_while(u8::is_ascii_digit).count();
        let fits = WORDS.iter().filter(|word| joined.starts_with(**word)).map(|word| word.len());
        let length = if digits > 0 { digits } else { fits.max()? };
        let (word, rest) = joined.split_at(length);
        words.push(word);
        joined = rest;
    }
    Some(words.join("."))
}

#[cfg(test)]
mod tests {
    use super::with_dots;

    #[test]
    fn every_name_has_its_dots_back() {
        for name in [
            "encoder.conv_in.weight",
            "encoder.down.0.block.13.norm1.weight",
            "encoder.down.1.block.0.nin_shortcut.weight",
            "encoder.down.2.block.0.conv_shortcut.weight",
            "encoder.down.3.downsample.bias",
            "encoder.mid_block.2.conv2.weight",
            "decoder.up.4.upsample.conv1.bias",
            "decoder.adaptive.0.gamma.weight",
            "decoder.adaptive.10.beta.bias",
            "decoder.norm_out.bias",
            "decoder.conv_out.weight",
        ] {
            assert_eq!(with_dots(&name.replace('.', "")).as_deref(), Some(name));
        }
        assert_eq!(with_dots("encoderoddweight"), None);
    }
}
