//! The maps from published checkpoints, tried on golden cases, whose weights have the published names.

use std::path::Path;

use causal_conv::cosmos::{CosmosConfig, CosmosTokenizer};
use causal_conv::magvit2::Magvit2;
use causal_conv::open_magvit2::{OpenMagvit2, OpenMagvit2Config};
use quantizers::{LfqConfig, QuantizerConfig};
use reference::case::Case;
use reference::import::{ImportError, Imported, Model, import};
use reference::weights::{Weights, WeightsError, load_into};
use tch::{Device, Kind, Tensor, nn, no_grad};
use var_next_scale::{Var, VarConfig, Vqvae, VqvaeConfig};
use video_core::{TokenGrid, VideoTokenizer};
use video_gpt::{AttentionType, GptCondition, VideoGpt, VqVae};

use crate::checkpoints::{Scratch, training_checkpoint};

fn case(name: &str) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/magvit2/{name}.json"));
    Case::load(&path).unwrap()
}

/// A case that is too large to be vendored, where the full set stands beside the checkout.
fn large_case(name: &str) -> Option<Case> {
    case_of("magvit2", name)
}

pub fn case_of(system: &str, name: &str) -> Option<Case> {
    let path = crate::full_set().join(format!("{system}/{name}.json"));
    let case = path.is_file().then(|| Case::load(&path).unwrap());
    if case.is_none() {
        eprintln!("no {}: not checked", path.display());
    }
    case
}

/// The same weights as part of a training run's checkpoint.
fn with_prefix(prefix: &str, weights: &Weights) -> Weights {
    let mut all: Weights =
        weights.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect();
    all.insert("discriminator.weight".into(), Tensor::zeros([2], tch::kind::FLOAT_CPU));
    all
}

pub fn near(ours: &Tensor, theirs: &Tensor) {
    assert!(ours.allclose(theirs, 1e-3, 1e-3, false), "{:?}", (ours - theirs).abs().max());
}

