//! Reading a checkpoint file into named tensors.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use tch::{Kind, Tensor};
use zip::ZipArchive;
use zip::result::ZipError;

use super::pickle::{Id, Pickle, Storage, TensorView, Value};
use super::{ImportError, flax};
use crate::weights::{Weights, read_safetensors};

/// What a Lightning checkpoint calls the arguments that its model was built with.
pub(super) const HYPER_PARAMETERS: &str = "hyper_parameters";
/// Deepest nesting of dictionaries and modules that is followed.
const MAX_DEPTH: usize = 64;
/// Most values that are looked at for tensors: shared dictionaries can stand for more than any memory holds.
const MAX_VALUES: usize = 4_000_000;

/// Reads the tensors of a checkpoint: safetensors, a PyTorch file (`torch.save` since PyTorch 1.6), a TorchScript module
/// (`.jit`), or a flax checkpoint (MessagePack). No code in the file is run.
///
/// Names are the paths of keys or attributes joined by dots (`encoder.conv_in.weight`), in a flax checkpoint by slashes. Where the file is a dictionary with
/// a `state_dict` (PyTorch Lightning), that alone is read, and beside it the whole numbers among its `hyper_parameters`, as
/// int64 tensors (`hyper_parameters.args.heads`).
///
/// # Errors
/// The file cannot be read, is cut short, of the format before PyTorch 1.6, or needs what this reader refuses; the message
/// says what, and how to save it again.
pub fn read_checkpoint(path: &Path) -> Result<BTreeMap<String, Tensor>, ImportError> {
    let io = |error: std::io::Error| ImportError::File { path: path.display().to_string(), source: error };
    let mut file = File::open(path).map_err(io)?;
    let mut start = Vec::new();
    (&mut file).take(9).read_to_end(&mut start).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    match start[..] {
        [b'P', b'K', ..] => Archive::open(file)?.tensors(),
        [0x80, 2..=5, ..] => Err(ImportError::Legacy),
        _ if flax::is_flax(&start) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(io)?;
            flax::read(&bytes)
        }
        _ => Ok(read_safetensors(path)?),
    }
}

/// A PyTorch file: a zip archive with a pickle of the structure and one file of numbers per storage.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// The folder inside the archive that everything stands in.
    root: String,
    big_endian: bool,
    storages: HashMap<String, Tensor>,
}

impl Archive {
    fn open(file: File) -> Result<Self, ImportError> {
        let zip = ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
        let is_pickle = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
        let pickle = zip.file_names().flatten().find(|name| is_pickle(name));
        let pickle = pickle.ok_or_else(|| ImportError::Malformed("a zip archive without data.pkl".into()))?;
        let root = pickle.trim_end_matches("data.pkl").to_string();
        let mut archive = Self { zip, root, big_endian: false, storages: HashMap::new() };
        archive.big_endian = match archive.read("byteorder", 16) {
            Err(ImportError::Entry(_)) => false,
            Err(error) => return Err(error),
            Ok(order) => match order.trim_ascii() {
                b"little" => false,
                b"big" => true,
                other => {
                    let other = String::from_utf8_lossy(other).into_owned();
                    return Err(ImportError::Malformed(format!("the byte order {other:?}")));
                }
            },
        };
        Ok(archive)
    }

