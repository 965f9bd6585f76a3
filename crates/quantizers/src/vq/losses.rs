//! The terms of [`Vq`]'s loss.

use tch::Tensor;

use super::{CodebookUpdate, Kept, View, Vq, VqConfig, grouped_entropy};
use crate::codebook::{normalize, squared_distances};
use crate::estimators::mse;

/// The unweighted terms, 0-d; `None` where the weight is 0.
#[derive(Debug)]
pub struct VqTerms {
    /// mean((x − sg q)²), or with [`VqConfig::joint_loss`] mean((x − q)²).
    pub commitment: Option<Tensor>,
    /// mean((q − sg x)²).
    pub codebook: Option<Tensor>,
    /// The entropy loss of [`affinity_entropy`](super::affinity_entropy).
    pub entropy: Option<Tensor>,
    /// Mean squared cosine between codes, less that of a code with itself.
    pub orthogonality: Option<Tensor>,
    /// Minus the mean over positions of the entropy of the batch's mean assignment.
    pub diversity: Option<Tensor>,
}

impl VqTerms {
    /// The terms by name, each with its weight.
    pub(crate) fn weighted(&self, config: &VqConfig) -> Vec<(&'static str, Tensor)> {
        [
            ("commitment", &self.commitment, config.commitment_weight),
            ("codebook", &self.codebook, config.codebook_weight),
            ("entropy", &self.entropy, config.entropy.weight),
            ("orthogonality", &self.orthogonality, config.orthogonal_weight),
            ("diversity", &self.diversity, config.diversity_weight),
        ]
        .into_iter()
        .filter_map(|(name, term, weight)| Some((name, term.as_ref()? * weight)))
        .collect()
    }
}

impl Vq {
    /// The terms; all but diversity are of the kept tokens.
    pub(super) fn terms(&self, view: &View, kept: &Kept, id_shape: &[i64]) -> VqTerms {
        let Kept { x, query, codes, ids } = kept;
        let config = &self.config;
        let learned = config.update == CodebookUpdate::Gradient;
        let commitment = (config.commitment_weight > 0.0)
            .then(|| if config.joint_loss { mse(x, codes) } else { mse(x, &codes.detach()) });
        let codebook =
            (learned && !config.joint_loss && config.codebook_weight > 0.0).then(|| mse(codes, &x.detach()));
        let entropy = (config.entropy.weight > 0.0)
            .then(|| grouped_entropy(&-squared_distances(query, &view.keys), &config.entropy).loss);
        let orthogonality = (config.orthogonal_weight > 0.0).then(|| self.orthogonality(ids, x));
        let diversity = (config.diversity_weight > 0.0).then(|| self.diversity(view, id_shape));
        VqTerms { commitment, codebook, entropy, orthogonality, diversity }
    }

    /// Of the codes as they are now, that is after this step's EMA update.
    fn orthogonality(&self, ids: &Tensor, x: &Tensor) -> Tensor {
        let mut codes = self.table.codes(x.kind(), false);
        if self.config.orthogonal_active_codes_only {
            codes = codes.index_select(1, &ids.internal_unique2(true, false, false).0);
        }
        let (codebooks, size) = (codes.size()[0] as f64, codes.size()[1] as f64);
        let unit = normalize(&codes, 1e-12);
        let cosines = unit.bmm(&unit.transpose(-2, -1));
        cosines.square().sum(cosines.kind()) / (codebooks * size * size) - 1.0 / size
    }

    /// Positions are all axes of the features between the first and the last.
    fn diversity(&self, view: &View, id_shape: &[i64]) -> Tensor {
        let (heads, size) = (self.config.heads, self.config.codebook_size);
        let batch = id_shape.first().copied().filter(|_| id_shape.len() > 1).unwrap_or(1);
        let kind = view.x.kind();
        let soft = (self.scores(view) * self.config.diversity_temperature).softmax(-1, kind);
        let soft = if self.config.num_codebooks() == 1 { soft } else { soft.transpose(0, 1) };
        let mean = soft.reshape([batch, -1, heads, size]).mean_dim([0i64, 2].as_slice(), false, kind);
        let negative = &mean * mean.clamp_min(1e-5).log();
        negative.sum_dim_intlist([-1i64].as_slice(), false, kind).mean(kind)
    }
}
