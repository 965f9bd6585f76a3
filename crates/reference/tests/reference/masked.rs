//! The maps of MaskGIT's, MAGVIT's and open-muse's checkpoints, tried on golden cases.

use std::sync::atomic::{AtomicUsize, Ordering};

use maskgit::vqgan::Vqgan;
use maskgit::{Columns, MaskGit};
use reference::case::Case;
use reference::import::{ImportError, Imported, Model, import, import_with, read_checkpoint};
use reference::weights::{Weights, load_into};
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::VideoTokenizer;

use crate::checkpoints::Scratch;
use crate::imports::{case_of, near};

/// A flax checkpoint of these arrays, written as flax does.
fn flax_file(weights: &Weights) -> Vec<u8> {
    use rmpv::Value;
    fn pack(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }
    fn insert(tree: &mut Vec<(Value, Value)>, path: &[&str], leaf: Value) {
        let [first, rest @ ..] = path else { return };
        if rest.is_empty() {
            tree.push(((*first).into(), leaf));
            return;
        }
        let at = tree.iter().position(|(key, _)| key.as_str() == Some(first)).unwrap_or_else(|| {
            tree.push(((*first).into(), Value::Map(Vec::new())));
            tree.len() - 1
        });
        let Value::Map(below) = &mut tree[at].1 else { panic!("{path:?}") };
        insert(below, rest, leaf);
    }
    let mut params = Vec::new();
    for (name, tensor) in weights {
        let tensor = tensor.to_kind(Kind::Float).contiguous();
        let numbers: Vec<u8> = Vec::<f32>::try_from(tensor.reshape([-1]))
            .unwrap()
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let shape = Value::Array(tensor.size().into_iter().map(Value::from).collect());
        let array = Value::Array(vec![shape, "float32".into(), Value::Binary(numbers)]);
        insert(&mut params, &name.split('/').collect::<Vec<_>>(), Value::Ext(1, pack(&array)));
    }
    pack(&Value::Map(vec![("step".into(), 7.into()), ("params".into(), Value::Map(params))]))
}

/// How many files were written.
static FILES: AtomicUsize = AtomicUsize::new(0);

/// What reading a file of these bytes gives.
fn read_bytes(bytes: &[u8]) -> Result<Weights, ImportError> {
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    read_checkpoint(Scratch::new(&format!("flax-{number}"), bytes).path())
}

#[test]
fn maskgit_tokenizer_from_flax() {
    for name in ["vqgan_train_vq_argmax", "vqgan_train_gumbel"] {
        let Some(case) = case_of("maskgit", name) else { return };
        let bytes = flax_file(&case.weights());
        let weights = read_bytes(&bytes).unwrap();
        assert!(weights.contains_key("params/encoder/Conv_0/kernel"));
        let Imported { model, tensors, .. } = import("maskgit-vqgan", &weights).unwrap();
        let Model::Vqgan(config) = &model else { panic!("{model:?}") };
        assert_eq!((config.filters, &config.channel_multipliers[..]), (8, &[1, 2][..]));
        let variables = nn::VarStore::new(Device::Cpu);
        let tokenizer = Vqgan::new(&variables.root(), config).unwrap();
        load_into(&variables, &tensors).unwrap();
        let image = case.input("image").unwrap().movedim_int(-1, 1).unsqueeze(2) * 2.0 - 1.0;
        let tokens = tokenizer.encode(&image).unwrap();
        assert_eq!(&tokens.ids().squeeze_dim(1), &case.tensor("out/ids").unwrap());
        // In training, the reference decodes the mixture of codes that noise makes, in the Gumbel case.
        if name.contains("vq_") {
            let theirs = case.tensor("out/reconstruction").unwrap().movedim_int(-1, 1).unsqueeze(2);
            near(&tokenizer.decode(&tokens).unwrap(), &(theirs * 2.0 - 1.0).clamp(-1.0, 1.0));
        }
        assert!(matches!(read_bytes(&bytes[..bytes.len() / 2]), Err(ImportError::Damaged(_))));
    }
}

