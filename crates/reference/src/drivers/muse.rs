//! Muse as in muse-maskgit-pytorch (entries `muse.*` but those of its tokenizer).

use ::maskgit::muse::{
    Critic, FeedForward, MuseAttention, MuseConfig, MuseContext, MuseDraws, MuseLoss, MuseMask, MuseNoise,
    MuseSampling, MuseTransformer, critic_loss, generate as muse_generate, masked_counts, muse_loss,
    sample_ids, top_fraction,
};
use layers::Linear;
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn, no_grad};

use super::Driver;
use super::maskgit::{all_rows, split_config};
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("muse.attention", attention),
    ("muse.feed_forward", feed_forward),
    ("muse.transformer.forward", forward),
    ("muse.transformer.cond_scale", cond_scale),
    ("muse.token_critic", token_critic),
    ("muse.mask", mask),
    ("muse.schedule_counts", schedule_counts),
    ("muse.sampling.step", sampling_step),
    ("muse.loss", loss),
    ("muse.generate", generate),
];

/// Our name of a tensor of the reference; none for the zero buffers `beta` and the norm that it never uses.
fn our_name(name: &str) -> Option<String> {
    if name.ends_with(".beta") {
        return None;
    }
    for (theirs, ours) in [("transformer.", "transformer."), ("token_critic.", "token_critic.")] {
        if let Some(rest) = name.strip_prefix(theirs) {
            if rest.starts_with("net.") {
                // A critic on the generator repeats it.
                return None;
            }
            return Some(format!("{ours}{}", our_name(rest)?));
        }
    }
    if let Some(rest) = name.strip_prefix("transformer_blocks.layers.") {
        let (block, rest) = rest.split_once('.')?;
        let (part, rest) = rest.split_once('.')?;
        let ours = match part {
            "0" => format!("self_attention.{rest}"),
            "1" => format!("cross_attention.{rest}"),
            _ => format!("feed_forward.{}", feed_forward_name(rest)),
        };
        return Some(format!("blocks.{block}.{ours}"));
    }
    if let Some(rest) = name.strip_prefix("self_cond_to_init_embed.") {
        return Some(format!("self_cond.{}", feed_forward_name(rest)));
    }
    match name {
        "transformer_blocks.norm.gamma" => Some("norm.gamma".into()),
        "norm.gamma" => None,
        "token_emb.weight" => Some("token_emb".into()),
        "pos_emb.weight" => Some("pos_emb".into()),
        other => Some(other.into()),
    }
}

fn feed_forward_name(name: &str) -> String {
    let (index, leaf) = name.split_once('.').unwrap_or((name, ""));
    let part = match index {
        "0" => "norm",
        "1" => "up",
        "3" => "inner_norm",
        _ => "down",
    };
    format!("{part}.{leaf}")
}

/// A model with the case's weights.
struct Loaded<M> {
    model: M,
    store: nn::VarStore,
}

fn load<M>(
    case: &Case,
    rename: impl Fn(&str) -> Option<String>,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<Loaded<M>, CaseError> {
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    let weights: Weights =
        case.weights().into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor))).collect();
    load_into(&store, &weights)?;
    Ok(Loaded { model, store })
}

