//! Published checkpoints.

pub(crate) mod cosmos;