/// The case's weights with as many codes as the published transformer has.
fn with_published_codes(weights: &Weights, codes: i64) -> Weights {
    let widened = |(name, tensor): (&String, &Tensor)| {
        let by_id = name.ends_with("word_embeddings/embedding") || name.ends_with("mlm_bias/bias");
        let tensor = if by_id {
            let more = tensor.narrow(0, 0, 1).repeat(if tensor.dim() == 1 {
                vec![1024 - codes]
            } else {
                vec![1024 - codes, 1]
            });
            let rest = tensor.size()[0] - codes;
            Tensor::cat(&[tensor.narrow(0, 0, codes), more, tensor.narrow(0, codes, rest)], 0)
        } else {
            tensor.shallow_clone()
        };
        (name.clone(), tensor)
    };
    weights.iter().map(widened).collect()
}

#[test]
fn maskgit_transformer_from_flax() {
    let Some(case) = case_of("maskgit", "transformer_forward_a") else { return };
    let weights = read_bytes(&flax_file(&with_published_codes(&case.weights(), 32))).unwrap();
    let Imported { model, tensors, .. } = import("maskgit", &weights).unwrap();
    let Model::Maskgit(config) = &model else { panic!("{model:?}") };
    assert_eq!((config.num_classes, config.grid.height, config.num_attention_heads), (10, 4, 3));
    let variables = nn::VarStore::new(Device::Cpu);
    let model = MaskGit::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
    // Their ids of classes follow 32 codes, ours 1024.
    let ids = case.input("input_ids").unwrap();
    let ids = (&ids + 992i64).where_self(&ids.ge(32), &ids);
    let logits = no_grad(|| {
        let hidden = model.transformer().hidden(&ids, None, false).unwrap();
        let rows = Tensor::arange(ids.numel() as i64, (Kind::Int64, Device::Cpu));
        model.transformer().logits(&hidden, &rows, Columns::Codes).unwrap()
    });
    let ours = logits.factors()[0].narrow(1, 0, 32);
    near(&ours, &case.tensor("out/logits").unwrap().flatten(0, 1).narrow(1, 0, 32));

    let error = import("maskgit", &case.weights()).unwrap_err().to_string();
    assert!(error.contains("43 rows") && error.contains("1024 codes"), "{error}");
}

#[test]
fn magvit_3d_tokenizer_from_flax() {
    let Some(halves) = ["encode", "decode"]
        .map(|half| case_of("maskgit", &format!("magvit_vqgan3d_{half}_ln_avg")))
        .into_iter()
        .collect::<Option<Vec<Case>>>()
    else {
        return;
    };
    let mut weights = Weights::new();
    for (half, case) in ["encoder", "decoder"].into_iter().zip(&halves) {
        weights.extend(case.weights().into_iter().map(|(name, tensor)| (format!("{half}/{name}"), tensor)));
    }
    let width = halves[0].tensor("out/features").unwrap().size()[4];
    weights.insert("quantizer/codebook".into(), Tensor::rand([1024, width], tch::kind::FLOAT_CPU));
    let Imported { model, tensors, .. } = import("magvit-vqgan", &weights).unwrap();
    let Model::Vqgan(config) = &model else { panic!("{model:?}") };
    let variables = nn::VarStore::new(Device::Cpu);
    Vqgan::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
}

#[test]
fn open_muse() {
    let Some(case) = case_of("muse", "openmuse_maskgit_vqgan_encode") else { return };
    let Some(decoder) = case_of("muse", "openmuse_maskgit_vqgan_decode") else { return };
    let mut weights = case.weights();
    weights.extend(decoder.weights());
    let Imported { model, tensors, .. } = import("open-muse-vqgan", &weights).unwrap();
    let Model::Vqgan(config) = &model else { panic!("{model:?}") };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Vqgan::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let features =
        no_grad(|| tokenizer.features(&(case.input("image").unwrap().unsqueeze(2) * 2.0 - 1.0))).unwrap();
    near(&features.squeeze_dim(1).permute([0, 3, 1, 2]), &case.tensor("out/features").unwrap());

    for (name, system) in
        [("openmuse_transformer_text_rms", "open-muse"), ("openmuse_uvit_ln_down", "open-muse-uvit")]
    {
        let Some(case) = case_of("muse", name) else { return };
        let path = crate::full_set().join(format!("muse/{name}.json"));
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let config = json["config"].to_string();
        let Imported { model, .. } = import_with(system, &case.weights(), Some(&config)).unwrap();
        assert!(matches!(model, Model::OpenMuse(_) | Model::OpenMuseUvit(_)));
        let error = import(system, &case.weights()).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}
