//! Linear maps between the features' width and the codes' width.

use tch::nn::{self, Module};
use tch::{Kind, Tensor};

/// `project_in` and `project_out`, both with bias; nothing at all where the widths agree.
#[derive(Debug)]
pub(crate) struct Projections(Option<(nn::Linear, nn::Linear)>);

impl Projections {
    pub(crate) fn new(path: &nn::Path, dim: i64, code_dim: i64) -> Self {
        Self((dim != code_dim).then(|| {
            (
                nn::linear(path / "project_in", dim, code_dim, Default::default()),
                nn::linear(path / "project_out", code_dim, dim, Default::default()),
            )
        }))
    }

    /// `project_in` and `project_out` without bias, whatever the widths.
    pub(crate) fn unbiased(path: &nn::Path, dim: i64, code_dim: i64, output_dim: i64) -> Self {
        let config = nn::LinearConfig { bias: false, ..Default::default() };
        Self(Some((
            nn::linear(path / "project_in", dim, code_dim, config),
            nn::linear(path / "project_out", code_dim, output_dim, config),
        )))
    }

    pub(crate) fn project_in(&self, features: &Tensor) -> Tensor {
        match &self.0 {
            Some((linear, _)) => linear.forward(features),
            None => features.shallow_clone(),
        }
    }

    pub(crate) fn project_out(&self, codes: &Tensor) -> Tensor {
        match &self.0 {
            Some((_, linear)) => linear.forward(codes),
            None => codes.shallow_clone(),
        }
    }

    /// The kind that looked-up codes should have.
    pub(crate) fn kind(&self) -> Kind {
        self.0.as_ref().map_or(Kind::Float, |(linear, _)| linear.ws.kind())
    }
}
