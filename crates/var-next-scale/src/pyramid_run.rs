//! Sampling one pyramid, scale by scale, with cached keys and values.

use layers::KvCache;
use tch::{Kind, Tensor};
use video_core::Result;

use crate::quantizer::{MultiScaleVq, as_sequence};
use crate::sampling::{
    VarSampling, draw, exponential_like, filter_logits, guided, smooth_factor, smooth_temperature,
};
use crate::scales::Pyramid;
use crate::transformer::{Conditioning, Var};

/// One scale of a sample, as it is made.
#[derive(Debug)]
pub struct ScaleStep<'a> {
    /// Which, from 0.
    pub scale: usize,
    /// Logits after guidance and before filters, `[B, n, V]`.
    pub logits: &'a Tensor,
    /// The most likely or drawn ids, before given ones are put in their place, `[B, n]`.
    pub drawn: &'a Tensor,
    /// The ids, `[B, n]`.
    pub ids: &'a Tensor,
    /// The sum of all scales so far, `[B, z, T, H, W]`.
    pub f_hat: &'a Tensor,
}

/// Ids that are given: `[B, n]` a scale, and where they are kept, bool `[n]` a scale; without that all are, and nothing need
/// be predicted.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub ids: &'a [Tensor],
    pub keep: Option<&'a [Tensor]>,
}

/// A finished pyramid: ids `[B, n]` a scale and their sum `[B, z, T, H, W]`.
#[derive(Debug)]
pub struct Sampled {
    /// Ids of each scale, int64 `[B, n]`. Of a smooth sample they are the likeliest of each mixture.
    pub ids: Vec<Tensor>,
    /// What the tokenizer decodes, `[B, z, T, H, W]`.
    pub f_hat: Tensor,
}

/// One pyramid to be sampled.
pub(crate) struct PyramidRun<'a> {
    pub model: &'a Var,
    pub quantizer: &'a MultiScaleVq,
    pub pyramid: &'a Pyramid,
    /// Of the batch, and with guidance of the same batch without class behind it.
    pub condition: &'a Conditioning,
    pub batch: i64,
    pub options: VarSampling,
    pub given: Option<Given<'a>>,
    /// A tensor `[B, n, V]` a scale: standard exponential draws, of a smooth sample standard Gumbel draws.
    pub noise: Option<&'a [Tensor]>,
}

impl PyramidRun<'_> {
    /// Whether both halves run, with class and without.
    fn guides(&self) -> bool {
        self.condition.class.size()[0] == 2 * self.batch
    }

    /// Runs it. `start` `[B or 2B, n, C]` goes in first; `embed` makes what goes in at a later scale of the sum so far.
    pub fn run(
        &self,
        start: Tensor,
        embed: &dyn Fn(usize, &Tensor) -> Tensor,
        caches: &mut [KvCache],
        observe: &mut dyn FnMut(&ScaleStep<'_>),
    ) -> Result<Sampled> {
        let last = self.pyramid.last();
        let size = [self.batch, self.model.config().z_channels, last.frames, last.height, last.width];
        let mut f_hat = Tensor::zeros(size, (Kind::Float, self.model.device()));
        let mut all_ids = Vec::with_capacity(self.pyramid.len());
        let mut x = start;
        for scale in 0..self.pyramid.len() {
            let h = self.model.run_cached(x, self.condition, caches)?;
            let predicted = self.predict(&h, scale);
            let next;
            (f_hat, next) = self.quantizer.next_input(scale, self.pyramid, &f_hat, &predicted.codes);
            let Predicted { ids, logits, .. } = predicted;
            if let Some((logits, drawn)) = &logits {
                observe(&ScaleStep { scale, logits, drawn, ids: &ids, f_hat: &f_hat });
            }
            all_ids.push(ids);
            if scale + 1 == self.pyramid.len() {
                break;
            }
            let embedded = embed(scale + 1, &as_sequence(&next));
            x = if self.guides() { embedded.repeat([2, 1, 1]) } else { embedded };
        }
        Ok(Sampled { ids: all_ids, f_hat })
    }

    /// One scale of what comes out of the blocks, `[B or 2B, n, C]`.
    fn predict(&self, h: &Tensor, scale: usize) -> Predicted {
        if let Some(Given { ids, keep: None }) = self.given {
            let codes = self.quantizer.lookup(&ids[scale], self.pyramid.scales()[scale]);
            return Predicted { ids: ids[scale].shallow_clone(), codes, logits: None };
        }
        let logits = self.guide(h, scale);
        let (drawn, codes) = self.choose(&logits, scale);
        let (ids, codes) = match self.given {
            Some(Given { ids, keep: Some(keep) }) => {
                self.with_given(&drawn, &codes, &ids[scale], &keep[scale], scale)
            }
            _ => (drawn.shallow_clone(), codes),
        };
        Predicted { ids, codes, logits: Some((logits, drawn)) }
    }

    /// Logits `[B, n, V]` after guidance.
    fn guide(&self, h: &Tensor, scale: usize) -> Tensor {
        let logits = self.model.logits(h, self.condition).to_kind(Kind::Float);
        if !self.guides() {
            return logits;
        }
        let halves = logits.chunk(2, 0);
        guided(&halves[0], &halves[1], self.options.guidance(self.pyramid.ratio(scale)))
    }

    /// Ids `[B, n]` and codes `[B, z, t, h, w]` of guided logits.
    fn choose(&self, logits: &Tensor, scale: usize) -> (Tensor, Tensor) {
        let shape = self.pyramid.scales()[scale];
        let filtered = filter_logits(logits, &self.options.filter);
        let noise = self.noise.map(|noise| noise[scale].shallow_clone());
        if !self.options.more_smooth {
            let ids = draw(&filtered, &noise.unwrap_or_else(|| exponential_like(&filtered)));
            let codes = self.quantizer.lookup(&ids, shape);
            return (ids, codes);
        }
        let gumbel = noise.unwrap_or_else(|| -exponential_like(&filtered).log());
        let ratio = self.pyramid.ratio(scale);
        let mixture = (filtered * smooth_factor(ratio) + gumbel) / smooth_temperature(ratio);
        let mixture = mixture.softmax(-1, Kind::Float);
        let codes = mixture.matmul(self.quantizer.embedding()).transpose(1, 2);
        let codes = codes.reshape([self.batch, -1, shape.frames, shape.height, shape.width]);
        (mixture.argmax(-1, false), codes)
    }

    /// Puts given ids and their codes where they are kept.
    fn with_given(
        &self,
        ids: &Tensor,
        codes: &Tensor,
        given: &Tensor,
        keep: &Tensor,
        scale: usize,
    ) -> (Tensor, Tensor) {
        let shape = self.pyramid.scales()[scale];
        let given_codes = self.quantizer.lookup(given, shape);
        let keep_codes = keep.view([1, 1, shape.frames, shape.height, shape.width]);
        (given.where_self(keep, ids), given_codes.where_self(&keep_codes, codes))
    }
}

/// One scale.
struct Predicted {
    ids: Tensor,
    codes: Tensor,
    /// Guided logits and the ids drawn from them, of a scale that is not given.
    logits: Option<(Tensor, Tensor)>,
}
