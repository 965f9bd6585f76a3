//! Vector quantization: a table of codes, the nearest of which stands for a feature vector.
//!
//! [`Vq`] covers VQ-VAE (van den Oord et al., arXiv 1711.00937) and its published descendants, told apart by
//! [`VqConfig`]: MaskGIT and MAGVIT, VQGAN, VideoGPT, TECO, and lucidrains' `VectorQuantize`.

mod config;
mod entropy;
mod losses;
mod remap;
mod rotation;
mod table;

use tch::{Kind, Tensor, nn};
use video_core::sampling::gumbel_like;
use video_core::{Error, Result};

pub use config::{
    CodebookInit, CodebookUpdate, DeadCodeRestart, Estimator, Similarity, VqConfig, VqProjection,
};
pub(crate) use config::{check_size, check_width};
pub(crate) use entropy::grouped_entropy;
pub use entropy::{
    AffinityEntropy, EntropyLossConfig, EntropyTarget, affinity_entropy, assignment_perplexity,
};
pub use losses::VqTerms;
pub use remap::{IdRemap, UnknownId};
pub use rotation::rotate_to;

use self::table::Table;
use crate::bits::check_ids;
use crate::codebook::{Metric, nearest, normalize, squared_distances, take};
use crate::estimators::{check_features, full_precision, straight_through};
use crate::projection::Projections;
use crate::{Mode, Quantized, Quantizer, Usage};

/// What a call may be given beside the features. Draws that are not given come from torch's global generator.
#[derive(Debug, Default)]
pub struct VqExtras {
    /// bool `[...]`: which tokens are there. Padding gives embedding 0 and id −1, and takes no part in losses and updates.
    pub mask: Option<Tensor>,
    /// Gumbel noise `[c, N, K]` by which codes are drawn where the config says so.
    pub sample_noise: Option<Tensor>,
    /// The order (a permutation of the N tokens) in which the first batch's features become codes.
    pub init_order: Option<Tensor>,
    /// Standard normals for the repeated features of a first batch with fewer tokens than codes.
    pub init_noise: Option<Tensor>,
    /// The order in which features replace dead codes.
    pub restart_order: Option<Tensor>,
    /// As `init_noise`, for restarts.
    pub restart_noise: Option<Tensor>,
}

/// Vector quantizer. Variables: `embed [c, K, D]`, and see [`VqConfig`] for `embed_avg`, `cluster_size` (EMA), `initted`
/// (init from data), `project_in` and `project_out`.
#[derive(Debug)]
pub struct Vq {
    config: VqConfig,
    dim: i64,
    code_dim: i64,
    projections: Projections,
    table: Table,
}

/// Features and codes as the search and the losses see them.
struct View {
    /// `[c, N, D]`.
    x: Tensor,
    /// What is searched for, `[c, N, D]`.
    query: Tensor,
    /// What is searched among, `[c, K, D]`.
    keys: Tensor,
    /// What is found, `[c, K, D]`.
    codes: Tensor,
}

/// The tokens that a mask leaves, `[c, N', D]` and `[c, N']`.
struct Kept {
    x: Tensor,
    query: Tensor,
    codes: Tensor,
    ids: Tensor,
}

/// One quantization of projected features, before the output projection.
pub(crate) struct Pass {
    /// `[..., h·D]`.
    pub(crate) codes: Tensor,
    /// int64 `[...]`, or `[..., h]`.
    pub(crate) ids: Tensor,
    pub(crate) terms: Option<VqTerms>,
    /// The tokens that codebook updates see, `[c, N, D]`.
    pub(crate) seen: Tensor,
}

impl Vq {
    /// Builds it for features of width `dim`.
    ///
    /// # Errors
    /// The config is invalid, or does not fit features of this width.
    pub fn new(path: &nn::Path, dim: i64, config: VqConfig) -> Result<Self> {
        Self::with_output_dim(path, dim, dim, config)
    }

