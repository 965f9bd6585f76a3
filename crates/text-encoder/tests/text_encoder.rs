//! Opening checkpoints, and what is refused.

use std::path::Path;

use tch::{Device, Kind, Tensor, nn};
use text_encoder::{FeedForward, T5Config, T5Encoder, TextEncoder};

fn tiny() -> T5Config {
    T5Config {
        vocab_size: 6,
        d_model: 16,
        d_kv: 4,
        d_ff: 24,
        num_layers: 2,
        num_heads: 2,
        ..T5Config::v1_1_small()
    }
}

/// A tokenizer of whole words that ends texts with `</s>`.
const TOKENIZER: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": { "type": "WhitespaceSplit" },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
        "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } }
    },
    "decoder": null,
    "model": { "type": "WordLevel", "unk_token": "<unk>", "vocab": { "<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "ball": 4 } }
}"#;

fn write_checkpoint(folder: &Path, config: &T5Config, leave_out: &str) -> nn::VarStore {
    let variables = nn::VarStore::new(Device::Cpu);
    T5Encoder::new(&variables.root(), config).unwrap();
    let mut json = serde_json::to_value(config).unwrap();
    json["num_decoder_layers"] = 2.into();
    std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    let mut tensors: Vec<(String, Tensor)> =
        variables.variables().into_iter().filter(|(name, _)| name != leave_out).collect();
    tensors.push(("decoder.final_layer_norm.weight".into(), Tensor::ones([16], (Kind::Float, Device::Cpu))));
    let (first, second) = tensors.split_at(3);
    Tensor::write_safetensors(first, folder.join("a.safetensors")).unwrap();
    Tensor::write_safetensors(second, folder.join("b.safetensors")).unwrap();
    let map = |part: &[(String, Tensor)], file: &str| -> Vec<(String, serde_json::Value)> {
        part.iter().map(|(name, _)| (name.clone(), file.into())).collect()
    };
    let weight_map: serde_json::Map<String, serde_json::Value> =
        map(first, "a.safetensors").into_iter().chain(map(second, "b.safetensors")).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    variables
}

#[test]
fn a_published_folder_opens_and_encodes() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny();
    let _variables = write_checkpoint(folder.path(), &config, "");
    let encoder = TextEncoder::open(folder.path(), Device::Cpu, 4).unwrap();
    assert_eq!(encoder.dim(), 16);
    let (states, mask) = encoder.encode(&["red ball", "ball"]).unwrap();
    assert_eq!(states.size(), [2, 3, 16]);
    assert_eq!(mask, Tensor::from_slice2(&[[true, true, true], [true, true, false]]));
    assert_eq!(states.get(1).get(2).abs().max().double_value(&[]), 0.0);
    // Padding changes nothing for others.
    let (alone, _) = encoder.encode(&["ball"]).unwrap();
    let difference = (states.get(1).narrow(0, 0, 2) - alone.get(0)).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");

    let long = encoder.encode(&["red red red red"]).unwrap_err().to_string();
    assert!(long.contains("5 tokens") && long.contains("at most 4"), "{long}");
    assert!(encoder.encode(&[]).is_err());
}

#[test]
fn what_is_missing_or_malformed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = || TextEncoder::open(folder.path(), Device::Cpu, 4).unwrap_err().to_string();
    assert!(open().contains("config.json"));
    write_checkpoint(folder.path(), &tiny(), "encoder.block.1.layer.0.SelfAttention.q.weight");
    assert!(open().contains("block.1.layer.0.SelfAttention.q"));
    write_checkpoint(folder.path(), &tiny(), "");
    let wider = serde_json::to_string(&T5Config { d_ff: 25, ..tiny() }).unwrap();
    std::fs::write(folder.path().join("config.json"), wider).unwrap();
    assert!(open().contains("DenseReluDense"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().contains("tokenizer.json"));
}

#[test]
fn bad_configs_and_ids_are_refused() {
    let refused = |config: T5Config| {
        T5Encoder::new(&nn::VarStore::new(Device::Cpu).root(), &config).unwrap_err().to_string()
    };
    assert!(refused(T5Config { num_heads: 0, ..tiny() }).contains("num_heads"));
    assert!(refused(T5Config { relative_attention_num_buckets: 3, ..tiny() }).contains("buckets"));
    assert!(refused(T5Config { relative_attention_max_distance: 8, ..tiny() }).contains("max_distance"));
    let variables = nn::VarStore::new(Device::Cpu);
    let config = T5Config { feed_forward_proj: FeedForward::Relu, ..tiny() };
    let encoder = T5Encoder::new(&variables.root(), &config).unwrap();
    let ids = Tensor::from_slice2(&[[3i64, 6]]);
    assert!(encoder.forward(&ids, &ids.ne(0)).unwrap_err().to_string().contains("0..6"));
    assert!(encoder.forward(&ids.narrow(1, 0, 1), &ids.ne(0)).is_err());
    assert!(T5Config::from_published("[]").is_err());
    assert!(T5Config::from_published("{\"d_model\": 3}").is_err());
}

#[test]
fn the_first_published_configs_say_nothing_of_the_mlp() {
    let json = r#"{
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512, "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_heads": 8, "num_layers": 6,
        "relative_attention_num_buckets": 32, "task_specific_params": {}, "vocab_size": 32128
    }"#;
    let config = T5Config::from_published(json).unwrap();
    assert_eq!(config.feed_forward_proj, FeedForward::Relu);
    config.validate().unwrap();
}
