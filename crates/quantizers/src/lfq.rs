//! Lookup-free quantization: MAGVIT-v2 (Yu et al., ICLR 2024, arXiv 2310.05737, section 3.1), and its spherical form, BSQ
//! (Zhao et al., arXiv 2406.07548).
//!
//! There is no table: the code of a feature vector is the sign of each of its d channels, so a vocabulary of 2^18 costs 18
//! channels. What keeps such a vocabulary alive is an entropy loss over all 2^d codes, which
//! [`code_entropies`] gives exactly and cheaply.

mod entropy;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};
use video_core::{Error, Result};

pub use entropy::{CodeEntropies, EntropyLog, MAX_ENTROPY_BITS, code_entropies, code_marginal};

use crate::bits::{check_ids, pack_bits, unpack_bits};
use crate::estimators::{check_features, full_precision, mse, straight_through};
use crate::projection::Projections;
use crate::{BitOrder, Mode, Quantized, Quantizer, Usage};

/// Configuration of [`Lfq`]; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LfqConfig {
    /// d, log2 of each codebook's size: 1 to 62.
    pub bits: i64,
    /// Codebooks side by side; each takes `bits` channels and gives one id.
    pub num_codebooks: i64,
    /// Which channel carries which binary weight of the id.
    pub bit_order: BitOrder,
    /// Features are normalised onto a sphere before the sign, so that codes are ±`codebook_scale`/√bits: BSQ.
    pub spherical: bool,
    /// s of s·tanh(x/s), applied before the sign; none: no clamp.
    pub soft_clamp: Option<f64>,
    /// The codes are ±this.
    pub codebook_scale: f64,
    /// β of the soft assignment softmax(2β x·c); an entropy temperature of T is β = 1/T.
    pub inv_temperature: f64,
    /// Weight of the entropy loss: per_sample_weight·H_sample − diversity_gamma·H_batch. At 0 it is not computed.
    pub entropy_weight: f64,
    /// Weight inside the entropy loss of the mean entropy of a token's assignment.
    pub per_sample_weight: f64,
    /// Weight inside the entropy loss of the entropy of the mean assignment, which is what spreads use over all codes.
    pub diversity_gamma: f64,
    /// The logarithm inside the entropies.
    pub entropy_log: EntropyLog,
    /// Over what the mean assignment is taken where there are several codebooks.
    pub batch_average: BatchAverage,
    /// Share of the tokens, drawn anew each step, that both entropies see.
    pub frac_per_sample_entropy: f64,
    /// A larger entropy weight at the start of training.
    pub entropy_warmup: EntropyWarmup,
    /// Weight of mean((x − sg q)²).
    pub commitment_weight: f64,
    /// Steps over which training goes over from continuous features to codes (ours, not in the papers): at step s below
    /// this, the decoder reads (1 − α)·v·tanh(x/v) + α·STE(x), α = s/warmup_steps, v the code value (spherical: the
    /// normalised x in place of the tanh). Ids and losses are unchanged. From this step on, and at 0, it is plain LFQ.
    pub warmup_steps: u64,
}

impl Default for LfqConfig {
    fn default() -> Self {
        Self {
            bits: 18,
            num_codebooks: 1,
            bit_order: BitOrder::default(),
            spherical: false,
            soft_clamp: None,
            codebook_scale: 1.0,
            inv_temperature: 100.0,
            entropy_weight: 0.1,
            per_sample_weight: 1.0,
            diversity_gamma: 1.0,
            entropy_log: EntropyLog::default(),
            batch_average: BatchAverage::default(),
            frac_per_sample_entropy: 1.0,
            entropy_warmup: EntropyWarmup::default(),
            commitment_weight: 0.25,
            warmup_steps: 0,
        }
    }
}

/// Over what LFQ's mean assignment is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchAverage {
    /// Over tokens, one mean for each codebook; the codebooks' entropies are averaged: lucidrains.
    #[default]
    PerCodebook,
    /// Over tokens and codebooks together: Open-MAGVIT2.
    Joint,
}