    /// As [`Vq::new`], but with embeddings of another width than the features: [`Quantizer::dim`] is the features'.
    ///
    /// # Errors
    /// As [`Vq::new`]; or the embeddings would need a projection that the config leaves out.
    pub fn with_output_dim(path: &nn::Path, dim: i64, output_dim: i64, config: VqConfig) -> Result<Self> {
        config.validate()?;
        check_width("dim", dim)?;
        check_width("output_dim", output_dim)?;
        let code_dim = config.code_dim(dim)?;
        let width = code_dim * config.heads;
        let projections = match config.projection {
            VqProjection::Unbiased => Projections::unbiased(path, dim, width, output_dim),
            VqProjection::WhereNeeded if dim == output_dim => Projections::new(path, dim, width),
            VqProjection::WhereNeeded => {
                return Err(Error::config("projection", config.projection, "unbiased where widths differ"));
            }
        };
        let table = Table::new(path, code_dim, &config);
        Ok(Self { config, dim, code_dim, projections, table })
    }

    /// Its configuration.
    pub fn config(&self) -> &VqConfig {
        &self.config
    }

    /// [`Quantizer::quantize`] with a mask or given draws, and with the loss in its unweighted parts (`None` in
    /// [`Mode::Eval`], and where there is no token).
    ///
    /// # Errors
    /// The last axis is not the width, the mask has not the shape of the ids, or a draw not that of what it stands for.
    pub fn quantize_with(
        &self,
        features: &Tensor,
        mode: Mode,
        extras: &VqExtras,
    ) -> Result<(Quantized, Option<VqTerms>)> {
        check_features(features, self.dim)?;
        full_precision(features, |features| {
            let pass = self.pass(&self.projections.project_in(features), mode, extras, true)?;
            let mut embeddings = self.projections.project_out(&pass.codes);
            if let Some(mask) = &extras.mask {
                embeddings = embeddings.masked_fill(&mask.logical_not().unsqueeze(-1), 0.0);
            }
            let usage = Some(Usage::of(&pass.ids, self.config.codebook_size));
            let losses = pass.terms.as_ref().map_or_else(Vec::new, |terms| terms.weighted(&self.config));
            Ok((Quantized { embeddings, ids: Some(pass.ids), losses, usage }, pass.terms))
        })
    }

