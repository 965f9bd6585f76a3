//! SimVQ (Zhu et al., arXiv 2411.02038): the codes are a learned linear image of a frozen table, so that every step moves
//! all of them and none is left behind.

use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};
use video_core::Result;

use crate::bits::check_ids;
use crate::codebook::{Metric, nearest, take};
use crate::estimators::{check_features, full_precision, mse, straight_through};
use crate::lfq::not_negative;
use crate::vq::{check_size, check_width, rotate_to};
use crate::{Estimator, Mode, Quantized, Quantizer, Usage};

/// Configuration of [`SimVq`]; the defaults are the paper's 65,536 codes with the rotation trick of vector-quantize-pytorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimVqConfig {
    /// K.
    pub codebook_size: i64,
    /// Width of the frozen table. None: the features' width.
    pub frozen_codebook_dim: Option<i64>,
    /// The gradient of the discrete choice.
    pub estimator: Estimator,
    /// Weight of both terms together.
    pub commitment_weight: f64,
    /// Weight inside of mean((x − sg q)²), beside mean((q − sg x)²) with 1.
    pub input_to_quantize_commit_loss_weight: f64,
}

impl Default for SimVqConfig {
    fn default() -> Self {
        Self {
            codebook_size: 65_536,
            frozen_codebook_dim: None,
            estimator: Estimator::RotationTrick,
            commitment_weight: 1.0,
            input_to_quantize_commit_loss_weight: 0.25,
        }
    }
}

impl SimVqConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("codebook_size", self.codebook_size)?;
        if let Some(width) = self.frozen_codebook_dim {
            check_width("frozen_codebook_dim", width)?;
        }
        not_negative("commitment_weight", self.commitment_weight)?;
        not_negative("input_to_quantize_commit_loss_weight", self.input_to_quantize_commit_loss_weight)
    }
}

/// SimVQ quantizer. Variables: `frozen_codebook [K, d0]`, a buffer, and `code_transform.weight [D, d0]`.
#[derive(Debug)]
pub struct SimVq {
    config: SimVqConfig,
    dim: i64,
    frozen_codebook: Tensor,
    code_transform: nn::Linear,
}

impl SimVq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or `dim` is not positive.
    pub fn new(path: &nn::Path, dim: i64, config: SimVqConfig) -> Result<Self> {
        config.validate()?;
        check_width("dim", dim)?;
        let frozen_dim = config.frozen_codebook_dim.unwrap_or(dim);
        let normal = Tensor::randn([config.codebook_size, frozen_dim], (Kind::Float, path.device()));
        let frozen_codebook = path.add("frozen_codebook", normal / (frozen_dim as f64).sqrt(), false);
        let unbiased = nn::LinearConfig { bias: false, ..Default::default() };
        let code_transform = nn::linear(path / "code_transform", frozen_dim, dim, unbiased);
        Ok(Self { config, dim, frozen_codebook, code_transform })
    }

    /// Its configuration.
    pub fn config(&self) -> &SimVqConfig {
        &self.config
    }

    /// The codes `[K, D]`, with the gradient of the linear map.
    pub fn codebook(&self) -> Tensor {
        self.code_transform.forward(&self.frozen_codebook)
    }
}

impl Quantizer for SimVq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        check_features(features, self.dim)?;
        Ok(full_precision(features, |x| {
            let table = self.codebook().to_kind(x.kind()).unsqueeze(0);
            let tokens = x.reshape([1, -1, self.dim]);
            let ids = nearest(&tokens, &table, Metric::Euclidean);
            let codes = take(&table, &ids).reshape(x.size());
            let mut shape = x.size();
            shape.pop();
            let ids = ids.reshape(shape);
            let usage = Some(Usage::of(&ids, self.config.codebook_size));
            if mode == Mode::Eval || x.numel() == 0 {
                return Quantized { embeddings: codes, ids: Some(ids), losses: Vec::new(), usage };
            }
            let weight = self.config.commitment_weight;
            let losses = vec![
                (
                    "commitment",
                    mse(x, &codes.detach()) * (weight * self.config.input_to_quantize_commit_loss_weight),
                ),
                ("codebook", mse(&codes, &x.detach()) * weight),
            ];
            let embeddings = match self.config.estimator {
                _ if !x.requires_grad() => codes.detach(),
                Estimator::StraightThrough => straight_through(x, &codes),
                Estimator::RotationTrick => rotate_to(x, &codes.detach()),
            };
            Quantized { embeddings, ids: Some(ids), losses, usage }
        }))
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.codebook_size)?;
        let rows = self.frozen_codebook.index_select(0, &ids.reshape([-1]));
        Ok(self.code_transform.forward(&rows).reshape([ids.size().as_slice(), &[self.dim]].concat()))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.codebook_size)
    }
}
