//! The maps from published checkpoints, tried on golden cases, whose weights have the published names.

use std::path::Path;

use causal_conv::cosmos::CosmosTokenizer;
use causal_conv::magvit2::Magvit2;
use reference::case::Case;
use reference::import::{ImportError, Imported, Model, import};
use reference::weights::{Weights, WeightsError, load_into};
use tch::{Device, Tensor, nn, no_grad};
use var_next_scale::{Var, VarConfig, Vqvae, VqvaeConfig};
use video_core::{TokenGrid, VideoTokenizer};
use video_gpt::{AttentionType, GptCondition, VideoGpt, VqVae};

fn case(name: &str) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/magvit2/{name}.json"));
    Case::load(&path).unwrap()
}

/// A case that is too large to be vendored, where the full set stands beside the checkout.
fn large_case(name: &str) -> Option<Case> {
    case_of("magvit2", name)
}

fn case_of(system: &str, name: &str) -> Option<Case> {
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

fn near(ours: &Tensor, theirs: &Tensor) {
    assert!(ours.allclose(theirs, 1e-3, 1e-3, false), "{:?}", (ours - theirs).abs().max());
}

#[test]
fn o2_magvit2() {
    let case = case("tokenizer_image");
    let Imported { model, tensors } =
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
    let Imported { model, tensors } = import("cosmos-cv4x8x8", &weights).unwrap();
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

#[test]
fn video_gpt() {
    let Some(case) = case_of("video-gpt", "gpt_sample_greedy_frame") else { return };
    // A prior's checkpoint holds its VQ-VAE, and full attention a mask.
    let mut weights = with_prefix("", &case.weights());
    let mask = Tensor::ones([18, 18], tch::kind::FLOAT_CPU).tril(0);
    weights.insert("attn_stack.attn_nets.0.attn.attn.mask".into(), mask);
    weights.insert("vqvae.encoder.res_stack.1.num_batches_tracked".into(), Tensor::from(3_i64));

    let Imported { model, tensors } = import("videogpt-stride4x4x4", &weights).unwrap();
    let Model::VideoGptVqVae(config) = &model else { panic!("{model:?}") };
    let variables = nn::VarStore::new(Device::Cpu);
    let tokenizer = VqVae::new(&variables.root(), config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let tokens = TokenGrid::new(case.tensor("out/tokens").unwrap()).unwrap();
    let video = tokenizer.decode(&tokens).unwrap();
    near(&((video + 1.0) / 2.0), &case.tensor("out/video").unwrap());

    let Imported { model, tensors } = import("videogpt-gpt", &weights).unwrap();
    let Model::VideoGpt(mut config) = model else { panic!("{model:?}") };
    assert_eq!(config.attn_type, AttentionType::Full);
    // Shapes do not tell the heads, and this case has not the published number.
    config.heads = 3;
    let variables = nn::VarStore::new(Device::Cpu);
    let prior = VideoGpt::new(&variables.root(), &config).unwrap();
    load_into(&variables, &tensors).unwrap();
    let frames = case.input("frames").unwrap();
    let condition = GptCondition { class: None, frames: Some(&frames) };
    let logits = no_grad(|| prior.forward(&tokens, condition, false)).unwrap();
    let log_probs = logits.flatten(1, 3).log_softmax(-1, tch::Kind::Float);
    near(&log_probs, &case.tensor("out/step_log_probs").unwrap());
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
        let Imported { model, tensors } = import("var-vqvae-256", &published(&variables)).unwrap();
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
        let Imported { model, tensors } = import("var", &weights).unwrap();
        assert_eq!(model, Model::Var(config));
        assert_eq!(tensors.len(), variables.variables().len());
        weights.remove("trainer.head.bias");
        assert!(matches!(import("var", &weights), Err(ImportError::Weights(WeightsError::Missing(_)))));
    }
}
