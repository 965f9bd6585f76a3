//! Flax checkpoints: the file, and the names and layouts of MaskGIT and MAGVIT.
//!
//! A file is one MessagePack value, a tree of maps whose leaves are arrays. Names are the paths joined by `/`.

use std::io::Cursor;

use rmpv::Value;
use tch::{Kind, Tensor};

use super::ImportError;
use crate::weights::Weights;

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 64;
/// MessagePack's extension number of an array, and of a single number that is written like one.
const ARRAYS: [i8; 2] = [1, 3];
/// A map with this key stands for one array in pieces.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// Whether a file that begins so can be one of flax: a map whose first key is a text, and no safetensors, whose eight bytes of
/// length may look alike.
pub(super) fn is_flax(start: &[u8]) -> bool {
    let map = matches!(start.first(), Some(0x81..=0x8f | 0xde | 0xdf));
    let safetensors = start.get(5..9) == Some(&[0, 0, 0, b'{']);
    map && !safetensors
}

/// The arrays of a checkpoint.
///
/// # Errors
/// The bytes are cut short or no MessagePack, or an array has a type that is not known.
pub(super) fn read(bytes: &[u8]) -> Result<Weights, ImportError> {
    let root = value(bytes)?;
    let mut weights = Weights::new();
    collect(&root, String::new(), 0, &mut weights)?;
    if weights.is_empty() {
        return Err(ImportError::Malformed("a flax checkpoint without arrays".into()));
    }
    Ok(weights)
}

fn value(bytes: &[u8]) -> Result<Value, ImportError> {
    rmpv::decode::read_value_with_max_depth(&mut Cursor::new(bytes), MAX_DEPTH)
        .map_err(|error| ImportError::Damaged(error.to_string()))
}

fn collect(value: &Value, path: String, depth: usize, weights: &mut Weights) -> Result<(), ImportError> {
    match value {
        Value::Map(entries) if entries.iter().any(|(key, _)| key.as_str() == Some(CHUNKED)) => {
            weights.insert(path.clone(), chunked(value).map_err(|error| error.of_tensor(&path))?);
        }
        Value::Map(entries) if depth < MAX_DEPTH => {
            for (key, value) in entries {
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_string);
                let path = if path.is_empty() { key } else { format!("{path}/{key}") };
                collect(value, path, depth + 1, weights)?;
            }
        }
        Value::Ext(kind, bytes) if ARRAYS.contains(kind) => {
            weights.insert(path.clone(), array(bytes).map_err(|error| error.of_tensor(&path))?);
        }
        // Steps and other plain numbers.
        _ => {}
    }
    Ok(())
}

fn malformed(what: &str) -> ImportError {
    ImportError::Malformed(what.into())
}

fn sizes(value: &Value) -> Result<Vec<i64>, ImportError> {
    let sizes: Option<Vec<i64>> = match value {
        Value::Array(sizes) => sizes.iter().map(Value::as_i64).collect(),
        // Of an array in pieces: a map with the numbers of the axes as keys.
        Value::Map(sizes) => sizes.iter().map(|(_, size)| size.as_i64()).collect(),
        _ => None,
    };
    sizes.filter(|sizes| sizes.iter().all(|&n| n >= 0)).ok_or_else(|| malformed("a shape that is none"))
}

/// `[shape, name of the type, numbers]`, packed once more.
fn array(bytes: &[u8]) -> Result<Tensor, ImportError> {
    let packed = value(bytes)?;
    let Some([shape, name, Value::Binary(numbers)]) = packed.as_array().map(Vec::as_slice) else {
        return Err(malformed("an array without shape, type and numbers"));
    };
    let name = match name {
        Value::Binary(name) => String::from_utf8_lossy(name).into_owned(),
        name => name.as_str().unwrap_or_default().to_string(),
    };
    let kind = match name.as_str() {
        "float32" => Kind::Float,
        "float64" => Kind::Double,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "int64" => Kind::Int64,
        "int32" => Kind::Int,
        "int16" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        // Only ever of random states and counters, which no model needs.
        "uint32" => Kind::Int,
        other => return Err(ImportError::Malformed(format!("the element type {other:?}"))),
    };
    let shape = sizes(shape)?;
    let count = shape.iter().try_fold(1_i64, |count, &n| count.checked_mul(n));
    let whole = count.and_then(|count| usize::try_from(count).ok()?.checked_mul(kind.elt_size_in_bytes()));
    if whole != Some(numbers.len()) {
        return Err(ImportError::Damaged(format!(
            "{} bytes for the shape {shape:?} of {name}",
            numbers.len()
        )));
    }
    if shape.contains(&0) {
        return Ok(Tensor::empty(&shape, (kind, tch::Device::Cpu)));
    }
    Ok(Tensor::f_from_data_size(numbers, &shape, kind)?)
}