/// The entropy weight's start: it falls linearly from `start_factor`·weight at step 0 to the weight at `steps`.
///
/// The paper's 0.3 → 0.1 over 2,000 steps is the default. The form that adds ratio·max(0, 1 − step/steps) times the loss
/// (MAGVIT, Open-MAGVIT2) is `start_factor` = 1 + ratio. No warm-up: `steps` = 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyWarmup {
    /// The weight at step 0, in units of the final weight.
    pub start_factor: f64,
    /// Steps until the final weight.
    pub steps: u64,
}

impl Default for EntropyWarmup {
    fn default() -> Self {
        Self { start_factor: 3.0, steps: 2000 }
    }
}

impl EntropyWarmup {
    /// No warm-up: the weight is the same at every step.
    pub const OFF: Self = Self { start_factor: 1.0, steps: 0 };

    /// The factor on the weight at a step.
    pub fn factor(&self, step: u64) -> f64 {
        if step >= self.steps {
            return 1.0;
        }
        1.0 + (self.start_factor - 1.0) * (1.0 - step as f64 / self.steps as f64)
    }
}

impl LfqConfig {
    /// The paper's LFQ with another vocabulary, 2^`bits`.
    pub fn with_bits(bits: i64) -> Self {
        Self { bits, ..Self::default() }
    }

    /// BSQ with 2^`bits` codes: features and codes on the unit sphere.
    pub fn bsq(bits: i64) -> Self {
        Self { spherical: true, ..Self::with_bits(bits) }
    }

    /// Width of the codes, over all codebooks. Features of another width get projections with bias.
    pub fn code_dim(&self) -> i64 {
        self.bits * self.num_codebooks
    }

    /// The codes' entries are ± this.
    pub fn code_value(&self) -> f64 {
        if self.spherical { self.codebook_scale / (self.bits as f64).sqrt() } else { self.codebook_scale }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=62).contains(&self.bits) {
            return Err(Error::config("bits", self.bits, "1 to 62, the bits of an id"));
        }
        if !(1..=4096).contains(&self.num_codebooks) {
            return Err(Error::config("num_codebooks", self.num_codebooks, "1 to 4096"));
        }
        positive("codebook_scale", self.codebook_scale)?;
        positive("inv_temperature", self.inv_temperature)?;
        if let Some(limit) = self.soft_clamp {
            positive("soft_clamp", limit)?;
        }
        for (field, weight) in [
            ("entropy_weight", self.entropy_weight),
            ("per_sample_weight", self.per_sample_weight),
            ("diversity_gamma", self.diversity_gamma),
            ("commitment_weight", self.commitment_weight),
            ("entropy_warmup.start_factor", self.entropy_warmup.start_factor),
        ] {
            not_negative(field, weight)?;
        }
        if !(self.frac_per_sample_entropy > 0.0 && self.frac_per_sample_entropy <= 1.0) {
            return Err(Error::config(
                "frac_per_sample_entropy",
                self.frac_per_sample_entropy,
                "above 0 and at most 1",
            ));
        }
        if self.entropy_weight > 0.0 && self.bits > MAX_ENTROPY_BITS {
            return Err(Error::config(
                "bits",
                self.bits,
                format!(
                    "at most {MAX_ENTROPY_BITS} with an entropy loss: use several codebooks (num_codebooks) or \
                     entropy_weight = 0"
                ),
            ));
        }
        Ok(())
    }
}

/// Refuses what is not a positive finite number.
pub(crate) fn positive(field: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(field, value, "a positive number"))
}

/// Refuses what is not a finite number of at least zero.
pub(crate) fn not_negative(field: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(field, value, "zero or a positive number"))
}

/// The unweighted parts of LFQ's loss, 0-d.
#[derive(Debug)]
pub struct LfqTerms {
    /// Nats; `None` at an entropy weight of 0.
    pub entropies: Option<CodeEntropies>,
    /// mean((x − sg q)²).
    pub commitment: Tensor,
}

