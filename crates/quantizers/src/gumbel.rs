//! GumbelVQ: in training a noisy softmax over the codes stands for the choice of one, and a falling temperature brings
//! the two together. Two published forms, which differ in what the softmax is taken of; see [`GumbelForm`].

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Init, Module};
use video_core::sampling::gumbel_like;
use video_core::{Error, Result};

use crate::bits::check_ids;
use crate::codebook::{Metric, nearest, squared_distances, take};
use crate::estimators::{check_features, full_precision};
use crate::lfq::{not_negative, positive};
use crate::projection::Projections;
use crate::vq::{check_size, check_width};
use crate::{Mode, Quantized, Quantizer, Usage};

/// Configuration of [`GumbelVq`]; the defaults are MaskGIT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GumbelConfig {
    /// K.
    pub codebook_size: i64,
    /// Width of a code. None: the features' width. Features of another width are projected.
    pub codebook_dim: Option<i64>,
    /// What the softmax is taken of.
    pub form: GumbelForm,
    /// The temperature at each step.
    pub temperature: TemperatureSchedule,
}

/// What GumbelVQ's softmax is taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GumbelForm {
    /// Minus squared distances; training mixes codes, evaluation takes the nearest; ids are without noise always. No loss.
    /// MaskGIT.
    #[default]
    Distances,
    /// A linear map of the features. VQGAN, after DALL-E.
    Logits {
        /// One code in training too, with the gradient of the mixture.
        straight_through: bool,
        /// Weight of the divergence of the noise-free assignment from the uniform one.
        kl_weight: f64,
        /// Evaluation draws codes, as the reference does; else it takes the most likely ones.
        sample_in_eval: bool,
    },
}

impl GumbelForm {
    /// The published VQGAN with 8192 codes.
    pub const VQGAN: Self = Self::Logits { straight_through: true, kl_weight: 1e-8, sample_in_eval: false };
}

/// The temperature τ by step: linear from `start` to `max` over `warm_up_steps`, then half a cosine to `min` at
/// `decay_steps`, constant after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemperatureSchedule {
    /// τ at step 0, where there is a warm-up.
    pub start: f64,
    /// τ after the warm-up.
    pub max: f64,
    /// τ from `decay_steps` on.
    pub min: f64,
    /// Steps.
    pub warm_up_steps: u64,
    /// The step at which the fall ends, counted from step 0.
    pub decay_steps: u64,
}

impl Default for TemperatureSchedule {
    fn default() -> Self {
        Self { start: 1.0, max: 1.0, min: 0.6, warm_up_steps: 0, decay_steps: 100_000 }
    }
}

impl TemperatureSchedule {
    /// Of the published VQGAN f8: 0.9 to 1e-6.
    pub const VQGAN: Self =
        Self { start: 0.9, max: 0.9, min: 1e-6, warm_up_steps: 0, decay_steps: 1_000_001 };

    /// The same temperature at every step.
    pub fn constant(temperature: f64) -> Self {
        Self { start: temperature, max: temperature, min: temperature, warm_up_steps: 0, decay_steps: 1 }
    }

    /// τ at a step.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warm_up_steps {
            return self.start + (self.max - self.start) * step as f64 / self.warm_up_steps as f64;
        }
        let fall = (self.decay_steps - self.warm_up_steps) as f64;
        let t = ((step - self.warm_up_steps) as f64 / fall).min(1.0);
        self.min + 0.5 * (self.max - self.min) * (1.0 + (std::f64::consts::PI * t).cos())
    }

    /// Checks every field.
    ///
    /// # Errors
    /// A temperature is not positive, or the fall ends before it begins.
    pub fn validate(&self) -> Result<()> {
        positive("start", self.start)?;
        positive("max", self.max)?;
        positive("min", self.min)?;
        if self.decay_steps <= self.warm_up_steps {
            return Err(Error::config(
                "decay_steps",
                self.decay_steps,
                format!("more than warm_up_steps = {}", self.warm_up_steps),
            ));
        }
        Ok(())
    }
}

impl Default for GumbelConfig {
    fn default() -> Self {
        Self {
            codebook_size: 1024,
            codebook_dim: None,
            form: GumbelForm::default(),
            temperature: TemperatureSchedule::default(),
        }
    }
}