fn one_output(name: &str, tensor: &Tensor) -> Outputs {
    let mut outputs = Outputs::new();
    outputs.out(name, tensor);
    outputs
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attention {
    dim: i64,
    dim_head: i64,
    heads: i64,
    cross_attend: bool,
    scale: f64,
}

fn attention(case: &Case) -> Result<Outputs, CaseError> {
    let given: Attention = case.config()?;
    if given.scale != 8.0 {
        return Err(CaseError::Config(format!("scale {}: Muse has 8", given.scale)));
    }
    let rename = |name: &str| (!name.ends_with("beta")).then(|| name.to_string());
    let model =
        load(case, rename, |path| MuseAttention::new(path, given.dim, given.heads, given.dim_head))?.model;
    let x = case.input("x")?;
    let y = if given.cross_attend {
        let context = case.input("context")?;
        let mask = match case.optional_input("context_mask") {
            Some(mask) => mask.to_kind(Kind::Bool),
            None => Tensor::ones(&context.size()[..2], (Kind::Bool, Device::Cpu)),
        };
        model.forward(&x, Some((&context, &mask)))
    } else {
        model.forward(&x, None)
    };
    Ok(one_output("y", &y))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedForwardConfig {
    dim: i64,
    mult: f64,
}

fn feed_forward(case: &Case) -> Result<Outputs, CaseError> {
    let given: FeedForwardConfig = case.config()?;
    let rename = |name: &str| (!name.ends_with("beta")).then(|| feed_forward_name(name));
    let model = load(case, rename, |path| FeedForward::new(path, given.dim, given.mult))?.model;
    Ok(one_output("y", &model.forward(&case.input("x")?)))
}

/// Inputs that a context borrows from.
struct Conditions {
    text: Tensor,
    low_resolution: Option<Tensor>,
    self_cond: Option<Tensor>,
}

impl Conditions {
    fn of(case: &Case) -> Result<Self, CaseError> {
        Ok(Self {
            text: case.input("text_embeds")?,
            low_resolution: case.optional_input("conditioning_token_ids"),
            self_cond: case.optional_input("self_cond_embed"),
        })
    }

    fn context(&self) -> MuseContext<'_> {
        MuseContext {
            text: &self.text,
            keep_text: None,
            low_resolution: self.low_resolution.as_ref(),
            self_cond: self.self_cond.as_ref(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    cond_drop_prob: f64,
}

/// bool `[B]` of `in/drop_uniform`; all or none are dropped without a draw.
fn keep_text(case: &Case, name: &str, drop_prob: f64, batch: i64) -> Result<Tensor, CaseError> {
    let draws = if drop_prob == 0.0 || drop_prob == 1.0 {
        Tensor::full([batch], 0.5, (Kind::Float, Device::Cpu))
    } else {
        case.input(name)?.view([-1])
    };
    Ok(draws.lt(1.0 - drop_prob))
}

fn forward(case: &Case) -> Result<Outputs, CaseError> {
    let (given, config): (Forward, MuseConfig) = split_config(case, &["cond_drop_prob"])?;
    let model = load(case, our_name, |path| MuseTransformer::new(path, &config))?.model;
    let ids = case.input("ids")?;
    let conditions = Conditions::of(case)?;
    let keep = keep_text(case, "drop_uniform", given.cond_drop_prob, ids.size()[0])?;
    let embed = model.embed(&ids, &MuseContext { keep_text: Some(&keep), ..conditions.context() })?;
    let mut outputs = Outputs::new();
    outputs.out("embed", &embed).out("logits", &model.logits(&embed));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CondScale {
    cond_scale: f64,
}

fn cond_scale(case: &Case) -> Result<Outputs, CaseError> {
    let (given, config): (CondScale, MuseConfig) = split_config(case, &["cond_scale"])?;
    let model = load(case, our_name, |path| MuseTransformer::new(path, &config))?.model;
    let ids = case.input("ids")?;
    let conditions = Conditions::of(case)?;
    let (logits, embed) =
        model.guided_logits(&ids, &conditions.context(), &all_rows(&ids), given.cond_scale)?;
    let size = ids.size();
    let mut outputs = Outputs::new();
    outputs.out("embed", &embed).out("logits", &logits.view([size[0], size[1], -1]));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriticAlone {
    self_critic: bool,
    cond_scale: f64,
}

/// The linear map of a critic on the generator's hidden states.
fn to_pred(path: &nn::Path, dim: i64) -> Linear {
    Linear::new(&(path / "to_pred"), dim, 1, true)
}

fn token_critic(case: &Case) -> Result<Outputs, CaseError> {
    let (given, config): (CriticAlone, MuseConfig) = split_config(case, &["self_critic", "cond_scale"])?;
    // A critic that stands alone has no prefix; one on the generator has it under `net`.
    let rename = |name: &str| match name.strip_prefix("net.") {
        Some(rest) => Some(format!("net.{}", our_name(rest)?)),
        None => our_name(name),
    };
    let (generator, critic) = load(case, rename, |path| {
        if given.self_critic {
            let generator = MuseTransformer::new(&(path / "net"), &config)?;
            return Ok((generator, Critic::OfGenerator(to_pred(path, config.dim))));
        }
        // The generator is not read, and not part of the case.
        let apart = nn::VarStore::new(Device::Cpu);
        let critic = MuseTransformer::critic(path, &config)?;
        Ok((MuseTransformer::new(&apart.root(), &config)?, Critic::Separate(Box::new(critic))))
    })?
    .model;
    let ids = case.input("ids")?;
    let conditions = Conditions::of(case)?;
    let context = conditions.context();
    let scores = critic.guided_scores(&generator, &ids, &context, given.cond_scale)?;
    let plain = critic.scores(&generator, &ids, &context)?;
    let mut outputs = Outputs::new();
    outputs.out("scores", &scores).out("loss", &critic_loss(&plain, &case.input("labels")?));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    seq_len: i64,
    no_mask_token_prob: f64,
}

fn mask(case: &Case) -> Result<Outputs, CaseError> {
    let given: Mask = case.config()?;
    let positions = case.input("rand")?;
    if positions.size().get(1) != Some(&given.seq_len) {
        return Err(CaseError::Config(format!("seq_len {}", given.seq_len)));
    }
    let keep = case.optional_input("rand_keep");
    let mask = MuseMask::new(&case.input("rand_time")?, &positions, keep.as_ref(), given.no_mask_token_prob)?;
    let mut outputs = Outputs::new();
    outputs.out("num_token_masked", &mask.counts).out("mask", &mask.masked).out("kept_subset", &mask.kept);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    seq_len: i64,
    timesteps: i64,
}

fn schedule_counts(case: &Case) -> Result<Outputs, CaseError> {
    let given: Counts = case.config()?;
    Ok(one_output("num_masked", &Tensor::from_slice(&masked_counts(given.seq_len, given.timesteps)?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    thres: f64,
    temperature: f64,
}

fn sampling_step(case: &Case) -> Result<Outputs, CaseError> {
    let given: Step = case.config()?;
    let kept = top_fraction(&case.input("logits")?, given.thres);
    let mut outputs = Outputs::new();
    outputs
        .out("kept", &kept.isfinite())
        .out("ids", &sample_ids(&kept, given.temperature, &case.input("gumbel")?));
    Ok(outputs)
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CriticKind {
    Separate,
    #[serde(rename = "self")]
    OfGenerator,
}

/// Generator and critic under the names of the whole.
fn load_whole(
    case: &Case,
    config: &MuseConfig,
    critic: Option<CriticKind>,
    critic_depth: Option<i64>,
) -> Result<Loaded<(MuseTransformer, Option<Critic>)>, CaseError> {
    load(case, our_name, |path| {
        let generator = MuseTransformer::new(&(path / "transformer"), config)?;
        let at = path / "token_critic";
        let critic = match critic {
            None => None,
            Some(CriticKind::OfGenerator) => Some(Critic::OfGenerator(to_pred(&at, config.dim))),
            Some(CriticKind::Separate) => {
                let depth = critic_depth.unwrap_or(config.depth);
                let critic = MuseTransformer::critic(&at, &MuseConfig { depth, ..config.clone() })?;
                Some(Critic::Separate(Box::new(critic)))
            }
        };
        Ok((generator, critic))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    cond_drop_prob: f64,
    no_mask_token_prob: f64,
    random_draw: f64,
    critic: Option<CriticKind>,
    critic_depth: Option<i64>,
    critic_loss_weight: Option<f64>,
    sample_temperature: Option<f64>,
    self_cond_prob: Option<f64>,
    #[serde(default)]
    train_only_generator: bool,
    #[serde(rename = "fmap_size")]
    _fmap_size: Option<i64>,
    #[serde(rename = "grads")]
    _grads: Vec<String>,
}

fn loss(case: &Case) -> Result<Outputs, CaseError> {
    let own = [
        "cond_drop_prob",
        "no_mask_token_prob",
        "random_draw",
        "critic",
        "critic_depth",
        "critic_loss_weight",
        "sample_temperature",
        "self_cond_prob",
        "train_only_generator",
        "fmap_size",
        "grads",
    ];
    let (given, config): (Loss, MuseConfig) = split_config(case, &own)?;
    let loaded = load_whole(case, &config, given.critic, given.critic_depth)?;
    let (generator, critic) = &loaded.model;
    let ids = case.input("ids")?;
    let batch = ids.size()[0];
    let conditions = Conditions::of(case)?;
    let positions = case.input("rand")?;
    let half = || Tensor::full([batch], 0.5, (Kind::Float, Device::Cpu));
    let draws = MuseDraws {
        times: case.input("rand_time")?,
        keep: case.optional_input("rand_keep").unwrap_or_else(|| positions.zeros_like()),
        positions,
        self_cond: given.random_draw,
        drop_text: case.optional_input("drop_uniform").unwrap_or_else(half),
        drop_text_critic: case.optional_input("drop_uniform_critic").unwrap_or_else(half),
        critic_tokens: case.optional_input("gumbel"),
        critic_temperature: given.sample_temperature.unwrap_or(1.0),
    };
    let options = MuseLoss {
        cond_drop_prob: given.cond_drop_prob,
        no_mask_token_prob: given.no_mask_token_prob,
        critic_loss_weight: given.critic_loss_weight.unwrap_or(1.0),
        self_cond_prob: given.self_cond_prob.unwrap_or(MuseLoss::default().self_cond_prob),
    };
    let critic = critic.as_ref().filter(|_| !given.train_only_generator);
    let loss = muse_loss(generator, critic, &ids, &conditions.context(), &options, &draws)?;
    loss.backward();
    let mut outputs = one_output("loss", &loss);
    let variables = loaded.store.variables();
    for theirs in case.gradient_names() {
        // A critic on the generator lists the generator's tensors a second time.
        let same = theirs.replace("token_critic.net.", "transformer.");
        let variable = our_name(&same)
            .and_then(|ours| variables.get(&ours))
            .ok_or_else(|| CaseError::Missing(theirs.clone()))?;
        let grad = variable.grad();
        outputs.grad(&theirs, &if grad.defined() { grad } else { variable.zeros_like() });
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    timesteps: i64,
    temperature: f64,
    topk_filter_thres: f64,
    cond_scale: f64,
    critic: Option<CriticKind>,
    critic_depth: Option<i64>,
    critic_noise_scale: Option<f64>,
    #[serde(default)]
    can_remask_prev_masked: bool,
    #[serde(default)]
    force_not_use_token_critic: bool,
    // Of training, which remasking asks for; it changes no sample.
    #[serde(rename = "no_mask_token_prob")]
    _no_mask_token_prob: Option<f64>,
    fmap_size: i64,
}

fn generate(case: &Case) -> Result<Outputs, CaseError> {
    let own = [
        "timesteps",
        "temperature",
        "topk_filter_thres",
        "cond_scale",
        "critic",
        "critic_depth",
        "critic_noise_scale",
        "can_remask_prev_masked",
        "force_not_use_token_critic",
        "no_mask_token_prob",
        "fmap_size",
    ];
    let (given, config): (Generate, MuseConfig) = split_config(case, &own)?;
    let (generator, critic) = load_whole(case, &config, given.critic, given.critic_depth)?.model;
    let conditions = Conditions::of(case)?;
    let (batch, side) = (conditions.text.size()[0], given.fmap_size);
    let tokens = side * side;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let noise = MuseNoise {
        tokens: case
            .optional_input("gumbel")
            .unwrap_or_else(|| zeros(&[given.timesteps, batch, tokens, config.num_tokens])),
        critic: case
            .optional_input("critic_uniform")
            .unwrap_or_else(|| zeros(&[given.timesteps, batch, tokens]) + 0.5),
    };
    let options = MuseSampling {
        timesteps: given.timesteps,
        temperature: given.temperature,
        topk_filter_thres: given.topk_filter_thres,
        cond_scale: given.cond_scale,
        can_remask_prev_masked: given.can_remask_prev_masked,
        critic_noise_scale: given.critic_noise_scale.unwrap_or(1.0),
    };
    let critic = critic.as_ref().filter(|_| !given.force_not_use_token_critic);
    let decoded =
        no_grad(|| muse_generate(&generator, critic, &conditions.context(), tokens, &options, Some(&noise)))?;
    let mut outputs = Outputs::new();
    outputs
        .out("ids", &decoded.ids.view([batch, side, side]))
        .out("model_input_ids", &Tensor::stack(&decoded.inputs, 1));
    Ok(outputs)
}
