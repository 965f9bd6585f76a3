//! Named tensors on disk: safetensors files, written whole, with a line of text beside the tensors.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use tch::{Kind, Tensor, nn};

use crate::files::{cannot_write, write_whole};
use crate::{Error, Result};

/// The metadata key of a model file's config. One key only: several would be written in a random order.
const CONFIG_KEY: &str = "config";

/// A model-only file's content.
#[derive(Debug)]
pub struct Weights {
    /// The tensors by name, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The text that [`save_weights`] was given, empty if the file has none.
    pub config: String,
}

/// Writes a model-only file: safetensors, with the config (JSON text, say) in its metadata. The file appears whole or
/// not at all.
///
/// # Errors
/// [`Error::Write`], or a tensor of a kind that the format does not have.
pub fn save_weights(path: impl AsRef<Path>, tensors: &BTreeMap<String, Tensor>, config: &str) -> Result<()> {
    let path = path.as_ref();
    write_whole(path, |temporary| {
        write_tensors(temporary, tensors, Some(HashMap::from([(CONFIG_KEY.into(), config.into())])))
    })
}

/// Reads a model-only file, or any safetensors file.
///
/// # Errors
/// [`Error::Missing`], [`Error::CutShort`].
pub fn load_weights(path: impl AsRef<Path>) -> Result<Weights> {
    let path = path.as_ref();
    let bytes = read(path, "a safetensors file")?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(path, error))?;
    let config = header.metadata().as_ref().and_then(|map| map.get(CONFIG_KEY)).cloned().unwrap_or_default();
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| damaged(path, error))?
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let kind = kind(view.dtype()).ok_or_else(|| {
                damaged(path, format!("tensor {name} has the unknown type {:?}", view.dtype()))
            })?;
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            Ok((name, Tensor::f_from_data_size(view.data(), &shape, kind)?))
        })
        .collect::<Result<_>>()?;
    Ok(Weights { tensors, config })
}

/// A store's variables by name. They share their numbers with the store.
pub fn variables(store: &nn::VarStore) -> BTreeMap<String, Tensor> {
    store.variables().into_iter().collect()
}

/// Copies tensors into the store's variables of the same names. `from` is named in errors.
///
/// # Errors
/// [`Error::Mismatch`] with the first tensor by name that is absent on either side or has another shape. The store is
/// unchanged then.
pub fn copy_into(
    store: &nn::VarStore,
    tensors: &BTreeMap<String, Tensor>,
    from: impl AsRef<Path>,
) -> Result<()> {
    copy_tensors(&variables(store), tensors, from.as_ref())
}

/// Compares names and shapes.
pub(crate) fn check_fit(
    model: &BTreeMap<String, Tensor>,
    saved: &BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
    let names: BTreeSet<&String> = model.keys().chain(saved.keys()).collect();
    for name in names {
        let (model, saved) = (model.get(name).map(Tensor::size), saved.get(name).map(Tensor::size));
        if model != saved {
            return Err(Error::Mismatch { path: from.into(), tensor: name.clone(), saved, model });
        }
    }
    Ok(())
}

/// [`copy_into`] for any tensors by name.
pub(crate) fn copy_tensors(
    model: &BTreeMap<String, Tensor>,
    saved: &BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
    check_fit(model, saved, from)?;
    tch::no_grad(|| {
        for (target, source) in model.values().zip(saved.values()) {
            target.shallow_clone().f_copy_(source)?;
        }
        Ok(())
    })
}

/// Writes tensors as safetensors, without temporary name. Equal tensors give equal bytes.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let saved = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, Saved::new(name, tensor)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(saved, metadata, path).map_err(|error| match error {
        SafeTensorError::IoError(source) => cannot_write(path)(source),
        other => cannot_write(path)(std::io::Error::other(other)),
    })
}

/// The whole of a file that must be there.
pub(crate) fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { path: path.into(), what: what.into() },
        _ => video_core::Error::io(path, source).into(),
    })
}

pub(crate) fn damaged(path: &Path, problem: impl ToString) -> Error {
    Error::CutShort { path: path.into(), problem: problem.to_string() }
}

/// A tensor as safetensors wants it. Its bytes are copied when they are written, so one tensor at a time.
struct Saved<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> Saved<'a> {
    fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        let dtype = DTYPES.iter().find(|(kind, _)| *kind == tensor.kind()).map(|(_, dtype)| *dtype);
        let dtype = dtype.ok_or_else(|| {
            let kinds = DTYPES.map(|(kind, _)| format!("{kind:?}")).join(", ");
            video_core::Error::input(name, format!("its kind is {:?}", tensor.kind()), kinds)
        })?;
        Ok(Self { tensor, dtype, shape: tensor.size().iter().map(|&n| n as usize).collect() })
    }

    fn bytes(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.bytes()];
        let tensor = self.tensor.detach().to_device(tch::Device::Cpu).contiguous();
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// The kinds that both libtorch and safetensors have.
const DTYPES: [(Kind, Dtype); 10] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

fn kind(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, candidate)| *candidate == dtype).map(|(kind, _)| *kind)
}
