//! Reading checkpoint files: PyTorch's, TorchScript's, and those that must be refused.

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reference::import::{ImportError, read_checkpoint};
use reference::weights::Weights;
use tch::{Kind, Tensor};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A file that goes away with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("vireo-import-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    /// A zip archive laid out as PyTorch does.
    fn archive(name: &str, entries: &[(&str, &[u8])]) -> Self {
        let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (entry, bytes) in entries {
            zip.start_file(format!("{name}/{entry}"), SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        Self::new(name, &zip.finish().unwrap().into_inner())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn read(&self) -> Result<std::collections::BTreeMap<String, Tensor>, ImportError> {
        read_checkpoint(&self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Written by Python's own pickler the way `torch.save` does, a Lightning checkpoint with tensors of every type.
fn fixture(order: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reference/state_dict_{order}.pt"))
}

fn text(value: &str) -> Vec<u8> {
    [b"X", (value.len() as u32).to_le_bytes().as_slice(), value.as_bytes()].concat()
}

/// `name: tensor` in a dictionary, a view of float32 into a storage of `len` numbers.
fn pickled(name: &str, storage: &str, len: i64, offset: u8, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let int = |value: i64| match u8::try_from(value) {
        Ok(byte) => vec![b'K', byte],
        Err(_) => [b"J".as_slice(), &(value as i32).to_le_bytes()].concat(),
    };
    let ints = |values: &[i64]| -> Vec<u8> {
        [b"(".to_vec(), values.iter().flat_map(|&value| int(value)).collect(), b"t".to_vec()].concat()
    };
    [
        text(name),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(storage),
        text("cpu"),
        int(len),
        vec![b't', b'Q', b'K', offset],
        ints(size),
        ints(stride),
        b"\x89ccollections\nOrderedDict\n)RtRs".to_vec(),
    ]
    .concat()
}

/// `{"x": tensor}`.
fn pickle_of_one(len: i64, offset: u8, size: &[i64], stride: &[i64]) -> Vec<u8> {
    [b"\x80\x02}".to_vec(), pickled("x", "0", len, offset, size, stride), b".".to_vec()].concat()
}

/// What a training run saves: `{"state_dict": weights}` in a zip archive.
pub fn training_checkpoint(name: &str, weights: &Weights) -> Scratch {
    let mut pickle = [b"\x80\x02}".to_vec(), text("state_dict"), b"}".to_vec()].concat();
    let mut storages = Vec::new();
    for (index, (name, tensor)) in weights.iter().enumerate() {
        let tensor = tensor.to_kind(Kind::Float).contiguous();
        let numbers: Vec<f32> = tensor.view(-1).try_into().unwrap();
        let (key, len) = (index.to_string(), numbers.len() as i64);
        pickle.extend(pickled(name, &key, len, 0, &tensor.size(), &tensor.stride()));
        let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        storages.push((format!("data/{key}"), bytes));
    }
    pickle.extend(b"s.");
    let mut entries = vec![("data.pkl", pickle.as_slice())];
    entries.extend(storages.iter().map(|(entry, bytes)| (entry.as_str(), bytes.as_slice())));
    Scratch::archive(name, &entries)
}

#[test]
fn a_lightning_checkpoint_of_either_byte_order() {
    for order in ["little", "big"] {
        let tensors = read_checkpoint(&fixture(order)).unwrap();
        assert_eq!(tensors.len(), 14, "the state dict alone");
        let weight = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).view([3, 4]);
        assert_eq!(tensors["encoder.weight"], weight);
        assert_eq!(tensors["encoder.transposed"], weight.tr());
        assert_eq!(tensors["encoder.tail"], Tensor::from_slice(&[10_f32, 11.0]));
        assert_eq!(tensors["scalar"].size(), [0_i64; 0]);
        assert_eq!(tensors["empty"].size(), [0, 3]);
        for (name, kind, values) in [
            ("double", Kind::Double, [0.5, -0.25]),
            ("half", Kind::Half, [0.5, -2.0]),
            ("bfloat16", Kind::BFloat16, [0.5, -3.0]),
            ("long", Kind::Int64, [2_f64.powi(40), -1.0]),
            ("int", Kind::Int, [70000.0, -1.0]),
            ("short", Kind::Int16, [300.0, -1.0]),
            ("char", Kind::Int8, [100.0, -1.0]),
            ("byte", Kind::Uint8, [200.0, 1.0]),
            ("bool", Kind::Bool, [1.0, 0.0]),
        ] {
            assert_eq!(tensors[name].kind(), kind, "{name}");
            assert_eq!(tensors[name].to_kind(Kind::Double), Tensor::from_slice(&values), "{order} {name}");
        }
    }
}

#[test]
fn the_arguments_of_a_lightning_checkpoint() {
    let pickle = [
        b"\x80\x02}".to_vec(),
        text("state_dict"),
        b"}".to_vec(),
        pickled("x", "0", 2, 0, &[2], &[1]),
        b"s".to_vec(),
        text("hyper_parameters"),
        b"}".to_vec(),
        text("args"),
        b"cargparse\nNamespace\n)\x81}(".to_vec(),
        text("heads"),
        b"K\x03".to_vec(),
        text("downsample"),
        b"(K\x04K\x02K\x02t".to_vec(),
        text("logger"),
        b"]".to_vec(),
        // Functions and classes that the file names and never calls.
        text("gpus"),
        b"cpytorch_lightning.utilities.argparse\n_gpus_arg_default\nubss".to_vec(),
        text("callbacks"),
        b"}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nNss.".to_vec(),
    ]
    .concat();
    let tensors =
        Scratch::archive("arguments", &[("data.pkl", &pickle), ("data/0", &[0; 8])]).read().unwrap();
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    assert_eq!(names, ["hyper_parameters.args.downsample", "hyper_parameters.args.heads", "x"]);
    assert_eq!(tensors[names[0]], Tensor::from_slice(&[4_i64, 2, 2]));
    assert_eq!(tensors[names[1]], Tensor::from(3_i64));
}

#[test]
fn what_libtorch_writes_as_a_module() {
    let scratch = Scratch::new("module.pt", b"");
    let (a, b) = (Tensor::from_slice(&[1_f32, 2.0, 3.0]), Tensor::from_slice(&[4_i64, 5]).view([2, 1]));
    let half = a.to_kind(Kind::BFloat16);
    Tensor::save_multi(&[("a", &a), ("b", &b), ("half", &half)], &scratch.0).unwrap();
    let tensors = scratch.read().unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b", "half"]);
    assert_eq!((&tensors["a"], &tensors["b"], &tensors["half"]), (&a, &b, &half));
}

#[test]
fn modules_within_modules_are_named_by_attribute() {
    let module = |name: &str, attributes: Vec<u8>| {
        let class = format!("c__torch__.nets.___torch_mangle_3\n{name}\n").into_bytes();
        [class, b")\x81}(".to_vec(), attributes, b"ub".to_vec()].concat()
    };
    let tensor = pickle_of_one(4, 0, &[4], &[1]);
    // Without the dictionary around the tensor.
    let tensor = &tensor[3 + text("x").len()..tensor.len() - 2];
    let conv = module("Conv3d", [text("training"), vec![0x89], text("weight"), tensor.to_vec()].concat());
    let levels = module("ModuleList", [text("0"), conv].concat());
    let levels = [text("down"), levels, text("name"), text("AE")].concat();
    let root = [b"\x80\x02".to_vec(), module("Encoder", levels), b".".to_vec()].concat();
    let numbers = [0; 16];
    let tensors =
        Scratch::archive("script", &[("data.pkl", &root), ("constants.pkl", b")."), ("data/0", &numbers)])
            .read();
    assert_eq!(tensors.unwrap().keys().collect::<Vec<_>>(), ["down.0.weight"]);
}

#[test]
fn views_stay_inside_their_storage() {
    let numbers: Vec<u8> = [1_f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let read = |pickle: &[u8]| Scratch::archive("view", &[("data.pkl", pickle), ("data/0", &numbers)]).read();
    let square = read(&pickle_of_one(4, 0, &[2, 2], &[1, 2])).unwrap();
    assert_eq!(square["x"], Tensor::from_slice(&[1_f32, 3.0, 2.0, 4.0]).view([2, 2]));
    let row = read(&pickle_of_one(4, 1, &[3], &[1])).unwrap();
    assert_eq!(row["x"], Tensor::from_slice(&[2_f32, 3.0, 4.0]));
    for outside in [
        pickle_of_one(4, 2, &[3], &[1]),
        pickle_of_one(4, 0, &[2, 2], &[3, 1]),
        pickle_of_one(4, 0, &[2], &[1, 1]),
        pickle_of_one(4, 0, &[255, 255, 255, 255, 255, 255, 255, 255, 255], &[0; 9]),
        pickle_of_one(4, 0, &[255, 255, 255, 255], &[0; 4]),
    ] {
        let error = read(&outside).unwrap_err().to_string();
        assert!(error.contains("tensor x") && error.contains("stride"), "{error}");
    }
    // The archive holds fewer numbers, or more, than the pickle says.
    for len in [3, 5] {
        let error = read(&pickle_of_one(len, 0, &[1], &[1])).unwrap_err().to_string();
        assert!(error.contains("damaged or cut short"), "{error}");
    }
}

#[test]
fn functions_are_refused_by_name() {
    for pickle in [
        [b"cos\nsystem\n(".to_vec(), text("true"), b"tR.".to_vec()].concat(),
        [b"\x80\x04".to_vec(), text("builtins"), text("eval"), b"\x93.".to_vec()].concat(),
        b"ctorch\nload\n.".to_vec(),
        b"ctorch.storage\n_load_from_bytes\n.".to_vec(),
        b"cnumpy.core.multiarray\n_reconstruct\n.".to_vec(),
    ] {
        let error = Scratch::archive("function", &[("data.pkl", &pickle)]).read().unwrap_err();
        assert!(matches!(error, ImportError::Global(_)), "{error}");
    }
    let error = Scratch::archive("named", &[("data.pkl", b"cos\nsystem\n.")]).read().unwrap_err();
    assert!(error.to_string().contains("os.system"), "{error}");
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let legacy = Scratch::new("legacy", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
    assert!(matches!(legacy.read(), Err(ImportError::Legacy)));
    assert!(legacy.read().unwrap_err().to_string().contains("torch.save(torch.load("));
    assert!(matches!(read_checkpoint(Path::new("/nowhere/x.pt")), Err(ImportError::File { .. })));
    assert!(Scratch::new("nothing", b"").read().is_err());
    assert!(Scratch::new("words", b"these are words").read().is_err());
    assert!(Scratch::archive("other", &[("readme", b"hello")]).read().is_err());
    assert!(Scratch::archive("lost", &[("data.pkl", &pickle_of_one(4, 0, &[4], &[1]))]).read().is_err());
    assert!(Scratch::archive("bare", &[("data.pkl", b"}.")]).read().is_err());
    // A dictionary in itself, and tuples nested deeper than any stack.
    let knot = [b"}q\x00".to_vec(), text("me"), b"h\x00s.".to_vec()].concat();
    assert!(Scratch::archive("knot", &[("data.pkl", &knot)]).read().is_err());
    let deep = [b"N".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat();
    assert!(Scratch::archive("deep", &[("data.pkl", &deep)]).read().is_err());
    let whole = std::fs::read(fixture("little")).unwrap();
    for end in [4, whole.len() / 2, whole.len() - 1] {
        assert!(Scratch::new("short", &whole[..end]).read().is_err(), "{end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_pickle_panics(at in 0_usize..200, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..8)) {
        let mut pickle = pickle_of_one(4, 0, &[2, 2], &[2, 1]);
        let at = at % pickle.len();
        pickle[at] = byte;
        pickle.splice(at + 1..at + 1, tail);
        let numbers = [0; 16];
        let _ = Scratch::archive("mutant", &[("data.pkl", &pickle), ("data/0", &numbers)]).read();
    }
}