    /// The codes `[..., h·D]` of ids `[...]` (several heads: `[..., h]`), before the output projection.
    ///
    /// # Errors
    /// An id outside the codebook, or a last axis that is not the heads'.
    pub fn codes(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.codebook_size)?;
        let heads = self.config.heads;
        let ids = if heads == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
        if ids.size().last() != Some(&heads) {
            return Err(Error::shape("ids", &ids.size(), format!("[..., {heads}], one id for each head")));
        }
        let table = self.table.codes(self.projections.kind(), false);
        let table =
            if self.config.similarity == Similarity::Cosine { normalize(&table, 1e-6) } else { table };
        Ok(self.join_heads(&take(&table, &self.split_ids(&ids)), &ids.size()))
    }

    /// The codes `[c, K, D]`, a copy.
    pub fn codebook(&self) -> Tensor {
        self.table.codes(Kind::Float, false).detach().copy()
    }

    /// Quantizes projected features `[..., h·D]`. Without `finish`, the EMA counts and sums move but the codes stay:
    /// [`Vq::finish`] is still to be called.
    pub(crate) fn pass(
        &self,
        projected: &Tensor,
        mode: Mode,
        extras: &VqExtras,
        finish: bool,
    ) -> Result<Pass> {
        let heads = self.config.heads;
        let x = self.split_heads(projected);
        let x = match self.config.similarity {
            Similarity::Euclidean | Similarity::CosineSearch => x,
            Similarity::Cosine | Similarity::UnitFeatures | Similarity::CosineFeatures => normalize(&x, 1e-6),
        };
        let mut id_shape = projected.size();
        *id_shape.last_mut().unwrap_or(&mut 0) = heads;
        let kept = extras.mask.as_ref().map(|mask| self.kept_tokens(mask, &id_shape)).transpose()?;
        let only_kept = |tokens: &Tensor| match &kept {
            Some(kept) => tokens.index_select(1, kept),
            None => tokens.shallow_clone(),
        };
        let seen = only_kept(&x).detach();
        // Without a token there is nothing to learn, and no mean to take.
        let train = mode != Mode::Eval && seen.numel() > 0;
        if train {
            self.check_draws(&seen, extras)?;
            let (order, noise) = (extras.init_order.as_ref(), extras.init_noise.as_ref());
            self.table.ensure_made(&seen, self.metric(), order, noise);
        }

        let view = self.view(x, train);
        let (ids, codes) = self.choose(&view, train, extras.sample_noise.as_ref())?;
        let mut terms = None;
        let mut output = codes.shallow_clone();
        if train {
            self.table.absorb(&seen, &only_kept(&ids));
            if finish {
                self.finish(&seen, extras);
            }
            let kept = Kept {
                x: only_kept(&view.x),
                query: only_kept(&view.query),
                codes: only_kept(&codes),
                ids: only_kept(&ids),
            };
            terms = Some(self.terms(&view, &kept, &id_shape));
            output = match self.config.estimator {
                _ if !view.x.requires_grad() => codes.detach(),
                Estimator::StraightThrough => straight_through(&view.x, &codes),
                Estimator::RotationTrick => rotate_to(&view.x, &codes.detach()),
            };
        }
        let mut ids = self.join_ids(&ids, &id_shape);
        if let Some(mask) = &extras.mask {
            ids = ids.masked_fill(&mask.logical_not().unsqueeze(-1), -1);
        }
        let ids = if heads == 1 { ids.squeeze_dim(-1) } else { ids };
        Ok(Pass { codes: self.join_heads(&output, &id_shape), ids, terms, seen })
    }

    /// Makes the codes anew from counts and sums, and restarts dead ones from features `[c, N, D]`, N > 0.
    pub(crate) fn finish(&self, seen: &Tensor, extras: &VqExtras) {
        self.table.refresh();
        self.table.restart_dead(seen, extras.restart_order.as_ref(), extras.restart_noise.as_ref());
    }

    fn metric(&self) -> Metric {
        match self.config.similarity {
            Similarity::Euclidean => Metric::Euclidean,
            _ => Metric::Dot,
        }
    }

    fn view(&self, x: Tensor, train: bool) -> View {
        let stored = self.table.codes(x.kind(), train);
        match self.config.similarity {
            Similarity::Euclidean | Similarity::UnitFeatures => {
                View { query: x.shallow_clone(), keys: stored.shallow_clone(), codes: stored, x }
            }
            Similarity::Cosine => {
                let codes = normalize(&stored, 1e-6);
                View { query: x.shallow_clone(), keys: codes.shallow_clone(), codes, x }
            }
            Similarity::CosineSearch => {
                View { query: normalize(&x, 1e-12), keys: normalize(&stored, 1e-12), codes: stored, x }
            }
            Similarity::CosineFeatures => {
                View { query: x.shallow_clone(), keys: normalize(&stored, 1e-6), codes: stored, x }
            }
        }
    }

    /// Ids `[c, N]` and their codes `[c, N, D]`.
    fn choose(&self, view: &View, train: bool, noise: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let temperature = self.config.sample_temperature.unwrap_or(1.0);
        let scores = |view: &View| self.scores(view) / temperature;
        let ids = if train && self.config.sample_temperature.is_some() {
            let scores = tch::no_grad(|| scores(view));
            let noise = match noise {
                Some(noise) if noise.size() == scores.size() => noise.shallow_clone(),
                Some(noise) => {
                    let expected = format!("{:?}, one number for each code", scores.size());
                    return Err(Error::shape("sample_noise", &noise.size(), expected));
                }
                None => gumbel_like(&scores),
            };
            (scores + noise).argmax(-1, false)
        } else {
            nearest(&view.query, &view.keys, self.metric())
        };
        if train && self.config.softmax_gradient {
            let soft = scores(view).softmax(-1, view.x.kind());
            let chosen = ids.one_hot(self.config.codebook_size).to_kind(view.x.kind());
            return Ok((ids, (&soft - (&soft - chosen).detach()).bmm(&view.codes)));
        }
        let codes = take(&view.codes, &ids);
        Ok((ids, codes))
    }

    /// What is larger for nearer codes, `[c, N, K]`: minus the distance, or the dot product.
    fn scores(&self, view: &View) -> Tensor {
        match self.metric() {
            Metric::Euclidean => -squared_distances(&view.query, &view.keys).clamp_min(1e-8).sqrt(),
            Metric::Dot => view.query.bmm(&view.keys.transpose(-2, -1)),
        }
    }

    /// Indices of the tokens of `[c, N, D]` that a mask keeps.
    fn kept_tokens(&self, mask: &Tensor, id_shape: &[i64]) -> Result<Tensor> {
        let tokens = &id_shape[..id_shape.len() - 1];
        if mask.size() != tokens || mask.kind() != Kind::Bool {
            return Err(Error::shape("mask", &mask.size(), format!("bool {tokens:?}")));
        }
        let mask = mask.reshape([-1, 1]);
        let mask = if self.config.num_codebooks() == 1 { mask.repeat([1, self.config.heads]) } else { mask };
        Ok(mask.reshape([-1]).nonzero().squeeze_dim(-1))
    }

    fn check_draws(&self, seen: &Tensor, extras: &VqExtras) -> Result<()> {
        let (n, width, size) = (seen.size()[1], self.code_dim, self.config.codebook_size);
        let tiled = if n < size { n * ((size + n - 1) / n) } else { n };
        let init_rows = if matches!(self.config.init, CodebookInit::KMeans { .. }) { n } else { tiled };
        let restart_rows =
            if self.config.dead_code_restart == DeadCodeRestart::KeepCount { tiled } else { n };
        for (name, order, rows) in [
            ("init_order", &extras.init_order, init_rows),
            ("restart_order", &extras.restart_order, restart_rows),
        ] {
            let Some(order) = order else { continue };
            if order.size() != [rows] {
                return Err(Error::shape(name, &order.size(), format!("[{rows}], a permutation")));
            }
            check_ids(order, rows)?;
        }
        for (name, noise) in [("init_noise", &extras.init_noise), ("restart_noise", &extras.restart_noise)] {
            let Some(noise) = noise else { continue };
            if noise.size() != [tiled, width] {
                return Err(Error::shape(name, &noise.size(), format!("[{tiled}, {width}]")));
            }
        }
        Ok(())
    }

    /// `[..., h·D]` to `[c, N, D]`: heads with codebooks of their own come first, others are tokens more.
    fn split_heads(&self, projected: &Tensor) -> Tensor {
        let split = projected.reshape([-1, self.config.heads, self.code_dim]);
        if self.config.num_codebooks() == 1 {
            split.reshape([1, -1, self.code_dim])
        } else {
            split.transpose(0, 1)
        }
    }

    /// The inverse of [`Self::split_heads`], for ids of shape `[..., h]`.
    fn join_heads(&self, codes: &Tensor, id_shape: &[i64]) -> Tensor {
        let codes =
            if self.config.num_codebooks() == 1 { codes.shallow_clone() } else { codes.transpose(0, 1) };
        let mut shape = id_shape.to_vec();
        *shape.last_mut().unwrap_or(&mut 0) = self.config.heads * self.code_dim;
        codes.reshape(shape)
    }

    /// Ids `[..., h]` to `[c, N]`.
    fn split_ids(&self, ids: &Tensor) -> Tensor {
        if self.config.num_codebooks() == 1 {
            ids.reshape([1, -1])
        } else {
            ids.reshape([-1, self.config.heads]).transpose(0, 1)
        }
    }

    /// The inverse of [`Self::split_ids`].
    fn join_ids(&self, ids: &Tensor, id_shape: &[i64]) -> Tensor {
        let ids = if self.config.num_codebooks() == 1 { ids.shallow_clone() } else { ids.transpose(0, 1) };
        ids.reshape(id_shape)
    }
}

impl Quantizer for Vq {
    fn quantize(&self, features: &Tensor, mode: Mode) -> Result<Quantized> {
        Ok(self.quantize_with(features, mode, &VqExtras::default())?.0)
    }

    fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.projections.project_out(&self.codes(ids)?))
    }

    fn dim(&self) -> i64 {
        self.dim
    }

    fn codebook_size(&self) -> Option<i64> {
        Some(self.config.codebook_size)
    }

    fn num_ids(&self) -> i64 {
        self.config.heads
    }
}
