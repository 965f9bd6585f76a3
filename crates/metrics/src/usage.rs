//! How a codebook is used over a whole evaluation set.
//!
//! A quantizer reports the usage of each batch; a batch of a few hundred tokens can show neither a dead code nor a
//! perplexity above its own token count. These figures are counted over the whole set, and memory grows with the codes
//! that occur, not with the vocabulary.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

/// Counts of the ids of a set, added batch by batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodebookUsage {
    vocabulary_size: i64,
    counts: BTreeMap<i64, u64>,
    tokens: u64,
}

impl CodebookUsage {
    /// Nothing counted yet, of a vocabulary of so many codes.
    ///
    /// # Errors
    /// The vocabulary is empty.
    pub fn new(vocabulary_size: i64) -> Result<Self> {
        if vocabulary_size < 1 {
            return Err(Error::config("vocabulary_size", vocabulary_size, "at least 1"));
        }
        Ok(Self { vocabulary_size, counts: BTreeMap::new(), tokens: 0 })
    }

    /// Counts ids: int64 of any shape.
    ///
    /// # Errors
    /// Not int64, or an id outside the vocabulary; nothing is counted then.
    pub fn add(&mut self, ids: &Tensor) -> Result<()> {
        if ids.kind() != Kind::Int64 {
            return Err(Error::input("token ids", format!("kind {:?}", ids.kind()), "int64"));
        }
        if ids.numel() == 0 {
            return Ok(());
        }
        let (sorted, _) = ids.to_device(Device::Cpu).reshape([-1]).sort(0, false);
        let (codes, _, counts) = sorted.unique_consecutive(false, true, 0);
        let codes: Vec<i64> = Vec::try_from(codes)?;
        let counts: Vec<i64> = Vec::try_from(counts)?;
        if let Some(id) = codes.iter().find(|id| !(0..self.vocabulary_size).contains(id)) {
            return Err(Error::input(
                "token ids",
                format!("id {id}"),
                format!("ids in 0..{}, the vocabulary", self.vocabulary_size),
            ));
        }
        for (code, count) in codes.into_iter().zip(counts) {
            *self.counts.entry(code).or_default() += count.unsigned_abs();
        }
        self.tokens += ids.numel() as u64;
        Ok(())
    }

    /// Codes of the vocabulary.
    pub fn vocabulary_size(&self) -> i64 {
        self.vocabulary_size
    }

    /// Ids counted so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Different codes that occurred.
    pub fn used(&self) -> u64 {
        self.counts.len() as u64
    }

    /// The share of the vocabulary that occurred at least once, 0 to 1.
    pub fn used_share(&self) -> f64 {
        self.counts.len() as f64 / self.vocabulary_size as f64
    }

    /// exp(−Σ p ln p): 1 for a single code, the vocabulary size when all are used equally; 1 when nothing was counted.
    pub fn perplexity(&self) -> f64 {
        self.perplexity_with(0.0)
    }

    /// exp(−Σ p ln(p + eps)), as printed in training logs: eps 1e-10 (VideoGPT, TECO, taming transformers) or 1e-5
    /// (Google's VQ).
    pub fn perplexity_with(&self, eps: f64) -> f64 {
        let total = self.tokens.max(1) as f64;
        let sum: f64 = self.counts.values().map(|&n| n as f64 / total).map(|p| p * (p + eps).ln()).sum();
        (-sum).exp()
    }

    /// The codes that occurred, ascending, each with its count.
    pub fn counts(&self) -> impl Iterator<Item = (i64, u64)> + '_ {
        self.counts.iter().map(|(&code, &count)| (code, count))
    }

    /// The counts of all codes: int64 `[vocabulary_size]` on the CPU.
    ///
    /// # Errors
    /// libtorch has not the memory for so large a vocabulary.
    pub fn histogram(&self) -> Result<Tensor> {
        let codes: Vec<i64> = self.counts.keys().copied().collect();
        let counts: Vec<i64> = self.counts.values().map(|&n| n as i64).collect();
        let mut histogram = Tensor::f_zeros([self.vocabulary_size], (Kind::Int64, Device::Cpu))?;
        Ok(histogram.f_index_put_(
            &[Some(Tensor::from_slice(&codes))],
            &Tensor::from_slice(&counts),
            false,
        )?)
    }
}
