//! Quantizers without a table: LFQ, FSQ and their residual forms.

use quantizers::{
    BatchAverage, BitOrder, EntropyLog, EntropyWarmup, Fsq, FsqConfig, Lfq, LfqConfig, Mode, QuantizeDropout,
    Quantized, Quantizer, ResidualFsq, ResidualFsqConfig, ResidualFsqForm, ResidualLfq, ResidualLfqConfig,
    code_entropies, code_marginal,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::load_into;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("quantizers.lfq.forward", lfq_forward),
    ("quantizers.lfq.entropy", lfq_entropy),
    ("quantizers.lfq.open_magvit2", lfq_open_magvit2),
    ("quantizers.fsq.forward", fsq_forward),
    ("quantizers.fsq.cosmos", fsq_cosmos),
    ("quantizers.residual_fsq", residual_fsq),
    ("quantizers.residual_fsq.cosmos", residual_fsq_cosmos),
    ("quantizers.residual_lfq", residual_lfq),
];

const TRAIN: Mode = Mode::Train { step: 0 };

/// Channels first to channels last, for a batch of any number of further axes.
fn channels_last(x: &Tensor) -> Tensor {
    x.movedim_int(1, -1)
}

/// The inverse of [`channels_last`].
fn channels_first(x: &Tensor) -> Tensor {
    x.movedim_int(-1, 1)
}

/// lucidrains' rule: images and videos come channels first, sequences channels last.
#[derive(Clone, Copy)]
struct Layout {
    channel_first: bool,
}

impl Layout {
    fn of(x: &Tensor) -> Self {
        Self { channel_first: x.dim() >= 4 }
    }

    /// As `given`, else by the rule.
    fn given_or_of(given: Option<bool>, x: &Tensor) -> Self {
        given.map_or_else(|| Self::of(x), |channel_first| Self { channel_first })
    }

    fn read(self, x: &Tensor) -> Tensor {
        if self.channel_first { channels_last(x) } else { x.shallow_clone() }
    }

    fn write(self, x: &Tensor) -> Tensor {
        if self.channel_first { channels_first(x) } else { x.shallow_clone() }
    }
}

/// The ids of a quantizer that is discrete.
fn ids(quantized: &Quantized) -> Result<Tensor, CaseError> {
    quantized.ids.as_ref().map(Tensor::shallow_clone).ok_or_else(|| CaseError::Missing("ids".into()))
}

/// Gradients of `objective`: of the inputs given by name, and of all other gradients that the case lists, which are
/// parameters by their own names.
fn gradients(
    case: &Case,
    outputs: &mut Outputs,
    objective: &Tensor,
    inputs: &[(&str, &Tensor)],
    vs: &nn::VarStore,
) -> Result<(), CaseError> {
    objective.f_backward()?;
    for (name, input) in inputs {
        outputs.grad(name, &input.grad());
    }
    let variables = vs.variables();
    for name in case.gradient_names() {
        if let Some(variable) = variables.get(&name) {
            outputs.grad(&name, &variable.grad());
        }
    }
    Ok(())
}

/// log2 of a codebook's size.
fn bits_of(codebook_size: i64) -> Result<i64, CaseError> {
    if codebook_size < 2 || !(codebook_size as u64).is_power_of_two() {
        return Err(CaseError::Config(format!("codebook_size = {codebook_size}: expected a power of two")));
    }
    Ok(codebook_size.trailing_zeros().into())
}

/// lucidrains' `LFQ`, with its defaults.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LucidLfq {
    dim: Option<i64>,
    codebook_size: Option<i64>,
    num_codebooks: i64,
    keep_num_codebooks_dim: bool,
    channel_first: Option<bool>,
    num_quantizers: Option<i64>,
    quantize_dropout: bool,
    quantize_dropout_cutoff_index: i64,
    quantize_dropout_multiple_of: i64,
    dropout_index: Option<i64>,
    entropy_loss_weight: f64,
    commitment_loss_weight: f64,
    diversity_gamma: f64,
    inv_temperature: f64,
    codebook_scale: f64,
    frac_per_sample_entropy: f64,
    soft_clamp_input_value: Option<f64>,
    spherical: bool,
}

