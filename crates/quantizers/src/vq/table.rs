//! The codes themselves, and how they are learned where that is not the optimizer's work.

use tch::nn::{self, Init};
use tch::{Kind, Tensor};

use super::{CodebookInit, CodebookUpdate, DeadCodeRestart, VqConfig};
use crate::codebook::{Metric, counts_and_sums, first_rows, k_means, normalize, random_order, tile_rows};

/// The codebooks `embed [c, K, D]`. Under EMA with the buffers `cluster_size [c, K]` and `embed_avg [c, K, D]`; with an
/// init from data also `initted [1]`, 1 once the codes are made.
#[derive(Debug)]
pub(super) struct Table {
    config: VqConfig,
    embed: Tensor,
    averages: Option<Averages>,
    initted: Option<Tensor>,
}

#[derive(Debug)]
struct Averages {
    cluster_size: Tensor,
    embed_avg: Tensor,
}

impl Table {
    pub(super) fn new(path: &nn::Path, width: i64, config: &VqConfig) -> Self {
        let (codebooks, size) = (config.num_codebooks(), config.codebook_size);
        let shape = [codebooks, size, width];
        let first = initial_codes(path, &shape, config);
        let ema = config.update == CodebookUpdate::Ema;
        let trained = !ema || config.orthogonal_weight > 0.0;
        Self {
            averages: ema.then(|| Averages {
                cluster_size: path.ones_no_train("cluster_size", &[codebooks, size]),
                embed_avg: path.add("embed_avg", first.copy(), false),
            }),
            embed: path.add("embed", first, trained),
            initted: config.init.needs_data().then(|| path.zeros_no_train("initted", &[1])),
            config: config.clone(),
        }
    }

    /// The codes as they are now, of the given kind. Later updates in place do not reach a `snapshot`; its gradient goes
    /// the same way.
    pub(super) fn codes(&self, kind: Kind, snapshot: bool) -> Tensor {
        let codes = self.embed.to_kind(kind);
        if snapshot && self.averages.is_some() { codes * 1.0 } else { codes }
    }

    /// Makes the codes of the first batch, features `[c, N, D]`, where the init wants that and it was not done yet.
    pub(super) fn ensure_made(
        &self,
        x: &Tensor,
        metric: Metric,
        order: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) {
        let Some(initted) = &self.initted else { return };
        // One read of a flag a training step; a flag of our own beside it would miss a checkpoint's.
        if initted.double_value(&[0]) != 0.0 {
            return;
        }
        let size = self.config.codebook_size;
        let order =
            |rows: &Tensor| order.map_or_else(|| random_order(rows.size()[1], rows), Tensor::shallow_clone);
        let (codes, counts) = match self.config.init {
            CodebookInit::KMeans { iterations } => k_means(x, size, iterations, metric, &order(x)),
            _ => {
                let rows = tile_rows(x, size, noise);
                let codes = first_rows(&rows, &order(&rows), size);
                let ones = codes.select(-1, 0).ones_like();
                (codes, ones)
            }
        };
        set(initted, &initted.ones_like());
        match &self.averages {
            Some(averages) => {
                set(&averages.cluster_size, &counts);
                set(&averages.embed_avg, &(&codes * counts.unsqueeze(-1)));
                match self.config.init {
                    CodebookInit::KMeans { .. } => self.refresh(),
                    _ => set(&self.embed, &codes),
                }
            }
            None => set(&self.embed, &codes),
        }
    }

    /// Moves counts and sums towards those of features `[c, N, D]` with ids `[c, N]`.
    pub(super) fn absorb(&self, x: &Tensor, ids: &Tensor) {
        let Some(averages) = &self.averages else { return };
        let (counts, sums) = counts_and_sums(x, ids, self.config.codebook_size);
        for (average, now) in [(&averages.cluster_size, counts), (&averages.embed_avg, sums)] {
            set(average, &average.lerp(&now.to_kind(average.kind()), 1.0 - self.config.ema_decay));
        }
    }

    /// Sets each code to the mean that counts and sums stand for.
    pub(super) fn refresh(&self) {
        let Some(averages) = &self.averages else { return };
        let eps = self.config.ema_eps;
        let counts = &averages.cluster_size;
        let total = counts.sum_dim_intlist([-1i64].as_slice(), true, counts.kind());
        let smoothed = (counts + eps) / (&total + eps * self.config.codebook_size as f64) * total;
        let codes = &averages.embed_avg / smoothed.unsqueeze(-1);
        let codes = if self.config.similarity.unit_codes() { normalize(&codes, 1e-6) } else { codes };
        set(&self.embed, &codes);
    }

    /// Replaces dead codes by features `[c, N, D]`, N > 0.
    pub(super) fn restart_dead(&self, x: &Tensor, order: Option<&Tensor>, noise: Option<&Tensor>) {
        let threshold = self.config.dead_code_threshold;
        let Some(averages) = self.averages.as_ref().filter(|_| threshold > 0.0) else { return };
        let size = self.config.codebook_size;
        let dead = averages.cluster_size.lt(threshold);
        let order =
            |rows: &Tensor| order.map_or_else(|| random_order(rows.size()[1], rows), Tensor::shallow_clone);
        let count = match self.config.dead_code_restart {
            DeadCodeRestart::KeepCount => {
                let rows = tile_rows(x, size, noise);
                let candidates = first_rows(&rows, &order(&rows), size);
                set(&self.embed, &candidates.where_self(&dead.unsqueeze(-1), &self.embed));
                return;
            }
            DeadCodeRestart::ResetCount => threshold,
            DeadCodeRestart::ResetCountTo(count) => count,
        };
        // The j-th dead code takes the j-th feature of the order: no number goes back to the host.
        let candidates = first_rows(x, &order(x), size);
        let rank = (dead.cumsum(-1, Kind::Int64) - 1).clamp_min(0).unsqueeze(-1).expand_as(&candidates);
        let candidates = candidates.gather(1, &rank, false);
        let dead_rows = dead.unsqueeze(-1);
        set(&self.embed, &candidates.where_self(&dead_rows, &self.embed));
        set(&averages.embed_avg, &(candidates * count).where_self(&dead_rows, &averages.embed_avg));
        set(&averages.cluster_size, &averages.cluster_size.masked_fill(&dead, count));
    }
}

/// Writes into a variable, in place.
fn set(variable: &Tensor, values: &Tensor) {
    tch::no_grad(|| variable.shallow_clone().copy_(values));
}

fn initial_codes(path: &nn::Path, shape: &[i64], config: &VqConfig) -> Tensor {
    let (size, width) = (shape[1] as f64, shape[2] as f64);
    let within = |limit: f64| Init::Uniform { lo: -limit, up: limit };
    let init = match config.init {
        CodebookInit::FanIn => within((3.0 / size).sqrt()),
        CodebookInit::InverseSize => within(1.0 / size),
        CodebookInit::Kaiming => within((6.0 / (size * width)).sqrt()),
        CodebookInit::Normal { std } => Init::Randn { mean: 0.0, stdev: std },
        // Replaced by the first batch; until then an evaluation has distinct codes.
        CodebookInit::Data | CodebookInit::KMeans { .. } => Init::Randn { mean: 0.0, stdev: 1.0 },
    };
    let codes = nn::init(init, shape, path.device());
    if config.similarity.unit_codes() { normalize(&codes, 1e-6) } else { codes }
}