/// What [`Lfq::pass`] makes of features.
pub(crate) struct LfqPass {
    /// `[..., c·d]`, in training with the gradient estimator (and blended with the features in a warm-up).
    pub(crate) codes: Tensor,
    /// `[..., c·d]`, the codes of the ids, without gradient.
    pub(crate) quantized: Tensor,
    /// int64 `[...]`, or `[..., c]` where c > 1.
    pub(crate) ids: Tensor,
    /// Named and weighted.
    pub(crate) losses: Vec<(&'static str, Tensor)>,
    /// The losses' unweighted parts, in training.
    pub(crate) terms: Option<LfqTerms>,
}

/// Lookup-free quantizer. Parameters: `project_in`, `project_out` where the features' width is not
/// [`LfqConfig::code_dim`], otherwise none.
#[derive(Debug)]
pub struct Lfq {
    config: LfqConfig,
    dim: i64,
    projections: Projections,
}

impl Lfq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: LfqConfig) -> Result<Self> {
        config.validate()?;
        if dim < 1 {
            return Err(Error::config("dim", dim, "a positive width"));
        }
        let projections = Projections::new(path, dim, config.code_dim());
        Ok(Self { config, dim, projections })
    }

    /// Its configuration.
    pub fn config(&self) -> &LfqConfig {
        &self.config
    }

    /// [`Quantizer::quantize`] with the loss in its parts (`None` in [`Mode::Eval`]), and with the noise `[N]`, one
    /// number a token, by which `frac_per_sample_entropy` chooses: tokens with the smallest ranks are kept. Without
    /// noise it is drawn.
    ///
    /// # Errors
    /// The last axis is not the width, or there is not one noise value a token.
    pub fn quantize_parts(
        &self,
        features: &Tensor,
        mode: Mode,
        noise: Option<&Tensor>,
    ) -> Result<(Quantized, Option<LfqTerms>)> {
        check_features(features, self.dim)?;
        full_precision(features, |x| self.quantize_full(x, features.kind(), mode, noise))
    }

    fn quantize_full(
        &self,
        features: &Tensor,
        kind: Kind,
        mode: Mode,
        noise: Option<&Tensor>,
    ) -> Result<(Quantized, Option<LfqTerms>)> {
        let LfqPass { codes, ids, losses, terms, .. } =
            self.pass(&self.projections.project_in(features), mode, noise)?;
        let embeddings = self.projections.project_out(&codes).to_kind(kind);
        let usage = Some(Usage::of(&ids, 1 << self.config.bits));
        Ok((Quantized { embeddings, ids: Some(ids), losses, usage }, terms))
    }

    /// Quantizes what `project_in` gave, `[..., c·d]`.
    pub(crate) fn pass(&self, projected: &Tensor, mode: Mode, noise: Option<&Tensor>) -> Result<LfqPass> {
        let config = &self.config;
        let x = self.activate(projected);
        let bits = x.gt(0.0);
        let value = config.code_value();
        let quantized = bits.to_kind(x.kind()) * (2.0 * value) - value;
        let ids = self.ids_of(&bits);

        let mut losses = Vec::new();
        let mut terms = None;
        let mut codes = quantized.shallow_clone();
        if let Mode::Train { step } = mode {
            let parts = self.loss_parts(&x, &quantized, noise)?;
            if let Some(entropies) = &parts.entropies {
                let weight = config.entropy_weight * config.entropy_warmup.factor(step);
                let entropy = &entropies.per_sample * config.per_sample_weight
                    - &entropies.batch * config.diversity_gamma;
                losses.push(("entropy", entropy * weight));
            }
            if config.commitment_weight > 0.0 && x.numel() > 0 {
                losses.push(("commitment", &parts.commitment * config.commitment_weight));
            }
            terms = Some(parts);
            codes = self.train_codes(&x, &quantized, step);
        }
        Ok(LfqPass { codes: codes.flatten(-2, -1), quantized: quantized.flatten(-2, -1), ids, losses, terms })
    }

    /// The codes `[..., d]` of ids `[...]` of any one codebook, all inside it.
    pub(crate) fn codes(&self, ids: &Tensor) -> Tensor {
        let value = self.config.code_value();
        let bits = unpack_bits(ids, self.config.bits, self.config.bit_order);
        bits.to_kind(self.projections.kind()) * (2.0 * value) - value
    }

    /// Projected features as `[..., c, d]`, clamped and normalised: what the sign is taken of.
    fn activate(&self, projected: &Tensor) -> Tensor {
        let config = &self.config;
        let x = match config.soft_clamp {
            Some(limit) => (projected / limit).tanh() * limit,
            None => projected.shallow_clone(),
        };
        let x = x.unflatten(-1, [config.num_codebooks, config.bits]);
        if !config.spherical {
            return x;
        }
        let norm = x.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12);
        x / norm * config.codebook_scale
    }

    /// Ids `[...]`, or `[..., c]` where c > 1, of bits `[..., c, d]`.
    fn ids_of(&self, bits: &Tensor) -> Tensor {
        let ids = pack_bits(bits, self.config.bit_order);
        if self.config.num_codebooks == 1 { ids.squeeze_dim(-1) } else { ids }
    }

    fn loss_parts(&self, x: &Tensor, quantized: &Tensor, noise: Option<&Tensor>) -> Result<LfqTerms> {
        let config = &self.config;
        let commitment = mse(x, &quantized.detach());
        if config.entropy_weight == 0.0 || x.numel() == 0 {
            return Ok(LfqTerms { entropies: None, commitment });
        }
        let mut tokens = x.reshape([-1, config.num_codebooks, config.bits]);
        if config.frac_per_sample_entropy < 1.0 {
            tokens = tokens.index_select(0, &self.chosen_tokens(&tokens, noise)?);
        }
        let tokens = match config.batch_average {
            BatchAverage::PerCodebook => tokens.transpose(0, 1),
            BatchAverage::Joint => tokens.reshape([1, -1, config.bits]),
        };
        let slope = 4.0 * config.inv_temperature * config.code_value();
        let entropies = code_entropies(&tokens, slope, config.entropy_log)?;
        Ok(LfqTerms { entropies: Some(entropies), commitment })
    }

    /// Indices of the tokens that both entropies see.
    fn chosen_tokens(&self, tokens: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let n = tokens.size()[0];
        let noise = match noise {
            Some(noise) if noise.numel() as i64 == n => noise.reshape([-1]),
            Some(noise) => {
                return Err(Error::shape("noise", &noise.size(), format!("{n} values, one for each token")));
            }
            None => Tensor::rand([n], (Kind::Float, tokens.device())),
        };
        let keep = ((n as f64 * self.config.frac_per_sample_entropy) as i64).max(1);
        Ok(noise.argsort(0, false).lt(keep).nonzero().squeeze_dim(-1))
    }

    /// What the decoder reads in training, `[..., c, d]`.
    fn train_codes(&self, x: &Tensor, quantized: &Tensor, step: u64) -> Tensor {
        let codes = straight_through(x, quantized);
        let warmup = self.config.warmup_steps;
        if step >= warmup {
            return codes;
        }
        let alpha = step as f64 / warmup as f64;
        let value = self.config.code_value();
        let soft = if self.config.spherical { x.shallow_clone() } else { (x / value).tanh() * value };
        soft * (1.0 - alpha) + codes * alpha
    }
}

impl Quantizer for Lfq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_parts(features, mode, None)?.0)
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        check_ids(ids, 1 << config.bits)?;
        let ids = if config.num_codebooks == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
        if ids.size().last() != Some(&config.num_codebooks) {
            return Err(Error::shape("ids", &ids.size(), format!("[..., {}]", config.num_codebooks)));
        }
        Ok(self.projections.project_out(&self.codes(&ids).flatten(-2, -1)))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(1 << self.config.bits)
    }

    fn num_ids(&self) -> i64 {
        self.config.num_codebooks
    }
}
