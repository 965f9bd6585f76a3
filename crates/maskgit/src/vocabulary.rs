//! Tokens in and out of the transformer: word embeddings, and the head that shares their table.

use layers::init::truncated_normal;
use layers::linear;
use tch::Tensor;
use tch::nn::{self, Module};
use video_core::sampling::{Filter, gumbel_like};
use video_core::{Error, Result};

use crate::loss::smoothed_cross_entropy;

/// Standard deviation (before the cut) of all tables and matrices at the start.
pub(crate) const INIT_STD: f64 = 0.02;

/// Which ids a head's softmax is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// The codes, 0..K.
    Codes,
    /// All rows of the word table, classes and mask among them: how MaskGIT trained.
    All,
}

/// The ids of a model: K codes of the tokenizer, then special rows (classes, tasks, mask). Negative ids count from the end of
/// all rows.
///
/// With factors, a code is a number whose digits, the first the least significant, have rows of their own: its embedding
/// is their sum, and one small softmax a digit predicts it (MAGVIT-v2, section 3.4), so that no softmax is over K. Special
/// tokens have whole rows then, too.
///
/// Variables: `word` `[K + S, D]`, or `factor.{j}` `[K_j, D]` and `special` `[S, D]`; and of the head `dense`, `norm`, `bias`,
/// or `bias.{j}`.
#[derive(Debug)]
pub struct Vocabulary {
    codes: i64,
    specials: i64,
    rows: Rows,
    dense: layers::Linear,
    norm: nn::LayerNorm,
}

#[derive(Debug)]
enum Rows {
    Whole { word: Tensor, bias: Tensor },
    Factors { tables: Vec<Tensor>, biases: Vec<Tensor>, special: Tensor },
}

impl Vocabulary {
    /// K codes and S special ids in width D; `factors` empty, or with the product K.
    ///
    /// # Errors
    /// No code, a factor below 2, or factors that do not multiply to K.
    pub fn new(path: &nn::Path, codes: i64, specials: i64, factors: &[i64], width: i64) -> Result<Self> {
        if !(1..1 << 40).contains(&codes) {
            return Err(Error::config("codebook_size", codes, "1 to 2^40 codes"));
        }
        let product = factors.iter().try_fold(1i64, |product, &f| product.checked_mul(f));
        if !factors.is_empty() && (factors.iter().any(|&f| f < 2) || product != Some(codes)) {
            return Err(Error::config(
                "factors",
                factors,
                format!("numbers of at least 2 whose product is codebook_size = {codes}"),
            ));
        }
        let table = |name: &str, rows: i64| truncated_normal(path, name, &[rows, width], INIT_STD, 2.0);
        let rows = if factors.is_empty() {
            Rows::Whole {
                word: table("word", codes + specials),
                bias: path.zeros("bias", &[codes + specials]),
            }
        } else {
            let sub = |name: &str, j: usize| format!("{name}_{j}");
            Rows::Factors {
                tables: factors.iter().enumerate().map(|(j, &k)| table(&sub("factor", j), k)).collect(),
                biases: factors.iter().enumerate().map(|(j, &k)| path.zeros(&sub("bias", j), &[k])).collect(),
                special: table("special", specials),
            }
        };
        Ok(Self {
            codes,
            specials,
            rows,
            dense: layers::Linear::truncated_normal(&(path / "dense"), width, width, true, INIT_STD),
            norm: layer_norm(&(path / "norm"), width),
        })
    }

    /// K.
    pub fn codes(&self) -> i64 {
        self.codes
    }

    /// Refuses ids that no row stands for.
    ///
    /// # Errors
    /// Names the smallest or the largest offending id.
    pub fn check_ids(&self, ids: &Tensor) -> Result<()> {
        let rows = self.codes + self.specials;
        for id in [ids.min(), ids.max()].map(|id| id.int64_value(&[])) {
            if !(-rows..rows).contains(&id) {
                return Err(Error::input(
                    "token ids",
                    format!("id {id}"),
                    format!("ids in -{rows}..{rows}: {} codes and {} special", self.codes, self.specials),
                ));
            }
        }
        Ok(())
    }

    /// Embeddings `[..., D]` of ids `[...]`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        // The remainder of a negative id is its row from the end.
        let ids = ids.remainder(self.codes + self.specials);
        match &self.rows {
            Rows::Whole { word, .. } => Tensor::embedding(word, &ids, -1, false, false),
            Rows::Factors { tables, special, .. } => {
                let code = ids.clamp_max(self.codes - 1);
                let digits = digits(&code, &tables.iter().map(|t| t.size()[0]).collect::<Vec<_>>());
                let sum = tables
                    .iter()
                    .zip(&digits)
                    .map(|(table, digit)| Tensor::embedding(table, digit, -1, false, false))
                    .reduce(|sum, rows| sum + rows)
                    .expect("factors are not empty");
                let row = (&ids - self.codes).clamp_min(0);
                let specials = Tensor::embedding(special, &row, -1, false, false);
                specials.where_self(&ids.ge(self.codes).unsqueeze(-1), &sum)
            }
        }
    }

    /// Logits of hidden states `[M, D]`.
    ///
    /// # Errors
    /// [`Columns::All`] of a factorised vocabulary, which has no such softmax.
    pub fn logits(&self, hidden: &Tensor, columns: Columns) -> Result<Logits> {
        let h = self.norm.forward(&self.dense.forward(hidden).gelu("tanh"));
        let factors = match (&self.rows, columns) {
            (Rows::Whole { word, bias }, Columns::All) => vec![linear(&h, word, Some(bias))],
            (Rows::Whole { word, bias }, Columns::Codes) => {
                vec![linear(&h, &word.narrow(0, 0, self.codes), Some(&bias.narrow(0, 0, self.codes)))]
            }
            (Rows::Factors { tables, biases, .. }, Columns::Codes) => {
                tables.iter().zip(biases).map(|(table, bias)| linear(&h, table, Some(bias))).collect()
            }
            (Rows::Factors { .. }, Columns::All) => {
                return Err(Error::unsupported(
                    "a factorised vocabulary",
                    "take one softmax over all ids",
                    "its heads predict digits of codes; use Columns::Codes",
                ));
            }
        };
        Ok(Logits { factors })
    }
}

