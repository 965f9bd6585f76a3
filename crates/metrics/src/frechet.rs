//! The Fréchet distance of two Gaussians: what FVD and FID are once there are features.
//!
//! |m₁ − m₂|² + tr(C₁ + C₂) − 2 tr((C₁C₂)^½), covariances divided by N − 1. The references take the root of the product in
//! three ways which agree in exact arithmetic. With fewer samples than feature dimensions the covariances are singular:
//! the value is defined, but biased upwards, so compare values of equal sample counts only.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// How the trace of the root is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrechetRule {
    /// StyleGAN-V, common_metrics: float64. Their general matrix root is taken here as a symmetric one, which gives the
    /// same and cannot fail. A single sample counts with its mean alone.
    #[default]
    SqrtmFloat64,
    /// FID, and the original FVD: as above, but a single sample is an error. The references add 1e-6 to the diagonals
    /// where their general root fails; the symmetric one does not.
    FidEpsFloat64,
    /// VideoGPT, TF-GAN: singular value decompositions in float32, whose rounding shows in the third digit when samples are
    /// fewer than dimensions. A single sample is an error.
    SvdFloat32,
}

impl fmt::Display for FrechetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SqrtmFloat64 => "sqrtm_float64",
            Self::FidEpsFloat64 => "fid_eps_float64",
            Self::SvdFloat32 => "svd_float32",
        })
    }
}

/// Mean and covariance of features, gathered batch by batch in float64: D² numbers, however many samples.
#[derive(Debug)]
pub struct Moments {
    count: i64,
    mean: Tensor,
    /// Σ (x − mean)(x − mean)ᵀ.
    scatter: Tensor,
}

impl Moments {
    /// No sample yet, of so many dimensions.
    ///
    /// # Errors
    /// No dimension.
    pub fn new(dimensions: i64) -> Result<Self> {
        if dimensions < 1 {
            return Err(Error::config("dimensions", dimensions, "at least 1"));
        }
        let options = (Kind::Double, tch::Device::Cpu);
        Ok(Self {
            count: 0,
            mean: Tensor::f_zeros([dimensions], options)?,
            scatter: Tensor::f_zeros([dimensions, dimensions], options)?,
        })
    }

    /// The moments of features `[N, D]`.
    ///
    /// # Errors
    /// As [`Moments::add`].
    pub fn of(features: &Tensor) -> Result<Self> {
        let &[_, dimensions] = features.size().as_slice() else {
            return Err(Error::shape("features", &features.size(), "[N, D]"));
        };
        let mut moments = Self::new(dimensions)?;
        moments.add(features)?;
        Ok(moments)
    }

    /// Adds features `[N, D]`.
    ///
    /// # Errors
    /// Another shape, or values that are not finite; nothing is added then.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        let size = features.size();
        if size.len() != 2 || size[0] < 1 || size[1] != self.dimensions() {
            return Err(Error::shape("features", &size, format!("[N, {}] with N ≥ 1", self.dimensions())));
        }
        let features = features.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double);
        if !bool::try_from(features.isfinite().all())? {
            return Err(Error::input("features", "values that are not finite", "finite features"));
        }
        let (old, new) = (self.count as f64, size[0] as f64);
        let mean = features.mean_dim(0, false, Kind::Double);
        let centred = &features - &mean;
        let shift = &mean - &self.mean;
        // Two samples of known moments joined (Chan et al., 1979).
        self.scatter +=
            centred.transpose(0, 1).matmul(&centred) + shift.outer(&shift) * (old * new / (old + new));
        self.mean += shift * (new / (old + new));
        self.count += size[0];
        Ok(())
    }

    /// Samples so far, N.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Dimensions of a feature, D.
    pub fn dimensions(&self) -> i64 {
        self.mean.size()[0]
    }

    /// The mean, float64 `[D]`.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The covariance with divisor N − 1, float64 `[D, D]`; zero for a single sample.
    pub fn covariance(&self) -> Tensor {
        &self.scatter / (self.count - 1).max(1) as f64
    }
}

/// A Fréchet distance and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frechet {
    /// The distance; rounding may bring that of two equal sets slightly below zero.
    pub distance: f64,
    /// |m₁ − m₂|².
    pub mean_term: f64,
    /// tr(C₁) + tr(C₂).
    pub trace_term: f64,
}

/// The distance of two sets.
///
/// # Errors
/// Different dimensions, no sample, or a single one where the rule needs two.
pub fn frechet(a: &Moments, b: &Moments, rule: FrechetRule) -> Result<Frechet> {
    if a.dimensions() != b.dimensions() {
        return Err(Error::shape("second features", &b.mean.size(), format!("[{}]", a.dimensions())));
    }
    let least = if rule == FrechetRule::SqrtmFloat64 { 1 } else { 2 };
    if a.count.min(b.count) < least {
        return Err(Error::input(
            "features",
            format!("sets of {} and {} samples", a.count, b.count),
            format!("at least {least} in each for the rule {rule}"),
        ));
    }
    let number = |tensor: Tensor| tensor.double_value(&[]);
    let mean_term = number((&a.mean - &b.mean).square().sum(Kind::Double));
    if a.count == 1 || b.count == 1 {
        return Ok(Frechet { distance: mean_term, mean_term, trace_term: 0.0 });
    }
    let (covariance_a, covariance_b) = (a.covariance(), b.covariance());
    let trace_term = number(covariance_a.trace() + covariance_b.trace());
    let trace_of_root = match rule {
        FrechetRule::SqrtmFloat64 | FrechetRule::FidEpsFloat64 => {
            let root = symmetric_root(&covariance_a)?;
            let product = root.matmul(&covariance_b).matmul(&root);
            let values = ((&product + product.transpose(0, 1)) * 0.5).f_linalg_eigvalsh("L")?;
            number(values.clamp_min(0.0).sqrt().sum(Kind::Double))
        }
        FrechetRule::SvdFloat32 => {
            let root = svd_root(&covariance_a.to_kind(Kind::Float))?;
            let product = root.matmul(&covariance_b.to_kind(Kind::Float)).matmul(&root);
            number(svd_root(&product)?.trace())
        }
    };
    Ok(Frechet { distance: mean_term + trace_term - 2.0 * trace_of_root, mean_term, trace_term })
}

/// The distance of two sets of features `[N₁, D]`, `[N₂, D]`.
///
/// # Errors
/// As [`frechet`] and [`Moments::add`].
pub fn frechet_distance(a: &Tensor, b: &Tensor, rule: FrechetRule) -> Result<Frechet> {
    frechet(&Moments::of(a)?, &Moments::of(b)?, rule)
}

/// The root of a symmetric matrix without negative eigenvalues but for rounding.
fn symmetric_root(matrix: &Tensor) -> Result<Tensor> {
    let (values, vectors) = matrix.f_linalg_eigh("L")?;
    Ok((&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.transpose(0, 1)))
}

/// The same by singular values, of which those below 1e-10 stay as they are: TF-GAN's rule.
fn svd_root(matrix: &Tensor) -> Result<Tensor> {
    let (u, values, v) = matrix.f_svd(true, true)?;
    let roots = values.sqrt().where_self(&values.ge(1e-10), &values);
    Ok((u * roots).matmul(&v.transpose(0, 1)))
}
