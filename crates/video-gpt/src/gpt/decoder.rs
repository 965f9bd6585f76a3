//! Decoding with cached keys and values.

use layers::KvCache;
use tch::{Kind, Tensor, no_grad};
use video_core::{Error, Result};

use super::block::KeysValues;
use super::{GptCondition, VideoGpt};
use crate::layer_norm::check_class;

/// A batch of clips that is being decoded. Tokens are given in raster order, any number at a time; the logits are those of
/// [`VideoGpt::forward`] on the same tokens, whatever the pieces.
#[derive(Debug)]
pub struct GptDecoder<'a> {
    model: &'a VideoGpt,
    batch: i64,
    class: Option<Tensor>,
    /// What each layer's cross-attention looks among.
    contexts: Vec<Option<KeysValues>>,
    caches: Vec<KvCache>,
    /// `[S, C]`.
    positions: Tensor,
    /// Positions that were fed: the first of them is the start, not a token.
    fed: i64,
}

impl<'a> GptDecoder<'a> {
    pub(super) fn new(model: &'a VideoGpt, batch: i64, condition: GptCondition<'_>) -> Result<Self> {
        if batch < 1 {
            return Err(Error::config("batch", batch, "at least 1"));
        }
        let GptCondition { class, frames } = condition;
        check_class(class, model.config.class_cond_dim, batch)?;
        no_grad(|| {
            let context = model.context(frames, batch)?;
            let keys_values =
                |context: &Tensor| model.blocks.iter().map(|b| b.keys_values(context)).collect();
            let none = || model.blocks.iter().map(|_| None).collect();
            let tokens = model.config.grid.tokens();
            Ok(Self {
                model,
                batch,
                class: class.map(|class| class.to_device(model.device)),
                contexts: context.as_ref().map_or_else(none, keys_values),
                caches: model.blocks.iter().map(|_| KvCache::new(tokens)).collect(),
                positions: model.pos_embd.all(),
                fed: 0,
            })
        })
    }

    /// Tokens given so far.
    pub fn position(&self) -> i64 {
        (self.fed - 1).max(0)
    }

    /// Takes the next tokens, int64 `[B, n]`, and gives the logits `[B, n, K]` of those that follow each. The first call's
    /// have one more in front, `[B, n + 1, K]`, of the clip's first token, and its n may be 0. Without gradients.
    ///
    /// # Errors
    /// More tokens than the grid has after which one follows, another batch size, ids outside the vocabulary.
    pub fn push(&mut self, ids: &Tensor) -> Result<Tensor> {
        let size = ids.size();
        let starts = self.fed == 0;
        if size.len() != 2 || size[0] != self.batch || ids.kind() != Kind::Int64 || (size[1] < 1 && !starts) {
            let expected = format!("int64 [{}, n], the batch that the decoder was made for", self.batch);
            return Err(Error::shape("token ids", &size, expected));
        }
        let tokens = self.model.config.grid.tokens();
        let new = size[1] + i64::from(starts);
        if self.fed + new > tokens {
            return Err(Error::input(
                "token ids",
                format!("{} tokens", self.position() + size[1]),
                format!("at most {}, one fewer than the grid's, as one follows", tokens - 1),
            ));
        }
        if size[1] > 0 {
            let [least, most] = [ids.min(), ids.max()].map(|id| id.int64_value(&[]));
            if least < 0 || most >= self.model.config.n_codes {
                let expected = format!("ids in 0..{}", self.model.config.n_codes);
                return Err(Error::input("token ids", format!("{least} to {most}"), expected));
            }
        }
        no_grad(|| self.step(&ids.to_device(self.model.device), new))
    }

    fn step(&mut self, ids: &Tensor, new: i64) -> Result<Tensor> {
        let model = self.model;
        let mut x = model.embed(ids);
        if self.fed == 0 {
            x = Tensor::cat(&[model.right_shift.start(self.batch), x], 1);
        }
        x += self.positions.narrow(0, self.fed, new);
        let mask = model.mask.as_ref().map(|mask| mask.narrow(0, self.fed, new).narrow(1, 0, self.fed + new));
        let class = self.class.as_ref();
        for ((block, context), cache) in model.blocks.iter().zip(&self.contexts).zip(&mut self.caches) {
            x = block.forward_cached(&x, context.as_ref(), class, mask.as_ref(), cache)?;
        }
        self.fed += new;
        Ok(model.logits(&x, class))
    }
}