    /// Up to `limit` bytes of an entry.
    fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let name = format!("{}{name}", self.root);
        let entry = self.zip.by_name(&name).map_err(|error| match error {
            ZipError::FileNotFound => ImportError::Entry(name.clone()),
            error => zip_error(error),
        })?;
        let mut bytes = Vec::new();
        // One byte more: its absence makes the archive compare its checksum.
        entry
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| ImportError::Damaged(error.to_string()))?;
        Ok(bytes)
    }

    fn tensors(mut self) -> Result<Weights, ImportError> {
        let pickle = Pickle::read(&self.read("data.pkl", 1 << 30)?)?;
        let root = pickle.get(pickle.root, "state_dict").unwrap_or(pickle.root);
        let mut views = Vec::new();
        let mut left = MAX_VALUES;
        collect(&pickle, root, String::new(), 0, &mut left, &mut views)?;
        let mut weights = Weights::new();
        for (name, view) in views {
            let tensor = self.tensor(&view).map_err(|error| error.of_tensor(&name))?;
            weights.insert(name, tensor);
        }
        if weights.is_empty() {
            return Err(ImportError::Malformed("a checkpoint without tensors".into()));
        }
        if let Some(words) = pickle.get(pickle.root, HYPER_PARAMETERS) {
            whole_numbers(&pickle, words, HYPER_PARAMETERS, 0, &mut left, &mut weights)?;
        }
        Ok(weights)
    }

    fn tensor(&mut self, view: &TensorView) -> Result<Tensor, ImportError> {
        let count = check_view(view)?;
        if count == 0 {
            return Ok(Tensor::empty(&view.size, (kind(&view.storage)?.0, tch::Device::Cpu)));
        }
        let storage = self.storage(&view.storage)?;
        // A copy, so that no tensor keeps the numbers of another in memory.
        Ok(storage.f_as_strided(&view.size, &view.stride, view.offset)?.copy().contiguous())
    }

    fn storage(&mut self, storage: &Storage) -> Result<Tensor, ImportError> {
        if let Some(tensor) = self.storages.get(&storage.key) {
            if tensor.kind() != kind(storage)?.0 || tensor.size() != [storage.len] {
                let problem = format!("two descriptions of the storage {}", storage.key);
                return Err(ImportError::Malformed(problem));
            }
            return Ok(tensor.shallow_clone());
        }
        let (kind, width) = kind(storage)?;
        let expected = (storage.len as u64).saturating_mul(width as u64);
        let entry = format!("data/{}", storage.key);
        let mut bytes = self.read(&entry, expected)?;
        if bytes.len() as u64 != expected {
            return Err(ImportError::Damaged(format!("{entry} has not {expected} bytes")));
        }
        if self.big_endian {
            bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        if kind == Kind::Bool {
            // Other numbers than 0 and 1 would be no truth values.
            bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        let tensor = Tensor::f_from_data_size(&bytes, &[storage.len], kind)?;
        self.storages.insert(storage.key.clone(), tensor.shallow_clone());
        Ok(tensor)
    }
}

/// Element type and its width in bytes.
fn kind(storage: &Storage) -> Result<(Kind, usize), ImportError> {
    Ok(match storage.kind.as_str() {
        "DoubleStorage" => (Kind::Double, 8),
        "FloatStorage" => (Kind::Float, 4),
        "HalfStorage" => (Kind::Half, 2),
        "BFloat16Storage" => (Kind::BFloat16, 2),
        "LongStorage" => (Kind::Int64, 8),
        "IntStorage" => (Kind::Int, 4),
        "ShortStorage" => (Kind::Int16, 2),
        "CharStorage" => (Kind::Int8, 1),
        "ByteStorage" => (Kind::Uint8, 1),
        "BoolStorage" => (Kind::Bool, 1),
        other => return Err(ImportError::Malformed(format!("a storage of the type {other}"))),
    })
}

/// The number of elements of a view, if it stays within its storage.
fn check_view(view: &TensorView) -> Result<i64, ImportError> {
    let TensorView { storage, offset, size, stride } = view;
    let outside = || {
        let problem = format!(
            "size {size:?}, stride {stride:?} and offset {offset} in a storage of {} numbers",
            storage.len
        );
        ImportError::Malformed(problem)
    };
    if size.len() != stride.len() || *offset < 0 || size.iter().chain(stride).any(|&n| n < 0) {
        return Err(outside());
    }
    let count = size.iter().try_fold(1_i64, |count, &n| count.checked_mul(n)).ok_or_else(outside)?;
    if count == 0 {
        return Ok(0);
    }
    let last = size
        .iter()
        .zip(stride)
        .try_fold(*offset, |last, (&n, &step)| last.checked_add((n - 1).checked_mul(step)?));
    // Repeated numbers (a stride of 0) could stand for more than any memory holds.
    if last.is_none_or(|last| last >= storage.len) || count > storage.len.max(1 << 20) {
        return Err(outside());
    }
    Ok(count)
}

/// All tensors at or below a value, by their path.
fn collect(
    pickle: &Pickle,
    id: Id,
    path: String,
    depth: usize,
    left: &mut usize,
    found: &mut Vec<(String, TensorView)>,
) -> Result<(), ImportError> {
    spend(depth, left)?;
    let join = |word: &str| if path.is_empty() { word.to_string() } else { format!("{path}.{word}") };
    match pickle.value(id) {
        Value::Tensor(view) => found.push((path, view.clone())),
        Value::Object(Some(attributes)) => {
            collect(pickle, *attributes, path, depth + 1, left, found)?;
        }
        Value::Dict(items) => {
            for (key, value) in items {
                let key = match pickle.value(*key) {
                    Value::Text(key) => key.clone(),
                    Value::Int(key) => key.to_string(),
                    _ => continue,
                };
                collect(pickle, *value, join(&key), depth + 1, left, found)?;
            }
        }
        Value::List(items) | Value::Tuple(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(pickle, *value, join(&index.to_string()), depth + 1, left, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The whole numbers and the lists of them at or below a value, by their path.
fn whole_numbers(
    pickle: &Pickle,
    id: Id,
    path: &str,
    depth: usize,
    left: &mut usize,
    found: &mut Weights,
) -> Result<(), ImportError> {
    spend(depth, left)?;
    let whole = |id: &Id| match pickle.value(*id) {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    match pickle.value(id) {
        Value::Int(number) => {
            found.insert(path.to_string(), Tensor::from(*number));
        }
        Value::List(items) | Value::Tuple(items) => {
            let numbers = items.iter().map(whole).collect::<Option<Vec<_>>>();
            if let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()) {
                found.insert(path.to_string(), Tensor::from_slice(&numbers));
            }
        }
        Value::Object(Some(attributes)) => {
            whole_numbers(pickle, *attributes, path, depth + 1, left, found)?;
        }
        Value::Dict(items) => {
            for (key, value) in items {
                if let Value::Text(key) = pickle.value(*key) {
                    whole_numbers(pickle, *value, &format!("{path}.{key}"), depth + 1, left, found)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Counts one more value that is looked at.
fn spend(depth: usize, left: &mut usize) -> Result<(), ImportError> {
    match left.checked_sub(1) {
        Some(rest) if depth <= MAX_DEPTH => {
            *left = rest;
            Ok(())
        }
        _ => Err(ImportError::Malformed("dictionaries nested without end".into())),
    }
}

fn zip_error(error: ZipError) -> ImportError {
    ImportError::Damaged(error.to_string())
}
