//! How often codes are used, scale by scale.

use tch::{Kind, Tensor, nn, no_grad};

/// Running averages of the hits of a step.
#[derive(Debug)]
pub(super) struct Usage {
    hits: Tensor,
    recorded: Tensor,
}

impl Usage {
    pub fn new(path: &nn::Path, scales: i64, codes: i64) -> Self {
        Self {
            hits: path.zeros_no_train("ema_vocab_hit_SV", &[scales, codes]),
            recorded: path.zeros_no_train("record_hit", &[]),
        }
    }

    pub fn shallow_clone(&self) -> Self {
        Self { hits: self.hits.shallow_clone(), recorded: self.recorded.shallow_clone() }
    }

    /// Counts a step's ids at one scale. The published code counts scales, not steps, so the first step copies its first
    /// scale only and the others start from a tenth; kept, so that the numbers agree.
    pub fn record(&self, scale: i64, ids: &Tensor) {
        no_grad(|| {
            let hits = ids.reshape([-1]).bincount(None::<Tensor>, self.hits.size()[1]).to_kind(Kind::Float);
            let mut row = self.hits.get(scale);
            let keep = match self.count() {
                0 => 0.0,
                1..100 => 0.9,
                _ => 0.99,
            };
            row.copy_(&(&row * keep + hits * (1.0 - keep)));
            let _ = self.recorded.shallow_clone().g_add_scalar_(1.0);
        });
    }

    pub fn count(&self) -> i64 {
        self.recorded.double_value(&[]) as i64
    }

    pub fn state(&self) -> (&Tensor, i64) {
        (&self.hits, self.count())
    }

    pub fn percent(&self, margin: f64) -> Tensor {
        self.hits.ge(margin).to_kind(Kind::Float).mean_dim([1i64].as_slice(), false, Kind::Float) * 100.0
    }
}