/// The layer norm of all blocks: ε = 1e-12.
pub(crate) fn layer_norm(path: &nn::Path, width: i64) -> nn::LayerNorm {
    nn::layer_norm(path, vec![width], nn::LayerNormConfig { eps: 1e-12, ..Default::default() })
}

/// The digits of codes, the first the least significant.
fn digits(codes: &Tensor, factors: &[i64]) -> Vec<Tensor> {
    let mut rest = codes.shallow_clone();
    factors
        .iter()
        .map(|&factor| {
            let digit = rest.remainder(factor);
            rest = rest.divide_scalar_mode(factor, "floor");
            digit
        })
        .collect()
}

/// What a head says of M positions: one `[M, K_j]` for each factor of the vocabulary (a single one where it has none). The
/// probability of an id is the product over its digits.
#[derive(Debug)]
pub struct Logits {
    factors: Vec<Tensor>,
}

/// Ids drawn for M positions.
#[derive(Debug)]
pub struct Draws {
    /// int64 `[M]`.
    pub ids: Tensor,
    /// ln p of them by the logits as they are (no temperature, no filter, no noise), `[M]`.
    pub log_probabilities: Tensor,
}

impl Logits {
    /// Of one softmax: `[M, K]`.
    pub fn whole(logits: Tensor) -> Self {
        Self { factors: vec![logits] }
    }

    /// `[M, K_j]` for each factor.
    pub fn factors(&self) -> &[Tensor] {
        &self.factors
    }

    /// Σ over factors of the smoothed cross-entropy of targets `[M]`, `[M]`.
    pub fn cross_entropy(&self, targets: &Tensor, label_smoothing: f64) -> Tensor {
        self.digits_of(targets)
            .iter()
            .zip(&self.factors)
            .map(|(digits, logits)| smoothed_cross_entropy(logits, digits, label_smoothing))
            .reduce(|sum, term| sum + term)
            .expect("at least one factor")
    }

    /// Classifier-free guidance: l + scale · (l − `uncond`).
    #[must_use]
    pub fn guided(&self, uncond: &Self, scale: f64) -> Self {
        let guide = |(l, u): (&Tensor, &Tensor)| l + (l - u) * scale;
        Self { factors: self.factors.iter().zip(&uncond.factors).map(guide).collect() }
    }

    /// The most likely ids `[M]`.
    pub fn most_likely(&self) -> Tensor {
        self.join(self.factors.iter().map(|logits| logits.argmax(-1, false)).collect())
    }

    /// Draws ids. Top-k and top-p see the logits at temperature 1, as in MAGVIT and Muse; the temperature (0: greedy) divides
    /// what they leave. `noise`: Gumbel noise `[M, K_j]` for each factor, from torch's global generator where not given.
    pub fn draw(&self, filter: &Filter, noise: Option<&[Tensor]>) -> Draws {
        let at_one = Filter { temperature: 1.0, ..*filter };
        let chosen = self.factors.iter().enumerate().map(|(j, logits)| {
            if filter.temperature == 0.0 {
                return logits.argmax(-1, false);
            }
            // Most draws are plain; each copy saved is as large as the logits.
            let kept = match (filter.top_k, filter.top_p) {
                (None, None) => logits.shallow_clone(),
                _ => at_one.apply(logits),
            };
            let kept = if filter.temperature == 1.0 { kept } else { kept / filter.temperature };
            match noise {
                Some(noise) => (kept + &noise[j]).argmax(-1, false),
                None => (&kept + gumbel_like(&kept)).argmax(-1, false),
            }
        });
        let ids = self.join(chosen.collect());
        let log_probabilities = self.log_probabilities(&ids);
        Draws { ids, log_probabilities }
    }

    /// ln p of ids `[M]`, `[M]`.
    pub fn log_probabilities(&self, ids: &Tensor) -> Tensor {
        self.digits_of(ids)
            .iter()
            .zip(&self.factors)
            .map(|(digits, logits)| {
                let chosen = logits.gather(-1, &digits.unsqueeze(-1), false).squeeze_dim(-1);
                chosen - logits.logsumexp([-1i64].as_slice(), false)
            })
            .reduce(|sum, term| sum + term)
            .expect("at least one factor")
    }

    fn sizes(&self) -> Vec<i64> {
        self.factors.iter().map(|logits| *logits.size().last().unwrap_or(&1)).collect()
    }

    fn digits_of(&self, ids: &Tensor) -> Vec<Tensor> {
        if let [_] = self.factors[..] { vec![ids.shallow_clone()] } else { digits(ids, &self.sizes()) }
    }

    fn join(&self, digits: Vec<Tensor>) -> Tensor {
        let sizes = self.sizes();
        let mut weight = 1;
        let mut ids = digits[0].zeros_like();
        for (digit, size) in digits.iter().zip(sizes) {
            ids += digit * weight;
            weight *= size;
        }
        ids
    }
}
