//! Index backpropagation quantization (Shi et al., arXiv 2412.02692): the one-hot choice carries the gradient of a softmax
//! over all codes, so that every code learns in every step.
//!
//! Training holds several N × K tensors; at 2^18 codes that is 1 MiB a token for each.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Init};
use video_core::Result;

use crate::bits::check_ids;
use crate::codebook::{Metric, nearest, take};
use crate::estimators::{check_features, full_precision, mse};
use crate::lfq::not_negative;
use crate::vq::{AffinityEntropy, affinity_entropy, check_size, check_width};
use crate::{EntropyLossConfig, Mode, Quantized, Quantizer, Usage};

/// Configuration of [`Ibq`]; the defaults are the published ones with 16,384 codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IbqConfig {
    /// K.
    pub codebook_size: i64,
    /// Weight of the three squared errors together.
    pub quant_weight: f64,
    /// β, the weight inside of mean((q − sg z)²).
    pub beta: f64,
    /// The entropy loss on the dot products.
    pub entropy: EntropyLossConfig,
}

impl Default for IbqConfig {
    fn default() -> Self {
        Self {
            codebook_size: 16_384,
            quant_weight: 1.0,
            beta: 0.25,
            entropy: EntropyLossConfig { weight: 0.05, ..EntropyLossConfig::default() },
        }
    }
}

impl IbqConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("codebook_size", self.codebook_size)?;
        not_negative("quant_weight", self.quant_weight)?;
        not_negative("beta", self.beta)?;
        self.entropy.validate().map_err(|error| error.within("entropy"))
    }
}

/// The unweighted parts of IBQ's loss.
#[derive(Debug)]
pub struct IbqTerms {
    /// The three squared errors together, β applied.
    pub quant: Tensor,
    /// `None` at an entropy weight of 0.
    pub entropy: Option<AffinityEntropy>,
}

/// IBQ quantizer. Variables: `embedding [K, D]`.
#[derive(Debug)]
pub struct Ibq {
    config: IbqConfig,
    dim: i64,
    embedding: Tensor,
}

impl Ibq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: IbqConfig) -> Result<Self> {
        config.validate()?;
        check_width("dim", dim)?;
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let embedding = path.var("embedding", &[config.codebook_size, dim], normal);
        Ok(Self { config, dim, embedding })
    }

    /// Its configuration.
    pub fn config(&self) -> &IbqConfig {
        &self.config
    }

    /// [`Quantizer::quantize`] with the loss in its parts (`None` in [`Mode::Eval`]).
    ///
    /// # Errors
    /// The last axis is not the width.
    pub fn quantize_parts(&self, features: &Tensor, mode: Mode) -> Result<(Quantized, Option<IbqTerms>)> {
        check_features(features, self.dim)?;
        Ok(full_precision(features, |z| {
            let table = self.embedding.to_kind(z.kind());
            let tokens = z.reshape([-1, self.dim]);
            let ids = nearest(&tokens.unsqueeze(0), &table.unsqueeze(0), Metric::Dot).squeeze_dim(0);
            let mut shape = z.size();
            shape.pop();
            let usage = Some(Usage::of(&ids, self.config.codebook_size));
            let codes = take(&table.unsqueeze(0), &ids.unsqueeze(0)).squeeze_dim(0);
            if mode == Mode::Eval || z.numel() == 0 {
                let quantized = Quantized {
                    embeddings: codes.reshape(z.size()),
                    ids: Some(ids.reshape(shape)),
                    losses: Vec::new(),
                    usage,
                };
                return (quantized, None);
            }
            let kind = z.kind();
            let logits = tokens.matmul(&table.transpose(0, 1));
            let soft = logits.softmax(-1, kind);
            let chosen = ids.one_hot(self.config.codebook_size).to_kind(kind);
            let embeddings = (&soft - (&soft - chosen).detach()).matmul(&table);
            let quant = mse(&embeddings, &tokens)
                + mse(&codes.detach(), &tokens)
                + mse(&codes, &tokens.detach()) * self.config.beta;
            let entropy =
                (self.config.entropy.weight > 0.0).then(|| affinity_entropy(&logits, &self.config.entropy));
            let mut losses = vec![("quant", &quant * self.config.quant_weight)];
            if let Some(entropy) = &entropy {
                losses.push(("entropy", &entropy.loss * self.config.entropy.weight));
            }
            let quantized = Quantized {
                embeddings: embeddings.reshape(z.size()),
                ids: Some(ids.reshape(shape)),
                losses,
                usage,
            };
            (quantized, Some(IbqTerms { quant, entropy }))
        }))
    }
}

impl Quantizer for Ibq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_parts(features, mode)?.0)
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.codebook_size)?;
        let codes = self.embedding.index_select(0, &ids.reshape([-1]));
        Ok(codes.reshape([ids.size().as_slice(), &[self.dim]].concat()))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.codebook_size)
    }
}
