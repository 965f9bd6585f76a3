//! Which clips make up the n-th batch. A formula, not a state: a position is all there is to save.

use std::ops::Range;

use video_core::seeds::{self, Stream};

/// The order of a source's clips, epoch by epoch. Each epoch takes every clip once, in an order of its own; a batch
/// holds clips of one bucket, and a bucket's last batch is filled up from the bucket's beginning.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Empty for endless sources.
    buckets: Vec<Range<u64>>,
    batch_size: u64,
    seed: u64,
}

/// A place in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The clip's number.
    pub index: u64,
    /// Of the clip's variation.
    pub seed: u64,
}

impl Order {
    pub fn new(buckets: Vec<Range<u64>>, batch_size: u64, seed: u64) -> Self {
        Self { buckets, batch_size, seed }
    }

    /// The places of a batch.
    pub fn batch(&self, number: u64) -> Vec<Slot> {
        let first = number.wrapping_mul(self.batch_size);
        let slots = (0..self.batch_size).map(|i| first.wrapping_add(i));
        let slot = |clip: u64, index: u64| Slot { index, seed: seeds::derive(self.seed, Stream::Data, clip) };
        let Some((bucket, epoch, within)) = self.find(number) else {
            return slots.map(|clip| slot(clip, clip)).collect();
        };
        let length = bucket.end - bucket.start;
        let key = seeds::derive(self.seed, Stream::Data, epoch) ^ bucket.start;
        slots
            .zip(within * self.batch_size..)
            .map(|(clip, place)| slot(clip, bucket.start + permute(place % length, length, key)))
            .collect()
    }

    /// Another clip of the same batch's bucket, in place of one that cannot be read.
    pub fn replacement(&self, number: u64, slot: Slot, attempt: u64) -> Slot {
        let seed = seeds::derive(slot.seed, Stream::Data, attempt);
        let index = match self.find(number) {
            None => seed,
            Some((bucket, ..)) => bucket.start + seed % (bucket.end - bucket.start),
        };
        Slot { index, seed }
    }

    /// The bucket of a batch, its epoch, and which of the bucket's batches in that epoch it is.
    fn find(&self, number: u64) -> Option<(&Range<u64>, u64, u64)> {
        let batches = |bucket: &Range<u64>| (bucket.end - bucket.start).div_ceil(self.batch_size);
        let per_epoch: u64 = self.buckets.iter().map(batches).sum();
        let epoch = number.checked_div(per_epoch)?;
        let mut place =
            permute(number % per_epoch, per_epoch, !seeds::derive(self.seed, Stream::Data, epoch));
        for bucket in &self.buckets {
            match place.checked_sub(batches(bucket)) {
                None => return Some((bucket, epoch, place)),
                Some(rest) => place = rest,
            }
        }
        None
    }
}

/// A permutation of 0 .. length: a Feistel network over the next power of four, walked until it comes back inside.
fn permute(value: u64, length: u64, key: u64) -> u64 {
    let half = (64 - length.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut value = value;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..4 {
            let mixed = seeds::derive(key, Stream::Data, (round << 32) ^ right);
            (left, right) = (right, left ^ (mixed & mask));
        }
        value = (left << half) | right;
        if value < length {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_epoch_takes_every_clip(a in 1u64..40, b in 1u64..40, batch in 1u64..9, seed: u64) {
            let order = Order::new(vec![0..a, a..a + b], batch, seed);
            let per_epoch = a.div_ceil(batch) + b.div_ceil(batch);
            for epoch in 0..3 {
                let mut seen = BTreeSet::new();
                for number in epoch * per_epoch..(epoch + 1) * per_epoch {
                    let slots = order.batch(number);
                    prop_assert_eq!(slots.len() as u64, batch);
                    prop_assert_eq!(&slots, &order.batch(number));
                    // One bucket a batch.
                    prop_assert!(slots.iter().all(|s| s.index < a) || slots.iter().all(|s| s.index >= a));
                    let other = order.replacement(number, slots[0], 1);
                    prop_assert_eq!(other.index < a, slots[0].index < a);
                    seen.extend(slots.iter().map(|s| s.index));
                }
                prop_assert_eq!(seen, (0..a + b).collect::<BTreeSet<_>>());
            }
        }

        #[test]
        fn permutations_are_permutations(length in 1u64..200, key: u64) {
            let all: BTreeSet<u64> = (0..length).map(|i| permute(i, length, key)).collect();
            prop_assert_eq!(all.len() as u64, length);
            prop_assert!(all.iter().all(|&i| i < length));
        }
    }

    #[test]
    fn endless_sources_are_taken_in_order() {
        let order = Order::new(Vec::new(), 3, 1);
        assert_eq!(order.batch(2).iter().map(|s| s.index).collect::<Vec<_>>(), [6, 7, 8]);
    }
}