impl Default for LucidLfq {
    fn default() -> Self {
        Self {
            dim: None,
            codebook_size: None,
            num_codebooks: 1,
            keep_num_codebooks_dim: false,
            channel_first: None,
            num_quantizers: None,
            quantize_dropout: false,
            quantize_dropout_cutoff_index: 0,
            quantize_dropout_multiple_of: 1,
            dropout_index: None,
            entropy_loss_weight: 0.1,
            commitment_loss_weight: 0.0,
            diversity_gamma: 1.0,
            inv_temperature: 100.0,
            codebook_scale: 1.0,
            frac_per_sample_entropy: 1.0,
            soft_clamp_input_value: None,
            spherical: false,
        }
    }
}

impl LucidLfq {
    /// Our config, and the features' width.
    fn ours(&self) -> Result<(LfqConfig, i64), CaseError> {
        let bits = match (self.codebook_size, self.dim) {
            (Some(size), _) => bits_of(size)?,
            (None, Some(dim)) => dim,
            (None, None) => return Err(CaseError::Config("neither dim nor codebook_size".into())),
        };
        let config = LfqConfig {
            bits,
            num_codebooks: self.num_codebooks,
            bit_order: BitOrder::MsbFirst,
            spherical: self.spherical,
            soft_clamp: self.soft_clamp_input_value,
            codebook_scale: self.codebook_scale,
            inv_temperature: self.inv_temperature,
            entropy_weight: self.entropy_loss_weight,
            per_sample_weight: 1.0,
            diversity_gamma: self.diversity_gamma,
            entropy_log: EntropyLog::Clamp,
            batch_average: BatchAverage::PerCodebook,
            frac_per_sample_entropy: self.frac_per_sample_entropy,
            entropy_warmup: EntropyWarmup::OFF,
            commitment_weight: self.commitment_loss_weight,
            warmup_steps: 0,
        };
        let dim = self.dim.unwrap_or(config.code_dim());
        Ok((config, dim))
    }
}

/// The config with an entropy weight at which the entropies are computed: the references report them also where they
/// do not weigh. [`loss_at`] the given weight is the loss then.
fn reporting(config: &LfqConfig) -> LfqConfig {
    let entropy_weight = if config.entropy_weight == 0.0 { 1.0 } else { config.entropy_weight };
    LfqConfig { entropy_weight, ..config.clone() }
}

/// The sum of the losses, without the entropy's where its weight is 0.
fn loss_at(entropy_weight: f64, quantized: &Quantized) -> Tensor {
    let weighs = |name: &str| entropy_weight > 0.0 || name != "entropy";
    let losses = quantized.losses.iter().filter(|(name, _)| weighs(name));
    losses.fold(Tensor::from(0f32), |sum, (_, loss)| sum + loss)
}

