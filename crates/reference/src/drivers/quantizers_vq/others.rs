//! GumbelVQ, SimVQ and IBQ.

use quantizers::{
    EntropyLossConfig, EntropyTarget, Estimator, GumbelConfig, GumbelForm, GumbelVq, Ibq, IbqConfig, Mode,
    Quantizer, SimVq, SimVqConfig, TemperatureSchedule,
};
use serde::Deserialize;
use tch::Tensor;

use super::{TRAIN, alias, dot, first, hundredth, ids_of, last, load, loss_of, one, quarter, same, yes};
use crate::case::{Case, CaseError, Outputs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelMaskgit {
    codebook_size: i64,
    tau: f64,
}

pub(super) fn gumbel_maskgit(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelMaskgit = case.config()?;
    let config = GumbelConfig { codebook_size: given.codebook_size, ..GumbelConfig::default() };
    let x = case.input_with_grad("x")?;
    let dim = x.size().last().copied().unwrap_or(0);
    let loaded = load(
        case,
        |_, tensor| Some(("embed".into(), tensor.shallow_clone())),
        |path| GumbelVq::new(path, dim, config),
    )?;
    let noise = case.input("gumbel")?;
    let (train, terms) = loaded.model.quantize_with(&x, true, given.tau, Some(&noise))?;
    let encodings = terms.ok_or_else(|| CaseError::Missing("encodings".into()))?.encodings;
    (dot(&train.embeddings, &case.input("g")?) + dot(&encodings, &case.input("ge")?)).backward();
    let eval = loaded.model.quantize(&x, Mode::Eval)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &train.embeddings).out("encodings", &encodings).out("ids", ids_of(&train)?);
    outputs.out("eval_quantized", &eval.embeddings).out("eval_ids", ids_of(&eval)?);
    outputs.out("decoded", &loaded.model.lookup(ids_of(&eval)?)?);
    outputs.grad("x", &x.grad()).grad("codebook", &loaded.grad("embed")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelTaming {
    num_hiddens: i64,
    embedding_dim: i64,
    n_embed: i64,
    straight_through: bool,
    kl_weight: f64,
    temp: f64,
    train: bool,
}

pub(super) fn gumbel_taming(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelTaming = case.config()?;
    let config = GumbelConfig {
        codebook_size: given.n_embed,
        codebook_dim: Some(given.embedding_dim),
        form: GumbelForm::Logits {
            straight_through: given.straight_through,
            kl_weight: given.kl_weight,
            sample_in_eval: true,
        },
        temperature: TemperatureSchedule::constant(given.temp),
    };
    // The 1×1 convolution is a linear map.
    let map = |name: &str, tensor: &Tensor| match name {
        "proj.weight" => Some((name.to_string(), tensor.flatten(1, -1))),
        "embed.weight" => Some(("embed".into(), tensor.shallow_clone())),
        _ => same(name, tensor),
    };
    let loaded = load(case, map, |path| {
        GumbelVq::with_output_dim(path, given.num_hiddens, given.embedding_dim, config)
    })?;
    let z = case.input_with_grad("z")?;
    let noise = last(&case.input("gumbel")?);
    let (quantized, terms) = loaded.model.quantize_with(&last(&z), given.train, given.temp, Some(&noise))?;
    let terms = terms.ok_or_else(|| CaseError::Missing("logits".into()))?;
    let output = first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", ids).out("kl", &loss_of(&quantized, "kl"));
    outputs.out("logits", &first(&terms.logits)).out("decoded", &first(&loaded.model.lookup(ids)?));
    outputs.grad("z", &z.grad()).grad("embed.weight", &loaded.grad("embed")?);
    outputs.grad("proj.weight", &loaded.grad("proj.weight")?.unsqueeze(-1).unsqueeze(-1));
    outputs.grad("proj.bias", &loaded.grad("proj.bias")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GumbelSchedule {
    warm_up_steps: u64,
    lr_min: f64,
    lr_max: f64,
    lr_start: f64,
    max_decay_steps: u64,
}

pub(super) fn gumbel_schedule(case: &Case) -> Result<Outputs, CaseError> {
    let given: GumbelSchedule = case.config()?;
    let schedule = TemperatureSchedule {
        start: given.lr_start,
        max: given.lr_max,
        min: given.lr_min,
        warm_up_steps: given.warm_up_steps,
        decay_steps: given.max_decay_steps,
    };
    // A multiplier that starts or ends at 0 is no temperature, but a schedule all the same.
    if given.max_decay_steps <= given.warm_up_steps {
        return Err(CaseError::Config("max_decay_steps: more than warm_up_steps".into()));
    }
    let steps = Vec::<i64>::try_from(&case.input("steps")?)?;
    let tau: Vec<f64> = steps.iter().map(|step| schedule.at(step.unsigned_abs())).collect();
    let mut outputs = Outputs::new();
    outputs.out("tau", &Tensor::from_slice(&tau));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sim {
    dim: i64,
    codebook_size: i64,
    #[serde(default)]
    channel_first: bool,
    #[serde(default = "yes")]
    rotation_trick: bool,
    #[serde(default = "quarter")]
    input_to_quantize_commit_loss_weight: f64,
    #[serde(default = "one")]
    commitment_weight: f64,
    frozen_codebook_dim: Option<i64>,
}

pub(super) fn simvq(case: &Case) -> Result<Outputs, CaseError> {
    let given: Sim = case.config()?;
    let rotation = given.rotation_trick;
    let config = SimVqConfig {
        codebook_size: given.codebook_size,
        frozen_codebook_dim: given.frozen_codebook_dim,
        estimator: if rotation { Estimator::RotationTrick } else { Estimator::StraightThrough },
        commitment_weight: given.commitment_weight,
        input_to_quantize_commit_loss_weight: given.input_to_quantize_commit_loss_weight,
    };
    let loaded = load(case, same, |path| SimVq::new(path, given.dim, config))?;
    let x = case.input_with_grad("x")?;
    let (features, to_first) =
        if given.channel_first { (last(&x), first as fn(&_) -> _) } else { (alias(&x), alias as _) };
    let quantized = loaded.model.quantize(&features, TRAIN)?;
    let output = to_first(&quantized.embeddings);
    (dot(&output, &case.input("g")?) + quantized.loss()).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", ids).out("loss", &quantized.loss());
    outputs.out("decoded", &to_first(&loaded.model.lookup(ids)?));
    outputs.grad("x", &x.grad()).grad("code_transform.weight", &loaded.grad("code_transform.weight")?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IbqGiven {
    n_e: i64,
    e_dim: i64,
    #[serde(default = "quarter")]
    beta: f64,
    #[serde(default)]
    use_entropy_loss: bool,
    #[serde(default = "hundredth")]
    entropy_temperature: f64,
    #[serde(default)]
    entropy_loss_type: EntropyTarget,
    #[serde(default = "one")]
    sample_minimization_weight: f64,
    #[serde(default = "one")]
    batch_maximization_weight: f64,
    #[serde(default)]
    entropy_loss_weight: f64,
}

pub(super) fn ibq(case: &Case) -> Result<Outputs, CaseError> {
    let given: IbqGiven = case.config()?;
    // At weight 0 we would not compute the entropy, which the reference reports all the same.
    let weighs = given.entropy_loss_weight > 0.0;
    let weight = if weighs { given.entropy_loss_weight } else { 1.0 };
    let config = IbqConfig {
        codebook_size: given.n_e,
        beta: given.beta,
        entropy: EntropyLossConfig {
            weight: if given.use_entropy_loss { weight } else { 0.0 },
            temperature: given.entropy_temperature,
            target: given.entropy_loss_type,
            per_sample_weight: given.sample_minimization_weight,
            batch_weight: given.batch_maximization_weight,
        },
        ..IbqConfig::default()
    };
    let loaded = load(
        case,
        |_, tensor| Some(("embedding".into(), tensor.shallow_clone())),
        |path| Ibq::new(path, given.e_dim, config),
    )?;
    let z = case.input_with_grad("z")?;
    let (quantized, terms) = loaded.model.quantize_parts(&last(&z), TRAIN)?;
    let terms = terms.ok_or_else(|| CaseError::Missing("quant_loss".into()))?;
    let output = first(&quantized.embeddings);
    let loss = if weighs { quantized.loss() } else { terms.quant.shallow_clone() };
    (dot(&output, &case.input("g")?) + loss).backward();
    let ids = ids_of(&quantized)?;
    let mut outputs = Outputs::new();
    outputs.out("quantized", &output).out("ids", &ids.reshape([-1])).out("quant_loss", &terms.quant);
    if let Some(entropy) = &terms.entropy {
        outputs.out("entropy_loss", &entropy.loss).out("sample_entropy", &entropy.per_sample);
        outputs.out("avg_entropy", &entropy.batch);
    }
    outputs.out("decoded", &first(&loaded.model.lookup(ids)?));
    outputs.grad("z", &z.grad()).grad("embedding.weight", &loaded.grad("embedding")?);
    Ok(outputs)
}