/// An array of more than 2^30 bytes: its shape and flat pieces.
fn chunked(value: &Value) -> Result<Tensor, ImportError> {
    let part = |name: &str| {
        let found = value.as_map().and_then(|map| map.iter().find(|(key, _)| key.as_str() == Some(name)));
        found.map(|(_, part)| part).ok_or_else(|| malformed("an array in pieces without shape or pieces"))
    };
    let shape = sizes(part("shape")?)?;
    let pieces: Vec<&Value> = match part("chunks")? {
        Value::Map(pieces) => pieces.iter().map(|(_, piece)| piece).collect(),
        Value::Array(pieces) => pieces.iter().collect(),
        _ => return Err(malformed("pieces that are none")),
    };
    let pieces = pieces
        .into_iter()
        .map(|piece| match piece {
            Value::Ext(1, bytes) => Ok(array(bytes)?.reshape([-1])),
            _ => Err(malformed("a piece that is no array")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_cat(&pieces, 0)?.f_reshape(&shape)?)
}

pub(crate) fn is_attention(name: &str) -> bool {
    name.contains("self_attention/")
}

/// Axes of a flax kernel `[..., in, out]` in PyTorch's order `[out, in, ...]`.
fn kernel_axes(dims: i64) -> Vec<i64> {
    [vec![dims - 1, dims - 2], (0..dims - 2).collect()].concat()
}

/// A flax tensor in our layout.
pub(crate) fn to_ours(name: &str, tensor: &Tensor) -> Tensor {
    let tensor = tensor.to_kind(Kind::Float);
    if is_attention(name) {
        return match name.rsplit('/').next() {
            Some("bias") => tensor.reshape([-1]),
            _ if name.contains("/out/") => tensor.flatten(0, 1).tr(),
            _ => tensor.flatten(1, 2).tr(),
        };
    }
    if !name.ends_with("/kernel") {
        return tensor;
    }
    if name.contains("ConvTranspose") {
        // Flax does not flip the kernel of a transposed convolution, PyTorch does; and it keeps [in, out].
        let dims = tensor.dim() as i64;
        let axes: Vec<i64> = [vec![dims - 2, dims - 1], (0..dims - 2).collect()].concat();
        let flipped: Vec<i64> = (0..dims - 2).collect();
        return tensor.flip(flipped).permute(axes).contiguous();
    }
    tensor.permute(kernel_axes(tensor.dim() as i64)).contiguous()
}

/// Our name of a tensor of the transformer: `Embed_0`, `TransformerLayer_i`, `MlmLayer_0`, each also with `Bert` in front.
pub(crate) fn transformer_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').map(|part| part.strip_prefix("Bert").unwrap_or(part)).collect();
    let leaf = match parts.last() {
        Some(&"kernel" | &"scale") => "weight",
        Some(&leaf) => leaf,
        None => "",
    };
    let (layer, rest) = match parts[0].strip_prefix("TransformerLayer_").or(parts[0].strip_prefix("Layer_")) {
        Some(index) => (format!("layers.{index}."), &parts[1..]),
        None => (String::new(), &parts[..]),
    };
    let ours = match rest[..rest.len() - 1] {
        ["Embed_0", "word_embeddings"] => return "vocabulary.word".into(),
        ["Embed_0", "position_embeddings"] => return "position".into(),
        ["Embed_0", "segment_embeddings"] => return "segment".into(),
        ["MlmLayer_0", "mlm_bias"] => return "vocabulary.bias".into(),
        ["Embed_0", "embeddings_ln"] => "norm",
        ["MlmLayer_0", "mlm_dense"] => "vocabulary.dense",
        ["MlmLayer_0", "mlm_ln"] => "vocabulary.norm",
        ["Attention_0", "self_attention", part] => part,
        ["Attention_0", "attention_output_ln"] => "attention_norm",
        ["Mlp_0", "intermediate_output"] => "up",
        ["Mlp_0", "layer_output"] => "down",
        ["Mlp_0", "layer_output_ln"] => "mlp_norm",
        _ => return name.into(),
    };
    format!("{layer}{ours}.{leaf}")
}

/// Our names of a VQGAN's tensors. The last convolution of each half is its output, so all names are needed.
pub(crate) fn vqgan_names(weights: &Weights) -> impl Fn(&str) -> String + use<> {
    let last = |half: &str| {
        let index = |name: &String| {
            let rest = name.strip_prefix(half)?.strip_prefix("Conv_")?;
            rest.split('/').next()?.parse::<i64>().ok()
        };
        weights.keys().filter_map(index).max()
    };
    let halves = ["encoder/", "decoder/"].map(|half| (half, last(half)));
    move |name| {
        if name == "quantizer/codebook" {
            return "quantizer.embed".into();
        }
        let half = |(half, last): &(&'static str, Option<i64>)| name.strip_prefix(half).zip(*last);
        let (half_name, (rest, last)) = match halves.iter().find_map(|h| Some((h.0, half(h)?))) {
            Some(found) => found,
            None => return name.into(),
        };
        let prefix = half_name.replace('/', ".");
        let parts: Vec<&str> = rest.split('/').collect();
        let leaf = if parts.last() == Some(&"bias") { "bias" } else { "weight" };
        let (kind, index) = parts[0].rsplit_once('_').unwrap_or((parts[0], "0"));
        let index: i64 = index.parse().unwrap_or(0);
        let ours = match (kind, index) {
            ("ResBlock", _) => {
                let part = match parts.get(1).copied().unwrap_or("") {
                    "Conv_0" => "conv1",
                    "Conv_1" => "conv2",
                    "Conv_2" => "shortcut",
                    norm if norm.ends_with("Norm_0") => "norm1",
                    _ => "norm2",
                };
                format!("blocks.{index}.{part}")
            }
            ("Conv", 0) => "conv_in".into(),
            ("Conv", i) if i == last => "conv_out".into(),
            ("Conv", i) if half_name == "encoder/" => format!("down.{}", i - 1),
            ("Conv", i) => format!("up.{}", i - 1),
            ("ConvTranspose", i) => format!("up.{i}"),
            _ => "norm_out".into(),
        };
        format!("{prefix}{ours}.{leaf}")
    }
}