impl GumbelConfig {
    /// The published VQGAN f8 with Gumbel quantization: 8192 codes of width 256.
    pub fn vqgan() -> Self {
        Self {
            codebook_size: 8192,
            codebook_dim: Some(256),
            form: GumbelForm::VQGAN,
            temperature: TemperatureSchedule::VQGAN,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("codebook_size", self.codebook_size)?;
        if let Some(width) = self.codebook_dim {
            check_width("codebook_dim", width)?;
        }
        if let GumbelForm::Logits { kl_weight, .. } = self.form {
            not_negative("form.logits.kl_weight", kl_weight)?;
        }
        self.temperature.validate().map_err(|error| error.within("temperature"))
    }
}

/// GumbelVQ's tensors between features and embeddings.
#[derive(Debug)]
pub struct GumbelTerms {
    /// `[..., K]`: what the softmax is taken of, without noise.
    pub logits: Tensor,
    /// `[..., K]`: the assignment; one-hot where a single code was taken.
    pub encodings: Tensor,
}

/// GumbelVQ quantizer. Variables: `embed [K, D]`; [`GumbelForm::Logits`]: `proj`, the linear map from features to K
/// logits; [`GumbelForm::Distances`]: `project_in` and `project_out` where the features have another width than codes.
#[derive(Debug)]
pub struct GumbelVq {
    config: GumbelConfig,
    dim: i64,
    output_dim: i64,
    head: Head,
    embed: Tensor,
}

#[derive(Debug)]
enum Head {
    Distances(Projections),
    Logits { proj: nn::Linear, project_out: Option<nn::Linear> },
}

impl GumbelVq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: GumbelConfig) -> Result<Self> {
        Self::with_output_dim(path, dim, dim, config)
    }

    /// As [`GumbelVq::new`], but with embeddings of another width than the features. [`GumbelForm::Logits`] needs no
    /// projection where the embeddings have the codes' width.
    ///
    /// # Errors
    /// As [`GumbelVq::new`]; or [`GumbelForm::Distances`], which has one width.
    pub fn with_output_dim(path: &nn::Path, dim: i64, output_dim: i64, config: GumbelConfig) -> Result<Self> {
        config.validate()?;
        check_width("dim", dim)?;
        check_width("output_dim", output_dim)?;
        let size = config.codebook_size;
        let width = config.codebook_dim.unwrap_or(output_dim);
        let (head, init) = match config.form {
            GumbelForm::Distances if dim == output_dim => {
                let limit = (3.0 / size as f64).sqrt();
                (Head::Distances(Projections::new(path, dim, width)), Init::Uniform { lo: -limit, up: limit })
            }
            GumbelForm::Distances => {
                return Err(Error::config("output_dim", output_dim, format!("{dim}, the features' width")));
            }
            GumbelForm::Logits { .. } => {
                let proj = nn::linear(path / "proj", dim, size, Default::default());
                let project_out = (width != output_dim)
                    .then(|| nn::linear(path / "project_out", width, output_dim, Default::default()));
                (Head::Logits { proj, project_out }, Init::Randn { mean: 0.0, stdev: 1.0 })
            }
        };
        let embed = path.var("embed", &[size, width], init);
        Ok(Self { config, dim, output_dim, head, embed })
    }

    /// Its configuration.
    pub fn config(&self) -> &GumbelConfig {
        &self.config
    }

    /// [`Quantizer::quantize`] at a temperature, with given Gumbel noise `[..., K]` (drawn where there is none), and with
    /// the tensors in between (`None` where evaluation needs none).
    ///
    /// # Errors
    /// The last axis is not the width, or the noise has not the shape of the logits.
    pub fn quantize_with(
        &self,
        features: &Tensor,
        train: bool,
        temperature: f64,
        noise: Option<&Tensor>,
    ) -> Result<(Quantized, Option<GumbelTerms>)> {
        check_features(features, self.dim)?;
        positive("temperature", temperature)?;
        if let Some(noise) = noise {
            let mut expected = features.size();
            *expected.last_mut().unwrap_or(&mut 0) = self.config.codebook_size;
            if noise.size() != expected {
                return Err(Error::shape("noise", &noise.size(), format!("{expected:?}")));
            }
        }
        Ok(full_precision(features, |features| {
            let (codes, ids, losses, terms) = match &self.head {
                Head::Distances(projections) => {
                    let x = projections.project_in(features);
                    self.by_distance(&x, train, temperature, noise)
                }
                Head::Logits { proj, .. } => {
                    self.by_logits(proj.forward(features), train, temperature, noise)
                }
            };
            let usage = Some(Usage::of(&ids, self.config.codebook_size));
            (Quantized { embeddings: self.project_out(&codes), ids: Some(ids), losses, usage }, terms)
        }))
    }

    fn by_distance(&self, x: &Tensor, train: bool, temperature: f64, noise: Option<&Tensor>) -> Parts {
        let table = self.embed.to_kind(x.kind()).unsqueeze(0);
        let tokens = x.reshape([1, -1, *x.size().last().unwrap_or(&1)]);
        let mut shape = x.size();
        shape.pop();
        let ids = nearest(&tokens, &table, Metric::Euclidean);
        if !train {
            let codes = take(&table, &ids).reshape(x.size());
            return (codes, ids.reshape(shape), Vec::new(), None);
        }
        let with_codes = [shape.as_slice(), &[self.config.codebook_size]].concat();
        let logits = -squared_distances(&tokens, &table).reshape(with_codes);
        let encodings = softmax_with(&logits, temperature, noise);
        let codes = encodings.matmul(&table.squeeze_dim(0));
        (codes, ids.reshape(shape), Vec::new(), Some(GumbelTerms { logits, encodings }))
    }

    fn by_logits(&self, logits: Tensor, train: bool, temperature: f64, noise: Option<&Tensor>) -> Parts {
        let GumbelForm::Logits { straight_through, kl_weight, sample_in_eval } = self.config.form else {
            unreachable!("the head follows the form");
        };
        let zeros;
        let noise = match noise {
            None if !train && !sample_in_eval => {
                zeros = logits.zeros_like();
                Some(&zeros)
            }
            given => given,
        };
        let kind = logits.kind();
        let soft = softmax_with(&logits, temperature, noise);
        let ids = soft.argmax(-1, false);
        let encodings = if straight_through || !train {
            let chosen = ids.one_hot(self.config.codebook_size).to_kind(kind);
            &soft - (&soft - chosen).detach()
        } else {
            soft
        };
        let codes = encodings.matmul(&self.embed.to_kind(kind));
        let mut losses = Vec::new();
        if kl_weight > 0.0 && logits.numel() > 0 {
            let p = logits.softmax(-1, kind);
            let log = (&p * self.config.codebook_size as f64 + 1e-10).log();
            let kl = (p * log).sum_dim_intlist([-1i64].as_slice(), false, kind).mean(kind);
            losses.push(("kl", kl * kl_weight));
        }
        (codes, ids, losses, Some(GumbelTerms { logits, encodings }))
    }

    fn project_out(&self, codes: &Tensor) -> Tensor {
        match &self.head {
            Head::Distances(projections) => projections.project_out(codes),
            Head::Logits { project_out: Some(linear), .. } => linear.forward(codes),
            Head::Logits { project_out: None, .. } => codes.shallow_clone(),
        }
    }

    /// Width of the embeddings.
    pub fn output_dim(&self) -> i64 {
        self.output_dim
    }
}

