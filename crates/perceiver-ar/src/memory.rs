//! What decoding remembers: keys and values of every attention.

use layers::KvCache;
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::config::InitialQuery;
use crate::model::PerceiverAr;
use crate::position::Rotary;

/// How much a [`Memory`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Everything.
    Growing,
    /// The last inputs and latents; older ones drop out, and a step's cost does not grow.
    FixedSize {
        /// Inputs, for cross-attentions.
        inputs: i64,
        /// Latents, for self-attentions.
        latents: i64,
    },
}

/// Keys and values of the inputs and latents of a batch that is being decoded; see [`PerceiverAr::push`].
#[derive(Debug)]
pub struct Memory {
    kind: MemoryKind,
    batch: Option<i64>,
    pub(crate) cross: Vec<KvCache>,
    pub(crate) layers: Vec<KvCache>,
    /// Inputs and latents, those that are being pushed among them.
    counts: [i64; 2],
    /// int64 `[B, n]` of inputs and latents, for rotations.
    places: Option<[Tensor; 2]>,
}

/// What a memory holds of one attention.
#[derive(Debug)]
pub struct MemoryEntries {
    /// `[B, n, H, d]`, before rotation.
    pub keys: Tensor,
    /// `[B, n, H, d]`.
    pub values: Tensor,
    /// int64 `[B, n]`; none where positions do not rotate.
    pub positions: Option<Tensor>,
}

impl PerceiverAr {
    /// An empty memory.
    ///
    /// # Errors
    /// The model cannot decode with one: its positions count back and so would change with every token, latents share
    /// positions, or each has learnt its own start; or a size is not positive.
    pub fn memory(&self, kind: MemoryKind) -> Result<Memory> {
        let config = &self.config;
        let unshared =
            config.initial_query_embed_style == InitialQuery::Learned && !config.share_learned_initial_query;
        let because = if !config.use_positions_from_data {
            "its positions count back from the last token: use_positions_from_data = true keeps them"
        } else if config.num_latents_per_position > 1 {
            "several latents share a position: num_latents_per_position = 1"
        } else if unshared {
            "each latent has learnt its own start: share_learned_initial_query = true"
        } else {
            ""
        };
        if !because.is_empty() {
            return Err(Error::unsupported("Perceiver AR", "decode with a memory", because));
        }
        let (inputs, latents) = match kind {
            // As many as can be addressed: the cache grows with what it holds.
            MemoryKind::Growing => (i64::MAX / 4, i64::MAX / 4),
            MemoryKind::FixedSize { inputs, latents } => {
                if !(1..=1 << 32).contains(&inputs) || !(1..=1 << 32).contains(&latents) {
                    return Err(Error::config(
                        "memory",
                        (inputs, latents),
                        "at least one input and one latent",
                    ));
                }
                (inputs, latents)
            }
        };
        let crosses = usize::from(config.include_initial_cross_attention)
            + config.additional_cross_attend_after_layers.len();
        Ok(Memory {
            kind,
            batch: None,
            cross: (0..crosses).map(|_| KvCache::new(inputs)).collect(),
            layers: (0..config.num_transformers_per_block).map(|_| KvCache::new(latents)).collect(),
            counts: [0, 0],
            places: None,
        })
    }

    /// What a memory holds of the i-th cross-attention, the initial one first.
    pub fn remembered_inputs(&self, memory: &Memory, i: usize) -> Option<MemoryEntries> {
        memory.read(memory.cross.get(i)?, 0, self.cross_rotary.as_ref())
    }

    /// What a memory holds of the i-th layer's self-attention.
    pub fn remembered_latents(&self, memory: &Memory, i: usize) -> Option<MemoryEntries> {
        memory.read(memory.layers.get(i)?, 1, self.self_rotary.as_ref())
    }
}

impl Memory {
    /// How much it holds.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Inputs held.
    pub fn inputs(&self) -> i64 {
        self.counts[0]
    }

    /// Latents held.
    pub fn latents(&self) -> i64 {
        self.counts[1]
    }

    /// Whether a further latent would make one drop out.
    pub fn latents_are_full(&self) -> bool {
        matches!(self.kind, MemoryKind::FixedSize { latents, .. } if self.latents() == latents)
    }

    pub(crate) fn check(&self, batch: i64, inputs: i64, latents: i64) -> Result<()> {
        if let Some(begun) = self.batch.filter(|&begun| begun != batch) {
            let expected = format!("[{begun}, n], the batch that the memory was begun with");
            return Err(Error::shape("token ids", &[batch, inputs], expected));
        }
        if let MemoryKind::FixedSize { inputs: most_inputs, latents: most_latents } = self.kind
            && (inputs > most_inputs || latents > most_latents)
        {
            let problem = format!("{inputs} inputs and {latents} latents");
            let expected = format!("at most {most_inputs} and {most_latents}, the memory's");
            return Err(Error::input("what is pushed at once", problem, expected));
        }
        Ok(())
    }

    /// Notes what is about to be pushed: how many, and where they are.
    pub(crate) fn remember(
        &mut self,
        places: Option<&(Tensor, Tensor)>,
        batch: i64,
        inputs: i64,
        latents: i64,
    ) {
        self.batch = Some(batch);
        let most = match self.kind {
            MemoryKind::Growing => [i64::MAX; 2],
            MemoryKind::FixedSize { inputs, latents } => [inputs, latents],
        };
        self.counts = [(self.counts[0] + inputs).min(most[0]), (self.counts[1] + latents).min(most[1])];
        let Some((inputs, latents)) = places else { return };
        let held = self.places.take();
        let old = |i: usize| held.as_ref().map(|held| held[i].shallow_clone());
        let join = |i: usize, new: &Tensor| {
            let all = old(i).map_or_else(|| new.shallow_clone(), |old| Tensor::cat(&[&old, new], 1));
            all.narrow(1, all.size()[1] - self.counts[i], self.counts[i])
        };
        self.places = Some([join(0, inputs), join(1, latents)]);
    }

    fn read(&self, cache: &KvCache, which: usize, rotary: Option<&Rotary>) -> Option<MemoryEntries> {
        let (keys, values) = cache.entries()?;
        let positions = self.places.as_ref().map(|places| places[which].shallow_clone());
        let keys = match (&positions, rotary) {
            (Some(positions), Some(rotary)) => rotary.rotate(&keys, &-positions.to_kind(Kind::Int64)),
            _ => keys,
        };
        Some(MemoryEntries { keys: keys.transpose(1, 2), values: values.transpose(1, 2), positions })
    }
}