#[test]
fn o2_magvit2() {
    let case = case("tokenizer_image");
    let Imported { model, tensors, .. } =
        import("o2-magvit2", &with_prefix("tokenizer.", &case.weights())).unwrap();
    let Model::Magvit2(config) = model else { panic!("{model:?}") };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = Magvit2::new(&variables.root(), &config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let tokens = no_grad(|| tokenizer.encode(&case.input("x").unwrap())).unwrap();
    // Ids are in our order of bits, which is the reverse of theirs.
    let bits = config.latent_channels().unwrap();
    let theirs = case.tensor("out/ids").unwrap();
    let reversed = (0..bits).fold(theirs.zeros_like(), |ids, bit| {
        let digit = theirs.divide_scalar_mode(1_i64 << bit, "floor").remainder(2);
        ids * 2 + digit
    });
    assert_eq!(tokens.ids(), &reversed);
    let decoded = tokenizer.decode(&tokens).unwrap();
    near(&decoded, &case.tensor("out/recon").unwrap().clamp(-1.0, 1.0));
}

#[test]
fn cosmos_continuous() {
    let Some(case) = large_case("cosmos_tokenizer_cv") else { return };
    let mut weights = with_prefix("", &case.weights());
    weights.insert("encoder.patcher3d.wavelets".into(), Tensor::from_slice(&[0.70710677_f32, 0.70710677]));
    let Imported { model, tensors, .. } = import("cosmos-cv4x8x8", &weights).unwrap();
    let Model::Cosmos(config) = &model else { panic!("{model:?}") };
    assert_eq!(config.decoder_channels_mult, Some(vec![2, 4]));
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = CosmosTokenizer::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
    no_grad(|| {
        let latent = tokenizer.encode_features(&case.input("x").unwrap()).unwrap();
        near(&latent, &case.tensor("out/latent").unwrap());
        near(&tokenizer.decode_features(&latent).unwrap(), &case.tensor("out/recon").unwrap());
    });
    // A model goes through a file as words.
    let words = serde_json::to_string(&model).unwrap();
    assert!(words.contains(r#""kind":"cosmos""#), "{words}");
    assert_eq!(serde_json::from_str::<Model>(&words).unwrap(), model);
}

/// A model's variables.
fn variables_of(variables: &nn::VarStore) -> Weights {
    variables.variables().into_iter().collect()
}

#[test]
fn cosmos_discrete() {
    // The published attention stands at a height that three levels do not reach.
    let config = CosmosConfig {
        channels: 8,
        num_res_blocks: 1,
        attn_resolutions: Vec::new(),
        ..CosmosConfig::dv4x8x8()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = CosmosTokenizer::new(&variables.root(), &config).unwrap();
    // The reference keeps every convolution and norm in a wrapper.
    let theirs = |ours: &str| {
        let (layer, leaf) = ours.rsplit_once('.').unwrap();
        let is_norm = layer.rsplit_once('.').unwrap_or_default().1.starts_with("norm");
        format!("{layer}.{}.{leaf}", if is_norm { "norm" } else { "conv3d" })
    };
    let mut weights: Weights =
        variables_of(&variables).into_iter().map(|(name, tensor)| (theirs(&name), tensor)).collect();
    for table in ["quantizer._levels", "quantizer._basis"] {
        weights.insert(table.into(), Tensor::ones([6], (Kind::Int, Device::Cpu)));
    }
    let Imported { model, tensors, .. } = import("cosmos-dv4x8x8", &weights).unwrap();
    assert_eq!(model, Model::Cosmos(config.clone()));
    let copy = nn::VarStore::new(Device::Cpu);
    let imported = CosmosTokenizer::new(&copy.root(), &config).unwrap();
    load_into(&copy, &tensors).unwrap();
    let video = Tensor::rand([1, 3, 5, 16, 16], (Kind::Float, Device::Cpu)) * 2 - 1;
    let tokens = tokenizer.encode(&video).unwrap();
    assert_eq!(tokens.ids(), imported.encode(&video).unwrap().ids());
    assert_eq!(tokens.ids().size(), [1, 2, 2, 2]);
    // A continuous checkpoint is no discrete one.
    weights.insert("quant_conv.conv3d.weight".into(), Tensor::zeros([16, 16, 1, 1, 1], tch::kind::FLOAT_CPU));
    let error = import("cosmos-dv4x8x8", &weights).unwrap_err().to_string();
    assert!(error.contains("quant_conv") && error.contains("[16, 16, 1, 1, 1]"), "{error}");
}

/// A small Open-MAGVIT2 tokenizer.
fn open_magvit2(adaptive_norm: bool) -> (nn::VarStore, OpenMagvit2, OpenMagvit2Config) {
    let config = OpenMagvit2Config {
        ch: 8,
        num_res_blocks: 1,
        z_channels: 5,
        ch_mult: vec![1, 2],
        resolution: 32,
        num_groups: 8,
        adaptive_norm,
        quantizer: QuantizerConfig::Lfq(LfqConfig::with_bits(5)),
        ..OpenMagvit2Config::large_256()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = OpenMagvit2::new(&variables.root(), &config).unwrap();
    (variables, tokenizer, config)
}

#[test]
fn open_magvit2_by_its_moving_averages() {
    let (variables, tokenizer, config) = open_magvit2(true);
    let averages = variables_of(&variables);
    // What was trained, its average, and what a tokenizer does not need.
    let mut checkpoint = Weights::new();
    for (name, average) in &averages {
        checkpoint.insert(format!("model_ema.{}", name.replace('.', "")), average.shallow_clone());
        checkpoint.insert(name.clone(), average.detach() + 1.0);
    }
    for other in
        ["loss.discriminator.main.0.weight", "model_ema.lossdiscriminatormain0weight", "model_ema.decay"]
    {
        checkpoint.insert(other.into(), Tensor::zeros([2], tch::kind::FLOAT_CPU));
    }
    let pytorch = training_checkpoint("open.ckpt", &checkpoint);
    let safetensors = Scratch::new("open.safetensors", b"");
    let entries: Vec<(&str, &Tensor)> = checkpoint.iter().map(|(name, t)| (name.as_str(), t)).collect();
    Tensor::write_safetensors(&entries, safetensors.path()).unwrap();
    let image = Tensor::rand([1, 3, 1, 8, 8], (Kind::Float, Device::Cpu)) * 2 - 1;
    for file in [&pytorch, &safetensors] {
        let imported = import("open-magvit2", &file.read().unwrap()).unwrap();
        assert!(imported.taken.contains("model_ema"), "{}", imported.taken);
        assert_eq!(imported.model, Model::OpenMagvit2(config.clone()));
        let copy = nn::VarStore::new(Device::Cpu);
        let ours = OpenMagvit2::new(&copy.root(), &config).unwrap();
        load_into(&copy, &imported.tensors).unwrap();
        assert_eq!(ours.encode(&image).unwrap().ids(), tokenizer.encode(&image).unwrap().ids());
    }
    // A model that is there by half is refused, whatever else the file holds.
    let mut half = pytorch.read().unwrap();
    half.remove("model_ema.decoderconv_outbias");
    let error = import("open-magvit2", &half).unwrap_err();
    assert!(
        matches!(&error, ImportError::Weights(WeightsError::Missing(name)) if name == "decoder.conv_out.bias")
    );
    half.insert("model_ema.decoderconv_outbias".into(), Tensor::zeros([7], tch::kind::FLOAT_CPU));
    let error = import("open-magvit2", &half).unwrap_err().to_string();
    assert!(
        error.contains("decoder.conv_out.bias") && error.contains("[7]") && error.contains("[3]"),
        "{error}"
    );
    half.insert("model_ema.decoderodd".into(), Tensor::from(1_f32));
    let error = import("open-magvit2", &half).unwrap_err().to_string();
    assert!(error.contains("model_ema.decoderodd"), "{error}");
    // Without averages, the weights.
    checkpoint.retain(|name, _| !name.starts_with("model_ema."));
    let imported = import("open-magvit2", &checkpoint).unwrap();
    assert!(imported.taken.contains("no moving averages"), "{}", imported.taken);
    assert!(imported.tensors["decoder.conv_out.bias"] == averages["decoder.conv_out.bias"].detach() + 1.0);
}

#[test]
fn one_x_counts_from_the_other_end() {
    let (variables, tokenizer, _) = open_magvit2(false);
    let imported = import("1x-magvit2", &variables_of(&variables)).unwrap();
    let Model::OpenMagvit2(config) = &imported.model else { panic!("{:?}", imported.model) };
    assert!(!config.adaptive_norm);
    let copy = nn::VarStore::new(Device::Cpu);
    let ours = OpenMagvit2::new(&copy.root(), config).unwrap();
    load_into(&copy, &imported.tensors).unwrap();
    let image = Tensor::rand([1, 3, 1, 16, 16], (Kind::Float, Device::Cpu)) * 2 - 1;
    let little = tokenizer.encode(&image).unwrap();
    let reversed = (0..5).fold(little.ids().zeros_like(), |ids, bit| {
        ids * 2 + little.ids().divide_scalar_mode(1_i64 << bit, "floor").remainder(2)
    });
    assert_eq!(ours.encode(&image).unwrap().ids(), &reversed);
}

#[test]
fn video_gpt() {
    let Some(case) = case_of("video-gpt", "gpt_sample_greedy_frame") else { return };
    // A prior's checkpoint holds its VQ-VAE, and full attention a mask.
    let mut weights = with_prefix("", &case.weights());
    let mask = Tensor::ones([18, 18], tch::kind::FLOAT_CPU).tril(0);
    weights.insert("attn_stack.attn_nets.0.attn.attn.mask".into(), mask);
    weights.insert("vqvae.encoder.res_stack.1.num_batches_tracked".into(), Tensor::from(3_i64));
    // Shapes do not tell the heads, its arguments do.
    weights.insert("hyper_parameters.args.heads".into(), Tensor::from(3_i64));

    let Imported { model, tensors, .. } = import("videogpt-stride4x4x4", &weights).unwrap();
    let Model::VideoGptVqVae(config) = &model else { panic!("{model:?}") };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = VqVae::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let tokens = TokenGrid::new(case.tensor("out/tokens").unwrap()).unwrap();
    let video = tokenizer.decode(&tokens).unwrap();
    near(&((video + 1.0) / 2.0), &case.tensor("out/video").unwrap());

    let Imported { model, tensors, .. } = import("videogpt-gpt", &weights).unwrap();
    let Model::VideoGpt(config) = model else { panic!("{model:?}") };
    assert_eq!((config.attn_type, config.heads), (AttentionType::Full, 3));
    let variables = nn::VarStore::new(Device::Cpu);
    let prior = VideoGpt::new(&variables.root(), &config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let frames = case.input("frames").unwrap();
    let condition = GptCondition { class: None, frames: Some(&frames) };
    let logits = no_grad(|| prior.forward(&tokens, condition, false)).unwrap();
    let log_probs = logits.flatten(1, 3).log_softmax(-1, tch::Kind::Float);
    near(&log_probs, &case.tensor("out/step_log_probs").unwrap());

    // A VQ-VAE's own arguments tell its strides.
    assert!(import("videogpt-vqvae", &weights).unwrap_err().to_string().contains("downsample"));
    weights.insert("hyper_parameters.args.downsample".into(), Tensor::from_slice(&[4_i64, 4, 4]));
    let Imported { model, .. } = import("videogpt-vqvae", &weights).unwrap();
    assert!(matches!(model, Model::VideoGptVqVae(config) if config.downsample == [4; 3]));
    let refused = import("videogpt-stride4x2x2", &weights).unwrap_err().to_string();
    assert!(refused.contains("[4, 4, 4]"), "{refused}");
}

#[test]
fn the_first_tensor_that_does_not_fit_is_named() {
    let weights = case("tokenizer_image").weights();
    let refusal = |change: &dyn Fn(&mut Weights)| {
        let mut weights = weights.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        change(&mut weights);
        import("o2-magvit2", &weights).unwrap_err()
    };
    let last = "encoder.final_norm.norm_fn.weight";
    let missing = refusal(&|weights| drop(weights.remove(last)));
    assert!(
        matches!(&missing, ImportError::Weights(WeightsError::Missing(name)) if name == "encoder.norm_out.weight")
    );
    let unexpected = refusal(&|weights| drop(weights.insert("encoder.odd".into(), Tensor::from(1_f32))));
    assert!(
        matches!(&unexpected, ImportError::Weights(WeightsError::Unexpected(name)) if name == "encoder.odd")
    );
    let misshapen =
        refusal(&|weights| drop(weights.insert(last.into(), Tensor::zeros([3], tch::kind::FLOAT_CPU))));
    assert!(misshapen.to_string().contains("[3]"), "{misshapen}");
    let scalar = refusal(&|weights| {
        weights.insert("encoder.conv_first.conv.weight".into(), Tensor::from(1_f32));
    });
    assert!(scalar.to_string().contains("conv_first"), "{scalar}");
    let nothing = refusal(&Weights::clear);
    assert!(nothing.to_string().contains("conv_first"), "{nothing}");
    assert!(import("nonsense", &weights).unwrap_err().to_string().contains("o2-magvit2"));
}

/// The variables of a model of ours under published names, with what published files hold beside them.
fn published(variables: &nn::VarStore) -> Weights {
    let mut weights: Weights = variables.variables().into_iter().collect();
    weights.retain(|name, _| !name.ends_with("record_hit"));
    with_prefix("trainer.", &weights)
}

#[test]
fn var_tokenizer() {
    for share_quant_resi in [0, 1, 4] {
        let variables = nn::VarStore::new(Device::Cpu);
        let mut config =
            VqvaeConfig { ch: 32, ch_mult: vec![1, 2], num_res_blocks: 1, ..VqvaeConfig::default() };
        config.quantizer.vocab_size = 16;
        config.quantizer.share_quant_resi = share_quant_resi;
        config.quantizer.default_qresi_counts = if share_quant_resi == 0 { 10 } else { 0 };
        Vqvae::new(&variables.root(), &config).unwrap();
        let Imported { model, tensors, .. } = import("var-vqvae-256", &published(&variables)).unwrap();
        assert_eq!(model, Model::VarVqvae(config));
        assert_eq!(tensors.len(), variables.variables().len());
        // Of the other size only the count of hits starts anew.
        let Imported { model, .. } = import("var-vqvae-512", &published(&variables)).unwrap();
        let Model::VarVqvae(config) = model else { panic!("{model:?}") };
        assert_eq!(config.quantizer.v_patch_nums, VarConfig::var_d36().patch_nums);
    }
}

#[test]
fn var_transformer() {
    for (shared_aln, levels) in [(false, true), (true, false)] {
        let variables = nn::VarStore::new(Device::Cpu);
        let patch_nums = if levels { vec![1, 2, 3] } else { VarConfig::var_d16().patch_nums };
        let config = VarConfig {
            vocab_size: 16,
            z_channels: 4,
            num_classes: 3,
            depth: 2,
            embed_dim: 16,
            num_heads: 4,
            drop_path_rate: 0.1 * 2.0 / 24.0,
            shared_aln,
            patch_nums,
            ..VarConfig::default()
        };
        Var::new(&variables.root(), &config).unwrap();
        let mut weights = published(&variables);
        weights.insert("trainer.blocks.0.attn.zero_k_bias".into(), Tensor::zeros([16], tch::kind::FLOAT_CPU));
        if levels {
            let table = config.pyramid().unwrap().levels(Device::Cpu).unsqueeze(0);
            weights.insert("trainer.lvl_1L".into(), table);
        }
        let Imported { model, tensors, .. } = import("var", &weights).unwrap();
        assert_eq!(model, Model::Var(config));
        assert_eq!(tensors.len(), variables.variables().len());
        weights.remove("trainer.head.bias");
        assert!(matches!(import("var", &weights), Err(ImportError::Weights(WeightsError::Missing(_)))));
    }
}