fn lfq_forward(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: LucidLfq = case.config()?;
    if theirs.num_quantizers.is_some() {
        return Err(CaseError::Config("num_quantizers: LFQ has one".into()));
    }
    let (config, dim) = theirs.ours()?;
    let vs = nn::VarStore::new(Device::Cpu);
    let lfq = Lfq::new(&vs.root(), dim, reporting(&config))?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let layout = Layout::given_or_of(theirs.channel_first, &x);
    // The reference may keep the codebooks' axis where there is one codebook.
    let keep = theirs.num_codebooks == 1 && theirs.keep_num_codebooks_dim;
    let kept = |ids: &Tensor| if keep { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let noise = case.optional_input("rand");
    let (train, terms) = lfq.quantize_parts(&layout.read(&x), TRAIN, noise.as_ref())?;
    let quantized = layout.write(&train.embeddings);
    let aux_loss = loss_at(config.entropy_weight, &train);
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized).out("ids", &kept(&ids(&train)?)).out("aux_loss", &aux_loss);
    if let Some(terms) = &terms {
        // Without a weight the reference does not compute it, and says 0.
        let weighs = config.commitment_weight > 0.0;
        outputs.out("commitment", &(&terms.commitment * if weighs { 1.0 } else { 0.0 }));
        if let Some(entropies) = &terms.entropies {
            outputs.out("per_sample_entropy", &entropies.per_sample).out("batch_entropy", &entropies.batch);
        }
    }
    let eval = lfq.quantize(&layout.read(&x), Mode::Eval)?;
    let eval_ids = ids(&eval)?;
    outputs
        .out("eval_quantized", &layout.write(&eval.embeddings))
        .out("eval_ids", &kept(&eval_ids))
        .out("decoded", &layout.write(&lfq.lookup(&eval_ids)?));
    let objective = (quantized * case.input("g")?).sum(Kind::Float) + aux_loss;
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntropyCase {
    d: i64,
    inv_temperature: f64,
}

fn lfq_entropy(case: &Case) -> Result<Outputs, CaseError> {
    let EntropyCase { d, inv_temperature } = case.config()?;
    let x = case.input("x")?;
    if x.size().last() != Some(&d) {
        return Err(CaseError::Config(format!("d = {d}, but x has shape {:?}", x.size())));
    }
    let slope = 4.0 * inv_temperature;
    let mut outputs = Outputs::new();
    outputs.out("marginal", &code_marginal(&x.unsqueeze(0), slope, BitOrder::MsbFirst)?.squeeze_dim(0));
    for (name, log) in
        [("exact", EntropyLog::Exact), ("added", EntropyLog::Added), ("clamp", EntropyLog::Clamp)]
    {
        let x = case.input_with_grad("x")?;
        let entropies = code_entropies(&x.unsqueeze(0), slope, log)?;
        for (term, value) in [("per_sample", &entropies.per_sample), ("batch", &entropies.batch)] {
            let gradient = Tensor::f_run_backward(&[value], &[&x], true, false)?;
            outputs.out(format!("{name}_{term}"), value).grad(format!("x/{name}_{term}"), &gradient[0]);
        }
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenMagvit2Lfq {
    bit_order: BitOrder,
    dim: i64,
    codebook_size: i64,
    num_codebooks: i64,
    token_factorization: bool,
    #[serde(default)]
    factorized_bits: Vec<i64>,
    train: bool,
    sample_minimization_weight: f64,
    batch_maximization_weight: f64,
    entropy_weight: f64,
    commit_weight: f64,
}

fn lfq_open_magvit2(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: OpenMagvit2Lfq = case.config()?;
    let bits = bits_of(theirs.codebook_size)?;
    let config = LfqConfig {
        bits,
        num_codebooks: theirs.num_codebooks,
        bit_order: theirs.bit_order,
        entropy_weight: theirs.entropy_weight,
        per_sample_weight: theirs.sample_minimization_weight,
        diversity_gamma: theirs.batch_maximization_weight,
        entropy_log: EntropyLog::Added,
        batch_average: BatchAverage::Joint,
        entropy_warmup: EntropyWarmup::OFF,
        commitment_weight: theirs.commit_weight,
        ..LfqConfig::default()
    };
    let lfq = Lfq::new(&nn::VarStore::new(Device::Cpu).root(), theirs.dim, reporting(&config))?;
    let z = case.input_with_grad("z")?;
    // The reference's output is straight-through in eval too; the auxiliary terms exist in training only.
    let (train, terms) = lfq.quantize_parts(&channels_last(&z), TRAIN, None)?;
    let quantized = channels_first(&train.embeddings);
    let ids = ids(&train)?.reshape([-1]);
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized).out("ids", &ids);
    if theirs.token_factorization {
        for (name, part) in ["ids_pre", "ids_post"].iter().zip(quantizers::bits::split_id(
            &ids,
            &theirs.factorized_bits,
            theirs.bit_order,
        )?) {
            outputs.out(name, &part);
        }
    }
    let mut objective = (&quantized * case.input("g")?).sum(Kind::Float);
    if theirs.train {
        objective += loss_at(config.entropy_weight, &train);
        if let Some(terms) = &terms {
            outputs.out("commitment", &terms.commitment);
            if let Some(entropies) = &terms.entropies {
                let loss = &entropies.per_sample * theirs.sample_minimization_weight
                    - &entropies.batch * theirs.batch_maximization_weight;
                outputs
                    .out("per_sample_entropy", &entropies.per_sample)
                    .out("codebook_entropy", &entropies.batch)
                    .out("entropy_loss", &loss);
            }
        }
    }
    objective.f_backward()?;
    outputs.grad("z", &z.grad());
    Ok(outputs)
}

/// lucidrains' `ResidualLFQ`: its own arguments, and those of its `LFQ`s.
fn residual_lfq(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: LucidLfq = case.config()?;
    let num_quantizers =
        theirs.num_quantizers.ok_or_else(|| CaseError::Config("num_quantizers is missing".into()))?;
    let (stage, dim) = theirs.ours()?;
    let vs = nn::VarStore::new(Device::Cpu);
    let dropout = QuantizeDropout {
        cutoff_index: theirs.quantize_dropout_cutoff_index,
        multiple_of: theirs.quantize_dropout_multiple_of,
    };
    let quantize_dropout = theirs.quantize_dropout.then_some(dropout);
    let config = ResidualLfqConfig { num_quantizers, quantize_dropout, stage };
    let quantizer = ResidualLfq::new(&vs.root(), dim, config)?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let last_stage = theirs.dropout_index.map(|drawn| dropout.last_kept(drawn, num_quantizers));
    let (train, losses) = quantizer.quantize_stages(&x, TRAIN, last_stage)?;
    let ids = ids(&train)?;
    let stacked = if num_quantizers == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let mut outputs = Outputs::new();
    outputs
        .out("quantized", &train.embeddings)
        .out("ids", &stacked)
        .out("losses", &losses)
        .out("decoded", &quantizer.lookup(&ids)?);
    let objective = (&train.embeddings * case.input("g")?).sum(Kind::Float) + losses.sum(Kind::Float);
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}

/// lucidrains' `FSQ`, with its defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LucidFsq {
    levels: Vec<i64>,
    dim: Option<i64>,
    #[serde(default = "one")]
    num_codebooks: i64,
    #[serde(default)]
    keep_num_codebooks_dim: bool,
    #[serde(default)]
    channel_first: bool,
    #[serde(default)]
    preserve_symmetry: bool,
    #[serde(default, alias = "hard_clamp")]
    bound_hard_clamp: bool,
}

fn one() -> i64 {
    1
}

fn fsq_forward(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: LucidFsq = case.config()?;
    let config = FsqConfig {
        levels: theirs.levels,
        num_codebooks: theirs.num_codebooks,
        symmetric: theirs.preserve_symmetry,
        hard_clamp: theirs.bound_hard_clamp,
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let fsq = Fsq::new(&vs.root(), theirs.dim.unwrap_or(config.code_dim()), config)?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let layout = Layout { channel_first: theirs.channel_first || Layout::of(&x).channel_first };
    let train = fsq.quantize(&layout.read(&x), TRAIN)?;
    let quantized = layout.write(&train.embeddings);
    let ids = ids(&train)?;
    // The reference may keep the codebooks' axis where there is one codebook.
    let keep = theirs.num_codebooks == 1 && theirs.keep_num_codebooks_dim;
    let kept = if keep { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let head = Tensor::arange(fsq.config().codebook_size().min(64), (Kind::Int64, Device::Cpu));
    let mut outputs = Outputs::new();
    outputs
        .out("quantized", &quantized)
        .out("ids", &kept)
        .out("decoded", &layout.write(&fsq.lookup(&ids)?))
        .out("level_indices", &fsq.digits(&kept)?)
        .out("codebook_head", &fsq.codes(&head)?);
    let objective = (quantized * case.input("g")?).sum(Kind::Float);
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CosmosFsq {
    levels: Vec<i64>,
    dim: Option<i64>,
    #[serde(default = "one")]
    num_codebooks: i64,
    #[serde(default)]
    keep_num_codebooks_dim: bool,
    num_quantizers: Option<i64>,
}

fn fsq_cosmos(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: CosmosFsq = case.config()?;
    if theirs.num_quantizers.is_some() {
        return Err(CaseError::Config("num_quantizers: plain FSQ has one".into()));
    }
    let config =
        FsqConfig { levels: theirs.levels, num_codebooks: theirs.num_codebooks, ..FsqConfig::default() };
    let vs = nn::VarStore::new(Device::Cpu);
    let fsq = Fsq::new(&vs.root(), theirs.dim.unwrap_or(config.code_dim()), config)?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let layout = Layout::of(&x);
    let train = fsq.quantize(&layout.read(&x), TRAIN)?;
    let quantized = layout.write(&train.embeddings);
    let ids = ids(&train)?;
    let keep = theirs.num_codebooks == 1 && theirs.keep_num_codebooks_dim;
    let kept = if keep { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let mut outputs = Outputs::new();
    outputs.out("quantized", &quantized).out("ids", &kept).out("decoded", &layout.write(&fsq.lookup(&ids)?));
    let objective = (quantized * case.input("g")?).sum(Kind::Float);
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SoftClamp {
    One(f64),
    OfChannels(Vec<f64>),
}

/// lucidrains' `ResidualFSQ`, with its defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LucidResidualFsq {
    levels: Vec<i64>,
    num_quantizers: i64,
    dim: Option<i64>,
    #[serde(default)]
    is_channel_first: bool,
    bound_hard_clamp: Option<bool>,
    soft_clamp_input_value: Option<SoftClamp>,
    #[serde(default)]
    quantize_dropout: bool,
    #[serde(default)]
    quantize_dropout_cutoff_index: i64,
    #[serde(default = "one")]
    quantize_dropout_multiple_of: i64,
    dropout_index: Option<i64>,
}

fn residual_fsq(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: LucidResidualFsq = case.config()?;
    let dim = theirs.dim.unwrap_or(theirs.levels.len() as i64);
    let dropout = QuantizeDropout {
        cutoff_index: theirs.quantize_dropout_cutoff_index,
        multiple_of: theirs.quantize_dropout_multiple_of,
    };
    let config = ResidualFsqConfig {
        levels: theirs.levels,
        num_quantizers: theirs.num_quantizers,
        form: match theirs.bound_hard_clamp {
            None | Some(true) => ResidualFsqForm::Clamped,
            Some(false) => ResidualFsqForm::Tanh,
        },
        soft_clamp: theirs.soft_clamp_input_value.map(|limit| match limit {
            SoftClamp::One(limit) => vec![limit],
            SoftClamp::OfChannels(limits) => limits,
        }),
        quantize_dropout: theirs.quantize_dropout.then_some(dropout),
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let quantizer = ResidualFsq::new(&vs.root(), dim, config)?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let layout = Layout { channel_first: theirs.is_channel_first };
    let last_stage = theirs.dropout_index.map(|drawn| dropout.last_kept(drawn, theirs.num_quantizers));
    let train = quantizer.quantize_stages(&layout.read(&x), TRAIN, last_stage)?;
    let quantized = layout.write(&train.embeddings);
    let ids = ids(&train)?;
    let stacked = if theirs.num_quantizers == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let mut outputs = Outputs::new();
    outputs
        .out("quantized", &quantized)
        .out("ids", &layout.write(&stacked))
        .out("scales", &quantizer.scales())
        .out("all_codes", &quantizer.stage_codes(&ids)?)
        .out("decoded", &layout.write(&quantizer.lookup(&ids)?));
    let objective = (quantized * case.input("g")?).sum(Kind::Float);
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}

fn residual_fsq_cosmos(case: &Case) -> Result<Outputs, CaseError> {
    let theirs: CosmosFsq = case.config()?;
    if theirs.num_codebooks != 1 || theirs.keep_num_codebooks_dim {
        return Err(CaseError::Config("stages have one codebook, whose axis is not kept".into()));
    }
    let config = ResidualFsqConfig {
        levels: theirs.levels,
        num_quantizers: theirs.num_quantizers.unwrap_or(4),
        ..ResidualFsqConfig::cosmos()
    };
    let (stages, width) = (config.num_quantizers, config.levels.len() as i64);
    let vs = nn::VarStore::new(Device::Cpu);
    let quantizer = ResidualFsq::new(&vs.root(), theirs.dim.unwrap_or(width), config)?;
    load_into(&vs, &case.weights())?;

    let x = case.input_with_grad("x")?;
    let layout = Layout::of(&x);
    let train = quantizer.quantize(&layout.read(&x), TRAIN)?;
    let quantized = layout.write(&train.embeddings);
    let ids = ids(&train)?;
    let stacked = if stages == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    let mut outputs = Outputs::new();
    outputs
        .out("quantized", &quantized)
        // Stages stand behind the batch, whatever the layout.
        .out("ids", &channels_first(&stacked))
        .out("decoded", &layout.write(&quantizer.lookup(&ids)?))
        .out("residual", &(&x - &quantized));
    let objective = (quantized * case.input("g")?).sum(Kind::Float);
    gradients(case, &mut outputs, &objective, &[("x", &x)], &vs)?;
    Ok(outputs)
}