/// Codes, ids, losses, and what lies between.
type Parts = (Tensor, Tensor, Vec<(&'static str, Tensor)>, Option<GumbelTerms>);

fn softmax_with(logits: &Tensor, temperature: f64, noise: Option<&Tensor>) -> Tensor {
    let noise = noise.map_or_else(|| gumbel_like(logits), Tensor::shallow_clone);
    ((logits + noise) / temperature).softmax(-1, logits.kind())
}

impl Quantizer for GumbelVq {
    /// Losses are given in training only.
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        match mode {
            Mode::Train { step } => {
                Ok(self.quantize_with(features, true, self.config.temperature.at(step), None)?.0)
            }
            Mode::Eval => {
                let temperature = self.config.temperature.min;
                let quantized = self.quantize_with(features, false, temperature, None)?.0;
                // Rows of the table, not what the straight-through estimator rounds them to.
                let embeddings = match &quantized.ids {
                    Some(ids) => self.lookup(ids)?,
                    None => quantized.embeddings,
                };
                Ok(Quantized { embeddings, losses: Vec::new(), ..quantized })
            }
        }
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.codebook_size)?;
        let width = self.embed.size()[1];
        let codes = self.embed.index_select(0, &ids.reshape([-1]));
        Ok(self.project_out(&codes.reshape([ids.size().as_slice(), &[width]].concat())))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.codebook_size)
    }
}
